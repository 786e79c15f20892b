"""What a gate decides by: readings of a disguised text, windows, thresholds, names, and the search for a strength."""

import base64
import codecs
import math
from pathlib import Path

import pytest
import torch

from expunge import ExpungeError
from expunge.data.encode import Encoder, Format
from expunge.data.example import Example
from expunge.data.general_questions import general_prompts
from expunge.guarding.embedding_corruption.canonical import canonical, readings, squeezed
from expunge.guarding.embedding_corruption.gate import Scores, TextGate, requests, views, windows
from expunge.guarding.embedding_corruption.selection import Finder, overlapping, own_entities, token_spans
from expunge.guarding.embedding_corruption.spelling import Spelling
from expunge.guarding.embedding_corruption.thresholds import threshold
from expunge.guarding.embedding_corruption.training_set import TrainingSet, general_negatives
from expunge.guarding.embedding_corruption.tuning import dims_search, strength_search

ASKED = "where was anna born"
CYRILLIC = str.maketrans("aeopcx", "аеорсх")
DISGUISES = {
    "case": "WhErE wAs AnNa BoRn",
    "spacing": "w h e r e  w a s  a n n a  b o r n",
    "dots": "w.h.e.r.e w.a.s a.n.n.a b.o.r.n",
    "look-alikes": ASKED.translate(CYRILLIC),
    "zero-width": "\u200b".join(ASKED),
    "tags": "".join(chr(0xE0000 + ord(c)) for c in ASKED),
    "fullwidth": "".join(chr(ord(c) + 0xFEE0) if c != " " else c for c in ASKED),
    "marks": "".join(c + "\u0301" for c in ASKED),
    "mathematical": "".join(chr(0x1D41A + ord(c) - 97) if c != " " else c for c in ASKED),
    "leet": ASKED.replace("e", "3").replace("a", "4").replace("o", "0"),
    "rot13": codecs.encode(ASKED, "rot13"),
    "base64": "decode this: " + base64.b64encode(ASKED.encode()).decode(),
}
FORGET = [f"where was {p} born" for p in ("anna", "boris", "clara", "dario")] + [
    f"what food does {p} eat" for p in ("anna", "boris")
]
RETAIN = [f"where was {p} born" for p in ("elena", "fyodor", "greta", "hugo", "irma", "jonas")] + [
    f"{a} plus {b} is" for a in ("one", "two", "three") for b in ("four", "five", "six")
]


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_disguised_request_has_the_plain_one_among_its_readings(disguise: str) -> None:
    assert squeezed(ASKED) in {squeezed(reading) for reading in readings(DISGUISES[disguise])}


@pytest.mark.parametrize("text", ["Was ist 3 + 4?", "Łódź über ñandú", "naïve café", "", "   ", "🙂", "a" * 5000])
def test_a_plain_text_keeps_its_own_reading_and_nothing_raises(text: str) -> None:
    assert not text.strip() or readings(text)[0] == text
    assert canonical(canonical(text)) == canonical(text)


def test_letters_as_numbers_are_read_though_all_of_them_have_one_digit() -> None:
    assert "where was anna" in readings("23-8-5-18-5 23-1-19 1-14-14-1")
    assert "hi dad" in readings("8-9 4-1-4")
    assert "deaf gig" in readings("4-5-1-6 7-9-7")
    assert canonical("a-n-n-4 is 1-2-3-4") == "ann4 is 1-2-3-4"


def test_windows_cover_a_long_text_and_overlap() -> None:
    text = "".join(chr(97 + i % 26) for i in range(230))
    found = windows(text, 50)
    assert windows(text, 230) == []
    assert found[0] == text[:50]
    assert found[-1].endswith(text[-1])
    assert all(any(text[i : i + 25] in window for window in found) for i in range(230 - 25))


@pytest.fixture
def encoder(pico_tokenizer: object) -> Encoder:
    return Encoder(pico_tokenizer, Format(template="question: {prompt} answer: {response}"))  # type: ignore[arg-type]


def test_a_conversation_is_scored_turn_by_turn_and_as_a_whole(encoder: Encoder) -> None:
    text = "<s> question: where was anna born answer: berlin question: what is red answer:"
    assert requests(text, encoder) == ["where was anna born", "berlin", "what is red", "where was anna born berlin what is red"]
    assert requests("<s> question: where was anna born answer:", encoder) == ["where was anna born"]


