"""Manages output folders: where they may be, locks, which files expunge made, how unfinished ones are resumed.

Files that expunge did not make are never removed, and no output is inside, equal to or around an input. Imports no torch.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from shlex import quote
from typing import IO

from expunge.errors import ExpungeError, reason
from expunge.records import folder_made, write_json

LOCK = ".lock"
RESERVED = ".reserved"
"""Holds the room of a run's last checkpoint."""
ARTIFACT = "artifact"
GUARD_FILE = "guard.safetensors"
"""The tensors of a guard's state, in its artifact."""
MANIFEST = "expunge.json"
COMMAND = "command.json"
"""File in an unfinished evaluation or merge that holds the command that resumes it."""

RUN_FILES = (
    *("run.yaml", "inputs.json", "metrics.jsonl", "provenance.json", "rows.txt", "log.txt", "alternates.jsonl"),
    *("merge.json", "tensors.jsonl", "delta.safetensors", LOCK, RESERVED),
)
"""Files that a run or a merge writes beside its artifact."""
PARTS = {
    "evaluation": ("*.json", "*.samples.jsonl", "*.partial/*", LOCK),
    "attacks": ("*.json", "*.samples.jsonl", LOCK),
    "report": ("index.html", "report.md", "table.tex", "report.json", "summary.json", "*.svg", LOCK),
    "checkpoint-*": ("state.json", "state.safetensors"),
    ".checkpoint-*.partial": ("*",),
    ".artifact.*": ("*",),
}
"""Folders inside a run -> the files that expunge writes there."""
STAGES = ("expert", "merged", "parts/*")
"""Folders of runs inside a run."""
SIGNS = ("run.yaml", "merge.json", f"{ARTIFACT}/{MANIFEST}", MANIFEST)
"""Files of which one shows that expunge made a folder."""


MODEL_FILES = ("config.json", "adapter_config.json", "expunge.json")
"""Files of which a folder of a model, of an adapter or of an artifact has one; runs and evaluations have it in a subfolder."""


def check_place(out: Path) -> None:
    """Raises ExpungeError if a folder cannot be made or written at `out`: below or on a file, read-only, with too long a name,
    or the folder of a model, which is nobody's output."""
    check_writable(out)
    check_no_model(out)


def check_no_model(out: Path) -> None:
    """Raises ExpungeError if `out` is the folder of a model."""
    if found := next((name for name in MODEL_FILES if (out / name).is_file()), None):
        raise ExpungeError(f"--out {out} is the folder of a model (it holds {found}); give another --out")


