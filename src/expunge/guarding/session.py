"""Tells guards about each forward pass: which tokens are real, where each row's prompt ends, which positions count.

A guard decides per row and needs this information with padding, caches, beams and in scoring. There are three sources:
- inside `generate`, from the whole sequences that every decoding strategy hands to `prepare_inputs_for_generation`, in the
  order of the cache's rows, which is correct for beams, samples and batches;
- in a labelled pass (`models.logprobs`), from the first position that predicts a label, which is the prompt's last token;
- in any other call the end of the prompt is unknown (`prompt_end_B` is None), and each guard documents what it does then.
A call of `model.forward` or of the model below the head (`model.model`) is such a pass too.

Shape suffixes: B rows, T positions of this call, S positions of the whole sequences so far.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from threading import local
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.guarding.forward_pass import ForwardPass, Generation, Prompts
from expunge.guarding.query import prompts_of, refuse_early_exit
from expunge.models.load import causal_model
from expunge.models.logprobs import PREDICTING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList


BeforePrefill = Callable[[Prompts, ForwardPass], None]
PAUSED: ContextVar[bool] = ContextVar("paused", default=False)


@contextmanager
def unguarded() -> Iterator[None]:
    """Context manager in which this thread's forward passes are run by a guard itself, for example by its gate, and are not
    guarded."""
    token = PAUSED.set(True)
    try:
        yield
    finally:
        PAUSED.reset(token)


ROW_SETTINGS: ContextVar[Sequence[object] | None] = ContextVar("row_settings", default=None)


@contextmanager
def rows_under(settings: Sequence[object] | None) -> Iterator[None]:
    """Context manager in which row b of this thread's forward passes is read under settings[b] of the guard, in the guard's own
    terms, instead of the attached one; None: under the attached one. One pass then serves several settings of a guard."""
    token = ROW_SETTINGS.set(settings)
    try:
        yield
    finally:
        ROW_SETTINGS.reset(token)


class Session:
    """The forward pass and the generation in progress in this thread, on one model."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None") -> None:
        self._local, self.tokenizer = local(), tokenizer
        self.before_prefill: list[BeforePrefill] = []
        """Called before each pass that reads a prompt: in `generate` the first one, in scoring every one, otherwise every one
        that does not continue a cache."""

    @property
    def is_paused(self) -> bool:
        """Returns whether this thread's passes are run by a guard itself."""
        return PAUSED.get()

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the causal model."""
        self._local.depth = self._depth + 1
        self.note(model, args, kwargs)

    def leave(self, *_: Any) -> None:
        """Forward hook of the causal model, called after an error too."""
        self._local.depth = max(0, self._depth - 1)

    def enter_below(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the model below the head, which may be called by itself."""
        if not self._depth:
            self.note(model, args, kwargs)

    @property
    def _depth(self) -> int:
        """Returns how many passes of the causal model are in progress in this thread: a gate may run one before another."""
        found: int = self._local.__dict__.get("depth", 0)
        return found

    @property
    def current(self) -> ForwardPass:
        found: ForwardPass = self._local.current
        return found

    @property
    def generation(self) -> Generation | None:
        return self._local.__dict__.get("generation")

    @contextmanager
    def generating(self, prompts: Tensor | None) -> Iterator[Generation]:
        """Notes that a call of `generate` on these token ids begins."""
        queries, width = prompts.shape if prompts is not None else (0, 0)
        outer, inner = self.generation, Generation(queries, width)
        self._local.generation = inner
        try:
            yield inner
        finally:
            self._local.generation = outer

    def note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes a pass with these arguments.

        Raises ExpungeError, if a guard decides by prompts, for embeddings instead of tokens, and for a cache that is not that
        of `generate`: what it holds, and whether the guard saw it, is unknown.
        """
        generation = self.generation
        if self.is_paused or (generation is not None and generation.left_alone):
            return
        given = {**_names(type(model), args), **kwargs} if args else kwargs
        ids_BT, mask_BS, cache = given.get("input_ids"), given.get("attention_mask"), given.get("past_key_values")
        shaped = given["inputs_embeds"] if ids_BT is None else ids_BT
        past = int(cache.get_seq_length()) if cache is not None and hasattr(cache, "get_seq_length") else 0
        mask_BS = mask_BS if isinstance(mask_BS, Tensor) and mask_BS.ndim == 2 else None
        rows, width = shaped.shape[:2]
        here = ForwardPass(ids_BT, mask_BS, rows, width, past, None, True, generation, cache, shaped.device)
        index_N = PREDICTING.get()
        first = past == 0
        if generation is not None and generation.announced and ids_BT is not None:
            assert generation.ids_BS is not None
            assert generation.prompt_end_B is not None
            generation.announced, first = False, generation.before_BS is None
            begin = generation.ids_BS.shape[1] - here.width
            here.ids_BS, here.mask_BS = generation.ids_BS, generation.mask_BS
            here.prompt_end_B, here.has_prompt_end = generation.prompt_end_B - begin, begin < generation.prompt_width
        elif index_N is not None:
            here.predicting_N = index_N
            end_B = torch.full((here.rows,), here.width, device=index_N.device)
            here.prompt_end_B = end_B.scatter_reduce(0, index_N // here.width, index_N % here.width, "amin")
        self._local.current = here
        if self.before_prefill and generation is None and (past or given.get("cache_params") is not None):
            raise ExpungeError(
                "a guarded model decides by the whole prompt; give it whole sequences without a cache, or call generate"
            )
        if first and self.before_prefill:
            if here.ids_BS is None:
                raise ExpungeError("a guarded model decides by the prompt's tokens; give it input_ids and not embeddings")
            prompts = Prompts(_prompt_ids(here), self.tokenizer)
            for decide in self.before_prefill:
                decide(prompts, here)


@contextmanager
def open_session(model: nn.Module, tokenizer: "PreTrainedTokenizerBase | None" = None) -> Iterator[Session]:
    """Context manager that keeps `session.current` up to date.

    tokenizer   for a gate that reads prompts as text

    Raises ExpungeError for continuous batching, and for drafts by the model's own first layers.
    """
    root, session = causal_model(model), Session(tokenizer)

    def prepare(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def prepare_inputs_for_generation(self: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            now = session.generation
            if now is not None and not now.left_alone:
                mask_BS = kwargs.get("attention_mask")
                now.before_BS, now.ids_BS, now.mask_BS, now.announced = now.ids_BS, input_ids, mask_BS, True
                if now.prompt_end_B is None:
                    now.prompt_width = now.prompt_width or input_ids.shape[1]
                    now.prompt_end_B = _last(mask_BS, input_ids, now.prompt_width)
            return original(self, input_ids, *args, **kwargs)

        return prepare_inputs_for_generation

    def generating(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
            refuse_early_exit(self, kwargs)
            if session.generation is not None:  # a guard around this one has begun it
                return original(self, *args, **kwargs)
            with session.generating(prompts_of(args, kwargs)):
                return original(self, *args, **kwargs)

        return generate

    def recording(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def _get_stopping_criteria(self: Any, *args: Any, **kwargs: Any) -> Any:
            return _recorded(original(self, *args, **kwargs), session)

        return _get_stopping_criteria

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
        stack.enter_context(replaced(root, "_get_stopping_criteria", recording))
        stack.enter_context(replaced(root, "generate", generating))
        stack.callback(root.register_forward_pre_hook(session.enter, with_kwargs=True).remove)
        stack.callback(root.register_forward_hook(session.leave, always_call=True).remove)
        if (below := root.base_model) is not root:
            stack.callback(below.register_forward_pre_hook(session.enter_below, with_kwargs=True).remove)
        yield session


def _recorded(criteria: "StoppingCriteriaList", session: Session) -> "StoppingCriteriaList":
    """Wraps the stopping criteria so that the session sees their answers."""
    made = _recording()(criteria)
    made.session = session
    found: StoppingCriteriaList = made
    return found


@cache
def _recording() -> Any:
    """Returns the class of such criteria, made once, since importing what it is derived from takes seconds."""
    from transformers import StoppingCriteriaList

    class Recorded(StoppingCriteriaList):
        session: Session

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            ended_B = super().__call__(input_ids, scores, **kwargs)
            if (now := self.session.generation) is not None and not now.left_alone:
                now.note_ended(input_ids, ended_B)
            return ended_B

    return Recorded


@contextmanager
def replaced(model: "PreTrainedModel", name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Replaces `model.name` by `wrap(the function before)` on this one model; bound to it, so that a deep copy gets its own."""
    before = model.__dict__.get(name)
    setattr(model, name, MethodType(wrap((before or getattr(model, name)).__func__), model))
    try:
        yield
    finally:
        if before is None:
            delattr(model, name)
        else:
            setattr(model, name, before)


def _names(cls: type[nn.Module], args: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(list(inspect.signature(cls.forward).parameters)[1:], args, strict=False))


def _prompt_ids(here: ForwardPass) -> tuple[tuple[int, ...], ...]:
    """Returns the tokens of each row's prompt, or of the whole row if the end of the prompt is unknown."""
    assert here.ids_BS is not None
    width = here.ids_BS.shape[1]
    ends = [width - 1] * here.rows if here.prompt_end_B is None else (here.prompt_end_B + here.begin).tolist()
    rows = here.ids_BS.tolist()
    masks = [[1] * width] * here.rows if here.mask_BS is None else here.mask_BS[:, -width:].tolist()
    return tuple(
        tuple(token for token, real in zip(ids[: end + 1], mask, strict=False) if real)
        for ids, mask, end in zip(rows, masks, ends, strict=True)
    )


def _last(mask_BS: Tensor | None, ids_BS: Tensor, width: int) -> Tensor:
    """Returns the column of each row's last token among the first `width`."""
    if mask_BS is None:
        return torch.full((ids_BS.shape[0],), width - 1, device=ids_BS.device)
    return width - 1 - mask_BS[:, :width].long().flip(1).argmax(dim=1)
