"""Computes activation statistics of sets of texts (`expunge probe`), and the data of key-space plots."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from expunge.data.encode import Encoder
from expunge.data.example import Example, fingerprint
from expunge.methods.guarding.key_boxes import KeyBox
from expunge.methods.guarding.key_space import distances
from expunge.methods.guarding.neuron_adjust import chosen, scores
from expunge.models.activations import ROLES, Moments, Probe, probe, save_probe
from expunge.models.blocks import blocks_of
from expunge.models.limits import FEW, check_finite
from expunge.models.reading import check_reading
from expunge.models.spans import Span, spans
from expunge.models.token_policy import TokenPolicy
from expunge.records import json_text, write_text, write_together
from expunge.report.analysis import Analysis, Pair, containment, geometry, neurons, page, quantiles

DRAWINGS = {"containment": containment, "geometry": geometry, "neurons": neurons}


def probe_bytes(model: nn.Module, sets: int) -> int:
    """Computes the size of the statistics of so many sets on disk: six float64 numbers a neuron of each role."""
    places = blocks_of(model)
    return sets * len(ROLES) * 6 * 8 * places.count * places.d_ff


def probe_sets(
    model: nn.Module,
    encoder: Encoder,
    sets: Mapping[str, Sequence[Example]],
    *,
    tokens: TokenPolicy = "all",
    skip_start: bool = False,
) -> dict[str, Probe]:
    """Computes activation statistics of all layers for each set: of pre-activations and of keys.

    tokens      tokens that count: all, the last of each prompt, or those of the answers
    skip_start  leave the start token out

    Raises ExpungeError if the model's weights are broken, or it does not read text as expunge does.
    """
    texts = {name: spans(rows, encoder, tokens, skip_start=skip_start) for name, rows in sets.items()}
    check_finite(model, next(iter(texts.values()))[0].ids[:FEW])
    check_reading(model)
    return {name: probe(model, rows, encoder.pad_id) for name, rows in texts.items()}


def write_probes(out: Path, probes: Mapping[str, Probe], sets: Mapping[str, Sequence[Example]], about: Mapping[str, str]) -> None:
    """Writes NAME.safetensors per set, and neurons.csv if there are two sets: the first against the others."""
    out.mkdir(parents=True, exist_ok=True)
    for name, found in probes.items():
        save_probe(out / f"{name}.safetensors", found, {**about, "set": name, "texts": fingerprint(sets[name])})
    if len(probes) > 1:
        write_text(out / "neurons.csv", neuron_table(probes))


def neuron_table(probes: Mapping[str, Probe], percent: float = 3.0) -> str:
    """Makes a CSV of the `percent` of neurons that the first set excites most against all others, largest mean difference
    first."""
    first, *others = probes.values()
    pre, pre_others = first.moments["pre_activation"], pooled([p.moments["pre_activation"] for p in others])
    key, key_others = first.moments["key"], pooled([p.moments["key"] for p in others])
    difference_LF, cohen_LF = (scores(pre, pre_others, kind) for kind in ("mean_difference", "cohen_d"))
    ratio_LF = (key.abs_LF / key.n) / (key_others.abs_LF / key_others.n + 1e-8)
    layer_K, neuron_K = chosen(difference_LF, percent, "global")
    order = difference_LF[layer_K, neuron_K].argsort(descending=True)
    columns: dict[str, Tensor] = {
        "mean": pre.mean_LF,
        "deviation": pre.std_LF(),
        "mean_others": pre_others.mean_LF,
        "deviation_others": pre_others.std_LF(),
        "mean_difference": difference_LF,
        "cohen_d": cohen_LF,
        "importance_ratio": ratio_LF,
    }
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["layer", "neuron", *columns])
    for layer, neuron in zip(layer_K[order].tolist(), neuron_K[order].tolist(), strict=True):
        writer.writerow([layer, neuron, *(f"{float(t[layer, neuron]):.6g}" for t in columns.values())])
    return file.getvalue()


def pooled(parts: Sequence[Moments]) -> Moments:
    """Merges the statistics of several sets."""
    total = Moments.empty(len(parts[0].n_L), parts[0].mean_LF.shape[1])
    for part in parts:
        total.merge(part)
    return total


def analyse(
    model: nn.Module,
    encoder: Encoder,
    sets: Mapping[str, Sequence[Example]],
    probes: Mapping[str, Probe],
    *,
    name: str,
    sources: Mapping[str, str] | None = None,
    layer: int = -1,
    percent: float = 3.0,
) -> Analysis:
    """Fits boxes of the key vectors of the last prompt tokens on every other text of a set, and measures them on the rest.

    sources: where the texts of each set are from
    layer: the layer whose containment curves are drawn
    """
    places = blocks_of(model)
    layer %= places.count
    texts = {n: spans(rows, encoder, "last_prompt") for n, rows in sets.items()}
    fitted = {n: probe(model, rows[::2], encoder.pad_id, roles=("key",)).moments["key"] for n, rows in texts.items()}
    boxes = {n: [KeyBox.of_moments(moments, i) for i in range(places.count)] for n, moments in fitted.items()}
    return Analysis(
        model=name,
        layers=places.count,
        neurons=places.d_ff,
        counts={n: len(rows) for n, rows in sets.items()},
        sources=dict(sources or {}),
        curve_layer=layer,
        curves=_curves(
            model, encoder.pad_id, {n: rows[1::2] for n, rows in texts.items()}, {n: b[layer] for n, b in boxes.items()}, layer
        ),
        k={n: tuple(box.k for box in mine) for n, mine in boxes.items()},
        log_volume={n: tuple(float((2 * box.k * box.unit_F.double()).log().mean()) for box in mine) for n, mine in boxes.items()},
        pairs=tuple(_pair(a, b, boxes[a], boxes[b]) for a in sets for b in sets if a != b),
        percent=percent,
        selected=_selected({n: p.moments["pre_activation"] for n, p in probes.items()}, percent),
    )


def write_analysis(out: Path, analysis: Analysis) -> None:
    """Writes analysis.json, the three figures, and index.html with all of them."""
    drawn = {f"{name}.svg": draw(analysis) for name, draw in DRAWINGS.items()}
    texts = {"analysis.json": json_text(analysis), **drawn, "index.html": page(analysis)}
    write_together({out / name: text for name, text in texts.items()})


def _curves(
    model: nn.Module, pad_id: int, texts: Mapping[str, list[Span]], boxes: Mapping[str, KeyBox], layer: int
) -> dict[str, dict[str, tuple[float, ...]]]:
    found = {n: distances(model, rows, pad_id, [(layer, box) for box in boxes.values()]) for n, rows in texts.items()}
    return {own: quantiles({other: found[other][i].tolist() for other in texts}) for i, own in enumerate(boxes)}


def _pair(own: str, other: str, boxes: Sequence[KeyBox], others: Sequence[KeyBox]) -> Pair:
    distance, farthest, disjoint, overlap = [], [], [], []
    for a, b in zip(boxes, others, strict=True):
        apart_F = (a.centre_F - b.centre_F).double()
        low_F = torch.maximum(a.centre_F - a.k * a.unit_F, b.centre_F - b.k * b.unit_F)
        high_F = torch.minimum(a.centre_F + a.k * a.unit_F, b.centre_F + b.k * b.unit_F)
        least_F = torch.minimum(a.centre_F - a.k * a.unit_F, b.centre_F - b.k * b.unit_F)
        most_F = torch.maximum(a.centre_F + a.k * a.unit_F, b.centre_F + b.k * b.unit_F)
        meets_F = high_F > low_F
        distance.append(float(apart_F.norm()))
        farthest.append(float((apart_F.abs() / a.unit_F).max()))
        disjoint.append(1 - float(meets_F.double().mean()))
        ratio = ((high_F - low_F) / (most_F - least_F))[meets_F].double().log()
        overlap.append(float(ratio.mean()) if len(ratio) else 0.0)
    return Pair(
        own=own,
        other=other,
        distance=tuple(distance),
        farthest=tuple(farthest),
        disjoint=tuple(disjoint),
        log_overlap=tuple(overlap),
    )


def _selected(moments: Mapping[str, Moments], percent: float) -> dict[str, tuple[float, ...]]:
    shares = {}
    for name, mine in moments.items():
        layer_K, _ = chosen(
            scores(mine, pooled([m for n, m in moments.items() if n != name]), "mean_difference"), percent, "global"
        )
        shares[name] = tuple((torch.bincount(layer_K, minlength=len(mine.n_L)) / mine.mean_LF.shape[1]).tolist())
    return shares
