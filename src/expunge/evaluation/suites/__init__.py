"""Lists all suites."""

from dataclasses import replace
from pathlib import Path

from expunge.errors import ExpungeError, MissingData, nearest
from expunge.evaluation.suites.base import SuiteSpec, scored_model
from expunge.evaluation.suites.behavior import Behavior
from expunge.evaluation.suites.choices import Arc, Choices
from expunge.evaluation.suites.copyright import Copyright
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
from expunge.evaluation.suites.truthfulness import Truthfulness
from expunge.evaluation.suites.wmdp import Wmdp
from expunge.evaluation.task import Suite

SUITES: dict[str, type[SuiteSpec]] = {
    cls.suite_name(): cls
    for cls in (
        *(Tofu, Muse, Lab, Memorization, Membership, Custom, Wmdp, ToxicCompletions),
        *(Truthfulness, Behavior, Copyright),
        *(Skills, Mmlu, Arc, Choices, SpungeGeneral, LmEval),
    )
}

__all__ = [
    "SUITES",
    "Arc",
    "Behavior",
    "Choices",
    "Copyright",
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
    "Truthfulness",
    "Wmdp",
    "built",
    "suite_class",
]


def suite_class(name: str) -> type[SuiteSpec]:
    """Returns the suite of that name. Raises ExpungeError, with the nearest name, for an unknown one."""
    if name not in SUITES:
        raise ExpungeError(f"there is no suite '{name}'{nearest(name, SUITES)}; `expunge suites` lists them all")
    return SUITES[name]


def built(spec: SuiteSpec, data: str | Path | None) -> Suite:
    """Builds the suite from its data: a folder, or None where the suite's options name all files.

    Raises ExpungeError if data is missing, with a list of what the suite reads, or if a custom suite has the name of one of
    these.
    """
    if data is None and not spec.names_all_files():
        raise ExpungeError(f"the suite {spec.suite_name()} needs its data: {spec.layout}; give it with --data")
    try:
        suite = spec.build(data or "")
    except MissingData as error:
        raise ExpungeError(f"{error}; the suite {spec.suite_name()} reads {spec.layout}") from error
    if suite.name in SUITES and suite.name != spec.suite_name():
        raise ExpungeError(f"{data}: the suite '{suite.name}' is one of expunge's own; give the file another `name`")
    given = {"retain_scores": getattr(spec, "retain_scores", None), "reference_scores": getattr(spec, "reference_scores", None)}
    found = {option: scored_model(place, suite.name) for option, place in given.items() if place is not None}
    return replace(suite, others={option: sha256 for option, sha256 in found.items() if sha256 is not None})
