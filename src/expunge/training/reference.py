"""What is frozen, computed once: the start model's log-probabilities and hidden states for the rows that a run will visit.

A second model in memory, or a second forward in every step, would compute the same numbers again and again. NPO and DPO
need one number per row; KL and UNDIAL need the start model's distribution at answer tokens, which is kept as the final
hidden state (D numbers a token) beside one frozen copy of the head.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from expunge.data.encode import Encoded, Tokens, collate, length_batches
from expunge.methods.base import Batch, Need, TrainingMethod
from expunge.models.load import causal_model
from expunge.models.logprobs import FrozenHead, labelled_hidden, labelled_logits, sequence_mean, sequence_sum, token_logprobs
from expunge.training.pairs import Pairs
from expunge.training.pairs import share as share_rows

Key = TypeVar("Key", bound=Hashable)

TOKENS_PER_BATCH = 8192
"""Padded tokens of one forward without gradient."""
PROBES = 16
"""Forget rows of each part that a method measures itself on."""


@dataclass(frozen=True)
class Rows:
    """Encoded data of one run."""

    forget: Sequence[Encoded]
    """The rows that the run walks over; for `finetune` the rows to learn."""
    ids: Sequence[str]
    """`Example.id` of each forget row, for messages."""
    pad_id: int
    retain: Sequence[Encoded] = ()
    holdout: Sequence[Encoded] = ()
    refusals: int = 0
    alternative: Callable[[int, int], Encoded] | None = None
    """(forget row, refusal) -> the forget prompt answered with that refusal."""
    parts: tuple[tuple[int, ...], ...] = ()
    """Forget rows that are not mixed in a step; none: all are one set."""

    def probes(self, side: Literal["right", "left"], device: torch.device) -> list[Tokens]:
        """Evenly spaced rows of each forget part, the same in every run on the same data."""
        chosen = [part[:: -(-len(part) // PROBES)] for part in self.parts or (range(len(self.forget)),)]
        return [collate([self.forget[row] for row in part], self.pad_id, side).to(device) for part in chosen]


class Drawn(NamedTuple):
    """One row of a step: which forget row, which retain row beside it, which refusal; -1 where there is none."""

    forget: int
    retain: int
    refusal: int


def share(plan: Pairs, step: int, rank: int, world: int) -> list[Drawn]:
    """This process's rows of a step: rows rank, rank + world, ... of the global batch, which no process count changes."""
    forget = plan.forget_rows(step)
    retain = plan.retain_rows(step) or [-1] * len(forget)
    refusal = plan.refusal_rows(step) or [-1] * len(forget)
    drawn = [Drawn(*row) for row in zip(forget, retain, refusal, strict=True)]
    return [drawn[i] for i in share_rows(range(len(drawn)), rank, world)]


