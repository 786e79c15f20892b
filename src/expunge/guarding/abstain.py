"""Answers closed queries with an abstention: in `generate` instead of decoding, in scoring by logits that spell the abstention.

Shape suffixes: B rows of a call, Q queries of a `generate` (B = Q times beams or returned sequences), T positions, V vocabulary,
N labelled positions, S positions of a sequence.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from expunge.data.control import control_tokens, held
from expunge.data.encode import Encoder
from expunge.errors import ExpungeError
from expunge.guarding.forward_pass import NEVER, Counts, ForwardPass
from expunge.guarding.query import Query
from expunge.guarding.session import Session, replaced
from expunge.models.load import causal_model

GAP = 50.0
"""Difference in nats between the abstention's next token and any other; finite, so that means and perplexities remain finite."""


@dataclass(frozen=True)
class Abstention:
    """The answer to a closed query as tokens, ending with the end token."""

    ids: tuple[int, ...]

    @classmethod
    def of(cls, encoder: Encoder, text: str) -> "Abstention":
        """Encodes a text. Raises ExpungeError if it is empty, or the tokenizer has no token for a part of it, or one that is no
        text."""
        token = held(control_tokens(encoder.tokenizer), [text])[0]
        if token is not None or not text.strip():
            raise ExpungeError(
                f"the abstention {text!r} {f'holds {token}, which is no text' if token else 'is empty'}; give another"
            )
        row = encoder.encode_answer("?", text)
        ids, unknown = row.ids[row.answer_start :], encoder.tokenizer.unk_token_id
        words = ids[:-1] if row.has_end else ids  # the unknown token is the end token of some tokenizers
        if unknown is not None and unknown in words:
            raise ExpungeError(f"the abstention '{text}' has words that the model's tokenizer does not know; give another text")
        return cls(ids)


class Closed(Exception):
    """Raised to leave `generate` once its prefill has shown that some queries are closed."""


@dataclass
class Decisions:
    """Decisions within one call of `generate`: which queries are closed so far."""

    prompts_are_open: bool
    """The prompts have been judged before, and none was closed."""
    closed_Q: Tensor | None = None
    candidates_S: Tensor | None = None
    """The row in the pass before, with candidates that the model might reject (lookup and assisted decoding)."""
    inside_S: Tensor | None = None
    """Which of these candidates would close the query if they are accepted."""

    def close(self, inside_Q: Tensor) -> None:
        self.closed_Q = inside_Q if self.closed_Q is None else self.closed_Q | inside_Q

    def accept(self, ids_BS: Tensor) -> None:
        """Judges the candidates of the previous pass that the model has accepted."""
        if self.candidates_S is None or self.inside_S is None:
            return
        shared = min(len(self.candidates_S), ids_BS.shape[1] - 1)  # nothing is predicted from the last token
        kept_S = (ids_BS[0, :shared] == self.candidates_S[:shared]).long().cumprod(0).bool()
        self.close((kept_S & self.inside_S[:shared].to(kept_S.device)).any()[None])
        self.candidates_S = self.inside_S = None


