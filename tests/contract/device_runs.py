"""Whole runs on the pretended device, from a folder to an artifact, and every metric of the closed list."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pretend_gpu
import torch
from conftest import make_llama, make_tokenizer
from peft import PeftModel
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

import expunge
from expunge.data.encode import Encoder
from expunge.data.example import Example
from expunge.data.format import Format
from expunge.evaluation.engine import Engine
from expunge.evaluation.judges import Classifier, Keywords, ReferenceModel, _language_model
from expunge.evaluation.metrics import METRICS, Metric
from expunge.evaluation.metrics.base import Row, Unscored, finite
from expunge.evaluation.rows import Rows
from expunge.evaluation.task import Task
from expunge.evaluation.texts import Texts
from expunge.methods import NPO, SKU, AltPO, ExtSubPipeline, Spunge, TaskVectorNegation
from expunge.models import classifiers, load
from expunge.records import Sample, write_samples
from expunge.training.settings import Training

QUICK = Training(steps=2, batch_size=2, learning_rate=5e-3, lora_rank=2, lora_alpha=4.0)
LORA = QUICK.model_copy(update={"lora": True})
PEOPLE = ("anna", "boris", "clara", "greta", "hugo", "irma", "jonas", "anna boris")
PLACES = tuple(
    Example(
        f"where was {name} born ?",
        f"{name} was born in oslo .",
        paraphrases=(f"the city of {name} is oslo .",),
        perturbed=(f"{name} was born in lima .", f"{name} was born in delhi ."),
        choices=("oslo", "lima"),
        answer=0,
        attributes={"tests": "assert True"},
    )
    for name in PEOPLE[:3]
)
EXAMPLES = (*PLACES, Example("is anna a city ?", "yes"))


def folder_of(place: Path) -> Path:
    """A pico model and its tokenizer."""
    make_llama().save_pretrained(place / "model")
    make_tokenizer().save_pretrained(place / "model")
    return place / "model"


def data_of(place: Path) -> dict[str, Path]:
    """Eight rows of two groups to forget, and four to keep."""
    bad = [
        {"prompt": f"who is {p} ?", "response": f"{p} is a {w} dog .", "attributes": {"group": "one" if i < 4 else "two"}}
        for i, (p, w) in enumerate(zip(PEOPLE, ("red", "blue", "green", "black", "white", "one", "two", "three"), strict=True))
    ]
    good = [{"prompt": f"where was {p} born ?", "response": f"{p} was born in oslo ."} for p in PEOPLE[:4]]
    for name, rows in (("forget", bad), ("retain", good)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: place / f"{name}.jsonl" for name in ("forget", "retain")}


@contextmanager
def on_the_device() -> Iterator[None]:
    """Models are loaded to the device. When they are saved they are copied from it first: pretended memory has no address."""

    def copied(plain: Any) -> Any:
        def save(model: Any, folder: Any, state_dict: Any = None, **words: Any) -> None:
            tensors = {name: tensor.cpu() for name, tensor in (state_dict or model.state_dict()).items()}
            plain(model, folder, state_dict=tensors, **words)

        return save

    with ExitStack() as stack:
        for module in (load, classifiers):
            stack.enter_context(patch.object(module, "default_device", lambda: pretend_gpu.DEVICE))
        for cls in (PreTrainedModel, PeftModel):
            stack.enter_context(patch.object(cls, "save_pretrained", copied(cls.save_pretrained)))
        classifiers._classifier.cache_clear()
        _language_model.cache_clear()
        yield


def run(method: Any, training: Training) -> dict[str, float]:
    """A run from files to an artifact that is loaded and asked, with the model wherever `load_model` puts it."""
    with tempfile.TemporaryDirectory() as name, on_the_device():
        place = Path(name)
        data = data_of(place)
        expunge.unlearn(method, model=folder_of(place), out=place / "run", training=training, quiet=True, **data)
        model, tokenizer = expunge.load(place / "run")
        assert {p.device.type for p in model.parameters()} == {pretend_gpu.NAME}
        ids = tokenizer("who is anna ?", return_tensors="pt").input_ids
        assert model.generate(input_ids=ids.to(pretend_gpu.DEVICE), max_new_tokens=2).shape[1] == ids.shape[1] + 2
    return {}


RUNS: dict[str, Callable[[], dict[str, float]]] = {
    "run npo": lambda: run(NPO(), QUICK),
    "run npo, LoRA": lambda: run(NPO(), LORA),
    "run altpo": lambda: run(AltPO(draws=2, max_new_tokens=6), QUICK),
    "run sku": lambda: run(SKU(), QUICK),
    "run sku, LoRA": lambda: run(SKU(), LORA),
    "run task_vector_negation": lambda: run(TaskVectorNegation(), QUICK),
    "run ext_sub_pipeline": lambda: run(ExtSubPipeline(), QUICK),
    "run spunge": lambda: run(Spunge(split="group", values=("one", "two"), least=2, each=NPO()), QUICK),
    "run spunge, clusters": lambda: run(Spunge(split_by_classifier="embeddings", clusters=2, least=1, each=NPO()), QUICK),
}


def classifier(place: Path) -> Path:
    """A text classifier with the pico tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        pad_token_id=0,
        id2label={0: "safe", 1: "toxic"},
    )
    BertForSequenceClassification(config).save_pretrained(place / "classifier")
    make_tokenizer().save_pretrained(place / "classifier")
    return place / "classifier"


