"""Real text that a Debian machine has, as a Parquet file of {"id", "text", "source"} for a real batch job.

    python -m bench.system_corpus OUT.parquet --rows 100000

    package    descriptions of packages, those installed and those that the lists of apt offer
    manual     manual pages, in the languages that are installed
    doc        READMEs, news and guides in /usr/share/doc
    licence    licences and copyright notices
    docstring  of the modules, classes and functions of Python's library and of installed packages
    comment    blocks of whole-line comments in the same files
    readme     Markdown and reStructuredText that came with installed packages

Descriptions, docstrings and comments are rows as they are; of files, neighbouring paragraphs are joined until
they have some three hundred characters.

Reads files only; `apt-get update` beforehand makes the first source the largest. Takes each text once, and on
an unchanged machine gives the same rows in the same order on every call. Knows nothing of models.
"""

import argparse
import ast
import collections
import gzip
import itertools
import lzma
import os
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm import tqdm

SHORTEST, LONGEST = 40, 2_000  # characters of a row
ENOUGH = 300  # characters, from which on no paragraph is added to those before it
PROSE = 0.75  # of the characters are letters or spaces; below it stand tables, code and lists of files
APT_HELPER = Path("/usr/lib/apt/apt-helper")  # unpacks whatever compression apt keeps its lists in

Item = TypeVar("Item")
Found = Iterator[tuple[str, Iterable[str]]]  # the name of a file or package, neighbouring paragraphs of it


class Row(NamedTuple):
    id: str  # such as manual/man1/ls.1.gz#3
    text: str  # SHORTEST to LONGEST characters, different from all others
    source: str


class Machine(NamedTuple):
    """Where to look. A test has its own."""

    root: Path
    library: Path  # Python's
    packages: Path  # installed ones, which may lie in the library


HERE = Machine(Path("/"), Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")))


def rows(machine: Machine) -> Iterator[Row]:
    """All rows, in rounds of one from each source, so that the first thousands have every kind of text."""
    rounds = itertools.zip_longest(*(_of_source(name, find(machine)) for name, find in SOURCES.items()))
    seen = set()
    for row in itertools.chain.from_iterable(rounds):
        if row is not None and row.text not in seen:
            seen.add(row.text)
            yield row


def _of_source(source: str, found: Found) -> Iterator[Row]:
    seen: set[str] = set()
    numbers = collections.Counter[str]()
    for name, paragraphs in found:
        fresh = [paragraph for paragraph in dict.fromkeys(paragraphs) if paragraph not in seen]
        seen.update(fresh)
        for text in _passages(fresh):
            if len(text) >= SHORTEST:
                numbers[name] += 1
                yield Row(f"{source}/{name}#{numbers[name]}", text, source)


def _passages(paragraphs: Iterable[str]) -> Iterator[str]:
    """Neighbouring paragraphs as one text, which is done as soon as it has ENOUGH characters."""
    text = ""
    for paragraph in paragraphs:
        if len(paragraph) > LONGEST or not _is_prose(paragraph):
            continue
        if len(text) + len("\n\n") + len(paragraph) > LONGEST:
            yield text
            text = ""
        text = f"{text}\n\n{paragraph}".strip()
        if len(text) >= ENOUGH:
            yield text
            text = ""
    yield text


def _is_prose(text: str) -> bool:
    """All of the scripts beyond Latin counts as letters, since their vowel signs are none for Python."""
    return sum(c.isalpha() or c.isspace() or c > "\u02ff" for c in text) >= PROSE * len(text)


# ---- files


def _files(folder: Path, wanted: Callable[[Path], bool], skipped: frozenset[str] = frozenset()) -> list[Path]:
    """Files below a folder in an order that is the same on every call, yet mixes the folders.

    Links are left out: what they lead to is found where it lies.
    """
    files = []
    for place, inside, names in os.walk(folder):
        inside[:] = [name for name in inside if name not in skipped]
        files += [path for name in names if wanted(path := Path(place, name)) and not path.is_symlink()]
    return _mixed(sorted(files))


def _mixed(items: Iterable[Item]) -> list[Item]:
    mixed = list(items)
    random.Random(0).shuffle(mixed)
    return mixed


def _text(path: Path) -> str:
    """What a file says, unpacked; nothing where it cannot be read or is not UTF-8."""
    try:
        if path.suffix in (".lz4", ".zst"):
            command = [str(APT_HELPER), "cat-file", str(path)]
            return subprocess.run(command, check=True, capture_output=True).stdout.decode()
        unpacked = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)
        return unpacked(path.read_bytes()).decode()
    except (OSError, EOFError, ValueError, lzma.LZMAError, subprocess.CalledProcessError):
        return ""


