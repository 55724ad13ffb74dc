"""baseline.json: candidates that were approved, and what the next ones are compared with.

    {"schema": 1, "baselines": [...]}; the keys are the fields of Baseline

One entry for each checkpoint, compute type and class of CPU, as nothing is compared across any of them. Knows
files and values; compares nothing, and does not know who may approve what.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from edge_embed import atomic
from edge_embed.drift import measurement
from edge_embed.drift.measurement import Against, Environment, Measurement, PerText, Subject
from edge_embed.drift.metrics import Drift, Floats, Interval
from edge_embed.errors import InputError, MismatchError

SCHEMA = 1
AGAIN = "take it from version control, or delete it and approve again: edge-embed approve"
APPROVE = "approve the candidate: edge-embed approve"

# Values of Drift that speak of all texts, and that a budget has floors for.
HEADLINES = (
    "sqnr",
    "overlap_10",
    "sqnr_p1",
    "overlap_10_asymmetric",
    "top_1",
    "spearman",
    "ndcg_10_change",
)


@dataclass(frozen=True, slots=True)
class Baseline:
    """An approved candidate. Of its texts there are ids only."""

    approved_at: str  # UTC, as 2026-05-04T12:30Z
    approved_by: str  # "" where nobody is named
    reason: str
    measured_at: str
    subject: Subject
    environment: Environment
    against: Against
    values: Mapping[str, Interval]  # as `headlines` gives them
    ids: tuple[str, ...]  # (N,), and so are the two below
    noise: tuple[float, ...]  # `noise_power`, centred
    overlap_10: tuple[float, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """What two candidates must share to be compared, beside their texts."""
        return key_of(self.subject, self.environment)

    @property
    def line(self) -> str:
        """For people: which one this is."""
        by = f" by {self.approved_by}" if self.approved_by else ""
        return f"{self.subject.file_sha256[:12]}, approved {self.approved_at}{by}: {self.reason}"


@dataclass(frozen=True, slots=True)
class File:
    """What is in the file."""

    schema: int
    baselines: tuple[Baseline, ...]


def key_of(subject: Subject, environment: Environment) -> tuple[str, str, str]:
    """Checkpoint, compute type and class of CPU."""
    return subject.weights_sha256, subject.compute_type, environment.cpu_class


def headlines(drift: Drift) -> dict[str, Interval]:
    """The HEADLINES that were measured; what has no interval has its value as both ends."""
    found = {key: getattr(drift, key) for key in HEADLINES}
    return {
        key: value if isinstance(value, Interval) else Interval(value, value, value)
        for key, value in found.items()
        if value is not None
    }


def approved(found: Measurement, *, reason: str, by: str = "") -> Baseline:
    """The baseline that a measurement makes, from now on.

    Errors: InputError where it has no vectors, or figures that no measurement gives.
    """
    if found.drift is None or found.per_text is None:
        raise InputError(f"{found.subject.name} gave no vectors, and nothing can be compared with that")
    new = Baseline(
        approved_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        approved_by=by,
        reason=reason,
        measured_at=found.measured_at,
        subject=found.subject,
        environment=found.environment,
        against=found.against,
        values=headlines(found.drift),
        ids=found.per_text.ids,
        noise=found.per_text.noise,
        overlap_10=found.per_text.overlap_10,
    )
    try:
        check(new, found.subject.name)
    except ValueError as error:
        raise InputError(f"the drift file is damaged: {error}; {measurement.AGAIN}") from None
    return new


def put(baselines: Sequence[Baseline], new: Baseline) -> tuple[Baseline, ...]:
    """The baselines with a new one in the place of that with its key, or behind them."""
    if all(old.key != new.key for old in baselines):
        return (*baselines, new)
    return tuple(new if old.key == new.key else old for old in baselines)


def find(baselines: Sequence[Baseline], found: Measurement) -> Baseline:
    """The baseline that a measurement can be compared with.

    Errors: MismatchError naming what differs: checkpoint, compute type, class of CPU or texts.
    """
    left = list(baselines)
    own = key_of(found.subject, found.environment)
    for place, what in enumerate(("checkpoint sha256", "compute type", "CPU class")):
        others = sorted({one.key[place] for one in left})
        left = [one for one in left if one.key[place] == own[place]]
        if not left:
            raise MismatchError(
                f"no baseline has the {what} {own[place]} of {found.subject.name}, only "
                f"{', '.join(others) or 'none at all'}; {APPROVE}"
            )
    (one,) = left
    if one.against.texts_sha256 != found.against.texts_sha256:
        raise MismatchError(
            f"the baseline is of other texts ({one.against.n:,} from {one.against.source}, sha256 "
            f"{one.against.texts_sha256[:12]}) than the candidate ({found.against.n:,} from "
            f"{found.against.source}, {found.against.texts_sha256[:12]}); measure with those, or {APPROVE}"
        )
    return one


def pairs(baseline: Baseline, per_text: PerText) -> tuple[Floats, Floats]:
    """Noise and overlap of the baseline, (N,) each, in the order of the candidate's texts.

    Errors: MismatchError naming a text that the baseline does not have.
    """
    rows = {id: row for row, id in enumerate(baseline.ids)}
    if lost := [id for id in per_text.ids if id not in rows]:
        raise MismatchError(f"the baseline lacks {len(lost)} texts, first {lost[0]!r}; {APPROVE}")
    order = [rows[id] for id in per_text.ids]
    return np.array(baseline.noise)[order], np.array(baseline.overlap_10)[order]


def write(baselines: Sequence[Baseline], target: Path) -> None:
    """Write baseline.json, whole or not at all. Errors: OutputError."""
    values = measurement.to_dict(File(SCHEMA, tuple(baselines)))
    atomic.write_text(target, json.dumps(values, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> tuple[Baseline, ...]:
    """Read baseline.json. Errors: InputError for what is missing, cut, edited or of another schema."""
    values = measurement.read_json(path, SCHEMA, "baseline file", AGAIN)
    try:
        file: File = measurement.from_values(File, values, "")
        for place, one in enumerate(file.baselines):
            check(one, f"baselines[{place}]")
        keys = [one.key for one in file.baselines]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"two baselines are of {' '.join(twice[0])}")
    except ValueError as error:
        raise InputError(f"{path} is no baseline file of this version: {error}; {AGAIN}") from None
    return file.baselines


def check(one: Baseline, where: str) -> None:
    """Refuse what no measurement gives. Errors: ValueError naming the key."""
    n = one.against.n
    for name in ("ids", "noise", "overlap_10"):
        column = getattr(one, name)
        if len(column) != n:
            raise ValueError(f"{where}.{name} has {len(column)} rows, and {n} texts were measured")
        if name != "ids" and not all(0 <= value < math.inf for value in column):
            raise ValueError(f"{where}.{name} has a row that no measurement gives")
    if len(set(one.ids)) != n:
        raise ValueError(f"{where}.ids names a text twice")
    if unknown := sorted(one.values.keys() - set(HEADLINES)):
        raise ValueError(f"{where}.values.{unknown[0]} is unknown")
    if one.subject.file_bytes < 1:
        raise ValueError(f"{where}.subject.file_bytes is {one.subject.file_bytes}")
