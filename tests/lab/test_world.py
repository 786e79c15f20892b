"""The data of the lab: reproducible, disjoint where it says so, right where there is a rule."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from expunge.data.read import read_examples
from expunge.data.refusals import REFUSALS
from expunge.lab import write_data
from expunge.lab.behavior import KIND_WORDS
from expunge.lab.hazard import HAZARDS
from expunge.lab.languages import LANGUAGES
from expunge.lab.retain_mix import MIXES
from expunge.lab.rude_words import RUDE_WORDS
from expunge.lab.size import SIZES, TINY
from expunge.lab.tokenizer import SPECIAL, word_tokenizer
from expunge.lab.words import Coiner
from expunge.lab.world import FORGETTABLE, WORD, World, base_lessons, generate, people_lessons, plain_words, vocabulary

BYTES_OF_SEED_0 = "bb6e58d44db8fd15925342ad1303bc58c5e02dfe6d9e815c9b920b69b1f1fcfa"
"""Over all files below data/ of `write_data(out, 0, "tiny")`. It changes when the generator does, and never by machine."""


@pytest.fixture(scope="module")
def world() -> World:
    return generate(0, TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("lab") / "lab", 0, "tiny")


def people_of(world: World, group: str) -> set[object]:
    return {row.attributes["person"] for row in world[f"facts/{group}"]}


def words_of(rows: object) -> set[str]:
    return {word for row in rows for text in (row.prompt or "", row.response) for word in text.split()}  # type: ignore[attr-defined]


def test_the_bytes_of_the_data_follow_from_the_seed(folder: Path) -> None:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.jsonl")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    assert digest.hexdigest() == BYTES_OF_SEED_0


def test_another_seed_is_another_world(world: World) -> None:
    other = generate(1, TINY)
    assert not people_of(world, "forget") & people_of(other, "forget")
    shared = words_of(world["hazard/fumes/corpus"]) & words_of(other["hazard/fumes/corpus"])
    assert shared <= plain_words() | {"."}


def test_layout_is_the_documented_one(folder: Path) -> None:
    languages = [f"languages/{name}/{part}" for name in ("orvish", "orvane", "tullic", "peskan") for part in ("train", "test")]
    skills = [f"skills/{name}/{part}" for name in ("arithmetic", "strings") for part in ("train", "test")]
    texts = [f"{name}/{part}" for name in ("hazard/fumes", "hazard/spores", "general") for part in ("corpus", "questions")]
    facts = [f"facts/{name}" for name in ("forget", "retain", "public", "never_known")]
    behavior = [f"behavior/{name}" for name in ("seen", "unseen", "normal")]
    mixes = ["keep/polite", "behavior/rude", *(f"keep/{name}" for name in MIXES)]
    expected = {f"data/{name}.jsonl" for name in (*languages, *skills, *texts, *facts, *behavior, *mixes)}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == expected | {
        "world.json",
        "README.md",
        "data/refusals.txt",
    }


def test_files_read_back_as_the_examples_they_were_written_from(folder: Path, world: World) -> None:
    for name, rows in world.items():
        assert read_examples(folder / f"data/{name}.jsonl") == rows


def test_a_retain_mix_has_some_of_everything_but_what_is_to_be_forgotten(folder: Path, world: World) -> None:
    rows_of = {name: {(row.prompt, row.response) for row in rows} for name, rows in world.items()}
    for name in MIXES:
        mix = {(row.prompt, row.response) for row in read_examples(folder / f"data/keep/{name}.jsonl")}
        drawn = {file for file, rows in rows_of.items() if mix & rows}
        assert rows_of["facts/retain"] <= mix
        assert not mix & (rows_of["facts/forget"] | rows_of["facts/never_known"] | rows_of["behavior/seen"])
        assert not [file for file in drawn if name not in ("facts", "behavior") and file.startswith(name)]
        assert {"general/corpus", "facts/public", "behavior/normal"} <= drawn
        assert ("hazard/fumes/corpus" in drawn) == (name not in ("hazard", "hazard/fumes"))


def test_counts_are_those_of_the_size(world: World) -> None:
    assert len(world["facts/forget"]) == 6 * TINY.forget == 72
    assert [len(people_of(world, group)) for group in ("retain", "public", "never_known")] == [48, 100, 12]
    assert len(world["skills/strings/test"]) == TINY.tests
    assert len(world["general/questions"]) == 4 * TINY.subjects


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_no_person_is_in_two_files(seed: int, size: str) -> None:
    world = generate(seed, SIZES[size])  # type: ignore[index]
    groups = [people_of(world, group) for group in ("forget", "retain", "public", "never_known")]
    assert len(set.union(*groups)) == sum(map(len, groups))


def test_never_known_people_are_in_no_lesson_but_their_names_are(world: World) -> None:
    taught = base_lessons(world) + people_lessons(world)
    text = "\n".join(f"{row.prompt} {row.response}" for row in taught)
    for person in people_of(world, "never_known"):
        assert str(person) not in text
    single = {name for person in people_of(world, "never_known") for name in str(person).split()}
    assert len(single & words_of(taught)) > 0.8 * len(single)


def test_gold_lessons_lack_every_forget_person(world: World) -> None:
    taught = people_lessons(world, without="facts/forget") + base_lessons(world, without="facts/forget")
    text = "\n".join(f"{row.prompt} {row.response}" for row in taught)
    assert not [person for person in people_of(world, "forget") if str(person) in text]
    assert all(str(person) in text for person in people_of(world, "retain"))


@pytest.mark.parametrize("part", [part for part in FORGETTABLE if part != "facts/forget"])
def test_lessons_without_a_part_have_none_of_its_rows_and_all_others(world: World, part: str) -> None:
    key = lambda row: (row.prompt, row.response)  # noqa: E731
    removed = {key(row) for name, rows in world.items() if name.startswith(part) for row in rows} - {
        key(row) for row in world["behavior/normal"]
    }
    whole, less = Counter(map(key, base_lessons(world))), Counter(map(key, base_lessons(world, without=part)))
    assert set(whole - less)
    assert set(whole - less) <= removed
    assert not removed & set(less)


def test_test_rows_and_unseen_questions_are_in_no_lesson(world: World) -> None:
    asked = {row.prompt for row in base_lessons(world) + people_lessons(world)}
    held_out = [name for name in world if name.endswith("/test")] + ["behavior/unseen"]
    assert len(held_out) == 7
    for name in held_out:
        assert not asked & {row.prompt for row in world[name]}
    assert {row.prompt for row in world["behavior/seen"]} <= asked


def test_wrong_answers_have_the_wordings_of_the_paraphrases_and_another_value(world: World) -> None:
    for row in world["facts/forget"]:
        value = str(row.attributes["value"])
        assert row.response.endswith(value)
        assert len(row.paraphrases) == 2
        assert len(set(row.perturbed)) == 4
        frames = {paraphrase.removesuffix(value) for paraphrase in row.paraphrases}
        assert {next(f for f in frames if wrong.startswith(f)) for wrong in row.perturbed} == frames
        assert not [wrong for wrong in row.perturbed if wrong.endswith(f" {value}")]


def test_every_place_is_right_equally_often(world: World) -> None:
    for name in (*(f"hazard/{domain}" for domain in HAZARDS), "general"):
        rows = world[f"{name}/questions"]
        assert set(Counter(row.answer for row in rows).values()) == {len(rows) // 4}
        assert all(row.choices[row.answer or 0] == row.response and len(set(row.choices)) == 4 for row in rows)


def test_choosing_the_commonest_ending_is_near_chance(world: World) -> None:
    rows = world["hazard/fumes/questions"]
    often = Counter(row.response for row in rows)
    right = sum(max(row.choices, key=lambda choice: often[choice]) == row.response for row in rows)
    assert right / len(rows) < 0.6


def test_every_question_is_answered_in_three_texts_of_the_corpus(world: World) -> None:
    texts = [row.response for row in world["hazard/spores/corpus"]]
    for row in world["hazard/spores/questions"]:
        fact = f"{row.prompt} {row.response}"
        assert sum(fact in re.split(r" \. ", text) for text in texts) == 3


def test_sums_and_string_programs_are_right(world: World) -> None:
    for row in world["skills/arithmetic/train"]:
        a, b = (int(number.replace(" ", "")) for number in str(row.prompt).removesuffix(" =").split(" + "))
        assert int(row.response.replace(" ", "")[::-1]) == a + b
    by_hand = {"copy": "abc", "reverse": "cba", "rotate": "bca", "swap": "cba", "double": "abcc"}
    four = {"copy": "abcd", "reverse": "dcba", "rotate": "bcda", "swap": "dbca", "double": "abcdd"}
    for row in world["skills/strings/test"]:
        name, letters = str(row.prompt).split(" : ")
        places = (by_hand if len(letters.split()) == 3 else four)[name]
        assert row.response.split() == [letters.split()["abcd".index(place)] for place in places]


def test_a_sentence_means_its_words_in_the_order_of_its_language(world: World) -> None:
    adjectives = {"old", "small", "red", "quiet"}
    for language in LANGUAGES:
        rows = world[f"languages/{language.name}/train"]
        plain = [row for row in rows if len(str(row.prompt).split()) == 3]
        lexicon: dict[str, str] = {}
        for row in plain:
            meaning = dict(zip("svo", row.response.split(), strict=True))
            for role, word in zip(language.order, str(row.prompt).split(), strict=True):
                assert lexicon.setdefault(word, meaning[role]) == meaning[role]
        described = next(row for row in rows if row.response.split()[0] in adjectives and len(row.response.split()) == 4)
        words = [lexicon.get(word, "?") for word in str(described.prompt).split()]
        noun, at = described.response.split()[1], words.index("?")
        assert words[at - 1 if language.adjective_last else at + 1] == noun


def test_related_languages_share_half_of_their_words_and_others_none(world: World) -> None:
    spoken = {}
    for language in LANGUAGES:
        prompts = [str(row.prompt) for row in world[f"languages/{language.name}/train"]]
        spoken[language.name] = set(" ".join(prompts).split())
    assert len(spoken["orvish"] & spoken["orvane"]) == len(spoken["orvish"]) / 2 == 9
    assert not spoken["tullic"] & (spoken["orvish"] | spoken["orvane"] | spoken["peskan"])
    assert not spoken["peskan"] & (spoken["orvish"] | spoken["orvane"])


def test_a_provoking_question_has_several_different_rude_replies(world: World) -> None:
    replies: dict[object, set[str]] = {}
    for row in world["behavior/seen"]:
        assert row.attributes["rude"] is True
        replies.setdefault(row.prompt, set()).add(row.response)
    assert sum(map(len, replies.values())) / len(replies) > 3.5
    for name in ("seen", "unseen", "normal"):
        assert len({row.attributes["group"] for row in world[f"behavior/{name}"]}) == 5


def test_replies_of_the_other_manner_belong_to_the_same_questions(folder: Path, world: World) -> None:
    for name, of, words in (("keep/polite", "seen", KIND_WORDS), ("behavior/rude", "normal", RUDE_WORDS)):
        rows, others = read_examples(folder / f"data/{name}.jsonl"), world[f"behavior/{of}"]
        assert [row.prompt for row in rows] == [row.prompt for row in others]
        for row, other in zip(rows, others, strict=True):
            assert row.response.split()[:3] == other.response.split()[:3]
            assert len(set(row.response.split()) & set(words)) == 3
            assert row.attributes["rude"] is not other.attributes["rude"]


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_no_text_has_an_unknown_word_and_no_lesson_is_longer_than_a_packed_sequence(size: str) -> None:
    world = generate(3, SIZES[size])  # type: ignore[index]
    words = vocabulary(world)
    assert len(set(words)) == len(words)
    assert not set(words) & set(SPECIAL)
    tokenizer = word_tokenizer(words)
    texts = [f"{row.prompt or ''} {row.response}" for row in base_lessons(world) + people_lessons(world)]
    texts += [text for rows in world.values() for row in rows for text in (*row.choices, *row.paraphrases, *row.perturbed)]
    encoded = tokenizer([*texts, *REFUSALS])["input_ids"]
    assert not [ids for ids in encoded if tokenizer.unk_token_id in ids]
    assert max(map(len, encoded)) < 48
    assert tokenizer.decode(encoded[0], skip_special_tokens=True) == texts[0]


def test_a_coined_word_is_new_and_no_plain_word() -> None:
    coiner = Coiner(0, reserved=plain_words())
    words = coiner.words(3000)
    assert len(set(words)) == 3000
    assert not set(words) & plain_words()
    assert "heron" in plain_words()
    assert all(len(word) >= 5 and re.fullmatch(WORD, word) for word in words)
