"""What scoring, suites, training steps and start-up cost: this version, the one before the work on speed, an eager reading.

    python benchmarks/speed.py --data DATA [--part start row scoring suite npo gradient_difference] [--rounds 5] [--limit 100]

CPU seconds (user and system) of child processes, one thread, the versions in turn within each round, medians over rounds; `work`
leaves start-up and the loading of the model out. Tokens are those that passed through the embeddings, padding included. The
version before is a git worktree of its commit, made for the run. `eager` is what a plain script does: padded batches of 16 in the
order of the data, every sequence in full, logits everywhere, `generate` for texts, a second model for NPO's reference.

DATA has `tofu` and `stories260k`. Models: a random Llama of 2.8 M weights, which knows nothing, and stories260k fine-tuned on 40
+ 60 rows, which knows its retain set by heart (made once in --work). The part `row` evaluates one row of each task. `--models
smollm` takes SmolLM2-135M-Instruct from --smollm, with --limit 2 or so; its steps train LoRA factors on batches of 4 rows.
Both versions run from bytecode, as installed packages do.
"""

import argparse
import copy
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

BEFORE = "54d199b"
HERE = Path(__file__).resolve().parents[1]
PARTS = ("start", "row", "scoring", "suite", "npo", "gradient_difference")
START = {
    "a wrong flag": "unlearn npo --model m --forget f --out o --btea 1",
    "unlearn npo --help": "unlearn npo --help",
    "methods": "methods",
    "suites": "suites",
}
STEPS = 8
SMOLLM = Path.home() / ".cache/expunge_models/SmolLM2-135M-Instruct"


class Cost(NamedTuple):
    cpu: float
    work: float
    tokens: int
    peak_mib: float
    values: dict[str, float]


# What a child does. Only public names that both versions have.


def counted() -> list[int]:
    """Counts the tokens that pass through any embedding from now on."""
    import torch

    plain, count = torch.nn.functional.embedding, [0]

    def embedding(ids: Any, *rest: Any, **words: Any) -> Any:
        count[0] += ids.numel()
        return plain(ids, *rest, **words)

    torch.nn.functional.embedding = embedding
    return count


def evaluated(args: argparse.Namespace) -> dict[str, Any]:
    from expunge import evaluate, load
    from expunge.evaluation.suites import Tofu

    model, tokenizer = load(args.model, dtype="float32")
    suite = Tofu(forget="forget01").build(args.data / "tofu")
    if args.part == "scoring":
        tasks = [replace(t, metrics=tuple(m for m in t.metrics if "generated" not in m.needs)) for t in suite.tasks]
        suite = replace(suite, tasks=tuple(tasks), summarize=lambda _: [])
    count, began = counted(), time.process_time()
    if args.eager:
        return {"values": eager_scores(model, tokenizer, suite, args), "work": time.process_time() - began, "tokens": count[0]}
    found = evaluate(model, tokenizer, suite=suite, limit=args.limit, quiet=True)
    values = {f"{s.task} {s.metric}": s.value for s in found.scores if s.value is not None}
    return {"values": values, "work": time.process_time() - began, "tokens": count[0]}


def eager_scores(model: Any, tokenizer: Any, suite: Any, args: argparse.Namespace) -> dict[str, float]:
    import torch

    from expunge.data.encode import Encoder, collate
    from expunge.data.format import default_format

    encoder, values = Encoder(tokenizer, default_format(tokenizer), 1024), {}
    for task in suite.tasks:
        examples = task.examples[: args.limit]
        answers = [(e.prompt, text) for e in examples for text in (e.response, *e.paraphrases, *e.perturbed)]
        rows, means = encoder.encode_answers(answers), []
        for start in range(0, len(rows), 16):
            tokens = collate(rows[start : start + 16], encoder.pad_id)
            with torch.no_grad():
                logits = model(input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT).logits
            logp = logits[:, :-1].log_softmax(-1).gather(-1, tokens.input_ids_BT[:, 1:, None])[..., 0]
            known = tokens.labels_BT[:, 1:] != -100
            means += [row[mask].mean().exp().item() for row, mask in zip(logp, known, strict=True)]
        values[f"{task.name} probability"] = statistics.fmean(means)
        if args.part == "suite":
            prompts = encoder.encode_prompts([e.prompt for e in examples])
            for start in range(0, len(prompts), 16):
                some = prompts[start : start + 16]
                width = max(map(len, some))
                ids = torch.tensor([[encoder.pad_id] * (width - len(p)) + list(p) for p in some])
                mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some])
                model.generate(ids, attention_mask=mask, max_new_tokens=200, do_sample=False, pad_token_id=encoder.pad_id)
    return values