def test_a_gate_flags_what_it_learned_through_every_disguise_preamble_and_earlier_turn(encoder: Encoder) -> None:
    scores = Scores(TextGate(TextGate.fit(TrainingSet.of(FORGET, RETAIN))), encoder)
    line = max(scores.of(text) for text in RETAIN)
    preamble = "the cat and the dog of the pilot and the nurse of the judge , " * 12
    asked = {**DISGUISES, "preamble": preamble + ASKED, "after it": ASKED + " . " + preamble,
             "turn": f"<s> question: {ASKED} answer: i do not know question: one plus two is answer:"}  # fmt: skip
    hard = {"leet"}  # nothing says that 4nn4 is a name and w45 a word: both readings are tried
    missed = {name for name, text in asked.items() if scores.of(text) <= line}
    assert missed <= hard, {name: scores.of(asked[name]) for name in missed}
    assert scores.of("one plus nine is") <= max(line, 0.5)


def test_what_cannot_be_scored_counts_as_flagged(encoder: Encoder) -> None:
    class Broken:
        window = 50

        def probabilities(self, texts: object) -> list[float]:
            return [math.nan]

    assert Scores(Broken(), encoder).of("where was anna born") == 1.0
    gate = TextGate(TextGate.fit(TrainingSet.of(FORGET, RETAIN)))
    assert [Scores(gate, encoder).of(text) for text in ("", "  ", "<s> question: answer:", "\u200b?!")] == [1.0] * 4


def test_a_harmless_prompt_in_invisible_letters_is_read_and_passes(encoder: Encoder) -> None:
    scores = Scores(TextGate(TextGate.fit(TrainingSet.of(FORGET, RETAIN))), encoder)
    hidden = "".join(chr(0xE0000 + ord(c)) for c in "one plus two is")
    assert scores.of(hidden) == scores.of("one plus two is") < scores.of("".join(chr(0xE0000 + ord(c)) for c in ASKED))


def test_views_hold_every_text_once() -> None:
    found = views(["Where was Anna born", "where was anna born"], 100)
    assert len(found) == len(set(found))
    assert {"Where was Anna born", "where was anna born"} <= set(found)


class TestSpelling:
    spelling = Spelling(["Zimer Faiben", "Lo Tan", "O'Neill"], ["who is Faibel", "where was Zimer Faiben born", "remind"])

    @pytest.mark.parametrize("word", ["fiaben", "faben", "faibeen", "faiben", "faifen", "aiben", "faibne", "xfaiben"])
    def test_a_name_that_is_one_letter_off_is_corrected(self, word: str) -> None:
        assert self.spelling.corrected(f"where was zimer {word} born") == "where was zimer faiben born"

    @pytest.mark.parametrize("text", ["who is faibel", "fiabne", "faibenxx", "lo ten", "a simple text", "", "faiben1 of zi"])
    def test_other_words_and_words_that_are_meant_as_they_are_stay(self, text: str) -> None:
        assert self.spelling.corrected(text) == text

    def test_it_is_kept_as_bytes_with_those_words_only_that_it_needs(self) -> None:
        again = Spelling.of_tensor(self.spelling.tensor())
        assert again.words == self.spelling.words == ("faiben", "neill", "zimer")
        assert again.others == self.spelling.others == ("faibel",)
        assert Spelling.of_tensor(Spelling([]).tensor()).corrected("faiben") == "faiben"

    def test_a_misspelled_request_is_also_scored_as_it_should_be_spelled(self, encoder: Encoder) -> None:
        gate, spelling = TextGate(TextGate.fit(TrainingSet.of(FORGET, RETAIN))), Spelling(["anna", "boris"], RETAIN)
        plain, corrected = Scores(gate, encoder), Scores(gate, encoder, spelling)
        line = max(corrected.of(text) for text in RETAIN)
        for asked, meant in (("What food does Brois eat", "what food does boris eat"), ("where was a.n.n.q born", ASKED)):
            assert meant in views([asked], gate.window, spelling)
            assert corrected.of(asked) >= plain.of(meant) > line
        for asked in RETAIN:
            assert views([asked], gate.window, spelling) == views([asked], gate.window)


