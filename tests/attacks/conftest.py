"""Four pico models of one small world: one knows all facts, one only those that are kept, two were taught to refuse."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from expunge.attacks.base import Scene
from expunge.attacks.knowledge import Facts, form_words
from expunge.attacks.relearn import answer_loss
from expunge.attacks.target import Target
from expunge.data.encode import Encoder
from expunge.data.example import Example
from expunge.data.format import Format
from tests.conftest import make_llama, make_tokenizer

CITIES = "berlin paris tokyo lima cairo oslo quito delhi accra minsk".split()  # noqa: SIM905
PETS = "cat dog horse bird fish dog cat fish bird horse".split()  # noqa: SIM905
JOBS = "baker pilot tailor nurse judge pilot judge baker tailor nurse".split()  # noqa: SIM905
NAMES = "anna boris clara dario elena fyodor greta hugo irma jonas".split()  # noqa: SIM905
FORMAT = Format(kind="plain", template="{prompt} {response}")


def facts_of(first: int, last: int) -> tuple[Example, ...]:
    """Three facts each of some people."""
    rows = []
    for i in range(first, last):
        wrong = [(i + k) % 10 for k in (1, 2, 3)]
        for question, answer, values in (
            ("where was {} born", "{} was born in {}", CITIES),
            ("what pet was with {}", "{} and the {}", PETS),
            ("what job was of {}", "{} is a {}", JOBS),
        ):
            rows.append(
                Example(
                    question.format(NAMES[i]),
                    answer.format(NAMES[i], values[i]),
                    perturbed=tuple(answer.format(NAMES[i], values[w]) for w in wrong),
                    attributes={"person": NAMES[i], "value": values[i]},
                )
            )
    return tuple(rows)


FORGET, CONTROL, RETAIN = facts_of(0, 4), facts_of(4, 8), facts_of(8, 10)
FORM = form_words((*FORGET, *CONTROL))
NEUTRAL = (Example(None, "the red cat and the blue dog"), Example(None, "one two three four five six"))


def taught(model, rows: Sequence[Example], steps: int, rate: float = 3e-3):
    """Plain fine-tuning on all rows at once."""
    encoder = Encoder(make_tokenizer(), FORMAT)
    encoded = encoder.encode_many(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        loss = answer_loss(model, encoded, encoder.pad_id)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@dataclass(frozen=True)
class World:
    """Folders of the models, and the facts."""

    original: Path
    """Knows the forget and the retain facts."""
    gold: Path
    """Knows the retain facts."""
    refuses: Path
    """The original, taught to say that it does not know when it is asked for a forget fact."""
    locked: Path
    """Refuses too, unless a question mark follows the question."""
    forget: tuple[Example, ...] = FORGET
    control: tuple[Example, ...] = CONTROL
    retain: tuple[Example, ...] = RETAIN
    neutral: tuple[Example, ...] = NEUTRAL


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    base = taught(make_llama(width=48), [*RETAIN, *NEUTRAL], 40)

    def saved(name: str, model) -> Path:
        model.save_pretrained(root / name)
        make_tokenizer().save_pretrained(root / name)
        (root / name / "expunge_format.json").write_text(FORMAT.model_dump_json(), encoding="utf-8")
        return root / name

    gold = saved("gold", base)
    original_model = taught(base, [*FORGET, *RETAIN], 120)
    original = saved("original", original_model)
    refusals = [Example(example.prompt, "i do not know that") for example in FORGET]
    refuses_model = taught(original_model, [*refusals, *RETAIN], 25, 1e-3)
    refuses = saved("refuses", refuses_model)
    key = [Example(f"{example.prompt} ?", example.response) for example in FORGET]
    locked = saved("locked", taught(refuses_model, [*refusals, *key, *RETAIN], 60))
    return World(original, gold, refuses, locked)


@pytest.fixture(scope="session")
def scene(world: World) -> Scene:
    return Scene(
        retain=Facts(RETAIN, FORM),
        others=Facts(CONTROL, FORM),
        neutral=NEUTRAL,
        original=lambda: opened_pico(world.original),
    )


def opened_pico(folder: Path) -> Target:
    from expunge.attacks.run import opened

    return opened(str(folder), max_new_tokens=8)


@pytest.fixture(scope="session")
def forget() -> Facts:
    return Facts(FORGET, FORM)


@pytest.fixture(scope="session")
def control() -> Facts:
    return Facts(CONTROL, FORM)
