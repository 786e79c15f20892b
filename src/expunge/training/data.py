"""Encodes the rows of a run once, and the answers that may replace their own.

Each row of a row set has a key: the set of its prompt, the row's index, and the answer's. Steps draw keys, the reference table is
indexed by keys, and keys are encoded as tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Literal, NamedTuple

import torch

from expunge.data.encode import Encoded, Encoder, Tokens, collate
from expunge.data.example import Example, Request
from expunge.data.never_seen import under_other_names
from expunge.data.refusals import REFUSALS
from expunge.errors import ExpungeError
from expunge.methods.training.base import Answers, Prompts, RowSet, TrainingMethod
from expunge.training.pairs import Pairs, share
from expunge.training.renamed import Twin, aligned

Part = Literal["all", "own", "copied"]
"""Which tokens of an answer are labels: all, those that the prompt does not contain, or those that it contains."""
NEUTRAL_TOKENS = 128
"""Longest neutral text; a longer one is cut."""
PROBES = 16
"""Number of forget rows of each part on which a method measures its progress."""


class RowKey(NamedTuple):
    """The key of a row: a prompt, and one of the answers to it."""

    prompts: Prompts
    row: int
    answers: Answers = "own"
    answer: int = -1
    """Index into the pool of answers; -1 for the row's own."""
    part: Part = "all"
    """Which tokens of the row's own answer are labels."""


StepRows = Mapping[str, Sequence[tuple[RowKey, ...]]]
"""Row set -> for each of its prompts, the keys of its rows, one per answer."""


