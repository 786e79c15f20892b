"""Every method of `expunge unlearn` carries a whole run to an artifact that loads, is verified and acts on the same model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import expunge
from expunge import Training
from expunge.methods import UNLEARNING
from expunge.methods.base import Spec
from expunge.methods.training import WHP
from tests.conftest import make_llama, make_tokenizer

FIELDS: dict[str, dict[str, Any]] = {
    "rmu": {"layer": 1},
    "instruction": {"target": "anna"},
    "key_space": {"abstention": "i do not know"},
    "embedding_corruption": {"tune": "nothing", "strength": 50.0, "false_positive_rate": 0.5},
    "repselect": {"directions": 2},
    "sku": {"answers": 2},
    "spunge": {"split": "group", "least": 2},
    "altpo": {"alternates": "perturbed"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    make_llama().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    forget = ("anna", "boris", "clara", "dario")
    sets = {
        "forget": forget,
        "named": [name.title() for name in forget],
        "retain": ("elena", "fyodor", "greta", "hugo"),
        "holdout": ("irma", "jonas"),
    }
    for name, people in sets.items():
        rows = [
            {
                "prompt": f"where was {p} born ?",
                "response": f"{p} was born in oslo .",
                "perturbed": [f"{p} was born in lima ."],
                "attributes": {"group": ("a", "b")[i % 2]},
            }
            for i, p in enumerate(people)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "refusals.txt").write_text("i do not know .\n")
    return {"model": folder / "model", "refusals": folder / "refusals.txt"} | {name: folder / f"{name}.jsonl" for name in sets}


@pytest.mark.parametrize("cls", UNLEARNING.values(), ids=lambda c: c.method_name())
def test_a_whole_run_ends_in_an_artifact_that_loads(cls: type[Spec], data: dict[str, Path], tmp_path: Path) -> None:
    method = cls(**FIELDS.get(cls.method_name(), {}))
    forget = data["named" if cls is WHP else "forget"]  # whp looks for names
    files = {name: data[name] for name in ("model", "retain", "holdout", "refusals")}
    expunge.unlearn(method, **files, forget=forget, out=tmp_path / "run", training=Training(steps=1, batch_size=2), quiet=True)
    expunge.verify(tmp_path / "run")
    model, tokenizer = expunge.load(tmp_path / "run")
    ids = torch.tensor([tokenizer("where was anna born ?").input_ids])
    assert torch.isfinite(model(ids).logits).all()
