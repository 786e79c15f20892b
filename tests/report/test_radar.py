"""Radars and bars: every score at its place with its interval, nothing cut off, one drawing or one for each run."""

import re
import xml.etree.ElementTree as ElementTree
from math import pi

import pytest

from expunge.records import Evaluation, Score
from expunge.report.groups import Group, TaskMetric, rim
from expunge.report.plots import shorten
from expunge.report.radar import Placed, draw_groups
from expunge.report.read import RunRecord

TASKS = {f"toxigen_{g}": v for g, v in {"women": 0.5, "muslim": 0.7, "lgbtq": 0.4, "physical_disability": 0.6}.items()}
GROUP = Group("s", "toxigen", "ToxiGen: harmful rate", tuple(TaskMetric(task, "harmful_rate") for task in TASKS))


def model(name: str, factor: float = 1.0, tasks: dict[str, float] = TASKS) -> RunRecord:
    scores = tuple(
        Score(task=t, metric="harmful_rate", value=v * factor, low=v * factor - 0.05, high=v * factor + 0.05, n=50)
        for t, v in tasks.items()
    )
    return RunRecord(name=name, folder=name, evaluations=(Evaluation(suite="s", artifact=name, seconds=1.0, scores=scores),))


ORIGINAL = [("original", model("original"))]


