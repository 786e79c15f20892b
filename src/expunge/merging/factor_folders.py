"""Reads and writes PEFT folders for adapter arithmetic, without a base model.

LoRA       base_model.model.<module>.lora_A.weight, .lora_B.weight     a product, with a scaling from the configuration
(IA)^3     base_model.model.<module>.ia3_l                             a vector that multiplies; 1 is no change
prefix     prompt_embeddings                                           tokens x (layers x {key, value} x heads x head width)

Shape suffixes: O outputs, I inputs, R rank, N rows.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expunge.artifact import artifact_folder, read_manifest
from expunge.data.format import FORMAT_FILE
from expunge.errors import ExpungeError
from expunge.merging.adapters import PREFIX, adapter_tensors, check_product, read_config, scaling_of
from expunge.merging.opening import resolve
from expunge.merging.positions import Files, Stored, whole
from expunge.methods.editing.factors import Factors
from expunge.models.folder import ADAPTER_CONFIG, folder_kind, tokenizer_files

LORA, IA3, PREFIX_TUNING = "LORA", "IA3", "PREFIX_TUNING"


class Product(NamedTuple):
    """One LoRA module on disk."""

    b: Stored
    a: Stored
    scaling: float
    embedding: bool
    """Whether it is on an embedding, whose weight is stored as W^T and whose factors have other names."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def load(self, files: Files, label: str, module: str) -> Factors:
        b_OR, a_RI = (whole(files, t, label, module).astype(np.float64) for t in (self.b, self.a))
        return Factors(b_OR * self.scaling, a_RI)


class Adapter(NamedTuple):
    label: str
    folder: Path
    config: dict[str, Any]
    products: dict[str, Product]
    """By module, for a LoRA."""
    rows: dict[str, Stored]
    """By key, for other kinds."""
    notes: tuple[str, ...]

    @property
    def kind(self) -> str:
        return str(self.config["peft_type"])

    @property
    def base(self) -> str:
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def base_sha256(self) -> str | None:
        """Returns the hash of the base that an artifact of expunge recorded."""
        found = artifact_folder(self.folder)
        return None if found is None else read_manifest(found).base.sha256 or None


def open_adapter(path: str) -> Adapter:
    """Opens a PEFT folder, a run of expunge, or a hub id. Raises ExpungeError for other types of adapters, and for factors
    that are missing or do not fit."""
    folder = resolve(path)
    if folder_kind(folder) != "adapter":
        raise ExpungeError(f"{path} holds no {ADAPTER_CONFIG}; the arithmetic of adapters takes PEFT folders or runs with --lora")
    config = read_config(path, folder)
    kind = config["peft_type"]
    if kind not in (LORA, IA3, PREFIX_TUNING):
        raise ExpungeError(f"{path} is an adapter of type {kind}; LORA, IA3 and PREFIX_TUNING can be added and subtracted")
    stored = adapter_tensors(path, folder)
    if kind == LORA:
        products, notes = _products(path, config, stored)
        return Adapter(path, folder, config, products, {}, notes)
    suffix = ".ia3_l" if kind == IA3 else "prompt_embeddings"
    if strange := [key for key in stored if not key.endswith(suffix)]:
        raise ExpungeError(f"{path} holds {strange[0]}, which is no part of an adapter of type {kind} alone; remove it")
    return Adapter(path, folder, config, {}, stored, ())


def _products(label: str, config: Mapping[str, Any], stored: Mapping[str, Stored]) -> tuple[dict[str, Product], tuple[str, ...]]:
    check_product(label, config)
    products: dict[str, Product] = {}
    notes: list[str] = []
    for key, tensor in stored.items():
        module, _, factor = key.removeprefix(PREFIX).rpartition(".lora_")
        if module and factor in ("A.weight", "embedding_A"):
            partner = key.replace(".lora_A", ".lora_B").replace("_embedding_A", "_embedding_B")
            if partner not in stored:
                raise ExpungeError(f"{label} has {key} without {partner}; copy the adapter again")
            products[module] = _product(label, config, module, stored[partner], tensor, factor == "embedding_A")
        elif module and factor in ("B.weight", "embedding_B"):
            if key.replace(".lora_B", ".lora_A").replace("_embedding_B", "_embedding_A") not in stored:
                raise ExpungeError(f"{label} has {key} without its factor A; copy the adapter again")
        elif ".base_layer." in key:
            original = key.removeprefix(PREFIX).replace(".base_layer.", ".")
            notes.append(f"{label}: its copy of {original} is the base's and was left out")
        else:
            raise ExpungeError(
                f"{label} holds {key}, which is no factor of a LoRA; weights that were trained whole are merged with a base: "
                "`expunge merge task_arithmetic --base ...`"
            )
    if not products:
        raise ExpungeError(f"{label} holds no adapter weights; save it again with save_pretrained")
    return products, tuple(notes)


def _product(label: str, config: Mapping[str, Any], module: str, b: Stored, a: Stored, embedding: bool) -> Product:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise ExpungeError(f"{label}: the factors of {module} are {b.shape} and {a.shape}, which make no product; copy it again")
    return Product(b, a, scaling_of(label, config, module, a.shape[0]), embedding)


def factor_names(module: str, embedding: bool) -> tuple[str, str]:
    """Returns the keys of A and B in PEFT's file."""
    ends = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    return f"{PREFIX}{module}.{ends[0]}", f"{PREFIX}{module}.{ends[1]}"


def lora_config(of: Adapter, base: str, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Makes the configuration of a LoRA of scaling 1 whose modules have these ranks. Other fields have peft's defaults."""
    rank = max(ranks.values())
    own = {module: r for module, r in ranks.items() if r != rank}
    return {
        "peft_type": LORA,
        "task_type": of.config.get("task_type") or "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": of.config.get("revision"),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": own,
        "alpha_pattern": own,
        "target_modules": list(ranks),
        "fan_in_fan_out": bool(of.config.get("fan_in_fan_out")),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }


def rows_of(adapter: Adapter, key: str, tensor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the rows for the formula: the vector of an (IA)^3 as its difference to 1, the heads of a prefix. N x I. Raises
    ExpungeError if heads do not divide the width."""
    if adapter.kind == IA3:
        return tensor.reshape(1, -1) - 1
    heads, width = int(adapter.config["num_attention_heads"]), int(adapter.config["token_dim"])
    if width % heads or tensor.shape[-1] % width:
        raise ExpungeError(f"{adapter.label}: {key} is {tensor.shape}, which {heads} heads of {width} do not divide")
    return tensor.reshape(-1, width // heads)


def from_rows(adapter: Adapter, rows_NI: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Reverses `rows_of`."""
    return (rows_NI + 1 if adapter.kind == IA3 else rows_NI).reshape(shape)


def copy_tokenizer(source: Path, folder: Path) -> list[str]:
    """Copies the tokenizer's files and the prompt format, but no other files (optimizer, random states)."""
    found = [file for file in [*tokenizer_files(source), source / FORMAT_FILE] if file.is_file()]
    for file in found:
        target = folder / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    return [file.name for file in found]


def finite(tensor: NDArray[np.float64], name: str) -> NDArray[np.float32]:
    """Rounds to float32; raises ExpungeError if a number exceeds its range."""
    with np.errstate(over="ignore"):
        rounded = tensor.astype(np.float32, order="C")
    if not np.isfinite(rounded).all():
        raise ExpungeError(f"the new {name} leaves the range of float32; take a smaller --alpha")
    return rounded
