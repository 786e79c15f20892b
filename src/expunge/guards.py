"""The life of a guard: fitted on a model, saved as small tensors, attached to that same model and checked, detached.

    guard.safetensors   the method's tensors; canary.ids, canary.length, canary.effect: prompts as tokens, and by how much the
                        guard changed the distribution of the next token behind each (total variation, 0 to 1)

A guard whose hooks are lost is the original model and looks like the guarded one. So a guard is never part of a model folder,
a guarded model refuses to be saved as one, and whoever attaches a guard measures the canaries again.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.data.encode import Encoded, Encoder, collate, save_format
from expunge.data.example import Example, Request
from expunge.errors import ExpungeError
from expunge.methods.base import GuardingMethod, State
from expunge.methods.guarding.calls import replaced
from expunge.models.checkpoint import save_tensors
from expunge.models.load import causal_model
from expunge.models.logprobs import labelled_logits
from expunge.records import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "guard.safetensors"
NOTICEABLE = 0.02
"""Mean effect on the forget canaries below which a guard counts as doing nothing."""


class Guard:
    """A guard that is attached to a model until `detach`."""

    def __init__(self, method: GuardingMethod, hooks: ExitStack) -> None:
        self.method = method
        self._hooks = hooks

    def detach(self) -> None:
        """The model is as it was before; nothing of the guard is left on it."""
        self._hooks.close()


def fit(method: GuardingMethod, model: nn.Module, request: Request, encoder: Encoder) -> State:
    """The method's state, and the canaries measured on this very model."""
    state = dict(method.fit(model, request, encoder))
    if method.canaries == 0:
        return state
    rows = [*_some(request.forget, encoder, method.canaries), *_some(request.retain, encoder, method.canaries)]
    plain_CV = _next_token(model, rows, encoder.pad_id)
    with method.attach(model, state, encoder):
        effect_C = _distance(plain_CV, _next_token(model, rows, encoder.pad_id))
    forget = min(method.canaries, len(request.forget))
    if effect_C[:forget].mean() < NOTICEABLE:
        warnings.warn(
            f"the guard hardly changes what follows its forget canaries (total variation {float(effect_C[:forget].mean()):.3f}); "
            "nobody who loads it can tell whether it acts",
            stacklevel=2,
        )
    width = max(len(row.ids) for row in rows)
    ids_CT = torch.tensor([[*row.ids, *[encoder.pad_id] * (width - len(row.ids))] for row in rows])
    lengths_C = torch.tensor([len(row.ids) for row in rows])
    return state | {
        "canary.ids": ids_CT,
        "canary.length": lengths_C,
        "canary.effect": effect_C,
        "canary.forget": torch.tensor(forget),
    }


def save(folder: Path, state: State, encoder: Encoder) -> None:
    """guard.safetensors, and the tokenizer and format that go with it; no weights.

    What a method measured to set a threshold (`calibration.NAME`) goes into calibration.json as well, for reports.
    """
    save_tensors(folder / FILE, state)
    encoder.tokenizer.save_pretrained(folder)
    save_format(folder, encoder.format)
    measured = {n.partition(".")[2]: [round(v, 6) for v in t.tolist()] for n, t in state.items() if n.startswith("calibration.")}
    if measured:
        write_json(folder / "calibration.json", measured)


def read(folder: Path) -> State:
    state: State = load_file(folder / FILE)
    return state


def attach(model: "PreTrainedModel", method: GuardingMethod, state: State, encoder: Encoder, *, check: bool = True) -> Guard:
    """Guards `model` until `detach`, after the canaries have shown that the guard acts on it.

    The guard is also `model.expunge_guard`, and `model.save_pretrained` refuses. check=False warns where it would have refused.
    """
    root = causal_model(model)
    if "expunge_guard" in vars(root):
        raise ExpungeError("the model has a guard already; call model.expunge_guard.detach() first")
    rows = _canaries(state)
    plain_CV = _next_token(model, rows, encoder.pad_id) if rows else None
    hooks = ExitStack()
    try:
        hooks.enter_context(method.attach(model, state, encoder))
        if plain_CV is not None:
            _check(method, state, _distance(plain_CV, _next_token(model, rows, encoder.pad_id)), refuse=check)
        hooks.enter_context(replaced(root, "save_pretrained", _refuse))
    except BaseException:
        hooks.close()
        raise
    guard = Guard(method, hooks)
    vars(root)["expunge_guard"] = guard
    hooks.callback(vars(root).pop, "expunge_guard")
    return guard


def _refuse(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ExpungeError(
            "a guarded model saved as a model folder would be the original model; keep the guard's artifact, or save the model "
            "after model.expunge_guard.detach()"
        )

    return save_pretrained


def _check(method: GuardingMethod, state: State, effect_C: Tensor, *, refuse: bool) -> None:
    """Half of the recorded effect has to be there; half, since another dtype or kernel moves a few draws and decisions."""
    forget = int(state["canary.forget"])
    recorded, found = float(state["canary.effect"][:forget].mean()), float(effect_C[:forget].mean())
    if recorded < NOTICEABLE or found >= recorded / 2:
        return
    message = (
        f"the {method.method_name()} guard does not act on this model: it changes what follows its {forget} canary prompts by "
        f"{found:.3f} where {recorded:.3f} was recorded; give the model, dtype and tokenizer that it was fitted on"
    )
    if refuse:
        raise ExpungeError(message)
    warnings.warn(message, stacklevel=3)


def _some(examples: Sequence[Example], encoder: Encoder, count: int) -> list[Encoded]:
    """Prompts of up to `count` examples, evenly spaced; of raw text the whole text."""
    stride = max(1, len(examples) // max(1, count))
    chosen = examples[::stride][:count]
    rows = encoder.encode_many(chosen)
    return [
        row if e.prompt is None else Encoded(row.ids[: row.answer_start], 1, False) for e, row in zip(chosen, rows, strict=True)
    ]


def _canaries(state: State) -> list[Encoded]:
    if "canary.ids" not in state:
        return []
    pairs = zip(state["canary.ids"].tolist(), state["canary.length"].tolist(), strict=True)
    return [Encoded(tuple(ids[:length]), 1, False) for ids, length in pairs]


@torch.no_grad()
def _next_token(model: nn.Module, rows: Sequence[Encoded], pad_id: int) -> Tensor:
    """Distribution of the token behind each row, float32 [C, V]: scored as the first token of an answer, as generation begins."""
    device = causal_model(model).device
    asked = [Encoded((*row.ids, 0), len(row.ids), False) for row in rows]
    return torch.cat(
        [labelled_logits(model, collate([row], pad_id).to(device)).logits_NV.float().softmax(-1).cpu() for row in asked]
    )


def _distance(one_CV: Tensor, other_CV: Tensor) -> Tensor:
    return (one_CV - other_CV).abs().sum(dim=-1) / 2
