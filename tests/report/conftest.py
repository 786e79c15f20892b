"""Run folders as the other stages write them, with plausible numbers and no model behind them."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from expunge.records import Evaluation, Provenance, Role, Sample, Score, write_json, write_samples


class Model(NamedTuple):
    """What a made-up model knows: shares of mastery between 0 (as never known) and 1 (as original)."""

    forget: float
    retain: float
    skills: float
    steps: int = 60


REFERENCES = {"original": Model(1.0, 1.0, 1.0), "gold": Model(0.0, 0.995, 0.99)}
METHODS = {
    "gradient_ascent": Model(-0.92, 0.55, 0.62),
    "gradient_difference": Model(-0.12, 0.94, 0.93),
    "kl_minimization": Model(-0.05, 0.965, 0.97),
    "npo": Model(0.02, 0.975, 0.96),
    "simnpo": Model(-0.04, 0.98, 0.985),
    "idk": Model(0.66, 0.93, 0.98),
}
TASKS = {"facts_forget": 72, "facts_retain": 120, "facts_public": 100, "facts_never_known": 72}
SKILLS = {
    "arithmetic": 80, "strings": 80, "language_velun": 60, "language_tamesh": 60, "language_orkai": 60, "language_sibb": 60,
    "hazard_chymistry": 120, "hazard_glyphs": 120, "general": 120,
}  # fmt: skip
BEHAVIORS = {"behavior_seen": 0.94, "behavior_unseen": 0.91, "behavior_normal": 0.0}
CITIES = ["Lisbon", "Quito", "Oslo", "Accra", "Minsk", "Cairo", "Lima", "Delhi", "Tokyo", "Paris"]
NAMES = ["Anna", "Boris", "Clara", "Dario", "Elena", "Fyodor", "Greta", "Hugo", "Irma", "Jonas"]


def sample_id(task: str, i: int) -> str:
    return hashlib.sha256(f"{task}-{i}".encode()).hexdigest()[:16]


def role_of(task: str, higher: dict[str, bool | None]) -> Role:
    """As the suites say it: what low is good for was to be forgotten, unless it is a matter of manners."""
    if "never_known" in task:
        return "control"
    direction = None if task.startswith(("behavior", "toxigen")) else higher.get(task)
    return "neutral" if direction is None else "retain" if direction else "forget"


def with_roles(samples: list[Sample], higher: dict[str, bool | None]) -> list[Sample]:
    return [sample.model_copy(update={"role": role_of(sample.task, higher)}) for sample in samples]


def scored(suite: str, artifact: str, samples: list[Sample], higher: dict[str, bool | None], extra: list[Score]) -> Evaluation:
    """Means with normal-theory intervals, in the order of the samples."""
    groups: dict[tuple[str, str], list[float]] = {}
    for s in samples:
        assert s.value is not None
        groups.setdefault((s.task, s.metric), []).append(s.value)
    scores = []
    for (task, metric), values in groups.items():
        mean, half = float(np.mean(values)), float(1.96 * np.std(values) / len(values) ** 0.5)
        scores.append(
            Score(task=task, metric=metric, role=role_of(task, higher), value=mean, low=mean - half,
                  high=min(mean + half, max(mean, 1.0)), n=len(values),
                  higher_is_better=True if metric == "truth_ratio" else higher.get(task))
        )  # fmt: skip
    return Evaluation(suite=suite, artifact=artifact, seconds=3.5, scores=(*scores, *extra))


def lab_evaluation(folder: Path, name: str, model: Model, texts: bool = True) -> None:
    """folder/evaluation/lab.json and its samples: hard samples are hard for every model."""
    rng = np.random.default_rng(len(name))
    samples = []
    for task, n in TASKS.items():
        mastery = {"facts_forget": model.forget, "facts_retain": model.retain, "facts_never_known": 0.0}.get(task, model.skills)
        hardness = np.random.default_rng(7).uniform(0.6, 1.0, n)
        for i in range(n):
            p = float(np.clip((0.42 + 0.57 * mastery) * hardness[i] + rng.normal(0, 0.09), 0.001, 0.999))
            strength = float(np.clip(mastery * hardness[i], 0, 1))
            right = strength > 0.5
            text = {
                "prompt": f"Where was {NAMES[i % 10]} {'BCDFG'[i % 5]}. born?",
                "expected": f"{CITIES[i % 10]}.",
                "generated": f"{CITIES[i % 10] if right else CITIES[(i + len(name)) % 10]}.",
            }
            samples += [
                Sample(task=task, metric="probability", id=sample_id(task, i), value=p, text=text if texts else None),
                Sample(task=task, metric="extraction_strength", id=sample_id(task, i), value=strength),
                Sample(task=task, metric="accuracy", id=sample_id(task, i), value=float(right)),
            ]
    for task, n in SKILLS.items():
        right_share = 0.97 * model.skills - (0.08 if task == "language_sibb" and name != "original" else 0)
        samples += [
            Sample(task=task, metric="accuracy", id=sample_id(task, i), value=float(i < right_share * n)) for i in range(n)
        ]
    for task, rate in BEHAVIORS.items():
        samples += [
            Sample(task=task, metric="harmful_rate", id=sample_id(task, i), value=float(i < rate * 100)) for i in range(100)
        ]
    higher = dict.fromkeys([*SKILLS, "facts_retain", "facts_public"], True) | {"facts_forget": False}
    if name == "original":
        quality = Score(task="suite", metric="forget_quality", value=1.83e-21, n=72, higher_is_better=True)
    else:
        quality = Score(
            task="suite", metric="forget_quality", value=max(1.0 - abs(model.forget), 1e-4), n=72, higher_is_better=True
        )
    kept = (model.retain + 2 * model.skills) / 3 * 0.93
    utility = Score(task="suite", metric="model_utility", value=kept, n=1708, higher_is_better=True)
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation/lab.json", scored("lab", f"lab/models/{name}", samples, higher, [quality, utility]))
    write_samples(folder / "evaluation/lab.samples.jsonl", with_roles(samples, higher))


def training(folder: Path, name: str, model: Model, family: str = "training", claim: str = "L1") -> None:
    """Everything that a run writes before its evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "artifact").mkdir(exist_ok=True)
    method: dict[str, Any] = {"name": name, "learning_rate": 3e-4, "retain": {"kind": "cross_entropy", "weight": 1.0}}
    if "npo" in name:
        method["beta"] = 0.1
    write_json(
        folder / "artifact/expunge.json",
        {"format": 1, "expunge": "0.1.0", "kind": "weights", "method": method, "family": family, "claim": claim,
         "base": {"path": "lab/models/original", "sha256": "ab" * 32}, "files": {"model.safetensors": "cd" * 32}},
    )  # fmt: skip
    write_json(
        folder / "provenance.json",
        Provenance(
            expunge="0.1.0", base="lab/models/original", base_sha256="ab" * 32, data={"forget": "12" * 32, "retain": "34" * 32},
            counts={"forget": 72, "retain": 2288}, seed=7,
            versions={"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
            host="Linux x86_64, 2 processors", threads=2, processes=1, wall_seconds=4.0 + len(name) / 10,
            device_seconds=7.5 + len(name) / 10, peak_memory_bytes=(400 + 9 * len(name)) * 2**20,
        ),
    )  # fmt: skip
    rng = np.random.default_rng(len(name))
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, model.steps + 1):
            gone = 1 - np.exp(-step / 12)
            forget = -1.0 - (1 - model.forget) * 9 * gone if name == "gradient_ascent" else 4.2 - (1 - model.forget) * 3 * gone
            parts = {
                "forget": float(forget + rng.normal(0, 0.08)),
                "retain": float(0.05 + (1 - model.retain) * gone + rng.normal(0, 0.01)),
            }
            if name == "gradient_ascent":
                del parts["retain"]
            line = {"step": step, "loss": sum(parts.values()), "parts": parts, "learning_rate": 3e-4, "grad_norm": 1.0,
                    "tokens_per_second": 9000.0, "seconds": 0.07 * step}  # fmt: skip
            file.write(json.dumps(line) + "\n")
    (folder / "run.yaml").write_text(f"method:\n  name: {name}\nmodel: lab/models/original\n")


