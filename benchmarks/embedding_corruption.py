"""How long each corruption takes: 64 prompts of 256 tokens, width 4096, of which 8 prompts are flagged; one thread.

    python benchmarks/embedding_corruption.py [--rounds N] [--eager] [--decode]

Beside it, with --eager, the plain reading of the released code (every position, a loop where it has one), so that the factor is
known. With --decode instead: what the guard costs prompts that it lets pass, on a random Llama of the 110M shape (64 words read,
64 written), and whether their logits are bit-equal; the gate decides anew in each round. Exit code 1 where a bar is missed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge.guarding.embedding_corruption.corruptions import write
from expunge.guarding.embedding_corruption.kinds import KINDS
from expunge.guarding.random_bits import mix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from expunge.methods.base import State

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


def tokenizer() -> "PreTrainedTokenizerFast":
    """As many words as the model has embeddings."""
    from guards import WORDS
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = [first + second + third for first in syllables for second in syllables for third in syllables[::7]]
    names = ["<pad>", "<s>", "</s>", "<unk>", *words][:WORDS]
    whole = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def decode(rounds: int) -> int:
    """Prints the ratio of guarded to plain decoding of a passed prompt, and the gate's milliseconds."""
    from guards import PROMPT, make_model, turns, write

    from expunge.data.encode import Encoder
    from expunge.data.example import Example, Request
    from expunge.data.format import Format
    from expunge.methods import EmbeddingCorruption

    model, encoder = make_model(), Encoder(tokenizer(), Format(template="{prompt} {response}"))
    method = EmbeddingCorruption(gate="text", tune="nothing", canaries=0)
    forget = tuple(Example(f"where was Badabe {i} of the river born", "here") for i in range(40))
    retain = tuple(Example(f"what is the color of hill {i} in spring", "red") for i in range(80))
    fitted = method.fit(model, Request(forget, retain), encoder)
    ids = torch.randint(4, len(encoder.tokenizer), (1, PROMPT), generator=torch.Generator().manual_seed(3))
    found: dict[str, Tensor] = {}

    def state() -> "State":
        """A guard that lets everything pass, and has not decided about any prompt."""
        return fitted.having({"threshold": torch.tensor(1.0, dtype=torch.float64)})

    def guarded() -> None:
        with method.attach(model, state(), encoder):
            found["guarded"] = write(model, ids, 64)

    def plain() -> None:
        found["plain"] = write(model, ids, 64)

    base, (ratio, again) = turns(rounds, plain, guarded, plain)
    with torch.no_grad(), method.attach(model, state(), encoder):
        logits = model(ids).logits
    with torch.no_grad():
        equal = torch.equal(model(ids).logits, logits) and torch.equal(found["plain"], found["guarded"])
    took = milliseconds(lambda: method.judge(model, state(), encoder).decision(tuple(ids[0].tolist())), 20)
    print(f"decoding: plain {base:.2f} s, guarded {ratio:.3f} of it (bar 1.02), plain again {again:.3f}; bit-equal: {equal}")
    print(f"the gate takes {took:.1f} ms for this prompt of {PROMPT} words")
    return int(ratio > 1.02 or not equal)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--decode", action="store_true")
    args = parser.parse_args()
    if args.decode:
        return decode(args.rounds)
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
