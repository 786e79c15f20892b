"""Makes a request from questions alone: asks the model itself for what to forget, and for neighbouring facts to keep.

    OUT.request/  forget.jsonl   each question in several wordings, with what the model answers to each
                  retain.jsonl   questions of the same kind about others, and general ones, with what the model answers

The model's own greedy answers are the forget set. Both files can be read and corrected before a run uses them. A row of
retain.jsonl that shares a name or most of its words with a forget row is left out.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expunge.data.encode import Encoder, decoded
from expunge.data.format import default_format
from expunge.data.general_questions import GENERAL_QUESTIONS
from expunge.errors import ExpungeError
from expunge.evaluation.generate import generate, sample, writing, written
from expunge.evaluation.nucleus import Nucleus
from expunge.models.limits import positions
from expunge.processes import is_main
from expunge.records import write_text

LONGEST = 512
"""Tokens of a question with its answer."""
ANSWER_TOKENS = 64
QUESTION_TOKENS = 96
DRAWS = 4
"""Number of sampled rewordings, and of sampled questions about others, for each question."""
WORDINGS = (
    "{question}",
    "Tell me: {question}",
    "I would like to know this. {question}",
    "Can you answer a question? {question}",
    "{question} Answer in one sentence.",
    "Please answer: {question}",
)
REWORD = "Write this question in other words, with the same names. Reply with the question alone.\n{question}"
ANOTHER = "Write a list of ten questions of this kind about other people and things, each with a name.\n1. {question}"
EMPTY_WORDS = frozenset(
    "a about after all an and any are as at be been by can could did do does for from had has have he her his how i in is it "  # noqa: SIM905
    "its know me my name of on one or she so some tell than that the their them there they this to was we were what when where "
    "which who whom whose why will with would you your answer question sentence please".split()
)


class Asked(NamedTuple):
    """The files that were made from a question."""

    forget: Path
    retain: Path | None
    """None if the user gives a retain set."""
    rows: int
    kept: int
    left_out: int
    """Retain rows that were too similar to the forget rows."""

    def lines(self) -> list[str]:
        """Describes the result for the terminal."""
        made = [f"{self.forget}: {self.rows} rows to forget, as the model answers them"]
        if self.retain is not None:
            made.append(
                f"{self.retain}: {self.kept} rows to keep ({self.left_out} left out: too near to what is to be forgotten)"
            )
        return [*made, "read them; to go on with corrected files, give them as --forget and --retain"]


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    folder: Path,
    *,
    with_retain: bool = True,
    seed: int = 0,
) -> Asked:
    """Writes forget.jsonl and, `with_retain`, retain.jsonl into `folder`; the same model, questions and seed give the same rows.

    Raises ExpungeError if a question is empty, or the model answers none of them.
    """
    questions = [" ".join(q.split()) for q in questions]
    if not questions or not all(questions):
        raise ExpungeError("--forget-question needs the text of a question after it")
    encoder = Encoder(tokenizer, default_format(tokenizer), max_length=min(LONGEST, positions(model) or LONGEST))
    answers = _writer(model, encoder, ANSWER_TOKENS)
    nucleus = Nucleus(seed=seed, temperature=0.7)
    wordings = _distinct([(question, text) for question in questions for text in _wordings(model, encoder, question, nucleus)])
    forget = [
        (text, answer, question) for (question, text), answer in zip(wordings, answers([t for _, t in wordings]), strict=True)
    ]
    forget = [row for row in forget if row[1]]
    if not forget:
        raise ExpungeError("the model answers none of the questions with a word, so there is nothing to forget")
    retain: list[tuple[str, str, str]] = []
    left_out = 0
    if with_retain:
        others = [q for question in questions for q in _sampled(model, encoder, ANOTHER.format(question=question), nucleus)]
        candidates = [("neighbor", q) for q in dict.fromkeys(others)] + [("general", q) for q in GENERAL_QUESTIONS]
        told = answers([q for _, q in candidates])
        rows = [(q, answer, kind) for (kind, q), answer in zip(candidates, told, strict=True) if answer]
        retain = [row for row in rows if not any(too_near(row[:2], (q, a)) for q, a, _ in forget)]
        left_out = len(rows) - len(retain)
    paths = folder / "forget.jsonl", folder / "retain.jsonl"
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        _write(paths[0], forget, "question")
        if with_retain:
            _write(paths[1], retain, "kind")
    return Asked(paths[0], paths[1] if with_retain else None, len(forget), len(retain), left_out)


def too_near(row: tuple[str, str], other: tuple[str, str]) -> bool:
    """Returns whether (question, answer) shares a name with the other's question, or more than half of its content words."""
    words, theirs = content_words(" ".join(row)), content_words(" ".join(other))
    if names(other[0]) & {word.lower() for word in re.findall(r"\w+", " ".join(row))}:
        return True
    return bool(words) and len(words & theirs) > len(words) / 2


def names(text: str) -> set[str]:
    """Returns capitalized words that do not begin a sentence, in lower case."""
    found = re.findall(r"(?<![.?!:]\s)(?<!^)\b[A-Z][\w'-]+", text)
    return {word.lower() for word in found} - EMPTY_WORDS


def content_words(text: str) -> set[str]:
    """Returns words in lower case, without those that every question has."""
    return set(re.findall(r"[\w'-]+", text.lower())) - EMPTY_WORDS


def _wordings(model: PreTrainedModel, encoder: Encoder, question: str, nucleus: Nucleus) -> list[str]:
    """Returns the question in fixed frames and in the model's own words; of the latter those that keep its names."""
    kept = names(question)
    own = [text for text in _sampled(model, encoder, REWORD.format(question=question), nucleus) if kept <= names(f". {text}")]
    return [frame.format(question=question) for frame in WORDINGS] + own


def _sampled(model: PreTrainedModel, encoder: Encoder, prompt: str, nucleus: Nucleus) -> list[str]:
    """Returns questions that the model writes: the lines of each draw that end in a question mark."""
    (ids,) = encoder.encode_prompts([prompt])
    drawn = sample(model, [ids], nucleus, DRAWS, **writing(model, encoder, QUESTION_TOKENS))
    texts = [decoded(encoder.tokenizer, row) for row in written(drawn[0])]
    lines = [line for text in texts for line in re.findall(r"[^\n?]{8,200}\?", str(text))]
    return list(dict.fromkeys(re.sub(r"^[\s\d.)\"'*-]+", "", line) for line in lines))


def _writer(model: PreTrainedModel, encoder: Encoder, tokens: int) -> Callable[[Sequence[str]], list[str]]:
    def write(questions: Sequence[str]) -> list[str]:
        ids = written(generate(model, encoder.encode_prompts(questions), **writing(model, encoder, tokens)))
        return [decoded(encoder.tokenizer, row).strip() for row in ids]

    return write


def _distinct(rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    seen: dict[str, tuple[str, str]] = {}
    for row in rows:
        seen.setdefault(row[1].lower(), row)
    return list(seen.values())


def _write(path: Path, rows: Sequence[tuple[str, str, str]], attribute: str) -> None:
    lines = [{"prompt": q, "response": a, "attributes": {attribute: said}} for q, a, said in rows]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
