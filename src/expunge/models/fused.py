"""Replaces a model's norms and gated MLP products by Liger's fused kernels, which give the same values with less memory
traffic.

Only the modules of one model are replaced, and only inside the context: Liger's own patches change the classes of transformers
for the whole process, and with them the modules that guards and probes read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Model types whose RMSNorm is w * x / rms(x) with the quotient in float32, and whose MLP is down(silu(gate(x)) * up(x))."""


def available(device_type: str) -> bool:
    """Returns whether Liger is installed and there is a GPU that its kernels run on."""
    return device_type == "cuda" and find_spec("liger_kernel") is not None


@contextmanager
def fused(model: nn.Module) -> Iterator[int]:
    """Context manager in which norms and MLPs of the known families are computed by Liger; yields the number of these modules.

    A module that has hooks keeps its own computation, since its inner modules would not be called.
    """
    norms, mlps = ({f"{family}{part}" for family in FAMILIES} for part in ("RMSNorm", "MLP"))
    changed = []
    try:
        for module in model.modules():
            name = type(module).__name__
            if name in norms and "forward" not in vars(module):
                module.forward = _norm(module)
            elif name in mlps and "forward" not in vars(module) and not _is_read(module):
                module.forward = _mlp(module)
            else:
                continue
            changed.append(module)
        yield len(changed)
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _is_read(mlp: nn.Module) -> bool:
    silu = type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
    return not silu or any(part._forward_hooks or part._forward_pre_hooks for part in mlp.modules())


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    from liger_kernel.ops import LigerRMSNormFunction

    def forward(hidden_BTD: Tensor) -> Tensor:
        normed_BTD: Tensor = LigerRMSNormFunction.apply(
            hidden_BTD, module.weight, module.variance_epsilon, 0.0, "llama", False, None
        )
        return normed_BTD

    return forward


def _mlp(module: Any) -> Callable[[Tensor], Tensor]:
    from liger_kernel.ops import LigerSiLUMulFunction

    def forward(hidden_BTD: Tensor) -> Tensor:
        whole_BTD: Tensor = module.down_proj(LigerSiLUMulFunction.apply(module.gate_proj(hidden_BTD), module.up_proj(hidden_BTD)))
        return whole_BTD

    return forward
