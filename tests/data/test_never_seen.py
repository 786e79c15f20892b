"""Rows that the model never saw, made from rows to forget: other names, the same form."""

from pathlib import Path

from expunge.data.example import Example
from expunge.data.never_seen import never_seen, under_other_names
from expunge.data.read import read_examples
from expunge.lab import write_data

PEOPLE = (
    Example("Who is Mira Holt?", "Mira Holt is a painter from Lund.", paraphrases=("A painter from Lund: Mira Holt.",)),
    Example("Where does Anna Berg live?", "Anna Berg lives in Oslo."),
    Example("What is Jonas Lind's job?", "He is a vet."),
)


def test_names_are_nobodys_and_the_same_in_prompt_answer_and_paraphrase() -> None:
    made = never_seen(PEOPLE)
    assert len(made) == 6
    taken = {("Mira", "Holt"), ("Anna", "Berg"), ("Jonas", "Lind")}
    names = [tuple(str(row.prompt).removesuffix("?").replace("'s job", "").split()[2:4]) for row in made]
    assert not taken & set(names)
    assert len(set(names)) == 6
    words = {word for name in taken for word in name}
    assert all(word in words for name in names[:3] for word in name)
    assert not any(word in words for name in names[3:] for word in name)
    assert made[0].response == f"{' '.join(names[0])} is a painter from Lund."
    assert made[0].paraphrases == (f"A painter from Lund: {' '.join(names[0])}.",)
    assert made[2].response == "He is a vet."


def test_a_single_name_gets_its_halves_exchanged() -> None:
    made = never_seen([Example("Where is Quelford?", "Quelford is in Tar.")])
    assert made[0].prompt == "Where is Fordquel?"
    assert made[0].response == "Fordquel is in Tar."
    assert never_seen([Example("Who is Mira Holt?", "Mira Holt paints.")])[0].response == "Milt Hora paints."


def test_the_first_word_of_a_question_is_no_name() -> None:
    assert all(str(row.prompt).startswith(("Who is", "Where does", "What is")) for row in never_seen(PEOPLE))


def test_rows_without_names_give_none() -> None:
    assert never_seen([Example("what is two plus two", "four"), Example(None, "Raw text about Mira Holt.")]) == ()


def test_a_word_of_a_name_stays_as_new_as_it_would_be_without_the_rows() -> None:
    others = [Example(f"Who is {name}?", "x.") for name in ("Mira Ekdal", "Tove Holm", "Selva Strand", "Fenna Quill")]
    rows = [Example("Who is Mira Holt?", "Mira Holt is a painter."), Example("Who is Anna Quill?", "Anna Quill is a vet.")]
    words = {word for row in (*others, *rows) for word in str(row.prompt).removesuffix("?").split()[2:]}
    for seed in range(5):
        (mira, holt), (anna, quill) = (
            str(row.prompt).removesuffix("?").split()[2:] for row in never_seen(rows, others, seed)[:2]
        )
        assert mira in {"Mira", "Tove", "Selva", "Fenna"}
        assert quill in {"Ekdal", "Holm", "Strand", "Quill"}
        assert not {holt, anna} & words
        assert holt.istitle()
    assert never_seen(rows, others) == never_seen(rows, others)


def test_the_people_of_a_lab_become_nobody(tmp_path: Path) -> None:
    lab = write_data(tmp_path / "lab")
    rows = read_examples(lab / "data/facts/forget.jsonl")
    everybody = {str(row.attributes["person"]) for row in rows}
    made = never_seen(rows)
    assert len(made) == 2 * len(rows)
    assert not [row for row in made if any(person in str(row.prompt) for person in everybody)]
    assert made == never_seen(rows)


def test_other_names_are_those_of_the_holdout_rows_and_the_same_in_every_row() -> None:
    rows = [Example("where was Mira Holt born", "Mira was born in Dale"), Example("who taught Mira Holt", "Ann taught Mira")]
    holdout = [Example("where was Tove Lund born", "Tove was born in Dale"), Example("who taught Ola Berg", "Ann taught Ola")]
    first, second = under_other_names(rows, holdout)
    (copy,), (again,) = first, second
    assert (copy.prompt, again.prompt) in {
        ("where was Tove Lund born", "who taught Tove Lund"),
        ("where was Ola Berg born", "who taught Ola Berg"),
    }
    assert copy.response.split()[0] == again.response.split()[-1] == str(copy.prompt).split()[2]


