"""shards.py as pyarrow, pandas, numpy and DuckDB read it, and under kills, full disks and bad columns."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edge_embed
from edge_embed import shards
from edge_embed.errors import InputError, IntegrityError, OutputError, ShapeError

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits, permissions and signals")

IDS = ["b", "größe", "漢字", "", "a\nb\u2028\x00"]
POSITIONS = np.array([7, 3, 12, 5, 2**40], np.int64)
KEPT: dict[str, list[Any]] = {
    "title": ["x", None, "नमस्ते", '"\\', ""],
    "count": [1, None, -(2**63), 2**63 - 1, 0],
    "score": [0.1, 2, None, 1e300, -0.0],
    "seen": [True, False, None, True, False],
}
TYPES = {"title": "string", "count": "int64", "score": "double", "seen": "bool"}
ABOUT = {"model": "größe", "options": {"truncate_dim": None, "precision": "float32"}}
NAMES = {"parquet": ["part-00003.parquet"], "npy": ["part-00003.jsonl", "part-00003.npy"]}
ELEMENTS = {"float32": pa.float32(), "int8": pa.int8(), "uint8": pa.uint8()}


def numbers(dtype: str, rows: int = 5, dim: int = 24) -> NDArray[Any]:
    """All bits of a type, with its ends; unit rows for float32."""
    rng = np.random.default_rng(0)
    if dtype == "float32":
        found: NDArray[Any] = rng.normal(size=(rows, dim)).astype(np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found
    ends = np.iinfo(dtype)
    found = rng.integers(ends.min, ends.max + 1, (rows, dim)).astype(dtype)
    found[0, :2] = ends.min, ends.max
    return found


def write(folder: Path, format: str, vectors: NDArray[Any] | None = None, **changed: Any) -> shards.Written:
    values: dict[str, Any] = {
        "ids": IDS,
        "vectors": numbers("float32") if vectors is None else vectors,
        "kept": KEPT,
        "kept_types": TYPES,
        "positions": POSITIONS,
        "about": ABOUT,
    }
    return shards.write(folder, 3, format, **values | changed)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# as others read it


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_pyarrow_reads_equal_values_of_the_exact_types(tmp_path: Path, dtype: str) -> None:
    vectors = numbers(dtype)
    write(tmp_path, "parquet", vectors)
    table = pq.read_table(tmp_path / "part-00003.parquet")
    assert table.schema.names == ["id", "position", "title", "count", "score", "seen", "embedding"]
    kinds = [pa.string(), pa.int64(), pa.string(), pa.int64(), pa.float64(), pa.bool_()]
    assert table.schema.types == [*kinds, pa.list_(ELEMENTS[dtype], 24)]
    assert table["id"].to_pylist() == IDS
    assert table["position"].to_pylist() == POSITIONS.tolist()
    assert {name: table[name].to_pylist() for name in KEPT} == KEPT
    assert table["embedding"].to_pylist() == vectors.tolist()
    assert json.loads(table.schema.metadata[b"edge_embed"]) == ABOUT


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_pandas_reads_parquet(tmp_path: Path, dtype: str) -> None:
    vectors = numbers(dtype)
    write(tmp_path, "parquet", vectors)
    frame = pd.read_parquet(tmp_path / "part-00003.parquet")
    assert frame["id"].tolist() == IDS
    assert frame["title"].isna().tolist() == [False, True, False, False, False]
    stacked = np.stack(frame["embedding"].to_list())
    np.testing.assert_array_equal(stacked, vectors)
    assert stacked.dtype == vectors.dtype


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_duckdb_reads_parquet(tmp_path: Path, dtype: str) -> None:
    duckdb = pytest.importorskip("duckdb")
    vectors = numbers(dtype)
    write(tmp_path, "parquet", vectors)
    query = "select id, position, title, count, score, seen, embedding from read_parquet(?) order by position"
    rows = duckdb.connect().execute(query, [str(tmp_path / "*.parquet")]).fetchall()
    order = np.argsort(POSITIONS).tolist()
    columns = [IDS, POSITIONS.tolist(), *KEPT.values(), vectors.tolist()]
    expected = list(zip(*columns, strict=True))
    assert [(*row[:-1], list(row[-1])) for row in rows] == [expected[i] for i in order]


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_numpy_and_json_read_the_pair_of_files(tmp_path: Path, dtype: str) -> None:
    vectors = numbers(dtype)
    write(tmp_path, "npy", vectors)
    found = np.load(tmp_path / "part-00003.npy", allow_pickle=False)
    assert found.dtype == vectors.dtype
    np.testing.assert_array_equal(found, vectors)
    with (tmp_path / "part-00003.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    columns = [IDS, POSITIONS.tolist(), *KEPT.values()]
    names = ["id", "position", *KEPT]
    assert rows == [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    assert list(rows[0]) == names
    assert "größe" in (tmp_path / "part-00003.jsonl").read_text("utf-8")


def test_pandas_reads_the_lines_of_json(tmp_path: Path) -> None:
    write(tmp_path, "npy")
    frame = pd.read_json(tmp_path / "part-00003.jsonl", lines=True, dtype=False)
    assert frame["id"].tolist() == IDS
    assert frame["position"].tolist() == POSITIONS.tolist()


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_vectors_are_stored_in_their_own_size_or_less(tmp_path: Path, dtype: str) -> None:
    """Parquet stores an int8 in four bytes, unless it is told better."""
    vectors = numbers(dtype, 2048, 96)
    some: dict[str, Any] = {"ids": list(range(2048)), "kept": {}, "kept_types": {}}
    write(tmp_path, "parquet", vectors, positions=np.arange(2048), **some)
    group = pq.ParquetFile(tmp_path / "part-00003.parquet").metadata.row_group(0)
    column = group.column(2)
    assert column.path_in_schema == shards.ELEMENT
    assert column.total_compressed_size < 1.02 * vectors.nbytes
    expected = "BYTE_STREAM_SPLIT" if dtype == "float32" else "RLE_DICTIONARY"
    assert expected in column.encodings
    assert [group.column(i).is_stats_set for i in range(3)] == [True, True, False]


# read


@pytest.mark.parametrize("format", shards.FORMATS)
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_read_gives_back_what_was_written(tmp_path: Path, format: str, dtype: str) -> None:
    vectors = numbers(dtype)
    write(tmp_path, format, vectors)
    for name in NAMES[format]:
        ids, positions, found, kept = shards.read(tmp_path, name)
        assert (ids, kept) == (IDS, KEPT)
        np.testing.assert_array_equal(positions, POSITIONS)
        np.testing.assert_array_equal(found, vectors)
        assert (found.dtype.name, positions.dtype.name) == (dtype, "int64")


@pytest.mark.parametrize("format", shards.FORMATS)
def test_whole_numbers_are_ids_too(tmp_path: Path, format: str) -> None:
    ids = [2**63 - 1, 0, -(2**63), 4, 4]
    write(tmp_path, format, ids=ids)
    assert shards.read(tmp_path, NAMES[format][0]).ids == ids
    if format == "parquet":
        assert pq.read_schema(tmp_path / NAMES[format][0]).field("id").type == pa.int64()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@settings(deadline=None, max_examples=40)  # a disk may take its time
@given(rows=st.lists(st.tuples(TEXTS, TEXTS | st.none(), st.floats(allow_nan=False) | st.none()), min_size=1))
@pytest.mark.parametrize("format", shards.FORMATS)
def test_ids_and_texts_in_any_script_come_back(
    tmp_path_factory: pytest.TempPathFactory, format: str, rows: list[tuple[str, str | None, float | None]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    ids, texts, floats = (list(column) for column in zip(*rows, strict=True))
    kept = {"text": texts, "größe.a b": floats}
    shards.write(
        folder,
        0,
        format,
        ids=[str(i) for i in ids],
        vectors=numbers("uint8", len(rows)),
        kept=kept,
        kept_types={"text": "string", "größe.a b": "double"},
        positions=np.arange(len(rows)),
        about={},
    )
    shard = shards.read(folder, f"part-00000.{format}")
    assert shard.ids == ids
    assert shard.kept["text"] == texts
    if format == "parquet":
        assert shard.kept == kept
    else:  # JSON has no infinity
        assert shard.kept["größe.a b"] == [f if f is None or math.isfinite(f) else None for f in floats]


def test_vectors_that_do_not_lie_row_by_row_in_memory_are_written_as_they_read(tmp_path: Path) -> None:
    wide = numbers("float32", 10, 48)
    for vectors in (wide[::2, ::2], np.asfortranarray(wide[:5])):
        for format in shards.FORMATS:
            write(tmp_path, format, vectors)
            found = shards.read(tmp_path, NAMES[format][-1]).vectors
            np.testing.assert_array_equal(found, vectors)


def test_nan_of_a_kept_column_is_null_in_json_and_itself_in_parquet(tmp_path: Path) -> None:
    column = [math.nan, math.inf, -math.inf, None, 0.5]
    for format in shards.FORMATS:
        write(tmp_path, format, kept={"score": column}, kept_types={"score": "double"})
    assert shards.read(tmp_path, "part-00003.npy").kept["score"] == [None, None, None, None, 0.5]
    found = shards.read(tmp_path, "part-00003.parquet").kept["score"]
    assert math.isnan(found[0])
    assert found[1:] == column[1:]


# whole or not at all


@pytest.mark.parametrize("format", shards.FORMATS)
def test_what_is_written_is_told_by_size_and_sha256(tmp_path: Path, format: str) -> None:
    written = write(tmp_path, format)
    assert written.rows == 5
    assert list(written.files) == NAMES[format] == listing(tmp_path)
    for name, entry in written.files.items():
        data = (tmp_path / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


@pytest.mark.parametrize("format", shards.FORMATS)
def test_the_same_rows_make_the_same_bytes_over_what_was_there(tmp_path: Path, format: str) -> None:
    first = write(tmp_path, format)
    for name in NAMES[format]:
        (tmp_path / name).write_bytes(b"of a run that was killed")
    assert write(tmp_path, format) == first
    assert shards.verify(tmp_path, first.files) == []


@pytest.mark.parametrize("format", shards.FORMATS)
def test_a_shard_without_rows_is_no_file(tmp_path: Path, format: str) -> None:
    nothing: dict[str, Any] = {"ids": [], "kept": {name: [] for name in KEPT}, "positions": POSITIONS[:0]}
    assert write(tmp_path, format, numbers("int8")[:0], **nothing) == shards.Written({}, 0)
    assert listing(tmp_path) == []
    assert shards.verify(tmp_path, {}) == []


@pytest.mark.parametrize("format", shards.FORMATS)
def test_verify_tells_missing_short_and_changed_files_apart(tmp_path: Path, format: str) -> None:
    files = write(tmp_path, format).files
    assert shards.verify(tmp_path, files) == []
    name = NAMES[format][-1]
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-1])
    assert shards.verify(tmp_path, files) == [f"{name} has {len(data) - 1} bytes, recorded {len(data)}"]
    (tmp_path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    [line] = shards.verify(tmp_path, files)
    assert line.startswith(f"{name} has sha256 ")
    assert line.endswith(f", recorded {files[name]['sha256']}")
    (tmp_path / name).unlink()
    assert shards.verify(tmp_path, files) == [f"{name} is missing"]


PROGRAM = """\
import os, signal, sys
from pathlib import Path
import numpy as np
import pyarrow.parquet  # nobody may be unable to
from edge_embed import shards
from edge_embed.errors import OutputError
if os.getuid() == 0 and {nobody}:
    os.setgid(65534)
    os.setuid(65534)
{before}
try:
    shards.write(
        Path(), 3, "{format}", ids=list(range(300)), vectors=np.ones((300, 24), np.float32), kept={{}},
        kept_types={{}}, positions=np.arange(300), about={{"filler": os.urandom(9000).hex()}},
    )
