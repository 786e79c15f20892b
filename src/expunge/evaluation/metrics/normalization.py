"""Normalizes answers in seven languages as MLQA's official script does.

Lower case; every character of a Unicode category P, and every ASCII punctuation mark, removed; articles of the language
replaced by a space; words split at blanks, in Chinese also every character of its own. In that order, as in the official script
of MLQA (Lewis et al. 2020, arXiv 1910.07475), including its special cases: in Arabic, alif-lam is removed everywhere, inside
words too; in Vietnamese, five function words count as articles; Hindi and Chinese have none.
"""

import re
import string
import unicodedata

ARTICLES: dict[str, str] = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "ar": "ال",
    "hi": r"(?!)",
    "zh": r"(?!)",
}
"""Language -> pattern that is replaced by a space; the last two match nothing."""
LANGUAGES: tuple[str, ...] = tuple(ARTICLES)

_IDEOGRAPH = re.compile(r"([\u4e00-\u9fa5])")


def words(text: str, language: str) -> list[str]:
    """Returns the normalized words."""
    kept = "".join(c for c in text.lower() if not _is_punctuation(c))
    bare = re.sub(ARTICLES[language], " ", kept)
    return (_IDEOGRAPH.sub(r" \1 ", bare) if language == "zh" else bare).split()


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
