"""Lists the methods that edit weights without a training loop, one file each.

A new one is its file, an import and an entry here.
"""

from expunge.methods.base import InPlaceEditing
from expunge.methods.editing.adapter_addition import AdapterAddition as AdapterAddition
from expunge.methods.editing.adapter_subtraction import AdapterSubtraction as AdapterSubtraction
from expunge.methods.editing.base import EditingMethod as EditingMethod
from expunge.methods.editing.base import Piece as Piece
from expunge.methods.editing.breadcrumbs import Breadcrumbs as Breadcrumbs
from expunge.methods.editing.dare_linear import DareLinear as DareLinear
from expunge.methods.editing.dare_ties import DareTies as DareTies
from expunge.methods.editing.ethos import Ethos as Ethos
from expunge.methods.editing.ext_sub import ExtSub as ExtSub
from expunge.methods.editing.factors import AdapterMethod as AdapterMethod
from expunge.methods.editing.linear import Linear as Linear
from expunge.methods.editing.repselect import RepSelect as RepSelect
from expunge.methods.editing.selective_pruning import SelectivePruning as SelectivePruning
from expunge.methods.editing.slerp import Slerp as Slerp
from expunge.methods.editing.task_arithmetic import TaskArithmetic as TaskArithmetic
from expunge.methods.editing.ties import Ties as Ties

MERGING: tuple[type[EditingMethod], ...] = (Linear, TaskArithmetic, Ties, DareLinear, DareTies, Slerp, Breadcrumbs)
"""Arithmetic on the weights of several checkpoints: methods of `expunge merge`, in the order in which it shows them."""

ADAPTER_MERGING: tuple[type[AdapterMethod], ...] = (ExtSub, AdapterSubtraction, AdapterAddition, Ethos)
"""Methods of `expunge merge` that compute one adapter from the factors of two."""

IN_PLACE: tuple[type[InPlaceEditing], ...] = (SelectivePruning, RepSelect)
"""Methods of `expunge unlearn` that edit one model's weights from its activations or gradients."""
