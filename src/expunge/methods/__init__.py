"""The closed list of methods, in reading order. A new method is its file and one line here."""

from typing import Annotated, get_args

from pydantic import Field

from expunge.errors import ExpungeError, nearest
from expunge.methods.base import Batch, Loss, Spec, TrainingMethod
from expunge.methods.composed.spunge import Spunge
from expunge.methods.composed.task_vector_negation import TaskVectorNegation
from expunge.methods.editing.selective_pruning import SelectivePruning
from expunge.methods.guarding.key_space import KeySpaceDetection
from expunge.methods.guarding.neuron_adjust import NeuronAdjust
from expunge.methods.training import (
    CEU,
    DPO,
    IDK,
    NPO,
    RMU,
    UNDIAL,
    WGA,
    GradientAscent,
    GradientDifference,
    KLMinimization,
    SatImp,
    SimNPO,
)

Method = Annotated[
    GradientAscent
    | GradientDifference
    | KLMinimization
    | NPO
    | SimNPO
    | IDK
    | DPO
    | UNDIAL
    | WGA
    | SatImp
    | CEU
    | RMU
    | SelectivePruning
    | NeuronAdjust
    | KeySpaceDetection
    | TaskVectorNegation
    | Spunge,
    Field(discriminator="name"),
]
"""Any method; in YAML and JSON the field `name` says which."""

METHODS: dict[str, type[Spec]] = {cls.method_name(): cls for cls in get_args(get_args(Method)[0])}


def method_class(name: str) -> type[Spec]:
    """The spec behind a name on the command line; an unknown name is answered with the nearest one."""
    if name not in METHODS:
        raise ExpungeError(f"there is no method '{name}'{nearest(name, METHODS)}; `expunge methods` lists them all")
    return METHODS[name]


__all__ = [
    "CEU",
    "DPO",
    "IDK",
    "METHODS",
    "NPO",
    "RMU",
    "UNDIAL",
    "WGA",
    "Batch",
    "GradientAscent",
    "GradientDifference",
    "KLMinimization",
    "KeySpaceDetection",
    "Loss",
    "Method",
    "NeuronAdjust",
    "SatImp",
    "SelectivePruning",
    "SimNPO",
    "Spec",
    "Spunge",
    "TaskVectorNegation",
    "TrainingMethod",
    "method_class",
]
