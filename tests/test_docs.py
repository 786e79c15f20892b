"""What the pages of docs/ name is there: recipes, suites, sets of corpora, options of commands."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel

import expunge
from expunge.cli.evaluate import Evaluate
from expunge.cli.probe import Probe
from expunge.cli.runs import Folder
from expunge.data.corpora import SETS
from expunge.data.read import split_conditions
from expunge.evaluation.suites import SUITES
from expunge.methods import METHODS
from expunge.recipes import recipes_folder
from expunge.report.page import report
from expunge.spec import Run

DOCS = Path(__file__).parents[1] / "docs"
SAFETY = (DOCS / "safety.md").read_text(encoding="utf-8")


def test_recipes_are_there() -> None:
    named = {*re.findall(r"`((?:rmu|tvn|spunge)_\w+)`", SAFETY), *re.findall(r"recipes/(\w+)\.yaml", SAFETY)}
    assert len(named) >= 8
    assert {path.stem for path in recipes_folder().glob("*.yaml") if path.stem.startswith(("rmu_", "tvn_", "spunge_"))} == named


def test_suites_and_their_options_are_there() -> None:
    for line in re.findall(r"^ *expunge evaluate .*--suite .*$", SAFETY, re.MULTILINE):
        suite = re.search(r"--suite (\w+)", line)
        assert suite is not None
        options = re.findall(r"(\w+)=", line.partition("--options ")[2])
        assert set(options) <= set(SUITES[suite[1]].model_fields)


def _sources() -> list[str]:
    cells = [line.split("|")[2:4] for line in SAFETY.splitlines() if line.count("|") == 5 and "FOLDER:" in line]
    return [source for row in cells for cell in row for source in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("source", _sources())
def test_sources_are_sets_of_a_corpus(source: str) -> None:
    place, _, name = str(split_conditions(source)[0]).partition(":")
    if place == "FOLDER":
        assert [sets for sets in SETS if sets.named(name)]
    else:
        (sets,) = [sets for sets in SETS if place in sets.hubs]
        assert sets.get(place, name)


SKILLS = (DOCS / "skills.md").read_text(encoding="utf-8")


def test_the_page_of_skills_names_flags_recipes_and_fields_that_are_there() -> None:
    methods = [METHODS[name] for name in ("key_space", "neuron_adjust", "selective_pruning")]
    fields = {field for model in (Evaluate, Probe, _import(), *methods, Run, Folder) for field in model.model_fields}
    named = set(re.findall(r"--([a-z][a-z-]+)", SKILLS))
    assert len(named) > 15
    assert {flag.replace("-", "_") for flag in named} <= fields
    folders = {path.name for path in (recipes_folder() / "skills").iterdir()}
    assert all(f"`{folder}`" in SKILLS for folder in folders)
    said = re.findall(r"^\| (\w+) \| (key_space|neuron_adjust|selective_pruning) \|", SKILLS, re.MULTILINE)
    assert {method for _, method in said} <= {path.stem for path in (recipes_folder() / "lab").glob("*.yaml")}


def _import() -> type[BaseModel]:
    """Its module has the name of a keyword."""
    found: type[BaseModel] = import_module("expunge.cli.import").Import
    return found


def test_the_page_of_the_python_interface_has_every_public_name() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    first, _, further = page.partition("## Further functions")
    assert set(re.findall(r"^\| `(\w+)", first, re.MULTILINE)) == set(expunge.__all__) - {"__version__"}
    for name in re.findall(r"`(expunge\.[\w.]+)`", further):
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute) or import_module(name), name


@pytest.mark.parametrize("name", ["attack", "evaluate", "finetune", "load", "report", "unlearn", "verify"])
def test_the_docstring_of_a_public_function_names_every_argument_and_the_error(name: str) -> None:
    function = report if name == "report" else getattr(expunge, name)  # `expunge.report` is a module that can be called
    said = str(inspect.getdoc(function))
    assert "Raises ExpungeError" in said
    assert [argument for argument in inspect.signature(function).parameters if argument not in said] == []


def test_every_page_is_reached_from_the_readme() -> None:
    """Directly or over other pages, and every link to a file leads somewhere."""
    pages, reached = [DOCS.parent / "README.md"], set()
    while pages:
        page = pages.pop()
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if not link.startswith("http"):
                assert target.exists(), f"{page.name}: {link}"
                if target.suffix == ".md" and target not in reached:
                    reached.add(target)
                    pages.append(target)
    assert {path.resolve() for path in DOCS.glob("*.md")} <= reached


def test_the_table_of_silent_faults_names_files_and_tests_that_are_there() -> None:
    page = (DOCS / "design.md").read_text(encoding="utf-8")
    table = page.partition("### Kinds of silent faults")[2].partition("\n## ")[0]
    files = re.findall(r"`([\w/]+(?:\.py|/))`", table)
    assert len(files) > 40
    assert [f for f in files if not any((DOCS.parent / below / f).exists() for below in ("src/expunge", "."))] == []
