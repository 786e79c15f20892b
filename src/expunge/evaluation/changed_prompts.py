"""Reads prompts with changed embeddings in passes without padding, where the hooks of a guard could not tell prompts apart.

Shape suffixes: T tokens of a prompt, N tokens of the one row of a pass, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from expunge.models.load import causal_model


@runtime_checkable
class ChangedPrompt(Protocol):
    """Interface to how one prompt is read."""

    @property
    def length(self) -> int:
        """Returns the tokens of the prompt."""

    def embedded(self, embeddings_TD: Tensor) -> Tensor:
        """Returns what the model reads instead of the embeddings of the whole prompt."""


@contextmanager
def changed(model: nn.Module, prompts: Iterable[tuple[int, object]]) -> Iterator[None]:
    """Context manager for a pass over one row of tokens, [1, N], in which prompts are read with changed embeddings.

    prompts   first token of each in the row, and how it is read; None: as it is

    Raises TypeError for a setting that only an attached guard could apply.
    """
    found = [(start, _of(prompt)) for start, prompt in prompts if prompt is not None]
    if not found:
        yield
        return

    def change(_: nn.Module, args: tuple[Any, ...], embeddings_1ND: Tensor) -> Tensor:
        after_1ND = embeddings_1ND.clone()
        for start, prompt in found:
            place = slice(start, start + prompt.length)
            after_1ND[0, place] = prompt.embedded(embeddings_1ND[0, place])
        return after_1ND

    handle = causal_model(model).get_input_embeddings().register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def settings_of_rows(settings: Sequence[object]) -> Sequence[object]:
    """Returns settings for a pass over real rows, which an attached guard applies. Raises TypeError if it could not."""
    if any(isinstance(setting, ChangedPrompt) for setting in settings):
        raise TypeError("prompts with changed embeddings are read in packs only")
    return settings


def _of(prompt: object) -> ChangedPrompt:
    if not isinstance(prompt, ChangedPrompt):
        raise TypeError(f"a {type(prompt).__name__} is applied by an attached guard, which reads no packs")
    return prompt
