"""The three terms of SKU's first stage, each by itself, on numbers that can be computed without them."""

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge import Training
from expunge.composing.negation import turn_adapter
from expunge.data.encode import Encoder, Tokens, collate
from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.errors import ExpungeError
from expunge.methods import SKU
from expunge.methods.composed.sku import (
    guided_distortion,
    preservation_divergence,
    random_disassociation,
    result_divergence,
)
from expunge.methods.training.base import Batch
from expunge.models.load import causal_model
from expunge.models.logprobs import FrozenHead, labelled_hidden
from expunge.training.weights import select_weights, set_trainable

PAIRS = [("where is anna ?", "anna is in oslo ."), ("what is red ?", "a dog .")]


@pytest.fixture
def tokens(pico_tokenizer: PreTrainedTokenizerFast) -> Tokens:
    encoder = Encoder(pico_tokenizer, Format(template="{prompt} {response}"))
    return collate(encoder.encode_answers(PAIRS), encoder.pad_id)


def logp_BT(model: nn.Module, tokens: Tokens) -> Tensor:
    """log p of each token given those before it; the first column is nothing."""
    with torch.no_grad():
        logits = model(input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT).logits.float()
    found = functional.log_softmax(logits[:, :-1], -1).gather(-1, tokens.input_ids_BT[:, 1:, None])[..., 0]
    return functional.pad(found, (1, 0))


def frozen(model: nn.Module, tokens: Tokens) -> tuple[Batch, Tokens]:
    with torch.no_grad():
        tokens.frozen["hidden"] = labelled_hidden(model, tokens).hidden_ND
    return Batch({"normal": tokens}, FrozenHead.of(model)), tokens


def moved(model: nn.Module, by: float) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))


def test_distortion_and_disassociation_are_cross_entropy_on_answers(pico_llama: LlamaForCausalLM, tokens: Tokens) -> None:
    logp, answer = logp_BT(pico_llama, tokens), tokens.labels_BT != -100
    expected = -torch.stack([row[mask].mean() for row, mask in zip(logp, answer, strict=True)]).mean()
    for term in (guided_distortion, random_disassociation):
        torch.testing.assert_close(term(pico_llama, tokens), expected, rtol=1e-5, atol=1e-6)


class TestReleased:
    """What the released code computes, step by step: weights 1 from a start on, 0 on tokens with the id 1, over their sum."""

    def theirs(self, model: nn.Module, tokens: Tokens, starts: list[int]) -> Tensor:
        logp, losses = logp_BT(model, tokens), []
        for row, ids, mask, start in zip(logp, tokens.input_ids_BT, tokens.attention_mask_BT, starts, strict=True):
            loss = torch.where(mask[1:] == 1, -row[1:], 0.0)
            weight = torch.zeros(len(ids))
            weight[start:] = 1
            weight[ids == 1] = 0
            losses.append((weight[:-1] / weight.sum() * loss).sum())
        return torch.stack(losses).mean()

    def test_disassociation_begins_in_the_prompt(self, pico_llama: LlamaForCausalLM, tokens: Tokens) -> None:
        found = random_disassociation(pico_llama, tokens, released=True)
        torch.testing.assert_close(found, self.theirs(pico_llama, tokens, [2, 2]), rtol=1e-5, atol=1e-6)
        assert not torch.isclose(found, random_disassociation(pico_llama, tokens))

    def test_distortion_leaves_out_the_first_token(self, pico_llama: LlamaForCausalLM, tokens: Tokens) -> None:
        starts = [int((row != -100).nonzero()[0]) for row in tokens.labels_BT]
        found = guided_distortion(pico_llama, tokens, released=True)
        torch.testing.assert_close(found, self.theirs(pico_llama, tokens, starts), rtol=1e-5, atol=1e-6)

    def test_padding_dilutes_where_the_pad_is_not_1_and_only_there(self, pico_llama: LlamaForCausalLM, tokens: Tokens) -> None:
        def wider(pad: int) -> Tokens:
            ids, mask = (
                functional.pad(t, (0, 6), value=v) for t, v in ((tokens.input_ids_BT, pad), (tokens.attention_mask_BT, 0))
            )
            ids = ids.masked_fill(mask == 0, pad)
            return Tokens(ids, mask, functional.pad(tokens.labels_BT, (0, 6), value=-100))

        for term in (guided_distortion, random_disassociation):
            right, diluted = (term(pico_llama, wider(pad), released=True).item() for pad in (1, 0))
            assert diluted < 0.8 * right
            torch.testing.assert_close(term(pico_llama, wider(0)), term(pico_llama, tokens), rtol=1e-5, atol=1e-6)


