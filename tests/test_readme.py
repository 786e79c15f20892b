"""The examples of README.md run as they are written, one after the other, in one folder."""

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from expunge.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
OWN = README.split("## Your own model and data")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", OWN, re.MULTILINE | re.DOTALL)


def test_the_examples_with_a_model_and_data_of_ones_own_run_in_sequence(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pico_folder, "my-model")
    for name, place in (("forget", "oslo"), ("retain", "lima")):
        rows = [
            {"prompt": f"where was {who} born ?", "response": f"{who} was born in {place} ."} for who in ("anna", "hugo", "irma")
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = [language for language, _ in BLOCKS]
    assert "python" in kinds
    assert "" in kinds
    for language, block in BLOCKS:
        if language == "python":
            Path("example.py").write_text(block)
            runpy.run_path("example.py")
            continue
        for line in block.splitlines():
            if line.startswith("expunge "):
                assert main(shlex.split(line, comments=True)[1:]) == 0, capsys.readouterr().err
    assert Path("report/index.html").is_file()
    assert Path("report-python/index.html").is_file()
