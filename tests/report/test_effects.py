import json

import numpy as np
import pytest

from expunge.errors import ExpungeError
from expunge.records import Evaluation, Sample, Score
from expunge.report import RunRecord, forget_effect, read_run, retain_kept, summarize_lab
from expunge.report.effects import LAB, share_gone


def model(name, forget, retain, ids=None, with_samples=True) -> RunRecord:
    """A record with given answer probabilities per sample."""
    samples, scores = [], []
    for task, values in (("facts_forget", forget), ("facts_retain", retain)):
        names = ids or [str(i) for i in range(len(values))]
        samples += [Sample(task=task, metric="probability", id=i, value=v) for i, v in zip(names, values, strict=True)]
        scores.append(Score(task=task, metric="probability", value=float(np.mean(values)), n=len(values)))
    evaluation = Evaluation(suite="lab", artifact=f"models/{name}", seconds=1.0, scores=tuple(scores))
    return RunRecord(name=name, folder=name, evaluations=(evaluation,), samples={"lab": tuple(samples)} if with_samples else {})


ORIGINAL = model("original", [0.9, 0.7, 0.8], [0.9, 0.8, 0.7])
GOLD = model("gold", [0.4, 0.3, 0.5], [0.9, 0.7, 0.8])


def test_original_is_0_and_gold_is_1_by_construction():
    assert (forget_effect(ORIGINAL, ORIGINAL, GOLD).value, retain_kept(ORIGINAL, ORIGINAL).value) == (0.0, 1.0)
    assert forget_effect(GOLD, ORIGINAL, GOLD).value == 1.0
    assert forget_effect(GOLD, ORIGINAL, GOLD).low is None
    assert forget_effect(ORIGINAL, ORIGINAL, GOLD).low is None


def test_the_two_figures_follow_their_formulas():
    run = model("npo", [0.2, 0.1, 0.3], [0.6, 0.6, 0.6])
    assert forget_effect(run, ORIGINAL, GOLD).value == pytest.approx((0.8 - 0.2) / (0.8 - 0.4))
    assert retain_kept(run, ORIGINAL).value == pytest.approx(0.6 / 0.8)


def test_pairing_by_sample_narrows_the_interval():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.2, 1.0, 100)
    original, gold = model("original", hard, hard), model("gold", hard / 2, hard)
    paired = forget_effect(model("npo", hard * 0.6, hard), original, gold)
    shuffled = forget_effect(model("npo", rng.permutation(hard * 0.6), hard), original, gold)
    assert paired.value == pytest.approx(shuffled.value)
    assert paired.high - paired.low < 0.01 < shuffled.high - shuffled.low
    assert shuffled.low < shuffled.value < shuffled.high


def test_the_interval_agrees_with_normal_theory():
    rng = np.random.default_rng(1)
    kept = retain_kept(model("npo", [0.5] * 400, rng.normal(0.6, 0.1, 400)), model("original", [0.5] * 400, np.full(400, 0.8)))
    assert kept.high - kept.low == pytest.approx(2 * 1.96 * 0.1 / 20 / 0.8, rel=0.12)


def test_models_scored_on_different_samples_are_compared_on_those_they_share():
    run = model("npo", [0.1, 0.2], [0.5, 0.5], ids=["1", "2"])
    effect = forget_effect(run, ORIGINAL, GOLD)
    assert effect.n == 2
    assert effect.value == pytest.approx((0.75 - 0.15) / (0.75 - 0.4))


def test_without_samples_the_scores_give_a_value_and_no_interval():
    run = model("npo", [0.2, 0.1, 0.3], [0.6, 0.6, 0.6], with_samples=False)
    effect = forget_effect(run, ORIGINAL, GOLD)
    assert effect.value == pytest.approx(1.5)
    assert effect.low is None


def test_an_original_that_never_knew_gives_a_reason_instead_of_a_number():
    effect = forget_effect(ORIGINAL, GOLD, ORIGINAL)
    assert effect.value is None
    assert "does not know" in effect.unscored


def test_a_missing_score_is_named():
    empty = RunRecord(name="npo", folder="npo")
    assert "npo has no probability on facts_retain" in retain_kept(empty, ORIGINAL).unscored


def test_the_summary_has_the_promised_fields_and_rows(lab):
    original, gold = read_run(lab.original, "original"), read_run(lab.gold, "gold")
    runs = [read_run(r) for r in lab.runs]
    summary = json.loads(summarize_lab(runs, original, gold, 7, 200.5).model_dump_json())
    assert (summary["seed"], summary["seconds"]) == (7, 200.5)
    assert [row["name"] for row in summary["runs"]] == ["original", "gold", *(r.name for r in runs)]
    assert list(summary["runs"][0]) == [
        "name", "method", "family", "artifact", "verdict", "forget_effect", "retain_kept", "probability_forget",
        "probability_retain", "extraction_strength_forget", "forget_quality", "model_utility",
    ]  # fmt: skip
    first, second, third = summary["runs"][:3]
    assert (first["forget_effect"], first["retain_kept"], second["forget_effect"]) == (0.0, 1.0, 1.0)
    assert second["retain_kept"] == pytest.approx(second["probability_retain"] / first["probability_retain"])
    assert (third["method"], third["family"], third["artifact"]) == ("gradient_ascent", "training", "lab/models/gradient_ascent")
    assert third["forget_effect"] > 1.2
    assert third["model_utility"] == runs[0].evaluation("lab").get("suite", "model_utility").value


def test_a_summary_without_the_lab_suite_says_how_to_make_it(tofu, lab):
    with pytest.raises(ExpungeError, match="--suite lab"):
        summarize_lab([], read_run(tofu.original), read_run(lab.gold), None, None)


def test_without_gold_the_share_of_the_original_that_is_gone_counts():
    run, original = model("npo", [0.4, 0.3, 0.5], [0.9, 0.7, 0.8]), ORIGINAL
    before = np.mean(list(original.values("lab", "facts_forget", "probability").values()))
    assert share_gone(run, original, LAB).value == pytest.approx(1 - 0.4 / before)
