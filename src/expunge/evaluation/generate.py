"""Generates texts in batches, greedy or sampled.

There are three implementations with the same result. Most models are decoded here, token by token (`decode`), on a CPU with
guesses that are read along (`decode_rows`). Transformers' own
`generate` is used for models with special caches, and for models with hooks: a guard answers inside `generate`. It gets its own
generation config, not the model's, whose recommendations (penalties, sampling, stop strings) would change the measurement.

Greedy texts equal those of greedy decoding one row at a time. Batches and caches change logits by rounding (1e-6 in float32), so
that another token is written only if two are equally probable within that.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypedDict, cast

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from expunge.data.encode import Encoded, Encoder, collate, decoded, length_batches
from expunge.errors import ExpungeError
from expunge.evaluation.changed_prompts import settings_of_rows
from expunge.evaluation.decode import Begun, decode, logits_are_finite, tokens_of
from expunge.evaluation.decode_rows import decode_rows
from expunge.evaluation.drafts import Drafts, share
from expunge.evaluation.drawing import drawn
from expunge.evaluation.nucleus import Ids, Nucleus
from expunge.evaluation.processes import dealt
from expunge.evaluation.shortcuts import Shortcuts, shortcuts_of
from expunge.guarding.session import rows_under
from expunge.models.hooks import is_hooked
from expunge.models.limits import check_embedded, end_tokens, padding, text_config
from expunge.models.load import causal_model

ROWS, TOKENS = 64, 32_768
"""Usual bounds of a batch."""
MOST_ROWS, SMALL_CACHE = 256, 2**27
"""Bound of a batch whose keys and values take at most so many bytes: a step of a small model costs nearly the same for any number
of rows."""
UNFINISHED = "\ufffd"
"""Character that tokenizers write for bytes that are not a complete character."""


class Writing(TypedDict):
    """Callers' settings of `generate` and `sample`."""

    pad_id: int
    end_ids: Collection[int]
    max_new_tokens: int
    max_length: int | None
    stopped: Callable[[Ids], bool] | None


class Decoding(TypedDict):
    """How one batch is decoded."""

    pad_id: int
    end_ids: Collection[int]
    stopped: Callable[[Ids], bool] | None
    nucleus: Nucleus | None


def writing(model: nn.Module, encoder: Encoder, max_new_tokens: int) -> Writing:
    """How a model answers prompts of `encoder`: to any of its end tokens, the tokenizer's or the chat template's."""
    return Writing(
        pad_id=encoder.pad_id,
        end_ids=end_tokens(model, (encoder.end_id, encoder.eos_id)),
        max_new_tokens=max_new_tokens,
        max_length=encoder.max_length,
        stopped=None,
    )


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    """The text of tokens without special ones. A character that the last tokens begin and do not end is left out: byte-fallback
    tokenizers would give up the whole run of bytes that it stands in."""
    whole = decoded(tokenizer, ids)
    for cut in range(1, min(4, len(ids))):
        if not whole.endswith(UNFINISHED):
            return whole
        shorter = decoded(tokenizer, ids[:-cut])
        if not shorter.endswith(UNFINISHED):
            return shorter
    return whole


def generate(
    model: nn.Module,
    prompts: Sequence[Ids],
    *,
    pad_id: int,
    end_ids: Collection[int],
    max_new_tokens: int,
    max_length: int | None = None,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    stopped: Callable[[Ids], bool] | None = None,
    known: Sequence[Ids] | None = None,
    settings: Sequence[object] | None = None,
) -> list[Ids | None]:
    """Returns the greedy continuation of each prompt, up to and without the first end token; None if the logits are not
    numbers.

    max_length             longest sequence that the model takes; answers end there
    max_rows, max_tokens   bounds of a batch, in prompts and, answers included, tokens (key-value cache); default: `usual_size`
    stopped                whether the tokens written so far contain a stop text, so that the answer ends
    known                  for each prompt, tokens with which the continuation begins (end token included), known from a
                           teacher-forced pass: they are read instead of generated
    settings               how each prompt is read: under a setting of the attached guard (`guarding.session.rows_under`), or
                           changed (`changed_prompts`, where rows are decoded without padding)

    Equal prompts under one setting are continued once.
    """
    asked = list(zip(prompts, settings or [None] * len(prompts), strict=True))
    rows = {(prompt, under): _begin(prompt, 0, max_new_tokens, max_length, under) for prompt, under in asked}
    for key, tokens in dict(zip(asked, known or (), strict=False)).items():
        rows[key].take_all(tokens, end_ids, stopped)
    _write(model, list(rows.values()), pad_id, end_ids, stopped, None, max_rows, max_tokens)
    return [tokens_of(rows[key]) for key in asked]


