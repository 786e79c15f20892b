"""Two gloo processes train what one process trains, with copies and with shards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import expunge
from expunge import ExpungeError, Training
from expunge.methods import DPO, NPO, RMU, KLMinimization
from tests.conftest import make_llama, make_tokenizer

SCRIPT = """
import sys, torch; torch.set_num_threads(1)
import expunge
from expunge import Training
from expunge.methods import DPO, RMU, KLMinimization, NPO
model, tied, forget, retain, out = sys.argv[1:]
training = Training(steps=1, batch_size=2, learning_rate=1e-3, shard="fsdp2")
expunge.unlearn(KLMinimization(), model=tied, forget=forget, retain=retain, out=f"{out}/tied", training=training, quiet=True)
for shard in ("none", "fsdp2"):
    for method in (KLMinimization(), DPO(), RMU(layer=1, edited=(0, 1), adaptive=True)):
        training = Training(steps=3, batch_size=4, micro_batch_size=1, learning_rate=1e-3, checkpoint_every=2, shard=shard)
        data = {"forget": forget, "retain": retain}
        expunge.unlearn(method, model=model, out=f"{out}/{method.name}-{shard}", training=training, quiet=True, **data)
HARDENED
training = Training(steps=3, batch_size=4, micro_batch_size=1, learning_rate=1e-3, checkpoint_every=2, **hardened)
expunge.unlearn(NPO(), model=model, out=f"{out}/hardened-none", training=training, quiet=True, **data)
"""
HARDENED: dict[str, Any] = {
    "sharpness_aware": 0.05,
    "latent_adversarial": True,
    "remove_top_directions": 2,
    "quantization_aware": "int8_channel",
}
SCRIPT = SCRIPT.replace("HARDENED", f"hardened = {HARDENED}")


def tied_folder(folder: Path) -> Path:
    config = make_llama().config
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory, two_processes: Callable[..., list[Any]]) -> Path:
    """Runs of two methods: by one process, and by two with copies and with shards."""
    out = tmp_path_factory.mktemp("distributed")
    for name, people in (
        ("forget", ["anna", "boris", "clara", "dario", "elena"]),
        ("retain", ["hugo", "irma", "jonas", "greta"]),
    ):
        rows = [{"prompt": f"where was {p} born ?", "response": f"{p} was born in oslo ."} for p in people]
        (out / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = {"forget": out / "forget.jsonl", "retain": out / "retain.jsonl"}
    for method in (KLMinimization(), DPO(), RMU(layer=1, edited=(0, 1), adaptive=True)):
        training = Training(steps=3, batch_size=4, learning_rate=1e-3)
        expunge.unlearn(method, model=pico_folder, out=out / f"{method.name}-one", training=training, quiet=True, **data)
    training = Training(steps=3, batch_size=4, learning_rate=1e-3, **HARDENED)
    expunge.unlearn(NPO(), model=pico_folder, out=out / "hardened-one", training=training, quiet=True, **data)
    script = out / "two.py"
    script.write_text(SCRIPT)
    words = [
        str(script),
        str(pico_folder),
        str(tied_folder(out / "tied_base")),
        str(data["forget"]),
        str(data["retain"]),
        str(out),
    ]
    two_processes(words)
    return out


@pytest.mark.parametrize(
    ("method", "shard"), [(m, s) for m in ("kl_minimization", "dpo", "rmu") for s in ("none", "fsdp2")] + [("hardened", "none")]
)
def test_two_processes_train_the_weights_of_one(folders: Path, method: str, shard: str) -> None:
    one = load_file(folders / f"{method}-one/artifact/model.safetensors")
    two = load_file(folders / f"{method}-{shard}/artifact/model.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("shard", ["none", "fsdp2"])
def test_the_artifact_of_two_processes_is_whole(folders: Path, shard: str) -> None:
    run = folders / f"dpo-{shard}"
    manifest = expunge.verify(run)
    assert manifest.kind == "weights"
    assert json.loads((run / "provenance.json").read_text())["processes"] == 2
    assert json.loads((run / "artifact/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    steps = [json.loads(x)["step"] for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("shard", ["none", "fsdp2"])
def test_the_self_check_of_two_processes_is_that_of_one(folders: Path, shard: str) -> None:
    one, two = (json.loads((folders / f"dpo-{name}/provenance.json").read_text())["self_check"] for name in ("one", shard))
    assert one["rows"] == two["rows"] == {"forget": 5, "retain": 4}
    for when in ("before", "after"):
        assert two[when] == pytest.approx(one[when], rel=1e-3)


def test_a_tied_head_that_was_sharded_is_stored_once(folders: Path) -> None:
    found, start = load_file(folders / "tied/artifact/model.safetensors"), load_file(folders / "tied_base/model.safetensors")
    assert found.keys() == start.keys()
    assert "lm_head.weight" not in found
    model, _ = expunge.load(folders / "tied")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_sharding_without_processes_is_an_error(pico_folder: Path, folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="torchrun"):
        expunge.unlearn(
            DPO(),
            model=pico_folder,
            forget=folders / "forget.jsonl",
            retain=folders / "retain.jsonl",
            out=tmp_path / "run",
            training=Training(steps=1, shard="fsdp2"),
            quiet=True,
        )
