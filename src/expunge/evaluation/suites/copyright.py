"""Suite copyright: whether a model continues works that it should not reproduce, from their titles or first sentences."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from expunge.data.corpora.fields import text
from expunge.data.example import Example
from expunge.data.files import read_rows
from expunge.errors import ExpungeError, MissingData
from expunge.evaluation.metrics import BertScore, Bleu, Meteor, Metric, Perplexity, Rouge, UniqueTokenRatio
from expunge.evaluation.metrics.base import Unscored
from expunge.evaluation.metrics.similarity_gap import similarity_gap
from expunge.evaluation.suites.base import ReferencedSuite, Scored
from expunge.evaluation.task import SUITE, Results, Suite, Task
from expunge.records import Score

FILES = ("forget.jsonl", "forget.json", "forget.parquet")
TASK = "forget"
FIRST_SENTENCE = re.compile(r"^.*?[.!?…][\"'”’)]*(?=\s)", re.DOTALL)
ADVICE = (
    "evaluate a model that never saw the texts with --suite copyright and --out DIR, then give --retain-scores DIR; it is the "
    "model before it was fine-tuned on them"
)


class Copyright(ReferencedSuite):
    """Task `forget`: the greedy continuation (256 tokens) of each title or first sentence, compared with the first 255 tokens of
    the text: rouge (ROUGE-L F1), bleu, meteor and bert_score, where their packages are installed; unique_token_ratio; perplexity
    of the continuation under another model. average_similarity_gap to a retain model.

    Prompts are raw text, without a template. A measure that is not available is listed with the reason.
    """

    purpose: ClassVar[str] = "whether the model continues works that it should not reproduce"
    source: ClassVar[str] = "the copyright tasks of ECO (Liu et al. 2024, arXiv 2406.07933): news articles, passages of a book"
    layout: ClassVar[str] = (
        "forget.jsonl (or .json, .parquet) with title and text (BBC news: hub id RealTimeData/bbc_news_alltime, title and "
        "content), or text alone, whose first sentence is the prompt, or prompt and response"
    )
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored(
            TASK,
            ("rouge", "bleu", "meteor", "bert_score", "unique_token_ratio", Perplexity(of="generated", model="MODEL")),
            "forget",
        ),
        Scored(SUITE, ("average_similarity_gap",)),
    )

    name: Literal["copyright"] = "copyright"
    fluency: str | None = None
    """Folder or hub id of the model that reads the continuations, for perplexity; ECO takes the model before unlearning."""
    bert_model: str = "distilbert-base-uncased"
    """Encoder of bert_score."""

    def build(self, data: str | Path) -> Suite:
        usable, reasons = _available((Rouge(), Bleu(), Meteor(), BertScore(model=self.bert_model)))
        rest: tuple[Metric, ...] = (UniqueTokenRatio(),)
        if self.fluency is None:
            reasons["perplexity"] = "needs a model that reads the continuations; give --options fluency=MODEL"
        else:
            rest += (Perplexity(of="generated", model=self.fluency, verbatim=True),)
        task = Task(TASK, read_works(data), (*usable, *rest), "forget", max_new_tokens=256, verbatim=True, expected_tokens=255)
        return Suite(self.name, (task,), partial(self._summary, [metric.metric_name() for metric in usable], reasons))

    def _summary(self, measures: list[str], reasons: Mapping[str, str], results: Results) -> list[Score]:
        missing = [
            Score(task=TASK, metric=name, role="forget", value=None, n=0, higher_is_better=False, unscored=reason)
            for name, reason in reasons.items()
        ]
        mine = {name: results.by_id(TASK, name) for name in measures}
        if self.retain_scores is None:
            found: float | Unscored = Unscored(f"needs the continuations of a model that never saw the texts: {ADVICE}")
        else:
            found = similarity_gap(mine, {name: self.retain_values(self.name, TASK, name) or {} for name in measures})
        reason = found.reason if isinstance(found, Unscored) else None
        gap = Score(
            task=SUITE,
            metric="average_similarity_gap",
            value=None if isinstance(found, Unscored) else found,
            n=len(next(iter(mine.values()), {})),
            higher_is_better=False,
            unscored=reason,
        )
        return [*missing, gap]


def read_works(source: str | Path) -> tuple[Example, ...]:
    """Reads works as examples: the title (or the first sentence) is the prompt, the text (or the rest of it) the response.

    Raises ExpungeError for a row without text, and for a text of one sentence without a title.
    """
    folder = Path(source)
    file = next((folder / name for name in FILES if (folder / name).is_file()), None) if folder.is_dir() else source
    if file is None or (isinstance(file, str | Path) and not Path(file).is_file() and str(source).count("/") != 1):
        raise MissingData(f"{source} holds no {FILES[0]}; write the works into it, one a line")
    return tuple(_work(row, where) for where, row in read_rows(file))


def _work(row: Mapping[str, Any], where: str) -> Example:
    if "prompt" in row:
        return Example(text(row, "prompt", where), f" {text(row, 'response', where).lstrip()}")
    body = text(row, "content" if "content" in row else "text", where)
    if row.get("title"):
        return Example(str(row["title"]).split(" - ")[0].strip(), f" {body.lstrip()}")
    first = FIRST_SENTENCE.match(body.strip())
    rest = body.strip()[first.end() :] if first else ""
    if first is None or not rest.strip():
        raise ExpungeError(
            f"{where} has one sentence and no title, so nothing is left to continue; give a title or a longer text"
        )
    return Example(first[0], rest)


def _available(metrics: tuple[Metric, ...]) -> tuple[list[Metric], dict[str, str]]:
    """Returns the metrics that can be computed here, and by the name of the others why not."""
    usable, reasons = [], {}
    for metric in metrics:
        try:
            for judge in metric.judges:
                judge.check()
            usable.append(metric)
        except ExpungeError as error:
            reasons[metric.metric_name()] = str(error)
    return usable, reasons
