"""Real text that every machine has: the docstrings of Python's standard library. Knows nothing of models."""

import ast
import functools
import gc
import itertools
import os
import random
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# Tests, demos, GUIs, tables, and what newer Pythons no longer have.
SKIPPED = frozenset(
    {
        "distutils",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "test",
        "tests",
        "tkinter",
        "turtle",
        "turtledemo",
    }
)
SHORTEST = 32  # characters; below it stands "Return self." and the like
SHORT = 100  # characters, below which a text is one line,
ATTEMPTS = 100  # to find a new text of a length
LEAST_LINE = 20  # of so many at least
CHARACTERS_PER_TOKEN = 4.0  # of these docstrings in BERT's uncased vocabulary

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Passage(NamedTuple):
    name: str  # qualified, such as subprocess.Popen.communicate
    text: str


def docstrings(limit: int | None = None) -> list[Passage]:
    """The docstrings of the public modules, classes and functions, each text once; the same on every call.

    They come in rounds, one passage of every module per round, so that a limit still covers all modules, and
    from the outside in: what a module says first, then its functions and classes, then their methods.
    """
    rounds = itertools.zip_longest(*_by_module())
    passages = (passage for one_round in rounds for passage in one_round if passage is not None)
    return list(itertools.islice(_distinct(passages), limit))


def mixed(count: int, *, seed: int = 0, characters_per_token: float = CHARACTERS_PER_TOKEN) -> list[str]:
    """`count` different texts: half below some 60 tokens, a tenth above 160, one in fifty of 500 to 800.

    A length is drawn first. A short one becomes a line of a docstring, as a query would be; any other
    as many neighbouring docstrings as it takes, whole, so that the text ends near the length.

    characters_per_token  of the model at hand, for which the lengths then hold
    """
    chance = random.Random(seed)
    passages = list(_distinct(itertools.chain.from_iterable(_by_module())))
    texts: dict[str, None] = {}  # a set that keeps its order
    for _ in range(2 * count):
        length = _length(chance, characters_per_token)
        for _ in range(ATTEMPTS):
            text = _text_of_length(passages, chance.randrange(len(passages)), length, chance)
            # Not one that starts with a docstring longer than was drawn.
            if len(text) <= 1.2 * length and text not in texts:
                texts[text] = None
                break
        if len(texts) == count:
            return list(texts)
    raise ValueError(f"the standard library gave {len(texts)} different texts, not {count}; ask for fewer")


def _length(chance: random.Random, characters_per_token: float) -> float:
    """Characters. Log-normal, as lengths of real text are; one in fifty is a long one."""
    tokens = chance.uniform(500, 800) if chance.random() < 0.02 else chance.lognormvariate(4.15, 0.7)
    return max(2 * LEAST_LINE, min(tokens, 800) * characters_per_token)


def _text_of_length(passages: list[Passage], start: int, length: float, chance: random.Random) -> str:
    text = passages[start].text
    if length < SHORT:
        lines = [line.strip() for line in text.splitlines()]
        return chance.choice([line for line in lines if len(line) >= LEAST_LINE] or lines)
    for _, other in itertools.islice(passages, start + 1, None):
        if len(text) + len(other) / 2 > length:
            break
        text = f"{text}\n\n{other}"
    return text


def _distinct(passages: Iterable[Passage]) -> Iterator[Passage]:
    seen = set()
    for passage in passages:
        if passage.text not in seen:
            seen.add(passage.text)
            yield passage


@functools.cache
def _by_module() -> list[list[Passage]]:
    library = Path(sysconfig.get_path("stdlib"))
    collecting = gc.isenabled()
    gc.disable()  # syntax trees are millions of objects without cycles: a third of the time otherwise
    try:
        return [_passages(file, library) for file in _modules(library)]
    finally:
        if collecting:
            gc.enable()


def _modules(library: Path) -> list[Path]:
    """The files of modules whose dotted name is public, folder by folder."""
    files: list[Path] = []
    for folder, inside, names in os.walk(library):
        inside[:] = sorted(filter(_is_public, inside))
        files += [Path(folder, name) for name in sorted(names) if _is_source(name)]
    return files


def _is_source(name: str) -> bool:
    stem, _, suffix = name.partition(".")
    return suffix == "py" and (stem == "__init__" or _is_public(stem))


def _is_public(part: str) -> bool:
    return part.isidentifier() and not part.startswith("_") and part not in SKIPPED


def _dotted(file: Path, library: Path) -> str:
    *folders, stem = file.relative_to(library).with_suffix("").parts
    return ".".join(folders if stem == "__init__" else [*folders, stem])


def _passages(file: Path, library: Path) -> list[Passage]:
    """Breadth first: the module, its functions and classes, their methods."""
    passages = []
    level: list[tuple[str, Documented]] = [(_dotted(file, library), ast.parse(file.read_bytes()))]
    while level:
        inner: list[tuple[str, Documented]] = []
        for name, node in level:
            text = ast.get_docstring(node)
            if text and len(text) >= SHORTEST:
                passages.append(Passage(name, text))
            if isinstance(node, ast.Module | ast.ClassDef):
                inner += [
                    (f"{name}.{child.name}", child)
                    for child in node.body
                    if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                    and not child.name.startswith("_")
                ]
        level = inner
    return passages
