"""Measures on a few prompts (canaries) whether a guard acts: when it is fitted, and whenever it is attached.

canary.ids, canary.length   prompts as tokens, forget prompts first
canary.forget               number of forget prompts among them
canary.effect               change of the next-token distribution that the guard makes after each prompt (total variation)
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expunge.data.encode import Encoded, Encoder, collate
from expunge.data.example import Example, Request
from expunge.errors import ExpungeError
from expunge.methods.base import GuardingMethod, State
from expunge.models.load import causal_model
from expunge.models.logprobs import labelled_logits

NOTICEABLE = 0.02
"""Mean effect on the forget canaries below which a guard counts as ineffective."""


def with_canaries(method: GuardingMethod, model: nn.Module, state: State, request: Request, encoder: Encoder) -> State:
    """Returns the state with prompts of the request and the guard's effect on each; warns if it has none."""
    rows = [*_some(request.forget, encoder, method.canaries), *_some(request.retain, encoder, method.canaries)]
    plain_CV = next_token(model, rows, encoder.pad_id)
    with method.attach(model, state, encoder):
        effect_C = distance(plain_CV, next_token(model, rows, encoder.pad_id))
    forget = min(method.canaries, len(request.forget))
    if effect_C[:forget].mean() < NOTICEABLE:
        warnings.warn(
            "the guard hardly changes the next token after its forget canaries (total variation "
            f"{float(effect_C[:forget].mean()):.3f}); loading it cannot check whether it acts",
            stacklevel=2,
        )
    width = max(len(row.ids) for row in rows)
    ids_CT = torch.tensor([[*row.ids, *[encoder.pad_id] * (width - len(row.ids))] for row in rows])
    lengths_C = torch.tensor([len(row.ids) for row in rows])
    return state.having(
        {"canary.ids": ids_CT, "canary.length": lengths_C, "canary.effect": effect_C, "canary.forget": torch.tensor(forget)}
    )


def canaries(state: State) -> list[Encoded]:
    """Returns the prompts that the state stores; None if it was fitted without."""
    if "canary.ids" not in state:
        return []
    pairs = zip(state["canary.ids"].tolist(), state["canary.length"].tolist(), strict=True)
    return [Encoded(tuple(ids[:length]), 1, False) for ids, length in pairs]


def check(method: GuardingMethod, state: State, effect_C: Tensor, *, refuse: bool) -> None:
    """Raises ExpungeError unless at least half of the recorded effect is measured; other kernels change some decisions.

    refuse   raise; otherwise only warn
    """
    forget = int(state["canary.forget"])
    recorded, found = float(state["canary.effect"][:forget].mean()), float(effect_C[:forget].mean())
    if recorded < NOTICEABLE or found >= recorded / 2:
        return
    message = (
        f"the {method.method_name()} guard does not act on this model: it changes what follows its {forget} canary prompts by "
        f"{found:.3f} where {recorded:.3f} was recorded; give the model, dtype and tokenizer that it was fitted on"
    )
    if refuse:
        raise ExpungeError(message)
    warnings.warn(message, stacklevel=3)


@torch.no_grad()
def next_token(model: nn.Module, rows: Sequence[Encoded], pad_id: int) -> Tensor:
    """Computes the distribution of the token after each row, float32 [C, V]: scored as the first token of an answer."""
    device = causal_model(model).device
    asked = [Encoded((*row.ids, 0), len(row.ids), False) for row in rows]
    return torch.cat(
        [labelled_logits(model, collate([row], pad_id).to(device)).logits_NV.float().softmax(-1).cpu() for row in asked]
    )


def distance(one_CV: Tensor, other_CV: Tensor) -> Tensor:
    """Computes the total variation distance of the distributions in each row, 0 to 1."""
    return (one_CV - other_CV).abs().sum(dim=-1) / 2


def _some(examples: Sequence[Example], encoder: Encoder, count: int) -> list[Encoded]:
    """Returns prompts of up to `count` examples, evenly spaced; for raw text, the whole text."""
    stride = max(1, len(examples) // max(1, count))
    chosen = examples[::stride][:count]
    rows = encoder.encode_many(chosen)
    return [
        row if e.prompt is None else Encoded(row.ids[: row.answer_start], 1, False) for e, row in zip(chosen, rows, strict=True)
    ]


def effects(state: State) -> tuple[list[bool], list[bool]]:
    """Returns (forget, retain): whether the guard acts on each canary prompt of the set."""
    acts = [float(effect) >= NOTICEABLE for effect in state["canary.effect"]]
    forget = int(state["canary.forget"])
    return acts[:forget], acts[forget:]
