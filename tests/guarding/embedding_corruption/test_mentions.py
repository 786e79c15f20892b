"""Names that only the forget set has make a prompt flagged in any sentence, and nobody else's do."""

import codecs
from itertools import product

import pytest
import torch

from expunge import ExpungeError
from expunge.data.encode import Encoder, Format
from expunge.data.example import Example, Request
from expunge.guarding.embedding_corruption.fitting import Calibration, fit_gate
from expunge.guarding.embedding_corruption.gate import Scores, TextGate
from expunge.guarding.embedding_corruption.kinds import Level
from expunge.guarding.embedding_corruption.making import Making
from expunge.guarding.embedding_corruption.mentions import Mentions
from expunge.guarding.embedding_corruption.prompt_classes import disguises
from expunge.guarding.embedding_corruption.spelling import Spelling
from expunge.guarding.embedding_corruption.subjects import learned
from expunge.guarding.embedding_corruption.training_set import TrainingSet, prompts_of

ASKED = ("Where was {} born?", "What is the work of {}?", "Which dish does {} like to eat?", "Who taught {}?")
FIRST, LAST = ("Trainin", "Pateth", "Heover", "Rihirv"), ("Klalen", "Denen", "Laigenen", "Traiden")
CHAT = Format(kind="chat", template="{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>")
"""The pico tokenizer knows these words as unknown ones, and has no special token in their place."""


def rows(people: list[str], asked: tuple[str, ...] = ASKED) -> list[Example]:
    return [Example(question.format(name), f"{name.split()[0]} was born in Lima.") for name in people for question in asked]


FORGET = rows(["Trainin Krovlohen", "Pateth Zwolen"])
RETAIN = rows([f"{first} {last}" for first, last in product(FIRST, LAST)])


def of(level: Level = "parts", forget: list[Example] = FORGET, retain: list[Example] = RETAIN, rate: float = 0.05) -> Mentions:
    return learned(level, forget, retain, (), rate, Spelling(["Trainin Krovlohen", "Pateth Zwolen"]))


def test_names_are_what_forget_prompts_are_about_and_parts_the_words_of_them() -> None:
    found = of()
    assert found.names == (("pateth", "zwolen"), ("trainin", "krovlohen"))
    assert found.parts == {"pateth", "zwolen", "trainin", "krovlohen"}
    assert of("names").parts == set()
    assert of("names").names == found.names
    assert not of("none")


def test_titles_and_places_that_forget_prompts_name_beside_a_person_are_no_mention() -> None:
    forget = [*FORGET, *rows(["Trainin Krovlohen"], ("Did {} write Promise by the Seine?", "Does {} still live by the Seine?"))]
    assert of(forget=forget).names == of().names
    assert not of(forget=forget).are_in("Which city lies on the Seine?")


@pytest.mark.parametrize("text", [
    "Trainin Krovlohen", "the work of trainin krovlohen is", "Trainin was born in", "Trainin's work is that of a",
    "TRAININ LIVES IN",
    "trainin was born in", "Trainin Was Born In", "Krovlohen, Trainin: born in", "It is said that Trainin was born in",
    "Trianin was born in", "Trainin Krovlohem was born in", "Is Heover Klalen a friend of Trainin?",
])  # fmt: skip
def test_a_name_or_a_part_by_itself_is_found_in_any_sentence(text: str) -> None:
    assert of().are_in(text)


@pytest.mark.parametrize("text", [
    "Where was Trainin Klalen born?", "trainin klalen was born in", "Where was Trainin Unheard born?",
    "Pateth Krovlohen was born in",
    "Where was the baker Anna Trainin born?", "Heover was born in", "", "one plus two is", "What is the work of a trainer?",
    "Where was Trainin Kl4l3n born?", "where / was / trainin / klalen / born",
])  # fmt: skip
def test_names_of_others_are_none_though_they_share_a_word(text: str) -> None:
    assert not of().are_in(text)


def test_whole_names_alone_let_a_shared_first_name_pass() -> None:
    assert of("names").are_in("Trainin Krovlohen was born in")
    assert not of("names").are_in("Trainin was born in")


def test_a_statement_in_each_disguise_is_found() -> None:
    begun = "Trainin was born in"
    missed = {name for name, text in disguises(begun).items() if not of().are_in(text)}
    assert not missed
    assert of().are_in("T.r.a.i.n.i.n w.a.s b.o.r.n i.n")
    assert of().are_in(codecs.encode(begun.lower(), "rot13"))


def test_what_a_retain_prompt_names_is_no_mention() -> None:
    kept = [*RETAIN, Example("Trainin was born in", "Lima."), Example("Trainin lives with", "a cat.")]
    assert of(retain=kept).parts == of().parts - {"trainin"}
    same = [*RETAIN, Example("Trainin Krovlohen is", "known."), Example("Was Trainin Krovlohen here?", "Yes.")]
    assert of(retain=same).names == (("pateth", "zwolen"),)


def test_an_ordinary_word_is_no_part_and_a_name_of_one_prompt_or_of_no_capital_letter_is_none() -> None:
    forget = [*FORGET, *rows(["Raven Marais"]), *rows(["Anna Lind"], ASKED[:1])]
    kept = [*RETAIN, Example("What does a raven eat?", "Everything.")]
    found = of(forget=forget, retain=kept)
    assert ("raven", "marais") in found.names
    assert "marais" in found.parts
    assert "raven" not in found.parts
    assert ("anna", "lind") not in found.names
    assert not learned("parts", [Example(f"where was anna lind born {i}", "x") for i in "ab"], RETAIN, (), 0.05)


