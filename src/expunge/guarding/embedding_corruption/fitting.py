"""Fits a gate: trains it, scores prompts that it was not trained on, and sets its threshold by them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.encode import Encoder
from expunge.data.example import Example, Request
from expunge.errors import ExpungeError
from expunge.guarding.embedding_corruption.gate import Scores
from expunge.guarding.embedding_corruption.kinds import Level, Rule
from expunge.guarding.embedding_corruption.making import Making
from expunge.guarding.embedding_corruption.selection import own_entities
from expunge.guarding.embedding_corruption.spelling import Spelling
from expunge.guarding.embedding_corruption.subjects import learned
from expunge.guarding.embedding_corruption.thresholds import threshold
from expunge.guarding.embedding_corruption.training_set import (
    TrainingSet,
    general_negatives,
    prompt_of,
    prompts_of,
)

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
    mentions: Level
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
    seen = {*trained}
    others = Others(trained, general.trained, [e for e in request.retain if prompt_of(e) in seen])
    spelling = others.spelling(request.forget) if how.spelling else None
    mentions = learned(how.mentions, request.forget, others.rows, general.trained, how.rate, spelling)
    known = Scores(making.gate(whole), encoder, spelling, mentions)
    retain_N, general_N = (_scores(known, texts) for texts in (calibrating, general.checked))
    for i in (retain_N == 1).nonzero()[:, 0].tolist():  # by names that no other retain prompt has, as the guard reads a fresh one
        rest = mentions.without([*calibrating[:i], *calibrating[i + 1 :]], spelling)
        retain_N[i] = Scores(known.gate, encoder, spelling, rest).of(calibrating[i])
    if making.kind in ("hidden", "text"):
        forget_N = _across_folds(making, how, request.forget, others, encoder, spelling, generator)
    else:
        forget_N = _scores(known, forget)
    rule = threshold(
        how.rule, forget_N, retain_N, how.rate, general_N=general_N, fixed=how.fixed, cautious=how.cautious
    )  # fmt: skip
    if rule >= 1:
        raise _refusal([text for text, score in zip(calibrating, retain_N.tolist(), strict=True) if score == 1], how)
    if how.rule == "fixed":
        _check_general(general_N > rule)
    if spelling is not None:
        spelling = others.spelling(request.forget, request.retain)
    mentions = mentions.without(calibrating, spelling)
    room = max(1 - rule, 1e-12)
    return whole | {
        "threshold": torch.tensor(rule, dtype=torch.float64),
        "calibration.forget": (1 - forget_N) / room,
        "calibration.retain": (1 - retain_N) / room,
        **({"calibration.general": (1 - general_N) / room} if len(general_N) else {}),
        **({} if spelling is None or not spelling.words else {"gate.spelling": spelling.tensor()}),
        **({"gate.mentions": mentions.tensor()} if mentions else {}),
    }


def _scores(scores: Scores, texts: "list[str] | tuple[str, ...]") -> Tensor:
    return torch.tensor([scores.of(text) for text in texts], dtype=torch.float64)


@dataclass(frozen=True)
class Others:
    """Prompts that a gate is trained to let pass."""

    retain: list[str]
    general: tuple[str, ...]
    rows: list[Example]
    """Retain rows with these prompts."""

    def spelling(self, forget: Sequence[Example], more: Sequence[Example] = ()) -> Spelling:
        """Returns how names of the forget rows are corrected.

        more   rows whose words, too, are meant as they are
        """
        kept = [text for e in (*self.rows, *more) for text in (e.prompt or "", e.response)]
        return Spelling(own_entities(forget, self.rows), [*kept, *map(prompt_of, forget), *self.general])


def _across_folds(
    making: Making,
    how: Calibration,
    rows: Sequence[Example],
    others: Others,
    encoder: Encoder,
    spelling: Spelling | None,
    generator: torch.Generator,
) -> Tensor:
    """Scores each forget prompt by a gate that was not trained on it, and by names of other prompts."""
    forget = prompts_of(rows)
    found_N = torch.zeros(len(forget), dtype=torch.float64)
    shuffled = torch.randperm(len(forget), generator=generator).tolist()
    for fold in range(FOLDS):
        mine = {forget[i] for i in shuffled[fold::FOLDS]}
        asked = TrainingSet.of([text for text in forget if text not in mine], others.retain, others.general)
        named = [e for e in rows if prompt_of(e) not in mine]
        mentions = learned(how.mentions, named, others.rows, others.general, how.rate, spelling)
        scores = Scores(making.gate(making.train(asked, keep=False)), encoder, spelling, mentions)
        for i in shuffled[fold::FOLDS]:
            found_N[i] = scores.of(forget[i])
    return found_N


def _refusal(certain: Sequence[str], how: Calibration) -> ExpungeError:
    """Returns the error for a threshold that no score is above.

    certain   calibration prompts that score 1
    """
    return ExpungeError(
        f"{len(certain)} of the retain prompts that calibrate the gate name what is to be forgotten, such as "
        f"'{certain[0][:80]}', more than --false-positive-rate {how.rate:g} allows; give --mentions names or none, or raise it"
    )


def _check_general(flagged_N: Tensor) -> None:
    """Warns if a gate flags many general prompts."""
    share = float(flagged_N.double().mean()) if len(flagged_N) else 0.0
    if share > MANY:
        warnings.warn(
            f"the gate flags {share:.0%} of {len(flagged_N)} general prompts that it was not trained on; calibrate its threshold "
            "(--threshold simple), or take another --gate",
            stacklevel=2,
        )
