"""Reads published corpora: one module each, with its source and how its fields map to examples."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from expunge.data.corpora import (
    alpaca,
    arc,
    civil_comments,
    gsm8k,
    halueval,
    humaneval,
    mbpp,
    mmlu,
    muse,
    pku_saferlhf,
    real_toxicity_prompts,
    squad,
    tofu,
    toxigen,
    truthfulqa,
    wikitext,
    wmdp,
)
from expunge.data.example import Example
from expunge.errors import ExpungeError, nearest

CORPORA = {
    "tofu": tofu,
    "muse": muse,
    "wmdp": wmdp,
    "toxigen": toxigen,
    "civil_comments": civil_comments,
    "real_toxicity_prompts": real_toxicity_prompts,
    "wikitext": wikitext,
    "mmlu": mmlu,
    "arc": arc,
    "gsm8k": gsm8k,
    "mbpp": mbpp,
    "humaneval": humaneval,
    "squad": squad,
    "alpaca": alpaca,
    "pku_saferlhf": pku_saferlhf,
    "truthfulqa": truthfulqa,
    "halueval": halueval,
}
"""Name -> module, for all corpora."""

SETS = tuple(module.SETS for module in CORPORA.values() if hasattr(module, "SETS"))
"""Corpora whose sets are named as `HUB_ID:NAME` or `FOLDER:NAME`; set names are unique."""


def corpus_set(source: str | Path) -> Callable[[], tuple[Example, ...]] | None:
    """Returns the reader of the corpus set that `source` names; None for a file, a folder and any other hub id. Raises
    ExpungeError if a folder has no corpus with that set."""
    if isinstance(source, Path) or Path(source).exists():
        return None
    place, _, name = source.partition(":")
    for sets in SETS:
        if place in sets.hubs:
            return partial(sets.read, place, sets.get(place, name))
    folder, colon, name = source.rpartition(":")
    if not colon or not Path(folder).is_dir():
        return None
    exact = next((sets for sets in SETS if name in sets.names), None)
    if exact is not None:
        return partial(exact.read, folder, name)
    for sets in SETS:
        if (found := sets.named(name)) is not None:
            return partial(sets.read, folder, found)
    known = [name for sets in SETS for name in sets.names]
    raise ExpungeError(
        f"{folder} is a folder, and no corpus has a set '{name}'{nearest(name, known)}; give the path of a file, or one of "
        "the sets that `expunge.data.corpora` knows"
    )
