"""Finds texts that hold a control token of the tokenizer, such as `</s>` or `<|im_end|>`, written out.

A tokenizer reads it as that token and not as text: an answer ends in its middle, where generation stops and scoring goes on; a
prompt has a turn of a chat that nobody took. What the model writes is shown without such tokens.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from expunge.data.encode import Encoder
from expunge.data.example import Example, Request
from expunge.errors import ExpungeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[str]:
    """Returns the tokens that the tokenizer reads where they are written out in a text. The one for unknown words is none of
    them: it stands for a word."""
    if getattr(tokenizer, "split_special_tokens", False):
        return frozenset()
    return frozenset(token.content for token in tokenizer.added_tokens_decoder.values() if token.special) - {
        tokenizer.unk_token,
        "",
    }


def format_tokens(encoder: Encoder) -> frozenset[str]:
    """Returns the control tokens with which the format begins and ends texts, prompts and answers."""
    trial = encoder.encode(Example("a", "The"))
    written = encoder.tokenizer.convert_ids_to_tokens([*trial.ids, encoder.eos_id, encoder.end_id])
    return control_tokens(encoder.tokenizer) & frozenset(written)


def held(tokens: frozenset[str], texts: Sequence[str]) -> list[str | None]:
    """Returns the first of the tokens in each text, or None."""
    if not tokens:
        return [None] * len(texts)
    found = (_pattern(tokens).search(text) for text in texts)
    return [None if match is None else match[0] for match in found]


def check_control(request: Request, encoder: Encoder) -> str:
    """Describes in how many rows of a request control tokens are written out, for the card and as a warning; "" if in none.

    Raises ExpungeError for prompts and answers with tokens of the format. In raw texts they may separate documents.
    """
    of_format, every = format_tokens(encoder), control_tokens(encoder.tokenizer)
    said = []
    for name, examples in (("forget", request.forget), ("retain", request.retain), ("holdout", request.holdout)):
        asked = [example for example in examples if example.prompt is not None]
        if refused := _rows(of_format, asked):
            example, token = refused[0]
            raise ExpungeError(
                f"{len(refused)} of {len(examples)} {name} rows hold {token} (the first is {example.place or example.id}), which "
                "the tokenizer reads as the end or the beginning of a turn and not as text; take it out of the data, since the "
                "format adds what a row needs"
            )
        if rows := _rows(every, examples):
            said.append(f"{len(rows)} of {len(examples)} {name} rows hold {rows[0][1]}")
    if not said:
        return ""
    sentence = f"{'; '.join(said)}, which the tokenizer reads as a control token and not as text."
    warnings.warn(sentence, UserWarning, stacklevel=2)
    return sentence


def warn_of_control(tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example], what: str) -> None:
    """Warns, with counts, if texts to be asked or compared hold control tokens; `what` names them."""
    if rows := _rows(control_tokens(tokenizer), examples):
        warnings.warn(
            f"{len(rows)} of {len(examples)} {what} hold {rows[0][1]}, which the tokenizer reads as a control token and not as "
            "text",
            UserWarning,
            stacklevel=2,
        )


def _rows(tokens: frozenset[str], examples: Iterable[Example]) -> list[tuple[Example, str]]:
    """Returns the examples that hold one of the tokens in a text, each with the first."""
    rows = []
    for example in examples:
        texts = [example.prompt or "", example.response, *example.paraphrases, *example.perturbed, *example.choices]
        if (token := next(filter(None, held(tokens, texts)), None)) is not None:
            rows.append((example, token))
    return rows


@lru_cache
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
