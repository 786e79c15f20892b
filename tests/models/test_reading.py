"""What a model cannot read as this library does is refused or cut by every command, in one way."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import expunge
from expunge import Training
from expunge.cli import main
from expunge.data.encode import Encoder
from expunge.data.format import Format
from expunge.methods import GradientAscent
from expunge.models.limits import fixed_positions, positions
from expunge.models.reading import bounded, check_reading

SPECIAL = {"vocab_size": 90, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHORT: dict[str, dict[str, object]] = {
    "gptj": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16, "rotary_dim": 4},
    "codegen": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16, "n_ctx": 16, "rotary_dim": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 16},
    "ctrl": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16, "dff": 48},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16},
}
"""Types with positions for so many tokens and no more: made by a formula, added to attention, or learned."""
BOTH_WAYS = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}


@pytest.fixture
def saved(tmp_path: Path, pico_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """A folder with a model of a type, with random weights."""

    def save(model_type: str, **fields: object) -> Path:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**SPECIAL, **fields)).save_pretrained(tmp_path / "model")
        pico_tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    answers = ["oslo", "lima is a city of birds and of fish with a river"]
    path.write_text("".join(json.dumps({"prompt": "where is anna ?", "response": a}) + "\n" for a in answers))
    return path


def test_positions_that_end_are_told_from_rotated_ones(model_of: Callable[..., PreTrainedModel]) -> None:
    found = [fixed_positions(model_of(name)) for name in ("gpt2", "opt", "gptj", "llama", "gpt_neox", "bloom")]
    assert found == [128, 128, 128, None, None, None]


def test_a_configuration_that_names_no_limit_by_an_error_has_none() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["xlnet"](vocab_size=90, d_model=32, n_layer=1, n_head=4))
    assert positions(model) is None


@pytest.mark.parametrize("model_type", SHORT)
def test_training_cuts_rows_at_the_last_position_and_says_so(
    model_type: str, saved: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    training = Training(steps=1, batch_size=2, learning_rate=1e-3)
    with pytest.warns(UserWarning, match="more than the 16 positions that the model has"):
        expunge.unlearn(
            GradientAscent(),
            model=saved(model_type, **SHORT[model_type]),
            forget=rows,
            out=tmp_path / "run",
            training=training,
            quiet=True,
        )
    assert "1 of 2 forget rows lose the end of their answer" in (tmp_path / "run/artifact/README.md").read_text()


def test_guards_edits_and_probes_cut_them_there_too(
    saved: Callable[..., Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, given = str(saved("gpt2", **SHORT["gpt2"])), ["--forget", str(rows), "--retain", str(rows)]
    unlearn = [["unlearn", method, "--model", model] for method in ("neuron_adjust", "selective_pruning")]
    for i, words in enumerate([*unlearn, ["probe", model]]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert main([*words, *given, "--out", str(tmp_path / f"out{i}")]) == 0, capsys.readouterr().err
        said = capsys.readouterr().err + "".join(str(warning.message) for warning in caught)
        assert "more than the 16 positions that the model has" in said
        assert "1 of 2 texts have more than 16 tokens and are read up to there" in said


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra"])
def test_a_model_that_reads_both_ways_is_neither_trained_nor_probed(
    model_type: str, saved: Callable[..., Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(saved(model_type, max_position_embeddings=64, **BOTH_WAYS))
    given = ["--forget", str(rows), "--out", str(tmp_path / "out")]
    for words in (["unlearn", "gradient_ascent", "--model", model, "--steps", "1"], ["probe", model]):
        assert main([*words, *given]) == 2
        assert f"models of the type {model_type} do not read text as expunge" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_reading_is_checked_without_leaving_training_mode(pico_llama: PreTrainedModel) -> None:
    pico_llama.train()
    check_reading(pico_llama)
    assert pico_llama.training


def test_rows_that_would_change_the_positions_of_those_beside_them_are_cut(
    model_of: Callable[..., PreTrainedModel], pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    """LongRoPE scales all rows of a batch by its longest one."""
    longest = {"original_max_position_embeddings": 16}
    scale: dict[str, object] = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    model = model_of("phi3", rope_parameters=scale | longest, **longest)
    with pytest.warns(UserWarning, match="more than the 16 tokens up to which the model's positions do not depend"):
        encoder = bounded(Encoder(pico_tokenizer, Format(), max_length=64), model)
    assert encoder.max_length == 16


def test_one_broken_row_is_a_sentence_in_every_command_that_fits_something(
    pico_llama: LlamaForCausalLM,
    pico_tokenizer: PreTrainedTokenizerFast,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """NaN in the embedding of one word that the first row does not have."""
    with torch.no_grad():
        pico_llama.model.embed_tokens.weight[pico_tokenizer.convert_tokens_to_ids("lima")] = float("nan")
    pico_llama.save_pretrained(tmp_path / "model")
    pico_tokenizer.save_pretrained(tmp_path / "model")
    model, out = str(tmp_path / "model"), tmp_path / "out"
    unlearn = [["unlearn", name, "--model", model] for name in ("neuron_adjust", "selective_pruning", "npo")]
    for words in (*unlearn, ["probe", model]):
        assert main([*words, "--forget", str(rows), "--retain", str(rows), "--out", str(out)]) == 2
        assert "are not numbers (NaN or infinity)" in capsys.readouterr().err
        assert not out.exists()
