"""Writes metrics.jsonl: one line per step."""

import json
from pathlib import Path
from typing import TypedDict


class StepLine(TypedDict):
    """One line of metrics.jsonl."""

    step: int
    """Number of steps done, including this one."""
    loss: float
    parts: dict[str, float]
    """The terms of the loss before their weights: `forget`, `retain`, ..."""
    learning_rate: float
    grad_norm: float
    """Norm of the gradient before clipping."""
    tokens_per_second: float
    seconds: float


def append(log: Path, line: StepLine) -> None:
    """Appends a line to metrics.jsonl."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def note(line: StepLine) -> str:
    """Formats the terms of the loss and the speed for the progress bar."""
    parts = line["parts"]
    return " ".join(f"{name} {value:.3g}" for name, value in parts.items()) + f", {line['tokens_per_second']:.0f} tokens/s"


def cut(log: Path, step: int) -> None:
    """Removes the lines after the checkpoint from which the run is resumed, so that each step is logged once."""
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines()
        kept = [x for x in lines if _step_of(x) <= step]
        log.write_text("".join(x + "\n" for x in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")  # the half line of a killed run
