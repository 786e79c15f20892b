"""Reads mergekit's YAML files, with the same results (bit for bit in float32).

Read are `models` or whole-model `slices`, `base_model`, `merge_method`, `parameters` with filters and gradients at every level,
`dtype`, `out_dtype`. Unsupported settings that would change the result raise an error.
Differences that remain: sums are always float32 with one rounding, even if `dtype` says bfloat16; DARE's random draws are its own
(seeded), and `rescale` divides by the density, of which mergekit's matching of norms is an estimate.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from expunge.errors import ExpungeError, nearest
from expunge.merging.mergekit_parameters import Level, MergekitConfig, ModelEntry, Parameters
from expunge.merging.opening import open_base
from expunge.merging.plan import MergeRequest
from expunge.methods.editing import Breadcrumbs, DareLinear, DareTies, EditingMethod, Linear, Slerp, TaskArithmetic, Ties
from expunge.models.load import DType

KNOWN = {"models", "slices", "base_model", "merge_method", "parameters", "dtype", "out_dtype"} | {
    "name", "tokenizer", "tokenizer_source", "chat_template", "modules"
}  # fmt: skip


def read_mergekit(file: Path, *, shard_bytes: int) -> MergeRequest:
    """Reads the merge that a YAML file of mergekit describes. Raises ExpungeError for unsupported settings."""
    recipe = _recipe(file, _load(file))
    layers = _layers(recipe.base)

    def method_of(name: str) -> EditingMethod:
        parameters = Parameters(file, recipe, name, layers)
        try:
            method = BUILDERS[recipe.method](parameters)
        except ValidationError as error:
            raise ExpungeError(f"{file}: for {name}: {error.errors()[0]['msg']}") from error
        parameters.check()
        return method

    return MergeRequest(
        method=method_of(next(iter(open_base(recipe.base).tensors))),
        base=recipe.base,
        models=tuple(entry.path for entry in recipe.entries),
        dtype=recipe.dtype,
        shard_bytes=shard_bytes,
        method_of=method_of,
        recipe=file.read_text(encoding="utf-8"),
    )


def _load(file: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ExpungeError(
            f"{file} cannot be read as YAML ({str(error).splitlines()[0]}); check the path and the file"
        ) from error
    if not isinstance(value, dict) or "merge_method" not in value:
        raise ExpungeError(f"{file} has no merge_method; give a file of mergekit, or a method on the command line")
    if unknown := sorted(set(value) - KNOWN):
        raise ExpungeError(f"{file}: '{unknown[0]}' is not a field of mergekit{nearest(unknown[0], KNOWN)}")
    if value["merge_method"] not in BUILDERS:
        raise ExpungeError(
            f"{file}: the method '{value['merge_method']}' is not supported{nearest(str(value['merge_method']), BUILDERS)}; "
            f"there are {', '.join(BUILDERS)}"
        )
    return value


def _recipe(file: Path, value: dict[str, Any]) -> MergekitConfig:
    for field, why in (
        ("modules", "models of several modules cannot be merged here"),
        ("chat_template", "the base's chat template is kept; remove the line and edit the tokenizer of the result"),
    ):
        if value.get(field):
            raise ExpungeError(f"{file}: {field} is not supported: {why}")
    tokenizer = value.get("tokenizer") or {"source": value.get("tokenizer_source") or "base"}
    if tokenizer != {"source": "base"} and tokenizer != {"source": value.get("base_model")}:
        raise ExpungeError(
            f"{file}: the result keeps the tokenizer of the base; of tokenizer settings only `source: base` is supported"
        )
    shared: tuple[Level, ...] = (value.get("parameters") or {},)
    if value.get("slices"):
        entries, extra = _slices(file, value["slices"])
        shared = (extra, *shared)
    else:
        entries = _models(file, value.get("models"), "models")
    base = value.get("base_model") or (entries[0].path if value["merge_method"] == "linear" else None)
    if base is None:
        raise ExpungeError(f"{file}: {value['merge_method']} needs base_model; add it")
    if value["merge_method"] != "linear":
        entries = tuple(entry for entry in entries if entry.path != base)
    dtype: Any = value.get("out_dtype") or value.get("dtype") or "auto"
    if dtype not in get_args(DType):
        raise ExpungeError(f"{file}: dtype '{dtype}' is not supported{nearest(str(dtype), get_args(DType))}")
    entries = tuple(entry._replace(path=_adapter_of(file, entry.path, str(base))) for entry in entries)
    return MergekitConfig(value["merge_method"], str(base), entries, shared, dtype)


def _models(file: Path, listed: Any, where: str) -> tuple[ModelEntry, ...]:
    if not isinstance(listed, list) or not all(isinstance(e, dict) and isinstance(e.get("model"), str) for e in listed):
        raise ExpungeError(f"{file}: {where} is not a list of `model: PATH` with parameters; correct it")
    for entry in listed:
        _check_fields(file, entry, {"model", "parameters", "layer_range"}, entry["model"])
    return tuple(ModelEntry(entry["model"], (entry.get("parameters") or {},)) for entry in listed)


def _check_fields(file: Path, value: dict[str, Any], known: set[str], where: str) -> None:
    """Raises ExpungeError for a field that would have no effect here."""
    if unknown := sorted(set(value) - known):
        raise ExpungeError(
            f"{file}: '{unknown[0]}' beside {where} is not read{nearest(unknown[0], known)}; weight, density and the like belong "
            "below `parameters`, and a slice has no base_model of its own here"
        )


def _slices(file: Path, slices: Any) -> tuple[tuple[ModelEntry, ...], Level]:
    """Reads one slice that takes all layers of its models as a merge of models; others, which rearrange layers, are refused."""
    sources = slices[0].get("sources") if isinstance(slices, list) and len(slices) == 1 and isinstance(slices[0], dict) else None
    entries = _models(file, sources, "the sources of a single slice")
    _check_fields(file, slices[0], {"sources", "parameters"}, "the sources of a slice")
    for entry, source in zip(entries, sources or [], strict=True):
        if source.get("layer_range") != [0, _layers(entry.path)]:
            raise ExpungeError(
                f"{file}: a slice takes the layers {source.get('layer_range')} of {entry.path}, which has {_layers(entry.path)}; "
                "only slices of all layers are supported, not models put together from parts"
            )
    return entries, slices[0].get("parameters") or {}


def _adapter_of(file: Path, path: str, base: str) -> str:
    """Splits mergekit's `MODEL+ADAPTER`."""
    model, plus, adapter = path.partition("+")
    if plus and model != base:
        raise ExpungeError(f"{file}: {path} puts an adapter on another model than base_model; merge it into that model first")
    return adapter if plus else path


