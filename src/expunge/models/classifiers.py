"""Loads text classifiers, used as judges of answers and to sort rows that have no attribute."""

from functools import lru_cache
from typing import TYPE_CHECKING

from expunge.devices import default_device
from expunge.errors import ExpungeError
from expunge.models.folder import Stamp, stamp

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_classifier(path: str, revision: str | None = None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a sequence classification model (onto the GPU, if there is one) and its tokenizer, with a pad token.

    path    a local folder or a hub id; weights from safetensors only

    The last one is kept in memory. Raises ExpungeError if it cannot be loaded or lacks a weight.
    """
    return _classifier(path, revision, stamp(path))


@lru_cache(maxsize=1)
def _classifier(path: str, revision: str | None, _: Stamp) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, revision=revision, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExpungeError(f"cannot load the classifier {path}: {reason}; give a sequence classification model") from error
    if missing := sorted(info["missing_keys"]):  # transformers would go on with random numbers in their place
        raise ExpungeError(f"{path} is no classifier: it lacks {missing[0]}; give a sequence classification model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    model.to(default_device())  # type: ignore[arg-type]
    return model.eval(), tokenizer
