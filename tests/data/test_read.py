"""Every kind of file gives the same examples, and every bad row is one sentence with file, line and reason."""

import csv
import gzip
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest

from expunge.data.example import Example, fingerprint
from expunge.data.read import read_examples, read_lines, read_request
from expunge.errors import ExpungeError

ROWS: list[dict[str, Any]] = [
    {"prompt": "Where is Anna?", "response": "In Paris,\nsince May.", "attributes": {"person": "anna", "severity": 2}},
    {
        "prompt": "Who is Boris?",
        "response": "Ein Bäcker \u2028 日本",
        "paraphrases": ["A baker."],
        "perturbed": ["A judge.", "A pilot."],
    },
    {"prompt": "Which?", "choices": ["red", "green", "blue"], "answer": 2},
]
EXAMPLES = (
    Example("Where is Anna?", "In Paris,\nsince May.", attributes={"person": "anna", "severity": 2}),
    Example("Who is Boris?", "Ein Bäcker \u2028 日本", paraphrases=("A baker.",), perturbed=("A judge.", "A pilot.")),
    Example("Which?", "blue", choices=("red", "green", "blue"), answer=2),
)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if isinstance(v, str | int) else json.dumps(v) for k, v in row.items()})
    return path


def as_table(rows: list[dict[str, Any]]) -> datasets.Dataset:
    """Tables have every column in every row, null where there is nothing."""
    names = dict.fromkeys(name for row in rows for name in row)
    return datasets.Dataset.from_list([{name: row.get(name) for name in names} for row in rows])


