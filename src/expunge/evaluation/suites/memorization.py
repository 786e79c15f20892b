"""Suite memorization: how much of the forget texts the model reproduces."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from expunge.data.example import Example
from expunge.data.read import read_examples
from expunge.errors import ExpungeError
from expunge.evaluation.metrics import ExactMemorization, ExtractionStrength, Perplexity, Probability, Rouge
from expunge.evaluation.metrics.base import Metric
from expunge.evaluation.suites.base import Scored, SuiteSpec, no_summary
from expunge.evaluation.task import Suite, Task
from expunge.records import Role

MEMORY: tuple[Metric, ...] = (ExtractionStrength(), ExactMemorization(), Rouge())
ANSWERED: tuple[Metric, ...] = (Probability(), Perplexity(), *MEMORY)
"""Metrics of answers, which have an end token; raw texts that are cut from longer ones have none."""


class Memorization(SuiteSpec):
    """Task `forget` (and `retain`, when there is such a file): extraction_strength, exact_memorization and ROUGE-L F1 of the
    greedy continuation with the true one (verbatim ROUGE); for questions probability and perplexity too.

    Questions are asked in the model's format. Raw texts are split: the first words are the prompt, and the rest, up to
    `max_new_tokens` tokens, is scored and compared.
    """

    purpose: ClassVar[str] = "how much of your forget texts the model reproduces"
    source: ClassVar[str] = "extraction: Carlini et al. 2021 (arXiv 2012.07805); verbatim ROUGE: MUSE (arXiv 2407.06460)"
    layout: ClassVar[str] = "a folder with forget.jsonl and, if wanted, retain.jsonl: prompt+response, or text"
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored("forget", tuple(metric.metric_name() for metric in ANSWERED), "forget"),
        Scored("retain", tuple(metric.metric_name() for metric in ANSWERED), "retain"),
    )

    name: Literal["memorization"] = "memorization"
    forget: str = "forget.jsonl"
    """File with what was to be forgotten, in the folder of the data (or a path, or a hub id)."""
    retain: str | None = None
    """File with what should be kept; default: retain.jsonl, if the folder has one."""
    given: float = Field(0.5, gt=0, lt=1)
    """Share of the words of a raw text that are given as prompt."""
    max_new_tokens: int = Field(128, ge=1)
    """Number of tokens that are generated and compared."""

    def names_all_files(self) -> bool:
        return "forget" in self.model_fields_set

    def build(self, data: str | Path) -> Suite:
        files: dict[Role, str] = {"forget": self.forget}
        kept = self.retain or ("retain.jsonl" if data and (Path(data) / "retain.jsonl").is_file() else None)
        if kept is not None:
            files["retain"] = kept
        return Suite(self.name, tuple(self._task(data, role, name) for role, name in files.items()), no_summary)

    def _task(self, data: str | Path, role: Role, name: str) -> Task:
        inside = Path(data) / name
        if not inside.exists() and not Path(name).exists() and "/" not in name:
            raise ExpungeError(
                f"there is no {inside}; the suite memorization needs a file of what was to be forgotten (rows with prompt and "
                "response, or text); name it with --options forget=FILE, and one of what should stay with retain=FILE"
            )
        examples = read_examples(inside if inside.exists() else name)
        raw = [example.prompt is None for example in examples]
        if any(raw) and not all(raw):
            raise ExpungeError(f"{name} holds raw texts and questions; put them into two files, they are not scored alike")
        verbatim = all(raw)
        asked = tuple(split_text(example, self.given) for example in examples) if verbatim else examples
        return Task(
            role,
            asked,
            MEMORY if verbatim else ANSWERED,
            role,
            max_new_tokens=self.max_new_tokens,
            verbatim=verbatim,
            expected_tokens=self.max_new_tokens,
        )


def split_text(example: Example, given: float) -> Example:
    """Splits a raw text into a prompt, its first words, and the rest, which begins with its own space. Raises ExpungeError
    for a text of one word."""
    text = example.response
    starts = [i for i, c in enumerate(text) if i and c.isspace() and not text[i - 1].isspace() and text[i:].strip()]
    if not starts:
        raise ExpungeError(
            f"example {example.id} has one word; a raw text is cut into a beginning and a rest, so give longer ones"
        )
    cut = starts[min(len(starts) - 1, max(0, round(given * (len(starts) + 1)) - 1))]
    return Example(text[:cut], text[cut:], attributes=example.attributes)
