"""Fits a gate: trains it, scores prompts that it was not trained on, and sets its threshold by them."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.errors import ExpungeError
from expunge.guarding.embedding_corruption.gate import Scores
from expunge.guarding.embedding_corruption.kinds import Rule
from expunge.guarding.embedding_corruption.making import Making
from expunge.guarding.embedding_corruption.selection import own_entities
from expunge.guarding.embedding_corruption.spelling import Spelling
from expunge.guarding.embedding_corruption.thresholds import threshold
from expunge.guarding.embedding_corruption.training_set import General, TrainingSet, general_negatives, prompts_of

FOLDS = 4
MANY = 0.1
"""Share of general prompts above which a gate with a fixed threshold is said to flag too many."""


@dataclass(frozen=True)
class Calibration:
    """How the threshold is set."""

    rule: Rule
    fixed: float
    rate: float
    """Share of retain prompts, and of general prompts, that may be flagged."""
    cautious: bool
    held_out: float
    """Share of the retain prompts that calibrate the threshold and do not train the gate."""
    negatives: str
    spelling: bool
    seed: int


def fit_gate(making: Making, how: Calibration, request: Request, encoder: Encoder) -> dict[str, Tensor]:
    """Returns the tensors of the gate, the threshold, and the scores that it was calibrated on.

    Raises ExpungeError if there are too few prompts.
    """
    forget, retain = prompts_of(request.forget), prompts_of(request.retain)
    generator = torch.Generator().manual_seed(how.seed)
    order = torch.randperm(len(retain), generator=generator).tolist()
    count = max(1, round(how.held_out * len(retain)))
    trained, calibrating = [retain[i] for i in order[count:]], [retain[i] for i in order[:count]]
    if not trained or len(forget) < FOLDS:
        raise ExpungeError(f"a gate needs {FOLDS} different forget prompts and 2 retain prompts at least; give more of them")
    general = general_negatives(how.negatives, request.forget, request.retain)
    whole = making.train(TrainingSet.of(forget, trained, general.trained))
    spelling = _spelling(request, general) if how.spelling else None
    known = Scores(making.gate(whole), encoder, spelling)
    retain_N, general_N = (_scores(known, texts) for texts in (calibrating, general.checked))
    if making.kind in ("hidden", "text"):
        forget_N = _across_folds(making, forget, (trained, general.trained), encoder, spelling, generator)
    else:
        forget_N = _scores(known, forget)
    rule = threshold(
        how.rule, forget_N, retain_N, how.rate, general_N=general_N, fixed=how.fixed, cautious=how.cautious
    )  # fmt: skip
    if how.rule == "fixed":
        _check_general(general_N > rule)
    room = max(1 - rule, 1e-12)
    return whole | {
        "threshold": torch.tensor(rule, dtype=torch.float64),
        "calibration.forget": (1 - forget_N) / room,
        "calibration.retain": (1 - retain_N) / room,
        **({"calibration.general": (1 - general_N) / room} if len(general_N) else {}),
        **({} if spelling is None or not spelling.words else {"gate.spelling": spelling.tensor()}),
    }


def _scores(scores: Scores, texts: "list[str] | tuple[str, ...]") -> Tensor:
    return torch.tensor([scores.of(text) for text in texts], dtype=torch.float64)


def _across_folds(
    making: Making,
    forget: list[str],
    others: "tuple[list[str], tuple[str, ...]]",
    encoder: Encoder,
    spelling: Spelling | None,
    generator: torch.Generator,
) -> Tensor:
    """Scores each forget prompt by a gate that was not trained on it.

    others   retain prompts and general ones to train on
    """
    found_N = torch.zeros(len(forget), dtype=torch.float64)
    shuffled = torch.randperm(len(forget), generator=generator).tolist()
    for fold in range(FOLDS):
        mine = set(shuffled[fold::FOLDS])
        rows = TrainingSet.of([text for i, text in enumerate(forget) if i not in mine], *others)
        scores = Scores(making.gate(making.train(rows, keep=False)), encoder, spelling)
        for i in mine:
            found_N[i] = scores.of(forget[i])
    return found_N


def _spelling(request: Request, general: General) -> Spelling:
    others = [text for e in request.retain for text in (e.prompt or "", e.response)]
    asked = [e.prompt or e.response for e in request.forget]
    return Spelling(own_entities(request.forget, request.retain), [*others, *asked, *general.trained])


def _check_general(flagged_N: Tensor) -> None:
    """Warns if a gate flags many general prompts."""
    share = float(flagged_N.double().mean()) if len(flagged_N) else 0.0
    if share > MANY:
        warnings.warn(
            f"the gate flags {share:.0%} of {len(flagged_N)} general prompts that it was not trained on; calibrate its threshold "
            "(--threshold simple), or take another --gate",
            stacklevel=2,
        )
