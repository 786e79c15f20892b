"""What one forward pass is about: which of its tokens are real, where each row's prompt ends, what stands before each token.

A guard decides per row, so it has to know these under padding, caches, beams and scoring alike. It learns them in three ways:
- inside `generate`, from the whole sequences that every decoding strategy hands to `prepare_inputs_for_generation`, in the
  order of the cache's rows: this is right for beams, samples and batches without any state of our own;
- in a labelled pass (`models.logprobs`), from the first position that predicts a label, which is the prompt's last token;
- in any other call nothing says where a prompt ends (`prompt_end_B` is None), and each guard documents what it does then.

Shape suffixes: B rows, T positions of this call, S positions of the whole sequences so far.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, wraps
from threading import local
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.models.load import causal_model
from expunge.models.logprobs import PREDICTING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd 64-bit constants of splitmix64: the golden ratio and the two of its finalizer."""


@dataclass
class Session:
    """One call of `generate`."""

    ids_BS: Tensor | None = None
    mask_BS: Tensor | None = None
    """None: every position is a token."""
    prompt_end_B: Tensor | None = None
    """Index of each row's last prompt token, known from the first step on."""
    prompt_width: int = 0
    """Columns of the prompt, padding included."""
    queries: int = 0
    """Prompts that were given; each is one row, or as many as there are beams or returned sequences."""
    decided: bool = False
    """The prompts have been judged before, and are open."""
    closed_Q: Tensor | None = None
    """Which queries Key Space Detection has closed so far."""
    announced: bool = False
    """`ids_BS` is of the forward pass that comes next."""


