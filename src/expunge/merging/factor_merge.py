"""Merges two PEFT adapters into one by their factors, in seconds and without a base model."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.artifact import Base, save_artifact
from expunge.errors import ExpungeError
from expunge.folders import beside_of, keep_command
from expunge.merging.factor_base import choose_base, remap_pad
from expunge.merging.factor_folders import (
    LORA,
    Adapter,
    Product,
    copy_tokenizer,
    factor_names,
    finite,
    from_rows,
    lora_config,
    open_adapter,
    rows_of,
)
from expunge.merging.factor_report import AdapterResult, ModuleReport, check_contrast, total
from expunge.merging.folder import check_out, put_in_place
from expunge.merging.opening import BaseModel, open_base
from expunge.merging.positions import Files, whole
from expunge.methods.editing.factors import AdapterMethod, Factors, no_change, norms, recompress
from expunge.models.checkpoint import save_arrays
from expunge.models.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from expunge.records import folder_made, write_json, write_text

Tensors = dict[str, NDArray[np.float32]]
"""What is written, by PEFT's keys."""


def merge_adapters(
    method: AdapterMethod,
    *,
    models: Sequence[str | Path],
    out: str | Path,
    base: str | Path | None = None,
    rank: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    command: Sequence[str] = (),
) -> AdapterResult:
    """Computes one adapter from two, EXPERT and ANTI_EXPERT, and writes it to out/artifact; plain peft loads it.

    models  PEFT folders, runs of expunge with --lora, or hub ids; LoRA, (IA)^3 or prefixes, both of one kind. Ranks, scalings and
            targets of LoRAs may differ: a module that one of them lacks counts as unchanged by it
    base    their base model, if their configurations name it differently or by a path of another machine; needed by `ethos`
    rank    for a LoRA: largest rank of a module, by singular values, with the error reported; default: r+ + r-, exactly
    resume  repeat a merge that was interrupted; command: the words that began it, kept for that

    Raises ExpungeError before anything is written if the two do not fit together.
    """
    began, out = time.perf_counter(), Path(out)
    work = beside_of(out, "partial")
    if len(models) != 2:
        raise ExpungeError(
            f"{method.method_name()} takes two adapters, EXPERT and ANTI_EXPERT, in this order; {len(models)} were given"
        )
    expert, anti = (open_adapter(str(path)) for path in models)
    _check_kinds(method, expert, anti, rank)
    check_out(out, work, [*map(str, models), *([] if base is None else [str(base)])], resume=resume, overwrite=overwrite)
    place = choose_base(expert, anti, None if base is None else str(base))
    weights = open_base(place.path) if method.reads_base else None
    if expert.kind == LORA:
        tensors, rows, config = _products(method, expert, anti, weights, rank, place.path)
    else:
        tensors, rows, config = _vectors(method, expert, anti, place.path)
    notes = [*expert.notes, *anti.notes, *place.notes, *check_contrast(method, rows)]
    result = total(method, (expert.label, anti.label), out, rows, notes, tensors, time.perf_counter() - began)

    def write(folder: Path) -> None:
        save_arrays(folder / ADAPTER_WEIGHTS, tensors)
        write_json(folder / ADAPTER_CONFIG, config)
        if not copy_tokenizer(expert.folder, folder) and place.folder is not None:
            copy_tokenizer(place.folder, folder)
        remap_pad(folder, place, expert.label)

    with folder_made(work.parent):
        _write_run(work, method, place.record(out), result, rows, write, command)
        put_in_place(work, out)
    return result


def _write_run(
    work: Path,
    method: AdapterMethod,
    base: Base,
    result: AdapterResult,
    rows: Sequence[ModuleReport],
    write: Callable[[Path], None],
    command: Sequence[str],
) -> None:
    shutil.rmtree(work, ignore_errors=True)
    try:
        if command:
            keep_command(work, command)
        names = " and ".join(f"`{Path(label).name}`" for label in result.models)
        notes = f"From {names}.\n\n```\n{result.sentences()}\n```"
        save_artifact(work / "artifact", "adapter", method, base, write, notes=notes, then="repeat the command")
        write_text(work / "modules.jsonl", "".join(row.model_dump_json() + "\n" for row in rows))
        write_json(work / "merge.json", result)
    except (OSError, ExpungeError):
        shutil.rmtree(work, ignore_errors=True)
        raise


def _check_kinds(method: AdapterMethod, expert: Adapter, anti: Adapter, rank: int | None) -> None:
    if expert.kind != anti.kind:
        raise ExpungeError(
            f"{expert.label} is an adapter of type {expert.kind} and {anti.label} of type {anti.kind}; give two of one kind"
        )
    if expert.kind != LORA and rank is not None:
        raise ExpungeError(f"--rank is for LoRA, and {expert.label} is of type {expert.kind}; leave it out")
    if expert.kind == LORA and not method.exact and rank is None:
        raise ExpungeError(f"the result of {method.method_name()} is not of low rank; give --rank R")
    if bool(expert.config.get("fan_in_fan_out")) != bool(anti.config.get("fan_in_fan_out")):
        raise ExpungeError(f"{expert.label} and {anti.label} differ in fan_in_fan_out, so they are of different architectures")


