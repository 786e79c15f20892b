"""Scores how likely a prompt asks for forgotten content, by its characters, its hidden states, or a text classifier.

A prompt's score is the largest over its parts (each turn of a conversation, and all of it), the readings of each part
(`canonical.readings`, and each with misspelled names corrected, `spelling`) and, for a long reading, its overlapping windows. A
request is therefore also found in an earlier turn, in disguise, or after a long harmless text. A prompt that names what only the
forget set names (`mentions`) scores 1. Texts are scored one at a time, so that a score does not depend on the batch.
"""

import re
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from expunge.data.encode import Encoder, decoded
from expunge.guarding.embedding_corruption.canonical import canonical, readings, squeezed
from expunge.guarding.embedding_corruption.mentions import Mentions
from expunge.guarding.embedding_corruption.spelling import Spelling
from expunge.guarding.embedding_corruption.training_set import TrainingSet
from expunge.guarding.session import unguarded
from expunge.models.blocks import blocks_of
from expunge.models.load import causal_model

FEATURES, NGRAMS = 2**15, (5, 8)
REMEMBERED = 2**16
"""Number of prompts whose scores are cached."""


class Gate(Protocol):
    """Interface of gates: p(forget) of texts; `window` is the number of characters read at once."""

    window: int

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        """Returns p(forget) of each text, 0 to 1."""
        ...


class Scores:
    """Scores whole prompts with one gate, with a cache."""

    def __init__(self, gate: Gate, encoder: Encoder, spelling: Spelling | None = None, mentions: Mentions | None = None) -> None:
        """
        spelling   corrects names; None: texts are read as they are spelled
        mentions   names with which a prompt scores 1, whatever the gate says
        """
        self.gate, self._encoder, self._spelling, self._mentions = gate, encoder, spelling, mentions
        self._known: dict[str, float] = {}
        self._lock = threading.Lock()

    def of(self, text: str) -> float:
        """Returns the score of a rendered prompt; 1 if it has a mention, or the gate cannot score it (it is empty, or the score
        is not a number)."""
        with self._lock:
            if text not in self._known:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[text] = self._score(requests(text, self._encoder))
            return self._known[text]

    def _score(self, parts: Sequence[str]) -> float:
        if not parts or (self._mentions is not None and any(map(self._mentions.are_in, parts))):
            return 1.0
        found = self.gate.probabilities(views(parts, self.gate.window, self._spelling))
        worst = max(found, default=1.0)
        return worst if 0.0 <= worst <= 1.0 and all(p == p for p in found) else 1.0


def views(parts: Sequence[str], window: int, spelling: Spelling | None = None) -> list[str]:
    """Returns every text that is scored for a prompt of these parts, without duplicates."""
    found: dict[str, None] = {}
    for part in parts:
        for reading in readings(part):
            texts = [reading] if spelling is None else [reading, spelling.corrected(canonical(reading))]
            for text in texts:
                found |= dict.fromkeys([text, *windows(text, window)])
    return list(found)


