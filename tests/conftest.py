"""Shared fixtures: pico models made from configurations, and the folder of real data."""

import itertools
import multiprocessing
import os
import runpy
import socket

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

torch.set_num_threads(1)

WORDS = (  # noqa: SIM905
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


_PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
_GATED = {**_PLAIN, "intermediate_size": 48, "num_key_value_heads": 2}
_SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA = {**_GATED, **_SLIDING, "head_dim": 8, "query_pre_attn_scalar": 8}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_SPECIAL = {"vocab_size": len(WORDS) + 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
_PICO: dict[str, dict[str, object]] = {
    "llama": _GATED,
    "mistral": {**_GATED, "sliding_window": 6},
    "qwen2": _GATED,
    "qwen3": {**_GATED, "head_dim": 8},
    "gemma": {**_GATED, "head_dim": 8},
    "gemma2": {**_GEMMA, "final_logit_softcapping": 3.0},
    "gemma3_text": _GEMMA,
    "gemma3": {
        "text_config": {**_SPECIAL, **_GEMMA},
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 3,
    },
    "phi": {**_PLAIN, "intermediate_size": 48},
    "phi3": {**_GATED, "sliding_window": 6},
    "olmo": _GATED,
    "olmo2": _GATED,
    "olmo3": {**_GATED, **_SLIDING},
    "smollm3": _GATED,
    "granite": {**_GATED, "logits_scaling": 4.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "gpt_neox": {**_PLAIN, "intermediate_size": 48},
    "opt": {**_PLAIN, "word_embed_proj_dim": 32, "ffn_dim": 48},
    "falcon": _PLAIN,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}
MODEL_TYPES: tuple[str, ...] = tuple(_PICO)
"""Every architecture with one MLP a block that expunge knows, by `config.model_type`."""
_MIXTURE = {**_GATED, "num_experts": 4, "num_experts_per_tok": 2}
_PICO |= {
    "mixtral": {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": _MIXTURE,
    "qwen2_moe": {**_MIXTURE, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**_MIXTURE, "moe_intermediate_size": 24, "head_dim": 8},
}
MIXTURES: tuple[str, ...] = tuple(_PICO)[len(MODEL_TYPES) :]
"""Every mixture of experts that expunge knows."""


def make_model(model_type: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A pico model of any supported architecture: 2 layers, width 32, vocabulary of `pico_tokenizer`, float32, eval.

    Biases and norms are moved off 0 and 1, so that a test notices when one of them is left out.
    """
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[model_type](**{**_SPECIAL, "dtype": "float32", **_PICO[model_type], **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=MODEL_TYPES)
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


@pytest.fixture(params=MIXTURES)
def any_mixture(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


@pytest.fixture(scope="session")
def model_of() -> Callable[..., PreTrainedModel]:
    """`make_model`, for tests that need a certain type or a second model."""
    return make_model


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab with its trained models, seed 0: made once (some minutes), then taken from the cache; workers wait for each other."""
    from expunge.lab import build

    return build(tmp_path_factory.mktemp("worlds") / "lab", seed=0, quiet=True)


class Forked:
    """A running process, and what it has written once it ended."""

    def __init__(self, process: multiprocessing.process.BaseProcess, out: Path, err: Path) -> None:
        self.process, self._out, self._err = process, out, err

    def wait(self, timeout: float = 300) -> int:
        self.process.join(timeout)
        assert self.process.exitcode is not None, "the process has not ended"
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        return self._out.read_text() if self._out.exists() else ""

    @property
    def stderr(self) -> str:
        return self._err.read_text() if self._err.exists() else ""


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Forked]:
    """`forked(words, environment={}, folder=None)` starts `python WORDS` in a process of its own: a script and its words, or -m
    and a module. It is forked from one that has imported torch and transformers, so it begins at once, where a new interpreter
    needs seconds; what a test holds of processes (kills, ranks, exit codes, streams) is the same."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.llama.modeling_llama", "peft", "expunge.run", "expunge.evaluation.run"])
    place, count = tmp_path_factory.mktemp("forked"), itertools.count()

    def start(words: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None) -> Forked:
        number = next(count)
        out, err = place / f"{number}.out", place / f"{number}.err"
        given = {"words": [str(word) for word in words], "environment": {**os.environ, **(environment or {})}}
        given |= {"folder": str(folder or Path.cwd()), "out": str(out), "err": str(err)}
        script = str(Path(__file__).with_name("forked.py"))
        process = context.Process(target=runpy.run_path, args=(script,), kwargs={"init_globals": {"given": given}})
        process.start()
        return Forked(process, out, err)

    return start


@pytest.fixture(scope="session")
def two_processes(forked: Callable[..., Forked]) -> Callable[..., list[Forked]]:
    """`two_processes(words, ...)` runs the same words as rank 0 and 1 of two, in the environment that torchrun would give them,
    and waits for both. That torchrun itself starts them so is tested in test_processes.py."""

    def run(words: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None) -> list[Forked]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared |= environment or {}
        both = [forked(words, {"RANK": rank, "LOCAL_RANK": rank, **shared}, folder) for rank in "01"]
        for process in both:
            assert process.wait() == 0, process.stderr[-3000:]
        return both

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, the longest of them before the others, so that no worker is left with one at the end."""
    longest = ("test_tofu.py", "test_quickstart.py", "test_removal_recipes.py", "test_training_recipes.py", "test_lab_spunge.py")
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[int, bool]:
        first = longest.index(item.path.name) if item.path in slow and item.path.name in longest else len(longest)
        return first, item.path not in slow

    items.sort(key=place)
