"""What becomes of a closed query: in `generate` the abstention in place of an answer, in scoring logits that spell it.

Shape suffixes: B rows of a call, Q queries of a `generate` (B = Q times beams or returned sequences), T positions, V vocabulary,
N labelled positions, S positions of a sequence.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from expunge.data.encode import Encoder
from expunge.errors import ExpungeError
from expunge.methods.guarding.calls import Call, Calls, prompts_of, replaced
from expunge.methods.guarding.numbering import Batch
from expunge.models.load import causal_model
from expunge.models.logprobs import PREDICTING

if TYPE_CHECKING:
    from transformers import GenerationConfig

GAP = 50.0
"""Nats between the abstention's next token and any other: finite, so that a mean or a perplexity of refused answers is."""

NEVER = 2**62
PER_ROW = (
    "inputs", "input_ids", "attention_mask", "position_ids", "token_type_ids", "negative_prompt_ids",
    "negative_prompt_attention_mask",
)  # fmt: skip
"""Arguments of `generate` that have one entry per query."""


@dataclass(frozen=True)
class Abstention:
    """The answer to a closed query as tokens, its end token last."""

    ids: tuple[int, ...]

    @classmethod
    def of(cls, encoder: Encoder, text: str) -> "Abstention":
        row = encoder.encode_answer("?", text)
        ids = row.ids[row.answer_start :]
        if encoder.tokenizer.unk_token_id in ids:
            raise ExpungeError(f"the abstention '{text}' has words that the model's tokenizer does not know; give another text")
        return cls(ids)


class Closed(Exception):
    """Leaves `generate` as soon as its prefill has shown that some queries are closed."""


