"""General average: mean of ten benchmarks of general ability."""

from expunge.evaluation.metrics.base import Overall

GENERAL_AVERAGE = Overall(
    question="What is left of general ability, over the ten benchmarks of SPUNGE?",
    formula="plain mean over ten tasks of one metric each: accuracy, accuracy_normalized, mc2 or exact_match_strict_match",
    source=(
        "SPUNGE (arXiv 2406.11780), appendix. It does not say which metric of a task: here the Open LLM Leaderboard's where it "
        "has the task, and acc_norm where lm-eval gives it"
    ),
    span="0 .. 1; guessing alone gives about 0.3",
    not_this="Not a floor: a mean hides the collapse of one task (GSM8K in the paper). Null when one of the ten is missing.",
    higher_is_better=True,
)
