"""Readers: the same rows as the official readers give, bad ones told apart, positions that never move."""

import contextlib
import csv
import gzip
import io
import json
import os
import string
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pandas
import pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from edge_embed import readers
from edge_embed.errors import InputError
from edge_embed.readers import Bad, Columns, Row, Source, check, find, read

TEXT = Columns("text", None)
WITH_ID = Columns("text", "id")

posix = pytest.mark.skipif(os.name == "nt", reason="a mechanism of POSIX systems")


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def json_lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zstd(data: bytes) -> bytes:
    packed: bytes = pyarrow.compress(data, codec="zstd", asbytes=True)
    return packed


def rows_of(path: Path | Sequence[Path], columns: Columns = TEXT, skip: int = 0) -> list[Row | Bad]:
    paths = [path] if isinstance(path, Path) else path
    return list(read(find([str(each) for each in paths]), columns, skip=skip))


def good(found: list[Row | Bad]) -> list[Row]:
    assert all(isinstance(row, Row) for row in found), found
    return [row for row in found if isinstance(row, Row)]


def texts_of(path: Path) -> list[str]:
    return [row.text for row in good(rows_of(path))]


def only_bad(path: Path, columns: Columns = TEXT) -> Bad:
    (row,) = [row for row in rows_of(path, columns) if isinstance(row, Bad)]
    return row


@contextlib.contextmanager
def stdin_of(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data))))
        yield


# ---- against the official readers

AWKWARD = [
    "",
    " ",
    "a,b",
    'say "hi"',
    "two\nlines",
    "a\r\nb",
    "tab\there",
    "\u2028 and \x85",
    "𝄞 😀",
    "Ünï",
    "'",
]
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


@given(texts)
@example(AWKWARD)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_jsonl_reads_as_json_loads_line_by_line(folder: Path, found: list[str]) -> None:
    for ascii_only in (True, False):
        data = "".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n" for text in found).encode()
        path = write(folder / "rows.jsonl", data)
        assert texts_of(path) == [json.loads(line)["text"] for line in data.splitlines()] == found


@given(texts, st.sampled_from(["csv", "tsv"]), st.sampled_from(["\n", "\r\n", "\r"]))
@example(AWKWARD, "csv", "\r\n")
@example(AWKWARD, "tsv", "\n")
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_csv_reads_as_dict_reader_does(folder: Path, found: list[str], kind: str, end: str) -> None:
    delimiter = "\t" if kind == "tsv" else ","
    path = folder / f"rows.{kind}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(
            file,
            delimiter=delimiter,
            lineterminator=end,
            # the writer quotes no line ends but those that are its own
            quoting=csv.QUOTE_MINIMAL if end == "\r\n" else csv.QUOTE_ALL,
        )
        writer.writerows([["id", "text"], *([f"n{i}", text] for i, text in enumerate(found))])
    with path.open(encoding="utf-8", newline="") as file:
        official = list(csv.DictReader(file, delimiter=delimiter))
    rows = good(rows_of(path, WITH_ID))
    assert [{"id": row.id, "text": row.text} for row in rows] == official
    assert [row.text for row in rows] == found


