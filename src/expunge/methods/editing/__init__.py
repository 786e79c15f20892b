"""Weight arithmetic: methods that compute new weights from those of other models. One file, one idea."""

from expunge.methods.editing.base import EditingMethod, Piece
from expunge.methods.editing.breadcrumbs import Breadcrumbs
from expunge.methods.editing.dare_linear import DareLinear
from expunge.methods.editing.dare_ties import DareTies
from expunge.methods.editing.linear import Linear
from expunge.methods.editing.slerp import Slerp
from expunge.methods.editing.task_arithmetic import TaskArithmetic
from expunge.methods.editing.ties import Ties

Editing = Linear | TaskArithmetic | Ties | DareLinear | DareTies | Slerp | Breadcrumbs
"""Every method of `expunge merge`, in reading order."""

__all__ = [
    "Breadcrumbs",
    "DareLinear",
    "DareTies",
    "Editing",
    "EditingMethod",
    "Linear",
    "Piece",
    "Slerp",
    "TaskArithmetic",
    "Ties",
]
