"""Draws where skills lie in a model's key space, and which layers separate them: one record, three figures.

The figures answer the questions of figures 5 and 6 of Li et al. 2025: does a box around one skill's queries stay free of other
skills while it grows, how large is that box from layer to layer, and how far apart are the boxes of two skills.
"""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil
from pathlib import PurePath

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter
from pydantic import Field

from expunge.records import Record
from expunge.report.plots import FORGET, GREY, RETAIN, canvas, inline, quiet_ticks, style, write_svg

WIDTH, PANEL = 920, 230
COLOURS = (FORGET, RETAIN, "#16796f", "#8a4fa8", "#b58900", "#5b6b1f", "#c2418c", "#3d4b8f", "#7a4f1d", "#2f8fa3")
DASHES = ("-", (0, (6, 1.6)), (0, (3, 1.2)), (0, (1.2, 1.2)), (0, (7, 1.5, 1.5, 1.5)))
"""Sets differ in dash pattern as well as in colour."""

QUANTILES = tuple(i / 200 for i in range(201))


class Pair(Record):
    """The box of one set against another set, by layer."""

    own: str
    other: str
    distance: tuple[float, ...]
    """Euclidean distance between the two centres."""
    farthest: tuple[float, ...]
    """The same as max_d |m_own - m_other|_d / s_own,d; if it exceeds k, the other centre is outside the own box."""
    disjoint: tuple[float, ...]
    """Share of dimensions in which the two intervals m -+ k s do not meet."""
    log_overlap: tuple[float, ...]
    """Mean over the other dimensions of ln(length of the intersection / length of the union); 0 for equal boxes."""


class Analysis(Record):
    """analysis.json."""

    model: str
    layers: int
    neurons: int
    counts: dict[str, int]
    """Set -> number of texts, in order of the sets. Boxes are fitted on every other text and measured on the rest."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Set -> source of its texts, as given."""
    curve_layer: int
    curves: dict[str, dict[str, tuple[float, ...]]]
    """Own set -> set -> 201 quantiles (0, 0.5, ... 100 %) of max_d |v_d - m_d| / s_d in the own box: share q of the set is
    inside at quantile q."""
    k: dict[str, tuple[float, ...]]
    """Set -> smallest radius that holds its fitted texts, by layer."""
    log_volume: dict[str, tuple[float, ...]]
    """Set -> mean over dimensions of ln(2 k s_d), by layer: the logarithm of the box's volume per dimension."""
    pairs: tuple[Pair, ...]
    percent: float
    selected: dict[str, tuple[float, ...]]
    """Set -> share of each layer's neurons among the `percent` most excited by this set against all others (Neuron Adjust)."""


