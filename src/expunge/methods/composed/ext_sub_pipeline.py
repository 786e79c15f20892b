"""Ext-Sub from data: trains an expert and an anti-expert adapter, and subtracts what only the anti-expert has learned."""

from typing import ClassVar, Literal

from pydantic import Field

from expunge.data.example import Request
from expunge.errors import ExpungeError
from expunge.methods.base import ComposedMethod
from expunge.methods.composed.sku import Scales, check_scales
from expunge.methods.training.finetune import FineTune


class ExtSubPipeline(ComposedMethod):
    """Two LoRAs of one start model, trained by cross-entropy from the same seed (with or without --lora): the expert on good
    answers (retain) and the anti-expert on bad ones (forget), best to the same prompts. Then Ext-Sub (`expunge merge ext_sub`):

        W = (1 + alpha/2 ||W-|| / ||W+||) W+ - alpha/2 W-     row by row

    The result is an adapter, of the sum of both ranks, or with --merged a complete model. The authors found that good and bad
    answers should differ strongly. Another --alpha, or another --arithmetic, trains nothing: `--alpha 0.5 1 2` writes one
    artifact each, and --resume takes the adapters as they are while they are kept.
    """

    paper: ClassVar[str] = "Hu et al. 2024, arXiv 2308.08090"
    formula: ClassVar[str] = "theta = theta_0 + (1 + alpha/2 ||W-|| / ||W+||) W+ - alpha/2 W-,  W+ and W- trained adapters"
    cost: ClassVar[str] = "two fine-tunings with adapters, then seconds on a CPU"
    purpose: ClassVar[str] = "as ext_sub, from the examples: trains both adapters first"
    weakness: ClassVar[str] = "two fine-tunings"
    stage_rate: ClassVar[float | None] = FineTune.learning_rate

    name: Literal["ext_sub_pipeline"] = "ext_sub_pipeline"
    alpha: Scales = (1.0,)
    """How much of what the anti-expert has alone is subtracted. The first one is the run's artifact; of several, each is also in
    RUN/scales/ALPHA."""
    arithmetic: Literal["ext_sub", "adapter_subtraction", "expert"] = "ext_sub"
    """`adapter_subtraction`: W+ - alpha W-, the paper's baseline; `expert`: W+ alone."""
    zero_expert: Literal["drop", "subtract"] = "drop"
    """For ext_sub: what to do with rows that the anti-expert changes and the expert does not."""
    rank: int | None = Field(None, ge=1)
    """Largest rank of the result, what it leaves out stated; left out, the sum of both, exactly."""
    parameters: str = ".*"
    """Regular expression; the weights whose full name it matches get adapters."""
    merged: bool = False
    """Write a complete model instead of an adapter."""
    keep_adapters: bool = True
    """Leave both adapters in RUN/expert and RUN/anti_expert, so that another --alpha needs no training. The anti-expert answers
    badly."""

    def require(self, request: Request) -> None:
        check_scales(self.alpha, "alpha")
        if not request.retain:
            raise ExpungeError("ext_sub_pipeline trains its expert on a retain set of good answers; give --retain")
