"""What the checks of gpu.py run on: models made from configurations, a tokenizer of plain words, rows of random words."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", ".", "?", *["I", "cannot", "answer", "that.", "i", "do", "not", "know", "sorry"]]
WORDS = [*SPECIAL, *(f"w{i}" for i in range(240))]

SHAPES: dict[str, dict[str, int]] = {
    "pico": {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2},
    "1B": {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8},
    "8B": {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8},
}  # fmt: skip
"""pico for agreement; 1B and 8B have the shapes of Llama 3.2 1B and Llama 3.1 8B."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_model(shape: str, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """Random weights, the same for a shape and device each time; made where they will be."""
    torch.manual_seed(0)
    tied = shape == "1B"
    config = LlamaConfig(
        **SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=tied, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        initializer_range=0.2 if shape == "pico" else 0.02, dtype=dtype,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def write_rows(path: Path, count: int, prompt: int, answer: int, seed: int) -> Path:
    """So many rows of random words; lengths vary by half where they are short."""
    g = torch.Generator().manual_seed(seed)

    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in torch.randint(0, 240, (count,), generator=g).tolist())

    def length(most: int) -> int:
        return most if most > 16 else int(torch.randint(max(1, most // 2), most + 1, (), generator=g))

    rows = [{"prompt": f"{words(length(prompt))} ?", "response": words(length(answer))} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
