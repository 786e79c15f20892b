"""Civil Comments, RealToxicityPrompts, WMDP's texts and WikiText: layouts and fields; nothing but the text is text."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from expunge.data.corpora.civil_comments import read_civil_comments
from expunge.data.corpora.real_toxicity_prompts import read_real_toxicity_prompts
from expunge.data.corpora.wikitext import is_heading, read_wikitext
from expunge.data.corpora.wmdp import read_wmdp_corpus
from expunge.data.read import read_examples, read_request
from expunge.errors import ExpungeError

SCORES = ("toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack", "sexual_explicit")


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class TestCivilComments:
    def test_scores_become_attributes_that_conditions_see(self, tmp_path: Path) -> None:
        names = ",".join(("id", "text", *SCORES, "muslim", "other_disability"))
        (tmp_path / "train.csv").write_text(
            f"{names}\n1,so nice,0.9,0.4,0,0,0,0,0,1.0,\n2,,0,0,0,0,0,0,0,,\n3,not so,0.2,0,0,0,0,0,0,,0\n"
        )
        first, second = read_civil_comments(tmp_path)
        assert (first.prompt, first.response, first.attributes["severe_toxicity"]) == (None, "so nice", 0.4)
        assert first.attributes["muslim"] == 1.0
        assert "other_disability" not in first.attributes
        assert second.attributes["other_disability"] == 0.0
        assert [e.response for e in read_request(f"{tmp_path}:train", where=["severe_toxicity > 0.35"]).forget] == ["so nice"]

    def test_kaggles_names_are_read_too(self, tmp_path: Path) -> None:
        (tmp_path / "train.csv").write_text("id,target,comment_text,severe_toxicity\n1,0.5,well then,0.1\n")
        (only,) = read_civil_comments(tmp_path)
        assert (only.response, dict(only.attributes)) == ("well then", {"toxicity": 0.5, "severe_toxicity": 0.1})

    def test_shards_are_read_in_order(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        for shard in (1, 0):
            rows = [{"text": f"shard {shard}", **dict.fromkeys(SCORES, 0.5)}]
            datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / f"data/train-0000{shard}-of-00002.parquet"))
        assert [e.response for e in read_civil_comments(tmp_path)] == ["shard 0", "shard 1"]

    def test_a_row_without_scores_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "test.csv").write_text("text,toxicity\nfine,0.1\nno number,\n")
        with pytest.raises(ExpungeError, match=r"test\.csv line 3 has no number in its field 'toxicity'"):
            read_civil_comments(tmp_path, "test")


class TestRealToxicityPrompts:
    def test_records_become_prompt_response_and_scores(self, tmp_path: Path) -> None:
        row = {
            "filename": "f",
            "challenging": True,
            "prompt": {"text": "The rain in", "toxicity": 0.25, "insult": None},
            "continuation": {"text": " Spain stays", "toxicity": 0.75},
        }
        (tmp_path / "prompts.jsonl").write_text(lines(row))
        (only,) = read_real_toxicity_prompts(tmp_path)
        assert (only.prompt, only.response) == ("The rain in", " Spain stays")
        assert only.attributes == {"challenging": True, "toxicity": 0.25, "continuation_toxicity": 0.75}
        assert len(read_examples(f"{tmp_path}:prompts[toxicity < 0.5][challenging = true]")) == 1

    def test_flat_rows_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "prompts.jsonl").write_text(lines({"prompt": "x", "continuation": "y"}))
        with pytest.raises(ExpungeError, match="line 1 has no record with text and scores in its field 'prompt'"):
            read_real_toxicity_prompts(tmp_path)


class TestWmdpTexts:
    def test_the_text_is_forgotten_and_not_the_json_around_it(self, tmp_path: Path) -> None:
        (tmp_path / "cyber-forget-corpus.jsonl").write_text(lines({"text": 'a "quoted"\nline'}, {"text": ""}, {"text": "two"}))
        papers = {"title": "A title", "abstract": "An abstract", "text": "The paper", "doi": "1"}
        (tmp_path / "bio_remove_dataset.jsonl").write_text(lines(papers))
        cyber, bio = read_wmdp_corpus(tmp_path), read_wmdp_corpus(tmp_path, "bio-forget-corpus")
        assert [e.response for e in cyber] == ['a "quoted"\nline', "two"]
        assert [e.response for e in bio] == ["The paper"]
        request = read_request([f"{tmp_path}:bio-forget-corpus", f"{tmp_path}:cyber-forget-corpus"])
        assert [e.attributes["domain"] for e in request.forget] == ["bio", "cyber", "cyber"]
        assert request.forget_sources == (1, 2)

    def test_plain_lines_and_rows_without_text_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "cyber-forget-corpus.jsonl").write_text("int main() {\n")
        with pytest.raises(ExpungeError, match="line 1 is not JSON"):
            read_wmdp_corpus(tmp_path)
        (tmp_path / "cyber-forget-corpus.jsonl").write_text(lines({"code": "x"}))
        with pytest.raises(ExpungeError, match="line 1 has no text in its field 'text'"):
            read_wmdp_corpus(tmp_path)


class TestWikiText:
    def test_lines_are_as_published_without_the_empty_ones(self, tmp_path: Path) -> None:
        published = ["", " = A Title = \n", "", " First . \n", " = = A Section = = \n", " = is a sign . \n"]
        (tmp_path / "wiki.test.raw").write_text(" \n" + "".join(line or " \n" for line in published))
        datasets.Dataset.from_list([{"text": line} for line in published]).to_parquet(str(tmp_path / "x.parquet"))
        (tmp_path / "wikitext-2-raw-v1").mkdir()
        plain = read_wikitext(tmp_path)
        (tmp_path / "x.parquet").rename(tmp_path / "wikitext-2-raw-v1/test-00000-of-00001.parquet")
        assert read_wikitext(tmp_path) == plain
        assert [e.response for e in plain] == [line for line in published if line]
        assert [e.attributes["heading"] for e in plain] == [True, False, True, False]
        without = read_examples(f"{tmp_path}:wikitext-2-raw-v1/test[heading = false]")
        assert [e.response for e in without] == [" First . \n", " = is a sign . \n"]

    @pytest.mark.parametrize(("line", "heading"), [(" = A = \n", True), ("= = B C = =", True), (" = \n", False), ("= a", False)])
    def test_a_heading_has_signs_on_both_sides(self, line: str, heading: bool) -> None:
        assert is_heading(line) is heading

    def test_a_set_without_text_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "test.txt").write_text(" \n\n")
        with pytest.raises(ExpungeError, match="holds no text in its set wikitext-2-raw-v1/test"):
            read_wikitext(tmp_path)

    @pytest.mark.real
    def test_the_real_files_are_read(self, data_root: Path) -> None:
        test, valid = (read_examples(f"{data_root}/wikitext2:wikitext-2-v1/{split}") for split in ("test", "validation"))
        assert (len(test), len(valid)) == (2891, 2461)
        assert test[0].response == " = Robert <unk> = \n"
        assert sum(bool(e.attributes["heading"]) for e in test) == 706
        assert read_wikitext(data_root, "wikitext-2-v1") == test
