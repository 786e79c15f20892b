"""Runs a program that a model wrote, in a process that can do as little as the operating system lets us take away.

What stands between the program and the machine, each layer where the system has it:

1. `screen`    the syntax tree: imports from a list of computing modules only, no `open`, no `exec`, no dunder ways out
2. `process`   its own process and session, an empty environment, an empty temporary folder as working directory, no input and
               no output; killed with its whole process group at the wall limit, and whenever its verdict is in
3. `limits`    CPU seconds, memory, file size, open files, processes, no core dump (setrlimit)
4. `network`   new user, network and IPC namespaces: no interface, not even loopback (Linux, where user namespaces are allowed)
5. `files`     reads only Python's own folders and shared libraries, writes only into the temporary folder (Linux, Landlock)
6. `calls`     no new processes or programs, no sockets, no signals to others, no change of owners, modes or times (Linux on
               x86-64 and arm64, seccomp)
7. `hook`      the same refused inside Python by an audit hook: all there is on other systems

What it does not protect from: a hole in the kernel or in the interpreter; programs that see how much time, memory or disk
there is, that see names, sizes and times of files (not their contents), or that use up their limits again and again. On
systems without layers 4 to 6 a program that gets around Python's audit hooks has the rights of whoever runs the evaluation, and
a process that it starts in a session of its own outlives it.
It is made for what language models write by accident, not for an attacker: to run code of people who want to break out, use a
virtual machine. As root, layer 3 does not bound processes (Linux exempts root) and layer 6 has to.

A program passes when it ran to its end. Leaving early with exit code 0 is not passing: the verdict is a random word that the
process gets beforehand and gives back only after the last line.
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
"""What a solution may import: modules that compute. Of them MBPP's and HumanEval's own solutions need 16."""
CALLS = frozenset({"__import__", "breakpoint", "compile", "exec", "help", "input", "open"})
ATTRIBUTES = frozenset(
    {"__subclasses__", "__globals__", "__builtins__", "__code__", "__closure__", "__loader__", "__mro__", "__bases__", "__base__"}
    | {"_getframe", "modules", "settrace", "setprofile"}
)


class Limits(NamedTuple):
    """What one program may use."""

    cpu_seconds: int = 5
    wall_seconds: float = 30.0
    """Much more than the CPU limit, so that a busy machine fails no program."""
    memory_bytes: int = 2**29
    """Address space."""
    file_bytes: int = 2**20
    """Size of any file that it writes."""
    open_files: int = 32
    processes: int = 0
    """New ones, beside its own."""


class ProgramResult(NamedTuple):
    passed: bool
    reason: str
    """Why it did not pass: `refused: ...`, `over the CPU limit`, or the exception."""
    layers: tuple[str, ...] = ()
    """Layers 3 to 7 that held on this machine."""


DEFAULT = Limits()


def run_code(code: str, tests: str, limits: Limits = DEFAULT) -> ProgramResult:
    """Screens `code`, which a model wrote, and runs it together with `tests`, which come from the benchmark."""
    refused = screen(code)
    return ProgramResult(False, refused) if refused else execute(f"{code}\n{tests}\n", limits)


def screen(code: str) -> str | None:
    """Why code is not run at all, or nothing. The first layer only: text hides more than a syntax tree shows."""
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
    """Runs a program without screening it. `layers` is for tests, which show that each layer holds alone."""
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
    """What the process reports until it closes the pipe; None when it did not before the deadline."""
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
    """Kills the whole group. The leader is not reaped before, so its number cannot be another process's by now."""
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
    """One line from the pipe; None for what the program itself wrote into it."""
    try:
        value = json.loads(line)
        return _Report(tuple(value["layers"]), str(value["word"]), str(value["error"]))
    except (ValueError, KeyError, TypeError):
        return None
