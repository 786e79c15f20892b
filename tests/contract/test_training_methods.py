"""Every training method keeps the contract: one loop over the closed list."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from expunge.data.encode import Encoded, Tokens, collate
from expunge.methods import METHODS, Batch, RowSet, TrainingMethod
from expunge.models.logprobs import FrozenHead, labelled_hidden, labelled_logits, sequence_sum, token_logprobs

TRAINING = [cls for cls in METHODS.values() if issubclass(cls, TrainingMethod)]
FIELDS: dict[str, dict[str, Any]] = {"rmu": {"layer": 1}}
"""What does not fit a model of two blocks: RMU's default reads block 7."""


def rows(*pairs: tuple[tuple[int, ...], int]) -> list[Encoded]:
    """(prompt and answer, where the answer begins), each with a start and an end token around it."""
    return [Encoded((1, *ids, 2), start, True) for ids, start in pairs]


FORGET = rows(((5, 6, 7, 20, 21), 4), ((9, 8, 30), 3), ((12, 13, 14, 41, 42, 43), 4), ((33, 50), 2))
RETAIN = rows(((15, 16, 27, 28), 3), ((19, 60), 2), ((22, 23, 24, 55, 56), 4), ((44, 45, 46), 3))
OTHER = ((78, 79), (78, 79, 80), (81,), (78,), (82, 83, 84), (85, 20))
"""Refusals, mismatched answers, alternates: what stands in the place of a row's own answer."""


def rows_of(rows: RowSet, chosen: slice) -> list[Encoded]:
    """The rows of a set for the chosen prompts; prompt b has the answers b, b + 1, ... of `OTHER`."""
    own = list(enumerate(FORGET if rows.prompts == "forget" else RETAIN))[chosen]
    if rows.answers == "own":
        return [row for _, row in own]
    return [
        Encoded((*row.ids[: row.answer_start], *OTHER[(b + k) % len(OTHER)], 2), row.answer_start, True)
        for b, row in own
        for k in range(rows.count)
    ]


def frozen(model: nn.Module, tokens: Tokens) -> Tokens:
    """The start model's quantities beside a batch, computed here without the code under test in `reference.py`."""
    with torch.no_grad():
        labelled = labelled_logits(model, tokens)
        logp_B = sequence_sum(token_logprobs(labelled), labelled.row_N, labelled.rows)
        hidden_ND = labelled_hidden(model, tokens).hidden_ND
        renamed_NKD = labelled_hidden(model, renamed(tokens)).hidden_ND[:, None]
    own_B = tokens.input_ids_BT[torch.arange(labelled.rows), name_places(tokens)]
    exchanged_NKS2 = torch.stack([own_B + 1, own_B], dim=1)[labelled.row_N][:, None, None]
    values = {"logprob": logp_B, "hidden": hidden_ND, "renamed": renamed_NKD, "exchanged": exchanged_NKS2}
    return dataclasses.replace(tokens, frozen=values)


def name_places(tokens: Tokens) -> torch.Tensor:
    """The position of each row's first token after the start token, here its name."""
    return tokens.attention_mask_BT.argmax(dim=1) + 1


def renamed(tokens: Tokens) -> Tokens:
    """The rows with the next token in the place of the name."""
    ids_BT = tokens.input_ids_BT.clone()
    ids_BT[torch.arange(len(ids_BT)), name_places(tokens)] += 1
    return dataclasses.replace(tokens, input_ids_BT=ids_BT)


def make_batch(method: TrainingMethod, start: nn.Module, chosen: slice = slice(None), pad: int = 0, side: Any = "right") -> Batch:
    """The row sets that the method names, with every frozen value beside them."""
    sets = {
        name: frozen(start, widen(collate(rows_of(rows, chosen), 0, side), pad, side)) for name, rows in method.row_sets.items()
    }
    weights = {name: p.detach().clone() for name, p in start.named_parameters()}
    return Batch(sets, FrozenHead.of(start), weights, carried=method.first_carried())


def without_frozen(batch: Batch) -> Batch:
    sets: Mapping[str, Tokens] = {name: dataclasses.replace(tokens, frozen={}) for name, tokens in batch.sets.items()}
    return dataclasses.replace(batch, sets=sets, start_head=None, start_weights=None)


def made(cls: type[TrainingMethod]) -> TrainingMethod:
    return cls(**FIELDS.get(cls.method_name(), {}))


def widen(tokens: Tokens, pad: int, side: str) -> Tokens:
    left, right = (pad, 0) if side == "left" else (0, pad)
    values = [(tokens.input_ids_BT, 3), (tokens.attention_mask_BT, 0), (tokens.labels_BT, -100)]
    return Tokens(*(nn.functional.pad(t, (left, right), value=v) for t, v in values))


@pytest.fixture
def start(pico_llama: nn.Module) -> nn.Module:
    return pico_llama


@pytest.fixture
def moved(start: nn.Module) -> nn.Module:
    """A model some way from the start, where no term vanishes by symmetry."""
    import copy

    model = copy.deepcopy(start)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("cls", TRAINING, ids=lambda c: c.method_name())