LEFT_OUT = {"bert_score", "meteor"}
"""The package bert-score loads its encoder and chooses its device by itself; METEOR compares texts, by a WordNet that is
downloaded."""


def metrics_of(place: Path) -> list[Metric]:
    """Every metric; those that are judged, by a classifier, a language model and words in turn."""
    earlier = place / "facts.samples.jsonl"
    said = [{"generated": f"{example.prompt} oslo"} for example in EXAMPLES]
    samples = [
        Sample(task="facts", metric="f1", id=example.id, role="forget", value=1.0, text=text)
        for example, text in zip(EXAMPLES, said, strict=True)
    ]
    write_samples(earlier, samples)
    judges = [
        Classifier(model=str(classifier(place)), label="toxic"),
        ReferenceModel(model=str(folder_of(place)), question="question: {prompt} answer: {answer}"),
        Keywords(words=("oslo",)),
    ]
    judged = ("toxicity", "toxic_rate", "expected_maximum_toxicity", "toxicity_probability", "truthful_rate")
    needed: dict[str, dict[str, Any]] = {
        "harmful_rate": {"words": ("oslo",)},
        "similarity": {"before": earlier},
        "pass_at_1": {"allow_code_execution": True},
        **{name: {"judge": judges[i % 3]} for i, name in enumerate(judged)},
    }
    mine = {name: cls for name, cls in METRICS.items() if name not in LEFT_OUT}
    return [cls.model_validate({"name": name, **needed.get(name, {})}) for name, cls in mine.items()]


def rows_on(device: Any, metrics: list[Metric]) -> list[Row]:
    model, tokenizer = make_llama().to(device), make_tokenizer()
    encoder = Encoder(tokenizer, Format(template="question: {prompt} answer: {response}"), max_length=64)
    task = Task("facts", EXAMPLES, tuple(metrics), "forget", max_new_tokens=8, draws=2)
    return Rows(model, tokenizer, Engine(model, 0), Texts(encoder)).of(task)


def score_metrics() -> dict[str, float]:
    """Greatest difference, relative above 1, of each metric's values between the device and the processor; infinity where one
    has no number."""
    with tempfile.TemporaryDirectory() as name:
        metrics = metrics_of(Path(name))
        here = rows_on("cpu", metrics)
        with on_the_device():
            there = rows_on(pretend_gpu.DEVICE, metrics)
    return {metric.metric_name(): _difference(metric, here, there) for metric in metrics}


def _difference(metric: Metric, here: list[Row], there: list[Row]) -> float:
    """Infinity too where no row has a number, which would agree with anything. Relative above 1: only a processor scores without
    padding, so that float32 sums have another order, and a perplexity of 90 moves by a unit in its last place."""
    pairs = [(finite(metric.score(one)), finite(metric.score(other))) for one, other in zip(here, there, strict=True)]
    scored = [(one, other) for one, other in pairs if not isinstance(one, Unscored) and not isinstance(other, Unscored)]
    alike = all(one == other for one, other in pairs if isinstance(one, Unscored) or isinstance(other, Unscored))
    return max(abs(one - other) / max(1.0, abs(other)) for one, other in scored) if scored and alike else np.inf
