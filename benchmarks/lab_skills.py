"""Forget one skill or language of the lab and keep the others: Key Space Detection, Neuron Adjust and Selective Pruning.

    python benchmarks/lab_skills.py --out DIR [--seeds 2024 31337 86]

For each seed a lab (from the cache, or made: some minutes); for each method and each of arithmetic, strings and the four
languages one run with the settings of recipes/lab/METHOD.yaml, fitted on the train.jsonl of what is to go and on its retain
mix (data/keep), and scored by accuracy on the test.jsonl (suite `lab`). Two more ways of Key Space Detection stand
beside the recipe:

    published    last layer, last token, sides in deviations, the tightest box (alpha 1): nothing is calibrated
    calibrated   the same with the calibrated radius: what the radius alone buys

Printed: matrices of relative drops over all seeds together, with 95 % intervals, and for each method the least drop of what was
to go and the greatest of anything else in any seed. Runs lie in DIR/SEED/WAY-TASK, and DIR/SEED/report is a report on those with
the recipes' settings. What is there already is not made again.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from expunge.evaluation.metrics import Accuracy
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites.lab import Lab
from expunge.lab import build
from expunge.loading import load
from expunge.recipes import recipe
from expunge.records import Sample
from expunge.report import RunRecord, read_run, report
from expunge.report.matrix import Matrix, MatrixEntry, matrix_table, relative_drops
from expunge.report.tables import markdown
from expunge.run import execute
from expunge.spec import Run
from expunge.spec import build as build_spec

SKILLS = ("arithmetic", "strings")
LANGUAGES = ("orvish", "orvane", "tullic", "peskan")
PATHS = {name: f"skills/{name}" for name in SKILLS} | {f"language_{name}": f"languages/{name}" for name in LANGUAGES}
"""Task of the suite -> folder of its data."""
KEPT = ("facts_retain", "facts_public", "general")
"""Columns beside the skills: what no run has to do with."""
PLAIN = {"name": "key_space", "abstention": "I do not know the answer to that."}
WAYS: dict[str, dict[str, Any]] = {
    **{name: recipe(f"lab/{name}")["method"] for name in ("key_space", "neuron_adjust", "selective_pruning")},
    "published": {**PLAIN, "alpha": 1.0},
    "calibrated": {**PLAIN, "false_abstain": 0.01, "least_detected": 0.95},
}
RECIPES = ("key_space", "neuron_adjust", "selective_pruning")


def runs_of(out: Path, seed: int, ways: Sequence[str]) -> None:
    """Everything of one seed: lab, original, runs, evaluations."""
    lab = build(out / "lab", seed=seed)
    score(lab / "models" / "original", lab, out / "original", ())
    for task, path in PATHS.items():
        for way in ways:
            files = {
                "model": str(lab / "models" / "original"),
                "forget": str(lab / "data" / path / "train.jsonl"),
                "retain": str(lab / f"data/keep/{path}.jsonl"),
            }
            folder = out / f"{way}-{task}"
            execute(build_spec(Run, {**files, "method": WAYS[way]}, way), folder, resume=folder.exists(), quiet=True)
            score(folder, lab, folder / "evaluation", (task,))
            print(".", end="", flush=True)
    print(f" seed {seed}")


def score(source: Path, lab: Path, out: Path, forget: tuple[str, ...]) -> None:
    if (out / "lab.json").is_file():
        return
    model, tokenizer = load(source)
    suite = Lab(forget=forget).build(lab)
    tasks = (replace(t, metrics=tuple(m for m in t.metrics if isinstance(m, Accuracy))) for t in suite.tasks)
    scored = replace(suite, tasks=tuple(t for t in tasks if t.name in (*PATHS, *KEPT)), summarize=lambda results: [])
    evaluate(model, tokenizer, suite=scored, out=out, artifact=str(source), quiet=True)


def together(folders: Sequence[Path]) -> RunRecord:
    """The samples of several seeds as those of one run; whose sample each is stands in its id."""
    records = [read_run(folder) for folder in folders]
    samples: list[Sample] = []
    for i, record in enumerate(records):
        samples += [sample.model_copy(update={"id": f"{i} {sample.id}"}) for sample in record.samples["lab"]]
    return records[0].model_copy(update={"samples": {"lab": tuple(samples)}})


def matrix(folders: Sequence[Path], way: str, forgotten: Sequence[str], tested: Sequence[str]) -> Matrix:
    original = together([folder / "original" for folder in folders])
    runs = {task: together([folder / f"{way}-{task}" for folder in folders]) for task in forgotten}
    return relative_drops(original, runs, "lab", tested, "accuracy")._replace(method=way)


def extremes(each: Mapping[int, Matrix]) -> str:
    """Over seeds: the least drop of what was to go, the greatest and the mean of all else."""
    own = {(seed, e): e.drop for seed, m in each.items() for e in m.entries() if e.tested == e.forgotten}
    rest = {(seed, e): e.drop for seed, m in each.items() for e in m.entries() if e.tested != e.forgotten}
    least, most = min(own, key=lambda key: own[key]), max(rest, key=lambda key: rest[key])

    def where(key: tuple[int, MatrixEntry]) -> str:
        return f"{key[1].tested} when {key[1].forgotten} was forgotten, seed {key[0]}"

    return (
        f"forgotten: mean {sum(own.values()) / len(own):.3f}, least {own[least]:.3f} ({where(least)}); "
        f"all else: mean {sum(rest.values()) / len(rest):.3f}, most {rest[most]:.3f} ({where(most)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2024, 31337, 86])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    folders = {seed: flags.out / str(seed) for seed in flags.seeds}
    for seed, folder in folders.items():
        runs_of(folder, seed, flags.ways)
    languages = [f"language_{name}" for name in LANGUAGES]
    parts = {"skills": (SKILLS, [*SKILLS, *languages, *KEPT]), "languages": (languages, [*languages, *SKILLS, *KEPT])}
    for name, (forgotten, tested) in parts.items():
        print(f"\n# {name}, seeds {', '.join(map(str, flags.seeds))}: share of the original's accuracy that is gone\n")
        for way in flags.ways:
            print(markdown(matrix_table(matrix(list(folders.values()), way, forgotten, tested))))
            each = {seed: matrix([folder], way, forgotten, tested) for seed, folder in folders.items()}
            print(f"{way}: {extremes(each)}")
            if name == "languages":
                among = {seed: matrix([folder], way, forgotten, languages) for seed, folder in folders.items()}
                print(f"{way}, among the languages: {extremes(among)}")
            print()
    for seed, folder in folders.items():
        mine = [folder / f"{way}-{task}" for way in RECIPES if way in flags.ways for task in PATHS]
        title = f"Forgetting a skill or a language, lab {seed}"
        print(report(mine, folder / "report", title=title, original=folder / "original", overwrite=True))


if __name__ == "__main__":
    main()
