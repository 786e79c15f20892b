"""Speed and memory of training, evaluation and guards at the shapes of real models, beside a bare loop in the same process.

    python benchmarks/gpu_speed.py OUT.json --shape 1B --parts bare npo ...

Random bfloat16 weights, rows of 512 tokens (64 of prompt), 16 + 16 rows a step. `bare` is what one would write by hand: the
model's own loss over the same number of tokens, AdamW, clipping. A figure is the median of its steps after two to warm up.

MFU is the share of the device's dense bfloat16 peak that 2 N floating-point operations a token forward, 2 N backward to
activations and 2 N backward to weights would take (N weights, attention not counted); of LoRA the last are left out.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_world import make_model, make_tokenizer, write_rows
from transformers import LlamaForCausalLM

from expunge import Training
from expunge.data.encode import Encoded, Encoder, Format, collate
from expunge.data.read import read_request
from expunge.devices import let_segments_grow
from expunge.evaluation.engine import Engine
from expunge.guarding.life import fit
from expunge.methods import NPO, RMU, GradientDifference, KeySpaceDetection, NeuronAdjust, SimNPO
from expunge.training import loop, runner
from expunge.training.data import encode_data

PEAK = {"H100": 989e12, "H200": 989e12}
"""Dense bfloat16 operations a second, by the vendor's datasheet."""
TRAINING: dict[str, tuple[Any, dict[str, Any]]] = {
    "npo": (NPO(), {}),
    "simnpo": (SimNPO(), {}),
    "gradient_difference": (GradientDifference(), {}),
    "rmu": (RMU(layer=7), {}),
    "lora": (NPO(), {"lora": True}),
    "npo_float32": (NPO(), {}),
    "npo_foreach": (NPO(), {}),
    "npo_own_kernels": (NPO(), {"kernels": "none"}),
    "lora_own_kernels": (NPO(), {"lora": True, "kernels": "none"}),
    "lora_float32": (NPO(), {"lora": True, "precision": "float32"}),
}
PARTS = ["bare", *TRAINING, "evaluation", "guards"]


