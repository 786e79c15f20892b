"""What the page of behaviors names is there: recipes, methods, sets of corpora, suites and their options."""

import re
import shlex
from pathlib import Path

from expunge.cli.merge_pairs import pairs_of
from expunge.data.corpora import SETS
from expunge.evaluation.suites import SUITES
from expunge.methods import METHODS
from expunge.recipes import recipe

PAGE = (Path(__file__).parents[1] / "docs/behavior.md").read_text(encoding="utf-8")


def test_recipes_and_methods_are_there() -> None:
    named = re.findall(r"--config (behavior/\w+)", PAGE)
    assert named
    assert "behavior/ext_sub_published" in named
    assert pairs_of("behavior/ext_sub_published")
    runs = [name for name in named if name != "behavior/ext_sub_published"]
    assert runs
    assert all(recipe(name)["method"]["name"] in METHODS for name in runs)
    assert set(re.findall(r"^expunge (?:unlearn|merge) (\w+)", PAGE, re.MULTILINE)) <= set(METHODS)


def test_every_field_of_its_commands_is_one_of_the_method() -> None:
    for line in re.findall(r"^expunge unlearn .*$", PAGE, re.MULTILINE):
        words = shlex.split(line, comments=True)
        fields = METHODS[words[2]].model_fields
        flags = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
        assert flags - {"model", "forget", "retain", "out", "lora", "resume", "config"} <= set(fields), line


def test_sets_and_suites_are_there() -> None:
    known = {name for sets in SETS for name in sets.names}
    for name in ("pku/harmful/train", "pku/safe/train", "truthfulqa/train", "alpaca", "halueval/qa"):
        assert f"`{name}`" in PAGE
        assert name in known
    for suite in re.findall(r"--suite (\w+)", PAGE):
        assert suite in SUITES
    assert set(re.findall(r"--options (\w+)=", PAGE)) <= set(SUITES["behavior"].model_fields)
