"""Runs a program that a model wrote in a subprocess with as few rights as the operating system allows.

Layers of isolation, each if the system has it:

1. `screen`    the syntax tree: imports from a list of computing modules only, no `open`, no `exec`, no dunder attributes
2. `process`   its own process and session, an empty environment, an empty temporary folder as working directory, no input and
               no output; killed with its whole process group at the wall limit, and whenever its verdict is in
3. `limits`    CPU seconds, memory, file size, open files, processes, no core dump (setrlimit)
4. `network`   new user, network and IPC namespaces: no interface, not even loopback (Linux, where user namespaces are allowed)
5. `files`     reads only Python's own folders and shared libraries, writes only into the temporary folder (Linux, Landlock)
6. `calls`     no new processes or programs, no sockets, no signals to others, no change of owners, modes or times (Linux on
               x86-64 and arm64, seccomp)
7. `hook`      the same refused inside Python by an audit hook; the only one of layers 4 to 7 on other systems

It does not protect from bugs in the kernel or the interpreter, nor from programs that read the time, the amount of memory or
disk, or names, sizes and times of files (not their contents), or that use up their limits repeatedly. On systems without layers
4 to 6 a program that circumvents Python's audit hooks has the rights of the user who runs the evaluation, and a process that it
starts in its own session outlives it. It is meant for mistakes of language models, not for attackers: run hostile code in a
virtual machine. For root, layer 3 does not limit processes (Linux exempts root), and only layer 6 does.

A program passes if it ran to its end. Exiting early with exit code 0 does not pass: the process receives a random word and must
return it after the last line.
"""

import ast
import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from expunge.errors import ExpungeError

Layer = Literal["limits", "network", "files", "calls", "hook"]
LAYERS: tuple[Layer, ...] = get_args(Layer)

CHILD = Path(__file__).with_name("sandbox_child.py")

_COMPUTE = """
    abc array base64 binascii bisect calendar cmath collections contextlib copy csv dataclasses datetime decimal difflib enum
    fractions functools graphlib hashlib heapq html io itertools json math numbers operator pprint queue random re secrets
    statistics string struct sys textwrap time types typing unicodedata uuid warnings zlib zoneinfo __future__
"""
MODULES = frozenset(_COMPUTE.split())
"""What a solution may import: modules that only compute. MBPP's and HumanEval's own solutions need 16 of them."""
CALLS = frozenset({"__import__", "breakpoint", "compile", "exec", "help", "input", "open"})
ATTRIBUTES = frozenset(
    {"__subclasses__", "__globals__", "__builtins__", "__code__", "__closure__", "__loader__", "__mro__", "__bases__", "__base__"}
    | {"_getframe", "modules", "settrace", "setprofile"}
)


class Limits(NamedTuple):
    """Limits of one program."""

    cpu_seconds: int = 5
    wall_seconds: float = 30.0
    """Much larger than the CPU limit, so that no program fails on a busy machine."""
    memory_bytes: int = 2**29
    """Address space."""
    file_bytes: int = 2**20
    """Size of any file that it writes."""
    open_files: int = 32
    processes: int = 0
    """New processes, besides its own."""


class ProgramResult(NamedTuple):
    passed: bool
    reason: str
    """Why it did not pass: `refused: ...`, `over the CPU limit`, or the exception."""
    layers: tuple[str, ...] = ()
    """Layers 3 to 7 that were active on this machine."""


DEFAULT = Limits()


def run_code(code: str, tests: str, limits: Limits = DEFAULT) -> ProgramResult:
    """Screens `code`, which a model wrote, and runs it together with `tests`, which come from the benchmark."""
    refused = screen(code)
    return ProgramResult(False, refused) if refused else execute(f"{code}\n{tests}\n", limits)


def screen(code: str) -> str | None:
    """Returns why code must not be run, or "". Only the first layer: text can hide more than a syntax tree shows."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"refused: it does not parse ({type(error).__name__})"
    for node in ast.walk(tree):
        for module in _imported(node):
            if module.split(".")[0] not in MODULES:
                return f"refused: it imports {module or 'relatively'}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            return f"refused: it calls {node.func.id}"
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            return f"refused: it reaches for .{node.attr}"
    return None


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["" if node.level else node.module or ""]
    return []


def execute(program: str, limits: Limits = DEFAULT, *, layers: tuple[Layer, ...] = LAYERS) -> ProgramResult:
    """Runs a program without screening it. `layers` is for tests, which check each layer alone. Raises ExpungeError if the
    process cannot be started."""
    word = secrets.token_hex(16)
    job = {"program": program, "word": word, "limits": limits._asdict(), "layers": layers}
    with tempfile.TemporaryDirectory(prefix="expunge-") as folder, tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(job).encode())
        stdin.seek(0)
        receiver, sender = os.pipe()
        try:
            process = subprocess.Popen(
                # No site packages, no user folder, no current folder on the path, no compiled files written.
                [sys.executable, "-S", "-s", "-P", "-B", str(CHILD), str(sender)],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": "0"},
                cwd=folder,
                pass_fds=(sender,),
                start_new_session=True,
            )
        except OSError as error:
            raise ExpungeError(
                f"cannot start {sys.executable} to run generated code ({error}); check the installation"
            ) from error
        finally:
            os.close(sender)
        try:
            said = _listen(receiver, time.monotonic() + limits.wall_seconds)
        finally:
            os.close(receiver)
            _end(process)
    return _verdict(said, word, process.returncode)


def _listen(receiver: int, deadline: float) -> bytes | None:
    """Returns what the process reports until it closes the pipe; None if it did not before the deadline."""
    said = b""
    while len(said) < 2**16:
        ready, _, _ = select.select([receiver], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = os.read(receiver, 4096)
        if not piece:
            break
        said += piece
    return said


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the whole process group. Its leader has not been reaped, so that its id cannot belong to another process."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _verdict(said: bytes | None, word: str, code: int) -> ProgramResult:
    if said is None:
        return ProgramResult(False, "over the wall limit")
    reports = [_report(line) for line in said.splitlines()]
    if not reports or reports[0] is None:
        raise ExpungeError(f"the sandbox did not start (exit code {code}); it needs a POSIX system with Python's resource module")
    layers = reports[0].layers
    for report in reports:
        if report is not None and report.word == word:
            return ProgramResult(not report.error, report.error, layers)
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return ProgramResult(False, "over the CPU limit", layers)
    return ProgramResult(False, "it ended before its last line", layers)


class _Report(NamedTuple):
    layers: tuple[str, ...]
    word: str = ""
    error: str = ""


def _report(line: bytes) -> _Report | None:
    """Parses one line from the pipe; None for what the program itself wrote into it."""
    try:
        value = json.loads(line)
        return _Report(tuple(value["layers"]), str(value["word"]), str(value["error"]))
    except (ValueError, KeyError, TypeError):
        return None
