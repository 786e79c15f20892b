"""Trains the lab's models from scratch: a million weights on ten thousand short rows in a minute or two.

It differs from `expunge.training.loop` for speed: rows are packed into sequences without padding, and the matrices are trained
with Muon.

Shape suffixes: S packed sequences, T positions, D width, N labelled tokens in row-major order.
"""

import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from expunge.data.encode import Encoded
from expunge.errors import ExpungeError
from expunge.lab.optimizer import Muon
from expunge.progress import Progress

PACKED = 48
"""Positions of a packed sequence: four rows or so."""
OPEN = 6
"""Number of packed sequences that are searched for room before a new one is started."""
WARMUP = 0.1
"""Share of the steps during which the learning rates rise."""


class Schedule(NamedTuple):
    """Length and learning rates."""

    steps: int
    rows: int
    """Number of rows of one step."""
    matrix_rate: float
    """Peak learning rate of Muon, for the matrices of the blocks."""
    rate: float
    """Peak learning rate of AdamW, for embeddings and norms."""


class Packed(NamedTuple):
    ids_ST: Tensor
    positions_ST: Tensor
    """Counted from the beginning of each row."""
    mask_S1TT: Tensor
    """True where a position may attend: to earlier ones within its own row."""
    targets_ST: Tensor
    """The next token where that is a label, else -100."""


def pack(rows: Sequence[Encoded], end_id: int) -> Packed:
    """Packs rows into sequences of PACKED positions. Attention stays within a row, so that each row's loss is the same as
    alone.

    Raw texts get an end token here, since the lab's texts are complete.
    """
    sequences: list[list[Encoded]] = []
    used: list[int] = []
    for row in rows:
        if not row.has_end:
            row = Encoded((*row.ids, end_id), row.answer_start, True)
        room = (i for i in range(max(0, len(used) - OPEN), len(used)) if used[i] + len(row.ids) <= PACKED)
        place = next(room, None)
        if place is None:
            sequences.append([row])
            used.append(len(row.ids))
        else:
            sequences[place].append(row)
            used[place] += len(row.ids)
    shape = (len(sequences), max(used))
    ids_ST, positions_ST = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    row_ST, targets_ST = torch.full(shape, -1), torch.full(shape, -100)
    for s, sequence in enumerate(sequences):
        begin = 0
        for number, row in enumerate(sequence):
            stop = begin + len(row.ids)
            ids_ST[s, begin:stop] = torch.tensor(row.ids)
            positions_ST[s, begin:stop] = torch.arange(len(row.ids))
            row_ST[s, begin:stop] = number
            targets_ST[s, begin + row.answer_start - 1 : stop - 1] = torch.tensor(row.ids[row.answer_start :])
            begin = stop
    mask_STT = (row_ST[:, :, None] == row_ST[:, None, :]).tril()
    return Packed(ids_ST, positions_ST, mask_STT[:, None], targets_ST)


def packed_loss(model: LlamaForCausalLM, batch: Packed) -> Tensor:
    """Computes the mean cross-entropy over the N labelled tokens, in nats, with logits for those only."""
    output = model.model(input_ids=batch.ids_ST, position_ids=batch.positions_ST, attention_mask=batch.mask_S1TT, use_cache=False)
    labelled_ST = batch.targets_ST >= 0
    logits_NV = model.lm_head(output.last_hidden_state[labelled_ST])
    return functional.cross_entropy(logits_NV, batch.targets_ST[labelled_ST])


def shuffled(count: int, seed: str) -> Iterator[int]:
    """Yields 0 .. count - 1 in random order, again and again."""
    order, stream = list(range(count)), random.Random(seed)
    while True:
        stream.shuffle(order)
        yield from order


def rate_at(step: int, steps: int) -> float:
    """Returns the share of the peak rate at step 1 .. steps: linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(WARMUP * steps))
    if step <= warmup:
        return step / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


def teach(
    model: LlamaForCausalLM,
    lessons: Sequence[Sequence[Encoded]],
    schedule: Schedule,
    seed: str,
    end_id: int,
    progress: Progress,
) -> None:
    """Trains the model in place on mixed `lessons`: each part fills an equal share of every step's rows. Raises ExpungeError
    if the loss is not finite."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = (Muon(matrices, schedule.matrix_rate), torch.optim.AdamW(others, schedule.rate, (0.9, 0.98), fused=True))
    peaks = (schedule.matrix_rate, schedule.rate)
    parts = [(part, shuffled(len(part), f"{seed}/{i}")) for i, part in enumerate(lessons)]
    share = schedule.rows // len(parts)
    model.train()
    for step in range(1, schedule.steps + 1):
        batch = pack([part[next(order)] for part, order in parts for _ in range(share)], end_id)
        loss = packed_loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate_at(step, schedule.steps)
            optimizer.step()
            optimizer.zero_grad()
        progress.advance(1, f"loss {loss.item():.2f}")
    model.eval()
    if not math.isfinite(loss.item()):
        raise ExpungeError(f"the lab's training ended with a loss of {loss.item()}; report this with the seed ({seed})")
