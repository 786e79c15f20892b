"""The loop: batches -> loss -> step, with checkpoints, metrics.jsonl and exact resumption.

What makes a run repeatable: the rows of a step depend on (seed, step) alone, the learning rate on the step alone, and
random numbers are seeded anew at each step. A checkpoint is therefore weights and optimizer moments and nothing else,
and a run that is killed and resumed ends with the same bytes on a CPU.
"""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.devices import let_segments_grow, out_of_memory
from expunge.errors import ExpungeError
from expunge.memory import PeakMemory
from expunge.methods.base import Loss, TrainingMethod
from expunge.models.blocks import blocks_of
from expunge.processes import join
from expunge.progress import Progress
from expunge.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint, whole
from expunge.training.pairs import Pairs
from expunge.training.reference import Drawn, Reference, Rows, mean_answer_probability, share
from expunge.training.settings import Training


class Trained(NamedTuple):
    model: PreTrainedModel
    gathered: dict[str, Tensor] | None
    """The whole weights on the CPU of the first process where they are sharded; else nothing, the model has them."""
    steps: int
    stopped: str | None
    """Why the run ended before its last step, or nothing."""
    processes: int
    device_seconds: float
    peak_memory_bytes: int


class StepLine(TypedDict):
    """One line of metrics.jsonl."""

    step: int
    """Steps done, this one included."""
    loss: float
    parts: dict[str, float]
    """The terms of the loss before their weights: `forget`, `retain`, ..."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    tokens_per_second: float
    seconds: float


@dataclass
class _State:
    """What the loop carries from step to step."""

    model: nn.Module
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    step: int = 0
    stopped: str | None = None
    updating: bool = False
    """The optimizer is changing weights: what they are now belongs to no step."""


def train(
    model: PreTrainedModel,
    method: TrainingMethod,
    rows: Rows,
    training: Training,
    folder: Path,
    *,
    quiet: bool = False,
) -> Trained:
    """Runs `method` on `rows` and returns the trained model (adapters attached where `training.lora`).

    folder receives metrics.jsonl and checkpoints; where it holds a checkpoint the run goes on from there.
    Errors: a pattern that selects no weight, a batch that processes cannot share evenly, a non-finite loss or gradient,
    sharding that did not happen, too little memory.
    """
    accelerator = _accelerator(training, model.dtype)
    if training.batch_size % accelerator.num_processes:
        raise ExpungeError(
            f"a batch of {training.batch_size} rows cannot be shared evenly by {accelerator.num_processes} processes; "
            f"set --batch-size to a multiple of {accelerator.num_processes}"
        )
    began = time.process_time()
    plan = Pairs(len(rows.forget), len(rows.retain), training.batch_size, training.seed, rows.refusals, rows.parts)
    steps = training.steps or plan.total_steps(training.epochs)
    memory = PeakMemory()
    model = _prepare_weights(model, method, training).to(accelerator.device)
    wrapped, trained = _distribute(model, training, accelerator)
    reference = Reference.compute(model, method.needs, rows, plan, range(steps), accelerator)
    probes = rows.probes(method.pad_side, accelerator.device)
    with torch.no_grad(), accelerator.autocast():
        reference.prepared = method.prepare(wrapped, probes)
    state = _State(wrapped, trained, _optimizer(trained, training, accelerator.device))
    accelerator.wait_for_everyone()  # the first process has made the folder ready
    if (checkpoint := latest_checkpoint(folder)) is not None:
        state.step, state.stopped = load_checkpoint(checkpoint, trained, state.optimizer)
    began_at = state.step
    log = folder / "metrics.jsonl"
    if accelerator.is_main_process:
        _cut_log(log, state.step)
    peak = training.learning_rate or method.learning_rate * (10 if training.lora else 1)
    model.train()
    with Progress(method.method_name(), steps, start=state.step, quiet=quiet or not accelerator.is_main_process) as progress:
        while state.step < steps and state.stopped is None:
            rate = peak * _warp(state.step, steps, training)
            try:
                line = _step(state, method, training, rows, plan, reference, accelerator, rate)
            except torch.OutOfMemoryError as error:
                raise _too_large(state, training, accelerator, folder) from error
            memory.sample()
            if accelerator.is_main_process:
                with open(log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            accelerator.log({"loss": line["loss"], **line["parts"]}, step=state.step)
            progress.advance(1, _note(line))
            with accelerator.autocast():
                state.stopped = _stop(state, training, rows, model, accelerator.device, steps)
            if state.stopped is None and state.step % training.stop_every == 0 and state.step < steps:
                with torch.no_grad(), accelerator.autocast():
                    state.stopped = method.finished(wrapped, probes, reference.prepared)
            if state.step % training.checkpoint_every == 0 and state.step < steps:
                save_checkpoint(folder, state.step, state.stopped, trained, state.optimizer, accelerator.is_main_process)
    if state.step > began_at:  # so that an artifact that cannot be written costs no step
        save_checkpoint(folder, state.step, state.stopped, trained, state.optimizer, accelerator.is_main_process, moments=False)
    for tracker in accelerator.trackers:  # `end_training` would take the process group down with it, which the caller still needs
        tracker.finish()
    model.eval()
    seconds = time.process_time() - began
    gathered = _gather(model, accelerator.is_main_process) if training.shard == "fsdp2" else None
    return Trained(
        model, gathered, state.step, state.stopped, accelerator.num_processes, seconds * accelerator.num_processes, memory.peak
    )


def _accelerator(training: Training, dtype: torch.dtype) -> Accelerator:
    # Accelerate keeps one global state per process and refuses a second precision; each run starts its own.
    let_segments_grow()
    join()
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        mixed_precision="bf16" if _in_bfloat16(training, dtype) else "no",
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


def _in_bfloat16(training: Training, dtype: torch.dtype) -> bool:
    """PEFT keeps adapters in float32 beside bfloat16 weights, and would compute with them in float32 as well."""
    return training.precision == "bfloat16" or (training.precision == "auto" and training.lora and dtype == torch.bfloat16)


def _optimizer(trained: Mapping[str, nn.Parameter], training: Training, device: torch.device) -> torch.optim.AdamW:
    """On a GPU one kernel updates all weights (fused)."""
    return torch.optim.AdamW(
        trained.values(),
        lr=0.0,
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=True if device.type == "cuda" else None,
    )


def chosen_weights(model: nn.Module, method: TrainingMethod) -> set[str]:
    """Names of the weights that the method's pattern matches; none is an error, not a run that trains nothing."""
    try:
        pattern = re.compile(method.parameters)
    except re.error as error:
        raise ExpungeError(f"`parameters` is not a regular expression: '{method.parameters}' ({error})") from error
    names = method.candidates(model)
    chosen = {name for name in names if pattern.search(name)}
    if not chosen:
        raise ExpungeError(
            f"the pattern '{method.parameters}' selects no weight of this model that {method.method_name()} can move; "
            f"those have names like {', '.join(sorted(names)[:3])}"
        )
    return chosen


