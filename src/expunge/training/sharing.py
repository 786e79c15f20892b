"""Starts accelerate for a run, shards the weights over processes if asked for, and gathers them again."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from expunge.devices import let_segments_grow
from expunge.errors import ExpungeError
from expunge.models.blocks import blocks_of
from expunge.processes import join
from expunge.training.checkpoints import whole
from expunge.training.settings import Training


def accelerator_of(training: Training, dtype: torch.dtype) -> Accelerator:
    """Returns a new accelerator for a model whose weights are of `dtype`. Raises ExpungeError for shards in a single process."""
    # Accelerate keeps one global state per process and refuses a second precision; each run starts its own.
    let_segments_grow()
    join()
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        mixed_precision="bf16" if in_bfloat16(training, dtype) else "no",
        cpu=not torch.cuda.is_available(),
        log_with=None if training.track == "none" else training.track,
    )
    if training.track != "none":
        accelerator.init_trackers("expunge", config=training.model_dump())
    if training.shard == "fsdp2" and not torch.distributed.is_initialized():
        raise ExpungeError(
            "sharding with fsdp2 needs several processes: start the command with `torchrun --nproc_per_node N -m expunge ...`"
        )
    return accelerator


def in_bfloat16(training: Training, dtype: torch.dtype) -> bool:
    """Returns whether adapters are computed in bfloat16: PEFT keeps them in float32 beside bfloat16 weights, and would compute in
    float32."""
    return training.precision == "bfloat16" or (training.precision == "auto" and training.lora and dtype == torch.bfloat16)


def distribute(model: PreTrainedModel, training: Training, accelerator: Accelerator) -> dict[str, nn.Parameter]:
    """Shards the model if requested, and checks it; returns the trained weights by name."""
    if training.shard == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        places = blocks_of(model)
        for i in range(places.count):
            fully_shard(places.module(places.block(i)), mesh=mesh)
        fully_shard(model, mesh=mesh)
        if not all(isinstance(p, DTensor) for p in model.parameters()):
            raise ExpungeError(
                "--shard fsdp2 left some weights whole, so this model cannot be sharded by block; leave --shard out"
            )
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def gather(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """Gathers each weight, in which all processes take part, and keeps it on one. A tied weight is kept under its first name
    only, since transformers cannot recognize gathered copies as the same weight."""
    gathered = {}
    second = {n for n, _ in model.named_parameters(remove_duplicate=False)} - {n for n, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        if name in second:
            continue
        full = whole(value)
        if keep:
            gathered[name] = full.cpu()
    return gathered
