"""Encodes prompts and answers as tasks need them, each once, and notes what was cut off."""

from collections.abc import Callable, Sequence

from expunge.data.control import control_tokens, held
from expunge.data.encode import Encoded, Encoder, fitted
from expunge.data.example import Example
from expunge.data.unknown import unknown_counts, unknown_id
from expunge.evaluation.metrics.base import Need
from expunge.evaluation.nucleus import Ids

Pair = tuple[str | None, str]
"""A prompt and a possible answer."""


class Texts:
    """The texts of any number of tasks as tokens, in one format. Nothing here depends on a model or a guard."""

    def __init__(self, encoder: Encoder, *, room: int | None = None) -> None:
        """room: for verbatim tasks, the number of tokens that the model takes; longer prompts lose their beginning."""
        self.encoder, self.room = encoder, room
        self._encoded: dict[Pair, Encoded] = {}
        self._prompts: dict[tuple[str, int], Ids] = {}
        self.cut: set[str] = set()
        """Prompts (texts, where there is none) that lost their beginning."""
        self._short: set[Pair] = set()
        """Answers that lost their end."""
        self._knows_all = unknown_id(encoder.tokenizer) is None
        self._unknown: dict[str, bool] = {}
        self._control = control_tokens(encoder.tokenizer)
        self._holds: dict[str, bool] = {}

    def known(self, pair: Pair) -> Encoded | None:
        """Returns the tokens of a pair that `encode` was asked for before."""
        return self._encoded.get(pair)

    def is_short(self, pairs: Sequence[Pair]) -> bool:
        """Returns whether one of these answers lost its end."""
        return not self._short.isdisjoint(pairs)

    def unknown(self, asked: Sequence[tuple[Example, frozenset[Need]]]) -> list[frozenset[Need]]:
        """Returns for each example which of its needs concern words that the tokenizer does not know: in the prompt, or in what a
        metric with this need reads or compares with."""
        if self._knows_all:
            return [frozenset()] * len(asked)
        tokenizer = self.encoder.tokenizer
        return _needs(asked, self._unknown, lambda new: [lost > 0 for lost, _ in unknown_counts(tokenizer, new)])

    def control(self, asked: Sequence[tuple[Example, frozenset[Need]]]) -> list[frozenset[Need]]:
        """Returns for each example which of its needs concern control tokens that are written out in a text."""
        return _needs(asked, self._holds, lambda new: [token is not None for token in held(self._control, new)])

    def is_cut(self, example: Example) -> bool:
        """Returns whether the example's prompt, or its text, lost its beginning."""
        return whole(example.prompt, example.response) in self.cut

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """Returns the tokens of prompts with their answers."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._encoded]
        encoded = self.encoder.encode_answers(new)
        self._short |= {pair for row, pair in zip(encoded, new, strict=True) if row.truncated}
        fitting = [self._fitted(row, self.room, whole(*pair)) for row, pair in zip(encoded, new, strict=True)]
        self._encoded |= zip(new, fitting, strict=True)
        return [self._encoded[pair] for pair in pairs]

    def choices(self, examples: Sequence[Example]) -> list[list[Encoded]]:
        """Returns the tokens of each example's choices, without their end token, since choices are compared as texts."""
        # The last token of a sequence is a label and not read, so one more than the room fits in (as in lm-eval).
        room = self.room + 1 if self.room is not None else None
        pairs = [pair for example in examples for pair in pairs_of(example, "choices")]
        rows = self.encoder.encode_answers(pairs)
        self._short |= {pair for row, pair in zip(rows, pairs, strict=True) if row.truncated}
        encoded = iter(rows)
        return [[self._fitted(_bare(next(encoded)), room, whole(e.prompt, e.response)) for _ in e.choices] for e in examples]

    def prompts(self, prompts: Sequence[str], max_new_tokens: int) -> list[Ids]:
        """Returns the tokens of prompts to generate so many tokens from."""
        new = [prompt for prompt in dict.fromkeys(prompts) if (prompt, max_new_tokens) not in self._prompts]
        if self.room is None:
            found = self.encoder.encode_prompts(new)
        else:
            rows = self.encoder.encode_answers([(None, prompt) for prompt in new])
            found = [self._fitted(row, self.room - max_new_tokens, text).ids for row, text in zip(rows, new, strict=True)]
        self._prompts |= {(prompt, max_new_tokens): ids for prompt, ids in zip(new, found, strict=True)}
        return [self._prompts[prompt, max_new_tokens] for prompt in prompts]

    def _fitted(self, row: Encoded, room: int | None, prompt: str) -> Encoded:
        """Returns the end of a row that is too long."""
        if room is None or len(row.ids) <= room:
            return row
        self.cut.add(prompt)
        return fitted(row, room)


def whole(prompt: str | None, response: str) -> str:
    """Returns the text that is cut off at its beginning, if one is."""
    return response if prompt is None else prompt


def pairs_of(example: Example, need: Need) -> list[Pair]:
    """Returns the prompt with each text that a metric with this need reads."""
    texts: dict[Need, tuple[str, ...]] = {
        "answer": (example.response,),
        "paraphrases": example.paraphrases,
        "perturbed": example.perturbed,
        "choices": example.choices,
        "generated": (),
        "sampled": (),
        "distribution": (example.response,),
        "gradient": (example.response,),
        "gradient_without_last": (example.response,),
    }
    return [(example.prompt, text) for text in texts[need]]


def _needs(
    asked: Sequence[tuple[Example, frozenset[Need]]], found: dict[str, bool], find: Callable[[Sequence[str]], list[bool]]
) -> list[frozenset[Need]]:
    """Returns for each example the needs with a text that `find` finds; what is found of a text is kept in `found`."""
    read = [{need: _read(example, need) for need in needs} for example, needs in asked]
    texts = dict.fromkeys(text for row in read for several in row.values() for text in several)
    new = [text for text in texts if text not in found]
    found |= zip(new, find(new), strict=True)
    return [frozenset(need for need, several in row.items() if any(found[text] for text in several)) for row in read]


def _read(example: Example, need: Need) -> list[str]:
    """Returns the texts that a metric with this need reads, or compares what was written with."""
    pairs = pairs_of(example, need) or [(example.prompt, example.response)]
    return [text for pair in pairs for text in pair if text is not None]


def _bare(row: Encoded) -> Encoded:
    return row._replace(ids=row.ids[:-1], has_end=False) if row.has_end else row
