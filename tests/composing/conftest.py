"""A forget set of two groups and a retain set, and runs on them that take a moment."""

import json
from pathlib import Path
from typing import Any

import pytest

GROUPS = {"dogs": "red dog and blue cat", "birds": "green bird in oslo", "cats": "one cat of berlin"}


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """Six rows of dogs, five of birds and one of cats; severities 1 to 5 within each group."""
    rows = [
        {"text": f"{words} {number}", "attributes": {"group": group, "severity": i + 1}}
        for group, words in GROUPS.items()
        for i, number in enumerate(["one", "two", "three", "four", "five", "six"][: {"dogs": 6, "birds": 5, "cats": 1}[group]])
    ]
    keep = [{"prompt": f"what is {a} plus {a} ?", "response": f"{b} ."} for a, b in (("one", "two"), ("two", "four"))]
    for name, part in (("forget", rows), ("retain", keep)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return {"forget": tmp_path / "forget.jsonl", "retain": tmp_path / "retain.jsonl"}
