"""Runs one merge: plans, checks disk space, compares tensors, computes, and puts the folder in place."""

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from expunge.errors import ExpungeError, reason
from expunge.folders import beside_of, lock_file
from expunge.memory import Cost, PeakMemory
from expunge.merging.finish import beside_bytes, write_run
from expunge.merging.fitting import Vocabulary, strangers
from expunge.merging.folder import check_out, put_in_place
from expunge.merging.journal import JOURNAL, Findings, Journal
from expunge.merging.output import OUTPUTS, Output
from expunge.merging.plan import Item, MergeRequest, Plan, Write, check_disk, describe, make_plan
from expunge.merging.positions import Files
from expunge.merging.preparing import finished_merge, is_complete, prepare
from expunge.merging.report import MergeResult, TensorReport, total
from expunge.merging.stream import Stream
from expunge.merging.thresholds import over_models
from expunge.methods.editing import EditingMethod
from expunge.models.load import DType, model_fingerprint
from expunge.progress import Progress

SHARD_BYTES = 5_000_000_000
MEGABYTE = 1_000_000
STEP = 32
"""Megabytes between two updates of the progress bar and the memory measurement."""


def merge(
    method: EditingMethod,
    *,
    base: str | Path,
    models: Sequence[str | Path],
    out: str | Path,
    write: Write = "weights",
    rank: int | None = None,
    dtype: DType = "auto",
    vocabulary: Vocabulary = "refuse",
    shard_bytes: int = SHARD_BYTES,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> MergeResult:
    """Merges `models` into `base` by `method` and writes the folder `out`, with a few pieces in memory.

    base, models  model folders, runs of expunge or hub ids; a model may also be a LoRA folder or a file of differences
    out           artifact/ (a complete model folder with tokenizer), tensors.jsonl, merge.json, provenance.json
    write         `weights`; `delta`: out/delta.safetensors, the differences of changed tensors and the hashes of their base;
                  `adapter`: a LoRA of the given rank, from LoRA folders only, with its error reported
    dtype         of the result; `auto`: each tensor's own. Sums are in float32 and rounded once
    vocabulary    `refuse` models with another number of tokens, or keep the `base`'s: common rows are merged
    threads       default: torch's number of threads. It changes no bit
    resume        goes on with a merge that was interrupted; overwrite starts anew and replaces `out` when it is done

    Raises ExpungeError before anything is written if the models do not fit together or the disk is too small.
    """
    request = make_request(
        method, base=base, models=models, write=write, rank=rank, dtype=dtype, vocabulary=vocabulary, shard_bytes=shard_bytes
    )
    return execute(request, Path(out), threads=threads, resume=resume, overwrite=overwrite, quiet=quiet)


def dry_run(request: MergeRequest, out: Path, threads: int | None = None) -> str:
    """Describes what the merge would read, write and hold; raises the errors that it would raise before its first byte."""
    plan = make_plan(request)
    check_disk(out, plan.write_bytes + beside_bytes(plan))
    return describe(plan, threads or torch.get_num_threads(), out)


def make_request(
    method: EditingMethod,
    *,
    base: str | Path,
    models: Sequence[str | Path],
    write: Write = "weights",
    rank: int | None = None,
    dtype: DType = "auto",
    vocabulary: Vocabulary = "refuse",
    shard_bytes: int = SHARD_BYTES,
) -> MergeRequest:
    """Makes a request with one method for all tensors."""
    return MergeRequest(
        method=method,
        base=str(base),
        models=tuple(map(str, models)),
        method_of=lambda _: method,
        shard_bytes=shard_bytes,
        write=write,
        rank=rank,
        dtype=dtype,
        vocabulary=vocabulary,
    )


def execute(
    request: MergeRequest,
    out: Path,
    *,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    command: Sequence[str] = (),
) -> MergeResult:
    """Runs `merge` for an existing request; `command`: the words that `--resume --out OUT` repeats."""
    cost = Cost()
    work = beside_of(out, "partial")
    plan = make_plan(request)
    fingerprint = plan.fingerprint()
    if resume and not work.exists() and (finished := finished_merge(out, fingerprint)):
        return finished
    check_out(out, work, [request.base, *request.models], resume, overwrite)
    check_disk(out, beside_bytes(plan))
    plan = plan._replace(notes=(*plan.notes, *strangers(plan.base, plan.sources)))
    with lock_file(beside_of(out, "lock"), out):
        return _merge(plan, out, work, fingerprint, cost, threads, resume, quiet, command)


def _merge(
    plan: Plan,
    out: Path,
    work: Path,
    fingerprint: str,
    cost: Cost,
    threads: int | None,
    resume: bool,
    quiet: bool,
    command: Sequence[str],
) -> MergeResult:
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    background = ThreadPoolExecutor(1)  # the base is hashed beside the work
    try:
        base_sha256 = background.submit(model_fingerprint, str(plan.base.folder))
        total_mb = (2 if _over_models(plan) else 1) * plan.read_bytes // MEGABYTE
        with Files() as files, Progress(f"{plan.request.method.method_name()}, MB", total_mb, quiet=quiet) as bar:
            counter = _Counter(bar, cost.memory)
            stream = Stream(plan, files, threads or torch.get_num_threads(), counter.add)
            output, done, before = _compute(stream, out, work, fingerprint, resume, command)
            counter.finish()
        rows = [row for item in output.items if (row := done[item.name]) is not None]
        result = total(
            plan,
            out,
            rows,
            copied=len(output.items) - len(rows),
            seconds=cost.so_far().wall_seconds,
            written_bytes=sum(shard.nbytes for shard in output.shards),
            resumed=before,
            fingerprint=fingerprint,
        )
        try:
            write_run(plan, output, work, result, rows, base_sha256.result(), cost.so_far())
        except OSError as error:
            raise _stopped(error, work) from error
    finally:
        background.shutdown(wait=False, cancel_futures=True)
    (work / JOURNAL).unlink()
    put_in_place(work, out)
    return result


def _compute(
    stream: Stream, out: Path, work: Path, fingerprint: str, resume: bool, command: Sequence[str]
) -> tuple[Output, dict[str, TensorReport | None], int]:
    """Computes all tensors into work/weights; returns their reports, and how many an earlier run had finished."""
    plan = stream.plan
    journal = Journal(work, stream.files)
    findings = journal.read(fingerprint) if resume else None
    started = findings is not None
    if findings is None:
        changed = stream.compare()
        findings = Findings(changed, over_models(stream, changed) if _over_models(plan) else None)
    output = OUTPUTS[plan.request.write](stream, plan, findings)
    if not started or not is_complete(output, work):
        check_disk(out, sum(shard.nbytes for shard in output.shards) + beside_bytes(plan))
        prepare(output, work, journal, fingerprint, findings, command)
    before = len(journal.done)
    _fill(stream, output, work, journal)
    return output, journal.done, before


def _over_models(plan: Plan) -> bool:
    """Returns whether a cut is taken over more than one tensor."""
    method = plan.request.method
    return method.trims_over != "per_tensor" and method.band(0, max(plan.elements, 1)) is not None


def _fill(stream: Stream, output: Output, work: Path, journal: Journal) -> None:
    """Computes all tensors that are not in the journal."""
    folder = work / "weights"
    files = {folder / shard.file for shard in output.shards}

    def fill(item: Item) -> None:
        journal.add(item.name, output.fill(item, folder), item.base.nbytes, files)

    for item in output.items:
        if item.name in journal.done:
            stream.advance(item.read_bytes)
    try:
        for _ in stream.each(fill, [item for item in output.items if item.name not in journal.done]):
            pass
        journal.flush()
    except ExpungeError:
        shutil.rmtree(work, ignore_errors=True)  # the input is wrong: there is nothing to resume
        raise
    except OSError as error:
        raise _stopped(error, work) from error


def _stopped(error: OSError, work: Path) -> ExpungeError:
    return ExpungeError(f"the merge stopped ({reason(error)}); make room and go on with --resume, {work} holds what is done")


class _Counter:
    """Reports bytes of several threads to a progress bar in megabytes, and measures memory from time to time."""

    def __init__(self, bar: Progress, memory: PeakMemory) -> None:
        self.bar, self.memory, self.bytes = bar, memory, 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.bytes += count
            if (whole := self.bytes // MEGABYTE) >= STEP:
                self.bytes -= whole * MEGABYTE
                self._advance(whole)

    def finish(self) -> None:
        self._advance(self.bar.total)

    def _advance(self, count: int) -> None:
        """Advances up to the planned end, in case there are more passes than planned."""
        self.memory.sample()
        if (left := self.bar.total - self.bar.done) > 0:
            self.bar.advance(min(count, left))
