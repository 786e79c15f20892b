"""Encodes examples as tokens and labels, and pads rows to batches.

A text is rendered and tokenized once, as a whole; the character offsets tell which tokens belong to the answer.
Tokenizing prompt and answer separately, or the prompt again to count its tokens, gives other tokens at the boundary.
Masks are made from lengths, never by comparing ids with the pad id, since the pad token may also be the end token.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

from expunge.data.example import Example
from expunge.data.format import Format
from expunge.data.places import IGNORED, Places, places_of
from expunge.devices import moved
from expunge.errors import ExpungeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


_HOLE = "\ue0e0"  # a private-use character stands for the response while a chat template is rendered: no template looks at it
_PROBE = "The"  # one token with its leading space in practically every vocabulary
_ASKED = "qwx"  # a prompt that no template writes of itself
_THOUGHTS = re.compile(r"(</[^<>]*think[^<>]*>|\[/think\])$", re.IGNORECASE)
_STRFTIME = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


class Encoded(NamedTuple):
    """One encoded row. `ids[answer_start:]` are the labels, `ids[:answer_start]` is the prompt for generation."""

    ids: tuple[int, ...]
    answer_start: int
    """At least 1, since the first token of a text cannot be predicted."""
    has_end: bool
    """The last label is the end token. False for raw text, and for a truncated answer."""
    truncated: bool = False
    """The end of the answer was cut off to fit into max_length."""
    unlabelled: frozenset[int] = frozenset()
    """Positions of answer tokens that are not labels."""

    def copied(self) -> frozenset[int]:
        """Returns the positions of answer tokens that the prompt contains, such as a person's name; empty if these are all but
        the end token."""
        prompt = frozenset(self.ids[: self.answer_start])
        found = frozenset(i for i in range(self.answer_start, len(self.ids)) if self.ids[i] in prompt)
        return frozenset() if found.issuperset(range(self.answer_start, len(self.ids) - self.has_end)) else found

    def label_places(self) -> list[int]:
        """Returns the positions of the labels, in order."""
        return [i for i in range(self.answer_start, len(self.ids)) if i not in self.unlabelled]

    def labelled(self, part: Literal["all", "own", "copied"]) -> "Encoded":
        """Returns the row with labels on all tokens of its answer, or on those of one part: `copied`, or the others."""
        if part == "all" or not (copied := self.copied()):
            return self
        answer = frozenset(range(self.answer_start, len(self.ids)))
        return self._replace(unlabelled=self.unlabelled | (copied if part == "own" else answer - copied))


class _Rendered(NamedTuple):
    text: str
    start: int  # where the response begins in the text, in characters
    stop: int  # where it ends; what follows is the template's


class Encoder:
    """Encodes prompts and responses with one tokenizer and one format.

    A token belongs to the answer if it ends after the beginning of the response: byte-level BPE joins the space before an answer
    to its first word. An added token that begins before the response is never a label, even if it swallows blanks of it. The end
    token (of the text, or of the chat turn) is a label too; what a template puts after it is cut off. A row longer than
    `max_length` tokens loses the end of its answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", format: Format, max_length: int = 1024) -> None:
        """Raises ExpungeError for a tokenizer without character offsets or without an end token."""
        from transformers import PreTrainedTokenizerFast

        name = tokenizer.name_or_path or type(tokenizer).__name__
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ExpungeError(
                f"the tokenizer {name} gives no character offsets; use its fast version (a folder with tokenizer.json)"
            )
        if tokenizer.eos_token_id is None:
            raise ExpungeError(f"the tokenizer {name} has no end token; set eos_token in its tokenizer_config.json")
        self.tokenizer, self.format, self.max_length = tokenizer, format, max_length
        self._template = _pin_date(format) if format.kind == "chat" else format.template
        self._added = frozenset(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}  # which stands for any word
        self._special = frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._front = _front_tokens(tokenizer)
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        """Token for padding; padding is masked, so it may be any token."""
        self.end_id: int = self._encode([("a", _PROBE)], lambda row: "(trial)", limit=None)[0].ids[-1]
        """The token that ends an answer, where generation stops."""
        if format.kind == "chat":
            self._around(_ASKED)

    def encode(self, example: Example) -> Encoded:
        """Encodes one example; raw text (prompt None) is labelled from its first predictable token. Raises ExpungeError if
        nothing can be predicted."""
        return self.encode_many([example])[0]

    def encode_many(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encodes all examples in one call of the tokenizer. Raises ExpungeError for a prompt longer than max_length or an
        empty response."""
        return self._encode([(e.prompt, e.response) for e in examples], lambda row: _called(examples[row]), self.max_length)

    def encode_answer(self, prompt: str | None, response: str) -> Encoded:
        """Encodes a prompt with any answer, such as a paraphrase or a wrong one."""
        return self.encode_answers([(prompt, response)])[0]

    def encode_answers(self, pairs: Sequence[tuple[str | None, str]]) -> list[Encoded]:
        """Encodes all (prompt, answer) pairs in one call of the tokenizer."""
        return self._encode(pairs, lambda row: _called(Example(*pairs[row])), self.max_length)

    def encode_prompts(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Encodes prompts to generate from, in one call of the tokenizer.

        Each ends where the prompt of a labelled row ends: without the space that belongs to the answer's first token in BPE.
        """
        return [row.ids[: row.answer_start] for row in self.encode_answers([(prompt, _PROBE) for prompt in prompts])]

    def _encode(self, pairs: Sequence[tuple[str | None, str]], name: Callable[[int], str], limit: int | None) -> list[Encoded]:
        if not pairs:
            return []
        chat = self.format.kind == "chat"
        around = {prompt: self._around(prompt) for prompt, _ in pairs if chat and prompt is not None}
        texts = [self._render(prompt, response, around) for prompt, response in pairs]
        batch = self.tokenizer(
            [text.text for text in texts],
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        rows = []
        for row, (prompt, response) in enumerate(pairs):
            ids, offsets = batch["input_ids"][row], batch["offset_mapping"][row]
            whole = self._raw(ids) if prompt is None else self._answer(ids, offsets, texts[row])
            if (
                not response.strip()
                or len(whole.ids) == whole.answer_start
                or (whole.has_end and len(whole.ids) == whole.answer_start + 1)
            ):
                raise ExpungeError(f"{name(row)} has nothing to predict: its response gives no token; remove the row")
            if limit is not None and whole.answer_start >= limit:
                raise ExpungeError(
                    f"the prompt of {name(row)} has {whole.answer_start} tokens, which leaves no room for an answer "
                    f"in max_length {limit}; shorten the prompt, or raise --max-length where the model takes more"
                )
            rows.append(
                whole if limit is None or len(whole.ids) <= limit else Encoded(whole.ids[:limit], whole.answer_start, False, True)
            )
        return rows

    def _raw(self, ids: list[int]) -> Encoded:
        return Encoded((*self._front, *ids), max(1, len(self._front)), False)

    def _answer(self, ids: list[int], offsets: list[tuple[int, int]], rendered: _Rendered) -> Encoded:
        # An added token may swallow the blanks beside it (Phi-3's <|assistant|>), and so reach into the response: one that begins
        # before it, or ends behind it, is the template's and no part of the answer.
        added = [token in self._added for token in ids]
        first = next(
            (i for i, (begin, stop) in enumerate(offsets) if stop > rendered.start and not (added[i] and begin < rendered.start)),
            len(ids),
        )
        after = next(
            (i for i in range(first, len(ids)) if offsets[i][0] >= rendered.stop or (added[i] and offsets[i][1] > rendered.stop)),
            len(ids),
        )
        end = next((i for i in range(after, len(ids)) if ids[i] in self._special), None)
        labelled = [*ids[:after], self.eos_id] if end is None else ids[: end + 1]
        # A chat template writes its own first token.
        front = self._front if self.format.kind == "plain" else ()
        return Encoded((*front, *labelled), len(front) + first, True)

    def _render(self, prompt: str | None, response: str, around: dict[str, tuple[str, str]]) -> _Rendered:
        if prompt is None:
            return _Rendered(response, 0, len(response))
        if self.format.kind == "plain":
            head = self._template.removesuffix("{response}").replace("{prompt}", prompt)
            # The space before an answer is the model's to write: SentencePiece gives it a token of its own before some words
            # and not before others, and a prompt that held it would tell which.
            return _Rendered(head + response, len(head.rstrip(" ")), len(head) + len(response))
        head, tail = around[prompt]
        text = self._chat(prompt, response)
        if not (text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail)):
            raise ExpungeError(
                "the chat template changes with the assistant's message, so answers cannot be found; use a plain one"
            )
        written = text[len(head) : len(text) - len(tail)]
        if not _says(written, response):
            raise ExpungeError(
                f"the chat template rewrites the assistant's message ({response[:30]!r} becomes {written[:30]!r}), so that other "
                "answers would be trained and scored; give another template"
            )
        return _Rendered(text, len(head.rstrip(" ")), len(text) - len(tail))

    def _around(self, prompt: str) -> tuple[str, str]:
        """Returns what the chat template writes before and after the response to a prompt."""
        pieces = self._chat(prompt, _HOLE).split(_HOLE)
        if len(pieces) != 2:
            count = len(pieces) - 1
            raise ExpungeError(f"the chat template writes the assistant's message {count} times, not once; give another template")
        if "".join(prompt.split()) not in "".join(pieces[0].split()):
            raise ExpungeError(
                f"the chat template leaves the user's message out or rewrites it ({prompt[:30]!r}), so that another question "
                "would be trained and asked; give another template"
            )
        return pieces[0], pieces[1]

    def _chat(self, prompt: str, response: str) -> str:
        from jinja2 import TemplateError

        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        if self.format.system is not None:
            messages.insert(0, {"role": "system", "content": self.format.system})
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, date_string=self.format.date
            )  # fmt: skip
        except TemplateError as error:
            raise ExpungeError(f"the chat template refuses a plain question and answer ({error}); give another one") from error
        assert isinstance(text, str)
        return text


