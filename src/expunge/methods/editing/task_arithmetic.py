"""Task arithmetic: adds or subtracts the change that fine-tuning made."""

from typing import ClassVar, Literal

from expunge.methods.editing.arithmetic import add_scaled, check_sum, mean_divisor, piece_weights, weighted_sum
from expunge.methods.editing.base import Edited, EditingMethod, Piece, Weights, one_each


class TaskArithmetic(EditingMethod):
    """v = base + scale sum_i w_i (x_i - base);  scale = -1 forgets what the models learned."""

    paper: ClassVar[str] = "Ilharco et al. 2023, arXiv 2212.04089"
    formula: ClassVar[str] = "v = base + scale sum_i w_i (x_i - base)"
    cost: ClassVar[str] = "one pass over the weights; memory for a piece of each model"
    purpose: ClassVar[str] = "adds or subtracts what models learned"
    weakness: ClassVar[str] = "one scale for everything"

    name: Literal["task_arithmetic"] = "task_arithmetic"
    weights: Weights = ()
    """One weight per model, in order; default: all 1."""
    scale: float = 1.0
    """Factor of the merged difference (lambda); negative to forget."""
    normalize: bool = False
    """Divide by the sum of the weights: the mean difference instead of the sum."""

    def check(self, models: int) -> None:
        one_each("weights", self.weights, models)
        check_sum("task_arithmetic", self.weights, models, self.normalize)

    def edit(self, piece: Piece) -> Edited:
        change_E = weighted_sum(piece.inputs, piece_weights(piece, self.weights))
        divisor = mean_divisor(self.weights, piece.among, self.normalize)
        return Edited(add_scaled(piece.base_E, change_E if divisor == 1 else change_E.div_(divisor), self.scale))
