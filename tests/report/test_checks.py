"""Bad input: what cannot be compared is said, and is not compared."""

import json
import shutil
import warnings
from pathlib import Path

import pytest

from expunge.errors import ExpungeError
from expunge.records import write_json
from expunge.report import forget_effect, read_run, report, retain_kept
from expunge.report.checks import apart, comparable, notices, same_judges, same_samples, shared
from expunge.report.groups import TaskMetric


def changed(source: Path, target: Path, keep=lambda row: row, suite: str = "lab") -> Path:
    """A copy of a run whose samples went through `keep`: another row, or nothing."""
    shutil.copytree(source, target)
    path = target / f"evaluation/{suite}.samples.jsonl"
    rows = [keep(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row))
    return target


def another_world(row: dict) -> dict:
    return row | {"id": f"x{row['id']}"}


def half_of_the_facts(row: dict) -> dict | None:
    return None if row["task"] == "facts_retain" and int(row["id"][:2], 16) < 128 else row


def written(folder: Path, runs, original, gold=None) -> tuple[str, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        page = report(runs, folder / "out", original=original, gold=gold)
    return " ".join(page.read_text().split()), [str(w.message) for w in caught if w.category is UserWarning]


def test_models_scored_on_the_same_samples_have_nothing_to_be_told(lab, tmp_path):
    page, said = written(tmp_path, lab.runs, lab.original, lab.gold)
    assert said == []
    assert "Before you compare" not in page


def test_scores_of_another_data_set_are_not_compared_and_the_page_says_so(lab, tmp_path):
    other = changed(lab.runs[3], tmp_path / "npo", another_world)
    original, gold, run = read_run(lab.original), read_run(lab.gold), read_run(other)
    assert apart(run, original, "lab")
    assert forget_effect(run, original, gold).unscored == "original, npo, gold share no sample of facts_forget"
    assert retain_kept(run, original).value is None
    page, said = written(tmp_path, [other, lab.runs[4]], lab.original, lab.gold)
    assert len(said) == 1
    assert said[0].startswith("npo and original were scored on different samples of the suite lab: Facts to forget (0 of 72 in")
    assert said[0] in page
    assert "Not drawn: npo (original, npo, gold share no sample of facts_forget)" in page
    assert "<title>npo," not in page  # in no radar
    models = {m["name"]: m for m in json.loads((tmp_path / "out/report.json").read_text())["models"]}
    assert [effect["value"] for effect in models["npo"]["effects"]] == [None, None]
    assert all(effect["value"] is not None for effect in models["simnpo"]["effects"])
    assert json.loads((tmp_path / "out/report.json").read_text())["notices"] == said


def test_a_part_of_the_samples_is_compared_on_what_both_have_and_counted(lab, tmp_path):
    part = changed(lab.runs[3], tmp_path / "npo", half_of_the_facts)
    original, run = read_run(lab.original), read_run(part)
    both = next(s for s in shared(run, original, "lab") if s.task == "facts_retain")
    assert 0 < both.both == both.mine < both.theirs == 120
    assert retain_kept(run, original).n == both.both
    _, said = written(tmp_path, [part], lab.original, lab.gold)
    assert f"Facts to keep ({both.both} of 120 in common); differences are taken over the samples in common" in said[0]
    assert not same_samples(run, original, "lab", "facts_retain")
    assert same_samples(run, original, "lab", "facts_forget")
    assert not same_samples(run, original, "lab", "suite")  # pooled over tasks, one of which differs


def test_only_scores_of_the_same_samples_are_coloured(lab, tmp_path):
    from expunge.report.page_tables import score_table

    run = read_run(changed(lab.runs[0], tmp_path / "run", half_of_the_facts))
    original = read_run(lab.original)
    table = score_table("lab", [original, run], original)
    tints = {(row[0].text, row[1].text.split("\u00a0")[0]): row[3].tint for row in table.rows}
    assert tints["Facts to keep", "probability"] is None
    assert tints["Facts to forget", "probability"].change < -0.3
    assert tints["Facts to forget", "probability"].kind == "forgotten"
    assert tints["Skill: arithmetic", "accuracy"].kind == "damage"


def test_without_samples_the_counts_must_agree(tofu, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(tofu.runs[0], tmp_path / name)
        (tmp_path / name / "evaluation/tofu.samples.jsonl").unlink()
    path = tmp_path / "b/evaluation/tofu.json"
    path.write_text(path.read_text().replace('"n": 40', '"n": 50'))
    original, a, b = read_run(tofu.original), read_run(tmp_path / "a"), read_run(tmp_path / "b")
    assert same_samples(a, original, "tofu", "retain")
    assert not same_samples(b, original, "tofu", "retain")
    assert notices([a], original, None) == []
    (said,) = notices([b], original, None)
    assert said.startswith("b and original were scored on different numbers of samples in the suite tofu: Forget set, ")


def test_a_run_without_evaluation_among_others_is_named(lab, tmp_path):
    shutil.copytree(lab.runs[3], tmp_path / "npo")
    shutil.rmtree(tmp_path / "npo/evaluation")
    page, said = written(tmp_path, [tmp_path / "npo", lab.runs[4]], lab.original, lab.gold)
    assert said == ["Not evaluated, and so in no table of scores: npo. `expunge evaluate RUN --suite NAME` does it."]
    assert "no table of scores: npo. <code>expunge evaluate RUN --suite NAME</code> does it." in page


def test_runs_scored_with_different_suites_are_named_and_shown_where_they_are(lab, tofu, tmp_path):
    page, said = written(tmp_path, [lab.runs[3], tofu.runs[1]], lab.original, lab.gold)
    assert said[:2] == [
        "Without scores of the suite lab: gradient_difference.",
        "Without scores of the suite tofu: npo.",
    ]
    assert "id='lab-summary'" in page
    assert "id='tofu-summary'" in page


def test_runs_from_different_models_are_named(lab, tmp_path):
    shutil.copytree(lab.runs[3], tmp_path / "npo")
    origin = json.loads((tmp_path / "npo/provenance.json").read_text())
    write_json(tmp_path / "npo/provenance.json", origin | {"base_sha256": "ef" * 32})
    said = notices([read_run(tmp_path / "npo"), read_run(lab.runs[4])], read_run(lab.original), None)
    assert said == ["The runs start from 2 different models (npo; simnpo), and one original cannot stand for all of them."]


def test_a_run_that_is_its_own_reference_is_named(lab, tmp_path):
    for name, source, sha256 in (("npo", lab.runs[3], "ab"), ("simnpo", lab.runs[4], "cd"), ("gold", lab.gold, "ab")):
        shutil.copytree(source, tmp_path / name)
        file = tmp_path / name / "evaluation/lab.json"
        write_json(file, json.loads(file.read_text()) | {"fingerprint": sha256 * 32})
    runs = [read_run(tmp_path / "npo"), read_run(tmp_path / "simnpo")]
    said = notices(runs, read_run(lab.original), read_run(tmp_path / "gold"))
    assert len(said) == 1
    assert said[0].startswith("npo is the very model that was given as gold")


def test_names_that_are_there_twice_are_told_apart_in_tables_and_files(lab, tmp_path):
    for place in ("a", "b"):
        shutil.copytree(lab.runs[3], tmp_path / place / "npo")
        write_json(tmp_path / place / "npo/artifact/calibration.json", {"forget": [0.5, 0.9], "retain": [1.5, 3.0]})
    out = report([tmp_path / "a/npo", tmp_path / "b/npo"], tmp_path / "out", original=lab.original, gold=lab.gold).parent
    assert ">a/npo<" in (out / "index.html").read_text()
    assert {p.name for p in out.glob("*calibration.svg")} == {"a-npo-calibration.svg", "b-npo-calibration.svg"}


def test_a_run_called_as_a_reference_is_told_apart_from_it(lab, tmp_path):
    shutil.copytree(lab.runs[3], tmp_path / "mine/original")
    out = report([tmp_path / "mine/original"], tmp_path / "out", original=lab.original, gold=lab.gold).parent
    names = [m["name"] for m in json.loads((out / "report.json").read_text())["models"]]
    assert names == ["original", "gold", "mine/original"]


def test_a_heat_map_leaves_out_runs_that_cannot_be_compared(lab, tmp_path):
    """Two runs that forgot different tasks, one of them scored on another world."""
    from expunge.report.sections import section

    def forgets(name: str, task: str, keep=lambda row: row) -> Path:
        folder = changed(lab.runs[3], tmp_path / name, keep)
        path = folder / "evaluation/lab.json"
        found = json.loads(path.read_text())
        for score in found["scores"]:
            score["higher_is_better"] = score["task"] != task
        path.write_text(json.dumps(found))
        return folder

    one, two = forgets("one", "strings"), forgets("two", "arithmetic")
    other = forgets("other", "general", another_world)
    original = read_run(lab.original, "original")
    made = section("lab", [read_run(one), read_run(two), read_run(other)], original, None, False)
    (matrix,) = made.matrices
    assert list(matrix.rows) == ["arithmetic", "strings"]
    assert section("lab", [read_run(one), read_run(other)], original, None, False).matrices == ()


def test_a_folder_with_nothing_in_it_stops_the_report(lab, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExpungeError, match="empty holds no run"):
        report([lab.runs[3], tmp_path / "empty"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def judged(folder: Path, name: str, fingerprint: str | None, **settings: str) -> Path:
    shutil.copytree(folder, target := folder.parent.parent / name)
    path = target / "evaluation/toxicity.json"
    found = json.loads(path.read_text())
    found["judges"] = [{"settings": {"kind": "classifier", **settings}, "fingerprint": fingerprint}]
    path.write_text(json.dumps(found))
    return target


@pytest.fixture
def judges(spunge, tmp_path) -> list[Path]:
    """A run judged by one classifier, by the same from elsewhere, and by another."""
    shutil.copytree(spunge.runs[0], tmp_path / "source/rmu")
    return [
        judged(tmp_path / "source/rmu", name, fingerprint, model=f"/{name}/roberta", label="LABEL_1")
        for name, fingerprint in (("one", "aa"), ("moved", "aa"), ("other", "bb"))
    ]


def test_scores_of_different_judges_are_not_compared(judges, spunge, tmp_path):
    one, moved, other = map(read_run, judges)
    assert same_judges(one, moved, "toxicity")
    assert not same_judges(one, other, "toxicity")
    assert same_judges(one, read_run(spunge.runs[0]), "toxicity")  # says nothing of its judges
    assert not apart(one, moved, "toxicity")
    assert apart(one, other, "toxicity")
    assert comparable(one, moved, "toxicity", TaskMetric("toxigen_women", "harmful_rate"))
    assert not comparable(one, other, "toxicity", TaskMetric("toxigen_women", "harmful_rate"))
    assert comparable(one, other, "toxicity", TaskMetric("toxigen_women", "perplexity"))
    page, said = written(tmp_path, [judges[1], judges[2]], judges[0])
    assert said == [
        "other and original were scored by different judges in the suite toxicity: what these said is not compared, and no "
        "figure holds both."
    ]
    assert "<title>other, women: harmful rate" not in page


def test_judges_with_settings_alone_are_known_by_them(judges):
    one, _, other = (read_run(folder) for folder in judges)
    plain = [
        run.model_copy(update={"evaluations": tuple(e.model_copy(update={"judges": tuple(
            j.model_copy(update={"fingerprint": None, "settings": {"kind": "keywords", "words": words}}) for j in e.judges
        )}) for e in run.evaluations)})
        for run, words in ((one, "rude"), (other, "rude"), (other, "mean"))
    ]  # fmt: skip
    assert same_judges(plain[0], plain[1], "toxicity")
    assert not same_judges(plain[0], plain[2], "toxicity")
