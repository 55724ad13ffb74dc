"""journal.py: what a power cut, a full disk or an editor leaves is told apart, and nothing glues together."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_embed
from edge_embed import journal
from edge_embed.errors import IntegrityError, OutputError

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits, flushed folders and wording")

ENTRIES: list[dict[str, Any]] = [
    {"job": "größe 漢字\n"},
    {"shard": 0},
    {"shard": 1, "files": {"a": [1, None]}},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of three lines."""
    path = tmp_path / "journal.jsonl"
    for entry in ENTRIES:
        journal.append(path, entry)
    return path


def test_entries_come_back_in_order_and_are_plain_json_lines(path: Path) -> None:
    assert journal.read(path) == ENTRIES
    assert [json.loads(line) for line in path.read_text("ascii").splitlines()] == ENTRIES


def test_a_journal_that_is_not_there_or_empty_has_no_entries(tmp_path: Path) -> None:
    assert journal.read(tmp_path / "journal.jsonl") == []
    (tmp_path / "journal.jsonl").write_bytes(b"")
    assert journal.read(tmp_path / "journal.jsonl") == []


@settings(deadline=None, max_examples=50)  # a disk may take its time
@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none())))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, entries: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("any") / "journal"
    for entry in entries:
        journal.append(path, entry)
    assert journal.read(path) == entries


def test_a_line_is_torn_at_every_byte_and_only_it_is_lost(path: Path) -> None:
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for end in range(start, len(whole)):  # up to the line without its newline
        path.write_bytes(whole[:end])
        assert journal.read(path) == ENTRIES[:2]
        journal.append(path, ENTRIES[2])
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "torn", [b"\0" * 5000, b"\0\0\0\n", b'{"shard":\n', b"\n", b"[1]\n", b"\xff\xfe", b"\xe6\xbc\n"]
)
def test_a_last_line_that_is_not_an_object_is_dropped_and_cut_off(path: Path, torn: bytes) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert journal.read(path) == ENTRIES
    assert path.read_bytes() == whole + torn  # to read is not to write
    journal.append(path, {"shard": 2})
    assert path.read_bytes() == whole + b'{"shard": 2}\n'


@pytest.mark.parametrize("size", [100, journal.TAIL - 20, journal.TAIL, 5 * journal.TAIL])
@pytest.mark.parametrize("torn", [b"", b'{"torn"', b'{"torn"\n'])
def test_lines_of_any_length_are_found_from_the_end(tmp_path: Path, size: int, torn: bytes) -> None:
    path = tmp_path / "journal"
    lines = [{"first": "x" * size}, {"last": "y" * size}]
    for line in lines:
        journal.append(path, line)
    with path.open("ab") as file:
        file.write(torn.replace(b"torn", b"z" * size))
    journal.append(path, {"next": 1})
    assert journal.read(path) == [*lines, {"next": 1}]


def test_a_torn_first_line_leaves_an_empty_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for torn in (b'{"schema"', b"broken\n"):
        path.write_bytes(torn)
        assert journal.read(path) == []
        journal.append(path, {"schema": 1})
        assert path.read_bytes() == b'{"schema": 1}\n'


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("end", [b"", b'{"torn'])
@pytest.mark.parametrize("broken", [b"", b"{", b"1", b"\xff"])
def test_a_broken_line_before_the_last_was_edited_and_is_named(
    path: Path, number: int, broken: bytes, end: bytes
) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = broken
    path.write_bytes(b"\n".join(lines) + end)
    with pytest.raises(IntegrityError, match=rf"journal\.jsonl, line {number} is not a JSON object"):
        journal.read(path)


def test_a_broken_line_before_a_torn_one_was_edited_as_well(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'broken\n{"torn')
    with pytest.raises(IntegrityError, match="line 4 is not a JSON object"):
        journal.read(path)


@posix
def test_a_journal_that_cannot_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"^.* cannot be read: Is a directory$"):
        journal.read(tmp_path)
    with pytest.raises(OutputError, match=r"^cannot write .*: Is a directory$"):
        journal.append(tmp_path, {})
    with pytest.raises(OutputError, match=r"^cannot write .*missing.*: No such file or directory$"):
        journal.append(tmp_path / "missing" / "journal", {})


@posix
def test_a_line_is_flushed_before_append_returns_and_the_folder_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    events: list[tuple[str, int]] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(("file", os.fstat(descriptor).st_size)))
    monkeypatch.setattr(
        "edge_embed.atomic.sync_folder", lambda folder: events.append((folder.name, path.stat().st_size))
    )
    journal.append(path, {"a": 1})
    journal.append(path, {"b": 2})
    assert events == [(tmp_path.name, 0), ("file", 9), ("file", 18)]


def test_a_line_that_could_not_be_flushed_does_not_stand_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = path.read_bytes()

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OutputError, match=r"^cannot write .*journal\.jsonl: Input/output error$"):
            journal.append(path, {"shard": 2})
    assert path.read_bytes() == whole
    journal.append(path, {"shard": 2})
    assert journal.read(path) == [*ENTRIES, {"shard": 2}]


@posix
def test_a_full_disk_is_one_line_and_leaves_whole_lines(path: Path) -> None:
    """The limit falls inside the line, so that half of it is written before the error."""
    whole = path.read_bytes()
    program = f"""\
import resource, sys
from pathlib import Path
from edge_embed import journal
from edge_embed.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(whole) + 20},) * 2)
try:
    journal.append(Path(sys.argv[1]), {{"shard": "x" * 100}})
except OutputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=os.environ | {"PYTHONPATH": str(Path(edge_embed.__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == f"cannot write {path}: File too large\n"
    assert path.read_bytes() == whole