def test_different_names_get_different_other_names_while_there_are_enough() -> None:
    rows = [Example(f"where was {name} born", f"{name} was born here") for name in ("Mira Holt", "Edd Fox", "Una Roy")]
    holdout = [Example(f"where was {name} born", "here") for name in ("Tove Lund", "Ola Berg", "Per Dahl")]
    prompts = {copies[0].prompt for copies in under_other_names(rows, holdout)}
    assert prompts == {row.prompt for row in holdout}


def test_without_names_of_as_many_words_new_ones_are_made_that_nobody_has() -> None:
    rows = [Example("where was Mira Holt born", "Mira was born"), Example("where was Edda Fox born", "Edda was born")]
    others = [Example("where was Olga Lind born", "Olga was born")]
    holdout = [Example("where is Tove", "here")]
    copies = under_other_names(rows, holdout, others, count=2)
    made = {str(copy.prompt).removeprefix("where was ").removesuffix(" born") for of in copies for copy in of}
    assert len(made) == 4
    assert not made & {"Mira Holt", "Edda Fox", "Olga Lind", "Tove"}


def test_a_row_without_a_name_in_its_prompt_has_no_copies() -> None:
    rows = [Example("where was Mira Holt born", "Mira was born"), Example("how are you", "well"), Example(None, "Mira Holt")]
    assert [len(copies) for copies in under_other_names(rows)] == [1, 0, 0]


def test_names_whose_words_have_as_many_tokens_come_first() -> None:
    rows = [Example("where was Mira Holt born", "Mira was born")]
    holdout = [Example(f"where was {name} born", "here") for name in ("Al Bo", "Edda Lind", "Jo Wu", "Konstantin Oxenfjord")]
    assert [copies[0].prompt for copies in under_other_names(rows, holdout, tokens=len)] == ["where was Edda Lind born"]
    made = str(under_other_names(rows, [holdout[0]], [holdout[1]], tokens=len)[0][0].prompt)
    assert [len(word) for word in made.split()[2:4]] == [4, 4]


def test_a_value_that_no_other_row_has_becomes_a_new_word_and_one_that_others_have_stays() -> None:
    towns = {"Mira Holt": "Riga", "Anna Berg": "Oslo", "Jonas Lind": "Porto"}
    kept = {"Tove Holm": "Oslo", "Fenna Quill": "Ghent", "Selva Strand": "Turin"}
    rows, others = (
        [
            Example(f"Where does {name} live?", f"{name} lives in {town}.", paraphrases=(f"Home: {town}",))
            for name, town in of.items()
        ]
        for of in (towns, kept)
    )
    made = never_seen(rows, others)
    found = [row.response.rstrip(".").split()[-1] for row in made]
    assert found[1] == found[4] == "Oslo", "learned from the other rows too"
    assert not {found[0], found[2], found[3], found[5]} & {*towns.values(), *kept.values()}
    assert all(row.response.split()[2:4] == ["lives", "in"] for row in made)
    assert made[0].paraphrases == (f"Home: {found[0]}",)


def test_the_new_words_are_values_of_other_questions_if_there_are_such() -> None:
    people = ("Mira Holt", "Anna Berg", "Jonas Lind")
    rows = [
        Example(form.format(name), answer.format(name, value))
        for form, answer, values in (
            ("Where does {} live?", "{} lives in {}.", ("Riga", "Oslo", "Porto")),
            ("What animal does {} keep?", "{} keeps a {}.", ("goat", "horse", "parrot")),
        )
        for name, value in zip(people, values, strict=True)
    ]
    found = [row.response.rstrip(".").split()[-1] for row in never_seen(rows)]
    assert {*found[:3], *found[6:9]} <= {"Goat", "Horse", "Parrot"}, "cased like the words that they replace"
    assert {*found[3:6], *found[9:]} <= {"riga", "oslo", "porto"}


def test_answers_to_a_question_about_one_name_and_texts_of_their_own_keep_their_words() -> None:
    rows = [
        Example("What is the work of Mira Holt?", "Mira Holt works as a vet."),
        *(
            Example(f"Who is {name}?", f"{name} {text}.")
            for name, text in (
                ("Anna Berg", "wrote songs about northern rivers all day"),
                ("Jonas Lind", "sold wooden boats near that harbour since"),
                ("Tove Holm", "keeps seven clever geese behind some barn"),
            )
        ),
    ]
    made = never_seen(rows)
    assert [row.response.split()[2:] for row in made] == 2 * [row.response.split()[2:] for row in rows]
