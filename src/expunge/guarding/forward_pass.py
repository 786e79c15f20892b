"""Describes one forward pass and one call of `generate` to guards: real tokens, ends of prompts, positions that count.

Shape suffixes: B rows, T positions of this call, S positions of the whole sequences so far.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expunge.guarding.random_bits import MULTIPLIERS, mix, powers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEVER = 2**62
"""A column that no sequence reaches."""


@dataclass
class Counts:
    """How often a guard judged a prompt, and how often it acted on one; both 0 for guards that do not judge prompts."""

    decided: int = 0
    acted: int = 0


@dataclass
class Generation:
    """One call of `generate`."""

    queries: int = 0
    """Number of prompts given; each has one row, or one for each beam or returned sequence."""
    prompt_width: int = 0
    """Columns of the prompt, including padding."""
    ids_BS: Tensor | None = None
    mask_BS: Tensor | None = None
    """None: every position is a token."""
    before_BS: Tensor | None = None
    """`ids_BS` of the previous forward pass."""
    prompt_end_B: Tensor | None = None
    """Index of each row's last prompt token, known from the first step on."""
    ended_at_B: Tensor | None = None
    """Index of the last token of each row that has ended, and a large number for rows that continue."""
    announced: bool = False
    """`ids_BS` belongs to the next forward pass."""
    storage: dict[object, Any] = field(default_factory=dict)
    """What guards keep until `generate` returns, by their own keys."""
    left_alone: bool = False
    """The guard has decided that it changes nothing until `generate` returns: later passes are not described to it."""

    def certain_width(self) -> int:
        """Returns the number of leading columns of `ids_BS` that are final: later ones are candidates of lookup or assisted
        decoding, which the model may reject."""
        assert self.ids_BS is not None
        width = self.ids_BS.shape[1]
        if self.before_BS is None:
            return self.prompt_width
        if len(self.ids_BS) > 1:  # these strategies take one row
            return width
        shared = min(width, self.before_BS.shape[1])
        differs = (self.ids_BS[0, :shared] != self.before_BS[0, :shared]).nonzero()
        return min(width, 1 + (shared if len(differs) == 0 else int(differs[0])))

    def note_ended(self, ids_BS: Tensor, ended_B: Tensor) -> None:
        """Called with the rows for which the stopping criteria say that the last written token ends them."""
        if self.ids_BS is None or ended_B.shape != (len(self.ids_BS),):
            return  # beams: candidates for a row, of which none is one yet
        last = ids_BS.shape[1] - 1
        before_B = ids_BS.new_full((len(ids_BS),), NEVER) if self.ended_at_B is None else self.ended_at_B
        self.ended_at_B = torch.where(ended_B.to(ids_BS.device), before_B.clamp(max=last), before_B)


@dataclass
class ForwardPass:
    """One forward pass."""

    ids_BS: Tensor | None
    """Whole sequences so far as far as they are known, ending with this call's tokens; None for embeddings."""
    mask_BS: Tensor | None
    rows: int
    width: int
    """T."""
    past: int
    """Number of positions in the cache before this call."""
    prompt_end_B: Tensor | None
    """Column of this call where each row's prompt ends; negative if in an earlier call, T or more if the row has no answer."""
    has_prompt_end: bool
    """Whether any prompt may end in this call; known without reading from the device."""
    generation: Generation | None
    cache: Any
    device: torch.device
    predicting_N: Tensor | None = None
    """In a labelled pass: index into the B * T positions that predict a label."""
    storage: dict[object, Any] = field(default_factory=dict)
    """What guards keep until the pass ends, by their own keys."""

    @property
    def mask_BT(self) -> Tensor:
        """Marks the positions of this call that hold a token."""
        if self.mask_BS is None:
            return torch.ones(self.rows, self.width, dtype=torch.bool, device=self.device)
        return self.mask_BS[:, -self.width :].bool()

    @property
    def generated_BT(self) -> Tensor:
        """Marks the positions that the model generated: after the prompt's end or, if that is unknown, after a cache."""
        columns_T = torch.arange(self.width, device=self.device)
        if self.prompt_end_B is None:
            return (columns_T >= (0 if self.past else self.width)).expand(self.rows, -1)
        return columns_T > self.prompt_end_B[:, None]

    @property
    def predicting_BT(self) -> Tensor:
        """Marks the positions from which the row's answer is predicted: from the prompt's end to the token before the last.
        Padding and the last token are excluded, so that a row has the same positions in any batch. Candidates that the model
        may still reject are not known here (`Generation.certain_width`)."""
        if self.predicting_N is not None:
            flat = torch.zeros(self.rows * self.width, dtype=torch.bool, device=self.predicting_N.device)
            return flat.index_fill_(0, self.predicting_N, True).view(self.rows, self.width).to(self.device)
        if self.prompt_end_B is None:
            return self.mask_BT
        columns_T = torch.arange(self.width, device=self.device)
        answered_BT = self.mask_BT & (columns_T >= self.prompt_end_B.to(self.device)[:, None])
        if self.generation is None or self.generation.ended_at_B is None:
            return answered_BT
        return answered_BT & (columns_T < self.generation.ended_at_B.to(self.device)[:, None] - self.begin)

    @property
    def begin(self) -> int:
        """Returns the column of the whole sequences at which this call begins."""
        return 0 if self.ids_BS is None else self.ids_BS.shape[1] - self.width

    @cached_property
    def prefix_BT(self) -> Tensor:
        """Computes a 64-bit hash of each token with all tokens before it in its row, and their number, without padding.

        A polynomial hash, sum over s <= t of (token_s + 1) A^s mod 2^64 with s counted from the first token, then mixed.
        After a cache with unknown tokens (in a custom decoding loop), only this call's tokens and the position count.
        """
        if self.mask_BS is None:
            before = 0 if self.ids_BS is not None and self.ids_BS.shape[1] > self.width else self.past
            seen = self.width if self.ids_BS is None else self.ids_BS.shape[1]
            position_BS = torch.arange(before, before + seen, device=self.device)[None]
        else:
            position_BS = (self.mask_BS.long().cumsum(dim=1) - 1).clamp_(min=0)
        if self.ids_BS is None:
            return mix(position_BS[:, -self.width :] * MULTIPLIERS[0]).expand(self.rows, -1)
        if position_BS.shape[1] > self.ids_BS.shape[1]:
            position_BS = position_BS[:, -self.ids_BS.shape[1] :]
        known = self.ids_BS.shape[1]
        term_BS = (self.ids_BS + 1) * powers(4096 * (1 + (self.past + known) // 4096), self.device)[position_BS]
        if self.mask_BS is not None:
            term_BS = term_BS * self.mask_BS[:, -known:]
        return mix(term_BS.cumsum(dim=1)[:, -self.width :] + position_BS[:, -self.width :] * MULTIPLIERS[0])


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch, as a gate reads them: tokens without padding, including earlier turns of a conversation."""

    ids: tuple[tuple[int, ...], ...]
    tokenizer: "PreTrainedTokenizerBase | None"

    @cached_property
    def texts(self) -> list[str]:
        """Returns the prompts as text, including special tokens of the chat template."""
        assert self.tokenizer is not None, "the session was opened without a tokenizer"
        decoded: list[str] = self.tokenizer.batch_decode([list(ids) for ids in self.ids], clean_up_tokenization_spaces=False)
        return decoded
