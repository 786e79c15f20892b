"""In context: puts examples of answers, or related facts, before the question."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from expunge.attacks.base import AttackSpec, Found, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, Floats, words
from expunge.attacks.target import Target


class InContext(AttackSpec):
    """Few-shot (kept questions with their answers before the question) and the domain (other answers about the same subject),
    each also as cloze: the model goes on with the answer's beginning.

    Open book (the fact itself in the context) is not an attack, since the answer is an echo. It is recorded, because a model that
    cannot even repeat the fact from its context is damaged, so that failing without it proves little.
    """

    paper: ClassVar[str] = "EleutherAI/unlearn, in-context evaluations; Shumailov et al. 2024 (arXiv 2407.00106)"
    does: ClassVar[str] = "puts answered questions or related facts before the question"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset({"shots": 16, "related": 32}, "EleutherAI/unlearn: 16 shots, 32 abstracts")
    }

    name: Literal["in_context"] = "in_context"
    shots: int = Field(4, gt=0)
    """Number of retained questions with answers before the question."""
    related: int = Field(3, gt=0)
    """Number of other answers about the same subject before the question."""

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        contexts = {"related": [self._related(facts, i) for i in range(len(facts))]}
        if len(scene.retain):
            contexts["few-shot"] = [self._shots(facts, scene.retain, i) for i in range(len(facts))]
        ways = []
        for name, before in contexts.items():
            prompts = [f"{text}{question}" for text, question in zip(before, facts.questions, strict=True)]
            ways.append(Way(name, target.recall(facts, prompts)))
            ways.append(Way(f"{name}, cloze", begun(target, facts, prompts)))
        book = [f"{example.response} . {example.prompt}" for example in facts.examples]
        texts = target.ask(book)
        read = [set(facts.words(i, facts.questions[i])) <= set(words(text or "")) for i, text in enumerate(texts)]
        return Found(tuple(ways), note={"open_book": round(float(np.mean(read)), 4)})

    def _shots(self, facts: Facts, retain: Facts, i: int) -> str:
        """Returns retained questions with answers that do not contain the fact's words."""
        mine = set(facts.words(i, facts.questions[i]))
        order = [retain.examples[(7 * i + k) % len(retain)] for k in range(len(retain))]
        usable = [example for example in order if not mine & set(words(example.response))]
        return "".join(f"{example.prompt} {example.response} . " for example in usable[: self.shots])

    def _related(self, facts: Facts, i: int) -> str:
        """Returns other answers about the same subject: the same `person`, `topic` or `group`, else the neighbouring rows of
        the file."""
        mine = set(facts.words(i, facts.questions[i]))
        subject = facts.subject(i)
        same = [k for k in range(len(facts)) if k != i and subject is not None and facts.subject(k) == subject]
        near = same or [k for k in range(max(0, i - self.related), min(len(facts), i + self.related + 1)) if k != i]
        usable = [facts.examples[k].response for k in near if not mine & set(words(facts.examples[k].response))]
        return "".join(f"{text} . " for text in usable[: self.related])


def begun(target: Target, facts: Facts, prompts: list[str]) -> Floats:
    """Computes [facts], the recall if each answer's beginning, up to its first word that counts, follows the prompt."""
    found = np.full(len(facts), np.nan)
    chosen = [i for i, fits in enumerate(target.fits(prompts)) if fits]
    rows = target.encoder.encode_answers([(prompts[i], facts.examples[i].response) for i in chosen])
    begins = [row.ids[: row.answer_start + target.first(facts, i, row)] for i, row in zip(chosen, rows, strict=True)]
    for i, text in zip(chosen, target.go_on(begins), strict=True):
        if text is not None:
            found[i] = facts.recall(i, prompts[i], text)
    return found
