"""Writes and reads checkpoints of a run: trained weights, AdamW's moments and the method's carried tensors."""

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from expunge.errors import ExpungeError, reason
from expunge.folders import RESERVED, size_text
from expunge.models.checkpoint import save_tensors
from expunge.models.folder import file_hash
from expunge.models.save import model_bytes
from expunge.training.data import Resting
from expunge.training.settings import Training

HASHED = 8 * 10**9
"""Size of a checkpoint, in bytes, up to which it has a checksum, which takes some seconds."""
_NAME = re.compile(r"checkpoint-(\d+)")


def latest_checkpoint(folder: Path) -> Path | None:
    found = [(int(m[1]), p) for p in folder.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))]
    return max(found)[1] if found else None


def save_checkpoint(
    folder: Path,
    step: int,
    stopped: str | None,
    resting: bool,
    resting_rows: Resting,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    carried: Mapping[str, Tensor],
    *,
    write: bool,
    moments: bool = True,
) -> None:
    """Writes checkpoint-STEP and then removes the older ones. With sharding every process must call it; one has `write`.

    carried  tensors that the method carries from step to step
    moments  false for the last step, after which the optimizer is not used again

    Raises ExpungeError if it cannot be written; the one before is then kept.
    """
    tensors: dict[str, Tensor] = {f"carried/{name}": value for name, value in carried.items()}
    for name, parameter in trained.items():
        tensors[f"weight/{name}"] = whole(parameter.detach())
        for key, value in optimizer.state[parameter].items() if moments else ():
            tensors[f"{key}/{name}"] = whole(value)
    if not write:
        return
    target = folder / f"checkpoint-{step}"
    partial = folder / f".checkpoint-{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        save_tensors(partial / "state.safetensors", tensors)
        rows = [sorted(part) for part in resting_rows]
        state = {"step": step, "stopped": stopped, "resting": resting, "resting_rows": rows}
        if (partial / "state.safetensors").stat().st_size <= HASHED:
            state["sha256"] = file_hash(partial / "state.safetensors")
        (partial / "state.json").write_text(json.dumps(state))
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ExpungeError(
            f"the checkpoint {target} could not be written ({reason(error)}); make room, then go on with --resume from the one "
            "before"
        ) from error
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    for old in folder.glob("checkpoint-*"):
        if old != target:
            shutil.rmtree(old)


@contextmanager
def reserved(folder: Path, trained: Mapping[str, nn.Parameter], *, write: bool) -> Iterator[None]:
    """Holds the room of the last checkpoint, which has no moments, while the steps are done: a disk that others fill meanwhile
    costs none of them. The room is free again when the block is left. On systems that cannot reserve room, nothing is held."""
    nbytes = sum(parameter.numel() * parameter.element_size() for parameter in trained.values())
    if not (write and nbytes and hasattr(os, "posix_fallocate")):
        yield
        return
    file = folder / RESERVED
    try:
        try:
            with open(file, "wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, nbytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ExpungeError(
                    f"{folder} has no room for the last checkpoint ({size_text(nbytes)}); make room, then go on with --resume"
                ) from error
        yield
    finally:
        file.unlink(missing_ok=True)


def disk_bytes(model: nn.Module, chosen: Collection[str], training: Training) -> int:
    """Returns the most that a run has on disk at once: two checkpoints while one replaces the other, and the room for the last;
    or the last one and the artifact."""
    sizes = [(n, p.shape, p.numel() * p.element_size()) for n, p in model.named_parameters() if n in chosen]
    if training.lora:
        trained = sum(4 * training.lora_rank * sum(shape[-2:]) for _, shape, _ in sizes if len(shape) > 1)
        return (3 * 2 + 1) * trained
    trained = sum(size for _, _, size in sizes)
    return max((2 * 3 + 1) * trained, trained + model_bytes(model))


def load_checkpoint(
    path: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[int, str | None, bool, Resting, dict[str, Tensor]]:
    """Restores weights and moments; returns the step they belong to, the reason why the run stopped (if it had), whether the
    forget terms are paused, the parts of forget rows that are, and the carried tensors.

    Raises ExpungeError if the checkpoint cannot be read."""
    try:
        state = json.loads((path / "state.json").read_text())
        if "sha256" in state and state["sha256"] != file_hash(path / "state.safetensors"):
            raise ValueError("state.safetensors differs from its checksum")
        if path.name != f"checkpoint-{state['step']}":
            raise ValueError(f"state.json is of step {state['step']}")
        with safe_open(path / "state.safetensors", framework="pt") as file:
            names = set(file.keys())
            for name, parameter in trained.items():
                with torch.no_grad():
                    parameter.copy_(_like(file.get_tensor(f"weight/{name}"), parameter))
                optimizer.state[parameter] = {
                    key: _placed(key, file.get_tensor(f"{key}/{name}"), parameter, fused=bool(optimizer.defaults.get("fused")))
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{key}/{name}" in names
                }
            carried = {n.removeprefix("carried/"): file.get_tensor(n) for n in names if n.startswith("carried/")}
        rows = Resting(*map(frozenset, state["resting_rows"]))
        return int(state["step"]), state["stopped"], bool(state["resting"]), rows, carried
    except Exception as error:
        raise ExpungeError(
            f"the checkpoint {path} cannot be read ({error}); delete it to start the run anew, or use --overwrite"
        ) from error


def whole(tensor: Tensor) -> Tensor:
    """Returns the full tensor of a shard; an unsharded tensor is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _placed(key: str, full: Tensor, parameter: nn.Parameter, *, fused: bool) -> Tensor:
    """Moves moments to the device and layout of their weight; the step count only if one kernel updates all weights."""
    if key != "step":
        return _like(full, parameter)
    return full.to(parameter.device) if fused else full


def _like(full: Tensor, parameter: nn.Parameter) -> Tensor:
    full = full.to(parameter.device)
    return distribute_tensor(full, parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else full
