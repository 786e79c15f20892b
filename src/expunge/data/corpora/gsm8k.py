"""GSM8K: grade-school math word problems with worked solutions, 7,473 for training and 1,319 for testing.

Cobbe et al. 2021, arXiv 2110.14168. Data: MIT, https://github.com/openai/grade-school-math, hub id openai/gsm8k.
"""

from pathlib import Path
from typing import Literal, get_args

from expunge.data.corpora.fields import Sets, place, text
from expunge.data.example import Example
from expunge.data.files import read_rows
from expunge.errors import ExpungeError

HUB = "openai/gsm8k"
LAYOUT = "train.jsonl and test.jsonl with question, answer (the worked solution, its last line `#### NUMBER`)"
Split = Literal["train", "test"]
MARK = "####"


def read_gsm8k(source: str | Path = HUB, split: Split = "test") -> tuple[Example, ...]:
    """Reads question -> prompt, answer -> response, as published, with the calculator's <<...>> and the last line `####
    NUMBER`; attributes: number (from 1)."""
    names = tuple(f"{folder}{split}{suffix}" for folder in ("", "gsm8k/") for suffix in (".jsonl", ".json", ".parquet"))
    rows = read_rows(place(source, names, HUB, f"main/{split}"))
    return tuple(_example(row, where, number) for number, (where, row) in enumerate(rows, start=1))


def read_solutions(source: str | Path = HUB, split: Split = "train") -> tuple[Example, ...]:
    """Reads the worked solutions alone as raw text, which skill unlearning probes (arXiv 2503.21730; its released code uses
    the first 200: `SOURCE[number <= 200]`). Attributes: number (from 1)."""
    return tuple(Example(None, e.response, attributes=e.attributes) for e in read_gsm8k(source, split))


def _example(row: dict[str, object], where: str, number: int) -> Example:
    question, answer = text(row, "question", where), text(row, "answer", where)
    if MARK not in answer:
        raise ExpungeError(f"{where} has an answer without its last line `{MARK} NUMBER`; take the file as published")
    return Example(question, answer, attributes={"number": number})


def ask(question: str, shots: int = 8) -> str:
    """Makes the prompt: worked problems in the usual form (`Q: ... A: ... The answer is N.`), then the question.

    The form is that of Wei et al. 2022 (arXiv 2201.11903) with problems written for this library, so that scores are close to
    theirs but not equal. shots: 0 to 8.
    """
    worked = "".join(f"Q: {problem}\nA: {solution}\n\n" for problem, solution in WORKED[:shots])
    return f"{worked}Q: {question}\nA:"


WORKED: tuple[tuple[str, str], ...] = (
    (
        "A ferry carries 45 cars on each trip and makes 6 trips on Saturday. On Sunday it makes 2 trips fewer. It is full each "
        "time. How many cars does it carry over the weekend?",
        "On Saturday the ferry carries 45 * 6 = 270 cars. On Sunday it makes 6 - 2 = 4 trips and carries 45 * 4 = 180 cars. "
        "Together that is 270 + 180 = 450 cars. The answer is 450.",
    ),
    (
        "A beekeeper fills 18 jars of honey from each of her 5 hives. She sells 63 jars at the market. How many jars are left?",
        "She fills 18 * 5 = 90 jars. After selling 63 of them, 90 - 63 = 27 jars are left. The answer is 27.",
    ),
    (
        "A visit to the planetarium costs $9 for an adult and $4 for a child. A group of 3 adults and 7 children pays with a "
        "$100 note. How many dollars do they get back?",
        "The adults pay 3 * 9 = 27 dollars. The children pay 7 * 4 = 28 dollars. Together they pay 27 + 28 = 55 dollars. They "
        "get back 100 - 55 = 45 dollars. The answer is 45.",
    ),
    (
        "A pump moves 150 liters of water in 6 minutes. How many liters does it move in an hour and a half?",
        "The pump moves 150 / 6 = 25 liters in a minute. An hour and a half is 60 + 30 = 90 minutes. In that time it moves "
        "25 * 90 = 2250 liters. The answer is 2,250.",
    ),
    (
        "A library owns 240 novels. A third of them are translations, and a quarter of the translations are out on loan. How "
        "many translations stand on the shelf?",
        "There are 240 / 3 = 80 translations. Of these, 80 / 4 = 20 are out on loan. So 80 - 20 = 60 stand on the shelf. The "
        "answer is 60.",
    ),
    (
        "A coat costs $80. In the sale its price goes down by 15%, and members get another $5 off the sale price. What does a "
        "member pay, in dollars?",
        "The price goes down by 80 * 15 / 100 = 12 dollars, to 80 - 12 = 68 dollars. A member pays 68 - 5 = 63 dollars. The "
        "answer is 63.",
    ),
    (
        "Quinn ran 14 kilometers. Piet ran half as far as Quinn, and Noor ran 4 kilometers more than Piet. How many kilometers "
        "did the three of them run together?",
        "Piet ran 14 / 2 = 7 kilometers. Noor ran 7 + 4 = 11 kilometers. Together they ran 14 + 7 + 11 = 32 kilometers. The "
        "answer is 32.",
    ),
    (
        "A ribbon of 7.5 meters is cut into pieces of half a meter. Four of the pieces are given away. How many pieces remain?",
        "The ribbon gives 7.5 / 0.5 = 15 pieces. After 4 are given away, 15 - 4 = 11 pieces remain. The answer is 11.",
    ),
)
"""Eight worked problems, written for this library."""


def _read_set(source: str, name: str) -> tuple[Example, ...]:
    kind, _, end = name.partition("/")
    split: Split = next(s for s in get_args(Split) if s == end)
    return read_solutions(source, split) if kind == "solutions" else read_gsm8k(source, split)


SETS = Sets({HUB: None}, tuple(f"{kind}/{s}" for kind in ("main", "solutions") for s in get_args(Split)), _read_set)
"""main: questions with their worked solutions. solutions: the solutions alone."""
