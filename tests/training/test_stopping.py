"""When a run that stops by itself forgets, when it only repairs, and when it ends."""

import json
from pathlib import Path

import pytest

import expunge
from expunge import Training
from expunge.methods import GradientAscent, GradientDifference
from expunge.training import stopping

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
    measured(monkeypatch, kept=[1.0, 0.5, 0.94, 0.96, 0.97], known=[0.9, 0.2], never=0.3)
    outcome = expunge.unlearn(GradientDifference(), model=pico_folder, out=tmp_path / "run", training=QUICK, quiet=True, **data)
    assert outcome.steps == 4
    assert outcome.stopped is not None
    assert "no more probable than holdout answers (0.300), and retain answers are kept (0.970)" in outcome.stopped
    assert [only_retain(line) for line in lines_of(tmp_path / "run")] == [False, True, True, False]


def test_a_method_without_retain_rows_stops_at_once(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, kept=[], known=[0.9, 0.3], never=0.3)
    del data["retain"]
    outcome = expunge.unlearn(GradientAscent(), model=pico_folder, out=tmp_path / "run", training=QUICK, quiet=True, **data)
    assert outcome.steps == 2


def test_a_share_of_zero_only_asks_whether_the_answers_are_unknown(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, kept=[], known=[0.2], never=0.3)
    training = QUICK.model_copy(update={"keep_retain": 0.0})
    outcome = expunge.unlearn(
        GradientDifference(), model=pico_folder, out=tmp_path / "run", training=training, quiet=True, **data
    )
    assert outcome.steps == 1


def test_a_run_killed_while_forgetting_rests_goes_on_resting(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = QUICK.model_copy(update={"steps": 6, "stop_every": 4, "checkpoint_every": 5})
    method = GradientDifference(forget_weight=5.0)
    measured(monkeypatch, kept=[1.0, 0.5], known=[], never=0.3)
    expunge.unlearn(method, model=pico_folder, out=tmp_path / "whole", training=training, quiet=True, **data)

    def killed(*given: object, **_: object) -> None:
        real(*given, **_)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    from expunge.training import loop

    real = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", killed)
    measured(monkeypatch, kept=[1.0, 0.5], known=[], never=0.3)
    with pytest.raises(KeyboardInterrupt):
        expunge.unlearn(method, model=pico_folder, out=tmp_path / "run", training=training, quiet=True, **data)
    monkeypatch.setattr(loop, "save_checkpoint", real)
    measured(monkeypatch, kept=[1.0], known=[], never=0.3)
    expunge.unlearn(method, model=pico_folder, out=tmp_path / "run", training=training, quiet=True, resume=True, **data)
    weights = [(tmp_path / run / "artifact/model.safetensors").read_bytes() for run in ("whole", "run")]
    assert weights[0] == weights[1]
    assert [only_retain(line) for line in lines_of(tmp_path / "run")][4:] == [True, True]
