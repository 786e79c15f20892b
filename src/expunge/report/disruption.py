"""Shows how much each run changed the model on neutral text, so that methods can be read at an equal budget of disruption."""

from collections.abc import Sequence

from expunge.report.read import RunRecord
from expunge.report.tables import DASH, Cell


def measured(run: RunRecord) -> bool:
    return _moved(run, "disruption_kl") is not None


def disruption(run: RunRecord) -> Cell:
    """Makes a cell of KL(start || model), in nats per token of neutral text, and of the budget that the run was held to."""
    value, budget = _moved(run, "disruption_kl"), _moved(run, "disruption_budget")
    if value is None:
        return Cell(DASH, note="it was run without --neutral and --disruption-budget")
    return Cell(f"{value:.3g}", "no budget" if budget is None else f"budget {budget:g}", value)


def unequal_disruption(runs: Sequence[RunRecord]) -> list[str]:
    """Returns a sentence if runs were held to different budgets: what they forgot cannot be compared."""
    budgets: dict[str, list[str]] = {}
    for run in filter(measured, runs):
        budget = _moved(run, "disruption_budget")
        budgets.setdefault("no budget" if budget is None else f"{budget:g} nats per token", []).append(run.name)
    if len(budgets) < 2:
        return []
    said = "; ".join(f"{', '.join(names)}: {budget}" for budget, names in budgets.items())
    return [f"the runs had different disruption budgets ({said}): compare methods only among runs of one budget"]


def _moved(run: RunRecord, name: str) -> float | None:
    value = run.provenance.settings.get(name) if run.provenance else None
    return float(value) if isinstance(value, int | float) else None
