"""Runs the whole workflow without network: makes a world, forgets in it with several methods, evaluates, and writes a report.

    out/  lab/                  the invented world with its models
          runs/original, gold   evaluations of the two reference models
          runs/METHOD           a run of each method: artifact, metrics, evaluation
          report/index.html     the page; summary.json beside it

Every stage writes files and is skipped if they exist, so that an interrupted quickstart resumes.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from expunge.errors import ExpungeError
from expunge.evaluation.alternates import draw_answers
from expunge.evaluation.objectives import build_objective
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites.lab import Lab
from expunge.lab import build
from expunge.loading import open_model
from expunge.methods import TrainingMethod
from expunge.recipes import recipe
from expunge.report import report
from expunge.run import execute
from expunge.spec import Run
from expunge.spec import build as build_spec

METHODS = ("gradient_ascent", "gradient_difference", "kl_minimization", "npo", "simnpo", "idk")
"""Methods, each with the settings of recipes/lab/METHOD.yaml."""


def quickstart(out: Path, *, seed: int = 0, say: Callable[[str], None] = print, quiet: bool = False) -> Path:
    """Runs the whole workflow and returns the path of the report's page.

    out    folder for everything; stages that are complete there are not repeated
    seed   of the world, the models and the runs
    say    receives one line per stage; quiet: no progress bars within the stages

    Raises ExpungeError if `out` holds something else.
    """
    began = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are small: more threads mostly wait for each other
    try:
        lab = _lab(out, seed, say)
        runs = out / "runs"
        for name in ("gold", "original"):  # the original is compared with gold too
            say(f"scoring {name}")
            _score(lab / "models" / name, lab, runs / name / "evaluation", runs / "gold", quiet)
        for name in METHODS:
            say(f"forgetting with {name}")
            run = lab_run(name, lab, seed)
            execute(
                run,
                runs / name,
                resume=(runs / name).exists(),
                quiet=quiet,
                build_objective=build_objective,
                draw_answers=draw_answers,
            )
            _score(runs / name, lab, runs / name / "evaluation", runs / "gold", quiet)
    finally:
        torch.set_num_threads(threads)
    page = report(
        [runs / name for name in METHODS],
        out / "report",
        title="Forgetting twelve people",
        original=runs / "original",
        gold=runs / "gold",
        seed=seed,
        seconds=round(time.perf_counter() - began, 1),
        show_forget_text=True,  # nobody's secrets: the people are invented
        overwrite=True,
    )
    say(f"done in {time.perf_counter() - began:.0f} s: {page}")
    return page


def _lab(out: Path, seed: int, say: Callable[[str], None]) -> Path:
    world = out / "lab" / "world.json"
    if world.is_file() and json.loads(world.read_text())["seed"] != seed:
        raise ExpungeError(f"{out} holds a quickstart with another seed; give another --out")
    if out.exists() and not world.is_file() and any(p.name != "lab" for p in out.iterdir()):
        raise ExpungeError(f"{out} exists and is not a quickstart; give another --out")
    say("making an invented world and the models that know it (kept for the next time)")
    build(out / "lab", seed=seed)
    return out / "lab"


def lab_run(name: str, lab: Path, seed: int) -> Run:
    """Makes the run of a method's lab recipe that forgets the people of data/facts/forget.jsonl."""
    settings, data = recipe(f"lab/{name}"), lab / "data"
    training = {**settings.get("training", {}), "seed": seed}
    words = {"model": str(lab / "models/original"), "forget": str(data / "facts/forget.jsonl")}
    words |= {"holdout": str(data / "facts/never_known.jsonl")}
    uses = build_spec(Run, {**settings, **words}, f"recipes/lab/{name}.yaml").method
    assert isinstance(uses, TrainingMethod)  # METHODS names no other
    if uses.uses_retain:
        words["retain"] = str(data / "keep/facts.jsonl")
    if name == "idk":  # of several wordings greedy decoding writes a blend; dpo forgets more with them
        words["refusals"] = str(data / "refusals.txt")
    return build_spec(Run, {**settings, **words, "training": training}, f"recipes/lab/{name}.yaml")


def _score(source: Path, lab: Path, out: Path, gold: Path, quiet: bool) -> None:
    if (out / "lab.json").is_file():
        return
    opened = open_model(source)
    suite = Lab(retain_scores=gold if (gold / "evaluation" / "lab.json").is_file() else None)
    evaluate(
        opened.model,
        opened.tokenizer,
        suite=suite,
        data=lab,
        out=out,
        artifact=str(source),
        fingerprint=opened.fingerprint(),
        quiet=quiet,
    )
