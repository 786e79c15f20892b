"""Evaluates a model on a suite: runs the model, computes the scores, and writes them."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.data.encode import Encoder
from expunge.data.format import Format, default_format, verbatim_format
from expunge.errors import ExpungeError
from expunge.evaluation.engine import Engine
from expunge.evaluation.processes import from_main
from expunge.evaluation.resume import Finished
from expunge.evaluation.reuse import Reuse
from expunge.evaluation.rows import Rows
from expunge.evaluation.samples import Once, always, samples_of, score_of
from expunge.evaluation.suites import SuiteSpec, built, suite_class
from expunge.evaluation.task import Results, Suite, Task
from expunge.evaluation.texts import Texts
from expunge.folders import keep_command, locked
from expunge.guarding.life import guard_counts
from expunge.models.limits import positions, room
from expunge.models.load import causal_model
from expunge.processes import is_main, join
from expunge.progress import Progress
from expunge.records import (
    Evaluation,
    GuardUse,
    JudgeUsed,
    Sample,
    Score,
    read_evaluation,
    read_samples,
    write_scores,
)


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    suite: str | SuiteSpec | Suite,
    data: str | Path | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    format: Format | None = None,
    max_length: int = 1024,
    artifact: str | None = None,
    fingerprint: str | None = None,
    show_forget_text: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
    max_tokens: int | None = None,
    max_rows: int = 512,
    command: Sequence[str] = (),
    reuse: Reuse | None = None,
) -> Evaluation:
    """Computes the scores of a model on a suite, with 95 % bootstrap intervals over samples.

    suite              a name (`tofu`, `lab`), a suite with its options (`Tofu(forget="forget01")`), or a `Suite` of your own
    data               folder of the suite's data, or a hub id
    out                folder that gets SUITE.json and SUITE.samples.jsonl
    limit              only the first `limit` examples of each task
    format             how prompts and answers become text; default: the one beside the tokenizer, its chat template, plain
    max_length         longer sequences lose the end of their answer (at most what the model's positions allow); verbatim
                       tasks use all positions
    artifact           name of the evaluated model in the results; default: where the model was loaded from
    fingerprint        a hash over the model's weights and everything attached to it. With it, a killed evaluation resumes
                       after the last finished task; without it, it starts again
    show_forget_text   write prompts, responses and answers of secret tasks into the sample file
    overwrite          replace SUITE.json of an earlier evaluation
    resume             reuse the samples of a finished evaluation of the same model, data and settings
    quiet              no progress bar
    command            words of the command line, left in SUITE.partial so that `expunge evaluate --resume --out DIR` goes on
    reuse              results of other settings of the guard on the model, for the prompts that it lets pass
    max_tokens, max_rows   bounds of a batch (default: by device); they change speed and memory, never a value

    Raises ExpungeError if data is missing, a result exists already, or a judge is not available.
    """
    began = time.perf_counter()
    join()
    built = _limited(suite if isinstance(suite, Suite) else _build(suite, data), limit)
    _check_others(built, fingerprint)
    folder = Path(out) if out is not None else None
    earlier = folder / f"{built.name}.json" if folder is not None and not overwrite else None
    if earlier is not None and earlier.exists() and not resume:
        raise ExpungeError(f"{earlier} exists; give another folder, or overwrite it")

    judges = from_main(partial(_judges, built))
    guard = guard_counts(model) if reuse is None or reuse.counts is None else reuse.counts
    before = (guard.decided, guard.acted) if guard is not None else (0, 0)
    readers = _readers(model, tokenizer, format, max_length, max_tokens, max_rows, reuse)
    settings = [*readers.settings, str(show_forget_text), *(str(judge.fingerprint) for judge in judges)]
    finished = Finished(
        folder / f"{built.name}.partial" if folder else None, [fingerprint, *settings] if fingerprint is not None else None
    )
    key = finished.key_of([task.settings() for task in built.tasks]) if built.outside is None else None
    samples = from_main(partial(_done, earlier, key)) if earlier is not None else {}
    quiet = quiet or not is_main()
    with _locked(folder, finished, command):
        _read_tasks(built, readers, finished, samples, show=show_forget_text, quiet=quiet)
    scores = _scores(built, samples, always if reuse is None else reuse.made)
    if built.outside is not None:
        rest, more = built.outside(
            readers.engine, tokenizer, room=readers.room, limit=limit, finished=finished, show=show_forget_text, quiet=quiet
        )
        samples |= rest
        scores += more
    evaluation = Evaluation(
        suite=built.name,
        artifact=artifact if artifact is not None else causal_model(model).config.name_or_path,
        seconds=round(time.perf_counter() - began, 3),
        scores=tuple(scores),
        judges=tuple(judges),
        fingerprint=fingerprint,
        guard=None if guard is None else GuardUse(decided=guard.decided - before[0], acted=guard.acted - before[1]),
        key=key,
    )
    if folder is not None and is_main():
        write_scores(folder / f"{built.name}.json", evaluation, (row for task in samples.values() for row in task))
        finished.clear()
    return evaluation


class _Readers(NamedTuple):
    """What reads a model's answers: the engine, and rows in the model's format or verbatim."""

    engine: Engine
    formatted: Rows
    verbatim: Rows
    room: int
    """Number of tokens that the model takes."""
    settings: list[str]
    """What samples depend on besides the model, the task and its judges."""


def _readers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    format: Format | None,
    max_length: int,
    max_tokens: int | None,
    max_rows: int,
    reuse: Reuse | None,
) -> _Readers:
    format = format or default_format(tokenizer)
    encoder = Encoder(tokenizer, format, min(max_length, positions(model) or max_length))
    engine = Engine(model, encoder.pad_id, max_tokens=max_tokens, max_rows=max_rows, reuse=reuse)
    most = room(model)
    whole = Encoder(tokenizer, verbatim_format(), max_length=sys.maxsize)
    settings = [format.model_dump_json(), str(encoder.max_length), str(most), str(causal_model(model).dtype)]

    def rows(encoder: Encoder, room: int | None) -> Rows:
        texts = Texts(encoder, room=room)
        return Rows(model, tokenizer, engine, texts if reuse is None else reuse.made(("texts", room, *settings), lambda: texts))

    return _Readers(engine, rows(encoder, None), rows(whole, most), most, settings)


def _read_tasks(
    suite: Suite, readers: _Readers, finished: Finished, samples: dict[str, list[Sample]], *, show: bool, quiet: bool
) -> None:
    """Adds the samples of each task that is not in `samples` yet; those of a task finished before a kill are read from disk."""
    for task in suite.tasks:
        if task.name not in samples and (kept := from_main(partial(finished.get, task.name, task.settings()))) is not None:
            samples[task.name] = kept
    new = [task for task in suite.tasks if task.name not in samples]
    with Progress(f"evaluate {suite.name}", len(suite.tasks), quiet=quiet) as progress:
        for task in suite.tasks:
            if task.name not in samples:
                new.pop(0)
                rows = readers.verbatim if task.verbatim else readers.formatted
                ahead = [other for other in new if other.verbatim == task.verbatim]
                samples[task.name] = _samples(task, rows, ahead, show=show)
                if is_main() and (readers.engine.reuse is None or readers.engine.reuse.has_computed()):
                    finished.put(task.name, task.settings(), samples[task.name])
            progress.advance(1, task.name)


@contextmanager
def _locked(folder: Path | None, finished: Finished, command: Sequence[str]) -> Iterator[None]:
    """Context manager that locks the folder for results, with the command that resumes the evaluation written into it first."""
    if folder is None or not is_main():
        yield
        return
    with locked(folder):
        if finished.folder is not None and command:
            keep_command(finished.folder, command)
        yield


def _check_others(suite: Suite, fingerprint: str | None) -> None:
    """Raises ExpungeError if the scores that the suite compares with are of the very model that is to be scored: no statistic
    tells a model from itself, which would read as perfect forgetting."""
    same = next((option for option, sha256 in suite.others.items() if sha256 == fingerprint), None)
    if same is not None:
        raise ExpungeError(
            f"the evaluation given as {same} is of this very model (the content of its files is the same), which would be "
            "compared with itself; give that of another model, or leave it out"
        )


def _scores(suite: Suite, samples: Mapping[str, Sequence[Sample]], once: Once) -> list[Score]:
    """Returns the scores of each task, and those over several tasks."""
    scores = [
        score_of(task, metric, samples[task.name], once=once)
        for task in suite.tasks
        for metric in task.metrics
        if metric.stands_alone
    ]
    return scores + suite.summarize(Results(samples))


def _build(suite: str | SuiteSpec, data: str | Path | None) -> Suite:
    spec = suite_class(suite)() if isinstance(suite, str) else suite
    return built(spec, data)


def _done(earlier: Path, key: str | None) -> dict[str, list[Sample]]:
    """Returns task -> samples of an existing evaluation; scores are computed from them again."""
    if not earlier.exists():
        return {}
    if key is None:
        raise ExpungeError(f"{earlier} exists, and nothing tells what it was made of; give another folder, or overwrite it")
    if read_evaluation(earlier).key != key:
        raise ExpungeError(
            f"{earlier} exists, of another model, other data or other settings; give another folder, or overwrite it"
        )
    samples: dict[str, list[Sample]] = {}
    for sample in read_samples(earlier.with_suffix(".samples.jsonl")):
        samples.setdefault(sample.task, []).append(sample)
    return samples


def _judges(suite: Suite) -> list[JudgeUsed]:
    """Returns all judges that will be used, after checking that they are available."""
    used = []
    for judge in dict.fromkeys(judge for task in suite.tasks for judge in task.judges):
        judge.check()
        used.append(JudgeUsed(settings=judge.model_dump(mode="json"), fingerprint=judge.fingerprint()))
    return used


def _limited(suite: Suite, limit: int | None) -> Suite:
    if limit is None:
        return suite
    if limit < 1:
        raise ExpungeError(f"--limit {limit} leaves nothing to score; give a number from 1 on")
    return replace(suite, tasks=tuple(replace(task, examples=task.examples[:limit]) for task in suite.tasks))


def _samples(task: Task, rows: Rows, ahead: Sequence[Task], *, show: bool) -> list[Sample]:
    """Returns one sample per example and metric, computed by the main process, so that metrics run once."""
    found, reuse = rows.of(task, show=show, ahead=ahead), rows.engine.reuse
    once = always if reuse is None else reuse.made
    return from_main(partial(samples_of, task, found, show=show or not task.secret, once=once))
