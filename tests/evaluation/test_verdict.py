"""The verdict against gold: what passes is equal and shown to be, and what does not is named with its direction."""

import doctest

import numpy as np
import pytest
from scipy import stats

import expunge.evaluation.verdict as module
from expunge.evaluation.verdict import Verdict, holm, verdict
from expunge.records import Role, Sample

RNG = np.random.default_rng(0)
GOLD = RNG.beta(2, 5, size=72)


def rows(metric: str, values: np.ndarray, task: str = "forget", role: Role = "forget") -> list[Sample]:
    return [Sample(task=task, metric=metric, role=role, id=f"{i}", value=float(v)) for i, v in enumerate(values)]


def against_gold(metric: str, run: np.ndarray, gold: np.ndarray = GOLD) -> Verdict:
    return verdict(rows(metric, run), rows(metric, gold))


def test_the_example_in_the_docstring_holds() -> None:
    assert doctest.testmod(module).failed == 0


def test_another_draw_of_the_same_noise_is_indistinguishable() -> None:
    assert against_gold("probability", GOLD + RNG.normal(0, 0.05, 72)).words == "indistinguishable from gold"


@pytest.mark.parametrize(("shift", "words"), [(0.2, "still known"), (-0.15, "over-forgotten")])
def test_a_shift_is_named_with_its_direction(shift: float, words: str) -> None:
    found = against_gold("probability", np.clip(GOLD + shift, 0, 1))
    assert found.words == words
    assert [finding.metric for finding in found.apart] == ["probability"]


def test_a_low_truth_ratio_means_that_the_answer_is_known() -> None:
    ratios = np.exp(RNG.normal(0, 1, 72))
    assert against_gold("truth_ratio", ratios * np.exp(-2), ratios).words == "still known"


def test_equal_means_with_another_spread_are_told_apart_by_the_distribution() -> None:
    gold = RNG.normal(-3, 0.5, 200)
    wide = -3 + RNG.normal(0, 3, 200)
    found = against_gold("mia_min_k", wide - wide.mean() + gold.mean(), gold)
    (finding,) = found.findings
    assert (finding.found, finding.test, finding.direction) == ("apart", "distribution", "spread differently")
    assert found.words == "told apart from gold"


def test_few_samples_do_not_pass_by_weakness() -> None:
    assert against_gold("probability", GOLD[:6][::-1], GOLD[:6]).words == "too few samples"
    wrong = np.zeros(20)
    assert against_gold("accuracy", wrong, wrong).words == "too few samples"  # up to 3 in 20 of all others may be right
    assert against_gold("accuracy", np.zeros(100), np.zeros(100)).words == "indistinguishable from gold"


def test_one_statistic_is_enough_to_be_told_apart_and_two_may_disagree() -> None:
    run = rows("probability", np.clip(GOLD - 0.2, 0, 1)) + rows("extraction_strength", np.clip(GOLD + 0.3, 0, 1))
    gold = rows("probability", GOLD) + rows("extraction_strength", GOLD)
    found = verdict(run, gold)
    assert found.words == "told apart from gold"
    assert {finding.metric: finding.direction for finding in found.apart} == {
        "probability": "over-forgotten",
        "extraction_strength": "still known",
    }


def test_only_what_was_to_be_forgotten_counts_and_samples_are_paired_by_id() -> None:
    run = rows("probability", GOLD)[::-1] + rows("probability", np.ones(72), "retain", "retain")
    gold = rows("probability", GOLD) + rows("probability", np.zeros(72), "retain", "retain")
    finding = verdict(run, gold).findings[0]
    assert (finding.n, finding.difference, finding.p) == (72, 0.0, 1.0)


def test_a_gold_model_of_another_forget_set_is_no_test() -> None:
    found = verdict(rows("accuracy", GOLD, "skill"), rows("accuracy", GOLD, "people"))
    assert found.words == "not tested"
    assert found.untested == "the run was to forget skill, and gold is a model that never saw people"


def test_holm_agrees_with_the_procedure_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_the_paired_test_is_scipys_with_zeros_in_their_ranks() -> None:
    run = GOLD.copy()
    run[:40] += RNG.normal(0.05, 0.05, 40)
    finding = against_gold("probability", run).findings[0]
    paired = stats.wilcoxon(run - GOLD, zero_method="pratt", method="approx").pvalue
    assert finding.p == pytest.approx(min(1, 2 * paired))
