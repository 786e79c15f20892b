"""Claims follow from records: scores, then attacks; what a file says of itself changes nothing."""

import json
import shutil
from pathlib import Path

import pytest

from expunge.records import Attack, Gain, write_json
from expunge.report import read_run, report
from expunge.report.claims import claim, claim_rows
from expunge.report.read import Artifact, RunRecord

HELD, BROUGHT_BACK = Gain(value=0.0, low=-0.03, high=0.05), Gain(value=0.3, low=0.1, high=0.5)


@pytest.fixture
def npo(lab) -> RunRecord:
    return read_run(lab.runs[3])


def level(run: RunRecord, lab, *, gold: bool = True, original: bool = True) -> str:
    references = read_run(lab.original, "original") if original else None, read_run(lab.gold, "gold") if gold else None
    return claim(run, *references).shown


def attacked(run: RunRecord, *gains: Gain | None) -> RunRecord:
    tried = tuple(Attack(attack=f"attack{i}", applicable=g is not None, gain=g) for i, g in enumerate(gains))
    return run.model_copy(update={"attacks": tried})


def test_scores_that_reach_are_suppressed_and_scores_that_do_not_are_not_yet_shown(lab, npo):
    assert level(npo, lab) == "L1"
    assert level(read_run(lab.runs[5]), lab) == "not yet shown"  # idk: known by probability
    assert level(npo.model_copy(update={"evaluations": ()}), lab) == "not yet shown"


def test_without_gold_a_control_decides_and_without_both_nothing_does(lab, npo):
    assert level(npo, lab, gold=False) == "L1"  # no higher than facts that no model was ever taught
    assert level(read_run(lab.runs[5]), lab, gold=False) == "not yet shown"
    evaluation = npo.evaluations[0]
    scores = tuple(s for s in evaluation.scores if s.role != "control")
    bare = npo.model_copy(update={"evaluations": (evaluation.model_copy(update={"scores": scores}),)})
    assert level(bare, lab, gold=False, original=False) == "not yet shown"
    assert level(bare, lab, gold=False) == "L1"  # more than half is gone, with intervals that do not touch


def test_attacks_raise_a_claim_only_where_every_applicable_one_was_held(lab, npo):
    assert level(attacked(npo, HELD, None), lab) == "L2"
    assert level(attacked(npo, HELD, BROUGHT_BACK), lab) == "L1"
    assert level(attacked(npo, Gain(value=0.0, low=-0.4, high=0.4)), lab) == "L1"  # too few trials to say
    assert level(attacked(npo, None), lab) == "L1"
    assert level(attacked(read_run(lab.runs[5]), HELD), lab) == "not yet shown"


def test_a_guard_is_guarded_whatever_its_scores(lab, npo):
    guard = npo.model_copy(update={"artifact": Artifact(kind="guard", method={"name": "key_space"}, family="guarding")})
    assert level(attacked(guard, HELD), lab) == "L0"


def test_a_claim_written_into_the_manifest_changes_nothing(lab, tmp_path: Path):
    shutil.copytree(lab.runs[5], tmp_path / "idk")
    manifest = tmp_path / "idk/artifact/expunge.json"
    write_json(manifest, json.loads(manifest.read_text()) | {"claim": "L3"})
    report([tmp_path / "idk"], tmp_path / "out", original=lab.original, gold=lab.gold)
    models = json.loads((tmp_path / "out/report.json").read_text())["models"]
    assert models[-1]["claim"] == "not yet shown"
    assert "Equal to retraining" not in (tmp_path / "out/index.html").read_text()


def test_the_table_of_claims_says_what_each_rests_on(lab, npo):
    original, gold = read_run(lab.original, "original"), read_run(lab.gold, "gold")
    rows = claim_rows({run.name: claim(run, original, gold) for run in (read_run(lab.runs[5]), attacked(npo, HELD))})
    assert [(row["level"], row["runs"]) for row in rows] == [("not yet shown", "idk"), ("L2 attack-tested", "npo")]
    assert rows[1]["why"] == "scores reached, held against attack0: npo"
