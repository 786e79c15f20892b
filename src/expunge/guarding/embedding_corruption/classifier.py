"""Uses a text classifier as a gate: an encoder fine-tuned on the request, or an existing classifier.

Fine-tuning follows the released recipe: cross-entropy in which both classes count the same, AdamW (2e-5, weight decay 0.1, betas
0.9 and 0.98, epsilon 1e-6), 10 % warm-up, cosine decay, batches of 16, no clipping.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from expunge.errors import ExpungeError
from expunge.guarding.embedding_corruption.training_set import TrainingSet
from expunge.models.save import os_errors, save_tokenizer

LONGEST = 512


class ClassifierGate:
    """Scores p(forget) with a sequence classifier of transformers."""

    window = 1600
    """Characters read at once; text that the tokenizer still cuts off is in another window."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ExpungeError if the folder or hub id is no classifier, or does not say which label means forget."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise ExpungeError(f"the gate {folder} is no text classifier that can be loaded ({_first(error)})") from error
        self._label = forget_label(self._model.config.id2label, folder)

    def save(self, folder: Path) -> None:
        """Saves the classifier as files of its own."""
        with os_errors(folder):
            self._model.save_pretrained(folder)
        save_tokenizer(folder, self._tokenizer)

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str]) -> list[float]:
        found = []
        for text in texts:
            inputs = self._tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")
            found.append(float(self._model(**inputs).logits[0].float().softmax(-1)[self._label]))
        return found


def forget_label(names: dict[int, str], where: object) -> int:
    """Returns the label that means forget: the one with that name, or the second of two without names (LABEL_1). Raises
    ExpungeError if there is neither."""
    named = [i for i, name in names.items() if name.lower() in ("forget", "label_1")]
    if len(names) != 2 or len(named) != 1:
        raise ExpungeError(
            f"the classifier {where} has the labels {', '.join(names.values())}; a gate has two, one of them forget or LABEL_1"
        )
    return named[0]


def fine_tune(base: str, rows: TrainingSet, out: Path, *, epochs: int, seed: int, batch: int = 16) -> None:
    """Fine-tunes an encoder as a classifier (labels retain and forget) and writes it to the folder `out`.

    base   folder or hub id of the encoder

    Raises ExpungeError if the encoder cannot be loaded.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names = {0: "retain", 1: "forget"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the new head, dropout
        try:
            tokenizer = AutoTokenizer.from_pretrained(base)
            model = AutoModelForSequenceClassification.from_pretrained(
                base, num_labels=2, id2label=names, label2id={name: i for i, name in names.items()}, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise ExpungeError(f"the encoder {base} cannot be loaded as a text classifier ({_first(error)})") from error
        _train(model, tokenizer, rows, epochs, batch, torch.Generator().manual_seed(seed))
    out.mkdir(parents=True, exist_ok=True)
    with os_errors(out):
        model.eval().save_pretrained(out)
    save_tokenizer(out, tokenizer)


def _train(model: nn.Module, tokenizer: object, rows: TrainingSet, epochs: int, batch: int, order: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6)
    total = epochs * math.ceil(len(rows.texts) / batch)
    warm = max(1, round(0.1 * total))

    def rate(step: int) -> float:
        return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    label_N, weight_N = torch.tensor(rows.is_forget).long(), torch.tensor(rows.weights)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(rows.texts), generator=order).split(batch):
            texts = [rows.texts[i] for i in part.tolist()]
            inputs = tokenizer(texts, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt")  # type: ignore[operator]
            loss_N = functional.cross_entropy(model(**inputs).logits.float(), label_N[part], reduction="none")
            loss = (loss_N * weight_N[part]).sum() / weight_N[part].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
