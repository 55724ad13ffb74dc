"""Checks the calibration and evaluation texts and keeps their manifest. Knows files, scripts and n-grams.

It knows no tokens and no models, and not whether a text is good, true or about its topic.

`python calibration/check.py` prints one line per defect and exits with 3 if there is one; `--write` renews
manifest.json once the texts are sound. README.md beside this file says what the rules are for.
"""

import argparse
import hashlib
import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCHEMA = 2
LICENCE = "CC0-1.0"
EXIT_DEFECTS = 3  # not 1: Python exits 1 on a crash, and CI has to tell the two apart

# fmt: off
LANGUAGES = (
    "sq", "ar", "az", "bn", "bg", "ca", "zh", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "ka",
    "de", "el", "he", "hi", "hu", "is", "id", "it", "ja", "kk", "km", "ko", "lv", "lt", "ms", "mr",
    "no", "fa", "pl", "pt", "ro", "ru", "sr", "sk", "sl", "es", "sw", "sv", "tl", "te", "th", "tr",
    "uk", "ur", "uz", "vi",
)
TOPICS = (
    "glass", "storks", "lock", "chess", "leaves", "ash",
    "piano", "paper", "swim", "lift", "coffee", "eclipse",
)
# fmt: on
CODE = ("python", "go", "java", "javascript", "php", "ruby", "sql", "c", "cpp")
CODE_STRATA = tuple(f"code-{language}" for language in CODE)
LONG = ("de", "en", "es", "fr", "ru", "pl", "tr", "hi", "ar", "zh", "ja", "ko", "fi", "id", "vi")
SIX = {"query": 2, "passage": 3, "long": 1}
PAIRS = {"query": len(TOPICS), "passage": len(TOPICS)}
SPLITS = ("corpora", "evaluation")
EXPECTED: dict[tuple[str, str], dict[str, int]] = {  # (split, file without its suffix) -> texts of each kind
    **{("corpora", stratum): SIX for stratum in (*LANGUAGES, *CODE_STRATA)},
    ("corpora", "other"): {"other": 46},
    ("corpora", "edge"): {"edge": 12},
    **{("evaluation", stratum): PAIRS for stratum in (*LANGUAGES, *CODE_STRATA)},
    ("evaluation", "long"): {"long": len(LONG)},
}

SCRIPTS: dict[
    str, tuple[str, ...]
] = {  # how the Unicode names of a language's letters begin; the rest is LATIN
    **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)),
    **dict.fromkeys(("bg", "kk", "ru", "sr", "uk"), ("CYRILLIC",)),
    **dict.fromkeys(("hi", "mr"), ("DEVANAGARI",)),
    "bn": ("BENGALI",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "ka": ("GEORGIAN",),
    "km": ("KHMER",),
    "ko": ("HANGUL",),
    "te": ("TELUGU",),
    "th": ("THAI",),
    "zh": ("CJK",),
}
LEAST_SCRIPT_SHARE = 0.6

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "KHMER", "LAO", "MYANMAR", "TIBETAN")
LETTERS_PER_WORD = {"zh": 2, "ja": 2, "th": 5, "km": 5}  # rough: the bounds below need no more
WORDS = {
    "corpora": {"query": (4, 14), "passage": (20, 80), "long": (150, 350)},
    "evaluation": {"query": (4, 14), "passage": (25, 80), "long": (300, 600)},
}
CODE_LINES = {"corpora": {"passage": (8, 40), "long": (60, 150)}, "evaluation": {"passage": (6, 30)}}
CHARACTERS = {"other": (30, 700), "edge": (1, 64)}
MOST_REPEATS = 512

WORD_GRAM = 8
LETTER_GRAM = 24  # stands in for eight words where words are not separated


@dataclass(frozen=True, slots=True)
class Text:
    """One line of a file; `repeat` is 1 except where an edge text asks for more, `topic` "" in corpora/."""

    id: str
    kind: str
    topic: str
    text: str
    repeat: int
    split: str  # corpora or evaluation
    stratum: str  # the file's name without its suffix
    where: str  # SPLIT/FILE:LINE

    @property
    def language(self) -> str:
        """The ISO 639-1 code, or the stratum where that is no language."""
        return self.id.removeprefix("long-") if self.stratum == "long" else self.stratum


