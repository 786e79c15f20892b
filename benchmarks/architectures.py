"""Lists which optimizations of the evaluation each causal-LM architecture of transformers gets, measured on pico models.

    python benchmarks/architectures.py [docs/architectures.md] [--only TYPE,TYPE ...]

Every model type that transformers registers for causal language modeling is built from its configuration, made small, with random
weights. `shortcuts_of` decides as it does for real models; then answers to questions with shared prompts are scored as a suite
does, and compared with one plain pass per answer, and greedy answers of a batch with those of each prompt alone. With a file, the
table is written between its marks; with --only, the rows of these types take the place of theirs, and the others stay. About ten
minutes of one core for all.
"""

import argparse
import inspect
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from expunge.data.encode import Encoded
from expunge.evaluation.generate import generate
from expunge.evaluation.multiple_choice import score_answers
from expunge.evaluation.shortcuts import Shortcuts, shortcuts_of

WORDS = 96
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 4),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), 4
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "n_inner"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "n_ctx"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    "vocab_size": WORDS,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "qk_head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 6,
    "use_cache": True,
    "is_decoder": True,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "state_size": 8,
    "attention_hidden_size": 32,
    "lru_width": 32,
    "first_k_dense_replace": 1,
    "pad_vocab_size_multiple": 1,
    "n_groups": 1,
    "image_size": 8,
    "patch_size": 4,
    "dtype": "float32",
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": WORDS,
}
"""Sizes by the names that configurations give them."""
LATENT: dict[str, Any] = {"num_key_value_heads": 4}
"""Attention over compressed keys and values has as many heads of both."""
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "minicpm3", "youtu"), LATENT),
    "bamba": {"attn_layer_indices": [1, 3], "attn_rotary_emb": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 64,
        "head_dim": 16,
    },
    "zamba2": {"layer_types": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
    "zaya": {"num_experts_per_tok": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 6},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
}
"""What single types need beside."""
MOST = 20_000_000
"""Weights of a model that still counts as small."""
SECONDS = 90
START, END = "<!-- architectures -->", "<!-- /architectures -->"


class Line(NamedTuple):
    """What was found for one model type."""

    model_type: str
    found: Shortcuts | None = None
    off: float = 0.0
    """Largest difference of an answer's log-probability from that of a plain pass, in nats."""
    texts: bool = False
    """Whether every greedy answer of a batch is the one that its prompt gets alone."""
    reason: str = ""
    """Why there is no model of this type here."""


def small_config(cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The configuration of a pico model, with those of its parts."""
    parts = {
        name: small_config(part).to_dict()
        for name, part in getattr(cls, "sub_configs", {}).items()
        if inspect.isclass(part) and part is not cls and hasattr(part, "model_type") and part.__name__ != "AutoConfig"
    }
    known = set(inspect.signature(cls.__init__).parameters) | set(getattr(cls, "__annotations__", {}))
    for base in cls.__mro__:
        known |= set(getattr(base, "__annotations__", {}))
    values = {name: value for name, value in SMALL.items() if name in known or name in cls.attribute_map}
    return cls(**{**values, **OWN.get(cls.model_type, {})}, **parts)


def small_model(model_type: str) -> PreTrainedModel:
    """A model of this type with random weights, biases and norms moved off 0 and 1. Raises where it is not small."""
    config = small_config(CONFIG_MAPPING[model_type])
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if count > MOST:
        raise ValueError(f"the configuration stays large ({count / 1e6:.0f} million weights)")
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def questions() -> list[list[Encoded]]:
    """Six questions of several lengths with three answers each."""
    made = []
    for q in range(6):
        prompt = (1, *(3 + (q * 13 + i * 7) % (WORDS - 3) for i in range(3 + 4 * (q % 3))))
        ends = [tuple(3 + (q * 5 + a * 17 + i * 11) % (WORDS - 3) for i in range(1 + a)) for a in range(3)]
        made.append([Encoded((*prompt, *end), len(prompt), False) for end in ends])
    return made


@torch.no_grad()
def plain_score(model: PreTrainedModel, row: Encoded) -> float:
    """The answer's log-probability by a pass over this row alone, without a cache."""
    logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].float().log_softmax(-1)
    return sum(float(logits[t - 1, row.ids[t]]) for t in range(row.answer_start, len(row.ids)))


