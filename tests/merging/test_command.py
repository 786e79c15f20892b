"""`expunge merge`: flags are fields, errors are sentences, exit codes are 0 and 2."""

import json
from pathlib import Path

import pytest

from expunge.cli import main
from expunge.merging import merge
from expunge.methods.editing import Ties

from .conftest import file_bytes, moved, random_tensors, write_folder


def run(*words: object) -> int:
    return main(["merge", *map(str, words)])


def test_the_command_does_what_the_function_does(
    three: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, models = three
    flags = [
        "--density",
        "0.3",
        "0.2",
        "0.1",
        "--scope",
        "per_tensor",
        "--tie-policy",
        "exact",
        "--scale",
        "-1",
        "--weights",
        "1",
        "2",
        "3",
    ]
    assert run("ties", "--base", base, "--models", *models, "--out", tmp_path / "a", "--quiet", *flags) == 0
    printed = capsys.readouterr().out
    method = Ties(density=(0.3, 0.2, 0.1), scope="per_tensor", tie_policy="exact", scale=-1, weights=(1, 2, 3))
    result = merge(method, base=base, models=models, out=tmp_path / "b", quiet=True)
    assert file_bytes(tmp_path / "a/artifact") == file_bytes(tmp_path / "b/artifact")
    assert result.kept is not None
    assert f"kept {100 * result.kept[0] / result.elements:.3g} % of all" in printed
    assert json.loads((tmp_path / "a/artifact/expunge.json").read_text())["method"]["density"] == [0.3, 0.2, 0.1]


def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    three: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, models = three
    before = sorted(tmp_path.rglob("*"))
    assert run("ties", "--base", base, "--models", *models, "--out", tmp_path / "out", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "ties of 3 models" in printed
    assert "5 tensors, 968 weights" in printed
    assert "MB beside Python" in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_a_yaml_file_of_mergekit(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, models = three
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(models[0]), "parameters": {"weight": 2}}],
    }
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    assert run("--config", tmp_path / "recipe.yml", "--out", tmp_path / "a", "--quiet") == 0
    assert (
        run("task_arithmetic", "--base", base, "--models", models[0], "--weights", "2", "--out", tmp_path / "b", "--quiet") == 0
    )
    assert file_bytes(tmp_path / "a/artifact") == file_bytes(tmp_path / "b/artifact")
    assert "task_arithmetic" in (tmp_path / "a/artifact/README.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tie"], "did you mean 'ties'"),
        (["ties", "--density", "1.5"], "ties: --density: a density is the share of entries that stays"),
        (["ties", "--weights", "-1", "-1", "-1"], "--weights 1 1 1 --scale -1"),
        (["ties", "--densty", "0.5"], "did you mean '--density'"),
        (["ties", "--scope", "all"], "scope"),
        (["slerp"], "one model, not to 3"),
        (["ties", "--out", "/proc/nowhere/out"], "/proc has 0 bytes free"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(
    words: list[str], said: str, three: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, models = three
    rest = [] if "--out" in words else ["--out", tmp_path / "out"]
    assert run(*words, "--base", base, "--models", *models, *rest, "--quiet") == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not any(words in error for words in ("Traceback", "[type=", "pydantic"))
    assert not (tmp_path / "out").exists()


def test_the_effective_share_is_printed_for_the_paper_s_global_scope(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = random_tensors(0)
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "m", moved(base, 1, ["model.layers.0.norm.weight"]))
    assert run("ties", "--base", tmp_path / "base", "--models", tmp_path / "m", "--out", tmp_path / "out", "--quiet") == 0
    printed = capsys.readouterr().out
    assert (
        "differs from the base in 0.826 % of the weights; kept 0.826 % of all, 100 % of those (nothing but zeros was trimmed)"
        in printed
    )


def test_help_lists_methods_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "breadcrumbs" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("ties", "--help")
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in ("--density", "--scope", "--tie-policy", "--no-normalize", "--dry-run", "--resume"))