def test_csv_reads_as_pandas_does(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    frame = pandas.DataFrame({"text": AWKWARD[2:], "n": range(len(AWKWARD) - 2)})
    frame.to_csv(path, index=False)
    official = pandas.read_csv(path, keep_default_na=False, dtype=str)
    rows = good(rows_of(path, Columns("text", "n")))
    assert [row.text for row in rows] == official["text"].tolist()
    assert [row.id for row in rows] == official["n"].tolist()


@given(texts)
@example(AWKWARD)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_parquet_reads_as_read_table_does(folder: Path, found: list[str]) -> None:
    path = folder / "rows.parquet"
    table = pyarrow.table(
        {"text": pyarrow.array(found, "string"), "id": pyarrow.array(range(len(found)), "int32")}
    )
    parquet.write_table(table, path, row_group_size=3)
    official = parquet.read_table(path)
    rows = good(rows_of(path, WITH_ID))
    assert [row.text for row in rows] == official["text"].to_pylist() == found
    assert [row.id for row in rows] == official["id"].to_pylist()
    assert [row.line for row in rows] == list(range(1, len(found) + 1))


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
def test_any_layout_of_strings_in_parquet_is_text(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "rows.parquet"
    values = pyarrow.array([*AWKWARD, *AWKWARD])
    values = values.dictionary_encode() if pyarrow.types.is_dictionary(kind) else values.cast(kind)
    try:
        parquet.write_table(pyarrow.table({"text": values, "id": values}), path)
    except pyarrow.ArrowNotImplementedError:
        pytest.skip(f"this pyarrow writes no {kind}")
    assert parquet.read_table(path)["text"].type == kind  # else it would not be that layout which is tested
    assert [row.text for row in good(rows_of(path, WITH_ID))] == [*AWKWARD, *AWKWARD]


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("suffix", PACKED)
def test_packed_files_read_as_plain_ones_also_in_several_members(tmp_path: Path, suffix: str) -> None:
    halves = [json_lines([{"text": f"{word} {i}"} for i in range(5_000)]) for word in ("one", "two")]
    plain = write(tmp_path / "rows.jsonl", b"".join(halves))
    packed = write(tmp_path / f"rows.jsonl{suffix}", b"".join(map(PACKED[suffix], halves)))
    unmarked = write(tmp_path / "unmarked.jsonl", packed.read_bytes())
    assert texts_of(packed) == texts_of(unmarked) == texts_of(plain)
    assert len(texts_of(packed)) == 10_000
    table = write(tmp_path / f"table.csv{suffix}", PACKED[suffix](b"text\na\n"))
    assert texts_of(table) == ["a"]


def test_kept_values_are_plain_and_in_the_order_asked_for(tmp_path: Path) -> None:
    columns = Columns("text", None, ("b", "a"))
    path = write(
        tmp_path / "rows.jsonl",
        json_lines(
            [
                {"text": "x", "a": [1, "ü"], "b": {"c": None}},
                {"text": "x", "a": 2.5},
                {"text": "x", "a": True},
            ]
        ),
    )
    kept = [row.kept for row in good(rows_of(path, columns))]
    assert kept == [('{"c": null}', '[1, "ü"]'), (None, 2.5), (None, True)]
    assert json.loads(str(kept[0][1])) == [1, "ü"]


def test_kept_parquet_columns_of_any_usual_type_become_plain_values(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "n": pyarrow.array([7], "uint16"),
        "x": pyarrow.array([0.5], "float32"),
        "yes": pyarrow.array([True]),
        "nothing": pyarrow.array([None]),
        "day": pyarrow.array([date(2024, 2, 29)]),
        "at": pyarrow.array([datetime(2024, 2, 29, 12, tzinfo=UTC)]),
        "price": pyarrow.array([Decimal("1.50")]),
        "tags": pyarrow.array([["a", "ü"]]),
        "at.all": pyarrow.array([{"a": 1}]),
    }
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["t"], **values}), path)
    (row,) = good(rows_of(path, Columns("text", None, tuple(values))))
    expected = (
        7,
        0.5,
        True,
        None,
        "2024-02-29",
        "2024-02-29 12:00:00.000000Z",
        "1.50",
        '["a", "ü"]',
        '{"a": 1}',
    )
    assert row.kept == expected


# ---- lines and positions