def words(svg: str) -> list[str]:
    return [e.text for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text") and e.text]


def draw(runs: list[RunRecord], group: Group = GROUP) -> str:
    (drawn,) = draw_groups([group], ORIGINAL, runs)
    return drawn.figure


def test_a_value_lies_on_its_spoke_as_far_from_the_centre_as_it_is_large() -> None:
    circle = Placed(100, 100, 80, 0.8, 4)
    assert circle.at(0, 0.8) == (100, 20)  # the first spoke points up
    assert circle.at(1, 0.4) == pytest.approx((140, 100))  # the next ones follow as on a clock
    assert circle.at(2, 0.0) == (100, 100)  # the centre is 0
    aside = circle.at(0, 0.8, pi / 2)
    assert aside == pytest.approx((180, 100))


def test_the_rim_is_a_round_number_that_holds_every_interval() -> None:
    assert rim(GROUP, [model("a")]) == 0.8  # 0.7 + 0.05
    assert rim(GROUP, [model("a", 0.1)]) == 0.15  # 0.07 + 0.05


def test_every_spoke_and_model_is_named_and_every_corner_says_its_interval() -> None:
    svg = draw([model("rmu", 0.5), model("spunge", 0.3)])
    assert {"women", "muslim", "lgbtq", "physical", "disability", "original", "rmu", "spunge"} <= set(words(svg))
    assert svg.count("<title>rmu, ") == svg.count("<title>original, ") == len(TASKS)
    assert "<title>rmu, muslim: harmful rate 0.350 (0.300–0.400), n = 50</title>" in svg
    assert "centre 0, rim 0.8, rings every 0.2" in words(svg)


def test_up_to_three_runs_share_a_drawing_and_more_get_one_each() -> None:
    few = draw_groups([GROUP], ORIGINAL, [model(f"run{i}", 0.5) for i in range(3)])[0]
    many = draw_groups([GROUP], ORIGINAL, [model(f"run{i}", 0.5) for i in range(4)])[0]
    assert few.together
    assert not many.together
    assert few.figure.count("<title>original, women") == 1
    assert many.figure.count("<title>original, women") == 4
    assert {f"run{i}" for i in range(4)} <= set(words(many.figure))


def test_two_groups_are_bars() -> None:
    pair = Group("s", "toxigen", "ToxiGen: harmful rate", GROUP.spokes[:2])
    (drawn,) = draw_groups([pair], ORIGINAL, [model("rmu", 0.5)])
    assert not drawn.spokes
    assert {"women", "muslim", "rmu", "original", "0"} <= set(words(drawn.figure))
    assert "<title>rmu, women: harmful rate 0.250 (0.200–0.300), n = 50</title>" in drawn.figure


def test_a_score_that_is_missing_leaves_the_polygon_open() -> None:
    whole = draw([model("rmu", 0.5)])
    part = draw([model("rmu", 0.5, {k: v for k, v in TASKS.items() if "women" not in k})])
    filled = 'style="fill: #3d4b8f; opacity: 0.1"'
    assert filled in whole
    assert filled not in part
    assert part.count("<title>rmu, ") == 3


def test_what_nothing_moved_is_not_drawn() -> None:
    assert draw_groups([GROUP], ORIGINAL, [model("still", 1.01)]) == []
    assert draw_groups([GROUP], [], [model("alone", 1.01)])
    assert draw_groups([GROUP], ORIGINAL, [RunRecord(name="unscored", folder="u")]) == []


def test_what_only_one_run_was_to_forget_is_marked_there() -> None:
    def run(name: str, forgotten: str | None) -> RunRecord:
        scores = tuple(
            Score(task=t, metric="accuracy", value=0.1 if t == forgotten else 0.9, n=9, higher_is_better=t != forgotten)
            for t in ("language_en", "language_de", "language_es")
        )
        return RunRecord(name=name, folder=name, evaluations=(Evaluation(suite="s", artifact=name, seconds=1.0, scores=scores),))

    tasks = tuple(TaskMetric(f"language_{x}", "accuracy") for x in ("en", "de", "es"))
    runs = [run(f"forgets_{x}", f"language_{x}") for x in ("en", "de", "es", "en2")]
    (drawn,) = draw_groups([Group("s", "language", "Language: accuracy", tasks)], [("original", run("original", None))], runs)
    assert drawn.marks_gone
    assert len(re.findall(r"fill: #c4511b[^>]*>(en|de|es)<", drawn.figure)) == 3


@pytest.mark.parametrize("count", [3, 5, 9, 13, 16])
@pytest.mark.parametrize("runs", [1, 5])
def test_names_of_spokes_stay_within_the_figure(count: int, runs: int) -> None:
    """Widths by the font that figures are laid out with, which is wider than the reader's."""
    tasks = {f"toxigen_very_long_group_{i} physical_disability": 0.5 for i in range(count)}
    group = Group("s", "toxigen", "t", tuple(TaskMetric(task, "harmful_rate") for task in tasks))
    original = [("original", model("original", 1.0, tasks))]
    (drawn,) = draw_groups([group], original, [model(f"run{i}", 0.5, tasks) for i in range(runs)])
    seen = 0
    for text in (e for e in ElementTree.fromstring(drawn.figure).iter() if e.tag.endswith("text")):
        look, place = text.get("style", ""), text.get("transform", "")
        anchor = re.search(r"text-anchor: (\w+)", look)
        left = float(text.get("x") or re.findall(r"translate\((-?[\d.]+)", place)[0])
        width = 0.58 * float(re.findall(r"font-size: ([\d.]+)", look)[0]) * len(text.text or "")
        left -= width * {"start": 0, "middle": 0.5, "end": 1}[anchor[1] if anchor else "start"]
        assert -2 <= left <= 922 - width, text.text
        seen += "group" in (text.text or "") or "disability" in (text.text or "")
    assert seen >= count * runs


def test_equal_inputs_give_equal_bytes_and_two_places_share_no_id() -> None:
    runs = [model("rmu", 0.5)]
    assert draw(runs) == draw(runs)
    one, other = (draw_groups([GROUP], ORIGINAL, runs, place)[0].figure for place in ("", "part1"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert not ids[0] & ids[1]


def test_a_long_name_keeps_both_ends() -> None:
    assert shorten("npo", 10) == "npo"
    assert shorten("studies/first/npo", 11) == "stud…st/npo"
    assert len(shorten("x" * 50, 20)) == 20
