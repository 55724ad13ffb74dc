"""A measurement, floors and a baseline -> a verdict: checks that pass, fail or are inconclusive.

Knows budgets: models/NAME/budget.toml, and defaults for models without one; and what must hold of any model
whatever its budget says. Each check names the number of texts that would settle it. Does not know how drift
was measured, writes and prints nothing and exits nothing: a verdict is a value.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_embed.drift.baseline import Baseline, headlines, pairs
from edge_embed.drift.measurement import Invariant, Measurement, PerText, to_dict
from edge_embed.drift.metrics import (
    LEAST_SLICE,
    Drift,
    Floats,
    Interval,
    Rows,
    SliceDrift,
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

# A shift common to all texts may be as large as all other noise: it changes hardly any ranking. A larger one
# is a broken bias, which SQNR without the shift cannot see.
SHIFT = 3.0  # dB below the floor of SQNR

# Against a baseline: dB, dB of a slice, share of the ten nearest, which two calibrations differ by less than;
# and the size of the file, as minus the share that it has grown by.
LEAST_CHANGES: Mapping[str, float] = {
    "sqnr_change": -0.5,
    "sqnr_change_slice": -1.5,
    "overlap_10_change": -0.01,
    "bytes_change": -0.02,
}
FAMILY_LEVEL = 0.05  # of a false alarm in any slice
STALE = 0.5  # dB that a candidate is better by, for certain, when its baseline should be renewed

# Rows of the ledger, in dB: against the reference, where MiniLM has 100 and more, and the row before.
LEAST_FLOAT32 = 60.0
LEAST_EXECUTED = 30.0


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of what was measured with what is allowed."""

    id: str  # of Floors, LEAST_CHANGES or an Invariant; or sqnr_with_shift, stage, candidate
    slice: str | None  # a slice, a variant or a stage; None: all texts
    value: float
    low: float  # 95 % interval; equal to the value where the metric has none
    high: float
    limit: float  # the least that passes; of an invariant the most
    verdict: str  # pass | fail | inconclusive
    n: int  # texts; 0 where the value is no mean over texts
    n_needed: int | None  # texts that would settle an inconclusive check; None: settled, or none would
    kind: str = ABSOLUTE
    effect: float | None = None  # the smallest change that as many texts show
    what: str = ""  # for people, where the id does not say it

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN is None."""
        plain: dict[str, Any] = to_dict(self)
        return plain


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
    check_known(compute_type)
    path = own_budget(model_name(folder))
    budget = {} if path is None else read_budget(path)
    return budget.get(compute_type, DEFAULTS[compute_type])


def floors_for(measurement: Measurement, path: Path | None = None) -> tuple[Floors, str]:
    """The floors that a measurement is judged by, and where they come from.

    path  a budget; None: that of the model in models/, or DEFAULTS where it has none
    Errors: those of `read_budget`; InputError for a budget that says nothing of the compute type.
    """
    name, compute_type = measurement.subject.name, measurement.subject.compute_type
    check_known(compute_type)
    told = str(path)
    if path is None:
        path = own_budget(name)
        told = f"models/{name}/{BUDGET}"
    if path is None:
        return DEFAULTS[compute_type], f"the defaults for {compute_type}, as models/ has no budget of {name}"
    budget = read_budget(path)
    if compute_type not in budget:
        raise InputError(
            f"{told} has no table [{compute_type}], only {', '.join(budget) or 'none at all'}; add one with "
            f"a number for each of {', '.join(field.name for field in fields(Floors))}"
        )
    return budget[compute_type], told


def own_budget(name: str) -> Path | None:
    """The budget that ships with the model of that name."""
    paths = data_folder("models").glob(f"*/{BUDGET}")
    return next((path for path in paths if path.parent.name == name), None)


def check_known(compute_type: str) -> None:
    """Refuse a compute type that there are no floors for."""
    if compute_type not in DEFAULTS:
        raise InputError(f"compute_type is {compute_type!r}; floors are known for {', '.join(DEFAULTS)}")


def verdict(
    measurement: Measurement, floors: Floors, *, budget: str, baseline: Baseline | None = None
) -> Verdict:
    """Everything that is to be said of a measurement.

    budget    where the floors come from, for people
    baseline  what `baseline.find` gave for this measurement; None: it is compared with nothing
    Errors: MismatchError or ShapeError where the texts of both do not line up.
    """
    checks = [must_hold(one) for one in measurement.invariants]
    notes: list[str] = []
    drift, per_text = measurement.drift, measurement.per_text
    if measurement.crash:
        checks.insert(0, must_hold(Invariant("candidate", 1.0, 0.0, measurement.crash)))
    elif drift is None and passed(checks):
        checks.insert(0, must_hold(Invariant("candidate", 1.0, 0.0, "it gave no vectors to compare")))
    if drift is not None:
        lowered = floors.sqnr - SHIFT
        checks += judge(drift, floors)
        checks.append(against_floor("sqnr_with_shift", None, drift.sqnr_plain, lowered, drift.n))
        checks += judge_slices(measurement.variants, floors)
        notes += not_judged(measurement, drift)
    checks += judge_stages(measurement, floors)
    if baseline is not None and drift is not None and per_text is not None:
        changes = judge_baseline(measurement, drift, per_text, baseline)
        checks += changes
        notes += stale(changes[0])
    elif baseline is not None:
        notes.append("not compared with the baseline, as there are no vectors")
    outcomes = {check.verdict for check in checks}
    return Verdict(
        FAIL if FAIL in outcomes else INCONCLUSIVE if INCONCLUSIVE in outcomes else PASS,
        tuple(checks),
        budget,
        "" if baseline is None else baseline.line,
        tuple(notes),
    )


def must_hold(one: Invariant) -> Check:
    """One check of what must not be more than its limit."""
    value = one.value
    outcome = PASS if value <= one.limit else FAIL  # NaN fails
    return Check(
        one.id, None, value, value, value, one.limit, outcome, 0, None, kind=INVARIANT, what=one.what
    )


def judge(drift: Drift, floors: Floors) -> list[Check]:
    """Compare everything that was measured with its floor; slices only where they have enough texts.

    A check passes when its whole interval is at or above the floor, fails when all of it is below, or NaN,
    and is inconclusive between.
    """
    checks = [
        against_floor(key, None, measured, getattr(floors, key), drift.n)
        for key, measured in headlines(drift).items()
    ]
    return checks + judge_slices(drift.slices, floors)


def judge_slices(parts: Sequence[SliceDrift], floors: Floors) -> list[Check]:
    """Two checks of each slice, or variant, that is to be judged."""
    return [
        against_floor(key, part.name, measured, floor, part.n)
        for part in parts
        if part.judged
        for key, measured, floor in (
            ("sqnr_slice", part.sqnr, floors.sqnr_slice),
            ("overlap_10_slice", part.overlap_10, floors.overlap_10_slice),
        )
    ]


def not_judged(measurement: Measurement, drift: Drift) -> list[str]:
    """In words which slices and variants have no checks."""
    judged = {part.name for part in drift.slices if part.judged}
    few = [f"{name} ({len(rows)})" for name, rows in measurement.slices.items() if name not in judged]
    variants = [part.name for part in measurement.variants if not part.judged]
    notes = []
    if few:
        count = f"{len(few)} of {len(measurement.slices)} slices"
        notes.append(f"{count} reported, not judged, for too few texts: {', '.join(few)}")
    if variants:
        notes.append(f"reported, not judged: {', '.join(variants)}")
    return notes


def judge_stages(measurement: Measurement, floors: Floors) -> list[Check]:
    """The rows of the ledger that tell a broken step from noise as it is to be expected; others inform."""
    stages = {stage.name: stage for stage in measurement.ledger}
    checks = []
    for stage in measurement.ledger:
        measured, trouble = stage.from_reference, stage.trouble
        if stage.name == "float32":
            limit = LEAST_FLOAT32
            what = "the float32 IR against PyTorch: below, it is the IR that has drifted and not its INT8"
        elif stage.name == "emulated":
            limit = floors.sqnr
            what = "on a CPU without INT8 dot products, held to what the compute type may lose anywhere"
        elif stage.name == "executed" and stage.previous == "simulated" and has_int8_dot(measurement):
            measured, limit = stage.from_previous, LEAST_EXECUTED
            what = "what INT8 kernels add to the arithmetic: below, one is wrong or its sums saturate"
            if stage.previous in stages and not trouble:
                trouble = stages[stage.previous].trouble
        else:
            continue
        n = measurement.against.n
        if measured is None:
            nan = math.nan
            what = trouble or "it did not run"
            check = Check("stage", stage.name, nan, nan, nan, limit, INCONCLUSIVE, n, None, STAGE, None, what)
        else:
            check = against_floor("stage", stage.name, measured, limit, n, kind=STAGE, what=what)
        checks.append(check)
    return checks


def has_int8_dot(measurement: Measurement) -> bool:
    """Whether INT8 kernels ran that do not saturate; without them activations stay in float32."""
    return measurement.environment.cpu_class == "vnni"


def judge_baseline(
    measurement: Measurement, drift: Drift, per_text: PerText, baseline: Baseline
) -> list[Check]:
    """`judge_change` of a measurement's slices, and of the size of the file."""
    old_noise, old_overlap = pairs(baseline, per_text)
    judged = {part.name for part in drift.slices if part.judged}
    slices = {name: np.array(rows, np.int64) for name, rows in measurement.slices.items() if name in judged}
    new_noise, new_overlap = np.array(per_text.noise), np.array(per_text.overlap_10)
    checks = judge_change(old_noise, new_noise, old_overlap, new_overlap, slices, least_slice=1)
    old_bytes, new_bytes = baseline.subject.file_bytes, measurement.subject.file_bytes
    shrunk, limit = (old_bytes - new_bytes) / old_bytes, LEAST_CHANGES["bytes_change"]
    told = f"{old_bytes:,} bytes were approved, and it has {new_bytes:,}"
    return [*checks, against_floor("bytes_change", None, shrunk, limit, 0, kind=REGRESSION, what=told)]