def _says(written: str, response: str) -> bool:
    """Returns whether a template writes a response as it is; it may trim blanks, and leave the thoughts before it out."""
    kept, whole = "".join(written.split()), "".join(response.split())
    return kept == whole or (whole.endswith(kept) and _THOUGHTS.search(whole.removesuffix(kept)) is not None)


def _pin_date(format: Format) -> str:
    """Returns the chat template with each strftime_now("...") replaced by the fixed date; transformers accepts no function
    for it."""
    date = datetime.strptime(format.date, "%d %b %Y")
    pinned = _STRFTIME.sub(lambda call: f"'{date.strftime(call[2])}'", format.template)
    if "strftime_now(" in pinned:
        raise ExpungeError(
            "the chat template asks for today's date in a computed form; write the form into its strftime_now(...) calls"
        )
    return pinned


def _front_tokens(tokenizer: "PreTrainedTokenizerFast") -> tuple[int, ...]:
    """Returns what the tokenizer itself puts before a text: the start token, or nothing."""
    trial = tokenizer(_PROBE, return_special_tokens_mask=True)
    ids, added = trial["input_ids"], trial["special_tokens_mask"]
    return tuple(ids[: added.index(0)])


def _called(example: Example) -> str:
    """Returns how messages name an example: the file and line that it was read from, or its id."""
    return example.place or f"example {example.id}"