def is_foreseen(tokens: Ids, prompt: Ids, how: Writing) -> bool:
    """Returns whether an answer that begins with these tokens is complete, so that `generate` does not read its prompt."""
    row = _begin(prompt, 0, how["max_new_tokens"], how["max_length"])
    row.take_all(tokens, how["end_ids"], how["stopped"])
    return row.done


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
    max_rows: int | None = None,
    max_tokens: int | None = None,
    stopped: Callable[[Ids], bool] | None = None,
) -> list[tuple[Ids | None, ...]]:
    """Returns `draws` sampled continuations of each prompt, bounded and batched as in `generate`."""
    rows = {(prompt, i): _begin(prompt, i, max_new_tokens, max_length) for prompt in prompts for i in range(draws)}
    _write(model, list(rows.values()), pad_id, end_ids, stopped, nucleus, max_rows, max_tokens)
    return [tuple(tokens_of(rows[prompt, i]) for i in range(draws)) for prompt in prompts]


def written(answers: Sequence[Ids | None]) -> list[Ids]:
    """Returns the answers, for callers that need all of them.

    Raises ExpungeError if the model's logits are not numbers.
    """
    found = [answer for answer in answers if answer is not None]
    if len(found) < len(answers):
        raise ExpungeError(
            f"the model's logits are not numbers (NaN or infinity) for {len(answers) - len(found)} of {len(answers)} prompts; "
            "its weights are broken, so give another model"
        )
    return found


