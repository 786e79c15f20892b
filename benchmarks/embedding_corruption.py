"""How long each corruption takes: 64 prompts of 256 tokens, width 4096, of which 8 prompts are flagged; one thread.

    python benchmarks/embedding_corruption.py [--rounds N] [--eager] [--decode] [--ablation]

Beside it, with --eager, the plain reading of the released code (every position, a loop where it has one), so that the factor is
known. With --decode instead: what the guard costs prompts that it lets pass, on a random Llama of the 110M shape (64 tokens read,
64 written), and whether their logits are bit-equal; the gate decides anew in each round. With --ablation instead: what the 44
settings of the released ablation cost, as a multiple of one setting, in rows, tokens and CPU time, and the first 40 of them: 100
prompts, 5 of them to forget, each scored and answered (16 tokens); the same Llama. Exit code 1 where a bar is missed.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from expunge.guarding.embedding_corruption.corruptions import write
from expunge.guarding.embedding_corruption.kinds import KINDS
from expunge.guarding.random_bits import mix

torch.set_num_threads(1)
BAR = 50.0
"""Milliseconds of CPU time."""


def milliseconds(work: Callable[[], object], rounds: int, before: Callable[[], object] = lambda: None) -> float:
    found = []
    for _ in range(rounds):
        before()
        began = time.process_time()
        work()
        found.append(1000 * (time.process_time() - began))
    return statistics.median(found)


def eager(embeddings_BTD: Tensor, mask_BT: Tensor, kind: str, dims: int) -> Tensor:
    """The whole batch, masks multiplied in, coordinates scattered one position at a time."""
    if kind in ("reverse_order", "shuffle"):
        return embeddings_BTD.flip(1) if kind == "reverse_order" else embeddings_BTD[:, torch.randperm(embeddings_BTD.shape[1])]
    edit = torch.zeros_like(embeddings_BTD)
    if kind.endswith("first_n"):
        edit[..., :dims] = torch.randn_like(edit[..., :dims]) if "noise" in kind else -embeddings_BTD[..., :dims]
    else:
        _, where = embeddings_BTD.abs().topk(dims, dim=-1)
        value = torch.randn(where.shape) if "noise" in kind else -embeddings_BTD.gather(-1, where)
        edit.scatter_(-1, where, value)
    return embeddings_BTD + edit * mask_BT[..., None]


def decode(rounds: int) -> int:
    """Prints the ratio of guarded to plain decoding of a passed prompt, and the gate's milliseconds."""
    from guards import PROMPT, WORDS, make_encoder, make_model, turns, write

    from expunge.data.example import Example, Request
    from expunge.methods import EmbeddingCorruption

    model, encoder = make_model(), make_encoder()
    method = EmbeddingCorruption(gate="text", tune="nothing", canaries=0, false_positive_rate=0.3)
    forget = tuple(Example(f"where is number {i}", "here") for i in range(8))
    retain = tuple(Example(f"what is color {i}", "red") for i in range(8))
    fitted = method.fit(model, Request(forget, retain), encoder)
    ids = torch.randint(4, WORDS, (1, PROMPT), generator=torch.Generator().manual_seed(3))
    found: dict[str, Tensor] = {}

    def guarded() -> None:
        state = fitted.having({"threshold": torch.tensor(1.0, dtype=torch.float64)})  # lets everything pass; not decided before
        with method.attach(model, state, encoder):
            found["guarded"] = write(model, ids, 64)

    def plain() -> None:
        found["plain"] = write(model, ids, 64)

    base, (ratio,) = turns(rounds, plain, guarded)
    with torch.no_grad(), method.attach(model, fitted.having({"threshold": torch.tensor(1.0)}), encoder):
        logits = model(ids).logits
    with torch.no_grad():
        equal = torch.equal(model(ids).logits, logits) and torch.equal(found["plain"], found["guarded"])
    text = "where is the color of number seven and of number nine " * 2
    judge = method.judge(model, fitted, encoder)
    took = milliseconds(lambda: judge.scores.gate.probabilities([text]), 20)
    print(f"decoding: plain {base:.2f} s, guarded {ratio:.3f} of it (bar 1.02); bit-equal: {equal}")
    print(f"text gate: {took:.2f} ms a reading")
    return int(ratio > 1.02 or not equal)


