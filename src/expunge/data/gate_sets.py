"""Builds the sets of prompts that the gates of ECO are trained on, to forget and to keep, as the paper's code does.

    mmlu_gate        questions of the subjects to forget (their five worked examples each) against those of all other subjects
                     and 8 times as many further questions
    wmdp_gate        questions like those of WMDP, which is not trained on itself, against half of 2,400 further questions and
                     MMLU's worked examples
    title_gate       titles of articles to forget against titles of others, without those that are not ASCII
    sentence_gate    sentences of a book to forget against a share of the sentences of others

TOFU needs none: its gates are trained on the questions of forgetNN and retainMM. Draws are by Python's generator with a seed; the
released code draws by NumPy's, so that single rows differ. Source: Liu et al. 2024, arXiv 2406.07933, and its code.
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from expunge.data.corpora.mmlu import SUBJECTS, SUBSETS, ask, read_mmlu
from expunge.data.example import Example
from expunge.errors import ExpungeError

SEED = 42
TOPICS = ("economics", "law", "physics")
SENTENCE = re.compile(r"[^.!?]+[.!?]+[\"'”’)]*|[^.!?]+$")


class GateSet(NamedTuple):
    """Examples whose prompts train a gate."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]


def mmlu_gate(source: str | Path, topic: str, more: Sequence[Example], seed: int = SEED) -> GateSet:
    """Builds the set of one of MMLU's three topics: economics, law, physics.

    source   MMLU, for the worked examples (dev)
    more     further questions (MMLU's auxiliary_train); 8 times the forget set are drawn without replacement

    Raises ExpungeError for another topic, and if there are too few further questions.
    """
    if topic not in TOPICS:
        raise ExpungeError(f"there is no gate for the topic '{topic}'; there is one for {', '.join(TOPICS)}")
    mine = SUBSETS[topic]
    forget = [ask(question) for subject in mine for question in read_mmlu(source, subject, "dev")]
    others = [ask(question) for subject in SUBJECTS if subject not in mine for question in read_mmlu(source, subject, "dev")]
    count = 8 * len(forget)
    if len(more) < count:
        raise ExpungeError(f"{len(more)} further questions are too few; {count} are drawn, 8 for each to forget")
    return GateSet(tuple(forget), (*others, *random.Random(seed).sample(list(more), count)))


def wmdp_gate(like: Sequence[Example], source: str | Path, more: Sequence[Example], seed: int = SEED) -> GateSet:
    """Builds the set of WMDP.

    like     questions about the same (300 synthetic ones in the paper: 100 for each domain), as prompts
    source   MMLU, for the worked examples (dev) of all subjects
    more     further questions, from which 8 for each of `like` are drawn with replacement; half of everything is kept apart
    """
    draw = random.Random(seed)
    dev = [ask(question) for subject in SUBJECTS for question in read_mmlu(source, subject, "dev")]
    pool = [*(draw.choice(more) for _ in range(8 * len(like))), *dev] if more else dev
    draw.shuffle(pool)
    return GateSet(tuple(like), tuple(pool[: len(pool) // 2]))


def title_gate(forget: Sequence[Example], others: Sequence[Example]) -> GateSet:
    """Builds the set of news articles from examples with the title as prompt; titles end at the first ` - `."""
    kept = [_titled(example) for example in others]
    return GateSet(tuple(map(_titled, forget)), tuple(e for e in kept if e.prompt and e.prompt.isascii()))


def sentence_gate(book: str, others: Sequence[str], share: float = 0.1, seed: int = SEED) -> GateSet:
    """Builds the set of a book from its text and those of others: sentences of more than 10 characters; of the others a share.

    Raises ExpungeError if no sentence is left on either side.
    """
    forget = _sentences(book)
    pool = [sentence for text in others for sentence in _sentences(text)]
    kept = random.Random(seed).sample(pool, round(share * len(pool)))
    if not forget or not kept:
        raise ExpungeError(f"{len(forget)} sentences to forget and {len(kept)} to keep are too few for a gate; give more text")
    return GateSet(tuple(Example(None, text) for text in forget), tuple(Example(None, text) for text in kept))


def _titled(example: Example) -> Example:
    title = (example.prompt or "").split(" - ")[0].strip()
    return Example(title, example.response)


def _sentences(text: str) -> list[str]:
    found = [part.strip() for part in SENTENCE.findall(" ".join(text.split()))]
    return [part for part in found if len(part) > 10]
