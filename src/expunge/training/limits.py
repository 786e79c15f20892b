"""Checks what a model can read of a run's rows: learned positions, embeddings, and how much of the answers is cut off."""

import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from expunge.data.encode import Encoded, Encoder
from expunge.data.example import Example, Request
from expunge.errors import ExpungeError
from expunge.models.load import causal_model
from expunge.training.data import TrainingData


def checked_rows(model: nn.Module, data: TrainingData, encoder: Encoder) -> TrainingData:
    """Returns the data with a pad token that the model has an embedding for. Raises ExpungeError if a row has a token without
    one."""
    table = causal_model(model).get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    words = table.shape[0]
    largest = max(max(row.ids) for rows in (data.forget, data.retain, data.holdout, data.neutral) for row in rows)
    if largest >= words:
        token = encoder.tokenizer.convert_ids_to_tokens(largest)
        raise ExpungeError(
            f"the tokenizer gives the token {token!r} the id {largest}, and the model's embedding has {words} rows; take the "
            "tokenizer that belongs to the model, or resize the embedding and train it first"
        )
    return data if data.pad_id < words else replace(data, pad_id=encoder.eos_id)


def lost_answers(request: Request, data: TrainingData, encoder: Encoder) -> str:
    """Describes how much of the answers `max_length` cuts off, for the card and as a warning; "" if nothing is.

    Raises ExpungeError if more than half of the forget set's answer tokens are lost.
    """
    said = []
    for name, rows, examples in (("forget", data.forget, request.forget), ("retain", data.retain, request.retain)):
        cut = [(row, example) for row, example in zip(rows, examples, strict=False) if row.truncated]
        if not cut:
            continue
        lost, total = _lost(cut, rows, encoder)
        share = lost / total
        said.append(f"{len(cut)} of {len(rows)} {name} rows lose the end of their answer, {share:.0%} of all answer tokens")
        if name == "forget" and share > 0.5:
            raise ExpungeError(
                f"{said[-1]}, at --max-length {encoder.max_length}: most of what is to be forgotten would not be "
                "read; raise it, or split long texts into several rows"
            )
    if not said:
        return ""
    sentence = f"At --max-length {encoder.max_length}, {'; '.join(said)}."
    warnings.warn(sentence, UserWarning, stacklevel=2)
    return sentence


def _lost(cut: Iterable[tuple[Encoded, Example]], rows: Sequence[Encoded], encoder: Encoder) -> tuple[int, int]:
    """Returns the number of answer tokens that are cut off, and of all answer tokens."""
    short, examples = zip(*cut, strict=True)
    whole = Encoder(encoder.tokenizer, encoder.format, max_length=sys.maxsize).encode_many(examples)
    lost = sum(len(a.ids) - len(b.ids) for a, b in zip(whole, short, strict=True))
    return lost, lost + sum(len(row.ids) - row.answer_start for row in rows)


def check_dtype(dtype: torch.dtype) -> None:
    """Raises ExpungeError for float16, in which small gradients become 0 and large ones infinite."""
    if dtype == torch.float16:
        raise ExpungeError(
            "weights in float16 cannot be trained: gradients and AdamW's moments fall out of its range; load the model with "
            "--dtype bfloat16, which takes the same memory, or float32"
        )