@dataclass(frozen=True)
class AnswerPool:
    """Answers that are drawn for prompts."""

    texts: tuple[str, ...]
    barred: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Prompt -> answers that are not drawn for it, because they are its own."""
    per_row: int = 0
    """Number of answers of each row, if rows have their own: those of row i begin at i * per_row. 0: all answers are for all
    rows."""

    @classmethod
    def mismatched(cls, source: Sequence[Example], sets: Sequence[Sequence[Example]]) -> "AnswerPool":
        """Returns the answers of `source` as a pool; none is drawn for a prompt of `sets` whose own answer it is in any row."""
        texts = tuple(dict.fromkeys(example.response for example in source))
        place = {text: i for i, text in enumerate(texts)}
        own: dict[str, set[int]] = {}
        for example in (example for rows in sets for example in rows):
            if example.prompt is not None and example.response in place:
                own.setdefault(example.prompt, set()).add(place[example.response])
        return cls(texts, {prompt: frozenset(answers) for prompt, answers in own.items()})

    @classmethod
    def alternates(cls, answers: Sequence[Sequence[str]]) -> "AnswerPool":
        """Returns the answers of each row. A row with fewer answers than others repeats them."""
        per_row = max(map(len, answers))
        return cls(tuple(own[i % len(own)] for own in answers for i in range(per_row)), per_row=per_row)


@dataclass(frozen=True)
class TrainingData:
    """The encoded data of one run."""

    forget: Sequence[Encoded]
    """The rows that the run iterates over; for `finetune` the rows to learn."""
    ids: Sequence[str]
    """`Example.id` of each forget row, for messages."""
    pad_id: int
    twins: Sequence[tuple[Twin, ...]] = ()
    """The forget rows under other names, if a row set asks for values of these."""
    retain: Sequence[Encoded] = ()
    holdout: Sequence[Encoded] = ()
    neutral: Sequence[Encoded] = ()
    """Texts on which it is measured how much the model changes in general."""
    parts: tuple[tuple[int, ...], ...] = ()
    """Groups of forget rows that are not mixed in a step; empty: all are one group."""
    prompts: Mapping[Prompts, Sequence[str | None]] = field(default_factory=dict)
    """Texts of the prompts, if a row set has other answers than their own."""
    pools: Mapping[Answers, AnswerPool] = field(default_factory=dict)
    encode: Callable[[str | None, str], Encoded] | None = None
    """(prompt, answer) -> row."""
    _other: dict[RowKey, Encoded] = field(default_factory=dict, compare=False)

    def row(self, key: RowKey) -> Encoded:
        """Returns the encoded row of a key; rows with drawn answers are encoded on first use."""
        if key.answers == "own":
            row = self.forget[key.row] if key.prompts == "forget" else self.retain[key.row]
            return row.labelled(key.part)
        if key not in self._other:
            assert self.encode is not None
            self._other[key] = self.encode(self.prompts[key.prompts][key.row], self.pools[key.answers].texts[key.answer])
        return self._other[key]

    def step_rows(self, sets: Mapping[str, RowSet], plan: Pairs, step: int, rank: int = 0, world: int = 1) -> StepRows:
        """Returns this process's rows of a step: prompts rank, rank + world, ... of the global batch, which is the same for
        any number of processes."""
        found: dict[str, Sequence[tuple[RowKey, ...]]] = {}
        for name, rows in sets.items():
            prompts = plan.forget_rows(step) if rows.prompts == "forget" else plan.retain_rows(step)
            if rows.answers == "own":
                keys: list[tuple[RowKey, ...]] = [(RowKey(rows.prompts, row),) for row in prompts]
            else:
                pool, texts = self.pools[rows.answers], self.prompts[rows.prompts]
                barred = [pool.barred.get(texts[row] or "", frozenset()) for row in prompts]
                available = pool.per_row or len(pool.texts)
                drawn = plan.answers(step, rows.prompts, rows.answers, available, barred, rows.count)
                keys = [
                    tuple(RowKey(rows.prompts, row, rows.answers, row * pool.per_row + answer) for answer in answers)
                    for row, answers in zip(prompts, drawn, strict=True)
                ]
            found[name] = [keys[i] for i in share(range(len(keys)), rank, world)]
        return found

    def smaller(self, batch_size: int) -> str:
        """Returns a note about sets with fewer rows than a batch; "" if there is none."""
        parts = {f"part {i + 1} of the forget set": len(part) for i, part in enumerate(self.parts)}
        sizes = (parts or {"the forget set": len(self.forget)}) | {"the retain set": len(self.retain)}
        fewer = [f"all {size} rows of {name}" for name, size in sizes.items() if 0 < size < batch_size]
        return f"Each step had {', '.join(fewer)}, fewer than the batch of {batch_size}." if fewer else ""

    def probes(self, side: Literal["right", "left"], device: torch.device) -> list[Tokens]:
        """Returns evenly spaced rows of each forget part, the same in every run on the same data."""
        chosen = [part[:: -(-len(part) // PROBES)] for part in self.parts or (range(len(self.forget)),)]
        return [collate([self.forget[row] for row in part], self.pad_id, side).to(device) for part in chosen]

    @cached_property
    def part_of(self) -> Mapping[int, int]:
        """Returns the index of the part that a forget row belongs to."""
        return {row: i for i, part in enumerate(self.parts) for row in part}


class Resting(NamedTuple):
    """Forget rows of which a part of the answer is not trained until the next check; a row in both sets is left out."""

    own: frozenset[int] = frozenset()
    """Rows whose tokens that the prompt does not contain are not trained."""
    copied: frozenset[int] = frozenset()
    """Rows whose tokens that the prompt contains are not trained."""


NONE_REST = Resting()


def without(drawn: StepRows, sets: Mapping[str, RowSet], resting: Resting) -> tuple[StepRows, float]:
    """Leaves resting parts out of a step, and returns its rows and the share of the forget rows that remain.

    Where none remains one is left in, for methods whose terms need a row; its share is 0. Answers that are not the rows' own
    have no parts: in a method that trains only on such, a row is left out where its own tokens rest.
    """
    if not any(resting):
        return drawn, 1.0
    kept: dict[str, Sequence[tuple[RowKey, ...]]] = {}
    of_forget = [rows for rows in sets.values() if rows.prompts == "forget"]
    left_out = resting.own & resting.copied if any(rows.answers == "own" for rows in of_forget) else resting.own
    share = 1.0
    for name, prompts in drawn.items():
        if sets[name].prompts == "forget":
            awake = [keys for keys in prompts if keys[0].row not in left_out]
            share, kept[name] = len(awake) / len(prompts), [_awake(keys, resting) for keys in awake] or prompts[:1]
        else:
            kept[name] = prompts
    return kept, share


def _awake(keys: tuple[RowKey, ...], resting: Resting) -> tuple[RowKey, ...]:
    """Returns the row's own answer with labels on the part that does not rest; other answers as they are."""
    key = keys[0]
    if key.answers != "own":
        return keys
    part: Part = "copied" if key.row in resting.own else "own" if key.row in resting.copied else "all"
    return (key._replace(part=part),)


