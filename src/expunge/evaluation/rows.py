"""A task becomes rows: everything that its metrics need to know about each example, each thing found out once."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.data.encode import Encoded, Encoder
from expunge.data.example import Example
from expunge.evaluation.engine import Engine
from expunge.evaluation.generate import Ids, generate
from expunge.evaluation.metrics.base import NOTHING, Need, Row, TokenStats
from expunge.evaluation.task import Task

Pair = tuple[str | None, str]
"""A prompt and something that might be answered to it."""


class Rows:
    """Encodes, scores and generates for one model, for any number of tasks."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, encoder: Encoder, engine: Engine) -> None:
        self.model, self.tokenizer, self.encoder, self.engine = model, tokenizer, encoder, engine
        self._encoded: dict[Pair, Encoded] = {}

    def of(self, task: Task, *, shown: int = 0) -> list[Row]:
        """One row per example of the task. The first `shown` get a greedy answer even if no metric needs it."""
        needs = task.needs
        pairs = [pair for example in task.examples for need in needs for pair in _pairs(example, need)]
        stats = self._score(pairs)

        def found(example: Example, need: Need) -> tuple[TokenStats, ...]:
            return tuple(stats[pair] for pair in _pairs(example, need)) if need in needs else ()

        rows = [
            Row(
                example,
                answer=next(iter(found(example, "answer")), NOTHING),
                paraphrases=found(example, "paraphrases"),
                perturbed=found(example, "perturbed"),
                choices=found(example, "choices"),
            )
            for example in task.examples
        ]
        asked = len(rows) if "generated" in needs else min(shown, len(rows))
        texts = self._generate(rows[:asked], task.max_new_tokens)
        return [row._replace(generated=text) for row, text in zip(rows, texts, strict=False)] + rows[asked:]

    def _score(self, pairs: Sequence[Pair]) -> dict[Pair, TokenStats]:
        unique = list(dict.fromkeys(pairs))
        new = [pair for pair in unique if pair not in self._encoded]
        self._encoded |= zip(new, self.encoder.encode_answers(new), strict=True)
        return dict(zip(unique, self.engine.score([self._encoded[pair] for pair in unique]), strict=True))

    def _generate(self, rows: Sequence[Row], max_new_tokens: int) -> list[str | None]:
        """The greedy answer of each row (None for raw text). What the teacher-forced pass foresees is not generated."""
        unique = list(dict.fromkeys(row.example.prompt for row in rows if row.example.prompt is not None))
        prompts = dict(zip(unique, self.encoder.encode_prompts(unique), strict=True))
        answers: dict[str | None, Ids | None] = {None: None}
        for row in rows:
            if row.example.prompt is not None:
                foreseen = self._foreseen(row, prompts[row.example.prompt], max_new_tokens)
                answers |= {row.example.prompt: foreseen} if foreseen is not None else {}
        left = [prompt for prompt in unique if prompt not in answers]
        written = generate(
            self.model,
            [prompts[prompt] for prompt in left],
            pad_id=self.encoder.pad_id,
            end_ids=(self.encoder.end_id, self.encoder.eos_id),
            max_new_tokens=max_new_tokens,
            max_length=self.encoder.max_length,
        )
        answers |= zip(left, written, strict=True)
        return [self._text(answers[row.example.prompt]) for row in rows]

    def _text(self, ids: Ids | None) -> str | None:
        return None if ids is None else str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _foreseen(self, row: Row, prompt: Ids, max_new_tokens: int) -> Ids | None:
        """The response's tokens, if each of them and its end token is a greedy hit: then greedy decoding writes just these."""
        if not (row.answer.has_end and row.answer.hit.all()):
            return None
        encoded = self._encoded[(row.example.prompt, row.example.response)]
        text = encoded.ids[encoded.answer_start : -1]
        return text if encoded.ids[: encoded.answer_start] == prompt and len(text) < max_new_tokens else None


def _pairs(example: Example, need: Need) -> list[Pair]:
    texts: dict[Need, tuple[str, ...]] = {
        "answer": (example.response,),
        "paraphrases": example.paraphrases,
        "perturbed": example.perturbed,
        "choices": example.choices,
        "generated": (),
    }
    return [(example.prompt, text) for text in texts[need]]
