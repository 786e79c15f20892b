"""Batched generation, greedy or sampled: the one place where evaluation lets a model write."""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypedDict, cast

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from expunge.data.encode import Encoded, collate, length_batches
from expunge.evaluation.drawing import drawn
from expunge.evaluation.nucleus import Ids, Nucleus
from expunge.evaluation.processes import dealt
from expunge.models.hooks import is_hooked
from expunge.models.load import causal_model


class Writing(TypedDict):
    """What `generate` and `sample` are told by their callers."""

    pad_id: int
    end_ids: Collection[int]
    max_new_tokens: int
    max_length: int | None
    stopped: Callable[[Ids], bool] | None


def generate(
    model: nn.Module,
    prompts: Sequence[Ids],
    *,
    pad_id: int,
    end_ids: Collection[int],
    max_new_tokens: int,
    max_length: int | None = None,
    max_rows: int = 64,
    max_tokens: int = 32_768,
    stopped: Callable[[Ids], bool] | None = None,
) -> list[Ids]:
    """The greedy continuation of each prompt, up to and without the first end token.

    Equal prompts are continued once. Batches hold prompts of like length, padded on the left, and are about equally large; one
    has at most `max_rows` prompts and, answers included, `max_tokens` tokens (the key-value cache). `max_length` is the longest
    sequence that the model takes; answers stop there. `stopped` says of the tokens written so far that nothing after them
    matters (a stop text is in them). Sampling and penalties that the model's own generation config asks for are off.
    """
    write = partial(_batch, model, pad_id=pad_id, end_ids=end_ids, stopped=stopped, nucleus=None)
    found = _continued(model, [(prompt, 0) for prompt in prompts], write, max_new_tokens, max_length, max_rows, max_tokens)
    return [found[prompt, 0] for prompt in prompts]


def sample(
    model: nn.Module,
    prompts: Sequence[Ids],
    nucleus: Nucleus,
    draws: int,
    *,
    pad_id: int,
    end_ids: Collection[int],
    max_new_tokens: int,
    max_length: int | None = None,
    max_rows: int = 64,
    max_tokens: int = 32_768,
    stopped: Callable[[Ids], bool] | None = None,
) -> list[tuple[Ids, ...]]:
    """So many sampled continuations of each prompt, bounded and batched as in `generate`."""
    write = partial(_batch, model, pad_id=pad_id, end_ids=end_ids, stopped=stopped, nucleus=nucleus)
    wanted = [(prompt, draw) for prompt in prompts for draw in range(draws)]
    found = _continued(model, wanted, write, max_new_tokens, max_length, max_rows, max_tokens)
    return [tuple(found[prompt, draw] for draw in range(draws)) for prompt in prompts]


Wanted = tuple[Ids, int]
"""A prompt, and which draw of it."""
ENOUGH = 16
"""Rows that are worth a batch of their own."""


