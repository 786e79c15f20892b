"""A run starts from what an earlier run left, whatever its kind, or says why not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import expunge
from expunge import ExpungeError, Training
from expunge.methods import NPO, GradientAscent, KeySpaceDetection, SelectivePruning, TaskVectorNegation
from expunge.start import find_start

FORGET = [{"prompt": f"where was {who} born ?", "response": f"{who} was born in oslo ."} for who in ("anna", "boris", "clara")]
RETAIN = [{"prompt": f"where was {who} born ?", "response": f"{who} was born in lima ."} for who in ("hugo", "irma", "jonas")]
ONE = Training(steps=2, batch_size=2, learning_rate=1e-2)
LORA = ONE.model_copy(update={"lora": True, "lora_rank": 2})


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: tmp_path / f"{name}.jsonl" for name in ("forget", "retain")}


@pytest.fixture
def adapter(pico_folder: Path, data: dict[str, Path], tmp_path: Path) -> Path:
    """A run of two LoRA steps."""
    expunge.unlearn(NPO(), model=pico_folder, out=tmp_path / "first", training=LORA, quiet=True, **data)
    return tmp_path / "first"


def logits(source: Path) -> torch.Tensor:
    model, tokenizer = expunge.load(source, dtype="float32")
    with torch.no_grad():
        found: torch.Tensor = model(**tokenizer("where was anna born ?", return_tensors="pt")).logits
    return found


def test_an_adapter_is_trained_further_on_the_base_that_it_has(adapter: Path, data: dict[str, Path], tmp_path: Path) -> None:
    expunge.finetune(model=adapter, data=data["forget"], out=tmp_path / "again", training=LORA, quiet=True)
    first, again = (json.loads((run / "artifact/expunge.json").read_text()) for run in (adapter, tmp_path / "again"))
    assert (again["kind"], again["base"]["sha256"]) == ("adapter", first["base"]["sha256"])
    before, after = (load_file(run / "artifact/adapter_model.safetensors") for run in (adapter, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before if "lora_B" in name)
    assert not torch.equal(logits(adapter), logits(tmp_path / "again"))


def test_full_training_starts_from_the_sum_of_base_and_adapter(adapter: Path, data: dict[str, Path], tmp_path: Path) -> None:
    still = ONE.model_copy(update={"learning_rate": 1e-12, "weight_decay": 0.0})
    expunge.finetune(model=adapter, data=data["forget"], out=tmp_path / "full", training=still, quiet=True)
    assert json.loads((tmp_path / "full/artifact/expunge.json").read_text())["kind"] == "weights"
    torch.testing.assert_close(logits(tmp_path / "full"), logits(adapter), rtol=1e-4, atol=1e-5)


def test_an_edit_in_place_is_of_the_sum(adapter: Path, data: dict[str, Path], tmp_path: Path) -> None:
    expunge.unlearn(SelectivePruning(percent=2), model=adapter, out=tmp_path / "pruned", quiet=True, **data)
    model, _ = expunge.load(tmp_path / "pruned")
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_a_guard_is_fitted_on_the_sum_and_loads_with_it(adapter: Path, data: dict[str, Path], tmp_path: Path) -> None:
    guard = KeySpaceDetection(canaries=2, abstention="i do not know .")
    expunge.unlearn(guard, model=adapter, out=tmp_path / "guard", quiet=True, **data)
    model, _ = expunge.load(tmp_path / "guard")
    assert model.expunge_guard.method == guard
    (adapter / "artifact/adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ExpungeError):
        expunge.load(tmp_path / "guard")


def test_a_guard_is_no_start_and_its_base_is_named(pico_folder: Path, data: dict[str, Path], tmp_path: Path) -> None:
    guard = KeySpaceDetection(canaries=2, abstention="i do not know .")
    expunge.unlearn(guard, model=pico_folder, out=tmp_path / "guard", quiet=True, **data)
    with pytest.raises(ExpungeError, match=r"is a guard.*start from that model") as caught:
        expunge.unlearn(GradientAscent(), model=tmp_path / "guard", forget=data["forget"], out=tmp_path / "run", quiet=True)
    assert str(pico_folder) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_method_of_stages_names_the_command_that_makes_a_complete_model(
    adapter: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ExpungeError, match="expunge merge task_arithmetic --base"):
        expunge.unlearn(TaskVectorNegation(), model=adapter, forget=data["forget"], out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_plain_folder_starts_as_it_is(pico_folder: Path) -> None:
    start = find_start(str(pico_folder))
    assert (start.place, start.is_adapter) == (str(pico_folder), False)