class TestKinds:
    def test_all_kinds_of_files_give_the_same_examples(self, tmp_path):
        lines = write(tmp_path / "a.jsonl", ROWS)
        zipped = tmp_path / "b.jsonl.gz"
        zipped.write_bytes(gzip.compress(lines.read_bytes()))
        listed = tmp_path / "c.json"
        listed.write_text(json.dumps(ROWS, indent=2))
        lined = write(tmp_path / "d.json", ROWS)
        table = write_csv(tmp_path / "e.csv", ROWS)
        parquet = tmp_path / "f.parquet"
        as_table(ROWS).to_parquet(parquet)
        saved = tmp_path / "g"
        as_table(ROWS).save_to_disk(str(saved))
        folder = tmp_path / "h"
        folder.mkdir()
        write(folder / "only.jsonl", ROWS)
        (folder / "README.md").write_text("about")
        for path in (lines, zipped, listed, lined, table, parquet, saved, folder, str(lines)):
            read = read_examples(path)
            assert read == EXAMPLES, path
            assert fingerprint(read) == fingerprint(EXAMPLES)

    def test_a_byte_order_mark_and_blank_lines_are_no_rows(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n  \n{"text": "two"}')
        assert read_examples(path) == (Example(None, "one"), Example(None, "two"))

    def test_a_list_or_lines_of_bare_texts_are_raw_texts(self, tmp_path):
        texts = ["Once upon a time\nthere was", 'a "dog"']
        expected = tuple(Example(None, text) for text in texts)
        (tmp_path / "a.json").write_text(json.dumps(texts, indent=1))
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
        assert read_examples(tmp_path / "a.json") == read_examples(tmp_path / "a.jsonl") == expected

    def test_raw_text_is_the_text_and_never_the_json_line(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", [{"text": "A virus.", "id": 7, "title": "x"}])
        assert read_examples(path) == (Example(None, "A virus."),)

    def test_question_and_answer_are_prompt_and_response_without_choices(self, tmp_path):
        path = write(tmp_path / "a.jsonl", [{"question": "2+2?", "answer": "4"}])
        assert read_examples(path) == (Example("2+2?", "4"),)

    def test_prompt_and_response_go_before_a_text_column(self, tmp_path):
        path = write(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b", "text": "a b"}])
        assert read_examples(path) == (Example("a", "b"),)
        assert read_examples(path, columns={"text": "text"}) == (Example(None, "a b"),)

    def test_nulls_are_missing(self, tmp_path):
        row = {
            "prompt": "a",
            "response": "b",
            "text": None,
            "choices": None,
            "paraphrases": None,
            "attributes": {"x": None, "y": 1},
        }
        assert read_examples(write(tmp_path / "a.jsonl", [row])) == (Example("a", "b", attributes={"y": 1}),)

    def test_a_csv_cell_may_be_longer_than_the_readers_default_limit(self, tmp_path):
        text = "long " * 60_000
        assert read_examples(write_csv(tmp_path / "a.csv", [{"text": text}]))[0].response == text

    def test_tofus_column_names_are_known(self, tmp_path):
        row = {
            "question": "q",
            "answer": "a",
            "paraphrased_answer": "p",
            "perturbed_answer": ["x", "y"],
            "paraphrased_question": "r",
        }
        assert read_examples(write(tmp_path / "a.jsonl", [row])) == (Example("q", "a", paraphrases=("p",), perturbed=("x", "y")),)

    def test_reading_needs_neither_torch_nor_datasets(self, tmp_path):
        path = write(tmp_path / "a.jsonl", ROWS)
        code = f"import sys; from expunge.data.read import read_examples; read_examples({str(path)!r}); "
        code += "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow', 'pandas') if m in sys.modules])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


class TestColumns:
    def test_columns_name_fields_and_attributes(self, tmp_path):
        path = write_csv(tmp_path / "a.csv", [{"instruction": "i", "input": "n", "output": "o", "target_group": "g"}])
        columns = {"prompt": "instruction", "response": "output", "attributes.group": "target_group"}
        with pytest.warns(UserWarning, match="have an `input` beside their instruction"):
            assert read_examples(path, columns=columns) == (Example("i\nn", "o", attributes={"group": "g"}),)

    def test_a_mapped_column_replaces_the_default_name(self, tmp_path):
        path = write(tmp_path / "a.jsonl", [{"prompt": "old", "question": "new", "response": "r"}])
        assert read_examples(path, columns={"prompt": "question"})[0].prompt == "new"

    def test_a_column_that_is_nowhere_is_named_with_those_that_are(self, tmp_path):
        path = write(tmp_path / "a.jsonl", [{"instruction": "i", "output": "o"}])
        message = r"a\.jsonl has no column 'instructions' for prompt \(did you mean 'instruction'\?\); it has instruction, output"
        with pytest.raises(ExpungeError, match=message):
            read_examples(path, columns={"prompt": "instructions", "response": "output"})

    def test_an_unknown_field_is_named_with_the_nearest(self, tmp_path):
        path = write(tmp_path / "a.jsonl", ROWS)
        with pytest.raises(ExpungeError, match=r"cannot map 'respons' \(did you mean 'response'\?\)"):
            read_examples(path, columns={"respons": "prompt"})


class TestBadRows:
    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"prompt": "a"}, "has a prompt and no response"),
            ({"question": "a", "answr": "b"}, "has a prompt and no response"),
            ({"response": "a"}, "has a response and no prompt"),
            ({"body": "a", "id": 1}, r"has no prompt, response or text \(it has body, id\)"),
            ({}, r"has no prompt, response or text \(it has nothing\)"),
            ({"prompt": "a", "response": "  "}, "has an empty response"),
            ({"prompt": "", "response": "b"}, "has an empty prompt"),
            ({"text": "\n"}, "has an empty text"),
            ({"prompt": "a", "response": 3}, "has a response that is a number"),
            ({"prompt": ["a"], "response": "b"}, "has a prompt that is a list"),
            ({"question": "a", "answer": 3}, "has the number 3 as its answer and no choices"),
            ({"prompt": "a", "choices": ["x"], "answer": 0}, "has 1 choices"),
            ({"prompt": "a", "choices": ["x", "y"], "answer": 2}, r"has choices, and its answer is 2; .* 0 to 1"),
            ({"prompt": "a", "choices": ["x", "y"], "answer": -1}, "has choices, and its answer is -1"),
            ({"prompt": "a", "choices": ["x", "y"], "answer": True}, "has choices, and its answer is True"),
            ({"prompt": "a", "choices": ["x", "y"], "answer": "B"}, "has choices, and its answer is 'B'"),
            ({"prompt": "a", "choices": ["x", "y"]}, "has choices, and its answer is None"),
            (
                {"prompt": "a", "choices": ["x", "y"], "answer": 0, "response": "y"},
                "has a response that is not its choice number 0",
            ),
            ({"choices": ["x", "y"], "answer": 0}, "has choices and no prompt"),
            ({"prompt": "a", "choices": [1, 2], "answer": 0}, "has a choices item that is a number"),
            ({"prompt": "a", "response": "b", "perturbed": ["x", ""]}, "has an empty perturbed item"),
            ({"prompt": "a", "response": "b", "paraphrases": {"x": "y"}}, "has paraphrases that are a map"),
            ({"prompt": "a", "response": "b", "attributes": ["x"]}, "has attributes that are a list"),
            ({"prompt": "a", "response": "b", "attributes": "topic"}, "has attributes that are not JSON"),
            ({"prompt": "a", "response": "b", "attributes": {"x": {"y": 1}}}, "has an attribute 'x' that is a map"),
            ({"prompt": "a", "response": "half \ud83d"}, "has half a character"),
            (["prompt", "response"], "is not an object"),
        ],
    )
    def test_a_bad_row_is_named_by_file_line_and_reason(self, tmp_path, row: Any, reason: str):
        path = tmp_path / "forget.jsonl"
        path.write_text(json.dumps({"prompt": "good", "response": "row"}) + "\n\n" + json.dumps(row) + "\n")
        with pytest.raises(ExpungeError, match=rf"forget\.jsonl line 3 {reason}") as error:
            read_examples(path)
        assert "\n" not in str(error.value)

    def test_rows_of_lists_and_tables_are_named_too(self, tmp_path):
        listed = tmp_path / "a.json"
        listed.write_text(json.dumps([{"prompt": "a", "response": "b"}, {"prompt": "c"}]))
        parquet = tmp_path / "a.parquet"
        datasets.Dataset.from_list([{"prompt": "a", "response": "b"}, {"prompt": "c", "response": None}]).to_parquet(parquet)
        table = tmp_path / "a.csv"
        table.write_text('prompt,response\n"two\nlines",b\nc,\n')
        for path, where in ((listed, "row 2"), (parquet, "row 2"), (table, "line 4")):
            with pytest.raises(ExpungeError, match=f"{re.escape(path.name)} {where} has a prompt and no response"):
                read_examples(path)

    def test_broken_files_are_named(self, tmp_path):
        zipped = bytearray(gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(99))))
        zipped[10] = 0xFF  # no kind of block is called so
        broken: dict[str, tuple[bytes, str]] = {
            "bits.jsonl.gz": (bytes(zipped), r"bits\.jsonl\.gz cannot be read"),
            "bits.csv.gz": (bytes(zipped), r"bits\.csv\.gz is not CSV"),
            "cut.jsonl.gz": (bytes(zipped[:9]), r"cut\.jsonl\.gz cannot be read"),
            "a.jsonl": (b'{"text": "x"}\n{"text": \n', r"a\.jsonl line 2 is not JSON"),
            "b.jsonl": (b'{"text": "x"}\n{"text": "\xff"}\n', r"b\.jsonl is not UTF-8 in line 2"),
            "c.json": (b'[{"text": "x"}', r"c\.json is not JSON"),
            "deep.jsonl": (
                b'{"text": ' + 9999 * b"[" + 9999 * b"]" + b"}\n",
                r"deep\.jsonl line 1 is not JSON .it is nested too deep",
            ),
            "d.json": (b"[5]", r"d\.json row 1 is not an object"),
            "e.csv": (b"prompt,response\na,b,c\n", r"e\.csv line 2 has more cells"),
            "twice.csv": (b"prompt,response,prompt\na,b,c\n", r"twice\.csv has two columns 'prompt'"),
            "f.csv": (b'prompt,response\n"a,b\n', r"f\.csv is not CSV"),
            "g.parquet": (b"PAR", r"g\.parquet is not Parquet"),
            "h.jsonl.gz": (b"not zipped", r"h\.jsonl\.gz cannot be read"),
            "i.jsonl": (b"\n\n", r"i\.jsonl holds no examples"),
            "j.json": (b"[]", r"j\.json holds no examples"),
            "k.csv": (b"prompt,response\n", r"k\.csv holds no examples"),
            "l.xlsx": (b"PK", r"l\.xlsx has no supported format; give \.jsonl, \.json, \.csv, \.parquet"),
        }
        for name, (content, message) in broken.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ExpungeError, match=message):
                read_examples(tmp_path / name)

    def test_a_datasets_folder_whose_list_of_splits_is_broken_is_said(self, tmp_path):
        (tmp_path / "dataset_dict.json").write_text("{")
        with pytest.raises(ExpungeError, match="is not a whole datasets folder"):
            read_examples(tmp_path)

    def test_missing_files_are_named_without_a_look_at_the_hub(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data" / "tofu").mkdir(parents=True)
        for source in (tmp_path / "nothing.jsonl", "data/nothing.jsonl", "./data/nothing", "/a/b/c"):
            with pytest.raises(ExpungeError, match=f"there is no file or folder {re.escape(str(Path(source)))}"):
                read_examples(source)
        with pytest.raises(ExpungeError, match=r"data/tofu holds no forget01\.jsonl"):
            read_examples("data/tofu:forget01")

    def test_a_folder_of_several_files_or_splits_asks_for_one(self, tmp_path):
        write(tmp_path / "a.jsonl", ROWS)
        write(tmp_path / "b.jsonl", ROWS)
        with pytest.raises(ExpungeError, match=r"holds 2 data files where one is needed \(a\.jsonl, b\.jsonl\)"):
            read_examples(tmp_path)
        saved = tmp_path / "saved"
        one = as_table(ROWS)
        datasets.DatasetDict(train=one, test=one).save_to_disk(str(saved))
        with pytest.raises(ExpungeError, match=r"holds several splits; give one of .*saved/train, .*saved/test"):
            read_examples(saved)
        assert read_examples(saved / "test") == EXAMPLES
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(ExpungeError, match=r"holds 0 data files where one is needed \(none\)"):
            read_examples(empty)


class TestHub:
    @pytest.mark.parametrize(
        ("source", "split", "asked"),
        [
            ("locuslab/TOFU", None, ("locuslab/TOFU", None, None)),
            ("locuslab/TOFU:forget01", None, ("locuslab/TOFU", "forget01", None)),
            ("locuslab/TOFU:forget01", "train", ("locuslab/TOFU", "forget01", "train")),
            ("muse-bench/MUSE-News:raw/retain1", None, ("muse-bench/MUSE-News", "raw", "retain1")),
            ("a/b:/test", None, ("a/b", None, "test")),
        ],
    )
    def test_an_id_names_data_set_configuration_and_split(
        self, monkeypatch, source: str, split: str | None, asked: tuple[Any, ...]
    ):
        calls = []

        def load_dataset(path: str, name: str | None = None, split: str | None = None) -> Any:
            calls.append((path, name, split))
            data = datasets.Dataset.from_list([{"question": "q", "answer": "a"}])
            return data if split else datasets.DatasetDict(train=data)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert read_examples(source, split=split) == (Example("q", "a"),)
        assert calls == [asked]

    def test_several_splits_ask_for_one(self, monkeypatch):
        data = datasets.Dataset.from_list([{"text": "x"}])
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.DatasetDict(train=data, test=data))
        with pytest.raises(ExpungeError, match=r"a/b:c has the splits train, test; give one as a/b:c/SPLIT"):
            read_examples("a/b:c")

    def test_what_the_hub_refuses_is_one_sentence(self, monkeypatch):
        def load_dataset(*args: Any, **kwargs: Any) -> Any:
            raise ValueError("Config name is missing.\nPlease pick one among: ['raw', 'knowmem']")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        message = r"there is no file a/b, and as a hub id it cannot be loaded: Config name is missing\. Please pick one"
        with pytest.raises(ExpungeError, match=message) as error:
            read_examples("a/b")
        assert "\n" not in str(error.value)

    def test_without_network_it_is_one_sentence(self):
        # HF_HUB_OFFLINE is set for all tests.
        with pytest.raises(ExpungeError, match=r"nobody/nothing.*cannot be loaded"):
            read_examples("nobody/nothing")


