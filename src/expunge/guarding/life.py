"""Fits a guard on a model, saves it as small files, attaches it after a check that it acts, and detaches it.

    guard.safetensors   the method's tensors, and its canaries (canaries.py)
    assets/             files that the method fitted, such as an encoder; only where it has some

Without its hooks, a guarded model is the original model. Therefore a guard is never part of a model folder, a guarded model
refuses to be saved as one, and the canaries are measured again whenever a guard is attached.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.data.format import save_format
from expunge.errors import ExpungeError
from expunge.folders import GUARD_FILE
from expunge.guarding.canaries import canaries, check, distance, next_token, with_canaries
from expunge.guarding.forward_pass import Counts
from expunge.guarding.session import replaced
from expunge.methods.base import GuardingMethod, ObjectiveBuilder, Resources, State
from expunge.models.checkpoint import save_tensors
from expunge.models.load import causal_model
from expunge.models.save import save_tokenizer
from expunge.records import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE, ASSETS = GUARD_FILE, "assets"


class Guard:
    """A guard that is attached to a model until `detach`."""

    def __init__(
        self, model: nn.Module, method: GuardingMethod, state: State, encoder: Encoder, hooks: ExitStack, counts: Counts
    ) -> None:
        self.method, self.state, self.encoder, self.counts = method, state, encoder, counts
        self._model, self._hooks = model, hooks

    def salt(self, ids: Sequence[int]) -> str:
        """Computes `salt` of the prompt of these tokens."""
        return salt(self._model, self.method, self.state, self.encoder, ids)

    def detach(self) -> None:
        """Removes the guard from the model."""
        self._hooks.close()


def fit(
    method: GuardingMethod,
    model: nn.Module,
    request: Request,
    encoder: Encoder,
    *,
    build_objective: ObjectiveBuilder | None = None,
    assets: Path | None = None,
) -> State:
    """Fits the method's state, and measures the canaries on this model.

    build_objective   for methods that tune themselves by a score
    assets            an empty folder for files that belong to the state; it must exist until the state is saved

    Raises ExpungeError if the method needs an objective and none was given.
    """
    objective = reported = None
    if method.needs_objective:
        if build_objective is None:
            raise ExpungeError(f"{method.method_name()} tunes itself by a score; fit it with expunge.unlearn, which measures it")
        objective = build_objective(method, model, request, encoder, "tuning")
        reported = build_objective(method, model, request, encoder, "reported")
    state = method.fit(model, request, encoder, Resources(objective, assets, reported))
    return state if method.canaries == 0 else with_canaries(method, model, state, request, encoder)


def save(folder: Path, state: State, encoder: Encoder) -> None:
    """Writes guard.safetensors and assets, and the tokenizer and format; no weights.

    What a method measured to set a threshold (`calibration.NAME`) is also written to calibration.json, for reports.
    """
    save_tensors(folder / FILE, state)
    if state.assets is not None and any(state.assets.iterdir()):
        shutil.copytree(state.assets, folder / ASSETS)
    save_tokenizer(folder, encoder.tokenizer)
    save_format(folder, encoder.format)
    measured = {n.partition(".")[2]: [round(v, 6) for v in t.tolist()] for n, t in state.items() if n.startswith("calibration.")}
    if measured:
        write_json(folder / "calibration.json", measured)


def read(folder: Path) -> State:
    """Reads the state of a guard artifact."""
    assets = folder / ASSETS
    with torch.inference_mode(False):  # a guard that is attached while scoring is also there when gradients are recorded
        return State(load_file(folder / FILE), assets if assets.is_dir() else None)


def attach(model: "PreTrainedModel", method: GuardingMethod, state: State, encoder: Encoder, *, refuse: bool = True) -> Guard:
    """Guards `model` until `detach`, after a check on the canaries that the guard acts on it.

    The guard is also `model.expunge_guard`, and `model.save_pretrained` raises. Raises ExpungeError if the guard does not act as
    recorded; with refuse=False it only warns.
    """
    root = causal_model(model)
    if "expunge_guard" in vars(root):
        raise ExpungeError("the model has a guard already; call model.expunge_guard.detach() first")
    rows = canaries(state)
    plain_CV = next_token(model, rows, encoder.pad_id) if rows else None
    hooks = ExitStack()
    try:
        counts = hooks.enter_context(method.attach(model, state, encoder))
        if plain_CV is not None:
            check(method, state, distance(plain_CV, next_token(model, rows, encoder.pad_id)), refuse=refuse)
        hooks.enter_context(replaced(root, "save_pretrained", _refuse_to_save))
    except BaseException:
        hooks.close()
        raise
    counts.decided = counts.acted = 0  # the canaries are nobody's prompts
    guard = Guard(root, method, state, encoder, hooks, counts)
    for name, value in (("expunge_guard", guard), ("__reduce_ex__", _refuse_to_copy)):
        vars(root)[name] = value
        hooks.callback(vars(root).pop, name)
    return guard


def salt(model: nn.Module, method: GuardingMethod, state: State, encoder: Encoder, ids: Sequence[int]) -> str:
    """Computes a hash of the guard and of its decision about a prompt, for the keys of a prefix cache.

    A server that shares keys and values between prompts with the same beginning adds it to the key of its cache, so that a
    corrupted prompt and a clean one never share.
    """
    digest = hashlib.sha256(method.model_dump_json().encode())
    for name in sorted(state):
        if not name.startswith(("canary.", "calibration.", "tuning.")):
            tensor = state[name].contiguous()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(method.decision(model, state, encoder, tuple(ids)).encode())
    return digest.hexdigest()


def guard_counts(model: nn.Module) -> Counts | None:
    """Returns what the guard on a model has counted so far; None without a guard."""
    guard = vars(causal_model(model)).get("expunge_guard")
    return guard.counts if isinstance(guard, Guard) else None


def _refuse_to_copy(protocol: object) -> None:
    """Stands for what `copy` and `pickle` ask an object for."""
    raise ExpungeError(
        "a guarded model can be neither copied nor pickled, since its guard is attached to this one model; load it a second time "
        "with expunge.load, or copy the model after model.expunge_guard.detach()"
    )


def _refuse_to_save(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ExpungeError(
            "a guarded model saved as a model folder would be the original model; keep the guard's artifact, or save the model "
            "after model.expunge_guard.detach()"
        )

    return save_pretrained
