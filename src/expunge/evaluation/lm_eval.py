"""Runs lm-eval's tasks as a suite of this library, and offers this library's artifacts as a model type of lm-eval.

lm-eval 0.4.13 looks up model types in a table, to which other packages cannot add entries. Three ways to use the type:

    lm_eval --model expunge --model_args artifact=runs/npo --tasks arc_easy,$(python -m expunge.evaluation.lm_eval_plugin)
    python -m expunge.evaluation.lm_eval --model expunge --model_args artifact=runs/npo --tasks arc_easy
    register(); lm_eval.simple_evaluate(model="expunge", model_args={"artifact": "runs/npo"}, tasks=["arc_easy"])

Every argument is lm-eval's own. `lm_eval_plugin` explains the first one. Under torchrun (`torchrun --nproc-per-node 2 -m
expunge.evaluation.lm_eval ...`) the processes share the batches, and the numbers are those of one.
"""

import hashlib
import io
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from expunge.errors import ExpungeError
from expunge.evaluation.lm_eval_results import TaskResults, read_results, unscored
from expunge.evaluation.lm_eval_tasks import silenced
from expunge.evaluation.processes import from_main
from expunge.evaluation.resume import Finished, code_version
from expunge.evaluation.statistics import percentiles, resampled
from expunge.evaluation.task import SUITE
from expunge.processes import is_main
from expunge.records import Role, Sample, Score, write_json

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerBase

    from expunge.evaluation.engine import Engine

BOOTSTRAP = 1000
"""Resamples from which lm-eval estimates the standard error of values that are not means."""


def needed() -> None:
    """Raises ExpungeError if lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise ExpungeError("lm-eval is not installed; install it with the extra `eval`: pip install 'expunge[eval]'")


def register() -> None:
    """Makes `expunge` a model type of lm-eval, in this process."""
    needed()
    import lm_eval.models  # its own types are put into the table only while that is empty
    from lm_eval.api.registry import model_registry

    assert lm_eval.models.MODEL_MAPPING
    if "expunge" not in model_registry:
        model_registry.register("expunge", target="expunge.evaluation.lm_eval_model:ExpungeLM")


def main() -> int:
    """Runs lm-eval's command line with the model type `expunge`."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except ExpungeError as error:
        print(f"expunge: {error}", file=sys.stderr)
        return 2
    return 0


class Wanted(NamedTuple):
    """A task, group or tag to score."""

    name: str
    shots: int | None = None
    """Worked examples before each question; None for the task's own number. Tasks that fix their number at zero get none."""
    metric: str | None = None
    """The metric that counts in an average over tasks, by its name in this library."""


@dataclass(frozen=True)
class Harness:
    """Tasks that lm-eval reads, asks and scores."""

    index: "TaskManager"
    wanted: tuple[Wanted, ...]
    forget: frozenset[str] = frozenset()
    """Tasks that were to be forgotten, for which a low score is good."""
    average: str | None = None
    """Name of the mean over all wanted tasks, or ""."""

    def __call__(
        self,
        engine: "Engine",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        room: int,
        limit: int | None,
        finished: Finished,
        show: bool,
        quiet: bool,
    ) -> tuple[dict[str, list[Sample]], list[Score]]:
        """Returns samples and scores of every wanted task; results of tasks finished before a kill are reused."""
        from expunge.evaluation.lm_eval_model import EngineLM

        quiet = quiet or not is_main()
        with _calm(quiet):
            lm = EngineLM(engine.model, tokenizer, engine, room=room)
        samples: dict[str, list[Sample]] = {}
        scores: list[Score] = []
        found: list[TaskResults] = []
        for wanted in self.wanted:
            with _calm(quiet), _seeded():
                result = self._one(lm, wanted, limit, finished, show)
            found.append(result)
            for sample in result.samples:
                samples.setdefault(sample.task, []).append(sample)
            scores += result.scores
        if self.average is not None:
            scores.append(average(self.average, self.wanted, found))
        return samples, scores

    def _one(self, lm: Any, wanted: Wanted, limit: int | None, finished: Finished, show: bool) -> TaskResults:
        """Returns the result of one wanted task, which is saved at once."""
        role: Role = "forget" if wanted.name in self.forget else "retain"
        try:
            loaded = self.index.load([wanted.name])
            unsafe = [name for name, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
        except Exception as error:  # whatever lm-eval, datasets and the task's own code find wrong
            return unscored(self.index, wanted.name, f"lm-eval cannot load it: {_line(error)}", role=role)
        if unsafe:
            return unscored(self.index, wanted.name, "it runs what the model writes; use the suite skills for that", role=role)
        file = finished.folder / f"lm_eval.{wanted.name}.json" if finished.folder is not None else None
        key = _key(finished.key, wanted, limit, loaded["tasks"])
        kept = from_main(partial(_kept, file, key))
        if kept is not None:
            return kept
        results = _evaluate(lm, wanted, limit, loaded)
        found = from_main(partial(read_results, results, wanted.name, lm.cut, lm.broken, role=role, show=show))
        found = found.model_copy(update={"key": key})
        if file is not None and is_main():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, found)
        return found


