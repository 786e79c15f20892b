"""Embedding corruption on real parts: SmolLM2-135M-Instruct, all-MiniLM-L6-v2 and spaCy's en_core_web_sm, on TOFU.

    python benchmarks/eco_real.py --out DIR [--models DIR] [--data DIR] [--epochs N]

`--models` holds the three folders. The model learns forget01 (40 rows) and 60 rows of retain99 (`original`), and a second one the
60 rows alone (`retain_only`). Guards are fitted with two gates (logistic regression on the model's hidden states; MiniLM,
fine-tuned) and three corruptions, on names found by spaCy, their strength tuned on half of the forget rows to what `retain_only`
scores. Beside them: the instruction baseline in the released wording, npo and gradient_difference. Each step leaves its folder;
the same command goes on after the last one. About 45 minutes of one core.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from expunge import evaluate, finetune, load, unlearn
from expunge.data.corpora.tofu import read_tofu
from expunge.data.encode import Encoder
from expunge.data.example import Example
from expunge.data.format import Format, default_format
from expunge.evaluation.metrics import Accuracy, Probability, RougeLRecall
from expunge.evaluation.reuse import Reuse, attached
from expunge.evaluation.suites.base import no_summary
from expunge.evaluation.task import Suite, Task
from expunge.guarding.embedding_corruption.entities import recognizer
from expunge.guarding.embedding_corruption.gate import requests
from expunge.guarding.embedding_corruption.prompt_classes import errors, statements
from expunge.methods import NPO, EmbeddingCorruption, GradientDifference, Instruction
from expunge.recipes import recipe
from expunge.records import Evaluation, read_evaluation
from expunge.training.settings import Training

torch.set_num_threads(1)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORMAT = Format(kind="chat", template=CHAT)
"""The model's own markers, without its long system message."""
CORRUPTIONS: dict[str, dict[str, Any]] = {
    "noise, all coordinates": {"corruption": "rand_noise_first_n", "tune": "strength"},
    "noise, largest coordinate": {"corruption": "rand_noise_top_k", "dims": 1, "tune": "strength", "strength": 10.0},
    "largest coordinates zero": {"corruption": "zero_out_top_k", "tune": "dims"},
}
HEAD = "| model | forget | ROUGE-L | rephrased | retain | real authors | world facts |\n| --- |" + " ---: |" * 6
TASKS = ("forget", "forget_rephrased", "retain", "real_authors", "world_facts")


def write(file: Path, examples: Sequence[Example]) -> Path:
    lines = [json.dumps({"prompt": e.prompt, "response": e.response}) for e in examples]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def four_choices(examples: Sequence[Example]) -> tuple[Example, ...]:
    return tuple(replace(e, choices=(e.response, *e.perturbed[:3]), answer=0) for e in examples)


def suite(data: Path, retain: Sequence[Example], rephrased: Sequence[str]) -> Suite:
    forget = read_tofu(data, "forget01")
    others = tuple(replace(e, prompt=text) for e, text in zip(forget, rephrased, strict=True))
    probability = (Probability(),)
    tasks = (
        Task("forget", forget, (Probability(), RougeLRecall()), "forget", max_new_tokens=48),
        Task("forget_rephrased", others[::2], probability, "forget"),
        Task("retain", tuple(retain[::2]), probability, "retain"),
        *(Task(name, four_choices(read_tofu(data, f"{name}_perturbed")[:40]), (Accuracy(),), "retain") for name in TASKS[3:]),
    )
    return Suite("real", tasks, no_summary)


def scored(run: Path, asked: Suite, out: Path, reuse: Reuse | None = None, model: Any = None) -> Evaluation:
    if (out / "real.json").is_file():
        return read_evaluation(out / "real.json")
    network, tokenizer = load(run) if model is None else model
    if reuse is not None:
        reuse.counts, reuse.now = network.expunge_guard.counts, attached(run.name)
    return evaluate(network, tokenizer, suite=asked, out=out, format=FORMAT, overwrite=True, quiet=True, reuse=reuse)


