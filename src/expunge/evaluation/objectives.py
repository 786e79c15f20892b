"""Computes the objective by which a guard is tuned: the distance of its score from that of a model that never saw the forget
set."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from expunge.data.encode import Encoder
from expunge.data.example import Example, Request
from expunge.errors import ExpungeError
from expunge.evaluation.engine import Engine
from expunge.methods.base import GuardingMethod, Objective, State
from expunge.methods.guarding import EmbeddingCorruption

MOST = 48
"""Number of forget prompts on which a setting is scored, evenly spaced; reported scores are of other prompts or of all."""


def build_objective(method: GuardingMethod, model: nn.Module, request: Request, encoder: Encoder) -> Objective:
    """Builds | mean answer probability of forget prompts under the guard - the surrogate |.

    The surrogate is given by the method, or is the mean answer probability of the holdout set on the unguarded model.

    Raises ExpungeError if the method cannot be tuned by a score.
    """
    if not isinstance(method, EmbeddingCorruption):
        raise ExpungeError(f"{method.method_name()} has no score that it could be tuned by")
    rows = _spread(request.forget)
    target = method.surrogate
    if target is None:
        target = answer_probability(model, request.holdout, encoder)

    def objective(state: State) -> float:
        with method.attach(model, state, encoder):
            return abs(answer_probability(model, rows, encoder) - target)

    return objective


def answer_probability(model: nn.Module, examples: Sequence[Example], encoder: Encoder) -> float:
    """Computes the mean over examples of p(response | prompt)^(1 / tokens of the response)."""
    found = Engine(model, encoder.pad_id).score(encoder.encode_many(examples))
    return float(np.mean([np.exp(stats.logp.mean()) for stats in found]))


def _spread(examples: Sequence[Example]) -> Sequence[Example]:
    return examples[:: -(-len(examples) // MOST)]
