"""The wheel holds every file that an installed expunge reads (modules, recipes, templates), and works away from the sources."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from expunge.cli import main
from expunge.recipes import recipe, recipes_folder
assert recipes_folder().is_relative_to(sys.argv[1]), recipes_folder()
assert recipe("lab/npo")["method"]["name"] == "npo"
for words in (["suites"], ["suites", "lab"], ["methods"], ["methods", "npo"]):
    assert main(words) == 0, words
from expunge.cli.runs import said_in_file
assert said_in_file(["--config", "recipes/lab/npo.yaml"], "unlearn")["method"]["name"] == "npo"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, unpacked as an installer does."""
    build = pytest.importorskip("hatchling.builders.wheel", reason="the wheel is built with hatchling, of the extra `dev`")
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = build.WheelBuilder(str(ROOT)).build(directory=str(folder / "dist"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_recipe_and_every_file_of_the_package(installed: Path) -> None:
    for source, place in ((ROOT / "recipes", "expunge/recipes"), (ROOT / "src/expunge", "expunge")):
        files = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        assert len(files) > 50
        missing = [str(name) for name in sorted(files) if not (installed / place / name).is_file()]
        assert not missing


def test_recipes_suites_and_methods_work_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(installed)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "memorization" in done.stdout
    assert "npo" in done.stdout
