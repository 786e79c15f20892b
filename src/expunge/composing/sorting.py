"""Assigns rows without an attribute to parts, by a classifier on the model's hidden states or by a text classifier.

Shape suffixes: R rows, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.data.encode import Encoder, collate, length_batches
from expunge.data.example import Attribute, Example
from expunge.errors import ExpungeError
from expunge.methods.composed.spunge import EMBEDDINGS, Parts, Spunge
from expunge.models.blocks import blocks_of
from expunge.models.classifiers import load_classifier
from expunge.models.load import load_model, load_tokenizer
from expunge.models.partial_forward import partial_forward
from expunge.spec import Run

TOKENS_PER_BATCH = 8192


def sort_rows(method: Spunge, examples: Sequence[Example], run: Run, source: str) -> Parts:
    """Returns value -> rows, in the order of their first row (clusters by their number). Raises ExpungeError for too few
    rows, or too few rows with a known value."""
    if method.split_by_classifier != EMBEDDINGS:
        assert method.split_by_classifier is not None
        return _grouped(classify(examples, method.split_by_classifier))
    if method.clusters is not None:
        if method.clusters > len(examples):
            raise ExpungeError(f"{len(examples)} rows make no {method.clusters} clusters; lower --clusters")
        labels_R = cluster(embed(examples, run, source), method.clusters, run.training.seed)
        return dict(sorted(_grouped([f"cluster_{label}" for label in labels_R]).items()))
    assert method.split is not None
    known = [example.attributes.get(method.split) for example in examples]
    if len({value for value in known if value is not None}) < 2:
        raise ExpungeError(
            f"rows of two values of '{method.split}' at least have to be known before others are sorted by them, but there are "
            f"{sum(value is not None for value in known)} rows with it; label some, or use --clusters or a text classifier"
        )
    if all(value is not None for value in known):
        return _grouped([value for value in known if value is not None])
    return _grouped(fill_in(known, embed(examples, run, source), run.training.seed))


def _grouped(values: Sequence[Attribute]) -> Parts:
    rows: dict[Attribute, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    return {value: tuple(found) for value, found in rows.items()}


def embed(examples: Sequence[Example], run: Run, source: str) -> NDArray[np.float32]:
    """Computes the mean over a row's tokens of the hidden state in the middle of the start model, [R, D]."""
    assert run.format is not None
    words = {"revision": run.revision, "trust_remote_code": run.trust_remote_code}
    encoder = Encoder(load_tokenizer(source, **words), run.format, max_length=run.max_length)  # type: ignore[arg-type]
    model = load_model(source, dtype=run.dtype, **words)  # type: ignore[arg-type]
    middle = blocks_of(model).count // 2
    rows = encoder.encode_many(examples)
    found = np.zeros((len(rows), blocks_of(model).width), dtype=np.float32)
    with torch.no_grad():
        for batch in length_batches([len(row.ids) for row in rows], TOKENS_PER_BATCH, 256):
            tokens = collate([rows[i] for i in batch], encoder.pad_id).to(model.device)
            hidden_BTD = partial_forward(model, tokens, 0, middle).hidden_BTD.float()
            mask_BT1 = tokens.attention_mask_BT[..., None]
            found[batch] = ((hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)).cpu().numpy()
    return found


def fill_in(known: Sequence[Attribute | None], embeddings_RD: NDArray[np.float32], seed: int) -> list[Attribute]:
    """Predicts the values of rows that have none from those that have one: logistic regression on standardized embeddings."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values = list(dict.fromkeys(value for value in known if value is not None))
    labelled = [row for row, value in enumerate(known) if value is not None]
    classes = [values.index(value) for value in known if value is not None]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=seed))
    model.fit(embeddings_RD[labelled], classes)
    guessed = model.predict(embeddings_RD)
    return [values[guessed[row]] if value is None else value for row, value in enumerate(known)]


def cluster(embeddings_RD: NDArray[np.float32], clusters: int, seed: int) -> list[int]:
    """Returns k-means clusters on standardized embeddings, numbered in the order of their first row."""
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import StandardScaler

    found = KMeans(clusters, n_init=10, random_state=seed).fit_predict(StandardScaler().fit_transform(embeddings_RD))
    order = list(dict.fromkeys(found.tolist()))
    return [order.index(label) for label in found.tolist()]


def classify(examples: Sequence[Example], name: str) -> list[str]:
    """Returns the label that a text classifier of transformers gives each row (prompt and response, or the text)."""
    model, tokenizer = load_classifier(name)
    texts = [example.response if example.prompt is None else f"{example.prompt} {example.response}" for example in examples]
    names = {int(i): str(label) for i, label in (model.config.id2label or {}).items()}
    labels: list[str] = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start : start + 32], padding=True, truncation=True, return_tensors="pt").to(model.device)
        with torch.no_grad():
            labels += [names[i] for i in model(**batch).logits.argmax(-1).tolist()]
    return labels
