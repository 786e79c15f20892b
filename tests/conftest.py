"""Shared fixtures: pico models made from configurations, and the folder of real data."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)

WORDS = (
    "what who where is was the a an of in to from with and or not my your his her born city river name job color pet food "
    "anna boris clara dario elena fyodor greta hugo irma jonas berlin paris tokyo lima cairo oslo quito delhi accra minsk "
    "red green blue black white cat dog horse bird fish baker pilot tailor nurse judge plus minus one two three four five six "
    "seven eight nine ten question: answer: i do know that . , ? ! :"
).split()


@pytest.fixture(scope="session")
def words() -> list[str]:
    return list(WORDS)


def make_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_llama(seed: int = 0, layers: int = 2, width: int = 32) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 4, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, dtype="float32", initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def pico_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def pico_llama() -> LlamaForCausalLM:
    return make_llama()


@pytest.fixture(scope="session")
def pico_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pico") / "model"
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real benchmark data, named by EXPUNGE_DATA."""
    if not os.environ.get("EXPUNGE_DATA"):
        pytest.skip("EXPUNGE_DATA is not set: no real data to read")
    return Path(os.environ["EXPUNGE_DATA"]).resolve()