@dataclass(frozen=True, slots=True)
class Defect:
    """One broken rule: its name, the place, and what is wrong there."""

    rule: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}: {self.what}"


def check(folder: Path = HERE) -> tuple[Defect, ...]:
    """Every defect of the texts under `folder` and of their manifest; an empty tuple means they are sound."""
    texts, defects = read(folder)
    defects += text_defects(texts)
    defects += manifest_defects(texts, folder)
    return tuple(defects)


def read(folder: Path) -> tuple[list[Text], list[Defect]]:
    """All texts of both splits in the order of EXPECTED, and what kept files or lines from being read."""
    texts: list[Text] = []
    wanted = {f"{split}/{stratum}.jsonl" for split, stratum in EXPECTED}
    present = {f"{split}/{path.name}" for split in SPLITS for path in (folder / split).glob("*")}
    defects = [Defect("files", name, "no stratum has this name") for name in sorted(present - wanted)]
    for split, stratum in EXPECTED:
        name = f"{split}/{stratum}.jsonl"
        try:
            raw = (folder / name).read_bytes().decode("utf-8")
        except FileNotFoundError:
            defects.append(Defect("files", name, "missing"))
            continue
        except UnicodeDecodeError as error:
            defects.append(Defect("files", name, f"not UTF-8 at byte {error.start}"))
            continue
        lines = raw.split("\n")
        if lines.pop() or lines != raw.splitlines():  # readers may use either, so both must agree
            defects.append(Defect("lines", name, "a line end other than \\n, or none at the end"))
        for number, line in enumerate(lines, 1):
            text = parse(line, split, stratum, f"{name}:{number}")
            if isinstance(text, Defect):
                defects.append(text)
            else:
                texts.append(text)
    return texts, defects