def _paragraphs(text: str) -> Iterator[str]:
    """Blocks between blank lines, each on one line."""
    return (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))


def _whole(text: str) -> list[str]:
    """A text as it is, if it fits in a row; else its paragraphs."""
    return [text] if len(text) <= LONGEST else text.split("\n\n")


# ---- Debian


def _packages(machine: Machine) -> Found:
    status = machine.root / "var/lib/dpkg/status"
    lists = machine.root / "var/lib/apt/lists"
    files = [path for path in sorted(lists.glob("*")) if re.search(r"_(Packages|Translation-en)", path.name)]
    found = dict.fromkeys(item for path in [status, *files] for item in _stanzas(_text(path)))
    for name, text in _mixed(found):
        yield name, _whole(text)


def _stanzas(text: str) -> Iterator[tuple[str, str]]:
    """(package, "name: synopsis" and the description below it, where a list has one)."""
    for stanza in text.split("\n\n"):
        name = re.search(r"^Package: (.+)$", stanza, re.MULTILINE)
        description = re.search(r"^Description(?:-en)?: (.+(?:\n .*)*)", stanza, re.MULTILINE)
        if name and description:
            synopsis, *lines = description[1].split("\n")
            body = "\n".join("" if line.strip() == "." else line.strip() for line in lines)
            yield name[1], f"{name[1]}: {synopsis}\n\n{body}".strip()


def _manuals(machine: Machine) -> Found:
    folder = machine.root / "usr/share/man"
    for path in _files(folder, lambda path: path.parent.name.startswith("man")):
        yield path.relative_to(folder).as_posix(), roff_paragraphs(_text(path))


VERBATIM = {"nf": "fi", "EX": "EE", "TS": "TE", "de": ".", "ig": "."}  # what opens -> what closes
BREAKS = frozenset({"SH", "SS", "PP", "P", "LP", "TP", "TQ", "IP", "HP", "RS", "RE", "sp", "TH"})
FONTS = frozenset({"B", "I", "SM", "SB"})  # of words
ALTERNATING = frozenset({"BI", "BR", "IB", "IR", "RB", "RI"})  # of the parts of one word
ESCAPE = re.compile(
    r"""\\(?: f(?:\(..|\[[^]]*\]|.) | s[+-]?\d       # font and size
          | \((?P<two>..) | \[(?P<long>[^]]*)\]     # a character by its name
          | \*(?:\(..|\[[^]]*\]|.)                 # a string that the page defines
          | (?P<one>.?) )""",
    re.VERBOSE,
)
NAMES = ("aq", "dq", "oq", "cq", "lq", "rq", "em", "en", "bu", "-", "'", "`", ".", "e", "\\", "~", " ", "0")
CHARACTERS = dict(zip(NAMES, "'\"‘’“”—–•-'`.\\\\   ", strict=True))


def roff_paragraphs(page: str) -> Iterator[str]:
    """Paragraphs of a manual page that is written in the man macros, without fonts, examples and tables.

    Pages in the mdoc macros give none: there macros stand for words.
    """
    if re.search(r"^\.Dd", page, re.MULTILINE):
        return
    words: list[str] = []
    closing = None
    for line in page.split("\n"):
        request = re.match(r"[.'][ \t]*([A-Za-z]+|\.)?[ \t]*(.*)", line)
        name, rest = (request[1], request[2]) if request else (None, line)
        if closing:
            closing = None if name == closing else closing
            continue
        closing = VERBATIM.get(name or "")
        if closing or name in BREAKS or not line.strip():
            yield " ".join(" ".join(words).split())
            words = []
        elif not request or name in FONTS:
            words.append(_unescaped(rest if not request else rest.replace('"', "")))
        elif name in ALTERNATING:
            arguments = re.findall(r'"([^"]*)"|(\S+)', rest.replace(r"\ ", "\\~"))
            words.append(_unescaped("".join(quoted or plain for quoted, plain in arguments)))
    yield " ".join(" ".join(words).split())


def _unescaped(text: str) -> str:
    return ESCAPE.sub(_character, text.partition('\\"')[0])


def _character(escape: re.Match[str]) -> str:
    return CHARACTERS.get(escape["one"] or escape["two"] or escape["long"] or "", "")


