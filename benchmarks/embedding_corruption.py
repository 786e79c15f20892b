"""How long each corruption takes: 64 prompts of 256 tokens, width 4096, of which 8 prompts are flagged; one thread.

    python benchmarks/embedding_corruption.py [--rounds N] [--eager]

Beside it, with --eager, the plain reading of the released code (every position, a loop where it has one), so that the factor is
known. Exit code 1 where a corruption takes longer than its bar.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
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
