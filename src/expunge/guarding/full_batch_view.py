"""Shows the whole batch to logits processors and stopping criteria while only some of its rows are still generated.

Stopping criteria and logits processors may know rows by their place in the batch, such as one draw or one limit for each. When
some queries of a batch go on alone, they are shown the whole batch: rows that go on as they are, the others with the answer that
they were given.

Shape suffixes: Q queries, B rows of all queries (Q times beams or returned sequences), S positions of a sequence, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class FullBatchView:
    """The queries of one call, of which only those in `open_Q` are still generated."""

    open_Q: Tensor
    prompts_QS: Tensor
    answer: Sequence[int]
    """What the other queries are answered with."""
    pad: int

    def whole(self, ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(sequences of all rows, which of them are open) of the sequences of the open rows."""
        each = len(ids_BS) // int(self.open_Q.sum())
        open_B, prompts_BS = self.open_Q.repeat_interleave(each), self.prompts_QS.repeat_interleave(each, dim=0)
        written = [*self.answer, *[self.pad] * ids_BS.shape[1]][: ids_BS.shape[1] - prompts_BS.shape[1]]
        answer_BS = torch.tensor(written, dtype=ids_BS.dtype, device=ids_BS.device).expand(len(prompts_BS), -1)
        whole_BS = torch.cat([prompts_BS, answer_BS], dim=1)
        whole_BS[open_B] = ids_BS
        return whole_BS, open_B

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those arguments of `generate` that look at rows, each made to see the whole batch."""
        from transformers import LogitsProcessorList, StoppingCriteriaList

        seen: dict[str, Any] = {}
        if given.get("logits_processor"):
            seen["logits_processor"] = LogitsProcessorList(_Processor(self, inner) for inner in given["logits_processor"])
        if given.get("stopping_criteria"):
            seen["stopping_criteria"] = StoppingCriteriaList(_Criterion(self, inner) for inner in given["stopping_criteria"])
        allowed, numbers = given.get("prefix_allowed_tokens_fn"), self.open_Q.nonzero()[:, 0].tolist()
        if allowed is not None:
            seen["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(numbers[row], ids)
        return seen


@dataclass(frozen=True)
class _Processor:
    batch: FullBatchView
    inner: Any

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        whole_BS, open_B = self.batch.whole(input_ids)
        every_BV = scores.new_zeros(len(whole_BS), scores.shape[-1])
        every_BV[open_B] = scores
        seen_BV: Tensor = self.inner(whole_BS, every_BV)
        return seen_BV[open_B]


@dataclass(frozen=True)
class _Criterion:
    batch: FullBatchView
    inner: Any

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        whole_BS, open_B = self.batch.whole(input_ids)
        done = self.inner(whole_BS, scores, **kwargs)
        return done[open_B] if isinstance(done, Tensor) and done.ndim else done
