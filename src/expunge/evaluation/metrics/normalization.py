"""Answers in seven languages made comparable: MLQA's official normalization.

Lower case; every character of a Unicode category P, and every ASCII punctuation mark, removed; articles of the language
replaced by a space; words split at blanks, in Chinese also every character of its own. In that order, as in the official script
of MLQA (Lewis et al. 2020, arXiv 1910.07475), whose reading is kept where it surprises: in Arabic, alif-lam goes wherever it
stands, inside words too; in Vietnamese, five function words count as articles; Hindi and Chinese have none.
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
"""Language -> what is replaced by a space; the last two match nothing."""
LANGUAGES: tuple[str, ...] = tuple(ARTICLES)

_IDEOGRAPH = re.compile(r"([\u4e00-\u9fa5])")


def words(text: str, language: str) -> list[str]:
    """The words that are compared."""
    kept = "".join(c for c in text.lower() if not _is_punctuation(c))
    bare = re.sub(ARTICLES[language], " ", kept)
    return (_IDEOGRAPH.sub(r" \1 ", bare) if language == "zh" else bare).split()


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
