"""Learns which names make a prompt a mention: what the forget prompts are about, and no retain prompt names.

Of the names in a prompt that one counts which most prompts have, so that a title or a place beside a person does not. A name that
a retain prompt has is left out, and so is a part of a name that stands by itself in a retain prompt, or is an ordinary word. The
retain prompts that decide this are those that the gate is trained on, so that calibration prompts are as likely as fresh ones to
have a mention. Fewer mentions are taken where more than half of the allowed rate of fresh retain prompts would have one; their
share is estimated by that of retain prompts which alone keep a name from being a mention (Good 1953).
"""

from collections import Counter
from collections.abc import Sequence

from expunge.data.example import Example
from expunge.guarding.embedding_corruption.canonical import canonical
from expunge.guarding.embedding_corruption.kinds import Level
from expunge.guarding.embedding_corruption.mentions import Mentions, Name, has, words_of
from expunge.guarding.embedding_corruption.selection import own_entities
from expunge.guarding.embedding_corruption.spelling import SHORTEST, WORD, Spelling
from expunge.guarding.embedding_corruption.training_set import prompt_of, prompts_of

REPEATED = 2
"""Forget prompts that a name has to be the subject of."""


def learned(
    level: Level,
    forget: Sequence[Example],
    retain: Sequence[Example],
    general: Sequence[str],
    rate: float,
    spelling: Spelling | None = None,
) -> Mentions:
    """Returns the mentions of a request.

    retain, general   prompts that the gate is trained on, and those alone
    rate              share of retain prompts that may be flagged
    """
    if level == "none":
        return Mentions(())
    kept = [*(canonical(text, folded=False) for text in (*prompts_of(retain), *general))]
    ordinary = {word for e in (*forget, *retain) for word in _lower_words(f"{e.prompt or ''}\n{e.response}")}
    ordinary |= {word for text in general for word in _lower_words(text)}
    asked = [{words_of(name) for name in own_entities([e], ())} - {()} for e in {prompt_of(e): e for e in forget}.values()]
    taken, risk = _kept(Mentions({name for names in asked for name in names}), kept)
    names = _subjects([names - taken for names in asked])
    if risk > rate / 2 or not names:
        return Mentions(())
    named = set().union(*asked)
    others = {word for e in retain for name in own_entities([e], ()) if words_of(name) not in named for word in words_of(name)}
    others -= ordinary
    whole = Mentions(names, (), others, ordinary, spelling)
    parts = {word for name in names if len(name) > 1 for word in name if len(word) >= SHORTEST} - ordinary
    bare, risk = _kept(Mentions(names, parts, others, ordinary), kept)
    if level == "names" or risk > rate / 2:
        return whole
    return Mentions(names, parts - {name[0] for name in bare}, others, ordinary, spelling)


def _subjects(asked: Sequence[set[Name]]) -> set[Name]:
    """Returns what the prompts are about: of the names in a prompt the one that most prompts have, if it is that of two prompts
    and of more than half of those that have it."""
    count = Counter(name for names in asked for name in names)
    votes = Counter(max(names, key=lambda name: (count[name], name)) for names in asked if names)
    found = {name for name, number in votes.items() if number >= REPEATED and 2 * number > count[name]}
    return {name for name in found if not any(other != name and has(name, other) for other in found)}


def _kept(mentions: Mentions, prompts: Sequence[str]) -> tuple[set[Name], float]:
    """Returns the names that retain prompts have, and the share of prompts that alone have one."""
    having: dict[Name, set[int]] = {}
    for i, text in enumerate(prompts):
        for name in mentions.of(text):
            having.setdefault(name, set()).add(i)
    alone = {min(which) for which in having.values() if len(which) == 1}
    return {*having}, len(alone) / max(1, len(prompts))


def _lower_words(text: str) -> list[str]:
    """Returns the words that begin with a lower-case letter."""
    return [word for word in WORD.findall(canonical(text, folded=False)) if word[0].islower()]
