"""Checks at the end of a run, on a few rows, whether it did what it should, and gives advice if it did not.

A self-check is not an evaluation: it reads at most 32 rows of each set that the run was given, and only their probabilities.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from expunge.data.encode import Encoder, collate, length_batches
from expunge.data.example import Example, Request
from expunge.errors import ExpungeError
from expunge.models.limits import check_embedded, padding
from expunge.models.load import causal_model
from expunge.models.logprobs import labelled_logits, sequence_mean, token_logprobs
from expunge.records import SelfCheck

ROWS = 32
"""Rows of each set, evenly spaced."""
UNCHANGED = 0.9
"""Share of the original probability of the forget answers above which nothing counts as forgotten."""
KEPT = 0.9
"""Share of the original probability of the retain answers below which the retain set counts as damaged."""
KNOWN = 0.05
"""Probability below which the start model counts as not knowing an answer."""
NEAR = 0.1
"""Distance to the probability of rows never seen that counts as equal."""


def measure(model: nn.Module, encoder: Encoder, request: Request) -> dict[str, float]:
    """Measures `forget`, `retain`, `holdout`: mean over rows of exp(mean log p of the answer's tokens); `retain_perplexity`:
    exp of the mean over all its answers' tokens of -log p. Sets without rows are left out."""
    found: dict[str, float] = {}
    for name in ("forget", "retain", "holdout"):
        examples: Sequence[Example] = getattr(request, name)
        if examples:
            found[name], perplexity = _answers(model, encoder, examples[:: -(-len(examples) // ROWS)])
            if name == "retain":
                found["retain_perplexity"] = perplexity
    return found


def measure_start(model: nn.Module, encoder: Encoder, request: Request) -> dict[str, float]:
    """Measures the start model. Raises ExpungeError if it gives some row no finite probability: what is done to it would be
    compared with nothing."""
    found = measure(model, encoder, request)
    if broken := [name for name, value in found.items() if not math.isfinite(value)]:
        raise ExpungeError(
            f"the start model {causal_model(model).config.name_or_path} gives answers of the {broken[0].partition('_')[0]} set "
            "probabilities that are not numbers (NaN or infinity), so its weights are broken; give another model, or copy it "
            "again"
        )
    return found


@torch.no_grad()
def _answers(model: nn.Module, encoder: Encoder, examples: Sequence[Example]) -> tuple[float, float]:
    """Returns (mean probability of an answer, perplexity of all answers' tokens)."""
    device, was_training = causal_model(model).device, model.training
    model.eval()
    rows, pad_id = encoder.encode_many(examples), padding(model, encoder.pad_id)
    check_embedded(model, (row.ids for row in rows))
    probabilities, tokens = [], []
    for batch in length_batches([len(row.ids) for row in rows], 4096, ROWS):
        labelled = labelled_logits(model, collate([rows[i] for i in batch], pad_id).to(device))
        logp_N = token_logprobs(labelled)
        probabilities.append(sequence_mean(logp_N, labelled.row_N, labelled.rows).exp().cpu())
        tokens.append(logp_N.float().cpu())
    model.train(was_training)
    return float(torch.cat(probabilities).mean()), math.exp(min(700.0, -float(torch.cat(tokens).mean())))


def self_check(
    before: dict[str, float],
    after: dict[str, float],
    request: Request,
    learning_rate: float | None,
    *,
    knob: tuple[str, float] | None = None,
) -> SelfCheck:
    """Returns both measurements, and two or three sentences on them, with advice.

    learning_rate  of the run; None where nothing was trained
    knob           flag and value of a method whose strength is one number, such as ("--scale", 1.0)
    """
    rows: dict[str, int] = {
        name: min(ROWS, len(getattr(request, name))) for name in ("forget", "retain", "holdout") if name in before
    }
    if not all(map(math.isfinite, after.values())):
        lower = knob[0] if knob else "--learning-rate"
        said = [f"self-check: the model gives no finite probabilities, so it is broken; try a lower {lower}"]
        return SelfCheck(rows=rows, before=before, after={}, said=tuple(said))
    lost = "retain" in before and before["retain"] > KNOWN and after["retain"] < KEPT * before["retain"]
    short = after["forget"] > UNCHANGED * before["forget"] or after["forget"] > after.get("holdout", 1.0) + NEAR
    forgotten = _forgotten(before, after, learning_rate, knob)
    said = [_numbers(before, after, rows), forgotten.partition(";")[0] if lost and short else forgotten]
    if lost:
        share = after["retain"] / before["retain"]
        said.append(f"the retain set fell to {share:.0%} of what it was; {_keep(learning_rate, knob, short=short)}")
    return SelfCheck(rows=rows, before=before, after=after, said=tuple(said))


def guard_check(forget: Sequence[bool], retain: Sequence[bool], measured: Sequence[bool] = ()) -> SelfCheck:
    """Counts the canary prompts on which a guard acts: those where it changes the next token's distribution.

    measured  whether it acts on each forget prompt that its threshold was measured on, which it was mostly not fitted on
    """
    kept = f"{sum(retain)} of {len(retain)} to keep"
    fresh = f", and on {sum(measured)} of {len(measured)} that its threshold was measured on" if measured else ""
    said = [f"self-check: the guard acts on {sum(forget)} of {len(forget)} forget prompts and on {kept}{fresh}"]
    if 2 * sum(forget) <= len(forget):
        said.append("it misses most of the forget prompts; widen its threshold, or give more forget rows")
    elif measured and 2 * sum(measured) <= len(measured):
        said.append(
            "it misses most of the forget prompts that its threshold was measured on, so other wordings may pass; widen its "
            "threshold, or give the questions in more wordings"
        )
    if 5 * sum(retain) > len(retain):
        said.append("it also acts on many retain prompts; narrow its threshold, or give more retain rows")
    shares = {name: sum(acts) / len(acts) for name, acts in (("forget", forget), ("retain", retain)) if acts}
    counts = {"forget": len(forget), "retain": len(retain)}
    return SelfCheck(
        rows={name: counts[name] for name in shares}, before=dict.fromkeys(shares, 0.0), after=shares, said=tuple(said)
    )


def _numbers(before: dict[str, float], after: dict[str, float], rows: dict[str, int]) -> str:
    parts = [f"{name} {before[name]:.4f} -> {after[name]:.4f} ({count} rows)" for name, count in rows.items()]
    if "retain_perplexity" in before:
        parts.append(f"retain perplexity {before['retain_perplexity']:.4g} -> {after['retain_perplexity']:.4g}")
    return f"self-check, probability of the answers: {', '.join(parts)}"


def _keep(learning_rate: float | None, knob: tuple[str, float] | None, *, short: bool) -> str:
    """Returns what to change where too much of the retain set was lost. short: too little was forgotten as well."""
    if knob:
        return "a method that trains on retain rows, such as npo, loses less" if short else f"try {knob[0]} {knob[1] / 2:g}"
    slower = f", or try --learning-rate {learning_rate / 3:.1g}" if learning_rate else ""
    return f"give more retain rows{slower}{' with more --epochs' if slower and short else ''}"


def _forgotten(
    before: dict[str, float], after: dict[str, float], learning_rate: float | None, knob: tuple[str, float] | None
) -> str:
    was, now, unseen = before["forget"], after["forget"], after.get("holdout")
    more = f"try --learning-rate {learning_rate * 5:.1g}, or more --epochs" if learning_rate else "try a stronger setting"
    more = f"try {knob[0]} {knob[1] * 2:g}" if knob else more
    if was < KNOWN:
        return "the start model hardly knew the forget answers; check --columns and the format, so there was little to forget"
    if now > UNCHANGED * was:
        return f"nothing was forgotten; {more}"
    if unseen is None:
        return f"the forget answers are {1 - now / was:.0%} less probable; give rows never seen as --holdout to compare"
    if now > unseen + NEAR:
        return f"the forget answers are still more probable than rows that the model never saw ({unseen:.4f}); {more}"
    if now < unseen / 10 and unseen - now > NEAR / 10:
        return (
            f"over-forgotten: the forget answers are less probable than rows that the model never saw ({unseen:.4f}), which "
            f"gives them away; try {f'{knob[0]} {knob[1] / 2:g}' if knob else 'fewer --epochs, or --stop-when-unknown'}"
        )
    return f"the forget answers are no more probable than rows that the model never saw ({unseen:.4f})"