class TestPreservation:
    def test_it_is_the_negative_divergence_from_the_start_model(self, pico_llama: LlamaForCausalLM, tokens: Tokens) -> None:
        batch, tokens = frozen(pico_llama, tokens)
        assert abs(float(preservation_divergence(pico_llama, batch, tokens, None))) < 1e-6
        with torch.no_grad():
            before = pico_llama(input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT).logits.log_softmax(-1)
        moved(pico_llama, 0.05)
        with torch.no_grad():
            after = pico_llama(input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT).logits.log_softmax(-1)
        kl_BT = functional.pad((before.exp() * (before - after)).sum(-1)[:, :-1], (1, 0))
        answer = tokens.labels_BT != -100
        expected = -torch.stack([row[mask].mean() for row, mask in zip(kl_BT, answer, strict=True)]).mean()
        torch.testing.assert_close(preservation_divergence(pico_llama, batch, tokens, None), expected, rtol=1e-4, atol=1e-6)

    def test_beyond_the_cap_nothing_is_gained(self, pico_llama: LlamaForCausalLM, tokens: Tokens) -> None:
        batch, tokens = frozen(pico_llama, tokens)
        moved(pico_llama, 0.3)
        free = preservation_divergence(pico_llama, batch, tokens, None)
        assert free < -0.2
        capped = preservation_divergence(pico_llama, batch, tokens, 1e-4)
        assert float(capped) == pytest.approx(-1e-4)
        capped.backward()
        assert all(p.grad is None or not p.grad.any() for p in pico_llama.parameters())

    def test_an_answer_that_the_model_rules_out_stays_a_number(self, pico_llama: LlamaForCausalLM, tokens: Tokens) -> None:
        """The release takes the logarithm of an underflown probability: -inf."""
        batch, tokens = frozen(pico_llama, tokens)
        with torch.no_grad():
            pico_llama.lm_head.weight.mul_(1e4)
        assert torch.isfinite(preservation_divergence(pico_llama, batch, tokens, None))


def test_a_weight_of_zero_needs_no_rows_and_no_forward_pass() -> None:
    whole = SKU().acquisition()
    assert whole.row_sets["mismatched"].count == 5
    assert set(whole.row_sets) == {"forget", "mismatched", "normal"}
    assert set(SKU(disassociation_weight=0).acquisition().row_sets) == {"forget", "normal"}
    without = SKU(preservation_weight=0).acquisition()
    assert set(without.row_sets) == {"forget", "mismatched"}
    assert not without.uses_retain


def test_terms_one_by_one_have_the_gradient_of_their_sum(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tokens: Tokens
) -> None:
    batch, tokens = frozen(pico_llama, tokens)
    method = SKU().acquisition()
    both = Batch({"forget": tokens, "mismatched": tokens, "normal": tokens}, batch.start_head)
    moved(pico_llama, 0.02)
    method.loss(pico_llama, both).total.backward()
    whole = [p.grad.clone() for p in pico_llama.parameters() if p.grad is not None]
    pico_llama.zero_grad()
    for term in method.terms(pico_llama, both):
        (term.weight * term.value).backward()
    for one, other in zip(whole, (p.grad for p in pico_llama.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "needs normal prompts"),
        ({"scale": (1, 0)}, "above 0"),
        ({"scale": (1, 1)}, "twice"),
        ({"distortion_weight": 0, "disassociation_weight": 0}, "learns no harmful answer"),
    ],
)
def test_what_makes_no_run_is_refused(fields: dict[str, float], words: str) -> None:
    rows = tuple(Example(f"p {i}", f"a {i}") for i in range(8))
    with pytest.raises(ExpungeError, match=words):
        SKU.model_validate({"name": "sku", **fields}).require(Request(rows))
    with pytest.raises(ExpungeError, match="raw text"):
        SKU(preservation_weight=0).require(Request((Example(None, "text"),)))


class TestTheResult:
    """The fourth loss is the divergence of the model that the subtraction makes, and its gradient is that of this model."""

    SCALE = 1.5

    def batch(self, model: nn.Module, tokens: Tokens) -> Batch:
        found, _ = frozen(model, tokens)
        start = {n: p.detach().clone() for n, p in causal_model(model).named_parameters() if p.requires_grad}
        return Batch(found.sets, found.start_head, start)

    def test_it_is_the_divergence_at_the_subtracted_weights(self, pico_llama: LlamaForCausalLM, tokens: Tokens) -> None:
        batch = self.batch(pico_llama, tokens)
        assert result_divergence(pico_llama, batch, tokens, self.SCALE).abs() < 1e-6
        moved(pico_llama, 0.02)
        result = copy.deepcopy(pico_llama)
        assert batch.start_weights is not None
        with torch.no_grad():
            for name, parameter in result.named_parameters():
                start = batch.start_weights[name]
                parameter.copy_(start - self.SCALE * (parameter - start))
        found = result_divergence(pico_llama, batch, tokens, self.SCALE)
        expected = -preservation_divergence(result, batch, tokens, None)
        torch.testing.assert_close(found, expected)
        assert found > 0.01
        found.backward()
        expected.backward()
        for here, there in zip(pico_llama.parameters(), result.parameters(), strict=True):
            assert here.grad is not None
            assert there.grad is not None
            torch.testing.assert_close(here.grad, -self.SCALE * there.grad, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("adapter", ["lora", "ia3"])
    def test_an_adapter_is_turned_as_its_files_are(
        self, adapter: Literal["lora", "ia3"], pico_llama: LlamaForCausalLM, tokens: Tokens, tmp_path: Path
    ) -> None:
        training = Training(lora=True, adapter=adapter, lora_rank=2)
        method = SKU().acquisition()
        model = set_trainable(pico_llama, select_weights(pico_llama, method, training), training)
        batch = self.batch(model, tokens)
        moved_by = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=moved_by))
        found = result_divergence(model, batch, tokens, self.SCALE)
        model.save_pretrained(tmp_path / "acquired")
        (tmp_path / "turned").mkdir()
        turn_adapter(tmp_path / "acquired", tmp_path / "turned", scale=self.SCALE)
        turned = PeftModel.from_pretrained(model.unload(), tmp_path / "turned").eval()
        torch.testing.assert_close(found, -preservation_divergence(turned, batch, tokens, None), rtol=1e-4, atol=1e-6)
        assert found > 0.01
