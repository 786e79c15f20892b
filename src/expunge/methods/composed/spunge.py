"""SPUNGE: splits the forget set, unlearns each part from the same start model, and merges the results."""

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
"""Attribute value -> rows of the forget set."""

EMBEDDINGS = "embeddings"


class Spunge(ComposedMethod):
    """Split D by an attribute into D_i;  theta_i = U(theta_0, D_i) for each, from the same start;  theta = M(theta_0; theta_i).

    U is any method that gives weights or an adapter, M any method of `expunge merge` (TIES by default, as in the paper). Parts
    are independent: run one after the other or in one process each, resumed separately, each with its own seed (and RMU with
    its own random direction). Adapters are merged by the dense change of the weights that they make, never factor by factor.

    The paper's TIES keeps 20 % of all weights. RMU changes 2 % of them, so that only zeros are trimmed; the card says so.
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
    """Attribute whose values define the parts; without it, each forget file is a part."""
    values: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = ()
    """Use only the rows with these values of the attribute; without it, all values."""
    split_by_classifier: str | None = None
    """For rows without the attribute. `embeddings`: a logistic regression on the start model's hidden states, trained on the
    rows whose attribute --split is known, labels the others; with --clusters, k-means makes the parts. Otherwise the folder or
    hub id of a text classifier, whose labels are the parts."""
    clusters: int | None = Field(None, ge=2)
    """With `--split-by-classifier embeddings` and no attribute: the number of parts, found by k-means."""
    least: int = Field(8, ge=1)
    """Smallest number of rows in a part; a smaller part is an error."""
    each: PartMethod = Field(default_factory=RMU)
    """The method that runs on each part, with its fields: `--each rmu --each.layer 7`."""
    merge: MergeMethod = Field(default_factory=Ties)
    """How the results are merged: `--merge ties --merge.density 0.2`."""
    write: Literal["weights", "adapter"] = "weights"
    """Write a complete model or, if all parts are adapters, an adapter of rank --rank; the approximation error is reported."""
    rank: int | None = Field(None, ge=1)
    """Rank of the adapter that is written."""
    processes: int = Field(1, ge=1)
    """Number of parts that run at a time, each in its own process; 1: one after the other in this process."""
    keep_parts: bool = False
    """Keep each part's artifact in RUN/parts, so that another merge needs no training; otherwise only their records are kept."""

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
        """Groups the rows by attribute, or by the file that a row is from; `sources` are the names of the files."""
        if self.split is not None:
            return rows_by_attribute(request.forget, self.split)
        ends = [0, *accumulate(request.forget_sources)]
        return {name: tuple(range(start, stop)) for name, (start, stop) in zip(sources, pairwise(ends), strict=True)}

    def check(self, parts: Parts) -> Parts:
        """Returns the requested parts. Raises ExpungeError if a part has too few rows, or the fields of `each` and `merge` do
        not fit their number."""
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
    """Returns the request of one part's run."""
    return dataclasses.replace(request, forget=tuple(request.forget[row] for row in rows), forget_sources=(len(rows),))
