"""Batched greedy generation: the one place where evaluation lets a model write."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import cast

import torch
from torch import nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from expunge.data.encode import Encoded, collate, length_batches
from expunge.evaluation.processes import dealt
from expunge.models.load import causal_model

Ids = tuple[int, ...]


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

    Equal prompts are continued once. Batches hold prompts of like length, padded on the left; a batch has at most `max_rows`
    prompts and, answers included, `max_tokens` tokens (the key-value cache). `max_length` is the longest sequence that
    the model takes; answers stop there. `stopped` says of the tokens written so far that nothing after them matters (a stop text
    is in them). Sampling and penalties that the model's own generation config asks for are off.
    """
    rooms: dict[int, list[Ids]] = {}
    for prompt in dict.fromkeys(prompts):
        room = max_new_tokens if max_length is None else min(max_new_tokens, max_length - len(prompt))
        rooms.setdefault(max(room, 0), []).append(prompt)
    answers: dict[Ids, Ids] = dict.fromkeys(rooms.pop(0, []), ())
    training = model.training
    model.eval()
    try:
        for room, same in rooms.items():  # a batch has one limit, so that no prompt is cut short by a longer neighbor
            places = length_batches([len(prompt) + room for prompt in same], max_tokens, max_rows)
            batches = [[same[i] for i in batch] for batch in places]
            write = partial(_batch, model, pad_id=pad_id, end_ids=end_ids, max_new_tokens=room, stopped=stopped)
            for rows, written in zip(batches, dealt(model, batches, write), strict=True):
                answers |= zip(rows, written, strict=True)
    finally:
        model.train(training)
    return [answers[prompt] for prompt in prompts]


@torch.inference_mode()
def _batch(
    model: nn.Module,
    prompts: Sequence[Ids],
    pad_id: int,
    end_ids: Collection[int],
    max_new_tokens: int,
    stopped: Callable[[Ids], bool] | None,
) -> list[Ids]:
    inner = causal_model(model)
    rows = [Encoded(ids, len(ids), False) for ids in prompts]
    tokens = collate(rows, pad_id, side="left").to(inner.device)
    width = tokens.input_ids_BT.shape[1]
    stops = _Stops(stopped, width, len(rows)) if stopped is not None else None
    written_BT: torch.Tensor = inner.generate(  # type: ignore[operator]
        input_ids=tokens.input_ids_BT,
        attention_mask=tokens.attention_mask_BT,
        generation_config=_greedy(pad_id, end_ids, max_new_tokens),
        stopping_criteria=StoppingCriteriaList([stops] if stops is not None else []),
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
