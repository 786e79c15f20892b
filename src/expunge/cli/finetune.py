"""`expunge finetune --model M --data D --out DIR`."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field


def main(words: Sequence[str]) -> None:
    from expunge.cli.runs import Folder, going_on, parse_run
    from expunge.spec import FineTuneRun

    class FineTune(FineTuneRun):
        """Fine-tune by cross-entropy: make the model to unlearn from, or a retain-only model."""

        folder: Folder = Field(...)

    run, folder = parse_run(FineTune, FineTuneRun, "expunge finetune", words, {})
    from expunge.run import execute

    with going_on(Path(folder.out)):
        outcome = execute(run, Path(folder.out), resume=folder.resume, overwrite=folder.overwrite)
    print(f"{outcome.folder}: {outcome.steps} steps; the model is in {outcome.artifact}")