def ablation() -> int:
    """Prints what the released ablation reads and takes, as multiples of its first setting."""
    from guards import make_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from expunge.data.encode import Encoder
    from expunge.data.example import Example, Request
    from expunge.data.format import Format
    from expunge.evaluation.ablation import Setting, ablate, settings
    from expunge.evaluation.metrics import Probability, RougeLRecall
    from expunge.evaluation.suites.base import no_summary
    from expunge.evaluation.task import Suite, Task
    from expunge.guarding import life
    from expunge.methods import EmbeddingCorruption

    names = ["<pad>", "<s>", "</s>", "<unk>", *(f"word{i}" for i in range(2000))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    draw = random.Random(0)

    def rows(first: int, last: int, count: int) -> tuple[Example, ...]:
        text = lambda length: " ".join(f"word{draw.randrange(first, last)}" for _ in range(length))  # noqa: E731
        return tuple(Example(text(24), text(16)) for _ in range(count))

    forget, retain = rows(0, 100, 5), rows(100, 2000, 95)
    model, encoder = make_model(), Encoder(fast, Format(template="{prompt} {response}"))
    method = EmbeddingCorruption(gate="text", tune="nothing", canaries=0, false_positive_rate=0.05)
    state = life.fit(method, model, Request(forget, rows(100, 2000, 95)), encoder)
    metrics = (Probability(), RougeLRecall())
    suite = Suite("small", (Task("forget", forget, metrics, "forget", max_new_tokens=16),
                            Task("retain", retain, metrics, "retain", max_new_tokens=16)), no_summary)  # fmt: skip
    read = [0, 0]

    def count(_: object, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden_BTD = output[0] if isinstance(output, tuple) else output
        read[0] += hidden_BTD.shape[0]
        read[1] += hidden_BTD.shape[0] * hidden_BTD.shape[1]

    model.model.layers[0].register_forward_hook(count)
    every, spent = settings(768), list[tuple[float, ...]]()

    def counted() -> Iterator[Setting]:
        """Yields the settings, and notes what was spent before each."""
        for setting in every:
            spent.append((*read, time.process_time()))
            yield setting
        spent.append((*read, time.process_time()))

    life.attach(model, method, state, encoder)
    with tempfile.TemporaryDirectory() as folder:
        found = ablate(model, fast, suite, out=Path(folder), chosen=counted(), quiet=True)
    used = next(iter(found.values())).guard
    assert used is not None
    one = [after - before for before, after in zip(spent[0], spent[1], strict=True)]
    print(f"one setting: {one[0]} rows, {one[1]} tokens, {one[2]:.1f} s; acted on {used.acted} of {used.decided}")
    for number in (40, 44):
        ratios = [(after - before) / each for before, after, each in zip(spent[0], spent[number], one, strict=True)]
        print(f"{number} settings: {ratios[0]:.2f} times the rows, {ratios[1]:.2f} the tokens, {ratios[2]:.2f} the CPU time")
    return int(ratios[2] >= 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--ablation", action="store_true")
    args = parser.parse_args()
    if args.decode:
        return decode(args.rounds)
    if args.ablation:
        return ablation()
    generator = torch.Generator().manual_seed(0)
    embeddings_BTD = torch.randn(64, 256, 4096, generator=generator)
    mask_BT = torch.zeros(64, 256)
    mask_BT[::8, :-1] = 1
    index_N = mask_BT.flatten().nonzero()[:, 0]
    key_N, row_N, slow = mix(index_N), index_N // 256, []
    flat_MD = embeddings_BTD.flatten(0, 1)
    start_ND = flat_MD[index_N].clone()

    def fresh() -> None:
        flat_MD[index_N] = start_ND

    print("| corruption | coordinates | ms |" + (" plain reading, ms |" if args.eager else ""))
    print("| --- | ---: | ---: |" + (" ---: |" if args.eager else ""))
    for kind in KINDS:
        for dims in (None,) if kind in ("reverse_order", "shuffle") else (1, 1000, 2048, None):
            took = milliseconds(lambda a=(kind, dims, 5.0, key_N, row_N): write(flat_MD, index_N, *a), args.rounds, fresh)
            line = f"| {kind} | {dims or 'all'} | {took:.1f} |"
            if args.eager:
                line += (
                    f" {milliseconds(lambda kind=kind, dims=dims: eager(embeddings_BTD, mask_BT, kind, dims or 4096), 1):.0f} |"
                )
            print(line, flush=True)
            if took > BAR:
                slow.append(f"{kind} {dims or 'all'}")
    if slow:
        print(f"longer than {BAR:.0f} ms: {', '.join(slow)}", file=sys.stderr)
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
