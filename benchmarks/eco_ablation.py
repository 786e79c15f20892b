"""What the released ablation of embedding corruption costs, as a multiple of one of its settings: tokens and CPU time.

    python benchmarks/eco_ablation.py --data DATA [--forget forget01] [--every 10] [--settings 40] [--written 32] [--small]

The suite `tofu` as it is published (40 to 400 questions to forget beside 400 to keep, 100 about real authors and 117 about the
world; all metrics), of each task every tenth question, on a random Llama of the 110M shape, which never ends an answer: each is
--written tokens long. The gate is the text gate, fitted to the forget split against a tenth of the retain split. One thread.

    one setting, evaluated     `evaluate` on the guarded model: what each setting costs by itself. The bar is against this
    one setting, ablated       `ablate` with one setting: answers share their prompt there, so that it costs less
    all settings, ablated
    bound                      what the settings would cost if nothing but the flagged prompts counted again, each as much as when
                               it is evaluated: 1 + (different settings - 1) x the flagged prompts' share of the tokens
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from guards import make_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.corpora.tofu import read_tofu
from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.data.format import Format
from expunge.evaluation.ablation import ablate, at, effect, settings
from expunge.evaluation.run import evaluate
from expunge.evaluation.shortcuts import shortcuts_of
from expunge.evaluation.suites.tofu import Tofu
from expunge.evaluation.task import Suite
from expunge.guarding import life
from expunge.methods import EmbeddingCorruption
from expunge.records import Evaluation

torch.set_num_threads(1)
BAR = 3.0


def words_of(suite: Suite) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of the suite."""
    found: Counter[str] = Counter()
    for task in suite.tasks:
        for e in task.examples:
            for text in (e.prompt or "", e.response, *e.paraphrases, *e.perturbed):
                found.update(piece for piece, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text))
    names = ["<pad>", "<s>", "</s>", "<unk>", "Question", ":", "Answer", *(word for word, _ in found.most_common(31_000))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(dict.fromkeys(names))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def tiny() -> LlamaForCausalLM:
    """Shows what is spent outside of the model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--forget", default="forget01", choices=("forget01", "forget05", "forget10"))
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--settings", type=int, default=40)
    parser.add_argument("--written", type=int, default=32)
    parser.add_argument("--small", action="store_true", help="a model that costs nothing, so that the rest shows")
    args = parser.parse_args()
    whole = Tofu(forget=args.forget).build(args.data)
    suite = replace(
        whole,
        tasks=tuple(replace(t, examples=t.examples[:: args.every], max_new_tokens=args.written) for t in whole.tasks),
    )
    model, tokenizer = tiny() if args.small else make_model(), words_of(whole)
    encoder = Encoder(tokenizer, Format(template="Question: {prompt} Answer: {response}"))
    method = EmbeddingCorruption(gate="text", tune="nothing", canaries=0)
    retain = read_tofu(args.data, {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}[args.forget])
    state = life.fit(method, model, Request(whole.tasks[0].examples, retain[::10]), encoder)
    width = model.config.hidden_size
    judge = method.judge(model, state, encoder)
    cost, counts = [0, 0], Counter[str]()
    for task in suite.tasks:
        for e in task.examples:
            rows = encoder.encode_answers([(e.prompt, text) for text in (e.response, *e.paraphrases, *e.perturbed)])
            tokens = sum(len(row.ids) for row in rows) + rows[0].answer_start + args.written
            flagged = bool(judge.decision(rows[0].ids[: rows[0].answer_start]).chosen)
            cost[flagged] += tokens
            counts[f"{task.name}, flagged" if flagged else task.name] += 1
    every = settings(width)[: args.settings]
    different = len({effect(setting.fields, width) for setting in every})
    share = cost[1] / sum(cost)
    print(f"{args.forget}: {sum(counts.values())} questions ({', '.join(f'{n} {name}' for name, n in counts.items())})")
    asked = sum(n for name, n in counts.items() if name.endswith("flagged")) / sum(counts.values())
    print(f"flagged: {asked:.1%} of the questions, {share:.1%} of the tokens; {different} different settings of {len(every)}")

    first = every[0]

    def alone(folder: Path) -> Evaluation:
        guard = life.attach(model, *at(method, state, first.fields, width), encoder)
        try:
            return evaluate(model, tokenizer, suite=suite, out=folder, format=encoder.format, quiet=True)
        finally:
            guard.detach()

    def ablated(folder: Path, count: int) -> Evaluation:
        life.attach(model, method, state, encoder)
        return ablate(model, tokenizer, suite, out=folder, chosen=every[:count], fingerprint="x", quiet=True)[first.name]

    layer: Any = model.model.layers[0]
    read, found, spent = [0], list[Evaluation](), list[tuple[int, float]]()

    def forward(hidden: torch.Tensor, *given: Any, **named: Any) -> Any:  # a hook would need the guard's way of reading
        read[0] += hidden.shape[0] * hidden.shape[1]
        return type(layer).forward(layer, hidden, *given, **named)

    shortcuts_of(model)
    layer.forward = forward
    for name, run in (
        ("one setting, evaluated", alone),
        ("one setting, ablated", lambda folder: ablated(folder, 1)),
        (f"{len(every)} settings, ablated", lambda folder: ablated(folder, len(every))),
    ):
        judge._decided.clear()
        read[0], began = 0, time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            found.append(run(Path(folder)))
        spent.append((read[0], time.process_time() - began))
        print(f"{name}: {read[0]} tokens, {spent[-1][1]:.1f} s", flush=True)
    pairs = [(a.value, b.value) for a, b in zip(found[0].scores, found[2].scores, strict=True)]
    apart = max(abs(a - b) for a, b in pairs if a is not None and b is not None)
    print(f"largest difference of a score of {first.name}, evaluated and ablated with the others: {apart:.1e}")
    (tokens, seconds), (tokens_one, seconds_one), (tokens_all, seconds_all) = spent
    print(f"against one evaluated: {tokens_all / tokens:.2f} times the tokens, {seconds_all / seconds:.2f} the CPU time")
    print(f"against one ablated: {tokens_all / tokens_one:.2f} times the tokens, {seconds_all / seconds_one:.2f} the CPU time")
    print(f"bound {1 + (different - 1) * share:.2f}; bar {BAR}")
    return int(seconds_all / seconds >= BAR)


if __name__ == "__main__":
    sys.exit(main())
