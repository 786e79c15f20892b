"""Evolve: evolves wordings of the question by how much they recover, under a budget of queries. Needs only answers."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from expunge.attacks.base import AttackSpec, Found, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, halves, words
from expunge.attacks.prefix import BEFORE
from expunge.attacks.rephrase import TEMPLATES
from expunge.attacks.target import Target

HOLE = "{question}"


class Evolve(AttackSpec):
    """Evolves templates: words are inserted, removed and replaced before and after the question, and two templates are
    crossed. The fitness of a template is the mean recall on some facts of one half; the best is scored on the other half."""

    paper: ClassVar[str] = "REBEL (@5c9a667): evolution of prompts against unlearned models"
    does: ClassVar[str] = "breeds wordings under a budget of queries"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            {"mutations": (1500, 80, 50, 40, 40), "survivors": (20, 12, 8, 5, 3)}, "REBEL @5c9a667: 5 rounds, survivors 20 to 3"
        ),
        "rebel": Preset(
            {"mutations": (1500, 80, 50, 40, 40), "survivors": (20, 12, 8, 5, 3)}, "REBEL @5c9a667: 5 rounds, survivors 20 to 3"
        ),
    }

    name: Literal["evolve"] = "evolve"
    mutations: tuple[int, ...] = Field((16, 8, 8), min_length=1)
    """Number of new templates in each round."""
    survivors: tuple[int, ...] = Field((4, 3, 1), min_length=1)
    """Number of templates kept after each round."""
    asked: int = Field(12, gt=0)
    """Number of facts on which a template is tried."""

    @model_validator(mode="after")
    def _rounds(self) -> "Evolve":
        if len(self.mutations) != len(self.survivors) or min(*self.mutations, *self.survivors) < 1:
            raise ValueError("mutations and survivors need one number from 1 on for each round")
        return self

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        values = np.full(len(facts), np.nan)
        chosen = []
        for shown, scored in halves(facts):
            best = self._bred(target, facts.some(shown[: self.asked]), scene)
            chosen.append(best)
            mine = facts.some(scored)
            values[scored] = target.recall(mine, [best.replace(HOLE, question) for question in mine.questions])
        return Found((Way("best template", values),), note={"templates": chosen})

    def _bred(self, target: Target, facts: Facts, scene: Scene) -> str:
        rng = np.random.default_rng(scene.seed)
        vocabulary = sorted(
            {word for e in (*scene.neutral, *scene.retain.examples) for word in words(f"{e.prompt or ''} {e.response}")}
        )
        vocabulary = vocabulary or ["please", "answer", "now"]
        seeds = [HOLE, *TEMPLATES["question"], *TEMPLATES["role"], *(f"{text} {HOLE}" for text in BEFORE)]
        fitness = {template: self._fitness(target, facts, template) for template in seeds}
        for count, kept in zip(self.mutations, self.survivors, strict=True):
            parents = sorted(fitness, key=lambda template: -fitness[template])
            for _ in range(count):
                child = _child(parents[: max(2, kept)], vocabulary, rng)
                if child not in fitness:
                    fitness[child] = self._fitness(target, facts, child)
            fitness = {template: fitness[template] for template in sorted(fitness, key=lambda t: -fitness[t])[:kept]}
        return max(fitness, key=lambda template: fitness[template])

    def _fitness(self, target: Target, facts: Facts, template: str) -> float:
        found = target.recall(facts, [template.replace(HOLE, question) for question in facts.questions])
        return float(np.nan_to_num(found).mean())


def _child(parents: Sequence[str], vocabulary: Sequence[str], rng: np.random.Generator) -> str:
    """Returns a parent with one change, or two parents crossed at the question."""
    mother = parents[int(rng.integers(len(parents)))]
    before, _, after = mother.partition(HOLE)
    kind = int(rng.integers(4))
    if kind == 3:
        father = parents[int(rng.integers(len(parents)))]
        return f"{before}{HOLE}{father.partition(HOLE)[2]}"
    side = before.split() if rng.random() < 0.7 else after.split()
    is_before = side == before.split()
    at = int(rng.integers(len(side) + 1))
    word = vocabulary[int(rng.integers(len(vocabulary)))]
    changed = [*side[:at], word, *side[at:]] if kind == 0 or not side else [*side[:at], *side[at + 1 :]]
    if kind == 2 and side:
        at = min(at, len(side) - 1)
        changed = [*side[:at], word, *side[at + 1 :]]
    text = " ".join(changed)
    return f"{text} {HOLE}{after}".strip() if is_before else f"{before}{HOLE} {text}".strip()
