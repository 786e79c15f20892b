"""What embedding_corruption does in the lab, on seeds that nothing was tuned on: forgetting, keeping, both error kinds, latency.

    python benchmarks/lab_embedding_corruption.py --out DIR [--seeds 2024 31337 86] [--lab DIR ...] [--limit N] [--classes|--gate]

Builds a lab for each seed (minutes), or takes those of --lab; fits the recipe recipes/lab/embedding_corruption.yaml; scores it
beside the original and gold with the suite `lab`. Four-choice: what is true of a person among what is true of three others, by
the mean log-probability of a token; 0.25 is chance. Completed: statements (a response without its last word) that the
model ends with that word; for chance also with first names of kept people. With --classes also both error kinds by class of
prompt, among them disguises, with canonical readings and without; a statement about a kept person with the first name of a
forgotten one may be word for word a forget prompt, and is counted by itself. With --gate instead: only the recipe's text gate,
without general prompts, corrected names and names in prompts, and with one after the other: share of prompts flagged, some
misspelled in three ways, statements, and both in disguises.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from expunge import unlearn
from expunge.data.encode import Encoder
from expunge.data.example import Example
from expunge.data.format import default_format
from expunge.data.read import read_examples, read_request
from expunge.evaluation.engine import Engine
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites.lab import Lab
from expunge.guarding.embedding_corruption.judge import Judge
from expunge.guarding.embedding_corruption.prompt_classes import disguises, errors, statements, written_as
from expunge.lab import build
from expunge.loading import load
from expunge.methods import EmbeddingCorruption
from expunge.recipes import recipe
from expunge.records import Evaluation

torch.set_num_threads(1)
TASKS = ("facts_retain", "facts_public", "arithmetic", "strings", "general")


def four_choice(model: torch.nn.Module, encoder: Encoder, examples: Sequence[Example]) -> float:
    """Accuracy of choosing what is true of a person among what is true of three others. A whole sentence as the answer would name
    the person again, and the model would go on from that."""
    engine, hits, draw = Engine(model, encoder.pad_id), [], random.Random(0)
    for example in examples:
        mine = str(example.attributes["value"])
        others = {str(e.attributes["value"]) for e in examples if e.attributes["relation"] == example.attributes["relation"]}
        answers = [mine, *draw.sample(sorted(others - {mine}), 3)]
        rows = encoder.encode_answers([(example.prompt, answer) for answer in answers])
        hits.append(int(np.argmax([stats.logp[:-1].mean() for stats in engine.score(rows)]) == 0))
    return float(np.mean(hits))


def completed(model: torch.nn.Module, encoder: Encoder, examples: Sequence[Example]) -> int:
    """Number of statements that the model ends with their last word."""
    hits = 0
    for example in examples:
        begun, _, last = example.response.rpartition(" ")
        ids = torch.tensor([encoder.tokenizer(begun)["input_ids"]])
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
        hits += encoder.tokenizer.decode(written[0, ids.shape[1] :]).strip() == last
    return hits


def renamed(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """The same statements, each about a first name of other people."""
    names, draw = sorted({str(e.attributes["person"]).split()[0] for e in others}), random.Random(0)
    return [replace(e, response=" ".join([draw.choice(names), *e.response.split()[1:]])) for e in examples]


def by_first_name(facts: Path) -> tuple[list[Example], list[Example]]:
    """Retained and public people: those whose first name a forgotten person has, and the others."""
    first = {str(e.attributes["person"]).split()[0] for e in read_examples(facts / "forget.jsonl")}
    everybody = [e for name in ("retain", "public") for e in read_examples(facts / f"{name}.jsonl")]
    same = [str(e.attributes["person"]).split()[0] in first for e in everybody]
    return [e for e, is_same in zip(everybody, same, strict=True) if is_same], [
        e for e, is_same in zip(everybody, same, strict=True) if not is_same
    ]


def rephrased(file: Path) -> list[str]:
    return [str(e.attributes["rephrased"]) for e in read_examples(file) if "rephrased" in e.attributes]


def flagged(model: torch.nn.Module, encoder: Encoder, prompts: Sequence[str]) -> tuple[float, float]:
    """Share of prompts that the guard acts on, and milliseconds of its decision for each."""
    counts = model.expunge_guard.counts
    before, began = (counts.decided, counts.acted), time.process_time()
    for prompt in prompts:
        with torch.no_grad():
            model(input_ids=torch.tensor([encoder.encode_prompts([prompt])[0]]))
    took = time.process_time() - began
    return (counts.acted - before[1]) / (counts.decided - before[0]), 1000 * took / len(prompts)


def value(found: Evaluation, task: str, metric: str) -> float:
    return next(score.value for score in found.scores if (score.task, score.metric) == (task, metric)) or 0.0


def by_class(judge: Judge, facts: Path) -> None:
    """Prints both error kinds by class, of each third forget prompt and of as many about public people. The gate gets the text:
    the lab's model has whole words as tokens, so that neither it nor a gate behind its tokenizer could read most disguises."""

    def flags(prompt: str) -> bool:
        return judge.scores.of(prompt) > judge.threshold

    def raw(prompt: str) -> bool:
        return max(judge.scores.gate.probabilities([prompt.casefold()])) > judge.threshold

    forget, public = ([str(e.prompt) for e in read_examples(facts / f"{name}.jsonl")] for name in ("forget", "public"))
    other = {"forget": rephrased(facts / "forget.jsonl"), "retain": rephrased(facts / "retain.jsonl")}
    same, unlike = by_first_name(facts)
    begun = {"forget": statements(read_examples(facts / "forget.jsonl")), "retain": statements(unlike)[::8]}
    some, kept = forget[::3], public[:: max(1, len(public) // 24)][:24]
    found = errors(flags, some, kept, rephrased=other, begun=begun)
    bare = errors(raw, some, (), begun={"forget": begun["forget"]})
    share = np.mean([flags(text) for text in statements(same)])
    print(f"statements about {len(same) // 6} kept people with a forgotten first name: {share:.3f} of {len(same)} flagged")
    print("| class | missed | missed without canonical reading | flagged |\n| --- | ---: | ---: | ---: |")
    for name, rates in found.items():
        cells = (rates.missed, bare[name].missed if name in bare else None, rates.flagged)
        print(f"| {name} | " + " | ".join("" if rate is None else f"{rate:.3f}" for rate in cells) + " |", flush=True)


def misspelled(prompts: Sequence[str], draw: random.Random, exchange: bool) -> list[str]:
    """Writes half of the words of four letters or more with two neighbouring letters exchanged, or one left out or replaced."""

    def word(text: str) -> str:
        if len(text) < 4 or draw.random() < 0.5:
            return text
        i = draw.randrange(1, len(text) - 1)
        if exchange:
            return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
        return text[:i] + (draw.choice("abcdefghijklmnopqrstuvwxyz") if draw.random() < 0.5 else "") + text[i + 1 :]

    return [" ".join(map(word, prompt.split())) for prompt in prompts]


def gate_alone(lab: Path) -> None:
    """Prints what general prompts and corrected names change about the text gate; the gate gets the text, as in `by_class`."""
    model, tokenizer = load(lab / "models/original")
    facts, encoder = lab / "data/facts", Encoder(tokenizer, default_format(tokenizer))
    request = read_request(facts / "forget.jsonl", [lab / "data/keep/facts.jsonl", facts / "public.jsonl"])
    forget, public = ([str(e.prompt) for e in read_examples(facts / f"{name}.jsonl")] for name in ("forget", "public"))
    draw, retain = random.Random(1), rephrased(facts / "retain.jsonl")
    begun = statements(read_examples(facts / "forget.jsonl"))[::3]
    same, unlike = by_first_name(facts)
    asked = {
        "forget": forget,
        "forget, rephrased": rephrased(facts / "forget.jsonl"),
        "forget, every other word": [written_as(prompt)["adversarial"] for prompt in forget],
        "forget, exchanged": misspelled(forget, draw, exchange=True),
        "forget, left out or replaced": misspelled(forget, draw, exchange=False),
        "retain, rephrased": retain,
        "retain, every other word": [written_as(prompt)["adversarial"] for prompt in retain],
        "public, exchanged": misspelled(public, draw, exchange=True),
        "never known": [str(e.prompt) for e in read_examples(facts / "never_known.jsonl")],
        "forget, statements": statements(read_examples(facts / "forget.jsonl")),
        "the same, disguised": [text for prompt in begun for text in disguises(prompt).values()],
        "forget, disguised": [text for prompt in forget[::3] for text in disguises(prompt).values()],
        "kept, statements": statements(unlike),
        "kept, same first names": statements(same),
    }
    print(f"| gate | {' | '.join(asked)} | general |\n| --- |{' ---: |' * (len(asked) + 1)}")
    for name, fields in (
        ("plain", {"negatives": "none", "spelling": False, "mentions": "none"}),
        ("general prompts", {"spelling": False, "mentions": "none"}),
        ("and corrected names", {"mentions": "none"}),
        ("and whole names", {"mentions": "names"}),
        ("and parts of names", {}),
    ):
        method = EmbeddingCorruption.model_validate(
            recipe("lab/embedding_corruption")["method"] | fields | {"tune": "nothing", "tokens": "all_but_last", "canaries": 0}
        )
        state = method.fit(model, request, encoder)
        judge = method.judge(model, state, encoder)
        cells = [
            f"{np.mean([judge.scores.of(prompt) > judge.threshold for prompt in prompts]):.3f}" for prompts in asked.values()
        ]
        general = state["calibration.general"] < 1 if "calibration.general" in state else None
        print(f"| {name} | {' | '.join(cells)} | {'' if general is None else f'{general.double().mean():.3f}'} |", flush=True)


def one(lab: Path, out: Path, limit: int | None, classes: bool) -> None:
    method = EmbeddingCorruption.model_validate(recipe("lab/embedding_corruption")["method"])
    facts = lab / "data/facts"
    unlearn(
        method,
        model=lab / "models/original",
        forget=facts / "forget.jsonl",
        retain=[lab / "data/keep/facts.jsonl", facts / "public.jsonl"],
        holdout=facts / "never_known.jsonl",
        out=out / "run",
        overwrite=True,
        quiet=True,
    )
    scores = {}
    for name, place in (("gold", lab / "models/gold"), ("original", lab / "models/original"), ("guarded", out / "run")):
        model, tokenizer = load(place)
        suite = Lab() if name == "gold" else Lab(retain_scores=out / "gold")
        scores[name] = evaluate(model, tokenizer, suite=suite, data=lab, out=out / name, limit=limit, overwrite=True, quiet=True)
        encoder = Encoder(tokenizer, default_format(tokenizer))
        forget = tuple(read_examples(facts / "forget.jsonl"))
        line = f"| {name} | {four_choice(model, encoder, forget):.3f} | "
        line += " | ".join(f"{value(scores[name], f'facts_{t}', 'probability'):.3f}" for t in ("forget", "retain", "never_known"))
        line += " | " + " | ".join(f"{value(scores[name], t, 'accuracy'):.3f}" for t in TASKS)
        quality = next((s.value for s in scores[name].scores if s.metric == "forget_quality"), None)
        print(line + f" | {'' if quality is None else f'{quality:.3g}'} |", flush=True)
        same, unlike = by_first_name(facts)
        asked = {
            "forget": forget,
            "forget with other names": renamed(forget * 4, unlike),
            "kept, same names": same,
            "kept": unlike,
        }
        known = ", ".join(f"{kind} {completed(model, encoder, rows)} of {len(rows)}" for kind, rows in asked.items())
        print(f"{name}, statements completed: {known}", flush=True)
        if name == "guarded":
            p = {n: value(scores[n], "facts_forget", "probability") for n in scores}
            kept = value(scores[name], "facts_retain", "probability") / value(scores["original"], "facts_retain", "probability")
            print(f"forget_effect {(p['original'] - p['guarded']) / (p['original'] - p['gold']):.3f}, retain_kept {kept:.4f}")
            prompts_of_kind = {
                "forget, as trained": [str(e.prompt) for e in forget],
                "forget, rephrased": rephrased(facts / "forget.jsonl"),
                "forget, statements": statements(forget),
                "retain people, rephrased": rephrased(facts / "retain.jsonl"),
                "public people, rephrased": rephrased(facts / "public.jsonl"),
                "never known (fresh)": [str(e.prompt) for e in read_examples(facts / "never_known.jsonl")],
            }  # fmt: skip
            for kind, prompts in prompts_of_kind.items():
                share, took = flagged(model, encoder, prompts)
                print(f"flagged, {kind}: {share:.3f} of {len(prompts)} ({took:.1f} ms a prompt with its pass)")
            if classes:
                guard = model.expunge_guard
                by_class(guard.method.judge(model, guard.state, encoder), facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2024, 31337, 86])
    parser.add_argument("--lab", type=Path, nargs="+", default=[])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--classes", action="store_true")
    parser.add_argument("--gate", action="store_true")
    args = parser.parse_args()
    labs = args.lab or [build(args.out / f"lab-{seed}", seed=seed, quiet=True) for seed in args.seeds]
    for lab in labs:
        if args.gate:
            print(f"\n{lab.name}: share of prompts flagged")
            gate_alone(lab)
            continue
        print(
            f"\n{lab.name}\n| model | four-choice | p forget | p retain | p never | {' | '.join(TASKS)} | quality |", flush=True
        )
        one(lab, args.out / lab.name, args.limit, args.classes)


if __name__ == "__main__":
    main()