def usual_size(model: nn.Module, longest: int) -> tuple[int, int]:
    """Returns the usual rows and tokens of a batch of answers that have at most `longest` tokens with their prompts."""
    config = text_config(model)
    heads, size = getattr(config, "num_key_value_heads", None), getattr(config, "head_dim", None)
    width = heads * size if heads and size else config.hidden_size
    fitting = SMALL_CACHE // (2 * config.num_hidden_layers * width * causal_model(model).dtype.itemsize)
    if is_hooked(model) or fitting // longest <= ROWS:
        return ROWS, TOKENS
    return min(MOST_ROWS, fitting // longest), max(TOKENS, fitting)


def _begin(prompt: Ids, i: int, max_new_tokens: int, max_length: int | None, under: object = None) -> Begun:
    room = min(max_new_tokens, max(0, (sys.maxsize if max_length is None else max_length) - len(prompt)))
    return Begun(prompt, i, room=room, done=room == 0, under=under)


def _write(
    model: nn.Module,
    rows: Sequence[Begun],
    pad_id: int,
    end_ids: Collection[int],
    stopped: Callable[[Ids], bool] | None,
    nucleus: Nucleus | None,
    max_rows: int | None,
    max_tokens: int | None,
) -> None:
    """Completes every row, in place; with several processes each writes its batches, and all get the answers."""
    left = [row for row in rows if not row.done]
    if not left:
        return
    check_embedded(model, (row.prompt for row in left))
    can, pad_id = shortcuts_of(model), padding(model, pad_id)
    how = Decoding(pad_id=pad_id, end_ids=frozenset(end_ids), stopped=stopped, nucleus=nucleus)
    training = model.training
    model.eval()
    try:
        longest = max(len(row.prompt) + len(row.answer) + row.room for row in left)
        most, tokens = usual_size(model, longest)
        batches = _batches(left, can, max_rows or most, max_tokens or tokens)
        drafts = _drafts(model, rows) if can.ragged and nucleus is None else None
        written = dealt(model, batches, partial(_batch, model, left, how, can, drafts))
    finally:
        model.train(training)
    for batch, answers in zip(batches, written, strict=True):
        for i, (answer, broken) in zip(batch, answers, strict=True):
            left[i].answer, left[i].broken, left[i].done = answer, broken, True


def _drafts(model: nn.Module, rows: Sequence[Begun]) -> Drafts:
    """Returns guesses that know the prompts and all that is known of the answers, complete ones too."""
    drafts = Drafts(share(model))
    for row in rows:
        drafts.add((*row.prompt, *row.answer))
    return drafts


def _stepwise(row: Begun, can: Shortcuts) -> bool:
    """Returns whether a row is decoded here; not if its growing length would change how its cached positions are scaled."""
    return can.stepwise and not (can.longest is not None and len(row.prompt) + len(row.answer) + row.room > can.longest)


def _batches(rows: Sequence[Begun], can: Shortcuts, max_rows: int, max_tokens: int) -> list[list[int]]:
    """Groups row indices into batches of similar length and size.

    Rows generated by transformers need the same limit of new tokens and, if padding changes values, the same length.
    """
    kinds: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        begun = len(row.prompt) + len(row.answer)
        lonely = can.longest is not None and begun + row.room > can.longest
        kind = () if _stepwise(row, can) else (row.room, 0 if can.left_padding else begun, i if lonely else -1)
        kinds.setdefault(kind, []).append(i)
    batches = []
    for mine in kinds.values():
        most = max(rows[i].room for i in mine)
        lengths = [len(rows[i].prompt) + len(rows[i].answer) + most for i in mine]
        count = -(-len(mine) // -(-len(mine) // max_rows))
        batches += [[mine[i] for i in batch] for batch in length_batches(lengths, max_tokens, count)]
    return batches


def _batch(
    model: nn.Module, rows: Sequence[Begun], how: Decoding, can: Shortcuts, drafts: Drafts | None, batch: Sequence[int]
) -> list[tuple[list[int], bool]]:
    chosen = [rows[i] for i in batch]
    if _stepwise(chosen[0], can) and drafts is not None:
        decode_rows(model, chosen, drafts=drafts, end_ids=how["end_ids"], stopped=how["stopped"])
    elif _stepwise(chosen[0], can):
        settings_of_rows([row.under for row in chosen])
        decode(model, chosen, **how)
    else:
        _by_transformers(model, chosen, **how)
    return [(row.answer, row.broken) for row in chosen]


@torch.inference_mode()
def _by_transformers(
    model: nn.Module,
    begun: Sequence[Begun],
    *,
    pad_id: int,
    end_ids: Collection[int],
    stopped: Callable[[Ids], bool] | None,
    nucleus: Nucleus | None,
) -> None:
    """Does the same with the model's own `generate`. Known tokens are generated again, since hooks need the whole prompt."""
    inner = causal_model(model)
    limit = begun[0].room + len(begun[0].answer)
    tokens = collate([Encoded(row.prompt, len(row.prompt), False) for row in begun], pad_id, side="left").to(inner.device)
    width = tokens.input_ids_BT.shape[1]
    stops = _Stops(stopped, width, len(begun)) if stopped is not None else None
    finite = Finite(len(begun))
    choice: list[LogitsProcessor] = [finite]
    if nucleus is not None:
        choice.append(drawn(nucleus, [(row.prompt, row.draw) for row in begun], limit, width))
    with own_generation(model, pad_id, end_ids) as config, rows_under(settings_of_rows([row.under for row in begun])):
        config.max_new_tokens = limit
        written_BT: torch.Tensor = inner.generate(  # type: ignore[operator]
            input_ids=tokens.input_ids_BT,
            attention_mask=tokens.attention_mask_BT,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([stops] if stops is not None else []),
            logits_processor=LogitsProcessorList(choice),
        )
    broken = finite.broken()
    for b, (row, ids) in enumerate(zip(begun, written_BT[:, width:].tolist(), strict=True)):
        row.answer = list(_until_end(ids, end_ids))
        if stops is not None and stops.lengths[b] is not None:
            row.answer = row.answer[: stops.lengths[b]]
        row.broken = b in broken and broken[b] <= len(row.answer)


class _Stops(StoppingCriteria):
    """Ends rows whose answer is complete; what the model writes for them afterwards is padding."""

    def __init__(self, stopped: Callable[[Ids], bool], width: int, rows: int) -> None:
        self.stopped, self.width = stopped, width
        self.lengths: list[int | None] = [None] * rows
        """Number of tokens of an answer when it was completed."""

    def __call__(self, input_ids: torch.LongTensor, scores: object, **_: object) -> torch.BoolTensor:
        for row, ids in enumerate(input_ids[:, self.width :].tolist()):
            if self.lengths[row] is None and self.stopped(tuple(ids)):
                self.lengths[row] = len(ids)
        done = torch.tensor([length is not None for length in self.lengths], device=input_ids.device)
        return cast(torch.BoolTensor, done)


class Finite(LogitsProcessor):
    """Records the rows whose logits are not numbers, and at which token of their answer."""

    def __init__(self, rows: int) -> None:
        self.rows, self.step = rows, 0
        self._first_B: Tensor | None = None
        """Step at which each row's logits were first not numbers; beyond all steps if they never were. On the device."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if len(scores) == self.rows:  # a guard that has answered some rows lets the others go on alone
            if self._first_B is None:
                self._first_B = torch.full((self.rows,), sys.maxsize, device=scores.device)
            now_B = torch.full_like(self._first_B, self.step).where(~logits_are_finite(scores), sys.maxsize)
            self._first_B = torch.minimum(self._first_B, now_B)
        self.step += 1
        return scores

    def broken(self) -> dict[int, int]:
        """Returns row -> token of its answer from which its logits are not numbers. Waits for the device, so it is called
        once."""
        first = [] if self._first_B is None else self._first_B.tolist()
        return {row: step for row, step in enumerate(first) if step < sys.maxsize}


@contextmanager
def own_generation(model: nn.Module, pad_id: int, end_ids: Collection[int]) -> Iterator[GenerationConfig]:
    """Context manager in which the model's generation config is one for plain greedy decoding, which it yields.

    Fields that are None in a given config are filled from the model's own, which is therefore replaced too.
    """
    inner = causal_model(model)
    own = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, num_beams=1, eos_token_id=sorted(end_ids), pad_token_id=pad_id, use_cache=True
    )
    before, inner.generation_config = inner.generation_config, own
    try:
        yield own
    finally:
        inner.generation_config = before


def _until_end(ids: Sequence[int], end_ids: Collection[int]) -> Ids:
    for length, token in enumerate(ids):
        if token in end_ids:
            return tuple(ids[:length])
    return tuple(ids)
