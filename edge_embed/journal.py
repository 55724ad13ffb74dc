"""An append-only file of JSON lines, of which a power cut can lose the last one only.

A line counts when it is whole: a JSON object with a newline behind it. `append` returns when its line is on
the disk. Whoever appends must be alone with the file (`locking`). Does not know what the lines mean.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from edge_embed import atomic
from edge_embed.errors import IntegrityError, OutputError

TAIL = 1 << 16  # bytes that are read first to find the last line


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one line and wait until it is on the disk; a torn line before it is cut off first.

    Errors: OutputError; the file then ends where its last whole line ends, as far as the disk lets it.
    """
    line = json.dumps(dict(entry)).encode() + b"\n"  # ASCII, so a newline only ever ends a line
    try:
        # Without a buffer, which would write again what could not be written, after it was cut off.
        with path.open("a+b", buffering=0) as file:
            end = repair(file)
            if end == 0:  # before the first line: a file that holds one is in its folder for good
                atomic.sync_folder(path.parent)
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal, in order; [] where there is no file. A torn last line is left out.

    Errors: IntegrityError for a broken line before the last, which no power cut makes, or an unreadable file.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror or error}") from None
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        entry = parse(line)
        if entry is not None:
            entries.append(entry)
        elif number < len(lines) or rest:
            raise IntegrityError(
                f"{path}, line {number} is not a JSON object though others follow, so the file was edited: "
                f"{line[:40].decode('utf-8', 'replace')!r}; bring back the file as it was"
            )
    return entries


def repair(file: BinaryIO) -> int:
    """Cut a torn last line off an open journal; returns the bytes that are left."""
    size = file.seek(0, os.SEEK_END)
    tail, start = b"", size
    reach = TAIL
    while start and tail.count(b"\n") < 2:  # the end of the last line, and that of the one before
        start = max(0, size - reach)
        file.seek(start)
        tail = file.read(size - start)
        reach *= 4
    *lines, rest = tail.split(b"\n")
    end = size - len(rest)
    if lines and not rest and parse(lines[-1]) is None:
        end -= len(lines[-1]) + 1
    if end < size:
        file.truncate(end)
    return end


def parse(line: bytes) -> dict[str, Any] | None:
    """The object of a line without its newline; None for anything else."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
