"""Lists the methods that train weights by gradient descent on a loss, one file each.

A new one is its file, an import and an entry here, and a recipe in recipes/lab.
"""

from expunge.methods.training.altpo import AltPO as AltPO
from expunge.methods.training.base import TrainingMethod
from expunge.methods.training.ce_u import CEU as CEU
from expunge.methods.training.dpo import DPO as DPO
from expunge.methods.training.finetune import FineTune as FineTune
from expunge.methods.training.gradient_ascent import GradientAscent as GradientAscent
from expunge.methods.training.gradient_difference import GradientDifference as GradientDifference
from expunge.methods.training.idk import IDK as IDK
from expunge.methods.training.kl_minimization import KLMinimization as KLMinimization
from expunge.methods.training.llmu import LLMU as LLMU
from expunge.methods.training.mismatch import Mismatch as Mismatch
from expunge.methods.training.npo import NPO as NPO
from expunge.methods.training.pdu import PDU as PDU
from expunge.methods.training.rmu import RMU as RMU
from expunge.methods.training.satimp import SatImp as SatImp
from expunge.methods.training.scrub import SCRUB as SCRUB
from expunge.methods.training.simnpo import SimNPO as SimNPO
from expunge.methods.training.undial import UNDIAL as UNDIAL
from expunge.methods.training.wga import WGA as WGA
from expunge.methods.training.whp import WHP as WHP

TRAINING: tuple[type[TrainingMethod], ...] = (
    GradientAscent,
    GradientDifference,
    KLMinimization,
    NPO,
    SimNPO,
    IDK,
    DPO,
    AltPO,
    UNDIAL,
    WHP,
    WGA,
    SatImp,
    CEU,
    PDU,
    LLMU,
    SCRUB,
    Mismatch,
    RMU,
)
"""In the order in which `expunge methods` shows them. `FineTune` unlearns nothing: `expunge finetune` uses it."""
