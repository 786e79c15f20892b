"""The sandbox against hostile programs, all kept harmless: bounded loops, own temporary files, the loopback address only."""

import os
import platform
import socket
import sys
import time
from pathlib import Path

import pytest

from expunge.errors import ExpungeError
from expunge.evaluation import sandbox
from expunge.evaluation.sandbox import LAYERS, Layer, Limits, execute, run_code, screen

linux = pytest.mark.skipif(sys.platform != "linux", reason="this layer is Linux's")
FORKS = """
import os
born = 0
for _ in range(20):
    try:
        child = os.fork()
    except OSError:
        continue
    if child == 0:
        os._exit(0)
    born += 1
assert born == 0, f'{born} were born'
"""


def held(layer: Layer) -> None:
    """Skips where the system has no such layer: an old kernel, or a container that forbids it."""
    if layer not in execute("pass", layers=(layer,)).layers:
        pytest.skip(f"this system has no layer '{layer}'")


def test_a_program_passes_when_it_runs_to_its_end() -> None:
    assert execute("x = 1\nassert x == 1") == (True, "", execute("pass").layers)


def test_a_failing_assertion_is_a_reason() -> None:
    outcome = run_code("def double(x):\n    return x", "assert double(2) == 4, 'not doubled'")
    assert (outcome.passed, outcome.reason) == (False, "AssertionError: not doubled")