def line(name: str, found: Evaluation) -> str:
    cells = []
    for task, metric in ((t, m) for t in TASKS for m in ("probability", "rouge_l_recall", "accuracy")):
        score = next((s for s in found.scores if (s.task, s.metric) == (task, metric)), None)
        if score is not None and score.value is not None:
            cells.append(f"{score.value:.2f} ({score.low or 0:.2f}-{score.high or 0:.2f})")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache/expunge_models")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=4)
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    recognizer(str(args.models / "en_core_web_sm"))  # what is missing is said before half an hour of training
    base, began = args.models / "SmolLM2-135M-Instruct", time.perf_counter()
    data = args.data / "tofu" if (args.data / "tofu").is_dir() else args.data
    forget, kept = read_tofu(data, "forget01"), read_tofu(data, "retain99")[::66][:60]
    with open(data / "forget01_perturbed.jsonl", encoding="utf-8") as lines:
        rephrased = [json.loads(text)["paraphrased_question"] for text in lines]
    with open(data / "retain_perturbed.jsonl", encoding="utf-8") as lines:
        kept_rephrased = [json.loads(text)["paraphrased_question"] for text in lines][:60]
    files = {
        "forget": write(out / "forget.jsonl", forget),
        "retain": write(out / "retain.jsonl", kept),
        "gate": write(out / "gate.jsonl", [*kept, *read_tofu(data, "retain99")[7::28][:140]]),
    }

    table: list[str] = []
    classes: list[str] = []

    def note(text: str) -> None:
        (out / "table.md").write_text("\n".join([HEAD, *table, *classes]) + "\n", encoding="utf-8")
        print(f"[{(time.perf_counter() - began) / 60:5.1f} min] {text}", flush=True)

    def made(name: str, make: Any) -> Path:
        run = out / name
        if not (run / "artifact" / "expunge.json").is_file():
            make(run)
            note(f"{name} is made")
        return run

    learn = Training(learning_rate=5e-4, epochs=args.epochs, batch_size=10, schedule="cosine")
    how: dict[str, Any] = {"format": FORMAT, "quiet": True, "overwrite": True}
    original = made(
        "original", lambda o: finetune(model=base, data=[files["forget"], files["retain"]], out=o, training=learn, **how)
    )
    gold = made("retain_only", lambda o: finetune(model=base, data=files["retain"], out=o, training=learn, **how))
    asked = suite(data, kept, rephrased)
    table.append(line("original", scored(original, asked, out / "scores/original")))
    table.append(line("retain only", scored(gold, asked, out / "scores/retain_only")))
    note("the two models are scored")

    pair: dict[str, Any] = {"model": original, "forget": files["forget"], **how}
    tuned: dict[str, dict[str, Any]] = {}
    for gate, fields in (
        ("hidden", {"gate": "hidden"}),
        ("encoder", {"gate": "encoder", "gate_model": str(args.models / "all-MiniLM-L6-v2"), "gate_epochs": 4}),
    ):
        reuse = None
        for name, corruption in CORRUPTIONS.items():
            settings = {**corruption, **fields, "surrogate_model": str(gold)}
            if name in tuned:  # the strength depends on the corruption and not on the gate: it is tuned once
                settings = {**corruption, **fields, "tune": "nothing", **tuned[name]}
            method = EmbeddingCorruption(
                tokens="entities", entity_model=str(args.models / "en_core_web_sm"), false_positive_rate=0.05, **settings
            )
            run = made(
                f"eco_{gate}_{name.replace(', ', '_').replace(' ', '_')}",
                lambda o, m=method: unlearn(m, out=o, retain=files["gate"], **pair),
            )
            model, tokenizer = load(run)
            guard = model.expunge_guard
            state = guard.state
            tuned[name] = {"strength": float(state["strength"]), "dims": int(state["dims"])}
            encoder = Encoder(tokenizer, default_format(tokenizer), max_length=4096)  # a disguise may have ten times the tokens
            judge = method.judge(model, state, encoder)
            if reuse is None:
                reuse = Reuse(lambda ids, j=judge: not j.decision(ids).flagged)
                report, took = gate_errors(judge, encoder, forget, files["gate"], rephrased, kept_rephrased, data)
                classes += [f"\ngate {gate}: {took:.1f} ms a prompt", *report]
            strength = f"{tuned[name]['strength']:.3g} RMS" if "noise" in name else f"{tuned[name]['dims']} of 576"
            found = scored(run, asked, out / f"scores/{run.name}", reuse, (model, tokenizer))
            table.append(line(f"ECO, gate {gate}, {name} ({strength})", found))
            note(run.name)
    told = Instruction.model_validate(recipe("eco/instruction_tofu_forget01")["method"])
    run = made("instruction", lambda o: unlearn(told, out=o, **pair))
    table.append(line("instruction", scored(run, asked, out / "scores/instruction")))
    note("instruction")
    for name, method in (("npo", NPO()), ("gradient_difference", GradientDifference())):
        short = Training(steps=8, batch_size=8)
        run = made(name, lambda o, m=method, t=short: unlearn(m, out=o, retain=files["retain"], training=t, **pair))
        table.append(line(name, scored(run, asked, out / f"scores/{name}")))
        note(name)
    print((out / "table.md").read_text(encoding="utf-8"))


def gate_errors(
    judge: Any, encoder: Encoder, forget: Sequence[Example], gate: Path, rephrased: Sequence[str], kept: Sequence[str], data: Path
) -> tuple[list[str], float]:
    """Both error kinds by class of prompt, and milliseconds of a fresh prompt. Retain prompts are those that the gate was not
    trained on: real authors and world facts, and rephrased questions about retained authors."""

    def flags(prompt: str) -> bool:
        return bool(judge.decision(encoder.encode_prompts([prompt])[0]).flagged)

    others = [str(e.prompt) for name in ("real_authors", "world_facts") for e in read_tofu(data, f"{name}_perturbed")]
    began = time.process_time()
    for prompt in others:
        flags(prompt)
    took = 1000 * (time.process_time() - began) / len(others)
    some = [str(e.prompt) for e in forget[::3]]
    found = errors(
        flags, some, others[::12], rephrased={"forget": rephrased, "retain": kept}, begun={"forget": statements(forget)}
    )

    def raw(prompt: str) -> bool:
        return max(judge.scores.gate.probabilities(requests(prompt, encoder) or [prompt])) > judge.threshold

    bare = errors(raw, some, ())
    rows = ["| class | missed | missed without canonical reading | flagged |", "| --- | ---: | ---: | ---: |"]
    for name, rates in found.items():
        cells = (rates.missed, bare[name].missed if name in bare else None, rates.flagged)
        rows.append(f"| {name} | " + " | ".join("" if rate is None else f"{rate:.3f}" for rate in cells) + " |")
    wide = sum(map(flags, others)) / len(others)
    return [*rows, f"real authors and world facts flagged: {wide:.3f} of {len(others)}"], took


if __name__ == "__main__":
    main()
