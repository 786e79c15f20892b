"""Reads the arguments of a call of `generate` for a guard, and repeats the call for some of its prompts only.

Shape suffixes: Q queries of a `generate`, S positions of a sequence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from expunge.errors import ExpungeError
from expunge.guarding.full_batch_view import FullBatchView

if TYPE_CHECKING:
    from transformers import GenerationConfig

PER_ROW = (
    "inputs", "input_ids", "attention_mask", "position_ids", "token_type_ids", "negative_prompt_ids",
    "negative_prompt_attention_mask",
)  # fmt: skip
"""Arguments of `generate` that have one entry per query."""


@dataclass(frozen=True)
class Query:
    """The arguments of one call of `generate`."""

    given: dict[str, Any]
    ids_QS: Tensor
    defaults: "GenerationConfig"

    @classmethod
    def of(cls, model: Any, bound: Mapping[str, Any]) -> "Query":
        """Reads the arguments. Raises ExpungeError if a guard could not see the whole prompt at once.

        bound   the arguments by name, as `inspect.signature(...).bind(...).arguments` gives them
        """
        given = {name: value for name, value in bound.items() if name not in ("self", "kwargs")} | bound.get("kwargs", {})
        ids_QS = prompts_of((), given)
        query = cls(given, torch.empty(0, 0) if ids_QS is None else ids_QS, model.generation_config)
        if ids_QS is None or given.get("inputs_embeds") is not None:
            raise ExpungeError("a guarded model decides by the prompt's tokens; give generate its input_ids")
        if given.get("past_key_values") is not None or query.setting("prefill_chunk_size") is not None:
            raise ExpungeError(
                "a guarded model decides by the whole prompt in one prefill; call generate without cache and chunks"
            )
        return query

    def setting(self, name: str) -> Any:
        """Returns a setting as generate reads it: the argument, else its generation_config's value, else the model's."""
        config = self.given.get("generation_config")
        for value in (self.given.get(name), None if config is None else getattr(config, name), getattr(self.defaults, name)):
            if value is not None:
                return value
        return None

    @property
    def returned(self) -> int:
        return int(self.setting("num_return_sequences") or 1)

    @property
    def budget(self) -> int:
        """Returns the number of tokens that an answer may have."""
        if self.setting("max_new_tokens") is not None:
            return int(self.setting("max_new_tokens"))
        longest = self.setting("max_length")
        return 20 if longest is None else max(0, int(longest) - self.ids_QS.shape[1])

    def pad(self, answer: Sequence[int]) -> int:
        """Returns the pad token, or the last of `answer`, which is its end token."""
        pad = self.setting("pad_token_id")
        return answer[-1] if pad is None else int(pad)

    def only(self, wanted_Q: Tensor, answer: Sequence[int]) -> "Query":
        """Makes the same call for some of the queries; the others are answered by `answer`; arguments that depend on row
        indices see all rows."""
        per_row = {name: value[wanted_Q] for name in PER_ROW if isinstance(value := self.given.get(name), Tensor)}
        whole = FullBatchView(wanted_Q, self.ids_QS, answer, self.pad(answer))
        return Query(self.given | per_row | whole.arguments(self.given), self.ids_QS[wanted_Q], self.defaults)

    def sequences(self, output: Any) -> Tensor:
        """Returns what `generate` returned as [queries, returned, S]."""
        found: Tensor = output if isinstance(output, Tensor) else output["sequences"]
        by_query: Tensor = found.unflatten(0, (-1, self.returned))
        return by_query

    def joined(self, parts: Sequence[Tensor], answer: Sequence[int]) -> Tensor:
        """Joins sequences [queries, returned, S] of several calls, padded to the longest."""
        width = max(part.shape[-1] for part in parts)
        return torch.cat([functional.pad(part, (0, width - part.shape[-1]), value=self.pad(answer)) for part in parts])

    def answers(self, closed_Q: Tensor, kept: Tensor | None, answer: Sequence[int]) -> Any:
        """Returns what generate would: the sequences [open queries, returned, S]; for closed queries prompt and `answer`."""
        ids = torch.tensor(answer[: self.budget], device=self.ids_QS.device)
        prompts, longest = self.ids_QS[closed_Q], self.ids_QS.shape[1] + len(ids)
        width = longest if kept is None else max(longest, kept.shape[-1])
        whole = self.ids_QS.new_full((len(closed_Q), self.returned, width), self.pad(answer))
        whole[closed_Q, :, :longest] = torch.cat([prompts, ids.expand(len(prompts), -1)], dim=1)[:, None]
        if kept is not None:
            whole[~closed_Q, :, : kept.shape[-1]] = kept
        if self.given.get("streamer") is not None and kept is None:
            self.given["streamer"].put(ids.cpu())
            self.given["streamer"].end()
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        sequences = whole.flatten(0, 1)
        return GenerateDecoderOnlyOutput(sequences=cast(Any, sequences)) if self.setting("return_dict_in_generate") else sequences


def prompts_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Returns the token ids among the arguments of `generate`."""
    found: Tensor | None = args[0] if args else kwargs.get("inputs")
    return kwargs.get("input_ids") if found is None else found


def refuse_early_exit(model: Any, given: Mapping[str, Any]) -> None:
    """Raises ExpungeError if the model's own first layers are to draft in a call of `generate`: while they do, transformers takes
    the other layers out of the model's config, and an error of a guard in between would leave them out for good."""
    configs = (given.get("generation_config"), model.generation_config)
    said = (given.get("assistant_early_exit"), *(getattr(config, "assistant_early_exit", None) for config in configs))
    if any(layers is not None for layers in said):
        raise ExpungeError("a guarded model cannot draft with its own first layers; call generate without assistant_early_exit")
