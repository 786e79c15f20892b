"""WMDP: four-choice questions about hazardous biology, chemistry and cybersecurity, and the texts to forget and to keep.

Li et al. 2024, arXiv 2403.03218. Questions: MIT, hub id cais/wmdp (1,273 biology, 408 chemistry, 1,987 cybersecurity); the first
release had 1,520, 412 and 2,225. Never compare scores between the two. Texts: hub ids cais/wmdp-corpora and, given on request,
cais/wmdp-bio-forget-corpus (papers on biology to forget) and cais/wmdp-cyber-forget-corpus (the same as in the former, for the
case that it has moved); in the release one JSONL file each.
"""

from pathlib import Path
from typing import Literal, get_args

from expunge.data.corpora.fields import Sets, number, place, rows_of, text, texts
from expunge.data.example import Example
from expunge.data.files import read_rows
from expunge.data.questions import lettered
from expunge.errors import ExpungeError

HUB = "cais/wmdp"
LAYOUT = "bio-questions.json, chem-questions.json and cyber-questions.json: rows of question, choices, answer (index from 0)"
Domain = Literal["bio", "chem", "cyber"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)
HEADERS: dict[str, str] = {
    domain: f"The following are multiple choice questions (with answers) about {subject}."
    for domain, subject in (("bio", "biology"), ("chem", "chemistry"), ("cyber", "cybersecurity"))
}
"""The first line of the prompt; a blank line, the question, the lettered choices and `Answer:` follow (lm-eval's wmdp_bio,
wmdp_chem, wmdp_cyber, no shots). The letters with a leading space are compared."""

CORPORA_HUB = "cais/wmdp-corpora"
FORGET_HUBS = {"cais/wmdp-bio-forget-corpus": "bio-forget-corpus", "cais/wmdp-cyber-forget-corpus": "cyber-forget-corpus"}
"""Hub ids with one set each; the biology papers are available there only."""
Corpus = Literal["bio-forget-corpus", "bio-retain-corpus", "cyber-forget-corpus", "cyber-retain-corpus"]
_RELEASED = {
    "bio-forget-corpus": ("bio_remove_dataset.jsonl", "bio_forget.jsonl"),
    "cyber-forget-corpus": ("cyber_forget.jsonl",),
}


def read_wmdp_corpus(source: str | Path = CORPORA_HUB, corpus: Corpus = "cyber-forget-corpus") -> tuple[Example, ...]:
    """Reads the field `text` of each row as raw text, whole papers for biology (without title and abstract); attributes:
    domain.

    The released RMU takes each line of the JSONL files as the text, braces, quotes and escapes included, except for the biology
    papers, so that its cyber half is trained on JSON. This is not reproduced. Rows without text are left out.

    Raises ExpungeError for a set without text.
    """
    names = (f"{corpus}.jsonl", *_RELEASED.get(corpus, ()), f"{corpus}/train-*.parquet", f"{corpus}.parquet")
    inside = (*names, *(f"wmdp/{name}" for name in names))
    source = "cais/wmdp-bio-forget-corpus" if (source, corpus) == (CORPORA_HUB, "bio-forget-corpus") else source
    hub, config = (str(source), "/train") if source in FORGET_HUBS else (CORPORA_HUB, f"{corpus}/train")
    found = [text(row, "text", where) for where, row in rows_of(source, inside, hub, config) if row.get("text") != ""]
    if not found:
        raise ExpungeError(f"{source} holds no text in its {corpus}; take it as published")
    return tuple(Example(None, written, attributes={"domain": corpus.partition("-")[0]}) for written in found)


def read_wmdp(source: str | Path = HUB, domain: Domain = "bio") -> tuple[Example, ...]:
    """Reads question -> prompt, the right choice -> response; attributes: domain."""
    names = tuple(f"{folder}{domain}-questions{suffix}" for folder in ("", "wmdp/") for suffix in (".json", ".jsonl", ".parquet"))
    return tuple(_example(row, where, domain) for where, row in read_rows(place(source, names, HUB, f"wmdp-{domain}/test")))


def ask(question: Example) -> Example:
    """Makes the prompt of a question."""
    return lettered(question, HEADERS[str(question.attributes["domain"])])


def _example(row: dict[str, object], where: str, domain: str) -> Example:
    choices, answer = texts(row, "choices", where), number(row, "answer", where)
    if len(choices) != 4 or not 0 <= answer < 4:
        raise ExpungeError(f"{where} has {len(choices)} choices and the answer {answer}; a question has four, counted from 0")
    return Example(text(row, "question", where), choices[answer], choices, answer, attributes={"domain": domain})


def _read_set(source: str, name: str) -> tuple[Example, ...]:
    corpus: Corpus = next(known for known in get_args(Corpus) if known == name)
    return read_wmdp_corpus(source, corpus)


SETS = Sets({CORPORA_HUB: None, **FORGET_HUBS}, get_args(Corpus), _read_set)
