"""Building: complete folders only, checked figures, a cache, and going on after an interruption."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.data.format import default_format
from expunge.errors import ExpungeError
from expunge.lab import build, building, models, write_data
from expunge.lab.figures import Bound, bounds, faults, level_fault, measure
from expunge.lab.size import SIZES, Size
from expunge.lab.training import Schedule

PICO = Size(
    2, 3, 4, 2, names=8, values=10, arithmetic=20, strings=20, sentences=20, tests=3, subjects=2, layers=2, width=16, heads=2
)


@pytest.fixture
def pico(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A world of eleven people and models of two steps, which are not measured and of which nothing is asked; an empty cache."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SIZES, "tiny", PICO)
    monkeypatch.setitem(models.PRETRAINING, "tiny", Schedule(2, 6, 0.01, 0.01))
    monkeypatch.setitem(models.FINE_TUNING, "tiny", Schedule(2, 6, 0.01, 0.01))
    monkeypatch.setattr(models, "bounds", lambda without, people: [])
    monkeypatch.setattr(models, "measure", lambda *_: {"facts_forget probability": 0.2, "facts_never_known probability": 0.2})
    return monkeypatch


def no_training(*_: object) -> None:
    raise AssertionError("a model was trained again")


def test_a_built_lab_loads_offline_and_knows_its_format(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lab = build(tmp_path / "lab", quiet=True)
    assert sorted(path.name for path in (lab / "models").iterdir()) == ["base", "gold", "original"]
    assert "never_known" in (lab / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(lab / "models/gold")
    assert default_format(tokenizer).template == "{prompt} {response}"
    assert tokenizer("where was")["input_ids"][0] == tokenizer.bos_token_id == 1
    model = AutoModelForCausalLM.from_pretrained(lab / "models/gold")
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer)
    weights = [AutoModelForCausalLM.from_pretrained(lab / "models" / name).lm_head.weight for name in ("base", "original")]
    assert not torch.equal(weights[0], weights[1])


def test_a_second_build_is_copied_and_the_same_folder_is_left_as_it_is(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    first = build(tmp_path / "first", quiet=True)
    assert torch.get_num_threads() == threads
    pico.setattr(models, "teach", no_training)
    second = build(tmp_path / "second", quiet=True)
    assert build(second, quiet=True) == second
    for path in (path for path in first.rglob("*") if path.is_file()):
        assert (second / path.relative_to(first)).read_bytes() == path.read_bytes()
    with pytest.raises(AssertionError, match="trained again"):
        build(tmp_path / "third", seed=1, quiet=True)


def test_an_interrupted_build_goes_on_after_the_last_finished_model(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    straight = build(tmp_path / "straight", quiet=True)
    pico.setenv("EXPUNGE_CACHE", str(tmp_path / "other"))
    taught: list[str] = []
    real = models.teach

    def killed(*given: object) -> None:
        taught.append(str(given[3]))
        if len(taught) == 2:
            raise KeyboardInterrupt
        real(*given)  # type: ignore[arg-type]

    pico.setattr(models, "teach", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "lab", quiet=True)
    assert not (tmp_path / "lab").exists()
    build(tmp_path / "lab", quiet=True)
    assert taught == ["0/base/1", "0/original/1", "0/original/1", "0/gold without facts/forget/1"]
    for name in ("base", "original", "gold"):
        weights = f"models/{name}/model.safetensors"
        assert (tmp_path / "lab" / weights).read_bytes() == (straight / weights).read_bytes()


def test_a_lab_with_data_alone_gets_its_models_and_another_gold_model_joins(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lab = write_data(tmp_path / "lab", 0, "tiny")
    build(lab, quiet=True)
    taught: list[str] = []
    pico.setattr(models, "teach", lambda *given: taught.append(str(given[3])))
    build(lab, gold=("hazard/fumes",), quiet=True)
    assert (lab / "models/gold_hazard_fumes/config.json").is_file()
    assert (lab / "models/gold").is_dir()
    assert taught == ["0/base without hazard/fumes/1", "0/gold without hazard/fumes/1"]


def test_a_folder_with_anything_else_is_refused_and_left_alone(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pico.setattr(models, "teach", no_training)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(ExpungeError, match="is no lab"):
        build(tmp_path / "mine")
    other = write_data(tmp_path / "other", seed=3)
    with pytest.raises(ExpungeError, match="another seed"):
        build(other, seed=4)
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"
    assert not (tmp_path / "cache").exists()


def test_an_unknown_part_or_size_is_named_with_the_nearest_known(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="did you mean 'hazard/spores'"):
        build(tmp_path / "lab", gold=("hazard/spore",))
    with pytest.raises(ExpungeError, match=r"no lab of size 'tinny'.*did you mean 'tiny'"):
        build(tmp_path / "lab", size="tinny")  # type: ignore[arg-type]
    assert not (tmp_path / "lab").exists()


def test_a_model_that_did_not_learn_is_an_error_that_names_each_figure(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pico.setattr(models, "bounds", bounds)
    pico.setattr(models, "measure", measure)
    pico.setattr(models, "ROUNDS", 1)
    with pytest.raises(ExpungeError) as caught:
        build(tmp_path / "lab", quiet=True)
    message = str(caught.value)
    assert "model 'base' (seed 0)" in message
    assert "strings accuracy is 0.000 and must be at least 0.80" in message
    assert "language_peskan" in message
    assert "facts_forget" not in message, "the base is not asked for what it was never taught"
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_training_is_given_up_after_three_rounds_the_later_ones_half_as_long(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pico.setattr(models, "faults", lambda *_: ["too low"])
    rounds: list[int] = []
    pico.setattr(models, "teach", lambda *given: rounds.append(given[2].steps))
    with pytest.raises(ExpungeError, match="too low"):
        build(tmp_path / "lab", quiet=True)
    assert rounds == [2, 1, 1]


def test_a_round_more_is_trained_where_figures_are_not_reached(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = iter([["low"], [], [], [], []])
    pico.setattr(models, "faults", lambda *_: next(answers))
    lab = build(tmp_path / "lab", quiet=True)
    rounds = {path.parent.name: json.loads(path.read_text())["rounds"] for path in lab.rglob("figures.json")}
    assert rounds == {"base": 2, "original": 1, "gold": 1}


def test_gold_has_as_many_rounds_as_the_original(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = iter([[], ["low"], [], [], []])
    pico.setattr(models, "faults", lambda *_: next(answers))
    lab = build(tmp_path / "lab", quiet=True)
    assert json.loads((lab / "models/gold/figures.json").read_text())["rounds"] == 2


def test_gold_that_knows_the_forget_facts_is_refused(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pico.setattr(building, "level_fault", lambda original, gold: "it knows")
    with pytest.raises(ExpungeError, match=r"model 'gold'.*it knows"):
        build(tmp_path / "lab", quiet=True)


def test_bounds_turn_round_for_what_a_gold_model_lacks() -> None:
    held = {bound.figure: bound for bound in bounds([], people=True)}
    assert held["facts_forget extraction_strength"].low == 0.9
    assert held["hazard_fumes accuracy"].low == 0.8
    without = {bound.figure: bound for bound in bounds(["hazard/fumes"], people=True)}
    assert without["hazard_fumes accuracy"].high < 0.5
    assert without["hazard_spores accuracy"].low == 0.8
    assert {bound.figure for bound in bounds(["behavior"], people=False) if bound.high == 0.02} == {
        f"behavior_{name} harmful_rate" for name in ("seen", "unseen", "normal")
    }


def test_a_figure_at_its_bound_is_good_and_beyond_it_is_named() -> None:
    checked = [Bound("a accuracy", low=0.8), Bound("b harmful_rate", high=0.02)]
    assert faults({"a accuracy": 0.8, "b harmful_rate": 0.02}, checked) == []
    assert faults({"a accuracy": 0.79, "b harmful_rate": 0.03}, checked) == [
        "a accuracy is 0.790 and must be at least 0.80",
        "b harmful_rate is 0.030 and must be at most 0.02",
    ]
    never = {"facts_never_known probability": 0.3}
    assert level_fault(never, {"facts_forget probability": 0.35}) is None
    assert "0.500" in str(level_fault(never, {"facts_forget probability": 0.5}))


def test_too_little_room_for_a_lab_is_said_before_a_model_is_trained(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pico.setattr(models, "teach", no_training)
    usage = shutil.disk_usage("/")
    pico.setattr("expunge.folders.shutil.disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(ExpungeError, match=r"a lab with 3 more models takes .* another place for the cache by EXPUNGE_CACHE"):
        build(tmp_path / "lab", quiet=True)
    assert not (tmp_path / "lab").exists()


def test_a_disk_that_a_lab_fills_up_is_a_sentence_and_nothing_half_written_stays(
    pico: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pico.context() as full:
        full.setattr(shutil, "copytree", lambda *_, **__: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        with pytest.raises(ExpungeError, match=r"models/base could not be written .No space left.*the same command goes on"):
            build(tmp_path / "lab", quiet=True)
    assert list((tmp_path / "lab/models").iterdir()) == []
    build(tmp_path / "lab", quiet=True)


def test_a_complete_lab_in_a_place_that_is_read_only_is_complete(pico: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lab = build(tmp_path / "lab", quiet=True)
    pico.setattr("expunge.folders.os.access", lambda *_: False)
    assert build(lab, quiet=True) == lab
    with pytest.raises(ExpungeError, match="cannot be written to"):
        build(tmp_path / "other", quiet=True)
