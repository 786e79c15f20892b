"""What the released ablation of embedding corruption costs, as a multiple of one of its settings: rows, tokens and CPU time.

    python benchmarks/eco_ablation.py --data DATA [--forget forget01] [--every 10] [--settings 40] [--written 32] [--small]

The suite `tofu` as it is published (40 to 400 questions to forget beside 400 to keep, 100 about real authors and 117 about the
world; all metrics), of each task every tenth question, on a random Llama of the 110M shape, which never ends an answer: each is
--written tokens long. The gate is the text gate, fitted to the forget split against half of the retain split. One thread.

    bound   what the settings would cost if nothing but the flagged prompts counted again, each as much as in one setting:
            1 + (different settings - 1) x the flagged prompts' share of the tokens
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from guards import make_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.corpora.tofu import read_tofu
from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.data.format import Format
from expunge.evaluation.ablation import ablate, effect, settings
from expunge.evaluation.suites.tofu import Tofu
from expunge.evaluation.task import Suite
from expunge.guarding import life
from expunge.methods import EmbeddingCorruption

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

    read = [0, 0]

    def count(_: object, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden_BTD = output[0] if isinstance(output, tuple) else output
        read[0] += hidden_BTD.shape[0]
        read[1] += hidden_BTD.shape[0] * hidden_BTD.shape[1]

    model.model.layers[0].register_forward_hook(count)
    spent = []
    for chosen in (every[:1], every):
        life.attach(model, method, state, encoder)
        read[:] = 0, 0
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            ablate(model, tokenizer, suite, out=Path(folder), chosen=chosen, fingerprint="x", quiet=True)
        spent.append((read[0], read[1], time.process_time() - began))
        print(f"{len(chosen)} settings: {read[0]} rows, {read[1]} tokens, {spent[-1][2]:.1f} s", flush=True)
    ratios = [after / before for before, after in zip(*spent, strict=True)]
    bound = 1 + (different - 1) * share
    print(f"{len(every)} settings: {ratios[0]:.2f} times the rows, {ratios[1]:.2f} the tokens, {ratios[2]:.2f} the CPU time")
    print(f"bound {bound:.2f}; {spent[1][2] / spent[0][2] / bound:.2f} of it; bar {BAR}")
    return int(ratios[2] >= BAR)


if __name__ == "__main__":
    sys.exit(main())
