"""RMU against the reading of the paper with two models, full passes and all gradients; its domains, its targets, its end."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import expunge
from expunge import ExpungeError, Training
from expunge.data.encode import Encoded, Tokens, collate
from expunge.data.example import Example, Request
from expunge.methods import RMU, Batch
from expunge.models.blocks import blocks_of

LAYER = 3
FORGET = [Encoded((1, 9, 30, 31, 12, 40), 1, False), Encoded((1, 22, 8, 60, 2), 2, True)]
RETAIN = [Encoded((1, 33, 14, 71, 25, 26, 64, 2), 4, True), Encoded((1, 15, 16), 1, False)]


@pytest.fixture
def start(model_of: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return model_of("llama", num_hidden_layers=6)


def trained(start: PreTrainedModel, method: RMU) -> PreTrainedModel:
    """A model some way from the start in the weights that the method moves, and only those require a gradient."""
    model = copy.deepcopy(start)
    chosen = method.candidates(model)
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        p.requires_grad_(name in chosen)
        if name in chosen:
            p.data += 0.1 * torch.randn_like(p)
    return model


def batch_of(start: PreTrainedModel, method: RMU, side: str = "right", **fields: object) -> Batch:
    weights = {n: p.detach().clone() for n, p in start.named_parameters() if n in method.candidates(start)}
    both = [collate(rows, 0, side) for rows in (FORGET, RETAIN)]  # type: ignore[arg-type]
    return Batch(dict(zip(("forget", "retain"), both, strict=True)), start_weights=weights, **fields)  # type: ignore[arg-type]


def states(model: nn.Module, tokens: Tokens, layer: int, *, positions: bool = True) -> Tensor:
    """Every layer's states of a full pass, by transformers' own means."""
    ids = {"position_ids": (tokens.attention_mask_BT.cumsum(1) - 1).clamp(min=0)} if positions else {}
    output = model(
        tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT, output_hidden_states=True, use_cache=False, **ids
    )
    return output.hidden_states[layer + 1]


def literal(model: nn.Module, start: nn.Module, batch: Batch, c: float, alpha: float, drop: int = 0) -> Tensor:
    """The paper's two terms over D, row by row; `drop` first tokens left out."""
    torch.manual_seed(42)
    v_D = torch.rand(model.config.hidden_size)
    total = torch.zeros(())
    for tokens, weight in ((batch.forget, 1.0), (batch.retain, alpha)):
        now = states(model, tokens, LAYER)
        goal = c * v_D / v_D.norm() if weight == 1.0 else states(start, tokens, LAYER).detach()
        for row, mask in enumerate(tokens.attention_mask_BT):
            kept = mask.nonzero()[drop:, 0]
            there = goal if goal.ndim == 1 else goal[row, kept]
            total = total + weight * (now[row, kept] - there).square().mean() / len(tokens.attention_mask_BT)
    return total


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("exclude", [False, True])
def test_loss_and_gradients_are_those_of_two_models_and_full_passes(start: PreTrainedModel, side: str, exclude: bool) -> None:
    method = RMU(layer=LAYER, exclude_bos=exclude, alpha=3.0)
    model, batch = trained(start, method), batch_of(start, method, side)
    expected = literal(model, start, batch, 6.5, 3.0, drop=int(exclude))
    wanted = torch.autograd.grad(expected, [p for p in model.parameters() if p.requires_grad])
    loss = method.loss(model, batch)
    found = torch.autograd.grad(loss.total, [p for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(loss.total, expected)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_at_the_start_the_retain_term_is_nothing_and_the_weights_are_not_changed_by_a_loss(start: PreTrainedModel) -> None:
    method = RMU(layer=LAYER)
    batch = batch_of(start, method)
    assert float(method.loss(start, batch).parts["retain"]) == 0.0
    model = trained(start, method)
    before, weights = copy.deepcopy(model.state_dict()), copy.deepcopy(batch.start_weights)
    assert float(method.loss(model, batch).parts["retain"]) > 0.0
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert weights is not None
    assert batch.start_weights is not None
    assert all(torch.equal(weights[n], v) for n, v in batch.start_weights.items())


def test_the_record_has_both_terms_with_and_without_the_sink(start: PreTrainedModel) -> None:
    with_sink, without = RMU(layer=LAYER, alpha=2.0), RMU(layer=LAYER, alpha=2.0, exclude_bos=True)
    model, batch = trained(start, with_sink), batch_of(start, with_sink)
    a, b = with_sink.loss(model, batch), without.loss(model, batch)
    assert a.parts == b.parts
    assert float(a.total.detach()) == pytest.approx(float(a.parts["forget"] + 2 * a.parts["retain"]))
    assert float(b.total.detach()) == pytest.approx(float(b.parts["forget_without_bos"] + 2 * b.parts["retain_without_bos"]))
    assert float(a.total.detach()) != pytest.approx(float(b.total.detach()))


def test_wmdp_counts_pads_as_the_release_does(start: PreTrainedModel) -> None:
    """The release: `mse_loss` over all positions of a batch padded on the left, positions counted from the pads on."""
    method = RMU(layer=LAYER, compat="wmdp", alpha=3.0)
    assert method.pad_side == "left"
    model, batch = trained(start, method), batch_of(start, method, "left")
    torch.manual_seed(42)
    v = torch.rand(1, 1, model.config.hidden_size)
    now = states(model, batch.forget, LAYER)
    forget = nn.functional.mse_loss(now, (6.5 * v / v.norm()).expand_as(now))
    retain = nn.functional.mse_loss(states(model, batch.retain, LAYER), states(start, batch.retain, LAYER))
    loss = method.loss(model, batch)
    torch.testing.assert_close(loss.total, forget + 3 * retain, rtol=1e-4, atol=1e-6)
    other = RMU(layer=LAYER, alpha=3.0).loss(model, batch).total
    assert float(loss.total.detach()) != pytest.approx(float(other.detach()))


def test_weights_are_chosen_by_role_in_every_architecture(any_model: PreTrainedModel) -> None:
    places = blocks_of(any_model)
    expected = {places.down_proj(i) for i in range(places.count)}
    assert RMU(layer=-1).candidates(any_model) == expected
    assert RMU(layer=-1, edited=(-1,)).candidates(any_model) == {places.down_proj(-1)}
    assert RMU(layer=0, role="attention_out").candidates(any_model) == {places.attention_out(0)}


def test_the_loss_moves_the_chosen_weights_of_every_architecture(any_model: PreTrainedModel) -> None:
    method = RMU(layer=-1)
    model, batch = trained(any_model, method), batch_of(any_model, method)
    loss = method.loss(model, batch)
    loss.total.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == method.candidates(any_model)
    halves = [
        method.loss(model, dataclasses.replace(batch, sets={"forget": collate([f], 0), "retain": collate([r], 0)})).total
        for f, r in zip(FORGET, RETAIN, strict=True)
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), loss.total, rtol=1e-4, atol=1e-5)


def test_a_block_that_is_not_there_or_never_read_is_refused(start: PreTrainedModel) -> None:
    with pytest.raises(ExpungeError, match=r"block 7 was asked for.*blocks 0 to 5"):
        RMU(layer=7).candidates(start)
    with pytest.raises(ExpungeError, match="block 5 of --edited is above block 3"):
        RMU(layer=3, edited=(2, 5)).candidates(start)


def test_dropout_is_in_the_pass_with_gradient_only(model_of: Callable[..., PreTrainedModel]) -> None:
    start = model_of("gpt2", resid_pdrop=0.5)
    method = RMU(layer=1, edited=(1,), alpha=1.0)
    batch = batch_of(start, method)
    start.train()
    parts = method.loss(start, batch).parts
    assert start.training
    assert float(parts["retain"]) > 0
    start.eval()
    assert float(method.loss(start, batch).parts["retain"]) == 0.0


class TestDomains:
    ROWS = tuple(Example(None, f"text {i}", attributes={"domain": "ab"[i % 2]}) for i in range(6))

    def test_each_file_is_a_domain_or_each_value_of_an_attribute(self) -> None:
        request = Request(self.ROWS, forget_sources=(2, 0, 4))
        assert RMU().forget_parts(request) == ((0, 1), (2, 3, 4, 5))
        assert RMU(domains="domain").forget_parts(request) == ((0, 2, 4), (1, 3, 5))
        assert RMU().forget_parts(Request(self.ROWS)) == (tuple(range(6)),)

    def test_numbers_of_another_count_are_refused(self) -> None:
        with pytest.raises(ExpungeError, match="--alpha has 3 numbers for 2 forget domains"):
            RMU(alpha=(1.0, 2.0, 3.0), domains="domain").forget_parts(Request(self.ROWS))
        with pytest.raises(ExpungeError, match="--coefficient has 2 numbers for 1 forget domains"):
            RMU(coefficient=(1.0, 2.0)).forget_parts(Request(self.ROWS))
        with pytest.raises(ExpungeError, match="no attribute 'topic'"):
            RMU(domains="topic").forget_parts(Request(self.ROWS))

    def test_each_domain_has_a_direction_and_numbers_of_its_own(self, start: PreTrainedModel) -> None:
        method = RMU(layer=LAYER, alpha=(1.0, 5.0), coefficient=(2.0, 8.0))
        model = trained(start, method)
        torch.manual_seed(42)
        for part, (alpha, c) in enumerate(((1.0, 2.0), (5.0, 8.0))):
            v_D = torch.rand(model.config.hidden_size)  # one generator, domain after domain
            batch = batch_of(start, method, part=part)
            loss = method.loss(model, batch)
            assert float(loss.total.detach()) == pytest.approx(float(loss.parts["forget"] + alpha * loss.parts["retain"]))
            now = states(model, batch.forget, LAYER)
            rows = [
                (h[m.bool()] - c * v_D / v_D.norm()).square().mean()
                for h, m in zip(now, batch.forget.attention_mask_BT, strict=True)
            ]
            torch.testing.assert_close(loss.parts["forget"], torch.stack(rows).mean().detach())

    def test_of_a_part_alone_it_takes_that_domain_s_numbers(self) -> None:
        method = RMU(alpha=(1.0, 5.0), coefficient=3.0, domains="domain")
        assert method.for_part(1, 2) == RMU(alpha=5.0, coefficient=3.0, control_seed=43)
        with pytest.raises(ExpungeError, match="2 numbers for 3"):
            method.for_part(1, 3)


def test_the_adaptive_target_is_a_multiple_of_the_norm_that_is_there(start: PreTrainedModel) -> None:
    method = RMU(layer=LAYER, adaptive=True, coefficient=2.0)
    probes = [collate(FORGET, 0), collate(RETAIN, 0)]
    prepared = method.prepare(start, probes)
    norms = [states(start, p, LAYER)[p.attention_mask_BT.bool()].norm(dim=-1).mean() for p in probes]
    torch.testing.assert_close(prepared["norm"], torch.stack(norms).detach())
    batch = batch_of(start, method, prepared=prepared)
    plain = RMU(layer=LAYER, coefficient=float(2 * norms[0].detach()))
    torch.testing.assert_close(method.loss(start, batch).total, plain.loss(start, batch).total)
    assert RMU(layer=LAYER).prepare(start, probes) == {}


def test_it_is_finished_when_every_domain_s_probes_have_turned_away(start: PreTrainedModel) -> None:
    method = RMU(layer=LAYER, stop_below_cosine=0.5)
    probes = [collate(FORGET, 0), collate(RETAIN, 0)]
    prepared = method.prepare(start, probes)
    assert method.finished(start, probes, prepared) is None
    moved = {name: -value for name, value in prepared.items()}
    assert "cosine -1.00, -1.00" in str(method.finished(start, probes, moved))
    assert method.finished(start, probes, {**moved, "probe 1": prepared["probe 1"]}) is None
    assert RMU(layer=LAYER).finished(start, probes, {}) is None


@pytest.mark.parametrize("bad", [{"alpha": -1.0}, {"alpha": ()}, {"coefficient": float("nan")}, {"stop_below_cosine": 2.0}])
def test_impossible_numbers_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        RMU(**bad)  # type: ignore[arg-type]


class TestRuns:
    """Through the whole loop."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> dict[str, list[Path] | Path]:
        texts = {
            "fumes": ["red dog and blue cat", "green bird in oslo", "white horse , black fish", "red red fish"],
            "spores": ["anna was a pilot", "boris was a nurse", "clara is a judge"],
            "keep": ["one plus two", "three minus one", "five plus five ."],
        }
        for name, rows in texts.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        return {"forget": [tmp_path / "fumes.jsonl", tmp_path / "spores.jsonl"], "retain": tmp_path / "keep.jsonl"}

    METHOD = RMU(layer=1, alpha=1.0, coefficient=3.0, adaptive=True)
    TRAINING = Training(steps=6, batch_size=2, learning_rate=1e-2, schedule="constant", checkpoint_every=4)

    def test_only_the_edited_weights_move(self, pico_folder: Path, data: dict[str, Path], tmp_path: Path) -> None:
        method = self.METHOD.model_copy(update={"edited": (1,)})
        expunge.unlearn(method, model=pico_folder, out=tmp_path / "run", training=self.TRAINING, quiet=True, **data)
        before, after = (load_file(f / "model.safetensors") for f in (pico_folder, tmp_path / "run/artifact"))
        assert {n for n in before if not torch.equal(before[n], after[n])} == {"model.layers.1.mlp.down_proj.weight"}
        lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        assert set(lines[0]["parts"]) == {"forget", "retain", "forget_without_bos", "retain_without_bos"}
        assert lines[-2]["parts"]["forget"] < lines[0]["parts"]["forget"]
        assert lines[-1]["parts"]["forget"] < lines[1]["parts"]["forget"]

    def test_killed_and_resumed_it_ends_with_the_same_weights(
        self, pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = {"model": pico_folder, "training": self.TRAINING, "quiet": True, **data}
        expunge.unlearn(self.METHOD, out=tmp_path / "whole", **words)  # type: ignore[arg-type]
        calls = []

        def dying(self: RMU, model: nn.Module, batch: Batch) -> object:
            calls.append(batch.part)
            if len(calls) > 5:
                raise KeyboardInterrupt
            return terms(self, model, batch)

        terms = RMU.terms
        monkeypatch.setattr(RMU, "terms", dying)
        with pytest.raises(KeyboardInterrupt):
            expunge.unlearn(self.METHOD, out=tmp_path / "run", **words)  # type: ignore[arg-type]
        monkeypatch.setattr(RMU, "terms", terms)
        assert calls == [0, 1, 0, 1, 0, 1]
        expunge.unlearn(self.METHOD, out=tmp_path / "run", resume=True, **words)  # type: ignore[arg-type]
        one, other = (load_file(tmp_path / name / "artifact/model.safetensors") for name in ("whole", "run"))
        assert all(torch.equal(one[n], other[n]) for n in one)

    def test_an_adapter_moves_states_towards_the_target(self, pico_folder: Path, data: dict[str, Path], tmp_path: Path) -> None:
        training = self.TRAINING.model_copy(update={"lora": True, "steps": 12})
        expunge.unlearn(self.METHOD, model=pico_folder, out=tmp_path / "run", training=training, quiet=True, **data)
        lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        assert lines[0]["parts"]["retain"] == 0.0
        assert lines[-1]["parts"]["forget"] < lines[1]["parts"]["forget"]
        assert expunge.verify(tmp_path / "run").kind == "adapter"

    def test_it_stops_when_the_states_have_turned(self, pico_folder: Path, data: dict[str, Path], tmp_path: Path) -> None:
        method = self.METHOD.model_copy(update={"stop_below_cosine": 0.9, "alpha": (0.0,)})
        training = self.TRAINING.model_copy(update={"steps": 200, "learning_rate": 3e-2, "stop_every": 2})
        with pytest.warns(UserWarning, match="does not use the retain set"):
            outcome = expunge.unlearn(method, model=pico_folder, out=tmp_path / "run", training=training, quiet=True, **data)
        assert outcome.steps < 200
        assert "below 0.9" in str(outcome.stopped)