def check_writable(out: Path) -> None:
    """Raises ExpungeError if a folder cannot be made or written at `out`: below or on a file, read-only, with too long a name, or
    with a `~` that the shell has left as it is (as in --out=~/runs)."""
    if str(out).startswith("~"):
        raise ExpungeError(
            f"--out {_short(out)} would be a folder named {out.parts[0]} here, since shells do not expand it after an equals "
            "sign; write the full path of the home folder"
        )
    try:
        there = next(place for place in (out.absolute(), *out.absolute().parents) if os.path.lexists(place))
        os.stat(there)
    except OSError as error:
        raise ExpungeError(f"--out {_short(out)} cannot be used ({error.strerror}); give another --out") from error
    if not there.is_dir():
        where = "is a file" if there == out.absolute() else f"lies below {there}, which is a file"
        raise ExpungeError(f"--out {out} {where}; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        made = "" if there == out.absolute() else f", so {out} cannot be made"
        raise ExpungeError(f"{there} cannot be written to (read-only, or of another user){made}; give another --out")
    longest = os.pathconf(there, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in out.parts):
        raise ExpungeError(f"--out {_short(out)} has a name of more than {longest} bytes; give a shorter one")


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 120 else f"{text[:117]}..."


def check_apart(out: Path, inputs: Iterable[str | Path], *, also: Iterable[str] = (), wide: Iterable[str | Path] = ()) -> None:
    """Raises ExpungeError if `out` is an input, or lies inside or around one.

    also  folders of a run or merge of expunge that may be written although it is an input: its evaluation, its report
    wide  folders that contain the inputs among other files (the data of a suite, such as `.`): `out` may be inside them
    """
    place, wide = _real(out), tuple(wide)
    for given in (*inputs, *wide):
        source = _on_disk(given)
        if source is None:
            continue
        made = (source / "run.yaml").is_file() or (source / "merge.json").is_file()
        if made and any((source / part) == place for part in also):
            continue
        if place == source:
            raise ExpungeError(f"--out {out} is an input itself ({given}), which is never written to; give another --out")
        if source in place.parents and given not in wide:
            raise ExpungeError(f"--out {out} lies inside the input {given}, which is never written to; give another --out")
        if place in source.parents:
            raise ExpungeError(f"--out {out} holds the input {given}, which is never written over; give another --out")


def _on_disk(given: str | Path) -> Path | None:
    """Returns the file or folder of a source, without the set and the conditions that may follow it."""
    text = str(given)
    plain = text.partition("[")[0]
    for name in (text, plain, plain.rpartition(":")[0]):
        if name and os.path.exists(name):
            return _real(Path(name))
    return None


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


@contextmanager
def filled(out: Path) -> Iterator[None]:
    """Context manager that makes a folder to be filled; what the block wrote into it is removed if the block fails."""
    with folder_made(out):
        before = set(out.iterdir())
        try:
            yield
        except BaseException:
            for entry in set(out.iterdir()) - before:
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            raise


def check_room(folder: Path, needed: int, what: str, advice: str = "give another --out") -> None:
    """Raises ExpungeError, before the first byte, if `needed` bytes would not fit; `folder` need not exist yet."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ExpungeError(f"{what} takes {size_text(needed)} and {there} has {size_text(free)} free; make room, or {advice}")


def size_text(nbytes: int) -> str:
    """Formats a number of bytes."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.3g} {name}"
    return f"{nbytes} bytes"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context manager that makes `folder` and locks it against other commands of expunge; a process that dies releases its
    lock."""
    with lock_file(folder / LOCK, folder):
        yield


@contextmanager
def lock_file(path: Path, folder: Path) -> Iterator[None]:
    """Does the same with a lock file elsewhere, for a folder that is itself replaced. Raises ExpungeError if another command
    holds the lock, or the file cannot be written."""
    with folder_made(path.parent):
        file = _lock(path, folder)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            file.close()


def _lock(path: Path, folder: Path) -> IO[str]:
    while True:
        try:
            file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise ExpungeError(f"{folder} cannot be written to ({reason(error)}); make room, or give another --out") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ExpungeError(
                f"another command of expunge is writing into {folder}; wait until it has ended, or give another --out"
            ) from None
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
        file.close()  # the one before removed its file between the two lines above


def beside_of(folder: Path, what: str) -> Path:
    """Returns the hidden neighbour `.NAME.what` of a folder, however its path is written (`.` too)."""
    place = folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))
    return place.with_name(f".{place.name}.{what}")


def results_folder(model: str, out: str | None, part: str) -> Path:
    """Returns the folder for results: `part` (evaluation, attacks) of a run, any other folder as it is.

    Raises ExpungeError if there is no `out` and `model` is not a run.
    """
    folder = Path(out or model)
    if (folder / "artifact").is_dir():
        return folder / part
    if out is None:
        raise ExpungeError(f"{model} is not a run, which would hold its results in {part}/; give --out DIR")
    return folder


def holds_something(folder: Path) -> bool:
    """Returns whether a path exists and is more than an empty folder."""
    if not folder.is_dir():
        return os.path.lexists(folder)
    return any(entry.name != LOCK for entry in folder.iterdir())


def check_replaceable(out: Path) -> None:
    """Raises ExpungeError if --overwrite would remove what expunge did not make: a folder without its records, or others'
    files."""
    if not holds_something(out):
        return
    if not any((out / sign).is_file() for sign in SIGNS):
        raise ExpungeError(
            f"{out} was not made by expunge, so --overwrite leaves it alone; give another --out, or empty it yourself"
        )
    if strangers := [file for file in foreign_files(out) if file.parent != out]:
        raise ExpungeError(
            f"{strangers[0]} was not made by expunge and lies in a folder that --overwrite would replace; move it, or give "
            "another --out"
        )


def foreign_files(out: Path) -> list[Path]:
    """Returns files below a run, a merge or an artifact that expunge did not write there."""
    return [file for file in sorted(out.rglob("*")) if (file.is_file() or file.is_symlink()) and not _is_ours(out, file)]


def _is_ours(out: Path, file: Path) -> bool:
    inside = file.relative_to(out)
    for stage in STAGES:
        depth = stage.count("/") + 1
        if len(inside.parts) > depth and fnmatch("/".join(inside.parts[:depth]), stage):
            return _is_ours(out / Path(*inside.parts[:depth]), file)
    first, rest = inside.parts[0], "/".join(inside.parts[1:])
    if not rest:
        return first in RUN_FILES or (fnmatch(first, ".*.partial") and file.is_file()) or inside.as_posix() in _listed(out)
    if first == ARTIFACT:
        return rest == MANIFEST or rest in _listed(out / ARTIFACT)
    for pattern, files in PARTS.items():
        if fnmatch(first, pattern):
            return any(fnmatch(rest, name) for name in files)
    return inside.as_posix() in _listed(out)


def _listed(artifact: Path) -> set[str]:
    """Returns the files that a manifest lists, and itself."""
    try:
        return {MANIFEST, *json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def remove_made(out: Path) -> None:
    """Removes the records of an earlier run, its evaluation and its checkpoints. Its artifact and stages, which are replaced
    later, and files that expunge did not make are kept."""
    for name in RUN_FILES:
        if name != LOCK:
            (out / name).unlink(missing_ok=True)
    for pattern in PARTS:
        for folder in out.glob(pattern):
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)


def unfinished(path: str | Path) -> str | None:
    """Describes an unfinished folder, with the exact command that resumes it; None for a finished or another one."""
    folder = Path(path)
    if (folder / "run.yaml").is_file() and not (folder / ARTIFACT / MANIFEST).is_file():
        return f"{folder} is an unfinished run ({_progress(folder)}); go on with: {resume_command(folder)}"
    beside = beside_of(folder, "partial")
    if not folder.exists() and (beside / COMMAND).is_file():
        return f"{folder} is an unfinished merge; go on with: expunge merge --resume --out {quote(str(folder))}"
    for place in (folder, folder / "evaluation"):
        for partial in sorted(place.glob("*.partial")):
            if (partial / COMMAND).is_file() and not _outlived(place / f"{partial.stem}.json", partial):
                command = f"expunge evaluate --resume --out {quote(str(place))}"
                return f"the evaluation {partial.stem} in {place} is unfinished; go on with: {command}"
    return None


def _outlived(scores: Path, partial: Path) -> bool:
    """Returns whether there are scores that the unfinished evaluation was not begun to replace."""
    return scores.exists() and "--overwrite" not in (partial / COMMAND).read_text(encoding="utf-8")


def _progress(folder: Path) -> str:
    name = ("finetune" if is_finetune(folder) else method_of(folder)) or "of an unknown method"
    log = folder / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return f"{name}, {len(lines)} steps done" if lines else f"{name}, no step done"


def is_finetune(folder: Path) -> bool:
    """Returns whether run.yaml is of `expunge finetune`."""
    lines = (folder / "run.yaml").read_text(encoding="utf-8").splitlines()
    return not any(line.startswith("method:") for line in lines)


def method_of(folder: Path) -> str | None:
    """Returns the method in run.yaml."""
    import yaml

    try:
        found = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))["method"]["name"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    return str(found)


def resume_command(folder: Path) -> str:
    """Returns the command that resumes a run."""
    return f"expunge {'finetune' if is_finetune(folder) else 'unlearn'} --resume --out {quote(str(folder))}"


def keep_command(folder: Path, words: Iterable[str]) -> None:
    """Writes into the folder of an unfinished evaluation or merge the words with which it was begun, and the working
    directory."""
    write_json(folder / COMMAND, {"words": list(words), "folder": os.getcwd()})


def kept_command(folder: Path) -> list[str]:
    """Returns the words with which an unfinished evaluation or merge was begun, and changes to its working directory. Raises
    ExpungeError if they cannot be read."""
    try:
        kept = json.loads((folder / COMMAND).read_text(encoding="utf-8"))
        words, place = [str(word) for word in kept["words"]], str(kept["folder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExpungeError(f"{folder / COMMAND} cannot be read ({error}); repeat the whole command") from error
    if os.path.isdir(place):
        os.chdir(place)
    return words
