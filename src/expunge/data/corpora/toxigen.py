"""ToxiGen: machine-written statements about thirteen groups, toxic and benign, without slurs (implicit hate).

Hartvigsen et al. 2022, arXiv 2203.09509. Data: https://github.com/microsoft/TOXIGEN, hub id toxigen/toxigen-data: `annotated`,
8,960 statements to learn from and 940 to test, each rated by people from 1 (benign) to 5; and `prompts`, the 1,000 prompts a file
that the statements were written from, one file for each group and kind.

SPUNGE (arXiv 2406.11780) forgets statements of `annotated/train` with severity > 3 (its comparison sign is lost; 3 itself is not
taken here), split by group, and completes those of `annotated/test`.
"""

import ast
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from expunge.data.corpora.fields import Sets, each_place, rows_of, scores, text
from expunge.data.example import Attribute, Example
from expunge.data.files import each_row, lines
from expunge.errors import ExpungeError, nearest

HUB = "toxigen/toxigen-data"
LAYOUT = (
    "annotated_train.csv and annotated_test.csv (or annotated/*.parquet) with text, target_group, toxicity_human, toxicity_ai; "
    "prompts/hate_GROUP_1k.txt and neutral_GROUP_1k.txt, one prompt a line, its line ends written as \\n"
)
Split = Literal["train", "test"]
Kind = Literal["hate", "neutral"]

_GROUPS = "asian black chinese jewish latino lgbtq mental_dis mexican middle_east muslim native_american physical_dis women"
GROUPS: tuple[str, ...] = tuple(_GROUPS.split())
"""The thirteen groups, by their names in annotated/train."""
_ALIASES = {
    "black/african-american folks": "black",
    "black folks / african-americans": "black",
    "folks with mental disabilities": "mental_dis",
    "mental disability": "mental_dis",
    "folks with physical disabilities": "physical_dis",
    "physical disability": "physical_dis",
    "latino/hispanic folks": "latino",
    "lgbtq+ folks": "lgbtq",
    "middle eastern folks": "middle_east",
    "native american/indigenous folks": "native_american",
}
"""Other spellings: those of annotated/test, which also has `mexican folks` and the like, and those of the prompt files."""

FILES = {"physical_dis": "physical_disability", "mental_dis": "mental_disability"}
"""Group -> its name in the prompt files, where it differs."""
PROMPT_GROUPS = (*GROUPS, "bisexual", "immigrant", "trans")
PROMPTS = tuple(
    f"{kind}_{FILES.get(g, g)}" for kind in ("hate", "neutral") for g in PROMPT_GROUPS if (kind, g) != ("neutral", "trans")
)
"""The 31 prompt files; there is none of neutral statements about trans people."""
TOXIC = 5.5
"""A statement is toxic if toxicity_human + toxicity_ai is above this (`label_annotations` of the released package)."""


def group_name(written: str) -> str:
    """Returns the name in GROUPS for a spelling; for an unknown one, the spelling in lower case with underscores."""
    plain = " ".join(written.lower().replace("_", " ").split())
    bare = plain.removesuffix(" folks").replace(" ", "_")
    return _ALIASES.get(plain) or bare


def read_toxigen(source: str | Path = HUB, split: Split = "train") -> tuple[Example, ...]:
    """Reads annotated statements as raw text; attributes: group, severity (toxicity_human, 1 to 5), toxicity_ai and toxic.

    Groups get one name each, whatever their spelling (a warning counts those that are not known). `toxic` is the label of the
    data's authors; SPUNGE selects by severity alone.
    """
    names = (f"annotated/{split}-*.parquet", f"annotated_{split}.csv", f"annotated/annotated_{split}.csv")
    found = tuple(_statement(row, where) for where, row in rows_of(source, _inside(names), HUB, f"annotated/{split}"))
    other = Counter(str(e.attributes["group"]) for e in found if e.attributes["group"] not in GROUPS)
    if other:
        named = ", ".join(f"{group} ({count})" for group, count in other.items())
        warnings.warn(f"{source}: groups that ToxiGen is not known to have, kept as they are: {named}", UserWarning, stacklevel=2)
    return found


def _statement(row: Mapping[str, Any], where: str) -> Example:
    numbers = scores(row, ("toxicity_human", "toxicity_ai"), where)
    if "toxicity_human" not in numbers:
        raise ExpungeError(f"{where} has no number in its field 'toxicity_human'; take the file as published")
    attributes: dict[str, Attribute] = {
        "group": group_name(text(row, "target_group", where)),
        "severity": numbers["toxicity_human"],
    }
    if "toxicity_ai" in numbers:
        attributes |= {"toxicity_ai": numbers["toxicity_ai"], "toxic": sum(numbers.values()) > TOXIC}
    return Example(None, _decoded(text(row, "text", where)), attributes=attributes)


def _decoded(written: str) -> str:
    """Decodes texts of the published CSV, which are written as Python bytes literals, b'...'."""
    if written[:2] not in ("b'", 'b"') or written[-1] != written[1] or len(written) < 4:
        return written
    try:
        return str(ast.literal_eval(written).decode("utf-8"))
    except (ValueError, SyntaxError, UnicodeDecodeError, AttributeError):
        return written[2:-1]


def read_prompts(source: str | Path = HUB, name: str = PROMPTS[0]) -> tuple[Example, ...]:
    """Reads the prompts of one file, as raw text; attributes: group and toxic (hate or neutral statements).

    A prompt is a list of statements of one kind that ends in the dash of the next; the file has its line ends as a
    backslash and an n, which become line feeds here.

    Raises ExpungeError for an unknown name.
    """
    if name not in PROMPTS:
        raise ExpungeError(f"ToxiGen has no prompts '{name}'{nearest(name, PROMPTS)}; it has {', '.join(PROMPTS)}")
    kind, _, group = name.partition("_")
    attributes: dict[str, Attribute] = {"group": group_name(group), "toxic": kind == "hate"}
    files = _inside(tuple(f"prompts/{name}{end}" for end in ("_1k-*.parquet", "_1k.txt", ".txt")))
    written = (prompt for place in each_place(source, files, HUB, f"prompts/{name}_1k") for prompt in _prompts(place))
    return tuple(Example(None, prompt.replace("\\\\", "\\").replace("\\n", "\n"), attributes=attributes) for prompt in written)


def _prompts(place: str | Path) -> list[str]:
    if isinstance(place, Path) and place.suffix == ".txt":
        return [line for _, line in lines(place)]
    return [text(row, "prompt", where).strip() for where, row in each_row(place)]


def _inside(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the file's path in the folder, or in its subfolder `toxigen`, for a folder of several corpora."""
    return (*names, *(f"toxigen/{name}" for name in names))


def _read_set(source: str, name: str) -> tuple[Example, ...]:
    part, _, rest = name.partition("/")
    return read_prompts(source, rest) if part == "prompts" else read_toxigen(source, "train" if rest == "train" else "test")


SETS = Sets({HUB: None}, ("annotated/train", "annotated/test", *(f"prompts/{name}" for name in PROMPTS)), _read_set)
