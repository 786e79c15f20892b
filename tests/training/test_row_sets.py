"""Row sets, the reference table and micro-batches: what a method names is what its loss sees, however the step is cut."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import ClassVar, Literal

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from expunge import ExpungeError
from expunge.data.encode import Encoder, collate
from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.methods.training.base import Batch, RowSet, Term, TrainingMethod
from expunge.methods.training.retain import cross_entropy
from expunge.models.logprobs import labelled_logits, sequence_sum, token_logprobs
from expunge.training.batches import MicroBatch, count_pieces, cut_by_length, micro_batches
from expunge.training.data import RowKey, TrainingData, encode_data
from expunge.training.pairs import Pairs
from expunge.training.reference import ReferenceTable

CITIES = ("oslo", "lima", "quito", "cairo", "delhi")
PEOPLE = ("anna", "boris", "clara", "dario", "elena")


class Mismatched(TrainingMethod):
    """Learns, per forget prompt, three answers of other forget rows, and holds the retain rows: three sets, three terms."""

    paper: ClassVar[str] = "a test"
    formula: ClassVar[str] = "L = CE(forget) + 2 CE(mismatched) + 0.5 CE(retain)"
    cost: ClassVar[str] = "three forward passes"
    name: Literal["mismatched"] = "mismatched"
    count: int = 3

    @property
    def row_sets(self) -> Mapping[str, RowSet]:
        return {
            "forget": RowSet(frozen=frozenset({"logprob", "hidden"})),
            "mismatched": RowSet("forget", "forget", count=self.count, frozen=frozenset({"logprob"})),
            "retain": RowSet("retain"),
        }

    def terms(self, model: nn.Module, batch: Batch) -> Iterator[Term]:
        yield Term("forget", cross_entropy(model, batch.forget))
        yield Term("mismatched", cross_entropy(model, batch["mismatched"]), 2.0)
        yield Term("retain", cross_entropy(model, batch.retain), 0.5, rows="retain")


@pytest.fixture
def encoder(pico_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(pico_tokenizer, Format())


def example(person: str, city: str) -> Example:
    return Example(f"where was {person} born ?", f"{person} was born in {city} .")


def request() -> Request:
    """Two rows have the same prompt, and one answer stands in two rows of it."""
    forget = [example(p, c) for p, c in zip(PEOPLE, CITIES, strict=True)]
    forget.append(Example(forget[0].prompt, "anna was born in tokyo ."))
    forget.append(Example(forget[1].prompt, "anna was born in tokyo ."))
    return Request(tuple(forget), tuple(example(p, "paris") for p in ("greta", "hugo", "irma")))


def batches(
    model: nn.Module, data: TrainingData, method: TrainingMethod, size: int | None, batch_size: int = 4
) -> list[MicroBatch]:
    plan = Pairs(len(data.forget), len(data.retain), batch_size, 0)
    accelerator = Accelerator(cpu=True)
    table = ReferenceTable.compute(model, method, data, plan, range(3), accelerator)
    rows = data.step_rows(method.row_sets, plan, 1)
    pieces = count_pieces(rows, size, data, method, torch.device("cpu"))
    return list(micro_batches(rows, pieces, data, table, method, {}, torch.device("cpu"), size))


def test_mismatched_answers_are_never_an_answer_to_their_prompt(encoder: Encoder) -> None:
    method = Mismatched()
    asked = request()
    data = encode_data(asked, method, encoder)
    pool = data.pools["forget"].texts
    assert len(pool) == len(set(pool)) == 6
    plan = Pairs(7, 3, 7, 0)
    for step in range(20):
        for keys in data.step_rows(method.row_sets, plan, step)["mismatched"]:
            prompt = asked.forget[keys[0].row].prompt
            own = {e.response for e in asked.forget if e.prompt == prompt}
            drawn = [pool[key.answer] for key in keys]
            assert len(set(drawn)) == 3
            assert not own & set(drawn)


def test_a_row_is_the_prompt_with_the_drawn_answer_and_has_its_frozen_values(encoder: Encoder, pico_llama: nn.Module) -> None:
    method = Mismatched()
    data = encode_data(request(), method, encoder)
    (micro,) = batches(pico_llama, data, method, None)
    rows = micro.batch["mismatched"]
    assert len(rows.input_ids_BT) == 3 * len(micro.batch.forget.input_ids_BT)
    for b, ids in enumerate(rows.input_ids_BT):
        start = int((rows.labels_BT[b] != -100).nonzero()[0])
        assert torch.equal(ids[:start], micro.batch.forget.input_ids_BT[b // 3, :start])
    with torch.no_grad():
        for tokens in (rows, micro.batch.forget):
            labelled = labelled_logits(pico_llama, tokens)
            expected = sequence_sum(token_logprobs(labelled), labelled.row_N, labelled.rows)
            torch.testing.assert_close(tokens.frozen["logprob"], expected, rtol=1e-5, atol=1e-5)
            if "hidden" in tokens.frozen:
                logits = micro.batch.start_logits(tokens)
                torch.testing.assert_close(logits, labelled.logits_NV, rtol=1e-4, atol=1e-4)


def test_a_part_of_an_answer_has_labels_and_frozen_values_of_its_own(encoder: Encoder, pico_llama: nn.Module) -> None:
    method = Mismatched()
    data = encode_data(request(), method, encoder)
    accelerator = Accelerator(cpu=True)
    table = ReferenceTable.compute(pico_llama, method, data, Pairs(7, 3, 7, 0), range(1), accelerator, by_part=True)
    whole, own, copied = (RowKey("forget", 0, part=part) for part in ("all", "own", "copied"))
    rows = [data.row(key) for key in (whole, own, copied)]
    assert rows[0].copied()  # anna was born in oslo
    labels = [collate([row], 0).labels_BT[0] >= 0 for row in rows]
    assert torch.equal(labels[0], labels[1] | labels[2])
    assert not (labels[1] & labels[2]).any()
    logps = table.of("logprob", (whole, own, copied))
    torch.testing.assert_close(logps[0], logps[1] + logps[2])
    assert len(table.of("hidden", (own,))) == int(labels[1].sum())


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_cutting_a_step_changes_no_term(encoder: Encoder, pico_llama: nn.Module, size: int) -> None:
    method = Mismatched()
    data = encode_data(request(), method, encoder)

    def means(pieces: list[MicroBatch]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for micro in pieces:
            for term in method.terms(pico_llama, micro.batch):
                found[term.name] = found.get(term.name, torch.zeros(())) + micro.shares[term.rows] * term.value.detach()
        return found

    whole, cut = (batches(pico_llama, data, method, s) for s in (None, size))
    assert len(whole) == 1
    assert len(cut) == -(-4 // size)
    torch.testing.assert_close(means(cut), means(whole), rtol=1e-5, atol=1e-5)


def test_too_few_answers_are_refused_with_counts(encoder: Encoder) -> None:
    with pytest.raises(ExpungeError, match=r"needs 5 different answers per prompt from forget, .* there are 4"):
        encode_data(request(), Mismatched(count=5), encoder)


def test_raw_text_has_no_prompt_for_another_answer(encoder: Encoder) -> None:
    raw = Request((Example(None, "anna was born in oslo ."), Example(None, "oslo is a city .")), request().retain)
    with pytest.raises(ExpungeError, match="has raw text"):
        encode_data(raw, Mismatched(count=1), encoder)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.data())
@settings(deadline=None)
def test_cuts_by_length_have_the_least_padding(lengths: list[int], data: st.DataObject) -> None:
    lengths = sorted(lengths, reverse=True)
    pieces = data.draw(st.integers(1, len(lengths)))
    size = data.draw(st.integers(-(-len(lengths) // pieces), len(lengths)))

    def padded(ends: Sequence[int]) -> int:
        return sum((end - start) * lengths[start] for start, end in pairwise([0, *ends]))

    ends = cut_by_length(lengths, pieces, size)
    every = [
        (*inner, len(lengths))
        for inner in combinations(range(1, len(lengths)), pieces - 1)
        if all(end - start <= size for start, end in pairwise([0, *inner, len(lengths)]))
    ]
    assert tuple(ends) in every
    assert padded(ends) == min(map(padded, every))
