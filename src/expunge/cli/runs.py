"""Parses the run of `unlearn` and `finetune`: a YAML file, overridden by flags."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import BaseModel, ConfigDict

from expunge.cli.flags import check_known, parse, value_of
from expunge.described import Described
from expunge.errors import ExpungeError, Interrupted
from expunge.folders import resume_command, unfinished
from expunge.recipes import recipe, recipes_folder
from expunge.records import Inputs
from expunge.spec import build, read_yaml

Value = TypeVar("Value", bound=BaseModel)


class Folder(Described):
    """The folder of the run."""

    model_config = ConfigDict(frozen=True)

    out: str
    """Folder of the run; it must not exist, unless --resume or --overwrite is given."""
    resume: bool = False
    """Go on with a run that was killed: `--resume --out RUN` is enough, the rest is read from its run.yaml."""
    overwrite: bool = False
    """Replace a run; its artifact stays until the new one is complete."""
    no_check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Skip the self-check, which measures a few rows before and after."""
    config: str | None = None
    """Start from this YAML file, or from a recipe that comes with expunge (`lab/npo`); flags override it."""


def parse_run(
    flags: type[BaseModel], cls: type[Value], program: str, words: Sequence[str], fixed: dict[str, Any], *, prefixes: bool = False
) -> tuple[Value, Folder]:
    """Returns (run, folder). `flags` is `cls` with a field `folder`; `fixed` is given by the words before the flags."""
    check_known(flags, program, words, prefixes=prefixes)
    plain = _length_by_words(said_in_file(words, program.split()[1]), words) | fixed
    default = _with_missing(flags, plain)
    value = parse(flags, program, words, default, prefixes=prefixes)
    folder = value.folder  # type: ignore[attr-defined]
    if folder.resume and folder.config is None:
        folder = folder.model_copy(update={"out": _return_to_its_place(folder.out)})
    merged = value.model_dump(mode="json", exclude={"folder"})
    return build(cls, merged, program), folder


@contextmanager
def going_on(out: Path) -> Iterator[None]:
    """Prints after Ctrl-C the command that resumes the run in `out`."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(unfinished(out) or f"nothing was written to {out}") from stop


def said_in_file(words: Sequence[str], command: str) -> dict[str, Any]:
    """Returns the fields in a file: the one after --config, or with --resume the run.yaml of the run."""
    found = _config(words)
    out = value_of(words, "--out")
    if "--resume" not in words or value_of(words, "--config") is not None or out is None:
        return found
    if not (Path(out) / "run.yaml").is_file():
        if len(words) <= 3:
            raise ExpungeError(f"there is no run in {out} to go on with (it holds no run.yaml); check --out")
        return found
    found = read_yaml(Path(out) / "run.yaml")
    if command != ("unlearn" if "method" in found else "finetune"):
        raise ExpungeError(f"{out} is a run of another command; go on with: {resume_command(Path(out))}")
    return found


def _length_by_words(plain: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Removes `steps` of the file if the flags give `--epochs`, since steps take precedence over epochs."""
    training = plain.get("training")
    said = {name for name in ("--steps", "--epochs") for word in words if word.partition("=")[0] == name}
    if said != {"--epochs"} or not isinstance(training, dict):
        return plain
    return plain | {"training": {name: value for name, value in training.items() if name != "steps"}}


def _return_to_its_place(out: str) -> str:
    """Changes to the directory that the run was begun in, where relative paths in run.yaml start; returns the path of `out`
    from there."""
    try:
        place = Inputs.model_validate_json((Path(out) / "inputs.json").read_text(encoding="utf-8")).folder
    except (OSError, ValueError):
        return out
    if not os.path.isdir(place) or os.path.samefile(place, "."):
        return out
    absolute = os.path.abspath(out)
    os.chdir(place)
    return absolute


def _config(words: Sequence[str]) -> dict[str, Any]:
    """Returns the file or recipe after --config, if there is one."""
    for i, word in enumerate(words):
        if word == "--config":
            if i + 1 == len(words):
                raise ExpungeError("--config needs the path of a YAML file after it")
            return _settings(words[i + 1])
        if word.startswith("--config="):
            return _settings(word.removeprefix("--config="))
    return {}


def _settings(said: str) -> dict[str, Any]:
    """Reads a YAML file, or else a recipe that comes with expunge, by its name (`lab/npo`, `recipes/lab/npo.yaml`)."""
    name = said.removeprefix("recipes/").removesuffix(".yaml")
    if not Path(said).exists() and (recipes_folder() / f"{name}.yaml").is_file():
        return recipe(name)
    return read_yaml(Path(said))


def _with_missing(flags: type[BaseModel], plain: dict[str, Any]) -> BaseModel:
    """Makes an instance for tyro to start from: the file's fields, defaults, and MISSING for required flags."""
    values: dict[str, Any] = {}
    for name, info in flags.model_fields.items():
        if name == "folder":
            values[name] = Folder.model_construct(out=tyro.MISSING)
        elif name in plain:
            values[name] = plain[name]
        else:
            values[name] = tyro.MISSING if info.is_required() else info.get_default(call_default_factory=True)
    known = {k: v for k, v in values.items() if v is not tyro.MISSING and k != "folder"}
    checked = _validated(flags, known | {k: v for k, v in plain.items() if k not in flags.model_fields})
    return flags.model_construct(**values | checked)


def _validated(flags: type[BaseModel], known: dict[str, Any]) -> dict[str, Any]:
    """Returns the known fields as typed values. Raises ExpungeError for a wrong or unknown field, before flags are read."""
    filler = {n: "-" for n, info in flags.model_fields.items() if info.is_required() and n not in known and n != "folder"}
    value = build(flags, {**filler, **known, "folder": {"out": "-"}}, "the file after --config")
    return {name: getattr(value, name) for name in known if name in type(value).model_fields}