def _docs(machine: Machine) -> Found:
    """READMEs, news and guides. Changelogs repeat themselves, copyright notices are a source of their own."""
    folder = machine.root / "usr/share/doc"

    def wanted(path: Path) -> bool:
        name = path.name.removesuffix(".gz").lower()
        plain = name.endswith((".txt", ".md", ".rst", ".debian")) or "." not in name
        return plain and not name.startswith(("changelog", "changes", "copyright"))

    for path in _files(folder, wanted):
        yield path.relative_to(folder).as_posix(), _paragraphs(_text(path))


def _licences(machine: Machine) -> Found:
    share = machine.root / "usr/share"
    roots = (
        (share / "common-licenses", lambda path: True),
        (share / "doc", lambda path: path.name == "copyright"),
        (machine.packages, lambda path: path.name.lower().startswith(("licen", "copying", "notice"))),
    )
    for folder, wanted in roots:
        for path in _files(folder, wanted):
            if path.suffix in ("", ".txt", ".md", ".rst"):
                # The dots of copyright files stand for blank lines.
                text = re.sub(r"^ \.$", "", _text(path), flags=re.MULTILINE)
                yield path.relative_to(folder.parent).as_posix(), _paragraphs(text)


# ---- Python


def _python(machine: Machine) -> Iterator[tuple[str, str]]:
    """(name, source) of Python files, those of the library and of packages in turns."""
    skipped = frozenset({"__pycache__", "site-packages", "dist-packages"})
    libraries = (machine.library, machine.packages)
    found = (_files(folder, lambda path: path.suffix == ".py", skipped) for folder in libraries)
    for paths in itertools.zip_longest(*found):
        for folder, path in zip(libraries, paths, strict=True):
            if path is not None:
                yield path.relative_to(folder).as_posix(), _text(path)


def _docstrings(machine: Machine) -> Found:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for name, source in _python(machine):
        try:
            with warnings.catch_warnings(action="ignore"):  # "\d" in other people's strings
                tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # for other Pythons, or broken on purpose
        for node in ast.walk(tree):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                yield name, _whole(text)


def _comments(machine: Machine) -> Found:
    for name, source in _python(machine):
        for block in re.findall(r"(?:^[ \t]*#.*\n)+", source, re.MULTILINE):
            lines = (line.strip().lstrip("#!:").strip() for line in block.splitlines())
            yield name, _whole("\n".join(lines).strip())


def _readmes(machine: Machine) -> Found:
    """METADATA is the README of a package, below a header that ends at the first blank line."""

    def wanted(path: Path) -> bool:
        licence = path.name.lower().startswith(("licen", "copying", "notice"))
        return not licence and (path.suffix in (".md", ".rst") or path.name == "METADATA")

    for path in _files(machine.packages, wanted):
        text = _text(path)
        if path.name == "METADATA":
            text = text.partition("\n\n")[2]
        text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        yield path.relative_to(machine.packages).as_posix(), _paragraphs(text)


SOURCES: dict[str, Callable[[Machine], Found]] = {
    "package": _packages,
    "manual": _manuals,
    "doc": _docs,
    "licence": _licences,
    "docstring": _docstrings,
    "comment": _comments,
    "readme": _readmes,
}


# ---- the file


def write(target: Path, count: int, machine: Machine) -> list[Row]:
    """Write the first `count` rows as Parquet. Errors: ValueError, and no file, where there are fewer."""
    import pyarrow
    from pyarrow import parquet

    found = list(tqdm(itertools.islice(rows(machine), count), "Reading", count, unit="row", unit_scale=True))
    if len(found) < count:
        raise ValueError(f"this machine gave {len(found)} rows, not {count}; ask for fewer")
    columns = zip(Row._fields, zip(*found, strict=True), strict=True)
    parquet.write_table(pyarrow.table(dict(columns)), target, compression="zstd")
    return found


def summary(found: Sequence[Row]) -> str:
    """A line for each source and one for all: rows, and characters at the median and the 90th percentile."""
    lines = [f"{'source':10}{'rows':>9}{'median':>9}{'p90':>7}  characters"]
    for source in [*SOURCES, "all"]:
        lengths = [len(row.text) for row in found if source in (row.source, "all")]
        if len(lengths) > 1:
            median, p90 = statistics.median(lengths), statistics.quantiles(lengths, n=10)[-1]
            lines.append(f"{source:10}{len(lengths):9,}{median:9,.0f}{p90:7,.0f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.system_corpus", description="Real text.")
    parser.add_argument("target", type=Path, metavar="OUT.parquet")
    parser.add_argument("--rows", type=int, default=100_000)
    args = parser.parse_args(argv)
    try:
        print(summary(write(args.target, args.rows, HERE)))
    except ValueError as error:
        sys.exit(f"system_corpus: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
