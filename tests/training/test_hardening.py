"""Wrappers that make a result harder to undo: their formulas, what they leave as it was, and what they refuse."""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

import expunge
from expunge import ExpungeError, Training
from expunge.data.encode import collate
from expunge.methods import METHODS, NPO, Batch, GradientDifference, TrainingMethod
from expunge.models.logprobs import labelled_logits
from expunge.models.rounding import ROUNDINGS, compress
from expunge.training.batches import MicroBatch
from expunge.training.gradients import StepWork, step_gradient
from expunge.training.hardening.latent_adversary import LatentAdversary
from expunge.training.hardening.quantization import rounded
from expunge.training.hardening.top_directions import without_top_directions
from expunge.training.settings import Rounding
from tests.conftest import make_llama
from tests.contract.test_training_methods import FORGET, TRAINING, made, make_batch
from tests.training.test_loop import data as data

ALL: dict[str, Any] = {
    "sharpness_aware": 0.05,
    "latent_adversarial": True,
    "remove_top_directions": 2,
    "quantization_aware": "nf4",
}


def work_on(model: nn.Module, method: TrainingMethod, batches: list[Batch]) -> StepWork:
    def micros() -> Iterator[MicroBatch]:
        for batch in batches:
            yield MicroBatch(batch, dict.fromkeys(batch.sets, 1 / len(batches)))

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return StepWork(method, model, trained, micros, nullcontext, seed=0)


def gradient(model: nn.Module, method: TrainingMethod, batches: list[Batch], **settings: Any) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    step_gradient(work_on(model, method, batches), Training(**settings), average=False)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def moved_llama(seed: int = 1) -> nn.Module:
    model = make_llama()
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def bits(model: nn.Module) -> Mapping[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def unchanged(model: nn.Module, before: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_sharpness_aware_takes_the_forget_gradient_at_the_displaced_weights_and_the_retain_gradient_here() -> None:
    model, start, method, rho = moved_llama(), make_llama(), NPO(retain_weight=2.0), 0.3
    batch = make_batch(method, start)
    before = bits(model)
    found = gradient(model, method, [batch], sharpness_aware=rho)
    assert unchanged(model, before)
    forget = gradient(model, NPO(retain_weight=0), [batch])
    norm = torch.stack([g.norm() for g in forget.values()]).norm()
    far = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in far.named_parameters():
            p.add_(rho * forget[name] / norm)
    there = gradient(far, NPO(retain_weight=0), [batch])
    retain = gradient(model, NPO(retain_weight=2.0, forget_weight=0), [batch])
    for name, value in found.items():
        torch.testing.assert_close(value, there[name] + retain[name], rtol=1e-4, atol=1e-6)


def test_the_adversary_stays_in_its_ball_attacks_prompts_only_and_raises_the_forget_loss() -> None:
    model, method = moved_llama(), GradientDifference()
    batch = make_batch(method, make_llama(), pad=3)
    radius = 0.3
    with LatentAdversary(model, method, radius).attached() as adversary:
        clean = {term.name: float(term.value) for term in method.terms(model, batch)}
        adversary.attack(batch, lambda: (t for t in method.terms(model, batch) if t.rows == "forget"))
        attacked = {term.name: float(term.value) for term in method.terms(model, batch)}
        one = adversary._found["forget"]
    assert attacked["forget"] > clean["forget"] + 1e-3
    assert attacked["retain"] == clean["retain"]
    assert (one.delta_BTD.norm(dim=-1, keepdim=True) <= one.limit_BT1 * (1 + 1e-5) + 1e-9).all()
    answers_BT = (batch.forget.labels_BT != -100) | (batch.forget.attention_mask_BT == 0)
    assert one.delta_BTD[answers_BT].abs().max() == 0
    assert one.delta_BTD[~answers_BT].abs().max() > 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_raw_text_is_attacked_at_all_its_positions() -> None:
    model, method = moved_llama(), GradientDifference()
    raw = collate([row._replace(answer_start=1) for row in FORGET], 0)
    batch = Batch({"forget": raw, "retain": make_batch(method, model).retain})
    with LatentAdversary(model, method, 0.3).attached() as adversary:
        adversary.attack(batch, lambda: (t for t in method.terms(model, batch) if t.rows == "forget"))
        moved_BT = adversary._found["forget"].delta_BTD.abs().sum(dim=-1) > 0
    assert not moved_BT[raw.attention_mask_BT == 0].any()
    assert moved_BT[:, 1].all()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (3, 6, 7)])
