"""Methods that move weights by gradient descent on a loss: one file, one paper."""

from expunge.methods.training.ce_u import CEU
from expunge.methods.training.dpo import DPO
from expunge.methods.training.finetune import FineTune
from expunge.methods.training.gradient_ascent import GradientAscent
from expunge.methods.training.gradient_difference import GradientDifference
from expunge.methods.training.idk import IDK
from expunge.methods.training.kl_minimization import KLMinimization
from expunge.methods.training.npo import NPO
from expunge.methods.training.rmu import RMU
from expunge.methods.training.satimp import SatImp
from expunge.methods.training.simnpo import SimNPO
from expunge.methods.training.undial import UNDIAL
from expunge.methods.training.wga import WGA

__all__ = [
    "CEU",
    "DPO",
    "IDK",
    "NPO",
    "RMU",
    "UNDIAL",
    "WGA",
    "FineTune",
    "GradientAscent",
    "GradientDifference",
    "KLMinimization",
    "SatImp",
    "SimNPO",
]
