"""Coins words: every name in the lab is made up, and no word has two meanings.

Only `random.Random` seeded with a string is used anywhere in the lab's data: its streams are the same on every machine.
"""

import random

SINGLE = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
ONSETS = (*SINGLE, "br", "dr", "gr", "kl", "kr", "st", "tr", "vl", "zw")
VOWELS = ("a", "e", "i", "o", "u", "ai", "eo")
CODAS = ("n", "r", "l", "k", "th", "sk", "m", "nd", "x", "rv")


def stream(seed: int, part: str) -> random.Random:
    """Returns the random numbers of one part of the world; adding a part changes no other."""
    return random.Random(f"expunge-lab/{seed}/{part}")


class Coiner:
    """Coins words of at least five letters, each only once in a world.

    Worlds of different seeds share words only by chance, so that knowledge of one lab is useless in another.
    """

    def __init__(self, seed: int, reserved: frozenset[str]) -> None:
        self._random = stream(seed, "words")
        self._taken = set(reserved)

    def word(self, ending: str = "") -> str:
        """Coins a new word; `ending` marks its kind, so that readers can tell a town from a poison."""
        while True:
            syllables = self._random.choice((1, 2)) if ending else 2
            stem = "".join(self._random.choice(ONSETS) + self._random.choice(VOWELS) for _ in range(syllables))
            coined = stem + (self._random.choice(SINGLE) + ending if ending else self._random.choice(CODAS))
            if len(coined) >= 5 and coined not in self._taken:
                self._taken.add(coined)
                return coined

    def words(self, count: int, ending: str = "") -> tuple[str, ...]:
        return tuple(self.word(ending) for _ in range(count))

    def names(self, count: int, ending: str = "") -> tuple[str, ...]:
        return tuple(word.capitalize() for word in self.words(count, ending))
