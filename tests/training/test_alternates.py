"""Alternate answers are written by the start model once, kept in the run's folder, and each row is trained with its own."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge import ExpungeError, Training
from expunge.data.encode import Encoder
from expunge.data.example import Example, Request
from expunge.data.format import Format, default_format
from expunge.evaluation.alternates import draw_answers
from expunge.methods import AltPO
from expunge.methods.training.base import Asking
from expunge.run import execute
from expunge.spec import Run
from expunge.training import alternates
from expunge.training.data import encode_data
from expunge.training.pairs import Pairs

PEOPLE = ("anna", "boris", "clara", "dario", "elena")
METHOD = AltPO(draws=3, max_new_tokens=6)


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(pico_folder: Path, tmp_path: Path) -> Run:
    forget = [{"prompt": f"where was {person} born ?", "response": f"{person} was born in oslo ."} for person in PEOPLE]
    retain = [{"prompt": "where was hugo born ?", "response": "hugo was born in lima ."}]
    files = write(tmp_path / "forget.jsonl", forget), write(tmp_path / "retain.jsonl", retain)
    training = Training(steps=2, batch_size=4, seed=3)
    return Run(model=str(pico_folder), forget=(str(files[0]),), retain=(str(files[1]),), method=METHOD, training=training)


class Drawer:
    """`draw_answers`, and what it was asked."""

    def __init__(self, fails_after: int = 99) -> None:
        self.asked: list[str] = []
        self.fails_after = fails_after

    def __call__(
        self, model: object, encoder: Encoder, prompts: Sequence[str], asking: Asking, seed: int
    ) -> list[tuple[str, ...]]:
        if len(self.asked) >= self.fails_after:
            raise KeyboardInterrupt
        self.asked += prompts
        return draw_answers(model, encoder, prompts, asking, seed)  # type: ignore[arg-type]


def test_a_killed_run_goes_on_with_the_answers_that_are_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternates, "ROWS", 2)
    whole = Drawer()
    execute(run, tmp_path / "whole", quiet=True, draw_answers=whole)
    assert len(whole.asked) == len(PEOPLE)
    assert all("anna was born in oslo" in text or i for i, text in enumerate(whole.asked))
    killed = Drawer(fails_after=2)
    with pytest.raises(KeyboardInterrupt):
        execute(run, tmp_path / "run", quiet=True, draw_answers=killed)
    file = tmp_path / "run" / alternates.FILE
    with open(file, "a") as half:
        half.write('{"id": "abc", "alter')
    again = Drawer()
    execute(run, tmp_path / "run", quiet=True, resume=True, draw_answers=again)
    assert killed.asked + again.asked == whole.asked
    assert file.read_bytes() == (tmp_path / "whole" / alternates.FILE).read_bytes()
    weights = "artifact/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


@pytest.mark.parametrize("change", ['"alternates": ["', '"id": "', "{"])
def test_answers_that_were_changed_while_the_run_was_interrupted_are_refused(
    change: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternates, "ROWS", 2)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        execute(run, out, quiet=True, draw_answers=Drawer(fails_after=2))
    file = out / alternates.FILE
    first, second = file.read_text().splitlines(keepends=True)
    assert change in second
    file.write_text(first + second.replace(change, change + "x", 1))
    with pytest.raises(ExpungeError, match=r"alternates\.jsonl was changed since the run wrote it \(line 2\).*delete the file"):
        execute(run, out, quiet=True, resume=True, draw_answers=Drawer())
    file.unlink()
    execute(run, out, quiet=True, resume=True, draw_answers=Drawer())
    execute(run, tmp_path / "whole", quiet=True, draw_answers=Drawer())
    assert file.read_bytes() == (tmp_path / "whole" / alternates.FILE).read_bytes()


def test_without_somebody_who_draws_the_run_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="altpo asks the model for answers"):
        execute(run, tmp_path / "run", quiet=True)


def test_a_row_for_which_the_model_writes_nothing_is_counted(run: Run, tmp_path: Path) -> None:
    def silent(*given: object) -> list[tuple[str, ...]]:
        prompts = given[2]
        assert isinstance(prompts, list)
        return [("", "", "") if "anna" in prompt else ("", "x", "y") for prompt in prompts]

    with pytest.raises(ExpungeError, match="no alternate answer for 1 of 5 forget rows"):
        execute(run, tmp_path / "run", quiet=True, draw_answers=silent)


def test_draws_of_a_prompt_are_the_same_alone_and_among_others(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = Encoder(pico_tokenizer, default_format(pico_tokenizer))
    asking = Asking(lambda example: "", 3, 1.0, 8, ("oslo",))
    prompts = ["where was anna born ?", "who ?", "where was the boris born in paris ?"]
    together = draw_answers(pico_llama, encoder, prompts, asking, 5)
    assert together == [draw_answers(pico_llama, encoder, [prompt], asking, 5)[0] for prompt in prompts]
    assert len(set(together[0])) > 1
    assert not any("oslo" in text for answers in together for text in answers)
    assert together != draw_answers(pico_llama, encoder, prompts, asking, 6)


def test_each_row_is_trained_with_its_own_alternates(pico_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(pico_tokenizer, Format())
    perturbed = {
        person: tuple(f"{person} was born in {city} ." for city in ("lima", "quito")[: 1 + i % 2])
        for i, person in enumerate(PEOPLE)
    }
    examples = [Example(f"where was {p} born ?", f"{p} was born in oslo .", perturbed=perturbed[p]) for p in PEOPLE]
    method = AltPO(alternates="perturbed")
    data = encode_data(Request(tuple(examples), tuple(examples[:1])), method, encoder)
    plan, seen = Pairs(5, 1, 5, 0), set()
    for step in range(12):
        for (key,) in data.step_rows(method.row_sets, plan, step)["alternates"]:
            text = pico_tokenizer.decode(data.row(key).ids, skip_special_tokens=True)
            answer = data.pools["alternates"].texts[key.answer]
            assert answer in perturbed[PEOPLE[key.row]]
            assert answer in text
            assert examples[key.row].prompt in text  # type: ignore[operator]
            seen.add(answer)
    assert seen == {answer for own in perturbed.values() for answer in own}
    assert torch.equal(torch.tensor([len(v) for v in perturbed.values()]), torch.tensor([1, 2, 1, 2, 1]))


def test_rows_without_wrong_answers_are_named(pico_tokenizer: PreTrainedTokenizerFast) -> None:
    asked = Request((Example("who ?", "anna .", place="forget.jsonl, line 1"),), (Example("who ?", "hugo ."),))
    with pytest.raises(ExpungeError, match=r"forget.jsonl, line 1 has no `perturbed`"):
        encode_data(asked, AltPO(alternates="perturbed"), Encoder(pico_tokenizer, Format()))
