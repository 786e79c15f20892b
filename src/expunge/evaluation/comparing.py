"""Compares texts with another model, with optional packages, or with earlier answers."""

import importlib.util
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from expunge.data.encode import Encoder, fitted
from expunge.data.format import default_format, verbatim_format
from expunge.errors import ExpungeError
from expunge.evaluation.judges import Answer, Judge, Verdict, language_model
from expunge.evaluation.rouge import rouge
from expunge.models.folder import file_hash
from expunge.models.limits import room
from expunge.models.load import model_identity
from expunge.records import read_samples


def _installed(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ExpungeError(f"{what} needs the package {package.replace('_', '-')}; install it with pip install 'expunge[text]'")


class SecondModel(Judge):
    """Computes the mean log-probability per token of a text under another model, in that model's own format."""

    kind: Literal["second_model"] = "second_model"
    model: str
    of: Literal["response", "generated"]
    verbatim: bool = False

    def check(self) -> None:
        language_model(self.model)

    def fingerprint(self) -> str | None:
        return model_identity(self.model)

    def judge(self, answers: Sequence[Answer]) -> list[Verdict]:
        from expunge.evaluation.engine import Engine

        model, tokenizer = language_model(self.model)
        length = room(model)
        encoder = (
            Encoder(tokenizer, verbatim_format(), max_length=sys.maxsize)
            if self.verbatim
            else Encoder(tokenizer, default_format(tokenizer), length)
        )
        texts = [(a.prompt, a.expected if self.of == "response" else a.text) for a in answers]
        readable = [i for i, (_, text) in enumerate(texts) if text.strip()]
        rows = [fitted(row, length) for row in encoder.encode_answers([texts[i] for i in readable])]
        stats = Engine(model, encoder.pad_id).score(rows)
        verdicts: list[Verdict] = ["there is no text to read"] * len(answers)
        for i, row, whole in zip(readable, rows, stats, strict=True):
            if row.truncated:
                verdicts[i] = f"{self.model} takes no text of this length"
                continue
            found = whole.without_end() if self.verbatim else whole
            verdicts[i] = found.mean_logp() if len(found.logp) else "the text has no tokens"
        return verdicts


class MeteorScore(Judge):
    """Computes METEOR with nltk, which needs its WordNet data."""

    kind: Literal["meteor"] = "meteor"

    def check(self) -> None:
        _installed("nltk", "meteor")
        import nltk

        try:
            nltk.data.find("corpora/wordnet.zip")
        except LookupError:
            raise ExpungeError(
                "meteor needs WordNet: run python -m nltk.downloader wordnet, or leave the metric meteor out"
            ) from None

    def judge(self, answers: Sequence[Answer]) -> list[Verdict]:
        from nltk.translate.meteor_score import single_meteor_score

        return [float(single_meteor_score(a.expected.split(), a.text.split())) for a in answers]


class BertScoreJudge(Judge):
    """Computes F1 of the package bert-score."""

    kind: Literal["bert_score"] = "bert_score"
    model: str

    def check(self) -> None:
        _installed("bert_score", "bert_score")

    def judge(self, answers: Sequence[Answer]) -> list[Verdict]:
        bert_score: Any = importlib.import_module("bert_score")
        _, _, f1 = bert_score.score([a.text for a in answers], [a.expected for a in answers], model_type=self.model)
        return [float(value) for value in f1]


class Earlier(Judge):
    """Computes ROUGE-L F1 between an answer and another model's answer to the same example."""

    kind: Literal["earlier"] = "earlier"
    samples: Path

    def check(self) -> None:
        if not _answers(self.samples):
            raise ExpungeError(
                f"{self.samples} holds no generated texts; evaluate the earlier model with --show-forget-text and a metric that "
                "generates, and give its SUITE.samples.jsonl"
            )

    def fingerprint(self) -> str | None:
        return file_hash(self.samples)

    def judge(self, answers: Sequence[Answer]) -> list[Verdict]:
        known = _answers(self.samples)
        return [
            f"{self.samples.name} has no answer to this example"
            if answer.id not in known
            else 1.0
            if known[answer.id] == answer.text
            else rouge("rougeL", known[answer.id], answer.text).f1
            for answer in answers
        ]


def _answers(samples: Path) -> dict[str, str]:
    """Returns example id -> generated text."""
    if not samples.is_file():
        raise ExpungeError(f"there is no file {samples}; give the SUITE.samples.jsonl of an earlier evaluation")
    return _texts(samples, file_hash(samples))


@lru_cache(maxsize=4)
def _texts(samples: Path, _: str) -> dict[str, str]:
    return {row.id: row.text["generated"] for row in read_samples(samples) if row.text is not None and "generated" in row.text}
