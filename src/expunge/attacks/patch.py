"""Patch: puts the model's hidden states into the model before unlearning, whose upper layers read what is still encoded."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, Floats, counted_tokens
from expunge.attacks.target import Target
from expunge.data.encode import Encoded, Tokens, collate
from expunge.errors import ExpungeError
from expunge.models.blocks import blocks_of
from expunge.models.hooks import Edit, capture, edit
from expunge.models.logprobs import labelled_logits, token_logprobs

BATCH = 64


class Patch(AttackSpec):
    """Activation patching, layer by layer: the output of layer l at every position is taken from the attacked model, and the
    layers above are the original's. The value is the probability of the tokens that count.

    With low layers the original can read everything, so that only the gain over gold at the same layer is meaningful. `depth`
    in the record is the mean over layers of 1 - p(patched) / p(original): 0 if nothing is lost, 1 if all is from the first
    layer on.
    """

    paper: ClassVar[str] = "activation patching; unlearning depth score UDS (open-unlearning @fc31639)"
    does: ClassVar[str] = "lets the original's upper layers read the hidden states"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "original"})
    presets: ClassVar[Mapping[str, Preset]] = {"paper": Preset({}, "every layer")}

    name: Literal["patch"] = "patch"

    def gold_only(self, scene: Scene) -> bool:
        """Returns True: the original's upper layers know the forgotten facts but no never-known ones."""
        return True

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        assert scene.original is not None
        original = scene.original()
        places, above = blocks_of(target.model), blocks_of(original.model)
        if (places.count, places.width) != (above.count, above.width):
            raise ExpungeError("patch: the model and the one given with --original have other layers; give the right original")
        rows = target.encoded(facts.examples)
        by_layer: list[list[float]] = [[] for _ in range(places.count)]
        for start in range(0, len(rows), BATCH):
            chosen = range(start, min(start + BATCH, len(rows)))
            batch = collate([rows[i] for i in chosen], target.encoder.pad_id).to(target.model.device)
            sites = {layer: places.hidden(layer) for layer in range(places.count)}
            with torch.no_grad(), capture(target.model, sites) as seen:
                target.model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
            for layer, values in enumerate(by_layer):
                with edit(original.model, {above.hidden(layer): _putting(seen[layer])}):
                    values += _probabilities(original, facts, chosen, rows, batch)
        target.spent["queries"] += len(rows) * places.count
        ways = [Way(f"layer {layer}", np.array(values), {"layer": layer}) for layer, values in enumerate(by_layer)]
        none = np.zeros(len(facts))
        return Found(tuple(ways), metric="patched_probability", before=none, note=_depth(ways, original, facts))


def _putting(mine_BTD: Tensor) -> Edit:
    """Returns the edit that replaces hidden states by these."""
    return lambda hidden_BTD: mine_BTD.to(hidden_BTD.dtype)


@torch.no_grad()
def _probabilities(original: Target, facts: Facts, chosen: Sequence[int], rows: Sequence[Encoded], batch: Tokens) -> list[float]:
    """Computes exp of the mean log-probability of the tokens that count of each row."""
    labelled = labelled_logits(original.model, batch)
    logp_N, row_N = token_logprobs(labelled).cpu().numpy(), labelled.row_N.cpu().numpy()
    found = []
    for b, i in enumerate(chosen):
        answer = rows[i].ids[rows[i].answer_start :]
        counts = counted_tokens(original.tokenizer, answer, facts.words(i, facts.questions[i]))
        found.append(float(np.exp(logp_N[row_N == b][counts].mean())) if counts.any() else float("nan"))
    return found


def _depth(ways: Sequence[Way], original: Target, facts: Facts) -> dict[str, float]:
    known: Floats = original.probability(facts)
    gone = [np.clip(1.0 - way.values / np.maximum(known, 1e-9), 0.0, 1.0) for way in ways]
    return {"depth": round(float(np.nanmean(gone)), 4)} if np.isfinite(gone).any() else {}