@dataclass(eq=False)
class Reply:
    """Turns a gate's decisions into answers."""

    session: Session
    abstention: Abstention
    all_steps: bool
    counts: Counts = field(default_factory=Counts)
    closed: WeakKeyDictionary[Any, Tensor] = field(default_factory=WeakKeyDictionary)
    """For custom decoding loops, by key-value cache: the position from which each row is closed."""

    def decide(self, here: ForwardPass, inside_BT: Tensor) -> None:
        """Called by the deepest watched layer with the judged positions that lie inside a box."""
        inside_BT, generation = inside_BT.to(here.device), here.generation
        if generation is None:
            here.storage[self] = self._closed_from(here, inside_BT)
            return
        found: Decisions = generation.storage[self]
        if not self.all_steps and found.prompts_are_open:  # the kept rows of a batch are not judged twice
            return
        if self.all_steps and here.rows == 1 and here.ids_BS is not None:
            found.accept(here.ids_BS)
            certain = generation.certain_width()
            if certain < here.ids_BS.shape[1]:
                inside_S = torch.zeros(here.ids_BS.shape[1], dtype=torch.bool, device=here.device)
                inside_S[here.begin :] = inside_BT[0]
                found.candidates_S, found.inside_S = here.ids_BS[0], inside_S
                inside_BT = inside_BT & (torch.arange(here.width, device=here.device) < certain - here.begin)
        found.close(inside_BT.any(dim=1).view(generation.queries, -1).any(dim=1))
        assert found.closed_Q is not None
        if found.closed_Q.any() and (found.closed_Q.all() or (here.has_prompt_end and not found.prompts_are_open)):
            raise Closed

    def _closed_from(self, here: ForwardPass, inside_BT: Tensor) -> Tensor:
        """Returns the column from which each row's logits spell the abstention."""
        inside_B = inside_BT.any(dim=1)
        if here.past == 0:
            self.counts.decided += here.rows
            self.counts.acted += int(inside_B.sum())
        if here.prompt_end_B is not None:
            return torch.where(inside_B, here.prompt_end_B, here.width)
        first_B = torch.where(inside_B, inside_BT.long().argmax(dim=1), here.width)
        before_B = self.closed.get(here.cache) if here.cache is not None else None
        if before_B is None:
            return first_B
        if len(before_B) != here.rows:
            raise ExpungeError(
                "the rows of a key-value cache were exchanged, so the guard cannot tell which are closed; call generate"
            )
        return torch.minimum(first_B, before_B - here.past)

    def spell(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Forward hook of the causal model: replaces the logits of closed rows from where they are closed. Raises
        ExpungeError for a plain tuple as output."""
        from transformers.utils.generic import ModelOutput

        here = self.session.current
        closed_from_B = here.storage.get(self)
        if closed_from_B is None or not bool((closed_from_B < here.width).any()):
            return output
        if not isinstance(output, ModelOutput):
            raise ExpungeError("a guarded model cannot close a row of a plain tuple; call it with return_dict=True")
        if output.get("past_key_values") is not None:
            self.closed[output["past_key_values"]] = torch.where(closed_from_B < here.width, closed_from_B + here.past, NEVER)
        logits: Tensor = output["logits"]
        if logits.numel() == 0:
            return output
        row, column = _places(here, logits)
        step = column - closed_from_B[row]
        target = torch.tensor(self.abstention.ids, device=logits.device)[step.clamp(0, len(self.abstention.ids) - 1)]
        spelled = logits.new_full(logits.shape, -GAP).scatter_(-1, target[..., None], 0.0)
        output["logits"] = torch.where((step >= 0)[..., None], spelled, logits)
        if output.get("loss") is not None:
            words = output["logits"].shape[-1]
            output["loss"] = model.loss_function(logits=output["logits"], labels=kwargs["labels"], vocab_size=words)  # type: ignore[operator]
        return output

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Replaces `generate`: closed queries are answered without decoding."""

        @wraps(original)
        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            query = Query.of(model, inspect.signature(original).bind(model, *args, **kwargs).arguments)
            closed_Q, answers = self._answered(original, model, query)
            self.counts.decided += len(closed_Q)
            self.counts.acted += int(closed_Q.sum())
            return answers

        return generate

    def _answered(self, original: Callable[..., Any], model: Any, query: Query) -> tuple[Tensor, Any]:
        """Returns which queries were closed, and the output of generate."""
        if self.all_steps and len(query.ids_QS) > 1 and int(query.setting("num_beams") or 1) > 1:
            return self._one_by_one(original, model, query)
        closed_Q, output = self._run(original, model, query, decided=False)
        if output is not None and not closed_Q.any():
            return closed_Q, output
        asked_Q = torch.ones_like(closed_Q)
        if output is None and not closed_Q.all():  # the prefill was stopped; the open queries go on alone
            asked_Q = ~closed_Q
            only = query.only(asked_Q, self.abstention.ids)
            closed_Q[asked_Q], output = self._run(original, model, only, decided=True)
        kept = None if output is None else query.sequences(output)[~closed_Q[asked_Q]]
        return closed_Q, query.answers(closed_Q, kept, self.abstention.ids)

    def _one_by_one(self, original: Callable[..., Any], model: Any, query: Query) -> tuple[Tensor, Any]:
        """Runs every query in its own call: in a batch, beams of a finished query are still extended and would be judged."""
        closed_Q, kept = torch.zeros(len(query.ids_QS), dtype=torch.bool, device=query.ids_QS.device), []
        for row in range(len(closed_Q)):
            only_Q = torch.arange(len(closed_Q), device=closed_Q.device) == row
            mine_Q, output = self._run(original, model, query.only(only_Q, self.abstention.ids), decided=False)
            closed_Q[row] = mine_Q[0]
            if not mine_Q[0]:
                kept.append(query.sequences(output))
        rest = query.joined(kept, self.abstention.ids) if kept else None
        return closed_Q, query.answers(closed_Q, rest, self.abstention.ids)

    def _run(self, original: Callable[..., Any], model: Any, query: Query, *, decided: bool) -> tuple[Tensor, Any]:
        """Returns which queries were closed, and the output, or None if all were or the prefill was stopped."""
        with self.session.generating(query.ids_QS) as generation:
            found = generation.storage[self] = Decisions(prompts_are_open=decided)
            try:
                output = original(model, **query.given)
                found.accept(query.sequences(output)[:, 0])
            except Closed:
                output = None
            nobody = torch.zeros(len(query.ids_QS), dtype=torch.bool, device=query.ids_QS.device)
            return nobody if found.closed_Q is None else found.closed_Q.to(nobody.device), output


def _places(here: ForwardPass, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns row and column of each position that logits were computed for."""
    index_N = here.predicting_N
    if logits.ndim == 2 and index_N is not None:
        return index_N // here.width, index_N % here.width
    if logits.ndim != 3 or logits.shape[0] != here.rows:
        raise ExpungeError(
            f"the model's output head gave logits of the shape {list(logits.shape)} for {here.rows} rows, so the guard cannot "
            "tell which row they belong to; call the guarded model itself, without code that replaces its head"
        )
    column = torch.arange(here.width - logits.shape[1], here.width, device=logits.device)
    return torch.arange(here.rows, device=logits.device)[:, None].expand(logits.shape[:2]), column.expand(logits.shape[:2])


@contextmanager
def abstaining(
    model: nn.Module, session: Session, abstention: Abstention, check: Literal["prompt", "all_steps"]
) -> Iterator[Reply]:
    """Context manager in which `Reply` controls the model's `generate` and logits."""
    root, reply = causal_model(model), Reply(session, abstention, check == "all_steps")
    with ExitStack() as stack:
        stack.enter_context(replaced(root, "generate", reply.generate))
        stack.callback(root.register_forward_hook(reply.spell, with_kwargs=True).remove)
        yield reply
