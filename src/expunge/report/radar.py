"""Draws groups of tasks as radar charts with one polygon per model, or as bars for groups with two tasks.

Only the corners are measured, so that intervals are drawn as whiskers along the spokes, with the models side by side. The
centre is always 0, since another centre would exaggerate small differences. Up to three runs share one chart; more get a small
chart each, with original and gold in all of them.
"""

from collections.abc import Collection, Sequence
from math import ceil, cos, pi, sin
from textwrap import fill, wrap
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon

from expunge.report.bars import bars
from expunge.report.groups import Group, rim, said, score_of
from expunge.report.plots import COLOURS, DASHES, FORGET, GOLD, GREY, HAIRLINE, INK, sheet, shorten, style, write_svg
from expunge.report.read import RunRecord

WIDTH = 920
TOGETHER = 3
"""Largest number of runs that share one chart."""
SPREAD = 0.07
"""Largest angle between two models at a spoke, in radians."""
RINGS = 4
VISIBLE = 0.05
"""Share of the rim that is visible as a difference."""
LETTER = 0.62
"""Width of a letter relative to its font size."""


class Look(NamedTuple):
    colour: str
    dash: object
    marker: str
    filled: bool


class Placed(NamedTuple):
    """A circle of spokes: its position in pixels, and the value of its rim."""

    x: float
    y: float
    radius: float
    rim: float
    spokes: int

    def at(self, spoke: int, value: float, aside: float = 0.0) -> tuple[float, float]:
        """Returns the position of a value on a spoke; the first spoke points up, and the next ones follow clockwise."""
        angle = 2 * pi * spoke / self.spokes + aside
        reach = self.radius * min(value, self.rim) / self.rim
        return self.x + reach * sin(angle), self.y - reach * cos(angle)


class GroupFigure(NamedTuple):
    """A group with its figure."""

    group: Group
    figure: str
    together: bool
    """All models in one chart."""
    spokes: bool
    """A radar chart; otherwise bars."""
    marks_gone: bool
    """Whether names of spokes are coloured for the run that was to forget them."""


def draw_groups(
    groups: Sequence[Group], references: Sequence[tuple[str, RunRecord]], runs: Sequence[RunRecord], place: str = ""
) -> list[GroupFigure]:
    """Draws one figure for each group in which some run has a score that differs from the original.

    references   (`original` or `gold`, model), drawn in every part of a figure
    place        makes a figure's name differ from that of the same group elsewhere in the page
    """
    drawn = []
    for group in groups:
        shown = [run for run in runs if any(score_of(run, group.suite, asked) for asked in group.spokes)]
        if not shown or not _moved(group, references, shown):
            continue
        name = "-".join(word for word in (place, group.suite, group.name, "radar") if word)
        spokes, together = len(group.spokes) > 2, len(shown) <= TOGETHER
        draw = (_together if together else _apart) if spokes else bars
        with style():
            svg = draw(group, references, shown, name)
        drawn.append(
            GroupFigure(group, svg, together, spokes, spokes and not together and any(_gone(group, run) for run in shown))
        )
    return drawn


def _gone(group: Group, run: RunRecord) -> set[str]:
    """Returns the tasks that only this run was to forget, on which high is good for the others."""
    scores = [score for asked in group.spokes if (score := score_of(run, group.suite, asked))]
    return {s.task for s in scores if s.higher_is_better is False} if any(s.higher_is_better for s in scores) else set()


def _moved(group: Group, references: Sequence[tuple[str, RunRecord]], runs: Sequence[RunRecord]) -> bool:
    """Returns whether some run is visibly different from the original; otherwise the table says more."""
    original = next((model for role, model in references if role == "original"), None)
    if original is None:
        return True
    least = VISIBLE * rim(group, [original, *runs])
    pairs = [(score_of(run, group.suite, a), score_of(original, group.suite, a)) for run in runs for a in group.spokes]
    return any(a and b and a.value is not None and b.value is not None and abs(a.value - b.value) >= least for a, b in pairs)