def trained(args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of a step, the first left out: the loop's own clock is the processor's here."""
    import expunge
    from expunge.methods import NPO, GradientDifference

    if args.eager:
        return eager_steps(args)
    time.perf_counter = time.process_time
    count = counted()
    method = NPO() if args.part == "npo" else GradientDifference()
    size: dict[str, Any] = {"steps": 3, "batch_size": 4, "lora": True} if args.lora else {"steps": STEPS, "batch_size": 16}
    training = expunge.Training(learning_rate=1e-4, schedule="constant", warmup=0, **size)
    tofu = args.data / "tofu"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        forget, retain = tofu / "forget05.jsonl", tofu / "retain99.jsonl"
        expunge.unlearn(method, model=args.model, forget=forget, retain=retain, out=out, training=training, quiet=True)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    values = {f"loss {line['step']}": line["loss"] for line in lines}
    return {"work": statistics.median(line["seconds"] for line in lines[1:]), "tokens": count[0], "values": values}


def eager_steps(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from expunge import load
    from expunge.data.encode import Encoder, collate
    from expunge.data.format import default_format
    from expunge.data.read import read_examples

    model, tokenizer = load(args.model, dtype="float32")
    encoder, tofu = Encoder(tokenizer, default_format(tokenizer), 512), args.data / "tofu"
    sets = [encoder.encode_many(list(read_examples(str(tofu / f"{name}.jsonl")))[:200]) for name in ("forget05", "retain99")]
    frozen, count, seconds = copy.deepcopy(model), counted(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def logp(net: Any, tokens: Any) -> Any:
        logits = net(input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT).logits[:, :-1]
        found = logits.log_softmax(-1).gather(-1, tokens.input_ids_BT[:, 1:, None])[..., 0]
        known = tokens.labels_BT[:, 1:] != -100
        return (found * known).sum(1), known.sum(1)

    for step in range(STEPS):
        began = time.process_time()
        forget, retain = (collate(rows[16 * step % 192 :][:16], encoder.pad_id) for rows in sets)
        summed, length = logp(model, forget)
        if args.part == "npo":
            with torch.no_grad():
                start, _ = logp(frozen, forget)
            first = -20 * torch.nn.functional.logsigmoid(-0.1 * (summed - start)).mean()
        else:
            first = (summed / length).mean()
        kept, tokens = logp(model, retain)
        (first - (kept / tokens).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - began)
    return {"work": statistics.median(seconds[1:]), "tokens": count[0], "values": {}}


# What the parent does.


def measured(words: list[str], source: Path) -> Cost:
    env = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen([sys.executable, *words], env=env, stdout=out, stderr=errors)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        last = (out.read().decode().splitlines() or [""])[-1]
        if child.returncode not in (0, 2):
            raise SystemExit(f"{' '.join(words)} failed:\n{errors.read().decode()[-3000:]}")
    said = json.loads(last) if last.startswith("{") else {}
    cpu = used.ru_utime + used.ru_stime
    return Cost(cpu, said.get("work", cpu), said.get("tokens", 0), used.ru_maxrss / 1024, said.get("values", {}))


def before(work: Path) -> Path:
    """The version before, as a worktree of its commit, which stays in `work`."""
    tree = work / f"expunge-{BEFORE}"
    if not tree.is_dir():
        subprocess.run(["git", "-C", str(HERE), "worktree", "prune"], check=True)
        subprocess.run(["git", "-C", str(HERE), "worktree", "add", "--detach", "-f", str(tree), BEFORE], check=True)
    return tree / "src"


def make_models(work: Path, data: Path) -> dict[str, Path]:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    random, tuned = work / "random", work / "tuned-model"
    if not random.is_dir():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(data / "stories260k")
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(random)
        tokenizer.save_pretrained(random)
    if not tuned.is_dir():
        kept = (data / "tofu/retain_perturbed.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:60]
        (work / "retain.jsonl").write_text("".join(kept), encoding="utf-8")
        learn = ["--learning-rate", "3e-3", "--batch-size", "16", "--schedule", "cosine", "--weight-decay", "0", "--epochs", "30"]
        sets = ["--data", str(data / "tofu/forget01.jsonl"), str(work / "retain.jsonl")]
        words = ["finetune", "--model", str(data / "stories260k"), *sets, *learn, "--out", str(work / "tuned")]
        subprocess.run([sys.executable, "-m", "expunge", *words], check=True)
        shutil.copytree(work / "tuned" / "artifact", tuned, ignore=shutil.ignore_patterns("expunge.json"))  # for either version
    return {"random": random, "tuned": tuned}


def compare(title: str, words: dict[str, tuple[list[str], Path]], rounds: int) -> None:
    """One line a version: medians, and ratios to the version before."""
    found: dict[str, list[Cost]] = {name: [] for name in words}
    for _ in range(rounds):
        for name, (line, source) in words.items():
            found[name].append(measured(line, source))
    base = {key: statistics.median(getattr(c, key) for c in found["before"]) for key in ("cpu", "work")}
    one, other = (found[name][0].values for name in ("now", "before"))
    apart = max((abs(one[key] - other[key]) for key in one.keys() & other.keys()), default=0.0)
    for name, costs in found.items():
        cpu, work, peak = (statistics.median(getattr(c, key) for c in costs) for key in ("cpu", "work", "peak_mib"))
        ratios = f"{cpu / base['cpu']:.2f} | {work / base['work']:.2f}"
        print(f"| {title} | {name} | {cpu:.2f} | {work:.3f} | {ratios} | {costs[0].tokens:,} | {peak:.0f} |", flush=True)
    if one:
        print(f"  {title}: greatest difference of a value, now and before: {apart:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=("random", "tuned", "smollm"), default=["random", "tuned"])
    parser.add_argument("--smollm", type=Path, default=SMOLLM)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--no-eager", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "expunge-speed")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    sources = {"before": before(args.work), "now": HERE / "src"}
    for source in sources.values():
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(source)], check=True)
    print("| what | version | CPU s | work s | ratio | ratio of work | tokens | peak MiB |\n|---|---|---|---|---|---|---|---|")
    if "start" in args.part:
        for title, line in START.items():
            compare(title, {name: (["-m", "expunge", *line.split()], source) for name, source in sources.items()}, args.rounds)
    models = {"smollm": args.smollm}
    if set(args.part) - {"start"} and set(args.models) != {"smollm"}:
        models |= make_models(args.work, args.data)
    for part in [part for part in args.part if part != "start"]:
        trains = part in ("npo", "gradient_difference")
        for name in [name for name in args.models if not trains or name != "tuned"]:
            limit = 1 if part == "row" else args.limit
            line = [str(Path(__file__)), "--child", "suite" if part == "row" else part]
            line += ["--model", str(models[name]), "--data", str(args.data), "--limit", str(limit)]
            line += ["--lora"] if trains and name == "smollm" else []
            words = {version: (line, source) for version, source in sources.items()}
            if not args.no_eager and "--lora" not in line:
                words["eager"] = ([*line, "--eager"], sources["now"])
            compare(f"{part}, {name}", words, args.rounds)


def child() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", dest="part")
    parser.add_argument("--model", type=str)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--lora", action="store_true")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print(json.dumps(trained(args) if args.part in ("npo", "gradient_difference") else evaluated(args)))


if __name__ == "__main__":
    child() if "--child" in sys.argv else main()