def windows(text: str, width: int) -> list[str]:
    """Returns parts of `width` characters that overlap by half; empty if the text is not longer than that."""
    if len(text) <= width:
        return []
    step = max(1, width // 2)
    return [text[start : start + width] for start in range(0, len(text) - step, step)]


def requests(text: str, encoder: Encoder) -> list[str]:
    """Returns a rendered prompt without the template around it: every turn separately and, if there are several, all
    together."""
    special = [token for token in encoder.tokenizer.all_special_tokens if token]
    pieces = [piece.strip() for piece in template_pieces(encoder) if piece.strip()]
    marks = sorted({*special, *pieces}, key=len, reverse=True)
    parts = re.split("|".join(map(re.escape, marks)), text) if marks else [text]
    turns = [part.strip() for part in parts if _is_text(part)]
    return turns if len(turns) < 2 else [*turns, " ".join(turns)]


def template_pieces(encoder: Encoder) -> tuple[str, ...]:
    """Returns what the format writes around a prompt."""
    mark = "\ue0e1"
    if encoder.format.kind == "plain":
        head, _, rest = encoder.format.template.partition("{prompt}")
        return head, rest.removesuffix("{response}")
    prompt_ids = encoder.encode_prompts([mark])[0]
    return tuple(decoded(encoder.tokenizer, prompt_ids).split(mark))


def _is_text(part: str) -> bool:
    """Returns whether a part has letters or digits, be it only in its canonical form (tag characters are invisible letters)."""
    return bool(squeezed(part) or squeezed(canonical(part)))


class TextGate:
    """Logistic regression on hashed character n-grams (5 to 8) of letters and digits, scaled to unit length."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._weight, self._bias = tensors["gate.weight"].double().numpy(), float(tensors["gate.bias"])
        self.window = int(tensors["gate.window"])

    @staticmethod
    def fit(rows: TrainingSet) -> dict[str, Tensor]:
        """Returns the tensors of a gate that was trained on the canonical form of each text."""
        found = _regression(_ngrams([canonical(text) for text in rows.texts]), rows.is_forget, rows.weights, 30.0)
        return found | {"gate.window": torch.tensor(rows.window)}

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        logits = _ngrams(texts) @ self._weight + self._bias
        return [float(p) for p in 1 / (1 + np.exp(-logits))]


class HiddenGate:
    """Logistic regression on the mean hidden state of a text after an early block of the model itself."""

    def __init__(self, tensors: dict[str, Tensor], states: Callable[[str], Tensor]) -> None:
        self._weight, self._bias = tensors["gate.weight"].double(), float(tensors["gate.bias"])
        self._mean, self._scale = tensors["gate.mean"].double(), tensors["gate.scale"].double()
        self.window, self._states = int(tensors["gate.window"]), states

    @staticmethod
    def fit(rows: TrainingSet, states: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Returns the tensors of a gate that was trained on each text as it is and in canonical form."""
        features_NF = torch.stack([states(view) for text in rows.texts for view in (text, canonical(text))]).double()
        mean_F, scale_F = features_NF.mean(0), features_NF.std(0).clamp(min=1e-6)
        is_forget, weights = np.repeat(rows.is_forget, 2).tolist(), np.repeat(rows.weights, 2).tolist()
        found = _regression(((features_NF - mean_F) / scale_F).numpy(), is_forget, weights, 0.1)
        more = {"gate.mean": mean_F.float(), "gate.scale": scale_F.float(), "gate.window": torch.tensor(rows.window)}
        return found | more

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        features_NF = torch.stack([self._states(text) for text in texts]).double()
        logits_N = (features_NF - self._mean) / self._scale @ self._weight + self._bias
        return [float(p) for p in torch.sigmoid(logits_N)]


def hidden_states(model: nn.Module, encoder: Encoder, layer: int) -> Callable[[str], Tensor]:
    """Returns a function from text to the mean over its tokens of the hidden state after a block, float32 [D]. Later blocks
    are not run."""
    root, places = causal_model(model), blocks_of(model)
    block = root.get_submodule(places.block(layer))

    def states(text: str) -> Tensor:
        ids = encoder.tokenizer(text, return_tensors="pt")["input_ids"][:, : encoder.max_length]
        mine, found = threading.get_ident(), []

        def stop(_: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            if threading.get_ident() == mine:
                found.append(output[0] if isinstance(output, tuple) else output)
                raise _Enough

        handle = block.register_forward_hook(stop)
        try:
            with torch.no_grad(), unguarded():
                root(input_ids=ids.to(root.device), use_cache=False)
        except _Enough:
            pass
        finally:
            handle.remove()
        return found[0].reshape(-1, found[0].shape[-1]).float().mean(dim=0).cpu()

    return states


class _Enough(Exception):
    """Raised to leave a forward pass once the wanted hidden state is computed."""


def _ngrams(texts: Sequence[str]) -> np.ndarray:  # type: ignore[type-arg]
    """Returns a sparse matrix [N, FEATURES]; the hash is the same on every machine."""
    hasher = HashingVectorizer(analyzer="char", ngram_range=NGRAMS, n_features=FEATURES, alternate_sign=False, lowercase=False)
    found: np.ndarray = hasher.transform([squeezed(text) or "?" for text in texts])  # type: ignore[type-arg]
    return found


def _regression(features: object, is_forget: Sequence[bool], weights: Sequence[float], strength: float) -> dict[str, Tensor]:
    """Fits weights and bias of a logistic regression that separates forget rows from the others.

    weights    how much each row counts
    strength   inverse of the penalty on the squared weights
    """
    fitted = LogisticRegression(C=strength, max_iter=2000).fit(features, is_forget, sample_weight=weights)
    return {"gate.weight": torch.from_numpy(fitted.coef_[0]).float(), "gate.bias": torch.tensor(float(fitted.intercept_[0]))}