def _prepare_weights(model: PreTrainedModel, method: TrainingMethod, training: Training) -> PreTrainedModel:
    """Marks what moves: the weights that `method.parameters` matches, or adapters on the linear layers among them."""
    chosen = chosen_weights(model, method)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if training.lora:
        return _with_lora(model, {name.removesuffix(".weight") for name in chosen}, training)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return model


def _with_lora(model: PreTrainedModel, chosen: set[str], training: Training) -> PreTrainedModel:
    head = model.get_output_embeddings()
    linear = (nn.Linear, type(head))
    targets = [
        name
        for name, module in model.named_modules()
        if name in chosen and module is not head and (isinstance(module, linear) or type(module).__name__ == "Conv1D")
    ]
    if not targets:
        raise ExpungeError("LoRA found no linear layer among the selected weights; widen --parameters or train full weights")
    torch.manual_seed(training.seed)
    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=type(model.get_submodule(targets[0])).__name__ == "Conv1D",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)  # type: ignore[no-any-return]


def _distribute(
    model: PreTrainedModel, training: Training, accelerator: Accelerator
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The model as the loss calls it, and the trained weights by name; sharded where asked, which is then checked."""
    if training.shard == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        places = blocks_of(model)
        for i in range(places.count):
            fully_shard(places.module(places.block(i)), mesh=mesh)
        fully_shard(model, mesh=mesh)
        if not all(isinstance(p, DTensor) for p in model.parameters()):
            raise ExpungeError("fsdp2 was asked for and some weights are not sharded; this model cannot be sharded by block")
        return model, {n: p for n, p in model.named_parameters() if p.requires_grad}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # Alone there is nothing to wrap, and accelerate would make float32 copies of bfloat16 logits.
    return (accelerator.prepare_model(model) if accelerator.num_processes > 1 else model), trained


def _step(
    state: _State,
    method: TrainingMethod,
    training: Training,
    rows: Rows,
    plan: Pairs,
    reference: Reference,
    accelerator: Accelerator,
    learning_rate: float,
) -> StepLine:
    """One optimizer step over this process's share of the global batch; returns the line for metrics.jsonl."""
    began, step = time.perf_counter(), state.step
    rank, world = accelerator.process_index, accelerator.num_processes
    torch.manual_seed(_seed(training.seed, step, rank))
    drawn = share(plan, step, rank, world)
    size = training.micro_batch_size or len(drawn)
    totals: dict[str, Tensor] = {}
    for start in range(0, len(drawn), size):
        part = drawn[start : start + size]
        batch = reference.batch(rows, part, method, accelerator.device)
        weight = len(part) / len(drawn)
        with _no_sync(state.model, last=start + size >= len(drawn)), accelerator.autocast():
            loss: Loss = method.loss(state.model, batch)
            (weight * loss.total).backward()
        for name, value in {"loss": loss.total.detach(), **loss.parts}.items():
            found = weight * value.float()
            totals[name] = totals[name] + found if name in totals else found
    if not any(p.grad is not None for p in state.trained.values()):
        raise ExpungeError(f"no gradient reached the weights selected by '{method.parameters}'; the loss does not depend on them")
    norm = nn.utils.clip_grad_norm_(state.trained.values(), training.max_grad_norm)
    # The one place of a step that waits for the device: all that metrics.jsonl needs of it, at once.
    means = accelerator.reduce(torch.stack(list(totals.values())), "mean")
    *found_values, grad_norm = torch.cat([means, whole(norm).float()[None]]).tolist()
    values = dict(zip(totals, found_values, strict=True))
    if not all(map(math.isfinite, (*found_values, grad_norm))):
        named = ", ".join(rows.ids[i] for i in [f for f, _, _ in drawn][:4])
        raise ExpungeError(
            f"the loss or its gradient became non-finite at step {step + 1} (loss {values['loss']}, gradient norm {grad_norm}; "
            f"forget rows {named}, ...); the state before it is kept, lower --learning-rate or --max-grad-norm"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.updating = True
    state.optimizer.step()
    state.updating = False
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    tokens = _token_count(rows, drawn, method)
    seconds = time.perf_counter() - began
    return {
        "step": state.step,
        "loss": values.pop("loss"),
        "parts": values,
        "learning_rate": learning_rate,
        "grad_norm": grad_norm,
        "tokens_per_second": round(tokens * world / seconds, 1),
        "seconds": round(seconds, 4),
    }


def _gather(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """Every process takes part in gathering each weight; one keeps it. A tied weight is kept under its first name only: gathered
    copies share no memory by which transformers would know that the second is the same."""
    gathered = {}
    second = {n for n, _ in model.named_parameters(remove_duplicate=False)} - {n for n, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        if name in second:
            continue
        full = whole(value)
        if keep:
            gathered[name] = full.cpu()
    return gathered


def _stop(state: _State, training: Training, rows: Rows, model: nn.Module, device: torch.device, steps: int) -> str | None:
    if not training.stop_when_unknown or state.step % training.stop_every or state.step >= steps:
        return None
    known = mean_answer_probability(model, rows.forget, rows.pad_id, device)
    never = mean_answer_probability(model, rows.holdout, rows.pad_id, device)
    if known > never:
        return None
    return f"forget answers (mean probability {known:.3f}) are no more probable than holdout answers ({never:.3f})"


def _warp(step: int, steps: int, training: Training) -> float:
    """The learning rate of step 0, 1, ... as a share of its peak."""
    rise = round(steps * training.warmup)
    if step < rise:
        return (step + 1) / (rise + 1)
    if training.schedule == "constant":
        return 1.0
    x = (step - rise) / max(steps - rise, 1)
    if training.schedule == "linear":
        return 1 - x
    return 0.5 * (1 + math.cos(math.pi * x))


def _seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1_009 + rank


def _token_count(rows: Rows, drawn: Sequence[Drawn], method: TrainingMethod) -> int:
    """Tokens of the drawn rows, padding left out; counted where the rows are, not on the device."""
    count = sum(len(rows.forget[d.forget].ids) for d in drawn)
    if method.uses_retain:
        count += sum(len(rows.retain[d.retain].ids) for d in drawn)
    if method.uses_refusals and rows.alternative is not None:
        count += sum(len(rows.alternative(d.forget, d.refusal).ids) for d in drawn)
    return count


def _too_large(state: _State, training: Training, accelerator: Accelerator, folder: Path) -> ExpungeError:
    """What to do about too little memory; what was trained so far is kept first, where its weights are whole."""
    state.optimizer.zero_grad(set_to_none=True)
    alone = accelerator.num_processes == 1
    if alone and state.step > 0 and not state.updating:
        save_checkpoint(folder, state.step, None, state.trained, state.optimizer, write=True)
    rows = training.micro_batch_size or training.batch_size // accelerator.num_processes
    ways = [f"--micro-batch-size {rows // 2}"] * (rows > 1) + ["--gradient-checkpointing"] * (not training.gradient_checkpointing)
    remedies = [f"go on by --resume with {' or '.join(ways)}"] * bool(ways) + ["start anew with --lora"] * (not training.lora)
    remedy = ", or ".join(remedies) or "shorten the rows by --max-length, or take a smaller model"
    return out_of_memory(f"in step {state.step + 1} with {rows} rows a pass", remedy)


def _no_sync(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Gradients travel between processes once a step, with its last micro-batch."""
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def _note(line: StepLine) -> str:
    parts = line["parts"]
    return " ".join(f"{name} {value:.3g}" for name, value in parts.items()) + f", {line['tokens_per_second']:.0f} tokens/s"


def _cut_log(log: Path, step: int) -> None:
    """Drops the lines after the checkpoint that the run goes on from, so that each step stands there once."""
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines()
        kept = [x for x in lines if _step_of(x) <= step]
        log.write_text("".join(x + "\n" for x in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")  # the half line of a killed run
