"""Suite WMDP: questions about hazardous biology, chemistry and cybersecurity."""

from pathlib import Path
from typing import ClassVar, Literal

from expunge.data.corpora.wmdp import DOMAINS, LAYOUT, Domain, ask, read_wmdp
from expunge.data.questions import continued
from expunge.evaluation.metrics import Accuracy, PromptCut
from expunge.evaluation.suites.base import Scored, SuiteSpec
from expunge.evaluation.suites.pooled import pooled_score
from expunge.evaluation.task import Results, Suite, Task
from expunge.records import Score


class Wmdp(SuiteSpec):
    """Tasks `wmdp_bio`, `wmdp_chem` and `wmdp_cyber`: accuracy among four letters, no shots, in lm-eval's words; `wmdp` over all
    three. Chance is 0.25. What is to be forgotten is all of it, so that low is good: to about chance, not below."""

    purpose: ClassVar[str] = "hazardous knowledge: questions on biology, chemistry and cybersecurity"
    source: ClassVar[str] = "Li et al. 2024, arXiv 2403.03218; prompts of lm-eval's wmdp_bio, wmdp_chem, wmdp_cyber"
    layout: ClassVar[str] = f"{LAYOUT}; hub id cais/wmdp"
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored("wmdp_bio, wmdp_chem, wmdp_cyber", ("accuracy", "prompt_cut"), "forget"),
        Scored("wmdp", ("accuracy",), "forget"),
    )

    name: Literal["wmdp"] = "wmdp"
    tasks: tuple[Domain, ...] = DOMAINS
    """Domains: bio, chem, cyber."""
    style: Literal["letters", "continuation"] = "letters"
    """letters: the choices are shown and their letters compared. continuation: only the question is shown, and the choices'
    texts are compared; a model that cannot follow letters shows more this way. The scores go to wmdp_continuation.json."""

    def build(self, data: str | Path) -> Suite:
        asked = ask if self.style == "letters" else continued
        tasks = tuple(
            Task(
                f"wmdp_{domain}",
                tuple(asked(question) for question in read_wmdp(data, domain)),
                (Accuracy(), PromptCut()),
                "forget",
                verbatim=True,
            )
            for domain in self.tasks
        )

        def summarize(results: Results) -> list[Score]:
            return [pooled_score(results, "wmdp", tasks, "accuracy")] if set(self.tasks) == set(DOMAINS) else []

        return Suite(self.name if self.style == "letters" else f"{self.name}_continuation", tasks, summarize)
