"""Which texts are looked at together: languages, code, scripts, lengths, roles. Knows texts, no vectors."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_embed.calibration import Text
from edge_embed.drift.metrics import Rows, by_label

# Tokens up to which a bucket goes; noise grows with length.
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

CODE = "code-"  # begins the strata of programming languages
LONG = "long"  # the stratum and kind of long texts, whose ids end in their language

LANGUAGE = re.compile("[a-z]{2}")  # ISO 639-1; three letters would take a user's "all" or "faq" for one

# Unicode has no character names for scripts, but names of characters begin with them; these differ.
SCRIPTS = {
    "cjk": "han",
    "hiragana": "japanese",
    "katakana": "japanese",
    "katakana-hiragana": "japanese",  # the sign that makes a vowel long
    "modifier": "latin",
}


def by_text(texts: Sequence[Text], roles: Sequence[str], tokens: NDArray[np.int64]) -> dict[str, Rows]:
    """Name of a slice -> rows (n,), as "language de", "code python", "script cyrillic", "length 17 to 32".

    No two have the same rows: each would be judged twice.

    texts   of calibration/evaluation, or of a user's file: there a stratum is whatever was given as a slice
    roles   of reference.ROLES, row by row
    tokens  (N,) of each text
    """
    labels = {
        "": [group(text) for text in texts],
        "script ": [script(text.text) for text in texts],
        "length ": [bucket(count) for count in tokens.tolist()],
        "role ": list(roles),
    }
    found: dict[str, Rows] = {}
    for kind, column in labels.items():
        parts = by_label(column)
        if kind == "length ":  # in the order of length, not of digits
            parts = dict(sorted(parts.items(), key=lambda part: int(part[0].split()[0])))
        if len(parts) > 1:  # one part would say again what all texts say
            known = {
                rows.tobytes() for rows in found.values()
            }  # a script of one language says what that says
            found |= {kind + name: rows for name, rows in parts.items() if rows.tobytes() not in known}
    return found


def language(text: Text) -> str:
    """The language of an evaluation text, as its file or, for the long ones, its id says it."""
    return text.id.removeprefix("long-") if text.stratum == text.kind == LONG else text.stratum


def group(text: Text) -> str:
    """The slice of a text by what it is: a language, code, or the user's own word."""
    if text.stratum.startswith(CODE):
        return "code " + text.stratum.removeprefix(CODE)
    name = language(text)
    return f"language {name}" if LANGUAGE.fullmatch(name) else f"slice {name}"


def script(text: str) -> str:
    """The script that most letters of a text are in, "none" without letters."""
    names = Counter(
        unicodedata.name(character, "none").split()[0].lower() for character in text if character.isalpha()
    )
    folded: Counter[str] = Counter()
    for name, count in names.items():
        folded[SCRIPTS.get(name, name)] += count
    if folded["japanese"]:  # which is written in han as well
        folded["japanese"] += folded.pop("han", 0)
    return folded.most_common(1)[0][0] if folded else "none"


def bucket(tokens: int) -> str:
    """The range of lengths that a number of tokens falls into, both ends included."""
    above = next((at for at, end in enumerate(LENGTHS) if tokens <= end), len(LENGTHS))
    least = LENGTHS[above - 1] + 1 if above else 1
    return f"{least} to {LENGTHS[above]}" if above < len(LENGTHS) else f"{least} and more"
