"""Selects the weights that are trained: those that the method's pattern matches, directly or through adapters."""

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from expunge.errors import ExpungeError
from expunge.methods.training.base import TrainingMethod
from expunge.models.load import causal_model
from expunge.training.adapters import OWN, attach, plain_name, scaled_layers
from expunge.training.settings import Training

ALL = TrainingMethod.model_fields["parameters"].default
"""The pattern that selects all weights."""
KINDS = {"lora": "a LoRA", "ia3": "an (IA)^3"}


class Selection(NamedTuple):
    """The weights that are trained."""

    weights: frozenset[str]
    """Full names of the weights that the pattern matches."""
    modules: tuple[str, ...] = ()
    """With --lora: the linear layers that get an adapter."""
    parameters: tuple[str, ...] = ()
    """With LoRA: the matrices that get an adapter but are no layer's weight, such as fused experts."""
    said: str = ""
    """What is trained, in one sentence for the card."""


def select_weights(model: PreTrainedModel, method: TrainingMethod, training: Training) -> Selection:
    """Matches the method's pattern with the model's weights.

    Raises ExpungeError, with counts, if the pattern is invalid, if it or one of its alternatives matches no weight, if it selects
    weights that the method does not train, and if not every matched matrix can get an adapter. With LoRA the default pattern
    selects all matrices inside the blocks.
    """
    inner = causal_model(model)
    chosen = _matched(inner, method)
    if not training.lora:
        return Selection(chosen, said=f"Trained: {len(chosen)} of {len(list(inner.parameters()))} weights of the model.")
    modules, parameters, left = _adapted(model, chosen) if isinstance(model, PeftModel) else _adaptable(model, chosen)
    if training.adapter == "ia3" and not isinstance(model, PeftModel):
        scaled = scaled_layers(model, modules, chosen=method.parameters != ALL)
        left = (*left, *parameters, *(f"{name}.weight" for name in modules if name not in scaled))
        modules, parameters = scaled, ()
    if not modules and not parameters:
        raise ExpungeError(
            f"the pattern '{method.parameters}' selects {_count(chosen)}, and none is a matrix that has or can get "
            f"{KINDS[training.adapter]} adapter (embeddings, the head, norms and biases cannot); widen --parameters or "
            "train full weights"
        )
    if left and method.parameters != ALL:
        matrices = len(modules) + len(parameters) + len(left)
        raise ExpungeError(
            f"the pattern '{method.parameters}' selects {matrices} matrices, and {len(left)} of them cannot "
            f"get {KINDS[training.adapter]} adapter ({_few(left)}); narrow --parameters or train full weights"
        )
    if parameters and training.lora_dropout:
        raise ExpungeError(
            f"{_count(parameters)} can get a LoRA adapter only without dropout ({_few(parameters)}); set --lora-dropout 0 or "
            "leave them out by --parameters"
        )
    made = "vectors of (IA)^3" if training.adapter == "ia3" else f"LoRA adapters of rank {training.lora_rank}"
    adapters = "the adapters that were there" if isinstance(model, PeftModel) else made
    said = f"Trained: {adapters}, on {len(modules) + len(parameters)} matrices"
    said += f" ({_kinds((*modules, *parameters))}); not on {_kinds(left)}." if left else f" ({_kinds((*modules, *parameters))})."
    return Selection(chosen, modules, parameters, said)


def set_trainable(model: PreTrainedModel, selection: Selection, training: Training) -> PreTrainedModel:
    """Marks the selected weights as trainable, or wraps the model with adapters on them."""
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if isinstance(model, PeftModel):  # its adapter is trained further
        own = {id(p) for name, layer in _own_adapters(model).items() if name in selection.weights for p in _factors(layer)}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in own)
        return model  # type: ignore[no-any-return]
    if training.lora:
        return attach(model, selection.modules, selection.parameters, training)  # type: ignore[return-value, no-any-return]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in selection.weights)
    return model


def _matched(model: PreTrainedModel, method: TrainingMethod) -> frozenset[str]:
    name, names = method.method_name(), {plain_name(n) for n in method.candidates(model) if not OWN.search(n)}
    try:
        found = frozenset(n for n in names if re.search(method.parameters, n))
        others = {n for n in _plain_names(model) if re.search(method.parameters, n)} - found
        empty = [part for part in alternatives(method.parameters) if not any(re.search(part, n) for n in names)]
    except re.error as error:
        raise ExpungeError(f"--parameters '{method.parameters}' is not a regular expression ({error}); write another") from error
    if not found:
        raise ExpungeError(
            f"the pattern '{method.parameters}' selects none of the {len(names)} weights that {name} can move here"
            f"{_tied(model, method.parameters)}; those have names like {_few(names)}"
        )
    if empty:
        raise ExpungeError(
            f"the pattern '{method.parameters}' selects {_count(found)}, but {len(empty)} of its alternatives selects none: "
            f"{_few(empty)}; this model has names like {_few(names)}"
        )
    if others and method.parameters != ALL:
        raise ExpungeError(
            f"the pattern '{method.parameters}' selects {len(found) + len(others)} weights, of which {name} can move "
            f"{len(found)}, and not {_few(others)}; narrow --parameters"
        )
    return found


