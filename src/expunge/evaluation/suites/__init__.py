"""The closed list of suites."""

from expunge.errors import ExpungeError, nearest
from expunge.evaluation.suites.base import SuiteSpec
from expunge.evaluation.suites.lab import Lab
from expunge.evaluation.suites.tofu import Tofu

SUITES: dict[str, type[SuiteSpec]] = {cls.suite_name(): cls for cls in (Tofu, Lab)}

__all__ = ["SUITES", "Lab", "SuiteSpec", "Tofu", "suite_class"]


def suite_class(name: str) -> type[SuiteSpec]:
    """The suite of that name."""
    if name not in SUITES:
        raise ExpungeError(f"there is no suite '{name}'{nearest(name, SUITES)}; `expunge suites` lists them all")
    return SUITES[name]
