"""Defines the interface of attacks: a frozen value with its budget, and one function from a model and facts to what was
recovered.

There are two kinds. An attack on inputs asks in other ways, or optimizes an input. An attack on the model changes weights or
activations and asks the plain questions. Each gives, for every way that it tried (a wording, a step, a format), one number for
every fact.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict

from expunge.attacks.knowledge import Facts, Floats
from expunge.attacks.target import Target
from expunge.data.example import Example
from expunge.described import Described

Need = Literal["weights", "activations", "embeddings", "original", "retain"]
"""What an attacker must have: the weights, hidden states, embeddings instead of tokens, the model before unlearning, retained
facts."""


class Preset(NamedTuple):
    """Published settings."""

    fields: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Scene:
    """Resources of an attacker besides the model: facts of the same kind, text, the model before unlearning, a seed."""

    retain: Facts
    """Facts to keep of the request; may be empty."""
    others: Facts
    """Facts of the same kind as the attacked ones: of another group, never trained on; may be empty."""
    neutral: tuple[Example, ...]
    """Text that is unrelated to the request."""
    original: Callable[[], Target] | None = None
    """The model before unlearning, opened if needed."""
    seed: int = 0


@dataclass(frozen=True)
class Way:
    """One variant of an attack."""

    label: str
    values: Floats
    """[facts], in [0, 1]: 1 if the fact was recovered, NaN if it cannot be scored."""
    note: Mapping[str, Any] = field(default_factory=dict)
    """Details, such as step, bits or layer."""


@dataclass(frozen=True)
class Found:
    """The result of an attack on one model and one set of facts."""

    ways: tuple[Way, ...]
    metric: str = "recall"
    """Name of the values."""
    before: Floats | None = None
    """[facts], the same measure without the attack, if it is not the recall of the plain questions."""
    note: Mapping[str, Any] = field(default_factory=dict)
    """Details that do not belong to a single way."""


class AttackSpec(Described):
    """Base class of attacks. Fields are the attacker's budget; class attributes explain the attack."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    paper: ClassVar[str]
    """Where the attack was published."""
    does: ClassVar[str]
    """Description in one sentence, for the list."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    presets: ClassVar[Mapping[str, Preset]] = {}
    """Settings by name, `paper` among them; the fields' defaults are the budget `small`."""

    @classmethod
    def attack_name(cls) -> str:
        """Returns the name on the command line."""
        name: str = cls.__pydantic_fields__["name"].default
        return name

    @property
    def budget(self) -> dict[str, Any]:
        """Returns the attacker's budget, as plain data."""
        return self.model_dump(mode="json", exclude={"name"})

    def not_applicable(self, target: Target, scene: Scene) -> str | None:
        """Returns why the attack does not apply; None if it does."""
        if target.kind == "guard" and (hold := sorted(self.needs & {"weights", "activations", "embeddings"})):
            return f"needs {hold[0]}; below a guard they are those of its base model, which forgot nothing, and no part of it"
        if "original" in self.needs and scene.original is None:
            return "needs the model from before it forgot; give it with --original"
        if "retain" in self.needs and len(scene.retain) < 2:
            return "needs facts that were to be kept; give them with --retain"
        return None

    def gold_only(self, scene: Scene) -> bool:
        """Returns whether only a gold model is a valid control, and never-seen facts are not."""
        return False

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        """Attacks one model, and restores its weights, hooks and mode."""
        raise TypeError(f"{type(self).__name__} defines no attack")
