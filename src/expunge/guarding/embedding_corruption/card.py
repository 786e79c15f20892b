"""Describes a fitted guard for its card: what its gate flags, what it corrupts, and how near the tuning came."""

from collections.abc import Mapping

from torch import Tensor

from expunge.guarding.embedding_corruption.kinds import WITH_STRENGTH
from expunge.guarding.embedding_corruption.mentions import Mentions


def described(state: Mapping[str, Tensor], *, gate: str, rate: float | None, tokens: str, corruption: str, relative: bool) -> str:
    """Returns a few sentences with the rates that were measured on prompts that the gate was not trained on.

    rate   of flagged retain prompts that the threshold was calibrated to; None: it was given
    """
    flagged, wrong = (float((state[f"calibration.{name}"] < 1).double().mean()) for name in ("forget", "retain"))
    bound = "" if rate is None else f" (calibrated to at most {rate:.1%})"
    general = ""
    if "calibration.general" in state:
        general_N = state["calibration.general"]
        general = f" and {float((general_N < 1).double().mean()):.1%} of {len(general_N)} general prompts"
    named = ""
    if "gate.mentions" in state:
        mentions = Mentions.of_tensor(state["gate.mentions"])
        parts = f", or one of {len(mentions.parts)} parts of them by itself" if mentions.parts else ""
        named = f" One that has any of {len(mentions.names)} names of the forget set{parts} scores 1."
    text = (
        f"The {gate} gate flags prompts that score above {float(state['threshold']):.4g}: {flagged:.1%} of the forget "
        f"prompts, and {wrong:.1%} of {len(state['calibration.retain'])} retain prompts{general} that it was not trained "
        f"on{bound}.{named} Of flagged prompts it corrupts {tokens.replace('_', ' ')} by {corruption}, "
        f"{int(state['dims'])} coordinates"
    )
    if corruption in WITH_STRENGTH:
        text += f", strength {float(state['strength']):.3g}{' embedding RMS' if relative else ''}"
    if "tuning.distance" in state:
        text += f"; {int(state['tuning.tried'])} settings tried, distance to the surrogate {float(state['tuning.distance']):.3g}"
    if "tuning.reported" in state:
        text += f", and {float(state['tuning.reported']):.3g} on forget rows that were not tuned on"
    return text + "."
