"""Runs the command line: a table of commands, each a module with a class of flags and `run(flags)`.

Heavy imports come after the command is known, so that `expunge --help` answers at once.
"""

import gc
import io
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from expunge.errors import ExpungeError, nearest, reason

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": (
        "Quickstart",
        "the main job on a fresh machine: make a world, forget in it with six methods, show what happened",
    ),
    "lab": ("Lab", "the invented world alone: its data, and the models base, original and gold"),
    "finetune": ("FineTune", "plain cross-entropy: make the model to unlearn from, or a retain-only model"),
    "unlearn": ("Unlearn", "one unlearning run: expunge unlearn METHOD --model M --forget F --retain R --out DIR"),
    "probe": ("Probe", "activation statistics of sets of texts, neuron tables and plots of key space"),
    "merge": ("Merge", "weight arithmetic on checkpoints, streamed: expunge merge METHOD --base B --models A C --out DIR"),
    "evaluate": ("Evaluate", "scores with intervals: expunge evaluate MODEL_OR_RUN --suite NAME --out DIR"),
    "attack": ("AttackFlags", "tries to bring the knowledge back: expunge attack ladder RUN --suite lab --data LAB --out DIR"),
    "compare": ("Compare", "answers of two models or artifacts side by side: expunge compare BEFORE AFTER --prompt TEXT"),
    "report": ("Report", "any number of runs into one page"),
    "methods": ("Methods", "list the methods, or explain one: paper, formula, fields, cost"),
    "suites": ("Suites", "list the evaluation suites, or explain one"),
    "import": ("Import", "a published .pkl of neuron_adjust or key_space as a guard"),
    "export": ("Export", "a guard of embedding_corruption as files for a proxy before a server"),
    "verify": ("Verify", "recompute every checksum of an artifact"),
}
"""name -> (class of flags in expunge.cli.NAME, one line for the list)."""

COLLECTED = 50_000
"""Objects made before Python looks for garbage among them; with its default, 700 or 2000, that takes up to a second of a short
command. Garbage in cycles was small where it was measured: 25 steps of npo left no tensor in one, an evaluation of TOFU 1 MiB."""
GO_ON = (["quickstart"], ["lab"], ["attack"])
"""Commands that detect finished work by themselves."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns exit code 0, or 2 after one sentence on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # this process is ours: nearly all that it makes at first are modules, which stay
        gc.set_threshold(COLLECTED, *gc.get_threshold()[1:])
    _open_streams()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries draw bars into a log; ours writes plain lines there
    try:
        _command(words)
        sys.stdout.flush()
        return 0
    except ExpungeError as error:
        print(f"expunge: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        again = f"the same command goes on: expunge {shlex.join(words)}" if words[:1] in GO_ON else "nothing was put in place"
        print(f"expunge: interrupted; {str(stop) or again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `expunge ... | head` has seen enough; flushing the rest at exit would fail once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # of a file or a disk: a sentence names it, where a traceback would bury it
        again = "; the same command goes on after what is done" if words[:1] in GO_ON else ""
        print(f"expunge: {reason(error)}; check the path, its permissions and the room on its disk{again}", file=sys.stderr)
        return 2


def _open_streams() -> None:
    """Lets stdout and stderr take any text: characters that their encoding lacks are escaped, and a closed one takes nothing;
    stderr, which only tells how the work goes, loses what does not fit on its disk."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(stderr := sys.stderr, io.TextIOWrapper) and stderr is sys.__stderr__:
        sys.stderr = _Log(stderr.buffer, encoding=stderr.encoding, errors=stderr.errors, line_buffering=True)


class _Log(io.TextIOWrapper):
    """A stream whose text is lost where it cannot be written (a full disk, a pipe that nobody reads), since work goes on without
    its log."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _command(words: Sequence[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        _help()
    elif words[0] in ("-V", "--version"):
        from expunge import __version__

        print(f"expunge {__version__}")
    elif words[0] not in COMMANDS:
        raise ExpungeError(f"there is no command '{words[0]}'{nearest(words[0], COMMANDS)}; `expunge --help` lists them all")
    else:
        module = import_module(f"expunge.cli.{words[0]}")
        if hasattr(module, "main"):
            module.main(words[1:])
        else:
            from expunge.cli.flags import parse

            module.run(parse(getattr(module, COMMANDS[words[0]][0]), f"expunge {words[0]}", words[1:]))


def _help() -> None:
    print("usage: expunge COMMAND ...\n\nMake a language model forget, and measure whether it did.\n")
    for name, (_, line) in COMMANDS.items():
        print(f"  {name:<11} {line}")
    print("\n`expunge COMMAND --help` explains a command.")
