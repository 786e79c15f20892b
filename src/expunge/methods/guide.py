"""Which method for what: each method's purpose and weakness in plain words, and a first recommendation by what a person has.

Cost, formula and paper stand in the method's own file. `expunge methods` prints this; a method that is not here yet is listed by
its formula alone.
"""

from typing import NamedTuple


class Advice(NamedTuple):
    """What a method is for, and where it falls short."""

    purpose: str
    weakness: str


class Group(NamedTuple):
    """Methods that change a model in the same way."""

    title: str
    families: tuple[str, ...]
    explanation: str


START = (
    (
        "facts about people, works or events, and the weights",
        "gradient_difference, then npo or simnpo",
        "--retain with neighbours",
    ),
    ("a refusal instead of an answer", "idk or dpo", "the fact stays in the weights; say so"),
    ("a hazardous domain (texts, questions)", "rmu", "spunge around it where the domain has parts"),
    ("a skill or a language, weights must not change", "key_space (queries alike) or neuron_adjust", "a guard, not forgetting"),
    ("a skill, as a plain model without hooks", "selective_pruning", "check what else went with it"),
    (
        "a behaviour (rude, toxic, untruthful)",
        "task_vector_negation; ext_sub_pipeline or sku where listed",
        "one example set is enough",
    ),
    ("two adapters, good and bad behaviour", "expunge merge ext_sub", "seconds, no base model needed"),
    ("only an API and no weights", "nothing here", "`expunge evaluate` needs the model too"),
)
"""(what a person has, first method to try, what to know)."""

GROUPS = (
    Group("Train it away", ("training",), "Changes weights (or an adapter, with --lora) by gradient steps on the examples."),
    Group("In stages", ("composed",), "Several runs that become one artifact."),
    Group(
        "Edit the weights", ("editing",), "No training: arithmetic on weights or adapters, or pruning. Most are `expunge merge`."
    ),
    Group(
        "Guard the model", ("guarding",), "Weights stay as they are; hooks keep answers back. Whoever has the weights has it all."
    ),
)

ADVICE: dict[str, Advice] = {
    "gradient_ascent": Advice("a baseline: the simplest way to make answers improbable", "destroys the model within a few steps"),
    "gradient_difference": Advice(
        "facts, with data to keep: often nearest to a retrained model", "over-forgets when run too long"
    ),
    "kl_minimization": Advice("as gradient_difference, held to the start model's own answers", "over-forgets when run too long"),
    "npo": Advice("facts: a bounded loss that slows down by itself", "leaves traces that statistics still find"),
    "simnpo": Advice(
        "as npo, without reference values; fair to long and short answers", "leaves traces that statistics still find"
    ),
    "idk": Advice("a refusal in place of the answer", "the answer comes back once its beginning is given"),
    "dpo": Advice("prefers a refusal over the answer", "the answer comes back once its beginning is given"),
    "undial": Advice("facts, gently: lowers the answer's own logit step by step", "slow; may stop short"),
    "wga": Advice("facts: ascent that spends itself on what is still known", "sensitive to its weight beta"),
    "satimp": Advice("facts: weights tokens by how well and how surely they are known", "two weights to tune"),
    "ce_u": Advice("facts, without data to keep", "forgets neighbours too"),
    "rmu": Advice(
        "hazardous domains: scrambles what a layer makes of such texts", "answers become gibberish; relearned in few steps"
    ),
    "selective_pruning": Advice("a skill: silences the neurons that serve it most", "neurons are shared, so other skills suffer"),
    "neuron_adjust": Advice("a skill or language, at run time", "a guard: the weights still know it"),
    "key_space": Advice("a kind of query, at run time: refuses what falls into its box", "a guard; paraphrases may fall outside"),
    "task_vector_negation": Advice(
        "a behaviour or text style: learns it, then subtracts it", "one scale for everything; facts survive it"
    ),
    "spunge": Advice("a forget set of several parts: one run each, then merged", "as many runs as parts; disk for each"),
    "linear": Advice("the plain average of models", "averages forgetting away"),
    "task_arithmetic": Advice("adds or subtracts what models learned", "one scale for everything"),
    "ties": Advice("merges several models whose changes disagree", "drops small changes, which forgetting often is"),
    "dare_linear": Advice("merges after dropping most changes at random", "random; keep the seed"),
    "dare_ties": Advice("as dare_linear, with the vote of ties", "random; keep the seed"),
    "slerp": Advice("a point between two models", "exactly two models"),
    "breadcrumbs": Advice("merges without the largest and smallest changes", "two shares to tune"),
    "ext_sub": Advice(
        "a behaviour: subtracts only what the bad adapter does beyond the good one", "wants adapters of clear contrast"
    ),
    "ext_sub_pipeline": Advice("as ext_sub, from the examples: trains both adapters first", "two fine-tunings"),
    "sku": Advice("harmful answers: learns them with distortion, then subtracts", "makes a harmful model on the way"),
    "adapter_subtraction": Advice("one adapter minus another, as they stand", "takes shared abilities away too"),
    "adapter_addition": Advice("one adapter plus another", "adds; it forgets nothing by itself"),
    "ethos": Advice("subtracts only along directions the base hardly uses", "needs the base; a cut-off to choose"),
}
