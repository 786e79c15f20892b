"""A row and itself under another name are aligned token by token; what cannot be aligned is not learned."""

import copy
import math

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.encode import Encoded, Encoder, collate
from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.errors import ExpungeError
from expunge.methods import WHP, Batch
from expunge.methods.training.base import TrainingMethod
from expunge.models.logprobs import FrozenHead
from expunge.training.data import encode_data
from expunge.training.renamed import aligned

OWN = Encoded((1, 50, 51, 60, 61, 50, 62, 63, 2), 4, True)
"""A prompt with the name 50 51, and an answer that repeats its first word."""


def test_names_of_equal_length_are_aligned_position_by_position() -> None:
    other = Encoded((1, 70, 71, 60, 61, 70, 62, 63, 2), 4, True)
    row, (twin,) = aligned(OWN, [other])
    assert row == OWN
    assert dict(twin.places) == {i: i for i in range(9)}
    assert twin.exchanged == ((70, 50), (71, 51))
    assert twin.labelled(row) == other


def test_a_longer_name_is_left_out_of_the_labels_and_its_first_token_stands_for_the_first() -> None:
    other = Encoded((1, 70, 71, 72, 60, 61, 70, 71, 62, 63, 2), 5, True)
    row, (twin,) = aligned(OWN, [other])
    assert row.label_places() == [4, 6, 7, 8]
    assert twin.labelled(row).label_places() == [5, 8, 9, 10]
    assert [other.ids[i] for i in twin.labelled(row).label_places()] == [row.ids[i] for i in row.label_places()]
    assert twin.exchanged == ((70, 50),)


def test_only_positions_that_all_names_have_are_labels() -> None:
    equal = Encoded((1, 70, 71, 60, 61, 70, 62, 63, 2), 4, True)
    longer = Encoded((1, 70, 71, 72, 60, 61, 70, 71, 62, 63, 2), 5, True)
    row, twins = aligned(OWN, [equal, longer])
    assert row.label_places() == [4, 6, 7, 8]
    assert [len(twin.labelled(row).label_places()) for twin in twins] == [4, 4]


def test_labels_that_rest_have_no_counterpart_either() -> None:
    row, (twin,) = aligned(OWN, [Encoded((1, 70, 71, 60, 61, 70, 62, 63, 2), 4, True)])
    assert twin.labelled(row.labelled("copied")).label_places() == [5]
    assert twin.labelled(row.labelled("own")).label_places() == [4, 6, 7, 8]


def test_a_forget_prompt_without_a_name_is_refused_by_its_place(pico_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = (
        Example("where was Anna born ?", "Anna was born here ."),
        Example("where was she born ?", "in accra .", place="forget.jsonl:2"),
    )
    with pytest.raises(ExpungeError, match=r"whp reads every forget prompt under another name, and forget\.jsonl:2 has no name"):
        encode_data(Request(rows, rows), WHP(), Encoder(pico_tokenizer, Format(template="{prompt} {response}"), max_length=64))


@pytest.mark.parametrize("names", [1, 3])
def test_the_target_is_the_mean_over_names_with_their_tokens_exchanged(pico_llama: LlamaForCausalLM, names: int) -> None:
    """Against a reading with whole distributions, one row and name at a time."""
    others = [Encoded((1, 70 + k, 71 + k, 60, 61, 70 + k, 62, 63, 2), 4, True) for k in range(names)]
    row, twins = aligned(OWN, others)
    expected, hidden = [], []
    with torch.no_grad():
        for k, twin in enumerate(twins):
            output = pico_llama(torch.tensor([twin.row.ids]), output_hidden_states=True)
            hidden.append(output.hidden_states[-1][0, 3:-1])
            p = output.logits[0, 3:-1].softmax(-1)
            p[:, 50] += p[:, 70 + k]
            p[:, 70 + k] = 0
            p[:, 51] += p[:, 71 + k]
            p[:, 71 + k] = 0
            expected.append(p)
    pairs = torch.tensor([[*twin.exchanged, (0, 0)] for twin in twins])  # with a pair of equal tokens, as where others have more
    frozen = {"renamed": torch.stack(hidden, dim=1), "exchanged": pairs[None].expand(5, -1, -1, -1)}
    tokens = collate([row], 0)
    tokens.frozen.update(frozen)
    found = Batch({"forget": tokens}, FrozenHead.of(pico_llama)).renamed_probabilities(tokens)
    torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.sum(-1), torch.ones(5))

    moved = copy.deepcopy(pico_llama)
    with torch.no_grad():
        moved.lm_head.weight.mul_(1.3)
        logp = moved(torch.tensor([row.ids])).logits[0, 3:-1].log_softmax(-1)
    loss = WHP(names=names, retain_loss="none").loss(moved, Batch({"forget": tokens}, FrozenHead.of(pico_llama))).total
    kl_N = (found * (found.log() - logp)).nan_to_num().sum(-1)
    torch.testing.assert_close(loss, kl_N.mean(), rtol=1e-4, atol=1e-6)

    lowered = found.clone()
    labels = torch.tensor(OWN.ids[4:])
    for n in (0, 2, 3, 4):  # the second label is the name, which stands in the prompt
        lowered[n, labels[n]] *= math.exp(-0.5)
    lowered /= lowered.sum(-1, keepdim=True)
    both = zip(lowered, logp, labels, strict=True)
    apart = torch.stack([(q[y].clamp_min(1e-9).log() - p[y]) ** 2 for q, p, y in both])
    expected_N = (lowered * (lowered.log() - logp)).nan_to_num().sum(-1) + 0.1 * apart
    more = WHP(names=names, retain_loss="none", beta=0.5, tail_weight=0.1)
    torch.testing.assert_close(
        more.loss(moved, Batch({"forget": tokens}, FrozenHead.of(pico_llama))).total, expected_N.mean(), rtol=1e-4, atol=1e-6
    )


def test_a_method_that_reads_no_other_names_has_no_twins(pico_tokenizer: PreTrainedTokenizerFast) -> None:
    class Plain(TrainingMethod):
        name: str = "plain"

    rows = (Example("where was anna born ?", "anna was born here ."),)
    encoder = Encoder(pico_tokenizer, Format(template="{prompt} {response}"), max_length=64)
    assert encode_data(Request(rows), Plain(), encoder).twins == []