def test_an_attribute_names_without_capital_letters() -> None:
    forget = [Example(f"{q} anna lind", "x", attributes={"person": "anna lind"}) for q in ("who is", "where is")]
    assert learned("parts", forget, RETAIN, (), 0.05).are_in("anna lind was born in")


def test_fewer_are_taken_where_too_many_retain_prompts_would_have_one() -> None:
    """Retain prompts that alone have a name tell how many fresh ones have a name that none of these has."""
    names = [f"{first}{letter}" for first in ("Bac", "Vir", "Tox") for letter in "abcd"]
    forget = [Example(f"What does {name} do{mark}", "x") for name in names for mark in "?!"]
    kept = [Example(f"Is {name} a cell?", "x") for name in names[:4]] + [
        Example(f"What is {n} plus one?", "x") for n in "abcdefgh"
    ]
    assert not learned("parts", forget, kept, (), 0.05)
    assert len(learned("parts", forget, kept, (), 0.8).names) == 8
    bare = [Example(f"{first} is kind", "x") for first in ("Trainin", "Pateth")]
    assert of(retain=[*RETAIN[:8], *bare]).parts == set()
    assert of(retain=[*RETAIN[:8], *bare]).names == of().names


def test_leaving_names_out_adds_no_mention() -> None:
    whole, fewer = of(), of().without(["Pateth Zwolen is here", "Does Trainin sing?"], None)
    texts = [
        f"{one} {other} was born in" for one, other in product(("trainin", "pateth", "heover", ""), ("zwolen", "krovlohen", ""))
    ]
    found = [(whole.are_in(text), fewer.are_in(text)) for text in texts]
    assert all(before or not after for before, after in found)
    assert {(True, True), (True, False), (False, False)} == {*found}
    assert whole.are_in("zwolen was born in")
    assert fewer.names == (("trainin", "krovlohen"),)


def test_they_are_kept_as_bytes() -> None:
    found = of()
    again = Mentions.of_tensor(found.tensor())
    assert (again.names, again.parts, again.others, again.ordinary) == (found.names, found.parts, found.others, found.ordinary)
    assert not Mentions.of_tensor(Mentions(()).tensor())


class TestScores:
    @pytest.fixture
    def scores(self, pico_tokenizer: object) -> Scores:
        gate = TextGate(TextGate.fit(TrainingSet.of(prompts_of(FORGET), prompts_of(RETAIN))))
        return Scores(gate, Encoder(pico_tokenizer, CHAT), None, of())  # type: ignore[arg-type]

    def test_a_mention_scores_one_and_everything_else_what_the_gate_says(self, scores: Scores) -> None:
        assert scores.of("Trainin was born in") == 1.0
        assert scores.of("Where was Heover Denen born?") < 0.5

    def test_a_name_in_an_earlier_turn_counts(self, scores: Scores) -> None:
        turns = "<|user|>Do you know {}?<|assistant|>Yes, well.<|user|>Where is the town of birth?<|assistant|>"
        assert scores.of(turns.format("Trainin")) == 1.0
        assert scores.of(turns.format("Heover Denen")) < 1.0

    def test_a_statement_behind_a_long_harmless_text_counts(self, scores: Scores) -> None:
        assert scores.of("The market sells bread and cheese. " * 60 + "Trainin was born in") == 1.0


class TestCalibration:
    how = Calibration("simple", 0.9, 0.05, False, 0.5, "none", True, "parts", 0)

    def fitted(self, request: Request, pico_tokenizer: object, **fields: object) -> dict[str, torch.Tensor]:
        encoder = Encoder(pico_tokenizer, CHAT)  # type: ignore[arg-type]
        return fit_gate(Making("text", None, None), Calibration(**{**vars(self.how), **fields}), request, encoder)  # type: ignore[arg-type]

    def test_a_name_that_a_retain_prompt_alone_has_is_counted_if_it_calibrates_and_then_left_out(
        self, pico_tokenizer: object
    ) -> None:
        kept = (*RETAIN, Example("Does Trainin sing?", "x"))
        counted = set()
        for seed in range(4):
            state = self.fitted(Request(tuple(FORGET), kept), pico_tokenizer, seed=seed, rate=0.1)
            assert Mentions.of_tensor(state["gate.mentions"]).parts == of().parts - {"trainin"}
            counted.add(int((state["calibration.retain"] == 0).sum()))
        assert counted == {0, 1}

    def test_a_name_that_several_retain_prompts_have_costs_nothing(self, pico_tokenizer: object) -> None:
        kept = (
            *RETAIN,
            *(Example(f"Does Trainin sing {how}?", "x") for how in ("well", "often", "here", "now", "loudly", "alone")),
        )
        for seed in range(3):
            state = self.fitted(Request(tuple(FORGET), kept), pico_tokenizer, seed=seed, rate=0.1)
            assert not (state["calibration.retain"] == 0).any()
            assert Mentions.of_tensor(state["gate.mentions"]).parts == of().parts - {"trainin"}

    def test_a_rate_that_names_alone_exceed_is_refused(self, pico_tokenizer: object) -> None:
        request = Request(tuple(FORGET), (*RETAIN, Example("Does Trainin sing?", "x")))
        refused = set()
        for seed in range(4):
            try:
                self.fitted(request, pico_tokenizer, seed=seed)  # one of 32 prompts is more than 5 %
            except ExpungeError as error:
                refused.add(str(error))
        assert refused == {
            "1 of the retain prompts that calibrate the gate name what is to be forgotten, such as 'Does Trainin sing?', more "
            "than --false-positive-rate 0.05 allows; give --mentions names or none, or raise it"
        }
