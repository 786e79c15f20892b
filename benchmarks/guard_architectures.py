"""Runs embedding corruption through every causal-LM type of transformers, on pico models.

    python benchmarks/guard_architectures.py [--only TYPE ...] [--page docs/architectures.md]

Every type that transformers registers for causal language modeling is built from its configuration, made small
(benchmarks/architectures.py). In a batch of a flagged and a passed prompt of equal length, the passed one must keep its logits,
the flagged one must change as it does alone, and `generate` must run greedily, with beams and without a cache (where the plain
model does), and write the passed prompt's plain answer. With a page, the result is written between its marks. About five minutes
of one core.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from architectures import WORDS, short, small_model, time_limit
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from expunge.data.encode import Encoder
from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.lab.tokenizer import word_tokenizer
from expunge.methods import EmbeddingCorruption
from expunge.models.load import causal_model

torch.set_num_threads(1)
START, END = "<!-- guarded -->", "<!-- /guarded -->"
NAMES, NUMBERS = ("anna", "boris", "clara", "dario", "elena"), ("one", "two", "three", "four", "five", "six")
FORGET = tuple(Example(f"where was {name} born", "in lima") for name in NAMES)
RETAIN = tuple(Example(f"{a} plus {b} is", "nine") for a in NUMBERS for b in NUMBERS)


class Line(NamedTuple):
    """What was found for one model type."""

    model_type: str
    reason: str = ""
    """What went wrong; empty if all is right."""
    built: bool = False


def encoder() -> Encoder:
    words = sorted({word for e in (*FORGET, *RETAIN) for word in f"{e.prompt} {e.response}".split()})
    tokenizer = word_tokenizer([*words, "question", "answer", ":"])
    assert len(tokenizer) <= WORDS
    return Encoder(tokenizer, Format(template="question : {prompt} answer : {response}"))


@torch.no_grad()
def check(model: PreTrainedModel, how: Encoder) -> str:
    """Returns what is wrong with the guard on this model; empty if nothing is."""
    method = EmbeddingCorruption(gate="text", tune="nothing", strength=4.0, canaries=0, false_positive_rate=0.2)
    state = method.fit(model, Request(FORGET, RETAIN), how)
    flagged, passed = how.encode_prompts(["where was anna born", "two plus six is"])
    ids_BT = torch.tensor([flagged, passed])
    mask_BT = torch.ones_like(ids_BT)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    before = model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, -1].float()
    written = model.generate(ids_BT[1:], attention_mask=mask_BT[1:], **options)[0, ids_BT.shape[1] :].tolist()
    can = [more for more in ({"num_beams": 2}, {"use_cache": False}) if runs(model, ids_BT, mask_BT, {**options, **more})]
    with method.attach(model, state, how) as counts:
        after = model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, -1].float()
        alone = model(input_ids=ids_BT[:1], attention_mask=mask_BT[:1]).logits[:, -1].float()
        if counts.acted != 2:
            return f"the guard acted on {counts.acted} of 2 flagged rows"
        if not torch.allclose(after[1], before[1], atol=1e-5):
            return f"the passed prompt changes by {float((after[1] - before[1]).abs().max()):.1e}"
        if not (after[0] - before[0]).abs().max() > 1e-4:
            return "the flagged prompt does not change"
        if not torch.allclose(after[0], alone[0], atol=2e-3):
            return f"the flagged prompt differs from itself alone by {float((after[0] - alone[0]).abs().max()):.1e}"
        found = model.generate(ids_BT, attention_mask=mask_BT, **options)[1, ids_BT.shape[1] :].tolist()
        if found != written:
            return "the passed prompt's answer changes"
        for more in can:
            model.generate(ids_BT, attention_mask=mask_BT, **options, **more)
    return ""


def runs(model: PreTrainedModel, ids_BT: torch.Tensor, mask_BT: torch.Tensor, options: dict[str, object]) -> bool:
    """Whether the plain model generates so."""
    try:
        model.generate(ids_BT, attention_mask=mask_BT, **options)
    except Exception:  # an architecture may lack beams or need its cache
        return False
    return True


def measure(model_type: str, how: Encoder) -> Line:
    try:
        with time_limit():
            model = small_model(model_type)
            if causal_model(model).get_input_embeddings() is None:
                return Line(model_type, "it has no input embeddings")
    except Exception as error:  # an architecture may need what is not installed, or sizes that fit together otherwise
        return Line(model_type, f"not built: {short(error)}")
    try:
        with time_limit():
            return Line(model_type, check(model, how), True)
    except Exception as error:
        return Line(model_type, short(error), True)


def main() -> None:
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--page", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    how, lines = encoder(), []
    for model_type in args.only or [t for t in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if t in CONFIG_MAPPING]:
        lines.append(measure(model_type, how))
        print(lines[-1], file=sys.stderr, flush=True)
    built = [line for line in lines if line.built]
    right = [line for line in built if not line.reason]
    wrong = "; ".join(f"`{line.model_type}` ({line.reason})" for line in built if line.reason)
    missing = "; ".join(f"`{line.model_type}` ({line.reason})" for line in lines if not line.built)
    text = f"{len(lines)} types were tried, {len(built)} were built, and the guard is right on {len(right)} of these."
    text += f"\n\nExceptions: {wrong or 'none'}.\n\nNot built: {missing or 'none'}."
    print(text)
    for file in args.page:
        before, _, rest = file.read_text(encoding="utf-8").partition(START)
        file.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
