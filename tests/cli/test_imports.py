"""What a command imports before it has something to compute: no library that takes seconds to load."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from expunge.artifact import Base, save_artifact
from expunge.methods import NPO

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "sklearn", "scipy", "matplotlib", "numpy")
SCRIPT = """
import json, sys
from expunge.cli import main
try:
    main(sys.argv[2:])
except SystemExit:
    pass
print(json.dumps(sorted(m for m in sys.argv[1].split(",") if m in sys.modules)), file=sys.stderr)
"""
"""Runs a command and says on the last line of stderr what it has imported."""


def imported(*words: str, of: tuple[str, ...] = HEAVY) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, ",".join(of), *words], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stderr.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "unlearn npo --hlp",
        "unlearn npo --help",
        "unlearn --help",
        "unlearn spunge --each rmu --hlp",
        "finetune --hlp",
        "merge ties --hlp",
        "evaluate model --suite tofu --hlp",
        "compare a b --hlp",
        "probe model --hlp",
        "attack ladder model --hlp",
        "report runs --hlp",
        "methods",
        "methods npo",
    ],
)
def test_flags_and_lists_of_methods_need_neither_torch_nor_numpy(line: str) -> None:
    assert imported(*line.split()) == []


@pytest.mark.parametrize("line", ["unlearn npo --model m --forget f --out o --btea 1", "methods"])
def test_a_wrong_flag_and_a_list_need_no_parser_and_no_schema(line: str) -> None:
    assert imported(*line.split(), of=("typeguard", "unittest.mock", "yaml", "pydantic.plugin._loader")) == []


@pytest.mark.parametrize("line", ["suites", "suites tofu", "suites probability"])
def test_lists_of_suites_and_metrics_need_numpy_alone(line: str) -> None:
    assert imported(*line.split()) == ["numpy"]


def test_checksums_are_recomputed_without_torch(pico_folder: Path, tmp_path: Path) -> None:
    save_artifact(
        tmp_path / "made",
        "weights",
        NPO(),
        Base(path=str(pico_folder), sha256=""),
        lambda out: shutil.copytree(pico_folder, out, dirs_exist_ok=True),
    )
    assert imported("verify", str(tmp_path / "made")) == []


@pytest.mark.parametrize("line", ["ext_sub", "adapter_subtraction", "adapter_addition --rank 3", "ethos --rank 3"])
def test_adapters_are_merged_by_numpy_alone(line: str, pico_folder: Path, tmp_path: Path) -> None:
    """With a tokenizer beside the expert and the base on this machine, both of which are read."""
    for seed, folder in enumerate((tmp_path / "e", tmp_path / "a")):
        folder.mkdir()
        draw = np.random.default_rng(seed).standard_normal
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        factors = {"A": draw((2, 32)).astype(np.float32), "B": draw((32, 2)).astype(np.float32)}
        save_file({f"{key}{name}.weight": factor for name, factor in factors.items()}, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "base_model_name_or_path": str(pico_folder), "r": 2, "lora_alpha": 2}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(pico_folder / name, folder)
    method, *fields = line.split()
    words = ["merge", method, "--models", str(tmp_path / "e"), str(tmp_path / "a"), *fields, "--out", str(tmp_path / "out")]
    assert imported(*words, of=(*HEAVY, "huggingface_hub")) == ["numpy"]
    assert (tmp_path / "out/artifact/tokenizer.json").is_file()


LIBRARY = """
import sys
before = set(sys.modules)
exec(sys.argv[1])
import expunge
found = sorted({name.split(".")[0] for name in set(sys.modules) - before})
print(*[name for name in sys.argv[2].split(",") if name in found])
print(*sorted({name.split(".")[1] for name in set(sys.modules) - before if name.startswith("expunge.")}))
"""
"""Runs a line and prints which of the named libraries, and which parts of expunge, it has imported."""


def test_evaluate_and_load_import_neither_attacks_reports_nor_training() -> None:
    line = "import torch; from transformers import PreTrainedModel; before = set(sys.modules); from expunge import evaluate, load"
    libraries = "peft,accelerate,datasets,sklearn,scipy,matplotlib,pandas,nltk,rouge_score,rich"
    done = subprocess.run([sys.executable, "-c", LIBRARY, line, libraries], capture_output=True, text=True, check=True)
    found, parts = done.stdout.splitlines()
    assert found == ""
    assert set(parts.split()).isdisjoint({"attacks", "report", "training", "merging", "run", "api", "cli", "lab"})
