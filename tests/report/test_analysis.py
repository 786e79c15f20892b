"""Figures of a probe: drawn from a record, the same bytes each time, with every set named."""

import random
import xml.etree.ElementTree as ElementTree

import pytest

from expunge.report.analysis import QUANTILES, Analysis, Pair, containment, geometry, neurons, page, quantiles, roc


def analysis(sets: int) -> Analysis:
    names = [f"set {i} & co" for i in range(sets)]
    rng = random.Random(0)

    def series() -> tuple[float, ...]:
        return tuple(rng.random() + 0.1 for _ in range(4))

    curves = {a: quantiles({b: [rng.random() * (3 if a == b else 30) for _ in range(40)] for b in names}) for a in names}
    pairs = [
        Pair(own=a, other=b, distance=series(), farthest=series(), disjoint=series(), log_overlap=series())
        for a in names for b in names if a != b
    ]  # fmt: skip
    return Analysis(
        model="pico", layers=4, neurons=64, counts=dict.fromkeys(names, 40), curve_layer=3, curves=curves,
        k={n: series() for n in names}, log_volume={n: series() for n in names}, pairs=tuple(pairs), percent=3.0,
        selected={n: series() for n in names}, sources={n: f"{n}.jsonl" for n in names},
    )  # fmt: skip


@pytest.mark.parametrize("sets", [2, 3, 9])
@pytest.mark.parametrize("draw", [containment, geometry, neurons])
def test_figures_are_whole_svg_files_that_name_every_set_and_do_not_vary(sets: int, draw: object) -> None:
    made = analysis(sets)
    svg = draw(made)  # type: ignore[operator]
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert all(f">{name.replace('&', '&amp;')}<" in svg for name in made.counts)
    assert svg == draw(made)  # type: ignore[operator]


def test_a_quantile_is_the_least_value_that_so_many_do_not_exceed() -> None:
    curve = quantiles({"a": [4.0, 1.0, 2.0, 3.0]})["a"]
    assert len(curve) == len(QUANTILES)
    assert (curve[0], curve[50], curve[51], curve[100], curve[-1]) == (1.0, 1.0, 2.0, 2.0, 4.0)


def test_the_roc_says_what_the_chosen_radius_closes() -> None:
    svg = roc([0.2, 0.5, 0.9, 1.4], [0.8, 1.5, 2.0, 3.0, 9.0])
    assert "closed: 75.0% of forget, 20.0% of retain" in svg
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "forget queries closed" in svg


def test_the_page_holds_all_figures_and_a_record_survives_json() -> None:
    made = analysis(3)
    text = page(made)
    assert text.count("<svg") == 3
    assert "<td>set 0 &amp; co</td><td>40</td><td>set 0 &amp; co.jsonl</td>" in text
    assert Analysis.model_validate_json(made.model_dump_json()) == made


def test_a_report_shows_the_calibration_of_a_guard_and_a_probe_beside_it(lab, tmp_path) -> None:
    import re
    import shutil

    from expunge.records import write_json
    from expunge.report import report

    for name in ("one", "two"):
        shutil.copytree(lab.runs[3], tmp_path / name)
        write_json(tmp_path / name / "artifact/calibration.json", {"forget": [0.2, 0.5, 1.4], "retain": [0.8, 2.0, 3.0, 9.0]})
    for name in ("probe", "late"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "analysis.json", analysis(3))
    folders = [tmp_path / name for name in ("one", "two", "probe", "late")]
    out = report(folders, tmp_path / "out", original=lab.original, gold=lab.gold).parent
    page = (out / "index.html").read_text()
    assert page.count("closed: 66.7% of forget, 25.0% of retain") == 2
    assert "Key space of probe" in page
    assert page.count("size of the box") == 2
    ids = re.findall(r' id=["\']([^"\']+)["\']', page)
    assert len(ids) == len(set(ids))
    names = {path.name for path in out.glob("*.svg")}
    assert {"one-calibration.svg", "probe-containment.svg", "probe-geometry.svg", "late-neurons.svg"} <= names
    alone = report([tmp_path / "probe"], tmp_path / "alone").read_text()
    assert "Key space of probe" in alone
