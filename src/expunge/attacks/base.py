"""Defines the interface of attacks: a frozen value with its budget, and one function from a model and facts to what was
recovered.

Two shapes follow one contract. An attack on inputs leaves the model alone and asks in other ways, or optimizes an input. An
attack on the model changes weights or activations and asks the plain questions. Each gives, for every way that it tried (a
wording, a step, a format), one number for every fact.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from expunge.attacks.knowledge import Facts, Floats
from expunge.attacks.target import Target
from expunge.data.example import Example

Need = Literal["weights", "activations", "embeddings", "original", "retain"]
"""What an attacker has to hold: the weights, hidden states, embeddings instead of tokens, the model from before, facts that
were kept."""


class Preset(NamedTuple):
    """Published settings."""

    fields: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Scene:
    """What an attacker has beside the model: facts of the same kind, text, the model from before, a seed."""

    retain: Facts
    """Facts that the request wanted to keep. May be empty."""
    others: Facts
    """Facts of the same kind beside those that are attacked: of another group, never trained on. May be empty."""
    neutral: tuple[Example, ...]
    """Text that has nothing to do with the request."""
    original: Callable[[], Target] | None = None
    """The model before it forgot, opened when it is needed."""
    seed: int = 0


@dataclass(frozen=True)
class Way:
    """One way in which an attack was tried."""

    label: str
    values: Floats
    """[facts], in [0, 1]: 1 where the fact came back, NaN where it cannot be scored."""
    note: Mapping[str, Any] = field(default_factory=dict)
    """Step, bits, layer ...: what else is to be known of it."""


@dataclass(frozen=True)
class Found:
    """What an attack found out on one model and one set of facts."""

    ways: tuple[Way, ...]
    metric: str = "recall"
    """What `values` are."""
    before: Floats | None = None
    """[facts], the same measure without the attack, where that is not the recall of the plain questions."""
    note: Mapping[str, Any] = field(default_factory=dict)
    """What concerns no single way."""


class AttackSpec(BaseModel):
    """Fields are the attacker's budget (attribute docstrings explain them); class attributes explain the attack."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    paper: ClassVar[str]
    """Who attacked so."""
    does: ClassVar[str]
    """One sentence for the list."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    presets: ClassVar[Mapping[str, Preset]] = {}
    """Settings by name, `paper` among them; the fields' defaults are the budget `small`."""

    @classmethod
    def attack_name(cls) -> str:
        """The word on the command line."""
        name: str = cls.model_fields["name"].default
        return name

    @property
    def budget(self) -> dict[str, Any]:
        """What the attacker was allowed, as plain data."""
        return self.model_dump(mode="json", exclude={"name"})

    def not_applicable(self, target: Target, scene: Scene) -> str | None:
        """Why the attack has nothing to hold on to; None where it applies."""
        if target.kind == "guard" and (hold := sorted(self.needs & {"weights", "activations", "embeddings"})):
            return f"needs {hold[0]}; below a guard they are those of its base model, which forgot nothing, and no part of it"
        if "original" in self.needs and scene.original is None:
            return "needs the model from before it forgot; give it with --original"
        if "retain" in self.needs and len(scene.retain) < 2:
            return "needs facts that were to be kept; give them with --retain"
        return None

    def gold_only(self, scene: Scene) -> bool:
        """Whether facts that the model never saw are no control, so that only a gold model is."""
        return False

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        """Attacks one model. The weights, hooks and mode of the model are afterwards what they were before."""
        raise TypeError(f"{type(self).__name__} defines no attack")
