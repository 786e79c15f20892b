"""Lists the attacks: attempts to recover forgotten knowledge, from the cheapest to the most expensive.

A new attack is one file here and one line in ATTACKS.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from expunge.attacks.ablate import Ablate
from expunge.attacks.base import AttackSpec
from expunge.attacks.cross_lingual import CrossLingual
from expunge.attacks.diff import Diff
from expunge.attacks.evolve import Evolve
from expunge.attacks.gcg import Gcg
from expunge.attacks.in_context import InContext
from expunge.attacks.latent import Latent
from expunge.attacks.membership import Membership
from expunge.attacks.multi_turn import MultiTurn
from expunge.attacks.noise import Noise
from expunge.attacks.patch import Patch
from expunge.attacks.prefix import Prefix
from expunge.attacks.probe import Probe
from expunge.attacks.prune import Prune
from expunge.attacks.quantize import Quantize
from expunge.attacks.relearn import Relearn
from expunge.attacks.rephrase import Rephrase
from expunge.attacks.sample import Sample
from expunge.attacks.soft_prompt import SoftPrompt
from expunge.attacks.steer import Steer
from expunge.errors import ExpungeError, nearest

ATTACKS: tuple[type[AttackSpec], ...] = (
    *(Rephrase, Prefix, InContext, MultiTurn, CrossLingual, Sample, Evolve, Membership),
    *(Probe, Patch, Diff, Quantize, Noise, Prune, Ablate, Steer, Latent, SoftPrompt, Gcg, Relearn),
)
"""In the order of the ladder."""


def attack_class(name: str) -> type[AttackSpec]:
    """Returns the attack of that name. Raises ExpungeError, with the nearest name, for an unknown one."""
    known = {attack.attack_name(): attack for attack in ATTACKS}
    if name not in known:
        raise ExpungeError(f"there is no attack '{name}'{nearest(name, known)}; there are {', '.join(known)}")
    return known[name]


def named(
    names: Sequence[str], *, preset: str | None = None, budget: str = "small", fields: dict[str, Any] | None = None
) -> dict[str, AttackSpec]:
    """Returns label -> attack for names such as `relearn`, `relearn:lucki` or `ladder` (all of them).

    preset   published settings, for every named attack
    budget   small (the defaults) or paper
    fields   settings of one attack, over its preset's

    Raises ExpungeError for an unknown name, preset or field, and for a budget of zero.
    """
    words = [attack.attack_name() for attack in ATTACKS] if list(names) == ["ladder"] else list(names)
    if fields and len(words) != 1:
        raise ExpungeError(f"settings are given for one attack at a time, and {len(words)} are named")
    if budget not in ("small", "paper"):
        raise ExpungeError(f"the budget {budget} is not known; give small or paper")
    found: dict[str, AttackSpec] = {}
    for word in words:
        name, _, own = word.partition(":")
        cls = attack_class(name)
        wanted = own or preset
        settings = {**_preset(cls, wanted or ("paper" if budget == "paper" else "")), **(fields or {})}
        found[f"{name}:{wanted}" if wanted else name] = _made(cls, settings)
    return found


def _preset(cls: type[AttackSpec], name: str) -> dict[str, Any]:
    if not name:
        return {}
    if name not in cls.presets:
        known = ", ".join(cls.presets) or "none"
        raise ExpungeError(f"the attack {cls.attack_name()} has no preset '{name}'{nearest(name, cls.presets)}; it has {known}")
    return dict(cls.presets[name].fields)


def _made(cls: type[AttackSpec], settings: dict[str, Any]) -> AttackSpec:
    try:
        return cls(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "settings"
        known = ", ".join(name for name in cls.model_fields if name != "name")
        raise ExpungeError(
            f"the attack {cls.attack_name()} takes no {field}={first['input']}: {first['msg']}; its settings are {known}"
        ) from None
