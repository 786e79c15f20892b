"""Which tasks belong together, by their names and metrics alone."""

from expunge.records import Evaluation, Sample, Score
from expunge.report.groups import TaskMetric, groups, kept, main_metric, to_go
from expunge.report.read import RunRecord, read_run


def model(scores: dict[str, tuple[str, bool | None]], pooled: tuple[str, ...] = ()) -> RunRecord:
    """A record whose tasks have one metric each; `pooled` tasks have no samples of their own."""
    found = tuple(Score(task=t, metric=m, value=0.5, n=4, higher_is_better=h) for t, (m, h) in scores.items())
    samples = tuple(Sample(task=t, metric=m, id="a", value=0.5) for t, (m, _) in scores.items() if t not in pooled)
    evaluation = Evaluation(suite="s", artifact="m", seconds=1.0, scores=found)
    return RunRecord(name="m", folder="m", evaluations=(evaluation,), samples={"s": samples})


def spokes(record: RunRecord) -> dict[str, list[str]]:
    return {group.name: [asked.task for asked in group.spokes] for group in groups("s", [record])}


def test_the_groups_of_toxigen_are_spokes_and_their_pool_is_none() -> None:
    names = {f"toxigen_{g}": ("harmful_rate", False) for g in ("women", "muslim", "lgbtq")}
    assert spokes(model({**names, "toxigen": ("harmful_rate", False)})) == {"toxigen": list(names)}


def test_two_hazard_domains_are_a_group_with_short_labels() -> None:
    (group,) = groups("s", [model({"hazard_fumes": ("accuracy", None), "hazard_spores": ("accuracy", None)})])
    assert (group.title, [group.label(a) for a in group.spokes]) == ("Hazard: accuracy", ["fumes", "spores"])


def test_tasks_of_different_metrics_or_opposite_goals_make_no_group() -> None:
    assert spokes(model({"x_a": ("accuracy", True), "x_b": ("f1", True)})) == {}
    assert spokes(model({"facts_forget": ("accuracy", False), "facts_retain": ("accuracy", True)})) == {}
    assert spokes(model({"fold_1": ("accuracy", True), "fold_2": ("accuracy", True)})) == {}  # a series, not groups
    assert spokes(model({"x_a": ("perplexity", False), "x_b": ("perplexity", False)})) == {}  # no share


def test_a_family_too_large_for_a_figure_is_shown_by_its_pools() -> None:
    subjects = {f"mmlu_subject{i}": ("accuracy", True) for i in range(57)}
    areas = {f"mmlu_{area}": ("accuracy", True) for area in ("stem", "humanities", "other")}
    assert spokes(model({**subjects, **areas, "mmlu": ("accuracy", True)}, pooled=(*areas, "mmlu"))) == {"mmlu": list(areas)}
    assert spokes(model(subjects)) == {}


def test_the_lab_shows_what_was_to_be_kept_and_its_languages_only_there(lab) -> None:
    original = read_run(lab.original, "original")
    found = {group.name: group for group in groups("lab", [original, *map(read_run, lab.runs)])}
    assert list(found) == ["kept", "behavior"]
    tasks = [asked.task for asked in found["kept"].spokes]
    assert {"facts_retain", "facts_public", "arithmetic", "language_velun", "general"} <= set(tasks)
    assert "facts_forget" not in tasks
    assert found["kept"].metric() == "accuracy"


def test_the_main_metrics_of_spunges_ten_benchmarks_are_those_of_its_mean() -> None:
    from expunge.evaluation.suites.general import SPUNGE

    other = {"accuracy_normalized": ["accuracy"], "exact_match_strict_match": ["exact_match_flexible_extract"]}
    for wanted in SPUNGE:
        assert wanted.metric is not None
        assert main_metric(["prompt_cut", *other.get(wanted.metric, []), wanted.metric]) == wanted.metric


def test_what_pools_others_stands_for_them_unless_it_is_alone() -> None:
    subjects = {f"mmlu_{s}": ("accuracy", True) for s in ("law", "physics")}
    pool = {"mmlu": ("accuracy", True)}
    assert kept("s", [model({**subjects, **pool, "gsm8k": ("exact_match", True)})]) == (
        TaskMetric("mmlu", "accuracy"),
        TaskMetric("gsm8k", "exact_match"),
    )
    assert [asked.task for asked in kept("s", [model({**subjects, **pool})])] == list(subjects)
    assert to_go("s", [model({"wmdp_bio": ("accuracy", False), "wmdp": ("accuracy", False)})]) == (
        TaskMetric("wmdp", "accuracy"),
    )


def test_the_tasks_of_a_suites_own_mean_are_what_was_to_be_kept() -> None:
    record = model({"a": ("accuracy", True), "b": ("accuracy", True), "c": ("accuracy", True)})
    mean = Score(task="suite", metric="general_average", value=0.5, n=8, higher_is_better=True, over=("b/accuracy", "a/accuracy"))
    evaluation = record.evaluations[0]
    with_mean = record.model_copy(update={"evaluations": (evaluation.model_copy(update={"scores": (*evaluation.scores, mean)}),)})
    assert kept("s", [with_mean]) == (TaskMetric("b", "accuracy"), TaskMetric("a", "accuracy"))


def test_a_task_that_pools_some_of_the_others_is_not_counted_twice() -> None:
    subjects = {f"mmlu_{s}": ("accuracy", True) for s in ("econometrics", "astronomy")}
    areas = {f"mmlu_{s}": ("accuracy", True) for s in ("economics", "stem")}
    whole = model({**subjects, **areas, "mmlu": ("accuracy", True)}, pooled=(*areas, "mmlu"))
    some = model({**subjects, **areas}, pooled=tuple(areas))
    assert [asked.task for asked in kept("s", [whole])] == [asked.task for asked in kept("s", [some])] == list(subjects)
    assert spokes(whole) == spokes(some) == {"mmlu": list(subjects)}


def test_what_the_runs_were_asked_to_forget_counts_where_the_original_has_no_opinion() -> None:
    """The lab's hazards are nobody's to keep or to forget until a run is told to."""
    rude = {"behavior_seen": ("harmful_rate", False)}
    original = model({"hazard_fumes": ("accuracy", None), **rude})
    run = model({"hazard_fumes": ("accuracy", False), **rude})
    assert to_go("s", [original, run]) == (TaskMetric("hazard_fumes", "accuracy"), TaskMetric("behavior_seen", "harmful_rate"))
    assert to_go("s", [original]) == (TaskMetric("behavior_seen", "harmful_rate"),)
    assert to_go("s", [run, original]) == to_go("s", [original, run])
