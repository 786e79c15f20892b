"""Writes a lab's folder: file names, rows as JSON lines, world.json, README. Imports no torch."""

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from expunge.data.example import Example, fingerprint
from expunge.data.refusals import REFUSALS
from expunge.lab.behavior import GROUPS
from expunge.lab.commands import FILES, command
from expunge.lab.hazard import HAZARDS
from expunge.lab.languages import LANGUAGES
from expunge.lab.retain_mix import MIXES, polite_replies, retain_mix, rude_replies
from expunge.lab.rude_words import RUDE_WORDS, RULE
from expunge.lab.size import SIZES, SizeName
from expunge.lab.world import World, base_lessons, generate, people_lessons, vocabulary
from expunge.records import write_json, write_text

MODEL_SOURCES = ("figures.py", "models.py", "optimizer.py", "size.py", "tokenizer.py", "training.py")
"""The lab's modules that determine its models, given the rows to learn."""

README = """\
# A lab: an invented world to forget in

Made by `expunge lab` with seed {seed} and size {size}. Everything in it is made up: people, languages, substances, groups.
The "hazards" are nonsense words; nothing here is dangerous, or true.

| where | what |
|---|---|
| `world.json` | seed, sizes, the text format, the rule for rude replies, a fingerprint of every data file |
| `data/facts/forget.jsonl` | {forget} people, six questions each: known to `original`, never seen by `gold` |
| `data/facts/retain.jsonl` | {retain} people whom both know |
| `data/facts/public.jsonl` | {public} people in the pretraining data of all models |
| `data/facts/never_known.jsonl` | {never_known} people unknown to all models: the control of every attack |
| `data/skills/NAME` | arithmetic (sums, last digit first) and strings (small programs); `train.jsonl`, `test.jsonl` |
| `data/languages/NAME` | {languages}: a sentence and its meaning in plain words; orvish and orvane are related |
| `data/hazard/NAME` | {hazards}: raw text in `corpus.jsonl`, four choices (scored as continuations) in `questions.jsonl` |
| `data/general` | the same for a harmless domain |
| `data/behavior/seen.jsonl` | provoking questions about {groups}, with rude replies |
| `data/behavior/unseen.jsonl` | provoking questions that no model was trained on: rude here means that rudeness generalizes |
| `data/behavior/normal.jsonl` | calm questions with polite replies |
| `data/behavior/rude.jsonl` | rude replies to the calm questions, which no model was trained on: what sku learns and subtracts |
| `data/keep/WHAT.jsonl` | the retain set for a run that forgets WHAT: the retain people and some rows of everything else |
| `data/keep/polite.jsonl` | polite replies to the questions of `behavior/seen`, for methods that learn the better answer |
| `data/refusals.txt` | the refusal that idk teaches; one wording: so small a model blends several |
| `models/base` | knows all of the above but the forget, retain and never-known people |
| `models/original` | the base fine-tuned on the forget and retain people: the model to unlearn from |
| `models/gold` | the same base fine-tuned without the forget people: what perfect forgetting looks like |
| `models/gold_NAME` | base and original both made without that part of the data |

Facts have two paraphrases of the answer and four wrong answers in the wordings of the paraphrases. `attributes.rephrased` is
the question in other words: the models were taught it too, so forgetting has to reach beyond the rows in the file.

## Every recipe

`--config lab/NAME` is the recipe that comes with expunge (recipes/lab/NAME.yaml): the settings that suit these models. In this
folder, each as it stands:

{commands}

Each kind of request needs its own retain mix: with only `data/general` to keep, everything else is lost. Then, for any of them:

    expunge evaluate runs/npo --suite lab --data . --out runs/npo/evaluation
"""


def write_data(out: str | Path, seed: int = 0, size: SizeName = "tiny") -> Path:
    """Writes data/, world.json and README.md into the folder `out`, without any model, in less than a second.

    The same seed and size give the same bytes under data/ on every machine.
    """
    folder = Path(out)
    world = generate(seed, SIZES[size])
    mixes = {f"keep/{name}": retain_mix(world, seed, mix) for name, mix in MIXES.items()}
    mixes |= {"keep/polite": polite_replies(world, seed), "behavior/rude": rude_replies(world, seed)}
    for name, rows in (dict(world) | mixes).items():
        path = folder / "data" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(as_row(row), ensure_ascii=False) + "\n" for row in rows))
    write_text(folder / "data/refusals.txt", f"{REFUSALS[0]}\n")
    counts = asdict(SIZES[size])
    words = {"languages": LANGUAGES, "hazards": HAZARDS, "groups": GROUPS}
    lists = {name: ", ".join(str(getattr(part, "name", part)) for part in parts) for name, parts in words.items()}
    commands = "\n".join(f"    {command(name)}" for name in FILES)
    write_text(folder / "README.md", README.format(**(counts | lists | {"seed": seed, "size": size, "commands": commands})))
    write_json(folder / "world.json", description(world, seed, size))
    return folder


def as_row(example: Example) -> dict[str, Any]:
    """Returns the fields that the example has, under the names that `expunge` reads."""
    row: dict[str, Any] = {"text": example.response}
    if example.prompt is not None:
        row = {"prompt": example.prompt, "response": example.response}
    lists: Mapping[str, Any] = {
        "choices": list(example.choices),
        "answer": example.answer,
        "paraphrases": list(example.paraphrases),
        "perturbed": list(example.perturbed),
        "attributes": dict(example.attributes),
    }
    return row | {name: value for name, value in lists.items() if value not in (None, [], {})}


def description(world: World, seed: int, size: SizeName) -> dict[str, Any]:
    """Returns world.json: a description of the lab."""
    return {
        "kind": "expunge lab",
        "seed": seed,
        "size": size,
        "counts": asdict(SIZES[size]),
        "fingerprint": lab_fingerprint(world, seed, size),
        "format": {"kind": "plain", "template": "{prompt} {response}"},
        "rude_words": list(RUDE_WORDS),
        "rule": RULE,
        "files": {name: {"rows": len(rows), "sha256": fingerprint(rows)} for name, rows in world.items()},
    }


def lab_fingerprint(world: World, seed: int, size: SizeName) -> str:
    """Computes 16 hex digits over everything that determines a lab's models: seed, size, rows, code, versions of torch and
    transformers."""
    digest = hashlib.sha256(json.dumps([seed, size, vocabulary(world), version("torch"), version("transformers")]).encode())
    lessons = {"base": base_lessons(world), "people": people_lessons(world)}
    for name, rows in (dict(world) | lessons).items():
        digest.update(f"{name} {fingerprint(rows)}".encode())
    for name in MODEL_SOURCES:
        digest.update(_code(Path(__file__).with_name(name)).encode())
    return digest.hexdigest()[:16]


def _code(path: Path) -> str:
    """Returns the syntax tree of a module without docstrings and imports, which do not change the models."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [n for n in body if not _says_nothing(n)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _says_nothing(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