@pytest.mark.parametrize("leave", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"])
def test_leaving_early_with_exit_code_0_is_not_passing(leave: str) -> None:
    assert not execute(f"{leave}\nassert False").passed


def test_what_a_program_writes_into_the_report_pipe_is_no_verdict() -> None:
    line = b'{"layers": [], "word": "", "error": ""}\n'
    write = f"    try:\n        os.write(fd, {line!r})\n    except OSError:\n        pass\n"
    forged = f"import os\nfor fd in range(3, 32):\n{write}os._exit(0)"
    assert not execute(forged).passed


def test_an_endless_loop_ends_at_the_cpu_limit() -> None:
    began = time.monotonic()
    outcome = execute("while True:\n    pass", Limits(cpu_seconds=1, wall_seconds=60))
    assert (outcome.passed, outcome.reason) == (False, "over the CPU limit")
    assert time.monotonic() - began < 50


def test_a_sleeping_program_is_killed_at_the_wall_limit() -> None:
    assert execute("import time; time.sleep(300)", Limits(wall_seconds=1.0)).reason == "over the wall limit"


def test_the_wall_limit_kills_the_group_and_not_only_the_leader(tmp_path: Path) -> None:
    """No layers here, so that the program may start a child: the child would write a file two seconds later."""
    late = tmp_path / "late"
    program = f"import os, time\nif os.fork() == 0:\n    time.sleep(2)\n    open({str(late)!r}, 'w').close()\ntime.sleep(300)"
    assert execute(program, Limits(wall_seconds=1.0), layers=()).reason == "over the wall limit"
    time.sleep(2)
    assert not late.exists()


def test_a_memory_hog_gets_a_memory_error() -> None:
    if "limits" not in execute("pass").layers:
        pytest.skip("this system does not limit the address space")
    assert execute("x = bytearray(4 * 2**30)").reason.startswith("MemoryError")


def test_a_written_file_stays_under_the_size_limit() -> None:
    program = "with open('big', 'wb') as file:\n    for _ in range(64):\n        file.write(bytes(2**16))\n        file.flush()"
    assert execute(program, Limits(file_bytes=2**23)).passed
    assert "File too large" in execute(program, Limits(file_bytes=2**20)).reason


def test_the_temporary_folder_can_be_written_and_is_gone_afterwards(tmp_path: Path) -> None:
    program = "open('a', 'w').write('x')\nassert open('a').read() == 'x'\nimport os\nraise ValueError(os.getcwd())"
    outcome = execute(program)
    assert outcome.reason.startswith("ValueError: ")
    folder = Path(outcome.reason.removeprefix("ValueError: "))
    assert "expunge-" in folder.name
    assert not folder.exists()


def test_processes_are_limited_to_none_of_its_own() -> None:
    assert execute("import resource\nassert resource.getrlimit(resource.RLIMIT_NPROC) == (0, 0)").passed


@linux
@pytest.mark.parametrize("layer", ["calls", "hook"])
def test_no_process_is_born(layer: Layer) -> None:
    """Root is exempt from the process limit, so the layers that hold for root too are shown alone."""
    held(layer)
    assert execute(FORKS, layers=(layer,)).passed
    assert "were born" in execute(FORKS, layers=()).reason, "the program would fork if it could"


@linux
@pytest.mark.parametrize("layer", ["calls", "hook", "files"])
def test_no_program_is_started(layer: Layer) -> None:
    held(layer)
    program = "import subprocess\nsubprocess.run(['/bin/true'], check=True)"
    assert "PermissionError" in execute(program, layers=(layer,)).reason
    assert execute(program, layers=()).passed


@linux
@pytest.mark.parametrize("layer", ["network", "files", "calls", "hook"])
def test_no_connection_is_made_not_even_to_the_same_machine(layer: Layer) -> None:
    held(layer)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        assert "Error" in execute(program, layers=(layer,)).reason
        with pytest.raises(TimeoutError):
            server.accept()
        assert execute(program, layers=()).passed, "the server would have been reached without the layer"


@linux
@pytest.mark.parametrize("layer", ["files", "hook"])
def test_nothing_outside_the_temporary_folder_is_written_or_read(layer: Layer, tmp_path: Path) -> None:
    held(layer)
    secret, target = tmp_path / "secret", tmp_path / "target"
    secret.write_text("key")
    for program in (f"open({str(target)!r}, 'w')", f"open({str(secret)!r}).read()", f"import os\nos.remove({str(secret)!r})"):
        assert "PermissionError" in execute(program, layers=(layer,)).reason
    assert not target.exists()
    assert secret.read_text() == "key"
    assert execute(f"assert open({str(secret)!r}).read() == 'key'", layers=()).passed


@linux
@pytest.mark.parametrize("layer", ["calls", "hook"])
def test_modes_of_files_are_not_changed(layer: Layer, tmp_path: Path) -> None:
    held(layer)
    before = tmp_path.stat().st_mode
    assert "PermissionError" in execute(f"import os\nos.chmod({str(tmp_path)!r}, 0o777)", layers=(layer,)).reason
    assert tmp_path.stat().st_mode == before


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_TEST_SECRET", "key")
    assert execute("import os\nassert not os.environ, dict(os.environ)").passed
    if sys.platform == "linux":
        read = "raise ValueError(open('/proc/self/environ').read())"
        assert "key" not in execute(read, layers=()).reason
        assert "PermissionError" in execute(read).reason


def test_signals_reach_nobody_else() -> None:
    program = f"import os\nos.kill({os.getpid()}, 0)"
    assert "PermissionError" in execute(program).reason
    assert execute(program, layers=()).passed


def test_where_the_kernel_has_them_all_layers_hold() -> None:
    """Fails where a layer is silently lost: here on the architectures that the filter knows."""
    outcome = execute("pass")
    assert set(outcome.layers) <= set(LAYERS)
    assert {"limits", "hook"} <= set(outcome.layers)
    if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") and Path("/proc/self/status").is_file():
        assert "calls" in outcome.layers


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os", "imports os"),
        ("from subprocess import run", "imports subprocess"),
        ("from . import x", "imports relatively"),
        ("def f():\n    import socket", "imports socket"),
        ("open('x')", "calls open"),
        ("__import__('os')", "calls __import__"),
        ("().__class__.__bases__[0].__subclasses__()", "reaches for ."),
        ("def f(:", "does not parse"),
        ("x = '\0'", "does not parse"),
    ],
)
def test_the_screen_refuses(code: str, why: str) -> None:
    assert why in (screen(code) or "")
    outcome = run_code(code, "")
    assert not outcome.passed
    assert outcome.reason.startswith("refused: ")


@pytest.mark.parametrize(
    "code", ["import math, collections.abc", "from typing import List", "x = eval('1 + 1')", "def f(input): pass"]
)
def test_the_screen_lets_solutions_through(code: str) -> None:
    assert screen(code) is None


def test_an_interpreter_that_does_not_start_is_an_error_and_not_a_failed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CHILD", Path("/nonexistent/child.py"))
    with pytest.raises(ExpungeError, match="did not start"):
        execute("pass")
