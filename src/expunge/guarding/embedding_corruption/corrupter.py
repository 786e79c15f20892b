"""Attaches embedding corruption to one model: the gate judges each prompt before it is read, and flagged prompts are corrupted.

Shape suffixes: B rows, T positions, S positions of the whole sequences so far, D width, N selected positions, n those of a row.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.guarding.embedding_corruption.corruptions import write
from expunge.guarding.embedding_corruption.judge import Decision, Judge
from expunge.guarding.embedding_corruption.kinds import Kind
from expunge.guarding.forward_pass import Counts, ForwardPass, Prompts
from expunge.guarding.query import Query
from expunge.guarding.random_bits import mix
from expunge.guarding.session import ROW_SETTINGS, Session


@dataclass(frozen=True)
class Edit:
    """How the embedding of a chosen token is corrupted."""

    kind: Kind
    dims: int
    strength: float
    """In units of the embeddings."""
    seed: int


@dataclass(frozen=True)
class Reading:
    """One prompt with corrupted embeddings, for passes that know where it stands and need no hooks."""

    edit: Edit
    decision: Decision
    length: int
    """Tokens of the prompt."""

    def embedded(self, embeddings_TD: Tensor) -> Tensor:
        """Returns the embeddings of the whole prompt as the model reads them, [T, D]."""
        return corrupted(self.edit, self.decision, embeddings_TD)


def corrupted(edit: Edit, decision: Decision, embeddings_TD: Tensor) -> Tensor:
    """Returns the embeddings of a whole prompt as the model reads them, [T, D]."""
    found_TD = embeddings_TD.detach().clone()
    token_N = torch.tensor(decision.chosen, dtype=torch.long, device=found_TD.device)
    key_N = _keys(edit.seed, decision.key, token_N)
    write(found_TD, token_N, edit.kind, edit.dims, edit.strength, key_N, torch.zeros_like(token_N))
    return found_TD


class Corrupter:
    """Embedding corruption on one model: judges prompts, and corrupts the embeddings of flagged ones."""

    def __init__(self, edit: Edit, session: Session, judge: Judge) -> None:
        self.edit, self.session, self.judge = edit, session, judge
        self.counts = Counts()

    def decide(self, prompts: Prompts, here: ForwardPass) -> None:
        """Called before a prompt is read, with all rows of the batch."""
        found = [self.judge.decision(ids) for ids in prompts.ids]
        others = ROW_SETTINGS.get() or [None] * len(found)
        for decision, other in zip(found, others, strict=True):
            if other is None:  # what is read ahead for other settings is counted when they ask for it
                self.counts.decided += 1
                self.counts.acted += bool(decision.chosen)
        edits: dict[Edit, dict[int, Decision]] = {}
        for b, (decision, other) in enumerate(zip(found, others, strict=True)):
            if decision.chosen:
                edits.setdefault(self.edit if other is None else _edit_of(other), {})[b] = decision
        if here.generation is None:
            here.storage[self] = edits or None
        else:
            here.generation.storage[self] = edits or None
            # Only the pass that generate announced has read its prompts.
            here.generation.left_alone = not edits and here.ids_BS is here.generation.ids_BS

    def corrupt(self, _: nn.Module, args: tuple[Any, ...], embeddings_BTD: Tensor) -> Tensor:
        """Forward hook of the input embeddings. Raises ExpungeError if the embeddings cannot be matched with the tokens."""
        generation = self.session.generation
        if self.session.is_paused or (generation is not None and generation.left_alone):
            return embeddings_BTD
        here = self.session.current
        found = here.storage.get(self) if generation is None else generation.storage.get(self)
        if found is None or (generation is not None and not here.has_prompt_end):
            return embeddings_BTD
        if embeddings_BTD.shape[:2] != (here.rows, here.width):
            raise ExpungeError(
                f"the embeddings are {list(embeddings_BTD.shape)} for {here.rows} rows of {here.width} tokens: the guard cannot "
                "tell which token each is of"
            )
        after_BTD = embeddings_BTD.clone() if embeddings_BTD.requires_grad else embeddings_BTD.contiguous()
        for edit, rows in found.items():
            index_N, key_N, row_N = (values.to(after_BTD.device) for values in _places(here, edit.seed, rows))
            write(after_BTD.view(-1, after_BTD.shape[-1]), index_N, edit.kind, edit.dims, edit.strength, key_N, row_N)
        return after_BTD

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Replaces `generate`, and raises ExpungeError if the gate could not see the whole prompt."""

        @wraps(original)
        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            query = Query.of(model, inspect.signature(original).bind(model, *args, **kwargs).arguments)
            with self.session.generating(query.ids_QS):
                return original(model, *args, **kwargs)

        return generate


def _places(here: ForwardPass, seed: int, found: Mapping[int, Decision]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns for every token to corrupt in this pass: index into the B * T positions, key of its noise, and row.

    found   row -> decision about its prompt
    """
    index, key, row = [], [], []
    real_BS = None if here.mask_BS is None else here.mask_BS.bool().cpu()
    for b, decision in found.items():
        token_n = torch.tensor(decision.chosen)
        column_n = (token_n if real_BS is None else real_BS[b].nonzero()[:, 0][token_n]) - here.begin
        inside = (column_n >= 0) & (column_n < here.width)
        index.append(b * here.width + column_n[inside])
        key.append(_keys(seed, decision.key, token_n[inside]))
        row.append(torch.full_like(index[-1], b))
    return torch.cat(index), torch.cat(key), torch.cat(row)


def _keys(seed: int, prompt: int, token_N: Tensor) -> Tensor:
    """Returns the key of the noise of each of a prompt's tokens."""
    return mix((mix(torch.tensor(seed, device=token_N.device)) ^ prompt) + token_N)


def _edit_of(setting: object) -> Edit:
    if not isinstance(setting, Edit):
        raise TypeError(f"a setting of this guard is an Edit, not a {type(setting).__name__}")
    return setting
