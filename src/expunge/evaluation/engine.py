"""Scores sequences with teacher forcing; each unique sequence of tokens goes through the model once.

Shape suffixes: N labelled tokens of a batch, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from expunge.data.encode import Encoded, collate
from expunge.devices import tokens_that_fit
from expunge.evaluation.beginnings import Answers
from expunge.evaluation.multiple_choice import score_answers
from expunge.evaluation.processes import dealt
from expunge.evaluation.reuse import Compute, Reuse
from expunge.evaluation.shortcuts import shortcuts_of
from expunge.evaluation.token_stats import NOTHING, TokenStats
from expunge.models.load import causal_model
from expunge.models.logprobs import labelled_logits, token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = tuple[int, ...]

LOGITS_IN_MEMORY = 2**25
"""Number of logits in one batch (128 MB of float32); with a larger vocabulary a batch gets fewer tokens. Where answers share
their prompt, nearly every token of a batch has logits."""
CPU_TOKENS = 2048
"""Default tokens of a batch on a CPU, which is fastest while activations fit into its cache."""


class Engine:
    """Scores sequences with one model and caches them, so that tasks and metrics share them.

    Sequences are identified by their token ids; the same ids with a later answer start are a slice of a cached result. Batches
    have sequences of similar length and a bounded number of tokens; logits are computed at answer positions only.
    """

    def __init__(
        self,
        model: nn.Module,
        pad_id: int,
        *,
        max_tokens: int | None = None,
        max_rows: int = 512,
        reuse: Reuse | None = None,
    ) -> None:
        """
        max_tokens, max_rows   upper bounds of a batch, padding included; they change speed and memory, never a value
        reuse                  results of other settings of the model's guard
        """
        self.model, self.pad_id, self.max_rows, self.reuse = model, pad_id, max_rows, reuse
        inner = causal_model(model)
        self.device = inner.device
        vocabulary: int = inner.config.get_text_config().vocab_size
        fitting = tokens_that_fit(self.device, _bytes_per_token(inner), CPU_TOKENS)
        wanted = max_tokens or fitting
        most = max(1, LOGITS_IN_MEMORY // vocabulary) if self.device.type == "cpu" else fitting
        self.max_tokens = min(wanted, most)
        # Of a prompt that answers share, only the last position has logits; so many answers of 32 tokens fit.
        self.shared_tokens, self.shared_rows, self.max_logits = wanted, max(1, min(max_rows, most // 64)), most
        self._known: dict[Ids, tuple[int, TokenStats]] = {}
        self._gradients: dict[Encoded, float] = {}

    def score(self, sequences: Sequence[Encoded], *, distribution: bool = False) -> list[TokenStats]:
        """Returns statistics of the labelled tokens of each sequence, in order; cached ones are not computed again.

        distribution  with rank, mean and variance over the vocabulary, which take a few more passes over the logits
        """
        wanted: dict[Ids, Encoded] = {}
        for sequence in sequences:
            earliest = wanted.get(sequence.ids)
            if earliest is None or sequence.answer_start < earliest.answer_start:
                wanted[sequence.ids] = sequence
        questions: dict[Ids, list[Encoded]] = {}
        for sequence in wanted.values():
            questions.setdefault(sequence.ids[: sequence.answer_start], []).append(sequence)
        new = [[answer for answer in answers if not self._knows(answer, distribution)] for answers in questions.values()]
        if shortcuts_of(self.model).shares:
            # All answers to a question together or none: so values never depend on what was asked for before.
            new = [answers if some else [] for answers, some in zip(questions.values(), new, strict=True)]
        new = [answers for answers in new if answers]
        for answers, statistics in zip(new, self._scored(new, distribution=distribution), strict=True):
            for answer, stats in zip(answers, statistics, strict=True):
                self._known[answer.ids] = (answer.answer_start, stats)
        return [self._slice(sequence) for sequence in sequences]

    def _knows(self, sequence: Encoded, distribution: bool) -> bool:
        first, stats = self._known.get(sequence.ids, (len(sequence.ids), NOTHING))
        return first <= sequence.answer_start and (stats.distribution is not None or not distribution)

    def gradient_norms(self, sequences: Sequence[Encoded]) -> list[float]:
        """Size of the gradient of each sequence's mean loss: the mean over parameter tensors of their L2 norms.

        One backward pass each, over every parameter of floating point, trained or not.
        """
        new = [s for s in dict.fromkeys(sequences) if s not in self._gradients]
        if not new:
            return [self._gradients[sequence] for sequence in sequences]
        training = self.model.training
        weights = [weight for weight in self.model.parameters() if weight.is_floating_point()]
        frozen = [weight for weight in weights if not weight.requires_grad]
        self.model.eval()
        try:
            for weight in frozen:
                weight.requires_grad_(True)
            self._gradients |= zip(new, dealt(self.model, new, partial(self._gradient_norm, weights=weights)), strict=True)
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
            self.model.train(training)
        return [self._gradients[sequence] for sequence in sequences]

    def _gradient_norm(self, sequence: Encoded, weights: Sequence[nn.Parameter]) -> float:
        with torch.enable_grad():
            loss = -token_logprobs(labelled_logits(self.model, collate([sequence], self.pad_id).to(self.device))).mean()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        return float(torch.stack([g.float().norm() for g in gradients if g is not None]).mean())

    def score_answers(self, questions: Sequence[Answers]) -> list[list[TokenStats]]:
        """Scores several answers to each question, where the common prompt goes through the model once.

        These results are not cached: nothing else needs them, and the prompts of a large benchmark would fill the memory.
        """
        return self._reused(
            questions,
            partial(
                score_answers,
                self.model,
                pad_id=self.pad_id,
                max_tokens=self.shared_tokens,
                max_rows=self.shared_rows,
                max_logits=self.max_logits,
            ),
            "answers",
        )

    def _reused(
        self,
        questions: Sequence[Answers],
        compute: Compute[list[TokenStats]],
        how: object,
    ) -> list[list[TokenStats]]:
        if self.reuse is None:
            return list(compute(questions, settings=[None] * len(questions)))
        prompts = [answers[0].ids[: answers[0].answer_start] for answers in questions]
        keys = [(how, tuple(answers)) for answers in questions]
        # Answers of one token are read in one row (`multiple_choice`).
        rows = [1 if all(len(a.ids) == a.answer_start + 1 for a in answers) else len(answers) for answers in questions]
        return self.reuse.of(questions, keys, prompts, compute, rows)

    def _slice(self, sequence: Encoded) -> TokenStats:
        first, stats = self._known[sequence.ids]
        return stats.after(sequence.answer_start - first)._replace(has_end=sequence.has_end)

    def _scored(self, questions: Sequence[Answers], *, distribution: bool = False) -> list[list[TokenStats]]:
        compute = partial(
            score_answers,
            self.model,
            pad_id=self.pad_id,
            max_tokens=self.max_tokens,
            max_rows=self.max_rows,
            distribution=distribution,
        )
        return self._reused(questions, compute, ("score", distribution))


def _bytes_per_token(model: "PreTrainedModel") -> int:
    """Estimates the bytes of a labelled token in a pass without gradient: its logits, about six hidden and three inner
    vectors of a block."""
    config = model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return int(model.dtype.itemsize * (config.vocab_size + 6 * config.hidden_size + 3 * inner))
