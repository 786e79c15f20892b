"""Runs everything once on pico models and writes what came out: `gpu.py` compares a run on the CPU with one on the GPU.

    python benchmarks/gpu_agree.py OUT.json

Each entry is a list of numbers of one kind: `float32` and `bfloat16` agree within a tolerance, `decision` (tokens that were
written, neurons that were chosen, queries that were closed) entry by entry, `expected` its first half with its second. What
cannot be run here is a reason instead.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_world import make_model, make_tokenizer, write_rows
from safetensors.torch import load_file

import expunge
from expunge import Training
from expunge.errors import ExpungeError
from expunge.evaluation.engine import Engine
from expunge.evaluation.generate import generate, sample
from expunge.evaluation.nucleus import Nucleus
from expunge.methods import METHODS, NPO, GradientAscent, KeySpaceDetection, NeuronAdjust, SelectivePruning, TrainingMethod
from expunge.methods.guarding import EmbeddingCorruption
from expunge.training import loop

PLAIN = Training(steps=4, batch_size=4, learning_rate=1e-3, warmup=0.0)
FIELDS: dict[str, dict[str, Any]] = {"rmu": {"layer": 1}}
"""What does not fit a model of two blocks."""

Found = dict[str, list[float]]


class World:
    """Folders of one run of the checks."""

    def __init__(self, root: Path) -> None:
        self.root, self.model = root, root / "model"
        make_model("pico", torch.float32, "cpu").save_pretrained(self.model)
        self.tokenizer = make_tokenizer()
        self.tokenizer.save_pretrained(self.model)
        self.forget = write_rows(root / "forget.jsonl", 8, 6, 6, 1)
        self.retain = write_rows(root / "retain.jsonl", 8, 6, 6, 2)
        self.count = 0

    def run(self, method: Any, training: Training = PLAIN, **more: Any) -> Path:
        self.count += 1
        out = more.pop("out", self.root / f"run{self.count}")
        needs = getattr(method, "uses_retain", True)
        expunge.unlearn(
            method, model=self.model, forget=self.forget, retain=self.retain if needs else (), out=out, training=training,
            quiet=True, **more,
        )  # fmt: skip
        return out

    def rows(self, encoder_of: Path) -> list[Any]:
        from expunge.data.encode import Encoder
        from expunge.data.format import default_format
        from expunge.data.read import read_examples

        _, tokenizer = expunge.load(encoder_of)
        encoder = Encoder(tokenizer, default_format(tokenizer))
        return encoder.encode_many([*read_examples(str(self.forget)), *read_examples(str(self.retain))])


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def trained(world: World, out: Path, kind: str) -> Found:
    """Losses and gradient norms of every step, and what the artifact then says of every row."""
    losses = [line["loss"] for line in lines_of(out)]
    norms = [line["grad_norm"] for line in lines_of(out)]
    return {f"{kind} losses": losses, f"{kind} gradient norms": norms, f"{kind} scores after": scores(world, out)}


def scores(world: World, artifact: Path) -> list[float]:
    model, _ = expunge.load(artifact)
    engine = Engine(model, world.tokenizer.pad_token_id)
    return [float(row.logp.mean()) for row in engine.score(world.rows(artifact))]


def methods(world: World) -> Iterator[tuple[str, Callable[[], Found]]]:
    for name, cls in METHODS.items():
        if issubclass(cls, TrainingMethod):
            method = cls(**FIELDS.get(name, {}))
            yield name, lambda m=method: trained(world, world.run(m), "float32")
    lora = PLAIN.model_copy(update={"lora": True, "learning_rate": 1e-2})
    half = PLAIN.model_copy(update={"precision": "bfloat16"})
    own = PLAIN.model_copy(update={"kernels": "none"})
    small = PLAIN.model_copy(update={"micro_batch_size": 1, "gradient_checkpointing": True})
    yield "npo, LoRA", lambda: trained(world, world.run(NPO(), lora), "float32")
    yield "npo, bfloat16 autocast", lambda: trained(world, world.run(NPO(), half), "bfloat16")
    yield "npo, bfloat16 weights", lambda: trained(world, world.run(NPO(), dtype="bfloat16"), "bfloat16")
    yield "npo, LoRA on bfloat16 weights", lambda: trained(world, world.run(NPO(), lora, dtype="bfloat16"), "bfloat16")
    yield "npo, the model's own kernels", lambda: trained(world, world.run(NPO(), own), "float32")
    yield "npo, rows one at a time, checkpointed activations", lambda: trained(world, world.run(NPO(), small), "float32")


def resumed(world: World) -> Found:
    """A run that is killed in its third step and taken up again, beside one that is not."""
    training = PLAIN.model_copy(update={"checkpoint_every": 2})
    whole, out, step, calls = world.run(NPO(), training), world.root / "killed", loop._step, [0]

    def dies(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return step(*args)

    loop._step = dies
    try:
        world.run(NPO(), training, out=out)
    except KeyboardInterrupt:
        killed_after = calls[0] - 1
    finally:
        loop._step = step
    world.run(NPO(), training, out=out, resume=True)
    one, other = (load_file(run / "artifact" / "model.safetensors") for run in (whole, out))
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    steps = [float(killed_after), *(line["step"] for line in lines_of(out))]
    return {"float32 greatest difference of a weight": [apart], "decision steps": steps}


def guarded(world: World, method: Any) -> Found:
    out = world.run(method)
    model, _ = expunge.load(out)
    prompts = [row.ids[: row.answer_start] for row in world.rows(out)]
    written = generate(model, prompts, pad_id=0, end_ids=[2], max_new_tokens=8)
    return {"float32 scores": scores(world, out), "decision tokens written": [t for ids in written for t in (*ids, -1)]}


def edited(world: World) -> Found:
    out = world.run(SelectivePruning(percent=10))
    weights = load_file(out / "artifact" / "model.safetensors")
    pruned = [w.eq(0).all(dim=0).nonzero()[:, 0] for name, w in sorted(weights.items()) if "down_proj" in name]
    return {"decision pruned neurons": torch.cat(pruned).tolist(), "float32 scores": scores(world, out)}


def engine(world: World) -> Found:
    model, _ = expunge.load(world.model)
    rows = world.rows(world.model)
    scorer = Engine(model, 0)
    found = scorer.score(rows, distribution=True)
    parts = [row.distribution for row in found]
    return {
        "float32 log-probabilities": [float(x) for row in found for x in row.logp],
        "decision most probable token": [float(x) for row in found for x in row.hit],
        "float32 means over the vocabulary": [float(x) for part in parts if part is not None for x in part.mean],
        "float32 gradient norms": scorer.gradient_norms(rows),
    }


def written(world: World) -> Found:
    model, _ = expunge.load(world.model)
    prompts = [row.ids[: row.answer_start] for row in world.rows(world.model)]
    words = {"pad_id": 0, "end_ids": [2], "max_new_tokens": 12}
    greedy = generate(model, prompts, **words)  # type: ignore[arg-type]
    drawn = sample(model, prompts, Nucleus(), 2, **words)  # type: ignore[arg-type]
    return {
        "decision greedy tokens": [t for ids in greedy for t in (*ids, -1)],
        "decision sampled tokens": [t for draws in drawn for ids in draws for t in (*ids, -1)],
    }


def memory(world: World) -> Found:
    """Too little device memory in the middle of a run is a sentence, and the run goes on with smaller passes."""
    if not torch.cuda.is_available():
        raise ExpungeError("only a GPU can be given less memory")
    calls, terms, out = [0], GradientAscent.terms, world.root / "large"

    def hungry(self: GradientAscent, model: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            torch.empty(int(torch.cuda.get_device_properties().total_memory * 2), dtype=torch.uint8, device="cuda")
        return terms(self, model, batch)

    GradientAscent.terms = hungry  # type: ignore[method-assign]
    try:
        world.run(GradientAscent(), out=out)
        said = ""
    except ExpungeError as error:
        said = str(error)
    finally:
        GradientAscent.terms = terms  # type: ignore[method-assign]
    print(f"  out of memory, as it is said: {said}")
    world.run(GradientAscent(), PLAIN.model_copy(update={"micro_batch_size": 2}), out=out, resume=True)
    steps = [float(line["step"]) for line in lines_of(out)]
    return {"expected a sentence, all steps": [float("--micro-batch-size 2" in said), *steps, 1.0, 1.0, 2.0, 3.0, 4.0]}


def growing() -> Found:
    """Whether the allocator extends its segments in place."""
    if not torch.cuda.is_available():
        raise ExpungeError("only a GPU has segments")
    kept = torch.ones(2**24, device="cuda")
    expandable = [float(bool(segment.get("is_expandable"))) for segment in torch.cuda.memory_snapshot()]
    return {"expected expandable": [min(expandable) * float(kept[0]), 1.0]}


def waits(world: World, method: TrainingMethod) -> Found:
    """How often a step waits for the device: once, for what metrics.jsonl needs. transformers asks besides, in each of its
    passes, whether the attention mask has holes."""
    if not torch.cuda.is_available():
        raise ExpungeError("only a GPU is waited for")
    step, counts, places = loop._step, [], []

    def counted(*args: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return step(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                waited = [w for w in caught if "synchroniz" in str(w.message)]
                mine = [w for w in waited if Path(w.filename).name != "masking_utils.py"]
                counts.append(float(len(mine)))
                places.append([f"{Path(w.filename).name}:{w.lineno}" for w in mine])

    loop._step = counted
    try:
        world.run(method)
    finally:
        loop._step = step
    print(f"  {method.method_name()} waits at {places[-1]}")
    return {"expected waits of steps 2 to 4": [*counts[1:], 1.0, 1.0, 1.0]}


def checks(world: World) -> Iterator[tuple[str, Callable[[], Found]]]:
    yield from methods(world)
    yield "resume", lambda: resumed(world)
    yield "neuron_adjust", lambda: guarded(world, NeuronAdjust(percent=10))
    yield "key_space", lambda: guarded(world, KeySpaceDetection())
    corruption = EmbeddingCorruption(tune="nothing", strength=50.0, false_positive_rate=0.5)
    yield "embedding_corruption", lambda: guarded(world, corruption)
    yield "selective_pruning", lambda: edited(world)
    yield "evaluation engine", lambda: engine(world)
    yield "generation", lambda: written(world)
    yield "out of memory", lambda: memory(world)
    yield "allocator", lambda: growing()
    for name, cls in METHODS.items():
        if issubclass(cls, TrainingMethod):
            method = cls(**FIELDS.get(name, {}))
            yield f"waits of {name}", lambda m=method: waits(world, m)


def main() -> None:
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        for name, check in checks(World(Path(folder))):
            try:
                found[name] = check()
            except Exception as error:  # one that fails must not hide the others
                found[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
