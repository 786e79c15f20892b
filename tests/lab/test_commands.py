"""The commands in a lab's README: one for each recipe, and each is read as a run on files that are there."""

import shlex
from pathlib import Path

import pytest

from expunge.cli import main
from expunge.data.read import read_examples
from expunge.lab import write_data
from expunge.lab.commands import FILES, command
from expunge.recipes import recipe, recipes_folder
from expunge.spec import Run, build


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("lab") / "lab", 0, "tiny")


def test_every_recipe_for_the_lab_has_its_command_in_the_readme(lab: Path) -> None:
    recipes = {path.stem for path in (recipes_folder() / "lab").glob("*.yaml")}
    assert set(FILES) == recipes
    readme = (lab / "README.md").read_text(encoding="utf-8")
    assert [line.strip() for line in readme.splitlines() if "--config lab/" in line and "expunge unlearn" in line] == [
        command(name) for name in FILES
    ]


class _Read(Exception):
    """Stands in for the run itself."""


@pytest.mark.parametrize("name", FILES)
def test_a_command_is_read_as_its_recipe_on_files_that_are_there(name: str, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[Run, Path]] = []

    def executed(run: Run, out: Path, **_: object) -> None:
        runs.append((run, out))
        raise _Read

    monkeypatch.setattr("expunge.run.execute", executed)
    monkeypatch.chdir(lab)
    with pytest.raises(_Read):
        main(shlex.split(command(name))[1:])
    run, out = runs[0]
    assert out == Path("runs") / name
    assert run.model == "models/original"
    alone = build(Run, {"model": "-", "forget": "-", **recipe(f"lab/{name}")}, name)
    assert (run.method, run.training) == (alone.method, alone.training)
    for source in (*run.forget, *run.retain, *run.holdout):
        assert read_examples(source)
    assert run.refusals is None or Path(run.refusals).read_text(encoding="utf-8").strip()
