"""Lists the methods that are made of other methods (the package `composing` runs them). A new one is its file, an import and an
entry here."""

from expunge.methods.base import ComposedMethod
from expunge.methods.composed.ext_sub_pipeline import ExtSubPipeline as ExtSubPipeline
from expunge.methods.composed.sku import SKU as SKU
from expunge.methods.composed.spunge import Spunge as Spunge
from expunge.methods.composed.task_vector_negation import TaskVectorNegation as TaskVectorNegation

COMPOSED: tuple[type[ComposedMethod], ...] = (TaskVectorNegation, Spunge, SKU, ExtSubPipeline)
"""In the order in which `expunge methods` shows them."""