def parse(line: str, split: str, stratum: str, where: str) -> Text | Defect:
    """One line as a Text, or the reason why it is none."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return Defect("json", where, str(error))
    wanted: dict[str, type] = dict.fromkeys(("id", "kind", "text"), str)
    if split == "evaluation":
        wanted["topic"] = str
    needed = ", ".join(wanted)
    if stratum == "edge" and isinstance(row, dict) and "repeat" in row:
        wanted["repeat"] = int
    if not isinstance(row, dict) or {key: type(value) for key, value in row.items()} != wanted:
        return Defect("keys", where, f"an object of {needed} is needed, all of them texts")
    return Text(
        row["id"], row["kind"], row.get("topic", ""), row["text"], row.get("repeat", 1), split, stratum, where
    )


def text_defects(texts: list[Text]) -> list[Defect]:
    """What is wrong with single texts, with the counts, and between texts."""
    defects = [defect for text in texts for defect in single_defects(text)]
    found = Counter((text.split, text.stratum, text.kind) for text in texts)
    wanted = {(*file, kind): count for file, kinds in EXPECTED.items() for kind, count in kinds.items()}
    for key in sorted(found.keys() | wanted.keys()):
        split, stratum, kind = key
        have, want = found[key], wanted.get(key, 0)
        if have != want:
            defects.append(Defect("counts", f"{split}/{stratum}.jsonl", f"{have} of kind {kind}, not {want}"))

    ids: dict[str, Text] = {}
    contents: dict[str, Text] = {}
    owners: dict[str, Text] = {}
    for text in texts:
        if (first := ids.setdefault(text.id, text)) is not text:
            defects.append(Defect("ids", text.where, f"{text.id} is also {first.where}"))
        if (first := contents.setdefault(folded(text.text), text)) is not text:
            rule = "duplicate" if first.split == text.split else "leak"
            defects.append(Defect(rule, text.where, f"the same text as {first.id}"))
            continue
        shared = {owners.setdefault(gram, text): gram for gram in sorted(grams(text.text))}
        shared.pop(text, None)
        for other, gram in shared.items():
            rule = "overlap" if other.split == text.split else "leak"
            defects.append(Defect(rule, text.where, f"shares {gram!r} with {other.id}"))
    return defects


def single_defects(text: Text) -> Iterator[Defect]:
    """What can be told of a text by itself: its id and topic, its normal form, its script and its length."""
    if text.split == "evaluation":
        if text.topic not in topics(text.stratum):
            yield Defect("topics", text.where, f"{text.topic} is no topic of this file")
        elif text.id != (wanted := held_out_id(text)):
            yield Defect("ids", text.where, f"{text.id} should be {wanted}, after its topic and kind")
    elif not text.id.startswith(prefix := text.stratum.removeprefix("code-") + "-"):
        yield Defect("ids", text.where, f"{text.id} does not begin with {prefix}")
    if not unicodedata.is_normalized("NFC", text.text):
        yield Defect("nfc", text.where, "not in Unicode normal form C")
    if text.language in LANGUAGES and text.kind in ("passage", "long"):
        scripts = SCRIPTS.get(text.language, ("LATIN",))
        share = script_share(text.text, scripts)
        if not share >= LEAST_SCRIPT_SHARE:
            yield Defect("script", text.where, f"{share:.2f} of the letters are {'/'.join(scripts)}")
    for size, (least, most), unit in sizes(text):
        if not least <= size <= most:
            yield Defect("length", text.where, f"{size} {unit}, {least} to {most} are allowed")


def topics(stratum: str) -> tuple[str, ...]:
    """The topics of a file of evaluation/: those of every language, or numbered ones of its own."""
    if stratum == "long":
        return tuple(f"long-{language}" for language in LONG)
    if stratum in CODE_STRATA:
        return tuple(f"{stratum}-{number:02}" for number in range(1, len(TOPICS) + 1))
    return TOPICS


def held_out_id(text: Text) -> str:
    """The id that a text of evaluation/ must have: its topic and kind say it, in any language."""
    if text.stratum == "long":
        return text.topic
    topic = text.topic if text.stratum in CODE_STRATA else f"{text.stratum}-{text.topic}"
    return f"{topic}-{text.kind[:1]}"


def sizes(text: Text) -> Iterator[tuple[int, tuple[int, int], str]]:
    """The sizes that are bounded for this kind of text: (size, (least, most), unit)."""
    lines, words_ = CODE_LINES[text.split], WORDS[text.split]
    if text.stratum in CODE_STRATA and text.kind in lines:
        yield text.text.count("\n") + 1, lines[text.kind], "lines"
    elif text.kind in words_:
        per_word = LETTERS_PER_WORD.get(text.language)
        size = len(text.text.split()) if per_word is None else len("".join(text.text.split())) // per_word
        yield size, words_[text.kind], "words"
    elif text.kind in CHARACTERS:
        yield len(text.text), CHARACTERS[text.kind], "characters"
        yield text.repeat, (1, MOST_REPEATS), "repeats"


@cache
def letter(character: str) -> str:
    """The Unicode name of a letter, mark or number, "" for anything else."""
    return unicodedata.name(character, "") if unicodedata.category(character)[0] in "LMN" else ""


def script_share(text: str, scripts: tuple[str, ...]) -> float:
    """The share of letters and marks whose name begins with one of `scripts`; 0 without letters."""
    names = [letter(character) for character in text if unicodedata.category(character)[0] in "LM"]
    return sum(name.startswith(scripts) for name in names) / max(len(names), 1)


def words(text: str) -> list[str]:
    """The words without case, width and punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character if letter(character) else " " for character in plain).split()


@cache
def folded(text: str) -> str:
    """What two texts are compared by; punctuation counts only where there is nothing else."""
    return " ".join(words(text)) or text


@cache
def grams(text: str) -> frozenset[str]:
    """Every run of eight words, and of 24 letters in the scripts that do not separate words."""
    spaced = words(text)
    unspaced = "".join(
        character for word in spaced for character in word if letter(character).startswith(UNSPACED)
    )
    runs = {" ".join(spaced[at : at + WORD_GRAM]) for at in range(len(spaced) - WORD_GRAM + 1)}
    return frozenset(runs) | {
        unspaced[at : at + LETTER_GRAM] for at in range(len(unspaced) - LETTER_GRAM + 1)
    }


