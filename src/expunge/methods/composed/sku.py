"""SKU: trains a model to answer harmfully with three losses, and subtracts the change of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from expunge.data.encode import Tokens
from expunge.data.example import Request
from expunge.data.places import IGNORED
from expunge.errors import ExpungeError
from expunge.methods.base import ComposedMethod
from expunge.methods.training.base import FORGET, Batch, RowSet, Term, TrainingMethod
from expunge.methods.training.retain import cross_entropy

if TYPE_CHECKING:
    from torch import Tensor, nn


Scales = Annotated[tuple[float, ...], BeforeValidator(lambda value: (value,) if isinstance(value, int | float) else value)]

RELEASED_START = 2
"""Position at which the random disassociation loss starts in the released code: the number of keys of a tokenizer's output
(K1)."""
RELEASED_PAD = 1
"""The id that the released code takes for padding: correct for OPT, but Llama's start token (K3)."""


def guided_distortion(model: nn.Module, tokens: Tokens, *, released: bool = False) -> Tensor:
    """-log p(harmful answer | prompt): the mean over rows of the mean over answer tokens, in nats.

    released  without the first token of each answer (the space before it is counted to the prompt, K2)
    """
    if not released:
        return cross_entropy(model, tokens)
    first_B = (tokens.labels_BT != IGNORED).long().argmax(dim=1)
    return _released_loss(model, tokens, first_B)


def random_disassociation(model: nn.Module, tokens: Tokens, *, released: bool = False) -> Tensor:
    """-log p(harmful answer to another prompt | prompt), over K such rows a prompt: the mean over rows, in nats per token.

    released  over the prompt's tokens too, from the third on (K1)
    """
    import torch

    if not released:
        return cross_entropy(model, tokens)
    starts_B = torch.full_like(tokens.labels_BT[:, 0], RELEASED_START)
    return _released_loss(model, tokens, starts_B)


def preservation_divergence(model: nn.Module, batch: Batch, tokens: Tokens, cap: float | None) -> Tensor:
    """-KL(p_start || p) on the answers to normal prompts: the mean over rows of the mean over answer tokens, in nats.

    Training makes it ever more negative, away from the start model; the subtraction reverses this direction. A token whose
    divergence is above `cap` adds the cap, and no gradient.
    """
    from expunge.models.logprobs import kl_divergence, labelled_logits, sequence_mean

    labelled = labelled_logits(model, tokens)
    kl_N = kl_divergence(batch.start_logits(tokens), labelled.logits_NV)
    if cap is not None:
        kl_N = kl_N.clamp(max=cap)
    return -sequence_mean(kl_N, labelled.row_N, labelled.rows).mean()


def result_divergence(model: nn.Module, batch: Batch, tokens: Tokens, scale: float) -> Tensor:
    """KL(p_start || p_result) on the answers to normal prompts: the mean over rows of the mean over answer tokens, in nats.

    The result is the model that the subtraction will make of the present weights theta, with theta_0 - scale (theta - theta_0) in
    place of the trained ones. The gradient with respect to theta follows by the chain rule, -scale times that at the result.
    """
    from torch import nn
    from torch.func import functional_call

    from expunge.models.load import causal_model
    from expunge.models.logprobs import kl_divergence, labelled_logits, sequence_mean

    if batch.start_weights is None:
        raise ValueError("this batch carries no start weights: the loop must see `needs_start_weights`")

    class Pass(nn.Module):
        """One forward pass as a module, so that it can be called with other weights."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = causal_model(model)

        def forward(self) -> tuple[Tensor, Tensor, int]:
            found = labelled_logits(self.inner, tokens)
            return found.logits_NV, found.row_N, found.rows

    at = {f"inner.{name}": weight for name, weight in subtracted(causal_model(model), batch.start_weights, scale).items()}
    logits_NV, row_N, rows = functional_call(Pass().train(model.training), at, ())
    kl_N = kl_divergence(batch.start_logits(tokens), logits_NV)
    found: Tensor = sequence_mean(kl_N, row_N, rows).mean()
    return found


def subtracted(model: nn.Module, start: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Returns theta_0 - scale (theta - theta_0) of the trained weights, by name, as differentiable tensors.

    A LoRA product is turned by its factor B alone, which starts at zero; a vector of (IA)^3 starts at one.
    """
    found = {}
    for name, weight in model.named_parameters():
        if name in start and not any(factor in name for factor in ("lora_A", "lora_embedding_A")):
            found[name] = start[name] - scale * (weight - start[name])
    return found


