"""What a model cannot read of the data is said before the first step, in figures."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import expunge
from expunge import ExpungeError, Training
from expunge.methods import DPO, NPO, RMU, GradientAscent, SimNPO

QUICK = Training(steps=1, batch_size=2, learning_rate=1e-3)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "forget.jsonl"
    answers = ["oslo", "lima is a city of bird and of fish with a river"]
    path.write_text("".join(json.dumps({"prompt": "where is anna ?", "response": a}) + "\n" for a in answers))
    return path


@pytest.fixture
def saved(tmp_path: Path, pico_tokenizer: PreTrainedTokenizerFast) -> Callable[[PreTrainedModel], Path]:
    def save(model: PreTrainedModel) -> Path:
        model.save_pretrained(tmp_path / "model")
        pico_tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def unlearn(model: Path, rows: Path, **words: object) -> str:
    """Runs one step; the card of the artifact."""
    out = rows.parent / "run"
    expunge.unlearn(GradientAscent(), model=model, forget=rows, out=out, training=QUICK, quiet=True, **words)  # type: ignore[arg-type]
    return (out / "artifact" / "README.md").read_text()


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_rows_are_cut_at_the_learned_positions_and_it_is_said(
    model_type: str, model_of: Callable[..., PreTrainedModel], saved: Callable[[PreTrainedModel], Path], rows: Path
) -> None:
    short = {"gpt2": {"n_positions": 16}, "opt": {"max_position_embeddings": 16}}[model_type]
    model = saved(model_of(model_type, **short))
    with pytest.warns(UserWarning, match="is more than the 16 positions that the model has"):
        card = unlearn(model, rows)
    assert "1 of 2 forget rows lose the end of their answer" in card


def test_a_cut_answer_is_said_in_figures(pico_folder: Path, rows: Path) -> None:
    with pytest.warns(UserWarning, match=r"At --max-length 15, 1 of 2 forget rows .* 33% of all answer tokens"):
        card = unlearn(pico_folder, rows, max_length=15)
    assert "33% of all answer tokens" in card


def test_a_forget_set_whose_answers_are_mostly_cut_away_is_refused(pico_folder: Path, rows: Path) -> None:
    with pytest.raises(ExpungeError, match=r"of all answer tokens, at --max-length 8: most of what is to be forgotten"):
        unlearn(pico_folder, rows, max_length=8)
    assert not (rows.parent / "run").exists()


def test_a_token_beyond_the_embedding_is_named(
    saved: Callable[[PreTrainedModel], Path], pico_llama: PreTrainedModel, rows: Path
) -> None:
    pico_llama.resize_token_embeddings(40)
    with pytest.raises(
        ExpungeError, match=r"the tokenizer gives the token '[^']+' the id \d+, and the model's embedding has 40 rows"
    ):
        unlearn(saved(pico_llama), rows)


def test_a_pad_token_beyond_the_embedding_changes_nothing(
    pico_folder: Path, pico_llama: PreTrainedModel, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, rows: Path
) -> None:
    pico_tokenizer.add_special_tokens({"pad_token": "<fill>"})
    pico_tokenizer.save_pretrained(tmp_path / "filled")
    pico_llama.save_pretrained(tmp_path / "filled")
    unlearn(tmp_path / "filled", rows)
    (rows.parent / "run").rename(rows.parent / "filled_run")
    unlearn(pico_folder, rows)
    weights = [(rows.parent / name / "artifact" / "model.safetensors").read_bytes() for name in ("run", "filled_run")]
    assert weights[0] == weights[1]


def test_a_small_set_is_in_each_step_as_a_whole_and_the_card_says_so(pico_folder: Path, rows: Path, tmp_path: Path) -> None:
    training = QUICK.model_copy(update={"batch_size": 32})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        expunge.unlearn(GradientAscent(), model=pico_folder, forget=rows, out=tmp_path / "run", training=training, quiet=True)
    card = (tmp_path / "run/artifact/README.md").read_text()
    assert "Each step had all 2 rows of the forget set, fewer than the batch of 32." in card


def test_float16_is_refused_with_what_to_take(pico_folder: Path, rows: Path) -> None:
    with pytest.raises(ExpungeError, match=r"float16 cannot be trained.*--dtype bfloat16"):
        unlearn(pico_folder, rows, dtype="float16")


@pytest.mark.parametrize("method", [NPO, DPO, SimNPO], ids=lambda m: m.__name__)
@pytest.mark.parametrize("field", ["forget_weight", "retain_weight"])
def test_a_weight_that_turns_a_method_around_is_refused(method: type[NPO], field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field}\n.*greater than or equal to 0"):
        method(**{field: -1.0})


@pytest.mark.parametrize("build", [lambda x: NPO(beta=x), lambda x: RMU(alpha=(1.0, x)), lambda x: Training(weight_decay=x)])
def test_a_field_that_is_no_number_is_named(build: Callable[[float], object]) -> None:
    with pytest.raises(ValueError, match=r"(?s)(beta|alpha|weight_decay)\n"):
        build(float("nan"))
