"""Draws loss curves: one small panel per run, with the forget and the retain term of the loss."""

from collections.abc import Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from expunge.report.plots import FORGET, GREY, RETAIN, canvas, compact, quiet_ticks, style, write_svg
from expunge.report.read import RunRecord

WIDTH, PANEL, COLUMNS = 920, 190, 3
TERMS = (("forget", FORGET, "-"), ("retain", RETAIN, (0, (5, 1.6))))
"""Terms of the loss that are drawn, with colour and dash pattern."""


def loss_curves(runs: Sequence[RunRecord], name: str = "curves") -> str | None:
    """Draws the panels; each has its own scale, because losses of different methods cannot be compared."""
    trained = [run for run in runs if run.steps]
    if not trained:
        return None
    rows, head = ceil(len(trained) / COLUMNS), 30
    height = rows * PANEL + head + 8
    with style():
        figure = canvas(WIDTH, height)
        for i, run in enumerate(trained):
            row, column = divmod(i, COLUMNS)
            left, bottom = 52 + column * (WIDTH / COLUMNS), height - head - (row + 1) * PANEL + 40
            axes = figure.add_axes((left / WIDTH, bottom / height, (WIDTH / COLUMNS - 72) / WIDTH, (PANEL - 72) / height))
            _panel(axes, run)
        _key(figure, height)
        return write_svg(figure, name, "Loss of each run, by step", {})


def _panel(axes: Axes, run: RunRecord) -> None:
    quiet_ticks(axes)
    axes.set_title(run.name, pad=7)
    steps = [s.step for s in run.steps]
    parts = [name for name, *_ in TERMS if any(name in s.parts for s in run.steps)]
    drawn = [(name, [s.parts.get(name) for s in run.steps]) for name in parts] or [("loss", [s.loss for s in run.steps])]
    looks = {name: (colour, dash) for name, colour, dash in TERMS} | {"loss": (GREY, "-")}
    for name, values in drawn:
        positions, means = compact(values)
        colour, dash = looks[name]
        axes.plot([_at(steps, p) for p in positions], means, color=colour, linestyle=dash)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.02, y=0.08)
    axes.set_xlabel("step", fontsize=11, labelpad=2)
    axes.set_ylabel("loss", fontsize=11, labelpad=2)


def _at(steps: Sequence[int], position: float) -> float:
    """Returns the step at a position between two lines of the log."""
    before = int(position)
    after = min(before + 1, len(steps) - 1)
    return steps[before] + (position - before) * (steps[after] - steps[before])


def _key(figure: Figure, height: float) -> None:
    x = 52.0
    for name, colour, dash in TERMS:
        y = 1 - 12 / height
        figure.add_artist(Line2D([x / WIDTH, (x + 26) / WIDTH], [y, y], color=colour, linestyle=dash, linewidth=1.8))
        figure.text((x + 34) / WIDTH, y, f"{name} term", ha="left", va="center", fontsize=12, color=colour)
        x += 140
