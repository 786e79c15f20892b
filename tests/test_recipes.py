"""Every recipe is a whole run that can be read, says nothing that is not a field, and names data that is read as it should be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from expunge import artifact
from expunge.cli.merge_pairs import pairs_of
from expunge.data.read import read_request
from expunge.data.split import rows_by_attribute
from expunge.errors import ExpungeError
from expunge.methods import SKU, ExtSubPipeline
from expunge.recipes import recipe, recipes_folder
from expunge.run import check, execute
from expunge.spec import Run, build, to_yaml

PAIRS = "behavior/ext_sub_published"
"""The one recipe of merges instead of a run."""
NAMES = sorted(str(path.relative_to(recipes_folder()).with_suffix("")) for path in recipes_folder().rglob("*.yaml"))
NAMES.remove(PAIRS)
PUBLISHED = [n for n in NAMES if n.startswith(("rmu_", "tvn_", "spunge_"))]
SKILLS = [n for n in NAMES if n.startswith("skills/")]
MODELS = {
    "gemma_2b": ("google/gemma-2b", "bfloat16", None),
    "llama_2_7b": ("meta-llama/Llama-2-7b-hf", "float32", None),
    "llama_3_8b": ("meta-llama/Meta-Llama-3-8B", "bfloat16", None),
    "llama_3_70b": ("meta-llama/Meta-Llama-3-70B", "bfloat16", "auto"),
}
"""Folder of recipes -> model, dtype, device map (arXiv 2503.21730)."""
LANGUAGES = ("en", "de", "es", "ar", "zh", "vi", "hi")
GROUPS = ("mexican", "women", "muslim", "lgbtq", "physical_dis", "jewish")
WORDS = "what who where red green blue dog bird river city of the in and or job name color food one two three four five".split()  # noqa: SIM905


def sentence(*numbers: int) -> str:
    return " ".join(WORDS[number % len(WORDS)] for number in (3, *numbers, 5))


HUB: dict[tuple[str, str | None, str], list[dict[str, Any]]] = {
    ("toxigen/toxigen-data", "annotated", "train"): [
        {"text": sentence(i, len(group), g), "target_group": group, "toxicity_human": float(1 + i % 5), "toxicity_ai": 3.0}
        for g, group in enumerate(GROUPS)
        for i in range(50)
    ],
    ("google/civil_comments", None, "train"): [
        {"text": sentence(i, i // 20), "toxicity": 0.5, "severe_toxicity": i % 10 / 10} for i in range(40)
    ],
    ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"): [
        {"text": text} for i in range(30) for text in ("", f" = {WORDS[i % 20]} = \n", f" {sentence(i, i + 1)} . \n")
    ],
    ("cais/wmdp-bio-forget-corpus", None, "train"): [{"title": "t", "abstract": "a", "text": sentence(i, 7)} for i in range(24)],
    ("cais/wmdp-corpora", "cyber-forget-corpus", "train"): [{"text": sentence(i, 11)} for i in range(24)],
    ("openai/gsm8k", "main", "train"): [
        {"question": sentence(i, 2), "answer": f"{sentence(i, i // 20, 9)}\n#### {i}"} for i in range(400)
    ],
    ("google-research-datasets/mbpp", "full", "train"): [
        {"task_id": i, "text": sentence(i), "code": sentence(i, i // 17, i // 5, 1), "test_list": ["assert True"]}
        for i in range(601, 975)
    ],
    **{
        ("facebook/mlqa", f"mlqa.{code}.{code}", "validation"): [
            {"context": sentence(i, number, number + 5), "question": "what", "answers": {"text": ["red"], "answer_start": [0]}}
            for i in range(20)
        ]
        for number, code in enumerate(LANGUAGES)
    },
}
"""(id, configuration, split) -> rows: the layouts of the hub, with other words in them."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, name: str | None = None, split: str | None = None) -> datasets.Dataset:
        assert split is not None
        return datasets.Dataset.from_list(HUB[path, name, split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_run(name: str, tmp_path: Path) -> None:
    run = build(Run, {"model": "m", "forget": "f", **recipe(name)}, name)
    assert build(Run, recipe(name) | {"model": run.model, "forget": run.forget}, name) == run
    assert to_yaml(run)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_setting_is_complete(name: str) -> None:
    said = recipe(name)
    assert {"model", "forget", "method", "training"} <= said.keys()
    run = build(Run, said, name)
    uses = run.method.each if run.method.name == "spunge" else run.method
    assert bool(run.retain) == (uses.name == "rmu")
    assert run.training.learning_rate


@pytest.mark.filterwarnings("ignore:.*more than once")
@pytest.mark.parametrize("name", PUBLISHED)
def test_its_data_is_found_on_the_hub_and_has_what_the_method_asks_for(name: str, hub: None) -> None:
    run = build(Run, recipe(name), name)
    request = read_request(run.forget, run.retain, where=run.where)
    check(run, request)
    assert all(example.prompt is None for example in (*request.forget, *request.retain))
    if "toxigen" in name:
        assert {example.attributes["severity"] for example in request.forget} == {4.0, 5.0}
        groups = set(rows_by_attribute(request.forget, "group"))
        assert groups == set(GROUPS) if name.startswith("spunge") else groups == set(GROUPS[:5])
    elif "wmdp" in name:
        assert {domain: len(rows) for domain, rows in rows_by_attribute(request.forget, "domain").items()} == {
            "bio": 24,
            "cyber": 24,
        }
    else:
        assert request.forget_sources == (60, 24)
    assert all(example.response.strip() for example in request.retain)


@pytest.mark.filterwarnings("ignore:.*more than once")
@pytest.mark.parametrize("name", PUBLISHED)
def test_it_runs_as_it_is_on_a_small_model(
    name: str, hub: None, tmp_path: Path, model_of: Callable[..., PreTrainedModel], pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Only the model, its context and the number of steps are others; eight blocks, as the recipes of RMU read the eighth."""
    model_of("mistral" if "zephyr" in name else "llama", num_hidden_layers=8).save_pretrained(tmp_path / "model")
    pico_tokenizer.save_pretrained(tmp_path / "model")
    said = recipe(name)
    said["training"] |= {"steps": 2, "batch_size": 2}
    run = build(Run, {**said, "model": str(tmp_path / "model"), "max_length": 64}, name)
    outcome = execute(run, tmp_path / "run", quiet=True)
    assert artifact.verify(outcome.artifact).method["name"] == run.method.name
    if name.startswith("spunge") and name.endswith("explicit"):
        assert {part.name for part in (tmp_path / "run/parts").iterdir()} == {"toxigen-data", "civil_comments"}


def test_the_published_rmu_is_that_of_the_release() -> None:
    run = build(Run, recipe("rmu_zephyr_wmdp"), "rmu_zephyr_wmdp")
    method, training = run.method, run.training
    assert method.name == "rmu"
    assert (method.alpha, method.coefficient, method.layer, method.edited) == ((1200, 1200), (6.5, 6.5), 7, (5, 6, 7))
    assert (training.steps, training.batch_size, training.learning_rate, training.adam_epsilon) == (150, 4, 5e-5, 1e-6)


@pytest.mark.filterwarnings("ignore:.*more than once", "ignore:.*also in the retain set")
@pytest.mark.parametrize("name", SKILLS)
def test_a_published_skill_setting_is_complete_and_finds_its_data(name: str, hub: None) -> None:
    _, folder, what = name.split("/")
    run = build(Run, recipe(name), name)
    assert (run.model, run.dtype, run.device_map) == MODELS[folder]
    request = read_request(run.forget, run.retain)
    check(run, request)
    assert all(example.prompt is None for example in (*request.forget, *request.retain))
    method, skill = run.method, what.rpartition("_")[2]
    assert method.name == what.rpartition("_")[0]
    counts = (len(request.forget), len(request.retain))
    if method.name == "neuron_adjust":
        assert (method.percent, method.score, method.scope) == (0.5 if skill == "language" else 3, "mean_difference", "global")
    elif method.name == "selective_pruning":
        assert (method.percent, method.importance, method.epsilon) == ({"gsm8k": 1.5, "mbpp": 0.01}[skill], "abs", 1e-8)
    else:
        assert method.name == "key_space"
        assert (method.alpha, method.layers, method.check) == (
            {"gsm8k": 2, "mbpp": 1.4, "language": 0.06}[skill],
            (-1,),
            "all_steps",
        )
        assert method.sides == "deviation"
    if skill == "language":
        assert counts == (20, 120)
    else:
        few = 374 if method.name == "key_space" else 200
        assert counts == ((few, 374) if skill == "gsm8k" else (374, few))


@pytest.mark.filterwarnings("ignore:.*more than once", "ignore:.*also in the retain set", "ignore:.*hardly changes")
@pytest.mark.parametrize("name", [n for n in SKILLS if n.startswith("skills/llama_3_8b") or n.endswith("70b/key_space_gsm8k")])
def test_a_skill_is_forgotten_by_its_recipe_on_a_small_model(
    name: str, hub: None, tmp_path: Path, model_of: Callable[..., PreTrainedModel], pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Only the model and the abstention, whose words the small tokenizer lacks, are others."""
    model_of("llama").save_pretrained(tmp_path / "model")
    pico_tokenizer.save_pretrained(tmp_path / "model")
    said = recipe(name)
    if said["method"]["name"] == "key_space":
        said["method"]["abstention"] = "i do not know that ."
    run = build(Run, {**said, "model": str(tmp_path / "model"), "dtype": "float32"}, name)
    manifest = artifact.verify(execute(run, tmp_path / "run", quiet=True).artifact)
    assert manifest.kind == ("weights" if run.method.name == "selective_pruning" else "guard")


@pytest.mark.parametrize(("name", "lora"), [("opt_2_7b", None), ("llama_2_7b", (32, 16)), ("llama_2_13b", (16, 8))])
def test_the_published_sku_is_that_of_the_release(name: str, lora: tuple[int, int] | None) -> None:
    run = build(Run, recipe(f"behavior/sku_{name}"), name)
    method, training = run.method, run.training
    assert isinstance(method, SKU)
    assert (method.distortion_weight, method.disassociation_weight, method.preservation_weight) == (2.5, 2.5, 1)
    assert (method.answers, method.scale, method.cap) == (5, (1.0,), None)
    assert (training.learning_rate, training.steps, training.batch_size, training.seed) == (2e-4, 1000, 2, 8888)
    assert (training.schedule, training.warmup, training.weight_decay) == ("linear", 0, 0.01)
    assert training.lora == (lora is not None)
    assert lora is None or (training.lora_rank, training.lora_alpha) == lora
    assert run.format is not None
    assert run.format.template == "### Question: {prompt}\n ### Answer: {response}"
    assert run.forget == ("PKU-Alignment/PKU-SafeRLHF:pku/harmful/train",)
    assert run.retain == ("truthfulqa/truthful_qa:truthfulqa/released/train",)


@pytest.mark.parametrize("name", ["llama_7b", "llama_13b", "llama_7b_wizardlm", "llama_7b_toxic"])
def test_the_published_ext_sub_is_that_of_the_release(name: str) -> None:
    run = build(Run, recipe(f"behavior/ext_sub_{name}"), name)
    method, training = run.method, run.training
    assert isinstance(method, ExtSubPipeline)
    assert (method.alpha, method.arithmetic) == ((1.0,), "ext_sub")
    assert (training.learning_rate, training.epochs, run.max_length) == (2e-5, 2, 1024)
    assert (training.batch_size, training.micro_batch_size) == (4 * 16 * 2, 4)
    assert (training.warmup, training.schedule, training.weight_decay) == (0.03, "linear", 0)
    assert (training.lora_rank, training.lora_alpha, training.lora_dropout) == (16, 32, 0.05)
    assert run.format is not None
    assert run.format.template == "<|user|>\n{prompt}\n<|assistant|>\n{response}"
    assert run.model == f"huggyllama/llama-{'13b' if '13b' in name else '7b'}"


def test_training_is_not_spread_by_a_device_map(tmp_path: Path) -> None:
    run = build(Run, {"model": "m", "forget": "f", "device_map": "auto", "method": {"name": "npo"}}, "npo")
    with pytest.raises(ExpungeError, match="for methods without gradient steps; shard npo with torchrun"):
        execute(run, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_published_adapters_of_ext_sub_are_paired() -> None:
    """The eight adapters of the release; each result is of one base, and the expert comes first."""
    pairs = pairs_of(PAIRS)
    assert len({name for pair in pairs.values() for name in pair}) == 8
    for expert, anti in pairs.values():
        assert expert.partition("_")[0] == anti.partition("_")[0]
        assert anti.endswith(("untruthful_lora", "toxic_lora"))
        assert not expert.endswith(("untruthful_lora", "toxic_lora"))
