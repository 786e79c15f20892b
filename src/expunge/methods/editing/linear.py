"""Linear: computes the weighted mean of models ("model soup")."""

from typing import ClassVar, Literal

from expunge.errors import ExpungeError
from expunge.methods.editing.arithmetic import mean_divisor, weighted_sum
from expunge.methods.editing.base import Edited, EditingMethod, Piece, Weights, one_each, weights_of


class Linear(EditingMethod):
    """v = sum_i w_i x_i / sum_i w_i  over the models.

    The base gives configuration, tokenizer and dtype; its weights count only if it is also among the models
    (`--base B --models B A --weights 0.4 0.6` interpolates between B and A).
    """

    paper: ClassVar[str] = "Wortsman et al. 2022, arXiv 2203.05482"
    formula: ClassVar[str] = "v = sum_i w_i x_i / sum_i w_i"
    cost: ClassVar[str] = "one pass over the weights; memory for a piece of each model"
    purpose: ClassVar[str] = "the plain average of models"
    weakness: ClassVar[str] = "averages forgetting away"
    reads: ClassVar[Literal["differences", "weights"]] = "weights"

    name: Literal["linear"] = "linear"
    weights: Weights = ()
    """One weight per model, in order; default: all equal. Negative weights extrapolate."""
    normalize: bool = True
    """Divide by the sum of the weights."""

    def check(self, models: int) -> None:
        one_each("weights", self.weights, models)
        total = sum(weights_of(self.weights, models))
        if self.normalize and total <= 0:
            raise ExpungeError(
                f"linear: the weights sum to {total:g}, and dividing by that cancels their signs; "
                "give weights with a positive sum, or --no-normalize for the plain sum"
            )

    def keeps_equal(self, models: int) -> bool:
        return self.normalize or sum(weights_of(self.weights, models)) == 1

    def edit(self, piece: Piece) -> Edited:
        weights = weights_of(self.weights, piece.among)
        by_model = dict(zip(piece.models, piece.inputs, strict=True))
        inputs = [by_model[m] if m in by_model else piece.base_E.clone() for m in range(piece.among)]
        total_E = weighted_sum(inputs, weights)
        divisor = mean_divisor(self.weights, piece.among, self.normalize)
        return Edited(total_E if divisor == 1 else total_E.div_(divisor))
