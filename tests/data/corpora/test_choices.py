"""WMDP, MMLU and ARC: layouts, fields, prompts, and errors that name what is missing."""

import json
from pathlib import Path

import pytest

from expunge.data.corpora import arc, mmlu, wmdp
from expunge.errors import ExpungeError

ROW = {"question": "What is it?", "choices": ["this", "that", "both", "none"], "answer": 2}


def test_wmdp_is_asked_in_the_words_of_lm_eval(tmp_path: Path) -> None:
    (tmp_path / "bio-questions.json").write_text(json.dumps([ROW]))
    (question,) = wmdp.read_wmdp(tmp_path, "bio")
    assert (question.response, question.answer, question.attributes["domain"]) == ("both", 2, "bio")
    asked = wmdp.ask(question)
    assert asked.prompt == (
        "The following are multiple choice questions (with answers) about biology.\n\nWhat is it?\nA. this\nB. that\nC. both\n"
        "D. none\nAnswer:"
    )
    assert asked.response == " C"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({**ROW, "answer": 4}, "the answer 4"),
        ({**ROW, "answer": "2"}, "no whole number in its field 'answer'"),
        ({**ROW, "choices": ["a", "b"]}, "2 choices"),
        ({**ROW, "question": " "}, "no text in its field 'question'"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_place(tmp_path: Path, row: dict[str, object], why: str) -> None:
    (tmp_path / "cyber-questions.json").write_text(json.dumps([ROW, row]))
    with pytest.raises(ExpungeError, match=rf"cyber-questions\.json row 2 .*{why}"):
        wmdp.read_wmdp(tmp_path, "cyber")


def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=r"holds no chem-questions\.json .* get it from cais/wmdp"):
        wmdp.read_wmdp(tmp_path, "chem")
    with pytest.raises(ExpungeError, match=r"there is no folder .*nowhere"):
        mmlu.read_mmlu(tmp_path / "nowhere", "anatomy")
    with pytest.raises(ExpungeError, match=r"holds no test/anatomy_test\.csv .* get it from cais/mmlu"):
        mmlu.read_mmlu(tmp_path, "anatomy")


@pytest.mark.parametrize(
    "lines",
    ['question,choice0,choice1,choice2,choice3,answer\n"A, or B?",w,x,y,z,1\n', '"A, or B?",w,x,y,z,B\n'],
    ids=["named columns", "no names"],
)
def test_both_layouts_of_mmlu_are_read(tmp_path: Path, lines: str) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "anatomy_test.csv").write_text(lines)
    (question,) = mmlu.read_mmlu(tmp_path, "anatomy")
    assert (question.prompt, question.response, question.answer) == ("A, or B?", "x", 1)


def test_mmlu_names_the_subject_in_words_and_a_wrong_subject_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "high_school_physics_dev.csv").write_text("q,w,x,y,z,D\n")
    (question,) = mmlu.read_mmlu(tmp_path, "high_school_physics", "dev")
    assert (mmlu.ask(question, [question]).prompt or "").startswith(
        "The following are multiple choice questions (with answers) about high school physics.\n\nq\nA. w\nB. x\nC. y\nD. z\n"
        "Answer: D\n\nq\nA. w"
    )
    with pytest.raises(ExpungeError, match="did you mean 'anatomy'"):
        mmlu.read_mmlu(tmp_path, "anatomie")


@pytest.mark.parametrize("line", ["q,w,x,y,z\n", "q,w,x,y,z,E\n", "q,w,x,y,z,\n", ",w,x,y,z,A\n"])
def test_a_broken_line_of_mmlu_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "anatomy_test.csv").write_text("q,w,x,y,z,A\n" + line)
    with pytest.raises(ExpungeError, match=r"anatomy_test\.csv row 2 is not a question"):
        mmlu.read_mmlu(tmp_path, "anatomy")


def test_every_subject_of_mmlu_is_in_one_category_and_subsets_are_subjects() -> None:
    assert len(mmlu.SUBJECTS) == len(set(mmlu.SUBJECTS)) == 57
    assert [len(mmlu.CATEGORIES[c]) for c in ("stem", "humanities", "social_sciences", "other")] == [19, 13, 12, 13]
    assert all(subject in mmlu.SUBJECTS for subjects in mmlu.SUBSETS.values() for subject in subjects)


PUBLISHED = {
    "question": {"stem": "Why?", "choices": [{"text": "so", "label": "1"}, {"text": "no", "label": "2"}]},
    "answerKey": "2",
}
FLAT = {"question": "Why?", "choices": {"text": ["so", "no"], "label": ["1", "2"]}, "answerKey": "2"}


@pytest.mark.parametrize("row", [PUBLISHED, FLAT], ids=["published", "hub"])
def test_both_layouts_of_arc_are_read(tmp_path: Path, row: dict[str, object]) -> None:
    (tmp_path / "ARC-Challenge-Test.jsonl").write_text(json.dumps(row) + "\n")
    (question,) = arc.read_arc(tmp_path, "challenge")
    assert (question.prompt, question.choices, question.answer, question.response) == ("Why?", ("so", "no"), 1, "no")


def test_an_answer_key_that_is_no_label_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ARC-Easy-Test.jsonl").write_text(json.dumps({**FLAT, "answerKey": "C"}) + "\n")
    with pytest.raises(ExpungeError, match=r"line 1 has the answer C, which is none of its choices \(1, 2\)"):
        arc.read_arc(tmp_path, "easy")


def test_one_folder_may_hold_all_corpora(tmp_path: Path) -> None:
    for name in ("wmdp", "mmlu/test", "arc/ARC-Easy"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "wmdp/bio-questions.json").write_text(json.dumps([ROW]))
    (tmp_path / "mmlu/test/anatomy_test.csv").write_text("q,w,x,y,z,A\n")
    (tmp_path / "arc/ARC-Easy/ARC-Easy-Test.jsonl").write_text(json.dumps(FLAT) + "\n")
    assert len(wmdp.read_wmdp(tmp_path)) == len(mmlu.read_mmlu(tmp_path, "anatomy")) == len(arc.read_arc(tmp_path)) == 1


@pytest.mark.real
def test_the_real_files_are_whole(data_root: Path) -> None:
    assert [len(wmdp.read_wmdp(data_root / "wmdp", domain)) for domain in wmdp.DOMAINS] == [1520, 412, 2225]
    assert sum(len(mmlu.read_mmlu(data_root / "mmlu", subject)) for subject in mmlu.SUBJECTS) == 14042
    assert all(len(mmlu.read_mmlu(data_root / "mmlu", subject, "dev")) == 5 for subject in mmlu.SUBJECTS)
