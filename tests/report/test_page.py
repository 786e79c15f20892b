import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from expunge.errors import ExpungeError
from expunge.records import Evaluation, write_json
from expunge.report import forget_effect, read_run, report, retain_kept
from expunge.report.glossary import interval, meaning, number, task_label


class Tables(HTMLParser):
    """Tables of a page: id -> rows of (text, small text, data-value, title); and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables, self.texts, self.tags = {}, [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "table":
            self.rows = self.tables[found["id"]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append({"text": "", "small": "", "value": found.get("data-value"), "title": found.get("title")})
            self.inside = "text"
        elif tag == "small":
            self.inside = "small"
        elif tag == "abbr":
            self.rows[-1][-1]["title"] = found["title"]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.inside = None
        elif tag == "small":
            self.inside = "text"

    def handle_data(self, data):
        self.texts.append(data)
        if getattr(self, "inside", None):
            self.rows[-1][-1][self.inside] += data


@pytest.fixture(scope="session")
def page(lab, tmp_path_factory) -> Path:
    return report(
        lab.runs,
        tmp_path_factory.mktemp("out") / "report",
        original=lab.original,
        gold=lab.gold,
        seed=7,
        seconds=231.0,
        show_forget_text=True,
    )


@pytest.fixture(scope="session")
def parsed(page) -> Tables:
    return Tables(page.read_text())


@pytest.fixture(scope="session")
def tofu_page(tofu, tmp_path_factory) -> Path:
    return report(tofu.runs, tmp_path_factory.mktemp("tofu-out"), original=tofu.original, gold=tofu.gold)


def test_every_promised_file_is_there(page):
    names = {p.name for p in page.parent.iterdir()}
    tables = {"index.html", "report.md", "table.tex", "report.json", "summary.json"}
    assert names == {*tables, "lab-tradeoff.svg", "lab-quality.svg", "curves.svg", "lab-kept.svg"}


def rows_by_model(rows, models):
    header, *body = rows
    assert [r[0]["text"] for r in body] == models
    return {r[0]["text"]: dict(zip([h["text"] for h in header], r, strict=True)) for r in body}


ORDER = ["original", "gold", "npo", "simnpo", "kl_minimization", "gradient_difference", "idk", "gradient_ascent"]


def test_the_summary_table_shows_the_records_with_their_intervals(parsed, lab):
    rows = rows_by_model(parsed.tables["lab-summary"], ORDER)
    original, gold = read_run(lab.original, "original"), read_run(lab.gold, "gold")
    for model in (original, gold, *map(read_run, lab.runs)):
        row = rows[model.name]
        for column, score in (
            ("forget effect", forget_effect(model, original, gold)),
            ("retain kept", retain_kept(model, original)),
            ("probability, Facts to forget", model.score("lab", "facts_forget", "probability")),
            ("probability, Facts to keep", model.score("lab", "facts_retain", "probability")),
            ("extraction strength, Facts to forget", model.score("lab", "facts_forget", "extraction_strength")),
            ("forget quality", model.score("lab", "suite", "forget_quality")),
            ("model utility", model.score("lab", "suite", "model_utility")),
        ):
            assert float(row[column]["value"]) == score.value
            assert row[column]["small"] == (interval(score.metric, score.low, score.high) or "")
    assert (rows["original"]["forget effect"]["text"], rows["gold"]["forget effect"]["text"]) == ("0.00", "1.00")
    assert rows["original"]["forget quality"]["text"] == "1.8·10−21"


def test_the_verdicts_tell_over_forgetting_from_knowing(parsed):
    rows = rows_by_model(parsed.tables["lab-summary"], ORDER)
    assert rows["simnpo"]["verdict"]["text"] == "indistinguishable from gold"
    assert rows["idk"]["verdict"]["text"] == "still known"
    assert rows["gradient_difference"]["verdict"]["text"] == "over-forgotten"
    assert rows["gradient_ascent"]["verdict"]["text"] == "over-forgotten, retain damaged"


def check_scores(rows, suite, models):
    """Every number of a score table equals its record, and none is missing."""
    records = {(task_label(s.task), meaning(s.metric).label, m.name): s for m in models for e in m.evaluations for s in e.scores}
    header, *body = rows
    names = [h["text"] for h in header[2:]]
    task, seen = "", 0
    for row in body:
        if len(row) == len(header):
            task = row.pop(0)["text"]
        metric = row.pop(0)["text"].split("\u00a0")[0]
        for name, cell in zip(names, row, strict=True):
            score = records[task, metric, name]
            seen += 1
            if score.value is None:
                assert (cell["text"][0], cell["title"]) == ("–", score.unscored)
            else:
                assert float(cell["value"]) == score.value
                assert cell["text"].replace("10−", "10") == re.sub("[⁻]", "", number(score.metric, score.value)).translate(
                    str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
                )
                assert cell["small"] == (interval(score.metric, score.low, score.high) or "")
    assert seen == len(records)


def test_every_score_stands_in_the_page_with_its_interval(parsed, lab):
    models = [read_run(lab.original, "original"), read_run(lab.gold, "gold"), *map(read_run, lab.runs)]
    check_scores(parsed.tables["lab-scores"], "lab", models)


def test_scores_that_are_missing_show_their_reason(tofu_page, tofu):
    parsed = Tables(tofu_page.read_text())
    models = [read_run(tofu.original, "original"), read_run(tofu.gold, "gold"), *map(read_run, tofu.runs)]
    check_scores(parsed.tables["tofu-scores"], "tofu", models)
    assert "Not drawn: rmu (no scores of a retain model were given" in " ".join(" ".join(parsed.texts).split())
    assert not (tofu_page.parent / "summary.json").exists()
    assert (tofu_page.parent / "tofu-tradeoff.svg").exists()


def test_the_headline_names_who_cannot_be_told_from_gold_and_what_tells_the_others(parsed):
    text = " ".join(" ".join(parsed.texts).split())
    start = (
        "6 methods were asked to forget 72 samples. npo cannot be told from a model that never learned them (forget effect 0.99,"
    )
    assert start in text
    assert "and neither can simnpo and kl_minimization." in text
    assert "gradient_difference: probability (over-forgotten)" in text
    assert re.search(r"The retain set is damaged by gradient_ascent \(0\.\d\d kept\)\.", text)


def test_the_table_against_gold_shows_each_statistic(parsed):
    rows = rows_by_model(parsed.tables["lab-gold"], ORDER[2:])
    assert float(rows["idk"]["probability"]["value"]) > 0.2
    assert float(rows["gradient_ascent"]["probability"]["value"]) < -0.2
    assert rows["simnpo"]["extraction strength"]["small"] == "p = 1.000"


@pytest.fixture
def of_languages(lab, tmp_path) -> list[Path]:
    """Two runs of the lab that were to forget a language each, and not the facts."""
    import shutil

    folders = []
    for task, source in (("language_velun", lab.runs[3]), ("language_orkai", lab.runs[4])):
        folders.append(Path(shutil.copytree(source, tmp_path / task)))
        path = folders[-1] / "evaluation/lab.json"
        found = json.loads(path.read_text())
        for score in found["scores"]:
            score["higher_is_better"] = score["task"] != task
            score["role"] = None if score["task"] == "suite" else "forget" if score["task"] == task else "retain"
        path.write_text(json.dumps(found))
        path = path.with_name("lab.samples.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        for sample in samples:
            sample["role"] = "forget" if sample["task"] == task else "retain"
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folders


def test_a_run_that_was_to_forget_other_tasks_is_not_measured_by_the_facts(lab, of_languages, tmp_path):
    page = report([*of_languages, lab.runs[2]], tmp_path / "out", original=lab.original, gold=lab.gold)
    text = " ".join(page.read_text().replace("\u00a0", " ").split())
    assert "1 method was asked to forget 72 samples. kl_minimization cannot be told from a model" in text
    assert "Each forgotten task drops by at least" in text
    rows = {r[0]["text"]: r[1]["text"] for r in Tables(page.read_text()).tables["lab-summary"]}
    assert (rows["language_velun"], rows["kl_minimization"]) == ("was to forget Language: velun", "indistinguishable from gold")
    assert "Not drawn: language_velun (it was to forget Language: velun)." in text
    alone = report(of_languages, tmp_path / "alone", original=lab.original, gold=lab.gold).read_text()
    assert "2 runs on the suite lab. Each forgotten task drops" in alone
    assert "it was to forget Language: velun" in alone
    assert "asked to forget 72 samples" not in alone


def test_a_long_headline_names_four_and_counts_the_rest(lab):
    from expunge.report.sections import section

    npo = read_run(lab.runs[3])
    runs = [npo.model_copy(update={"name": f"npo{i}"}) for i in range(6)]
    first, _ = section("lab", runs, read_run(lab.original), read_run(lab.gold), False).headline
    assert re.search(r"npo0 cannot be told .*, and neither can npo1, npo2, npo3 and 2 more\.$", first)


def test_where_none_passes_the_headline_says_what_tells_the_nearest_apart(lab):
    from expunge.report.sections import section

    first, _ = section("lab", [read_run(lab.runs[5])], read_run(lab.original), read_run(lab.gold), False).headline
    assert "None that kept the rest is indistinguishable from a model that never learned them. idk comes nearest" in first
    assert "is distinguished from it by extraction strength (still known)" in first


def test_without_gold_the_page_says_what_was_not_tested(lab, tmp_path):
    text = " ".join(report(lab.runs[:2], tmp_path, original=lab.original).read_text().split())
    assert "The lowest probability left is 0.008, gradient_ascent&#39;s (the original: 0.779)" in text
    assert "Whether a run can be told from a model that never saw the forget set was not tested" in text
    assert "Can it be told from gold?" not in text


def test_the_caption_says_on_which_side_more_is_forgotten(lab, tmp_path):
    def caption(name, **given):
        return " ".join(report(lab.runs[:2], tmp_path / name, **given).read_text().split())

    assert "Right is more forgotten" in caption("before", original=lab.original)
    assert "Left is more forgotten, up is more kept. How far left is far enough only a model" in caption("alone")
    assert "How far left is far enough gold shows" in caption("gold", gold=lab.gold)
    assert "In the green band" in caption("both", original=lab.original, gold=lab.gold)


def test_equal_inputs_give_equal_bytes(lab, page, tmp_path):
    again = report(lab.runs, tmp_path, original=lab.original, gold=lab.gold, seed=7, seconds=231.0, show_forget_text=True)
    for path in page.parent.iterdir():
        assert (again.parent / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_page_needs_nothing_from_outside_and_runs_nothing(page, parsed):
    text = page.read_text()
    assert "http" not in text
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text)
    assert "@import" not in text
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert not any(name.startswith("on") or name in ("src", "srcset") for _, attributes in parsed.tags for name in attributes)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_machine_readable_twin_holds_every_record(page, lab):
    models = {m["name"]: m for m in json.loads((page.parent / "report.json").read_text())["models"]}
    assert list(models) == ORDER
    assert [models[n]["role"] for n in ORDER[:3]] == ["original", "gold", "method"]
    for folder in lab.runs:
        run = read_run(folder)
        assert models[run.name]["scores"]["lab"] == json.loads(run.evaluation("lab").model_dump_json())["scores"]
        effect = models[run.name]["effects"][0]
        assert effect["metric"] == "forget_effect"
        assert effect["low"] < effect["value"] < effect["high"]


def test_the_summary_keeps_the_order_given(page, lab):
    summary = json.loads((page.parent / "summary.json").read_text())
    assert [r["name"] for r in summary["runs"]] == ["original", "gold", *(r.name for r in lab.runs)]
    assert (summary["seed"], summary["seconds"]) == (7, 231.0)


def test_seed_and_seconds_default_to_the_provenance(lab, tmp_path):
    report(lab.runs[:2], tmp_path, original=lab.original, gold=lab.gold)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seed"] == 7
    assert summary["seconds"] == pytest.approx(4 * 2 + (len("gradient_ascent") + len("gradient_difference")) / 10)


def test_original_and_gold_are_found_by_name(lab, tmp_path, page):
    report([*lab.runs, lab.gold, lab.original], tmp_path, seed=7, seconds=231.0, show_forget_text=True)
    assert (tmp_path / "index.html").read_bytes() == page.read_bytes()


def test_answers_of_all_models_stand_side_by_side(parsed):
    text = " ".join(" ".join(parsed.texts).split())
    assert "Facts to forget (4 of 72)" in text
    assert "Facts to keep (4 of 120)" in text
    assert "Where was Anna B. born?" in text
    assert "original, idk Lisbon. knows it" in text


def test_claims_and_provenance_are_stated(parsed):
    claims = parsed.tables["claims"]
    assert [row[0]["text"] for row in claims[1:]] == ["not yet shown", "L1 suppressed"]
    assert claims[1][1]["text"] == "idk"
    assert "forget effect below 0.8: probability 0.35" in claims[1][4]["text"]
    assert claims[2][1]["text"] == "npo, simnpo, kl_minimization, gradient_difference, gradient_ascent"
    assert "Not that the knowledge has left the weights" in claims[2][3]["text"]
    runs = {r[0]["text"]: [c["text"] for c in r] for r in parsed.tables["runs"]}
    assert runs["npo"][1:5] == [
        "npo, training",
        "learning_rate 0.0003 · retain.kind cross_entropy · retain.weight 1 · beta 0.1",
        "weights, L1",
        "60",
    ]
    assert runs["npo"][5:8] == ["4.3 s", "7.8 s", "427 MiB"]
    text = " ".join(" ".join(parsed.texts).split())
    assert "lab/models/original, sha256 abababababab" in text
    assert "72 rows, sha256 121212121212" in text
    assert "python 3.11.7, torch 2.13.0" in text


def test_what_differs_between_runs_gets_a_column(lab, tmp_path):
    import shutil

    for name, seed in (("a", 1), ("b", 2)):
        shutil.copytree(lab.runs[3], tmp_path / name)
        origin = json.loads((tmp_path / name / "provenance.json").read_text())
        write_json(tmp_path / name / "provenance.json", origin | {"seed": seed})
    rows = Tables(report([tmp_path / "a", tmp_path / "b"], tmp_path / "out").read_text()).tables["runs"]
    assert [[r[0]["text"], r[-1]["text"]] for r in rows] == [["run", "seed"], ["a", "1"], ["b", "2"]]


def test_texts_in_samples_are_escaped(lab, tmp_path):
    import shutil

    evil = "<script>alert(1)</script><img src=x onerror=y>"
    for folder in (lab.original, lab.gold, lab.runs[3]):
        shutil.copytree(folder, tmp_path / folder.name)
        path = tmp_path / folder.name / "evaluation/lab.samples.jsonl"
        path.write_text(path.read_text().replace("Where was", evil).replace("Lisbon", evil).replace("Oslo", evil))
    text = report(
        [tmp_path / "npo"],
        tmp_path / "out",
        original=tmp_path / "original",
        gold=tmp_path / "gold",
        title=evil,
        show_forget_text=True,
    ).read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not {"script", "img"} & {tag for tag, _ in Tables(text).tags}


def test_names_are_escaped_in_every_twin(lab, tmp_path):
    import shutil

    shutil.copytree(lab.runs[3], tmp_path / "n_po*[x](y)<b>")
    page = report([tmp_path / "n_po*[x](y)<b>"], tmp_path / "out", original=lab.original, gold=lab.gold)
    text = (page.parent / "report.md").read_text()
    assert "n\\_po\\*\\[x\\](y)\\<b\\>" in text
    assert "n_po*" not in text
    assert "<b>" not in page.read_text()
    assert "\\label{tab:lab-summary}" in (page.parent / "table.tex").read_text()


def test_no_text_is_quoted_when_the_samples_carry_none(tmp_path):
    from importlib import util

    spec = util.spec_from_file_location("fixtures", Path(__file__).with_name("conftest.py"))
    fixtures = util.module_from_spec(spec)
    spec.loader.exec_module(fixtures)
    lab = fixtures.build_lab(tmp_path / "lab", {"npo": fixtures.METHODS["npo"]}, texts=False)
    page = report(lab.runs, tmp_path / "out", original=lab.original, gold=lab.gold)
    for path in page.parent.iterdir():
        assert "Where was" not in path.read_text(), path.name
        assert "Lisbon" not in path.read_text(), path.name
    assert "Answers before and after" not in page.read_text()


@pytest.fixture
def with_texts(tofu, tmp_path) -> Path:
    """A TOFU run whose samples hold texts of the forget and the retain set."""
    import shutil

    shutil.copytree(tofu.runs[0], tmp_path / "npo")
    path = tmp_path / "npo/evaluation/tofu.samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["text"] = {"prompt": f"{row['task']} question", "expected": f"{row['task']} answer", "generated": "something"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "npo"


def test_forget_texts_are_quoted_only_when_asked_for(with_texts, tmp_path):
    silent = report([with_texts], tmp_path / "silent").read_text()
    assert "forget question" not in silent
    assert "forget answer" not in silent
    assert "retain question" in silent
    assert "Texts of the forget set are not quoted" in silent
    loud = report([with_texts], tmp_path / "loud", show_forget_text=True).read_text()
    assert "forget question" in loud
    assert "Texts of the forget set are not quoted" not in loud


def test_lab_and_tofu_stand_in_one_page(lab, tofu, tmp_path):
    import shutil

    for folder in (lab.original, lab.gold, lab.runs[3]):
        shutil.copytree(folder, tmp_path / folder.name)
        source = {"npo": tofu.runs[0]}.get(folder.name, tofu.original.parent / folder.name)
        shutil.copy(source / "evaluation/tofu.json", tmp_path / folder.name / "evaluation/tofu.json")
    parsed = Tables(report([tmp_path / n for n in ("npo", "original", "gold")], tmp_path / "out").read_text())
    shown = [f"{suite}-{part}" for suite in ("lab", "tofu") for part in ("summary", "gold", "changes", "scores")]
    assert list(parsed.tables)[:9] == ["overview", *shown]


def test_a_single_run_without_references_is_reported(lab, tmp_path):
    parsed = Tables(report([lab.runs[3]], tmp_path).read_text())
    assert [r[0]["text"] for r in parsed.tables["lab-summary"]] == ["model", "npo"]
    assert not (tmp_path / "summary.json").exists()


ATTACK = {
    "attack": "relearn", "budget": {"steps": 20}, "gain": {"value": 0.01, "low": -0.02, "high": 0.04},
    "control": {"never_known": 0.3},
    "scores": [{"task": "facts_forget", "metric": "probability", "value": 0.71, "low": 0.6, "high": 0.8, "n": 72}],
}  # fmt: skip


def with_attack(lab, tmp_path, **changes) -> Path:
    import shutil

    shutil.copytree(lab.runs[3], tmp_path / "npo")
    (tmp_path / "npo/attacks").mkdir()
    write_json(tmp_path / "npo/attacks/relearn.json", ATTACK | changes)
    write_json(tmp_path / "npo/attacks/ladder.json", [])
    return tmp_path / "npo"


def test_attacks_are_listed_with_their_budgets(lab, tmp_path):
    rows = Tables(report([with_attack(lab, tmp_path)], tmp_path / "out").read_text()).tables["attacks"]
    assert [c["text"] for c in rows[1]] == [*("npo", "relearn", "probability", "0.010", "0.710", "–", "–", "–", "steps 20")]
    assert [rows[1][i]["small"] for i in (3, 4)] == ["−0.020 to 0.040", "0.600–0.800"]


def test_nothing_is_written_over_without_being_asked(lab, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExpungeError, match="exists"):
        report(lab.runs[:1], tmp_path)
    report(lab.runs[:1], tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("broken", ["evaluation/lab.json", "evaluation/lab.samples.jsonl", "artifact/expunge.json"])
def test_a_broken_run_stops_the_report_before_anything_is_written(lab, tmp_path, broken):
    import shutil

    shutil.copytree(lab.runs[3], tmp_path / "npo")
    (tmp_path / "npo" / broken).write_text("{}\n")
    with pytest.raises(ExpungeError, match=re.escape(broken)):
        report([tmp_path / "npo"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_without_scores_say_how_to_get_them(lab, tmp_path):
    import shutil

    shutil.copytree(lab.runs[3], tmp_path / "npo")
    shutil.rmtree(tmp_path / "npo/evaluation")
    with pytest.raises(ExpungeError, match="expunge evaluate"):
        report([tmp_path / "npo"], tmp_path / "out")
    with pytest.raises(ExpungeError, match="no run was given"):
        report([], tmp_path / "out")


def test_a_score_that_no_other_run_has_is_a_dash_for_the_others(lab, tmp_path):
    import shutil

    shutil.copytree(lab.runs[3], tmp_path / "npo")
    path = tmp_path / "npo/evaluation/lab.json"
    evaluation = Evaluation.model_validate_json(path.read_text())
    extra = evaluation.scores[0].model_copy(update={"metric": "perplexity", "value": 12.5, "low": 11.0, "high": 14.0})
    write_json(path, evaluation.model_copy(update={"scores": (*evaluation.scores, extra)}))
    rows = Tables(report([tmp_path / "npo", lab.runs[4]], tmp_path / "out").read_text()).tables["lab-scores"]
    row = next(r for r in rows if r[0]["text"].startswith("perplexity"))
    assert (row[1]["text"], row[1]["small"]) == ("12.5", "11–14")
    assert row[2]["title"] == "not part of this run's evaluation"


def test_the_command_writes_the_same_page(lab, tmp_path, capsys):
    from expunge.cli.report import Report, run

    run(Report(runs=tuple(lab.runs), out=tmp_path / "out", original=lab.original, gold=lab.gold))
    assert (tmp_path / "out/index.html").is_file()
    assert str(tmp_path / "out/index.html") in capsys.readouterr().out


def test_the_report_needs_no_torch_and_is_a_verb_even_after_its_import():
    code = "import sys, expunge.report; assert callable(expunge.report); print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_the_module_called_as_a_verb_writes_the_report(lab, tmp_path):
    import expunge.report as verb

    assert verb([lab.runs[3]], tmp_path / "out") == tmp_path / "out/index.html"
