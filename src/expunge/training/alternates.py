"""Generates alternative answers to the forget prompts with the start model before the loop, and saves them in the run's folder.

    OUT/alternates.jsonl   one line per forget row: its id, the answers in the order in which they were drawn, and a hash of both

A row's answers depend only on the model, the row and the seed, so that a run that was killed meanwhile reuses those in the file,
unless a line does not fit its hash: somebody changed it. The file holds generated answers, and no text of the forget set.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from torch import nn

from expunge.data.encode import Encoder
from expunge.data.example import Example
from expunge.errors import ExpungeError
from expunge.methods.training.base import AnswerDrawer, Asking, TrainingMethod
from expunge.processes import is_main, join, place
from expunge.progress import Progress
from expunge.records import write_text
from expunge.training.data import AnswerPool, TrainingData

FILE = "alternates.jsonl"
ROWS = 32
"""Number of forget rows that are generated and saved at a time."""


def with_alternates(
    data: TrainingData,
    examples: Sequence[Example],
    method: TrainingMethod,
    model: nn.Module,
    encoder: Encoder,
    draw: AnswerDrawer | None,
    folder: Path,
    seed: int,
    *,
    quiet: bool = False,
) -> TrainingData:
    """Returns the data with the answers that the start model generated for each of the forget `examples`.

    Raises ExpungeError if it generated no answer for a row.
    """
    if draw is None:
        raise ExpungeError(f"{method.method_name()} asks the model for answers; run it with expunge.unlearn, which does so")
    assert method.asking is not None
    join()
    known = _written(folder / FILE, method.asking.draws)
    _write(place(model), encoder, examples, known, method.asking, draw, folder / FILE, seed, quiet=quiet)
    answers = [tuple(text for text in known[example.id] if text) for example in examples]
    if empty := sum(not own for own in answers):
        raise ExpungeError(
            f"the model wrote no alternate answer for {empty} of {len(answers)} forget rows; give another --instruction or more "
            "--draws, or bring wrong answers with the rows (--alternates perturbed)"
        )
    return replace(data, pools={**data.pools, "alternates": AnswerPool.alternates(answers)})


def _write(
    model: nn.Module,
    encoder: Encoder,
    examples: Sequence[Example],
    known: dict[str, tuple[str, ...]],
    asking: Asking,
    draw: AnswerDrawer,
    path: Path,
    seed: int,
    *,
    quiet: bool,
) -> None:
    """Generates answers for the rows that are not in `known`, and adds them to it and to the file at once."""
    left = list({example.id: example for example in examples if example.id not in known}.values())
    if not left:
        return
    if is_main():  # without the half line of a killed run
        write_text(path, "".join(_line(id, answers) for id, answers in known.items()))
    with Progress("alternate answers", len(known) + len(left), start=len(known), quiet=quiet or not is_main()) as progress:
        for begin in range(0, len(left), ROWS):
            some = left[begin : begin + ROWS]
            drawn = draw(model, encoder, [asking.prompt(example) for example in some], asking, seed)
            new = {example.id: answers for example, answers in zip(some, drawn, strict=True)}
            known |= new
            if is_main():
                with open(path, "a", encoding="utf-8") as file:
                    file.writelines(_line(id, answers) for id, answers in new.items())
            progress.advance(len(some))


def _line(id: str, answers: Sequence[str]) -> str:
    return json.dumps({"id": id, "alternates": list(answers), "sha256": _hash(id, answers)}, ensure_ascii=False) + "\n"


def _hash(id: object, answers: object) -> str:
    return sha256(json.dumps([id, answers]).encode()).hexdigest()


def _written(path: Path, draws: int) -> dict[str, tuple[str, ...]]:
    """Returns id -> answers, from the complete lines of the file. Raises ExpungeError if a line is not as it was written."""
    found: dict[str, tuple[str, ...]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last end of a line is the half line of a killed run
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, Mapping) or row.get("sha256") != _hash(row.get("id"), row.get("alternates")):
            raise ExpungeError(
                f"{path} was changed since the run wrote it (line {number}); delete the file, so that the answers are drawn again"
            )
        if len(row["alternates"]) == draws:
            found[row["id"]] = tuple(row["alternates"])
    return found
