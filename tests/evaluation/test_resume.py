"""What an unfinished evaluation keeps counts only for the code that made it."""

import shutil
from pathlib import Path

import pytest

import expunge
from expunge.evaluation.resume import code_version


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("methods/guarding/key_space.py", True),
        ("guarding/life.py", True),
        ("artifact.py", True),
        ("data/encode.py", True),
        ("evaluation/metrics/rouge.py", True),
        ("cli/evaluate.py", False),
        ("report/page.py", False),
    ],
)
def test_a_change_of_any_code_that_answers_depend_on_is_another_version(
    file: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(expunge.__file__).parent, tmp_path / "expunge", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(expunge, "__file__", str(tmp_path / "expunge/__init__.py"))
    before = code_version.__wrapped__()
    with open(tmp_path / "expunge" / file, "a", encoding="utf-8") as source:
        source.write("# changed\n")
    assert (code_version.__wrapped__() != before) == counts
