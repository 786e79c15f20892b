"""Imports the published .pkl files of Neuron Adjust and Key Space Detection as guards, with a restricted unpickler.

    neuron adjust   {layer name: {mu1_lst, sigma1_lst (retain), mu2_lst, sigma2_lst (forget), neuron_lst}}
    key space       {layer name: {mean, std, k[, steer_vector]}}

Reading a pickle can run code. This unpickler makes dictionaries, lists, numbers, strings and numpy arrays of numbers, and refuses
anything else. What the first kind of file calls sigma is a variance (the published probe takes no root).
"""

import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from expunge.artifact import Manifest, base_of, save_artifact
from expunge.data.encode import Encoder
from expunge.data.format import default_format
from expunge.errors import ExpungeError
from expunge.folders import check_apart, check_place, holds_something
from expunge.guarding import life
from expunge.guarding.abstain import Abstention
from expunge.methods.base import State
from expunge.methods.guarding.key_space import KeySpaceDetection
from expunge.methods.guarding.neuron_adjust import NeuronAdjust
from expunge.models.blocks import Blocks, blocks_of
from expunge.models.load import load_tokenizer, model_fingerprint


def _latin1(text: str, encoding: str) -> bytes:
    """Decodes bytes, which pickle's protocol 2 writes as Latin-1 text."""
    if encoding != "latin1":
        raise ExpungeError(f"the pickle encodes text as {encoding}, which no published file does; it was not read")
    return text.encode("latin1")


ALLOWED = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np._core.multiarray._reconstruct for core in ("core", "_core")},  # type: ignore[attr-defined]
    **{(f"numpy.{core}.multiarray", "scalar"): np._core.multiarray.scalar for core in ("core", "_core")},  # type: ignore[attr-defined]
    **{(f"numpy.{core}.numeric", "_frombuffer"): np._core.numeric._frombuffer for core in ("core", "_core")},  # type: ignore[attr-defined]
}
"""What a published file may refer to; NumPy 1 wrote `core` where NumPy 2 has `_core`."""

NEURON_ADJUST = {"mu1_lst", "sigma1_lst", "mu2_lst", "sigma2_lst", "neuron_lst"}
KEY_SPACE = {"mean", "std", "k"}

