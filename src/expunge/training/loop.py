"""Runs the training loop: batches, loss and optimizer steps, with checkpoints, metrics.jsonl and exact resumption.

A run is repeatable: the rows of a step depend on (seed, step) only, the learning rate on the step only, and
random numbers are seeded again at each step. A checkpoint therefore holds weights and optimizer moments only,
and a run that is killed and resumed ends with the same bytes on a CPU.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from expunge.devices import out_of_memory
from expunge.errors import ExpungeError
from expunge.memory import PeakMemory
from expunge.methods.training.base import Progress as Position
from expunge.methods.training.base import TrainingMethod
from expunge.progress import Progress
from expunge.training import step_log
from expunge.training.batches import count_pieces, micro_batches
from expunge.training.checkpoints import latest_checkpoint, load_checkpoint, reserved, save_checkpoint, whole
from expunge.training.data import StepRows, TrainingData, without
from expunge.training.disruption import Disruption
from expunge.training.gradients import StepWork, step_gradient
from expunge.training.pairs import Pairs
from expunge.training.pairs import share as shared
from expunge.training.reference import ReferenceTable
from expunge.training.settings import Training
from expunge.training.sharing import accelerator_of, distribute, gather
from expunge.training.state import Checks, State
from expunge.training.step_log import StepLine
from expunge.training.stopping import Watch
from expunge.training.weights import select_weights, set_trainable


class Trained(NamedTuple):
    model: PreTrainedModel
    gathered: dict[str, Tensor] | None
    """The full weights on the CPU of the first process, if they are sharded; otherwise None, since the model has them."""
    steps: int
    stopped: str | None
    """Why the run ended before its last step, or None."""
    processes: int
    device_seconds: float
    peak_memory_bytes: int
    disruption: float | None = None
    """KL(start || model) in nats per token of neutral text, if there is any."""


@dataclass(frozen=True)
class _Job:
    """What stays the same over the steps of a run."""

    method: TrainingMethod
    data: TrainingData
    training: Training
    folder: Path
    steps: int
    learning_rate: float
    """The highest one."""
    accelerator: Accelerator
    plan: Pairs
    table: ReferenceTable
    checks: Checks

    @property
    def writes(self) -> bool:
        """Returns whether this process writes the files of the run."""
        return bool(self.accelerator.is_main_process)


def train(
    model: PreTrainedModel,
    method: TrainingMethod,
    data: TrainingData,
    training: Training,
    folder: Path,
    *,
    quiet: bool = False,
) -> Trained:
    """Runs `method` on `data` and returns the trained model (adapters attached where `training.lora`).

    folder receives metrics.jsonl and checkpoints; where it holds a checkpoint the run goes on from there.
    Raises ExpungeError if the pattern selects no weight, processes cannot share a batch evenly, a loss or gradient is not finite,
    the model was not sharded as requested, or memory runs out.
    """
    accelerator = accelerator_of(training, model.dtype)
    began = time.process_time()
    memory = PeakMemory()
    job, state = _prepared(model, method, data, training, folder, accelerator)
    accelerator.wait_for_everyone()  # the first process has made the folder ready
    if (checkpoint := latest_checkpoint(folder)) is not None:
        found = load_checkpoint(checkpoint, state.trained, state.optimizer)
        state.step, state.stopped, state.resting, state.resting_rows, state.carried = found
    began_at = state.step
    _run(job, state, memory, quiet=quiet)
    if state.step > began_at:  # so that an artifact that cannot be written costs no step
        _save(state, folder, write=job.writes, moments=False)
    for tracker in accelerator.trackers:  # `end_training` would take the process group down with it, which the caller still needs
        tracker.finish()
    state.model.eval()
    with accelerator.autocast():
        disruption = None if job.checks.disruption is None else job.checks.disruption.measure(state.model)
    seconds = time.process_time() - began
    return Trained(
        state.model,
        gather(state.model, job.writes) if training.shard == "fsdp2" else None,
        state.step,
        state.stopped,
        accelerator.num_processes,
        seconds * accelerator.num_processes,
        memory.peak,
        disruption,
    )


def _prepared(
    model: PreTrainedModel, method: TrainingMethod, data: TrainingData, training: Training, folder: Path, accelerator: Accelerator
) -> tuple[_Job, State]:
    """Selects and distributes the weights, and computes what is measured with the start model."""
    plan = Pairs(len(data.forget), len(data.retain), training.batch_size, training.seed, data.parts)
    plan.check_shares(accelerator.num_processes)
    steps, peak = training.steps, training.learning_rate
    if steps == "auto" or peak == "auto":
        raise ValueError("the settings are not resolved: `training.defaults.resolve` puts numbers in the place of `auto`")
    model = set_trainable(model, select_weights(model, method, training), training).to(accelerator.device)
    trained = distribute(model, training, accelerator)
    table = ReferenceTable.compute(model, method, data, plan, range(steps), accelerator, by_part=training.stop_by_row)
    probes = data.probes(method.pad_side, accelerator.device)
    with torch.no_grad(), accelerator.autocast():
        table.prepared = method.prepare(model, probes)
        checks = Checks(
            Watch.of(model, method, data, training, accelerator.device),
            Disruption.of(model, data, training, accelerator.device),
            lambda: method.finished(model, probes, table.prepared),
        )
    state = State(model, trained, _optimizer(trained, training, accelerator.device), method.first_carried())
    return _Job(method, data, training, folder, steps, peak, accelerator, plan, table, checks), state


def _run(job: _Job, state: State, memory: PeakMemory, *, quiet: bool) -> None:
    """Runs the remaining steps, with a line of metrics.jsonl for each, checks and checkpoints."""
    log, training = job.folder / "metrics.jsonl", job.training
    if job.writes:
        step_log.cut(log, state.step)
    job.checks.mark(state.trained.values())
    state.model.train()
    bar = Progress(job.method.method_name(), job.steps, start=state.step, quiet=quiet or not job.writes)
    with reserved(job.folder, state.trained, write=job.writes), bar as progress:
        while state.step < job.steps and state.stopped is None:
            rate = job.learning_rate * _warp(state.step, job.steps, training)
            try:
                line = _step(state, job, rate)
            except torch.OutOfMemoryError as error:
                raise _too_large(state, job) from error
            position = Position(state.step, job.steps, job.plan.epoch(state.step))
            state.carried = job.method.carry(state.carried, line["parts"], position)
            memory.sample()
            if job.writes:
                step_log.append(log, line)
            job.accelerator.log({"loss": line["loss"], **line["parts"]}, step=state.step)
            progress.advance(1, step_log.note(line))
            if state.step % training.stop_every == 0 or state.step == job.steps:
                with job.accelerator.autocast():
                    job.checks.run(state, last=state.step == job.steps)
            if _checkpoint_is_due(state.step, training, checked=job.checks.change_weights) and state.step < job.steps:
                _save(state, job.folder, write=job.writes)


def _optimizer(trained: Mapping[str, nn.Parameter], training: Training, device: torch.device) -> torch.optim.AdamW:
    """Creates AdamW, with one kernel for all weights (fused) on a GPU, and on a CPU if they are unsharded float32."""
    plain = all(not isinstance(p, DTensor) and p.dtype == torch.float32 for p in trained.values())
    return torch.optim.AdamW(
        trained.values(),
        lr=0.0,
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=True if device.type == "cuda" or plain else None,
    )


def _step(state: State, job: _Job, learning_rate: float) -> StepLine:
    """Runs one optimizer step over this process's share of the global batch; returns the line for metrics.jsonl."""
    began, step, method, data = time.perf_counter(), state.step, job.method, job.data
    rank, world = job.accelerator.process_index, job.accelerator.num_processes
    shares = [
        without(data.step_rows(method.row_sets, job.plan, step, of, world), method.row_sets, state.resting_rows)
        for of in range(world)
    ]
    drawn, active = shares[rank]
    active = 0.0 if state.resting else active
    size, device = job.training.micro_batch_size, job.accelerator.device
    # Sharded weights are gathered in every pass, so all processes make as many: as many as the one with the most needs.
    pieces = max(count_pieces(rows, size, data, method, device) for rows, _ in shares)
    batches = partial(micro_batches, drawn, pieces, data, job.table, method, state.carried, device, size)
    seed = _seed(job.training.seed, step, rank)
    work = StepWork(method, state.model, state.trained, batches, job.accelerator.autocast, seed, active)
    totals = step_gradient(work, job.training, average=world > 1 and job.training.shard == "none")
    if not any(p.grad is not None for p in state.trained.values()):
        raise ExpungeError(
            f"no gradient reached the weights selected by '{method.parameters}', so the loss does not depend on them; select "
            "others by --parameters"
        )
    norm = nn.utils.clip_grad_norm_(state.trained.values(), job.training.max_grad_norm)
    # The one place of a step that waits for the device: all that metrics.jsonl needs of it, at once.
    means = job.accelerator.reduce(torch.stack(list(totals.values())), "mean")
    *found_values, grad_norm = torch.cat([means, whole(norm).float()[None]]).tolist()
    values = dict(zip(totals, found_values, strict=True))
    if not all(map(math.isfinite, (*found_values, grad_norm))):
        raise _not_finite(job, step, values, grad_norm)
    _move(state, learning_rate)
    tokens = _token_count(data, drawn)
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


