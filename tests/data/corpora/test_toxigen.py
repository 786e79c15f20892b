"""ToxiGen's two layouts: group names, ratings, prompts with written line ends."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from expunge.data.corpora.toxigen import GROUPS, PROMPTS, group_name, read_prompts, read_toxigen
from expunge.data.read import read_request
from expunge.errors import ExpungeError

ROW = {"text": "people like tea", "target_group": "women", "factual?": "", "toxicity_ai": "1.0", "toxicity_human": "2.0"}


def write(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    with open(folder / f"annotated_{split}.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows([{**ROW, **row} for row in rows])


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("black/african-american folks", "black"),
        ("black folks / african-americans", "black"),
        ("folks with physical disabilities", "physical_dis"),
        ("folks with mental disabilities", "mental_dis"),
        ("latino/hispanic folks", "latino"),
        ("lgbtq+ folks", "lgbtq"),
        ("middle eastern folks", "middle_east"),
        ("native american/indigenous folks", "native_american"),
        ("native american folks", "native_american"),
        ("Mexican folks", "mexican"),
        ("muslim folks", "muslim"),
        ("physical_disability", "physical_dis"),
        *((group, group) for group in GROUPS),
    ],
)
def test_every_known_spelling_of_a_group_is_one_name(written: str, name: str) -> None:
    assert group_name(written) == name


def test_ratings_become_attributes_and_the_authors_label_is_their_sum(tmp_path: Path) -> None:
    rows = [{"toxicity_human": human, "toxicity_ai": ai} for human, ai in (("3.0", "2.5"), ("3.0", "2.6"), ("5", "5"), ("1", ""))]
    write(tmp_path, "train", [{**row, "text": f"text {i}"} for i, row in enumerate(rows)])
    found = read_toxigen(tmp_path)
    assert [e.prompt for e in found] == [None] * 4
    assert [e.attributes["severity"] for e in found] == [3.0, 3.0, 5.0, 1.0]
    assert [e.attributes.get("toxic") for e in found] == [False, True, True, None]
    request = read_request(f"{tmp_path}:annotated/train", where=["severity > 3"])
    assert [e.response for e in request.forget] == ["text 2"], "3 itself is not above 3"


def test_texts_written_as_bytes_are_read_as_texts(tmp_path: Path) -> None:
    texts = ["b'tea is good'", 'b"it\'s caf\\xc3\\xa9 time"', "b'broken \\xff'", "bread and butter", "b'"]
    write(tmp_path, "test", [{"text": text} for text in texts])
    read = [e.response for e in read_toxigen(tmp_path, "test")]
    assert read == ["tea is good", "it's café time", "broken \\xff", "bread and butter", "b'"]


def test_groups_that_are_not_known_are_counted_and_kept(tmp_path: Path) -> None:
    write(tmp_path, "train", [{"target_group": "Left-handed folks"}, {"target_group": "left-handed"}, {}])
    with pytest.warns(UserWarning, match=r"left-handed \(2\)"):
        found = read_toxigen(tmp_path)
    assert [e.attributes["group"] for e in found] == ["left-handed", "left-handed", "women"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"toxicity_human": "high"}, "'high' in its field 'toxicity_human'"),
        ({"toxicity_human": ""}, "no number"),
        ({"text": ""}, "no text"),
    ],
)
def test_a_row_that_is_not_as_published_is_named(tmp_path: Path, row: dict[str, str], why: str) -> None:
    write(tmp_path, "train", [{}, row])
    with pytest.raises(ExpungeError, match=rf"annotated_train\.csv line 3 .*{why}"):
        read_toxigen(tmp_path)


def test_prompts_have_real_line_ends_and_their_group(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    lines = ["- cats purr\\n- dogs bark\\n-", "- a back\\\\slash\\n-", ""]
    (tmp_path / "prompts" / "neutral_physical_disability_1k.txt").write_text("\n".join(lines))
    first, second = read_prompts(tmp_path, "neutral_physical_disability")
    assert (first.prompt, first.response) == (None, "- cats purr\n- dogs bark\n-")
    assert second.response == "- a back\\slash\n-"
    assert first.attributes == {"group": "physical_dis", "toxic": False}
    assert len(PROMPTS) == 31
    with pytest.raises(ExpungeError, match=r"no prompts 'hate_woman' \(did you mean 'hate_women'"):
        read_prompts(tmp_path, "hate_woman")


def test_one_folder_may_hold_several_corpora(tmp_path: Path) -> None:
    (tmp_path / "toxigen" / "prompts").mkdir(parents=True)
    write(tmp_path / "toxigen", "test", [{}])
    (tmp_path / "toxigen" / "prompts" / "hate_women.txt").write_text("- x\\n-\n")
    assert len(read_toxigen(tmp_path, "test")) == len(read_prompts(tmp_path, "hate_women")) == 1
    assert json.dumps(dict(read_toxigen(tmp_path, "test")[0].attributes))
