"""A real model probed on real skills and languages: GSM8K's solutions, MBPP's code, XQuAD's passages in seven languages."""

from pathlib import Path

import pytest

from expunge.cli import main
from expunge.data.corpora.squad import LANGUAGES
from expunge.models.activations import load_probe
from expunge.report.analysis import QUANTILES, Analysis

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_skills_and_languages_lie_apart_in_a_real_models_key_space(data_root: Path, tmp_path: Path) -> None:
    passages = [word for code in LANGUAGES for word in (code, f"{data_root}:contexts/{code}")]
    words = ["--forget", f"{data_root}:solutions/train", "--retain", f"{data_root}:code/train", "--also", *passages]
    bounds = ["--limit", "40"]
    assert main(["probe", str(data_root / "stories260k"), *words, *bounds, "--analysis", "--out", str(tmp_path / "probe")]) == 0
    made = Analysis.model_validate_json((tmp_path / "probe/analysis.json").read_text(encoding="utf-8"))
    assert made.counts == dict.fromkeys(("forget", "retain", *LANGUAGES), 40)
    assert (made.layers, made.neurons) == (5, 172)
    for name in made.counts:
        found, about = load_probe(tmp_path / f"probe/{name}.safetensors")
        assert about["set"] == name
        assert found.n > 40 * 100

    def inside(own: str, other: str) -> float:
        """Share of the other set's unfitted texts in the own box, as wide as nine in ten of its own unfitted texts need it."""
        radius = made.curves[own][own][round(0.9 * (len(QUANTILES) - 1))]
        return sum(z <= radius for z in made.curves[own][other]) / len(QUANTILES)

    assert inside("forget", "forget") >= 0.9
    assert (
        max(inside("forget", name) for name in ("retain", *LANGUAGES)) <= 0.2
    )  # few texts of any other kind end like a solution
    assert inside("ar", "hi") > 0.8 > 0.2 > inside("ar", "es")  # bytes that the model never read look alike, words do not
    assert {p.name for p in (tmp_path / "probe").glob("*.svg")} == {"containment.svg", "geometry.svg", "neurons.svg"}
    page = (tmp_path / "probe/index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert all(f"<td>{name}</td><td>40</td>" in page for name in made.counts)