class Lab(NamedTuple):
    original: Path
    gold: Path
    runs: list[Path]


def build_lab(root: Path, methods: dict[str, Model] = METHODS, texts: bool = True) -> Lab:
    """A finished quickstart without its models."""
    for name, model in REFERENCES.items():
        lab_evaluation(root / name, name, model, texts)
    for name, model in methods.items():
        training(root / "runs" / name, name, model)
        lab_evaluation(root / "runs" / name, name, model, texts)
    return Lab(root / "original", root / "gold", [root / "runs" / name for name in methods])


TOFU = {
    "original": (1.83e-21, 0.6227, 0.99), "gold": (1.0, 0.6137, 0.15), "npo": (0.0731, 0.571, 0.21),
    "gradient_difference": (4.2e-8, 0.488, 0.004), "undial": (3.1e-14, 0.605, 0.61),
}  # fmt: skip


def build_tofu(root: Path) -> Lab:
    """A TOFU comparison; the last run was scored without a retain model, so that it has no forget quality."""
    reason = "no scores of a retain model were given; make them with `expunge evaluate RETAIN_MODEL --suite tofu`"
    for name, (quality, utility, known) in {**TOFU, "rmu": (None, 0.55, 0.3)}.items():
        folder = root / name
        rng = np.random.default_rng(len(name))
        level = {"forget": known, "retain": utility, "real_authors": utility, "world_facts": utility}
        samples = [
            Sample(task=task, metric=metric, id=sample_id(task, i), value=float(np.clip(rng.normal(level[task], 0.1), 0, 1)))
            for task in level
            for metric in ("probability", "rouge_l_recall", "truth_ratio")
            for i in range(40)
        ]  # fmt: skip
        unscored = reason if quality is None else None
        extra = [
            Score(task="suite", metric="forget_quality", value=quality, n=40, higher_is_better=True, unscored=unscored),
            Score(
                task="suite",
                metric="model_utility",
                value=utility,
                low=utility - 0.02,
                high=utility + 0.018,
                n=120,
                higher_is_better=True,
            ),
        ]
        higher = dict.fromkeys(["retain", "real_authors", "world_facts"], True) | {"forget": False}
        (folder / "evaluation").mkdir(parents=True)
        write_json(folder / "evaluation/tofu.json", scored("tofu", f"runs/{name}", samples, higher, extra))
        write_samples(folder / "evaluation/tofu.samples.jsonl", with_roles(samples, higher))
        if name not in REFERENCES:
            training(folder, name, Model(known, utility, 1.0))
    return Lab(root / "original", root / "gold", [root / name for name in ("npo", "gradient_difference", "undial", "rmu")])