def measure(model_type: str) -> Line:
    """Builds and measures one type; whatever goes wrong becomes the reason."""
    try:
        with time_limit():
            model = small_model(model_type)
            plain = [[plain_score(model, row) for row in answers] for answers in questions()]
    except Exception as error:  # an architecture may need what is not installed, or sizes that fit together otherwise
        return Line(model_type, reason=short(error))
    try:
        with time_limit():
            found = shortcuts_of(model)
            scored = score_answers(model, questions(), 0, max_tokens=512, max_rows=4)
            pairs = [
                (float(stats.logp.sum()), expected)
                for several, wanted in zip(scored, plain, strict=True)
                for stats, expected in zip(several, wanted, strict=True)
            ]
            off = max(abs(a - b) for a, b in pairs)
            prompts = [answers[0].ids[: answers[0].answer_start] for answers in questions()]
            how: dict[str, Any] = {"pad_id": 0, "end_ids": (2,), "max_new_tokens": 6}
            together = generate(model, prompts, **how)
            texts = together == [generate(model, [prompt], **how)[0] for prompt in prompts]
    except Exception as error:
        return Line(model_type, reason=f"built, but not measured: {short(error)}")
    return Line(model_type, found, off, texts)


@contextmanager
def time_limit() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"longer than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def short(error: Exception) -> str:
    first = next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)
    return re.sub(r"[|<>]", "", re.sub(r"https?://\S+|/\S+/", "", first))[:90].strip()


HEAD = [
    "| model type | batches of unequal rows | shared prompt | decoding | scores off by | answers as alone |",
    "|---|---|---|---|---|---|",
]


def table(lines: list[Line], before: str = "") -> str:
    """Markdown: one row a type, and those that could not be built. Types that were not measured keep what `before`, a table of
    this function, says of them."""
    rows = dict(re.findall(r"^(?=\| `([^`]+)` \|)(.*)$", before, re.MULTILINE))
    reasons = dict(re.findall(r"[:;] `([^`]+)` \((.*?)\)(?=; `|\.$)", before, re.MULTILINE))
    for line in lines:
        rows.pop(line.model_type, None)
        reasons.pop(line.model_type, None)
        if line.found is None:
            reasons[line.model_type] = line.reason
        else:
            rows[line.model_type] = row(line, line.found)
    right = sum(float(text.split(" | ")[-2]) < 2e-3 and text.endswith("| yes |") for text in rows.values())
    said = f"{len(rows) + len(reasons)} types are registered, {len(rows)} were built and measured, {right} of these are right."
    missing = "; ".join(f"`{name}` ({reason})" for name, reason in sorted(reasons.items()))
    return "\n".join([said, "", *HEAD, *(rows[name] for name in sorted(rows)), "", f"Not measured: {missing}."])


def row(line: Line, can: Shortcuts) -> str:
    """One row of the table."""
    batches = "yes" if can.padding and can.left_padding else "scoring only" if can.padding else "no: rows of one length"
    shared = "one row" if can.tree else "cache" if can.cache else "read again"
    decoding = "own, preallocated cache" if can.stepwise else "transformers"
    beyond = f" (rows up to {can.longest} tokens)" if can.longest else ""
    texts = "yes" if line.texts else "**no**"
    return f"| `{line.model_type}` | {batches}{beyond} | {shared} | {decoding} | {line.off:.0e} | {texts} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("page", nargs="?", type=Path)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    types = [t for t in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if t in CONFIG_MAPPING]
    lines = []
    for model_type in given.only.split(",") if given.only else types:
        lines.append(measure(model_type))
        print(lines[-1], file=sys.stderr, flush=True)
    page = given.page.read_text(encoding="utf-8") if given.page else ""
    before, _, rest = page.partition(START)
    old, _, after = rest.partition(END)
    text = table(lines, old if given.only else "")
    print(text)
    if given.page:
        given.page.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
