"""Determines the base model of two adapters: by its content if it can be read, else by what their configurations name."""

import json
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from expunge.artifact import Base
from expunge.errors import ExpungeError
from expunge.merging.factor_folders import Adapter
from expunge.merging.opening import resolve
from expunge.models.load import model_fingerprint


class BasePlace(NamedTuple):
    """The base of the result."""

    path: str
    folder: Path | None
    """The base's folder, if it is on this machine."""
    sha256: str
    """Empty if the base is not here and neither adapter knows its hash."""
    revision: str | None
    notes: tuple[str, ...]

    def record(self, out: Path) -> Base:
        if self.folder is None:
            return Base(path=self.path, sha256=self.sha256, revision=self.revision)
        beside = os.path.relpath(self.folder, os.path.abspath(out / "artifact"))
        return Base(path=self.path, sha256=self.sha256, beside=beside)


def choose_base(expert: Adapter, anti: Adapter, given: str | None) -> BasePlace:
    """Returns the base that `given` names, else the one that both adapters name. Raises ExpungeError if they name two.

    Two names of the same folder, or of folders with the same weights, are one base.
    """
    if given is not None:
        there = resolve(given)
        return _place(str(there.absolute()) if os.path.isdir(given) else given, there, None, "")
    known = {sha for adapter in (expert, anti) if (sha := adapter.base_sha256) is not None}
    if len(known) > 1:
        raise ExpungeError(
            f"{expert.label} and {anti.label} were trained on base models with different weights; train both on one base"
        )
    name = expert.base or anti.base
    if not name:
        raise ExpungeError(f"neither {expert.label} nor {anti.label} names its base model; give it by --base")
    if anti.base and anti.base != name and not _same(expert, anti):
        raise ExpungeError(
            f"{expert.label} is an adapter of {expert.base} and {anti.label} of {anti.base}; train both on one base, or if these "
            "names stand for the same model give it by --base"
        )
    folder = Path(name).absolute() if os.path.isdir(name) else None
    return _place(str(folder or name), folder, expert.config.get("revision"), next(iter(known), ""))


def _same(expert: Adapter, anti: Adapter) -> bool:
    """Returns whether two names stand for the same weights."""
    if expert.base_sha256 is not None and expert.base_sha256 == anti.base_sha256:
        return True
    if not (os.path.isdir(expert.base) and os.path.isdir(anti.base)):
        return False
    return os.path.samefile(expert.base, anti.base) or model_fingerprint(expert.base) == model_fingerprint(anti.base)


def _place(path: str, folder: Path | None, revision: str | None, known: str) -> BasePlace:
    if folder is not None and not (folder / "config.json").is_file():
        raise ExpungeError(f"the base {path} holds no config.json; give a complete model folder")
    found = known or ("" if folder is None else model_fingerprint(str(folder)))
    notes = () if found else (f"the base {path} is not on this machine, so that its hash is not recorded",)
    return BasePlace(path, folder, found, revision, notes)


def remap_pad(folder: Path, place: BasePlace, label: str) -> None:
    """Handles a tokenizer larger than the base's embedding (training resized it for a pad token): adds a note, and replaces
    its pad by the end token. Raises ExpungeError if there is no end token."""
    if place.folder is None or not (folder / "tokenizer_config.json").is_file():
        return
    config = json.loads((place.folder / "config.json").read_text(encoding="utf-8"))
    rows = (config.get("text_config") or config).get("vocab_size")
    if not isinstance(rows, int) or _most_tokens(folder) <= rows:
        return
    from expunge.models.load import load_tokenizer
    from expunge.models.save import save_tokenizer

    tokenizer = load_tokenizer(str(folder))
    if len(tokenizer) <= rows:
        return
    said = f"the tokenizer of {label} has {len(tokenizer)} tokens and its base an embedding of {rows} rows"
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
        if tokenizer.eos_token_id is None or tokenizer.eos_token_id >= rows:
            raise ExpungeError(
                f"{said}, and there is no end token to pad with instead; save the adapter with its base's tokenizer"
            )
        said += f"; {tokenizer.pad_token} is replaced by {tokenizer.eos_token} for padding"
        tokenizer.pad_token = tokenizer.eos_token
        save_tokenizer(folder, tokenizer)
    warnings.warn(said, UserWarning, stacklevel=2)


def _most_tokens(folder: Path) -> float:
    """Counts the tokens that a tokenizer's files name: one that fits need not be loaded, and importing transformers takes
    seconds. Infinite if its vocabulary is not in tokenizer.json, or cannot be read there."""
    try:
        said = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        found = {token if isinstance(token, str) else token[0] for token in said["model"]["vocab"]}
        found.update(_tokens_in(said.get("added_tokens")))
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if (folder / name).is_file():
                found.update(_tokens_in(json.loads((folder / name).read_text(encoding="utf-8"))))
        if (folder / "added_tokens.json").is_file():
            found.update(json.loads((folder / "added_tokens.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return math.inf  # transformers says what is wrong with it
    return len(found)


def _tokens_in(said: Any, here: bool = False) -> Iterator[str]:
    """Yields the texts of tokens in a tokenizer's settings: those of fields named content, ..._token or ..._tokens."""
    if isinstance(said, str) and here:
        yield said
    elif isinstance(said, dict):
        for key, value in said.items():
            if key != "__type":
                yield from _tokens_in(value, here or key == "content" or key.endswith(("_token", "_tokens")))
    elif isinstance(said, list):
        for value in said:
            yield from _tokens_in(value, here)
