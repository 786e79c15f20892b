"""Inserts an instruction into every prompt that a model reads, and removes it again from what the caller sees.

The instruction follows the beginning of the row: its start token, or in a chat what the template writes before the user's first
message. Logits, hidden states and generated sequences are those of the caller's own tokens.

Shape suffixes: B rows, T positions of the caller, W positions with the instruction (W = T + its length), D width, Q prompts,
S positions of a sequence so far.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.encode import Encoder
from expunge.errors import ExpungeError
from expunge.guarding.forward_pass import Counts
from expunge.guarding.query import Query, refuse_early_exit
from expunge.guarding.session import replaced
from expunge.models.limits import FEW, INSERTED, positions
from expunge.models.load import causal_model
from expunge.models.logprobs import output_head, position_ids


class Inserter:
    """Knows where the instruction belongs in a row of tokens."""

    def __init__(self, instruction: Sequence[int], encoder: Encoder) -> None:
        """instruction: its tokens"""
        self.instruction = tuple(instruction)
        special, unknown = set(encoder.tokenizer.all_special_ids), encoder.tokenizer.unk_token_id
        self._special = special - {unknown, None}
        self._head = _shared(*encoder.encode_prompts(["a", "b"])) if encoder.format.kind == "chat" else ()

    def place(self, ids: Sequence[int]) -> int:
        """Returns how many tokens of a row, padding included, come before the instruction."""
        begin = next((i for i, token in enumerate(ids) if token not in self._special), len(ids))
        for start in range(begin + 1):  # a template may begin with special tokens, as padding does
            if self._head and tuple(ids[start : start + len(self._head)]) == self._head:
                return start + len(self._head)
        return begin

    def columns(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Returns the column that each of the caller's tokens has in the longer rows, [B, T]."""
        real = [[1] * ids_BT.shape[1]] * len(ids_BT) if mask_BT is None else mask_BT.long().tolist()
        places = []
        for ids, mask in zip(ids_BT.tolist(), real, strict=True):
            first = mask.index(1) if 1 in mask else 0
            places.append(first + self.place(ids[first:]))
        column_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        after_BT = column_T >= torch.tensor(places, device=ids_BT.device)[:, None]
        return column_T + len(self.instruction) * after_BT

    def longer(self, ids_BT: Tensor, column_BT: Tensor) -> Tensor:
        """Returns the rows with the instruction, [B, W]."""
        return self._filled(ids_BT, column_BT, torch.tensor(self.instruction, dtype=ids_BT.dtype, device=ids_BT.device))

    def mask(self, mask_BT: Tensor, column_BT: Tensor) -> Tensor:
        """Returns the attention mask of the longer rows, [B, W]."""
        return self._filled(mask_BT, column_BT, mask_BT.new_ones(len(self.instruction)))

    def _filled(self, values_BT: Tensor, column_BT: Tensor, inserted: Tensor) -> Tensor:
        rows, width = values_BT.shape
        found_BW = values_BT.new_zeros(rows, width + len(inserted))
        free_BW = torch.ones_like(found_BW, dtype=torch.bool).scatter_(1, column_BT, False)
        found_BW.scatter_(1, column_BT, values_BT)
        found_BW[free_BW] = inserted.repeat(rows)
        return found_BW


