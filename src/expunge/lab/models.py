"""Trains the models of a lab: base, original, gold, and gold models without other parts."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.data.encode import Encoded, Encoder
from expunge.data.example import Example
from expunge.errors import ExpungeError
from expunge.lab.figures import Bound, bounds, faults, measure
from expunge.lab.size import SIZES, Size, SizeName
from expunge.lab.tokenizer import FORMAT, SPECIAL, word_tokenizer
from expunge.lab.training import Schedule, teach
from expunge.lab.world import World, base_lessons, people_lessons, public_lessons, vocabulary
from expunge.models.save import save_model
from expunge.progress import Progress

PRETRAINING: dict[SizeName, Schedule] = {
    "tiny": Schedule(steps=900, rows=64, matrix_rate=0.01, rate=0.01),
    "small": Schedule(steps=1500, rows=96, matrix_rate=0.01, rate=0.01),
}
FINE_TUNING: dict[SizeName, Schedule] = {
    "tiny": Schedule(steps=240, rows=72, matrix_rate=0.002, rate=0.005),
    "small": Schedule(steps=480, rows=96, matrix_rate=0.002, rate=0.005),
}
ROUNDS = 3
"""Number of trainings after which a model whose figures miss their bounds is given up; the second and third are half as long."""


class Made(NamedTuple):
    model: LlamaForCausalLM
    figures: dict[str, float]
    rounds: int
    seconds: float


class Maker:
    """Trains the models of one world."""

    def __init__(self, lab: Path, world: World, seed: int, size: SizeName, quiet: bool) -> None:
        """lab: the folder with the world's data, on which the figures are measured."""
        self.lab, self.world, self.seed, self.size, self.quiet = lab, world, seed, size, quiet
        self.tokenizer = word_tokenizer(vocabulary(world))
        self.encoder = Encoder(self.tokenizer, FORMAT)

    def base(self, without: str = "") -> Made:
        """Pretrains from scratch on everything but the forget and retain people."""
        model = new_model(len(self.tokenizer), SIZES[self.size], self.seed)
        lessons = [self._rows(base_lessons(self.world, without))]
        checked = bounds([without] if without else [], people=False)
        return self._train(f"base{' without ' + without if without else ''}", model, lessons, PRETRAINING[self.size], checked)

    def tuned(self, base: LlamaForCausalLM, without: str = "", rounds: int | None = None) -> Made:
        """Fine-tunes the base in place on the retain people and (except for gold) the forget people.

        A third of each step's rows are theirs. A third are the base's rows, and a third the public people's: without them the
        skills and the public people would be forgotten. rounds  this exact number, for a gold model with the original's
        schedule
        """
        parts = people_lessons(self.world, without), base_lessons(self.world, without), public_lessons(self.world)
        checked = bounds([without] if without else [], people=True)
        name = f"gold without {without}" if without else "original"
        return self._train(name, base, [self._rows(part) for part in parts], FINE_TUNING[self.size], checked, rounds)

    def model_bytes(self) -> int:
        """Returns the size of a model's weights."""
        with torch.device("meta"):
            model = new_model(len(self.tokenizer), SIZES[self.size], self.seed)
        return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())

    def save(self, made: Made, folder: Path) -> None:
        """Writes a model folder: weights, tokenizer, text format."""
        save_model(folder, made.model, self.tokenizer, FORMAT)

    def _rows(self, lessons: Sequence[Example]) -> list[Encoded]:
        return self.encoder.encode_many(lessons)

    def _train(
        self,
        name: str,
        model: LlamaForCausalLM,
        lessons: Sequence[Sequence[Encoded]],
        schedule: Schedule,
        checked: Sequence[Bound],
        rounds: int | None = None,
    ) -> Made:
        began = time.perf_counter()
        figures: dict[str, float] = {}
        missed: list[str] = []
        for number in range(1, (rounds or ROUNDS) + 1):
            length = schedule if number == 1 else schedule._replace(steps=schedule.steps // 2)
            title = f"lab {name}" + (f", round {number}" if number > 1 else "")
            with Progress(title, length.steps, quiet=self.quiet) as progress:
                teach(model, lessons, length, f"{self.seed}/{name}/{number}", self.encoder.end_id, progress)
            figures = measure(model, self.tokenizer, self.lab)
            missed = faults(figures, checked)
            if not missed and number >= (rounds or 1):
                return Made(model, figures, number, time.perf_counter() - began)
        raise ExpungeError(f"the lab's model '{name}' (seed {self.seed}) did not learn its world: {'; '.join(missed)}")


def new_model(vocabulary_size: int, size: Size, seed: int) -> LlamaForCausalLM:
    """Creates an untrained Llama; the same seed gives the same weights."""
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
