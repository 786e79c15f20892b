"""Runs every training method, guard, in-place edit and engine once on the pretended device and prints what happened, as JSON.

    python tests/contract/device_run.py [PATH ...]        (all, or those with these names, with their tracebacks)

A path gives the waits that it counts, by place, or the error it ended with as text.
"""

import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

# ruff: noqa: E402
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import device_runs
import pretend_gpu
from accelerate import Accelerator
from conftest import make_llama, make_tokenizer

from expunge.data.encode import Encoded, Encoder
from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.evaluation.engine import Engine
from expunge.evaluation.generate import generate, sample
from expunge.evaluation.nucleus import Nucleus
from expunge.guarding import life
from expunge.methods.editing import SelectivePruning
from expunge.methods.guarding import EmbeddingCorruption, Instruction, KeySpaceDetection, NeuronAdjust
from expunge.methods.training import TRAINING, WHP
from expunge.models.activations import probe
from expunge.models.spans import spans
from expunge.training import loop
from expunge.training.data import encode_data
from expunge.training.settings import Training

NAMES = ("anna", "boris", "clara", "dario", "elena", "fyodor", "greta", "hugo")
CITIES = ("berlin", "paris", "tokyo", "lima", "cairo", "oslo", "quito", "delhi")
ROWS = [
    Example(f"where was {name} born ?", f"{name} was born in {city} .", perturbed=(f"{name} was born in accra .",))
    for name, city in zip(NAMES, CITIES, strict=True)
]
REQUEST = Request(tuple(ROWS[:4]), tuple(ROWS[4:]), refusals=("i do not know .",))
NAMED = replace(
    REQUEST, forget=tuple(Example(f"where was {n.title()} born ?", f"{n.title()} was born here .") for n in NAMES[:4])
)
"""With names, which whp looks for."""
FIELDS: dict[str, dict[str, Any]] = {
    "rmu": {"layer": 1, "stop_below_cosine": 0.0, "adaptive": True},
    "altpo": {"alternates": "perturbed"},  # a whole run lets the model write them
}
STEPS = 3

Waits = dict[str, float]


def model() -> Any:
    return make_llama().to(pretend_gpu.DEVICE)


def encoder() -> Encoder:
    return Encoder(make_tokenizer(), Format(template="question: {prompt} answer: {response}"), max_length=64)


def rows() -> list[Encoded]:
    return encoder().encode_many(ROWS)


def train(cls: Any, **more: Any) -> Waits:
    """Waits of one step, by place."""
    method = cls(**FIELDS.get(cls.method_name(), {}))
    counted: list[Waits] = []
    step = loop._step

    def counting(*args: Any) -> Any:
        before = dict(pretend_gpu.waits)
        line = step(*args)
        counted.append({place: n - before.get(place, 0) for place, n in pretend_gpu.waits.items() if n > before.get(place, 0)})
        return line

    loop._step = counting
    try:
        with tempfile.TemporaryDirectory() as folder:
            training = Training(steps=STEPS, batch_size=2, learning_rate=1e-3, checkpoint_every=2, stop_every=1, **more)
            made = loop.train(
                model(),
                method,
                encode_data(NAMED if cls is WHP else REQUEST, method, encoder()),
                training,
                Path(folder),
                quiet=True,
            )
    finally:
        loop._step = step
    assert {p.device.type for p in made.model.parameters()} == {pretend_gpu.NAME}
    return counted[-1]


def guard(method: Any) -> Waits:
    """Waits of one more written token, by place."""
    net, coder = model(), encoder()
    state = life.fit(method, net, REQUEST, coder)
    attached = life.attach(net, method, state, coder)
    Engine(net, 0).score(rows(), distribution=True)
    prompts = [row.ids[: row.answer_start] for row in rows()]
    counts = []
    for tokens in (4, 5):
        before = dict(pretend_gpu.waits)
        generate(net, prompts, pad_id=0, end_ids=[], max_new_tokens=tokens)
        counts.append({place: n - before.get(place, 0) for place, n in pretend_gpu.waits.items()})
    attached.detach()
    return {place: n - counts[0].get(place, 0) for place, n in counts[1].items() if n != counts[0].get(place, 0)}


