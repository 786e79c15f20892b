"""Weight arithmetic: methods that compute new weights from those of other models. One file, one idea."""

from expunge.methods.editing.adapter_addition import AdapterAddition
from expunge.methods.editing.adapter_subtraction import AdapterSubtraction
from expunge.methods.editing.base import EditingMethod, Piece
from expunge.methods.editing.breadcrumbs import Breadcrumbs
from expunge.methods.editing.dare_linear import DareLinear
from expunge.methods.editing.dare_ties import DareTies
from expunge.methods.editing.ethos import Ethos
from expunge.methods.editing.ext_sub import ExtSub
from expunge.methods.editing.factors import AdapterMethod
from expunge.methods.editing.linear import Linear
from expunge.methods.editing.slerp import Slerp
from expunge.methods.editing.task_arithmetic import TaskArithmetic
from expunge.methods.editing.ties import Ties

Editing = Linear | TaskArithmetic | Ties | DareLinear | DareTies | Slerp | Breadcrumbs
"""Every method of `expunge merge` that goes over the weights of whole models, in reading order."""

AdapterEditing = ExtSub | AdapterSubtraction | AdapterAddition | Ethos
"""Every method of `expunge merge` that makes one adapter of two."""

__all__ = [
    "AdapterAddition",
    "AdapterEditing",
    "AdapterMethod",
    "AdapterSubtraction",
    "Breadcrumbs",
    "DareLinear",
    "DareTies",
    "Editing",
    "EditingMethod",
    "Ethos",
    "ExtSub",
    "Linear",
    "Piece",
    "Slerp",
    "TaskArithmetic",
    "Ties",
]
