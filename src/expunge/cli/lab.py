"""`expunge lab --out DIR [--seed N] [--size tiny|small] [--gold PART ...]`."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from expunge.described import Described
from expunge.folders import check_no_model
from expunge.records import Seed


class Lab(Described):
    """Make the invented world: its data, and the models base, original and gold, which are measured before they are saved."""

    model_config = ConfigDict(frozen=True)

    out: str
    """Folder for the lab; if it holds the same lab already, missing parts are added."""
    seed: Seed = 0
    """Seed of the world."""
    size: Literal["tiny", "small"] = "tiny"
    """tiny takes a few minutes on two CPU cores; small is two to three times as large."""
    gold: tuple[str, ...] = ()
    """Further gold models, each made without one part: hazard/fumes, hazard/spores, skills/arithmetic, skills/strings,
    languages/NAME, behavior."""


def run(flags: Lab) -> None:
    from expunge.lab.building import build, read_figures

    check_no_model(Path(flags.out))
    lab = build(Path(flags.out), flags.seed, flags.size, flags.gold)
    models = sorted(folder for folder in (lab / "models").iterdir() if not folder.name.startswith("."))
    figures = [read_figures(folder) for folder in models]
    print(" " * 34 + "".join(f"{folder.name:>11}" for folder in models))
    for name in figures[0]:
        print(f"{name:<34}" + "".join(f"{values[name]:>11.2f}" for values in figures))
    print(f"{lab}: the lab is complete; {lab / 'README.md'} says what is where")
