"""ROUGE equals the package that published scores come from, to the last bit."""

import json
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from expunge.evaluation.rouge import rouge
from expunge.evaluation.stemming import IRREGULAR, stem

SUFFIXES = """s ss sses ies ied eed ed ing y at bl iz ll e ational tional enci anci izer bli abli alli entli eli ousli ization
ation ator alism iveness fulness ousness aliti iviti biliti fulli logi logy icate ative alize iciti ical ful ness al ance ence er
ic able ible ant ement ment ent ion sion tion ou ism ate iti ous ive ize ally fully ly lessly"""


def words() -> list[str]:
    """Random beginnings with one or two of Porter's suffixes, and every irregular word."""
    drawn, suffixes = random.Random(0), SUFFIXES.split()
    made = []
    for _ in range(20_000):
        begin = "".join(drawn.choice("aeiouybcdlmnstwxz1") for _ in range(drawn.randint(0, 5)))
        made.append(begin + "".join(drawn.choice(suffixes) for _ in range(drawn.randint(0, 2))))
    return [*IRREGULAR, *made]


def test_stems_are_those_of_nltk() -> None:
    theirs = PorterStemmer()
    assert [(word, stem(word)) for word in words() if word] == [(word, theirs.stem(word)) for word in words() if word]


@pytest.mark.parametrize("stemmer", [True, False])
def test_scores_are_those_of_rouge_score(stemmer: bool) -> None:
    drawn, vocabulary = (
        random.Random(1),
        ["a", "The", "cats", "running,", "RUNS", "nation-al", "nationally", "été", "\u0130x", "9s", "?"],
    )
    texts = [" ".join(drawn.choices(vocabulary, k=drawn.randint(0, 12))) for _ in range(400)]
    assert_equal(list(zip(texts[::2], texts[1::2], strict=True)), stemmer=stemmer)


@pytest.mark.real
def test_scores_of_all_tofu_answers_are_those_of_rouge_score(data_root: Path) -> None:
    rows = [
        json.loads(line)
        for file in sorted((data_root / "tofu").glob("*perturbed*.jsonl"))
        for line in file.open(encoding="utf-8")
    ]
    texts = list(dict.fromkeys(text for row in rows for text in (row.get("answer"), *row.get("perturbed_answer", ())) if text))
    theirs = PorterStemmer()
    vocabulary = sorted({word for text in texts for word in re.findall("[a-z0-9]+", text.lower())})
    assert [stem(word) for word in vocabulary] == [theirs.stem(word) for word in vocabulary]
    assert_equal(list(pairwise(texts[:401])), stemmer=True)


def assert_equal(pairs: list[tuple[str, str]], *, stemmer: bool) -> None:
    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(kinds), use_stemmer=stemmer)
    for reference, answer in pairs:
        theirs = scorer.score(reference, answer)
        for kind in kinds:
            ours = rouge(kind, reference, answer, stemmer=stemmer)
            assert tuple(ours) == tuple(theirs[kind]), (kind, reference, answer)
