"""Positions, embeddings and end tokens are read in one place, wherever a configuration keeps them."""

from collections.abc import Callable

import pytest
from transformers import LlamaForCausalLM, PreTrainedModel

from expunge.errors import ExpungeError
from expunge.models.limits import check_embedded, embedded, end_tokens, padding, positions, room


@pytest.mark.parametrize(("model_type", "expected"), [("gemma3", 128), ("gpt2", 128), ("llama", 128), ("bloom", None)])
def test_positions_are_those_of_the_part_that_reads_text(
    model_of: Callable[..., PreTrainedModel], model_type: str, expected: int | None
) -> None:
    assert positions(model_of(model_type)) == expected
    assert room(model_of(model_type)) == (expected or 2048)


def test_end_tokens_are_those_of_all_configurations_one_or_a_list(pico_llama: LlamaForCausalLM) -> None:
    pico_llama.generation_config.eos_token_id = [7, 9]
    pico_llama.config.eos_token_id = 11
    assert end_tokens(pico_llama, (2,)) == (2, 7, 9, 11)
    pico_llama.generation_config.eos_token_id = None
    assert end_tokens(pico_llama, ()) == (11,)


def test_a_token_beyond_the_embeddings_is_a_sentence_and_padding_there_is_replaced(pico_llama: LlamaForCausalLM) -> None:
    words = embedded(pico_llama)
    check_embedded(pico_llama, [(1, words - 1), ()])
    with pytest.raises(ExpungeError, match=rf"token id {words}, and the model has embeddings for the ids 0 to {words - 1}"):
        check_embedded(pico_llama, [(1, words)])
    assert (padding(pico_llama, words), padding(pico_llama, 3)) == (0, 3)