Layers = Mapping[str, Mapping[str, Any]]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise ExpungeError(
                f"the pickle names {module}.{name}, which no published file does; it may be harmful and was not read"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise ExpungeError("the pickle refers to data outside of it, which no published file does; it was not read")


def read_published(path: str | Path) -> Layers:
    """Reads a published file as plain dictionaries, lists and numpy arrays of numbers. Raises ExpungeError for anything else."""
    try:
        with open(path, "rb") as file:
            found = _Unpickler(file).load()
    except OSError as error:
        raise ExpungeError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ExpungeError(
            f"{path} is not a whole pickle file ({error}); fetch it again (Git LFS leaves a text pointer)"
        ) from error
    if not isinstance(found, dict) or not found or not all(isinstance(v, dict) for v in found.values()):
        raise ExpungeError(f"{path} does not hold a dictionary by layer names, as the published files do")
    return found


def import_guard(
    path: str | Path,
    *,
    model: str,
    out: str | Path,
    revision: str | None = None,
    alpha: float = 1.0,
    abstention: str = "I cannot answer that.",
    check: str = "all_steps",
    compat: str = "none",
    draw_seed: int = 0,
) -> Manifest:
    """Writes the guard of a published file for `model` to the run folder `out`; `expunge.load(out)` gives the guarded model.

    model    the model that the file was made for: a folder, or a hub id that was loaded before; of it only configuration,
             tokenizer and hash are needed
    alpha    key space: radius as a multiple of the file's k (published: 2 for GSM8K, 1.4 for MBPP, 0.06 for languages)
    check    key space: all_steps, as published, or prompt
    compat   neuron adjust: none, or released for the published hook, including its errors

    The file holds no texts, so that the artifact has no canary prompts.

    Raises ExpungeError if the file does not fit the model, or is not one of the two kinds, or `out` holds something.
    """
    folder = Path(out) / "artifact"
    check_place(Path(out))
    check_apart(Path(out), [path, model])
    if holds_something(Path(out)):
        raise ExpungeError(f"{out} exists already; give another --out")
    layers, places = read_published(path), blocks_of(_skeleton(model, revision))
    tokenizer = load_tokenizer(model, revision=revision)
    encoder = Encoder(tokenizer, default_format(tokenizer))
    method: NeuronAdjust | KeySpaceDetection
    if all(set(values) >= NEURON_ADJUST for values in layers.values()):
        state = neuron_adjust_state(layers, places)
        percent = 100 * len(state["layer"]) / (places.count * places.d_ff)
        method = NeuronAdjust.model_validate({"percent": percent, "compat": compat, "draw_seed": draw_seed, "canaries": 0})
    elif all(set(values) >= KEY_SPACE for values in layers.values()):
        state = key_space_state(layers, places, alpha)
        Abstention.of(encoder, abstention)  # refused here, and not only when the guard is loaded
        fields = {
            "layers": tuple(state["layer"].tolist()),
            "alpha": alpha,
            "abstention": abstention,
            "check": check,
            "tokens": "last_prompt",
        }
        method = KeySpaceDetection.model_validate({**fields, "canaries": 0})
    else:
        fields_found = sorted({name for values in layers.values() for name in values})
        raise ExpungeError(
            f"{path} holds {', '.join(fields_found)} by layer, which belongs to neither Neuron Adjust nor Key Space Detection; "
            "give a file that one of them published"
        )
    base = base_of(model, Path(out), model_fingerprint(model, revision=revision), revision)
    notes = f"Imported from {Path(path).name}. {method.summary(state)}"
    write = partial(life.save, state=state, encoder=encoder)
    return save_artifact(folder, "guard", method, base, write, notes=notes, then="repeat the command")


def neuron_adjust_state(layers: Layers, places: Blocks) -> State:
    names = {places.pre_activation(i).name: i for i in range(places.count)}
    parts: dict[str, list[Tensor]] = {
        n: [] for n in ("layer", "neuron", "forget_mean", "forget_std", "retain_mean", "retain_std")
    }
    for name, values in layers.items():
        layer = _layer(name, names)
        neuron_K = torch.from_numpy(_numbers(values["neuron_lst"], f"{name} neuron_lst").astype(np.int64))
        if len(neuron_K) and not 0 <= int(neuron_K.min()) <= int(neuron_K.max()) < places.d_ff:
            raise ExpungeError(
                f"{name} names neuron {int(neuron_K.max())}, but the model's layers have {places.d_ff}; is it another model?"
            )
        parts["layer"].append(torch.full_like(neuron_K, layer))
        parts["neuron"].append(neuron_K)
        for side, number in (("retain", 1), ("forget", 2)):
            mean_K, variance_K = (
                _numbers(values[f"{kind}{number}_lst"], f"{name} {kind}{number}_lst") for kind in ("mu", "sigma")
            )
            if not len(mean_K) == len(variance_K) == len(neuron_K):
                raise ExpungeError(f"the lists of {name} differ in length; the file is not as published")
            parts[f"{side}_mean"].append(torch.from_numpy(mean_K.astype(np.float64)))
            parts[f"{side}_std"].append(torch.from_numpy(np.sqrt(np.maximum(variance_K.astype(np.float64), 0.0))))
    state = {name: torch.cat(tensors) for name, tensors in parts.items()}
    order = torch.argsort(state["layer"], stable=True)
    unknown = {"forget_tokens": torch.tensor(0), "retain_tokens": torch.tensor(0)}  # the files do not say
    return State({name: tensor[order] for name, tensor in state.items()} | unknown)


def key_space_state(layers: Layers, places: Blocks, alpha: float) -> State:
    names = {places.key(i).name: i for i in range(places.count)}
    found = sorted((_layer(name, names), name) for name in layers)
    mean_LF, std_LF = (
        torch.from_numpy(np.stack([_numbers(layers[name][field], f"{name} {field}") for _, name in found]).astype(np.float32))
        for field in ("mean", "std")
    )
    if mean_LF.shape != (len(found), places.d_ff) or std_LF.shape != mean_LF.shape:
        raise ExpungeError(
            f"the file has {mean_LF.shape[-1]} dimensions, but the model's keys have {places.d_ff}; is it another model?"
        )
    if float(std_LF.min()) < 0:
        raise ExpungeError("the file has negative deviations (std), which are none; it is damaged")
    k_L = torch.tensor([_radius(layers[name]["k"], f"{name} k") for _, name in found], dtype=torch.float64)
    return State(
        {
            "layer": torch.tensor([layer for layer, _ in found]),
            "centre": mean_LF,
            "unit": std_LF.clamp(min=1e-6),
            "k": k_L,
            "radius": alpha * k_L,
            "count": torch.tensor(0),  # the files do not say
        }
    )


def _layer(name: str, names: Mapping[str, int]) -> int:
    if name not in names:
        raise ExpungeError(
            f"the file is for {name}, but in this model such sites are {', '.join(list(names)[:3])}, ...; is it another model?"
        )
    return names[name]


def _numbers(values: Any, where: str) -> np.ndarray[Any, Any]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "fiu"):
        raise ExpungeError(f"{where} is not a list of numbers; the file is not as published")
    if not np.isfinite(array).all():
        raise ExpungeError(f"{where} holds NaN or infinity, with which a guard decides nothing; the file is damaged")
    return array


def _radius(value: Any, where: str) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiu" or not 0 < float(array.reshape(())) < float("inf"):
        raise ExpungeError(f"{where} is {value!r} and no positive number, so that no query would be closed; the file is damaged")
    return float(array.reshape(()))


def _skeleton(model: str, revision: str | None) -> PreTrainedModel:
    """Builds the model's modules without weights, to read its layers."""
    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        raise ExpungeError(
            f"{model} is no model that can be loaded ({str(error).splitlines()[0]}); give its folder or hub id"
        ) from error
    with torch.device("meta"):
        skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return skeleton