def look(role: str, index: int = 0) -> Look:
    if role == "original":
        return Look(INK, (0, (4, 2)), "o", False)
    if role == "gold":
        return Look(GOLD, "-", "*", False)
    return Look(COLOURS[index % len(COLOURS)], DASHES[(index // len(COLOURS)) % len(DASHES)], "osD^v"[index % 5], True)


def _together(group: Group, references: Sequence[tuple[str, RunRecord]], runs: Sequence[RunRecord], name: str) -> str:
    models = [model for _, model in references] + list(runs)
    looks = [look(role) for role, _ in references] + [look("run", i) for i in range(len(runs))]
    radius = _radius(group, 168, 12, 300)
    height = 2 * radius + 88
    circle = Placed(310, height / 2, radius, rim(group, models), len(group.spokes))
    figure, axes = sheet(WIDTH, height)
    hovers: dict[str, str] = {}
    _web(axes, group, circle, 12, 300)
    _polygons(axes, group, circle, models, looks, hovers, "m")
    top = height / 2 - 13 * len(models) - 6
    for i, (model, shown) in enumerate(zip(models, looks, strict=True)):
        _sign(axes, 640, top + 26 * i, model.name, shown)
    axes.text(640, top + 26 * len(models) + 10, _scale(circle), color=GREY, fontsize=11, va="center")
    return write_svg(figure, name, group.title, hovers)


def _apart(group: Group, references: Sequence[tuple[str, RunRecord]], runs: Sequence[RunRecord], name: str) -> str:
    columns = 3 if len(group.spokes) <= 9 else 2
    across = WIDTH / columns
    radius = _radius(group, 84 if columns == 3 else 116, 10, across / 2 - 4)
    down, head = 2 * radius + 100, 34.0
    height = head + down * ceil(len(runs) / columns)
    figure, axes = sheet(WIDTH, height)
    hovers: dict[str, str] = {}
    top = rim(group, [*(model for _, model in references), *runs])
    x = 20.0
    for role, model in references:
        x = _sign(axes, x, 14, model.name, look(role)) + 34
    x = _sign(axes, x, 14, "run", look("run")) + 34
    for i, run in enumerate(runs):
        row, column = divmod(i, columns)
        circle = Placed(across * (column + 0.5), head + down * row + 42 + radius + 8, radius, top, len(group.spokes))
        called = shorten(run.name, int(across / 8.5))
        axes.text(circle.x, head + down * row + 8, called, fontsize=12.5, fontweight="bold", ha="center", va="center")
        _web(axes, group, circle, 10, across / 2 - 4, _gone(group, run))
        models = [*(model for _, model in references), run]
        _polygons(axes, group, circle, models, [*(look(role) for role, _ in references), look("run")], hovers, f"m{i}")
        if i == 0:
            axes.text(x, 14, _scale(circle), color=GREY, fontsize=11, va="center")
    return write_svg(figure, name, group.title, hovers)


def _scale(circle: Placed) -> str:
    return f"centre 0, rim {circle.rim:g}, rings every {circle.rim / RINGS:g}"


def _web(axes: Axes, group: Group, circle: Placed, size: float, room: float, gone: Collection[str] = ()) -> None:
    """Draws rings, spokes and their names, which have `room` pixels on either side of the centre."""
    for ring in range(1, RINGS + 1):
        edge = GREY if ring == RINGS else HAIRLINE
        reach = circle.radius * ring / RINGS
        axes.add_patch(Circle((circle.x, circle.y), reach, facecolor="none", edgecolor=edge, linewidth=0.8, zorder=0.5))
    for i, asked in enumerate(group.spokes):
        x, y = circle.at(i, circle.rim)
        axes.plot([circle.x, x], [circle.y, y], color=HAIRLINE, linewidth=0.8, zorder=0.4)
        across, up = sin(2 * pi * i / circle.spokes), cos(2 * pi * i / circle.spokes)
        side = "center" if abs(across) < 0.2 else "left" if across > 0 else "right"
        level = "bottom" if up > 0.8 else "top" if up < -0.8 else "center"
        out = circle.radius + 11
        words = wrap(group.label(asked), max(8, int((room - out * abs(across)) / (LETTER * size))), break_long_words=False)
        ink = FORGET if asked.task in gone else INK
        spot = (circle.x + out * across, circle.y - out * up)
        axes.text(*spot, "\n".join(words), ha=side, va=level, fontsize=size, linespacing=1.1, color=ink)


def _radius(group: Group, most: float, size: float, room: float) -> float:
    """Returns the largest radius that leaves space for the longest word at a spoke."""
    longest = max((len(word) for asked in group.spokes for word in group.label(asked).split()), default=0)
    return max(0.5 * most, min(most, room - 10 - LETTER * size * longest))


def _polygons(
    axes: Axes, group: Group, circle: Placed, models: Sequence[RunRecord], looks: Sequence[Look], hovers: dict[str, str], gid: str
) -> None:
    """Draws a polygon, its corners and its whiskers for each model; a missing score leaves the polygon open."""
    step = min(SPREAD, 0.6 * 2 * pi / circle.spokes / max(1, len(models)))
    for m, (model, shown) in enumerate(zip(models, looks, strict=True)):
        aside, order = step * (m - (len(models) - 1) / 2), 2.0 + 0.01 * m + (1.0 if shown.filled else 0.0)
        corners: list[tuple[float, float] | None] = []
        for i, asked in enumerate(group.spokes):
            score = score_of(model, group.suite, asked)
            if score is None or score.value is None:
                corners.append(None)
                continue
            if score.low is not None and score.high is not None:
                _whisker(axes, [circle.at(i, max(v, 0.0), aside) for v in (score.low, score.high)], shown, order)
            corners.append(circle.at(i, score.value, aside))
            hovers[f"{gid}-{m}-{i}"] = said(group, model.name, asked, score)
            _mark(axes, circle.at(i, score.value, aside), shown, order + 1, f"{gid}-{m}-{i}")
        _outline(axes, corners, shown, order)


def _outline(axes: Axes, corners: Sequence[tuple[float, float] | None], shown: Look, order: float) -> None:
    whole = [corner for corner in corners if corner is not None]
    if shown.filled and len(whole) == len(corners):
        axes.add_patch(Polygon(whole, closed=True, facecolor=shown.colour, alpha=0.10, linewidth=0, zorder=1))
    for corner, after in zip(corners, [*corners[1:], corners[0]], strict=True):
        if corner and after:
            axes.plot(*zip(corner, after, strict=True), color=shown.colour, linestyle=shown.dash, linewidth=1.5, zorder=order)


def _whisker(axes: Axes, ends: Sequence[tuple[float, float]], shown: Look, order: float) -> None:
    axes.plot(*zip(*ends, strict=True), color=shown.colour, linewidth=3.2, alpha=0.38, zorder=order, solid_capstyle="butt")


def _mark(axes: Axes, place: tuple[float, float], shown: Look, order: float, gid: str | None = None) -> None:
    face = shown.colour if shown.filled or shown.marker == "*" else "white"
    edge = INK if shown.marker == "*" else "white" if shown.filled else shown.colour
    size = {"*": 10.0, "o": 5.5}.get(shown.marker, 5.0)
    axes.plot(*zip(place, strict=True), shown.marker, markersize=size, markerfacecolor=face, markeredgecolor=edge,
              markeredgewidth=0.8, zorder=order, gid=gid)  # fmt: skip


def _sign(axes: Axes, x: float, y: float, name: str, shown: Look) -> float:
    """Draws an entry of the legend; returns where it ends."""
    axes.add_artist(Line2D([x, x + 30], [y, y], color=shown.colour, linestyle=shown.dash, linewidth=1.6))
    _whisker(axes, [(x + 15, y - 8), (x + 15, y + 8)], shown, 3)
    _mark(axes, (x + 15, y), shown, 5)
    axes.text(x + 40, y, fill(name, 30), fontsize=12, va="center", ha="left", linespacing=1.0)
    return x + 40 + 7.6 * len(name)
