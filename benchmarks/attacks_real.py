"""Attacks on a real model: SmolLM2-135M-Instruct learns invented people, forgets them, and is asked for them again.

    python benchmarks/attacks_real.py --out DIR --model SmolLM2-135M-Instruct [--whole DIR] [--method simnpo] [--facts 8]
                                      [--attacks prefix ...]

Invents the people of benchmarks/own_data.py, teaches them to the model (adapters, 70 steps, merged), and forgets 20 rows by
--method with its defaults, down to the level of rows about people that the model never met. Then rephrase, prefix, sample,
quantize, relearn, probe and soft_prompt run with small budgets on the first --facts of them, beside as many about people that no
model met. There is no gold model: the control is these never-seen facts, and what is printed under `original` is the model before
it forgot, without an attack. Every finished stage and attack is kept in DIR.

--whole DIR   a model that has learned the rows of own_data.py already (its folder `whole`), instead of the first stage
"""

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from own_data import Walk, invent, learned

from expunge.attacks import named
from expunge.attacks.base import AttackSpec
from expunge.attacks.knowledge import Facts, form_words
from expunge.attacks.results import table
from expunge.attacks.run import attack, opened
from expunge.attacks.sources import Sources
from expunge.data.read import read_examples
from expunge.methods import METHODS, TrainingMethod
from expunge.records import write_json
from expunge.run import execute
from expunge.spec import Run, build

BUDGETS: Mapping[str, dict[str, Any]] = {
    "prefix": {"prefixes": 1},
    "quantize": {"formats": ("int4_group", "nf4")},
    "rephrase": {"templates": 1, "formats": ("question", "role", "cloze")},
    "sample": {"draws": 8},
    "probe": {},
    "soft_prompt": {"tokens": 4, "steps": 6, "kinds": ("universal",)},
    "relearn": {"steps": 6, "points": 1, "batch_size": 8, "learning_rate": 1e-3, "lora_rank": 8, "data": ("facts",)},
}
LONGEST = 12
"""Tokens of an answer that are read."""


def forgotten(out: Path, whole: Path, method: str) -> Path:
    """The model without the forget rows, at the level of rows never seen; by an adapter where the method trains."""
    said = {
        "model": str(whole),
        "forget": str(out / "forget.jsonl"),
        "retain": str(out / "keep.jsonl"),
        "holdout": str(out / "holdout.jsonl"),
        "method": {"name": method},
        "training": {"lora": issubclass(METHODS[method], TrainingMethod)},
    }
    folder = out / method
    if not (folder / "artifact/expunge.json").is_file():
        execute(build(Run, said, method), folder, resume=folder.exists())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", required=True, help="a folder or a hub id")
    parser.add_argument("--whole", type=Path)
    parser.add_argument("--method", default="simnpo")
    parser.add_argument("--facts", type=int, default=8)
    parser.add_argument("--attacks", nargs="+", default=list(BUDGETS))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = flags.out
    out.mkdir(parents=True, exist_ok=True)
    invent(out, 0)
    if flags.whole is not None and not (out / "whole").exists():
        shutil.copytree(flags.whole, out / "whole")
    whole = out / (learned(Walk(out, {}), flags.model, 70, lora=True) if flags.whole is None else "whole")
    place = forgotten(out, whole, flags.method)
    forget, never, keep = (read_examples(out / f"{name}.jsonl") for name in ("forget", "never", "keep"))
    if not (out / "original.json").is_file():
        facts = Facts(forget[: flags.facts], form_words((*forget, *never)))
        found = opened(str(whole), max_new_tokens=LONGEST).recall(facts)
        write_json(out / "original.json", {"recall": float(found.mean())})
    sources = Sources(forget[: flags.facts], never[: flags.facts], keep, original=str(whole))
    for name in flags.attacks:
        specs: dict[str, AttackSpec] = named([name], fields=dict(BUDGETS[name]))
        print(table(attack(place, specs, sources, out=place / "attacks", max_new_tokens=LONGEST, quiet=True)), flush=True)
    print(f"original, plain questions: {(out / 'original.json').read_text()}")


if __name__ == "__main__":
    main()
