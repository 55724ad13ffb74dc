"""What several commands share: the model's arguments, reading texts, writing vectors. Knows no command."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edge_embed import atomic
from edge_embed.errors import InputError
from edge_embed.plan import COMPUTE_TYPES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_embed.embedder import Embedder

    Vectors = NDArray[np.float32] | NDArray[np.int8] | NDArray[np.uint8]

DEFAULT_MODEL = "granite-embedding-311m-multilingual-r2"
OUTPUT_SUFFIXES = (".npy", ".jsonl", ".parquet")
TEXT_COLUMN = "text"

# About a second of work for the default model; below that a progress bar would only flash.
CHARACTERS_WORTH_A_BAR = 10_000

SURROGATE = re.compile(r"[\ud800-\udfff]")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """-m and how to run it, as the Embedder takes it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m", "--model", default=DEFAULT_MODEL, help="folder, name or hub id (default: %(default)s)"
    )
    group.add_argument(
        "--compute-type",
        choices=("auto", *COMPUTE_TYPES),
        default="auto",
        metavar="TYPE",
        help="%(choices)s (default: %(default)s)",
    )
    group.add_argument(
        "--device", default="CPU", help="CPU, GPU, NPU or AUTO, as OpenVINO names them (default: %(default)s)"
    )
    group.add_argument(
        "--truncate-dim", type=int, metavar="N", help="keep the first N dimensions, re-normalised"
    )
    group.add_argument(
        "--max-tokens", type=int, metavar="N", help="cut texts to N tokens (default: the model's own limit)"
    )
    group.add_argument(
        "--threads", type=int, metavar="N", help="inference threads (default: the physical cores we may use)"
    )
    group.add_argument(
        "--streams",
        type=int,
        metavar="N",
        help="inferences at once, sharing the threads (default: by compute type)",
    )


def open_embedder(args: argparse.Namespace) -> "Embedder":
    """The Embedder that the arguments of `add_model_arguments` describe."""
    from edge_embed.embedder import Embedder

    return Embedder(
        args.model,
        compute_type=args.compute_type,
        device=args.device,
        truncate_dim=args.truncate_dim,
        max_tokens=args.max_tokens,
        threads=args.threads,
        streams=args.streams,
    )


def wants_bar(texts: Sequence[str]) -> bool:
    """Whether to show progress: someone is watching, and it takes long enough."""
    watched = sys.stderr is not None and sys.stderr.isatty()
    return watched and sum(map(len, texts)) >= CHARACTERS_WORTH_A_BAR


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """How texts are read from a file."""
    group = parser.add_argument_group("texts")
    group.add_argument(
        "--format",
        choices=("lines", "jsonl"),
        help="one text a line, or one JSON object a line (default: jsonl for *.jsonl, *.ndjson and when a "
        "column is named, else lines)",
    )
    group.add_argument(
        "--text-column", metavar="KEY", help=f"key of the text in JSONL (default: {TEXT_COLUMN})"
    )
    group.add_argument(
        "--id-column", metavar="KEY", help="key of the id in JSONL (default: the line's number, from 0)"
    )


def read_texts(source: str, args: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """(ids, texts) of a file, or of stdin for "-"; ids are all int or all str.

    Every line is a row, also an empty one, so that row i of the output belongs to line i of the input.
    Errors: InputError for a file that is not there or not UTF-8, with the byte; for a JSONL row that is not
    an object with a text, with the line.
    """
    name = "stdin" if source == "-" else source
    lines = read_lines(source, name)
    by_name = Path(source).suffix in (".jsonl", ".ndjson") or args.text_column or args.id_column
    if args.format == "lines" or (args.format is None and not by_name):
        return list(range(len(lines))), lines
    column = args.text_column or TEXT_COLUMN
    rows = list(parse_rows(name, lines, column))
    ids = check_ids(name, rows, args.id_column) if args.id_column else list(range(len(rows)))
    return ids, [row[column] for row in rows]


def read_lines(source: str, name: str) -> list[str]:
    """Lines without their ends, and without the byte order mark that some editors put first."""
    try:
        data = read_stdin() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from None
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name} is not UTF-8: byte {data[error.start]:#04x} at {error.start}, line {line}"
        ) from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def read_stdin() -> bytes:
    """All of stdin; a person in front of an empty terminal is told what we wait for."""
    if sys.stdin is None:
        raise InputError("stdin is closed; name a file of texts")
    if sys.stdin.isatty():
        print("edge-embed: reading texts from the terminal, one a line, to the end (Ctrl-D)", file=sys.stderr)
    return sys.stdin.buffer.read()


