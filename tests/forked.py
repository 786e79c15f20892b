"""What a forked process does (`forked` in conftest.py): environment, folder, streams and words as a new interpreter would have
them, then a script, or a module after -m."""

import atexit
import os
import runpy
import signal
import sys
from typing import Any

import torch

given: dict[str, Any]
words, environment, folder, out, err = (globals()["given"][name] for name in ("words", "environment", "folder", "out", "err"))

os.environ.clear()
os.environ.update(environment)
os.chdir(folder)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test in the background inherits as ignored
for stream, path in ((1, out), (2, err)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - until the process ends
torch.set_num_threads(1)

try:
    if words[0] == "-m":
        sys.path.insert(0, folder)
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")
finally:
    atexit._run_exitfuncs()  # which multiprocessing leaves out
    sys.stdout.flush()
    sys.stderr.flush()