except OutputError as error:
    print(error)
"""


def child(folder: Path, format: str, before: str, nobody: bool = False) -> "subprocess.CompletedProcess[str]":
    """A process that stands in the folder and writes 300 rows."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(format=format, before=before, nobody=nobody)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(edge_embed.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


@posix
@pytest.mark.parametrize(("format", "left"), [("parquet", []), ("npy", ["part-00003.jsonl"])])
def test_a_full_disk_is_one_line_and_nothing_half_written_is_seen(
    tmp_path: Path, format: str, left: list[str]
) -> None:
    """A limit of the process stands for the disk: the lines of JSON fit below it, the vectors do not."""
    done = child(
        tmp_path, format, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000))"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"cannot write part-00003.{format}: File too large\n"
    assert listing(tmp_path) == left


@posix
@pytest.mark.parametrize("format", shards.FORMATS)
def test_a_read_only_folder_is_one_line(tmp_path: Path, format: str) -> None:
    tmp_path.chmod(0o555)
    try:
        done = child(tmp_path, format, "", nobody=True)
    finally:
        tmp_path.chmod(0o755)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"cannot write {NAMES[format][0]}: Permission denied\n"


@posix
def test_a_kill_between_the_two_files_of_npy_is_reported_by_verify(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    child(tmp_path / "whole", "npy", "")
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in (tmp_path / "whole").iterdir()
    }
    kill = """\
def replace(path, target, rename=Path.replace):
    if target.suffix == ".npy":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(path, target)
Path.replace = replace
"""
    assert child(tmp_path / "killed", "npy", kill).returncode == -signal.SIGKILL
    partial, lines = listing(tmp_path / "killed")
    assert partial.startswith(".part-00003.")
    assert partial.endswith(".partial.npy")
    assert lines == "part-00003.jsonl"
    assert shards.verify(tmp_path / "killed", files) == ["part-00003.npy is missing"]
    with pytest.raises(IntegrityError, match=r"part-00003\.npy cannot be read as a shard: .*No such file"):
        shards.read(tmp_path / "killed", "part-00003.npy")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("part-00003.parquet", b""),
        ("part-00003.parquet", b"PAR1 cut PAR1"),
        ("part-00003.npy", b""),
        ("part-00003.npy", b"\x93NUMPY\x01\x00v\x00{'descr': cut"),
        ("part-00003.jsonl", b""),
        ("part-00003.jsonl", b'{"id": 1, "position": 0}\n{"id": 2, '),
        ("part-00003.jsonl", b'{"id": 1, "position": 0}\n{"id": 2}\n'),
        ("part-00003.jsonl", b"[1, 2]\n"),
    ],
)
def test_a_shard_that_is_cut_or_another_file_is_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    write(tmp_path, "npy")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=f"^.*{name} cannot be read as a shard: .*; write it again$"):
        shards.read(tmp_path, name)


