"""Suite membership: whether forget texts can be distinguished from similar texts that the model never saw."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from expunge.data.example import Example
from expunge.data.read import read_examples
from expunge.errors import ExpungeError
from expunge.evaluation.metrics.base import Metric
from expunge.evaluation.metrics.mia_gradnorm import MiaGradnorm
from expunge.evaluation.metrics.mia_loss import MiaLoss
from expunge.evaluation.metrics.mia_min_k import MiaMinK
from expunge.evaluation.metrics.mia_min_k_plus_plus import MiaMinKPlusPlus
from expunge.evaluation.metrics.mia_zlib import MiaZlib
from expunge.evaluation.suites.attacked import TaskPair, attack_scores, privleak_score, reference_scores
from expunge.evaluation.suites.base import AttackedSuite, Scored
from expunge.evaluation.task import Results, Suite, Task
from expunge.records import Score

SETS = TaskPair("forget", "holdout")
ADVICE = "evaluate a model trained without it with --suite membership and --out DIR, then give --retain-scores DIR"


class Membership(AttackedSuite):
    """AUC of each attack, forget against holdout: 1 = the forget set is clearly memorized, 0.5 = no difference.

    `mia_loss`, `mia_zlib`, `mia_min_k`, `mia_min_k_plus_plus`, `mia_gradnorm` when asked for, and `mia_reference` against
    another model's evaluation. With a retain model's evaluation, `privleak` (MUSE's, on mia_min_k) and the relative difference
    of each AUC.
    One sample per text and attack, higher = more like a member. One teacher-forced pass serves all but mia_gradnorm.
    """

    purpose: ClassVar[str] = "whether your forget texts can be distinguished from similar texts that the model never saw"
    source: ClassVar[str] = "MUSE (arXiv 2407.06460) and open-unlearning; one file a metric"
    layout: ClassVar[str] = (
        "a folder with forget.jsonl and holdout.jsonl (prompt+response or text), the holdout of the same kind and never trained "
        "on; in a lab: data/facts with --options holdout=never_known.jsonl"
    )
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored(
            "suite",
            (
                *("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm", "mia_reference"),
                *("ATTACK_relative_difference", "privleak"),
            ),
        ),
    )

    name: Literal["membership"] = "membership"
    forget: str = "forget.jsonl"
    """File with what was to be forgotten, in the folder of the data (or a path, or a hub id)."""
    holdout: str = "holdout.jsonl"
    """File with texts of the same kind that the model never saw."""
    k: float = Field(0.4, gt=0, le=1)
    """Share of tokens of mia_min_k and mia_min_k_plus_plus."""
    gradnorm: bool = False
    """Also mia_gradnorm: a backward pass for each text, which takes longer than all others together."""
    compat: bool = False
    """mia_min_k, mia_min_k_plus_plus and mia_gradnorm without the last token of each text, as in the released code of
    open-unlearning; the scores go to membership_compat.json."""

    def names_all_files(self) -> bool:
        return {"forget", "holdout"} <= self.model_fields_set

    def build(self, data: str | Path) -> Suite:
        name = "membership_compat" if self.compat else "membership"
        tasks = (
            Task("forget", _read(data, self.forget), self.attacks, "forget"),
            Task("holdout", _read(data, self.holdout), self.attacks, "control"),
        )
        check_apart(*(task.examples for task in tasks))
        names = [attack.metric_name() for attack in self.attacks]
        retain = reference_scores(self.retain_scores, name, SETS, names)
        reference = reference_scores(self.reference_scores, name, SETS, ["mia_loss"])

        def summarize(results: Results) -> list[Score]:
            scores = attack_scores(results, SETS, names, retain=retain, reference=reference, advice=ADVICE)
            return [*scores, privleak_score(results, SETS, retain, advice=ADVICE)]

        return Suite(name, tasks, summarize)

    @property
    def attacks(self) -> tuple[Metric, ...]:
        """Returns the attacks that give one number per text."""
        compat = self.compat
        gradient = (MiaGradnorm(compat=compat),) if self.gradnorm else ()
        return (MiaLoss(), MiaZlib(), MiaMinK(k=self.k, compat=compat), MiaMinKPlusPlus(k=self.k, compat=compat), *gradient)


def check_apart(forget: tuple[Example, ...], holdout: tuple[Example, ...]) -> None:
    """Raises ExpungeError if a text is in both sets, which would move every AUC towards 0.5."""
    both = {example.id for example in forget} & {example.id for example in holdout}
    if both:
        raise ExpungeError(
            f"{len(both)} of {len(holdout)} holdout examples are also forget examples; give a holdout set that was never seen"
        )


def _read(data: str | Path, name: str) -> tuple[Example, ...]:
    inside = Path(data) / name
    if not inside.exists() and not Path(name).exists():
        raise ExpungeError(
            f"there is no {inside}; the suite membership needs a forget file and a holdout file of texts of the same kind that "
            "the model never saw (rows with prompt and response, or text); name them with --options forget=FILE holdout=FILE"
        )
    return read_examples(inside if inside.exists() else name)