def _layers(path: str) -> int:
    config = open_base(path).config
    return int((config.get("text_config") or config)["num_hidden_layers"])


def _ties(p: Parameters) -> EditingMethod:
    p.refuse_rescale()
    return Ties(
        density=p.each("density", 1.0),
        scope="per_tensor",
        tie_policy="exact",
        weights=p.each("weight", None),
        normalize=p.flag("normalize", True),
        scale=p.one("lambda", 1.0),
    )


def _task_arithmetic(p: Parameters) -> EditingMethod:
    p.asked |= {"density", "rescale"}  # of no effect there either
    return TaskArithmetic(weights=p.each("weight", None), normalize=p.flag("normalize", False), scale=p.one("lambda", 1.0))


def _dare(p: Parameters) -> dict[str, Any]:
    return {
        "density": p.each("density", 1.0),
        "rescale": p.flag("rescale", True),
        "weights": p.each("weight", None),
        "normalize": p.flag("normalize", False),
        "scale": p.one("lambda", 1.0),
    }


def _dare_linear(p: Parameters) -> EditingMethod:
    return DareLinear(**_dare(p))


def _dare_ties(p: Parameters) -> EditingMethod:
    return DareTies(**_dare(p), cancelled="positive")  # as its sign of a sum that is exactly 0


def _breadcrumbs(p: Parameters) -> EditingMethod:
    p.refuse_rescale()
    gammas = set(p.each("gamma", 0.01))
    if len(gammas) > 1:
        raise ExpungeError(f"{p.file}: breadcrumbs has one gamma for all models; give them the same")
    return Breadcrumbs(
        density=p.each("density", 1.0),
        gamma=min(gammas, default=0.01),
        tie_policy="exact",
        weights=p.each("weight", None),
        normalize=p.flag("normalize", False),
        scale=p.one("lambda", 1.0),
    )


def _linear(p: Parameters) -> EditingMethod:
    return Linear(weights=p.each("weight", None), normalize=p.flag("normalize", True))


def _slerp(p: Parameters) -> EditingMethod:
    return Slerp(t=p.one("t", None))


BUILDERS: dict[str, Callable[[Parameters], EditingMethod]] = {
    "linear": _linear,
    "slerp": _slerp,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
    "breadcrumbs": _breadcrumbs,
}
