"""The runner: controls with the same budget, resuming attack by attack, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from expunge.attacks import ATTACKS, named
from expunge.attacks.base import AttackSpec, Found, Way
from expunge.attacks.relearn import Relearn
from expunge.attacks.run import attack
from expunge.attacks.sources import Sources
from expunge.attacks.sweep import Sweep, check_sweep, searched
from expunge.cli import main
from expunge.data.example import Example
from expunge.errors import ExpungeError
from expunge.records import Attack, LadderRow, write_text


def sources_of(world, *, gold: bool = True) -> Sources:
    return Sources(
        world.forget, world.control, world.retain, world.neutral, str(world.gold) if gold else None, str(world.original)
    )


@pytest.fixture(scope="module")
def attacked(world, tmp_path_factory):
    """prefix on the model that refuses, written once."""
    out = tmp_path_factory.mktemp("attacked")
    records = attack(world.refuses, named(["prefix"]), sources_of(world), out=out, max_new_tokens=8, quiet=True)
    return out, records[0]


def test_a_record_has_the_schema_and_the_ladder_a_row_for_each_attack(attacked):
    out, record = attacked
    written = json.loads((out / "prefix.json").read_text())
    names = {"attack", "artifact", "applicable", "budget", "seconds", "gain", "control", "scores", "trials"}
    assert names <= written.keys()
    assert written["gain"].keys() == {"value", "low", "high"}
    assert Attack.model_validate(written) == record
    rows = [LadderRow.model_validate(row) for row in json.loads((out / "ladder.json").read_text())]
    assert [row.attack for row in rows] == ["prefix"]
    assert (out / "prefix.samples.jsonl").read_text().count("\n") == 3 * 12
    assert not any(example.response in (out / "prefix.samples.jsonl").read_text() for example in record_examples())


def record_examples() -> tuple[Example, ...]:
    from tests.attacks.conftest import FORGET

    return FORGET


def test_the_control_is_the_gold_model_where_there_is_one_and_both_controls_are_in_the_record(attacked):
    _, record = attacked
    assert record.control["of"] == "gold"
    assert {"gold_after", "never_known_after", "gold_p", "never_known_gain"} <= record.control.keys()
    assert all("gold" in trial and "never_known" in trial for trial in record.trials)


def test_what_is_there_is_kept_and_another_budget_is_refused(attacked, world, monkeypatch):
    out, record = attacked
    monkeypatch.setattr("expunge.attacks.prefix.Prefix.run", lambda *_: pytest.fail("attacked again"))
    again = attack(world.refuses, named(["prefix"]), sources_of(world), out=out, max_new_tokens=8, quiet=True)
    assert again[0] == record
    with pytest.raises(ExpungeError, match="another budget"):
        attack(world.refuses, named(["prefix"], fields={"prefixes": 1}), sources_of(world), out=out, max_new_tokens=8, quiet=True)


def test_a_killed_ladder_goes_on_after_the_last_finished_attack(world, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("expunge.attacks.quantize.Quantize.run", killed)
        with pytest.raises(KeyboardInterrupt):
            attack(world.gold, named(["prefix", "quantize"]), sources_of(world), out=tmp_path, max_new_tokens=8, quiet=True)
    monkeypatch.setattr("expunge.attacks.prefix.Prefix.run", lambda *_: pytest.fail("attacked again"))
    done = attack(world.gold, named(["prefix", "quantize"]), sources_of(world), out=tmp_path, max_new_tokens=8, quiet=True)
    assert [record.attack for record in done] == ["prefix", "quantize"]


def test_gold_itself_is_compared_with_facts_that_it_never_saw(world, tmp_path):
    record = attack(world.gold, named(["quantize"]), sources_of(world), out=tmp_path, max_new_tokens=8, quiet=True)[0]
    assert record.control["of"] == "never_known"
    assert record.gain is not None
    assert record.gain.low is not None
    assert record.gain.low <= 0


def test_without_a_control_there_is_no_gain_but_a_reason(world, tmp_path):
    bare = Sources(world.forget)
    record = attack(world.original, named(["quantize"]), bare, out=tmp_path, max_new_tokens=8, quiet=True)[0]
    assert record.gain is None
    assert "--control" in (record.reason or "")
    assert record.scores[0].value == 1.0


def test_relearning_trains_gold_and_controls_with_the_same_number_of_steps(world, tmp_path):
    spec = {"relearn": Relearn(steps=3, points=1, batch_size=4, data=("facts",))}
    record = attack(world.refuses, spec, sources_of(world), out=tmp_path, max_new_tokens=8, quiet=True)[0]
    assert record.budget["steps"] == 3
    assert record.cost["gradient_steps"] == 2 * 2 * 3  # two parts; forget and never-known on this model, gold on its own
    assert record.trials[0]["step"] == 3


def test_a_budget_of_zero_an_unknown_name_and_an_unknown_preset_are_sentences():
    with pytest.raises(ExpungeError, match="steps=0"):
        named(["relearn"], fields={"steps": "0"})
    with pytest.raises(ExpungeError, match="did you mean 'relearn'"):
        named(["relern"])
    with pytest.raises(ExpungeError, match="no preset"):
        named(["relearn"], preset="nobody")
    with pytest.raises(ExpungeError, match="one attack at a time"):
        named(["relearn", "prefix"], fields={"steps": "3"})


@pytest.mark.parametrize("cls", ATTACKS, ids=lambda cls: cls.attack_name())
def test_every_attack_explains_itself_and_every_preset_is_valid(cls: type[AttackSpec]):
    assert cls.paper
    assert cls.does
    assert cls.__doc__
    assert "paper" in cls.presets
    for name, preset in cls.presets.items():
        assert cls(**preset.fields), name
        assert preset.source
    assert cls.model_validate(cls().model_dump()) == cls()


def test_the_command_writes_the_ladder_and_says_what_came_back(world, tmp_path, capsys):
    for name in ("forget", "control", "retain"):
        rows = [{"prompt": e.prompt, "response": e.response} for e in getattr(world, name)]
        write_text(tmp_path / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    files = [word for name in ("forget", "control", "retain") for word in (f"--{name}", str(tmp_path / f"{name}.jsonl"))]
    words = ["attack", "prefix", str(world.refuses), *files, "--gold", str(world.gold), "--out", str(tmp_path / "out")]
    assert main([*words, "--max-new-tokens", "8"]) == 0
    said = capsys.readouterr().out
    assert "prefix gain +" in said
    assert (tmp_path / "out/ladder.json").is_file()
    assert main(["attack", "relearn", str(world.refuses), *files, "--out", str(tmp_path / "no"), "--options", "steps=0"]) == 2
    assert not (tmp_path / "no").exists()


def test_the_page_names_every_attack_and_preset():
    page = (Path(__file__).parents[2] / "docs/attacks.md").read_text(encoding="utf-8")
    for cls in ATTACKS:
        assert f"| `{cls.attack_name()}` |" in page
        assert all(f"`{name}`" in page for name in cls.presets)


def test_a_sweep_gives_the_controls_the_same_trials_and_leaves_out_what_costs_too_much(world, tmp_path):
    pytest.importorskip("optuna")
    spec = {"relearn": Relearn(steps=2, points=1, batch_size=6, data=("facts",))}
    record = attack(
        world.refuses, spec, sources_of(world), out=tmp_path, sweep=Sweep(3, utility_loss=0.0), max_new_tokens=8, quiet=True
    )[0]
    assert record.budget["sweep"] == 3
    assert {trial["trial"] for trial in record.trials} == {0, 1, 2}
    assert all("gold" in trial and "kept" in trial for trial in record.trials)
    for trial in record.trials:
        assert (trial["value"] is None) == (trial["kept"] < trial["kept_before"])


def test_a_sweep_leaves_out_what_changes_the_model_too_much_on_neutral_text(world, tmp_path):
    pytest.importorskip("optuna")
    spec = {"relearn": Relearn(steps=4, points=2, batch_size=6, learning_rate=1e-3, data=("facts",))}
    budget = Sweep(1, utility_loss=1.0, disruption_budget=0.1)
    record = attack(world.refuses, spec, sources_of(world), out=tmp_path, sweep=budget, max_new_tokens=8, quiet=True)[0]
    assert record.budget["disruption_budget"] == 0.1
    levels = [trial["disruption"] for trial in record.trials]
    assert min(levels) < 0.1 < max(levels)  # else nothing is told apart here
    for trial in record.trials:
        assert (trial["value"] is None) == (trial["disruption"] > 0.1)
    with pytest.raises(ExpungeError, match="--neutral FILE"):
        attack(world.refuses, spec, Sources(world.forget, world.control), out=tmp_path / "none", sweep=budget, quiet=True)


def test_a_sweep_of_nothing_and_of_what_has_no_settings_is_a_sentence():
    with pytest.raises(ExpungeError, match="tries nothing"):
        Sweep(0)
    with pytest.raises(ExpungeError, match="allows no attack"):
        Sweep(2, disruption_budget=0.0)
    with pytest.raises(ExpungeError, match="relearn, soft_prompt have"):
        check_sweep(named(["prefix"]), Sweep(2))


def test_the_search_prefers_what_brings_back_more():
    """A made-up attack that brings back the more the nearer its rate is to 1e-4; the best of twenty trials is near it."""
    pytest.importorskip("optuna")

    def run(spec):
        value = max(0.0, 1.0 - abs(np.log10(spec.learning_rate) + 4) / 2)
        return Found((Way("only", np.full(6, value)),))

    found, specs = searched(Relearn(learning_rate=1e-6), run, Sweep(20), seed=0)
    assert len(found.ways) == len(specs) == 20
    best = max(range(20), key=lambda i: found.ways[i].values.mean())
    assert 3e-5 < specs[best].learning_rate < 3e-4
