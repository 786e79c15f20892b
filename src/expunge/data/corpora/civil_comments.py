"""Civil Comments: two million comments on news sites, with the share of raters who found each toxic, in seven categories.

Borkan et al. 2019, arXiv 1903.04561. Data: CC0, hub id google/civil_comments; the files of the Kaggle competition "Jigsaw
Unintended Bias" hold the same under other names, and shares for the groups that are mentioned beside them.

SPUNGE (arXiv 2406.11780) takes comments with severe_toxicity > 0.35 for explicit toxicity, PEM (arXiv 2306.14870) with
toxicity > 0.8.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from expunge.data.corpora.fields import Sets, rows_of, score, scores
from expunge.data.example import Example
from expunge.errors import ExpungeError

HUB = "google/civil_comments"
LAYOUT = "train.csv (also .parquet, .jsonl) with text, toxicity, severe_toxicity, obscene, threat, insult, identity_attack, ..."
Split = Literal["train", "validation", "test"]

SCORES = ("toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack", "sexual_explicit")
_IDENTITIES = (
    "male female transgender other_gender heterosexual homosexual_gay_or_lesbian bisexual other_sexual_orientation christian "
    "jewish muslim hindu buddhist atheist other_religion black white asian latino other_race_or_ethnicity physical_disability "
    "intellectual_or_learning_disability psychiatric_or_mental_illness other_disability"
)
IDENTITIES: tuple[str, ...] = tuple(_IDENTITIES.split())
"""Groups that some of Kaggle's rows were rated for."""


def read_civil_comments(source: str | Path = HUB, split: Split = "train") -> tuple[Example, ...]:
    """Reads comments as raw text, without empty ones; attributes: the seven scores, 0 to 1, and the rated groups.

    Kaggle's `comment_text` and `target` are text and toxicity. The set to learn from has 1.8 million rows, which take some
    gigabytes of memory before a condition such as `severe_toxicity > 0.35` leaves most of them out.

    Raises ExpungeError for a set without comments.
    """
    stems = (split, f"data/{split}-*", f"civil_comments/{split}")
    names = [f"{stem}{end}" for stem in stems for end in (".parquet", ".csv", ".jsonl")]
    found = (_example(row, where) for where, row in rows_of(source, names, HUB, f"/{split}"))
    comments = tuple(example for example in found if example is not None)
    if not comments:
        raise ExpungeError(f"{source} has no comments (text, or comment_text) in its set {split}; take it as published")
    return comments


def _example(row: Mapping[str, Any], where: str) -> Example | None:
    name = next((n for n in ("text", "comment_text") if isinstance(row.get(n), str) and row[n].strip()), None)
    if name is None:
        return None
    found = scores(row, (*SCORES, *IDENTITIES), where)
    if "toxicity" not in found and (target := score(row, "target", where)) is not None:
        found["toxicity"] = target
    if "toxicity" not in found:
        raise ExpungeError(f"{where} has no number in its field 'toxicity'; take the file as published")
    return Example(None, row[name], attributes=dict(found))


def _read_set(source: str, name: str) -> tuple[Example, ...]:
    split: Split = next(known for known in get_args(Split) if known == name)
    return read_civil_comments(source, split)


SETS = Sets({HUB: None}, get_args(Split), _read_set)
