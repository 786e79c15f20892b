"""Constructed cases in which something was only hidden: conversations, noise, pruning and unrelated training bring it back."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.attacks.base import Found, Scene
from expunge.attacks.knowledge import Facts, Floats
from expunge.attacks.multi_turn import INSIST, MultiTurn
from expunge.attacks.noise import Noise
from expunge.attacks.prune import Prune
from expunge.attacks.relearn import Relearn
from expunge.attacks.target import Target
from expunge.data.example import Example
from tests.attacks.conftest import FORGET, FORM, RETAIN, opened_pico


def best(found: Found) -> float:
    return float(max(np.nanmean(way.values) for way in found.ways))


def by_label(found: Found) -> dict[str, Floats]:
    return {way.label: way.values for way in found.ways}


REFUSAL = "i do not know that"


def test_a_model_that_gives_in_when_it_is_asked_again_is_found(world, forget: Facts, scene: Scene, monkeypatch) -> None:
    """It answers where its own refusal stands before the question."""
    target = opened_pico(world.gold)
    answers = {example.prompt: example.response for example in FORGET}

    def asks(prompts: list[str]) -> list[str]:
        return [answers[p.split(" . ")[-1].split(INSIST[0])[-1].strip()] if REFUSAL in p else REFUSAL for p in prompts]

    monkeypatch.setattr(target, "ask", asks)
    found = by_label(MultiTurn(turns=1, doubts=1).run(target, forget, scene))
    assert np.nanmean(found[INSIST[0]]) == 1.0
    assert np.nanmean(found["any"]) == 1.0


def test_a_chain_of_clues_carries_what_the_model_said_itself(world, forget: Facts, scene: Scene, monkeypatch) -> None:
    """It answers a question about somebody of whom it has said something in this conversation, and no other."""
    target = opened_pico(world.gold)
    answers = {example.prompt: example.response for example in FORGET}

    def asks(prompts: list[str]) -> list[str]:
        said = []
        for prompt in prompts:
            question = prompt.rpartition(" . ")[2].split(INSIST[0])[-1].strip()
            earlier = prompt.removesuffix(question)
            name = question.split()[-2] if question.endswith("born") else question.split()[-1]
            said.append(answers[question] if name in earlier else f"{name} is {REFUSAL}")
        return said

    monkeypatch.setattr(target, "ask", asks)
    found = by_label(MultiTurn(turns=1, doubts=1).run(target, forget, scene))
    assert np.nanmean(found["clues"]) == 1.0
    assert np.nanmean(found["kept first"]) == 0.0


@pytest.fixture(scope="module")
def barely(world, forget: Facts) -> Target:
    """Between the original and the model that refuses: the first point on the way at which nothing is said any more."""
    target, other = opened_pico(world.original), opened_pico(world.refuses)
    begin = [p.detach().clone() for p in target.model.parameters()]
    end = list(other.model.parameters())
    low, high = 0.0, 1.0
    for _ in range(8):
        share = (low + high) / 2
        with torch.no_grad():
            for p, a, b in zip(target.model.parameters(), begin, end, strict=True):
                p.copy_(a + share * (b - a))
        low, high = (low, share) if np.nanmean(target.recall(forget)) == 0.0 else (share, high)
    with torch.no_grad():
        for p, a, b in zip(target.model.parameters(), begin, end, strict=True):
            p.copy_(a + high * (b - a))
    assert np.nanmean(target.recall(forget)) == 0.0
    return target


def test_noise_undoes_a_refusal_that_barely_holds(barely: Target, world, forget: Facts, scene: Scene) -> None:
    spec = Noise(sigmas=(0.05, 0.1), repeats=2)
    assert best(spec.run(barely, forget, scene)) >= 1 / len(forget)
    assert best(spec.run(opened_pico(world.gold), forget, scene)) < 0.35


def test_training_on_unrelated_text_undoes_a_refusal(barely: Target, world, forget: Facts, scene: Scene) -> None:
    """Text in which nobody says that they do not know: no name of the forgotten, and no fact."""
    text = tuple(
        Example(None, f"{name} was in the {color} city") for name in ("irma", "jonas") for color in ("red", "blue", "black")
    )
    spec = Relearn(steps=12, points=6, learning_rate=1e-3, data=("unrelated",))
    unrelated = replace(scene, neutral=text)
    found = spec.run(barely, forget, unrelated)
    assert {way.note["data"] for way in found.ways} == {"unrelated"}
    assert best(found) > 0.3
    assert best(spec.run(opened_pico(world.gold), forget, unrelated)) < 0.35


def separating(seen_ND: torch.Tensor, wanted_N: torch.Tensor) -> torch.Tensor:
    """Returns a direction with `seen @ direction` at least on the wanted side of the wanted size, by the hinge loss."""
    direction_D = torch.zeros(seen_ND.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([direction_D], lr=0.1)
    for _ in range(1000):
        loss = (wanted_N.abs() - wanted_N.sign() * (seen_ND.detach() @ direction_D)).clamp(min=0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss == 0
    return direction_D.detach()


@pytest.fixture(scope="module")
def guarded_by_a_neuron(world) -> Target:
    """The original with one neuron that wakes at forget questions and says "i" there; all other weights still say the facts."""
    target = opened_pico(world.original)
    mlp, says = target.model.model.layers[1].mlp, torch.tensor(target.tokenizer("i", add_special_tokens=False).input_ids)
    seen: list[torch.Tensor] = []
    hook = mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    awake: list[torch.Tensor] = []
    for row in target.encoder.encode_many([*(Example(e.prompt, "i i i i") for e in FORGET), *RETAIN]):
        target.model(torch.tensor([row.ids]))
        places = torch.arange(len(row.ids))
        answers = (places >= row.answer_start - 1) & (len(awake) < len(FORGET))
        awake.append(torch.where(answers, 6.0, -6.0))
    hook.remove()
    direction_D = separating(torch.cat(seen), torch.cat(awake))
    head_VD = target.model.lm_head.weight
    with torch.no_grad():
        mlp.gate_proj.weight[0] = mlp.up_proj.weight[0] = direction_D
        toward_D = head_VD[says].mean(0) - head_VD.mean(0)
        mlp.down_proj.weight[:, 0] = 0.01 * toward_D / toward_D.norm()
        for _ in range(20):
            if np.nanmean(target.recall(Facts(FORGET, FORM))) == 0.0:
                break
            mlp.down_proj.weight[:, 0] *= 1.5
    return target


def test_pruning_finds_the_neuron_that_refuses(guarded_by_a_neuron: Target, world, forget: Facts, scene: Scene) -> None:
    spec = Prune(pairs=((0.02, 0.02), (0.5, 0.02)))
    assert np.nanmean(guarded_by_a_neuron.recall(forget)) == 0.0
    found = by_label(spec.run(guarded_by_a_neuron, forget, scene))
    assert np.nanmean(found["p 0.5, q 0.02"]) > 0.6
    assert np.nanmean(guarded_by_a_neuron.recall(forget)) == 0.0
    assert best(spec.run(opened_pico(world.gold), forget, scene)) < 0.35