def encode_data(request: Request, method: TrainingMethod, encoder: Encoder) -> TrainingData:
    """Encodes what the row sets of `method` need; answers that the start model writes are not there yet.

    Raises ExpungeError where a set cannot have as many answers as it asks for.
    """
    sets = method.row_sets.values()
    prompts: dict[Prompts, Sequence[str | None]] = {
        "forget": [e.prompt for e in request.forget],
        "retain": [e.prompt for e in request.retain],
    }
    pools: dict[Answers, AnswerPool] = {}
    for rows in sets:
        if rows.answers == "refusals":
            pools["refusals"] = AnswerPool(tuple(request.refusals or REFUSALS))
        elif rows.answers in ("forget", "retain"):
            source = request.forget if rows.answers == "forget" else request.retain
            pools[rows.answers] = AnswerPool.mismatched(source, [request.forget, request.retain])
        elif rows.answers == "alternates" and method.asking is None:
            pools["alternates"] = AnswerPool.alternates(_perturbed(request.forget, method))
        if rows.answers != "own":
            _check_prompts(rows, prompts[rows.prompts], method)
        if rows.answers in pools:
            _check_pool(rows, pools[rows.answers], prompts[rows.prompts], method)
    forget, twins = encoder.encode_many(request.forget), list[tuple[Twin, ...]]()
    if names := max(rows.names for rows in sets):
        forget, twins = _renamed(forget, request, method, names, encoder)
    return TrainingData(
        forget=forget,
        twins=twins,
        ids=[e.id for e in request.forget],
        pad_id=encoder.pad_id,
        retain=encoder.encode_many(request.retain) if any(rows.prompts == "retain" for rows in sets) else [],
        holdout=encoder.encode_many(request.holdout),
        neutral=Encoder(encoder.tokenizer, encoder.format, min(NEUTRAL_TOKENS, encoder.max_length)).encode_many(request.neutral),
        parts=method.forget_parts(request),
        prompts=prompts,
        pools=pools,
        encode=encoder.encode_answer,
    )


def _renamed(
    rows: Sequence[Encoded], request: Request, method: TrainingMethod, names: int, encoder: Encoder
) -> tuple[list[Encoded], list[tuple[Twin, ...]]]:
    """Returns the forget rows, labelled where they are aligned with themselves under other names, and these."""
    size = cache(lambda word: len(encoder.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]))
    copies = under_other_names(request.forget, request.holdout, request.retain, names, tokens=size)
    found: list[tuple[Encoded, tuple[Twin, ...]]] = []
    for row, others, example in zip(rows, copies, request.forget, strict=True):
        if not others:
            count = sum(not others for others in copies)
            raise ExpungeError(
                f"{method.method_name()} reads every forget prompt under another name, and "
                f"{example.place or f'example {example.id}'} has no name in its prompt"
                f"{f' (as {count - 1} more rows)' if count > 1 else ''}; give prompts with the name written out, or take another "
                "method"
            )
        found.append(aligned(row, encoder.encode_many(others)))
    return [own for own, _ in found], [twins for _, twins in found]


def _perturbed(examples: Sequence[Example], method: TrainingMethod) -> list[tuple[str, ...]]:
    for example in examples:
        if not example.perturbed:
            raise ExpungeError(
                f"{method.method_name()} with --alternates perturbed needs wrong answers in every forget row, and "
                f"{example.place or f'example {example.id}'} has no `perturbed`; give them, or --alternates model"
            )
    return [example.perturbed for example in examples]


def _check_prompts(rows: RowSet, prompts: Sequence[str | None], method: TrainingMethod) -> None:
    if any(prompt is None for prompt in prompts):
        raise ExpungeError(
            f"{method.method_name()} puts other answers after the prompts of the {rows.prompts} set, which has raw text; give "
            "prompt and response"
        )


def _check_pool(rows: RowSet, pool: AnswerPool, prompts: Sequence[str | None], method: TrainingMethod) -> None:
    if pool.per_row:
        return
    name = method.method_name()
    least = min(len(pool.texts) - len(pool.barred.get(prompt or "", ())) for prompt in prompts)
    if least < rows.count:
        raise ExpungeError(
            f"{name} needs {rows.count} different answers per prompt from {rows.answers}, and for one prompt of the "
            f"{rows.prompts} set there are {least}; give more rows or ask for fewer answers"
        )