@dataclasses.dataclass
class Bench:
    """One shape on one device."""

    shape: str
    device: str
    folder: Path
    steps: int
    rows: int
    length: int

    def __post_init__(self) -> None:
        self.encoder = Encoder(make_tokenizer(), Format(template="{prompt} {response}"), max_length=self.length)
        answer = self.length - self.length // 8
        count = self.rows * self.steps
        self.forget = write_rows(self.folder / "forget.jsonl", count, self.length // 8 - 2, answer, 1)
        self.retain = write_rows(self.folder / "retain.jsonl", count, self.length // 8 - 2, answer, 2)
        self.request = read_request((str(self.forget),), (str(self.retain),), (), None)

    def model(self, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
        return make_model(self.shape, dtype, self.device)

    def encoded(self) -> list[Encoded]:
        return self.encoder.encode_many([*self.request.forget, *self.request.retain])

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], rounds: int = 3) -> float:
        """Median of some rounds after one to warm up."""
        times = []
        for _ in range(rounds + 1):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    def training(self, name: str) -> dict[str, float]:
        """Steps of the loop itself, by its own record."""
        method, more = TRAINING[name]
        if name == "rmu" and self.shape == "pico":
            method = RMU(layer=1)
        model = self.model(torch.float32 if name == "npo_float32" else torch.bfloat16)
        size = sum(p.numel() for p in model.parameters())
        own = loop._optimizer
        if name == "npo_foreach":
            loop._optimizer = lambda trained, *_: torch.optim.AdamW(trained.values(), lr=0.0)  # type: ignore[assignment]
        training = Training(
            steps=self.steps, batch_size=self.rows, learning_rate=1e-6, stop_every=10**6, checkpoint_every=10**6,
            **({"precision": "bfloat16"} if name == "npo_float32" else {}), **more,
        )  # fmt: skip
        out = self.folder / name
        out.mkdir()
        try:
            with runner._kernels(model, training):
                loop.train(model, method, encode_data(self.request, method, self.encoder), training, out, quiet=True)
        finally:
            loop._optimizer = own
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        rate = statistics.median(line["tokens_per_second"] for line in lines[2:])
        forward_and_back = {"rmu": 0}.get(name, 4 if name.startswith("lora") else 6)
        found = {"tokens/s": rate, "loss": lines[-1]["loss"], "first loss": lines[0]["loss"]}
        return found | (self.share(forward_and_back * size * rate) if forward_and_back and name != "npo_float32" else {})

    def bare(self) -> dict[str, float]:
        """Cross-entropy by the model's own loss, over as many tokens a step: two passes of the same rows."""
        model = self.model().train()
        size = sum(p.numel() for p in model.parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=self.device == "cuda")
        rows = self.encoded()
        batches = [collate(rows[i : i + self.rows], 0) for i in range(0, len(rows), self.rows)]
        times = []
        for step in range(self.steps):
            began = time.perf_counter()
            total = torch.zeros((), device=self.device)
            for tokens in (batches[step], batches[step + self.steps]):
                here = tokens.to(self.device)
                mask = here.attention_mask_BT
                out = model(input_ids=here.input_ids_BT, attention_mask=mask, labels=here.labels_BT, use_cache=False)
                out.loss.backward()
                total += out.loss.detach()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            total.item()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - began)
        rate = 2 * self.rows * statistics.fmean(len(row.ids) for row in rows) / statistics.median(times[2:])
        return {"tokens/s": rate, **self.share(6 * size * rate)}

    def evaluation(self) -> dict[str, float]:
        """The engine's scores of all rows, beside the model's plain forward over batches of 16."""
        model = self.model()
        size = sum(p.numel() for p in model.parameters())
        rows = self.encoded()
        tokens = sum(len(row.ids) for row in rows)
        mine = self.seconds(lambda: Engine(model, 0).score(rows))

        @torch.no_grad()
        def plain() -> None:
            for i in range(0, len(rows), 16):
                here = collate(rows[i : i + 16], 0).to(self.device)
                logits = model(input_ids=here.input_ids_BT, attention_mask=here.attention_mask_BT, use_cache=False).logits
                labels_BT = here.labels_BT[:, 1:].clamp(min=0)[..., None]
                logits[:, :-1].float().log_softmax(-1).gather(-1, labels_BT).cpu()

        bare = self.seconds(plain)
        return {"tokens/s": tokens / mine, "of bare": bare / mine, **self.share(2 * size * tokens / mine)}

    def guards(self) -> dict[str, float]:
        """Fitting, by tokens of the request a second; decoding, as a share of the speed without the guard."""
        model = self.model()
        prompts = [row.ids[: row.answer_start] for row in self.encoded()[:16]]
        ids = torch.tensor([(1,) * (max(map(len, prompts)) - len(p)) + p for p in prompts], device=self.device)
        more = {"max_new_tokens": 48, "min_new_tokens": 48, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        plain = self.seconds(lambda: model.generate(input_ids=ids, **more))  # type: ignore[arg-type]
        found = {"plain decoding tokens/s": 48 * len(prompts) / plain}
        tokens = sum(len(row.ids) for row in self.encoded())
        for method in (NeuronAdjust(canaries=0), KeySpaceDetection(radius=1e-3, canaries=0)):
            name = method.method_name()
            began = time.perf_counter()
            state = fit(method, model, self.request, self.encoder)
            self.wait()
            found[f"{name} fit tokens/s"] = tokens / (time.perf_counter() - began)
            with method.attach(model, state, self.encoder):
                guarded = self.seconds(lambda: model.generate(input_ids=ids, **more))  # type: ignore[arg-type]
            found[f"{name} decoding of plain"] = plain / guarded
        return found

    def share(self, operations: float) -> dict[str, float]:
        name = torch.cuda.get_device_name() if self.device == "cuda" else ""
        peak = next((peak for key, peak in PEAK.items() if key in name), None)
        return {} if peak is None else {"MFU": operations / peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", default="pico")
    parser.add_argument("--parts", nargs="*", default=PARTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    flags = parser.parse_args()
    let_segments_grow()
    loop.save_checkpoint = lambda *_, **__: None  # gigabytes that nobody reads
    found: dict[str, Any] = {}
    for part in flags.parts:
        with tempfile.TemporaryDirectory() as folder:
            try:
                if flags.device == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                began = time.perf_counter()
                bench = Bench(flags.shape, flags.device, Path(folder), flags.steps, flags.rows, flags.length)
                found[part] = bench.training(part) if part in TRAINING else getattr(bench, part)()
                if flags.device == "cuda":
                    found[part]["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
                found[part]["seconds"] = time.perf_counter() - began
            except Exception as error:  # what one part cannot do here must not cost the others
                found[part] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(f"{flags.shape:<5} {part:<22} {_line(found[part])}", flush=True)
        flags.out.write_text(json.dumps(found), encoding="utf-8")


def _line(values: Any) -> str:
    return values if isinstance(values, str) else ", ".join(f"{k} {v:.4g}" for k, v in values.items())


if __name__ == "__main__":
    main()
