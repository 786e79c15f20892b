"""Defines the two data types: Example, and Request (what to forget and what to keep)."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Attribute = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Example:
    """One item to learn, forget or ask.

    `prompt` is None for raw text, whose whole `response` is learned and scored. A four-choice question has `choices`
    and the index `answer`, and its `response` is the right choice.
    """

    prompt: str | None
    response: str
    choices: tuple[str, ...] = ()
    answer: int | None = None
    paraphrases: tuple[str, ...] = ()
    """Other wordings of the right response."""
    perturbed: tuple[str, ...] = ()
    """Wrong responses of the same form."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    place: str = field(default="", compare=False, repr=False)
    """File and line that it was read from, for messages only."""

    @property
    def id(self) -> str:
        """16 hex digits computed from prompt, response and choices: the same example has the same id in every file and run."""
        text = json.dumps([self.prompt, self.response, self.choices], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Request:
    """A request to forget: the rows to forget, to keep and to compare with."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...] = ()
    holdout: tuple[Example, ...] = ()
    """Rows of the same kind as `forget` that the model never saw, for calibration and membership tests."""
    refusals: tuple[str, ...] = ()
    """Answers such as `I do not know that.`, for methods that train refusals."""
    neutral: tuple[Example, ...] = ()
    """Texts that have nothing to do with the others, on which it is measured how much the model changes in general."""
    forget_sources: tuple[int, ...] = ()
    """Number of forget examples of each file or data set, in order; empty: all are from one."""


def fingerprint(examples: Iterable[Example]) -> str:
    """Computes a sha256 over examples in order, which is the same for the same rows in any file format."""
    digest = hashlib.sha256()
    for e in examples:
        row = [e.prompt, e.response, e.choices, e.answer, e.paraphrases, e.perturbed, sorted(e.attributes.items())]
        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
