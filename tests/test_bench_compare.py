"""bench/compare.py: which changes between two results of the bench are more than noise."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.compare import WORSE, WRONG_INPUT, Row, compare, main
from bench.verdict import summary

PEER = "openvino_plain@float32"
ROUNDS = 7


def rounds(median: float, *, noise: float = 0.01, seed: int = 0, count: int = ROUNDS) -> list[float]:
    """Rounds about a median that is met exactly, so that a gain can be told to the digit."""
    values = median * (1 + noise * np.random.default_rng(seed).standard_normal(count))
    return [float(value) for value in values * median / np.median(values)]


def subject(values: list[float], peak: int = 1_000_000_000, **more: Any) -> dict[str, Any]:
    return summary(values) | {"peak_bytes": peak, "effective": {}, **more}


def result(**subjects: dict[str, Any]) -> dict[str, Any]:
    """A result with one workload; edge is ours in float32, and peer the other library."""
    names = {"edge": "edge@float32", "int8": "edge@int8", "peer": PEER}
    return {
        "schema": 2,
        "model": {"folder": "granite", "sha256": {"openvino/openvino_model.xml": "aa"}},
        "machine": {"cpu_model": "EPYC", "flags": ["avx2", "fma"]},
        "threads": 2,
        "versions": {"openvino": "2026.4.1"},
        "workloads": {
            "mixed": {
                "texts": {"count": 200, "tokens": 9000, "sha256": "bb"},
                "unit": "tokens/s",
                "better": "higher",
                "subjects": {names[key]: value for key, value in subjects.items()},
            }
        },
        "verdict": [],
    }


def run(tmp_path: Path, old: dict[str, Any], new: dict[str, Any], *options: str) -> int:
    for name, content in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return main([str(tmp_path / "old.json"), str(tmp_path / "new.json"), *options])


def speed(old: dict[str, Any], new: dict[str, Any]) -> Row:
    """The row of edge@float32."""
    rows = compare(old, new)
    return next(row for row in rows if row.subject == "edge@float32" and row.what == "speed")


def test_a_result_compared_with_itself_has_nothing_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = result(edge=subject(rounds(1000)), peer=subject(rounds(400, seed=1)))
    assert run(tmp_path, same, same, "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    last = json.loads(lines[-1])
    assert [len(last[state]) for state in ("worse", "better", "same", "unjudged")] == [0, 0, 2, 0]
    assert last["same"][0]["relative"]["value"] == pytest.approx(1)
    assert lines[0] == "both on EPYC with the same flags, 2 threads"


def test_a_tenth_slower_than_the_peer_is_slower_whatever_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = result(edge=subject(rounds(1000)), peer=subject(rounds(400, seed=1)))
    new = result(edge=subject(rounds(1800, seed=2)), peer=subject(rounds(800, seed=3)))  # twice the machine
    new["machine"] = {"cpu_model": "Xeon", "flags": ["avx512f"]}
    assert run(tmp_path, old, new) == WORSE
    shown = capsys.readouterr().out
    assert "SLOWER mixed, edge@float32: gain 0.900 (" in shown
    assert speed(old, new).raw is None  # raw it would be 1.8 times as fast


def test_a_slower_machine_is_not_a_slower_program() -> None:
    old = result(edge=subject(rounds(1000)), peer=subject(rounds(400, seed=1)))
    new = result(edge=subject(rounds(500, seed=2)), peer=subject(rounds(200, seed=3)))
    row = speed(old, new)
    assert row.state == "same"
    assert row.raw is not None
    assert row.raw.value == pytest.approx(0.5)


def test_what_is_better_lower_is_turned_round() -> None:
    old = result(edge=subject(rounds(10)), peer=subject(rounds(30, seed=1)))
    new = result(edge=subject(rounds(8, seed=2)), peer=subject(rounds(30, seed=3)))
    for found in (old, new):
        found["workloads"]["mixed"] |= {"unit": "ms", "better": "lower"}
    row = speed(old, new)
    assert row.state == "better"
    assert row.relative is not None
    assert row.relative.value == pytest.approx(10 / 8)
    assert speed(new, old).state == "worse"


@pytest.mark.parametrize(
    ("factor", "state"), [(0.98, "same"), (0.96, "worse"), (1.02, "same"), (1.04, "better")]
)
def test_below_three_per_cent_nothing_has_changed_however_steady(factor: float, state: str) -> None:
    old = result(edge=subject(rounds(1000, noise=1e-4)), peer=subject(rounds(400, noise=1e-4, seed=1)))
    new = result(
        edge=subject(rounds(1000 * factor, noise=1e-4)), peer=subject(rounds(400, noise=1e-4, seed=1))
    )
    assert speed(old, new).state == state


def test_a_change_that_the_rounds_explain_is_noise_and_said_to_be_unsteady() -> None:
    old = result(edge=subject(rounds(1000, noise=0.15)), peer=subject(rounds(400, noise=0.15, seed=1)))
    new = result(edge=subject(rounds(930, noise=0.15, seed=2)), peer=subject(rounds(400, noise=0.15, seed=3)))
    row = speed(old, new)
    assert row.state == "same"
    assert row.note.startswith("spread ")


def test_equal_speed_is_seldom_called_slower_and_a_tenth_less_nearly_always() -> None:
    chance = np.random.default_rng(0)

    def state(factor: float) -> str:
        def noisy(median: float) -> list[float]:
            return [float(value) for value in median * np.exp(0.03 * chance.standard_normal(ROUNDS))]

        old = result(edge=subject(noisy(1000)), peer=subject(noisy(400)))
        return speed(old, result(edge=subject(noisy(1000 * factor)), peer=subject(noisy(400)))).state

    assert sum(state(1.0) == "worse" for _ in range(100)) <= 5
    assert sum(state(0.85) == "worse" for _ in range(100)) >= 90


def test_rounds_in_turns_see_what_common_noise_hides() -> None:
    """A machine that wavers by 30 % for all at once: only the ratio of each round is steady."""
    waves = 1 + 0.3 * np.random.default_rng(0).standard_normal(ROUNDS)

    def wavering(ours: float) -> dict[str, Any]:
        ratio = summary(rounds(ours / 400, noise=0.005, seed=4))
        edge = subject((ours * waves).tolist(), times_as_fast_as={PEER: ratio})
        return result(edge=edge, peer=subject((400 * waves).tolist()))

    old, new = wavering(1000), wavering(900)
    assert speed(old, new).state == "worse"
    for found in (old, new):
        del found["workloads"]["mixed"]["subjects"]["edge@float32"]["times_as_fast_as"]
    assert speed(old, new).state == "same"


def test_one_odd_peer_of_three_does_not_move_the_yardstick() -> None:
    old = result(edge=subject(rounds(1000)), peer=subject(rounds(400, seed=1)))
    new = copy.deepcopy(old)
    for name, faster in (("a@float32", 1.0), ("b@float32", 2.0)):
        old["workloads"]["mixed"]["subjects"][name] = subject(rounds(300, seed=5))
        new["workloads"]["mixed"]["subjects"][name] = subject(rounds(300 * faster, seed=5))
    assert speed(old, new).state == "same"


def test_without_a_peer_raw_is_judged_on_one_kind_of_machine_only() -> None:
    old, new = result(edge=subject(rounds(1000))), result(edge=subject(rounds(800, seed=2)))
    assert speed(old, new).state == "worse"
    new["machine"] = {"cpu_model": "Xeon", "flags": ["avx2", "fma"]}
    row = speed(old, new)
    assert (row.state, row.note) == ("unjudged", "the machines differ, and no peer is in both")


def test_two_rounds_are_too_few_to_judge() -> None:
    old = result(edge=subject(rounds(1000, count=2)), peer=subject(rounds(400)))
    new = result(edge=subject(rounds(500)), peer=subject(rounds(400)))
    assert (speed(old, new).state, speed(old, new).note) == ("unjudged", "fewer than 3 rounds")


@pytest.mark.parametrize(("peak", "state"), [(1.04, "same"), (1.06, "worse"), (0.9, "better")])
def test_memory_may_grow_by_a_twentieth(peak: float, state: str) -> None:
    old = result(edge=subject(rounds(1000)), peer=subject(rounds(400)))
    new = result(edge=subject(rounds(1000), peak=int(1e9 * peak)), peer=subject(rounds(400)))
    row = next(row for row in compare(old, new) if row.what == "memory")
    assert row.state == state
    new["machine"]["flags"] = ["avx2", "fma", "avx512f"]  # other kernels, other layouts of the weights
    assert next(row for row in compare(old, new) if row.what == "memory").state == "unjudged"


def test_a_workload_in_bytes_has_one_row_and_needs_no_rounds() -> None:
    old, new = result(edge=subject([1e9])), result(edge=subject([1.2e9]))
    for found in (old, new):
        found["workloads"]["memory"] = found["workloads"].pop("mixed") | {"unit": "bytes", "better": "lower"}
        del found["workloads"]["memory"]["texts"]  # it is that of a start
    (row,) = compare(old, new)
    assert (row.what, row.state) == ("memory", "worse")


def test_a_subject_of_ours_that_fails_or_is_gone_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = result(edge=subject(rounds(1000)), int8=subject(rounds(2000)), peer=subject(rounds(400)))
    new = result(edge={"failed": "ended with exit code -9"}, peer=subject(rounds(400)))
    assert run(tmp_path, old, new) == WORSE
    shown = capsys.readouterr().out
    assert "GONE mixed, edge@float32: fails in NEW: ended with exit code -9" in shown
    assert "GONE mixed, edge@int8: is not in NEW" in shown


def test_a_new_subject_and_a_mended_one_are_shown_and_not_judged(tmp_path: Path) -> None:
    old = result(edge={"failed": "no memory"}, peer=subject(rounds(400)))
    new = result(edge=subject(rounds(1000)), int8=subject(rounds(2000)), peer=subject(rounds(400)))
    assert run(tmp_path, old, new) == 0
    assert [(row.state, row.note) for row in compare(old, new)] == [
        ("unjudged", "fails in OLD: no memory"),
        ("unjudged", "is not in OLD"),
    ]


def test_wrong_vectors_and_other_versions_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = result(edge=subject(rounds(1000)), peer=subject(rounds(400)))
    new = copy.deepcopy(old) | {"versions": {"openvino": "2026.5.0"}, "verdict": ["met  1", "WRONG: mixed"]}
    assert run(tmp_path, old, new) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "versions: openvino 2026.4.1 -> 2026.5.0" in lines
    assert "NEW: WRONG: mixed" in lines
    assert not any("met" in line for line in lines)


def texts(found: dict[str, Any]) -> None:
    found["workloads"]["mixed"]["texts"]["sha256"] = "other"


def model(found: dict[str, Any]) -> None:
    found["model"]["sha256"]["openvino/openvino_model.xml"] = "other"


def files(found: dict[str, Any]) -> None:
    found["model"]["sha256"] = {"onnx/model.onnx": "cc"}


def threads(found: dict[str, Any]) -> None:
    found["threads"] = 4


def workloads(found: dict[str, Any]) -> None:
    found["workloads"]["query"] = found["workloads"]["mixed"]


def unit(found: dict[str, Any]) -> None:
    found["workloads"]["mixed"]["unit"] = "texts/s"


def schema(found: dict[str, Any]) -> None:
    found["schema"] = 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (texts, "the texts of mixed are not the same: their sha256 differ"),
        (model, "the models are not the same, granite and granite: openvino_model.xml differs"),
        (files, "the models are not the same, granite and granite: no file is in both"),
        (threads, "OLD ran with 2 threads and NEW with 4"),
        (workloads, "not both have the workloads query; choose with --workload"),
        (unit, "mixed is in tokens/s in OLD, and in texts/s in NEW"),
        (schema, "is no result of `make bench` of schema 2; its schema is 1"),
    ],
)
def test_results_of_different_things_are_refused_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, line: str
) -> None:
    old = result(edge=subject(rounds(1000)), peer=subject(rounds(400)))
    new = copy.deepcopy(old)
    change(new)
    assert run(tmp_path, old, new) == WRONG_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("compare: ")
    assert captured.err.endswith(f"{line}\n")
    assert captured.err.count("\n") == 1


def test_one_workload_of_two_can_be_chosen_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    old = result(edge=subject(rounds(1000)), peer=subject(rounds(400)))
    new = copy.deepcopy(old)
    workloads(new)
    assert run(tmp_path, old, new, "--workload", "mixed") == 0
    assert run(tmp_path, old, new, "--workload", "query") == WRONG_INPUT


def test_an_int8_ir_made_anew_is_compared_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = result(edge=subject(rounds(1000)), peer=subject(rounds(400)))
    old["model"]["sha256"]["openvino/openvino_model_qint8_quantized.bin"] = "one"
    new = copy.deepcopy(old)
    new["model"]["sha256"]["openvino/openvino_model_qint8_quantized.bin"] = "other"
    assert run(tmp_path, old, new) == 0
    named = "made anew, and part of what is compared: openvino_model_qint8_quantized.bin"
    assert named in capsys.readouterr().out


def test_a_file_that_is_not_there_or_no_json_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.json").write_text("not json", "utf-8")
    assert main([str(tmp_path / "text.json"), str(tmp_path / "missing.json")]) == WRONG_INPUT
    assert main([str(tmp_path / "missing.json"), str(tmp_path / "text.json")]) == WRONG_INPUT
    assert capsys.readouterr().err.count("cannot be read") == 2
