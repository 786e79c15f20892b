"""Reduces English words to Porter stems, in the variant of nltk that ROUGE scores are published with.

nltk itself takes over a second to import, for this one function. `tests/evaluation/test_rouge.py` compares every stem with it.
Source: Porter 1980, "An algorithm for suffix stripping". A step looks at the longest part of a word before a suffix; its measure
m counts the sequences of vowels that are followed by consonants. nltk's variant differs by some irregular words, by endings such
as -ied and -logy, and by the words of two letters that count as short.
"""

from collections.abc import Callable
from functools import cache

Rule = tuple[str, str, Callable[[str], bool]]
"""Suffix, what replaces it, and what must hold for the part before it. The first rule whose suffix fits decides."""

IRREGULAR = {
    "skies": "sky",
    "sky": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "news": "news",
    "innings": "inning",
    "inning": "inning",
    "outings": "outing",
    "outing": "outing",
    "cannings": "canning",
    "canning": "canning",
    "howe": "howe",
    "proceed": "proceed",
    "exceed": "exceed",
    "succeed": "succeed",
}


@cache
def stem(word: str) -> str:
    """Returns the stem of a word of lower-case letters and digits."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _final_y(_past(_plural(word)))
    while word.endswith("alli") and _some(word[:-4]):
        word = word[:-2]  # -ally, and then what stands before it: -ationally
    for step in (_DOUBLE_SUFFIXES, _SINGLE_SUFFIXES, _LAST_SUFFIXES):
        word = _changed(word, step)
    return _final_l(_final_e(word))


def _consonants(part: str) -> str:
    """Spells a word with c for consonants and v for vowels; y is a vowel behind a consonant."""
    kinds = ""
    for i, letter in enumerate(part):
        vowel = letter in "aeiou" or (letter == "y" and i > 0 and kinds[-1] == "c")
        kinds += "v" if vowel else "c"
    return kinds


def _measure(part: str) -> int:
    return _consonants(part).count("vc")


def _some(part: str) -> bool:
    return _measure(part) > 0


def _several(part: str) -> bool:
    return _measure(part) > 1


def _short(part: str) -> bool:
    """Returns whether a word ends like `hop`: consonant, vowel, consonant (not w, x or y), or is like `at`."""
    kinds = _consonants(part)
    return (kinds.endswith("cvc") and part[-1] not in "wxy") or kinds == "vc"


def _changed(word: str, rules: tuple[Rule, ...]) -> str:
    for suffix, new, holds in rules:
        if word.endswith(suffix):
            part = word.removesuffix(suffix)
            return part + new if holds(part) else word
    return word


def _plural(word: str) -> str:
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past(word: str) -> str:
    """Step 1b: -ed and -ing, and what has to be put back after them (hoping: hope, hopping: hop)."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _some(word[:-3]) else word
    part = word.removesuffix("ed") if word.endswith("ed") else word.removesuffix("ing")
    if part == word or "v" not in (kinds := _consonants(part)):
        return word
    if part.endswith(("at", "bl", "iz")):
        return part + "e"
    if len(part) > 1 and part[-1] == part[-2] and kinds[-1] == "c":
        return part if part[-1] in "lsz" else part[:-1]
    return part + "e" if _measure(part) == 1 and _short(part) else part


def _final_y(word: str) -> str:
    return word[:-1] + "i" if word.endswith("y") and len(word) > 2 and _consonants(word[:-1])[-1] == "c" else word


def _final_e(word: str) -> str:
    part = word.removesuffix("e")
    return part if part != word and (_several(part) or (_some(part) and not _short(part))) else word


def _final_l(word: str) -> str:
    return word[:-1] if word.endswith("ll") and _several(word[:-1]) else word


def _rules(endings: str, holds: Callable[[str], bool]) -> tuple[Rule, ...]:
    pairs = (ending.split("=") for ending in endings.split())
    return tuple((suffix, new, holds) for suffix, new in pairs)


_DOUBLE_SUFFIXES = (
    *_rules("ational=ate tional=tion enci=ence anci=ance izer=ize bli=ble alli=al entli=ent eli=e ousli=ous", _some),
    *_rules("ization=ize ation=ate ator=ate alism=al iveness=ive fulness=ful ousness=ous aliti=al iviti=ive", _some),
    *_rules("biliti=ble fulli=ful", _some),
    ("logi", "log", lambda part: _some(part + "l")),
)
_SINGLE_SUFFIXES = _rules("icate=ic ative= alize=al iciti=ic ical=ic ful= ness=", _some)
_LAST_SUFFIXES = (
    *_rules("al= ance= ence= er= ic= able= ible= ant= ement= ment= ent=", _several),
    ("ion", "", lambda part: _several(part) and part[-1] in "st"),
    *_rules("ou= ism= ate= iti= ous= ive= ize=", _several),
)