def test_a_parquet_file_of_somebody_else_is_not_taken_for_a_shard(tmp_path: Path) -> None:
    column = pa.array([[1.0]])
    pq.write_table(pa.table({"id": [1], "position": [0], "embedding": column}), tmp_path / "a.parquet")
    with pytest.raises(IntegrityError, match=r"embedding is list<element: double>"):
        shards.read(tmp_path, "a.parquet")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "b.parquet")
    with pytest.raises(IntegrityError, match=r"b\.parquet cannot be read as a shard"):
        shards.read(tmp_path, "b.parquet")


def test_vectors_and_lines_of_different_number_do_not_make_a_shard(tmp_path: Path) -> None:
    write(tmp_path, "npy")
    np.save(tmp_path / "part-00003.npy", numbers("float32")[:4])
    with pytest.raises(IntegrityError, match="4 vectors of 5 rows"):
        shards.read(tmp_path, "part-00003.npy")


# what cannot be written


@pytest.mark.parametrize("format", shards.FORMATS)
@pytest.mark.parametrize("name", ["id", "position", "embedding"])
def test_a_kept_column_called_as_one_of_ours_is_refused(tmp_path: Path, format: str, name: str) -> None:
    with pytest.raises(InputError, match=f"column '{name}' cannot be kept"):
        write(tmp_path, format, kept={name: IDS}, kept_types={name: "string"})
    with pytest.raises(InputError, match=f"column '{name}' cannot be kept"):
        shards.check_names(["title", name])
    shards.check_names(["title", "ID", "embedding.list.element"])
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "error", "line"),
    [
        ({"ids": IDS[:4]}, ShapeError, "5 vectors, but 4 values of 'id'"),
        ({"positions": POSITIONS[:4]}, ShapeError, "5 vectors, but 4 values of 'position'"),
        ({"kept": KEPT | {"title": ["x"] * 6}}, ShapeError, "5 vectors, but 6 values of 'title'"),
        ({"vectors": numbers("float32")[0]}, ShapeError, r"\(24,\) float32, not \(n, D\)"),
        ({"vectors": np.ones((5, 2))}, ShapeError, r"\(5, 2\) float64, not \(n, D\)"),
        ({"positions": POSITIONS.astype(np.int32)}, ShapeError, r"positions are \(5,\) int32"),
        (
            {"kept_types": {"title": "string"}},
            InputError,
            r"'count', 'score', 'seen'\] lack values or a type",
        ),
        ({"kept_types": TYPES | {"seen": "date"}}, InputError, "'seen' has the type 'date'; known: string,"),
        ({"ids": [*IDS[:4], 5]}, InputError, "'id': 5 is of type int, not string"),
        ({"ids": [*IDS[:4], None]}, InputError, "an id is missing"),
        ({"ids": [None] * 5}, InputError, "an id is missing"),
        ({"ids": [1.5] * 5}, InputError, "neither a string nor a whole number"),
        ({"ids": [True] * 5}, InputError, "neither a string nor a whole number"),
        ({"ids": [1, 2, 3, 4, 2**63]}, InputError, "'id': 9223372036854775808 does not fit in 64 bits"),
        ({"ids": [*IDS[:4], "\ud83d"]}, InputError, "'id': .* is not Unicode text: half a character at 0"),
        ({"kept": KEPT | {"count": ["1"] * 5}}, InputError, "'count': '1' is of type str, not int64"),
    ],
)
@pytest.mark.parametrize("format", shards.FORMATS)
def test_rows_that_cannot_be_written_as_they_are_are_refused_and_nothing_is_written(
    tmp_path: Path, format: str, changed: dict[str, Any], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line):
        write(tmp_path, format, **changed)
    assert listing(tmp_path) == []


