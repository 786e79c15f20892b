"""Draws forgetting against retention: one point per model with its intervals, original and gold marked."""

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from expunge.records import Score
from expunge.report.aims import Aim
from expunge.report.effects import KEPT, NEAR_GOLD
from expunge.report.glossary import interval, meaning, number, superscript, task_label
from expunge.report.labels import Box, nearest_edge, place
from expunge.report.plots import BAND, FAMILIES, GOLD, GREY, HAIRLINE, INK, canvas, extent, quiet_ticks, style, write_svg

WIDTH, HEIGHT = 920, 500
LINE, DESCENT = 12.0, 2.5
"""Height of a name and how far letters hang below the line, in pixels: the same for all, so that names sit level with points."""


class Point(NamedTuple):
    name: str
    place: Literal["original", "gold", "method"]
    family: str
    x: Score
    y: Score

    @property
    def at(self) -> tuple[float, float]:
        assert self.x.value is not None
        assert self.y.value is not None
        return self.x.value, self.y.value

    def hover(self) -> str:
        return f"{self.name}: " + ", ".join(_said(score) for score in (self.x, self.y))


def _said(score: Score) -> str:
    assert score.value is not None
    between = interval(score.metric, score.low, score.high)
    return f"{meaning(score.metric).label} {number(score.metric, score.value)}" + (f" ({between})" if between else "")


def drawable(points: Sequence[Point]) -> tuple[list[Point], dict[str, str]]:
    """Returns the points with both values, and name -> reason for the others."""
    whole = [p for p in points if p.x.value is not None and p.y.value is not None]
    return whole, {p.name: p.x.unscored or p.y.unscored or "" for p in points if p not in whole}


def tradeoff(points: Sequence[Point], suite: str, aim: Aim) -> str:
    """Draws what is forgotten (across) and what is kept (up). With gold, a band marks its level; without it, there is no
    target."""
    gone, kept = points[0].x.metric, points[0].y.metric
    with style():
        figure = canvas(WIDTH, HEIGHT)
        axes = figure.add_axes((72 / WIDTH, 58 / HEIGHT, 1 - 92 / WIDTH, 1 - 92 / HEIGHT))
        quiet_ticks(axes)
        _limits(axes, points, gone)
        axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 2.5, 5]))
        task = task_label(aim.gone.task)
        axes.set_xlabel(
            {
                "forget_effect": f"forget effect: {task}   (0 = original, 1 = gold's level)",
                "relative_drop": f"share gone: {task}   (0 = original, 1 = all of it)",
            }.get(gone, f"{meaning(aim.gone.metric).label}: {task}   (lower is better)")
        )
        stays = task_label(aim.stays.task) if aim.stays else ""
        axes.set_ylabel(f"kept: {stays}   (share of original)" if kept == "retain_kept" else f"{meaning(kept).label}: {stays}")
        texts: list[object] = []
        if gone == "forget_effect":
            texts += _regions(axes)
        if kept == "retain_kept":
            axes.axhline(KEPT, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            texts.append(
                axes.text(
                    0.995, KEPT, f"{KEPT:.0%} kept".replace("%", " %"), transform=axes.get_yaxis_transform(), ha="right",
                    va="bottom", color=GREY, fontsize=11,
                )
            )  # fmt: skip
        return _finish(figure, axes, points, f"{suite}-tradeoff", "What is gone against what is kept", texts)


def _regions(axes: Axes) -> list[object]:
    """Draws the band around gold's level, and the regions on either side."""
    low, high = NEAR_GOLD
    axes.axvspan(low, high, color=BAND, linewidth=0, zorder=0.1)
    regions = [(low, "right", "← more is known than gold knows", GREY), ((low + high) / 2, "center", "gold's level", "#16633f")]
    regions.append((high, "left", "over-forgotten →", GREY))
    return [
        axes.text(x + (0.012 if side == "left" else -0.012 if side == "right" else 0) * _span(axes), 1.012, words,
                  transform=axes.get_xaxis_transform(), ha=side, va="bottom", color=colour, fontsize=12)
        for x, side, words, colour in regions
    ]  # fmt: skip


def _span(axes: Axes) -> float:
    left, right = axes.get_xlim()
    return float(right - left)


def _limits(axes: Axes, points: Sequence[Point], gone: str) -> None:
    """Returns limits that include everything with its intervals, from original to beyond the goal, without zooming into
    noise."""
    xs = [v for p in points for v in (p.x.low, p.x.value, p.x.high) if v is not None]
    ys = [v for p in points for v in (p.y.low, p.y.value, p.y.high) if v is not None]
    left, right = min([*xs, 0.0]), max([*xs, 1.3 if gone == "forget_effect" else 1.0])
    axes.set_xlim(left - 0.05 * (right - left), right + 0.06 * (right - left))
    bottom, top = min([*ys, 0.75]), max([*ys, 1.0])
    axes.set_ylim(bottom - 0.06 * (top - bottom), top + 0.08 * (top - bottom))


def quality_tradeoff(points: Sequence[Point], suite: str) -> str:
    """Draws model_utility (across) and forget_quality (up, on a logarithmic scale)."""
    smallest = min(min(p.at[1] for p in points if p.at[1] > 0) if any(p.at[1] > 0 for p in points) else 1e-3, 0.01)
    bottom = floor(log10(smallest)) - 0.6
    with style():
        figure = canvas(WIDTH, HEIGHT)
        axes = figure.add_axes((86 / WIDTH, 58 / HEIGHT, 1 - 106 / WIDTH, 1 - 80 / HEIGHT))
        quiet_ticks(axes)
        axes.axhspan(log10(0.05), 0.35 - 0.02 * bottom, color=BAND, linewidth=0, zorder=0.1)
        xs = [v for p in points for v in (p.x.low, p.x.value, p.x.high) if v is not None]
        spare = max(0.08 * (max(xs) - min(xs)), 0.04)
        axes.set_xlim(min(xs) - spare, max(xs) + spare)
        axes.set_ylim(bottom, 0.35 - 0.02 * bottom)
        step = max(1, ceil(-bottom / 8))
        axes.yaxis.set_major_locator(FixedLocator(list(range(0, floor(bottom), -step))))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda power, _: "1" if power == 0 else f"10{superscript(round(power))}"))
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5]))
        axes.set_xlabel("model utility   (higher is better)")
        axes.set_ylabel("forget quality   (p-value, log scale)")
        note = axes.text(
            0.008, 0.985, "cannot be told apart from gold (p > 0.05)", transform=axes.transAxes, ha="left", va="top",
            color="#16633f", fontsize=11.5,
        )  # fmt: skip
        logged = [p._replace(y=_logged(p.y, smallest)) for p in points]
        hovers = {p.name: p.hover() for p in points}
        return _finish(figure, axes, logged, f"{suite}-quality", "Forget quality against model utility", [note], hovers)


