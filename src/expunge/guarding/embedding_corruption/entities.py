"""Finds named entities in a text with a token classifier of transformers or a spaCy pipeline, as character spans.

Entities of every kind count (persons, places, organizations, ...), as in the released code, but none in the template around a
prompt: the released code also corrupts template strings that the model takes for a name.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch

from expunge.errors import ExpungeError
from expunge.models.save import os_errors, save_tokenizer

Span = tuple[int, int]
LONGEST, OVERLAP = 512, 64
"""Tokens that a classifier reads at once, and those that two parts of a longer text share."""
OTHER_PIPES = ("parser", "tagger", "attribute_ruler", "lemmatizer", "morphologizer", "senter", "textcat", "textcat_multilabel")
"""Parts of a spaCy pipeline that do not find entities."""


class Recognizer(Protocol):
    """Interface of models for named entities."""

    def spans(self, text: str) -> list[Span]:
        """Returns half-open character spans of the entities."""
        ...

    def save(self, folder: Path) -> None:
        """Saves the model as files from which `recognizer` reads it again."""
        ...


def recognizer(place: str | Path) -> Recognizer:
    """Reads a model for named entities: a folder, a hub id, or the name of an installed spaCy pipeline.

    Raises ExpungeError if it is neither kind, or a spaCy pipeline and spaCy is not installed.
    """
    folder = Path(place)
    if (folder / "config.cfg").is_file():
        return SpacyRecognizer(place)
    if not folder.is_dir() and "/" not in str(place) and _is_installed(str(place)):
        return SpacyRecognizer(place)
    return TokenRecognizer(place)


class SpacyRecognizer:
    """Entities of a spaCy pipeline."""

    def __init__(self, place: str | Path) -> None:
        try:
            import spacy
        except ImportError as error:
            raise ExpungeError(f"{place} is a spaCy pipeline; install spaCy with pip install 'expunge[entities]'") from error
        try:
            self._pipeline = spacy.load(place, exclude=list(OTHER_PIPES))
        except (OSError, ValueError) as error:
            raise ExpungeError(f"the spaCy pipeline {place} cannot be loaded ({_first(error)})") from error
        if not {"ner", "entity_ruler"} & set(self._pipeline.pipe_names):
            names = ", ".join(self._pipeline.pipe_names)
            raise ExpungeError(f"the spaCy pipeline {place} finds no named entities (it has {names}); give one with ner")

    def spans(self, text: str) -> list[Span]:
        return [(entity.start_char, entity.end_char) for entity in self._pipeline(text).ents]

    def save(self, folder: Path) -> None:
        self._pipeline.to_disk(folder)


class TokenRecognizer:
    """Entities of a token classifier: tokens whose label is not O."""

    def __init__(self, place: str | Path) -> None:
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(place)
            self._model: Any = AutoModelForTokenClassification.from_pretrained(place, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise ExpungeError(f"{place} is no token classifier that can be loaded ({_first(error)})") from error
        names = self._model.config.id2label
        outside = [i for i, name in names.items() if name.upper() in ("O", "OUTSIDE")]
        if not self._tokenizer.is_fast or len(outside) != 1:
            raise ExpungeError(
                f"{place} labels no tokens as entities: it needs a fast tokenizer and one label O for all else (it has "
                f"{', '.join(names.values())})"
            )
        self._outside = outside[0]

    @torch.no_grad()
    def spans(self, text: str) -> list[Span]:
        found = []
        parts = self._tokenizer(
            text, truncation=True, max_length=LONGEST, stride=OVERLAP, return_overflowing_tokens=True, return_offsets_mapping=True
        )
        for ids, offsets in zip(parts["input_ids"], parts["offset_mapping"], strict=True):
            label_T = self._model(input_ids=torch.tensor([ids])).logits[0].argmax(dim=-1).tolist()
            found += [
                (start, stop)
                for label, (start, stop) in zip(label_T, offsets, strict=True)
                if label != self._outside and start < stop
            ]
        return sorted(set(found))

    def save(self, folder: Path) -> None:
        with os_errors(folder):
            self._model.save_pretrained(folder)
        save_tokenizer(folder, self._tokenizer)


class EntityFinder:
    """Finds entities of a prompt, but not those of the template around it."""

    def __init__(self, find: Callable[[str], list[Span]], template: Iterable[str], also: Callable[[str], list[Span]]) -> None:
        """
        template   what the format writes around a prompt, in pieces
        also       finds further texts, in the whole prompt
        """
        pieces = sorted({piece.strip() for piece in template if piece.strip()}, key=len, reverse=True)
        self._find, self._also = find, also
        self._pieces = re.compile("|".join(map(re.escape, pieces))) if pieces else None

    def spans(self, text: str) -> list[Span]:
        found = list(self._also(text))
        for begin, stop in self._segments(text):
            found += [(begin + start, begin + end) for start, end in self._find(text[begin:stop])]
        return found

    def _segments(self, text: str) -> Sequence[Span]:
        """Returns the spans between the template's pieces that are not blank."""
        marks = [(0, 0), *(m.span() for m in (self._pieces.finditer(text) if self._pieces else ())), (len(text), len(text))]
        gaps = [(one[1], other[0]) for one, other in pairwise(marks)]
        return [(begin, stop) for begin, stop in gaps if text[begin:stop].strip()]


def _is_installed(name: str) -> bool:
    try:
        from spacy.util import is_package
    except ImportError:
        return False
    return bool(is_package(name))


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
