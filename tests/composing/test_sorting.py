"""Rows without an attribute are sorted by the model's own states or by a text classifier."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

import expunge
from expunge import ExpungeError, Training
from expunge.composing.sorting import cluster, fill_in
from expunge.methods import RMU, Spunge

QUICK = Training(steps=2, batch_size=2, learning_rate=1e-2)
EACH = RMU(layer=1, alpha=1.0)


def spunge(out: Path, model: Path, data: dict[str, Any], method: Spunge) -> dict[str, int]:
    expunge.unlearn(method, model=model, out=out, training=QUICK, quiet=True, **data)
    counts = json.loads((out / "provenance.json").read_text())["counts"]
    return {name.removeprefix("forget "): n for name, n in counts.items() if name.startswith("forget ")}


def without_groups(data: dict[str, Any], kept: int) -> dict[str, Any]:
    """The first `kept` rows of dogs and of birds keep their group; cats are left out."""
    rows = [json.loads(line) for line in data["forget"].read_text().splitlines()][:11]
    for i, row in enumerate(rows):
        if i % 6 >= kept:
            del row["attributes"]["group"]
    data["forget"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def test_known_rows_teach_the_others_their_part(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    method = Spunge(split="group", split_by_classifier="embeddings", least=5, each=EACH)
    assert spunge(tmp_path / "run", pico_folder, without_groups(data, 2), method) == {"dogs": 6, "birds": 5}


def test_clusters_need_no_attribute(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    method = Spunge(split_by_classifier="embeddings", clusters=2, least=5, each=EACH)
    found = spunge(tmp_path / "run", pico_folder, without_groups(data, 0), method)
    assert found == {"cluster_0": 6, "cluster_1": 5}


def test_a_text_classifier_s_labels_are_the_parts(
    pico_folder: Path, pico_tokenizer: PreTrainedTokenizerFast, data: dict[str, Any], tmp_path: Path
) -> None:
    """One that looks at the first word only: `red` or not."""
    config = LlamaConfig(
        vocab_size=len(pico_tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        pad_token_id=0, id2label={0: "other", 1: "about dogs"},
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        # mean pooling does not exist here, so every token of a row about dogs is told apart: the last one is its number
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.score.weight.zero_()
        model.score.weight[1, 0] = 1.0
        model.model.embed_tokens.weight.fill_(-1.0)
        model.model.embed_tokens.weight[:, 0] = -1.0
        model.model.embed_tokens.weight[pico_tokenizer.convert_tokens_to_ids(["one", "two"]), 0] = 1.0
    model.save_pretrained(tmp_path / "classifier")
    pico_tokenizer.save_pretrained(tmp_path / "classifier")
    method = Spunge(split_by_classifier=str(tmp_path / "classifier"), least=2, each=EACH)
    assert spunge(tmp_path / "run", pico_folder, data, method) == {"about dogs": 5, "other": 7}


def test_what_cannot_be_sorted_is_refused(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    for method, said in (
        (Spunge(split_by_classifier="embeddings"), "by the rows whose --split is known, or by --clusters"),
        (Spunge(split="group", clusters=2), "--clusters goes with"),
        (Spunge(split="topic", split_by_classifier="embeddings"), "0 rows with it"),
        (Spunge(split_by_classifier="embeddings", clusters=20), "12 rows make no 20 clusters"),
        (Spunge(split_by_classifier=str(tmp_path / "nowhere")), "cannot load the classifier"),
    ):
        with pytest.raises(ExpungeError, match=said):
            spunge(tmp_path / "run", pico_folder, data, method.model_copy(update={"each": EACH}))
        assert not (tmp_path / "run").exists()


def test_rows_keep_the_value_that_they_had() -> None:
    embeddings = np.array([[0.0, 1.0], [0.1, 1.0], [5.0, 1.0], [5.1, 1.0], [0.2, 1.0], [4.9, 1.0]], dtype=np.float32)
    assert fill_in(["a", None, "b", "a", None, None], embeddings, 0)[:4] == ["a", "a", "b", "a"]
    assert fill_in(["a", None, "b", None, None, None], embeddings, 0) == ["a", "a", "b", "b", "a", "b"]
    assert cluster(embeddings, 2, 0) == [0, 0, 1, 1, 0, 1]
