"""Split, unlearn, merge: parts are independent runs, their merge is the merge engine's, and what is wrong is said at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import expunge
from expunge import ExpungeError, Training
from expunge.cli import main
from expunge.composing import parts
from expunge.data.read import read_examples
from expunge.methods import RMU, GradientDifference, Spunge, TaskVectorNegation
from expunge.methods.editing import Linear, TaskArithmetic, Ties
from expunge.records import read_evaluation
from expunge.report.claims import claim
from expunge.report.page_tables import run_table
from expunge.report.read import read_runs

QUICK = Training(steps=4, batch_size=2, learning_rate=1e-2, schedule="constant")
RMU_HERE = RMU(layer=1, alpha=1.0, coefficient=3.0, adaptive=True)
TWO = {"split": "group", "values": ("dogs", "birds"), "least": 5}


def run(out: Path, model: Path, data: dict[str, Any], method: Spunge, training: Training = QUICK, **words: Any) -> Path:
    expunge.unlearn(method, model=model, out=out, training=training, quiet=True, **data, **words)
    return out


def run_cells(out: Path) -> str:
    runs = read_runs([out])
    table = run_table(runs, {run.name: claim(run, None, None) for run in runs})
    assert table is not None
    return table.rows[0][2].text


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "artifact/model.safetensors")


def test_it_is_the_merge_of_runs_of_its_own_method(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    out = run(tmp_path / "run", pico_folder, data, Spunge(**TWO, each=RMU_HERE, merge=TaskArithmetic(), keep_parts=True))
    assert sorted(p.name for p in (out / "parts").iterdir()) == ["birds", "dogs"]
    start = load_file(pico_folder / "model.safetensors")
    summed = {name: value.clone() for name, value in start.items()}
    for i, group in enumerate(("dogs", "birds")):
        method = RMU_HERE.model_copy(update={"control_seed": 42 + i})
        training, alone = QUICK.model_copy(update={"seed": i}), tmp_path / group
        expunge.unlearn(method, model=pico_folder, out=alone, training=training, quiet=True, where=f"group = {group}", **data)
        for name, value in weights(alone).items():
            assert torch.equal(value, weights(out / "parts" / group)[name])
            summed[name] += value - start[name]
    for name, value in weights(out).items():
        torch.testing.assert_close(value, summed[name], rtol=1e-5, atol=1e-6)
    moved = {n for n in start if not torch.equal(start[n], weights(out)[n])}
    assert moved == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}


def test_the_record_says_what_each_part_was(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    out = run(tmp_path / "run", pico_folder, data, Spunge(**TWO, each=RMU_HERE))
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["counts"] == {"forget": 12, "retain": 2, "forget dogs": 6, "forget birds": 5}
    assert expunge.verify(out).method["each"]["name"] == "rmu"
    card = (out / "artifact/README.md").read_text()
    assert "dogs (6 rows), birds (5 rows)" in card
    assert "of all" in card  # what the trimming kept
    assert json.loads((out / "merge.json").read_text())["method"] == "ties"
    for part, rows in (("dogs", 6), ("birds", 5)):
        own = json.loads((out / "parts" / part / "provenance.json").read_text())
        assert own["counts"] == {"forget": rows, "retain": 2}
        assert not (out / "parts" / part / "artifact").exists()
        assert "dog" not in (out / "parts" / part / "rows.txt").read_text()
    model, tokenizer = expunge.load(out)
    assert model.generate(**tokenizer("what is", return_tensors="pt"), max_new_tokens=2).shape[1] == 5


def test_the_manifest_names_the_layer_that_was_left_open(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    out = run(tmp_path / "run", pico_folder, data, Spunge(**TWO, each=RMU(edited=(1,), coefficient=3.0)))
    stage = yaml.safe_load((out / "parts/dogs/run.yaml").read_text())["method"]["layer"]
    assert isinstance(stage, int)
    assert yaml.safe_load((out / "run.yaml").read_text())["method"]["each"]["layer"] == stage
    assert expunge.verify(out).method["each"]["layer"] == stage


def test_a_single_part_merged_whole_is_its_method(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    method = Spunge(split="group", values="dogs", least=5, each=GradientDifference(), merge=Ties(density=1.0))
    with pytest.warns(UserWarning, match="all rows are of one part, 'dogs'"):
        out = run(tmp_path / "run", pico_folder, data, method)
    expunge.unlearn(
        GradientDifference(), model=pico_folder, out=tmp_path / "plain", training=QUICK, quiet=True, where="group = dogs", **data
    )
    for name, value in weights(out).items():
        torch.testing.assert_close(value, weights(tmp_path / "plain")[name], rtol=1e-6, atol=1e-8)


def test_another_merge_trains_nothing_when_the_parts_are_kept(
    pico_folder: Path, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.training.loop import train

    trained: list[int] = []
    monkeypatch.setattr("expunge.training.runner.train", lambda *a, **k: trained.append(1) or train(*a, **k))
    method = Spunge(**TWO, each=RMU_HERE, keep_parts=True)
    first = weights(run(tmp_path / "run", pico_folder, data, method))
    other = method.model_copy(update={"merge": Linear()})
    second = weights(run(tmp_path / "run", pico_folder, data, other, resume=True))
    assert len(trained) == 2
    assert any(not torch.equal(first[n], second[n]) for n in first)
    assert weights(run(tmp_path / "run", pico_folder, data, other, resume=True)).keys() == first.keys()
    assert len(trained) == 2


def test_killed_between_parts_it_goes_on(
    pico_folder: Path, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.training.loop import train

    method, calls = Spunge(**TWO, each=RMU_HERE), []
    whole = weights(run(tmp_path / "whole", pico_folder, data, method))

    def dying(*words: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*words, **named)

    monkeypatch.setattr("expunge.training.runner.train", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", pico_folder, data, method)
    resumed = weights(run(tmp_path / "run", pico_folder, data, method, resume=True))
    assert len(calls) == 3
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_parts_in_processes_of_their_own_give_the_same_bytes(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    one = run(tmp_path / "one", pico_folder, data, Spunge(**TWO, each=RMU_HERE))
    two = run(tmp_path / "two", pico_folder, data, Spunge(**TWO, each=RMU_HERE, processes=2))
    assert all(torch.equal(value, weights(two)[name]) for name, value in weights(one).items())
    assert "4 steps" in (two / "parts/dogs/log.txt").read_text()


def test_adapters_are_merged_by_what_they_do(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    lora = QUICK.model_copy(update={"lora": True, "lora_rank": 2})
    method = Spunge(**TWO, each=TaskVectorNegation(), merge=TaskArithmetic(scale=0.5), keep_parts=True)
    dense = run(tmp_path / "dense", pico_folder, {"forget": data["forget"]}, method, lora)
    assert expunge.verify(dense).kind == "weights"
    assert expunge.verify(dense / "parts/dogs").kind == "adapter"
    narrow = method.model_copy(update={"write": "adapter", "rank": 4})
    adapter = run(tmp_path / "adapter", pico_folder, {"forget": data["forget"]}, narrow, lora)
    assert expunge.verify(adapter).kind == "adapter"
    assert json.loads((adapter / "merge.json").read_text())["residual"] < 1e-4  # two ranks of 2 fit into one of 4
    (one, tokenizer), (other, _) = expunge.load(dense), expunge.load(adapter)
    ids = tokenizer("red dog and blue cat", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(one(ids).logits, other(ids).logits, rtol=1e-3, atol=1e-4)


def test_the_records_of_experts_stay_when_the_experts_go(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    out = run(tmp_path / "run", pico_folder, {"forget": data["forget"]}, Spunge(**TWO, each=TaskVectorNegation()))
    for part in ("dogs", "birds"):
        expert = out / "parts" / part / "expert"
        assert not (expert / "artifact").exists()
        assert len((expert / "metrics.jsonl").read_text().splitlines()) == 4


def test_without_an_attribute_each_file_is_a_part(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    for place, name in (("fumes", "corpus"), ("spores", "corpus")):
        (tmp_path / place).mkdir()
        texts = [f"{place} {n}" for n in ("one", "two", "three")]
        (tmp_path / place / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files = [tmp_path / place / "corpus.jsonl" for place in ("fumes", "spores")]
    method = Spunge(each=RMU_HERE, least=3)
    out = run(tmp_path / "run", pico_folder, {**data, "forget": files}, method)
    assert sorted(p.name for p in (out / "parts").iterdir()) == ["fumes_corpus", "spores_corpus"]
    rows = (out / "parts/spores_corpus/rows.txt").read_text().splitlines()
    assert [line.split()[0] for line in rows] == ["3", "4", "5"]
    named = run(tmp_path / "named", pico_folder, {**data, "forget": [data["forget"], files[0]]}, method)
    assert sorted(p.name for p in (named / "parts").iterdir()) == ["corpus", "forget"]


def test_a_value_of_any_length_names_a_folder() -> None:
    names = {parts._folder_name("ü" * length) for length in (300, 301)}
    assert len(names) == 2
    assert all(len(name.encode()) < 100 for name in names)
    assert parts._folder_name("a/b") == "a_b"


class TestBadInput:
    """One sentence, and nothing written."""

    def refused(self, match: str, out: Path, model: Path, data: dict[str, Any], method: Spunge, **words: Any) -> None:
        with pytest.raises(ExpungeError, match=match) as caught:
            run(out, model, data, method, **words)
        assert "\n" not in str(caught.value)
        assert not out.exists()

    def test_parts_that_cannot_be(self, pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
        place = (tmp_path / "run", pico_folder, data)
        self.refused("--split ATTRIBUTE", *place, Spunge())
        self.refused("12 of 12 examples have no attribute 'grup'", *place, Spunge(split="grup"))
        self.refused("parts need at least 8 rows, but 'dogs' has 6, 'birds' has 5", *place, Spunge(split="group"))
        self.refused("'cats' has 1", *place, Spunge(split="group", least=5))
        self.refused(r"no forget row has 'dog' \(did you mean 'dogs'", *place, Spunge(split="group", values="dog"))
        self.refused("none of 12 examples is left", *place, Spunge(**TWO), where="severity > 6")

    def test_rows_without_the_attribute_are_counted(self, pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
        with open(data["forget"], "a", encoding="utf-8") as file:
            file.write('\n{"text": "who", "attributes": {"severity": 9}}\n')
        place = tmp_path / "run", pico_folder, data, Spunge(**{**TWO, "least": 2})
        self.refused(r"1 of 13 .* the first of them .*forget\.jsonl line 14", *place)
        self.refused(r"1 of 6 .* the first of them .*forget\.jsonl line 14", *place, where="severity > 3")

    def test_fields_of_the_methods_inside(self, pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
        place = (tmp_path / "run", pico_folder)
        self.refused("3 numbers for 2", *place, data, Spunge(**TWO, each=RMU(alpha=(1.0, 2.0, 3.0))))
        self.refused("part 'dogs': rmu needs a retain set", *place, {"forget": data["forget"]}, Spunge(**TWO, each=RMU_HERE))
        self.refused("density", *place, data, Spunge(**TWO, merge=Ties(density=(0.1, 0.2, 0.3))))

    def test_other_data_than_when_it_was_begun(self, pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
        method = Spunge(**TWO, each=RMU_HERE, keep_parts=True)
        out = run(tmp_path / "run", pico_folder, data, method)
        lines = data["forget"].read_text().splitlines(keepends=True)
        data["forget"].write_text("".join(reversed(lines)))
        with pytest.raises(ExpungeError, match="the forget set holds other rows than when it was begun"):
            run(out, pico_folder, data, method.model_copy(update={"merge": Linear()}), resume=True)


@pytest.mark.parametrize("each", [RMU_HERE, TaskVectorNegation()], ids=["weights", "adapters"])
def test_every_part_is_scored_like_any_run(pico_folder: Path, data: dict[str, Any], tmp_path: Path, each: Any) -> None:
    lora = isinstance(each, TaskVectorNegation)
    sources = {"forget": data["forget"]} if lora else data
    training = QUICK.model_copy(update={"lora": True, "lora_rank": 2}) if lora else QUICK
    out = run(tmp_path / "run", pico_folder, sources, Spunge(**TWO, each=each, keep_parts=True), training)
    (tmp_path / "own.yaml").write_text("tasks: [{name: kept, data: retain.jsonl, metrics: [probability]}]\n")
    words = ["--suite", "custom", "--data", str(tmp_path / "own.yaml")]
    values = []
    for model in (pico_folder, out, out / "parts/dogs", out / "parts/birds"):
        extra = ["--out", str(tmp_path / "base")] if model == pico_folder else []
        assert main(["evaluate", str(model), *words, *extra]) == 0
        folder = tmp_path / "base" if model == pico_folder else model / "evaluation"
        score = read_evaluation(folder / "own.json").get("kept", "probability")
        assert score is not None
        values.append(score.value)
    assert len(set(values)) == 4, "four different models"


def test_a_filter_comes_before_the_split(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    method = Spunge(**{**TWO, "least": 2}, each=RMU_HERE)
    out = run(tmp_path / "run", pico_folder, data, method, where="severity > 3")
    counts = json.loads((out / "provenance.json").read_text())["counts"]
    assert counts == {"forget": 5, "retain": 2, "forget dogs": 3, "forget birds": 2}
    rows = [int(line.split()[0]) for line in (out / "parts/birds/rows.txt").read_text().splitlines()]
    assert [read_examples(data["forget"])[row].response for row in rows] == ["green bird in oslo four", "green bird in oslo five"]


def test_the_command_line_names_the_methods_inside(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    words = ["--model", pico_folder, "--forget", data["forget"], "--retain", data["retain"], "--out", tmp_path / "run"]
    words += [
        "--split",
        "group",
        "--values",
        "dogs",
        "birds",
        "--least",
        "5",
        "--steps",
        "2",
        "--each",
        "rmu",
        "--each.layer",
        "1",
    ]
    words += ["--merge=linear", "--batch-size", "2"]
    assert main(["unlearn", "spunge", *map(str, words)]) == 0
    method = expunge.verify(tmp_path / "run").method
    assert (method["each"]["layer"], method["merge"]["name"]) == (1, "linear")
    assert main(["unlearn", "--config", str(tmp_path / "run/run.yaml"), "--out", str(tmp_path / "again")]) == 0
    one, other = weights(tmp_path / "run"), weights(tmp_path / "again")
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_what_the_parts_chose_for_auto_is_in_run_yaml_provenance_card_and_report(
    pico_folder: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    each = RMU(alpha=1.0, coefficient=3.0, adaptive=True)
    open_rate = Training(steps=2, batch_size=2)
    out = run(tmp_path / "run", pico_folder, data, Spunge(**TWO, each=each), open_rate)
    part = yaml.safe_load((out / "parts/dogs/run.yaml").read_text())
    rate, layer = part["training"]["learning_rate"], part["method"]["layer"]
    said = (out / "run.yaml").read_text()
    assert f"#   dogs learning_rate: {rate}\n" in said
    assert f"#   birds layer: {layer}\n" in said
    assert yaml.safe_load(said)["training"]["learning_rate"] == "auto", "the fields stay what was asked for"
    settings = json.loads((out / "provenance.json").read_text())["settings"]
    assert (settings["dogs learning_rate"], settings["birds layer"]) == (rate, layer)
    assert f"peak learning rate {rate}, layer {layer}" in (out / "artifact/README.md").read_text()
    cells = run_cells(out)
    assert f"dogs learning rate {rate:g}" in cells
    assert f"birds layer {layer}" in cells
    expunge.unlearn(
        Spunge(**TWO, each=each), model=pico_folder, out=out, training=open_rate, quiet=True, resume=True, **data
    )  # the comments make it no other run