def test_an_unknown_format_and_a_lack_of_pyarrow_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^the format 'csv' is not known; known: parquet, npy$"):
        write(tmp_path, "csv")
    write(tmp_path, "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    line = r"^Parquet needs pyarrow: pip install 'edge-embed\[batch\]'$"
    with pytest.raises(InputError, match=line):
        write(tmp_path, "parquet")
    with pytest.raises(InputError, match=line):
        shards.read(tmp_path, "part-00003.parquet")
    write(tmp_path, "npy")
    assert shards.read(tmp_path, "part-00003.npy").ids == IDS


def test_an_error_of_the_system_while_parquet_is_written_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As test_atomic has it for other writers; pyarrow stands between the disk and us here."""
    old = write(tmp_path, "parquet").files

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", failing)
    with pytest.raises(OutputError, match=r"^cannot write .*part-00003\.parquet: No space left on device$"):
        write(tmp_path, "parquet", numbers("int8"))
    assert listing(tmp_path) == NAMES["parquet"]
    assert shards.verify(tmp_path, old) == []


# the types of kept columns


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([], "string"),
        ([None, None], "string"),
        ([None, "a", 1], "string"),
        ([None, 1, "a"], "int64"),
        ([1, None, 2.5], "double"),
        ([2.5, 1], "double"),
        ([True, 1], "bool"),
        ([0, True], "int64"),
        ([b"bytes"], "string"),
    ],
)
def test_the_first_value_decides_the_type_of_a_column(values: list[Any], kind: str) -> None:
    assert shards.infer(values) == kind


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, kind) for kind in TYPES.values()]
    + [("漢字", "string"), (-(2**63), "int64"), (0.1, "double"), (math.inf, "double"), (False, "bool")],
)
def test_a_value_that_fits_is_itself(value: Any, kind: str) -> None:
    assert shards.fit(value, kind) is value


@pytest.mark.parametrize("value", [0, -7, 2**53, -(2**53)])
def test_a_whole_number_fits_double(value: int) -> None:
    found = shards.fit(value, "double")
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (1, "string", "1 is of type int, not string"),
        ("1", "int64", "'1' is of type str, not int64"),
        (1.0, "int64", "1.0 is of type float, not int64"),
        (True, "int64", "True is of type bool, not int64"),
        (True, "double", "True is of type bool, not double"),
        (0, "bool", "0 is of type int, not bool"),
        ([1], "string", r"\[1\] is of type list, not string"),
        (2**63, "int64", "9223372036854775808 does not fit in 64 bits"),
        (-(2**63) - 1, "int64", "does not fit in 64 bits"),
        (2**53 + 1, "double", "cannot hold exactly"),
        (10**400, "double", "cannot hold exactly"),
        ("a\udc00", "string", r"'a\\udc00' is not Unicode text: half a character at 1"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_the_reason(value: Any, kind: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        shards.fit(value, kind)
