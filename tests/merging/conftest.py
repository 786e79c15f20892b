"""Small model folders made of tensors, and what a merge of them must give, computed densely and in memory."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.methods.editing.base import Angle, Cut, EditingMethod, Piece

SHAPES = {
    "model.embed_tokens.weight": (37, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 23),
    "model.layers.0.norm.weight": (8,),
    "model.layers.1.mlp.down_proj.weight": (8, 23),
    "lm_head.weight": (37, 8),
}

MakeFolder = Callable[..., Path]


def random_tensors(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: (scale * torch.randn(shape, generator=generator)).to(dtype) for name, shape in SHAPES.items()}


def moved(base: Mapping[str, Tensor], seed: int, only: Sequence[str] | None = None) -> dict[str, Tensor]:
    """A model beside a base: noise on all tensors or on those named."""
    noise = random_tensors(seed, 0.1)
    return {n: (t.float() + noise[n]).to(t.dtype) if only is None or n in only else t.clone() for n, t in base.items()}


def write_folder(folder: Path, tensors: Mapping[str, Tensor], shards: int = 1, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2, "dtype": "float32", **config}))
    (folder / "tokenizer.json").write_text('{"a": 1}')
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    index = {}
    for i in range(shards):
        name, part = f"model-{i + 1:05d}-of-{shards:05d}.safetensors", dict(list(tensors.items())[i::shards])
        save_file(part, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base and three models beside it."""
    base = random_tensors(0)
    folder = write_folder(tmp_path / "base", base)
    return folder, [write_folder(tmp_path / f"m{i}", moved(base, i + 1)) for i in range(3)]


def read_weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Weight files by name."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def dense(method: EditingMethod, base: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The whole merge in memory, thresholds by sorting, one tensor in one piece."""
    cuts: dict[int, Cut] = {}
    over_models = method.trims_over != "per_tensor"
    if over_models:
        for m, model in enumerate(models):
            changed = [n for n in sorted(base) if not torch.equal(model[n], base[n])]
            among = sorted(base) if method.trims_over == "global" else changed
            cuts[m] = _cut(method, m, torch.cat([(model[n].float() - base[n].float()).flatten() for n in among]))
    merged, offset = {}, 0
    for name, tensor in sorted(base.items()):
        start = tensor.float().flatten()
        changed = tuple(m for m, model in enumerate(models) if not torch.equal(model[name], tensor))
        differences = [models[m][name].float().flatten() - start for m in changed]
        piece = Piece(
            name=name,
            start=0,
            base_E=start,
            inputs=tuple(
                d if method.reads == "differences" else models[m][name].float().flatten().clone()
                for m, d in zip(changed, differences, strict=True)
            ),
            models=changed,
            among=len(models),
            cuts=tuple(cuts[m] if over_models else _cut(method, m, d) for m, d in zip(changed, differences, strict=True)),
            offset=offset if over_models else 0,
            angle=_angle(start, models[0][name].double().flatten()) if method.measures_angle else None,
        )
        offset += len(start)
        keep = not changed and method.keeps_equal(len(models))
        merged[name] = tensor if keep else method.edit(piece).values_E.reshape(tensor.shape).to(tensor.dtype)
    return merged


def _cut(method: EditingMethod, model: int, difference: Tensor) -> Cut:
    band = method.band(model, len(difference))
    if band is None:
        return Cut()
    ordered, order = difference.abs().sort(descending=True, stable=True)
    low, high = float(ordered[band.skip + band.keep - 1]), float(ordered[band.skip]) if band.skip else float("inf")
    if not method.exact_ties:
        return Cut(low=low, high=high)
    stay = [int(i) for i in order[: band.skip + band.keep] if difference[i].abs() == low]
    go = [int(i) for i in order[: band.skip] if difference[i].abs() == high]
    return Cut(low=low, low_end=max(stay) + 1, high=high, high_end=max(go, default=-1) + 1)


def _angle(a: Tensor, b: Tensor) -> Angle:
    a = a.double()
    return Angle(float(a @ a), float(b @ b), float(a @ b))
