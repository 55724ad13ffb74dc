"""drift/gate.py: budgets that are refused, verdicts at the floor, and what a gate must and must not catch."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.drift import baseline, gate, metrics
from edge_embed.drift.baseline import Baseline
from edge_embed.drift.gate import Check, Floors, Verdict
from edge_embed.drift.measurement import Invariant, Measurement, PerText, Stage
from edge_embed.drift.metrics import Drift, Interval, SliceDrift
from edge_embed.errors import InputError, MismatchError, ShapeError
from edge_embed.plan import COMPUTE_TYPES
from edge_embed.record import write_record
from edge_embed.resources import data_folder
from tests import measurements

Floats = NDArray[np.float64]

FLOORS = Floors(20, 17, 15, 0.93, 0.87, 0.945, 0.88, 0.995, -0.015)
KEYS = [field.name for field in fields(Floors)]
TABLE = "[int8]\n" + "".join(
    f"{key} = {value}\n" for key, value in zip(KEYS, (20, 17, 15, *[0.5] * 6), strict=True)
)

SOUND = Drift(
    n=100,
    sqnr=Interval(24, 23.7, 24.3),
    sqnr_plain=23,
    cosine_mean=0.998,
    cosine_p1=0.996,
    cosine_min=0.99,
    shift_ratio=0.2,
    overlap_10=Interval(0.95, 0.94, 0.96),
    spearman=0.997,
    worst_slice="pl",
    worst_slice_sqnr=22.0,
    slices=(SliceDrift("pl", 24, True, Interval(22, 21.4, 22.6), Interval(0.95, 0.92, 0.98)),),
    sqnr_p1=18.0,
    overlap_10_asymmetric=Interval(0.96, 0.95, 0.97),
    top_1=Interval(0.95, 0.9, 0.99),
    ndcg_10_change=Interval(0, -0.01, 0.01),
)


def unit(x: Floats) -> Floats:
    scaled: Floats = x / np.linalg.norm(x, axis=1, keepdims=True)
    return scaled


def languages(n: int = 52) -> tuple[Floats, list[str]]:
    """n languages of 24 texts. They vary in few of many directions, as embeddings do: noise is in all."""
    random = np.random.default_rng(0)
    x = random.normal(size=(n * 24, 12)) @ random.normal(size=(12, 384)) + random.normal(size=384)
    return unit(x), np.repeat([f"l{i:02}" for i in range(n)], 24).tolist()


def noisy(x: Floats, decibels: float | Floats, seed: int = 1) -> Floats:
    """x with even noise of that SQNR, or one for each row."""
    power = (1 - metrics.background(x)) * 10 ** (-np.asarray(decibels) / 10) / x.shape[1]
    scale = np.broadcast_to(np.sqrt(power), len(x))[:, None]
    return unit(x + scale * np.random.default_rng(seed).normal(size=x.shape))


def verdicts(checks: Sequence[Check]) -> dict[tuple[str, str | None], str]:
    return {(check.id, check.slice): check.verdict for check in checks}


def failed(checks: Sequence[Check]) -> list[tuple[str, str | None]]:
    return [key for key, verdict in verdicts(checks).items() if verdict == "fail"]


# ---- budgets


@pytest.mark.parametrize("folder", sorted(data_folder("models").iterdir()), ids=lambda folder: folder.name)
def test_every_model_has_a_budget_for_every_compute_type(folder: Path) -> None:
    budget = gate.read_budget(folder / gate.BUDGET)
    assert list(budget) == list(COMPUTE_TYPES)
    for floors in budget.values():
        assert floors.sqnr_slice < floors.sqnr
        assert floors.sqnr_p1 < floors.sqnr_slice
        assert floors.overlap_10_slice < floors.overlap_10 <= floors.overlap_10_asymmetric
        assert floors.ndcg_10_change < 0


def test_every_number_of_a_budget_has_its_reason_beside_it() -> None:
    for path in data_folder("models").glob(f"*/{gate.BUDGET}"):
        bare = [line for line in path.read_text("utf-8").splitlines() if "=" in line and "#" not in line]
        assert bare == []


def test_a_budget_of_a_model_not_measured_says_so() -> None:
    for path in data_folder("models").glob(f"granite-*/{gate.BUDGET}"):
        assert "PROVISIONAL" in path.read_text("utf-8")


def test_the_defaults_are_the_floors_whose_reasons_are_written_down() -> None:
    path = data_folder("models") / "granite-embedding-311m-multilingual-r2" / gate.BUDGET
    assert gate.read_budget(path) == gate.DEFAULTS
    assert gate.DEFAULTS.keys() == COMPUTE_TYPES.keys()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (TABLE.replace("[int8]", "[int4]"), "unknown compute type int4; known: float32"),
        (TABLE + "cosine = 0.9\n", r"\[int8\] has the unknown key cosine; known: sqnr, sqnr_slice"),
        (TABLE.replace("spearman = 0.5\n", ""), r"\[int8\] lacks spearman"),
        (
            TABLE.replace("spearman = 0.5", 'spearman = "0.5"'),
            r"\[int8\] spearman is '0.5', not a finite number",
        ),
        (TABLE.replace("spearman = 0.5", "spearman = true"), r"spearman is True, not a finite number"),
        (TABLE.replace("spearman = 0.5", "spearman = nan"), r"spearman is nan, not a finite number"),
        ("int8 = 3\n", "int8 is 3, not a table of floors"),
        ("[int8", "is not TOML"),
    ],
)
def test_a_budget_that_cannot_be_used_is_refused_by_name(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "budget.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=line) as caught:
        gate.read_budget(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_budget_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        gate.read_budget(tmp_path / "none.toml")
    (tmp_path / "budget.toml").write_bytes(b"\xff")
    with pytest.raises(InputError, match="is not TOML"):
        gate.read_budget(tmp_path / "budget.toml")


def test_a_budget_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "budget.toml"
    path.write_text(TABLE)
    assert gate.read_budget(path) == {"int8": Floors(20, 17, 15, *[0.5] * 6)}


def test_floors_are_those_of_the_model_on_record_and_else_the_defaults(tmp_path: Path) -> None:
    assert gate.floors_of(tmp_path, "int8") == gate.DEFAULTS["int8"]
    write_record(tmp_path, {"name": "nobody's model"})
    assert gate.floors_of(tmp_path, "int8") == gate.DEFAULTS["int8"]
    write_record(tmp_path, {"name": "all-MiniLM-L6-v2"})
    path = data_folder("models") / "all-MiniLM-L6-v2" / gate.BUDGET
    assert gate.floors_of(tmp_path, "int8_weights") == gate.read_budget(path)["int8_weights"]
    assert gate.floors_of(tmp_path, "int8_weights") != gate.DEFAULTS["int8_weights"]
    with pytest.raises(InputError, match="compute_type is 'auto'; floors are known for float32"):
        gate.floors_of(tmp_path, "auto")


# ---- verdicts


@pytest.mark.parametrize(
    ("interval", "verdict", "needed"),
    [
        (Interval(21, 20.5, 21.5), "pass", None),
        (Interval(21, 20.0, 22.0), "pass", None),
        (Interval(21, 19.0, 22.5), "inconclusive", 400),  # 2 dB below for a distance of 1: four times as many
        (Interval(19, 18.0, 20.5), "inconclusive", 225),
        (Interval(20, 19.0, 21.0), "inconclusive", None),  # no number of texts tells it from its floor
        (Interval(19, 18.0, 19.9), "fail", None),
        (Interval(float("nan"), float("nan"), float("nan")), "fail", None),
    ],
)
def test_a_verdict_is_where_the_interval_lies(interval: Interval, verdict: str, needed: int | None) -> None:
    check = gate.judge(replace(SOUND, sqnr=interval), FLOORS)[0]
    assert (check.id, check.slice, check.verdict, check.n_needed) == ("sqnr", None, verdict, needed)
    assert gate.passed([check]) == (verdict != "fail")


def test_as_many_texts_as_are_asked_for_do_settle_it() -> None:
    noise = 10 ** -(2.05 + 0.2 * np.random.default_rng(0).normal(size=200))  # about 20.1 dB
    few = gate.judge(replace(SOUND, n=200, sqnr=metrics.sqnr_of(noise)), FLOORS)[0]
    assert few.verdict == "inconclusive"
    assert few.value > few.limit
    assert few.n_needed is not None
    assert few.n_needed > 200
    for copies, verdict in ((0.8, "inconclusive"), (1.25, "pass")):
        more = np.tile(noise, 100)[: round(copies * few.n_needed / 200) * 200]
        assert gate.judge(replace(SOUND, sqnr=metrics.sqnr_of(more)), FLOORS)[0].verdict == verdict


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"sqnr": Interval(19, 18.8, 19.2)}, "sqnr"),
        ({"sqnr_p1": 14.9}, "sqnr_p1"),
        ({"overlap_10": Interval(0.9, 0.89, 0.91)}, "overlap_10"),
        ({"overlap_10_asymmetric": Interval(0.9, 0.89, 0.91)}, "overlap_10_asymmetric"),
        ({"top_1": Interval(0.8, 0.75, 0.85)}, "top_1"),
        ({"spearman": 0.99}, "spearman"),
        ({"spearman": float("nan")}, "spearman"),
        ({"ndcg_10_change": Interval(-0.03, -0.04, -0.02)}, "ndcg_10_change"),
    ],
)
def test_each_metric_below_its_floor_fails_and_is_named(
    change: dict[str, Interval | float], key: str
) -> None:
    assert failed(gate.judge(SOUND, FLOORS)) == []
    checks = gate.judge(replace(SOUND, **change), FLOORS)  # type: ignore[arg-type]
    assert failed(checks) == [(key, None)]
    assert not gate.passed(checks)


def test_each_slice_is_judged_by_its_own_floors_where_it_has_enough_texts() -> None:
    bad = SliceDrift("th", 24, True, Interval(16, 15.5, 16.5), Interval(0.8, 0.78, 0.82))
    checks = gate.judge(replace(SOUND, slices=(*SOUND.slices, bad)), FLOORS)
    assert failed(checks) == [("sqnr_slice", "th"), ("overlap_10_slice", "th")]
    checks = gate.judge(replace(SOUND, slices=(*SOUND.slices, replace(bad, judged=False))), FLOORS)
    assert failed(checks) == []
    assert ("sqnr_slice", "th") not in verdicts(checks)


def test_what_was_not_measured_is_not_judged() -> None:
    without = replace(
        SOUND, sqnr_p1=None, overlap_10_asymmetric=None, top_1=None, ndcg_10_change=None, slices=()
    )
    assert [check.id for check in gate.judge(without, FLOORS)] == ["sqnr", "overlap_10", "spearman"]


def test_every_floor_has_its_check() -> None:
    assert {check.id for check in gate.judge(SOUND, FLOORS)} == set(KEYS)


def test_checks_are_json() -> None:
    plain = json.loads(json.dumps([check.to_dict() for check in gate.judge(SOUND, FLOORS)], allow_nan=False))
    assert plain[0] == {
        "id": "sqnr",
        "slice": None,
        "value": 24,
        "low": 23.7,
        "high": 24.3,
        "limit": 20,
        "verdict": "pass",
        "n": 100,
        "n_needed": None,
        "kind": "absolute",
        "effect": None,
        "what": "",
    }


def test_a_value_that_is_no_number_is_null_in_json() -> None:
    check = gate.judge(replace(SOUND, spearman=float("nan")), FLOORS)[5]
    assert (check.id, check.to_dict()["value"]) == ("spearman", None)
    json.dumps(check.to_dict(), allow_nan=False)


def test_a_check_tells_the_smallest_change_that_would_show() -> None:
    drift = replace(SOUND, sqnr=Interval(24, 23.7, 24.3, effect=0.4))
    assert [check.effect for check in gate.judge(drift, FLOORS)[:2]] == [0.4, None]


# ---- what the gate catches


@pytest.mark.parametrize("compute_type", gate.DEFAULTS)
def test_noise_a_little_above_the_floor_passes_and_a_little_below_fails(compute_type: str) -> None:
    x, labels = languages(20)
    floors = gate.DEFAULTS[compute_type]
    above = gate.judge(metrics.summarize(x, noisy(x, floors.sqnr + 1.5), metrics.by_label(labels)), floors)
    below = gate.judge(metrics.summarize(x, noisy(x, floors.sqnr - 1.5), metrics.by_label(labels)), floors)
    assert verdicts(above)["sqnr", None] == "pass"
    assert failed(above) == []
    assert ("sqnr", None) in failed(below)


def test_one_broken_language_of_52_fails_its_slice_alone() -> None:
    x, labels = languages()
    decibels = np.where(np.array(labels) == "l31", 16.0, 24.0)  # worse, and the noisiest texts would show it
    checks = gate.judge(metrics.summarize(x, noisy(x, decibels), metrics.by_label(labels)), FLOORS)
    assert ("sqnr_slice", "l31") in failed(checks)
    assert {slice for _, slice in failed(checks)} == {"l31"}
    assert verdicts(checks)["sqnr", None] == "pass"
    assert not gate.passed(checks)


def test_a_language_of_which_every_text_moves_alike_fails_its_slice() -> None:
    x, labels = languages()
    y = noisy(x, 26)
    y[:24] += 0.5 * unit(np.random.default_rng(9).normal(size=(1, x.shape[1])))
    checks = gate.judge(metrics.summarize(x, unit(y), metrics.by_label(labels)), FLOORS)
    assert ("sqnr_slice", "l00") in failed(checks)
    assert verdicts(checks)["sqnr", None] == "pass"


def test_rows_in_another_order_fail_everything() -> None:
    x, labels = languages(5)
    checks = gate.judge(metrics.summarize(x, np.roll(x, 1, axis=0), metrics.by_label(labels)), FLOORS)
    assert set(verdicts(checks).values()) == {"fail"}


# ---- against a baseline


def change(x: Floats, old: Floats, new: Floats, labels: list[str]) -> list[Check]:
    noise = [metrics.noise_power(x, y, centred=True) for y in (old, new)]
    kept = [metrics.overlap(x, y) for y in (old, new)]
    return gate.judge_change(noise[0], noise[1], kept[0], kept[1], metrics.by_label(labels))


def test_the_same_candidate_again_has_changed_nothing() -> None:
    x, labels = languages(10)
    checks = change(x, noisy(x, 24), noisy(x, 24), labels)
    assert set(verdicts(checks).values()) == {"pass"}
    assert {check.value for check in checks} == {0.0}


def test_a_loss_over_all_texts_fails_long_before_a_floor_does() -> None:
    x, labels = languages(10)
    checks = change(x, noisy(x, 24), noisy(x, 23), labels)
    assert failed(checks) == [("sqnr_change", None)]
    assert checks[0].value == pytest.approx(-1, abs=0.1)
    assert failed(change(x, noisy(x, 24), noisy(x, 25), labels)) == []


def test_a_loss_in_one_language_fails_there_alone() -> None:
    x, labels = languages()
    new = noisy(x, np.where(np.array(labels) == "l03", 20.0, 24.0))
    assert failed(change(x, noisy(x, 24), new, labels)) == [("sqnr_change_slice", "l03")]


def test_sound_slices_at_the_limit_rarely_raise_a_false_alarm_together() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([f"l{i:02}" for i in range(60)], 24).tolist()
    kept = np.ones(len(labels))
    alarms, alone = 0, 0
    for _ in range(10):
        old = random.gamma(8, size=len(labels))
        new = random.gamma(8, size=len(labels)) * 10**0.15  # each slice has lost what it may, on average
        checks = gate.judge_change(old, new, kept, kept, metrics.by_label(labels))[2:]
        alarms += bool(failed(checks))
        alone += any(check.high < check.limit for check in checks)
    assert alarms <= 2
    assert alone >= 5  # what intervals alone would say


def test_a_small_slice_is_not_compared() -> None:
    noise = np.ones(40)
    labels = ["few"] * 19 + ["many"] * 21
    checks = gate.judge_change(
        noise, noise * np.repeat([100, 1], [19, 21]), noise, noise, metrics.by_label(labels)
    )
    assert [check.slice for check in checks] == [None, None, "many"]


def test_texts_that_do_not_line_up_are_refused() -> None:
    four, five = np.ones(4), np.ones(5)
    with pytest.raises(ShapeError, match="slice 'a' has the rows 0 to 4, but there are 4"):
        gate.judge_change(four, four, four, four, metrics.by_label(["a"] * 5))
    with pytest.raises(ShapeError, match="noise of 4 texts and overlaps of 5 and 4"):
        gate.judge_change(four, four, five, four, {})
    with pytest.raises(ShapeError, match="are not pairs"):
        gate.judge_change(four, five, four, four, metrics.by_label(["a"] * 4))


# ---- a whole measurement


@pytest.fixture(scope="module")
def clean() -> Measurement:
    """192 texts at 27 dB of even noise; every stage ran."""
    x = measurements.reference()
    found = measurements.measurement(x, measurements.noisy(x, 27), name="mine")
    emulated = replace(found.ledger[3], from_reference=Interval(26, 25.8, 26.2), trouble="")
    return replace(found, ledger=(*found.ledger[:3], emulated))


def judged(found: Measurement, approved: Baseline | None = None) -> Verdict:
    return gate.verdict(found, FLOORS, budget="here", baseline=approved)


def of_kind(verdict: Verdict, kind: str) -> list[Check]:
    return [check for check in verdict.checks if check.kind == kind]


def approve(found: Measurement) -> Baseline:
    return baseline.approved(found, reason="to compare with")


def test_a_sound_candidate_passes_every_kind_of_check_in_their_order(clean: Measurement) -> None:
    verdict = judged(clean, approve(clean))
    assert [check.id for check in verdict.checks if check.verdict != "pass"] == []
    kinds = list(dict.fromkeys(check.kind for check in verdict.checks))
    assert kinds == ["invariant", "absolute", "stage", "regression"]
    assert (verdict.verdict, verdict.budget) == ("pass", "here")
    assert verdict.baseline.endswith(": to compare with")


def test_one_failure_outweighs_what_is_inconclusive_and_that_what_passes(clean: Measurement) -> None:
    lost = replace(clean.ledger[3], from_reference=None, trouble="ended by SIGILL")
    unsettled = replace(clean, ledger=(*clean.ledger[:3], lost))
    assert judged(unsettled).verdict == "inconclusive"
    broken = replace(unsettled, invariants=(Invariant("finite", 1.0, 0.0, "row 3"),))
    assert judged(broken).verdict == "fail"


def test_a_crash_fails_by_what_ended_it(clean: Measurement) -> None:
    crashed = measurements.crashed(clean)
    verdict = judged(crashed, approve(clean))
    (check,) = verdict.checks
    assert (verdict.verdict, check.id, check.kind, check.what) == (
        "fail",
        "candidate",
        "invariant",
        "ended by SIGSEGV",
    )
    assert verdict.notes == ("not compared with the baseline, as there are no vectors",)


def test_without_vectors_nothing_passes_whatever_else_is_there(clean: Measurement) -> None:
    assert failed(judged(replace(clean, drift=None, per_text=None)).checks) == [("candidate", None)]
    told = replace(clean, drift=None, per_text=None, invariants=(Invariant("finite", 1.0, 0.0, "row 3"),))
    assert failed(judged(told).checks) == [("finite", None)]


@pytest.mark.parametrize(
    ("value", "outcome"), [(0.0, "pass"), (1e-3, "pass"), (1.001e-3, "fail"), (float("nan"), "fail")]
)
def test_an_invariant_holds_up_to_its_limit(clean: Measurement, value: float, outcome: str) -> None:
    one = Invariant("unit_norm", value, 1e-3, "text-003 is furthest from length 1")
    check = judged(replace(clean, invariants=(one,))).checks[0]
    np.testing.assert_array_equal([check.value, check.low, check.high], [value] * 3)
    assert (check.id, check.limit, check.verdict, check.what) == ("unit_norm", 1e-3, outcome, one.what)


@pytest.mark.parametrize("compute_type", gate.DEFAULTS)
def test_noise_above_the_floor_passes_and_below_it_fails_as_a_verdict(compute_type: str) -> None:
    x, _ = languages(20)
    floors = gate.DEFAULTS[compute_type]
    for gap, outcome in ((1.5, "pass"), (-1.5, "fail")):
        found = measurements.measurement(x, noisy(x, floors.sqnr + gap), compute_type=compute_type)
        alone = replace(found, variants=(), ledger=())
        assert gate.verdict(alone, floors, budget="").verdict == outcome


def test_a_constant_added_to_every_vector_fails_only_where_the_shift_is_counted() -> None:
    x = measurements.reference()
    constant = unit(np.random.default_rng(5).normal(size=(1, x.shape[1])))
    for share, expected in ((0.03, [("sqnr_with_shift", None)]), (0.015, [])):
        moved = unit(x + np.sqrt(share * metrics.spread(x)) * constant)
        checks = of_kind(judged(measurements.measurement(x, moved)), "absolute")
        assert failed([check for check in checks if check.id.startswith("sqnr")]) == expected


def test_a_shift_as_large_as_all_other_noise_is_still_allowed(clean: Measurement) -> None:
    assert clean.drift is not None
    for plain, outcome in ((17.0, "pass"), (16.99, "fail")):  # 3 dB below the floor of 20
        drift = replace(clean.drift, sqnr_plain=plain)
        check = verdicts(judged(replace(clean, drift=drift)).checks)["sqnr_with_shift", None]
        assert check == outcome


def test_slices_that_are_too_small_are_named_in_one_note(clean: Measurement) -> None:
    found = replace(clean, slices={**clean.slices, "script none": (3,)})  # without spread, so without drift
    notes = judged(found).notes
    assert notes == (
        "2 of 12 slices reported, not judged, for too few texts: length 257 to 512 (5), script none (1)",
        "reported, not judged: precision binary",
    )
    every = {name: rows for name, rows in clean.slices.items() if len(rows) >= 20}
    assert judged(replace(clean, slices=every, variants=clean.variants[:1])).notes == ()


def test_variants_are_held_to_the_floors_of_slices_where_they_are_judged(clean: Measurement) -> None:
    noisy_one = SliceDrift("dim 16", 192, True, Interval(16, 15.8, 16.2), Interval(0.8, 0.79, 0.81))
    checks = judged(replace(clean, variants=(noisy_one, *clean.variants))).checks
    assert failed(checks) == [("sqnr_slice", "dim 16"), ("overlap_10_slice", "dim 16")]
    assert verdicts(checks)["sqnr_slice", "dim 32"] == "pass"
    assert ("sqnr_slice", "precision binary") not in verdicts(checks)


# ---- stages


def stage(name: str, decibels: float | None, previous: str = "float32", trouble: str = "") -> Stage:
    """A row of the ledger, as far from the reference as from the row before."""
    found = None if decibels is None else Interval(decibels, decibels, decibels)
    return Stage(name, "what it is", previous, found, found, None, trouble)


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        (stage("float32", 60.0, "reference"), "pass"),
        (stage("float32", 59.9, "reference"), "fail"),
        (stage("executed", 30.0, "simulated"), "pass"),
        (stage("executed", 29.9, "simulated"), "fail"),
        (stage("emulated", FLOORS.sqnr, "executed"), "pass"),
        (stage("emulated", FLOORS.sqnr - 0.1, "executed"), "fail"),
        (stage("emulated", None, "executed", "ended by SIGILL"), "inconclusive"),
        (stage("float32", None, "reference"), "inconclusive"),
    ],
    ids=lambda value: f"{value.name} {value.from_reference}"[:22] if isinstance(value, Stage) else value,
)
def test_a_stage_is_judged_at_its_limit(clean: Measurement, row: Stage, outcome: str) -> None:
    (check,) = of_kind(judged(replace(clean, ledger=(row,))), "stage")
    assert (check.id, check.slice, check.verdict, check.n) == ("stage", row.name, outcome, 192)
    assert check.what


@pytest.mark.parametrize("name", ["default", "executed_default", "saturated", "simulated"])
def test_a_stage_for_information_is_never_judged(clean: Measurement, name: str) -> None:
    for row in (stage(name, 1.0), stage(name, None, "float32", "it broke")):
        assert of_kind(judged(replace(clean, ledger=(row,))), "stage") == []


def test_kernels_are_compared_with_arithmetic_only_where_both_ran_in_int8(clean: Measurement) -> None:
    without = replace(clean, environment=replace(clean.environment, cpu_class="no-vnni"))
    for found, previous in ((without, "simulated"), (clean, "float32")):
        row = stage("executed", 10.0, previous)
        assert of_kind(judged(replace(found, ledger=(row,))), "stage") == []


def test_a_stage_that_did_not_run_says_why_and_is_null_in_json(clean: Measurement) -> None:
    (check,) = of_kind(
        judged(replace(clean, ledger=(stage("emulated", None, "executed", "SIGILL"),))), "stage"
    )
    assert (check.what, check.n_needed) == ("SIGILL", None)
    assert [check.to_dict()[key] for key in ("value", "low", "high")] == [None, None, None]


def test_kernels_without_arithmetic_to_compare_with_are_inconclusive(clean: Measurement) -> None:
    rows = (
        stage("simulated", None, "float32", "out of memory"),
        replace(stage("executed", 27.0, "simulated"), from_previous=None),
    )
    (check,) = of_kind(judged(replace(clean, ledger=rows)), "stage")
    assert (check.slice, check.verdict, check.what) == ("executed", "inconclusive", "out of memory")


# ---- a measurement beside a baseline


@pytest.mark.parametrize(
    ("size", "outcome"), [(24_480_000, "pass"), (24_500_000, "fail"), (12_000_000, "pass")]
)
def test_a_file_may_grow_by_two_percent_and_shrink_by_any(
    clean: Measurement, size: int, outcome: str
) -> None:
    grown = replace(clean, subject=replace(clean.subject, file_bytes=size))  # from 24,000,000
    check = of_kind(judged(grown, approve(clean)), "regression")[-1]
    assert (check.id, check.verdict) == ("bytes_change", outcome)
    assert check.value == pytest.approx(1 - size / 24e6)


def at(decibels: float, seed: int = 1) -> Measurement:
    x = measurements.reference()
    return measurements.measurement(x, measurements.noisy(x, decibels, seed), name="mine")


def test_a_worse_candidate_fails_against_the_baseline_alone() -> None:
    verdict = judged(at(25.5), approve(at(27)))
    assert {check.kind for check in verdict.checks if check.verdict == "fail"} == {"regression"}
    assert ("sqnr_change", None) in failed(verdict.checks)
    assert not any("stale" in note for note in verdict.notes)


def test_a_better_candidate_passes_and_tells_that_the_baseline_is_stale() -> None:
    verdict = judged(at(28, seed=2), approve(at(27)))
    assert failed(verdict.checks) == []
    assert verdict.notes[-1].startswith(
        "baseline stale: the candidate is better by 0.9 dB (0.8 to 1.1); appr"
    )
    verdict = judged(at(27.65, seed=2), approve(at(27)))
    (change,) = [check for check in verdict.checks if check.id == "sqnr_change"]
    assert change.low < 0.5 < change.value  # better, but not for certain by so much
    assert not any("stale" in note for note in verdict.notes)


def test_texts_are_paired_by_their_ids_and_not_by_their_order(clean: Measurement) -> None:
    old = approve(clean)
    order = np.random.default_rng(0).permutation(len(old.ids))
    shuffled = replace(
        old,
        ids=tuple(old.ids[i] for i in order),
        noise=tuple(old.noise[i] for i in order),
        overlap_10=tuple(old.overlap_10[i] for i in order),
    )
    assert {check.value for check in of_kind(judged(clean, shuffled), "regression")} == {0.0}
    with pytest.raises(MismatchError, match=r"lacks 1 texts, first 'text-000'; approve the candidate"):
        judged(clean, replace(old, ids=("other", *old.ids[1:])))


def test_slices_are_compared_together_so_that_chance_alone_rarely_fails_one() -> None:
    x, _ = languages(60)
    found = replace(measurements.measurement(x, noisy(x, 24)), variants=(), ledger=())
    assert found.per_text is not None
    random = np.random.default_rng(0)
    spared = 0
    for _ in range(2):
        old, new = random.gamma(8, size=(2, len(x)))
        column = tuple((new * 10**0.15).tolist())  # each slice has lost what it may, on average
        with_change = replace(found, per_text=replace(found.per_text, noise=column))
        approved = replace(approve(found), noise=tuple(old.tolist()))
        checks = [c for c in judged(with_change, approved).checks if c.id == "sqnr_change_slice"]
        languages_only = [c for c in checks if c.slice and c.slice.startswith("language")]
        assert len(languages_only) == 60
        spared += sum(c.high < c.limit and c.verdict == "inconclusive" for c in languages_only)
    assert spared >= 1


def test_only_slices_that_are_judged_by_their_floor_are_compared(clean: Measurement) -> None:
    compared = {check.slice for check in of_kind(judged(clean, approve(clean)), "regression")} - {None}
    assert compared == {name for name, rows in clean.slices.items() if len(rows) >= 20}


def test_rows_of_a_measurement_that_do_not_line_up_are_refused(clean: Measurement) -> None:
    per_text = clean.per_text
    assert per_text is not None
    short = PerText(per_text.ids, per_text.noise[:-1], per_text.cosine, per_text.overlap_10)
    with pytest.raises(ShapeError, match="are not pairs"):
        judged(replace(clean, per_text=short), approve(clean))
    with pytest.raises(ShapeError, match="'role query' has the rows 0 to 999, but there are 192"):
        judged(replace(clean, slices={**clean.slices, "role query": (0, 999)}), approve(clean))


# ---- which floors


def test_a_measurement_is_judged_by_its_own_budget_or_that_of_its_model_or_defaults(
    clean: Measurement, tmp_path: Path
) -> None:
    assert gate.floors_for(clean) == (
        gate.DEFAULTS["int8"],
        "the defaults for int8, as models/ has no budget of mine",
    )
    known = replace(clean, subject=replace(clean.subject, name="all-MiniLM-L6-v2"))
    path = data_folder("models") / "all-MiniLM-L6-v2" / gate.BUDGET
    assert gate.floors_for(known) == (gate.read_budget(path)["int8"], "models/all-MiniLM-L6-v2/budget.toml")
    own = tmp_path / "own.toml"
    own.write_text(TABLE)
    assert gate.floors_for(known, own) == (Floors(20, 17, 15, *[0.5] * 6), str(own))


def test_a_name_is_no_path_into_models(clean: Measurement) -> None:
    for name in ("../models/all-MiniLM-L6-v2", "", "x" * 1000):
        found = replace(clean, subject=replace(clean.subject, name=name))
        assert gate.floors_for(found)[0] == gate.DEFAULTS["int8"]


def test_a_budget_without_the_compute_type_is_refused_and_says_what_to_add(
    clean: Measurement, tmp_path: Path
) -> None:
    own = tmp_path / "own.toml"
    own.write_text(TABLE.replace("[int8]", "[int8_weights]"))
    line = (
        r"own.toml has no table \[int8\], only int8_weights; add one with a number for each of sqnr, sqnr_s"
    )
    with pytest.raises(InputError, match=line):
        gate.floors_for(clean, own)
    with pytest.raises(InputError, match="compute_type is 'int4'; floors are known for float32"):
        gate.floors_for(replace(clean, subject=replace(clean.subject, compute_type="int4")))
