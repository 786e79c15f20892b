"""Diff: ranks subjects by how much the model changed on them, to find what was forgotten."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, Floats
from expunge.attacks.target import Target


class Diff(AttackSpec):
    """Ranks candidate subjects by how much a model changed on them, given both checkpoints: in the probability of their facts,
    and in the embeddings of their words (from the weights alone). Candidates are the forgotten, the kept and the never-known
    subjects.

    The value of a fact is the share of the other candidates whose change is smaller than its subject's: 0.5 for a guess, 1 if the
    forgotten subjects changed most. Gold differs from the original in the same subjects, so that only gold is a valid control.
    """

    paper: ClassVar[str] = "model diffing; Chen et al. 2021 (arXiv 2005.02205): two versions leak more than one"
    does: ClassVar[str] = "names the forgotten subject from both checkpoints"
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "original", "retain"})
    presets: ClassVar[Mapping[str, Preset]] = {"paper": Preset({}, "all candidates that the data holds")}

    name: Literal["diff"] = "diff"
    by: tuple[Literal["probability", "embeddings"], ...] = ("probability", "embeddings")
    """What is compared."""

    def gold_only(self, scene: Scene) -> bool:
        return True

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        assert scene.original is not None
        original = scene.original()
        rest = [scene.retain, scene.others]
        changed = {"probability": _probability_change, "embeddings": _embedding_change}
        ways = []
        for way in self.by:
            mine = _by_subject(facts, changed[way](target, original, facts))
            others = {
                f"{k}/{s}": v for k, f in enumerate(rest) for s, v in _by_subject(f, changed[way](target, original, f)).items()
            }
            sizes = np.array(list(others.values()))
            values = [mine[facts.subject(i) or str(i)] for i in range(len(facts))]
            shares = [float((sizes < value).mean() + 0.5 * (sizes == value).mean()) for value in values]
            ways.append(Way(way, np.array(shares), {"candidates": len(mine) + len(others)}))
        return Found(tuple(ways), metric="auc", before=np.full(len(facts), 0.5), note=_fingerprint(target, original))


def _by_subject(facts: Facts, changes: Floats) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for i, change in enumerate(changes):
        groups.setdefault(facts.subject(i) or str(i), []).append(float(change))
    return {subject: float(np.mean(values)) for subject, values in groups.items()}


def _probability_change(target: Target, original: Target, facts: Facts) -> Floats:
    """Computes [facts], |change| of the mean log-probability of each answer."""
    rows = target.encoded(facts.examples)
    now, then = target.engine().score(rows), original.engine().score(rows)
    target.spent["queries"] += 2 * len(rows)
    return np.array([abs(a.mean_logp() - b.mean_logp()) for a, b in zip(now, then, strict=True)])


def _embedding_change(target: Target, original: Target, facts: Facts) -> Floats:
    """Computes [facts], the mean over the tokens of question and answer of the norm of the embedding's change."""
    now = target.embeddings_VD.float()
    then = original.embeddings_VD.float()
    if now.shape != then.shape:
        return np.zeros(len(facts))
    size_V = (now - then).norm(dim=1).cpu().numpy()
    return np.array([size_V[list(row.ids)].mean() for row in target.encoded(facts.examples)])


def _fingerprint(target: Target, original: Target) -> dict[str, float]:
    """Returns the five tensors that changed most, by the norm of the change relative to that of the tensor."""
    then = dict(original.model.named_parameters())
    changes = {
        name: float((weight - then[name]).float().norm() / then[name].float().norm().clamp(min=1e-12))
        for name, weight in target.model.named_parameters()
        if name in then and then[name].shape == weight.shape
    }
    most = sorted(changes, key=lambda name: -changes[name])[:5]
    return {f"change of {name}": round(changes[name], 6) for name in most}
