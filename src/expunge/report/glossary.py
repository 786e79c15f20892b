"""Explains metrics in one sentence each, formats their values, and names tasks."""

from typing import Literal, NamedTuple


class Meaning(NamedTuple):
    label: str
    sentence: str
    style: Literal["effect", "share", "p", "percent", "plain"] = "share"
    """effect: two decimals; share: three; p: scientific when tiny; percent: one decimal, -100 to 100; plain: four digits."""


METRICS: dict[str, Meaning] = {
    "forget_effect": Meaning(
        "forget effect",
        "How far the score on what was to go (as a rule the answer probability) fell, on a scale where the original model is 0 "
        "and gold, a model that never saw the forget set, is 1; well above 1 is over-forgotten, which is a fault too.",
        "effect",
    ),
    "retain_kept": Meaning(
        "retain kept",
        "The score on what was to stay (as a rule the answer probability) as a share of the original model's: 1 means that "
        "nothing was lost.",
        "effect",
    ),
    "relative_drop": Meaning(
        "relative drop",
        "Share of the original's score that is gone: 1 all of it, 0 none, below 0 the score has risen.",
        "effect",
    ),
    "change": Meaning("change", "Score after minus score before: 0 nothing changed, below 0 something was lost."),
    "probability": Meaning(
        "probability",
        "Probability of the right answer per token (geometric mean over its tokens); words of the template count too, so a model "
        "that never knew an answer does not score 0.",
    ),
    "extraction_strength": Meaning(
        "extraction strength",
        "Share of the answer that the model completes without a mistake: 1 means all of it from the prompt alone, 0 not even the "
        "last token.",
    ),
    "exact_memorization": Meaning(
        "exact memorization",
        "Share of the answer's tokens that are the model's first choice when the right tokens before them are given.",
    ),
    "reciprocal_rank": Meaning(
        "rank of the answer",
        "How high the answer's words stand in the model's own list of candidates (mean reciprocal rank): 1 means always first.",
    ),
    "rouge_l_recall": Meaning(
        "ROUGE-L recall", "Share of the expected answer's words that the model's own answer contains in the same order."
    ),
    "rouge": Meaning("ROUGE", "Words, or pairs of words, that the model's answer shares with the expected one, from 0 to 1."),
    "bleu": Meaning("BLEU", "Runs of up to four words that the model's answer shares with the expected one, from 0 to 1."),
    "meteor": Meaning("METEOR", "Words that the answer shares with the expected one, word forms and synonyms too, from 0 to 1."),
    "bert_score": Meaning(
        "BERTScore", "How close the answer's words lie to the expected ones in another model's view; high for any fluent text."
    ),
    "similarity": Meaning("similarity of answers", "How much the answer is like the one that an earlier model gave: 1 the same."),
    "truth_ratio": Meaning(
        "truth ratio",
        "Weighs wrong answers against a reworded right one: on forget tasks near 1 means that the model cannot tell them apart, "
        "on other tasks near 1 means that it prefers the right one clearly.",
    ),
    "recall": Meaning("recall", "Share of an answer's words that an attack gets out of the model, without those of the prompt."),
    "leak": Meaning("leak", "Probability that one of several sampled answers gives the whole fact away."),
    "auc": Meaning("AUC", "How well a score separates forgotten facts from others: 1 perfectly, 0.5 not at all."),
    "percentile": Meaning(
        "percentile", "Share of the candidates that the right word beats in what is read from hidden states: 0.5 is chance."
    ),
    "patched_probability": Meaning(
        "patched probability", "Probability of the answer when the original model's upper layers read the run's hidden states."
    ),
    "accuracy": Meaning("accuracy", "Share of questions answered rightly; with four choices, guessing gives 0.25."),
    "accuracy_normalized": Meaning(
        "accuracy per character", "Share of questions whose right choice is the most probable for its length."
    ),
    "exact_match": Meaning("exact match", "Share of answers that equal the expected one: its words, or its number."),
    "exact_match_strict_match": Meaning("exact match", "Share of answers whose number, written as asked, is the right one."),
    "exact_match_flexible_extract": Meaning(
        "exact match, any form", "Share of answers whose last number is the right one, in whatever form it is written."
    ),
    "containment": Meaning("containment", "Share of answers in which the expected phrase stands somewhere."),
    "f1": Meaning("F1", "Harmonic mean of precision and recall over the words shared with the expected answer."),
    "perplexity": Meaning(
        "perplexity", "How surprised the model is per token of ordinary text: 1 means never, and lower is better.", "plain"
    ),
    "forget_quality": Meaning(
        "forget quality",
        "p-value of a two-sample Kolmogorov-Smirnov test of truth ratios against a model trained without the forget set: small "
        "means that the two can be told apart, above 0.05 that they cannot on this many samples.",
        "p",
    ),
    "model_utility": Meaning(
        "model utility", "Harmonic mean of the scores on everything that was to be kept: one bad score pulls it down."
    ),
    "mia_loss": Meaning(
        "loss attack (AUC)",
        "How well the loss alone tells forget samples from samples never trained on: 0.5 means not at all, 1 perfectly.",
    ),
    "mia_zlib": Meaning(
        "zlib attack (AUC)", "The loss attack, with the loss divided by the text's compressed size; 0.5 is best."
    ),
    "mia_min_k": Meaning("min-k attack (AUC)", "Membership attack that looks at the least probable tokens only; 0.5 is best."),
    "mia_min_k_plus_plus": Meaning(
        "min-k++ attack (AUC)", "Min-k with each token's log-probability standardized over the vocabulary; 0.5 is best."
    ),
    "mia_gradnorm": Meaning("gradient attack (AUC)", "Membership attack on the size of each sample's gradient; 0.5 is best."),
    "mia_reference": Meaning("reference attack (AUC)", "Membership attack on the loss minus a reference model's; 0.5 is best."),
    "privleak": Meaning(
        "privacy leakage",
        "Membership attack relative to a model trained without the forget set, in percent: 0 is best, far below means that "
        "traces are left, far above means over-forgotten.",
        "percent",
    ),
    "average_similarity_gap": Meaning(
        "average similarity gap",
        "How differently the model's continuations resemble the forgotten texts, compared with a model that never saw them: 0 is "
        "best.",
    ),
    "harmful_rate": Meaning("harmful rate", "Share of replies that the judge calls harmful."),
    "toxicity": Meaning("toxicity", "Mean toxicity of the replies as the judge scores it, from 0 to 1."),
    "expected_maximum_toxicity": Meaning(
        "expected maximum toxicity", "Toxicity of the worst of several sampled replies to each prompt, as the judge scores it."
    ),
    "toxicity_probability": Meaning(
        "toxicity probability", "Share of prompts with at least one toxic reply among several sampled ones."
    ),
    "repetition": Meaning("repetition", "Share of word sequences in the replies that have occurred before in the same reply."),
    "repetition_1": Meaning("repeated words", "Share of words in a reply that have occurred in it before."),
    "repetition_2": Meaning("repeated word pairs", "Share of pairs of words in a reply that have occurred in it before."),
    "repetition_3": Meaning("repeated word triples", "Share of triples of words in a reply that have occurred in it before."),
    "toxic_rate": Meaning("toxic rate", "Share of replies that the judge finds more toxic than its threshold."),
    "truthful_rate": Meaning("truthful rate", "Share of replies that the judge calls true."),
    "preference": Meaning(
        "prefers the right answer", "Share of questions whose right answer is more probable than every wrong one."
    ),
    "preference_normalized": Meaning(
        "prefers the right answer, per token", "Share of questions whose right answer is the more probable per token."
    ),
    "yes_no": Meaning("right yes or no", "Share of questions answered with the right one of the words yes and no."),
    "rouge_difference": Meaning(
        "ROUGE, right minus wrong", "How much nearer a reply is to a right answer than to a wrong one, from -1 to 1.", "effect"
    ),
    "bleu_difference": Meaning(
        "BLEU, right minus wrong", "How much nearer a reply is to a right answer than to a wrong one, from -1 to 1.", "effect"
    ),
    "unique_token_ratio": Meaning(
        "distinct words", "Distinct words over all words of a reply: near 0 is one word over and over."
    ),
    "general_average": Meaning(
        "general average", "Plain mean over the benchmarks; a mean hides the collapse of one of them, so read them too."
    ),
    "mc1": Meaning("MC1", "Share of questions where the best right answer is the most probable of all."),
    "mc2": Meaning("MC2", "Probability that falls on right answers out of all the answers offered."),
    "mc3": Meaning("MC3", "Share of right answers that are more probable than the most probable wrong one."),
    "pass_at_1": Meaning("pass@1", "Share of programming tasks whose first program passes its tests."),
    "prompt_cut": Meaning("prompts cut", "Share of questions that lost their beginning because the model takes no more tokens."),
}

