"""Corpora of the field: one module each, with where it comes from and how its fields become examples."""

from expunge.data.corpora import arc, gsm8k, humaneval, mbpp, mmlu, squad, tofu, wmdp

CORPORA = {
    "tofu": tofu,
    "wmdp": wmdp,
    "mmlu": mmlu,
    "arc": arc,
    "gsm8k": gsm8k,
    "mbpp": mbpp,
    "humaneval": humaneval,
    "squad": squad,
}
"""Name -> module: the closed list."""
