"""Relearn: fine-tunes briefly on other facts of the same kind, or on unrelated text, and tests facts that were held out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, Floats
from expunge.attacks.target import Target
from expunge.data.encode import Encoded, collate
from expunge.models.logprobs import labelled_logits, token_logprobs
from expunge.training.disruption import Disruption

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Relearn(AttackSpec):
    """Fine-tunes on one part of the forgotten facts and asks for the others, each part in turn, so that every fact is scored by a
    model that was not trained on it. `unrelated` trains on text that is unrelated to the request.

    The questions are asked at several steps; the best step counts, chosen on other facts than those it is scored on.
    """

    paper: ClassVar[str] = "RTT, Deeb and Roger 2024 (arXiv 2410.08827); Lucki et al. 2024 (arXiv 2409.18025)"
    does: ClassVar[str] = "fine-tunes on a part of the facts, asks for the others"
    needs: ClassVar[frozenset[Need]] = frozenset({"weights"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            {"parts": 5, "epochs": 6, "learning_rate": 5e-6, "batch_size": 4, "schedule": "constant"},
            "RTT @26be6ba: facts in 5 parts, 6 epochs, batch 4, best of a grid of learning rates 1e-7..5e-6 (--sweep)",
        ),
        "rtt": Preset(
            {"parts": 5, "epochs": 6, "learning_rate": 5e-6, "batch_size": 4, "schedule": "constant"},
            "RTT @26be6ba: facts in 5 parts, 6 epochs, batch 4, best of a grid of learning rates 1e-7..5e-6 (--sweep)",
        ),
        "lucki": Preset(
            {
                "lora_rank": 128,
                "lora_alpha": 16,
                "learning_rate": 2e-4,
                "batch_size": 1,
                "epochs": 3,
                "schedule": "linear",
                "warmup": 0.05,
                "weight_decay": 0.01,
            },
            "ethz-spylab @75dade5: LoRA on all projections, 3 epochs, linear",
        ),
        "sam": Preset(
            {"learning_rate": 1e-5, "batch_size": 4, "steps": 15, "schedule": "constant"},
            "Unlearn-Smooth @fc655ba: WMDP, 15 steps of 1 x 4 rows",
        ),
        "open_unlearning": Preset(
            {"learning_rate": 2e-5, "batch_size": 32, "epochs": 1, "schedule": "linear"},
            "open-unlearning / UDS @fc31639: forget10, one epoch, 8 x 4 rows",
        ),
        "deep_ignorance": Preset(
            {"learning_rate": 2e-5, "batch_size": 16, "epochs": 2, "schedule": "cosine", "warmup": 0.01},
            "EleutherAI/unlearn @1a6079f: 2 epochs, batch 16, cosine",
        ),
        "repselect": Preset(
            {"learning_rate": 7e-6, "batch_size": 16, "steps": 100, "schedule": "constant"},
            "RepSelect @5955f30: constant 7e-6 (their AdamW is 8-bit, this one is not)",
        ),
    }

    name: Literal["relearn"] = "relearn"
    data: tuple[Literal["facts", "unrelated"], ...] = ("facts", "unrelated")
    """Training data: the other parts of the facts, or unrelated text."""
    parts: int = Field(2, ge=2)
    """Number of parts of the facts; each is scored by a model trained on the others."""
    steps: int = Field(40, gt=0)
    """Optimizer steps, if `epochs` is not given."""
    epochs: int | None = Field(None, gt=0)
    """Passes over the training rows instead of `steps`."""
    learning_rate: float = Field(5e-4, gt=0)
    batch_size: int = Field(16, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of the steps during which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    lora_rank: int | None = Field(None, gt=0)
    """Train an adapter of this rank instead of the weights."""
    lora_alpha: float = 16.0
    points: int = Field(4, gt=0)
    """Number of times during training that the questions are asked."""
    kept: int = Field(0, ge=0)
    """Kept facts that are asked as well each time, to see what the attack costs (a sweep asks 24)."""
    neutral: int = Field(0, ge=0)
    """Neutral texts on which it is measured each time how much the attack has changed the model: KL in nats per token."""

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        ways = []
        if "facts" in self.data and len(facts) >= self.parts:
            ways += self._on_facts(target, facts, scene)
        if "unrelated" in self.data and scene.neutral:
            rows = target.encoded(scene.neutral)
            for step, values, kept in self._curve(target, facts, rows, list(range(len(facts))), scene, scene.seed):
                ways.append(Way(f"unrelated, step {step}", values, {"data": "unrelated", "step": step, **kept}))
        return Found(tuple(ways))

    def _on_facts(self, target: Target, facts: Facts, scene: Scene) -> list[Way]:
        """Returns each step's values, combined from the parts that were held out."""
        rows = target.encoded(facts.examples)
        by_step: dict[int, Floats] = {}
        kept_by_step: dict[int, list[dict[str, float]]] = {}
        for part in range(self.parts):
            held_out = list(range(part, len(facts), self.parts))
            shown = [row for i, row in enumerate(rows) if i % self.parts != part]
            for point, (_, values, kept) in enumerate(self._curve(target, facts, shown, held_out, scene, scene.seed + part)):
                by_step.setdefault(point, np.full(len(facts), np.nan))[held_out] = values
                kept_by_step.setdefault(point, []).append(kept)
        steps = self._points(self._steps(len(facts) - len(facts) // self.parts))
        return [
            Way(f"facts, step {steps[point]}", values, {"data": "facts", "step": steps[point], **_mean(kept_by_step[point])})
            for point, values in sorted(by_step.items())
        ]

    def _curve(
        self, target: Target, facts: Facts, rows: Sequence[Encoded], scored: Sequence[int], scene: Scene, seed: int
    ) -> Iterator[tuple[int, Floats, dict[str, float]]]:
        """Yields (step, recall of the scored facts) along one training; the model is restored at the end."""
        asked = facts.some(scored)
        retain = scene.retain.some(range(min(self.kept, len(scene.retain))))
        before = {"kept_before": float(np.nanmean(target.recall(retain)))} if len(retain) else {}
        steps = self._steps(len(rows))
        points = self._points(steps)
        disruption = self._disruption(target, scene)
        with target.restored() as model, self._trainable(model, seed) as trained:
            for step in self._train(target, trained, rows, steps, seed):
                if step in points:
                    trained.eval()
                    changed = {} if disruption is None else {"disruption": disruption.measure(model)}
                    yield step, target.recall(asked), before | _kept(target, retain) | changed
                    trained.train()

    def _disruption(self, target: Target, scene: Scene) -> Disruption | None:
        """Returns the measurement against the model before the attack, if it is asked for and there is neutral text."""
        texts = scene.neutral[: self.neutral]
        if not texts:
            return None
        return Disruption.from_rows(target.model, target.encoded(texts), target.encoder.pad_id, target.model.device)

    def _steps(self, rows: int) -> int:
        return self.steps if self.epochs is None else self.epochs * math.ceil(rows / self.batch_size)

    def _points(self, steps: int) -> list[int]:
        """Returns the steps at which the questions are asked, including the last."""
        count = min(self.points, steps)
        return [round(steps * (i + 1) / count) for i in range(count)]

    @contextmanager
    def _trainable(self, model: "PreTrainedModel", seed: int) -> Iterator[nn.Module]:
        """Context manager with the trained parameters: all weights, or an adapter that is removed afterwards."""
        if self.lora_rank is None:
            for weight in model.parameters():
                weight.requires_grad_(True)
            yield model
            return
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        config = LoraConfig(r=self.lora_rank, lora_alpha=self.lora_alpha, target_modules="all-linear", lora_dropout=0.0)
        adapted = get_peft_model(model, config)
        try:
            yield adapted
        finally:
            adapted.unload()

    def _train(self, target: Target, trained: nn.Module, rows: Sequence[Encoded], steps: int, seed: int) -> Iterator[int]:
        """Trains on the cross-entropy of the answers; yields the number of each finished step."""
        weights = [weight for weight in trained.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=self.weight_decay)
        order = shuffled(len(rows), seed)
        trained.train()
        for step in range(1, steps + 1):
            chosen = [rows[next(order)] for _ in range(min(self.batch_size, len(rows)))]
            loss = answer_loss(trained, chosen, target.encoder.pad_id)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * self._rate(step, steps)
            optimizer.step()
            target.spent["gradient_steps"] += 1
            yield step

    def _rate(self, step: int, steps: int) -> float:
        """Returns the share of the learning rate at step 1 .. steps."""
        rising = self.warmup * steps
        if step < rising:
            return step / rising
        done = (step - 1 - rising) / max(1.0, steps - rising)
        if self.schedule == "linear":
            return max(0.0, 1.0 - done)
        return 0.5 + 0.5 * math.cos(math.pi * done) if self.schedule == "cosine" else 1.0


def _kept(target: Target, retain: Facts) -> dict[str, float]:
    return {"kept": float(np.nanmean(target.recall(retain)))} if len(retain) else {}


def _mean(several: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in several])) for name in several[0]}


def answer_loss(model: nn.Module, rows: Sequence[Encoded], pad_id: int) -> torch.Tensor:
    """Computes the mean cross-entropy over the labelled tokens of a batch, in nats."""
    device = next(model.parameters()).device
    return -token_logprobs(labelled_logits(model, collate(rows, pad_id).to(device))).mean()


def shuffled(count: int, seed: int) -> Iterator[int]:
    """Yields 0 .. count - 1 in random order, again and again."""
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.permutation(count).tolist()
