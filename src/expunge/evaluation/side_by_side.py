"""Compares two models on the same prompts: their answers, the probability of the expected answer, and whether a guard acted."""

from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import NamedTuple

from expunge.data.control import warn_of_control
from expunge.data.encode import Encoder, decoded
from expunge.data.example import Example
from expunge.data.format import default_format
from expunge.evaluation.engine import Engine
from expunge.evaluation.generate import generate, sample, writing, written
from expunge.evaluation.nucleus import Ids, Nucleus
from expunge.evaluation.studies import corrupted_tokens
from expunge.loading import load
from expunge.models.limits import positions
from expunge.models.load import DType

LONGEST = 1024
"""Tokens of prompt and answer, at most the model's positions."""


class Said(NamedTuple):
    """One model's result for one prompt."""

    answer: str
    probability: float | None
    """Probability of the expected answer, per token (geometric mean); null without an expected answer."""
    acted: bool | None
    """Whether the guard on the model acted on this prompt; null without a guard that decides by prompt."""
    corrupted: tuple[tuple[str, str], ...] = ()
    """Tokens whose embeddings the guard corrupts, each with the token whose embedding it then resembles most."""


class Compared(NamedTuple):
    """The results for one prompt, before and after."""

    prompt: str
    expected: str | None
    before: Said
    after: Said

    @property
    def change(self) -> float | None:
        """Returns the probability of the expected answer, after minus before."""
        first, second = self.before.probability, self.after.probability
        return None if first is None or second is None else second - first


def compare(
    before: str | Path,
    after: str | Path,
    prompts: Sequence[Example],
    *,
    draw: Nucleus | None = None,
    max_new_tokens: int = 64,
    dtype: DType = "auto",
) -> list[Compared]:
    """Compares the answers of two models to the same prompts; only one model is in memory at a time.

    before, after    runs, artifacts, model folders or hub ids
    prompts          an empty response means that no answer is expected
    draw             sample one answer instead of the greedy one; the draw of a prompt depends only on the seed
    """
    first, second = (said(model, prompts, draw=draw, max_new_tokens=max_new_tokens, dtype=dtype) for model in (before, after))
    return [
        Compared(e.prompt or "", e.response or None, one, other) for e, one, other in zip(prompts, first, second, strict=True)
    ]


def said(
    source: str | Path, prompts: Sequence[Example], *, draw: Nucleus | None, max_new_tokens: int, dtype: DType = "auto"
) -> list[Said]:
    """Returns one model's result for each prompt. With a guard, prompts are asked one by one, so that its counts show whether
    it acted."""
    model, tokenizer = load(source, dtype=dtype)
    encoder = Encoder(tokenizer, default_format(tokenizer), min(LONGEST, positions(model) or LONGEST))
    warn_of_control(tokenizer, prompts, "prompts")
    asked = encoder.encode_prompts([example.prompt or "" for example in prompts])
    how = writing(model, encoder, max_new_tokens)

    def write(some: Sequence[Ids]) -> list[Ids]:
        if draw is None:
            return written(generate(model, some, **how))
        return written([drawn[0] for drawn in sample(model, some, draw, 1, **how)])

    guard = getattr(model, "expunge_guard", None)
    acted: list[bool | None] = [None] * len(prompts)
    if guard is None:
        answers = write(asked)
    else:
        answers = []
        for i, prompt in enumerate(asked):
            decided, times = guard.counts.decided, guard.counts.acted
            answers += write([prompt])
            acted[i] = guard.counts.acted > times if guard.counts.decided > decided else None
    expecting = [i for i, example in enumerate(prompts) if example.response]
    rows = encoder.encode_answers([(prompts[i].prompt, prompts[i].response) for i in expecting])
    stats = Engine(model, encoder.pad_id).score(rows) if rows else []
    known = {i: exp(found.mean_logp()) for i, found in zip(expecting, stats, strict=True)}
    texts = [decoded(tokenizer, ids).strip() for ids in answers]
    return [Said(text, known.get(i), acted[i], corrupted_tokens(model, asked[i])) for i, text in enumerate(texts)]
