"""TOFU: 200 fictitious authors with 20 questions each, some of whom are to be forgotten; real authors and world facts to keep.

Maini et al. 2024, arXiv 2401.06121. Data: MIT, https://huggingface.co/datasets/locuslab/TOFU.
"""

from pathlib import Path
from typing import Literal, get_args

from expunge.data.corpora.fields import Sets
from expunge.data.example import Example
from expunge.data.files import read_rows
from expunge.data.row import to_examples
from expunge.errors import ExpungeError, MissingData, nearest

HUB = "locuslab/TOFU"
Split = Literal[
    "full", "forget01", "forget05", "forget10", "retain99", "retain95", "retain90", "holdout01", "holdout05", "holdout10",
    "forget01_perturbed", "forget05_perturbed", "forget10_perturbed", "retain_perturbed",
    "real_authors", "real_authors_perturbed", "world_facts", "world_facts_perturbed",
]  # fmt: skip
SPLITS: tuple[str, ...] = get_args(Split)


def read_tofu(source: str | Path = HUB, split: str = "full") -> tuple[Example, ...]:
    """Reads one split: question -> prompt, answer -> response, paraphrased_answer -> paraphrases, perturbed_answer ->
    perturbed.

    source   a folder with SPLIT.jsonl, SPLIT.json or SPLIT.parquet, or one that holds that as `tofu`, or the hub id
    split    forgetNN and retainMM add up to `full`; the *_perturbed splits hold the same questions with wrong answers of the
             same form (five; three for real authors and world facts, which have no paraphrase of the right one)

    Raises ExpungeError for an unknown split, and for rows of a *_perturbed split without wrong answers.
    """
    if split not in SPLITS:
        raise ExpungeError(f"TOFU has no split '{split}'{nearest(split, SPLITS)}; it has {', '.join(SPLITS)}")
    examples = to_examples(read_rows(_place(source, split)), {}, str(source), warns=False)
    bare = [row for row, example in enumerate(examples, start=1) if not example.perturbed]
    if split.endswith("_perturbed") and bare:
        raise ExpungeError(
            f"{source}, {split}: row {bare[0]} has no perturbed_answer; take the split {split} as published in {HUB}"
        )
    return examples


def _place(source: str | Path, split: str) -> str | Path:
    if not Path(source).is_dir():
        if isinstance(source, Path) or source.count("/") != 1 or source.startswith("."):
            raise MissingData(f"there is no folder {source} with TOFU; give a folder that holds {split}.jsonl, or {HUB}")
        return f"{source}:{split}"
    for folder in (Path(source), Path(source) / "tofu"):
        for suffix in (".jsonl", ".json", ".parquet"):
            if (file := folder / (split + suffix)).is_file():
                return file
    raise MissingData(f"{source} holds no {split}.jsonl (question, answer, ...: one file a split); get it from {HUB}")


SETS = Sets({}, SPLITS, read_tofu)
"""Sets in a folder; the rows of the hub can be read without a corpus."""
