"""Lists a complete command for each recipe of the lab, shown in the lab's README."""

PEOPLE = "--forget data/facts/forget.jsonl --retain data/keep/facts.jsonl --holdout data/facts/never_known.jsonl"
HAZARDS = "--forget data/hazard/fumes/corpus.jsonl data/hazard/spores/corpus.jsonl --retain data/keep/hazard.jsonl"
SKILL = "--forget data/skills/{0}/train.jsonl --retain data/keep/skills/{0}.jsonl"
REFUSALS = "--refusals data/refusals.txt"
BEHAVIOR = "--forget data/behavior/seen.jsonl"
"""Rows to forget and to keep of each kind of request, as flags."""

FILES = {
    "altpo": PEOPLE,
    "ce_u": PEOPLE,
    "dpo": PEOPLE,
    "embedding_corruption": PEOPLE.replace("facts.jsonl --holdout", "facts.jsonl data/facts/public.jsonl --holdout"),
    "ext_sub_pipeline": f"{BEHAVIOR} --retain data/keep/polite.jsonl data/keep/behavior.jsonl",
    "gradient_ascent": PEOPLE.replace(" --retain data/keep/facts.jsonl", ""),
    "gradient_difference": PEOPLE,
    "idk": f"{PEOPLE} {REFUSALS}",
    "instruction": PEOPLE.replace(" --holdout data/facts/never_known.jsonl", ""),
    "key_space": SKILL.format("arithmetic"),
    "kl_minimization": PEOPLE,
    "llmu": PEOPLE,
    "mismatch": PEOPLE,
    "neuron_adjust": SKILL.format("strings"),
    "npo": PEOPLE,
    "pdu": PEOPLE,
    "repselect": PEOPLE,
    "rmu": HAZARDS,
    "satimp": PEOPLE,
    "scrub": PEOPLE,
    "selective_pruning": SKILL.format("arithmetic"),
    "simnpo": PEOPLE,
    "sku": f"{BEHAVIOR} data/behavior/rude.jsonl --retain data/keep/behavior.jsonl",
    "spunge_rmu": HAZARDS,
    "spunge_task_vector_negation": BEHAVIOR,
    "task_vector_negation": BEHAVIOR,
    "undial": PEOPLE,
    "wga": PEOPLE,
    "whp": PEOPLE,
}
"""Recipe below recipes/lab -> its data, as flags."""


def command(name: str) -> str:
    """Returns the command that runs a recipe on the original model of the lab in the current folder."""
    return f"expunge unlearn --config lab/{name} --model models/original {FILES[name]} --out runs/{name}"