@dataclass
class Reply:
    """Turns what the gate found into answers."""

    calls: Calls
    abstention: Abstention
    all_steps: bool
    closed: WeakKeyDictionary[Any, Tensor] = field(default_factory=WeakKeyDictionary)
    """By key-value cache, for decoding loops of one's own: from which position on each row is closed."""

    def decide(self, call: Call, inside_BT: Tensor) -> None:
        """Called by the deepest watched layer with the judged positions that are inside."""
        inside_BT, session = inside_BT.to(call.device), call.session
        if session is None:
            call.closed_from_B = self._closed_from(call, inside_BT)
        elif self.all_steps or not session.decided:  # the kept rows of a batch are not judged twice
            inside_Q = inside_BT.any(dim=1).view(session.queries, -1).any(dim=1)
            session.closed_Q = inside_Q if session.closed_Q is None else session.closed_Q | inside_Q
            if session.closed_Q.any() and (session.closed_Q.all() or (call.has_prompt_end and not session.decided)):
                raise Closed

    def _closed_from(self, call: Call, inside_BT: Tensor) -> Tensor:
        """The column from which on each row's logits spell the abstention."""
        inside_B = inside_BT.any(dim=1)
        if call.prompt_end_B is not None:
            return torch.where(inside_B, call.prompt_end_B, call.width)
        first_B = torch.where(inside_B, inside_BT.long().argmax(dim=1), call.width)
        before_B = self.closed.get(call.cache) if call.cache is not None else None
        if before_B is None:
            return first_B
        if len(before_B) != call.rows:
            raise ExpungeError(
                "the rows of a key-value cache were exchanged, so the guard cannot tell which are closed; call generate"
            )
        return torch.minimum(first_B, before_B - call.past)

    def spell(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Forward hook of the causal model: the logits of closed rows, from where they are closed."""
        from transformers.utils.generic import ModelOutput

        call = self.calls.current
        closed_from_B = call.closed_from_B
        if closed_from_B is None or not bool((closed_from_B < call.width).any()):
            return output
        if not isinstance(output, ModelOutput):
            raise ExpungeError("a guarded model cannot close a row of a plain tuple; call it with return_dict=True")
        if output.get("past_key_values") is not None:
            self.closed[output["past_key_values"]] = torch.where(closed_from_B < call.width, closed_from_B + call.past, NEVER)
        logits: Tensor = output["logits"]
        if logits.numel() == 0:
            return output
        row, column = _places(call, logits)
        step = column - closed_from_B[row]
        target = torch.tensor(self.abstention.ids, device=logits.device)[step.clamp(0, len(self.abstention.ids) - 1)]
        spelled = logits.new_full(logits.shape, -GAP).scatter_(-1, target[..., None], 0.0)
        output["logits"] = torch.where((step >= 0)[..., None], spelled, logits)
        if output.get("loss") is not None:
            words = output["logits"].shape[-1]
            output["loss"] = model.loss_function(logits=output["logits"], labels=kwargs["labels"], vocab_size=words)  # type: ignore[operator]
        return output

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`generate` that answers closed queries without decoding them."""

        @wraps(original)
        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            query = Query.of(model, inspect.signature(original).bind(model, *args, **kwargs).arguments)
            closed_Q, output = self._run(original, model, query, decided=False)
            if output is not None and not closed_Q.any():
                return output
            asked_Q = torch.ones_like(closed_Q)
            if output is None and not closed_Q.all():  # the prefill was stopped; the open queries go on alone
                asked_Q = ~closed_Q
                only = query.only(asked_Q, self.abstention)
                closed_Q[asked_Q], output = self._run(original, model, only, decided=True)
            kept = None
            if output is not None:
                sequences = output if isinstance(output, Tensor) else output["sequences"]
                kept = sequences.unflatten(0, (-1, query.returned))[~closed_Q[asked_Q]]
            return query.answers(closed_Q, kept, self.abstention)

        return generate

    def _run(self, original: Callable[..., Any], model: Any, query: "Query", *, decided: bool) -> tuple[Tensor, Any]:
        """Which queries were closed, and the output, or None where all were or the prefill was stopped."""
        with self.calls.new_session(query.ids_QS, decided=decided) as session:
            try:
                output = original(model, **query.given)
            except Closed:
                output = None
            nobody = torch.zeros(len(query.ids_QS), dtype=torch.bool, device=query.ids_QS.device)
            return nobody if session.closed_Q is None else session.closed_Q.to(nobody.device), output


@dataclass(frozen=True)
class Query:
    """The arguments of one call of `generate`."""

    given: dict[str, Any]
    ids_QS: Tensor
    defaults: "GenerationConfig"

    @classmethod
    def of(cls, model: Any, bound: Mapping[str, Any]) -> "Query":
        given = {name: value for name, value in bound.items() if name not in ("self", "kwargs")} | bound.get("kwargs", {})
        ids_QS = prompts_of((), given)
        query = cls(given, torch.empty(0, 0) if ids_QS is None else ids_QS, model.generation_config)
        if ids_QS is None or given.get("inputs_embeds") is not None:
            raise ExpungeError("a guarded model decides by the prompt's tokens; give generate its input_ids")
        if given.get("past_key_values") is not None or query.setting("prefill_chunk_size") is not None:
            raise ExpungeError(
                "a guarded model decides by the whole prompt in one prefill; call generate without cache and chunks"
            )
        return query

    def setting(self, name: str) -> Any:
        """As generate would see it: the argument, else its generation_config's value, else the model's."""
        config = self.given.get("generation_config")
        for value in (self.given.get(name), None if config is None else getattr(config, name), getattr(self.defaults, name)):
            if value is not None:
                return value
        return None

    @property
    def returned(self) -> int:
        return int(self.setting("num_return_sequences") or 1)

    @property
    def budget(self) -> int:
        """Tokens that an answer may have."""
        if self.setting("max_new_tokens") is not None:
            return int(self.setting("max_new_tokens"))
        longest = self.setting("max_length")
        return 20 if longest is None else max(0, int(longest) - self.ids_QS.shape[1])

    def pad(self, abstention: "Abstention") -> int:
        pad = self.setting("pad_token_id")
        return abstention.ids[-1] if pad is None else int(pad)

    def only(self, wanted_Q: Tensor, abstention: "Abstention") -> "Query":
        """The same call for some of the queries, the others closed; what looks at rows by number still sees all of them."""
        per_row = {name: value[wanted_Q] for name in PER_ROW if isinstance(value := self.given.get(name), Tensor)}
        whole = Batch(wanted_Q, self.ids_QS, abstention.ids, self.pad(abstention))
        return Query(self.given | per_row | whole.arguments(self.given), self.ids_QS[wanted_Q], self.defaults)

    def answers(self, closed_Q: Tensor, kept: Tensor | None, abstention: "Abstention") -> Any:
        """What generate gives back: kept sequences [open queries, returned, S]; for closed queries prompt and abstention."""
        ids = torch.tensor(abstention.ids[: self.budget], device=self.ids_QS.device)
        prompts, longest = self.ids_QS[closed_Q], self.ids_QS.shape[1] + len(ids)
        width = longest if kept is None else max(longest, kept.shape[-1])
        whole = self.ids_QS.new_full((len(closed_Q), self.returned, width), self.pad(abstention))
        whole[closed_Q, :, :longest] = torch.cat([prompts, ids.expand(len(prompts), -1)], dim=1)[:, None]
        if kept is not None:
            whole[~closed_Q, :, : kept.shape[-1]] = kept
        if self.given.get("streamer") is not None and kept is None:
            self.given["streamer"].put(ids.cpu())
            self.given["streamer"].end()
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        sequences = whole.flatten(0, 1)
        return GenerateDecoderOnlyOutput(sequences=cast(Any, sequences)) if self.setting("return_dict_in_generate") else sequences


def _places(call: Call, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each position that logits were computed for."""
    index_N = PREDICTING.get()
    if logits.ndim == 2 and index_N is not None:
        return index_N // call.width, index_N % call.width
    if logits.ndim != 3 or logits.shape[0] != call.rows:
        raise ExpungeError(f"logits of the shape {list(logits.shape)} for {call.rows} rows: the guard cannot tell whose they are")
    column = torch.arange(call.width - logits.shape[1], call.width, device=logits.device)
    return torch.arange(call.rows, device=logits.device)[:, None].expand(logits.shape[:2]), column.expand(logits.shape[:2])


@contextmanager
def abstaining(model: nn.Module, calls: Calls, abstention: Abstention, check: Literal["prompt", "all_steps"]) -> Iterator[Reply]:
    """Lets `Reply` act on the model's `generate` and on its logits."""
    root, reply = causal_model(model), Reply(calls, abstention, check == "all_steps")
    with ExitStack() as stack:
        stack.enter_context(replaced(root, "generate", reply.generate))
        stack.callback(root.register_forward_hook(reply.spell, with_kwargs=True).remove)
        yield reply