def order(texts: list[Text]) -> list[str]:
    """The ids of corpora/ so that any prefix is balanced: over the strata, the languages and the kinds.

    The files of a stratum are shuffled by hash. Their texts are spread evenly over the whole sequence, one
    text of each file a round, and neighbouring files start their rounds with different lines.
    """
    files: dict[str, list[Text]] = {}
    for text in texts:
        if text.split == "corpora":
            files.setdefault(text.stratum, []).append(text)
    groups: dict[str, list[str]] = {}
    for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
        groups.setdefault(group(name), []).append(name)
    places: list[tuple[float, str]] = []
    for names in groups.values():
        for turn, name in enumerate(names):
            lines = files[name]
            for round_ in range(len(lines)):
                place = (round_ + (turn + 0.5) / len(names)) / len(lines)
                places.append((place, lines[(round_ + turn) % len(lines)].id))
    return [identifier for _, identifier in sorted(places)]


def group(stratum: str) -> str:
    """The stratum of quantization's quotas that a file belongs to."""
    if stratum in LANGUAGES:
        return "languages"
    return "code" if stratum.startswith("code-") else stratum


def manifest(texts: list[Text], folder: Path) -> dict[str, Any]:
    """What manifest.json must say of these texts and files."""
    counts = Counter(f"{text.split}/{text.stratum}.jsonl" for text in texts)
    return {
        "schema": SCHEMA,
        "licence": LICENCE,
        **{split: summary([text for text in texts if text.split == split]) for split in SPLITS},
        "files": {
            name: {"texts": counts[name], "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
            for name in sorted(counts)
        },
        "order": order(texts),
    }


def summary(texts: list[Text]) -> dict[str, Any]:
    """How many texts a split has, by stratum and by kind."""
    return {
        "total": len(texts),
        "strata": dict(sorted(Counter(group(text.stratum) for text in texts).items())),
        "kinds": dict(sorted(Counter(text.kind for text in texts).items())),
    }


def manifest_defects(texts: list[Text], folder: Path) -> list[Defect]:
    """Where manifest.json and the files do not say the same."""
    try:
        stored = json.loads((folder / "manifest.json").read_bytes())
        stored_files = dict(stored["files"])
    except FileNotFoundError:
        return [Defect("manifest", "manifest.json", "missing; run check.py --write")]
    except (ValueError, KeyError, TypeError) as error:
        return [Defect("manifest", "manifest.json", f"not a manifest ({type(error).__name__}: {error})")]
    now = manifest(texts, folder)
    defects = [
        Defect("manifest", name, "not as the manifest records it")
        for name in sorted(now["files"].keys() | stored_files.keys())
        if now["files"].get(name) != stored_files.get(name)
    ]
    defects += [
        Defect("manifest", "manifest.json", f"{key} is out of date")
        for key in sorted((now.keys() | stored.keys()) - {"files"})
        if now.get(key) != stored.get(key)
    ]
    return defects


def write_manifest(folder: Path) -> None:
    """Renew manifest.json from the texts as they are; call it on sound texts only."""
    from edge_embed.atomic import write_text  # checking needs a plain Python, writing needs the package

    texts, _ = read(folder)
    write_text(
        folder / "manifest.json", json.dumps(manifest(texts, folder), indent=1, ensure_ascii=False) + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="check the calibration and evaluation texts")
    parser.add_argument("--write", action="store_true", help="renew manifest.json if the texts are sound")
    write = parser.parse_args().write
    defects = check(HERE)
    if write and all(defect.rule == "manifest" for defect in defects):
        write_manifest(HERE)
        defects = check(HERE)
    for defect in defects:
        print(defect, file=sys.stderr)
    texts, _ = read(HERE)
    print(f"{len(texts)} texts in {len(EXPECTED)} files, {len(defects)} defects")
    return EXIT_DEFECTS if defects else 0


if __name__ == "__main__":
    sys.exit(main())