def _products(
    method: AdapterMethod, expert: Adapter, anti: Adapter, base: BaseModel | None, rank: int | None, name: str
) -> tuple[Tensors, list[ModuleReport], dict[str, Any]]:
    _check_shapes(expert, anti)
    tensors: Tensors = {}
    reports: list[ModuleReport] = []
    with Files() as files, np.errstate(over="ignore", invalid="ignore"):  # `finite` says which tensor it was
        for module, plus, minus, embedding in _pairs(files, expert, anti):
            weight = None if base is None else _base_weight(files, base, module, expert, embedding)
            made, residual = recompress(method.edit(plus, minus, weight), rank or 2**31)
            a, b = factor_names(module, embedding)
            tensors |= {a: finite(made.a_RI, a), b: finite(made.b_OR, b)}
            reports.append(_report(module, plus, minus, made, residual))
    return tensors, reports, lora_config(expert, name, {report.name: report.rank for report in reports})


def _check_shapes(expert: Adapter, anti: Adapter) -> None:
    for module in (module for module in expert.products if module in anti.products):
        mine, other = expert.products[module], anti.products[module]
        if mine.shape != other.shape:
            raise ExpungeError(
                f"{module} is {mine.shape[0]}x{mine.shape[1]} in {expert.label} and {other.shape[0]}x{other.shape[1]} in "
                f"{anti.label}; both adapters have to be of one base model"
            )


def _pairs(files: Files, expert: Adapter, anti: Adapter) -> Iterator[tuple[str, Factors, Factors, bool]]:
    """Yields each module of either, in the order of the expert's file; a module that one lacks has rank 0 there."""
    for module in dict.fromkeys([*expert.products, *anti.products]):
        found: list[Product | None] = [adapter.products.get(module) for adapter in (expert, anti)]
        loaded = [p and p.load(files, a.label, module) for p, a in zip(found, (expert, anti), strict=True)]
        there = next(factors for factors in loaded if factors is not None)
        plus, minus = (factors if factors is not None else no_change(there) for factors in loaded)
        yield module, plus, minus, any(p.embedding for p in found if p is not None)


def _base_weight(files: Files, base: BaseModel, module: str, expert: Adapter, embedding: bool) -> NDArray[np.float64]:
    name = f"{module}.weight"
    if name not in base.tensors:
        raise ExpungeError(f"the base {base.label} has no {name}, which {expert.label} changes; give the base of the adapters")
    weight = whole(files, base.tensors[name], base.label, name).astype(np.float64)
    return weight.T if embedding or expert.config.get("fan_in_fan_out") else weight


def _report(module: str, plus: Factors, minus: Factors, made: Factors, residual: float) -> ModuleReport:
    return ModuleReport(
        name=module,
        rank=made.rank,
        expert=float(np.linalg.norm(plus.row_norms)),
        anti=float(np.linalg.norm(minus.row_norms)),
        dot=plus.dot(minus),
        norm=max(made.dot(made), 0.0) ** 0.5,
        residual=residual,
        only_anti=int(((minus.row_norms > 0) & (plus.row_norms == 0)).sum()),
        rows=len(minus.row_norms),
    )


def _vectors(
    method: AdapterMethod, expert: Adapter, anti: Adapter, name: str
) -> tuple[Tensors, list[ModuleReport], dict[str, Any]]:
    tensors: Tensors = {}
    reports: list[ModuleReport] = []
    with Files() as files, np.errstate(over="ignore", invalid="ignore"):
        for key, plus, minus, shape in _rows(files, expert, anti):
            made = method.edit_rows(plus, minus)
            tensors[key] = finite(from_rows(expert, made, shape), key)
            reports.append(
                ModuleReport(
                    name=key,
                    rank=0,
                    expert=float(np.linalg.norm(plus)),
                    anti=float(np.linalg.norm(minus)),
                    dot=float((plus * minus).sum()),
                    norm=float(np.linalg.norm(made)),
                    residual=0.0,
                    only_anti=int(((norms(minus) > 0) & (norms(plus) == 0)).sum()),
                    rows=len(made),
                )
            )
    return tensors, reports, _vector_config(expert, name, tensors)


def _rows(
    files: Files, expert: Adapter, anti: Adapter
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64], tuple[int, ...]]]:
    """Yields each key of either; a vector of (IA)^3 that one lacks is 1 there."""
    for key in dict.fromkeys([*expert.rows, *anti.rows]):
        mine, other = expert.rows.get(key), anti.rows.get(key)
        if mine and other and mine.shape != other.shape:
            raise ExpungeError(
                f"{key} is {mine.shape} in {expert.label} and {other.shape} in {anti.label}; both adapters have to be of one "
                "base model, and prefixes of one length"
            )
        shape = (mine or other or expert.rows[key]).shape
        plus, minus = (
            rows_of(adapter, key, whole(files, stored, adapter.label, key).astype(np.float64) if stored else np.ones(shape))
            for adapter, stored in ((expert, mine), (anti, other))
        )
        yield key, plus, minus, shape


def _vector_config(expert: Adapter, base: str, tensors: Tensors) -> dict[str, Any]:
    config = {**expert.config, "base_model_name_or_path": base, "inference_mode": True}
    if expert.kind == "IA3":
        modules = {key.removeprefix("base_model.model.").removesuffix(".ia3_l"): t.shape for key, t in tensors.items()}
        # PEFT gives an input vector, of a feedforward module, the shape 1 x I, and an output vector O x 1
        config |= {"target_modules": list(modules), "feedforward_modules": [m for m, shape in modules.items() if shape[0] == 1]}
    return config