class TestRequest:
    def test_sets_are_read_from_one_source_or_several(self, tmp_path):
        a = write(tmp_path / "a.jsonl", [{"text": "a"}])
        b = write(tmp_path / "b.jsonl", [{"text": "b"}])
        c = write(tmp_path / "c.jsonl", [{"text": "c"}])
        lines = tmp_path / "refusals.txt"
        lines.write_text("No.\n")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            request = read_request([a, str(b)], c, refusals=lines)
        assert request.forget == (Example(None, "a"), Example(None, "b"))
        assert (request.retain, request.holdout, request.refusals) == ((Example(None, "c"),), (), ("No.",))

    def test_an_empty_forget_set_is_an_error(self, tmp_path):
        with pytest.raises(ExpungeError, match="the forget set is empty"):
            read_request([])
        with pytest.raises(ExpungeError, match=r"a\.jsonl holds no examples"):
            read_request(write(tmp_path / "a.jsonl", []))

    def test_overlaps_and_repeats_are_counted_in_warnings(self, tmp_path):
        rows = [{"prompt": f"p{i}", "response": "r"} for i in range(6)]
        forget = write(tmp_path / "f.jsonl", [*rows[:4], rows[0]])
        retain = write(tmp_path / "r.jsonl", [*rows[2:], rows[3]])
        holdout = write(tmp_path / "h.jsonl", [rows[0], rows[5], {"prompt": "p1", "response": "another"}])
        with pytest.warns(UserWarning, match="examples") as caught:
            read_request(forget, retain, holdout)
        messages = [str(w.message) for w in caught]
        assert [m.split(" examples")[0] for m in messages] == ["1 of 5 forget", "2 of 4 forget", "2 of 3 holdout"]
        assert "retain set" in messages[1]

    def test_rows_never_seen_are_not_all_rows_that_are_trained_on(self, tmp_path):
        forget = write(tmp_path / "f.jsonl", [{"prompt": f"p{i}", "response": "r"} for i in range(3)])
        with pytest.raises(ExpungeError, match="every holdout example is also trained on"):
            read_request(forget, holdout=forget)

    def test_columns_hold_for_every_set(self, tmp_path):
        a = write(tmp_path / "a.jsonl", [{"q": "1", "a": "x"}])
        b = write(tmp_path / "b.jsonl", [{"q": "2", "a": "y"}])
        request = read_request(a, b, columns={"prompt": "q", "response": "a"})
        assert (request.forget[0].prompt, request.retain[0].prompt) == ("1", "2")


class TestLines:
    def test_lines_are_plain_or_json_strings(self, tmp_path):
        path = tmp_path / "idontknow.jsonl"
        path.write_text('I\'m not sure.\n\n"A \\"quoted\\" text."\n"No" is all I say.\n[withheld]\n')
        assert read_lines(path) == ("I'm not sure.", 'A "quoted" text.', '"No" is all I say.', "[withheld]")

    def test_objects_empty_and_missing_files_are_refused(self, tmp_path):
        with pytest.raises(ExpungeError, match=r"a\.jsonl line 1 is a JSON object"):
            read_lines(write(tmp_path / "a.jsonl", [{"text": "No."}]))
        with pytest.raises(ExpungeError, match=r"b\.txt holds no texts"):
            read_lines(write(tmp_path / "b.txt", []))
        with pytest.raises(ExpungeError, match=r"there is no file .*c\.txt"):
            read_lines(tmp_path / "c.txt")