def _move(state: State, learning_rate: float) -> None:
    """Moves the weights by their gradients, which are then deleted."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.updating = True
    state.optimizer.step()
    state.updating = False
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1


def _not_finite(job: _Job, step: int, values: Mapping[str, float], grad_norm: float) -> ExpungeError:
    """Returns an error that names the rows of the step and the terms of the loss that are not finite."""
    rows = shared(job.plan.forget_rows(step), job.accelerator.process_index, job.accelerator.num_processes)[:4]
    broken = [f"; the term {name} is {value}" for name, value in values.items() if name != "loss" and not math.isfinite(value)]
    return ExpungeError(
        f"the loss or its gradient became non-finite at step {step + 1} (loss {values['loss']}, gradient norm {grad_norm}"
        f"{''.join(broken)}; forget rows {', '.join(job.data.ids[row] for row in rows)}, ...); "
        f"{_remedy(model_is_untrained=step == 0)}"
    )


def _remedy(*, model_is_untrained: bool) -> str:
    if model_is_untrained:
        return "no weight has moved yet, so look at the start model's weights and --dtype, and at these rows"
    return "start anew with a lower --learning-rate or --max-grad-norm; the last checkpoint is kept"


def _checkpoint_is_due(step: int, training: Training, *, checked: bool) -> bool:
    """Returns whether to save now: every `checkpoint_every` steps.

    checked  checks may set the weights back, so a checkpoint is written only after a check, the next one that comes
    """
    if not checked:
        return step % training.checkpoint_every == 0
    return step % training.stop_every == 0 and step % training.checkpoint_every < training.stop_every


def _save(state: State, folder: Path, *, write: bool, moments: bool = True) -> None:
    save_checkpoint(
        folder,
        state.step,
        state.stopped,
        state.resting,
        state.resting_rows,
        state.trained,
        state.optimizer,
        state.carried,
        write=write,
        moments=moments,
    )


def _warp(step: int, steps: int, training: Training) -> float:
    """Returns the learning rate of step 0, 1, ... as a share of its peak."""
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


def _token_count(data: TrainingData, drawn: StepRows) -> int:
    """Counts the tokens of the drawn rows without padding, from the rows, not on the device."""
    return sum(len(data.row(key).ids) for prompts in drawn.values() for keys in prompts for key in keys)


def _too_large(state: State, job: _Job) -> ExpungeError:
    """Returns an error with advice for too little memory; weights that are not sharded are saved first."""
    training, processes = job.training, job.accelerator.num_processes
    state.optimizer.zero_grad(set_to_none=True)
    if processes == 1 and state.step > 0 and not state.updating:
        _save(state, job.folder, write=True)
    rows = training.micro_batch_size or training.batch_size // processes
    ways = [f"--micro-batch-size {rows // 2}"] * (rows > 1) + ["--gradient-checkpointing"] * (not training.gradient_checkpointing)
    if state.updating:  # two moments for each trained weight: smaller passes leave them as large
        ways = []
    remedies = [f"go on by --resume with {' or '.join(ways)}"] * bool(ways) + ["start anew with --lora"] * (not training.lora)
    remedy = ", or ".join(remedies) or "shorten the rows by --max-length, or take a smaller model"
    return out_of_memory(f"in step {state.step + 1} with {rows} rows a pass", remedy)
