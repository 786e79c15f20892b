"""Shows the whole batch to logits processors and stopping criteria while only some of its rows are generated.

Stopping criteria and logits processors may depend on a row's index in the batch, for example with one draw or one limit per row.
If only some queries of a batch are generated, they are shown the whole batch: generated rows as they are, the others with the
answer that they were given.

Shape suffixes: Q queries, M open queries, B rows of all queries (Q times beams or returned sequences), R open rows, S positions
of a sequence, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class FullBatchView:
    """The queries of one call, of which only those in `open_Q` are still generated."""

    open_Q: Tensor
    prompts_QS: Tensor
    answer: Sequence[int]
    """The answer of the other queries."""
    pad: int

    @cached_property
    def _open_M(self) -> Tensor:
        """Returns indices of the open queries; computed once a call, since it waits for the device."""
        return self.open_Q.nonzero()[:, 0]

    def whole(self, ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (sequences of all rows, indices of the open ones among them) for the sequences of the open rows."""
        each = len(ids_BS) // len(self._open_M)
        within_e = torch.arange(each, device=ids_BS.device)
        open_R = (self._open_M[:, None] * each + within_e).flatten()
        prompts_BS = self.prompts_QS[:, None].expand(-1, each, -1).flatten(0, 1)
        written = [*self.answer, *[self.pad] * ids_BS.shape[1]][: ids_BS.shape[1] - prompts_BS.shape[1]]
        answer_BS = torch.tensor(written, dtype=ids_BS.dtype, device=ids_BS.device).expand(len(prompts_BS), -1)
        whole_BS = torch.cat([prompts_BS, answer_BS], dim=1)
        return whole_BS.index_copy(0, open_R, ids_BS), open_R

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those arguments of `generate` that read rows, each wrapped to see the whole batch."""
        from transformers import LogitsProcessorList, StoppingCriteriaList

        seen: dict[str, Any] = {}
        if given.get("logits_processor"):
            seen["logits_processor"] = LogitsProcessorList(_Processor(self, inner) for inner in given["logits_processor"])
        if given.get("stopping_criteria"):
            seen["stopping_criteria"] = StoppingCriteriaList(_Criterion(self, inner) for inner in given["stopping_criteria"])
        allowed, numbers = given.get("prefix_allowed_tokens_fn"), self._open_M.tolist()
        if allowed is not None:
            seen["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(numbers[row], ids)
        return seen


@dataclass(frozen=True)
class _Processor:
    batch: FullBatchView
    inner: Any

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        whole_BS, open_R = self.batch.whole(input_ids)
        every_BV = scores.new_zeros(len(whole_BS), scores.shape[-1]).index_copy(0, open_R, scores)
        seen_BV: Tensor = self.inner(whole_BS, every_BV)
        return seen_BV.index_select(0, open_R)


@dataclass(frozen=True)
class _Criterion:
    batch: FullBatchView
    inner: Any

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        whole_BS, open_R = self.batch.whole(input_ids)
        done = self.inner(whole_BS, scores, **kwargs)
        return done.index_select(0, open_R) if isinstance(done, Tensor) and done.ndim else done
