"""`expunge methods [NAME]`."""

import inspect
import shutil
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ConfigDict
from tyro.conf import Positional

from expunge.described import Described

if TYPE_CHECKING:
    from expunge.methods.base import Spec

NARROWEST, WIDEST = 60, 120


class Group(NamedTuple):
    """Methods that change a model in the same way."""

    title: str
    families: tuple[str, ...]
    explanation: str


START = (
    (
        "people, or other names that stand in each question",
        "whp",
        "--holdout rows about strangers, whose names it borrows, and --steps 500",
    ),
    (
        "facts about people, works or events, and the weights",
        "gradient_difference, then npo or simnpo",
        "--retain with neighbours",
    ),
    ("a refusal instead of an answer", "idk or dpo", "the fact stays in the weights; say so"),
    ("a hazardous domain (texts, questions)", "rmu", "spunge around it where the domain has parts"),
    ("any request, weights must not change", "embedding_corruption", "a guard, not forgetting; --retain with your own traffic"),
    ("a skill or a language, weights must not change", "key_space (queries alike) or neuron_adjust", "a guard, not forgetting"),
    ("a skill, as a plain model without hooks", "selective_pruning", "check what else went with it"),
    (
        "a behaviour (rude, toxic, untruthful)",
        "task_vector_negation, ext_sub_pipeline or sku",
        "the first needs bad answers only, the others good ones as well (--retain)",
    ),
    ("two adapters, good and bad behaviour", "expunge merge ext_sub", "seconds, no base model needed"),
    ("only an API and no weights", "none", "every command needs the weights, `expunge evaluate` too"),
)
"""(what the user has, first method to try, what to know)."""

GROUPS = (
    Group("Train it away", ("training",), "Changes weights (or an adapter, with --lora) by gradient steps on the examples."),
    Group("In stages", ("composed",), "Several runs that become one artifact."),
    Group(
        "Edit the weights",
        ("editing",),
        "No loop: arithmetic on weights or adapters, pruning, one straight step. Most are `expunge merge`.",
    ),
    Group(
        "Guard the model", ("guarding",), "Weights stay as they are; hooks keep answers back. Whoever has the weights has it all."
    ),
)


class Methods(Described):
    """List the methods, with a first recommendation, or explain one: paper, formula, fields, cost."""

    model_config = ConfigDict(frozen=True)

    name: Positional[str | None] = None
    """A method's name; default: list all."""


def run(flags: Methods) -> None:
    from expunge.methods import method_class
    from expunge.methods.base import ComposedMethod
    from expunge.methods.training.base import TrainingMethod

    if flags.name is None:
        print(listing(min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)))
        return
    cls = method_class(flags.name)
    print(f"{flags.name} ({cls.family})\n\n{inspect.getdoc(cls)}\n")
    print(f"for      {cls.purpose}\nweakness {cls.weakness}")
    print(f"paper    {cls.paper}\nformula  {cls.formula}\ncost     {cls.cost}")
    if issubclass(cls, TrainingMethod):
        print(f"rate     {_rates(cls.learning_rate)}")
    elif issubclass(cls, ComposedMethod):
        print(f"rate     {_rates(cls.stage_rate) if cls.stage_rate else 'that of the method of --each'}")
    print()
    for field, info in cls.model_fields.items():
        if field != "name":
            default = info.get_default(call_default_factory=True)
            print(f"--{field.replace('_', '-')} (default {'none' if default is None else default})\n    {info.description}")


def _rates(usual: float) -> str:
    """Describes the default learning rate at a few model sizes."""
    from expunge.training.defaults import USUAL_SIZE, scaled_rate

    sizes = {"7 billion": int(USUAL_SIZE), "1 billion": 10**9, "100 million": 10**8, "1 million": 10**6}
    rates = ", ".join(f"{scaled_rate(usual, n, lora=False):g} at {said}" for said, n in sizes.items())
    return f"{rates} weights; ten times as much with --lora"


def listing(width: int) -> str:
    """Lists recommendations, then every method by group: its purpose, weakness and cost."""
    from expunge.methods import METHODS

    lines = ["Start with:"]
    for have, method, note in START:
        lines += _wrapped(f"{have}: {method} ({note})", width, "  ", "    ")
    for group in GROUPS:
        lines += ["", f"{group.title}. {group.explanation}"] if width >= WIDEST else ["", f"{group.title}."]
        for name, cls in METHODS.items():
            if cls.family in group.families:
                lines += _entry(name, cls, width)
    return "\n".join([*lines, "", "`expunge methods NAME` explains one: paper, formula, fields."])


def _entry(name: str, cls: type["Spec"], width: int) -> list[str]:
    return [
        *_wrapped(f"{name}: {cls.purpose}", width, "  ", "      "),
        *_wrapped(f"weakness: {cls.weakness}. cost: {cls.cost}", width, "      ", "      "),
    ]


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest)
