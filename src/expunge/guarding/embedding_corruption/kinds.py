"""Names the corruptions and the threshold rules; imports no torch, since the method's fields use it."""

from typing import Literal, get_args

Kind = Literal[
    "rand_noise_first_n",
    "rand_noise_rand_n",
    "rand_noise_top_k",
    "set_rand_noise_first_n",
    "zero_out_first_n",
    "zero_out_top_k",
    "flip_sign_first_n",
    "flip_sign_top_k",
    "sub_value_first_n",
    "add_value_first_n",
    "sub_value_top_k",
    "add_value_least_k",
    "reverse_order",
    "shuffle",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
WITH_STRENGTH = frozenset(kind for kind in KINDS if "noise" in kind or "value" in kind)
"""The corruptions that read `strength`."""
PERMUTING: frozenset[Kind] = frozenset({"reverse_order", "shuffle"})

Rule = Literal["fixed", "simple", "conformal", "class_conditional"]
"""How the threshold of a gate is set."""

Level = Literal["none", "names", "parts"]
"""Which names in a prompt make a guard act, whatever its gate says."""
