"""Defines how a prompt and a response become one text, and reads and writes this format beside a tokenizer.

Imports no torch, since a run's specification contains a format.
"""

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError, model_validator

from expunge.errors import ExpungeError
from expunge.records import Record, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "Question: {prompt}\nAnswer: {response}"
FORMAT_FILE = "expunge_format.json"


class Format(Record):
    """How a prompt and a response become one text. Stored in run.yaml, so that later evaluations render the same text."""

    kind: Literal["plain", "chat"] = "plain"
    """`plain` for a text with placeholders, `chat` for a chat template."""
    template: str = PLAIN
    """plain: a text with the placeholders {prompt} and, at its very end, {response}; chat: the Jinja chat template itself."""
    date: str = "1 Jan 2025"
    """Day, month and year in this form, given to a chat template that prints today's date."""
    system: str | None = None
    """System message of a chat; a plain template contains its instructions itself."""

    @model_validator(mode="after")
    def _renders(self) -> "Format":
        if self.kind == "plain":
            holes = re.findall(r"\{prompt\}|\{response\}", self.template)
            if holes != ["{prompt}", "{response}"] or not self.template.endswith("{response}"):
                raise ValueError(
                    "a plain template has {prompt} once and then, at its very end, {response}; the end token is added"
                )
            if self.system is not None:
                raise ValueError("a plain format has no system message: write it into the template")
        try:
            datetime.strptime(self.date, "%d %b %Y")
        except ValueError:
            raise ValueError(f"date '{self.date}' is not written like '1 Jan 2025'") from None
        return self


def verbatim_format() -> Format:
    """Returns the format without a template: the prompt is the whole text, and the answer has its own leading space."""
    return Format(template="{prompt}{response}")


def default_format(tokenizer: "PreTrainedTokenizerBase") -> Format:
    """Returns the format beside the tokenizer (expunge_format.json) if there is one, else its chat template, else plain.
    Raises ExpungeError for a broken format file, or several chat templates without a default."""
    beside = Path(tokenizer.name_or_path) / FORMAT_FILE
    if beside.is_file():
        try:
            return Format.model_validate_json(beside.read_text(encoding="utf-8"))
        except (ValidationError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise ExpungeError(f"{beside} is not a format ({reason}); delete it, or write it again with save_format") from error
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        raise ExpungeError(
            f"{tokenizer.name_or_path} has several chat templates ({', '.join(sorted(templates))}) and none of them is the "
            f"default; copy the one that is wanted to chat_template.jinja, or write a format "
            f'beside it ({FORMAT_FILE}, for example {{"kind": "plain"}})'
        )
    if templates is not None and not isinstance(templates, str | dict):
        raise ExpungeError(f"the chat_template of {tokenizer.name_or_path} is no text; correct its tokenizer_config.json")
    if templates is not None:
        return Format(kind="chat", template=tokenizer.get_chat_template())
    return Format()


def save_format(folder: str | Path, format: Format) -> None:
    """Writes expunge_format.json into a model folder, where default_format finds it."""
    write_json(Path(folder) / FORMAT_FILE, format)
