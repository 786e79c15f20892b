"""Generates alternative answers with the model itself, for methods that train it to prefer them to the true ones."""

from collections.abc import Sequence
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from expunge.data.encode import Encoder
from expunge.evaluation.generate import sample, text_of, writing, written
from expunge.evaluation.nucleus import Ids, Nucleus
from expunge.methods.training.base import Asking


def draw_answers(model: nn.Module, encoder: Encoder, prompts: Sequence[str], asking: Asking, seed: int) -> list[tuple[str, ...]]:
    """Samples `asking.draws` answers to each prompt, cut at the first stop text and stripped; they may be empty.

    The draws of a prompt depend only on the model, the prompt and the seed. Raises ExpungeError if the model's logits are not
    numbers.
    """
    nucleus = Nucleus(top_p=1.0, temperature=asking.temperature, seed=seed)
    how = writing(cast(PreTrainedModel, model), encoder, asking.max_new_tokens)
    drawn = sample(model, encoder.encode_prompts(prompts), nucleus, asking.draws, **how)
    return [tuple(_text(encoder, ids, asking.stops) for ids in written(several)) for several in drawn]


def _text(encoder: Encoder, ids: Ids, stops: Sequence[str]) -> str:
    text = text_of(encoder.tokenizer, ids)
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()
