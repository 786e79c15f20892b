"""Runs a method that edits weights in place: statistics from a few forward passes, no gradient, a complete model."""

from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.data.format import save_format
from expunge.memory import Cost
from expunge.methods.base import InPlaceEditing
from expunge.processes import count, place
from expunge.runner import AnyRun, Context, Made, Runner


def check(run: AnyRun, request: Request) -> None:
    """Raises where the request lacks what the method needs."""
    _method(run).require(request)


def produce(context: Context) -> Made:
    """Edits the start model; under torchrun the processes share the passes over the data."""
    model = place(context.load())
    cost = Cost()
    notes = _method(context.run).apply(model, context.request, context.encoder)
    spent = cost.so_far()
    context.prepare()
    return Made("weights", "L1", notes, partial(_save, model, context.encoder), 0, None, count(), *spent[1:])


RUNNER = Runner(check, produce, spreads=True)


def _method(run: AnyRun) -> InPlaceEditing:
    assert isinstance(run.method, InPlaceEditing)  # the family says so, and `expunge unlearn` takes no merging method
    return run.method


def _save(model: PreTrainedModel, encoder: Encoder, folder: Path) -> None:
    """A complete Hugging Face folder with tokenizer and format."""
    model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    save_format(folder, encoder.format)
