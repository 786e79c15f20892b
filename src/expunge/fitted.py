"""What becomes of a method without gradient steps: a guard is fitted, or weights are edited in place, in a few forward passes."""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from expunge import guards
from expunge.artifact import Claim, Kind
from expunge.data.encode import Encoder, save_format
from expunge.data.example import Request
from expunge.memory import PeakMemory
from expunge.methods.base import GuardingMethod, InPlaceEditing


class Made(NamedTuple):
    """What a run of any family made."""

    kind: Kind
    claim: Claim
    notes: str
    """For the card; no text of the forget set."""
    write: Callable[[Path], None]
    """Fills the artifact's folder."""
    steps: int
    stopped: str | None
    processes: int
    device_seconds: float
    peak_memory_bytes: int
    counts: Mapping[str, int] = MappingProxyType({})
    """Rows of the parts that were made of the forget set."""
    done: Callable[[], None] = lambda: None
    """Called when the artifact is in its place."""


def carry_out(method: GuardingMethod | InPlaceEditing, model: PreTrainedModel, request: Request, encoder: Encoder) -> Made:
    """Fits the guard or edits the weights; nothing is written yet. Under torchrun the processes share the probe's passes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        model.to(PartialState(cpu=not torch.cuda.is_available()).device)  # type: ignore[arg-type]
    memory, began = PeakMemory(), time.process_time()
    if isinstance(method, GuardingMethod):
        state = guards.fit(method, model, request, encoder)
        notes = method.summary(state)
        if "canary.ids" in state:
            notes += "\n\nguard.safetensors holds some forget and retain prompts, as tokens: by them its loader checks it."
        write = partial(guards.save, state=state, encoder=encoder)
    else:
        notes = method.apply(model, request, encoder)
        write = partial(_save_model, model, encoder)
    memory.sample()
    guard = isinstance(method, GuardingMethod)
    spent = (processes, time.process_time() - began, memory.peak)
    return Made("guard" if guard else "weights", "L0" if guard else "L1", notes, write, 0, None, *spent)


def _save_model(model: PreTrainedModel, encoder: Encoder, folder: Path) -> None:
    """A complete Hugging Face folder."""
    model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    save_format(folder, encoder.format)
