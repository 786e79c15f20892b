"""Computes the data that a task's metrics need about each example, once for all metrics."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.data.encode import decoded
from expunge.data.example import Example
from expunge.evaluation.engine import Engine
from expunge.evaluation.generate import UNFINISHED, Writing, generate, is_foreseen, sample, text_of, usual_size, writing
from expunge.evaluation.judges import Answer
from expunge.evaluation.metrics.base import BROKEN, Need, Row
from expunge.evaluation.nucleus import Ids
from expunge.evaluation.processes import from_main
from expunge.evaluation.shortcuts import shortcuts_of
from expunge.evaluation.task import Task
from expunge.evaluation.texts import Pair, Texts, pairs_of
from expunge.evaluation.token_stats import NOTHING, TokenStats

QUESTIONS = 512
"""Number of multiple-choice questions encoded at a time, to bound memory with large benchmarks."""


class Rows:
    """Encodes, scores and generates for one model, for any number of tasks."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        engine: Engine,
        texts: Texts,
    ) -> None:
        self.model, self.tokenizer, self.engine, self.texts = model, tokenizer, engine, texts
        self.encoder, self.room = texts.encoder, texts.room
        self._begun: dict[str, list[Row]] = {}
        self._together: set[str] = set()
        self._written: dict[tuple[Hashable, Ids], Ids | None] = {}

    def of(self, task: Task, *, show: bool = False, ahead: Sequence[Task] = ()) -> list[Row]:
        """Returns one row per example of the task.

        show   the first `task.shown` examples get a greedy answer even if no metric needs it, of secret tasks too
        ahead  tasks that will be asked for next: greedy answers to their prompts are written in the same batches as those of
               this task, where they fit in, and kept until then
        """
        if task.name not in self._together:
            self._begin([task, *ahead], show=show)
        self._together.remove(task.name)
        rows = self._begun.pop(task.name)
        count = _count(task, show=show)
        rows = self._generate(rows[:count], task) + rows[count:]
        if "sampled" in task.needs:
            rows = self._sample(rows, task)
        rows = [row._replace(cut=self.texts.is_cut(row.example)) for row in rows]
        if task.expected_tokens is not None:
            beginnings = self._beginnings([row.example.response for row in rows], task.expected_tokens)
            rows = [row._replace(compared=text) for row, text in zip(rows, beginnings, strict=True)]
        return _judged(rows, task)

    def _begin(self, tasks: Sequence[Task], *, show: bool) -> None:
        """Reads the first task, and those after it as long as the answers to their prompts fit into one batch with its own. (A
        guard, and a model that transformers decodes, is given the prompts of one task at a time.)"""
        first, *others = tasks
        self._together, self._written = {first.name}, {}
        answered = self._begun_rows(first)[: _count(first, show=show)]
        prompts = self._asked(answered, self._most(first)).values()
        if self.engine.reuse is not None or not prompts or not shortcuts_of(self.model).stepwise:
            return
        most, _ = usual_size(self.model, max(map(len, prompts)) + self._most(first))
        for task in others:
            count = _count(task, show=show)
            if self._way(task) != self._way(first) or not 0 < count <= 2 * most:
                break
            rows = self._begun_rows(task)[:count]
            if _open(answered) + _open(rows) > most:
                break
            self._together.add(task.name)
            answered = answered + rows
        if len(self._together) > 1:
            asked, written = self._write(answered, first)
            self._written = {(self._way(first), prompt): ids for prompt, ids in zip(asked, written, strict=True)}

    def _begun_rows(self, task: Task) -> list[Row]:
        if task.name not in self._begun:
            self._begun[task.name] = self._read(task)
        return self._begun[task.name]

    def _way(self, task: Task) -> Hashable:
        """Returns what an answer depends on besides the prompt."""
        return self._most(task), task.stop

    def _read(self, task: Task) -> list[Row]:
        """Returns one row per example of the task, without answers that the model writes."""
        needs = [task.needs_of(example) for example in task.examples]
        asked = list(zip(task.examples, needs, strict=True))
        pairs = [pair for example, need in asked for kind in sorted(need - {"choices"}) for pair in pairs_of(example, kind)]
        stats = self._score(pairs, distribution=any("distribution" in need for need in needs))
        choices = iter(self._choose([example for example, need in asked if "choices" in need]))

        def found(example: Example, kind: Need, need: frozenset[Need]) -> tuple[TokenStats, ...]:
            return tuple(stats[pair] for pair in pairs_of(example, kind)) if kind in need else ()

        rows = [
            Row(
                example,
                answer=next(iter(found(example, "answer", need)), NOTHING),
                paraphrases=found(example, "paraphrases", need),
                perturbed=found(example, "perturbed", need),
                choices=tuple(next(choices)) if "choices" in need else (),
                shortened=frozenset(kind for kind in need if self.texts.is_short(pairs_of(example, kind))),
                unknown=unknown,
                control=control,
            )
            for (example, need), unknown, control in zip(asked, self.texts.unknown(asked), self.texts.control(asked), strict=True)
        ]
        norms = self._gradient_norms([example for example, need in asked if "gradient" in need])
        short = self._gradient_norms([e for e, need in asked if "gradient_without_last" in need], without_last=True)
        return [
            row._replace(gradient_norm=norms.get(pair), gradient_norm_without_last=short.get(pair))
            for row, pair in zip(rows, [(row.example.prompt, row.example.response) for row in rows], strict=True)
        ]

    def _beginnings(self, responses: Sequence[str], tokens: int) -> list[str]:
        """Returns the first tokens of each response, as text."""
        ids = self.tokenizer(list(responses), add_special_tokens=False)["input_ids"]
        return [decoded(self.tokenizer, row[:tokens]) for row in ids]

    def _score(self, pairs: Sequence[Pair], *, distribution: bool = False) -> dict[Pair, TokenStats]:
        unique = list(dict.fromkeys(pairs))
        rows = self.texts.encode(unique)
        return dict(zip(unique, self.engine.score(rows, distribution=distribution), strict=True))

    def _gradient_norms(self, examples: Sequence[Example], *, without_last: bool = False) -> dict[Pair, float]:
        pairs = list(dict.fromkeys(pair for e in examples for pair in pairs_of(e, "answer")))
        rows = dict(zip(pairs, self.texts.encode(pairs), strict=True))
        if without_last:
            cut = {pair: row._replace(ids=row.ids[:-1], has_end=False) for pair, row in rows.items()}
            rows = {pair: row for pair, row in cut.items() if len(row.ids) > row.answer_start}
        return dict(zip(rows, self.engine.gradient_norms(list(rows.values())), strict=True))

    def _choose(self, examples: Sequence[Example]) -> Iterator[list[TokenStats]]:
        """Computes statistics of the choices of each example."""
        for start in range(0, len(examples), QUESTIONS):
            yield from self.engine.score_answers(self.texts.choices(examples[start : start + QUESTIONS]))

    def _generate(self, rows: Sequence[Row], task: Task) -> list[Row]:
        """Adds greedy answers to the rows (none for raw text)."""
        prompts = self._asked(rows, self._most(task))
        keys = [(self._way(task), prompt) for prompt in prompts.values()]
        if all(key in self._written for key in keys):
            written = [self._written[key] for key in keys]
        else:
            _, written = self._write(rows, task)
        answers = dict(zip(prompts, written, strict=True))
        return [self._answered(row, answers[row.example.prompt], prompts, task) if row.example.prompt else row for row in rows]

    def _write(self, rows: Sequence[Row], task: Task) -> tuple[list[Ids], list[Ids | None]]:
        """Returns the distinct prompts of the rows and the answers to them, written as `task` has them. Tokens known from the
        teacher-forced pass are not decoded."""
        prompts = self._asked(rows, self._most(task))
        known: dict[Ids, Ids] = {}
        for row in rows:
            if row.example.prompt is not None:
                prompt = prompts[row.example.prompt]
                known[prompt] = max(known.get(prompt, ()), self._foreseen(row, prompt), key=len)
        how = self._writing(task)

        reuse = self.engine.reuse

        def write(some: Sequence[Ids], *, settings: Sequence[object] | None = None) -> list[Ids | None]:
            # What a teacher-forced pass has shown holds under the setting that is evaluated, not under those computed ahead.
            now = [None if reuse is None else reuse.under(prompt) for prompt in some]
            begun = [known[p] if a == b else () for p, a, b in zip(some, settings or now, now, strict=True)]
            return generate(self.model, some, **how, known=begun, settings=settings)

        asked = list(prompts.values())
        if reuse is None:
            return asked, write(asked)
        keys = [("written", prompt, how["max_new_tokens"], how["max_length"], task.stop) for prompt in asked]
        decoded = [int(not is_foreseen(known[prompt], prompt, how)) for prompt in asked]
        return asked, reuse.of(asked, keys, asked, write, decoded)

    def _answered(self, row: Row, ids: Ids | None, prompts: Mapping[str, Ids], task: Task) -> Row:
        if ids is None or row.example.prompt is None:
            return row._replace(broken=BROKEN)
        prompt = prompts[row.example.prompt]
        row = row._replace(generated=self._text(task, prompt, ids))
        return _shortened(row, "generated") if self._without_room(prompt, ids, task) else row

    def _without_room(self, prompt: Ids, ids: Ids, task: Task) -> bool:
        """Returns whether an answer ended because the model takes no more tokens."""
        full = self.encoder.max_length if self.room is None else self.room
        return len(ids) < task.max_new_tokens and (len(ids) >= self._most(task) or len(prompt) + len(ids) >= full)

    def _sample(self, rows: Sequence[Row], task: Task) -> list[Row]:
        """Adds sampled answers to the rows; none for raw text."""
        prompts = self._asked(rows, self._most(task))
        drawn = sample(self.model, list(prompts.values()), task.nucleus, task.draws, **self._writing(task))
        texts: dict[str | None, tuple[str, ...] | None] = {}
        short = set()
        for prompt, several in zip(prompts, drawn, strict=True):
            if any(ids is not None and self._without_room(prompts[prompt], ids, task) for ids in several):
                short.add(prompt)
            whole = [self._text(task, prompts[prompt], ids) for ids in several if ids is not None]
            texts[prompt] = tuple(whole) if len(whole) == len(several) else None
        rows = [_shortened(row, "sampled") if row.example.prompt in short else row for row in rows]
        found = [(row, texts.get(row.example.prompt, ())) for row in rows]
        return [row._replace(broken=BROKEN) if some is None else row._replace(sampled=some) for row, some in found]

    def _most(self, task: Task) -> int:
        """Returns the longest answer in tokens: at most half of the room of a verbatim task."""
        return task.max_new_tokens if self.room is None else min(task.max_new_tokens, self.room // 2)

    def _asked(self, rows: Sequence[Row], max_new_tokens: int) -> dict[str, Ids]:
        """Returns the distinct prompts of the rows, as tokens."""
        unique = list(dict.fromkeys(row.example.prompt for row in rows if row.example.prompt is not None))
        return dict(zip(unique, self.texts.prompts(unique, max_new_tokens), strict=True))

    def _writing(self, task: Task) -> Writing:
        how = writing(self.model, self.encoder, self._most(task))
        if self.room is not None:
            how["max_length"] = self.room
        if task.stop:
            how["stopped"] = partial(self._stopped, task.stop)
        return how

    def _stopped(self, stop: tuple[str, ...], ids: Ids) -> bool:
        """Returns whether a stop text was just written. A character has at most four tokens (bytes)."""
        recent = decoded(self.tokenizer, ids[-4 * max(map(len, stop)) - 4 :])
        return any(text in recent for text in stop)

    def _text(self, task: Task, prompt: Ids, ids: Ids) -> str:
        if not task.verbatim:
            text = text_of(self.tokenizer, ids).strip()
        else:
            text = self._continuation(prompt, ids)
        return text[: min((at for at in (text.find(stop) for stop in task.stop) if at >= 0), default=len(text))]

    def _continuation(self, prompt: Ids, ids: Ids) -> str:
        """Returns what the tokens add to the text of the prompt.

        Some tokenizers drop the space before the first token of a text, and a character may have several tokens (bytes):
        therefore it is decoded together with the end of the prompt, from the beginning of a whole character.
        """
        for kept in (*range(4, 13), len(prompt)):
            tail = prompt[-kept:]
            before = decoded(self.tokenizer, tail)
            if before and not before.startswith(UNFINISHED):
                break
        whole = text_of(self.tokenizer, tail + ids)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))
        return whole[sum(1 for _ in same) :]

    def _foreseen(self, row: Row, prompt: Ids) -> Ids:
        """Returns the tokens with which greedy decoding is known to begin: those of the response up to the first that is not
        the model's most probable one, given the true tokens before it (its end token included)."""
        encoded = self.texts.known((row.example.prompt, row.example.response))
        if encoded is None or encoded.ids[: encoded.answer_start] != prompt or not np.isfinite(row.answer.logp).all():
            return ()
        misses = np.flatnonzero(~row.answer.hit)
        count = int(misses[0]) if len(misses) else len(row.answer.hit)
        return encoded.ids[encoded.answer_start : encoded.answer_start + count]