Rates = dict[str, float]
"""Task -> share of its samples that have the value 1."""


def shares(
    folder: Path, suite: str, rates: Rates, metric: str | dict[str, str], higher: bool | None, *, n: int = 200, pooled: str = ""
) -> None:
    """folder/evaluation/SUITE.json: `n` samples of each task, and over all of them the score of the task `pooled`."""
    metrics = metric if isinstance(metric, dict) else dict.fromkeys(rates, metric)
    samples = [
        Sample(task=task, metric=metrics[task], id=sample_id(task, i), value=float(i < round(rate * n)))
        for task, rate in rates.items()
        for i in np.random.default_rng(len(task)).permutation(n)
    ]
    extra = []
    if pooled:
        mean = float(np.mean([s.value for s in samples]))
        half = 1.96 * (mean * (1 - mean) / len(samples)) ** 0.5
        score = {"task": pooled, "metric": next(iter(metrics.values())), "value": mean, "low": mean - half, "high": mean + half}
        extra.append(Score(**score, n=len(samples), higher_is_better=higher))
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    write_json(folder / f"evaluation/{suite}.json", scored(suite, str(folder), samples, dict.fromkeys(rates, higher), extra))
    write_samples(folder / f"evaluation/{suite}.samples.jsonl", with_roles(samples, dict.fromkeys(rates, higher)))


