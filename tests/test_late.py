"""Names of a package are imported on first use, and what that changes for a moment is put back."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.late import late


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "late_module.py").write_text("import gc\ncollecting = gc.isenabled()\n")
    (tmp_path / "late_fault.py").write_text("raise ImportError('on purpose')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("late_module", None)


@pytest.mark.parametrize("before", [True, False])
def test_no_garbage_is_looked_for_while_a_name_is_imported(seen: Path, before: bool) -> None:
    was = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        of = late("somewhere", {"collecting": "late_module", "absent": "late_fault"})
        assert of("collecting") is False
        assert gc.isenabled() is before
        with pytest.raises(ImportError, match="on purpose"):
            of("absent")
        assert gc.isenabled() is before
    finally:
        (gc.enable if was else gc.disable)()


def test_other_names_are_refused(seen: Path) -> None:
    with pytest.raises(AttributeError, match="'somewhere' has no attribute 'other'"):
        late("somewhere", {"collecting": "late_module"})("other")