def containment(analysis: Analysis, place: str = "") -> str:
    """Draws, for each set's box, which share of every set is inside as its radius grows."""
    sets, rows = list(analysis.counts), ceil(len(analysis.counts) / 3)
    columns = min(3, len(sets))
    height = rows * PANEL + _key_height(len(sets)) + 6
    with style():
        figure = canvas(WIDTH, height)
        for i, own in enumerate(sets):
            axes = _panel(figure, height, i, columns, _key_height(len(sets)), f"box of {own}")
            curves = analysis.curves[own]
            farthest = sorted(max(curve) for curve in curves.values())
            far = 1.15 * max(max(curves[own]), farthest[len(sets) // 2])
            for j, name in enumerate(sets):
                colour, dash = _look(j)
                axes.plot(
                    (0, *curves[name], max(far, curves[name][-1])),
                    (0, *QUANTILES, 1),
                    color=colour,
                    linestyle=dash,
                    linewidth=2.4 if name == own else 1.4,
                    drawstyle="steps-post",
                )
            axes.axvline(analysis.k[own][analysis.curve_layer], color=GREY, linewidth=0.9, linestyle=(0, (2, 2)))
            axes.set_xlim(0, far)
            axes.set_ylim(-0.02, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.set_xlabel("radius in deviations", fontsize=11, labelpad=2)
            if i % columns == 0:
                axes.set_ylabel("texts inside", fontsize=11)
        _key(figure, height, sets)
        said = f"Share of texts inside the growing box of each set, layer {analysis.curve_layer}; dotted: k"
        return write_svg(figure, f"{place}containment", said, {})


def geometry(analysis: Analysis, place: str = "") -> str:
    """Draws, by layer, the volume of the boxes, the distance of their centres, and their overlap."""
    sets = list(analysis.counts)
    pairs = [pair for pair in analysis.pairs if pair.own == sets[0]]
    layers = range(analysis.layers)
    key = _key_height(len(sets))
    height = 2 * (PANEL + 20) + key + 6
    with style():
        figure = canvas(WIDTH, height)
        volume = _panel(figure, height, 0, 2, key, "size of the box", PANEL + 20)
        for j, name in enumerate(sets):
            colour, dash = _look(j)
            volume.plot(layers, analysis.log_volume[name], color=colour, linestyle=dash, marker="o", markersize=3)
        volume.set_ylabel("mean ln(2 k s)", fontsize=11)
        values: list[tuple[str, str, Sequence[Sequence[float]]]] = [
            (f"distance of centres from {sets[0]}", "Euclidean", [p.distance for p in pairs]),
            (f"the same in deviations of {sets[0]}", "max |m - m'| / s", [p.farthest for p in pairs]),
            (f"overlap with the box of {sets[0]}", "mean ln(shared / spanned)", [p.log_overlap for p in pairs]),
        ]
        for i, (title, unit, curves) in enumerate(values, start=1):
            axes = _panel(figure, height, i, 2, key, title, PANEL + 20)
            for pair, curve in zip(pairs, curves, strict=True):
                colour, dash = _look(sets.index(pair.other))
                axes.plot(layers, curve, color=colour, linestyle=dash, marker="o", markersize=3)
            axes.set_ylabel(unit, fontsize=11)
            if unit.startswith("max"):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(_PlainLog(minor_thresholds=(2, 0.6)))
        for axes in figure.axes:
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.set_xlabel("layer", fontsize=11, labelpad=2)
        _key(figure, height, sets)
        return write_svg(figure, f"{place}geometry", "Boxes of key vectors by layer", {})


def neurons(analysis: Analysis, place: str = "") -> str:
    """Draws, by layer, the share of neurons that Neuron Adjust would choose for each set against the others."""
    sets, layers = list(analysis.counts), range(analysis.layers)
    key = _key_height(len(sets))
    height = 300 + key
    with style():
        figure = canvas(WIDTH, height)
        axes = _panel(figure, height, 0, 1, key, f"{analysis.percent:g} % most excited neurons", 300)
        for j, name in enumerate(sets):
            colour, dash = _look(j)
            axes.plot(layers, analysis.selected[name], color=colour, linestyle=dash, marker="o", markersize=3.5)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("layer")
        axes.set_ylabel("share of the layer's neurons")
        _key(figure, height, sets)
        return write_svg(figure, f"{place}neurons", "Share of each layer's neurons that are chosen, by set", {})


def roc(forget: Sequence[float], retain: Sequence[float], place: str = "") -> str:
    """Draws Key Space Detection's calibration: shares of forget and retain queries inside as the box grows to the chosen
    radius, 1."""
    with style():
        figure = canvas(WIDTH, 330)
        right = 1.1 * max(2.0, min(4 * max(forget), max(retain)))
        growth = figure.add_axes((66 / WIDTH, 56 / 330, 390 / WIDTH, 1 - 96 / 330))
        for values, colour, name, dash in (
            (forget, FORGET, "forget queries", "-"),
            (retain, RETAIN, "retain queries", DASHES[1]),
        ):
            ordered = sorted(values)
            shares = [(i + 1) / len(ordered) for i in range(len(ordered))]
            growth.plot(
                (0, *ordered, max(right, ordered[-1])),
                (0, *shares, 1),
                color=colour,
                linestyle=dash,
                drawstyle="steps-post",
                label=name,
            )
        growth.axvline(1, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)))
        growth.set_xlim(0, right)
        growth.set_xlabel("distance / chosen radius")
        growth.set_ylabel("queries closed", fontsize=11)
        growth.set_title("closed while the box grows")
        growth.legend(frameon=False, fontsize=11, loc="best")
        curve = figure.add_axes((550 / WIDTH, 56 / 330, 330 / WIDTH, 1 - 96 / 330))
        curve.plot(*_roc_points(forget, retain), color="#16796f", drawstyle="steps-post")
        chosen = [sum(v <= 1 for v in values) / len(values) for values in (retain, forget)]
        curve.plot(*([x] for x in chosen), marker="o", color=GREY, markersize=7, markerfacecolor="none")
        curve.set_xlabel("retain queries closed")
        curve.set_ylabel("forget queries closed", fontsize=11)
        curve.set_title(f"closed: {chosen[1]:.1%} of forget, {chosen[0]:.1%} of retain")
        curve.set_xlim(-0.02, 1.02)
        for axes in (growth, curve):
            quiet_ticks(axes)
            axes.set_ylim(-0.02, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        curve.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        return write_svg(figure, f"{place}roc", "Calibration of the radius", {})


def page(analysis: Analysis) -> str:
    """Renders analysis.json as one self-contained HTML page."""
    sets = "\n".join(
        f"<tr><td>{escape(name)}</td><td>{count}</td><td>{escape(analysis.sources.get(name, ''))}</td></tr>"
        for name, count in analysis.counts.items()
    )
    name = escape(PurePath(analysis.model).name)
    figures = {
        f"Who is inside whose box, layer {analysis.curve_layer}": containment(analysis),
        "The boxes from layer to layer": geometry(analysis),
        "Where the chosen neurons are": neurons(analysis),
    }
    parts = "\n".join(f"<h2>{escape(title)}</h2>\n{inline(svg)}" for title, svg in figures.items())
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Probe of {name}</title>
<style>
body{{max-width:940px;margin:2em auto;padding:0 1em;font:16px/1.5 system-ui,sans-serif;color:#1f2328}}
svg{{max-width:100%;height:auto}}
table{{border-collapse:collapse;font-size:15px}}
td,th{{text-align:left;padding:2px 18px 2px 0}}
td:nth-child(2){{text-align:right}}
</style>
<h1>Probe of {name}</h1>
<table><tr><th>set</th><th>texts</th><th>from</th></tr>
{sets}
</table>
<p>{analysis.layers} layers of {analysis.neurons} neurons. Boxes are fitted to every other text and measured on the rest.
The dotted line is k, the least radius that holds all fitted texts.</p>
{parts}
</html>
"""


class _PlainLog(LogFormatter):
    """Writes `0.9` instead of `9e-01` at the minor ticks of a logarithmic axis."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _roc_points(forget: Sequence[float], retain: Sequence[float]) -> tuple[list[float], list[float]]:
    radii = [0.0, *sorted({*forget, *retain})]
    shares = [[sum(v <= r for v in values) / len(values) for r in radii] for values in (retain, forget)]
    return shares[0], shares[1]


def _look(index: int) -> tuple[str, object]:
    return COLOURS[index % len(COLOURS)], DASHES[(index // len(COLOURS) + index) % len(DASHES)]


def _panel(figure: Figure, height: float, index: int, columns: int, key: float, title: str, panel: float = PANEL) -> Axes:
    row, column = divmod(index, columns)
    left, bottom = 68 + column * (WIDTH / columns), height - key - (row + 1) * panel + 52
    axes = figure.add_axes((left / WIDTH, bottom / height, (WIDTH / columns - 90) / WIDTH, (panel - 84) / height))
    quiet_ticks(axes)
    axes.set_title(title, pad=6)
    return axes


def _key_height(sets: int) -> float:
    return 24.0 * ceil(sets / 5) + 4


def _key(figure: Figure, height: float, sets: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    for j, name in enumerate(sets):
        row, column = divmod(j, 5)
        x, y = 62 + column * 168, 1 - (14 + 24 * row) / height
        colour, dash = _look(j)
        figure.add_artist(Line2D([x / WIDTH, (x + 28) / WIDTH], [y, y], color=colour, linestyle=dash, linewidth=2))
        figure.text((x + 36) / WIDTH, y, name, ha="left", va="center", fontsize=12, color=colour)


def quantiles(values: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    """Computes the 201 quantiles of a curve: the smallest value that a share q of the values does not exceed."""
    found = {}
    for name, numbers in values.items():
        ordered = sorted(numbers)
        found[name] = tuple(ordered[max(0, ceil(q * len(ordered)) - 1)] for q in QUANTILES)
    return found