def parse_rows(name: str, lines: Sequence[str], column: str) -> Iterator[dict[str, Any]]:
    """JSON objects with a text in `column`."""
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            where = f"{name}, line {number}, column {error.colno}"
            raise InputError(f"{where} is not JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits; 100,000 brackets
            raise InputError(f"{name}, line {number} cannot be read as JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{name}, line {number} is a JSON {type(row).__name__}, not an object")
        if not isinstance(row.get(column), str):
            has = f"is {type(row[column]).__name__}" if column in row else f"is not among {list(row)[:8]}"
            raise InputError(f"{name}, line {number} has no text: {column!r} {has}; see --text-column")
        yield row


def check_ids(name: str, rows: Sequence[dict[str, Any]], column: str) -> list[Any]:
    """The ids of JSONL rows: all strings or all whole numbers, as one column of a table can hold them."""
    ids = [row.get(column) for row in rows]
    for number, found in enumerate(ids, 1):
        whole = type(found) is int and -(2**63) <= found < 2**63
        if not whole and not (isinstance(found, str) and not SURROGATE.search(found)):
            wrong = json.dumps(found)[:40] if column in rows[number - 1] else "missing"
            raise InputError(
                f"{name}, line {number}: the id {column!r} is {wrong}; it must be a string or a whole number"
            )
        if type(found) is not type(ids[0]):
            raise InputError(
                f"{name}, line {number}: the id {json.dumps(found)[:40]} is not of the kind of line 1, "
                f"{json.dumps(ids[0])[:40]}; use strings only or whole numbers only"
            )
    return ids


def check_output(target: Path, source: str) -> None:
    """Refuse vectors in a form that is not known, and what `check_target` refuses."""
    if target.suffix not in OUTPUT_SUFFIXES:
        raise InputError(f"{target} ends in {target.suffix!r}; known: {', '.join(OUTPUT_SUFFIXES)}")
    check_target(target, source)
    if target.suffix == ".parquet":
        from edge_embed import shards

        shards.import_pyarrow()


def check_target(target: Path, source: str = "") -> None:
    """Refuse an output that cannot be written, or that would replace the input, before the work is done."""
    folder = target.parent
    try:
        if not folder.is_dir():
            wrong = "is not a folder" if folder.exists() else "does not exist; make that folder first"
            raise InputError(f"cannot write {target}: {folder} {wrong}")
        if not os.access(folder, os.W_OK):
            raise InputError(f"cannot write {target}: {folder} may not be written to; name another folder")
        if target.exists():
            if not target.is_file():
                raise InputError(f"cannot write {target}: it is not a regular file; name another output")
            if Path(source).exists() and target.samefile(source):
                raise InputError(f"{target} is the input as well; name another output")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None


def write_vectors(target: Path, ids: Sequence[Any], rows: "Vectors") -> None:
    """Write (N, D) vectors as the suffix says: .npy, .jsonl or .parquet (columns id and embedding)."""
    from edge_embed import shards

    with atomic.writing(target) as file:
        if target.suffix == ".npy":
            shards.write_npy(file, rows)
        elif target.suffix == ".parquet":
            write_parquet(file, ids, rows)
        else:
            for line in jsonl_rows(ids, rows):
                file.write(line.encode() + b"\n")


def write_parquet(file: BinaryIO, ids: Sequence[Any], rows: "Vectors") -> None:
    """Columns `id` and `embedding`, a list of fixed size."""
    from edge_embed import shards

    pyarrow = shards.import_pyarrow()
    from pyarrow import parquet

    kind = pyarrow.string() if ids and isinstance(ids[0], str) else pyarrow.int64()
    embedding = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
    table = pyarrow.table({"id": pyarrow.array(ids, kind), "embedding": embedding})
    parquet.write_table(table, file)


def jsonl_rows(ids: Sequence[Any], rows: "Vectors") -> Iterator[str]:
    """{"id": ..., "embedding": [...]} of each row; 9 digits, with which every float32 reads back exactly."""
    value = "%.9g" if rows.dtype.kind == "f" else "%d"
    embedding = f"[{', '.join([value] * rows.shape[1])}]"
    for i, row in zip(ids, rows, strict=True):
        values = embedding % tuple(row.tolist())
        yield f'{{"id": {json.dumps(i, ensure_ascii=False)}, "embedding": {values}}}'
