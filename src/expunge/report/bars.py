"""Draws bar charts of groups of tasks: one panel per group, one row per model."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from expunge.report.groups import Group, TaskMetric, rim, said, score_of
from expunge.report.plots import COLOURS, GOLD, GREY, HAIRLINE, INK, sheet, shorten, write_svg
from expunge.report.read import RunRecord

WIDTH, BAR, LEFT, TOP, FOOT = 920, 22.0, 190.0, 34.0, 30.0
"""Pixels: width of the figure, height of a row, room for names of models, for names of groups, for the scale."""
STEPS = 4
FILLS = {"original": "white", "gold": GOLD}


def bars(group: Group, references: Sequence[tuple[str, RunRecord]], runs: Sequence[RunRecord], name: str) -> str:
    """Draws an SVG: the same scale in all panels, with 0 on the left; thin lines are intervals."""
    models = [*references, *(("run", run) for run in runs)]
    most = rim(group, [model for _, model in models])
    figure, axes = sheet(WIDTH, TOP + BAR * len(models) + FOOT)
    across = (WIDTH - LEFT - 20) / len(group.spokes)
    hovers: dict[str, str] = {}
    for c, asked in enumerate(group.spokes):
        _panel(axes, group, asked, models, (LEFT + across * c, across - 40), most, hovers, f"bar-{c}")
    for r, (_, model) in enumerate(models):
        axes.text(LEFT - 12, TOP + BAR * (r + 0.5), shorten(model.name, 24), fontsize=12, ha="right", va="center")
    return write_svg(figure, name, group.title, hovers)


def _panel(
    axes: Axes,
    group: Group,
    asked: TaskMetric,
    models: Sequence[tuple[str, RunRecord]],
    place: tuple[float, float],
    most: float,
    hovers: dict[str, str],
    gid: str,
) -> None:
    """Draws one group. place: the left end of its bars, and their longest length."""
    left, long = place
    bottom = TOP + BAR * len(models)
    axes.text(left, 14, group.label(asked), fontsize=12.5, fontweight="bold", va="center")
    for step in range(STEPS + 1):
        x = left + long * step / STEPS
        axes.plot([x, x], [TOP, bottom + 4], color=HAIRLINE if step else GREY, linewidth=0.8, zorder=0.5)
        axes.text(x, bottom + 10, f"{most * step / STEPS:g}", fontsize=11, ha="center", va="top")
    for r, (role, model) in enumerate(models):
        score, y = score_of(model, group.suite, asked), TOP + BAR * (r + 0.5)
        if score is None or score.value is None:
            axes.text(left + 4, y, "–", va="center", color=GREY)
            continue
        edge = INK if role == "original" else "none"
        box = Rectangle((left, y - 7), long * score.value / most, 14, facecolor=FILLS.get(role, COLOURS[0]), edgecolor=edge)
        box.set_gid(f"{gid}-{r}")
        axes.add_patch(box)
        hovers[f"{gid}-{r}"] = said(group, model.name, asked, score)
        if score.low is not None and score.high is not None:
            axes.plot([left + long * v / most for v in (score.low, score.high)], [y, y], color=INK, linewidth=1.3, zorder=3)
