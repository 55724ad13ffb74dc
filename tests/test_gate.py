"""drift/gate.py: budgets that are refused, verdicts at the floor, and what a gate must and must not catch."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.drift import gate, metrics
from edge_embed.drift.gate import Check, Floors
from edge_embed.drift.metrics import Drift, Interval, SliceDrift
from edge_embed.errors import InputError, ShapeError
from edge_embed.plan import COMPUTE_TYPES
from edge_embed.record import write_record
from edge_embed.resources import data_folder

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


def verdicts(checks: list[Check]) -> dict[tuple[str, str | None], str]:
    return {(check.id, check.slice): check.verdict for check in checks}


def failed(checks: list[Check]) -> list[tuple[str, str | None]]:
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
    }


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