@dataclass
class Call:
    """One forward pass."""

    ids_BS: Tensor | None
    """Whole sequences so far as far as they are known, this call's tokens last; None for embeddings."""
    mask_BS: Tensor | None
    rows: int
    width: int
    """T."""
    past: int
    """Positions in the cache before this call."""
    prompt_end_B: Tensor | None
    """Column of this call where each row's prompt ends; negative if in an earlier call, T or more if the row has no answer."""
    has_prompt_end: bool
    """Whether any prompt may end in this call; known without looking at the device."""
    session: Session | None
    cache: Any
    device: torch.device
    drawn: dict[int, Tensor] | None = None
    """Neuron Adjust's draws by layer, kept until the call is over."""
    inside: Tensor | None = None
    """Key Space Detection's findings in the layers so far, [B, T]."""
    closed_from_B: Tensor | None = None
    """From which column on each row is closed; T or more: not in this call."""

    @property
    def mask_BT(self) -> Tensor:
        """Which of this call's positions hold a token."""
        if self.mask_BS is None:
            return torch.ones(self.rows, self.width, dtype=torch.bool, device=self.device)
        return self.mask_BS[:, -self.width :].bool()

    @property
    def generated_BT(self) -> Tensor:
        """Which positions are the model's own: behind the prompt's end, or, where nobody says it, on top of a cache."""
        columns_T = torch.arange(self.width, device=self.device)
        if self.prompt_end_B is None:
            return (columns_T >= (0 if self.past else self.width)).expand(self.rows, -1)
        return columns_T > self.prompt_end_B[:, None]

    @cached_property
    def prefix_BT(self) -> Tensor:
        """A 64-bit hash of each token with all tokens before it in its row, and their number; padding is not seen.

        A polynomial hash, sum over s <= t of (token_s + 1) A^s mod 2^64 with s counted from the first token, then mixed.
        On top of a cache whose tokens nobody named (a decoding loop of one's own) only this call's tokens and the position count.
        """
        if self.mask_BS is None:
            before = 0 if self.ids_BS is not None and self.ids_BS.shape[1] > self.width else self.past
            seen = self.width if self.ids_BS is None else self.ids_BS.shape[1]
            position_BS = torch.arange(before, before + seen, device=self.device)[None]
        else:
            position_BS = (self.mask_BS.long().cumsum(dim=1) - 1).clamp_(min=0)
        if self.ids_BS is None:
            return mix(position_BS[:, -self.width :] * MULTIPLIERS[0]).expand(self.rows, -1)
        if position_BS.shape[1] > self.ids_BS.shape[1]:
            position_BS = position_BS[:, -self.ids_BS.shape[1] :]
        known = self.ids_BS.shape[1]
        term_BS = (self.ids_BS + 1) * powers(4096 * (1 + (self.past + known) // 4096), self.device)[position_BS]
        if self.mask_BS is not None:
            term_BS = term_BS * self.mask_BS[:, -known:]
        return mix(term_BS.cumsum(dim=1)[:, -self.width :] + position_BS[:, -self.width :] * MULTIPLIERS[0])


class Calls:
    """The forward pass that this thread is in."""

    def __init__(self) -> None:
        self._local = local()

    @property
    def current(self) -> Call:
        call: Call = self._local.call
        return call

    @property
    def session(self) -> Session | None:
        return self._local.__dict__.get("session")

    @contextmanager
    def new_session(self, prompts: Tensor | None, *, decided: bool = False) -> Iterator[Session]:
        """A call of `generate` on these token ids begins."""
        queries, width = prompts.shape if prompts is not None else (0, 0)
        outer, inner = self.session, Session(queries=queries, prompt_width=width, decided=decided)
        self._local.session = inner
        try:
            yield inner
        finally:
            self._local.session = outer

    def note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the causal model."""
        given = {**_names(type(model), args), **kwargs} if args else kwargs
        ids_BT, mask_BS, cache_ = given.get("input_ids"), given.get("attention_mask"), given.get("past_key_values")
        shaped = given["inputs_embeds"] if ids_BT is None else ids_BT
        past = int(cache_.get_seq_length()) if cache_ is not None else 0
        mask_BS = mask_BS if isinstance(mask_BS, Tensor) and mask_BS.ndim == 2 else None
        call = Call(ids_BT, mask_BS, shaped.shape[0], shaped.shape[1], past, None, True, self.session, cache_, shaped.device)
        session, index_N = self.session, PREDICTING.get()
        if session is not None and session.announced and ids_BT is not None:
            assert session.ids_BS is not None
            assert session.prompt_end_B is not None
            session.announced = False
            begin = session.ids_BS.shape[1] - call.width
            call.ids_BS, call.mask_BS = session.ids_BS, session.mask_BS
            call.prompt_end_B, call.has_prompt_end = session.prompt_end_B - begin, begin < session.prompt_width
        elif index_N is not None:
            end_B = torch.full((call.rows,), call.width, device=index_N.device)
            call.prompt_end_B = end_B.scatter_reduce(0, index_N // call.width, index_N % call.width, "amin")
        self._local.call = call


@contextmanager
def follow(model: nn.Module) -> Iterator[Calls]:
    """Keeps `calls.current` up to date while it lasts."""
    root, calls = causal_model(model), Calls()

    def prepare(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def prepare_inputs_for_generation(self: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            session = calls.session
            if session is not None:
                mask_BS = kwargs.get("attention_mask")
                session.ids_BS, session.mask_BS, session.announced = input_ids, mask_BS, True
                if session.prompt_end_B is None:
                    session.prompt_width = session.prompt_width or input_ids.shape[1]
                    session.prompt_end_B = _last(mask_BS, input_ids, session.prompt_width)
            return original(self, input_ids, *args, **kwargs)

        return prepare_inputs_for_generation

    def generating(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
            if calls.session is not None:  # a guard around this one has begun it
                return original(self, *args, **kwargs)
            with calls.new_session(prompts_of(args, kwargs)):
                return original(self, *args, **kwargs)

        return generate

    def refusing(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def init_continuous_batching(self: Any, *args: Any, **kwargs: Any) -> Any:
            raise ExpungeError(
                "continuous batching packs many queries into one row, where a guard cannot tell them apart; use generate"
            )

        return init_continuous_batching

    with ExitStack() as stack:
        stack.enter_context(replaced(root, "init_continuous_batching", refusing))
        stack.enter_context(replaced(root, "prepare_inputs_for_generation", prepare))
        stack.enter_context(replaced(root, "generate", generating))
        handle = root.register_forward_pre_hook(calls.note, with_kwargs=True)
        stack.callback(handle.remove)
        yield calls


@contextmanager
def replaced(model: "PreTrainedModel", name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """`model.name` is `wrap(the function before)` on this one model; bound to it, so that a deep copy gets its own."""
    before = model.__dict__.get(name)
    setattr(model, name, MethodType(wrap((before or getattr(model, name)).__func__), model))
    try:
        yield
    finally:
        if before is None:
            delattr(model, name)
        else:
            setattr(model, name, before)


def uniform(bits: Tensor) -> Tensor:
    """float32 in [0, 1), 24 bits, of int64 that were mixed before and then joined by exclusive or."""
    bits = bits * MULTIPLIERS[1]
    bits = (bits ^ (bits >> 32)) * MULTIPLIERS[2]
    return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24


def mix(bits: Tensor) -> Tensor:
    """splitmix64's finalizer on int64: every input bit moves every output bit. Shifts are made logical by their masks."""
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * MULTIPLIERS[1]
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * MULTIPLIERS[2]
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)


@cache
def powers(count: int, device: torch.device) -> Tensor:
    """A^0 ... A^(count - 1) mod 2^64, as int64."""
    values, power = [], 1
    for _ in range(count):
        values.append(power - 2**64 if power >= 2**63 else power)
        power = power * MULTIPLIERS[0] % 2**64
    return torch.tensor(values, device=device)


def _names(cls: type[nn.Module], args: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(list(inspect.signature(cls.forward).parameters)[1:], args, strict=False))


def prompts_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The token ids among the arguments of `generate`."""
    found: Tensor | None = args[0] if args else kwargs.get("inputs")
    return kwargs.get("input_ids") if found is None else found


def _last(mask_BS: Tensor | None, ids_BS: Tensor, width: int) -> Tensor:
    """Column of each row's last token among the first `width`."""
    if mask_BS is None:
        return torch.full((ids_BS.shape[0],), width - 1, device=ids_BS.device)
    return width - 1 - mask_BS[:, :width].long().flip(1).argmax(dim=1)
