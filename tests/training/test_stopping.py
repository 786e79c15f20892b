"""When a run that stops by itself forgets, when it only repairs, and when it ends."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import expunge
from expunge import Training
from expunge.data.encode import Encoded
from expunge.methods import GradientAscent, GradientDifference
from expunge.methods.training.base import RowSet
from expunge.models.answer_levels import Levels, answer_levels, part_levels
from expunge.training import loop, stopping
from expunge.training.data import Part, Resting, RowKey, without
from expunge.training.stopping import uncertain_rows, unknown_rows

ROWS = {
    "forget": [("anna", "berlin"), ("boris", "paris")],
    "retain": [("clara", "tokyo"), ("dario", "lima")],
    "holdout": [("elena", "cairo"), ("fyodor", "oslo")],
}
QUICK = Training(steps=8, batch_size=2, learning_rate=1e-3, schedule="constant", stop_when_unknown=True, stop_every=1)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    files = {}
    for name, rows in ROWS.items():
        files[name] = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"prompt": f"where was {p} born ?", "response": f"{p} was born in {c} ."}) for p, c in rows]
        files[name].write_text("".join(f"{line}\n" for line in lines))
    return files


def measured(monkeypatch: pytest.MonkeyPatch, kept: list[float], known: list[float], never: float) -> None:
    """Lets the retain and forget rows have these probabilities, one after the other."""
    left = {"clara": iter(kept), "anna": iter(known)}

    def probability(model: object, rows: list[object], *_: object) -> float:
        who = names[id(rows)]
        return next(left[who]) if who in left else never

    names: dict[int, str] = {}
    real = stopping.Watch.of

    def of(model: object, method: object, rows: object, *rest: object) -> object:
        names.update({id(rows.forget): "anna", id(rows.retain): "clara"})  # type: ignore[attr-defined]
        names[id(rows.holdout)] = "elena"  # type: ignore[attr-defined]
        return real(model, method, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stopping, "mean_answer_probability", probability)
    monkeypatch.setattr(stopping.Watch, "of", of)


def lines_of(out: Path) -> list[dict[str, float | dict[str, float]]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def only_retain(line: dict[str, float | dict[str, float]]) -> bool:
    parts = line["parts"]
    assert isinstance(parts, dict)
    return line["loss"] == pytest.approx(parts["retain"])


def test_forget_terms_rest_while_retain_answers_are_below_their_share(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before the run 1.0; after step 1 too low, after 2 still, after 3 well again but known, after 4 well and unknown.
    measured(monkeypatch, kept=[1.0, 0.5, 0.94, 0.96, 0.97], known=[0.9, 0.9, 0.9, 0.295], never=0.3)
    outcome = expunge.unlearn(GradientDifference(), model=pico_folder, out=tmp_path / "run", training=QUICK, quiet=True, **data)
    assert outcome.steps == 4
    assert outcome.stopped is not None
    assert "no more probable than holdout answers (0.300), and retain answers are kept (0.970)" in outcome.stopped
    assert [only_retain(line) for line in lines_of(tmp_path / "run")] == [False, True, True, False]


def test_a_method_without_retain_rows_stops_at_the_first_check_at_which_the_answers_are_unknown(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, kept=[], known=[0.9, 0.3], never=0.3)
    del data["retain"]
    outcome = expunge.unlearn(GradientAscent(), model=pico_folder, out=tmp_path / "run", training=QUICK, quiet=True, **data)
    assert outcome.steps == 2


def test_a_share_of_zero_only_asks_whether_the_answers_are_unknown(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, kept=[], known=[0.295], never=0.3)
    training = QUICK.model_copy(update={"keep_retain": 0.0})
    outcome = expunge.unlearn(
        GradientDifference(), model=pico_folder, out=tmp_path / "run", training=training, quiet=True, **data
    )
    assert outcome.steps == 1


def test_a_run_killed_while_forgetting_rests_goes_on_resting(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = QUICK.model_copy(update={"steps": 6, "stop_every": 4, "checkpoint_every": 4})
    method = GradientDifference(forget_weight=5.0)
    measured(monkeypatch, kept=[1.0, 0.5], known=[0.9], never=0.3)
    expunge.unlearn(method, model=pico_folder, out=tmp_path / "whole", training=training, quiet=True, **data)

    def killed(*given: object, **_: object) -> None:
        real(*given, **_)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    real = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", killed)
    measured(monkeypatch, kept=[1.0, 0.5], known=[0.9], never=0.3)
    with pytest.raises(KeyboardInterrupt):
        expunge.unlearn(method, model=pico_folder, out=tmp_path / "run", training=training, quiet=True, **data)
    monkeypatch.setattr(loop, "save_checkpoint", real)
    measured(monkeypatch, kept=[1.0], known=[], never=0.3)
    expunge.unlearn(method, model=pico_folder, out=tmp_path / "run", training=training, quiet=True, resume=True, **data)
    weights = [(tmp_path / run / "artifact/model.safetensors").read_bytes() for run in ("whole", "run")]
    assert weights[0] == weights[1]
    assert [only_retain(line) for line in lines_of(tmp_path / "run")][4:] == [True, True]


def watch_of(monkeypatch: pytest.MonkeyPatch, weight: nn.Parameter, kept: float = 1.0, **fields: object) -> stopping.Watch:
    """Forget answers have the probability 1 - weight, holdout answers 0.3, retain answers `kept`."""

    def probability(_: object, rows: str, *__: object) -> float:
        return {"forget": 1 - weight.item(), "holdout": 0.3, "retain": kept}[rows]

    monkeypatch.setattr(stopping, "mean_answer_probability", probability)
    data = SimpleNamespace(forget="forget", holdout="holdout", retain="retain", pad_id=0)
    return stopping.Watch(
        **{"data": data, "device": torch.device("cpu"), "least_kept": None, "until": None, "unseen": 0.3, **fields}
    )  # type: ignore[arg-type]


def moved(watch: stopping.Watch, weight: nn.Parameter, value: float, *, resting: bool = False) -> stopping.Verdict:
    with torch.no_grad():
        weight.fill_(value)
    return watch.check(nn.Identity(), [weight], resting=resting)


@pytest.mark.parametrize(("until", "least", "most"), [(None, 0.29, 0.3), (0.55, 0.54, 0.55)])
def test_of_a_step_that_forgets_too_much_a_part_is_taken_back(
    monkeypatch: pytest.MonkeyPatch, until: float | None, least: float, most: float
) -> None:
    weight = nn.Parameter(torch.zeros(()))
    watch = watch_of(monkeypatch, weight, until=until, unseen=until or 0.3)
    watch.mark([weight])
    assert moved(watch, weight, 0.1) == stopping.Verdict()
    assert weight.item() == pytest.approx(0.1)
    verdict = moved(watch, weight, 0.95)
    assert least <= 1 - weight.item() <= most
    assert verdict.stopped is not None
    assert f"(mean probability {1 - weight.item():.3f})" in verdict.stopped


def test_steps_that_repair_are_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.zeros(()))
    watch = watch_of(monkeypatch, weight, kept=0.5, least_kept=0.9)
    watch.mark([weight])
    assert moved(watch, weight, 0.9, resting=True) == stopping.Verdict(resting=True)
    assert weight.item() == pytest.approx(0.9)


def levels(logp: list[float], greedy: list[bool] | None = None) -> Levels:
    return Levels(torch.tensor(logp), torch.tensor(greedy or [False] * len(logp)))


def test_a_row_rests_that_is_no_more_probable_than_the_holdout_row_of_its_rank() -> None:
    holdout = levels([-1.0, -2.0, -3.0])  # the quantiles 1/6, 1/2 and 5/6 are -2.67, -2 and -1.33
    assert unknown_rows(levels([-1.2, -2.1, -2.5]), holdout) == {1}
    assert unknown_rows(levels([-2.7, -1.4, -2.1]), holdout) == {0, 1, 2}
    assert unknown_rows(levels([-3.5, -3.6, -3.7]), holdout) == {0, 1, 2}
    assert unknown_rows(levels([-1.4, -2.1, -2.7]), holdout, share=0.5) == frozenset(), "half as probable is 0.7 nats lower"


def test_a_row_that_is_answered_word_by_word_never_rests_and_lucky_guesses_are_no_level() -> None:
    assert unknown_rows(levels([-2.0, -2.0], [True, False]), levels([-1.0, -1.0])) == {1}
    lucky = levels([-0.1, -2.0], [True, False])
    assert unknown_rows(levels([-0.5, -0.6]), lucky) == frozenset()
    assert unknown_rows(levels([-0.5, -0.6]), levels([-0.1, -0.1], [True, True])) == {0, 1}, "nothing else to compare with"


def test_resting_rows_leave_a_step_and_one_stays_where_all_rest() -> None:
    sets = {"forget": RowSet(), "retain": RowSet("retain")}
    drawn = {name: [(RowKey(name, row),) for row in range(4)] for name in ("forget", "retain")}
    kept, share = without(drawn, sets, both(0, 2, 3))
    assert ([keys[0].row for keys in kept["forget"]], len(kept["retain"]), share) == ([1], 4, 0.25)
    kept, share = without(drawn, sets, both(0, 1, 2, 3))
    assert (len(kept["forget"]), share) == (1, 0.0)


PARTS: tuple[Part, ...] = ("own", "copied")


def both(*rows: int) -> Resting:
    return Resting(frozenset(rows), frozenset(rows))


def test_of_an_answer_one_part_may_rest() -> None:
    sets = {"forget": RowSet(), "refused": RowSet(answers="refusals"), "retain": RowSet("retain")}
    drawn = {name: [(RowKey(rows.prompts, row, rows.answers),) for row in range(4)] for name, rows in sets.items()}
    kept, share = without(drawn, sets, Resting(own=frozenset({0, 1}), copied=frozenset({1, 2})))
    assert [(keys[0].row, keys[0].part) for keys in kept["forget"]] == [(0, "copied"), (2, "own"), (3, "all")]
    assert [keys[0].row for keys in kept["refused"]] == [0, 2, 3], "row b of each set has the same prompt"
    assert (kept["retain"], share) == (drawn["retain"], 0.75)
    del sets["forget"], drawn["forget"]
    kept, share = without(drawn, sets, Resting(own=frozenset({0, 1}), copied=frozenset({1, 2})))
    assert ([keys[0].row for keys in kept["refused"]], share) == ([2, 3], 0.5), "only own answers have parts"


def test_copied_words_rest_near_the_level_of_the_holdout_row_of_their_rank() -> None:
    nan = float("nan")
    holdout = torch.tensor([0.5, 0.9, nan]).log()  # the quantiles 1/4 and 3/4 are 0.58 and 0.78
    assert uncertain_rows(torch.tensor([0.99, 0.585, nan]).log(), holdout) == {1, 2}
    assert uncertain_rows(torch.tensor([0.7, 0.785, nan]).log(), holdout) == {1, 2}
    assert uncertain_rows(torch.tensor([nan, nan, nan]), holdout) == {0, 1, 2}


def test_both_parts_of_an_answer_are_measured_in_one_pass(pico_llama: nn.Module) -> None:
    rows = [Encoded((1, 5, 6, 6, 20, 5, 20, 2), 3, True), Encoded((1, 9, 30, 2), 2, True)]
    own, copied = part_levels(pico_llama, rows, 0, torch.device("cpu"))
    apart = [answer_levels(pico_llama, [row.labelled(part) for row in rows], 0, torch.device("cpu")) for part in PARTS]
    torch.testing.assert_close(own, apart[0])
    torch.testing.assert_close(copied.logp_B[0], apart[1].logp_B[0])
    assert bool(copied.logp_B[1].isnan())


def rests(monkeypatch: pytest.MonkeyPatch, rows: set[int]) -> None:
    verdict = stopping.Verdict(resting_rows=both(*rows))
    monkeypatch.setattr(stopping.Watch, "check", lambda *_, **__: verdict)


@pytest.mark.parametrize(("rows", "share"), [({0}, 0.5), ({0, 1}, 0.0)])
def test_the_other_rows_keep_their_weight(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: set[int], share: float
) -> None:
    rests(monkeypatch, rows)
    training = QUICK.model_copy(update={"steps": 3, "stop_by_row": True})
    expunge.unlearn(GradientDifference(), model=pico_folder, out=tmp_path / "run", training=training, quiet=True, **data)
    for line in lines_of(tmp_path / "run")[1:]:
        parts = line["parts"]
        assert isinstance(parts, dict)
        assert line["loss"] == pytest.approx(share * parts["forget"] + parts["retain"], rel=1e-5)


def test_a_run_that_is_resumed_knows_which_rows_rest(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = QUICK.model_copy(update={"steps": 6, "stop_every": 4, "checkpoint_every": 4, "stop_by_row": True})
    given = {"model": pico_folder, "training": training, "quiet": True, **data}
    rests(monkeypatch, {0})
    expunge.unlearn(GradientDifference(), out=tmp_path / "whole", **given)

    def killed(*values: object, **_: object) -> None:
        real(*values, **_)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    real = loop.save_checkpoint
    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            expunge.unlearn(GradientDifference(), out=tmp_path / "run", **given)
    expunge.unlearn(GradientDifference(), out=tmp_path / "run", resume=True, **given)
    weights = [(tmp_path / run / "artifact/model.safetensors").read_bytes() for run in ("whole", "run")]
    assert weights[0] == weights[1]
