"""Reports a merge: one row per tensor, totals, and the sentences that the command prints."""

import math
from pathlib import Path

from expunge.folders import size_text
from expunge.merging.plan import Plan
from expunge.records import Record


class TensorReport(Record):
    """One row of tensors.jsonl."""

    name: str
    elements: int
    changed: tuple[int, ...]
    """Models whose tensor differs from the base."""
    kept: tuple[int, ...]
    """Entries of each of them that were kept; empty for methods that do not sparsify."""
    outvoted: int
    """Kept entries that lost the sign election."""
    distances: tuple[float, ...]
    """Euclidean norm of each of them minus the base, untrimmed; empty for methods that interpolate weights."""
    change: float
    """Euclidean norm of new minus base weights."""
    base: float
    """Euclidean norm of the base weights; 0 if the tensor was copied unread."""
    residual: float | None = None
    """For an adapter: error of its rank, relative to the norm of the change."""


class MergeResult(Record):
    """The content of merge.json: what a merge of models made, and what it cost."""

    out: Path
    method: str
    models: tuple[str, ...]
    seconds: float
    elements: int
    """Merged weights of one model."""
    changed_elements: tuple[int, ...]
    """For each model: weights in tensors that differ from the base."""
    kept: tuple[int, ...] | None
    """For each model: differences that were kept; null for methods that do not sparsify."""
    outvoted: int
    change: float
    """Euclidean norm of new minus base weights, relative to that of the base weights in changed tensors."""
    residual: float | None
    """For an adapter: error of the rank, relative to the norm of the change."""
    copied: int
    """Tensors that no model changes."""
    merged: int
    """Tensors that were computed."""
    written_bytes: int
    resumed: int
    """Tensors that an earlier, interrupted run had finished."""
    notes: tuple[str, ...]
    plan: str
    """Fingerprint of settings and input files, by which a resumed merge that is already complete is recognized."""

    def sentences(self) -> str:
        """Describes the result in sentences."""
        lines = [
            f"{self.method}: {self.merged} tensors merged, {self.copied} copied, "
            f"{size_text(self.written_bytes)} in {self.seconds:.1f} s"
        ]
        for i, (model, changed) in enumerate(zip(self.models, self.changed_elements, strict=True)):
            said = f"  {model}: differs from the base in {_percent(changed, self.elements)} of the weights"
            if self.kept is not None:
                said += f"; kept {_percent(self.kept[i], self.elements)} of all, {_percent(self.kept[i], changed)} of those"
                said += " (nothing but zeros was trimmed)" if changed and self.kept[i] > 0.999 * changed else ""
            lines.append(said)
        if self.outvoted and self.kept:
            lines.append(f"  {_percent(self.outvoted, sum(self.kept))} of the kept entries lost the election of their sign")
        lines.append(f"  the changed tensors moved by {100 * self.change:.3g} % of their norm")
        if self.residual is not None:
            lines.append(f"  the adapter's rank leaves out {100 * self.residual:.3g} % of the change (norm)")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def total(
    plan: Plan,
    out: Path,
    rows: list[TensorReport],
    *,
    copied: int,
    seconds: float,
    written_bytes: int,
    resumed: int,
    fingerprint: str,
) -> MergeResult:
    """Sums over tensors, in their order."""
    models = plan.request.models
    changed, kept = [0] * len(models), [0] * len(models)
    for row in rows:
        for i, model in enumerate(row.changed):
            changed[model] += row.elements
            kept[model] += row.kept[i] if row.kept else 0
    change, base = (math.sqrt(sum(getattr(row, field) ** 2 for row in rows)) for field in ("change", "base"))
    left_out = math.sqrt(sum((row.residual * row.change) ** 2 for row in rows if row.residual is not None))
    return MergeResult(
        out=out,
        method=plan.request.method.method_name(),
        models=models,
        seconds=round(seconds, 3),
        elements=plan.elements,
        changed_elements=tuple(changed),
        kept=tuple(kept) if any(row.kept for row in rows) else None,
        outvoted=sum(row.outvoted for row in rows),
        change=change / base if base else 0.0,
        residual=(left_out / change if change else 0.0) if any(row.residual is not None for row in rows) else None,
        copied=copied,
        merged=len(rows),
        written_bytes=written_bytes,
        resumed=resumed,
        notes=plan.notes,
        plan=fingerprint,
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "0 %"
