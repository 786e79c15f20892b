"""Builds a tokenizer with one token for each word of the world, so that each fact is carried by known tokens."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from expunge.data.format import Format

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
"""The ids 0 to 3."""
FORMAT = Format(kind="plain", template="{prompt} {response}")
"""Text format of a lab's models: the question, the answer, the end token."""


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Builds a tokenizer with the vocabulary SPECIAL and `words`, in order; it puts <s> before a text and knows no other
    words."""
    ids = {word: i for i, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
