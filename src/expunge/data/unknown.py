"""Finds texts with words that a tokenizer does not know and replaces by its unknown token.

Such a text is read as another one, and the model cannot write an answer with such a word: data of another tokenizer, or in
another script, would be learned and scored as unknown tokens. Most tokenizers of today know every byte.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from expunge.data.example import Request
from expunge.errors import ExpungeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def unknown_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Returns the id of the token that stands for any unknown word; None if the tokenizer gives none: it knows all bytes."""
    found = tokenizer.unk_token_id
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "byte_fallback", False) or getattr(model, "unk_token", "") is None:
        return None
    return None if found == tokenizer.eos_token_id else found


def unknown_counts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[tuple[int, int]]:
    """Returns for each text how many of its tokens are unknown, and of how many."""
    unknown = unknown_id(tokenizer)
    if unknown is None or not texts:
        return [(0, 1)] * len(texts)
    rows = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [(sum(token == unknown for token in row), len(row)) for row in rows]


def say_unknown(request: Request, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Describes in how many rows of a request the tokenizer does not know all words, for the card and as a warning; "" if none.

    Raises ExpungeError if it does not know more than half of the words of the answers to forget.
    """
    said = []
    for name, examples in (("forget", request.forget), ("retain", request.retain)):
        answers = unknown_counts(tokenizer, [example.response for example in examples])
        asked = unknown_counts(tokenizer, [example.prompt or "" for example in examples])
        if not (rows := sum(in_answer[0] + in_prompt[0] > 0 for in_answer, in_prompt in zip(answers, asked, strict=True))):
            continue
        share = sum(lost for lost, _ in answers) / max(1, sum(whole for _, whole in answers))
        said.append(
            f"{rows} of {len(examples)} {name} rows have words that the tokenizer does not know, {share:.0%} of all answers"
        )
        if name == "forget" and share > 0.5:
            raise ExpungeError(
                f"{said[-1]}: the model reads {tokenizer.unk_token} for them, so that what is to be forgotten would not be read; "
                "take the model and the tokenizer that the data was made for"
            )
    if not said:
        return ""
    sentence = f"{'; '.join(said)}; each is read as {tokenizer.unk_token}."
    warnings.warn(sentence, UserWarning, stacklevel=2)
    return sentence
