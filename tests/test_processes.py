"""Who joins the processes of torchrun leaves them in order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.processes import is_main, join

SCRIPT = """
import atexit, sys
from pathlib import Path
import torch; torch.set_num_threads(1)
from expunge.processes import is_main, join

before = is_main()
atexit.register(lambda: Path(f"{sys.argv[1]}/{rank}").write_text(str(torch.distributed.is_initialized())))  # runs after ours
join()
join()
rank = torch.distributed.get_rank()
assert before == is_main() == (rank == 0)
"""


def test_a_process_that_joined_has_left_when_the_interpreter_ends(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "two.py", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["False", "False"]


def test_alone_there_is_nothing_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    join()
    assert is_main()
