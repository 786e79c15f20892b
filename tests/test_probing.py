"""`expunge probe`: what it writes, and what it finds."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from expunge.cli import main
from expunge.data.encode import Encoder
from expunge.data.example import Example
from expunge.data.format import Format
from expunge.methods.guarding.key_boxes import KeyBox
from expunge.models.activations import load_probe, probe
from expunge.models.spans import spans
from expunge.probing import analyse, neuron_table, pooled, probe_sets
from expunge.report.analysis import Analysis

PEOPLE = ["anna", "boris", "clara", "dario", "elena", "fyodor", "greta", "hugo", "irma", "jonas"]
NUMBERS = ["one", "two", "three", "four", "five"]
SETS = {
    "born": [Example(f"where was {p} born ?", f"{p} was born in oslo .") for p in PEOPLE],
    "sums": [Example(f"{a} plus {b} is", f"{b} .") for a in NUMBERS for b in NUMBERS],
    "colors": [
        Example(f"what is the color of the {a} ?", f"the {a} is red .") for a in ("cat", "dog", "bird", "fish", "horse", "name")
    ],
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name, rows in SETS.items():
        text = "".join(json.dumps({"prompt": e.prompt, "response": e.response}) + "\n" for e in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: str(tmp_path / f"{name}.jsonl") for name in SETS}


def test_the_command_writes_statistics_tables_and_figures(files: dict[str, str], pico_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe"
    words = ["probe", str(pico_folder), "--forget", files["born"], "--retain", files["sums"], "--also", "colors", files["colors"]]
    assert main([*words, "--out", str(out), "--analysis"]) == 0
    assert {p.name for p in out.iterdir()} == {
        "forget.safetensors", "retain.safetensors", "colors.safetensors", "neurons.csv", "analysis.json", "containment.svg",
        "geometry.svg", "neurons.svg", "index.html",
    }  # fmt: skip
    found, about = load_probe(out / "retain.safetensors")
    assert (about["set"], about["tokens"]) == ("retain", "all")
    assert found.n == 25 * 10
    rows = list(csv.DictReader((out / "neurons.csv").open()))
    assert len(rows) == 4  # ceil of 3 % of 128
    assert [float(r["mean_difference"]) for r in rows] == sorted((float(r["mean_difference"]) for r in rows), reverse=True)
    assert all(float(r["mean"]) - float(r["mean_others"]) == pytest.approx(float(r["mean_difference"]), abs=1e-4) for r in rows)
    analysis = Analysis.model_validate_json((out / "analysis.json").read_text())
    assert list(analysis.counts.items()) == [("forget", 10), ("retain", 25), ("colors", 6)]


@pytest.mark.slow
def test_two_processes_write_what_one_writes(
    files: dict[str, str], pico_folder: Path, tmp_path: Path, two_processes: Callable[..., list[Any]]
) -> None:
    words = ["probe", str(pico_folder), "--forget", files["born"], "--retain", files["sums"], "--analysis", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    both = two_processes(["-m", "expunge", *words, str(tmp_path / "two")])
    assert sum(process.stdout.count("figures ->") for process in both) == 1
    one, two = (json.loads((tmp_path / name / "analysis.json").read_text()) for name in ("one", "two"))
    assert one["counts"] == two["counts"]
    assert two["k"]["forget"] == pytest.approx(one["k"]["forget"], rel=1e-9)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "two").iterdir()}


def test_bad_input_is_said_and_nothing_is_written(
    files: dict[str, str], pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "red cat"}\n' * 3, encoding="utf-8")
    words = ["probe", str(pico_folder), "--out", str(tmp_path / "out"), "--forget"]
    for more, reason in {
        (files["born"], "--analysis"): "give --retain or --also",
        (files["born"], "--retain", str(short), "--analysis"): "retain has fewer than 6",
        (str(tmp_path / "no.jsonl"),): "no.jsonl",
    }.items():
        assert main([*words, *more]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_half_of_a_probe_behind(
    files: dict[str, str], pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", str(pico_folder), "--forget", files["born"], "--retain", files["sums"], "--out", str(tmp_path / "out")]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("expunge.probing.write_text", full)
        assert main(words) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    assert main(words) == 2
    assert "the probe takes 24.6 kB and" in capsys.readouterr().err


def test_pooled_statistics_are_those_of_all_texts_together(
    pico_llama: PreTrainedModel, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = Encoder(pico_tokenizer, Format())
    parts = probe_sets(pico_llama, encoder, SETS)
    whole = probe(pico_llama, spans([e for rows in SETS.values() for e in rows], encoder, "all"), encoder.pad_id)
    merged = pooled([p.moments["key"] for p in parts.values()])
    for name, tensor in whole.moments["key"].tensors().items():
        torch.testing.assert_close(merged.tensors()[name], tensor, rtol=1e-5, atol=1e-5)
    assert neuron_table(parts).startswith("layer,neuron,mean,deviation,mean_others")


def test_the_analysis_measures_what_its_fields_say(pico_llama: PreTrainedModel, pico_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(pico_tokenizer, Format())
    made = analyse(pico_llama, encoder, SETS, probe_sets(pico_llama, encoder, SETS), name="pico", percent=10)
    vectors = {}
    for name, rows in SETS.items():
        found = probe(pico_llama, spans(rows, encoder, "last_prompt"), encoder.pad_id, keep=99, keep_layers=(0, 1)).vectors
        assert found is not None
        vectors[name] = found.vectors_LNF
    boxes = {name: [KeyBox.of_vectors(v[layer][::2]) for layer in (0, 1)] for name, v in vectors.items()}
    for own, mine in boxes.items():
        assert made.k[own] == pytest.approx([box.k for box in mine], rel=1e-4)
        assert made.log_volume[own] == pytest.approx([float((2 * b.k * b.unit_F).log().mean()) for b in mine], rel=1e-4)
        for other in SETS:
            z = boxes[own][1].distance(vectors[other][1][1::2])
            curve = made.curves[own][other]
            assert (curve[0], curve[-1]) == pytest.approx((float(z.min()), float(z.max())), rel=1e-4)
    pair = next(p for p in made.pairs if (p.own, p.other) == ("born", "sums"))
    apart = boxes["born"][1].centre_F - boxes["sums"][1].centre_F
    assert pair.distance[1] == pytest.approx(float(apart.norm()), rel=1e-4)
    assert pair.farthest[1] == pytest.approx(float((apart.abs() / boxes["born"][1].unit_F).max()), rel=1e-4)
    assert sum(made.selected["born"]) * 64 == pytest.approx(13)  # ceil of 10 % of 128
    mirrored = next(p for p in made.pairs if (p.own, p.other) == ("sums", "born"))
    assert mirrored.log_overlap == pytest.approx(pair.log_overlap)
    assert mirrored.disjoint == pytest.approx(pair.disjoint)