def test_what_is_left_of_a_gradient_are_its_smaller_singular_values(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = without_top_directions(matrix, 2, "w")
    before, after = torch.linalg.svdvals(matrix), torch.linalg.svdvals(found)
    torch.testing.assert_close(after[..., : before.shape[-1] - 2], before[..., 2:], rtol=1e-4, atol=1e-5)
    assert after[..., -2:].abs().max() < 1e-5
    assert without_top_directions(matrix.flatten(), 2, "b").abs().max() == 0
    with pytest.raises(ExpungeError, match="which has 6 directions"):
        without_top_directions(matrix, 6, "w")


def test_no_rounding_error_is_left_of_a_gradient_for_adamw_to_make_steps_of() -> None:
    """Rows and columns without gradient stay without (embeddings of tokens that no row holds), and so do those removed whole."""
    random = torch.Generator().manual_seed(0)
    matrix = torch.zeros(30, 20)
    matrix[3:9, 2:18] = torch.randn(6, 16, generator=random)
    matrix[20, 2:18] = 1e4 * torch.randn(16, generator=random)
    found = without_top_directions(matrix, 1, "w")
    assert (found != 0).any(dim=1).nonzero().flatten().tolist() == [3, 4, 5, 6, 7, 8]
    assert (found != 0).any(dim=0).nonzero().flatten().tolist() == list(range(2, 18))
    assert (
        without_top_directions(matrix[:, :1] @ matrix[:1] + torch.outer(torch.ones(30), torch.ones(20)), 1, "w").count_nonzero()
        == 0
    )


def test_large_matrices_lose_the_same_directions_without_touching_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) @ torch.diag(0.8 ** torch.arange(30.0))
    exact = without_top_directions(matrix, 3, "w")
    monkeypatch.setattr("expunge.models.directions.EXACT", 0)
    torch.manual_seed(5)
    found = without_top_directions(matrix, 3, "w")
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)


def test_only_the_forget_gradient_loses_its_directions() -> None:
    model, method = moved_llama(), GradientDifference()
    batch = make_batch(method, make_llama())
    found = gradient(model, method, [batch], remove_top_directions=3)
    forget = gradient(model, GradientDifference(retain_weight=0), [batch])
    retain = gradient(model, GradientDifference(forget_weight=0), [batch])
    for name, value in found.items():
        torch.testing.assert_close(value, without_top_directions(forget[name], 3, name) + retain[name], rtol=1e-4, atol=1e-6)


def test_quantization_aware_is_the_mean_of_the_gradients_here_and_at_the_rounded_weights() -> None:
    model, method = moved_llama(), GradientDifference()
    batch, before = make_batch(method, make_llama()), bits(model)
    found = gradient(model, method, [batch], quantization_aware="int4_channel")
    assert unchanged(model, before)
    coarse = copy.deepcopy(model)
    compress(coarse, ROUNDINGS["int4_channel"])
    here, there = gradient(model, method, [batch]), gradient(coarse, method, [batch])
    for name, value in found.items():
        torch.testing.assert_close(value, (here[name] + there[name]) / 2, rtol=1e-4, atol=1e-6)


