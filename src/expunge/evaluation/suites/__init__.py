"""The closed list of suites."""

from expunge.errors import ExpungeError, nearest
from expunge.evaluation.suites.base import SuiteSpec
from expunge.evaluation.suites.choices import Arc, Choices
from expunge.evaluation.suites.custom import Custom
from expunge.evaluation.suites.general import LmEval, SpungeGeneral
from expunge.evaluation.suites.lab import Lab
from expunge.evaluation.suites.membership import Membership
from expunge.evaluation.suites.memorization import Memorization
from expunge.evaluation.suites.mmlu import Mmlu
from expunge.evaluation.suites.muse import Muse
from expunge.evaluation.suites.skills import Skills
from expunge.evaluation.suites.tofu import Tofu
from expunge.evaluation.suites.toxicity import ToxicCompletions
from expunge.evaluation.suites.wmdp import Wmdp

SUITES: dict[str, type[SuiteSpec]] = {
    cls.suite_name(): cls
    for cls in (
        *(Tofu, Muse, Lab, Memorization, Membership, Custom, Wmdp, ToxicCompletions),
        *(Skills, Mmlu, Arc, Choices, SpungeGeneral, LmEval),
    )
}

__all__ = [
    "SUITES",
    "Arc",
    "Choices",
    "Custom",
    "Lab",
    "LmEval",
    "Membership",
    "Memorization",
    "Mmlu",
    "Muse",
    "Skills",
    "SpungeGeneral",
    "SuiteSpec",
    "Tofu",
    "ToxicCompletions",
    "Wmdp",
    "suite_class",
]


def suite_class(name: str) -> type[SuiteSpec]:
    """The suite of that name."""
    if name not in SUITES:
        raise ExpungeError(f"there is no suite '{name}'{nearest(name, SUITES)}; `expunge suites` lists them all")
    return SUITES[name]
