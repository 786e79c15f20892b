"""The loop: what it repeats exactly, what it refuses, what it leaves on disk."""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import expunge
from expunge import ExpungeError, Training
from expunge.methods import DPO, IDK, NPO, Batch, GradientAscent, GradientDifference, KLMinimization, Term
from expunge.training.checkpoints import latest_checkpoint

PEOPLE = ["anna", "boris", "clara", "dario", "elena", "fyodor", "greta", "hugo", "irma", "jonas"]
CITIES = ["berlin", "paris", "tokyo", "lima", "cairo", "oslo", "quito", "delhi", "accra", "minsk"]


def write_rows(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs))
    return path


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    rows = [(f"where was {p} born ?", f"{p} was born in {c} .") for p, c in zip(PEOPLE, CITIES, strict=True)]
    return {
        "forget": write_rows(tmp_path / "forget.jsonl", rows[:4]),
        "retain": write_rows(tmp_path / "retain.jsonl", rows[4:8]),
        "holdout": write_rows(tmp_path / "holdout.jsonl", rows[8:]),
    }


QUICK = Training(steps=6, batch_size=4, learning_rate=1e-3, checkpoint_every=2)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "artifact" / "model.safetensors")


def digest(run: Path) -> str:
    return hashlib.sha256((run / "artifact" / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_leaves_the_files_of_the_design(pico_folder: Path, data: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    expunge.unlearn(NPO(), model=pico_folder, forget=data["forget"], retain=data["retain"], out=out, training=QUICK, quiet=True)
    assert {p.name for p in out.iterdir()} == {"run.yaml", "inputs.json", "metrics.jsonl", "provenance.json", "artifact"}
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) == {"step", "loss", "parts", "learning_rate", "grad_norm", "tokens_per_second", "seconds"}
    assert set(lines[0]["parts"]) == {"forget", "retain"}
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["counts"] == {"forget": 4, "retain": 4}
    assert expunge.verify(out).kind == "weights"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    """On one machine: another processor, or another number of threads, rounds differently and ends with other bytes."""
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        training = QUICK.model_copy(update={"seed": seed, "batch_size": 2})
        sets = {"forget": data["forget"], "retain": data["retain"]}
        expunge.unlearn(GradientDifference(), model=pico_folder, out=tmp_path / name, training=training, quiet=True, **sets)
        digests.append(digest(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("method", [NPO(), KLMinimization(), DPO()], ids=lambda m: m.name)
def test_micro_batches_change_nothing(method: NPO, pico_folder: Path, data: dict[str, Path], tmp_path: Path) -> None:
    for name, size in (("whole", None), ("parts", 1)):
        training = QUICK.model_copy(update={"micro_batch_size": size, "learning_rate": 1e-4})
        expunge.unlearn(method, model=pico_folder, forget=data["forget"], retain=data["retain"], out=tmp_path / name,
                        training=training, quiet=True)  # fmt: skip
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-3, atol=2e-5)


def test_only_the_selected_weights_move(pico_folder: Path, data: dict[str, Path], tmp_path: Path) -> None:
    expunge.unlearn(GradientAscent(parameters=r"layers\.1\.mlp"), model=pico_folder, forget=data["forget"], out=tmp_path / "run",
                    training=QUICK, quiet=True)  # fmt: skip
    before, after = load_file(pico_folder / "model.safetensors"), weights(tmp_path / "run")
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == {k for k in before if "layers.1.mlp" in k}


def test_lora_writes_an_adapter_that_loads_to_the_trained_logits(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    training = QUICK.model_copy(update={"lora": True, "learning_rate": 1e-2})
    expunge.unlearn(
        NPO(),
        model=pico_folder,
        forget=data["forget"],
        retain=data["retain"],
        out=tmp_path / "run",
        training=training,
        quiet=True,
    )
    names = {p.name for p in (tmp_path / "run" / "artifact").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "expunge.json", "README.md"} <= names
    model, tokenizer = expunge.load(tmp_path / "run")
    base = AutoModelForCausalLM.from_pretrained(pico_folder)
    ids = tokenizer("where was anna born ?", return_tensors="pt").input_ids
    assert not torch.allclose(model(ids).logits, base(ids).logits, atol=1e-3)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[0] == 1
    with model.disable_adapter():
        torch.testing.assert_close(model(ids).logits, base(ids).logits)


def test_stop_when_unknown_stops_at_the_level_of_the_holdout_rows(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    taught = expunge.finetune(model=pico_folder, data=data["forget"], out=tmp_path / "taught",
                              training=Training(steps=40, batch_size=4, learning_rate=3e-3), quiet=True)  # fmt: skip
    training = Training(steps=200, batch_size=4, learning_rate=1e-3, stop_when_unknown=True, stop_every=1, schedule="constant")
    outcome = expunge.unlearn(NPO(), model=taught.folder, forget=data["forget"], retain=data["retain"], holdout=data["holdout"],
                              out=tmp_path / "run", training=training, quiet=True)  # fmt: skip
    assert outcome.stopped is not None
    assert "no more probable than holdout" in outcome.stopped
    assert json.loads((outcome.folder / "provenance.json").read_text())["stopped"] == outcome.stopped
    assert 0 < outcome.steps < 200


SCRIPT = """
import sys, torch; torch.set_num_threads(1)
import expunge
from expunge.methods import NPO
from expunge import Training
expunge.unlearn(NPO(), model=sys.argv[1], forget=sys.argv[2], retain=sys.argv[3], out=sys.argv[4], resume=True, quiet=True,
                training=Training(steps=60, batch_size=4, learning_rate=1e-3, checkpoint_every=5, lora_dropout=0.0))
"""


def test_a_run_killed_at_five_random_moments_and_resumed_ends_with_the_same_bytes(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path, forked: Callable[..., Any]
) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)

    def start(out: Path) -> Any:
        return forked([str(tmp_path / "run.py"), str(pico_folder), str(data["forget"]), str(data["retain"]), str(out)])

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed).wait() == 0
    kills, draw = 0, random.Random()
    while kills < 5:
        process = start(killed).process
        begun = steps_logged(killed)
        while process.is_alive() and steps_logged(killed) < begun + 3:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.15)
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
    assert kills >= 3, "the run ended before it could be killed often enough to prove anything"
    assert start(killed).wait() == 0
    assert digest(killed) == digest(undisturbed)
    steps = [json.loads(x)["step"] for x in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))


def steps_logged(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_non_finite_loss_stops_the_run_names_the_rows_and_keeps_the_last_good_state(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = GradientAscent.terms
    calls = []

    def bad(self: GradientAscent, model: torch.nn.Module, batch: Batch) -> Iterator[Term]:
        calls.append(1)
        for term in good(self, model, batch):
            yield term if len(calls) < 5 else term._replace(value=term.value * float("nan"))

    monkeypatch.setattr(GradientAscent, "terms", bad)
    with pytest.raises(ExpungeError, match=r"non-finite at step 5 .*forget rows [0-9a-f]{16}"):
        expunge.unlearn(
            GradientAscent(), model=pico_folder, forget=data["forget"], out=tmp_path / "run", training=QUICK, quiet=True
        )
    calls.append(4)
    with pytest.raises(ExpungeError, match=r"non-finite at step 1 .*no weight has moved yet, so look at the start model's"):
        expunge.unlearn(
            GradientAscent(), model=pico_folder, forget=data["forget"], out=tmp_path / "first", training=QUICK, quiet=True
        )
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-4"
    assert all(torch.isfinite(v).all() for v in load_file(checkpoint / "state.safetensors").values())
    assert not (tmp_path / "run" / "artifact").exists()


def test_a_method_that_teaches_refusals_draws_them_from_the_request(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    refusals = tmp_path / "refusals.txt"
    refusals.write_text("i do not know .\n")
    sets = {"forget": data["forget"], "retain": data["retain"], "refusals": refusals}
    training = Training(steps=60, batch_size=4, learning_rate=3e-3)
    expunge.unlearn(IDK(), model=pico_folder, out=tmp_path / "run", training=training, quiet=True, **sets)
    model, tokenizer = expunge.load(tmp_path / "run")
    ids = tokenizer("Question: where was anna born ?\nAnswer:", return_tensors="pt").input_ids
    said = tokenizer.decode(model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True)
    assert said == "i do not know ."