def test_a_row_knows_its_source_its_line_and_its_place_among_all(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", '\n{"text": "one"}\n  \nnot json\n{"text": "two"}')
    second = write(tmp_path / "b.csv", 'text,id\n"x\ny",1\n\nz,2\n')
    third = tmp_path / "c.parquet"
    parquet.write_table(pyarrow.table({"text": ["p", None]}), third)
    found = rows_of([first, second, third])
    assert [(row.position, row.source, row.line) for row in found] == [
        (0, 0, 2),
        (1, 0, 4),
        (2, 0, 5),
        (3, 1, 2),
        (4, 1, 5),
        (5, 2, 1),
        (6, 2, 2),
    ]
    assert [type(row) for row in found] == [Row, Bad, Row, Row, Row, Row, Bad]
    assert [row.id for row in found if isinstance(row, Row)] == [0, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five sources with every kind of trouble, whose first rows have no fit id."""
    folder = tmp_path_factory.mktemp("mixed")
    paths = [
        write(
            folder / "a.jsonl",
            b'nonsense\n{"text": "no id"}\n{"text": 5, "id": "first"}\n{"text": "late", "id": 4}\n\n'
            b'{"text": "ok", "id": "5"}\n{"text": "\xff", "id": "6"}\n[]\n',
        ),
        write(
            folder / "b.csv.gz",
            gzip.compress(b'id,text\n1,"a\nb"\n2\n\xff,x\n3,"open\n4,"d"\n5,"never closed\n6,e'),
        ),
        write(folder / "c.jsonl.zst", zstd(b'{"text": "z", "id": 9}\n{"text": "z", "id": "9"}\n')),
    ]
    for name, ids in (("d", ["10", None, "12", "13", "14", "15", "16"]), ("e", [1, 2, 3])):
        table = pyarrow.table({"id": ids, "text": [None, *(f"{name}{i}" for i in range(1, len(ids)))]})
        parquet.write_table(table, folder / f"{name}.parquet", row_group_size=4)
        paths.append(folder / f"{name}.parquet")
    return paths


@pytest.mark.parametrize("columns", [TEXT, WITH_ID, Columns("text", "id", ("text",))])
def test_skipping_k_rows_gives_what_follows_them_in_a_full_read(
    mixed: list[Path], columns: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PARQUET_ROWS", 2)  # so that a row group is several batches
    whole = rows_of(mixed, columns)
    assert [row.position for row in whole] == list(range(len(whole)))
    assert {type(row) for row in whole} == {Row, Bad}
    for k in range(len(whole) + 2):
        assert rows_of(mixed, columns, skip=k) == list(islice(whole, k, None))


def test_the_first_fit_id_says_what_all_ids_are_even_in_a_row_without_text(mixed: list[Path]) -> None:
    reasons = {row.position: row.reason for row in rows_of(mixed, WITH_ID) if isinstance(row, Bad)}
    assert reasons[2] == "the text 'text' is a whole number, not a string"
    assert reasons[3] == "the id 'id' is a whole number, but the first of the job is a string"
    assert 4 not in reasons


def spoil(path: Path, group: int, column: int) -> None:
    """Overwrite the pages of one column in one row group."""
    with parquet.ParquetFile(path) as file:
        start = file.metadata.row_group(group).column(column).data_page_offset
    with path.open("r+b") as raw:
        raw.seek(start)
        raw.write(b"\xff" * 64)


def test_row_groups_that_are_skipped_and_columns_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = [string.ascii_letters * 4 + str(i) for i in range(3_000)]
    table = pyarrow.table({"text": texts, "other": texts})
    parquet.write_table(table, path, row_group_size=1_000, use_dictionary=False)
    spoil(path, group=2, column=1)
    assert texts_of(path) == texts
    spoil(path, group=1, column=0)
    with pytest.raises(InputError, match=r"rows\.parquet breaks off after row 1000: "):
        rows_of(path)
    assert [row.position for row in rows_of(path, skip=2_000)] == list(range(2_000, 3_000))


def test_json_lines_that_are_skipped_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", json_lines([{"text": "x", "id": i} for i in range(100)]))
    loads = Mock(wraps=json.loads)
    monkeypatch.setattr(json, "loads", loads)
    assert len(rows_of(path, WITH_ID, skip=90)) == 10
    assert loads.call_count == 11  # one to learn of what kind the ids are


# ---- bad rows

BAD_LINES = {
    b'{"body": "x", "n": 1}': "no 'text' among its keys: 'body', 'n'",
    b"{}": "no 'text' among its keys: it has none",
    b'{"text": null}': "the text 'text' is null, not a string",
    b'{"text": 5}': "the text 'text' is a whole number, not a string",
    b'{"text": 0.5}': "the text 'text' is a fraction, not a string",
    b'{"text": true}': "the text 'text' is a boolean, not a string",
    b'{"text": ["x"]}': "the text 'text' is a list, not a string",
    b'{"text": {"x": 1}}': "the text 'text' is an object, not a string",
    b'{"text": "caf\xe9"}': "not UTF-8: byte 0xe9 at 13",
    b'{"text": "cut in the mi': "not JSON at column 10: Unterminated string starting at",
    b'{"text": "a"} {"text": "b"}': "not JSON at column 15: Extra data",
    b'["a"]': "the line is a list, not an object",
    b"null": "the line is null, not an object",
    b"[" * 200_000: "not readable as JSON: nested too deeply",
    b'{"text": "x", "n": ' + b"1" * 5_000 + b"}": "not readable as JSON: Exceeds the limit",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:24].decode("latin-1"))
def test_a_bad_line_of_json_costs_itself_alone_and_says_why(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path / "rows.jsonl", b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    before, bad, after = rows_of(path)
    assert isinstance(before, Row)
    assert isinstance(bad, Bad)
    assert isinstance(after, Row)
    assert bad.reason.startswith(BAD_LINES[line])
    assert (bad.position, bad.line) == (1, 2)
    assert len(bad.excerpt) <= 200
    assert bad.excerpt.isprintable()
    assert bad.excerpt[:5] == line[:5].decode()


@pytest.mark.parametrize("text", ["", " \t\n", "\ud800", "\0"])
def test_empty_texts_and_half_surrogate_pairs_are_texts(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "rows.jsonl", json.dumps({"text": text}))
    assert texts_of(path) == [text]


BAD_IDS = {
    "{}": "no 'id' among its keys: 'text'",
    '{"id": null}': "the id 'id' is null, not a string or a whole number",
    '{"id": true}': "the id 'id' is a boolean, not a string or a whole number",
    '{"id": 1.0}': "the id 'id' is a fraction, not a string or a whole number",
    '{"id": [1]}': "the id 'id' is a list, not a string or a whole number",
    '{"id": 9223372036854775808}': "the id 'id' is outside 64 bits",
    '{"id": -9223372036854775809}': "the id 'id' is outside 64 bits",
    '{"id": "a\\ud800"}': "the id 'id' holds half a surrogate pair, which UTF-8 cannot write",
    '{"id": "1"}': "the id 'id' is a string, but the first of the job is a whole number",
}


@pytest.mark.parametrize("identity", BAD_IDS)
def test_an_id_that_one_column_cannot_hold_makes_a_bad_row(tmp_path: Path, identity: str) -> None:
    bad = json.dumps({"text": "x", **json.loads(identity)})
    path = write(
        tmp_path / "rows.jsonl",
        f'{{"text": "x", "id": {2**63 - 1}}}\n{bad}\n{{"text": "x", "id": {-(2**63)}}}\n',
    )
    assert only_bad(path, WITH_ID).reason == BAD_IDS[identity]
    assert [row.id for row in rows_of(path, WITH_ID) if isinstance(row, Row)] == [2**63 - 1, -(2**63)]


def test_a_kept_string_that_no_file_can_hold_makes_a_bad_row(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl", '{"text": "x", "title": "\\ud800"}\n{"text": "x", "title": ["\\ud800"]}\n'
    )
    reasons = [row.reason for row in rows_of(path, Columns("text", None, ("title",))) if isinstance(row, Bad)]
    assert reasons == ["'title' holds half a surrogate pair, which UTF-8 cannot write"] * 2


def test_bad_records_of_csv_cost_themselves_alone_and_say_why(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.csv",
        b'id,text\n1,"one, \nand a half"\n2\n3,a,b\n4,caf\xe9\n'
        b'5,"cut off\n6,"six"\n7,"seven" eight\n8,"never closed\n9,nine\n',
    )
    found = rows_of(path, WITH_ID)
    assert [(row.id, row.text) for row in found if isinstance(row, Row)] == [
        ("1", "one, \nand a half"),
        ("6", "six"),
        ("9", "nine"),
    ]
    assert [(row.line, row.reason, row.excerpt) for row in found if isinstance(row, Bad)] == [
        (4, "1 fields, where the header has 2", "2"),
        (5, "3 fields, where the header has 2", "3,a,b"),
        (6, "not UTF-8: byte 0xe9 at 5", r"4,caf\xe9"),
        (7, "not CSV: ',' expected after '\"'", '5,"cut off'),
        (9, "not CSV: ',' expected after '\"'", '7,"seven" eight'),
        (10, "not CSV: unexpected end of data", '8,"never closed'),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_line_without_end_is_one_bad_row_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(readers, "LONGEST", 1 << 20)
    around = (b'{"text": "', b'"}\n') if kind == "jsonl" else (b'"', b'"\n')
    head = b"" if kind == "jsonl" else b"text\n"
    fits, long = b"x" * ((1 << 20) - 64), b"y" * (20 << 20)
    path = write(
        tmp_path / f"rows.{kind}",
        head + b"".join(around[0] + text + around[1] for text in (fits, long, b"z")),
    )
    del long
    source = find([str(path)])
    tracemalloc.start()
    try:
        first, bad, last = read(source, TEXT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert isinstance(bad, Bad)
    assert (len(first.text), last.text) == (len(fits), "z")
    assert "longer than 1 MB" in bad.reason
    assert bad.excerpt.startswith((around[0] + b"yyy").decode())
    assert len(bad.excerpt) == 200
    assert peak < 12 << 20  # the line alone is 20 MB


def test_a_quote_that_never_ends_costs_one_line_of_csv_and_not_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LONGEST", 10_000)
    path = write(tmp_path / "rows.csv", 'text\na\n"open\n' + "".join(f"row {i}\n" for i in range(5_000)))
    found = rows_of(path)
    assert [row.line for row in found if isinstance(row, Bad)] == [3]
    assert [row.text for row in found if isinstance(row, Row)] == ["a", *(f"row {i}" for i in range(5_000))]


def test_a_string_of_parquet_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    raw = pyarrow.array([b"good", b"caf\xe9", None, b"end"], pyarrow.binary())
    unchecked = pyarrow.Array.from_buffers(pyarrow.string(), len(raw), raw.buffers(), null_count=1)
    parquet.write_table(pyarrow.table({"text": unchecked}), path)
    found = rows_of(path)
    assert [row.text for row in found if isinstance(row, Row)] == ["good", "end"]
    assert [(row.reason, row.excerpt) for row in found if isinstance(row, Bad)] == [
        ("'text' is not UTF-8: byte 0xe9 at 3", r"text: caf\xe9"),
        ("the text 'text' is null, not a string", "text: None"),
    ]


def test_an_excerpt_is_one_printable_line_whatever_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "\x1b[31m\u2028\x7f" + "😀" * 300)
    excerpt = only_bad(path).excerpt
    assert excerpt.startswith(r"\x1b[31m\u2028\x7f😀")
    assert excerpt.endswith("😀…")
    assert len(excerpt) == 200
    assert excerpt.isprintable()


# ---- files that cannot be read


@pytest.mark.parametrize("suffix", PACKED)
def test_a_packed_file_that_ends_early_gives_its_rows_and_then_an_error_with_the_line(
    tmp_path: Path, suffix: str
) -> None:
    rows = [{"text": f"{i:06d} {os.urandom(40).hex()}"} for i in range(5_000)]
    whole = PACKED[suffix](json_lines(rows))
    for cut in (len(whole) // 2, len(whole) - 1):
        path = write(tmp_path / f"rows.jsonl{suffix}", whole[:cut])
        found: list[Row | Bad] = []
        with pytest.raises(InputError, match=r"rows\.jsonl\.\w+ breaks off after line \d+: ") as error:
            found.extend(read(find([str(path)]), TEXT))
        assert f"after line {len(found)}: " in str(error.value)
        assert [row.text for row in good(found)] == [row["text"] for row in rows[: len(found)]]
        assert len(found) > 5_000 * cut / len(whole) - 1_500


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl.gz", b'{"text": "plain"}\n', r"^cannot read .*x\.jsonl\.gz: Not a gzipped file"),
        ("x.csv.zst", b"text\nplain\n", r"^cannot read .*x\.csv\.zst: ZSTD decompress failed"),
        (
            "x.parquet",
            b"PAR1 and no more than that",
            r"^cannot read .*x\.parquet: Parquet magic bytes not found",
        ),
        ("x.parquet", b"", r"^cannot read .*x\.parquet: Parquet file size is 0 bytes"),
        ("x.jsonl", '{"text": "a"}\n'.encode("utf-16"), r"x\.jsonl is UTF-16; convert it to UTF-8"),
        ("x.csv", "text\na\n".encode("utf-16"), r"x\.csv is UTF-16; convert it to UTF-8"),
        ("x.csv", b"id,body\n1,a\n", r"x\.csv has no column 'text'; its columns: 'id', 'body'$"),
        ("x.csv", b"text,text\n1,a\n", r"x\.csv has 2 columns named 'text'; rename all but one$"),
        ("x.csv", b'id,"text\n1,a\n', r"x\.csv has no header in line 1: not CSV: unexpected end of data$"),
        ("x.json", b'[\n  {"text": "a"}\n]\n', r"x\.json is not JSON lines \(line 1: not JSON at column 2"),
        (
            "x.json.gz",
            gzip.compress(b'[{"text": "a"}]'),
            r"x\.json\.gz is not JSON lines \(line 1: the line is a list",
        ),
    ],
)
def test_a_file_of_which_nothing_can_be_read_is_one_clear_line(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(InputError, match=message) as error:
        rows_of(path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=message):  # and it is so before the work, too
        check(find([str(path)]), TEXT)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns("body", None), r"no column 'body'; its columns: 'text', 'n', 'raw', 'share'$"),
        (Columns("text", "key"), r"no column 'key'; "),
        (Columns("text", None, ("title",)), r"no column 'title'; "),
        (Columns("n", None), r"the text column 'n' is of type int64; it must be strings$"),
        (Columns("raw", None), r"the text column 'raw' is of type binary; it must be strings$"),
        (
            Columns("text", "share"),
            r"the id column 'share' is of type double; it must be strings or whole numbers$",
        ),
        (
            Columns("text", None, ("raw",)),
            r"the kept column 'raw' is of type binary; it must be strings, numbers",
        ),
    ],
)
def test_a_parquet_column_that_is_missing_or_of_a_useless_type_is_named(
    tmp_path: Path, columns: Columns, message: str
) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"], "n": [1], "raw": [b"a"], "share": [0.5]}), path)
    with pytest.raises(InputError, match=message):
        rows_of(path, columns)


@pytest.mark.parametrize("data", ["", "\n\n", "\ufeff"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "json"])
def test_an_empty_file_has_no_rows(tmp_path: Path, kind: str, data: str) -> None:
    assert rows_of(write(tmp_path / f"empty.{kind}", data)) == []


@pytest.mark.parametrize(("name", "data"), [("a.jsonl", '{"text": "x"}'), ("a.csv", "text\nx")])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path, name: str, data: str) -> None:
    assert texts_of(write(tmp_path / name, "\ufeff" + data)) == ["x"]


def test_without_pyarrow_an_error_names_the_extra_and_plain_text_still_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write(tmp_path / "a.parquet", b"PAR1")
    packed = write(tmp_path / "b.jsonl.zst", zstd(b"{}"))
    plain = write(tmp_path / "c.jsonl.gz", gzip.compress(b'{"text": "x"}'))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path in (table, packed):
        with pytest.raises(InputError, match=r"needs pyarrow: pip install 'edge-embed\[batch\]'$"):
            rows_of(path)
    assert texts_of(plain) == ["x"]


def test_check_finds_the_one_file_whose_column_is_missing_and_reads_no_further_than_a_row(
    tmp_path: Path,
) -> None:
    fine = write(tmp_path / "a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 100_000)[:-8])
    check(find([str(fine)]), TEXT)
    write(tmp_path / "b.csv", "body\nx\n")
    with pytest.raises(InputError, match=r"b\.csv has no column 'text'"):
        check(find([str(tmp_path)]), TEXT)


# ---- memory


def arrow_peak(rows: Iterator[Row | Bad], every: int) -> tuple[int, int]:
    """(number of rows, the most bytes that pyarrow held while they were read)."""
    before, most, count = pyarrow.total_allocated_bytes(), 0, 0
    for row in rows:
        assert isinstance(row, Row)
        count += 1
        if count % every == 0:
            most = max(most, pyarrow.total_allocated_bytes() - before)
    return count, most


def test_memory_does_not_grow_with_the_rows_of_parquet_though_they_are_one_row_group(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = pyarrow.array([f"{i:09d}" * 30 for i in range(200_000)])
    table = pyarrow.table({"text": texts, "unused": texts})
    parquet.write_table(table, path, row_group_size=200_000, compression="none", use_dictionary=False)
    del texts, table
    assert path.stat().st_size > 100 << 20
    sources = find([str(path)])
    tracemalloc.start()
    try:
        count, arrow = arrow_peak(read(sources, TEXT), every=500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 200_000
    assert peak < 4 << 20
    assert 0 < arrow < 12 << 20


def test_long_texts_of_parquet_are_read_fewer_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PARQUET_BYTES", 1 << 20)
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"text": [f"{i:09d}" * 20_000 for i in range(200)]})
    # a page is decoded whole, and by itself pyarrow makes one of these 200
    parquet.write_table(table, path, compression="none", use_dictionary=False, write_batch_size=4)
    del table
    count, arrow = arrow_peak(read(find([str(path)]), TEXT), every=1)
    assert count == 200
    assert 0 < arrow < 8 << 20  # all of them are 36 MB


# ---- finding


def names_found(folder: Path, *inputs: str, format: str | None = None) -> list[str]:
    sources = find([str(folder / each) for each in inputs], format=format)
    return [Path(source.name).relative_to(folder).as_posix() for source in sources]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.jsonl",
        "a/z.csv",
        "a/B.TSV",
        "a.ndjson",
        "a-b.parquet",
        "c.json.gz",
        "a/deep/er/x.CSV.ZST",
    ):
        write(tmp_path / name, "")
    for name in (
        "README.md",
        ".hidden.jsonl",
        ".git/x.jsonl",
        "a/part.jsonl.partial",
        "x.parquet.gz",
        "y.gz",
    ):
        write(tmp_path / name, "")
    return tmp_path


def test_a_folder_is_its_known_files_at_any_depth_in_the_order_of_their_paths(tree: Path) -> None:
    expected = [
        "a-b.parquet",
        "a.ndjson",
        "a/B.TSV",
        "a/deep/er/x.CSV.ZST",
        "a/z.csv",
        "b.jsonl",
        "c.json.gz",
    ]
    assert names_found(tree, ".") == expected
    sources = find([str(tree)])
    assert [source.kind for source in sources] == ["parquet", "jsonl", "tsv", "csv", "csv", "jsonl", "jsonl"]
    assert [source.compression for source in sources] == [None, None, None, "zstd", None, None, "gzip"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["b.jsonl"]),
        ("**/*.[cC][sS][vV]*", ["a/deep/er/x.CSV.ZST", "a/z.csv"]),
        ("a/?.csv", ["a/z.csv"]),
        ("a/*", ["a/B.TSV", "a/z.csv"]),
    ],
)
def test_globs_are_expanded_here_and_in_order(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names_found(tree, pattern) == expected


def test_inputs_keep_the_order_in_which_they_are_named(tree: Path) -> None:
    assert names_found(tree, "b.jsonl", "a/*.csv", "a.ndjson") == ["b.jsonl", "a/z.csv", "a.ndjson"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tree: Path) -> None:
    write(tree / "[b].jsonl", "")
    assert names_found(tree, "[b].jsonl") == ["[b].jsonl"]


def test_a_source_carries_size_and_time_by_which_a_change_shows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\n')
    (source,) = find([str(path)])
    assert source == Source(path, "jsonl", None, 14, path.stat().st_mtime_ns)


def test_format_is_for_what_has_no_known_suffix(tmp_path: Path) -> None:
    odd, known = write(tmp_path / "rows.txt", "text\na\n"), write(tmp_path / "b.jsonl", '{"text": "b"}\n')
    sources = find([str(odd), str(known)], format="csv")
    assert [source.kind for source in sources] == ["csv", "jsonl"]
    assert [row.text for row in good(list(read(sources, TEXT)))] == ["a", "b"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"^no input; name files, folders or globs, or - for stdin$"),
        (["nope.jsonl"], r"nope\.jsonl does not exist; name a file, a folder or a glob"),
        (["*.xml"], r"^no file matches .*\*\.xml; check the pattern"),
        (["empty"], r"empty has no file that ends in \.jsonl, .*name files and their format$"),
        (["README.md"], r"README\.md ends in '\.md'; known: \.jsonl, .*or say its format$"),
        (["x.parquet.gz"], r"x\.parquet\.gz ends in '\.gz'; known: "),
        (["b.jsonl", "b.jsonl"], r"b\.jsonl is in the input twice; name it once$"),
        (["b.jsonl", "a/../b.jsonl"], r"b\.jsonl is in the input twice, also as .*b\.jsonl; name it once$"),
        ([".", "a.ndjson"], r"a\.ndjson is in the input twice"),
    ],
)
def test_inputs_that_name_nothing_usable_are_one_clear_line(
    tree: Path, inputs: list[str], message: str
) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(InputError, match=message) as error:
        names_found(tree, *inputs)
    assert "\n" not in str(error.value)


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"^unknown format 'xml'; known: jsonl, csv, tsv, parquet$"):
        find(["-"], format="xml")


@posix
def test_pipes_broken_links_long_and_second_names_are_refused(tree: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot read x+\.jsonl: File name too long$"):
        find(["x" * 5_000 + ".jsonl"])
    os.mkfifo(tree / "pipe.jsonl")
    with pytest.raises(InputError, match=r"pipe\.jsonl is not a regular file; pipe it to stdin and name -$"):
        find([str(tree / "pipe.jsonl")])
    (tree / "pipe.jsonl").unlink()
    (tree / "link.jsonl").symlink_to(tree / "b.jsonl")
    with pytest.raises(InputError, match=r"link\.jsonl is in the input twice, also as .*b\.jsonl"):
        find([str(tree)])
    (tree / "b.jsonl").unlink()
    with pytest.raises(InputError, match=r"^cannot read .*link\.jsonl: No such file or directory$"):
        find([str(tree)])


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_or_a_folder_that_may_not_be_read_is_named(tree: Path) -> None:
    (tree / "b.jsonl").chmod(0)
    with pytest.raises(InputError, match=r"^cannot read .*b\.jsonl: Permission denied$"):
        find([str(tree / "b.jsonl")])
    (tree / "a").chmod(0)
    try:
        with pytest.raises(InputError, match=r"^cannot read .*a: Permission denied$"):
            find([str(tree)])
    finally:
        (tree / "a").chmod(0o700)


def test_a_file_that_vanished_before_it_was_read_is_one_clear_line(tmp_path: Path) -> None:
    sources = find([str(write(tmp_path / "a.jsonl", "")), str(write(tmp_path / "b.parquet", ""))])
    for source in sources:
        assert source.path is not None
        source.path.unlink()
        with pytest.raises(InputError, match=r"^cannot read .*[ab]\.\w+: "):
            list(read([source], TEXT))


# ---- stdin


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_stdin_is_read_plain_or_packed(
    monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    data = json_lines([{"text": f"row {i}"} for i in range(20_000)])
    sources = find(["-"])
    assert sources == [Source(None, "jsonl", None, None, None)]
    with stdin_of(pack(data), monkeypatch):
        check(sources, TEXT)  # leaves it alone
        assert [row.text for row in good(list(read(sources, TEXT)))] == [f"row {i}" for i in range(20_000)]


def test_stdin_that_drips_byte_by_byte_is_read_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dripping(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self._data = io.BytesIO(data)

        def readable(self) -> bool:
            return True

        def readinto(self, target: Any) -> int:
            byte = self._data.read(1)
            target[: len(byte)] = byte
            return len(byte)

    for data in (b'{"text": "x"}\n', gzip.compress(b'{"text": "x"}\n'), zstd(b'{"text": "x"}\n')):
        buffer = io.BufferedReader(Dripping(data))
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer))
        assert [row.text for row in good(list(read(find(["-"]), TEXT)))] == ["x"]


def test_stdin_stays_open_and_a_short_or_empty_one_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    for data, rows in ((b"", 0), (b"{}", 1), (b"text", 1)):
        with stdin_of(data, monkeypatch):
            assert len(list(read(find(["-"]), TEXT))) == rows
            assert not sys.stdin.buffer.closed


def test_stdin_once_and_not_as_parquet(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^- is in the input twice; name it once$"):
        find(["-", "-"])
    with pytest.raises(InputError, match=r"^Parquet cannot be read from stdin, .*name the file$"):
        find(["-"], format="parquet")
    with (
        stdin_of(b"PAR1....", monkeypatch),
        pytest.raises(InputError, match=r"^stdin is Parquet, .*name the file$"),
    ):
        list(read(find(["-"]), TEXT))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match=r"^stdin is closed; name a file$"):
        list(read(find(["-"]), TEXT))


def test_stdin_as_csv_with_a_missing_column_is_called_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        stdin_of(b"a,b\n1,2\n", monkeypatch),
        pytest.raises(InputError, match=r"^stdin has no column 'text'"),
    ):
        list(read(find(["-"], format="csv"), TEXT))
