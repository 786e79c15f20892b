"""RepSelect: what is divided and removed, what moves, how far, and what is left as it was."""

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from expunge import ExpungeError
from expunge.data.encode import Encoder, collate
from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.methods import RepSelect
from expunge.methods.editing.repselect import _mlp_matrices, _shortest
from expunge.methods.training.retain import cross_entropy
from expunge.models.answer_levels import mean_answer_probability
from tests.conftest import make_model

REQUEST = Request(
    tuple(Example(f"where was {p} born ?", f"{p} was born in {c} .") for p, c in [("anna", "oslo"), ("boris", "lima")]),
    tuple(Example(f"{a} plus two is", f"{b} .") for a, b in [("one", "three"), ("three", "five"), ("ten", "six")]),
    tuple(Example(f"where was {p} born ?", f"{p} was born in {c} .") for p, c in [("hugo", "cairo"), ("irma", "quito")]),
)


@pytest.fixture
def encoder(pico_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(pico_tokenizer, Format())


@pytest.mark.parametrize(("collapse", "power"), [("soft", 1), ("quadratic", 2), ("hard", None)])
def test_its_own_top_directions_are_scaled_by_the_stated_factor(collapse: str, power: int | None) -> None:
    """Of its own basis, U S V^T, direction i keeps S_i f_i^2 with f_i = S_min / S_i (to the power), or nothing."""
    matrix = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    found = RepSelect(directions=3, collapse=collapse).collapsed(matrix, matrix)  # type: ignore[arg-type]
    left, values, right_T = torch.linalg.svd(matrix, full_matrices=False)
    factor = torch.zeros(3) if power is None else (values[2] / values[:3]) ** power
    expected = values.clone()
    expected[:3] *= factor**2
    torch.testing.assert_close(found, left @ torch.diag(expected) @ right_T, rtol=1e-4, atol=1e-5)


def test_directions_of_the_retain_gradient_are_removed_on_both_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    forget, retain = torch.randn(7, 9, generator=generator), torch.randn(7, 9, generator=generator)
    found = RepSelect(directions=2, collapse="hard").collapsed(forget, retain)
    left, _, right_T = torch.linalg.svd(retain)
    assert (left[:, :2].T @ found).abs().max() < 1e-5
    assert (found @ right_T[:2].T).abs().max() < 1e-5
    assert torch.equal(RepSelect(directions=0).collapsed(forget, retain), forget)


def test_a_large_matrix_is_decomposed_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(30, 40, generator=generator) * (0.6 ** torch.arange(40.0))
    exact = RepSelect(directions=3).collapsed(matrix, matrix)
    monkeypatch.setattr("expunge.models.directions.EXACT", 0)
    torch.testing.assert_close(RepSelect(directions=3).collapsed(matrix, matrix), exact, rtol=1e-2, atol=1e-2)


def taught(model: PreTrainedModel, encoder: Encoder) -> PreTrainedModel:
    rows = collate(encoder.encode_many((*REQUEST.forget, *REQUEST.retain)), encoder.pad_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(25):
        optimizer.zero_grad()
        cross_entropy(model, rows).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3_moe"])
def test_the_forget_answers_become_as_unknown_as_rows_never_seen_and_only_mlps_move(model_type: str, encoder: Encoder) -> None:
    model = taught(make_model(model_type), encoder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    forget, unseen = (encoder.encode_many(rows) for rows in (REQUEST.forget, REQUEST.holdout))
    target = mean_answer_probability(model, unseen, encoder.pad_id, model.device)
    assert mean_answer_probability(model, forget, encoder.pad_id, model.device) > target + 0.2
    said = RepSelect(directions=4, common="retain").apply(model, REQUEST, encoder)
    assert mean_answer_probability(model, forget, encoder.pad_id, model.device) <= target
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert moved <= _mlp_matrices(model)
    assert before.keys() == {name for name, _ in model.named_parameters()}  # no adapter is left
    assert all(p.requires_grad for p in model.parameters())
    assert "no more probable than" in said


def test_the_same_seed_gives_the_same_weights(encoder: Encoder) -> None:
    found = []
    for seed in (0, 0, 1):
        model = taught(make_model("llama"), encoder)
        RepSelect(directions=4, target=0.3, elicit_seed=seed).apply(model, REQUEST, encoder)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_shortest_step_is_found_or_its_absence_is_said() -> None:
    assert _shortest(lambda length: 1 - length, 0.3, 0.01) == pytest.approx(0.7, abs=1e-3)
    assert _shortest(lambda length: 0.1, 0.3, 0.01) == 0.0
    with pytest.raises(ExpungeError, match="fewer --directions"):
        _shortest(lambda length: 1.0, 0.3, 0.01)


def test_what_it_lacks_is_said_before_a_model_is_loaded() -> None:
    with pytest.raises(ExpungeError, match="give --retain"):
        RepSelect(common="retain").require(Request(REQUEST.forget))
    nameless = Request((Example("what is two ?", "a number"), Example("what is red ?", "a color")))
    with pytest.raises(ExpungeError, match="--target PROBABILITY"):
        RepSelect().require(nameless)
    RepSelect(target=0.1).require(nameless)
