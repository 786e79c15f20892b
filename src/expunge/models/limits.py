"""What a model takes and how it ends: positions, token ids with an embedding, end tokens. The one place that reads these."""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from expunge.errors import ExpungeError
from expunge.models.load import causal_model

if TYPE_CHECKING:
    from torch import nn

UNLIMITED = 2048
"""Tokens that a model without a limit of positions (BLOOM, RWKV) is given where a limit is needed, as in lm-eval."""

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def text_config(model: "nn.Module") -> Any:
    """The configuration of the part that reads text: of Gemma 3 and other models with images, one inside the whole."""
    return causal_model(model).config.get_text_config(decoder=True)


def positions(model: "nn.Module") -> int | None:
    """Longest sequence in tokens; None where the architecture has no limit."""
    config = text_config(model)
    found = (getattr(config, name, None) for name in _POSITIONS)
    return next((int(value) for value in found if isinstance(value, int) and value > 0), None)


def room(model: "nn.Module") -> int:
    """Longest sequence that the model is given: its own limit, or `UNLIMITED`."""
    return positions(model) or UNLIMITED


def embedded(model: "nn.Module") -> int:
    """Number of token ids that the model has an embedding for. A tokenizer with added tokens may know more."""
    weight = causal_model(model).get_input_embeddings().weight
    return int(weight.shape[0])  # type: ignore[union-attr, index]


def padding(model: "nn.Module", wanted: int) -> int:
    """A token id to fill batches with: `wanted`, or 0 where the model has no embedding for that. It is masked, so any will do."""
    return wanted if 0 <= wanted < embedded(model) else 0


def check_embedded(model: "nn.Module", rows: Iterable[Sequence[int]]) -> None:
    """Raises ExpungeError where a row has a token id beyond the model's embeddings, which would be an IndexError on a processor
    and a dead process on an accelerator."""
    words, highest = embedded(model), max((max(row) for row in rows if row), default=0)
    if highest >= words:
        raise ExpungeError(
            f"the tokenizer gives the token id {highest}, and the model has embeddings for the ids 0 to {words - 1} only; give "
            "the tokenizer that belongs to the model, or resize the model's embeddings (resize_token_embeddings) and train them"
        )


def end_tokens(model: "nn.Module", more: Collection[int]) -> tuple[int, ...]:
    """Every token at which the model's answer is over, in order: `more` (the tokenizer's, the chat template's), and those of its
    generation config and its config, each one id or a list of ids."""
    inner = causal_model(model)
    found = set(more)
    for config in (inner.generation_config, inner.config, text_config(model)):
        ids = getattr(config, "eos_token_id", None)
        found |= {int(i) for i in (ids if isinstance(ids, list | tuple) else [ids]) if isinstance(i, int)}
    return tuple(sorted(i for i in found if i >= 0))
