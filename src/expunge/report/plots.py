"""Defines the style of figures, and converts figures to SVG.

Text remains text; nothing depends on the date or the machine, so that equal input gives equal bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from expunge.report.labels import Box

INK, GREY, HAIRLINE, BAND = "#1f2328", "#667079", "#d8dde2", "#e7f2ec"
FORGET, RETAIN = "#c4511b", "#1f6fb2"
GOLD = "#d9a400"
FAMILIES: dict[str, tuple[str, str]] = {
    "training": ("o", "#3d4b8f"),
    "editing": ("s", "#a5407f"),
    "guarding": ("^", "#16796f"),
    "composed": ("D", "#7a4f1d"),
}
"""Family -> marker and colour, so that families can be distinguished without colour."""

COLOURS = ("#3d4b8f", "#a5407f", "#16796f", "#b5561d", "#8a4fa8", "#5b6b1f", "#c2418c", "#2f8fa3", "#7a4f1d", "#1f6fb2")
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.6)), (0, (3, 1.2)), (0, (1.2, 1.2)), (0, (7, 1.5, 1.5, 1.5)))

FONTS = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
STYLE: dict[str, Any] = {
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": 13,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    # Laid out with the font that matplotlib brings along, which is the same on every machine and wider than those the reader's
    # browser puts in its place: what is apart here stays apart there.
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 11.5,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 11.5,
}


def canvas(width: float, height: float) -> Figure:
    """Creates an empty figure of this size in pixels; must be called within `style()`."""
    return Figure(figsize=(width / 72, height / 72), dpi=72)


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """Creates a figure whose coordinates are pixels from the upper left corner."""
    figure = canvas(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return figure, axes


def shorten(name: str, most: int) -> str:
    """Shortens a long name in the middle."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


def style() -> Any:
    """Context manager in which figures are drawn and written."""
    return matplotlib.rc_context(STYLE)


def extent(figure: Figure, artist: Any) -> Box:
    """Returns the position of an artist, in pixels."""
    box: Bbox = artist.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    return Box(box.x0, box.y0, box.x1, box.y1)


def quiet_ticks(axes: Axes) -> None:
    """Draws short ticks, and thin grid lines."""
    axes.tick_params(length=3, width=0.8)
    axes.grid(color=HAIRLINE, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)


def write_svg(figure: Figure, name: str, title: str, hovers: Mapping[str, str]) -> str:
    """Writes a standalone SVG. `hovers`: gid of a drawn element -> its tooltip."""
    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"expunge-{name}"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # matplotlib's rule for `*` would reach every element of a page that the drawing is put into.
    svg = re.sub(r"<defs>\s*<style type=\"text/css\">.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d. a-z]*?)([\d.]+px) [^;\"]*", rf"font: \1\2 {FONTS}", svg)
    svg = re.sub(r"font-family: [^;\"]*", f"font-family: {FONTS}", svg)
    for gid, words in hovers.items():
        svg = svg.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{_escape(words)}</title>', 1)
    svg = _without_idle_ids(svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', _size, svg, count=1)
    said = _escape(title)
    svg = svg.replace(">", f' stroke-linejoin="round" role="img" aria-label="{said}"><title>{said}</title>', 1)
    return svg.rstrip() + "\n"


def _size(match: re.Match[str]) -> str:
    return match.group().replace("pt", "px")


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _without_idle_ids(svg: str) -> str:
    """Removes unused ids, which would clash if several figures are on one page."""
    used = set(re.findall(r'(?:#)([A-Za-z_][\w.-]*)(?=[")])', svg))
    return re.sub(r' id="([^"]*)"', lambda m: m.group() if m.group(1) in used else "", svg)


def inline(svg: str) -> str:
    """Converts an SVG for use inside an HTML page, without namespaces."""
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg, count=2)
    return re.sub(r' version="1.1"', "", svg, count=1)


def compact(values: Sequence[float | None], most: int = 240) -> tuple[list[float], list[float]]:
    """Returns (position, mean) of equal stretches of a long curve, so that a page with many curves remains small."""
    points = [(float(i), v) for i, v in enumerate(values) if v is not None]
    size = max(1, -(-len(points) // most))
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    return [sum(p for p, _ in s) / len(s) for s in stretches], [sum(v for _, v in s) / len(s) for s in stretches]
