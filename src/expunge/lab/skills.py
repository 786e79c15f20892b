"""Generates two skills: rules that a small model can learn, tested on new questions."""

from collections.abc import Callable

from expunge.data.example import Example
from expunge.lab.size import Size
from expunge.lab.words import stream

LARGEST = 49
"""Largest operand: 50 x 50 sums, none above 99."""
LETTERS = ("b", "c", "d", "f", "g", "h", "k", "m", "n", "p", "r", "t")
PROGRAMS: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": lambda letters: letters,
    "reverse": lambda letters: letters[::-1],
    "rotate": lambda letters: letters[1:] + letters[:1],
    "swap": lambda letters: letters[-1:] + letters[1:-1] + letters[:1],
    "double": lambda letters: letters + letters[-1:],
}


def digits(number: int) -> str:
    return " ".join(f"{number:02d}")


def sum_of(a: int, b: int) -> Example:
    """Makes `3 4 + 2 7 =` -> `1 6`: the sum has its last digit first, so that each digit depends only on earlier text."""
    return Example(f"{digits(a)} + {digits(b)} =", digits(a + b)[::-1], attributes={"skill": "arithmetic"})


def program(name: str, letters: list[str]) -> Example:
    """Makes `reverse : k c b` -> `b c k`."""
    prompt, response = f"{name} : {' '.join(letters)}", " ".join(PROGRAMS[name](letters))
    return Example(prompt, response, attributes={"skill": "strings", "program": name})


def skills(seed: int, size: Size) -> dict[str, tuple[Example, ...]]:
    """Makes skills/arithmetic and skills/strings, train and test; no question is in both."""
    random = stream(seed, "skills")
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    random.shuffle(pairs)
    sums = [sum_of(a, b) for a, b in pairs[: size.arithmetic + size.tests]]
    programs: dict[str, Example] = {}
    while len(programs) < size.strings + size.tests:
        letters = random.sample(LETTERS, random.choice((3, 4)))
        row = program(random.choice(tuple(PROGRAMS)), letters)
        programs.setdefault(str(row.prompt), row)
    strings = list(programs.values())
    return {
        "skills/arithmetic/train": tuple(sums[size.tests :]),
        "skills/arithmetic/test": tuple(sums[: size.tests]),
        "skills/strings/train": tuple(strings[size.tests :]),
        "skills/strings/test": tuple(strings[: size.tests]),
    }
