"""Wraps a model under attack: asks it, continues given tokens, scores answers, and restores its weights after changes."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from expunge.attacks.knowledge import Facts, Floats, counted_tokens
from expunge.data.encode import Encoded, Encoder, decoded
from expunge.data.example import Example
from expunge.data.format import Format, default_format
from expunge.evaluation.engine import Engine
from expunge.evaluation.generate import generate, sample
from expunge.evaluation.nucleus import Ids, Nucleus
from expunge.models.embeddings import embedding_matrix
from expunge.models.limits import end_tokens, positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["weights", "adapter", "guard"]


class Target:
    """One model with everything that attacks do to it. `spent` counts their cost."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        kind: Kind = "weights",
        fingerprint: str = "",
        format: Format | None = None,
        max_length: int = 1024,
        max_new_tokens: int = 24,
    ) -> None:
        """max_new_tokens: longest answer that is read."""
        self.model, self.tokenizer, self.kind, self.fingerprint = model, tokenizer, kind, fingerprint
        self.encoder = Encoder(tokenizer, format or default_format(tokenizer), min(max_length, positions(model) or max_length))
        self.max_new_tokens = max_new_tokens
        self.spent = {"queries": 0, "gradient_steps": 0}

    @property
    def end_ids(self) -> tuple[int, ...]:
        return end_tokens(self.model, (self.encoder.end_id, self.encoder.eos_id))

    @property
    def embeddings_VD(self) -> Tensor:
        """The input embeddings, detached."""
        return embedding_matrix(self.model).detach()

    def engine(self) -> Engine:
        """Returns a new one for each state of the weights, since engines cache scores."""
        return Engine(self.model, self.encoder.pad_id)

    def fits(self, prompts: Sequence[str]) -> list[bool]:
        """Returns whether each prompt leaves room for an answer of `max_new_tokens`."""
        rows = Encoder(self.tokenizer, self.encoder.format, sys.maxsize).encode_prompts(prompts)
        return [len(row) + self.max_new_tokens <= self.encoder.max_length for row in rows]

    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """Returns the greedy answer to each prompt; None if the prompt is too long or the logits are not numbers."""
        fits = self.fits(prompts)
        asked = self.encoder.encode_prompts([prompt for prompt, fit in zip(prompts, fits, strict=True) if fit])
        texts = iter(self.go_on(asked))
        return [next(texts) if fit else None for fit in fits]

    def go_on(self, prompts: Sequence[Ids]) -> list[str | None]:
        """Returns the greedy continuation of each row of tokens, as text."""
        self.spent["queries"] += len(prompts)
        written = generate(
            self.model,
            prompts,
            pad_id=self.encoder.pad_id,
            end_ids=self.end_ids,
            max_new_tokens=self.max_new_tokens,
            max_length=self.encoder.max_length,
        )
        return [None if ids is None else self.text(ids) for ids in written]

    def draw(self, prompts: Sequence[str], nucleus: Nucleus, draws: int) -> list[tuple[str | None, ...]]:
        """Returns several sampled answers to each prompt."""
        self.spent["queries"] += len(prompts) * draws
        drawn = sample(
            self.model,
            self.encoder.encode_prompts(prompts),
            nucleus,
            draws,
            pad_id=self.encoder.pad_id,
            end_ids=self.end_ids,
            max_new_tokens=self.max_new_tokens,
            max_length=self.encoder.max_length,
            max_rows=256,
        )
        return [tuple(None if ids is None else self.text(ids) for ids in several) for several in drawn]

    def text(self, ids: Sequence[int]) -> str:
        return decoded(self.tokenizer, ids).strip()

    def recall(self, facts: Facts, prompts: Sequence[str] | None = None) -> Floats:
        """Computes [facts], the share of each answer's words in the greedy answer; words of the prompt do not count.

        prompts: prompts instead of the questions. The plain questions are asked once for each state of the weights.
        """
        if prompts is None:
            return self.read(facts, facts.questions, self.ask(facts.questions))
        return self.read(facts, prompts, self.ask(prompts))

    def read(self, facts: Facts, shown: Sequence[str], texts: Sequence[str | None]) -> Floats:
        """Computes [facts], `Facts.recall` of each text; NaN if there is no text."""
        found = [
            float("nan") if text is None else facts.recall(i, said, text)
            for i, (said, text) in enumerate(zip(shown, texts, strict=True))
        ]
        return np.array(found, dtype=np.float64)

    def encoded(self, examples: Sequence[Example]) -> list[Encoded]:
        return self.encoder.encode_many(examples)

    def openings(self, facts: Facts) -> list[Ids]:
        """Returns prompt and answer of each fact up to the first token that counts."""
        rows = self.encoded(facts.examples)
        return [row.ids[: row.answer_start + self.first(facts, i, row)] for i, row in enumerate(rows)]

    def first(self, facts: Facts, i: int, row: Encoded) -> int:
        """Returns the index of the first token that counts among the answer's; 0 if none does."""
        counts = counted_tokens(self.tokenizer, row.ids[row.answer_start :], facts.words(i, facts.questions[i]))
        return int(np.argmax(counts)) if counts.any() else 0

    def probability(self, facts: Facts) -> Floats:
        """Computes [facts], exp of the mean log-probability of the tokens that count, given the question and the true tokens
        before."""
        rows = self.encoded(facts.examples)
        found = []
        for i, (row, stats) in enumerate(zip(rows, self.engine().score(rows), strict=True)):
            counts = counted_tokens(self.tokenizer, row.ids[row.answer_start :], facts.words(i, facts.questions[i]))
            found.append(float(np.exp(stats.logp[counts].mean(dtype=np.float64))) if counts.any() else float("nan"))
        return np.array(found, dtype=np.float64)

    @contextmanager
    def restored(self) -> Iterator["PreTrainedModel"]:
        """Context manager that yields the model to be changed, and restores its weights, their flags and its mode."""
        kept = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        flags = {name: weight.requires_grad for name, weight in self.model.named_parameters()}
        training = self.model.training
        try:
            yield self.model
        finally:
            with torch.no_grad():
                for name, weight in self.model.named_parameters():
                    weight.copy_(kept[name])
                    weight.requires_grad_(flags[name])
                    weight.grad = None
            self.model.train(training)