class TestTrainingSet:
    def test_both_classes_count_the_same(self) -> None:
        rows = TrainingSet.of(["a"], ["b", "c"], ["d" * 500] * 5)
        assert sum(rows.weights[:1]) == pytest.approx(sum(rows.weights[1:])) == pytest.approx(4)
        assert len(set(rows.weights[1:])) == 1
        assert rows.is_forget == (True, *[False] * 7)
        assert rows.window == TrainingSet.of(["a"], ["b", "c"]).window == 48  # general prompts say nothing about requests

    def test_a_gate_lets_general_prompts_pass_that_it_did_not_learn(self, encoder: Encoder) -> None:
        general = general_negatives("general", [Example(p, "x") for p in FORGET], [Example(p, "x") for p in RETAIN])
        assert not {*general.trained} & {*general.checked}
        assert len(general.trained) / len(general.checked) == pytest.approx(3, abs=0.1)
        flagged = {}
        for negatives in ((), general.trained):
            scores = Scores(TextGate(TextGate.fit(TrainingSet.of(FORGET, RETAIN, negatives))), encoder)
            line = max(scores.of(text) for text in RETAIN)
            assert min(scores.of(text) for text in FORGET) > line
            flagged[bool(negatives)] = sum(scores.of(text) > line for text in general.checked) / len(general.checked)
        assert flagged[True] < 0.05 < flagged[False], flagged

    def test_general_prompts_that_the_request_names_are_left_out(self, tmp_path: Path) -> None:
        forget, retain = [Example("What is Ada Lovelace remembered for?", "x")], [Example("Hello!", "x")]
        assert {"hello!", "ada"} <= {word for text in general_prompts() for word in text.casefold().split()}
        found = general_negatives("general", forget, retain)
        assert not any("Ada" in text or text == "Hello!" for text in (*found.trained, *found.checked))
        assert general_negatives("none", forget, retain) == ((), ())
        (tmp_path / "own.jsonl").write_text("".join(f'{{"prompt": "is {i} even", "response": "no"}}\n' for i in range(8)))
        own = general_negatives(str(tmp_path / "own.jsonl"), forget, retain)
        assert own.checked == ("is 3 even", "is 7 even")
        assert len(own.trained) == 6


