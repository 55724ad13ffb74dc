"""Calibration and evaluation texts: those of calibration/, a ladder of lengths cut from them, a user's file.

Knows files, kinds and order. It knows no models: how many tokens a text has is the caller's function to say.
Nothing is random, so there is no seed. calibration/README.md says what the stored texts are.
"""

import json
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_embed.errors import InputError, IntegrityError
from edge_embed.resources import data_folder

# (tokens, texts): few stored texts have 500 tokens, and both noise and ranges grow with length.
LADDER = (
    *((16, 12), (64, 12), (128, 12), (256, 12), (512, 12)),
    *((1024, 12), (2048, 8), (4096, 4), (8192, 4)),
)
BETWEEN_TEXTS = "\n\n"

LEAST_TEXTS = 50
JSONL_SUFFIXES = (".jsonl", ".ndjson")
TEXT_KEY = "text"


@dataclass(frozen=True, slots=True)
class Text:
    """One text and where it belongs."""

    id: str
    kind: str  # query, passage, long, other, edge or ladder
    topic: str  # what makes queries and passages of evaluation/ relevant to each other; "" elsewhere
    text: str
    stratum: str  # the file's name without its suffix: a language, code-LANG, other, edge, long; or ladder


@dataclass(frozen=True, slots=True)
class UserTexts:
    """The different texts of a user's file in its order, and how many were left out."""

    texts: list[str]
    duplicates: int  # equal to an earlier one, character by character
    blank: int  # nothing but whitespace


def texts(kinds: Iterable[str] = ("query", "passage")) -> list[str]:
    """The calibration texts of the given kinds over all languages, in file and line order."""
    wanted = frozenset(kinds)
    return [text.text for text in stored("corpora") if text.kind in wanted]


def evaluation() -> list[Text]:
    """The texts held apart from calibration, in file and line order."""
    return stored("evaluation")


def builtin(count_tokens: Callable[[str], int] | None = None, *, max_tokens: int | None = None) -> list[Text]:
    """The calibration texts in an order of which any prefix is balanced over strata, languages and lengths.

    count_tokens  tokens of a text, special tokens included; without it the ladder of lengths is left out
    max_tokens    the model's limit: longer rungs of the ladder are left out. The stored texts come whole
    returns       424 stored texts, and up to 88 of the ladder spread evenly among them
    Errors: IntegrityError when manifest.json and the texts do not belong together.
    """
    by_id = {text.id: text for text in stored("corpora")}
    path = data_folder("calibration") / "manifest.json"
    order: list[str] = json.loads(path.read_text("utf-8"))["order"]
    if sorted(order) != sorted(by_id):
        raise IntegrityError(
            f"{path} orders {len(order)} texts that are not the {len(by_id)} of corpora/; "
            "reinstall, or renew it by calibration/check.py --write"
        )
    ordered = [by_id[identifier] for identifier in order]
    if count_tokens is None:
        return ordered
    return interleaved(ordered, ladder(ordered, count_tokens, max_tokens))


def ladder(
    ordered: Sequence[Text], count_tokens: Callable[[str], int], max_tokens: int | None = None
) -> list[Text]:
    """Texts of given numbers of tokens, cut from `ordered` joined in a ring, each begun at another text.

    The starts are spread evenly over the ring, and so are those of each rung. Edge texts are not in it: as
    SmoothQuant takes a maximum over all texts, a caller must be able to leave them out. A text ends where the
    next character would be one token too many, as truncation would also cut in the middle of a word.
    """
    rungs = [(tokens, count) for tokens, count in LADDER if max_tokens is None or tokens <= max_tokens]
    places = sorted(((turn + 0.5) / count, tokens, turn) for tokens, count in rungs for turn in range(count))
    ring = [text.text for text in ordered if text.stratum != "edge"]
    steps = []
    for number, (_, tokens, turn) in enumerate(places):
        start = number * len(ring) // len(places)
        text = cut(BETWEEN_TEXTS.join(ring[start:] + ring[:start]), tokens, count_tokens)
        steps.append(Text(f"ladder-{tokens}-{turn + 1:02}", "ladder", "", text, "ladder"))
    return steps


