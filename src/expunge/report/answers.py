"""Selects sample answers of the models for each task, by hash, so that they are not cherry-picked."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from expunge.records import Role, Sample
from expunge.report.glossary import task_label
from expunge.report.read import RunRecord

SHOWN = 4


class QuotedAnswer(NamedTuple):
    models: tuple[str, ...]
    """All models that gave this answer."""
    who: str
    """The same in few words: `all models`, `all but idk`, or the names."""
    text: str
    right: bool


class Question(NamedTuple):
    id: str
    prompt: str
    expected: str
    answers: tuple[QuotedAnswer, ...]


class AnswerSet(NamedTuple):
    task: str
    forget: bool
    questions: tuple[Question, ...]
    total: int
    """Number of samples whose texts are stored."""


def answer_sets(suite: str, models: Sequence[RunRecord], show_forget_text: bool) -> list[AnswerSet]:
    """Returns sample answers on the tasks to forget and to retain, by their roles.

    Texts of forget tasks, and texts without a role, are left out even if they are stored, unless `show_forget_text` is set. A
    task that was to be forgotten by one of the models is secret for all of them.
    """
    texts = {model.name: _texts(model.samples.get(suite, ())) for model in models}
    secret, kept = _secret(suite, models), _with_role(suite, models, "retain")
    shown = [*(secret if show_forget_text else []), *(task for task in kept if task not in secret)]
    sets = []
    for task in shown:
        asked = (i for found in texts.values() for (t, i), text in found.items() if t == task and "generated" in text)
        ids = sorted(set(asked))
        if not ids:
            continue
        questions = tuple(_question(task, i, texts) for i in ids[:SHOWN])
        sets.append(AnswerSet(task_label(task), task in secret, questions, len(ids)))
    return sets


def withheld(suite: str, models: Sequence[RunRecord], show_forget_text: bool) -> bool:
    """Returns whether texts of forget tasks are stored but not shown."""
    secret = _secret(suite, models)
    return not show_forget_text and any(s.text and s.task in secret for m in models for s in m.samples.get(suite, ()))


def _secret(suite: str, models: Sequence[RunRecord]) -> list[str]:
    return [*_with_role(suite, models, "forget"), *_with_role(suite, models, None)]


def _with_role(suite: str, models: Sequence[RunRecord], role: Role | None) -> list[str]:
    """Returns the tasks that have a role for any of the models, in their order."""
    return list(dict.fromkeys(s.task for model in models for s in model.samples.get(suite, ()) if s.role == role))


def _texts(samples: Iterable[Sample]) -> dict[tuple[str, str], dict[str, str]]:
    """Returns (task, id) -> texts. A model that answered nothing has no `generated`."""
    return {(s.task, s.id): s.text for s in samples if s.text and "prompt" in s.text}


def _question(task: str, sample: str, texts: dict[str, dict[tuple[str, str], dict[str, str]]]) -> Question:
    known = {name: found[task, sample] for name, found in texts.items() if (task, sample) in found}
    one = next(iter(known.values()))
    expected = one.get("expected", "")
    by_text: dict[str, list[str]] = {}
    for name, found in known.items():
        by_text.setdefault(found.get("generated", "").strip(), []).append(name)
    answers = tuple(
        QuotedAnswer(tuple(names), _who(names, list(known)), text, _same(text, expected)) for text, names in by_text.items()
    )
    return Question(sample, one["prompt"], expected, answers)


def _who(names: Sequence[str], known: Sequence[str]) -> str:
    others = [name for name in known if name not in names]
    if not others and len(known) > 1:
        return "all models"
    return f"all but {', '.join(others)}" if len(others) < 3 < len(names) else ", ".join(names)


def _same(text: str, expected: str) -> bool:
    return " ".join(text.casefold().split()) == " ".join(expected.casefold().split())