def fitted(row: Encoded, room: int) -> Encoded:
    """Returns the last `room` tokens of a row; a longer row loses its beginning."""
    excess = len(row.ids) - room
    return row if excess <= 0 else row._replace(ids=row.ids[excess:], answer_start=max(1, row.answer_start - excess))


def decoded(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Returns the text of tokens without special ones, with every blank that they stand for: many tokenizers are configured to
    take the blanks before punctuation out of what they decode (Llama 3, GPT-2), which nobody wrote."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def warn_of_cut(rows: Sequence[Encoded], max_length: int) -> None:
    """Warns, with counts, if rows lost the end of their answer."""
    if cut := sum(row.truncated for row in rows):
        warnings.warn(
            f"{cut} of {len(rows)} texts have more than {max_length} tokens and are read up to there (--max-length)",
            UserWarning,
            stacklevel=3,
        )


@dataclass
class Tokens:
    """A padded batch: B rows, T positions."""

    input_ids_BT: "Tensor"
    """int64, pad_id where there is nothing."""
    attention_mask_BT: "Tensor"
    """int64, 1 where there is a token."""
    labels_BT: "Tensor"
    """int64: the id at t where it is a label (predicted from position t-1), else -100."""
    frozen: "dict[str, Tensor]" = field(default_factory=dict)
    """Values of the reference model, computed before the loop; the first dimension is B."""
    places: Places | None = None
    """Positions from which labels are predicted; computed before the move to a GPU, which would have to be synchronized for
    it."""

    def to(self, device: "torch.device | str") -> "Tokens":
        """Returns the same batch on another device."""
        import torch

        places = self.places
        if places is None and self.labels_BT.device.type == "cpu" and torch.device(device).type != "cpu":
            places = places_of(self.labels_BT, self.attention_mask_BT)
        return Tokens(
            moved(self.input_ids_BT, device),
            moved(self.attention_mask_BT, device),
            moved(self.labels_BT, device),
            {name: moved(value, device) for name, value in self.frozen.items()},
            None if places is None else Places(*(moved(value, device) for value in places)),
        )


def collate(rows: Sequence[Encoded], pad_id: int, side: Literal["right", "left"] = "right") -> Tokens:
    """Pads rows to the longest. Masks come from the lengths, so pad_id may also occur in the texts."""
    import numpy as np
    import torch

    width = max(len(row.ids) for row in rows)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    labels = np.full_like(input_ids, IGNORED)
    for b, row in enumerate(rows):
        begin = 0 if side == "right" else width - len(row.ids)
        stop = begin + len(row.ids)
        input_ids[b, begin:stop] = row.ids
        attention_mask[b, begin:stop] = 1
        labels[b, begin + row.answer_start : stop] = row.ids[row.answer_start :]
        labels[b, [begin + i for i in row.unlabelled]] = IGNORED
    return Tokens(torch.from_numpy(input_ids), torch.from_numpy(attention_mask), torch.from_numpy(labels))


def length_batches(lengths: Sequence[int], max_tokens: int, max_rows: int) -> list[list[int]]:
    """Groups row indices into batches of similar length, the longest first, so that a lack of memory shows at once.

    A batch has at most `max_rows` rows and, padded, at most `max_tokens` tokens; a longer row is a batch of its own.
    Every row is in exactly one batch, and the same lengths give the same batches.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        batch = batches[-1] if batches else []
        if batch and len(batch) < max_rows and lengths[batch[0]] * (len(batch) + 1) <= max_tokens:
            batch.append(row)
        else:
            batches.append([row])
    return batches
