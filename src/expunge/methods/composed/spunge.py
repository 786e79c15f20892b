"""SPUNGE: split the forget set, unlearn each part by itself, merge what came of it."""

import dataclasses
import warnings
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Union

from pydantic import BeforeValidator, Field

from expunge.data.example import Attribute, Request
from expunge.data.split import rows_by_attribute
from expunge.errors import ExpungeError, nearest
from expunge.methods.base import ComposedMethod, InPlaceEditing
from expunge.methods.composed.task_vector_negation import TaskVectorNegation
from expunge.methods.editing import IN_PLACE, MERGING, EditingMethod, Ties
from expunge.methods.training import RMU, TRAINING
from expunge.methods.training.base import TrainingMethod

if TYPE_CHECKING:
    PartMethod = TrainingMethod | InPlaceEditing | ComposedMethod
    MergeMethod = EditingMethod
else:
    PartMethod = Annotated[Union[(*TRAINING, *IN_PLACE, TaskVectorNegation)], Field(discriminator="name")]
    """Every method that makes weights or an adapter."""
    MergeMethod = Annotated[Union[MERGING], Field(discriminator="name")]
Parts = dict[Attribute, tuple[int, ...]]
"""Value -> rows of the forget set."""

EMBEDDINGS = "embeddings"


class Spunge(ComposedMethod):
    """Split D by an attribute into D_i;  theta_i = U(theta_0, D_i) for each, from the same start;  theta = M(theta_0; theta_i).

    U is any method that makes weights or an adapter, M any method of `expunge merge`, the paper's TIES by default. Parts are
    independent: one after the other or one process each, resumed each for itself, each with a seed of its own (and RMU with a
    direction of its own). Adapters are merged by the dense change that they make, never factor by factor.

    The paper's TIES keeps 20 % of all weights: RMU moves 2 % of them, so that nothing is trimmed but zeros, and the card says so.
    """

    paper: ClassVar[str] = "Kadhe et al. 2024, arXiv 2406.11780"
    formula: ClassVar[str] = (
        "theta = merge(theta_start; unlearn(theta_start, forget part 1), unlearn(theta_start, forget part 2), ...)"
    )
    cost: ClassVar[str] = "one run of the part's method for each part, then two passes over the weights; disk for a model a part"
    purpose: ClassVar[str] = "a forget set of several parts: one run each, then merged"
    weakness: ClassVar[str] = "as many runs as parts; disk for each"

    name: Literal["spunge"] = "spunge"
    split: str | None = None
    """Attribute whose values are the parts; left out, each forget file is a part."""
    values: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = ()
    """Make parts of these values only and leave the rows of others out; none: all values."""
    split_by_classifier: str | None = None
    """Where rows have no attribute. `embeddings`: rows whose attribute --split is known teach a logistic regression on the start
    model's hidden states, which then sorts the others, or --clusters makes the parts. Else the folder or hub id of a text
    classifier, whose labels are the parts."""
    clusters: int | None = Field(None, ge=2)
    """With `--split-by-classifier embeddings` and no attribute: this many parts, by k-means."""
    least: int = Field(8, ge=1)
    """A part with fewer rows is an error."""
    each: PartMethod = RMU()
    """The method that runs on each part, with its fields: `--each rmu --each.layer 7`."""
    merge: MergeMethod = Ties()
    """How the results are merged: `--merge ties --merge.density 0.2`."""
    write: Literal["weights", "adapter"] = "weights"
    """A complete model, or, where all parts are adapters, an adapter of --rank, the residual stated."""
    rank: int | None = Field(None, ge=1)
    """Rank of the adapter that is written."""
    processes: int = Field(1, ge=1)
    """Parts that run at a time, each in a process of its own; 1: one after the other in this one."""
    keep_parts: bool = False
    """Leave each part's artifact in RUN/parts, so that another merge needs no training; without it their records stay."""

    def require(self, request: Request) -> None:
        if self.split_by_classifier is None and self.split is None and (len(request.forget_sources) < 2 or self.values):
            raise ExpungeError(
                "spunge needs parts: --split ATTRIBUTE, several forget files, or --split-by-classifier for rows without one"
            )
        if self.clusters is not None and self.split_by_classifier != EMBEDDINGS:
            raise ExpungeError("--clusters goes with --split-by-classifier embeddings")
        if self.split_by_classifier == EMBEDDINGS and (self.split is None) == (self.clusters is None):
            raise ExpungeError("embeddings are sorted by the rows whose --split is known, or by --clusters; give one of them")
        if self.split_by_classifier is None:
            self.check(self.parts(request, [f"file {i}" for i in range(1, len(request.forget_sources) + 1)]))

    def parts(self, request: Request, sources: Sequence[str]) -> Parts:
        """By the attribute, or by the file that a row is from; `sources` are the names of the files."""
        if self.split is not None:
            return rows_by_attribute(request.forget, self.split)
        ends = [0, *accumulate(request.forget_sources)]
        return {name: tuple(range(start, stop)) for name, (start, stop) in zip(sources, pairwise(ends), strict=True)}

    def check(self, parts: Parts) -> Parts:
        """The parts that are asked for, when each has enough rows and the fields of `each` and `merge` fit so many."""
        names = {str(value): value for value in parts}
        for name in self.values:
            if name not in names:
                raise ExpungeError(f"no forget row has '{name}'{nearest(name, names)} for {self.split}; it is {', '.join(names)}")
        chosen = {names[name]: parts[names[name]] for name in self.values} if self.values else parts
        small = [f"'{value}' has {len(rows)}" for value, rows in chosen.items() if len(rows) < self.least]
        if small:
            raise ExpungeError(
                f"parts need at least {self.least} rows, but {', '.join(small)}; leave values out by --values, or lower --least"
            )
        if len(chosen) < 2:
            warnings.warn(
                f"all rows are of one part, '{next(iter(chosen))}': this is {self.each.method_name()} and a merge of one model",
                UserWarning,
                stacklevel=2,
            )
        self.merge.check(len(chosen))
        for i in range(len(chosen)):
            self.method_of(i, len(chosen))
        return chosen

    def method_of(self, part: int, parts: int) -> PartMethod:
        return self.each.for_part(part, parts) if isinstance(self.each, RMU) else self.each


def part_request(request: Request, rows: tuple[int, ...]) -> Request:
    """What a part's run is asked."""
    return dataclasses.replace(request, forget=tuple(request.forget[row] for row in rows), forget_sources=(len(rows),))