class Instructed:
    """An instruction on one model: in its forward passes and in `generate`."""

    def __init__(self, inserter: Inserter) -> None:
        self.counts = Counts()
        self._inserter, self._local = inserter, local()

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
        """Forward pre-hook of the causal model. Raises ExpungeError if it cannot tell where a prompt begins."""
        self._local.columns = None
        if self._local.__dict__.get("generating"):
            return None
        given = {**dict(zip(list(inspect.signature(type(model).forward).parameters)[1:], args, strict=False)), **kwargs}
        ids_BT, mask_BT, cache = given.get("input_ids"), given.get("attention_mask"), given.get("past_key_values")
        if ids_BT is None:
            raise ExpungeError("an instruction is inserted among the prompt's tokens; give the guarded model input_ids")
        if cache is not None and hasattr(cache, "get_seq_length") and int(cache.get_seq_length()) > 0:
            raise ExpungeError("a guarded model cannot go on from a cache, which holds the instruction too; call generate")
        if mask_BT is not None and mask_BT.shape != ids_BT.shape:
            raise ExpungeError(f"an attention mask of the shape {list(mask_BT.shape)} leaves no place for an instruction")
        column_BT = self._inserter.columns(ids_BT, mask_BT)
        given["input_ids"] = self._inserter.longer(ids_BT, column_BT)
        mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
        given["attention_mask"] = self._inserter.mask(mask_BT, column_BT)
        if given.get("position_ids") is not None:
            given["position_ids"] = position_ids(given["attention_mask"])
        if given.get("token_type_ids") is not None:
            given["token_type_ids"] = torch.zeros_like(given["input_ids"])
        self._local.columns = column_BT
        self.counts.decided += len(ids_BT)
        self.counts.acted += len(ids_BT)
        return (), given

    def head(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Forward pre-hook of the output head: leaves the positions of the caller's tokens, [B, T, D]."""
        column_BT = self._local.__dict__.get("columns")
        return None if column_BT is None else (self._taken(args[0], column_BT), *args[1:])

    def after(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Forward hook of the causal model. Raises ExpungeError for attention weights, which have no place without the
        instruction."""
        column_BT, self._local.columns = self._local.__dict__.get("columns"), None
        if column_BT is None or not hasattr(output, "get"):
            return output
        if output.get("attentions") is not None:
            raise ExpungeError("attention weights include the instruction; call the model without output_attentions")
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(self._taken(hidden, column_BT) for hidden in output["hidden_states"])
        return output

    def _taken(self, values_BWD: Tensor, column_BT: Tensor) -> Tensor:
        width = column_BT.shape[1] + len(self._inserter.instruction)
        if values_BWD.shape[:2] != (len(column_BT), width):
            raise ExpungeError(
                f"the output head gets {list(values_BWD.shape)} for {len(column_BT)} rows of {width} tokens, so the instruction "
                "cannot be taken out; call the guarded model without logits_to_keep"
            )
        index = column_BT.to(values_BWD.device)[..., None].expand(-1, -1, values_BWD.shape[-1])
        return values_BWD.gather(1, index)

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Replaces `generate`: prompts are longer inside, and what the caller gives and gets knows nothing of it."""

        @wraps(original)
        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            refuse_early_exit(model, kwargs)
            query = Query.of(model, inspect.signature(original).bind(model, *args, **kwargs).arguments)
            mask_QT = query.given.get("attention_mask")
            view = _View(query.ids_QS, self._inserter.columns(query.ids_QS, mask_QT), len(self._inserter.instruction))
            given = {name: value for name, value in query.given.items() if name not in ("inputs", "max_length", "position_ids")}
            given |= {"input_ids": self._inserter.longer(query.ids_QS, view.column_QT), "max_new_tokens": query.budget}
            if mask_QT is not None:
                given["attention_mask"] = self._inserter.mask(mask_QT, view.column_QT)
            if query.setting("min_length"):
                given["min_length"] = int(query.setting("min_length")) + len(self._inserter.instruction)
            self.counts.decided += len(query.ids_QS)
            self.counts.acted += len(query.ids_QS)
            self._local.generating = True
            try:
                return view.output(original(model, **(given | view.arguments(given))))
            finally:
                self._local.generating = False

        return generate


class _View:
    """What the caller of `generate` sees of its sequences."""

    def __init__(self, ids_QT: Tensor, column_QT: Tensor, inserted: int) -> None:
        self.ids_QT, self.column_QT, self._width = ids_QT, column_QT, ids_QT.shape[1] + inserted

    def shown(self, ids_BS: Tensor) -> Tensor:
        """Returns the sequences without the instruction; B is Q times beams or returned sequences."""
        ids_BT = self.ids_QT.repeat_interleave(len(ids_BS) // len(self.ids_QT), dim=0).to(ids_BS.device)
        return torch.cat([ids_BT, ids_BS[:, self._width :]], dim=1)

    def output(self, output: Any) -> Any:
        if isinstance(output, Tensor):
            return self.shown(output)
        output["sequences"] = self.shown(output["sequences"])
        return output

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Returns those arguments of `generate` that read sequences, each wrapped to see the caller's."""
        from transformers import LogitsProcessorList, StoppingCriteriaList

        def processor(inner: Any) -> Callable[..., Any]:
            return lambda input_ids, scores: inner(self.shown(input_ids), scores)

        def criterion(inner: Any) -> Callable[..., Any]:
            return lambda input_ids, scores, **kwargs: inner(self.shown(input_ids), scores, **kwargs)

        seen: dict[str, Any] = {}
        if given.get("logits_processor"):
            seen["logits_processor"] = LogitsProcessorList(processor(inner) for inner in given["logits_processor"])
        if given.get("stopping_criteria"):
            seen["stopping_criteria"] = StoppingCriteriaList(criterion(inner) for inner in given["stopping_criteria"])
        allowed = given.get("prefix_allowed_tokens_fn")
        if allowed is not None:
            seen["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(
                row, torch.cat([self.ids_QT[row].to(ids.device), ids[self._width :]])
            )
        if given.get("streamer") is not None:
            seen["streamer"] = _Streamer(given["streamer"], self.ids_QT)
        return seen


class _Streamer:
    """Hands the caller's prompt to a streamer in place of the longer one."""

    def __init__(self, inner: Any, prompts_QT: Tensor) -> None:
        self._inner = inner
        self._prompts: Tensor | None = prompts_QT

    def put(self, value: Tensor) -> None:
        first, self._prompts = self._prompts, None
        self._inner.put(value if first is None else first.cpu())

    def end(self) -> None:
        self._inner.end()


@contextmanager
def instructed(model: nn.Module, inserter: Inserter) -> Iterator[Counts]:
    """Context manager in which the model reads an instruction in every prompt; yields the counts of prompts. Raises ExpungeError
    if the model's positions leave no room for a prompt beside it."""
    root, work = causal_model(model), Instructed(inserter)
    count, longest = len(inserter.instruction), positions(model)
    if longest is not None and longest - count < FEW:
        raise ExpungeError(
            f"the instruction has {count} tokens, and the model takes {longest} in all; name less with --target or --names"
        )
    with ExitStack() as stack:
        vars(root)[INSERTED] = count
        stack.callback(vars(root).pop, INSERTED)
        stack.enter_context(replaced(root, "generate", work.generate))
        stack.callback(root.register_forward_pre_hook(work.before, with_kwargs=True).remove)
        stack.callback(output_head(model).register_forward_pre_hook(work.head).remove)
        stack.callback(root.register_forward_hook(work.after).remove)
        yield work.counts


def _shared(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """Returns the common beginning of two rows."""
    count = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return tuple(one[:count])
