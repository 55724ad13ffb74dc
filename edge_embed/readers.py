"""Files of texts to rows in one fixed order: JSONL, CSV, TSV and Parquet, plain, gzip or zstd, and stdin.

Knows files, rows and what makes a row unfit. A row that cannot be used comes out as Bad, in its place, and
the reading goes on; a file that cannot be read is an InputError. Holds a row, or a batch of Parquet rows, at
a time, however large the input. Does not know models, tokens, or what becomes of a row.

The order is that of `inputs`, in a folder and in a glob that of the path in code points with `/` between its
parts, and in a file the file's own. So a row keeps its position from run to run and from system to system.
"""

import codecs
import contextlib
import csv
import glob
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from edge_embed.errors import InputError
from edge_embed.shards import import_pyarrow

__all__ = ["FORMATS", "Bad", "Columns", "Row", "Source", "check", "find", "read"]

Kind = Literal["jsonl", "csv", "tsv", "parquet"]
FORMATS: tuple[Kind, ...] = ("jsonl", "csv", "tsv", "parquet")
KINDS: Mapping[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
KNOWN = f"{', '.join(KINDS)}; all but Parquet also with .gz or .zst behind"
UNFINISHED = ".partial"

Compression = Literal["gzip", "zstd"]
COMPRESSIONS: Mapping[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
MAGIC: Mapping[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # never UTF-8
PARQUET_MAGIC = b"PAR1"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

LONGEST = 64 << 20  # bytes of one line; a table of one line, or a quote that never ends, must not fill memory
LONGEST_EXCERPT = 200  # characters
NAMES_SHOWN = 8
ZSTD_BLOCK = 16 << 10  # where a zstd stream breaks off, the lines of one unfinished block are lost with it
PARQUET_BUFFER = 1 << 20  # read column chunks in pieces; a row group may be the whole file
PARQUET_ROWS = 1_000
PARQUET_BYTES = 64 << 20  # and no more rows at a time than are about this large, beside a page of the file

SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Source:
    """One input: a file as `find` saw it, or stdin, of which nothing is known before it is read."""

    path: Path | None  # None: stdin
    kind: Kind
    compression: Compression | None  # None for stdin, too, where `read` looks at the first bytes
    bytes: int | None
    mtime_ns: int | None

    @property
    def name(self) -> str:
        """The path as it was given or found, or "-"."""
        return "-" if self.path is None else str(self.path)


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of what a row is made of."""

    text: str
    id: str | None  # None: the position is the id
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One text. `text` may hold half a surrogate pair, as JSON may; ids and kept strings are whole UTF-8."""

    position: int  # among all rows of all sources, bad ones too, from 0
    source: int  # index in the list of sources
    line: int  # from 1: where the record starts in a text file, header included; the row in Parquet
    id: str | int  # within int64
    text: str
    kept: tuple[Any, ...]  # in the order of Columns.keep; None, bool, int, float or str


@dataclass(frozen=True, slots=True)
class Bad:
    """One row that cannot be used, counted like any other."""

    position: int
    source: int
    line: int
    reason: str  # one line
    excerpt: str  # of what was there, printable


class Unfit(Exception):
    """A row cannot be used, for this reason."""


class Record(NamedTuple):
    """A row as it lies in its file: where, what it says (or Unfit), and what to show if it is bad."""

    line: int
    values: Callable[[], Mapping[str, Any]]
    shown: bytes | str | Mapping[str, Any]


@dataclass(slots=True)
class Cursor:
    """Where a reading is, how far it passes over rows, and what kind of id the job has."""

    columns: Columns
    skip: int
    position: int = 0
    id_type: type | None = None  # str or int, by the first fit id; a skipping reader looks for it, too

    def passes(self, rows: int) -> bool:
        """Whether so many rows from here need no look inside."""
        settled = self.columns.id is None or self.id_type is not None
        return settled and self.position + rows <= self.skip


# ---- finding


def find(inputs: Sequence[str], *, format: str | None = None) -> list[Source]:
    """The sources that `inputs` name, in order.

    inputs: files, folders (their files of a known suffix, at any depth), globs (`**` for any depth), or "-"
    for stdin. Folders and globs leave out hidden files and unfinished *.partial ones; links to folders are
    not followed.
    format: one of FORMATS, for stdin (else jsonl) and for files without a known suffix

    Errors: InputError for what is not there or may not be read, for an unknown suffix, a folder or a glob
    without any file, and a file that is named twice.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    sources = [source for given in inputs for source in sources_of(given, format)]
    if not sources:
        raise InputError("no input; name files, folders or globs, or - for stdin")
    names: dict[Path | None, str] = {}
    for source in sources:
        place = source.path and source.path.resolve()
        if place in names:
            first = names[place]
            also = "" if first == source.name else f", also as {first}"
            raise InputError(f"{source.name} is in the input twice{also}; name it once")
        names[place] = source.name
    return sources


def sources_of(given: str, kind: Kind | None) -> list[Source]:
    """The sources that one word of the input means."""
    if given == "-":
        if kind == "parquet":
            raise InputError("Parquet cannot be read from stdin, its index is at its end; name the file")
        return [Source(None, kind or "jsonl", None, None, None)]
    path = Path(given)
    try:
        if path.is_dir():
            paths = [path / name for name in sorted(names_within(path)) if kind_of(path / name)]
            if not paths:
                raise InputError(f"{given} has no file that ends in {KNOWN}; name files and their format")
        elif path.exists():
            paths = [path]
        elif glob.has_magic(given):
            # pathlib's own globs show hidden files, and mean another ** in every other Python.
            found = map(Path, glob.glob(given, recursive=True))  # noqa: PTH207
            files = {file for file in found if not file.is_dir() and file.suffix != UNFINISHED}
            paths = sorted(files, key=Path.as_posix)
            if not paths:
                raise InputError(f"no file matches {given}; check the pattern and the folder it starts from")
        else:
            raise InputError(f"{given} does not exist; name a file, a folder or a glob, or - for stdin")
        return [source_at(path, kind) for path in paths]
    except OSError as error:
        raise InputError(f"cannot read {error.filename or given}: {told(error)}") from None


def names_within(folder: Path) -> Iterator[str]:
    """The files of a folder as relative paths with `/`, without hidden ones."""

    def stop(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield Path(place, name).relative_to(folder).as_posix()


def source_at(path: Path, kind: Kind | None) -> Source:
    """The source that one file is. Its suffix goes before the wished kind; its first bytes are looked at."""
    known = kind_of(path) or kind
    if known is None:
        raise InputError(f"{path} ends in {path.suffix!r}; known: {KNOWN}; or say its format")
    if path.exists() and not path.is_file():  # a named pipe cannot be read again by a job that goes on
        raise InputError(f"{path} is not a regular file; pipe it to stdin and name -")
    with path.open("rb") as file:
        head = file.read(4)
        about = os.fstat(file.fileno())
    compression = None if known == "parquet" else COMPRESSIONS.get(path.suffix.lower()) or packed(head)
    return Source(path, known, compression, about.st_size, about.st_mtime_ns)


def kind_of(path: Path) -> Kind | None:
    """The kind that the suffix says, upper case or lower; None where it says none."""
    kind = KINDS.get(suffix_of(path))
    return None if kind == "parquet" and path.suffix.lower() in COMPRESSIONS else kind


def suffix_of(path: Path) -> str:
    """The suffix in lower case; what stands before it where it is one of compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


def packed(head: bytes) -> Compression | None:
    """The compression that the first four bytes of a file show."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


# ---- reading


def check(sources: Sequence[Source], columns: Columns) -> None:
    """Open every file and read its first row, so that a missing column shows before hours of work.

    Errors: InputError, as `read`. Stdin is left alone, for it can be read only once.
    """
    for source in sources:
        if source.path is not None:
            with contextlib.closing(read([source], columns)) as rows:
                next(rows, None)


def read(sources: Sequence[Source], columns: Columns, *, skip: int = 0) -> Generator[Row | Bad, None, None]:
    """Each row of each source, or what is wrong with it, from position `skip` on.

    A row has as position its number among all rows, whatever `skip` is; rows below `skip` are counted, but
    only looked into until the kind of the ids is known. Blank lines of JSONL and CSV are no rows. An empty
    text is a text. CSV is UTF-8 with a header, RFC 4180 quotes and ids that are strings.

    Ids are strings or whole numbers within int64, all of one kind: that of the job's first fit id. Kept
    values that are lists or objects come as JSON text, dates, times and decimals of Parquet as text; a key
    that a JSONL row lacks gives None.

    Errors: InputError for a file that cannot be opened, has no such column, holds no text in it (Parquet),
    is UTF-16, or breaks off; the rows before that place have come out by then.
    """
    cursor = Cursor(columns, skip)
    for index, source in enumerate(sources):
        for record in RECORDS[source.kind](source, cursor):
            if not cursor.passes(1):
                row = understood(record, index, cursor)
                if cursor.position >= skip:
                    yield row
            cursor.position += 1


def understood(record: Record, index: int, cursor: Cursor) -> Row | Bad:
    """A record as a Row, or as Bad with the first thing that is wrong with it."""
    columns = cursor.columns
    try:
        values = record.values()
        identity = id_in(values, cursor)  # first: the first fit id counts even where the text is missing
        text = text_in(values, columns.text)
        kept = tuple(kept_in(values, name) for name in columns.keep)
    except Unfit as unfit:
        return Bad(cursor.position, index, record.line, str(unfit), excerpt(record.shown))
    return Row(cursor.position, index, record.line, identity, text, kept)


def id_in(values: Mapping[str, Any], cursor: Cursor) -> str | int:
    """The id of a row; its kind becomes the job's if it is the first."""
    name = cursor.columns.id
    if name is None:
        return cursor.position
    value = present(values, name)
    if type(value) is int:
        if not -(2**63) <= value < 2**63:
            raise Unfit(f"the id {name!r} is outside 64 bits")
    elif isinstance(value, str):
        whole(value, f"the id {name!r}")
    else:
        raise Unfit(f"the id {name!r} is {described(value)}, not a string or a whole number")
    if cursor.id_type is None:
        cursor.id_type = type(value)
    elif type(value) is not cursor.id_type:
        first = described(cursor.id_type())
        raise Unfit(f"the id {name!r} is {described(value)}, but the first of the job is {first}")
    return cast(str | int, value)


def text_in(values: Mapping[str, Any], name: str) -> str:
    """The text of a row."""
    value = present(values, name)
    if not isinstance(value, str):
        raise Unfit(f"the text {name!r} is {described(value)}, not a string")
    return value


def kept_in(values: Mapping[str, Any], name: str) -> Any:
    """A kept value; None where the row has none."""
    value = values.get(name)
    if isinstance(value, list | dict):
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        except RecursionError:
            raise Unfit(f"{name!r} is nested too deeply") from None
    return whole(value, repr(name)) if isinstance(value, str) else value


def present(values: Mapping[str, Any], name: str) -> Any:
    """The value under a key that has to be there."""
    if name not in values:
        raise Unfit(f"no {name!r} among its keys: {listed(values) or 'it has none'}")
    return values[name]


def whole(value: str, what: str) -> str:
    """A string that can be written as UTF-8, which half a surrogate pair cannot."""
    if not value.isascii() and SURROGATE.search(value):
        raise Unfit(f"{what} holds half a surrogate pair, which UTF-8 cannot write")
    return value


def described(value: object) -> str:
    """The type of a value in words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    words = {str: "a string", int: "a whole number", float: "a fraction", list: "a list", dict: "an object"}
    return words[type(value)]


# ---- text files


def lines(source: Source) -> Iterator[bytes]:
    """Lines with their ends, without a byte order mark. Of one over LONGEST only the beginning, LONGEST + 1.

    Errors: InputError, with the last line that was whole.
    """
    number = 0
    try:
        with opened(source) as stream:
            while line := stream.readline(LONGEST + 1):
                if number == 0:
                    if line.startswith(UTF16):
                        raise InputError(f"{label(source)} is UTF-16; convert it to UTF-8")
                    line = line.removeprefix(codecs.BOM_UTF8)
                if len(line) > LONGEST:
                    pass_over_rest(stream, line)
                number += 1
                yield line
    except (OSError, EOFError, zlib.error) as error:
        if number == 0:
            raise InputError(f"cannot read {label(source)}: {told(error)}") from None
        raise InputError(
            f"{label(source)} breaks off after line {number}: {told(error)}; put a whole file in its place"
        ) from None


def pass_over_rest(stream: Any, line: bytes) -> None:
    """Read to the end of a line of which the beginning is known, and keep nothing."""
    while line and not line.endswith(b"\n"):
        line = stream.readline(1 << 20)


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Any]:
    """The unpacked bytes of a source, as a buffered stream."""
    with contextlib.ExitStack() as stack:
        stream: Any
        if source.path is None:
            stream, compression = open_stdin()
        else:
            stream, compression = stack.enter_context(source.path.open("rb")), source.compression
        if compression == "gzip":
            stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
        elif compression == "zstd":
            pyarrow = import_pyarrow("zstd")
            unpacking = pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")
            stream = stack.enter_context(io.BufferedReader(unpacking, ZSTD_BLOCK))
        yield stream


def open_stdin() -> tuple[io.BufferedReader, Compression | None]:
    """Stdin from its beginning, and how it is compressed."""
    if sys.stdin is None:
        raise InputError("stdin is closed; name a file")
    stdin = sys.stdin.buffer
    head = stdin.read(4)
    if head == PARQUET_MAGIC:
        raise InputError("stdin is Parquet, whose index is at its end; name the file")
    return io.BufferedReader(Rejoined(head, stdin)), packed(head)


class Rejoined(io.RawIOBase):
    """A stream of which the first bytes were read already. Closing it leaves the stream open.

    `peek` would do, were it not free to show a single byte when a pipe has sent no more so far.
    """

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self._head or self._rest.read1(len(target))
        self._head, data = data[len(target) :] if self._head else b"", data[: len(target)]
        target[: len(data)] = data
        return len(data)


def jsonl_records(source: Source, _cursor: Cursor) -> Iterator[Record]:
    """One JSON object a line. A *.json file that is something else is refused as a whole."""
    doubtful = source.path is not None and suffix_of(source.path) == ".json"
    for number, line in enumerate(lines(source), 1):
        if line.isspace() or not line:
            continue
        if doubtful:
            try:
                json_object(line)
            except Unfit as unfit:
                raise InputError(
                    f"{source.name} is not JSON lines (line {number}: {unfit}); write one object a line, "
                    "or leave the file out"
                ) from None
            doubtful = False
        yield Record(number, partial(json_object, line), line)


def json_object(line: bytes) -> dict[str, Any]:
    """The object that a line holds."""
    if len(line) > LONGEST:
        raise Unfit(f"the line is longer than {LONGEST >> 20} MB")
    try:
        found = json.loads(line.decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise Unfit(not_utf8(line[error.start], error.start)) from None
    except json.JSONDecodeError as error:
        raise Unfit(f"not JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise Unfit("not readable as JSON: nested too deeply") from None
    except ValueError as error:  # a number of 5,000 digits
        raise Unfit(f"not readable as JSON: {told(error)}") from None
    if not isinstance(found, dict):
        raise Unfit(f"the line is {described(found)}, not an object")
    return found


class TooLong(Exception):
    """A record of CSV has no end in sight."""


class Feed:
    """Lines for csv.reader, which can be given again from the second line of a record that failed."""

    def __init__(self, source: Iterable[bytes]) -> None:
        # Bytes that are not UTF-8 become lone surrogates, which nothing else decodes to, so that they cost
        # one record. The splitting is that of files opened with newline="", as the csv module wants them.
        parts = (part for line in source for part in line.splitlines(keepends=True))
        self._lines = (part.decode("utf-8", "surrogateescape") for part in parts)
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self._size = 0
        self.line = 1  # of the first line of the record

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._taken.append(line)
        self._size += len(line)
        if self._size > LONGEST:
            raise TooLong
        return line

    @property
    def record(self) -> str:
        """All lines of the record so far."""
        return "".join(self._taken)

    def begin(self) -> None:
        """Start the next record."""
        self.line += len(self._taken)
        self._taken, self._size = [], 0

    def give_up(self) -> None:
        """Let the record be its first line alone, and give the others again."""
        self._again.extendleft(reversed(self._taken[1:]))
        del self._taken[1:]


def csv_records(source: Source, cursor: Cursor) -> Iterator[Record]:
    """The records of CSV or TSV below their header.

    Read strictly: what follows a closing quote is an error, not text, for it means that a quote was left open
    some rows above. Then the line where it opened is one bad record, and the next line begins another.
    """
    delimiter = "\t" if source.kind == "tsv" else ","
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))  # of the process; 131,072 unless raised
    header: list[str] | None = None
    feed = Feed(lines(source))
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin()
        fields: list[str] = []
        fault = None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except TooLong:
            fault = f"a line, or a quote that does not end, is longer than {LONGEST >> 20} MB"
        except csv.Error as error:
            fault = f"not CSV: {told(error)}"
        if fault is not None:
            feed.give_up()
            reader = csv.reader(feed, delimiter=delimiter, strict=True)  # the old one holds what it read
        elif not fields:
            continue
        if header is None:
            if fault is not None:
                raise InputError(f"{label(source)} has no header in line {feed.line}: {fault}")
            header = fields
            check_columns(source, cursor.columns, header)
        else:
            text = feed.record
            yield Record(feed.line, partial(csv_values, header, fields, text, fault), text)


def csv_values(header: Sequence[str], fields: Sequence[str], text: str, fault: str | None) -> dict[str, str]:
    """The fields of a record under the names of their columns."""
    broken = None if text.isascii() else SURROGATE.search(text)
    if broken:
        offset = len(text[: broken.start()].encode("utf-8"))
        raise Unfit(not_utf8(ord(broken[0]) & 0xFF, offset))
    if fault is not None:
        raise Unfit(fault)
    if len(fields) != len(header):
        raise Unfit(f"{len(fields)} fields, where the header has {len(header)}")
    return dict(zip(header, fields, strict=True))


def not_utf8(byte: int, offset: int) -> str:
    """The reason for a row that cannot be decoded."""
    return f"not UTF-8: byte {byte:#04x} at {offset}"


# ---- Parquet


def parquet_records(source: Source, cursor: Cursor) -> Iterator[Record]:
    """The rows of a Parquet file, of the needed columns only. Row groups that are passed over stay unread."""
    pyarrow = import_pyarrow("Parquet")
    from pyarrow import parquet

    columns = cursor.columns
    names = list(dict.fromkeys(wanted(columns)))
    row = 0  # of the file
    troubles = (OSError, ValueError, pyarrow.ArrowException)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(
                parquet.ParquetFile(source.path, buffer_size=PARQUET_BUFFER, pre_buffer=False)
            )
        except troubles as error:
            raise InputError(f"cannot read {label(source)}: {told(error)}") from None
        check_columns(source, columns, file.schema_arrow.names)
        check_types(source, columns, file.schema_arrow)
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            if cursor.passes(about.num_rows):
                cursor.position += about.num_rows
                row += about.num_rows
                continue
            fitting = PARQUET_BYTES * about.num_rows // max(1, about.total_byte_size)
            batches = file.iter_batches(
                max(1, min(PARQUET_ROWS, fitting)), row_groups=[group], columns=names, use_threads=False
            )
            while True:
                try:
                    batch = next(batches, None)
                    if batch is None:
                        break
                    if cursor.passes(batch.num_rows):
                        cursor.position += batch.num_rows
                        row += batch.num_rows
                        continue
                    rows = list(zip(*(values_of(batch.column(name)) for name in names), strict=True))
                except troubles as error:
                    raise InputError(f"{label(source)} breaks off after row {row}: {told(error)}") from None
                for found in rows:
                    row += 1
                    values = dict(zip(names, found, strict=True))
                    yield Record(row, partial(decoded, values), values)


def check_types(source: Source, columns: Columns, schema: Any) -> None:
    """Refuse Parquet columns whose type can hold no text, no id, or nothing that is kept."""
    from pyarrow import types

    def refuse(name: str, role: str, wish: str) -> None:
        kind = schema.field(name).type
        raise InputError(f"{label(source)}: the {role} column {name!r} is of type {kind}; it must be {wish}")

    if not is_text(schema.field(columns.text).type):
        refuse(columns.text, "text", "strings")
    if columns.id is not None:
        kind = schema.field(columns.id).type
        if not (is_text(kind) or types.is_integer(kind)):
            refuse(columns.id, "id", "strings or whole numbers")
    for name in columns.keep:
        kind = schema.field(name).type
        if not (is_text(kind) or is_plain(kind) or is_text_on_demand(kind) or types.is_nested(kind)):
            refuse(name, "kept", "strings, numbers, booleans, dates, times, lists or structs")


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is a string of any layout."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view))


def is_plain(kind: Any) -> bool:
    """Whether the values of an Arrow type are None, bool, int or float in Python."""
    from pyarrow import types

    return any(test(kind) for test in (types.is_null, types.is_boolean, types.is_integer, types.is_floating))


def is_text_on_demand(kind: Any) -> bool:
    """Whether the values of an Arrow type are kept as the text that Arrow writes for them."""
    from pyarrow import types

    tests = (types.is_date, types.is_time, types.is_timestamp, types.is_decimal)
    return any(test(kind) for test in tests)


def values_of(column: Any) -> list[Any]:
    """A column as Python values: strings as bytes, because a file may hold some that are not UTF-8."""
    import pyarrow

    if is_text(column.type):
        column = column.cast(pyarrow.large_binary())
    elif is_text_on_demand(column.type):
        column = column.cast(pyarrow.string())
    values: list[Any] = column.to_pylist()
    return values


def decoded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a Parquet row with their strings decoded."""
    row = {}
    for name, value in values.items():
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError as error:
                fault = not_utf8(value[error.start], error.start)
                raise Unfit(f"{name!r} is {fault}") from None
        row[name] = value
    return row


# ---- words


def check_columns(source: Source, columns: Columns, names: Sequence[str]) -> None:
    """Refuse a table that lacks a column, or has it twice."""
    for name in wanted(columns):
        count = names.count(name)
        if count == 0:
            raise InputError(f"{label(source)} has no column {name!r}; its columns: {listed(names)}")
        if count > 1:
            raise InputError(f"{label(source)} has {count} columns named {name!r}; rename all but one")


def wanted(columns: Columns) -> list[str]:
    """The names of all columns that are read."""
    return [columns.text, *([] if columns.id is None else [columns.id]), *columns.keep]


def label(source: Source) -> str:
    """A source as a message calls it."""
    return "stdin" if source.path is None else source.name


def listed(names: Iterable[str]) -> str:
    """The first names of a table or an object, on one line."""
    shown = [excerpt(repr(name), 60) for name in names]
    more = len(shown) - NAMES_SHOWN
    return ", ".join(shown[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def told(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def excerpt(content: bytes | str | Mapping[str, Any], longest: int = LONGEST_EXCERPT) -> str:
    """The beginning of what was there, printable, on one line and not over `longest` characters."""
    if isinstance(content, Mapping):
        shown = (value if isinstance(value, bytes) else str(value) for value in content.values())
        content = ", ".join(f"{name}: {excerpt(value)}" for name, value in zip(content, shown, strict=True))
    if isinstance(content, str):
        content = content[: longest + 1].encode("utf-8", "surrogateescape")
    text = content[: 4 * (longest + 1)].decode("utf-8", "backslashreplace").rstrip("\r\n")[: longest + 1]
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


RECORDS: Mapping[Kind, Callable[[Source, Cursor], Iterator[Record]]] = {
    "jsonl": jsonl_records,
    "csv": csv_records,
    "tsv": csv_records,
    "parquet": parquet_records,
}
