"""What `edge-embed tune` measured of a model on this machine: kept, found again, or left aside with a reason.

    EDGE_EMBED_HOME/profiles/ID.json    ID: of the model's folder, the device and the CPU
    {"schema": 1, "made_from": {...}, "measured_at": "...", "compute_types": {"float32": {...}, ...}}

A profile counts while all it was made from is as it was: the model's files by their recorded sha256, the
CPU's instructions, cores and quota, and OpenVINO. Knows files and numbers; measures and decides nothing.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_embed import atomic
from edge_embed.errors import OutputError
from edge_embed.hardware import Machine
from edge_embed.record import hash_file, read_record

SCHEMA = 1

PASS, FAIL = "pass", "fail"  # verdicts of the drift gate

# What a part of `made_from` is for people.
PARTS = {
    "files": "files of the model",
    "machine": "CPU instructions, cores or quota",
    "openvino": "version of OpenVINO",
}


@dataclass(frozen=True, slots=True)
class Tuned:
    """One compute type on this machine, at the fastest of the settings that were tried.

    A setting is None where there was no time to try others than the plan's own.
    """

    texts_per_second: float
    spread: float  # interquartile range of the rounds over their median
    threads: int | None
    streams: int | None
    token_budget: int | None
    windowed_from: int | None
    verdict: str | None  # of the drift gate, against the float32 IR; None: there was none to compare with
    sqnr: float | None = None  # dB against the float32 IR, and its 95 % interval; None: is that itself
    sqnr_low: float | None = None
    sqnr_high: float | None = None
    overlap_10: float | None = None  # share of each text's ten nearest that stay


@dataclass(frozen=True, slots=True)
class Profile:
    """The compute types of one model on one device of one machine."""

    measured_at: str  # UTC, as 2026-05-04T12:30Z
    seconds: float  # that it took
    compute_types: Mapping[str, Tuned]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        types = {name: asdict(tuned) for name, tuned in self.compute_types.items()}
        return {"measured_at": self.measured_at, "seconds": self.seconds, "compute_types": types}


def made_from(folder: Path, files: Iterable[Path], on: Machine, device: str) -> dict[str, Any]:
    """What figures depend on, as JSON values. `files`: the .xml or .onnx that `folder` may be run from.

    Weights without a recorded sha256 are told by size and time of change: to hash them would cost each start.
    """
    import openvino

    recorded = read_record(folder).get("files", {})
    facts = {}
    for path in files:
        for file in (path, path.with_suffix(".bin")):
            name = file.relative_to(folder).as_posix()
            if name in recorded:
                facts[name] = recorded[name]["sha256"]
            elif file.suffix == ".xml":
                facts[name] = hash_file(file)
            elif file.exists():
                facts[name] = f"{file.stat().st_size} {file.stat().st_mtime_ns}"
    return {
        "folder": str(folder.absolute()),
        "device": device,
        "cpu": on.cpu_model,
        "files": facts,
        "machine": {
            "flags": sorted(on.flags),
            "physical_cores": on.physical_cores,
            "logical_cores": on.logical_cores,
            "quota_cores": on.quota_cores,
        },
        "openvino": openvino.get_version(),
    }


def path_of(home: Path, facts: Mapping[str, Any]) -> Path:
    """The file of the profile that was, or will be, made from these facts."""
    key = json.dumps([facts["folder"], facts["device"], facts["cpu"]])
    return home / "profiles" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def read(home: Path, facts: Mapping[str, Any]) -> tuple[Profile | None, str]:
    """The profile that counts now, or None; and in a line which one that is, or why there is none."""
    path = path_of(home, facts)
    try:
        kept = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None, "this model was not tuned on this machine"
    except (OSError, ValueError) as error:
        return None, f"{path} cannot be read: {error}"
    try:
        if kept["schema"] != SCHEMA:
            return None, f"{path} has schema {kept['schema']!r}, this version reads {SCHEMA}"
        told = f"tuned on {kept['measured_at']}"
        changed = [what for part, what in PARTS.items() if kept["made_from"][part] != facts[part]]
        if changed:
            return None, f"{told}, with other {' and '.join(changed)}"
        types = {name: tuned_from(values) for name, values in kept["compute_types"].items()}
        return Profile(str(kept["measured_at"]), float(kept["seconds"]), types), told
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return None, f"{path} is damaged: {type(error).__name__}: {error}"


def tuned_from(values: Mapping[str, Any]) -> Tuned:
    """A row of the file. Errors: TypeError or ValueError for what no measurement gives."""
    tuned = Tuned(**values)
    if not (0 < tuned.texts_per_second < math.inf):
        raise ValueError(f"texts_per_second is {tuned.texts_per_second!r}")
    for name, least in (("threads", 1), ("streams", 1), ("token_budget", 1), ("windowed_from", 0)):
        value = getattr(tuned, name)
        if value is not None and (type(value) is not int or value < least):
            raise ValueError(f"{name} is {value!r}")
    if tuned.verdict not in (None, PASS, FAIL):
        raise ValueError(f"verdict is {tuned.verdict!r}")
    for name in ("spread", "sqnr", "sqnr_low", "sqnr_high", "overlap_10"):
        value = getattr(tuned, name)
        if value is not None and not isinstance(value, int | float):
            raise TypeError(f"{name} is {value!r}")
    return tuned


def write(home: Path, facts: Mapping[str, Any], profile: Profile) -> Path:
    """Keep a profile in the place of the former one, whole or not at all. Errors: OutputError."""
    path = path_of(home, facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    kept = {"schema": SCHEMA, "made_from": dict(facts)} | profile.to_dict()
    atomic.write_text(path, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    return path


def forget(home: Path, facts: Mapping[str, Any]) -> bool:
    """Remove the profile, counting or not; False where there is none. Errors: OutputError."""
    path = path_of(home, facts)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror or error}") from error
    return True
