"""The recipes of embedding corruption hold the published values."""

from pathlib import Path

import pytest

from expunge.methods import EmbeddingCorruption
from expunge.recipes import recipe

PUBLISHED = sorted(path.stem for path in (Path(__file__).parents[3] / "recipes/eco").glob("*.yaml"))
TOFU = {
    "phi_1_5": {"01": (507, 0.99), "05": (766, 0.99), "10": (1243, 0.9999)},
    "llama_2_7b": {"01": (670, 0.99), "05": (881, 0.99), "10": (1000, 0.9999)},
}
QUESTIONS = {"wmdp": 0.999, "mmlu_economics": 0.999, "mmlu_law": 0.995, "mmlu_physics": 0.999}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_classifier_alone_decides(name: str) -> None:
    said = recipe(f"eco/{name}")["method"]
    assert said["name"] != "embedding_corruption" or EmbeddingCorruption.model_validate(said).mentions == "none"


@pytest.mark.parametrize("model", TOFU)
def test_tofu(model: str) -> None:
    for part, (dims, threshold) in TOFU[model].items():
        said = recipe(f"eco/tofu_forget{part}_{model}")
        method = EmbeddingCorruption.model_validate(said["method"])
        assert (method.corruption, method.dims, method.tokens) == ("zero_out_top_k", dims, "entities")
        assert (method.threshold, method.threshold_value) == ("fixed", threshold)
        assert method.entity_model == "dslim/bert-base-NER"
        assert method.gate_model == f"chrisliu298/tofu_forget{part}_classifier"
        assert said["forget"].endswith(f"forget{part}")
        assert said["retain"].endswith(f"retain{100 - int(part)}")


@pytest.mark.parametrize("name", QUESTIONS)
def test_multiple_choice(name: str) -> None:
    method = EmbeddingCorruption.model_validate(recipe(f"eco/{name}")["method"])
    assert (method.corruption, method.dims, method.strength, method.relative) == ("rand_noise_first_n", 1, 1e6, False)
    assert (method.tokens, method.threshold, method.threshold_value) == ("all_but_last", "fixed", QUESTIONS[name])
    assert method.gate_model == f"chrisliu298/{name.replace('_', '-')}_classifier"


@pytest.mark.parametrize("name", ["bbc_news", "hp_book"])
def test_copyright(name: str) -> None:
    said = recipe(f"eco/copyright_{name}")
    method = EmbeddingCorruption.model_validate(said["method"])
    assert (method.corruption, method.dims, method.relative, method.tune) == ("rand_noise_first_n", 1, False, "strength")
    assert (method.threshold, method.threshold_value) == ("fixed", 0.99)
    assert method.gate_model == f"chrisliu298/{name}_classifier"
    assert said["max_length"] == 256


@pytest.mark.parametrize("name", ["llmu", "mismatch", "scrub"])
def test_the_training_baselines_of_the_copyright_tasks(name: str) -> None:
    said = recipe(f"eco/copyright_{name}")
    training = said["training"]
    assert (training["epochs"], training["learning_rate"], training["batch_size"]) == (5, 2e-5, 8)
    assert (training["schedule"], training["warmup"], training["weight_decay"]) == ("cosine", 0.1, 0.01)
