"""Reads a model's limits: its positions, the token ids it has embeddings for, its end tokens."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge.errors import ExpungeError
from expunge.models.load import causal_model

if TYPE_CHECKING:
    from torch import nn

FEW = 8
"""Tokens of one row by which it is told whether a model's weights are broken."""
INSERTED = "expunge_inserted"
"""Attribute of a model into whose rows a guard inserts tokens."""
UNLIMITED = 2048
"""Length in tokens used where a limit is needed and the model has none (BLOOM, RWKV), as in lm-eval."""

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions")


BY_LENGTH = ("longrope", "su", "dynamic")
"""Kinds of rotary positions that depend on the length of the longest row."""


def text_config(model: "nn.Module") -> Any:
    """Returns the configuration of the text model, which multimodal models such as Gemma 3 nest inside their own."""
    return causal_model(model).config.get_text_config(decoder=True)


def positions(model: "nn.Module") -> int | None:
    """Returns the longest sequence in tokens; None if the architecture has no limit."""
    config = text_config(model)
    found = (_number(config, name) for name in _POSITIONS)
    longest = next((value for value in found if value is not None and value > 0), None)
    return None if longest is None else max(1, longest - inserted(model))


def inserted(model: "nn.Module") -> int:
    """Returns how many tokens a guard inserts into each row, which take positions of the model."""
    return int(vars(causal_model(model)).get(INSERTED, 0))


def fixed_positions(model: "nn.Module") -> int | None:
    """Returns the longest sequence that the model can compute at all: of a table that was learned (GPT-2, OPT) or made for so
    many positions (GPT-J, CTRL, MPT). None if positions are rotated by a formula, which has no end, or there are none."""
    return None if getattr(text_config(model), "rope_parameters", None) else positions(model)


def _number(config: Any, name: str) -> int | None:
    try:
        value = getattr(config, name, None)
    except NotImplementedError:  # XLNet says so that it has no limit
        return None
    return int(value) if isinstance(value, int) else None


def scaled_from(model: "nn.Module") -> int | None:
    """Returns the length beyond which the model scales its positions by the longest row (LongRoPE, dynamic NTK), or None."""
    config = text_config(model)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, Mapping))]
    dynamic = [kind for kind in kinds if kind.get("rope_type", kind.get("type")) in BY_LENGTH]
    lengths = [
        kind.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for kind in dynamic
    ]
    return min(map(int, lengths)) - inserted(model) if lengths else None


def room(model: "nn.Module") -> int:
    """Returns the longest sequence that the model is given: its own limit, or `UNLIMITED`."""
    return positions(model) or UNLIMITED


def embedded(model: "nn.Module") -> int:
    """Returns the number of token ids that the model has an embedding for. A tokenizer with added tokens may know more."""
    weight = causal_model(model).get_input_embeddings().weight
    return int(weight.shape[0])  # type: ignore[union-attr, index]


def padding(model: "nn.Module", wanted: int) -> int:
    """Returns a token id for padding: `wanted`, or 0 if the model has no embedding for it. Padding is masked, so any id will
    do."""
    return wanted if 0 <= wanted < embedded(model) else 0


def check_embedded(model: "nn.Module", rows: Iterable[Sequence[int]]) -> None:
    """Raises ExpungeError if a row has a token id beyond the model's embeddings, which would be an IndexError on a CPU and
    would abort the process on a GPU."""
    words, highest = embedded(model), max((max(row) for row in rows if row), default=0)
    if highest >= words:
        raise ExpungeError(
            f"the tokenizer gives the token id {highest}, and the model has embeddings for the ids 0 to {words - 1} only; give "
            "the tokenizer that belongs to the model, or resize the model's embeddings (resize_token_embeddings) and train them"
        )


def end_tokens(model: "nn.Module", more: Collection[int]) -> tuple[int, ...]:
    """Returns every token that ends the model's answer, in order: `more` (the tokenizer's, the chat template's), and those of
    its generation config and its config."""
    inner = causal_model(model)
    found = set(more)
    for config in (inner.generation_config, inner.config, text_config(model)):
        ids = getattr(config, "eos_token_id", None)
        found |= {int(i) for i in (ids if isinstance(ids, list | tuple) else [ids]) if isinstance(i, int)}
    return tuple(sorted(i for i in found if i >= 0))


def check_finite(model: "nn.Module", ids: Sequence[int]) -> None:
    """Raises ExpungeError if the log-probabilities after these tokens are not numbers: a weight is NaN or infinite, and whatever
    is trained, measured or fitted on the model would be nothing. Tokens without an embedding are not looked at."""
    import torch

    inner = causal_model(model)
    if not ids or max(ids) >= embedded(model):
        return
    with torch.no_grad():
        logits_TV = inner(input_ids=torch.tensor([list(ids)], device=inner.device)).logits[0]
    if bool(logits_TV.float().log_softmax(-1).isnan().any()):
        raise ExpungeError(
            f"the start model {inner.config.name_or_path} gives logits that are not numbers, so its weights are broken (NaN or "
            "infinity); give another model, or copy it again"
        )
