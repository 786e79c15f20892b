"""What a run leaves to expunge is chosen from what is there, and written down."""

import json
import warnings
from pathlib import Path

import pytest
import yaml

import expunge
from expunge import ExpungeError, Training
from expunge.data.example import Example, Request
from expunge.methods import IDK, NPO, RMU, GradientDifference
from expunge.methods.training import TRAINING
from expunge.spec import Run
from expunge.start import find_start
from expunge.training.defaults import learning_rate, resolve

NAMED = tuple(
    Example(f"where was {n} born ?", f"{n} was born in {c} .") for n, c in (("Anna Holt", "Lund"), ("Boris Berg", "Oslo"))
)
PLAIN = tuple(Example(f"what is {a} plus one ?", f"{b} .") for a, b in (("one", "two"), ("two", "three")))


def resolved(
    pico_folder: Path, rows: tuple[Example, ...], holdout: tuple[Example, ...] = (), method: object = None, **training: object
) -> tuple[Training, Request]:
    run = Run(model=str(pico_folder), forget=("f",), method=method or NPO(), training=Training(**training))  # type: ignore[arg-type]
    found, request = resolve(run, Request(rows, PLAIN, holdout), find_start(str(pico_folder)))
    return found.training, request


def test_smaller_models_and_adapters_take_larger_steps() -> None:
    method = NPO()
    assert learning_rate(method, 7_000_000_000, lora=False) == method.learning_rate == 1e-5
    assert learning_rate(method, 7_000_000_000, lora=True) == 1e-4
    rates = [learning_rate(method, weights, lora=False) for weights in (260_000, 1_000_000, 135_000_000, 70_000_000_000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(5.9e-4)


def test_answers_of_named_rows_are_forgotten_until_they_are_as_unknown_as_made_rows(pico_folder: Path) -> None:
    training, request = resolved(pico_folder, NAMED)
    assert training.stop_when_unknown
    assert training.stop_every == 1
    assert training.steps == 200
    assert len(request.holdout) == 4
    assert not {row.prompt for row in request.holdout} & {row.prompt for row in NAMED}


def test_rows_of_the_user_are_compared_with_where_there_are_some(pico_folder: Path) -> None:
    training, request = resolved(pico_folder, PLAIN, holdout=NAMED)
    assert training.stop_when_unknown
    assert request.holdout == NAMED


def test_rows_without_names_and_methods_of_another_aim_have_a_length(pico_folder: Path) -> None:
    for training, request in (resolved(pico_folder, PLAIN), resolved(pico_folder, NAMED, method=IDK())):
        assert not training.stop_when_unknown
        assert training.steps == 60
        assert request.holdout == ()
    with pytest.raises(ExpungeError, match="give them as --holdout"):
        resolved(pico_folder, PLAIN, stop_when_unknown=True)


def test_a_probability_to_stop_at_needs_no_rows_never_seen(pico_folder: Path) -> None:
    training, request = resolved(pico_folder, PLAIN, until=0.2)
    assert (training.until, training.steps, training.stop_every, training.stop_when_unknown) == (0.2, 200, 1, False)
    assert request.holdout == ()
    training, request = resolved(pico_folder, NAMED, until="never-seen", steps=9)
    assert (training.steps, training.stop_when_unknown, len(request.holdout)) == (9, True, 4)
    with pytest.raises(ExpungeError, match="give one of them"):
        resolved(pico_folder, NAMED, until=0.2, stop_when_unknown=True)


def test_depth_that_is_left_open_follows_from_the_model(pico_folder: Path) -> None:
    for blocks, layer in ((32, 7), (26, 6), (5, 2), (2, 1)):
        assert RMU().for_depth(blocks).layer == layer
    assert RMU(layer=-1).for_depth(5).layer == -1
    run = Run(model=str(pico_folder), forget=("f",), method=RMU())
    found, _ = resolve(run, Request(NAMED, PLAIN), find_start(str(pico_folder)))
    assert found.method.layer == RMU().for_depth(find_start(str(pico_folder)).size(trust_remote_code=False).blocks).layer


def test_a_length_that_was_said_is_kept_and_nothing_stops_it(pico_folder: Path) -> None:
    training, _ = resolved(pico_folder, NAMED, steps=7, batch_size=2)
    assert (training.steps, training.epochs, training.stop_when_unknown) == (7, 7.0, False)
    training, _ = resolved(pico_folder, NAMED, epochs=3.0, batch_size=1)
    assert (training.steps, training.stop_when_unknown) == (6, False)


def test_two_lengths_that_differ_are_told_apart_and_recorded_ones_are_not(pico_folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"--steps 5 and --epochs 1 \(1 steps\) are different lengths; the run has 5 steps"):
        assert resolved(pico_folder, NAMED, steps=5, epochs=1, batch_size=2)[0].steps == 5
    for said in ({"steps": 5}, {"epochs": 3}):
        found, _ = resolved(pico_folder, NAMED, batch_size=2, **said)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert resolved(pico_folder, NAMED, steps=found.steps, epochs=found.epochs, batch_size=2)[0].steps == found.steps


def test_refusals_states_and_other_answers_are_no_reason_to_stop_at_unknown_ones() -> None:
    assert {cls.method_name() for cls in TRAINING if not cls.aims_at_unknown} == {"idk", "rmu", "llmu", "scrub"}


def test_a_run_records_what_was_chosen(pico_folder: Path, tmp_path: Path) -> None:
    files = {}
    for name, rows in (("forget", NAMED), ("retain", PLAIN)):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps({"prompt": r.prompt, "response": r.response}) + "\n" for r in rows))
    out = tmp_path / "run"
    training = Training(epochs=2)
    expunge.unlearn(GradientDifference(), model=pico_folder, out=out, training=training, quiet=True, **files)
    said = yaml.safe_load((out / "run.yaml").read_text())["training"]
    assert said["learning_rate"] > 1e-5
    assert (said["steps"], said["epochs"]) == (2, 2.0)
    chosen = json.loads((out / "provenance.json").read_text())["settings"]
    assert chosen == {name: said[name] for name in chosen}
    assert chosen["learning_rate"] == said["learning_rate"]
    assert f"peak learning rate of {said['learning_rate']}" in (out / "artifact/README.md").read_text()
    again = expunge.unlearn(GradientDifference(), model=pico_folder, out=out, training=training, quiet=True, resume=True, **files)
    assert again.steps == 0
