"""(ids, vectors, kept columns) -> one shard on the disk, whole or not at all; and read again.

    parquet  part-00000.parquet  id, position, kept columns, embedding: FixedSizeList<float32|int8|uint8, D>
    npy      part-00000.npy      (n, D)
             part-00000.jsonl    {"id": ..., "position": ..., kept columns} of each row, in the same order

A position is a row's place in the input, by which the order of several shards can be restored. The only place
that knows how shards are laid out. Does not know where rows come from, nor which shards a job has.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_embed import atomic
from edge_embed.errors import InputError, IntegrityError, ShapeError
from edge_embed.record import file_entries, hash_file

FORMATS = ("parquet", "npy")
DTYPES = ("float32", "int8", "uint8")
TYPES = {str: "string", int: "int64", float: "double", bool: "bool"}  # of kept columns
OURS = ("id", "position", "embedding")
ABOUT = b"edge_embed"  # in the metadata of a Parquet file
ELEMENT = "embedding.list.element"  # what Parquet calls the numbers in the column `embedding`

INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Written:
    """What is on the disk now."""

    files: dict[str, dict[str, str | int]]  # name -> {"sha256": ..., "bytes": ...}; empty without rows
    rows: int


class Shard(NamedTuple):
    """What a shard holds, row by row."""

    ids: list[Any]  # str or int
    positions: NDArray[np.int64]  # (n,)
    vectors: NDArray[Any]  # (n, D) float32, int8 or uint8
    kept: dict[str, list[Any]]


# ---- kept columns


def check_names(names: Sequence[str]) -> None:
    """Refuse a kept column that is called as one of ours. Errors: InputError."""
    for name in names:
        if name in OURS:
            raise InputError(f"the column {name!r} cannot be kept: shards have one of that name; rename it")


def infer(values: Sequence[Any]) -> str:
    """The type of a column: that of its first value that is not None, where a float widens whole numbers.

    string without any value, and for a value that is of no type here; `fit` then refuses it with a reason.
    """
    kinds = [TYPES.get(type(value), "string") for value in values if value is not None]
    if not kinds:
        return "string"
    return "double" if kinds[0] == "int64" and "double" in kinds else kinds[0]


def fit(value: Any, kind: str) -> Any:
    """The value as a column of a type holds it; None fits all, an int fits double, nothing else is converted.

    kind: string, int64, double or bool
    Errors: ValueError with the reason.
    """
    if value is None:
        return None
    if type(value) is int and kind == "double":
        if abs(value) > 2**53:
            raise ValueError(f"{value!r:.40} is a whole number that a double cannot hold exactly")
        return float(value)
    if TYPES.get(type(value)) != kind:
        raise ValueError(f"{value!r:.40} is of type {type(value).__name__}, not {kind}")
    if kind == "int64" and value not in INT64:
        raise ValueError(f"{value!r:.40} does not fit in 64 bits")
    if kind == "string":
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{value!r:.40} is not Unicode text: half a character at {error.start}"
            ) from None
    return value


# ---- writing


def write(
    folder: Path,
    number: int,
    format: str,
    *,
    ids: Sequence[str] | Sequence[int],
    vectors: NDArray[Any],
    kept: Mapping[str, Sequence[Any]],
    kept_types: Mapping[str, str],
    positions: NDArray[np.int64],
    about: Mapping[str, Any],
) -> Written:
    """Write rows as shard `number`, replacing one that is there; without rows, nothing.

    ids        all strings or all whole numbers of 64 bits
    vectors    (n, D) float32, int8 or uint8; packed bits come as (n, D / 8)
    kept       name -> n values; kept_types says string, int64, double or bool for each
    positions  (n,) int64
    about      JSON values that a Parquet file carries along, for whoever finds it alone

    A process that is killed leaves at most the .jsonl without its .npy. In a .jsonl a NaN or an infinity of a
    kept column is null, since JSON has neither.
    Errors: InputError for rows that cannot be written as they are, or without pyarrow; OutputError for the
    disk.
    """
    if format not in FORMATS:
        raise InputError(f"the format {format!r} is not known; known: {', '.join(FORMATS)}")
    columns = checked(ids, vectors, kept, kept_types, positions)
    if not len(vectors):
        return Written({}, 0)
    stem = f"part-{number:05d}"
    if format == "parquet":
        names = [f"{stem}.parquet"]
        write_parquet(folder / names[0], columns, {"id": infer(ids), **kept_types}, vectors, about)
    else:
        names = [f"{stem}.jsonl", f"{stem}.npy"]
        write_jsonl(folder / names[0], columns)
        with atomic.writing(folder / names[1]) as file:
            write_npy(file, vectors)
    return Written(file_entries(folder, names), len(vectors))


def checked(
    ids: Sequence[Any],
    vectors: NDArray[Any],
    kept: Mapping[str, Sequence[Any]],
    kept_types: Mapping[str, str],
    positions: NDArray[np.int64],
) -> dict[str, list[Any]]:
    """The columns beside the vectors, in order, when all rows can be written. Errors: InputError."""
    check_names(list(kept))
    if kept.keys() != kept_types.keys():
        raise InputError(f"the columns {sorted(kept.keys() ^ kept_types.keys())} lack values or a type")
    if vectors.ndim != 2 or vectors.dtype.name not in DTYPES:
        raise ShapeError(f"vectors are {vectors.shape} {vectors.dtype}, not (n, D) {', '.join(DTYPES)}")
    if positions.ndim != 1 or positions.dtype != np.int64:
        raise ShapeError(f"positions are {positions.shape} {positions.dtype}, not (n,) int64")
    sizes = {"id": len(ids), "position": len(positions)} | {name: len(kept[name]) for name in kept}
    for name, size in sizes.items():
        if size != len(vectors):
            raise ShapeError(f"{len(vectors)} vectors, but {size} values of {name!r}")
    id_kind = infer(ids)
    if id_kind not in ("string", "int64") or None in ids:
        raise InputError("an id is missing, or neither a string nor a whole number")
    columns = {"id": fitted("id", ids, id_kind), "position": positions.tolist()}
    return columns | {name: fitted(name, values, kept_types[name]) for name, values in kept.items()}


def fitted(name: str, values: Sequence[Any], kind: str) -> list[Any]:
    """The values of a column, each of which fits its type. Errors: InputError that names the column."""
    if kind not in TYPES.values():
        raise InputError(f"{name!r} has the type {kind!r}; known: {', '.join(TYPES.values())}")
    try:
        return [fit(value, kind) for value in values]
    except ValueError as error:
        raise InputError(f"{name!r}: {error}") from None


def write_parquet(
    target: Path,
    columns: Mapping[str, list[Any]],
    types: Mapping[str, str],
    vectors: NDArray[Any],
    about: Mapping[str, Any],
) -> None:
    """One row group, compressed, the numbers of the vectors in the encoding that makes them smallest.

    4,096 vectors of all-MiniLM-L6-v2 take 6.3 MB as they are, 5.8 with zstd, 5.3 with zstd over byte planes;
    the last takes some 10 ms longer than the first to write, and the embedding a minute. Parquet has no int8
    but in four bytes: 2.2 MB with zstd, 1.5 over a dictionary, which has 256 entries at most.
    """
    pyarrow = import_pyarrow()
    from pyarrow import parquet

    arrays = {name: pyarrow.array(columns[name], types.get(name, "int64")) for name in columns}
    flat = pyarrow.array(np.ascontiguousarray(vectors).reshape(-1))  # no copy
    arrays["embedding"] = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = pyarrow.table(arrays).replace_schema_metadata({ABOUT: json.dumps(dict(about))})
    floats = vectors.dtype == np.float32
    with atomic.writing(target) as file:
        parquet.write_table(
            table,
            file,
            row_group_size=len(vectors),
            compression="zstd",
            use_dictionary=[*columns] if floats else [*columns, ELEMENT],
            column_encoding={ELEMENT: "BYTE_STREAM_SPLIT"} if floats else None,
            write_statistics=[*columns],
        )


def write_jsonl(target: Path, columns: Mapping[str, list[Any]]) -> None:
    """A JSON object for each row."""
    with atomic.writing(target) as file:
        for values in zip(*columns.values(), strict=True):
            row = {name: json_value(value) for name, value in zip(columns, values, strict=True)}
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def json_value(value: Any) -> Any:
    """The value, or None where JSON has no word for it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_npy(file: BinaryIO, vectors: NDArray[Any]) -> None:
    """As numpy.save, which on a full disk would tell how many bytes were written but not why."""
    rows = np.ascontiguousarray(vectors)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(rows))
    file.write(rows.data)