def cost_tradeoff(points: Sequence[Point], name: str, across: str, up: str) -> str:
    """Draws side effects (across, 0 is the original) and the forget score (up): the lower right is best."""
    with style():
        figure = canvas(WIDTH, HEIGHT)
        axes = figure.add_axes((86 / WIDTH, 58 / HEIGHT, 1 - 106 / WIDTH, 1 - 92 / HEIGHT))
        quiet_ticks(axes)
        xs = [v for p in points for v in (p.x.low, p.x.value, p.x.high) if v is not None]
        ys = [v for p in points for v in (p.y.low, p.y.value, p.y.high) if v is not None]
        left, right = min([*xs, -0.04]), max([*xs, 0.01])
        axes.set_xlim(left - 0.08 * (right - left), right + 0.12 * (right - left))
        top = max([*ys, 0.1])
        axes.set_ylim(-0.03 * top, 1.1 * top)
        axes.axvline(0, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5]))
        axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5]))
        axes.set_xlabel(f"{across}   (0 = original)")
        axes.set_ylabel(up)
        note = axes.text(
            1.0,
            1.012,
            "better: down, and right →",
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            color="#16633f",
            fontsize=12,
        )
        return _finish(figure, axes, points, name, f"{up}, against {across}", [note])


def _logged(score: Score, smallest: float) -> Score:
    """Returns the score on the logarithmic axis; a p-value that underflowed to 0 is at the lower edge."""
    assert score.value is not None
    return score.model_copy(update={"value": log10(max(score.value, smallest)), "low": None, "high": None})


def _finish(
    figure: Figure,
    axes: Axes,
    points: Sequence[Point],
    name: str,
    title: str,
    texts: Sequence[object],
    hovers: dict[str, str] | None = None,
) -> str:
    said = hovers or {p.name: p.hover() for p in points}
    gids = {}
    for i, point in enumerate(points):
        gids[f"point-{i}"] = said[point.name]
        _draw(axes, point, f"point-{i}")
    _legend(axes, points)
    taken = [extent(figure, text) for text in texts] + [box for p in points for box in _taken(axes, p)]
    _name(figure, axes, points, taken)
    return write_svg(figure, name, title, gids)