@dataclass
class Reference:
    """Frozen quantities by row, and the batches made with them."""

    forget_logprob: dict[int, Tensor] = field(default_factory=dict)
    alternative_logprob: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    forget_hidden: dict[int, Tensor] = field(default_factory=dict)
    retain_hidden: dict[int, Tensor] = field(default_factory=dict)
    head: FrozenHead | None = None
    start_weights: dict[str, Tensor] | None = None
    prepared: Mapping[str, Tensor] = field(default_factory=dict)
    part_of: dict[int, int] = field(default_factory=dict)
    """Which part a forget row is of."""

    @classmethod
    def compute(
        cls, model: nn.Module, needs: frozenset[Need], rows: Rows, plan: Pairs, steps: range, accelerator: Accelerator
    ) -> "Reference":
        """Runs the start model over the rows that this process will visit in `steps`; nothing where nothing is needed."""
        reference = cls(part_of={row: i for i, part in enumerate(rows.parts) for row in part})
        if "start_weights" in needs:
            moving = ((n, p) for n, p in causal_model(model).named_parameters() if p.requires_grad)
            reference.start_weights = {name: p.detach().clone() for name, p in moving}
        if not needs - {"start_weights"}:
            return reference
        visited = [d for s in steps for d in share(plan, s, accelerator.process_index, accelerator.num_processes)]
        forget = {d.forget: rows.forget[d.forget] for d in visited}
        was_training = model.training
        model.eval()
        if "forget_logprob" in needs:
            reference.forget_logprob = _per_row(model, forget, rows.pad_id, accelerator, _logprobs)
        if "forget_hidden" in needs:
            reference.forget_hidden = _per_row(model, forget, rows.pad_id, accelerator, _hidden)
        if "retain_hidden" in needs:
            retain = {d.retain: rows.retain[d.retain] for d in visited}
            reference.retain_hidden = _per_row(model, retain, rows.pad_id, accelerator, _hidden)
        if "alternative_logprob" in needs:
            assert rows.alternative is not None
            answers = {(d.forget, d.refusal): rows.alternative(d.forget, d.refusal) for d in visited}
            reference.alternative_logprob = _per_row(model, answers, rows.pad_id, accelerator, _logprobs)
        if needs & {"forget_hidden", "retain_hidden"}:
            reference.head = FrozenHead.of(model)
        model.train(was_training)
        return reference

    def batch(self, rows: Rows, part: Sequence[Drawn], method: TrainingMethod, device: torch.device) -> Batch:
        """Pads the drawn rows and puts the frozen quantities of those rows beside them."""
        forget = collate([rows.forget[d.forget] for d in part], rows.pad_id, method.pad_side)
        if self.forget_logprob:
            forget.frozen["logprob"] = torch.stack([self.forget_logprob[d.forget] for d in part])
        if self.forget_hidden:
            forget.frozen["hidden"] = torch.cat([self.forget_hidden[d.forget] for d in part])
        retain = alternative = None
        if method.uses_retain:
            retain = collate([rows.retain[d.retain] for d in part], rows.pad_id, method.pad_side)
            if self.retain_hidden:
                retain.frozen["hidden"] = torch.cat([self.retain_hidden[d.retain] for d in part])
            retain = retain.to(device)
        if method.uses_refusals:
            assert rows.alternative is not None
            alternative = collate([rows.alternative(d.forget, d.refusal) for d in part], rows.pad_id)
            if self.alternative_logprob:
                alternative.frozen["logprob"] = torch.stack([self.alternative_logprob[d.forget, d.refusal] for d in part])
            alternative = alternative.to(device)
        where = self.part_of.get(part[0].forget, 0)
        return Batch(forget.to(device), retain, alternative, self.head, self.start_weights, self.prepared, where)


def mean_answer_probability(
    model: nn.Module, rows: Sequence[Encoded], pad_id: int, device: torch.device, most: int = 96
) -> float:
    """Mean over rows of exp(mean log p of the answer's tokens); over `most` evenly spaced rows when there are more."""
    stride = max(1, -(-len(rows) // most))
    chosen = list(rows)[::stride]
    was_training = model.training
    model.eval()
    values = []
    with torch.no_grad():
        for batch in length_batches([len(r.ids) for r in chosen], TOKENS_PER_BATCH, 256):
            labelled = labelled_logits(model, collate([chosen[i] for i in batch], pad_id).to(device))
            values.append(sequence_mean(token_logprobs(labelled), labelled.row_N, labelled.rows).exp())
    model.train(was_training)
    return float(torch.cat(values).mean())


def _per_row(
    model: nn.Module,
    wanted: dict[Key, Encoded],
    pad_id: int,
    accelerator: Accelerator,
    compute: Callable[[nn.Module, Tokens], Iterable[Tensor]],
) -> dict[Key, Tensor]:
    """One value per row, which `compute` gives on the CPU. Under sharding each process must run as many forwards as the
    others, so those that have fewer batches repeat their last one."""
    keys = list(wanted)
    batches = length_batches([len(wanted[k].ids) for k in keys], TOKENS_PER_BATCH, 256)
    most = int(accelerator.gather(torch.tensor([len(batches)], device=accelerator.device)).max())
    values: dict[Key, Tensor] = {}
    with torch.no_grad(), accelerator.autocast():
        for n in range(most):
            batch = batches[min(n, len(batches) - 1)]
            tokens = collate([wanted[keys[i]] for i in batch], pad_id).to(accelerator.device)
            values |= zip([keys[i] for i in batch], compute(model, tokens), strict=True)
    return values


def _logprobs(model: nn.Module, tokens: Tokens) -> Iterable[Tensor]:
    labelled = labelled_logits(model, tokens)
    return sequence_sum(token_logprobs(labelled), labelled.row_N, labelled.rows).cpu().unbind()


def _hidden(model: nn.Module, tokens: Tokens) -> Iterable[Tensor]:
    hidden = labelled_hidden(model, tokens)
    counts_B = torch.bincount(hidden.row_N.cpu(), minlength=hidden.rows)
    return torch.split(hidden.hidden_ND.cpu(), counts_B.tolist())
