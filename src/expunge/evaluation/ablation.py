"""Scores one guard of embedding corruption under many corruptions: the model is loaded once, the gate decides once per prompt,
prompts that it lets pass are scored once for all of them, and settings with the same effect once."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.errors import ExpungeError
from expunge.evaluation.metrics.base import Need
from expunge.evaluation.reuse import Change, Reuse, attached
from expunge.evaluation.run import evaluate
from expunge.evaluation.shortcuts import shortcuts_of
from expunge.evaluation.task import Suite
from expunge.guarding import life
from expunge.guarding.embedding_corruption.corrupter import Edit, Reading
from expunge.guarding.embedding_corruption.judge import Judge
from expunge.guarding.forward_pass import Counts
from expunge.methods.base import State
from expunge.methods.guarding.embedding_corruption import EmbeddingCorruption
from expunge.models.embeddings import embedding_matrix
from expunge.records import Evaluation, read_evaluation

STRENGTHS = (5, 10, 15, 20, 25, 30)
"""Standard deviations of noise on one coordinate, in units of the embeddings (ECO's released ablations)."""
SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Shares of the coordinates that are set to zero or get the other sign (ECO's released ablation of Phi-1.5)."""


PACKED: frozenset[Need] = frozenset({"answer", "paraphrases", "perturbed", "choices", "generated", "distribution"})
"""What is computed without hooks (`changed_prompts`); the rest, samples and gradients, through an attached guard."""


class Setting(NamedTuple):
    """One corruption."""

    name: str
    fields: dict[str, Any]


def settings(width: int) -> list[Setting]:
    """Returns the released ablation for a model of this width: both permutations; noise on the first, a drawn and the largest
    coordinate; first and largest coordinates set to zero or with the other sign."""
    found = [Setting(kind, {"corruption": kind}) for kind in ("reverse_order", "shuffle")]
    for where in ("first_n", "rand_n", "top_k"):
        kind = f"rand_noise_{where}"
        found += [
            Setting(f"{kind}_{strength}", {"corruption": kind, "dims": 1, "strength": strength, "relative": False})
            for strength in STRENGTHS
        ]
    for kind in ("zero_out_first_n", "zero_out_top_k", "flip_sign_first_n", "flip_sign_top_k"):
        counts = dict.fromkeys(max(1, round(share * width)) for share in SHARES)
        found += [Setting(f"{kind}_{count}", {"corruption": kind, "dims": count}) for count in counts]
    return found


def effect(fields: Mapping[str, Any], width: int) -> Hashable:
    """Returns what a setting does to an embedding: the same for two settings that zero or flip all coordinates, in whichever
    order these are counted."""
    kind, dims = str(fields["corruption"]), fields.get("dims") or width
    for change in ("zero_out", "flip_sign"):
        if kind.startswith(change) and dims >= width:
            return change
    return kind, dims, fields.get("strength"), fields.get("relative")


def ablate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    *,
    out: Path,
    chosen: Iterable[Setting] | None = None,
    limit: int | None = None,
    artifact: str | None = None,
    fingerprint: str | None = None,
    show_forget_text: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Evaluation]:
    """Scores the guarded model under each setting, into out/NAME; returns name -> evaluation. The model's guard is detached.

    Where the model takes packs (on a CPU, most do), prompts are read without the guard's hooks, corrupted by the same function:
    their answers share them, and prompts that pass are read as by the plain model. Values equal those of each setting's own
    evaluation up to rounding (1e-5).

    chosen        settings, by default those of `settings`
    fingerprint   a hash over the model and its guard; with it, settings that are done are read instead

    Raises ExpungeError if the model has no guard of this method, or if the results are of another guard.
    """
    guard = getattr(model, "expunge_guard", None)
    if not isinstance(guard, life.Guard) or not isinstance(guard.method, EmbeddingCorruption):
        raise ExpungeError("an ablation compares corruptions; give a run or an artifact of embedding_corruption")
    method, state, encoder = guard.method, guard.state, guard.encoder
    guard.detach()
    width = embedding_matrix(model).shape[1]
    judge = method.judge(model, state, encoder)
    packed = _packed(model, suite)
    reuse = Reuse(lambda ids: not judge.decision(ids).chosen, counted=not packed)
    every = list(settings(width) if chosen is None else chosen)
    keys = {s.name: _key(fingerprint, s) for s in every}
    files = {s.name: out / s.name / f"{suite.name}.json" for s in every}
    found = {s.name: _earlier(files[s.name], keys[s.name]) for s in every if files[s.name].is_file() and not overwrite}
    left = [s for s in every if s.name not in found]
    guards = {s.name: at(method, state, s.fields, width) for s in left}
    edits = [guards[s.name][0].edit(guards[s.name][1]) for s in left]
    read: Callable[..., object] = partial(_read, judge) if packed else _hooked
    changes = [Change(effect(s.fields, width), partial(read, edit)) for s, edit in zip(left, edits, strict=True)]
    for number, setting in enumerate(left):
        reuse.counts, reuse.now, reuse.ahead = Counts(), changes[number], changes[number + 1 :]
        with ExitStack() as stack:
            if not packed:
                hooks = life.attach(model, *guards[setting.name], encoder)  # type: ignore[arg-type]
                stack.callback(hooks.detach)
                reuse.counts, reuse.now = hooks.counts, attached(changes[number].effect)
            found[setting.name] = evaluate(
                model,
                tokenizer,
                suite=suite,
                out=out / setting.name,
                limit=limit,
                artifact=f"{artifact} with {setting.name}",
                fingerprint=keys[setting.name],
                show_forget_text=show_forget_text,
                overwrite=overwrite,
                quiet=quiet,
                format=encoder.format,
                reuse=reuse,
            )
    return {s.name: found[s.name] for s in every}


def at(method: EmbeddingCorruption, state: State, fields: Mapping[str, Any], width: int) -> tuple[EmbeddingCorruption, State]:
    """Returns a fitted guard with another corruption.

    fields   corruption, dims (missing: all coordinates), strength, relative
    width    of the embeddings
    """
    said = {"dims": None, **fields, "tune": "nothing", "canaries": 0}
    changed = EmbeddingCorruption.model_validate({**method.model_dump(), **said})
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith(("canary.", "tuning."))}
    tensors["strength"] = torch.tensor(changed.strength, dtype=torch.float64)
    tensors["dims"] = torch.tensor(changed.dims or width)
    return changed, State(tensors, state.assets)


def _packed(model: nn.Module, suite: Suite) -> bool:
    """Returns whether all that the suite needs can be computed without hooks, with the same values."""
    can = shortcuts_of(model)
    needs = {need for task in suite.tasks for need in task.needs}
    return can.packed and can.ragged and can.longest is None and suite.outside is None and needs <= PACKED


def _read(judge: Judge, edit: Edit, ids: tuple[int, ...]) -> Reading:
    """Returns how a prompt is read under a corruption without hooks."""
    return Reading(edit, judge.decision(ids), len(ids))


def _hooked(edit: Edit, ids: tuple[int, ...]) -> Edit:
    """Returns the same for an attached guard, which knows the prompt."""
    return edit


def _key(fingerprint: str | None, setting: Setting) -> str | None:
    return None if fingerprint is None else hashlib.sha256(f"{fingerprint} {setting.fields}".encode()).hexdigest()


def _earlier(file: Path, key: str | None) -> Evaluation:
    earlier = read_evaluation(file)
    if key is None or earlier.fingerprint != key:
        raise ExpungeError(f"{file} exists, of another model or guard; give another folder, or overwrite it")
    return earlier
