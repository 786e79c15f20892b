"""Weights are read from safetensors only: a pickle can run code when it is opened."""

import ast
from pathlib import Path

import expunge

SOURCE = Path(expunge.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
PICKLING = {"torch.load", "torch.save", "pickle.load", "pickle.loads", "joblib.load"}


def calls(file: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def test_every_model_is_loaded_from_safetensors() -> None:
    found, wrong = 0, []
    for file in FILES:
        for call in calls(file):
            name = ast.unparse(call.func)
            if name.startswith("AutoModel") and name.endswith(".from_pretrained"):
                found += 1
                if not any(word.arg == "use_safetensors" and ast.unparse(word.value) == "True" for word in call.keywords):
                    wrong.append(f"{file.relative_to(SOURCE)}:{call.lineno}")
    assert found >= 6
    assert wrong == []


def test_no_file_reads_or_writes_pickles() -> None:
    assert [
        (file.name, ast.unparse(call.func)) for file in FILES for call in calls(file) if ast.unparse(call.func) in PICKLING
    ] == []
