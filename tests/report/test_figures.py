import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from expunge.records import Score
from expunge.report import read_run
from expunge.report.aims import Aim
from expunge.report.curves import loss_curves
from expunge.report.effects import LAB
from expunge.report.groups import TaskMetric
from expunge.report.labels import Box, nearest_edge, place
from expunge.report.plots import compact, inline
from expunge.report.tradeoff import Point, drawable, quality_tradeoff, tradeoff


def point(name, effect, kept, role="method", family="training", spread=0.05) -> Point:
    x = Score(task="facts_forget", metric="forget_effect", value=effect, low=effect - spread, high=effect + spread, n=72)
    y = Score(task="facts_retain", metric="retain_kept", value=kept, low=kept - spread / 3, high=kept + spread / 3, n=288)
    return Point(name, role, family, x, y)


def quality(name, p, utility, role="method") -> Point:
    x = Score(task="suite", metric="model_utility", value=utility, low=utility - 0.01, high=utility + 0.01, n=100)
    y = Score(task="suite", metric="forget_quality", value=p, n=40, unscored="no retain scores" if p is None else None)
    return Point(name, role, "training", x, y)


POINTS = [
    point("original", 0, 1, "original", spread=0.0), point("gold", 1, 1.01, "gold"), point("npo", 0.98, 0.99),
    point("sim<npo>", 1.02, 0.98), point("gradient_ascent", 1.8, 0.4),
]  # fmt: skip


def words(svg: str) -> list[str]:
    return [e.text for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text") and e.text]


def test_the_tradeoff_names_every_model_and_the_band():
    svg = tradeoff(POINTS, "lab", LAB)
    assert {"original", "gold", "npo", "sim<npo>", "gradient_ascent", "gold's level", "90 % kept"} <= set(words(svg))


def test_without_gold_there_is_no_band_and_the_axes_name_their_tasks():
    aim = Aim("mine", TaskMetric("secrets", "probability"), TaskMetric("neighbours", "probability"))
    gone = [p._replace(x=p.x.model_copy(update={"metric": "relative_drop"})) for p in POINTS]
    shown = words(tradeoff(gone, "mine", aim))
    assert "gold's level" not in shown
    assert {"share gone: Secrets   (0 = original, 1 = all of it)", "kept: Neighbours   (share of original)"} <= set(shown)


def test_points_say_their_values_under_the_pointer():
    svg = tradeoff(POINTS, "lab", LAB)
    assert "<title>npo: forget effect 0.98 (0.93–1.03), retain kept 0.99 (0.97–1.01)</title>" in svg


def test_families_have_a_legend_only_when_there_are_several():
    assert "training" not in words(tradeoff(POINTS, "lab", LAB))
    assert {"training", "guarding"} <= set(
        words(tradeoff([*POINTS, point("key_space", 0.9, 1.0, family="guarding")], "lab", LAB))
    )


def test_equal_inputs_give_equal_bytes():
    assert tradeoff(POINTS, "lab", LAB) == tradeoff(POINTS, "lab", LAB)


def test_a_figure_holds_no_date_no_generator_and_no_address_but_names_of_namespaces():
    svg = tradeoff(POINTS, "lab", LAB)
    assert "metadata" not in svg
    assert "atplotlib" not in svg
    assert set(re.findall(r"https?://[^\"' ]+", svg)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "http" not in inline(svg)


def test_two_figures_in_one_page_share_no_id(lab):
    ids = [
        re.findall(r' id="([^"]+)"', svg) for svg in (tradeoff(POINTS, "lab", LAB), loss_curves([read_run(r) for r in lab.runs]))
    ]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])


def test_tiny_p_values_stay_apart():
    svg = quality_tradeoff(
        [quality("original", 1.83e-21, 0.62, "original"), quality("gold", 1.0, 0.61, "gold"), quality("npo", 1e-9, 0.5)], "tofu"
    )
    heights = {}
    for group in re.findall(r"<g><title>(\w+):.*?<use [^>]*y=\"([\d.]+)\"", svg, flags=re.DOTALL):
        heights[group[0]] = float(group[1])
    assert heights["gold"] < heights["npo"] < heights["original"]
    assert heights["original"] - heights["npo"] > 100
    assert "original: model utility 0.620 (0.610–0.630), forget quality 1.8·10⁻²¹" in svg


@pytest.mark.parametrize("p", [0.0, 1e-320, 1.0])
def test_extreme_p_values_are_drawn(p):
    assert "npo" in words(quality_tradeoff([quality("npo", p, 0.5)], "tofu"))


def test_points_without_a_value_are_left_out_with_their_reason():
    drawn, reasons = drawable([quality("npo", None, 0.5), quality("idk", 0.1, 0.5)])
    assert [p.name for p in drawn] == ["idk"]
    assert reasons == {"npo": "no retain scores"}


def test_curves_draw_both_terms_of_every_run(lab):
    svg = loss_curves([read_run(r) for r in lab.runs])
    assert {"forget term", "retain term", *(r.name for r in lab.runs)} <= set(words(svg))
    assert svg.count("stroke: #c4511b") == 6 + 1
    assert svg.count("stroke: #1f6fb2") == 5 + 1  # gradient ascent has no retain term


def test_without_training_there_are_no_curves(lab):
    assert loss_curves([read_run(lab.gold)]) is None


def test_a_long_curve_is_thinned_without_moving_its_mean():
    positions, means = compact([float(i) for i in range(10_000)])
    assert len(positions) <= 240
    assert np.allclose(positions, means)
    assert compact([1.0, None, 3.0]) == ([0.0, 2.0], [1.0, 3.0])


@pytest.mark.parametrize("seed", range(5))
def test_names_overlap_neither_each_other_nor_the_points(seed):
    rng = np.random.default_rng(seed)
    points = [tuple(p) for p in rng.normal((450, 300), (60, 30), (9, 2))]
    taken = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    bounds = Box(0, 0, 900, 500)
    boxes = place(points, [(80.0, 12.0)] * 9, taken, bounds)
    assert sum(a.overlap(b) for a, b in itertools.combinations(boxes, 2)) == 0
    assert sum(a.overlap(b) for a in boxes for b in taken) < 1  # marks are round, their boxes have corners
    assert all(b.outside(bounds) == 0 for b in boxes)
    assert boxes == place(points, [(80.0, 12.0)] * 9, taken, bounds)


def test_a_lone_name_stands_right_of_its_point_and_within_the_frame():
    bounds = Box(0, 0, 200, 100)
    free, cornered = place([(50, 50)], [(40, 12)], [], bounds)[0], place([(190, 50)], [(40, 12)], [], bounds)[0]
    assert free.left > 50
    assert (free.bottom + free.top) / 2 == 50
    assert cornered.right < 190
    assert nearest_edge((50, 50), free)[1] == pytest.approx(9)
