"""`expunge quickstart [--out DIR] [--seed N]`."""

import os
from pathlib import Path

from pydantic import ConfigDict

from expunge.described import Described
from expunge.folders import check_place
from expunge.records import Seed


class Quickstart(Described):
    """Run the whole workflow without network: make an invented world, train a small model on it and the gold model that never
    saw the forget set, unlearn with six methods, evaluate, and write report/index.html."""

    model_config = ConfigDict(frozen=True)

    out: str = "quickstart"
    """Folder for everything; an interrupted quickstart in it is resumed."""
    seed: Seed = 0
    """Seed of the world, of the models and of the runs."""


def run(flags: Quickstart) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # many small models are loaded and saved, each with a bar that says nothing
    from expunge.quickstart import quickstart

    check_place(Path(flags.out))
    quickstart(Path(flags.out), seed=flags.seed)