def _released_loss(model: nn.Module, tokens: Tokens, starts_B: Tensor) -> Tensor:
    """Mean over rows of  (sum over t >= s of l_t) / #{t >= s: id_t is not 1},  l_t the loss of token t + 1 and 0 before padding.

    Where the pad id is not 1, padding lowers the mean, and the last position counts in the divisor though nothing follows it.
    """
    import torch

    from expunge.models.logprobs import labelled_logits, sequence_sum, token_logprobs

    places_T = torch.arange(tokens.input_ids_BT.shape[1], device=tokens.input_ids_BT.device)
    counted_BT = places_T >= starts_B[:, None]
    learned_BT = (places_T > starts_B[:, None]) & (tokens.attention_mask_BT == 1)
    learned = Tokens(tokens.input_ids_BT, tokens.attention_mask_BT, tokens.input_ids_BT.masked_fill(~learned_BT, IGNORED))
    below_B = (counted_BT & (tokens.input_ids_BT != RELEASED_PAD)).sum(dim=1).clamp(min=1)
    labelled = labelled_logits(model, learned)
    return -(sequence_sum(token_logprobs(labelled), labelled.row_N, labelled.rows) / below_B).mean()


class Acquisition(TrainingMethod):
    """The first stage of SKU: L = w1 guided distortion + w2 random disassociation + w3 preservation divergence.

    Trains a model that shows the unwanted behavior more strongly. Each term is backpropagated before the next is evaluated, so
    that one graph is in memory at a time; a term of weight 0 is not evaluated.
    """

    paper: ClassVar[str] = "Liu et al. 2024, arXiv 2402.10058"
    formula: ClassVar[str] = "L = w1 CE(harmful) + w2 CE(mismatched harmful) - w3 KL(start || model)(normal)"
    cost: ClassVar[str] = "forward and backward of 1 + K harmful rows and a normal one; hidden states of the normal answers"
    learning_rate: ClassVar[float] = 2e-5

    name: Literal["sku_acquisition"] = "sku_acquisition"
    distortion_weight: float = Field(2.5, ge=0)
    """Weight of guided distortion (epsilon 1)."""
    disassociation_weight: float = Field(2.5, ge=0)
    """Weight of random disassociation (epsilon 2)."""
    preservation_weight: float = Field(1.0, ge=0)
    """Weight of preservation divergence (epsilon 3)."""
    answers: int = Field(5, ge=1)
    """Number of mismatched answers for each prompt (K)."""
    cap: float | None = Field(None, gt=0)
    """Largest divergence of a token that preservation rewards, in nats."""
    result_weight: float = Field(0.0, ge=0)
    """Weight of KL(start || result) on normal answers; 0, as in the paper, leaves it out."""
    result_scale: float = Field(1.0, gt=0)
    """Scale of the subtraction at which the result is taken."""
    compat: Literal["released"] | None = None
    """`released`: reproduce the errors K1 to K3 of the released code."""

    @property
    def needs_start_weights(self) -> bool:
        return self.result_weight > 0

    @property
    def row_sets(self) -> Mapping[str, RowSet]:
        sets = {"forget": FORGET}
        if self.disassociation_weight:
            sets["mismatched"] = RowSet("forget", "forget", self.answers)
        if self.preservation_weight or self.result_weight:
            sets["normal"] = RowSet("retain", frozen=frozenset({"hidden"}))
        return sets

    def terms(self, model: nn.Module, batch: Batch) -> Iterator[Term]:
        released = self.compat == "released"
        if self.distortion_weight:
            yield Term("distortion", guided_distortion(model, batch.forget, released=released), self.distortion_weight)
        if "mismatched" in batch:
            found = random_disassociation(model, batch["mismatched"], released=released)
            yield Term("disassociation", found, self.disassociation_weight, rows="mismatched")
        if self.preservation_weight:
            found = preservation_divergence(model, batch, batch["normal"], self.cap)
            yield Term("preservation", found, self.preservation_weight, rows="normal")
        if self.result_weight:
            found = result_divergence(model, batch, batch["normal"], self.result_scale)
            yield Term("result", found, self.result_weight, rows="normal")