def _continued(
    model: nn.Module,
    wanted: Sequence[Wanted],
    write: Callable[..., list[Ids]],
    max_new_tokens: int,
    max_length: int | None,
    max_rows: int,
    max_tokens: int,
) -> dict[Wanted, Ids]:
    begun = {row: _Begun(*row) for row in wanted}
    stretches = _stretches(begun, max_new_tokens, max_length, whole=is_hooked(model))
    training = model.training
    model.eval()
    try:
        for limit in sorted({limit for limits in stretches.values() for limit in limits}, reverse=True):
            rows = [row for row in begun if limit in stretches[row] and not begun[row].ended]
            count = -(-len(rows) // -(-len(rows) // max_rows)) if rows else 1  # all batches about as large
            places = length_batches([len(begun[row].ids) + limit for row in rows], max_tokens, count)
            batches = [[rows[i] for i in batch] for batch in places]
            go_on = partial(_go_on, write, begun, limit)
            for batch, written in zip(batches, dealt(model, batches, go_on), strict=True):
                begun |= zip(batch, written, strict=True)
    finally:
        model.train(training)
    return {row: found.answer for row, found in begun.items()}


class _Begun(NamedTuple):
    prompt: Ids
    draw: int
    answer: Ids = ()
    ended: bool = False

    @property
    def ids(self) -> Ids:
        return self.prompt + self.answer


def _stretches(wanted: Iterable[Wanted], max_new_tokens: int, max_length: int | None, *, whole: bool) -> dict[Wanted, list[int]]:
    """The numbers of tokens in which each answer is written, one after the other.

    All that is wanted at once, where enough prompts have room for it. Rooms of prompts near the model's limit differ, and a batch
    has one limit; so theirs are taken in powers of two, which any of them can share, and none is cut short by a longer neighbor.
    whole: each in one go, for what hooks into the model may decide by the prompt.
    """
    most = sys.maxsize if max_length is None else max_length
    rooms = {row: min(max_new_tokens, max(0, most - len(row[0]))) for row in wanted}
    shared = {room for room, count in Counter(rooms.values()).items() if whole or count >= min(ENOUGH, len(rooms))}
    return {
        row: [room] if room in shared and room else [1 << bit for bit in range(room.bit_length()) if room >> bit & 1]
        for row, room in rooms.items()
    }


def _go_on(write: Callable[..., list[Ids]], begun: Mapping[Wanted, _Begun], limit: int, batch: Sequence[Wanted]) -> list[_Begun]:
    rows = [begun[row] for row in batch]
    written = write(rows, max_new_tokens=limit)
    return [r._replace(answer=r.answer + new, ended=len(new) < limit) for r, new in zip(rows, written, strict=True)]


@torch.inference_mode()
def _batch(
    model: nn.Module,
    begun: Sequence[_Begun],
    pad_id: int,
    end_ids: Collection[int],
    max_new_tokens: int,
    stopped: Callable[[Ids], bool] | None,
    nucleus: Nucleus | None,
) -> list[Ids]:
    inner = causal_model(model)
    rows = [Encoded(row.ids, len(row.ids), False) for row in begun]
    tokens = collate(rows, pad_id, side="left").to(inner.device)
    width = tokens.input_ids_BT.shape[1]
    stops = _Stops(stopped, width, len(rows)) if stopped is not None else None
    draws = [(row.prompt, row.draw, len(row.answer)) for row in begun]
    choice = [drawn(nucleus, draws, max_new_tokens, width)] if nucleus is not None else []
    written_BT: torch.Tensor = inner.generate(  # type: ignore[operator]
        input_ids=tokens.input_ids_BT,
        attention_mask=tokens.attention_mask_BT,
        generation_config=_greedy(pad_id, end_ids, max_new_tokens),
        stopping_criteria=StoppingCriteriaList([stops] if stops is not None else []),
        logits_processor=LogitsProcessorList(choice),
    )
    answers = [_until_end(row, end_ids) for row in written_BT[:, width:].tolist()]
    return answers if stops is None else [answer[:most] for answer, most in zip(answers, stops.lengths, strict=True)]


class _Stops(StoppingCriteria):
    """Ends the rows whose answer is complete; what the model would write beside the others is padding."""

    def __init__(self, stopped: Callable[[Ids], bool], width: int, rows: int) -> None:
        self.stopped, self.width = stopped, width
        self.lengths: list[int | None] = [None] * rows
        """Number of tokens of an answer when it was complete."""

    def __call__(self, input_ids: torch.LongTensor, scores: object, **_: object) -> torch.BoolTensor:
        for row, ids in enumerate(input_ids[:, self.width :].tolist()):
            if self.lengths[row] is None and self.stopped(tuple(ids)):
                self.lengths[row] = len(ids)
        done = torch.tensor([length is not None for length in self.lengths], device=input_ids.device)
        return cast(torch.BoolTensor, done)


def _greedy(pad_id: int, end_ids: Collection[int], max_new_tokens: int) -> GenerationConfig:
    # What is None here is filled from the model's own generation config, so everything that would change the answer is said.
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        eos_token_id=sorted(set(end_ids)),
        pad_token_id=pad_id,
        use_cache=True,
    )


def _until_end(ids: Sequence[int], end_ids: Collection[int]) -> Ids:
    for length, token in enumerate(ids):
        if token in end_ids:
            return tuple(ids[:length])
    return tuple(ids)
