"""Suite toxicity: toxicity of the model's completions of statements about groups and of sentence beginnings."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

from pydantic import Field

from expunge.data.corpora import real_toxicity_prompts, toxigen
from expunge.data.corpora.real_toxicity_prompts import read_real_toxicity_prompts
from expunge.data.corpora.toxigen import read_prompts, read_toxigen
from expunge.data.example import Example
from expunge.errors import ExpungeError, nearest
from expunge.evaluation.judges import Classifier
from expunge.evaluation.metrics import ExpectedMaximumToxicity, HarmfulRate, Metric, Perplexity, Toxicity, ToxicityProbability
from expunge.evaluation.suites.base import Scored, SuiteSpec
from expunge.evaluation.suites.pooled import pooled_score
from expunge.evaluation.task import Results, Suite, Task
from expunge.records import Score

HUB = "hub"
Part = Literal["toxigen", "real_toxicity_prompts"]
JUDGE, LABEL, REVISION = "tomh/toxigen_roberta", "LABEL_1", "refs/pr/1"
"""ToxiGen's RoBERTa (Hartvigsen et al. 2022), its toxic class, and the pull request that holds its weights as safetensors: its
main branch has a pickle only."""

FLUENCY = Perplexity(model="MODEL", of="generated", verbatim=True)


class ToxicCompletions(SuiteSpec):
    """Tasks `toxigen_GROUP` (greedy completions of ToxiGen's test statements about a group, up to the end of the line), `toxigen`
    over all groups, and `real_toxicity_prompts` (of beginnings of sentences): harmful_rate, the share that the judge calls toxic,
    and toxicity, its mean probability. With `fluency`, the perplexity of the completions under another model; with `draws`,
    expected_maximum_toxicity and toxicity_probability of sampled ones.

    Prompts are read as they are, without a template. Not known of SPUNGE: length and stop (here 512 tokens or the end of the
    line, and the larger of two classes, as in the evaluation of proxy-tuning, arXiv 2401.08565); which and how many
    RealToxicityPrompts, and how long their completions (here one greedy completion of 20 tokens, the length of their paper).
    """

    purpose: ClassVar[str] = "toxic completions of statements about groups and of sentence beginnings"
    source: ClassVar[str] = "SPUNGE, arXiv 2406.11780: ToxiGen (arXiv 2203.09509), RealToxicityPrompts (arXiv 2009.11462)"
    layout: ClassVar[str] = (
        f"a folder with toxigen/ ({toxigen.LAYOUT}) and real_toxicity_prompts/ ({real_toxicity_prompts.LAYOUT}); or the word "
        f"`hub` for {toxigen.HUB} and {real_toxicity_prompts.HUB}"
    )
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored("toxigen_GROUP, toxigen", ("harmful_rate", "toxicity", FLUENCY), "forget"),
        Scored(
            "real_toxicity_prompts",
            ("harmful_rate", "toxicity", FLUENCY, "expected_maximum_toxicity", "toxicity_probability"),
            "forget",
        ),
    )

    name: Literal["toxicity"] = "toxicity"
    tasks: tuple[Part, ...] = get_args(Part)
    """toxigen, real_toxicity_prompts; data is needed only for the chosen ones."""
    judge: str = JUDGE
    """Toxicity judge: folder or hub id of a text classifier."""
    label: str | None = None
    """Its label for toxic; default: that of the default judge."""
    revision: str | None = None
    """Branch, tag or commit of a judge on the hub."""
    fluency: str | None = None
    """Folder or hub id of a language model that reads the completions (Llama-2-13B in SPUNGE)."""
    prompts: Literal["annotated", "raw"] = "annotated"
    """annotated: the 940 statements of the annotated test set, toxic and benign (SPUNGE). raw: ToxiGen's files of prompts, five
    to seven statements each, hateful and neutral (proxy-tuning, 500 of each file)."""
    groups: tuple[str, ...] = ()
    """Groups of ToxiGen, such as mexican, women, muslim, lgbtq, physical_dis (SPUNGE's five); default: all."""
    per_group: int | None = Field(None, ge=1)
    """Largest number of prompts of a group (raw: of each of its files): those with the smallest ids."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest completion of a ToxiGen prompt."""
    challenging: bool = False
    """Only RealToxicityPrompts after which every model of their paper wrote something toxic."""
    rtp_prompts: int = Field(1000, ge=1)
    """Largest number of the 99,442 RealToxicityPrompts: those with the smallest ids."""
    rtp_max_new_tokens: int = Field(20, ge=1)
    """Longest completion of one, 20 as in their paper."""
    draws: int = Field(0, ge=0)
    """Sampled completions of each (top_p 0.9), 25 in their paper; none by default."""

    def build(self, data: str | Path) -> Suite:
        metrics = self._metrics()
        groups: list[Task] = []
        tasks: list[Task] = []
        if "toxigen" in self.tasks:
            groups = [self._group(name, few, metrics) for name, few in self._toxigen(_source(data, "toxigen", toxigen.HUB))]
        if "real_toxicity_prompts" in self.tasks:
            tasks = [self._beginnings(_source(data, "real_toxicity_prompts", real_toxicity_prompts.HUB), metrics)]

        def summarize(results: Results) -> list[Score]:
            return [pooled_score(results, "toxigen", groups, metric.metric_name()) for metric in metrics] if groups else []

        return Suite(self.name, (*groups, *tasks), summarize)

    def _metrics(self) -> tuple[Metric, ...]:
        judge = self._judge()
        read = (FLUENCY.model_copy(update={"model": self.fluency}),) if self.fluency is not None else ()
        return HarmfulRate(judge=judge), Toxicity(judge=judge), *read

    def _judge(self) -> Classifier:
        if self.judge != JUDGE:
            return Classifier(model=self.judge, label=self.label, revision=self.revision)
        return Classifier(model=JUDGE, label=self.label or LABEL, revision=self.revision or REVISION)

    def _toxigen(self, source: str | Path) -> list[tuple[str, tuple[Example, ...]]]:
        """Returns group -> prompts."""
        known = toxigen.GROUPS if self.prompts == "annotated" else toxigen.PROMPT_GROUPS
        if wrong := next((name for name in self.groups if name not in known), None):
            raise ExpungeError(f"groups={wrong}: ToxiGen has no such group{nearest(wrong, known)}; it has {', '.join(known)}")
        wanted = self.groups or known
        if self.prompts == "raw":
            return [(name, self._raw(source, name)) for name in wanted]
        statements = read_toxigen(source, "test")
        found = [(name, [e for e in statements if e.attributes["group"] == name]) for name in wanted]
        if missing := next((name for name, some in found if not some and name in self.groups), None):
            raise ExpungeError(f"{source} has no test statement about the group {missing}; leave it out of `groups`")
        return [(name, self._few(some)) for name, some in found if some]

    def _raw(self, source: str | Path, group: str) -> tuple[Example, ...]:
        files = [f"{kind}_{toxigen.FILES.get(group, group)}" for kind in ("hate", "neutral")]
        return tuple(e for name in files if name in toxigen.PROMPTS for e in self._few(read_prompts(source, name)))

    def _few(self, statements: Iterable[Example]) -> tuple[Example, ...]:
        prompts = [Example(e.response, "", attributes=e.attributes) for e in statements]
        return _smallest(prompts, self.per_group)

    def _group(self, name: str, prompts: tuple[Example, ...], metrics: tuple[Metric, ...]) -> Task:
        return Task(
            f"toxigen_{name}", prompts, metrics, "forget", max_new_tokens=self.max_new_tokens, verbatim=True, stop=("\n",)
        )

    def _beginnings(self, source: str | Path, metrics: tuple[Metric, ...]) -> Task:
        found = [e for e in read_real_toxicity_prompts(source) if e.attributes["challenging"] or not self.challenging]
        if not found:
            raise ExpungeError(f"{source} has no prompt that is marked as challenging; leave challenging=true out")
        judge = self._judge()
        worst = (ExpectedMaximumToxicity(judge=judge), ToxicityProbability(judge=judge)) if self.draws else ()
        return Task(
            "real_toxicity_prompts",
            _smallest(found, self.rtp_prompts),
            (*metrics, *worst),
            "forget",
            max_new_tokens=self.rtp_max_new_tokens,
            verbatim=True,
            draws=self.draws,
        )


def _source(data: str | Path, name: str, hub: str) -> str | Path:
    """Returns the corpus' folder inside the data, or the data folder itself; the hub id for the word hub."""
    if data == HUB:
        return hub
    inside = Path(data) / name
    return inside if inside.is_dir() else Path(data)


def _smallest(prompts: Sequence[Example], count: int | None) -> tuple[Example, ...]:
    """Returns the examples with the smallest ids, in their order, so that the choice does not depend on the order of the
    file."""
    return tuple(prompts[i] for i in sorted(sorted(range(len(prompts)), key=lambda i: prompts[i].id)[:count]))
