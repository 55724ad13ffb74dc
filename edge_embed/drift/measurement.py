"""drift.json: everything that was measured of one candidate, as values that are written and read back.

Knows no model, no floor and no layout of a report. Numbers that are no numbers (NaN) are null in the file.

    schema 1; the keys are the fields of Measurement, and of the classes in it
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_embed import atomic
from edge_embed.drift.metrics import Drift, Interval, SliceDrift
from edge_embed.errors import InputError

SCHEMA = 1
AGAIN = "measure again: edge-embed drift measure"


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured."""

    name: str  # of models/, or of the folder
    compute_type: str
    file: str  # of the folder, with `/`
    weights_sha256: str  # of the checkpoint, as the reference has it: candidates of one model share it
    file_sha256: str  # of the .xml and .bin together: each candidate has its own
    file_bytes: int  # of both
    settings: Mapping[
        str, Any
    ]  # requested and effective properties, threads, passes, pooling, prompts, limit
    provenance: Mapping[str, Any]  # recipe and calibration on record, and what NNCF wrote into the IR


@dataclass(frozen=True, slots=True)
class Environment:
    """Where it was measured."""

    cpu_model: str
    cpu_class: str  # of hardware.Machine: baselines of one class are not for another
    flags: tuple[str, ...]
    threads: int
    isa: str  # ONEDNN_MAX_CPU_ISA; "" where it is not set
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Against:
    """The reference, and the texts."""

    sha256: str  # of reference.npz
    source: str  # "evaluation" or a file's name
    texts_sha256: str  # of ids, roles, texts and tokens of the rows that were measured: pairs need the same
    n: int
    versions: Mapping[str, str]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Invariant:
    """What must hold whatever the model, and how far it is from doing so. At most `limit` passes."""

    id: str  # finite, pinned, width, distinct, unit_norm, batch, order, padding, repeat, truncation
    value: float  # NaN: could not be found out, which fails
    limit: float
    what: str  # for people: what was compared, and where it was worst


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the ledger: a way to run the model, against the reference and against the stage before."""

    name: str  # float32, default, simulated, executed, executed_default, emulated, saturated
    what: str  # for people
    previous: str  # name of the stage it is compared with; "reference" for the first
    from_reference: Interval | None  # dB; None: it did not run
    from_previous: Interval | None
    cosine_mean: float | None
    trouble: str  # why it did not run, or ""


@dataclass(frozen=True, slots=True)
class PerText:
    """(N,) each, in the order of the reference."""

    ids: tuple[str, ...]
    noise: tuple[float, ...]  # `noise_power`, centred; 0.01 is 20 dB
    cosine: tuple[float, ...]
    overlap_10: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A text near another."""

    id: str
    cosine: float
    excerpt: str  # "" where excerpts are left out


@dataclass(frozen=True, slots=True)
class Worst:
    """One of the noisiest texts, with its nearest by both sides, nearest first."""

    id: str
    slices: tuple[str, ...]
    sqnr: float  # dB
    cosine: float
    excerpt: str
    reference: tuple[Neighbour, ...]
    candidate: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The noise that one part of the model adds when it alone is quantized."""

    name: str  # of the operator in the IR, or "layer 3"
    layer: int | None  # None: embeddings and what stands before the layers
    kind: str  # activation, weight, table; layer for a whole layer
    noise: float  # mean `noise_power` over texts
    share: float  # of the noise of the whole, 0 to about 1


@dataclass(frozen=True, slots=True)
class Located:
    """Where noise comes from."""

    n: int  # texts
    total: float  # noise of all parts together, simulated
    layers: tuple[Source, ...]  # in order
    operators: tuple[Source, ...]  # the worst first


@dataclass(frozen=True, slots=True)
class Measurement:
    """drift.json."""

    schema: int
    measured_at: str  # UTC, as 2026-05-04T12:30Z
    seconds: float
    subject: Subject
    environment: Environment
    against: Against
    crash: str  # how the candidate's process ended, or ""; then what follows is empty
    drift: Drift | None  # None: it crashed, or its vectors cannot be compared (see invariants)
    variants: tuple[SliceDrift, ...]  # of all texts: "dim 256", "precision int8"; their own slices: none
    slices: Mapping[str, tuple[int, ...]]  # "language de" -> rows; those of drift.slices
    per_text: PerText | None
    invariants: tuple[Invariant, ...]
    ledger: tuple[Stage, ...]
    worst: tuple[Worst, ...]
    located: Located | None  # None: it was not looked for


def to_dict(value: Any) -> Any:
    """A dataclass, or anything in one, as JSON values; what is no finite number is None."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write(measurement: Measurement, target: Path) -> None:
    """Write drift.json, whole or not at all. Errors: OutputError."""
    text = json.dumps(to_dict(measurement), ensure_ascii=False, indent=1, allow_nan=False)
    atomic.write_text(target, text + "\n")


def read(path: Path) -> Measurement:
    """Read drift.json. Errors: InputError for what is missing, cut, of another schema or not as written."""
    values = read_json(path, SCHEMA, "drift file", AGAIN)
    try:
        found: Measurement = from_values(Measurement, values, "")
    except ValueError as error:
        raise InputError(f"{path} is no drift file of this version: {error}; {AGAIN}") from None
    return found


def read_json(path: Path, schema: int, what: str, again: str) -> dict[str, Any]:
    """The object in a file, of that schema. Errors: InputError."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no {what}, or was cut: {error}; {again}") from None
    if not isinstance(values, dict) or values.get("schema") != schema:
        found = values.get("schema") if isinstance(values, dict) else type(values).__name__
        raise InputError(f"{path} has schema {found!r}, this version reads {schema}; {again}")
    return values


def from_values(kind: Any, value: Any, where: str) -> Any:
    """JSON values as the type says: the inverse of `to_dict`. Errors: ValueError naming the key."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'it'} is not an object")
        hints = typing.get_type_hints(kind)
        if wrong := value.keys() ^ hints.keys():
            raise ValueError(f"{where}{'.' if where else ''}{min(wrong)} is unknown, or missing")
        return kind(**{k: from_values(hints[k], v, f"{where}.{k}".lstrip(".")) for k, v in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else from_values(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(from_values(arguments[0], item, where) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {key: from_values(arguments[1], item, where) for key, item in value.items()}
    if kind is Any or type(value) is kind:
        return value
    if kind is float and (value is None or type(value) is int):
        return math.nan if value is None else float(value)
    raise ValueError(f"{where} is {json.dumps(value)[:40]}")
