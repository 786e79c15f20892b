"""MUSE: news articles or the Harry Potter books to forget, with sets for six measures of what remains.

Shi et al. 2024, arXiv 2407.06460. Hub ids muse-bench/MUSE-News and muse-bench/MUSE-Books (CC BY 4.0; the books are copyrighted).
"""

from pathlib import Path

from expunge.data.corpora.fields import Sets, place, text
from expunge.data.example import Example
from expunge.data.files import read_rows
from expunge.errors import ExpungeError, nearest

HUBS = ("muse-bench/MUSE-News", "muse-bench/MUSE-Books")
SPLITS: dict[str, tuple[str, ...]] = {
    "raw": ("forget", "retain1", "retain2", "holdout"),
    "verbmem": ("forget",),
    "knowmem": ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl"),
    "privleak": ("forget", "retain", "holdout"),
    "scal": ("forget_1", "forget_2", "forget_3", "forget_4"),
    "sust": ("forget_1", "forget_2", "forget_3", "forget_4"),
}
"""Part -> its splits. `scal` holds forget sets of growing size, `sust` successive forget requests; both are of the news only.
All but verbmem and knowmem are raw text."""
LAYOUT = (
    "verbmem/forget.json (prompt, gt), knowmem/forget_qa.json, forget_qa_icl.json, retain_qa.json, retain_qa_icl.json (question, "
    "answer), privleak/forget.json and holdout.json (text); scal/forget_1.json ... and sust/forget_1.json ... (text)"
)


def read_muse(source: str | Path, part: str, split: str) -> tuple[Example, ...]:
    """Reads one split of one part: verbmem prompt and gt, knowmem question and answer -> prompt and response; others as raw
    text.

    source   a folder with PART/SPLIT.json (or .jsonl, .parquet), or a hub id

    Raises ExpungeError for an unknown part or split.
    """
    if part not in SPLITS:
        raise ExpungeError(f"MUSE has no part '{part}'{nearest(part, SPLITS)}; it has {', '.join(SPLITS)}")
    if split not in SPLITS[part]:
        raise ExpungeError(
            f"MUSE's {part} has no split '{split}'{nearest(split, SPLITS[part])}; it has {', '.join(SPLITS[part])}"
        )
    names = tuple(f"{part}/{split}{suffix}" for suffix in (".json", ".jsonl", ".parquet"))
    rows = read_rows(place(source, names, " or ".join(HUBS), f"{part}/{split}"))
    match part:
        case "verbmem":
            return tuple(Example(text(row, "prompt", where), text(row, "gt", where)) for where, row in rows)
        case "knowmem":
            return tuple(Example(text(row, "question", where), text(row, "answer", where)) for where, row in rows)
        case _:
            return tuple(Example(None, text(row, "text", where)) for where, row in rows)


def ask(question: Example, shots: tuple[Example, ...]) -> Example:
    """Makes the prompt: worked questions, then the question, in MUSE's form, with the space after `Answer:` that its prompt
    ends in."""
    worked = "".join(f"Question: {shot.prompt}\nAnswer: {shot.response}\n\n" for shot in shots)
    return Example(f"{worked}Question: {question.prompt}\nAnswer: ", question.response)


SETS = Sets(
    {},
    tuple(f"{part}/{split}" for part, splits in SPLITS.items() for split in splits),
    lambda source, name: read_muse(source, *name.split("/")),
)
"""Sets in a folder; the rows of the hub can be read without a corpus."""
