"""Loss values against naive readings of the formulas, on full logits, row by row."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from expunge.data.encode import Encoded, Tokens, collate
from expunge.methods import (
    CEU,
    DPO,
    IDK,
    LLMU,
    NPO,
    PDU,
    SCRUB,
    UNDIAL,
    WGA,
    AltPO,
    Batch,
    GradientAscent,
    GradientDifference,
    KLMinimization,
    Mismatch,
    SatImp,
    SimNPO,
)
from expunge.methods.training import FineTune
from expunge.methods.training.base import Progress
from expunge.models.logprobs import FrozenHead, labelled_hidden

ROWS = {
    "forget": [Encoded((1, 5, 6, 7, 20, 21, 2), 4, True), Encoded((1, 9, 8, 30, 2), 3, True)],
    "retain": [Encoded((1, 15, 16, 27, 28, 2), 3, True), Encoded((1, 19, 60, 2), 2, True)],
    "refusals": [Encoded((1, 5, 6, 7, 78, 79, 2), 4, True), Encoded((1, 9, 8, 78, 79, 80, 2), 3, True)],
    "alternates": [Encoded((1, 5, 6, 7, 33, 34, 35, 2), 4, True), Encoded((1, 9, 8, 36, 2), 3, True)],
    "mismatched": [Encoded((1, 5, 6, 7, 60, 2), 4, True), Encoded((1, 9, 8, 27, 28, 2), 3, True)],
}


class Naive:
    """Full logits of each row alone, without padding: logp[i] is the vector of log-probabilities before label i."""

    def __init__(self, model: nn.Module, rows: list[Encoded]) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[list[int]] = []
        for row in rows:
            logits = model(torch.tensor([row.ids])).logits[0].double()
            self.logits.append(logits[row.answer_start - 1 : -1])
            self.labels.append(list(row.ids[row.answer_start :]))

    def label_logp(self) -> list[Tensor]:
        return [z.log_softmax(-1)[range(len(y)), y] for z, y in zip(self.logits, self.labels, strict=True)]

    def sums(self) -> Tensor:
        return torch.stack([x.sum() for x in self.label_logp()])

    def means(self) -> Tensor:
        return torch.stack([x.mean() for x in self.label_logp()])


@pytest.fixture
def start(pico_llama: nn.Module) -> nn.Module:
    return pico_llama


@pytest.fixture
def model(start: nn.Module) -> nn.Module:
    import copy

    moved = copy.deepcopy(start)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return moved


@pytest.fixture
def batch(start: nn.Module) -> Batch:
    tokens: dict[str, Tokens] = {}
    with torch.no_grad():
        for name, rows in ROWS.items():
            tokens[name] = collate(rows, 0)
            tokens[name].frozen["logprob"] = Naive(start, rows).sums().float()
            tokens[name].frozen["hidden"] = labelled_hidden(start, tokens[name]).hidden_ND
    return Batch(tokens, FrozenHead.of(start))


def same(got: Tensor, expected: Tensor | float) -> None:
    torch.testing.assert_close(got.double(), torch.as_tensor(expected).double(), rtol=1e-5, atol=1e-5)


def test_gradient_ascent_is_the_negative_mean_of_row_means(model: nn.Module, batch: Batch) -> None:
    same(GradientAscent().loss(model, batch).total, Naive(model, ROWS["forget"]).means().mean())


def test_finetune_is_cross_entropy(model: nn.Module, batch: Batch) -> None:
    same(FineTune().loss(model, batch).total, -Naive(model, ROWS["forget"]).means().mean())


def test_gradient_difference_weighs_both_terms(model: nn.Module, batch: Batch) -> None:
    expected = 2 * Naive(model, ROWS["forget"]).means().mean() - 3 * Naive(model, ROWS["retain"]).means().mean()
    same(GradientDifference(forget_weight=2, retain_weight=3).loss(model, batch).total, expected)


def test_kl_minimization_holds_the_whole_distribution_at_answer_tokens(start: nn.Module, model: nn.Module, batch: Batch) -> None:
    before, after = Naive(start, ROWS["retain"]), Naive(model, ROWS["retain"])
    rows = []
    for z0, z in zip(before.logits, after.logits, strict=True):
        rows.append((z0.softmax(-1) * (z0.log_softmax(-1) - z.log_softmax(-1))).sum(-1).mean())
    expected = Naive(model, ROWS["forget"]).means().mean() + torch.stack(rows).mean()
    loss = KLMinimization().loss(model, batch)
    same(loss.total, expected)
    assert loss.parts["retain"] > 0


def test_kl_to_itself_is_zero(start: nn.Module, batch: Batch) -> None:
    same(KLMinimization().loss(start, batch).parts["retain"], 0.0)


def test_npo_starts_at_two_over_beta_times_ln_two(start: nn.Module, batch: Batch) -> None:
    same(NPO(beta=0.1, retain_loss="none").loss(start, batch).total, 20 * math.log(2))


def test_npo_uses_sums_of_log_probabilities(start: nn.Module, model: nn.Module, batch: Batch) -> None:
    ratio = Naive(model, ROWS["forget"]).sums() - Naive(start, ROWS["forget"]).sums()
    expected = (-2 / 0.3 * torch.log(torch.sigmoid(-0.3 * ratio))).mean()
    same(NPO(beta=0.3, retain_loss="none").loss(model, batch).total, expected)


def test_npo_tends_to_gradient_ascent_on_sums(model: nn.Module, batch: Batch) -> None:
    """As beta falls, the gradient of NPO becomes the gradient of the summed log-probabilities."""

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    npo = gradient(NPO(beta=1e-4, retain_loss="none").loss(model, batch).total)
    ascent = gradient(Naive(model, ROWS["forget"]).sums().mean().float())
    torch.testing.assert_close(npo, ascent, rtol=2e-3, atol=2e-3)


def test_simnpo_divides_by_length_and_needs_no_reference(model: nn.Module, batch: Batch) -> None:
    expected = 0.125 * (-2 / 4.5 * torch.log(torch.sigmoid(-4.5 * Naive(model, ROWS["forget"]).means() - 0.7))).mean()
    same(SimNPO(margin=0.7, retain_loss="none").loss(model, batch).total, expected)


def test_idk_is_cross_entropy_on_the_refusal(model: nn.Module, batch: Batch) -> None:
    same(IDK(retain_loss="none").loss(model, batch).total, -Naive(model, ROWS["refusals"]).means().mean())


def test_dpo_prefers_the_refusal(start: nn.Module, model: nn.Module, batch: Batch) -> None:
    def ratio(part: str) -> Tensor:
        return Naive(model, ROWS[part]).sums() - Naive(start, ROWS[part]).sums()

    expected = (-2 / 0.2 * torch.log(torch.sigmoid(0.2 * (ratio("refusals") - ratio("forget"))))).mean()
    same(DPO(beta=0.2, retain_loss="none").loss(model, batch).total, expected)


def test_undial_aims_at_the_start_model_with_the_label_pushed_down(start: nn.Module, model: nn.Module, batch: Batch) -> None:
    before, after = Naive(start, ROWS["forget"]), Naive(model, ROWS["forget"])
    rows = []
    for z0, z, y in zip(before.logits, after.logits, before.labels, strict=True):
        target = z0.clone()
        target[range(len(y)), y] -= 10
        rows.append(-(target.softmax(-1) * z.log_softmax(-1)).sum(-1).mean())
    same(UNDIAL().loss(model, batch).total, torch.stack(rows).mean())


def test_wga_weighs_each_token_by_its_probability(model: nn.Module, batch: Batch) -> None:
    expected = torch.stack([(x.exp() ** 0.5 * x).mean() for x in Naive(model, ROWS["forget"]).label_logp()]).mean()
    same(WGA(beta=0.5, retain_loss="none").loss(model, batch).total, expected)


def test_wga_with_beta_zero_is_gradient_difference(model: nn.Module, batch: Batch) -> None:
    same(WGA(beta=0).loss(model, batch).total, GradientDifference().loss(model, batch).total)


def test_satimp_weighs_by_saturation_and_importance(model: nn.Module, batch: Batch) -> None:
    rows = [(x.exp() ** 5 * (1 - x.exp()) * x).mean() for x in Naive(model, ROWS["forget"]).label_logp()]
    same(SatImp(retain_loss="none", forget_weight=1).loss(model, batch).total, torch.stack(rows).mean())


def test_ce_u_aims_at_its_own_distribution_without_the_label(model: nn.Module, batch: Batch) -> None:
    naive, rows = Naive(model, ROWS["forget"]), []
    for z, y in zip(naive.logits, naive.labels, strict=True):
        target = z.clone()
        target[range(len(y)), y] = -torch.inf
        terms = [-(target[i].softmax(-1) * z[i].log_softmax(-1)).sum() for i in range(len(y))]
        rows.append(torch.stack(terms[1:]).mean())
    same(CEU().loss(model, batch).total, torch.stack(rows).mean())


def test_ce_u_counts_the_last_token_of_an_answer_not_longer_than_skip(start: nn.Module) -> None:
    tokens = collate([Encoded((1, 5, 6, 20), 3, False), Encoded((1, 9, 8, 30, 31), 3, False)], 0)
    loss = CEU(skip=1).loss(start, Batch({"forget": tokens}))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert loss.total > 0


def test_altpo_prefers_the_alternate_answer(start: nn.Module, model: nn.Module, batch: Batch) -> None:
    answer, other = (Naive(model, ROWS[name]).sums() - Naive(start, ROWS[name]).sums() for name in ("forget", "alternates"))
    expected = -2 / 0.3 * torch.sigmoid(0.3 * (other - answer)).log().mean()
    same(AltPO(beta=0.3, retain_loss="none").loss(model, batch).total, expected)
    same(AltPO(beta=0.3, retain_weight=2).loss(model, batch).total, expected - 2 * Naive(model, ROWS["retain"]).means().mean())


def test_pdu_flattens_the_logits_before_answer_tokens_and_weighs_the_retain_loss_by_lambda(
    model: nn.Module, batch: Batch
) -> None:
    margins = [(z.max(-1).values - z.mean(-1)).square().mean() for z in Naive(model, ROWS["forget"]).logits]
    retain = -Naive(model, ROWS["retain"]).means().mean()
    carried = dataclasses.replace(batch, carried={"dual": torch.tensor(7.5, dtype=torch.float64)})
    loss = PDU(forget_weight=3).loss(model, carried)
    same(loss.total, 3 * torch.stack(margins).mean() + 7.5 * retain)
    same(loss.parts["dual"], 7.5)


def test_pdu_raises_lambda_above_the_budget_and_lowers_it_below_and_never_under_zero() -> None:
    method = PDU(retain_weight=1, retain_budget=0.5, dual_step=2, dual_warmup=3)
    carried = method.first_carried()
    for epoch, retain, expected in [
        (0.5, 9.0, 1.0),
        (3.0, 9.0, 1.0),
        (3.5, 0.75, 1.5),
        (4.0, 0.25, 1.0),
        (4.5, 0.0, 0.0),
        (5.0, 0.0, 0.0),
    ]:
        carried = method.carry(carried, {"forget": 1.0, "retain": retain}, Progress(1, 10, epoch))
        assert float(carried["dual"]) == pytest.approx(expected)


def test_pdu_of_a_uniform_distribution_is_zero(start: nn.Module, batch: Batch) -> None:
    with torch.no_grad():
        start.lm_head.weight.zero_()
    same(PDU().forget_term(start, batch), 0.0)


def test_llmu_climbs_learns_other_answers_and_holds_the_distribution(start: nn.Module, model: nn.Module, batch: Batch) -> None:
    held = soft_distance(start, model, "retain", 1.0)
    expected = 0.1 * Naive(model, ROWS["forget"]).means().mean() - Naive(model, ROWS["mismatched"]).means().mean() + held
    same(LLMU().loss(model, batch).total, expected)


def test_mismatch_learns_other_answers_and_the_retain_answers(model: nn.Module, batch: Batch) -> None:
    expected = -Naive(model, ROWS["mismatched"]).means().mean() - 3 * Naive(model, ROWS["retain"]).means().mean()
    same(Mismatch(retain_weight=3).loss(model, batch).total, expected)


def soft_distance(start: nn.Module, model: nn.Module, rows: str, t: float) -> Tensor:
    """T^2 KL(start || model), both softened by T, over the vocabulary."""
    found = []
    for z0, z in zip(Naive(start, ROWS[rows]).logits, Naive(model, ROWS[rows]).logits, strict=True):
        p0, p = (z0 / t).softmax(-1), (z / t).softmax(-1)
        found.append(t**2 * (p0 * (p0 / p).log()).sum(-1).mean())
    return torch.stack(found).mean()


def test_scrub_leaves_the_start_model_on_forget_or_comes_back_on_retain(start: nn.Module, model: nn.Module, batch: Batch) -> None:
    retain = -Naive(model, ROWS["retain"]).means().mean()
    for forgets, expected in [
        (1, -soft_distance(start, model, "forget", 4.0)),
        (0, 0.001 * soft_distance(start, model, "retain", 4.0) + retain),
    ]:
        turn = dataclasses.replace(batch, carried={"forgets": torch.tensor(forgets)})
        same(SCRUB().loss(model, turn).total, expected)


def test_scrub_forgets_in_the_epochs_zero_and_two_of_five() -> None:
    """Three steps an epoch: what each of the fifteen steps is told by the one before."""
    method = SCRUB()
    carried, turns = method.first_carried(), []
    for step in range(1, 16):
        turns.append(int(carried["forgets"]))
        carried = method.carry(carried, {}, Progress(step, 15, step / 3))
    assert turns == [1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]