def alternatives(pattern: str) -> Iterator[str]:
    """Returns the pattern with each alternative of one group in place of the group, `a(b|c)` -> `a(?:b)`, `a(?:c)`, and those
    of the whole pattern, `a|b` -> `a`, `b`. Empty if there is no choice."""
    for start, stop, parts in _choices(pattern):
        for part in parts:
            yield f"{pattern[:start]}(?:{part}){pattern[stop:]}"


def _choices(pattern: str) -> Iterator[tuple[int, int, list[str]]]:
    """Returns (start, stop, alternatives) of each group with its own `|`; escapes and character classes are skipped."""
    groups: list[tuple[int, list[int]]] = [(0, [])]  # where a group begins, and where its bars are
    i, inside_class = 0, False
    while i < len(pattern):
        letter = pattern[i]
        if letter == "\\":
            i += 1
        elif inside_class:
            inside_class = letter != "]"
        elif letter == "[":
            inside_class = True
        elif letter == "(":
            groups.append((i, []))
        elif letter == "|":
            groups[-1][1].append(i)
        elif letter == ")" and len(groups) > 1:
            start, bars = groups.pop()
            if bars and not pattern.startswith(("(?=", "(?!", "(?<"), start):
                inner = start + 3 if pattern.startswith("(?:", start) else start + 1
                yield start, i + 1, _between(pattern, inner, bars, i)
        i += 1
    if groups[0][1]:
        yield 0, len(pattern), _between(pattern, 0, groups[0][1], len(pattern))


def _between(pattern: str, start: int, bars: list[int], stop: int) -> list[str]:
    ends = [*bars, stop]
    return [pattern[begin:end] for begin, end in zip([start, *(bar + 1 for bar in bars)], ends, strict=True)]


def _adaptable(model: PreTrainedModel, chosen: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Returns the chosen matrices that get adapters as linear layers, as parameters, and not at all."""
    outside = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    modules: list[str] = []
    parameters: list[str] = []
    left: list[str] = []
    for name, parameter in model.named_parameters():
        if name not in chosen or parameter.ndim < 2:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        if id(parameter) in outside or isinstance(owner, nn.Embedding):
            left.append(name)
        elif name.endswith(".weight") and (isinstance(owner, nn.Linear) or type(owner).__name__ == "Conv1D"):
            modules.append(name.removesuffix(".weight"))
        elif parameter.ndim == 3 and not name.endswith("bias"):
            parameters.append(name)
        else:
            left.append(name)
    return tuple(modules), tuple(parameters), tuple(left)


def _adapted(model: nn.Module, chosen: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Returns the chosen matrices that have an adapter already, and those that have none."""
    own = _own_adapters(model)
    names = {plain_name(n): p for n, p in causal_model(model).named_parameters() if not OWN.search(n)}
    left = tuple(n for n, p in names.items() if n in chosen and n not in own and p.ndim > 1)
    return tuple(n.removesuffix(".weight") for n in own if n in chosen), (), left


def _own_adapters(model: nn.Module) -> dict[str, nn.Module]:
    """Returns weight -> the module that holds the factors of its adapter."""
    found: dict[str, nn.Module] = {}
    for name, module in causal_model(model).named_modules():
        if isinstance(module, BaseTunerLayer):
            found[f"{plain_name(name)}.{getattr(module, 'parameter_name', 'weight')}"] = module
    return found


def _factors(layer: nn.Module) -> Iterator[nn.Parameter]:
    """Returns the adapter's weights of a layer itself, without those of layers inside it."""
    yield from (p for name, p in layer.named_parameters() if OWN.match(name))


def _plain_names(model: nn.Module) -> list[str]:
    return [plain_name(name) for name, _ in model.named_parameters() if not OWN.search(name)]


def _tied(model: PreTrainedModel, pattern: str) -> str:
    shown = {id(p): name for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name != shown[id(parameter)] and re.search(pattern, name):
            return f" ({name} is the same weight as {shown[id(parameter)]})"
    return ""


def _count(names: Collection[str]) -> str:
    return "1 weight" if len(names) == 1 else f"{len(names)} weights"


def _few(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def _kinds(names: Collection[str]) -> str:
    """Returns the last words of names, each once, in order: `q_proj, k_proj`."""
    return ", ".join(dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in names))
