"""Task-vector negation: fine-tunes on the forget set, and subtracts the change of the weights from the start model."""

from typing import ClassVar, Literal

from pydantic import Field

from expunge.methods.base import ComposedMethod
from expunge.methods.training.finetune import FineTune


class TaskVectorNegation(ComposedMethod):
    """theta_u = theta_0 - scale (theta_ft - theta_0), where theta_ft is theta_0 fine-tuned on the forget set by cross-entropy.

    With --lora the task vector is s B A: the result is the same adapter with the sign of B flipped and s multiplied by `scale`,
    exact to the bit. With full weights, or `merged`, the difference is
    subtracted tensor by tensor from files; a second model is never built.

    The fine-tuned expert stays in RUN/expert: `--resume` with another --scale uses it again and trains nothing.
    The scale trades forgetting against all other abilities, so sweep it. No retain set is used. The expert shows more of what is
    to be forgotten; `keep_expert` false deletes it.
    """

    paper: ClassVar[str] = "Ilharco et al. 2023, arXiv 2212.04089; with LoRA: Zhang et al. 2023, arXiv 2306.14870"
    formula: ClassVar[str] = "theta = theta_start - scale (theta_finetuned_on_forget - theta_start)"
    cost: ClassVar[str] = "fine-tuning on the forget set, then one pass over the weights; with LoRA over the adapter"
    purpose: ClassVar[str] = "a behaviour or text style: learns it, then subtracts it"
    weakness: ClassVar[str] = "one scale for everything; facts survive it"
    stage_rate: ClassVar[float | None] = FineTune.learning_rate

    name: Literal["task_vector_negation"] = "task_vector_negation"
    scale: float = Field(1.0, gt=0)
    """Factor of the subtracted difference (lambda)."""
    parameters: str = ".*"
    """Regular expression; the weights whose full name it matches are fine-tuned, or with --lora get adapters."""
    merged: bool = False
    """Write a complete model also where the expert is an adapter."""
    keep_expert: bool = True
    """Leave the fine-tuned expert in the run's folder, so that other scales need no training."""
