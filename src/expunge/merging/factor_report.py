"""Reports an adapter merge: one row per module, totals, and the sentences that the command prints."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expunge.methods.editing.factors import AdapterMethod
from expunge.records import Record

PARALLEL, ORTHOGONAL = 0.95, 0.05
"""Cosines of the two changes outside of which Ext-Sub has little to extract, or little to subtract."""


class ModuleReport(Record):
    """One row of modules.jsonl."""

    name: str
    rank: int
    """Rank of the product; 0 for adapters that are not products."""
    expert: float
    """Euclidean norm of the expert's change, including its scaling."""
    anti: float
    dot: float
    """<W+, W->."""
    norm: float
    """Euclidean norm of the new adapter's change."""
    residual: float
    """Error of the reduced rank, relative to the norm of the change."""
    only_anti: int
    """Number of rows that the anti-expert changes and the expert does not."""
    rows: int


class AdapterResult(Record):
    """The content of merge.json: what a merge of two adapters made."""

    out: Path
    method: str
    models: tuple[str, ...]
    seconds: float
    modules: int
    rank: int
    """The largest rank of the result; 0 for adapters that are not products."""
    cosine: float | None
    """Cosine between the two changes, over all modules; null if one of them is zero."""
    expert: float
    """Euclidean norm of the expert's change."""
    anti: float
    norm: float
    """Euclidean norm of the result's change."""
    residual: float
    """Error of --rank, relative to the norm of the whole change."""
    written_bytes: int
    notes: tuple[str, ...]

    def sentences(self) -> str:
        """Describes the result in sentences."""
        rank = f", rank {self.rank}" if self.rank else ""
        said = "" if self.cosine is None else f"; cosine between the two {self.cosine:.3f}"
        lines = [
            f"{self.method}: {self.modules} modules{rank}, {self.written_bytes / 1e6:.3g} MB in {self.seconds:.1f} s",
            f"  norms: expert {self.expert:.4g}, anti-expert {self.anti:.4g}, result {self.norm:.4g}{said}",
        ]
        if self.residual:
            lines.append(f"  the rank leaves out {100 * self.residual:.3g} % of the change (norm)")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def cosine(rows: Sequence[ModuleReport]) -> float | None:
    expert, anti = (math.sqrt(sum(getattr(row, field) ** 2 for row in rows)) for field in ("expert", "anti"))
    return sum(row.dot for row in rows) / (expert * anti) if expert and anti else None


def check_contrast(method: AdapterMethod, rows: Sequence[ModuleReport]) -> list[str]:
    """Returns warnings: adapters too similar or too different for the method, rows that it drops."""
    notes: list[str] = []
    found = cosine(rows) if method.wants_contrast else None
    if found is not None and abs(found) > PARALLEL:
        what = "nearly parallel, so that almost nothing is subtracted" if found > 0 else "nearly opposite"
        notes.append(
            f"expert and anti-expert are {what} (cosine {found:.3f}); {method.method_name()} wants data in strong contrast"
        )
    elif found is not None and abs(found) < ORTHOGONAL:
        notes.append(
            f"expert and anti-expert are nearly orthogonal (cosine {found:.3f}), so that they share little to extract; "
            "train both on the same prompts, from the same seed"
        )
    if (only := sum(row.only_anti for row in rows)) and method.wants_contrast:
        notes.append(f"{only} of {sum(row.rows for row in rows)} rows are changed by the anti-expert alone (--zero-expert)")
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=3)
    return notes


def total(
    method: AdapterMethod,
    models: tuple[str, ...],
    out: Path,
    rows: Sequence[ModuleReport],
    notes: Sequence[str],
    tensors: Mapping[str, NDArray[np.float32]],
    seconds: float,
) -> AdapterResult:
    expert, anti, norm = (math.sqrt(sum(getattr(row, field) ** 2 for row in rows)) for field in ("expert", "anti", "norm"))
    # of each module: whole^2 = kept^2 + (residual whole)^2
    wholes = [(row.norm**2 / (1 - row.residual**2) if row.residual < 1 else 0.0, row.residual) for row in rows]
    whole = sum(square for square, _ in wholes)
    return AdapterResult(
        out=out,
        method=method.method_name(),
        models=models,
        seconds=round(seconds, 3),
        modules=len(rows),
        rank=max(row.rank for row in rows),
        cosine=cosine(rows),
        expert=expert,
        anti=anti,
        norm=norm,
        residual=math.sqrt(sum(square * left**2 for square, left in wholes) / whole) if whole else 0.0,
        written_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        notes=tuple(notes),
    )
