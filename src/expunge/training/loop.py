"""Runs the training loop: batches, loss and optimizer steps, with checkpoints, metrics.jsonl and exact resumption.

A run is repeatable: the rows of a step depend on (seed, step) only, the learning rate on the step only, and
random numbers are seeded again at each step. A checkpoint therefore holds weights and optimizer moments only,
and a run that is killed and resumed ends with the same bytes on a CPU.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict

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
from expunge.training.batches import count_pieces, micro_batches
from expunge.training.checkpoints import latest_checkpoint, load_checkpoint, reserved, save_checkpoint, whole
from expunge.training.data import NONE_REST, Resting, StepRows, TrainingData, without
from expunge.training.disruption import Disruption
from expunge.training.gradients import StepWork, step_gradient
from expunge.training.pairs import Pairs
from expunge.training.pairs import share as shared
from expunge.training.reference import ReferenceTable
from expunge.training.settings import Training
from expunge.training.sharing import accelerator_of, distribute, gather
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


class StepLine(TypedDict):
    """One line of metrics.jsonl."""

    step: int
    """Number of steps done, including this one."""
    loss: float
    parts: dict[str, float]
    """The terms of the loss before their weights: `forget`, `retain`, ..."""
    learning_rate: float
    grad_norm: float
    """Norm of the gradient before clipping."""
    tokens_per_second: float
    seconds: float


@dataclass
class _State:
    """What the loop carries from step to step."""

    model: nn.Module
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    carried: Mapping[str, Tensor]
    """Tensors that the method carries from step to step."""
    step: int = 0
    stopped: str | None = None
    resting: bool = False
    """Only the retain terms are backpropagated until the next check of `Watch`."""
    resting_rows: Resting = NONE_REST
    """Parts of forget rows that take no part in the steps until then."""
    updating: bool = False
    """The optimizer is changing weights, so that they belong to no step."""


@dataclass
class _Checks:
    """What decides, every `stop_every` steps, whether a run ends."""

    watch: Watch | None
    disruption: Disruption | None
    finished: Callable[[], str | None]
    """The method's own rule."""

    @property
    def change_weights(self) -> bool:
        """Returns whether a check may set the weights back, so that checkpoints belong behind it."""
        return self.watch is not None or self.disruption is not None

    def mark(self, weights: Iterable[nn.Parameter]) -> None:
        """Stores the weights of the first step, to which a step may be reversed."""
        for one in (self.watch, self.disruption):
            if one is not None:
                one.mark(weights)

    def run(self, state: _State, *, last: bool) -> None:
        """Sets `state.stopped` if the run ends, and what rests until the next check.

        last  after the last step, where only the budget is checked
        """
        weights = list(state.trained.values())
        if self.watch is not None and not last:
            before = state.resting
            state.stopped, state.resting, state.resting_rows = self.watch.check(state.model, weights, resting=before)
            if state.resting != before:
                _clear_momentum(state)
        if self.disruption is not None:
            state.stopped = self.disruption.check(state.model, weights) or state.stopped
        if state.stopped is None and not last:
            with torch.no_grad():
                state.stopped = self.finished()


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
    plan = Pairs(len(data.forget), len(data.retain), training.batch_size, training.seed, data.parts)
    plan.check_shares(accelerator.num_processes)
    steps, peak = training.steps, training.learning_rate
    if steps == "auto" or peak == "auto":
        raise ValueError("the settings are not resolved: `training.defaults.resolve` puts numbers in the place of `auto`")
    memory = PeakMemory()
    model = set_trainable(model, select_weights(model, method, training), training).to(accelerator.device)
    trained = distribute(model, training, accelerator)
    table = ReferenceTable.compute(model, method, data, plan, range(steps), accelerator, by_part=training.stop_by_row)
    probes = data.probes(method.pad_side, accelerator.device)
    with torch.no_grad(), accelerator.autocast():
        table.prepared = method.prepare(model, probes)
        checks = _Checks(
            Watch.of(model, method, data, training, accelerator.device),
            Disruption.of(model, data, training, accelerator.device),
            lambda: method.finished(model, probes, table.prepared),
        )
    state = _State(model, trained, _optimizer(trained, training, accelerator.device), method.first_carried())
    accelerator.wait_for_everyone()  # the first process has made the folder ready
    if (checkpoint := latest_checkpoint(folder)) is not None:
        found = load_checkpoint(checkpoint, trained, state.optimizer)
        state.step, state.stopped, state.resting, state.resting_rows, state.carried = found
    began_at = state.step
    log, first = folder / "metrics.jsonl", accelerator.is_main_process
    if first:
        _cut_log(log, state.step)
    checks.mark(trained.values())
    model.train()
    bar = Progress(method.method_name(), steps, start=state.step, quiet=quiet or not first)
    with reserved(folder, trained, write=first), bar as progress:
        while state.step < steps and state.stopped is None:
            rate = peak * _warp(state.step, steps, training)
            try:
                line = _step(state, method, training, data, plan, table, accelerator, rate)
            except torch.OutOfMemoryError as error:
                raise _too_large(state, training, accelerator, folder) from error
            state.carried = method.carry(state.carried, line["parts"], Position(state.step, steps, plan.epoch(state.step)))
            memory.sample()
            if first:
                with open(log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            accelerator.log({"loss": line["loss"], **line["parts"]}, step=state.step)
            progress.advance(1, _note(line))
            if state.step % training.stop_every == 0 or state.step == steps:
                with accelerator.autocast():
                    checks.run(state, last=state.step == steps)
            if _checkpoint_is_due(state.step, training, checked=checks.change_weights) and state.step < steps:
                _save(state, folder, write=first)
    if state.step > began_at:  # so that an artifact that cannot be written costs no step
        _save(state, folder, write=first, moments=False)
    for tracker in accelerator.trackers:  # `end_training` would take the process group down with it, which the caller still needs
        tracker.finish()
    model.eval()
    with accelerator.autocast():
        disruption = None if checks.disruption is None else checks.disruption.measure(model)
    seconds = time.process_time() - began
    gathered = gather(model, accelerator.is_main_process) if training.shard == "fsdp2" else None
    return Trained(
        model,
        gathered,
        state.step,
        state.stopped,
        accelerator.num_processes,
        seconds * accelerator.num_processes,
        memory.peak,
        disruption,
    )


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


def _step(
    state: _State,
    method: TrainingMethod,
    training: Training,
    data: TrainingData,
    plan: Pairs,
    table: ReferenceTable,
    accelerator: Accelerator,
    learning_rate: float,
) -> StepLine:
    """Runs one optimizer step over this process's share of the global batch; returns the line for metrics.jsonl."""
    began, step = time.perf_counter(), state.step
    rank, world = accelerator.process_index, accelerator.num_processes
    shares = [
        without(data.step_rows(method.row_sets, plan, step, of, world), method.row_sets, state.resting_rows)
        for of in range(world)
    ]
    drawn, active = shares[rank]
    active = 0.0 if state.resting else active
    size, device = training.micro_batch_size, accelerator.device
    # Sharded weights are gathered in every pass, so all processes make as many: as many as the one with the most needs.
    pieces = max(count_pieces(rows, size, data, method, device) for rows, _ in shares)
    batches = partial(micro_batches, drawn, pieces, data, table, method, state.carried, device, size)
    work = StepWork(method, state.model, state.trained, batches, accelerator.autocast, _seed(training.seed, step, rank), active)
    totals = step_gradient(work, training, average=world > 1 and training.shard == "none")
    if not any(p.grad is not None for p in state.trained.values()):
        raise ExpungeError(f"no gradient reached the weights selected by '{method.parameters}'; the loss does not depend on them")
    norm = nn.utils.clip_grad_norm_(state.trained.values(), training.max_grad_norm)
    # The one place of a step that waits for the device: all that metrics.jsonl needs of it, at once.
    means = accelerator.reduce(torch.stack(list(totals.values())), "mean")
    *found_values, grad_norm = torch.cat([means, whole(norm).float()[None]]).tolist()
    values = dict(zip(totals, found_values, strict=True))
    if not all(map(math.isfinite, (*found_values, grad_norm))):
        named = ", ".join(data.ids[row] for row in shared(plan.forget_rows(step), rank, world)[:4])
        broken = "".join(f"; the term {name} is {value}" for name, value in values.items() if not math.isfinite(value))
        broken = broken.removeprefix(f"; the term loss is {values['loss']}")
        raise ExpungeError(
            f"the loss or its gradient became non-finite at step {step + 1} (loss {values['loss']}, gradient norm {grad_norm}"
            f"{broken}; forget rows {named}, ...); {_remedy(model_is_untrained=step == 0)}"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.updating = True
    state.optimizer.step()
    state.updating = False
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
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


def _remedy(*, model_is_untrained: bool) -> str:
    if model_is_untrained:
        return "no weight has moved yet, so look at the start model's weights and --dtype, and at these rows"
    return "the state before it is kept, lower --learning-rate or --max-grad-norm"


def _clear_momentum(state: _State) -> None:
    """Forgetting would go on by itself for some ten steps after its terms began to rest, and repair after they came back."""
    for moments in state.optimizer.state.values():
        moments["exp_avg"].zero_()


def _checkpoint_is_due(step: int, training: Training, *, checked: bool) -> bool:
    """Every `checkpoint_every` steps; of a run that stops by itself at the next check, whose weights may be gone back to."""
    if not checked:
        return step % training.checkpoint_every == 0
    return step % training.stop_every == 0 and step % training.checkpoint_every < training.stop_every


def _save(state: _State, folder: Path, *, write: bool, moments: bool = True) -> None:
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


def _too_large(state: _State, training: Training, accelerator: Accelerator, folder: Path) -> ExpungeError:
    """Returns an error with advice for too little memory; weights that are not sharded are saved first."""
    state.optimizer.zero_grad(set_to_none=True)
    alone = accelerator.num_processes == 1
    if alone and state.step > 0 and not state.updating:
        _save(state, folder, write=True)
    rows = training.micro_batch_size or training.batch_size // accelerator.num_processes
    ways = [f"--micro-batch-size {rows // 2}"] * (rows > 1) + ["--gradient-checkpointing"] * (not training.gradient_checkpointing)
    if state.updating:  # two moments for each trained weight: smaller passes leave them as large
        ways = []
    remedies = [f"go on by --resume with {' or '.join(ways)}"] * bool(ways) + ["start anew with --lora"] * (not training.lora)
    remedy = ", or ".join(remedies) or "shorten the rows by --max-length, or take a smaller model"
    return out_of_memory(f"in step {state.step + 1} with {rows} rows a pass", remedy)


def _note(line: StepLine) -> str:
    parts = line["parts"]
    return " ".join(f"{name} {value:.3g}" for name, value in parts.items()) + f", {line['tokens_per_second']:.0f} tokens/s"


def _cut_log(log: Path, step: int) -> None:
    """Removes the lines after the checkpoint from which the run is resumed, so that each step is logged once."""
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines()
        kept = [x for x in lines if _step_of(x) <= step]
        log.write_text("".join(x + "\n" for x in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")  # the half line of a killed run
