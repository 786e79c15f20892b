"""The page that lists every file lists every file."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / "docs/house.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_names_every_file_with_the_phrase_of_its_docstring(
    house: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["house.py", "--check"])
    assert house.main() == 0, capsys.readouterr().err


def test_every_file_has_a_phrase(house: ModuleType) -> None:
    silent = [path for path in house.SOURCE.rglob("*.py") if not house.phrase(path)]
    assert silent == []
