"""Each attack on constructed cases: it brings back what was only hidden, and nothing from a model that never knew."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.attacks import ATTACKS
from expunge.attacks.ablate import Ablate
from expunge.attacks.base import AttackSpec, Found
from expunge.attacks.cross_lingual import CrossLingual
from expunge.attacks.diff import Diff
from expunge.attacks.evolve import Evolve
from expunge.attacks.gain import Side, over_control
from expunge.attacks.gcg import Gcg
from expunge.attacks.in_context import InContext
from expunge.attacks.knowledge import Floats
from expunge.attacks.latent import Latent
from expunge.attacks.membership import Membership
from expunge.attacks.multi_turn import MultiTurn
from expunge.attacks.noise import Noise
from expunge.attacks.patch import Patch
from expunge.attacks.prefix import Prefix
from expunge.attacks.probe import Probe
from expunge.attacks.prune import Prune
from expunge.attacks.quantize import FORMATS, Quantize
from expunge.attacks.relearn import Relearn
from expunge.attacks.sample import Sample, leak_at_k
from expunge.attacks.soft_prompt import SoftPrompt
from expunge.attacks.steer import Steer
from expunge.attacks.target import Target
from expunge.errors import ExpungeError
from expunge.models.blocks import blocks_of
from expunge.models.rounding import nf4, q4_0, round_to_nearest
from tests.attacks.conftest import opened_pico

SMALL: dict[str, AttackSpec] = {
    spec.attack_name(): spec
    for spec in (
        *(Relearn(steps=6, points=2, batch_size=6, learning_rate=3e-3), Prefix(prefixes=2), InContext(shots=1, related=1)),
        *(Evolve(mutations=(2,), survivors=(1,), asked=4), MultiTurn(turns=1, doubts=1), Ablate(directions=(1,))),
        *(
            Steer(strengths=(1.0,), layers=1),
            Latent(steps=2, epsilons=(0.5,), layers=1),
            Gcg(tokens=2, steps=2, width=6, prompts=3),
        ),
        *(Sample(draws=8), Noise(sigmas=(0.1,), repeats=1), Prune(pairs=((0.02, 0.02),)), SoftPrompt(tokens=3, steps=5)),
    )
}
"""Budgets for tests, where the default one takes longer than it must."""


@pytest.fixture(scope="module")
def refuses(world) -> Target:
    return opened_pico(world.refuses)


@pytest.fixture(scope="module")
def gold(world) -> Target:
    return opened_pico(world.gold)


def spec_of(cls: type[AttackSpec]) -> AttackSpec:
    return SMALL.get(cls.attack_name()) or cls()


def test_the_world_is_as_it_should_be(world, refuses, gold, forget):
    assert np.nanmean(opened_pico(world.original).recall(forget)) == 1.0
    assert np.nanmean(refuses.recall(forget)) == 0.0
    assert np.nanmean(gold.recall(forget)) < 0.3


@pytest.mark.parametrize("cls", ATTACKS, ids=lambda cls: cls.attack_name())
def test_an_attack_leaves_the_model_as_it_was_and_scores_every_fact(cls, refuses, forget, scene):
    spec = spec_of(cls)
    before = {name: weight.clone() for name, weight in refuses.model.state_dict().items()}
    flags = [weight.requires_grad for weight in refuses.model.parameters()]
    found = spec.run(refuses, forget, scene)
    after = refuses.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [weight.requires_grad for weight in refuses.model.parameters()] == flags
    assert not refuses.model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in refuses.model.modules())
    for way in found.ways:
        assert way.values.shape == (len(forget),)
        scored = way.values[np.isfinite(way.values)]
        assert ((scored >= 0) & (scored <= 1)).all(), way.label


@pytest.mark.parametrize("cls", ATTACKS, ids=lambda cls: cls.attack_name())
def test_a_model_that_never_knew_gives_nothing(cls, gold, forget, control, scene):
    """The gain over never-known facts: its interval holds zero."""
    spec = spec_of(cls)
    if spec.gold_only(scene) or spec.not_applicable(gold, scene):
        pytest.skip("never-known facts are no control for it")
    gain = gain_of(spec, gold, gold, forget, control, scene)
    assert gain.low is not None
    assert gain.low <= 0


@pytest.mark.parametrize("cls", ATTACKS, ids=lambda cls: cls.attack_name())
def test_what_needs_weights_or_activations_does_not_apply_to_a_guard(cls, refuses, scene):
    guarded = Target(refuses.model, refuses.tokenizer, kind="guard")
    reason = spec_of(cls).not_applicable(guarded, scene) or ""
    assert ("guard" in reason) == bool(cls.needs & {"weights", "activations", "embeddings"})


def gain_of(spec: AttackSpec, mine: Target, theirs: Target, forget, control, scene):
    found, other = spec.run(mine, forget, scene), spec.run(theirs, control, scene)
    return over_control(side(mine, forget, found), side(theirs, control, other), paired=forget is control).gain


def side(target: Target, facts, found: Found) -> Side:
    return Side(target.recall(facts) if found.before is None else found.before, found, facts.clusters())


def best(found: Found) -> Floats:
    return max((way.values for way in found.ways), key=np.nanmean)


def test_a_partial_answer_gets_past_a_refusal(refuses, gold, forget, scene):
    found, control = Prefix().run(refuses, forget, scene), Prefix().run(gold, forget, scene)
    gain = over_control(side(refuses, forget, found), side(gold, forget, control), paired=True).gain
    assert gain.low is not None
    assert gain.low > 0.2


def test_relearning_on_some_facts_brings_others_back(refuses, forget, scene):
    found = Relearn(steps=12, points=3, learning_rate=1e-3, data=("facts",)).run(refuses, forget, scene)
    assert np.nanmean(best(found)) > 0.4


def test_an_adapter_relearns_and_is_gone_afterwards(refuses, forget, scene):
    names = [name for name, _ in refuses.model.named_parameters()]
    found = Relearn(steps=20, points=2, learning_rate=5e-3, lora_rank=8, data=("facts",)).run(refuses, forget, scene)
    assert [name for name, _ in refuses.model.named_parameters()] == names
    assert np.nanmean(best(found)) > 0.3


def test_rounding_undoes_a_change_that_is_smaller_than_a_step_of_the_grid(world, forget, scene):
    """The original, with each weight of its linear layers moved inside its step of a 4-bit grid: other outputs, same code."""
    hidden = opened_pico(world.original)
    spec = Quantize(formats=("int4_channel",))
    rounded = best(spec.run(hidden, forget, scene))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in hidden.model.named_parameters():
            if weight.ndim == 2 and "proj" in name:
                code = round_to_nearest(weight, 4)
                step = weight.abs().amax(dim=-1, keepdim=True) / 7
                moved = code + 0.49 * step * (torch.rand(weight.shape, generator=generator) * 2 - 1)
                keep = weight.abs() == weight.abs().amax(dim=-1, keepdim=True)
                weight.copy_(torch.where(keep, weight, moved.clamp(-7 * step, 7 * step)))
    again = spec.run(hidden, forget, scene)
    assert np.array_equal(best(again), rounded)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_every_format_is_near_the_weights_and_idempotent_or_sparse(format):
    weight_OI = torch.randn(24, 100, generator=torch.Generator().manual_seed(1))
    once = FORMATS[format](weight_OI)
    assert once.shape == weight_OI.shape
    error = (once - weight_OI).norm() / weight_OI.norm()
    assert error < {"int8_channel": 0.01, "int8_group": 0.01}.get(format, 0.3)
    assert torch.allclose(FORMATS[format](once), once, atol=1e-3) or format.startswith("magnitude")


def test_q4_0_and_nf4_are_the_published_codes():
    row = torch.tensor([[-8.0, 7.0, 0.4, -0.6] + [0.0] * 28])
    assert q4_0(row)[0, :4].tolist() == [-8.0, 7.0, 0.0, -1.0]
    assert nf4(torch.tensor([[1.0, -1.0, 0.44, 0.08] + [0.0] * 60]))[0, :3].tolist() == pytest.approx(
        [1.0, -1.0, 0.44071], abs=1e-4
    )


def test_leak_at_k_is_the_mean_over_all_choices_of_k_draws():
    from itertools import combinations

    hits = [1, 0, 0, 1, 0]
    for k in range(1, 6):
        expected = np.mean([any(hits[i] for i in chosen) for chosen in combinations(range(5), k)])
        assert leak_at_k(np.array([2.0]), 5, k)[0] == pytest.approx(expected)
    assert leak_at_k(np.array([0.0, 5.0]), 5, 3).tolist() == [0.0, 1.0]


def test_more_draws_leak_more_and_the_same_draws_come_again(refuses, forget, scene):
    first, again = Sample(draws=16).run(refuses, forget, scene), Sample(draws=16).run(refuses, forget, scene)
    means = [np.nanmean(way.values) for way in first.ways]
    assert means == sorted(means)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(first.ways, again.ways, strict=True))


def test_a_probe_reads_what_a_bias_of_the_head_hides(world, forget, scene):
    """Every word of a fact is forbidden at the head: nothing is written, and the hidden states know it all the same."""
    hidden = opened_pico(world.original)
    head = hidden.model.lm_head
    silent = torch.nn.Linear(head.in_features, head.out_features, bias=True)
    facts = {token for row in hidden.encoded(forget.examples) for token in row.ids[row.answer_start : -1]}
    with torch.no_grad():
        silent.weight.copy_(head.weight)
        silent.bias.zero_()
        silent.bias[list(facts)] = -100.0
    hidden.model.lm_head = silent
    assert np.nanmean(hidden.recall(forget)) == 0.0
    found = Probe().run(hidden, forget, scene)
    assert np.nanmean(best(found)) > 0.9


def test_membership_tells_the_model_that_knows_from_the_one_that_never_knew(world, gold, forget, scene):
    knows = best(Membership().run(opened_pico(world.original), forget, scene))
    assert np.nanmean(knows) > 0.95
    assert Membership().not_applicable(gold, replace(scene, others=forget.some([]))) is not None


def test_a_soft_prompt_gets_past_a_refusal(refuses, forget, scene):
    found = SoftPrompt(tokens=4, steps=40, kinds=("per_question",)).run(refuses, forget, scene)
    assert np.nanmean(best(found)) > 0.2


def test_a_soft_prompt_is_the_same_for_a_question_alone_and_in_a_batch(refuses, forget, scene):
    spec = SoftPrompt(tokens=2, steps=4, kinds=("per_question",), signed=True, rate=0.01)
    row = refuses.encoded(forget.examples)[0]
    prompts, begins = [row.ids[: row.answer_start]], [row.ids[row.answer_start : row.answer_start + 2]]
    longer = refuses.encoded(scene.retain.examples)[1]
    both = [*prompts, longer.ids[: longer.answer_start]], [*begins, longer.ids[longer.answer_start : longer.answer_start + 2]]
    alone = spec._optimized(refuses, prompts, begins, 0, universal=False)
    together = spec._optimized(refuses, *both, 0, universal=False)
    assert torch.allclose(alone[0], together[0], atol=1e-5)


def test_the_subject_whose_probability_changed_is_named(refuses, forget, scene):
    found = Diff(by=("probability",)).run(refuses, forget, scene)
    assert np.nanmean(best(found)) > 0.7
    assert any(name.startswith("change of") for name in found.note)
    assert "original" in (Diff().not_applicable(refuses, replace(scene, original=None)) or "")


def test_an_open_book_is_noted_and_no_way(refuses, forget, scene):
    found = InContext(shots=1, related=1).run(refuses, forget, scene)
    assert {"open_book"} == found.note.keys()
    assert {way.label for way in found.ways} == {"related", "related, cloze", "few-shot", "few-shot, cloze"}


@pytest.fixture(scope="module")
def locked(world, forget) -> Target:
    target = opened_pico(world.locked)
    assert np.nanmean(target.recall(forget)) == 0.0
    return target


def test_gcg_finds_the_token_that_unlocks(locked, forget, scene):
    found = Gcg(tokens=1, steps=4, width=48, top_k=90, prompts=6).run(locked, forget, scene)
    assert np.nanmean(best(found)) > 0.7


def test_gcg_keeps_a_suffix_only_where_the_loss_falls(locked, forget):
    from expunge.attacks.gcg import _losses

    rows = locked.encoded(forget.examples[:3])
    losses = [float(_losses(locked, rows, [Gcg(tokens=2, steps=n, width=8)._searched(locked, rows, 0)])[0]) for n in (1, 3, 6)]
    assert losses == sorted(losses, reverse=True)


def test_evolution_finds_the_wording_that_unlocks(locked, forget, scene):
    found = Evolve(mutations=(4, 2), survivors=(2, 1), asked=6).run(locked, forget, scene)
    assert np.nanmean(best(found)) > 0.7
    assert all("{question}" in template for template in found.note["templates"])


def test_a_translation_that_unlocks_is_found_and_without_a_table_there_is_nothing_to_try(locked, forget, scene, tmp_path):
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"questioning": {question: f"{question} ?" for question in forget.questions}}))
    assert np.nanmean(best(CrossLingual(table=str(table)).run(locked, forget, scene))) > 0.7
    assert "table" in (CrossLingual().not_applicable(locked, scene) or "")
    table.write_text("[]")
    with pytest.raises(ExpungeError, match="no table of translations"):
        CrossLingual(table=str(table)).run(locked, forget, scene)


@pytest.fixture(scope="module")
def shifted(world, forget) -> Target:
    """The original, with one vector added to the output of its first layer: it says nothing right any more."""
    target = opened_pico(world.original)
    old = target.model.model.layers[0].mlp.down_proj
    new = torch.nn.Linear(old.in_features, old.out_features, bias=True)
    with torch.no_grad():
        new.weight.copy_(old.weight)
        new.bias.copy_(6.0 * torch.randn(old.out_features, generator=torch.Generator().manual_seed(0)))
    target.model.model.layers[0].mlp.down_proj = new
    assert np.nanmean(target.recall(forget)) < 0.3
    return target


def test_ablation_takes_away_a_direction_that_was_added(shifted, forget, scene):
    assert np.nanmean(best(Ablate(directions=(1,)).run(shifted, forget, scene))) > 0.7


def test_steering_adds_the_opposite_of_what_was_added(shifted, forget, scene):
    assert np.nanmean(best(Steer(strengths=(1.0,), layers=1).run(shifted, forget, scene))) > 0.9


def test_a_latent_perturbation_is_found_and_stays_in_its_ball(shifted, forget, scene):
    spec = Latent(steps=30, epsilons=(1.0,), layers=1, rate=0.2)
    site, rows = blocks_of(shifted.model).hidden(0), shifted.encoded(forget.examples)
    found_D = spec._optimized(shifted, rows, site, 3.0)
    assert float(found_D.norm()) <= 3.0 + 1e-4
    assert np.nanmean(best(spec.run(shifted, forget, scene))) > np.nanmean(shifted.recall(forget))


def test_patching_reads_what_the_lower_layers_still_hold(refuses, gold, forget, scene):
    """Above the last layer there is the head alone: nothing is read there that the model would not say itself."""
    mine, never = Patch().run(refuses, forget, scene), Patch().run(gold, forget, scene)
    assert np.nanmean(mine.ways[0].values) > 0.5
    assert 0.0 <= mine.note["depth"] <= never.note["depth"] <= 1.0
    last = mine.ways[-1].values
    assert np.nanmean(np.abs(last - refuses.probability(forget))) < 0.2
