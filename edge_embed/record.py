"""edge_embed.json: which files a model folder holds, by sha256, and where they came from. Knows no models.

    {"schema": 1, "name": "...", "source": {...},
     "files": {"relative/path": {"sha256": "...", "bytes": 123}}, ...}

Paths are relative and written with `/`, so that the folder can be moved and copied between systems. Keys that
this module does not know are kept as they are: a recipe or a drift summary belongs to who wrote it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edge_embed import atomic
from edge_embed.errors import IntegrityError

RECORD = "edge_embed.json"
SCHEMA = 1
REPAIR = "delete that file, or pull the model again with --force"

Record = dict[str, Any]


def read_record(folder: Path) -> Record:
    """The record of a model folder; {} when there is none.

    Errors: IntegrityError when it is not json, of another schema, or not in the form above.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}; {REPAIR}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise IntegrityError(f"{path} has schema {found!r}, this version reads {SCHEMA}; {REPAIR}")
    files, source = record.get("files", {}), record.get("source", {})
    if not isinstance(files, dict) or not all(map(is_entry, files.values())) or not isinstance(source, dict):
        raise IntegrityError(f'{path}: "files" or "source" is not as this version writes it; {REPAIR}')
    return record


def model_name(folder: Path) -> str:
    """What the record of a folder calls its model, as models/ does where it knows it; "" without a name."""
    return str(read_record(folder).get("name", ""))


def check_json_files(folder: Path, record: Record) -> None:
    """Refuse a folder that lacks a recorded json file: without modules.json, say, it would be another model.

    Weights that are missing are noticed when they are read; the index of shards serves a build only.
    """
    wanted = (name for name in record.get("files", {}) if name.endswith(".json"))
    for name in wanted:
        if not name.endswith(".index.json") and not (folder / name).is_file():
            raise IntegrityError(
                f"{folder / name} is missing, though {RECORD} lists it, and vectors may differ without it; "
                "the folder is only half copied: copy, pull or build it again"
            )


def write_record(folder: Path, record: Record) -> None:
    """Replace the record of a folder, whole or not at all; the schema number is added."""
    text = json.dumps({"schema": SCHEMA} | record, indent=2, ensure_ascii=False)
    atomic.write_text(folder / RECORD, text + "\n")


def file_entries(folder: Path, paths: Iterable[str]) -> dict[str, dict[str, str | int]]:
    """The "files" table for files of a folder, in the order of their names."""
    entries: dict[str, dict[str, str | int]] = {}
    for path in sorted(paths):
        file = folder / path
        entries[path] = {"sha256": hash_file(file), "bytes": file.stat().st_size}
    return entries


def hash_file(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """sha256 of a file in hex, in 1 MiB pieces; `advance` hears the bytes of each, for a progress bar."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            if advance:
                advance(len(piece))
    return digest.hexdigest()


def is_entry(entry: object) -> bool:
    """Whether a value of "files" has the two keys that everyone reads."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("bytes"), int)
    )
