"""Draws attacks: the ladder (what each attack brings back, and what it brings out of gold), and curves along what was tried."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from expunge.records import Attack
from expunge.report.plots import FORGET, GOLD, GREY, HAIRLINE, INK, canvas, quiet_ticks, sheet, shorten, style, write_svg
from expunge.report.read import RunRecord

WIDTH, ROW, LEFT, TOP, FOOT, COLUMNS = 920, 21.0, 150.0, 62.0, 56.0, 3
"""Pixels: width of the figure, height of a rung, room for the attacks' names, for the key and names of runs, for the scale; and
panels side by side."""


class Curve(NamedTuple):
    axis: str
    """Field of a trial that runs along the axis."""
    label: str
    measure: str
    belongs: Callable[[Mapping[str, Any]], bool]
    """Which of the trials are points of the curve."""


CURVES: Mapping[str, Curve] = {
    "relearn": Curve(
        "step", "relearning, step", "recall", lambda trial: trial.get("data") == "facts" and trial.get("trial", 0) == 0
    ),
    "sample": Curve("k", "answers drawn, k", "leak@k", lambda trial: True),
    "probe": Curve("layer", "linear probe, layer", "percentile", lambda trial: trial.get("reader") == "linear"),
}
"""Attack -> its curve."""
LINES: tuple[tuple[str, str, Any], ...] = (
    ("value", FORGET, "-"),
    ("gold", GOLD, (0, (5, 1.6))),
    ("never_known", GREY, (0, (1.2, 1.2))),
)


def after(attack: Attack, task: str = "forget") -> float | None:
    """Returns the level of one side: `forget` and `gold` after the attack, `before` it, `control` for never-known facts."""
    return next((score.value for score in attack.scores if score.task == task), None)


def significant(attack: Attack, attacks: int) -> bool:
    """Returns whether the gain is above zero at 5 %, corrected for the number of attacks (Bonferroni)."""
    p = attack.control.get(f"{attack.control.get('of')}_p")
    return attack.gain is not None and attack.gain.value is not None and p is not None and p * attacks < 0.05


def ladder(runs: Sequence[RunRecord], name: str = "ladder") -> str | None:
    """Draws one panel per run and one rung per attack: before (ring), after (dot with its interval), gold (diamond), never-known
    facts (bar)."""
    attacked = [run for run in runs if run.attacks]
    if not attacked:
        return None
    rungs = list(dict.fromkeys(attack.attack for run in attacked for attack in _ordered(run.attacks)))
    panels = ceil(len(attacked) / COLUMNS)
    height = TOP + panels * (ROW * len(rungs) + FOOT + 26)
    hovers: dict[str, str] = {}
    with style():
        figure, axes = sheet(WIDTH, height)
        _key(axes)
        across = (WIDTH - LEFT - 20) / min(COLUMNS, len(attacked))
        for i, run in enumerate(attacked):
            line, column = divmod(i, COLUMNS)
            top = TOP + line * (ROW * len(rungs) + FOOT + 26)
            if column == 0:
                for r, rung in enumerate(rungs):
                    axes.text(LEFT - 12, top + ROW * (r + 0.5), rung, fontsize=11.5, ha="right", va="center")
            _panel(axes, run, rungs, (LEFT + across * column, across - 30), top, hovers, f"rung-{i}")
        return write_svg(figure, name, "What each attack brings back, beside gold", hovers)


def _ordered(attacks: Sequence[Attack]) -> list[Attack]:
    """Returns the attacks with the largest gain first; those that do not apply come last."""
    gains = {id(a): a.gain.value if a.gain is not None and a.gain.value is not None else None for a in attacks}
    return sorted(attacks, key=lambda a: (gains[id(a)] is None, -(gains[id(a)] or 0.0)))


def _panel(
    axes: Axes, run: RunRecord, rungs: Sequence[str], place: tuple[float, float], top: float, hovers: dict[str, str], gid: str
) -> None:
    left, long = place
    bottom = top + ROW * len(rungs)
    axes.text(left, top - 12, shorten(run.name, 26), fontsize=12.5, fontweight="bold", va="center")
    for step in range(5):
        x = left + long * step / 4
        axes.plot([x, x], [top, bottom + 4], color=HAIRLINE if step else GREY, linewidth=0.8, zorder=0.5)
        axes.text(x, bottom + 10, f"{step / 4:g}", fontsize=10.5, ha="center", va="top")
    axes.text(left + long / 2, bottom + 28, "recall, or the attack's own measure", fontsize=10.5, ha="center", va="top")
    by_name = {attack.attack: attack for attack in run.attacks}
    applied = [attack for attack in run.attacks if attack.applicable]
    for r, rung in enumerate(rungs):
        y, attack = top + ROW * (r + 0.5), by_name.get(rung)
        level = after(attack) if attack is not None else None
        if attack is None or level is None:
            said = "" if attack is None else "not applicable" if not attack.applicable else "no score"
            axes.text(left + 4, y, said, fontsize=10.5, va="center", color=GREY)
            continue
        colour = FORGET if significant(attack, len(applied)) else INK
        score = next(s for s in attack.scores if s.task == "forget")
        if score.low is not None and score.high is not None:
            axes.plot([left + long * score.low, left + long * score.high], [y, y], color=colour, linewidth=1.4, zorder=2)
        for task, marker, face, edge, size in (
            ("control", "|", GREY, GREY, 8),
            ("before", "o", "white", GREY, 5.5),
            ("gold", "D", GOLD, GOLD, 5.5),
        ):
            if (value := after(attack, task)) is not None:
                axes.plot(
                    [left + long * value], [y], marker, markerfacecolor=face, markeredgecolor=edge, markersize=size, zorder=3
                )
        (dot,) = axes.plot([left + long * level], [y], "o", color=colour, markersize=6, zorder=4)
        dot.set_gid(f"{gid}-{r}")
        hovers[f"{gid}-{r}"] = _said(run.name, attack, level)


def _said(name: str, attack: Attack, level: float) -> str:
    gold, gain = after(attack, "gold"), attack.gain
    words = f"{name}, {attack.attack}: {level:.2f} after the attack"
    words += f", gold {gold:.2f}" if gold is not None else ""
    if gain is not None and gain.value is not None and gain.low is not None and gain.high is not None:
        words += f"; gain {gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]".replace("-", "−")
    return words


def _key(axes: Axes) -> None:
    entries = (
        ("o", FORGET, FORGET, "after, more than the control"),
        ("o", INK, INK, "after, not shown to be more"),
        ("o", "white", GREY, "before"),
        ("D", GOLD, GOLD, "gold, same attack"),
        ("|", GREY, GREY, "never-known facts"),
    )
    x = LEFT
    for marker, face, edge, words in entries:
        axes.plot([x], [16], marker, markerfacecolor=face, markeredgecolor=edge, markersize=6)
        axes.text(x + 10, 16, words, fontsize=11, va="center", color=INK)
        x += 34 + 6.1 * len(words)


def attack_curves(runs: Sequence[RunRecord], name: str = "attack-curves") -> str | None:
    """Draws relearning by step, leak@k by k and the linear probe by layer: a panel for each run and attack."""
    drawn = [(run, kind, points) for run in runs for kind in CURVES if len(points := _points(run, kind)) > 1]
    if not drawn:
        return None
    rows, panel, head = ceil(len(drawn) / COLUMNS), 190, 30
    height = rows * panel + head + 8
    with style():
        figure = canvas(WIDTH, height)
        for i, (run, kind, points) in enumerate(drawn):
            row, column = divmod(i, COLUMNS)
            left, bottom = 52 + column * (WIDTH / COLUMNS), height - head - (row + 1) * panel + 44
            axes = figure.add_axes((left / WIDTH, bottom / height, (WIDTH / COLUMNS - 72) / WIDTH, (panel - 76) / height))
            quiet_ticks(axes)
            axes.set_title(f"{shorten(run.name, 16)}, {kind}", pad=7)
            for side, colour, dash in LINES:
                known = [(x, trial[side]) for x, trial in points if trial.get(side) is not None]
                axes.plot([x for x, _ in known], [y for _, y in known], color=colour, linestyle=dash)
            axes.set_ylim(-0.03, 1.03)
            if kind == "sample":
                axes.set_xscale("log", base=2)
            else:
                axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.set_xlabel(CURVES[kind].label, fontsize=11, labelpad=2)
            axes.set_ylabel(CURVES[kind].measure, fontsize=11, labelpad=2)
        for k, (words, (_, colour, dash)) in enumerate(zip(("run", "gold", "never-known facts"), LINES, strict=True)):
            x, y = 52.0 + 140 * k, 1 - 12 / height
            figure.add_artist(Line2D([x / WIDTH, (x + 26) / WIDTH], [y, y], color=colour, linestyle=dash, linewidth=1.8))
            figure.text((x + 34) / WIDTH, y, words, ha="left", va="center", fontsize=12, color=colour if k != 1 else INK)
        return write_svg(figure, name, "What comes back, along what was tried", {})


def _points(run: RunRecord, kind: str) -> list[tuple[float, Mapping[str, Any]]]:
    """Returns (place on the axis, trial) of the attack of that name with default settings."""
    axis, belongs = CURVES[kind].axis, CURVES[kind].belongs
    attack = next((attack for attack in run.attacks if attack.attack.partition(":")[0] == kind), None)
    trials = attack.trials if attack is not None else ()
    return sorted(
        ((float(trial[axis]), trial) for trial in trials if axis in trial and belongs(trial)), key=lambda point: point[0]
    )


def unequal_budgets(runs: Sequence[RunRecord]) -> list[str]:
    """Returns a sentence for each attack that several runs had with different budgets: their gains cannot be compared."""
    budgets: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for attack in run.attacks:
            if attack.applicable:
                budgets.setdefault(attack.attack, {}).setdefault(str(sorted(attack.budget.items())), []).append(run.name)
    return [
        f"{name} was run with different budgets ({'; '.join(', '.join(names) for names in found.values())}): compare its gains "
        "only among runs of one budget"
        for name, found in budgets.items()
        if len(found) > 1
    ]