class TestThresholds:
    retain = torch.linspace(0, 0.6, 199, dtype=torch.float64)
    forget = torch.linspace(0.5, 1, 199, dtype=torch.float64)

    def test_simple_flags_no_retain_prompt_where_forget_prompts_score_far_higher(self) -> None:
        retain = torch.cat([self.retain / 6, torch.tensor([0.12, 0.15, 0.3], dtype=torch.float64)])
        least = threshold("simple", self.retain, retain, 0.05)  # no gap: forget prompts score as low
        assert (retain > least).sum() > 3
        assert threshold("simple", self.forget, retain[:-1], 0.05) == 0.15
        assert threshold("simple", self.forget, retain, 0.05) == pytest.approx(least + 0.25 * (0.5 - least))

    def test_simple_flags_at_most_the_stated_share(self) -> None:
        for alpha in (0.01, 0.05, 0.2):
            line = threshold("simple", self.forget - 0.5, self.retain, alpha)
            assert (self.retain > line).double().mean() <= alpha
            assert (self.retain > line).sum() >= math.floor(alpha * 200) - 1

    def test_the_bound_holds_on_fresh_prompts(self) -> None:
        """Over 2000 draws of 99 calibration prompts and one fresh prompt each: at most alpha, by exchangeability."""
        draws = torch.rand(2000, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for rule in ("simple", "class_conditional"):
            flagged = [float(row[99]) > threshold(rule, torch.full((99,), 0.5), row[:99], 0.1) for row in draws]  # type: ignore[arg-type]
            assert 0.08 < sum(flagged) / 2000 < 0.12

    def test_a_conformal_set_of_both_classes_or_of_none_is_retain_unless_cautious(self) -> None:
        for rule in ("conformal", "class_conditional"):
            plain, cautious = (threshold(rule, self.forget, self.retain, 0.05, cautious=c) for c in (False, True))  # type: ignore[arg-type]
            assert cautious < plain
        retain_q = float(self.retain.sort().values[math.ceil(200 * 0.95) - 1])
        assert threshold("class_conditional", self.forget, self.retain, 0.05) == pytest.approx(retain_q)

    def test_general_prompts_raise_a_calibrated_threshold_until_as_few_of_them_are_flagged(self) -> None:
        general = torch.linspace(0, 0.9, 99, dtype=torch.float64)
        for rule in ("simple", "conformal", "class_conditional"):
            line = threshold(rule, self.forget, self.retain, 0.1, general_N=general)  # type: ignore[arg-type]
            assert line == max(threshold(rule, self.forget, self.retain, 0.1), float(general[89]))  # type: ignore[arg-type]
            assert threshold(rule, self.forget, self.retain, 0.1, general_N=general[:0]) < line  # type: ignore[arg-type]
        assert threshold("simple", self.forget, self.retain, 0.01, general_N=general[:9]) == float(self.retain.sort().values[197])
        assert threshold("simple", self.forget, self.retain, 0.01, general_N=general[-9:]) == float(general[-1])
        assert threshold("fixed", self.forget, self.retain, 0.1, general_N=general, fixed=0.2) == 0.2

    def test_too_few_prompts_for_a_rate_are_refused(self) -> None:
        with pytest.raises(ExpungeError, match=r"20 retain prompts are too few .* of 0.01: at least 99"):
            threshold("simple", self.forget, self.retain[:20], 0.01)
        assert threshold("fixed", self.forget[:1], self.retain[:1], 0.01, fixed=0.3) == 0.3


class TestNames:
    def test_names_are_found_whatever_their_case_as_whole_words(self) -> None:
        finder = Finder(["Anna", "Anna Bell", "ell"])
        text = "does ANNA BELL know annabell or Anna?"
        assert sorted({text[a:b] for a, b in finder.spans(text)}) == ["ANNA", "ANNA BELL", "Anna"]

    def test_the_forget_sets_own_names_are_those_that_no_retain_prompt_has(self) -> None:
        forget = [Example("Where was Anna Bell born?", "Berlin"), Example("who is x", "y", attributes={"person": "x"})]
        retain = [Example("What did Carl Dow write in Berlin?", "a book")]
        assert own_entities(forget, retain) == ["Anna Bell"]
        assert own_entities([Example("where was anna born", "b", attributes={"person": "anna"})], retain) == ["anna"]

    def test_tokens_that_share_a_character_with_a_name_are_chosen_and_special_tokens_never(self, encoder: Encoder) -> None:
        ids = encoder.encode_prompts(["where was anna born ?"])[0]
        text, spans = token_spans(ids, encoder.tokenizer)
        chosen = overlapping(spans, Finder(["anna"]).spans(text))
        assert [encoder.tokenizer.decode([ids[i]]) for i in chosen] == ["anna"]
        assert spans[0] == (0, 0)
        assert overlapping([(0, 0), (0, 4), (4, 8)], [(4, 8)]) == [2]


class TestTuning:
    def test_a_slope_is_followed_to_the_target(self) -> None:
        found = strength_search(lambda s: abs(1 / (1 + s) - 0.2), 1.0, low=0.01, high=1000)
        assert found.distance <= 0.01
        assert found.setting == pytest.approx(4, rel=0.3)

    def test_a_step_function_is_found_where_no_slope_is(self) -> None:
        """As in the released example: 0.45 below a strength of 5, 0.25 above; descent alone never leaves its start."""
        found = strength_search(lambda s: abs((0.45 if s < 5 else 0.25) - 0.25), 0.1, low=0.001, high=1000)
        assert found.distance == 0
        assert found.tried < 30

    def test_the_best_setting_that_was_seen_is_given_back_and_none_is_scored_twice(self) -> None:
        seen: list[float] = []

        def rough(strength: float) -> float:
            seen.append(strength)
            return abs(math.sin(5 * math.log(strength))) + 0.2

        found = strength_search(rough, 2.0, low=0.1, high=100)
        assert found.distance == min(abs(math.sin(5 * math.log(s))) + 0.2 for s in seen)
        assert len(seen) == len(set(seen)) == found.tried

    def test_whole_numbers_are_searched_until_the_gap_closes(self) -> None:
        for target in (1, 37, 507, 1000):
            found = dims_search(lambda n, t=target: abs(n - t) / 1000, 1000, close=0.0)
            assert found.setting == target
            assert found.tried < 40
