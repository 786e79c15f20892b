"""Computes the objective by which a guard is tuned: the distance of its score from that of a model that never saw the forget
set."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from expunge.data.encode import Encoded, Encoder
from expunge.data.example import Example, Request
from expunge.errors import ExpungeError
from expunge.evaluation.engine import Engine
from expunge.loading import load
from expunge.methods.base import GuardingMethod, Objective, Part, State
from expunge.methods.guarding import EmbeddingCorruption

MOST = 48
"""Number of forget prompts on which a setting is scored, evenly spaced in their part of the forget set."""


def build_objective(
    method: GuardingMethod, model: nn.Module, request: Request, encoder: Encoder, part: Part = "tuning"
) -> Objective:
    """Builds | mean answer probability of forget prompts under the guard - the surrogate |.

    The surrogate is given by the method, or is the mean answer probability of a model that never saw the forget set on the same
    prompts, or that of the holdout set on the unguarded model. Prompts that the gate does not flag are scored once for all
    settings.

    part   every other forget prompt is of the part for tuning, the rest are those reported on

    Raises ExpungeError if the method cannot be tuned by a score.
    """
    if not isinstance(method, EmbeddingCorruption):
        raise ExpungeError(f"{method.method_name()} has no score that it could be tuned by")
    examples = _spread(request.forget[0 if part == "tuning" else 1 :: 2])
    target = method.surrogate
    if target is None and method.surrogate_model is not None:
        gold, tokenizer = load(method.surrogate_model)
        target = answer_probability(gold, examples, Encoder(tokenizer, encoder.format, encoder.max_length))
    elif target is None:
        target = answer_probability(model, request.holdout, encoder)
    rows = encoder.encode_many(examples)
    passed: dict[Encoded, float] = {}

    def objective(state: State) -> float:
        judge = method.judge(model, state, encoder)
        flagged = [row for row in rows if judge.decision(row.ids[: row.answer_start]).flagged]
        rest = [row for row in rows if row not in flagged]
        new = [row for row in rest if row not in passed]
        passed.update(zip(new, _probabilities(model, new, encoder), strict=True))
        with method.attach(model, state, encoder):
            found = _probabilities(model, flagged, encoder)
        return abs(float(np.mean([*found, *(passed[row] for row in rest)])) - target)

    return objective


def answer_probability(model: nn.Module, examples: Sequence[Example], encoder: Encoder) -> float:
    """Computes the mean over examples of p(response | prompt)^(1 / tokens of the response)."""
    return float(np.mean(_probabilities(model, encoder.encode_many(examples), encoder)))


def _probabilities(model: nn.Module, rows: Sequence[Encoded], encoder: Encoder) -> list[float]:
    found = Engine(model, encoder.pad_id).score(rows) if rows else []
    return [float(np.exp(stats.logp.mean())) for stats in found]


def _spread(examples: Sequence[Example]) -> Sequence[Example]:
    return examples[:: -(-len(examples) // MOST)]