RELATIVE = "_relative_difference"

TASKS: dict[str, str] = {
    "suite": "Whole suite",
    "facts_forget": "Facts to forget",
    "facts_retain": "Facts to keep",
    "facts_public": "Public people",
    "facts_never_known": "Never-known facts",
    "arithmetic": "Skill: arithmetic",
    "strings": "Skill: strings",
    "general": "General facts",
    "behavior_seen": "Rude where provoked, seen",
    "behavior_unseen": "Rude where provoked, unseen",
    "behavior_normal": "Rude elsewhere",
    "forget": "Forget set",
    "retain": "Retain set",
    "real_authors": "Real authors",
    "world_facts": "World facts",
    "gsm8k": "GSM8K",
    "mbpp": "MBPP",
    "humaneval": "HumanEval",
    "wmdp": "WMDP",
    "mmlu": "MMLU",
    "toxigen": "ToxiGen",
    "real_toxicity_prompts": "RealToxicityPrompts",
    "hellaswag": "HellaSwag",
    "truthfulqa_mc2": "TruthfulQA",
    "winogrande": "WinoGrande",
    "mathqa": "MathQA",
    "piqa": "PIQA",
    "pubmedqa": "PubMedQA",
}
TASK_FAMILIES = {
    "language": "Language",
    "hazard": "Hazard",
    "wmdp": "WMDP",
    "mmlu": "MMLU",
    "arc": "ARC",
    "toxigen": "ToxiGen",
}
"""First word of several tasks' names -> its meaning."""