def cut(text: str, tokens: int, count_tokens: Callable[[str], int]) -> str:
    """A start of `text` that has at most `tokens` tokens, and would have more with its next character."""
    fits, end = 0, 1
    while count_tokens(text[:end]) <= tokens:  # doubling first: the ring is far longer than most rungs
        if end >= len(text):
            return text
        fits, end = end, 2 * end
    # Counts need not grow with every character, yet the end that is taken has been counted and fits.
    too_long = bisect_right(range(end), tokens, fits + 1, end, key=lambda at: count_tokens(text[:at]))
    return text[: too_long - 1]


def interleaved(most: Sequence[Text], few: Sequence[Text]) -> list[Text]:
    """Both in their orders, each spread evenly over the whole."""
    places = [((i + 0.5) / len(group), text) for group in (most, few) for i, text in enumerate(group)]
    return [text for _, text in sorted(places, key=lambda place: place[0])]


def stored(split: str) -> list[Text]:
    """All texts of `corpora` or `evaluation`, in file and line order, repeats written out."""
    found: list[Text] = []
    for path in sorted((data_folder("calibration") / split).glob("*.jsonl")):
        with path.open(
            encoding="utf-8"
        ) as lines:  # splitlines would also split at U+2028, which JSON may hold
            for row in map(json.loads, lines):
                text = row["text"] * row.get("repeat", 1)
                found.append(Text(row["id"], row["kind"], row.get("topic", ""), text, path.stem))
    return found


def read_user_texts(path: Path, *, allow_few: bool = False) -> UserTexts:
    """The user's own calibration texts: one a line, or JSON objects with a "text" in *.jsonl and *.ndjson.

    Blank texts and later copies of a text are left out and counted. Texts keep their length: what a model
    cannot take of it, its tokenizer cuts and counts.
    Errors: InputError for a file that cannot be read, is not UTF-8 (with the line), has a JSON row without a
    text (with the line), no texts, or fewer than 50 different ones without `allow_few`.
    """
    rows = read_texts(path)
    filled = [text for text in rows if text.strip()]
    kept = list(dict.fromkeys(filled))
    if not kept:
        raise InputError(f"{path} holds no texts; give at least {LEAST_TEXTS}, one a line")
    if len(kept) < LEAST_TEXTS and not allow_few:
        raise InputError(
            f"{path} holds {len(kept)} different texts, fewer than {LEAST_TEXTS}: activation ranges from so "
            "few are a lottery (all-MiniLM-L6-v2: 18.2 dB from 8, 21.1 from 25, 22.2 from 50, 22.9 from 100);"
            " add texts, or take the risk with --allow-few"
        )
    return UserTexts(kept, duplicates=len(filled) - len(kept), blank=len(rows) - len(filled))


def read_texts(path: Path) -> list[str]:
    """The text of each line: of the JSON object there in *.jsonl and *.ndjson, else the line itself."""
    lines = read_lines(path)
    return list(json_texts(path, lines)) if path.suffix in JSONL_SUFFIXES else lines


def read_lines(path: Path) -> list[str]:
    """Lines without their ends, and without the byte order mark that some editors put first."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} is not UTF-8: byte {data[error.start]:#04x} in line {line}; save it as UTF-8"
        ) from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def json_texts(path: Path, lines: Iterable[str]) -> Iterator[str]:
    """The text of each JSON row; "" for a blank line."""
    for number, line in enumerate(lines, 1):
        yield json_row(path, number, line)[TEXT_KEY] if line.strip() else ""


def json_row(path: Path, number: int, line: str) -> dict[str, Any]:
    """The object of a line, counted from 1, that has a text."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number} is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get(TEXT_KEY), str):
        raise InputError(
            f'{path}, line {number} has no text; each line must be an object like {{"{TEXT_KEY}": "..."}}'
        )
    return row


def leaked(texts: Iterable[str], evaluation: Iterable[str]) -> list[str]:
    """Those of `texts` that are also evaluation texts, but for case, width and punctuation; [] is wanted.

    Calibrated on them, a model would be measured on what it was fitted to.
    """
    held_out = {folded(text) for text in evaluation}
    return [text for text in texts if folded(text) in held_out]


def folded(text: str) -> str:
    """What two texts are compared by: letters, marks and numbers; punctuation where there is nothing else."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in plain).split()
    return " ".join(words) or text