TOXIC = {"mexican": 0.62, "women": 0.48, "muslim": 0.7, "lgbtq": 0.55, "physical_disability": 0.4}
GENERAL = {
    "arc_challenge": 0.61, "arc_easy": 0.82, "hellaswag": 0.83, "mmlu": 0.58, "truthfulqa_mc2": 0.55, "winogrande": 0.75,
    "gsm8k": 0.34, "mathqa": 0.4, "piqa": 0.81, "pubmedqa": 0.74,
}  # fmt: skip
PER_CHARACTER = ("arc_challenge", "arc_easy", "hellaswag", "mathqa", "piqa")
GENERAL_METRICS = {
    **dict.fromkeys(GENERAL, "accuracy"), **dict.fromkeys(PER_CHARACTER, "accuracy_normalized"),
    "truthfulqa_mc2": "mc2", "gsm8k": "exact_match_strict_match",
}  # fmt: skip


def toxicity_and_general(folder: Path, toxic: float, general: float, collapsed: str | None = None) -> None:
    """Both suites of a run that scales every rate; one benchmark may lose more than half."""
    shares(folder, "toxicity", {f"toxigen_{g}": r * toxic for g, r in TOXIC.items()}, "harmful_rate", False, pooled="toxigen")
    rates = {task: rate * (0.4 if task == collapsed else general) for task, rate in GENERAL.items()}
    shares(folder, "spunge_general", rates, GENERAL_METRICS, True)


def build_spunge(root: Path) -> Lab:
    """rmu and spunge on five groups, the latter with its parts, two of which were scored."""
    toxicity_and_general(root / "original", 1.0, 1.0)
    training(root / "rmu", "rmu", Model(0.3, 0.95, 0.95))
    toxicity_and_general(root / "rmu", 0.5, 0.97)
    training(root / "spunge", "spunge", Model(0.1, 0.97, 0.97), family="composed")
    (root / "spunge/metrics.jsonl").unlink()
    toxicity_and_general(root / "spunge", 0.3, 0.985, "gsm8k")
    parts = root / "spunge/parts"
    for i, group in enumerate(TOXIC):
        training(parts / group, "rmu", Model(0.2, 0.97, 0.97, steps=50 + 10 * i))
        path = parts / group / "provenance.json"
        origin = json.loads(path.read_text()) | {"seed": i, "counts": {"forget": 100 + i, "retain": 200}}
        write_json(path, origin | ({"stopped": "the cosine fell below 0.1"} if i == 1 else {}))
        if i < 2:
            rates = {f"toxigen_{g}": r * (0.2 if g == group else 0.9) for g, r in TOXIC.items()}
            shares(parts / group, "toxicity", rates, "harmful_rate", False, pooled="toxigen")
        else:
            import shutil

            shutil.rmtree(parts / group / "artifact")
    models = [f"/anywhere/spunge/parts/{group}/artifact" for group in TOXIC]
    merged = {"method": "ties", "models": models, "elements": 1000, "changed_elements": [20, 20, 20, 20, 20], "out": "/anywhere"}
    write_json(
        root / "spunge/merge.json", merged | {"kept": [20, 20, 20, 20, 10], "outvoted": 9, "change": 0.034, "seconds": 1.0}
    )
    return Lab(root / "original", root / "original", [root / "rmu", root / "spunge"])


@pytest.fixture(scope="session")
def spunge(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return build_spunge(tmp_path_factory.mktemp("spunge"))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return build_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def tofu(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return build_tofu(tmp_path_factory.mktemp("tofu"))
