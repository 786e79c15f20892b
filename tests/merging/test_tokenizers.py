"""A merge says whose tokens have other ids and whose chat template is lost; a base that lacks what it describes is refused."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import ExpungeError
from expunge.merging import merge
from expunge.merging.run import MergeResult
from expunge.methods.editing import Linear


@pytest.fixture
def other(pico_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pico_folder, tmp_path / "other")


def merged(base: Path, model: Path) -> MergeResult:
    return merge(Linear(), base=base, models=[model], out=model.parent / "out", quiet=True)


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def renumbered(folder: Path, count: int) -> None:
    """Turns the order of the first `count` words around."""
    said = json.loads((folder / "tokenizer.json").read_text())
    words = sorted(said["model"]["vocab"], key=said["model"]["vocab"].__getitem__)
    words[4 : 4 + count] = words[4 : 4 + count][::-1]
    said["model"]["vocab"] = {word: i for i, word in enumerate(words)}
    (folder / "tokenizer.json").write_text(json.dumps(said))


def test_tokens_with_other_ids_are_counted_and_most_of_them_are_refused(pico_folder: Path, other: Path) -> None:
    renumbered(other, 4)
    with pytest.warns(UserWarning, match="for 4 of 90 ids, such as 'is' for 'what': their rows are merged all the same"):
        assert "for 4 of 90 ids" in merged(pico_folder, other).sentences()
    renumbered(other, 80)
    with pytest.raises(ExpungeError, match=r"of 90 ids, .*: their vocabularies differ"):
        merge(Linear(), base=pico_folder, models=[other], out=other.parent / "second", quiet=True)
    assert not (other.parent / "second").exists()


def test_the_same_tokenizer_written_by_another_version_is_the_same(pico_folder: Path, other: Path) -> None:
    said = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(said, indent=7))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert "another token" not in merged(pico_folder, other).sentences()


def test_a_chat_template_that_the_result_has_not_is_said(pico_folder: Path, other: Path) -> None:
    change(other / "tokenizer_config.json", chat_template="{{ messages }}")
    assert f"the chat template of {other} is left out" in merged(pico_folder, other).sentences()


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"num_hidden_layers": 3}, "holds 2 layers, and its config.json describes 3"), ({"vocab_size": 50}, "says vocab_size 50")],
)
def test_a_base_that_lacks_what_its_config_describes_is_refused(
    fields: dict[str, int], said: str, pico_folder: Path, other: Path
) -> None:
    change(other / "config.json", **fields)
    with pytest.raises(ExpungeError, match=said):
        merge(Linear(), base=other, models=[pico_folder], out=other.parent / "out", quiet=True)
    assert not (other.parent / "out").exists()
