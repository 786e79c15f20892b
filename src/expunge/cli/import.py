"""`expunge import FILE.pkl --model M --out DIR`."""

from typing import Literal

from pydantic import ConfigDict, Field
from tyro.conf import Positional

from expunge.described import Described
from expunge.records import Seed


class Import(Described):
    """Import a published .pkl of Neuron Adjust or Key Space Detection as a guard; only numpy arrays are read from the pickle."""

    model_config = ConfigDict(frozen=True)

    file: Positional[str]
    """The .pkl file."""
    model: str
    """The model that it was made for: a folder, or a hub id that was loaded before."""
    out: str
    """Folder of the run; it must not exist."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    alpha: float = Field(1.0, gt=0)
    """Key space: radius as a multiple of the file's k (published: 2 for GSM8K, 1.4 for MBPP, 0.06 for languages)."""
    abstention: str = "I cannot answer that."
    """Key space: answer to a closed query."""
    check: Literal["all_steps", "prompt"] = "all_steps"
    """Key space: judge every generated token, as published, or only the prompt."""
    compat: Literal["none", "released"] = "none"
    """Neuron adjust: released computes as the published hook does, including its errors."""
    draw_seed: Seed = 0
    """Neuron adjust: seed of the random draws."""


def run(flags: Import) -> None:
    from expunge.guarding.published import import_guard

    given = flags.model_dump(exclude={"file"})
    manifest = import_guard(flags.file, **given)
    print(f"{flags.out}: {manifest.method['name']} for {manifest.base.path}, claim {manifest.claim}")
