"""Too little memory: one sentence with the flags that help, nothing lost, and the same end as without it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import expunge
from expunge import ExpungeError, Training
from expunge.methods import Batch, GradientAscent, Term

QUICK = Training(steps=4, batch_size=4, learning_rate=1e-3)


@pytest.fixture
def forget(tmp_path: Path) -> Path:
    path = tmp_path / "forget.jsonl"
    rows = [
        {"prompt": f"where was {p} born ?", "response": f"{p} was born in {c} ."} for p, c in zip("abcd", "efgh", strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def too_large_from(step: int, monkeypatch: pytest.MonkeyPatch, *, rows: int) -> None:
    """From that step on a pass over so many rows or more does not fit."""
    plain, calls = GradientAscent.terms, [0]

    def terms(self: GradientAscent, model: nn.Module, batch: Batch) -> Iterator[Term]:
        calls[0] += 1
        if calls[0] >= step and len(batch.forget.input_ids_BT) >= rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, model, batch)

    monkeypatch.setattr(GradientAscent, "terms", terms)


def test_it_is_one_sentence_and_the_run_goes_on_with_smaller_passes(
    pico_folder: Path, forget: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"model": pico_folder, "forget": forget, "quiet": True}
    expunge.unlearn(GradientAscent(), out=tmp_path / "whole", training=QUICK, **words)  # type: ignore[arg-type]
    too_large_from(3, monkeypatch, rows=4)
    with pytest.raises(ExpungeError) as error:
        expunge.unlearn(GradientAscent(), out=tmp_path / "run", training=QUICK, **words)  # type: ignore[arg-type]
    assert "in step 3 with 4 rows a pass" in str(error.value)
    assert "--resume with --micro-batch-size 2 or --gradient-checkpointing, or start anew with --lora" in str(error.value)
    smaller = QUICK.model_copy(update={"micro_batch_size": 2})
    assert expunge.unlearn(GradientAscent(), out=tmp_path / "run", training=smaller, resume=True, **words).steps == 4  # type: ignore[arg-type]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    one, other = (load_file(tmp_path / name / "artifact" / "model.safetensors") for name in ("whole", "run"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-5)


def test_a_field_that_changes_values_may_still_not_change(
    pico_folder: Path, forget: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"model": pico_folder, "forget": forget, "out": tmp_path / "run", "quiet": True}
    too_large_from(2, monkeypatch, rows=1)
    with pytest.raises(ExpungeError, match="out of memory"):
        expunge.unlearn(GradientAscent(), training=QUICK, **words)  # type: ignore[arg-type]
    with pytest.raises(ExpungeError, match="another run"):
        expunge.unlearn(GradientAscent(), training=QUICK.model_copy(update={"batch_size": 2}), resume=True, **words)  # type: ignore[arg-type]


def test_where_nothing_is_left_to_make_smaller_the_rows_are(
    pico_folder: Path, forget: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = QUICK.model_copy(update={"micro_batch_size": 1, "gradient_checkpointing": True, "lora": True})
    too_large_from(1, monkeypatch, rows=1)
    with pytest.raises(ExpungeError, match=r"with 1 rows a pass; shorten the rows by --max-length, or take a smaller model$"):
        expunge.unlearn(GradientAscent(), model=pico_folder, forget=forget, out=tmp_path / "run", training=least, quiet=True)


def test_where_the_moments_do_not_fit_smaller_passes_are_not_advised(
    pico_folder: Path, forget: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(ExpungeError) as error:
        expunge.unlearn(GradientAscent(), model=pico_folder, forget=forget, out=tmp_path / "run", training=QUICK, quiet=True)
    assert str(error.value) == "out of memory in step 1 with 4 rows a pass; start anew with --lora"
