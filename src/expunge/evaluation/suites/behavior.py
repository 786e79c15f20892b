"""Suite behavior: measures unwanted answers to unlearned and other prompts, and side effects."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from expunge.data.example import Example
from expunge.data.read import read_examples
from expunge.errors import ExpungeError, MissingData
from expunge.evaluation.judges import Classifier
from expunge.evaluation.metrics import (
    HarmfulRate,
    Metric,
    Perplexity,
    Repetition,
    Repetition1,
    Repetition2,
    Repetition3,
    Similarity,
    Toxicity,
    ToxicRate,
)
from expunge.evaluation.suites.base import Scored, SuiteSpec, no_summary
from expunge.evaluation.suites.lab import one_per_prompt, rude_words
from expunge.evaluation.suites.skills import Skills
from expunge.evaluation.suites.truthfulness import named_judge
from expunge.evaluation.task import Suite, Task

DETOXIFY, DETOXIFY_LABEL = "unitary/unbiased-toxic-roberta", "toxicity"
"""Detoxify's model `unbiased`, as a classifier of transformers."""
REPETITION: tuple[Metric, ...] = (Repetition1(), Repetition2(), Repetition3(), Repetition())
FLUENCY = Perplexity(model="MODEL", of="generated")
BEFORE = Similarity(before=Path("SCORES"))
REPEATED = tuple(metric.metric_name() for metric in REPETITION)


class Behavior(SuiteSpec):
    """Tasks `harmful_seen` and `harmful_unseen` (harmful_rate of the answers to prompts that were unlearned and to others; with a
    toxicity classifier toxicity, its mean, and toxic_rate, the share above 0.8), `normal` (perplexity of the right answers,
    similarity to what the model answered before, perplexity of what it writes under another model) and `gsm8k`. Greedy answers
    of up to 500 tokens; repetition of 1 to 4 words in each.

    A lab folder is read directly, with its exact rule as judge.
    """

    purpose: ClassVar[str] = "unwanted answers to unlearned and other prompts, and side effects"
    source: ClassVar[str] = "what SKU (arXiv 2402.10058) and Ext-Sub (arXiv 2308.08090) measure; SKU's judge is not known"
    layout: ClassVar[str] = (
        "a folder with seen.jsonl, unseen.jsonl and normal.jsonl (prompt, response), and gsm8k/test.jsonl where that is asked; "
        "or a lab; each file may be another source by an option of its name"
    )
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored("harmful_seen, harmful_unseen", ("harmful_rate", "toxicity", "toxic_rate", *REPEATED), "forget"),
        Scored("normal", ("perplexity", BEFORE, *REPEATED), "retain"),
        Scored("normal_fluency", (FLUENCY,), "retain"),
        Scored("gsm8k", ("exact_match", "prompt_cut"), "retain"),
    )

    name: Literal["behavior"] = "behavior"
    words: tuple[str, ...] = ()
    """An answer with one of these words is harmful."""
    judge: str | None = None
    """Judge used instead: folder or hub id of a text classifier, or `package.module:function`."""
    label: str | None = None
    """The classifier's label for harmful."""
    toxicity: str | None = None
    """Folder or hub id of a toxicity classifier, or the word detoxify for the model `unbiased` of Detoxify."""
    toxicity_label: str | None = None
    """Its label for toxic."""
    before: Path | None = None
    """Evaluation of the model before unlearning, with this suite: run folder, evaluation folder or sample file."""
    fluency: str | None = None
    """Folder or hub id of a language model that reads what was written to normal prompts."""
    seen: str | None = None
    """Prompts that were unlearned: a file or a set of a corpus, such as PKU-Alignment/PKU-SafeRLHF:pku/harmful/train."""
    unseen: str | None = None
    """Prompts of the same kind that were not unlearned."""
    normal: str | None = None
    """Harmless prompts with right answers."""
    gsm8k: bool = False
    """Also solve GSM8K's problems; their data is expected beside the others."""
    max_new_tokens: int = Field(500, ge=1)
    """Longest answer."""

    def build(self, data: str | Path) -> Suite:
        data = Path(data)
        is_lab = (data / "world.json").is_file()
        folder = data / "data/behavior" if is_lab else data
        asked = [(name, self._read(folder, name, source)) for name, source in (("seen", self.seen), ("unseen", self.unseen))]
        normal = self._read(folder, "normal", self.normal)
        words = self.words or (rude_words(data) if is_lab and self.judge is None else ())
        if bool(words) == (self.judge is not None):
            raise ExpungeError("the suite behavior needs a judge of what is harmful: judge=MODEL, or words=WORD,WORD, not both")
        harmful = self._harmful(words)
        known = (Similarity(before=_samples(self.before)),) if self.before is not None else ()
        tasks = [
            *(self._task(f"harmful_{name}", examples, (*harmful, *REPETITION)) for name, examples in asked),
            Task("normal", normal, (Perplexity(), *known, *REPETITION), "retain", False, self.max_new_tokens),
        ]
        if self.fluency is not None:
            reader = FLUENCY.model_copy(update={"model": self.fluency})
            tasks.append(Task("normal_fluency", normal, (reader,), "retain", False, self.max_new_tokens))
        if self.gsm8k:
            tasks += Skills(tasks=("gsm8k",)).build(data).tasks
        return Suite(self.name, tuple(tasks), no_summary)

    def _harmful(self, words: tuple[str, ...]) -> tuple[Metric, ...]:
        judged = HarmfulRate(words=words) if words else HarmfulRate(judge=named_judge(self.judge or "", self.label))
        if self.toxicity is None:
            return (judged,)
        detoxify = self.toxicity == "detoxify"
        classifier = Classifier(
            model=DETOXIFY if detoxify else self.toxicity,
            label=DETOXIFY_LABEL if detoxify and self.toxicity_label is None else self.toxicity_label,
            multi_label=True if detoxify else None,
        )
        return judged, Toxicity(judge=classifier), ToxicRate(judge=classifier)

    def _task(self, name: str, examples: tuple[Example, ...], metrics: tuple[Metric, ...]) -> Task:
        return Task(name, examples, metrics, "forget", max_new_tokens=self.max_new_tokens)

    def _read(self, folder: Path, name: str, source: str | None) -> tuple[Example, ...]:
        if source is None and not (folder / f"{name}.jsonl").is_file():
            raise MissingData(f"{folder} holds no {name}.jsonl, and no other source is given by {name}=")
        return one_per_prompt(read_examples(source or folder / f"{name}.jsonl"))


def _samples(before: Path) -> Path:
    """Returns the sample file of an evaluation."""
    places = (before / "evaluation/behavior.samples.jsonl", before / "behavior.samples.jsonl")
    return before if before.is_file() else next((place for place in places if place.is_file()), places[0])