def _count(task: Task, *, show: bool) -> int:
    """Returns to how many of the task's first examples the model writes a greedy answer."""
    count = len(task.examples)
    return count if "generated" in task.needs else min(task.shown if show or not task.secret else 0, count)


def _open(rows: Sequence[Row]) -> int:
    """Returns how many answers are not known to the end from the teacher-forced pass."""
    return sum(not len(row.answer.hit) or not row.answer.hit.all() for row in rows)


def _judged(rows: list[Row], task: Task) -> list[Row]:
    """Adds every judge's verdict on every answer and sampled answer."""
    answers = [Answer(row.example.id, row.example.prompt, row.expected, row.generated or "") for row in rows]
    said = {judge: from_main(partial(judge.judge, answers)) for judge in task.judges_of("generated")}
    rows = [row._replace(judged={judge: verdicts[i] for judge, verdicts in said.items()}) for i, row in enumerate(rows)]
    draws = [Answer(row.example.id, row.example.prompt, row.expected, text) for row in rows for text in row.sampled]
    for judge in task.judges_of("sampled"):
        left = iter(from_main(partial(judge.judge, draws)))
        rows = [
            row._replace(judged_samples={**row.judged_samples, judge: tuple(next(left) for _ in row.sampled)}) for row in rows
        ]
    return rows


def _shortened(row: Row, kind: Need) -> Row:
    return row._replace(shortened=row.shortened | {kind})