def import_pyarrow(what: str = "Parquet") -> Any:
    """pyarrow, which is an extra; `what` needs it."""
    try:
        import pyarrow
    except ImportError:
        raise InputError(f"{what} needs pyarrow: pip install 'edge-embed[batch]'") from None
    return pyarrow


# ---- reading


def read(folder: Path, name: str) -> Shard:
    """The rows of a shard by the name of its .parquet, .npy or .jsonl file, in the order of the file.

    Errors: IntegrityError when a file is missing, cut, or not a shard; InputError without pyarrow.
    """
    path = folder / name
    try:
        shard = read_parquet(path) if path.suffix == ".parquet" else read_npy(path)
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, EOFError) as error:
        raise IntegrityError(f"{path} cannot be read as a shard: {error}; write it again") from error
    if not len(shard.ids) == len(shard.positions) == len(shard.vectors):
        raise IntegrityError(
            f"{path}: {len(shard.vectors)} vectors of {len(shard.ids)} rows; write the shard again"
        )
    return shard


def read_parquet(path: Path) -> Shard:
    """`read` of one .parquet file."""
    pyarrow = import_pyarrow()
    from pyarrow import parquet

    table = parquet.ParquetFile(path).read()
    embedding = table["embedding"].combine_chunks()
    if not pyarrow.types.is_fixed_size_list(embedding.type):
        raise ValueError(f"embedding is {embedding.type}")
    vectors = embedding.flatten().to_numpy().reshape(len(embedding), embedding.type.list_size)
    kept = {name: table[name].to_pylist() for name in table.column_names if name not in OURS}
    return Shard(table["id"].to_pylist(), table["position"].to_numpy(), vectors, kept)


def read_npy(path: Path) -> Shard:
    """`read` of an .npy file and the .jsonl beside it."""
    vectors = np.load(path.with_suffix(".npy"))
    rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_bytes().splitlines()]
    names = [name for name in rows[0] if name not in OURS]
    return Shard(
        [row["id"] for row in rows],
        np.array([row["position"] for row in rows], np.int64),
        vectors,
        {name: [row[name] for row in rows] for name in names},
    )


def verify(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each file that is not as `write` recorded it; sizes are compared before sha256."""
    problems = []
    for name, recorded in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != recorded["bytes"]:
                problems.append(f"{name} has {size} bytes, recorded {recorded['bytes']}")
            elif (found := hash_file(path)) != recorded["sha256"]:
                problems.append(f"{name} has sha256 {found}, recorded {recorded['sha256']}")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror or error}")
    return problems
