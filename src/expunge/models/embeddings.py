"""Finds the matrix of a model's input embeddings."""

from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.models.load import causal_model


def embedding_matrix(model: nn.Module) -> Tensor:
    """Returns the input embeddings, [V, D]. Raises ExpungeError if the model has none."""
    module = causal_model(model).get_input_embeddings()
    matrix = getattr(module, "weight", None)
    if not isinstance(matrix, Tensor):
        raise ExpungeError(f"{type(causal_model(model)).__name__} has no input embeddings that could be corrupted")
    return matrix
