"""`expunge import FILE.pkl --model M --out DIR`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from tyro.conf import Positional

from expunge.records import Seed


class Import(BaseModel):
    """A published .pkl of Neuron Adjust or Key Space Detection as a guard; of the pickle only numpy arrays are read."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    file: Positional[str]
    """The .pkl file."""
    model: str
    """The model that it was made for: a folder, or a hub id that was loaded before."""
    out: str
    """Folder of the run; its artifact is replaced if there is one."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    alpha: float = Field(1.0, gt=0)
    """Key space: radius as a multiple of the file's k (published: 2 for GSM8K, 1.4 for MBPP, 0.06 for languages)."""
    abstention: str = "I cannot answer that."
    """Key space: what a closed query is answered with."""
    check: Literal["all_steps", "prompt"] = "all_steps"
    """Key space: judge every generated token, as published, or the prompt alone."""
    compat: Literal["none", "released"] = "none"
    """Neuron adjust: released computes as the published hook does, faults included."""
    draw_seed: Seed = 0
    """Neuron adjust: of the draws."""


def run(flags: Import) -> None:
    from expunge.guarding.published import import_guard

    given = flags.model_dump(exclude={"file"})
    manifest = import_guard(flags.file, **given)
    print(f"{flags.out}: {manifest.method['name']} for {manifest.base.path}, claim {manifest.claim}")