def stale(change: Check) -> list[str]:
    """In words that a baseline should be renewed; `change` is of the SQNR of all texts."""
    if change.low < STALE:
        return []
    gained = f"{change.value:.1f} dB ({change.low:.1f} to {change.high:.1f})"
    return [f"baseline stale: the candidate is better by {gained}; approve it: edge-embed approve"]


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
        against_floor(key, None, bootstrap(change), LEAST_CHANGES[key], len(change), kind=REGRESSION)
        for key, change in (("sqnr_change", gained), ("overlap_10_change", new_overlap - old_overlap))
    ]
    for (name, part), p in zip(judged.items(), adjusted, strict=True):
        key = "sqnr_change_slice"
        check = against_floor(key, name, bootstrap(part), floor, len(part), kind=REGRESSION)
        if check.verdict == FAIL and p > FAMILY_LEVEL:
            check = replace(check, verdict=INCONCLUSIVE)
        checks.append(check)
    return checks


def against_floor(
    id: str,
    slice: str | None,
    measured: Interval | float,
    floor: float,
    n: int,
    *,
    kind: str = ABSOLUTE,
    what: str = "",
) -> Check:
    """One check of a value that must not be less than its floor."""
    if not isinstance(measured, Interval):
        measured = Interval(measured, measured, measured)
    outcome = PASS if measured.low >= floor else INCONCLUSIVE if measured.high >= floor else FAIL
    needed = texts_needed(measured, floor, n) if outcome == INCONCLUSIVE else None
    value, low, high, effect = measured.value, measured.low, measured.high, measured.effect
    return Check(id, slice, value, low, high, floor, outcome, n, needed, kind, effect, what)


def texts_needed(measured: Interval, floor: float, n: int) -> int | None:
    """Texts that would make the interval end at the floor, as its width goes with 1 / sqrt(n)."""
    distance = abs(measured.value - floor)
    reach = measured.value - measured.low if measured.value > floor else measured.high - measured.value
    return math.ceil(n * (reach / distance) ** 2) if distance > 0 else None


def passed(checks: Sequence[Check]) -> bool:
    """Whether no check fails. Inconclusive ones do not, unless the caller is strict about them."""
    return all(check.verdict != FAIL for check in checks)