class TestEveryTrainingMethod:
    def test_the_loss_is_finite_at_the_start(self, cls: type[TrainingMethod], start: nn.Module) -> None:
        method = made(cls)
        loss = method.loss(start, make_batch(method, start))
        assert torch.isfinite(loss.total)
        assert loss.total.shape == ()
        assert all(torch.isfinite(p) and not p.requires_grad for p in loss.parts.values())

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_padding_by_24_changes_no_loss(
        self, cls: type[TrainingMethod], start: nn.Module, moved: nn.Module, side: str
    ) -> None:
        method = made(cls)
        plain = method.loss(moved, make_batch(method, start))
        padded = method.loss(moved, make_batch(method, start, pad=24, side=side))
        torch.testing.assert_close(padded.total, plain.total, rtol=1e-5, atol=1e-6)

    def test_the_loss_of_a_batch_is_the_mean_over_its_halves(
        self, cls: type[TrainingMethod], start: nn.Module, moved: nn.Module
    ) -> None:
        method = made(cls)
        whole = method.loss(moved, make_batch(method, start)).total
        halves = [method.loss(moved, make_batch(method, start, rows)).total for rows in (slice(0, 2), slice(2, 4))]
        torch.testing.assert_close(torch.stack(halves).mean(), whole, rtol=1e-5, atol=1e-6)

    def test_gradients_reach_the_weights_that_require_them_and_no_others(
        self, cls: type[TrainingMethod], start: nn.Module, moved: nn.Module
    ) -> None:
        for name, p in moved.named_parameters():
            p.requires_grad_("layers.1.mlp" in name)
        method = made(cls)
        method.loss(moved, make_batch(method, start)).total.backward()
        reached = {n for n, p in moved.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert reached == {n for n, _ in moved.named_parameters() if "layers.1.mlp" in n}

    def test_the_forget_answers_become_less_probable(self, cls: type[TrainingMethod], start: nn.Module, moved: nn.Module) -> None:
        """Except for the methods that only teach another answer, whose forget prompts must take up that answer."""
        if cls.method_name() in ("rmu", "pdu", "scrub"):
            pytest.skip(
                "its forget term looks at no label, and this random model never learned the answers: their change can be any"
            )
        method = made(cls)
        batch = make_batch(method, start)
        taught = {"idk": "refusals", "mismatch": "mismatched"}.get(method.method_name())
        known = batch[taught or "forget"]
        before = answer_logprob(moved, known)
        for _ in range(5):
            moved.zero_grad()
            method.loss(moved, batch).total.backward()
            with torch.no_grad():
                norm = torch.stack([p.grad.norm() for p in moved.parameters() if p.grad is not None]).norm()
                for p in moved.parameters():
                    if p.grad is not None:
                        p -= 3e-2 * p.grad / norm
        after = answer_logprob(moved, known)
        assert after > before if taught else after < before

    def test_it_says_where_it_comes_from(self, cls: type[TrainingMethod]) -> None:
        assert "arXiv" in cls.paper
        assert cls.formula.startswith("L = ")
        assert cls.cost
        assert cls.__doc__
        assert all(info.description for name, info in cls.model_fields.items() if name != "name")

    def test_what_it_needs_it_also_uses(self, cls: type[TrainingMethod], start: nn.Module) -> None:
        """Without the frozen quantities the loss must fail, and with nothing but the named ones it must not."""
        method = made(cls)
        batch = make_batch(method, start)
        stripped = without_frozen(batch)
        if method.needs_start_weights or any(rows.frozen for rows in method.row_sets.values()):
            with pytest.raises((KeyError, ValueError)):
                method.loss(start, stripped)
        else:
            assert torch.isfinite(method.loss(start, stripped).total)

    def test_terms_backpropagated_one_by_one_give_the_gradient_of_the_whole(
        self, cls: type[TrainingMethod], start: nn.Module, moved: nn.Module
    ) -> None:
        method = made(cls)
        batch = make_batch(method, start)
        method.loss(moved, batch).total.backward()
        whole = {name: p.grad.clone() for name, p in moved.named_parameters() if p.grad is not None}
        moved.zero_grad(set_to_none=True)
        for term in method.terms(moved, batch):
            (term.weight * term.value).backward()
            assert term.rows in method.row_sets
        apart = {name: p.grad for name, p in moved.named_parameters() if p.grad is not None}
        assert apart.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(apart[name], gradient, rtol=1e-4, atol=1e-6)

    def test_one_small_step_down_the_gradient_lowers_the_loss(
        self, cls: type[TrainingMethod], start: nn.Module, moved: nn.Module
    ) -> None:
        """The loss whose weights or target are held constant in the gradient is compared as that: at its own start value."""
        method = made(cls)
        batch = make_batch(method, start)
        before = method.loss(moved, batch).total
        before.backward()
        norm = torch.stack([p.grad.norm() for p in moved.parameters() if p.grad is not None]).norm()
        assert torch.isfinite(norm)
        assert norm > 0
        if method.method_name() not in ("wga", "satimp", "ce_u"):
            with torch.no_grad():
                for p in moved.parameters():
                    if p.grad is not None:
                        p -= 1e-2 * p.grad / norm
            assert method.loss(moved, batch).total < before


def answer_logprob(model: nn.Module, tokens: Tokens) -> float:
    with torch.no_grad():
        return float(token_logprobs(labelled_logits(model, tokens)).mean())
