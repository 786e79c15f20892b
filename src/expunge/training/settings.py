"""Defines the training settings: learning rate, length, batch, precision, adapters, sharding."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from expunge.described import Described
from expunge.records import Seed, level

Auto = Literal["auto"]


def _auto(value: object) -> object:
    return "auto" if value is None else value


def _above_zero(value: float | str) -> float | str:
    if not isinstance(value, str) and value <= 0:
        raise ValueError("has to be above 0")
    return value


Rounding = Literal["int8_channel", "int8_group", "int4_channel", "int4_group", "nf4", "q4_0"]
"""The formats of `models/rounding.py`."""
Rate = Annotated[float | Auto, BeforeValidator(_auto), AfterValidator(_above_zero)]
Count = Annotated[int | Auto, BeforeValidator(_auto), AfterValidator(_above_zero)]
"""A number, or left to expunge. (A bound on one side of the union would be reported by the name of that side.)"""


class Training(Described):
    """How the weights are trained, whatever the method."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @field_validator("*")
    @classmethod
    def _is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, float) and math.isnan(value):
            raise ValueError("nan is not a number")
        if value == math.inf and info.field_name != "max_grad_norm":  # where it means no clipping
            raise ValueError("has to be finite")
        return value

    @model_validator(mode="after")
    def _is_an_adapter(self) -> "Training":
        if self.adapter != "lora" and not self.lora:
            raise ValueError("adapter ia3 is trained in place of full weights; give --lora (lora: true) with it")
        return self

    learning_rate: Rate = "auto"
    """Peak learning rate of AdamW. auto: the method's own at 7 billion weights, more for smaller models and LoRA."""
    epochs: Rate = "auto"
    """Passes over the forget set; ignored when `steps` is given. auto: until the answers are unknown, or 10."""
    steps: Count = "auto"
    """Optimizer steps. auto: by `epochs`; where that is auto too, at least 60, and 200 with `stop_when_unknown`."""
    batch_size: int = Field(32, ge=1)
    """Forget rows of one step over all processes, and as many retain rows; a set with fewer rows is in each step as a whole."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Most rows of one set in a forward pass; fewer need less memory, with the same result. Default: bounded by tokens."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after the warm-up: constant, or decreasing to zero linearly or along a half cosine."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps during which the learning rate rises from zero."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the second moment; some published settings have 1e-6."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient of the trained weights is scaled down to this norm."""
    seed: Seed = 0
    """Seed of the order of rows, of drawn refusals, of dropout and of LoRA's start."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; the weights being trained stay in the model's dtype. auto: that of the model's weights,
    also for the float32 adapters beside bfloat16 weights."""
    kernels: Literal["auto", "none"] = "auto"
    """auto: on a GPU, Liger's kernels for norms and gated products where the package liger-kernel is installed and knows the
    model; the same values to rounding. none: the model's own."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora: bool = False
    """Train adapters on the matched linear layers and write an adapter instead of a complete model."""
    adapter: Literal["lora", "ia3"] = "lora"
    """With `lora`: the kind of the adapters. `lora`: low-rank factors, of the rank, scale and dropout below. `ia3`: (IA)^3,
    vectors that multiply keys, values and the inner activations of MLPs; far fewer weights, which need a larger learning rate."""
    lora_rank: int = Field(8, ge=1)
    """Rank of the adapters."""
    lora_alpha: float = Field(16.0, gt=0)
    """Scale of the adapters: the change is (alpha / rank) B A."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints, from which `--resume` goes on."""
    stop_when_unknown: bool = False
    """Stop as soon as the forget answers are no more probable than the holdout answers, which the model was never trained on.
    Without a holdout set, the forget rows under other names are used. Default if steps, epochs and `until` are not given and the
    method forgets answers."""
    until: Annotated[float | Literal["never-seen"] | None, AfterValidator(level)] = None
    """Stop when the mean probability of the forget answers is this; `never-seen` is `stop_when_unknown`. With steps auto,
    there are as many steps as this needs, within a bound."""
    unknown_share: float = Field(1.0, gt=0, le=1)
    """With `stop_when_unknown`: how probable the forget answers are to be at the end, as a share of the holdout answers'. Below 1
    where the holdout rows have lucky guesses among them, or a method leaves all rows equally improbable."""
    stop_by_row: bool = False
    """With `stop_when_unknown`: a forget row takes no part in the steps while its answer is no more probable than the holdout
    answer of the same rank, so that no row is forgotten much further than rows never seen while the others still are. The words
    that an answer repeats from its prompt, such as a person's name, are compared by themselves."""
    keep_retain: float = Field(0.95, ge=0, le=1)
    """For a run that stops by itself: whenever the retain answers are less probable than this share of their original
    probability, steps on the retain rows only restore them before forgetting continues. 0: never."""
    stop_every: int = Field(5, ge=1)
    """Steps between the checks whether to stop: of `stop_when_unknown`, `until`, and of a method's own rule."""
    disruption_budget: float | None = Field(None, gt=0)
    """End the run where the model has changed by this much on neutral text: mean KL(start || model) in nats per token of
    `--neutral`, by default of WikiText; published: 0.01."""
    sharpness_aware: float | None = Field(None, gt=0)
    """Compute the forget terms at the worst weights within this distance (rho; published: 0.01), so that relearning brings less
    back. Twice the cost of a step."""
    latent_adversarial: bool = False
    """Compute the forget terms under the worst perturbation of a hidden state, so that latent attacks bring less back. Five times
    the cost of the forget terms."""
    latent_radius: float = Field(0.2, gt=0)
    """Longest perturbation for `latent_adversarial`, as a share of the hidden state's length."""
    remove_top_directions: int = Field(0, ge=0)
    """Remove this many of the largest singular vectors from the forget gradient of each matrix: changes in common directions harm
    other knowledge and are undone by relearning. 0: none."""
    quantization_aware: Rounding | None = None
    """Compute all terms also at weights rounded to this format, and stop only when the answers are unknown there too, so that
    this rounding brings less back. Twice the cost of a step."""
    shard: Literal["none", "fsdp2"] = "none"
    """Under torchrun: none is data parallel with a copy on every process, fsdp2 shards weights and moments."""
    track: Literal["none", "wandb", "mlflow", "tensorboard"] = "none"
    """Also send metrics to a tracker (extra `track`); metrics.jsonl is always written."""