def _kept(file: Path | None, key: str) -> TaskResults | None:
    """Returns the saved result of an interrupted evaluation, if it has the same code, model, settings and questions."""
    if file is None or not file.is_file():
        return None
    found = TaskResults.model_validate_json(file.read_text(encoding="utf-8"))
    return found if found.key == key else None


def average(name: str, wanted: Sequence[Wanted], found: Sequence[TaskResults]) -> Score:
    """Computes the mean over tasks of the metric that counts for each; null if one is missing, since a mean over fewer tasks
    is another quantity. For the interval, the samples of each task are resampled independently."""
    without = [
        task.name for task, result in zip(wanted, found, strict=True) if task.metric is None or not result.values(task.metric)
    ]
    over = tuple(f"{task.name}/{task.metric}" for task in wanted if task.metric is not None)
    if without:
        reason = f"the mean over {len(wanted)} tasks lacks {', '.join(without)}"
        return Score(task=SUITE, metric=name, value=None, n=0, higher_is_better=True, unscored=reason, over=over)
    values = [np.array(result.values(task.metric or "")) for task, result in zip(wanted, found, strict=True)]
    draws = np.mean([group[0] for group in resampled([[array] for array in values])], axis=0)
    low, high = percentiles(draws)
    value = float(np.mean([array.mean() for array in values]))
    n = sum(map(len, values))
    return Score(task=SUITE, metric=name, value=value, low=low, high=high, n=n, higher_is_better=True, over=over)


def _evaluate(lm: Any, wanted: Wanted, limit: int | None, loaded: Mapping[str, Any]) -> Mapping[str, Any]:
    """Does what lm-eval's simple_evaluate does with loaded tasks, without its inspection of the machine, which takes seconds."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (wanted.shots is not None and own != 0):
            task.set_config(key="num_fewshot", value=wanted.shots or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return dict(evaluate(lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=True))


@contextmanager
def _seeded() -> Iterator[None]:
    """Context manager with lm-eval's seeds, for tasks that draw; afterwards the generators are restored."""
    import torch
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def _key(key: Sequence[str], wanted: Wanted, limit: int | None, tasks: Mapping[str, Any]) -> str:
    """Computes a sha256 over everything that the result depends on: code, model and settings (`key`), lm-eval, the tasks and
    their questions."""
    import lm_eval

    digest = hashlib.sha256()
    for part in (code_version(), *key, lm_eval.__version__, *wanted, limit):
        digest.update(f"{part}\0".encode())
    for name, task in sorted(tasks.items()):
        digest.update(json.dumps([name, task.dump_config()], default=str).encode())
        for doc in task.eval_docs:
            digest.update(json.dumps(doc, default=str).encode())
    return digest.hexdigest()


@contextmanager
def _calm(quiet: bool) -> Iterator[None]:
    """Context manager that logs errors only, and hides lm-eval's progress bars if asked."""
    with silenced(), redirect_stderr(io.StringIO() if quiet else sys.stderr):
        yield


def _line(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{first[:200]} ({type(error).__name__})"


if __name__ == "__main__":
    sys.exit(main())
