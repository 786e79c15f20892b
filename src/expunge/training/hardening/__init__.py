"""Wrappers around any training method that make its result harder to undo, one file and one paper each.

    sharpness              the forget terms at the worst weights nearby           --sharpness-aware RHO
    latent_adversary       the forget terms under the worst hidden states nearby  --latent-adversarial
    top_directions         forget gradients without their common directions       --remove-top-directions K
    quantization           the terms also at weights rounded to a format          --quantization-aware FORMAT

They change how the gradient of a step is computed (`training/gradients.py`) and keep nothing between steps, so that a run that is
killed and resumed ends with the same bytes. Terms over retain rows are computed as without them, at weights rounded to the format
too where that is asked for. Any of them can be combined.
"""

from expunge.errors import ExpungeError
from expunge.training.settings import Training


def wrappers(training: Training) -> tuple[str, ...]:
    """Returns the flags of the wrappers in use, with their values, for the card."""
    named = {
        "--sharpness-aware": training.sharpness_aware,
        "--latent-adversarial": training.latent_radius if training.latent_adversarial else None,
        "--remove-top-directions": training.remove_top_directions or None,
        "--quantization-aware": training.quantization_aware,
    }
    return tuple(f"{flag} {value}" for flag, value in named.items() if value is not None)


def check_wrappers(training: Training) -> None:
    """Raises ExpungeError for settings that cannot be combined with a wrapper."""
    used = wrappers(training)
    if used and training.shard != "none":
        raise ExpungeError(
            f"{used[0].split()[0]} needs whole weights and gradients in every process, and --shard {training.shard} splits them; "
            "leave out one of the two"
        )
    if training.latent_adversarial and training.gradient_checkpointing:
        raise ExpungeError(
            "--latent-adversarial perturbs hidden states of each forward pass, and --gradient-checkpointing runs blocks again "
            "without telling for which rows; leave out one of the two (--micro-batch-size saves memory as well)"
        )
