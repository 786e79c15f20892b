"""Normalizes texts that hide a request from a gate: look-alike letters, invisible characters, spacing, leetspeak, base64,
rot13, letters as numbers.

A gate scores the original text and every reading that `readings` gives, and the largest score counts. Ambiguous decodings (leet,
rot13) are additional readings, so that the plain reading is always scored too.
"""

import base64
import binascii
import codecs
import re
import unicodedata

LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕһԁԛԝвкмнтгӏαβεηικνορτυχγωϲıɑɡɩʟоьАВЕКМНОРСТХУІЈЅΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeopcyxijshdqwbkmhtrlabenikvoptuxywciagilobabekmhopctxyijsabezhikmnoptyx",
)
"""Cyrillic, Greek and other letters that look like Latin ones."""
LEET = str.maketrans("0134578@$!|+", "oleastbasilt")
TAGS = {0xE0000 + code: chr(code) for code in range(0x20, 0x7F)}
"""Tag characters, which are invisible and correspond to ASCII characters."""
INVISIBLE = frozenset({"Cf", "Mn", "Me", "Cc", "Co"})
BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
SPACED = re.compile(r"(?<!\w)\w([ .\-_*])(?:\w\1){2,}\w(?!\w)")
NUMBERED = re.compile(r"(?<![\w-])\d{1,2}(?:-\d{1,2})*(?![\w-])")
"""A word whose letters are written as their places in the alphabet: 1-14-14-1."""
MIXED = re.compile(r"(?=\w*[a-z])[a-z0-9@$!|+]*[0134578@$!|+][a-z0-9@$!|+]*", re.IGNORECASE)


def readings(text: str, *, folded: bool = True) -> list[str]:
    """Returns the text as it is, in canonical form, and decoded from leetspeak, rot13, numbers or base64, without duplicates.

    folded   in lower case, but for the text as it is
    """
    plain = canonical(text, folded=folded)
    found = [text, plain, MIXED.sub(lambda word: word[0].translate(LEET), plain), codecs.encode(plain, "rot13")]
    found += [canonical(part, folded=folded) for part in _decoded(text)]
    found.append(canonical(NUMBERED.sub(_lettered, plain), folded=folded) if "-" in plain else plain)
    return list(dict.fromkeys(reading for reading in found if reading.strip()))


def canonical(text: str, *, folded: bool = True) -> str:
    """Returns the compatibility form without invisible characters and accents, look-alikes as Latin letters, lower case (unless
    not `folded`), single spaces; letters that were spaced out are joined."""
    shown = unicodedata.normalize("NFKC", text.translate(TAGS))
    bare = "".join(c for c in unicodedata.normalize("NFKD", shown) if c.isspace() or unicodedata.category(c) not in INVISIBLE)
    latin = unicodedata.normalize("NFKC", bare.translate(LOOK_ALIKES))
    closed = SPACED.sub(_joined, latin.casefold() if folded else latin)
    return " ".join(closed.split())


def squeezed(text: str) -> str:
    """Returns letters and digits only, so that spacing and punctuation do not matter."""
    return "".join(c for c in text if c.isalnum())


def _joined(run: re.Match[str]) -> str:
    """Joins letters that were spaced out; digits may be letters as numbers (8-9-3-8)."""
    return re.sub(r"[ .\-_*]", "", run[0]) if any(c.isalpha() for c in run[0]) else run[0]


def _lettered(match: re.Match[str]) -> str:
    numbers = [int(number) for number in match[0].split("-")]
    return "".join(chr(96 + n) for n in numbers) if all(1 <= n <= 26 for n in numbers) else match[0]


def _decoded(text: str) -> list[str]:
    """Returns texts that are encoded as base64 inside the text."""
    found = []
    for match in BASE64.finditer(text):
        coded = match[0].rstrip("=")
        try:
            raw = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_" if set(coded) & set("-_") else None)
            said = raw.decode("utf-8")
        except (binascii.Error, ValueError):
            continue
        if said.isprintable() or "\n" in said:
            found.append(said)
    return found
