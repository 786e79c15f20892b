"""WikiText: good and featured articles of Wikipedia, used as a retain set when hazardous knowledge is unlearned.

Merity et al. 2016, arXiv 1609.07843. Data: CC BY-SA 3.0, hub id Salesforce/wikitext. RMU keeps the lines of wikitext-2-raw-v1's
test set (arXiv 2403.03218, its released code).
"""

from pathlib import Path
from typing import Literal, get_args

from expunge.data.corpora.fields import Sets, each_place
from expunge.data.example import Example
from expunge.data.files import each_row
from expunge.errors import ExpungeError

HUB = "Salesforce/wikitext"
LAYOUT = "wikitext-2-raw-v1/test-*.parquet with text, or wiki.test.raw (also test.txt), one paragraph a line"
Version = Literal["wikitext-2-raw-v1", "wikitext-2-v1", "wikitext-103-raw-v1", "wikitext-103-v1"]
Split = Literal["train", "validation", "test"]


def read_wikitext(source: str | Path = HUB, version: Version = "wikitext-2-raw-v1", split: Split = "test") -> tuple[Example, ...]:
    """Reads every line that is not blank as raw text, as published, with the space before it and the line end after it.
    Attribute: heading, of the lines ` = Title = ` between the paragraphs.

    RMU's release keeps headings; `SOURCE[heading = false]` leaves them out.

    Raises ExpungeError for a set without text.
    """
    short = "valid" if split == "validation" else split
    plain = [f"wiki.{short}.raw", f"wiki.{short}.tokens", f"{short}.txt", f"{split}.txt"]
    names = [
        f"{version}/{split}-*.parquet",
        *(f"{folder}{name}" for folder in ("", f"{version[:-3]}/", "wikitext2/") for name in plain),
    ]
    paragraphs = [
        line for place in each_place(source, names, HUB, f"{version}/{split}") for line in _lines(place) if line.strip()
    ]
    if not paragraphs:
        raise ExpungeError(f"{source} holds no text in its set {version}/{split}; take it as published")
    return tuple(Example(None, line, attributes={"heading": is_heading(line)}) for line in paragraphs)


def is_heading(line: str) -> bool:
    """Returns whether a line is ` = Title = `, with the same number of signs on both sides."""
    bare = line.strip()
    return len(bare) > 4 and bare.startswith("= ") and bare.endswith(" =")


def _lines(place: str | Path) -> list[str]:
    """Splits at line feeds only; the text has other characters that Python takes for line ends."""
    if isinstance(place, str) or place.suffix == ".parquet":
        return [str(row["text"]) for _, row in each_row(place)]
    try:
        return [f"{line}\n" for line in place.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise ExpungeError(f"{place} is not text in UTF-8 ({error}); take it as published") from error


def _read_set(source: str, name: str) -> tuple[Example, ...]:
    version = next(v for v in get_args(Version) if name.startswith(f"{v}/"))
    split = next(s for s in get_args(Split) if name.endswith(f"/{s}"))
    return read_wikitext(source, version, split)


SETS = Sets({HUB: None}, tuple(f"{v}/{s}" for v in get_args(Version) for s in get_args(Split)), _read_set)