def _draw(axes: Axes, point: Point, gid: str) -> None:
    x, y = point.at
    marker, colour = FAMILIES.get(point.family, FAMILIES["training"])
    if point.place == "gold":
        marker, size, face, edge = "*", 17.0, GOLD, INK
    elif point.place == "original":
        marker, size, face, edge = "o", 10.0, "white", INK
    else:
        size, face, edge = (9.5 if marker == "o" else 8.5), colour, "white"
    bars = INK if point.place != "method" else colour
    if point.x.low is not None and point.x.high is not None:
        axes.plot([point.x.low, point.x.high], [y, y], color=bars, linewidth=1.2, alpha=0.55, zorder=2)
    if point.y.low is not None and point.y.high is not None:
        axes.plot([x, x], [point.y.low, point.y.high], color=bars, linewidth=1.2, alpha=0.55, zorder=2)
    axes.plot([x], [y], marker, markersize=size, markerfacecolor=face, markeredgecolor=edge, markeredgewidth=1.0,
              zorder=4 if point.place == "method" else 3.5, gid=gid, clip_on=False)  # fmt: skip


def _taken(axes: Axes, point: Point) -> list[Box]:
    """Returns the area in pixels that a point covers: its mark and its two bars."""
    x, y = axes.transData.transform(point.at)
    boxes = [Box(x - 7, y - 7, x + 7, y + 7)]
    if point.x.low is not None and point.x.high is not None:
        (left, _), (right, _) = axes.transData.transform([(point.x.low, 0), (point.x.high, 0)])
        boxes.append(Box(left, y - 1.5, right, y + 1.5))
    if point.y.low is not None and point.y.high is not None:
        (_, bottom), (_, top) = axes.transData.transform([(0, point.y.low), (0, point.y.high)])
        boxes.append(Box(x - 1.5, bottom, x + 1.5, top))
    return boxes


def _legend(axes: Axes, points: Sequence[Point]) -> None:
    """Draws families by shape and colour, if there is more than one."""
    families = [f for f in FAMILIES if any(p.family == f and p.place == "method" for p in points)]
    if len(families) < 2:
        return
    handles = [
        axes.plot([], [], FAMILIES[f][0], color=FAMILIES[f][1], markersize=8, markeredgecolor="white", label=f)[0]
        for f in families
    ]
    axes.legend(handles=handles, loc="lower left", frameon=True, framealpha=0.9, edgecolor=HAIRLINE, fontsize=11, borderpad=0.6)


def _name(figure: Figure, axes: Axes, points: Sequence[Point], taken: Sequence[Box]) -> None:
    """Draws names beside the points, with a thin leader line if a name had to move away."""
    weights = {"original": "bold", "gold": "bold", "method": "normal"}
    texts = [
        axes.text(0, 0, p.name, fontsize=12, fontweight=weights[p.place], color=INK, zorder=6, transform=None) for p in points
    ]
    sizes = [(box.right - box.left, LINE) for box in (extent(figure, text) for text in texts)]
    frame = extent(figure, axes.patch)
    if legend := axes.get_legend():
        taken = [*taken, extent(figure, legend)]
    spots = [tuple(axes.transData.transform(p.at)) for p in points]
    boxes = place(spots, sizes, taken, Box(frame.left + 3, frame.bottom + 3, frame.right - 2, frame.top - 2))
    for text, spot, box in zip(texts, spots, boxes, strict=True):
        x, side = _anchor(box, spot[0])
        text.set_position((x, box.bottom + DESCENT))
        text.set_horizontalalignment(side)
        end, distance = nearest_edge(spot, box)
        crowd = min((nearest_edge(other, box)[1] for other in spots if other != spot), default=float("inf"))
        if distance > 15 or crowd < 1.5 * distance:
            axes.add_artist(Line2D([spot[0], end[0]], [spot[1], end[1]], color=GREY, linewidth=0.8, zorder=1.5, transform=None))


def _anchor(box: Box, x: float) -> tuple[float, Literal["left", "center", "right"]]:
    """Returns the side of a name that faces its point, so that the gap does not depend on the font's width."""
    if x < box.left:
        return box.left, "left"
    if x > box.right:
        return box.right, "right"
    return (box.left + box.right) / 2, "center"