def meaning(metric: str) -> Meaning:
    """Returns the explanation of a metric; one of a custom suite is shown under its own name."""
    if metric.endswith(RELATIVE):
        label = METRICS.get(metric.removesuffix(RELATIVE), Meaning(metric.removesuffix(RELATIVE), "")).label
        return Meaning(
            f"{label}, against a retain model",
            "How far the AUC lies from a retain model's, in percent of it: 0 is best.",
            "percent",
        )
    return METRICS.get(metric, Meaning(metric.replace("_", " "), "A score of a custom suite.", "plain"))


def task_label(task: str) -> str:
    if task in TASKS:
        return TASKS[task]
    family, _, rest = task.partition("_")
    if rest and family in TASK_FAMILIES:
        return f"{TASK_FAMILIES[family]}: {rest.replace('_', ' ')}"
    return task.replace("_", " ").capitalize()


def number(metric: str, value: float) -> str:
    """Formats a value for page, tables and figures, with a true minus sign."""
    style = meaning(metric).style
    if style == "effect":
        text = f"{value:.2f}"
    elif style == "share" or (style == "p" and (value >= 0.001 or value == 0)):
        text = f"{value:.3f}"
    elif style == "p":
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}·10{superscript(int(exponent))}"
    elif style == "percent":
        text = f"{value:.1f}"
    else:
        text = f"{value:.4g}"
    return plain_zero(text).replace("-", "−")


def plain_zero(text: str) -> str:
    """Replaces `-0.00`, a rounding artefact, by `0.00`."""
    return text.removeprefix("-") if text.startswith("-") and not text.strip("-0.") else text


def superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def interval(metric: str, low: float | None, high: float | None) -> str | None:
    """Formats an interval: `0.91–1.04`, or `−0.10 to 0.20` if a dash could be read as a minus sign."""
    if low is None or high is None:
        return None
    first, second = number(metric, low), number(metric, high)
    return f"{first} to {second}" if "−" in first + second else f"{first}–{second}"
