"""Drift + floors -> checks: pass, fail or inconclusive, each with the number of texts that would settle it.

Knows budgets: models/NAME/budget.toml, and defaults for models without one. Does not know how drift was
measured, prints nothing and exits nothing: a verdict is a value.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edge_embed.drift.metrics import (
    LEAST_SLICE,
    Drift,
    Floats,
    Interval,
    Rows,
    bootstrap,
    check_rows,
    holm,
    p_above,
    paired_change,
)
from edge_embed.errors import InputError, ShapeError
from edge_embed.plan import COMPUTE_TYPES
from edge_embed.profile import FAIL, PASS
from edge_embed.record import model_name
from edge_embed.resources import data_folder, read_toml

BUDGET = "budget.toml"

INCONCLUSIVE = "inconclusive"  # neither PASS nor FAIL

# Kinds of checks: against a budget, against a baseline, what holds for every model, one row of the ledger.
ABSOLUTE, REGRESSION, INVARIANT, STAGE = "absolute", "regression", "invariant", "stage"


@dataclass(frozen=True, slots=True)
class Floors:
    """What one compute type may lose. A table of budget.toml has exactly these keys; Drift explains them."""

    sqnr: float  # dB
    sqnr_slice: float  # dB, of each slice
    sqnr_p1: float  # dB, of the noisiest texts
    overlap_10: float
    overlap_10_slice: float
    overlap_10_asymmetric: float
    top_1: float
    spearman: float
    ndcg_10_change: float  # below 0: so much may be lost


# For models without a budget; the reasons stand in that of granite-embedding-311m-multilingual-r2.
DEFAULTS: Mapping[str, Floors] = {
    # in the order of the fields: dB, dB, dB, five shares and correlations, a loss
    "float32": Floors(60, 57, 55, 0.99, 0.98, 0.995, 0.99, 0.9999, -0.002),
    "bfloat16": Floors(36, 33, 31, 0.98, 0.945, 0.985, 0.965, 0.9998, -0.003),
    "int8_weights": Floors(28, 25, 24, 0.965, 0.92, 0.975, 0.95, 0.999, -0.005),
    "int8_dynamic": Floors(26.5, 23.5, 22.5, 0.96, 0.91, 0.97, 0.935, 0.9985, -0.0075),
    "int8": Floors(20, 17, 15, 0.93, 0.87, 0.945, 0.88, 0.995, -0.015),
}

# Against a baseline: dB, dB of a slice, share of the ten nearest. Two calibrations differ by less.
LEAST_CHANGES: Mapping[str, float] = {
    "sqnr_change": -0.5,
    "sqnr_change_slice": -1.5,
    "overlap_10_change": -0.01,
}
FAMILY_LEVEL = 0.05  # of a false alarm in any slice


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of what was measured with what is allowed."""

    id: str  # a field of Floors or of LEAST_CHANGES, the id of an Invariant, or "stage" and the like
    slice: str | None  # a slice, a variant or a stage; None: all texts
    value: float
    low: float  # 95 % interval; equal to the value where the metric has none
    high: float
    limit: float  # the least that passes; of an invariant the most
    verdict: str  # pass | fail | inconclusive
    n: int  # texts
    n_needed: int | None  # texts that would settle an inconclusive check; None: settled, or none would
    kind: str = ABSOLUTE
    effect: float | None = None  # the smallest change that as many texts show
    what: str = ""  # for people, where the id does not say it

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says of one measurement."""

    verdict: str  # fail if any check fails, else inconclusive if any is, else pass
    checks: tuple[Check, ...]
    budget: str  # where the floors come from
    baseline: str  # in a line what was compared with, or ""
    notes: tuple[str, ...] = ()  # for people: that a baseline is stale, what was not judged and why


def read_budget(path: Path) -> Mapping[str, Floors]:
    """The floors of budget.toml by compute type; not every compute type needs to be there.

    Errors: InputError naming the file and the key that is unknown, missing or not a number.
    """
    return {name: floors_from(path, name, table) for name, table in read_toml(path).items()}


def floors_from(path: Path, compute_type: str, table: object) -> Floors:
    """One table of a budget."""
    if compute_type not in COMPUTE_TYPES:
        raise InputError(f"{path}: unknown compute type {compute_type}; known: {', '.join(COMPUTE_TYPES)}")
    if not isinstance(table, dict):
        raise InputError(f"{path}: {compute_type} is {table!r}, not a table of floors")
    known = [field.name for field in fields(Floors)]
    if unknown := sorted(table.keys() - set(known)):
        raise InputError(
            f"{path}: [{compute_type}] has the unknown key {', '.join(unknown)}; known: {', '.join(known)}"
        )
    if missing := [key for key in known if key not in table]:
        raise InputError(f"{path}: [{compute_type}] lacks {', '.join(missing)}; a budget names every floor")
    for key, value in table.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"{path}: [{compute_type}] {key} is {value!r}, not a finite number")
    return Floors(**{key: float(value) for key, value in table.items()})


def floors_of(folder: Path, compute_type: str) -> Floors:
    """The floors in models/ for the model that a folder's record names; DEFAULTS where there are none.

    Errors: InputError for an unknown compute type, and those of `read_budget`.
    """
    if compute_type not in DEFAULTS:
        raise InputError(f"compute_type is {compute_type!r}; floors are known for {', '.join(DEFAULTS)}")
    path = data_folder("models") / model_name(folder) / BUDGET
    budget = read_budget(path) if path.is_file() else {}
    return budget.get(compute_type, DEFAULTS[compute_type])


def judge(drift: Drift, floors: Floors) -> list[Check]:
    """Compare everything that was measured with its floor; slices only where they have enough texts.

    A check passes when its whole interval is at or above the floor, fails when all of it is below, or NaN,
    and is inconclusive between.
    """
    checks = []
    for key in (
        "sqnr",
        "overlap_10",
        "sqnr_p1",
        "overlap_10_asymmetric",
        "top_1",
        "spearman",
        "ndcg_10_change",
    ):
        measured = getattr(drift, key)
        if measured is not None:
            checks.append(against_floor(key, None, measured, getattr(floors, key), drift.n))
    for part in drift.slices:
        if part.judged:
            checks.append(against_floor("sqnr_slice", part.name, part.sqnr, floors.sqnr_slice, part.n))
            checks.append(
                against_floor("overlap_10_slice", part.name, part.overlap_10, floors.overlap_10_slice, part.n)
            )
    return checks


def judge_change(
    old_noise: Floats,
    new_noise: Floats,
    old_overlap: Floats,
    new_overlap: Floats,
    slices: Mapping[str, Rows],
    *,
    least_slice: int = LEAST_SLICE,
) -> list[Check]:
    """Compare a candidate with an approved one on the same texts, in pairs, by LEAST_CHANGES.

    old_noise, new_noise:      (N,) `noise_power`, of the baseline and of the candidate
    old_overlap, new_overlap:  (N,) `overlap` at 10
    slices:                    name -> rows; they may overlap

    A slice fails only if it does so among all slices (Holm, 5 %): of 60 sound ones three would by themselves.
    Errors: ShapeError where texts do not line up.
    """
    gained = -paired_change(old_noise, new_noise)  # (N,) dB, negative is worse
    if not gained.shape == old_overlap.shape == new_overlap.shape:
        raise ShapeError(
            f"noise of {len(gained)} texts and overlaps of {len(old_overlap)} and {len(new_overlap)} "
            "do not line up"
        )
    check_rows(slices, len(gained))
    judged = {name: gained[rows] for name, rows in slices.items() if len(rows) >= least_slice}
    floor = LEAST_CHANGES["sqnr_change_slice"]
    adjusted = holm([p_above(-part, -floor) for part in judged.values()])
    checks = [
        against_floor(key, None, bootstrap(change), LEAST_CHANGES[key], len(change))
        for key, change in (("sqnr_change", gained), ("overlap_10_change", new_overlap - old_overlap))
    ]
    for (name, part), p in zip(judged.items(), adjusted, strict=True):
        check = against_floor("sqnr_change_slice", name, bootstrap(part), floor, len(part))
        if check.verdict == FAIL and p > FAMILY_LEVEL:
            check = replace(check, verdict=INCONCLUSIVE)
        checks.append(check)
    return checks


def against_floor(id: str, slice: str | None, measured: Interval | float, floor: float, n: int) -> Check:
    """One check of a value that must not be less than its floor."""
    if not isinstance(measured, Interval):
        measured = Interval(measured, measured, measured)
    verdict = PASS if measured.low >= floor else INCONCLUSIVE if measured.high >= floor else FAIL
    needed = texts_needed(measured, floor, n) if verdict == INCONCLUSIVE else None
    return Check(id, slice, measured.value, measured.low, measured.high, floor, verdict, n, needed)


def texts_needed(measured: Interval, floor: float, n: int) -> int | None:
    """Texts that would make the interval end at the floor, as its width goes with 1 / sqrt(n)."""
    distance = abs(measured.value - floor)
    reach = measured.value - measured.low if measured.value > floor else measured.high - measured.value
    return math.ceil(n * (reach / distance) ** 2) if distance > 0 else None


def passed(checks: Sequence[Check]) -> bool:
    """Whether no check fails. Inconclusive ones do not, unless the caller is strict about them."""
    return all(check.verdict != FAIL for check in checks)