def look() -> Waits:
    """Waits of one more layer of a probe."""
    counts = []
    for layers in (2, 3):
        net = make_llama(layers=layers).to(pretend_gpu.DEVICE)
        before = dict(pretend_gpu.waits)
        probe(net, spans(ROWS, encoder(), "generated"), 0)
        counts.append({place: n - before.get(place, 0) for place, n in pretend_gpu.waits.items() if n > before.get(place, 0)})
    return {place: n - counts[0].get(place, 0) for place, n in counts[1].items() if n != counts[0].get(place, 0)}


def edit() -> Waits:
    SelectivePruning(percent=10, rounds=2).apply(model(), REQUEST, encoder())
    return {}


def score() -> Waits:
    engine = Engine(model(), 0)
    before = dict(pretend_gpu.waits)
    engine.score(rows(), distribution=True)
    engine.gradient_norms(rows()[:2])
    prompt = rows()[0].ids[: rows()[0].answer_start]
    engine.score_answers([[Encoded((*prompt, 9, word, 2), len(prompt), True) for word in (20, 21, 22)]])
    return {place: n - before.get(place, 0) for place, n in pretend_gpu.waits.items()}


def write() -> Waits:
    net, prompts = model(), [row.ids[: row.answer_start] for row in rows()]
    words: dict[str, Any] = {"pad_id": 0, "end_ids": [2], "max_new_tokens": 4}
    generate(net, prompts, stopped=lambda ids: 7 in ids, **words)
    sample(net, prompts, Nucleus(), 2, **words)
    return {}


def mixed(path: str) -> Waits:
    """What has to fail, or be counted, for the rest to mean something."""
    here, there = torch.ones(3, device=pretend_gpu.DEVICE), torch.ones(3)
    match path:
        case "a sum over both devices":
            here + there
        case "an index of the processor":
            here[torch.tensor([0, 1])]
        case "a mask of the processor":
            here[there > 0]
        case "numpy":
            here.numpy()
        case "readings":
            before = sum(pretend_gpu.waits.values())
            values = [
                here.sum().item(),
                float(here[0]),
                *here.tolist(),
                bool(here.any()),
                here.nonzero(),
                here[here > 0],
                here.cpu(),
            ]
            return {"counted": sum(pretend_gpu.waits.values()) - before, "of": len(values) - 2}
    return {}


FAULTS = ("a sum over both devices", "an index of the processor", "a mask of the processor", "numpy")

PATHS: dict[str, Callable[[], Waits]] = {
    **{f"training {cls.method_name()}": (lambda cls=cls: train(cls)) for cls in TRAINING},
    "training npo, micro-batches": lambda: train(loop_npo(), micro_batch_size=1),
    "training npo, LoRA": lambda: train(loop_npo(), lora=True),
    "guard neuron_adjust": lambda: guard(NeuronAdjust(percent=20)),
    "guard instruction": lambda: guard(Instruction(target="anna")),
    "guard key_space": lambda: guard(KeySpaceDetection(abstention="i do not know")),
    "guard key_space, every step": lambda: guard(KeySpaceDetection(abstention="i do not know", check="all_steps")),
    "guard key_space, steer": lambda: guard(KeySpaceDetection(abstention="i do not know", action="steer")),
    "guard embedding_corruption": lambda: guard(EmbeddingCorruption(tune="nothing", strength=50.0, false_positive_rate=0.5)),
    "probe": look,
    "edit selective_pruning": edit,
    "engine": score,
    "generation": write,
    "metrics": device_runs.score_metrics,
    **device_runs.RUNS,
    **{f"fault: {fault}": (lambda fault=fault: mixed(fault)) for fault in FAULTS},
    "readings": lambda: mixed("readings"),
}


def loop_npo() -> Any:
    return next(cls for cls in TRAINING if cls.method_name() == "npo")


def main() -> None:
    warnings.simplefilter("ignore")
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Accelerator.device = property(lambda self: pretend_gpu.DEVICE)  # type: ignore[assignment, method-assign]
    found: dict[str, Any] = {}
    only = sys.argv[1:]
    for name, path in PATHS.items():
        if only and name not in only:
            continue
        with pretend_gpu.pretending():
            try:
                found[name] = path()
            except Exception as error:
                found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
                if only:
                    traceback.print_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
