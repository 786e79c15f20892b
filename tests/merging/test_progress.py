"""Progress is in megabytes read, ends at the planned number, and never goes beyond it."""

import pytest

from expunge.memory import PeakMemory
from expunge.merging.run import _Counter
from expunge.progress import Progress


@pytest.mark.parametrize("read", [40, 100, 250], ids=["fewer passes", "as planned", "one pass more"])
def test_it_ends_where_the_plan_said(read: int, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("ties, MB", 100, every=0.0)
    counter = _Counter(bar, PeakMemory())
    for _ in range(read):
        counter.add(1_000_000)
        assert bar.done <= 100
    counter.finish()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("ties, MB: 100/100, 0 s left")
    assert sum("100/100" in line for line in lines) == 1