def test_with_an_adapter_the_merged_weights_are_rounded() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_llama(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    rows = collate(FORGET, 0)
    before = bits(model)
    with torch.no_grad(), rounded(model, "nf4"):
        inside = labelled_logits(model, rows).logits_NV
    assert unchanged(model, before)
    merged = model.merge_and_unload()
    compress(merged, ROUNDINGS["nf4"])
    with torch.no_grad():
        torch.testing.assert_close(inside, labelled_logits(merged, rows).logits_NV, rtol=1e-4, atol=1e-4)


def test_the_formats_of_the_settings_are_those_that_can_be_rounded_to() -> None:
    assert set(get_args(Rounding)) == set(ROUNDINGS)


@pytest.mark.parametrize("cls", TRAINING, ids=lambda c: c.method_name())
def test_every_method_can_be_wrapped_and_micro_batches_change_nothing(cls: type[TrainingMethod]) -> None:
    method, start = made(cls), make_llama()
    model = moved_llama()
    if method.needs_start_weights:
        for name, p in model.named_parameters():
            p.requires_grad_(name in method.candidates(model))
    before = bits(model)
    settings = {name: value for name, value in ALL.items() if name != "remove_top_directions"}
    whole = gradient(model, method, [make_batch(method, start)], **settings)
    halves = gradient(model, method, [make_batch(method, start, rows) for rows in (slice(0, 2), slice(2, 4))], **settings)
    plain = gradient(model, method, [make_batch(method, start)])
    assert unchanged(model, before)
    assert whole.keys() == plain.keys()
    assert any(not torch.allclose(whole[name], plain[name]) for name in whole)
    for name, value in whole.items():
        assert torch.isfinite(value).all()
        torch.testing.assert_close(halves[name], value, rtol=2e-3, atol=2e-4 * float(value.abs().max()) + 1e-7)


QUICK = Training(steps=6, batch_size=4, learning_rate=1e-3, checkpoint_every=2, kernels="none", **ALL)


def digest(run: Path) -> str:
    return hashlib.sha256(next((run / "artifact").glob("*.safetensors")).read_bytes()).hexdigest()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_hardened_run_that_was_killed_ends_with_the_same_bytes(
    lora: bool, pico_folder: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = QUICK.model_copy(update={"lora": lora, "lora_dropout": 0.1 if lora else 0.0})
    sets = {"forget": data["forget"], "retain": data["retain"], "model": pico_folder, "training": training, "quiet": True}
    expunge.unlearn(NPO(), out=tmp_path / "whole", **sets)
    real = step_gradient

    def dies(work: StepWork, *rest: Any, **named: Any) -> dict[str, torch.Tensor]:
        if work.seed == (training.seed * 1_000_003 + 4) * 1_009:
            raise KeyboardInterrupt
        return real(work, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr("expunge.training.loop.step_gradient", dies)
        with pytest.raises(KeyboardInterrupt):
            expunge.unlearn(NPO(), out=tmp_path / "killed", **sets)
    assert (tmp_path / "killed" / "checkpoint-4").is_dir()
    expunge.unlearn(NPO(), out=tmp_path / "killed", resume=True, **sets)
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    card = (tmp_path / "whole" / "artifact" / "README.md").read_text()
    assert (
        "Hardened by --sharpness-aware 0.05, --latent-adversarial 0.2, --remove-top-directions 2, --quantization-aware nf4"
        in card
    )


def test_a_run_that_stops_when_unknown_is_unknown_in_the_format_too(
    pico_folder: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    from expunge.data.encode import Encoder
    from expunge.data.format import default_format
    from expunge.data.read import read_examples
    from expunge.models.answer_levels import mean_answer_probability

    training = Training(steps=40, batch_size=4, learning_rate=3e-3, stop_every=1, until=0.002, quantization_aware="int4_channel")
    run = expunge.unlearn(GradientDifference(retain_weight=0.1), model=pico_folder, forget=data["forget"], retain=data["retain"],
                          out=tmp_path / "run", training=training, quiet=True)  # fmt: skip
    assert "no more probable" in (run.stopped or "")
    model, tokenizer = expunge.load(tmp_path / "run")
    encoder = Encoder(tokenizer, default_format(tokenizer))
    rows = encoder.encode_many(read_examples(data["forget"]))
    with rounded(model, "int4_channel"):
        assert mean_answer_probability(model, rows, encoder.pad_id, model.device) <= 0.002
    assert mean_answer_probability(model, rows, encoder.pad_id, model.device) <= 0.002


@pytest.mark.parametrize(
    ("settings", "method", "said"),
    [
        ({"sharpness_aware": 0.01, "shard": "fsdp2"}, "npo", "--sharpness-aware needs whole weights"),
        ({"latent_adversarial": True, "gradient_checkpointing": True}, "npo", "--gradient-checkpointing runs blocks again"),
        ({"remove_top_directions": 40}, "npo", "would leave nothing"),
        ({"quantization_aware": "nf4"}, "key_space", "key_space has no steps that forget; leave out --quantization-aware"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_combined_is_refused_by_name(
    settings: dict[str, Any], method: str, said: str, pico_folder: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    training = QUICK.model_copy(
        update={**dict.fromkeys(ALL), "latent_adversarial": False, "remove_top_directions": 0, **settings}
    )
    with pytest.raises((ExpungeError, ValueError), match=said):
        expunge.unlearn(METHODS[method](), model=pico_folder, forget=data["forget"], retain=data["retain"],
                        out=tmp_path / "run", training=training, quiet=True)  # fmt: skip