class SKU(ComposedMethod):
    """Two stages. Acquisition trains a model that behaves worse, on harmful prompts and answers (forget) and normal ones:

        guided distortion          CE of the harmful answers
        random disassociation      CE of K harmful answers that belong to other prompts
        preservation divergence    -KL(start || model) on normal answers: away from the start model there, too
        --result-weight            KL(start || result) on normal answers, at the weights after the subtraction (not in the paper)

    Negation subtracts what it learned: theta = theta_0 - scale (theta_acquired - theta_0), so that on normal prompts the result
    moves back to where the start model was. With --lora the adapter's sign is flipped; with full weights the difference is
    subtracted tensor by tensor. No second model is in memory: hidden states of the start model are cached instead.

    The acquired model is harmful; it is deleted when the artifact is in place, unless --keep-harmful. Other scales need no
    training either way: `--scale 0.5 1 2` writes one artifact each, and --resume with another scale computes it from what
    is there.
    """

    paper: ClassVar[str] = "Liu et al. 2024, arXiv 2402.10058"
    formula: ClassVar[str] = (
        "theta = theta_0 - scale (theta_acquired - theta_0), acquired by CE(harmful) + CE(mismatched) - KL(normal)"
    )
    cost: ClassVar[str] = (
        "a training run whose steps have 2 + K rows for each harmful one, then one pass over the weights or adapter"
    )
    purpose: ClassVar[str] = "harmful answers: learns them with distortion, then subtracts"
    weakness: ClassVar[str] = "makes a harmful model on the way"
    stage_rate: ClassVar[float | None] = Acquisition.learning_rate

    name: Literal["sku"] = "sku"
    distortion_weight: float = Field(2.5, ge=0)
    """Weight of guided distortion (epsilon 1)."""
    disassociation_weight: float = Field(2.5, ge=0)
    """Weight of random disassociation (epsilon 2); 0 leaves it out."""
    preservation_weight: float = Field(1.0, ge=0)
    """Weight of preservation divergence (epsilon 3); 0 leaves it out, and no retain set is needed."""
    answers: int = Field(5, ge=1)
    """Number of mismatched answers for each prompt (K), drawn from the forget answers that do not belong to it."""
    cap: float | None = Field(None, gt=0)
    """Largest divergence of a token that preservation rewards, in nats; without it there is no cap, as in the paper."""
    result_weight: float = Field(0.0, ge=0)
    """Weight of a fourth loss, which is not in the paper: KL(start || result) on the normal answers, of the model that the
    subtraction will make. It preserves normal behavior at large scales of the subtraction, at which the three losses do not,
    and takes two copies of the trained weights."""
    result_scale: float = Field(1.0, gt=0)
    """Scale of the subtraction at which that loss takes the result; usually the `scale` of the run."""
    scale: Scales = (1.0,)
    """Factor of the subtracted difference (lambda). The first one is the run's artifact; of several, each is also in
    RUN/scales/SCALE."""
    parameters: str = ".*"
    """Regular expression; the weights whose full name it matches are trained, or with --lora get adapters."""
    merged: bool = False
    """Write a complete model also where the acquired one is an adapter."""
    keep_harmful: bool = False
    """Leave the acquired, harmful model in RUN/acquisition/artifact."""
    compat: Literal["released"] | None = None
    """`released`: train as the released code does. Random disassociation begins at the prompt's third token (K1), guided
    distortion leaves out the first token of each answer (K2), and where the pad id is not 1, padding lowers both losses (K3)."""

    def acquisition(self) -> Acquisition:
        shared = self.model_dump(include=set(Acquisition.model_fields) - {"name"})
        return Acquisition(**shared)

    def require(self, request: Request) -> None:
        check_scales(self.scale, "scale")
        if not (self.distortion_weight or self.disassociation_weight):
            raise ExpungeError("sku learns no harmful answer with both weights 0; give --distortion-weight or the other")
        if (self.preservation_weight or self.result_weight) and not request.retain:
            raise ExpungeError(
                "sku needs normal prompts as its retain set; give --retain, or --preservation-weight 0 (and no --result-weight)"
            )
        if any(example.prompt is None for example in request.forget):
            raise ExpungeError("sku learns answers to prompts, and the forget set has raw text; give prompt and response")


def check_scales(scales: tuple[float, ...], name: str) -> None:
    if not scales or any(scale <= 0 for scale in scales):
        raise ExpungeError(f"--{name} is a number above 0, or several")
    if len(set(scales)) < len(scales):
        raise ExpungeError(f"--{name} names a number twice; give each once")


def as_fields(value: Any) -> dict[str, Any]:
    """Returns the fields of a composed method that affect its training."""
    return {k: v for k, v in dict(value).items() if k not in ("scale", "merged", "keep_harmful")}
