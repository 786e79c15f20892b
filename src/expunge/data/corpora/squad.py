"""MLQA and XQuAD: questions about a passage, answered by a span of it, in several languages (SQuAD's layout).

MLQA: Lewis et al. 2020, arXiv 1910.07475, CC BY-SA 3.0, https://dl.fbaipublicfiles.com/MLQA/MLQA_V1.zip, hub id facebook/mlqa.
XQuAD: Artetxe et al. 2020, arXiv 1910.11856, CC BY-SA 4.0, https://github.com/google-deepmind/xquad, hub id google/xquad:
1,190 questions of SQuAD, the same in each language, translated by people.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from expunge.data.corpora.fields import Sets, place, text, texts
from expunge.data.example import Example
from expunge.data.files import read_rows
from expunge.errors import ExpungeError

MLQA, XQUAD = "facebook/mlqa", "google/xquad"
LAYOUT = (
    "xquad.LANGUAGE.json (XQuAD), or test/test-context-LANGUAGE-question-LANGUAGE.json and the same with dev (MLQA), with "
    "LANGUAGE one of en de es ar zh vi hi"
)
Language = Literal["en", "de", "es", "ar", "zh", "vi", "hi"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
Split = Literal["test", "dev"]


def read_squad(source: str | Path, language: Language, split: Split = "test") -> tuple[Example, ...]:
    """Reads passage and question -> prompt, the first answer -> response, other answers -> paraphrases; attributes: language,
    context.

    source   a folder with one of the layouts, or a hub id (facebook/mlqa, google/xquad)
    split    of MLQA; XQuAD has one set. Probe and fit on dev, so that test remains unseen
    """
    stem = f"{split}-context-{language}-question-{language}.json"
    plain = (f"xquad.{language}.json", f"{split}/{stem}", f"MLQA_V1/{split}/{stem}", stem)
    names = (*plain, *(f"{folder}/{name}" for folder in ("xquad", "mlqa") for name in plain))
    hub_split = "validation" if split == "dev" else "test"
    config = f"xquad.{language}/validation" if "xquad" in str(source) else f"mlqa.{language}.{language}/{hub_split}"
    found = place(source, names, f"{MLQA} or {XQUAD}", config)
    asked = _flat(found) if isinstance(found, str) else _nested(found)
    return tuple(_example(where, context, question, answers, language) for where, context, question, answers in asked)


def read_contexts(source: str | Path, language: Language) -> tuple[Example, ...]:
    """Reads the passages alone, each once, as raw text, which skill unlearning probes for a language (arXiv 2503.21730).
    Attributes: language.

    For MLQA, those of dev; the released code probes the passages of test, which its evaluation asks about. XQuAD has one set.
    """
    asked = read_squad(source, language, "dev")
    passages = dict.fromkeys(str(e.attributes["context"]) for e in asked)
    return tuple(Example(None, passage, attributes={"language": language}) for passage in passages)


def _example(where: str, context: str, question: str, answers: tuple[str, ...], language: Language) -> Example:
    if not answers or not all(answer.strip() for answer in answers):
        raise ExpungeError(f"{where} has no answer, or an empty one; take the file as published")
    prompt = f"Context: {context}\n\nQuestion: {question}"
    return Example(prompt, answers[0], paraphrases=answers[1:], attributes={"language": language, "context": context})


Asked = tuple[str, str, str, tuple[str, ...]]
"""(place for an error, context, question, different answers)"""


def _flat(source: str) -> Iterator[Asked]:
    """Reads the hub's form: one row per question."""
    for where, row in read_rows(source):
        answers = row.get("answers")
        if not isinstance(answers, dict):
            raise ExpungeError(f"{where} has no 'answers' with their texts; take the data set as published")
        yield (
            where,
            text(row, "context", where),
            text(row, "question", where),
            tuple(dict.fromkeys(texts(answers, "text", where))),
        )


def _nested(file: Path) -> Iterator[Asked]:
    """Reads the published form: articles of passages, passages of questions, questions of answers."""
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        for article in whole["data"]:
            for passage in article["paragraphs"]:
                for asked in passage["qas"]:
                    answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                    yield f"{file}, question {asked['id']},", passage["context"], asked["question"], answers
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExpungeError(f"{file} is not in SQuAD's layout ({type(error).__name__}: {error}); take it as published") from error


def _read_set(source: str, name: str) -> tuple[Example, ...]:
    kind, _, code = name.partition("/")
    language: Language = next(known for known in LANGUAGES if known == code)
    return read_contexts(source, language) if kind == "contexts" else read_squad(source, language, "dev")


SETS = Sets({MLQA: None, XQUAD: None}, tuple(f"{kind}/{n}" for kind in ("contexts", "questions") for n in LANGUAGES), _read_set)
"""contexts: passages alone. questions: passage and question with the answer. For MLQA both of dev, so that test stays unseen."""
