"""Finds the tensors that differ from the base, comparing bytes up to the first differing piece."""

import numpy as np
import torch

from expunge.errors import ExpungeError
from expunge.merging.inputs import Values
from expunge.merging.plan import Item, Plan
from expunge.merging.positions import Files, Stored, pieces, sha256_of
from expunge.merging.storage import Scratch, read_raw


def differing(files: Files, scratch: Scratch, plan: Plan, item: Item) -> tuple[int, ...]:
    """Returns the models whose tensor differs from the base's. Adapters and files of differences count as different. Raises
    ExpungeError for differences to another base."""
    found = []
    for model, (source, given) in enumerate(zip(plan.sources, item.inputs, strict=True)):
        if given is None:
            continue
        expected = source.base_sha256.get(item.name)
        if expected is not None and sha256_of(files, item.base) != expected:
            raise ExpungeError(
                f"{source.label} was made for another base: {item.name} of {plan.base.label} differs from the tensor that it "
                "was subtracted from; give the base that it was made with"
            )
        if isinstance(given, Values) and _equal(files, scratch, given.tensor, item.base):
            continue
        found.append(model)
    return tuple(found)


def _equal(files: Files, scratch: Scratch, tensor: Stored, base: Stored) -> bool:
    """Compares a tensor; one with fewer rows than the base's is compared as far as it goes."""
    if tensor.code != base.code:
        return False
    size = tensor.itemsize
    for start, stop in pieces(tensor.elements):
        mine, other = (scratch.raw(i, (stop - start) * size) for i in range(2))
        read_raw(files, tensor, start, stop, mine)
        read_raw(files, base, start, stop, other)
        word = torch.int32 if (stop - start) * size % 4 == 0 else torch.uint8  # numpy is fastest on these
        if not np.array_equal(mine.view(word).numpy(), other.view(word).numpy()):
            return False
    return True
