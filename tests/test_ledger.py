"""drift/ledger.py: which stages a compute type has on which CPU, and what is made of their vectors."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from edge_embed.drift import ledger, metrics
from edge_embed.drift.candidate import Way
from edge_embed.drift.ledger import Step
from edge_embed.hardware import Machine
from edge_embed.plan import COMPUTE_TYPES
from tests.measurements import Floats, noisy, reference


def cpu(*flags: str, architecture: str = "x86_64") -> Machine:
    return Machine("A CPU", architecture, frozenset(flags), 2, 2, None, 8 << 30)


VNNI = cpu("avx2", "avx512_vnni")
PLAIN = cpu("avx2")
ARM = cpu("asimd", "asimddp", architecture="aarch64")

# "stage < the one before it", in order: on a CPU with INT8 dot products, and on one without.
BASE = "float32 < reference, default < float32"
STAGES = {
    "float32": (BASE, BASE),
    "bfloat16": (f"{BASE}, executed < float32",) * 2,
    "int8_weights": (
        f"{BASE}, executed < float32, executed_default < executed, emulated < executed",
        f"{BASE}, executed < float32, executed_default < executed",
    ),
    "int8_dynamic": (
        f"{BASE}, simulated < float32, executed < simulated, executed_default < executed, "
        "emulated < executed",
        f"{BASE}, simulated < float32, executed < simulated, executed_default < executed",
    ),
    "int8": (
        f"{BASE}, simulated < float32, executed < simulated, executed_default < executed, "
        "emulated < executed, saturated < executed",
        f"{BASE}, simulated < float32, executed < simulated, executed_default < executed",
    ),
}


def shown(steps: list[Step]) -> str:
    return ", ".join(f"{step.name} < {step.previous}" for step in steps)


def ways(compute_type: str, on: Machine = VNNI) -> dict[str, Way]:
    """By stage, for a candidate on two threads."""
    steps = ledger.steps(Way(compute_type, "CPU", 2), on, has_float32=True)
    return {step.name: step.way for step in steps}


# ---- which stages


def test_every_compute_type_is_in_the_table() -> None:
    assert STAGES.keys() == COMPUTE_TYPES.keys()


@pytest.mark.parametrize("compute_type", STAGES)
def test_a_compute_type_has_these_stages(compute_type: str) -> None:
    with_dot, without = STAGES[compute_type]
    for machine, expected in ((VNNI, with_dot), (PLAIN, without), (ARM, without)):
        found = ledger.steps(Way(compute_type), machine, has_float32=True)
        assert shown(found) == expected
        assert ledger.candidate_of(compute_type) in [step.name for step in found]
        assert all(step.what for step in found)


def test_without_the_float32_ir_the_first_stage_is_compared_with_the_reference() -> None:
    found = ledger.steps(Way("int8"), PLAIN, has_float32=False)
    assert shown(found) == "simulated < reference, executed < simulated, executed_default < executed"
    found = ledger.steps(Way("int8_weights"), PLAIN, has_float32=False)
    assert shown(found) == "executed < reference, executed_default < executed"
    # As an ONNX file has it: there is no IR, and the candidate is float32 all the same.
    assert shown(ledger.steps(Way("float32"), PLAIN, has_float32=False)) == BASE


def test_no_cpu_is_emulated_for_another_device() -> None:
    found = ledger.steps(Way("int8", "GPU"), VNNI, has_float32=True)
    assert shown(found) == f"{BASE}, simulated < float32, executed < simulated"
    assert {step.way.device for step in found} == {"GPU"}


@pytest.mark.parametrize("compute_type", STAGES)
def test_the_candidate_runs_as_it_was_asked_to_and_all_stages_on_its_threads(compute_type: str) -> None:
    found = ways(compute_type)
    assert found[ledger.candidate_of(compute_type)] == Way(compute_type, "CPU", 2)
    assert {way.threads for way in found.values()} == {2}
    assert {name for name, way in found.items() if way.unpinned} <= {"default", "executed_default"}


def test_stages_of_static_int8_differ_in_one_thing_each() -> None:
    assert ways("int8") == {
        "float32": Way("float32", "CPU", 2),
        "default": Way("float32", "CPU", 2, unpinned=True),
        # On a CPU without INT8 dot products activations would stay in float32, which simulates nothing.
        "simulated": Way("int8", "CPU", 2, {"LP_TRANSFORMS_MODE": "NO"}, weight_only=False),
        "executed": Way("int8", "CPU", 2),
        "executed_default": Way("int8", "CPU", 2, unpinned=True),
        "emulated": Way("int8", "CPU", 2, isa="AVX2"),
        "saturated": Way("int8", "CPU", 2, weight_only=False, isa="AVX2"),
    }


def test_dynamic_int8_is_simulated_by_its_weights_alone() -> None:
    assert ways("int8_dynamic")["simulated"] == Way("int8_weights", "CPU", 2)


# ---- what is made of their vectors

THREE = [
    Step("float32", "the IR", "reference", Way("float32")),
    Step("simulated", "in float32", "float32", Way("int8")),
    Step("executed", "by its kernels", "simulated", Way("int8")),
]


@pytest.fixture(scope="module")
def x() -> Floats:
    return reference()


def test_a_stage_is_compared_with_the_reference_and_with_the_one_before(x: Floats) -> None:
    y = noisy(x, 60)
    z = noisy(y, 25, seed=2)
    found = ledger.entries(THREE[:2], x, {"float32": y, "simulated": z}, {})
    for stage, vectors, decibels in zip(found, (y, z), (60, 25), strict=True):
        assert stage.from_reference is not None
        assert asdict(stage.from_reference) == pytest.approx(asdict(metrics.sqnr_interval(x, vectors)))
        assert stage.from_reference.value == pytest.approx(decibels, abs=0.5)
        assert stage.cosine_mean == pytest.approx(float((x * vectors).sum(1).mean()), abs=1e-12)
        assert stage.trouble == ""
    first, second = (stage.from_previous for stage in found)
    assert first is not None
    assert second is not None
    assert found[0].from_reference is not None
    assert asdict(first) == pytest.approx(asdict(found[0].from_reference))
    assert second.value == pytest.approx(25, abs=0.5)
    assert [(stage.name, stage.what, stage.previous) for stage in found] == [
        ("float32", "the IR", "reference"),
        ("simulated", "in float32", "float32"),
    ]


def test_noise_of_stages_adds_up(x: Floats) -> None:
    """Because what a stage gains is measured by the spread of the reference, and not of the one before."""
    y = noisy(x, 16)
    z = noisy(y, 16, seed=2)
    first, second = ledger.entries(THREE[:2], x, {"float32": y, "simulated": z}, {})
    assert first.from_reference is not None
    assert second.from_previous is not None
    assert second.from_reference is not None
    powers = [10 ** (-found.value / 10) for found in (first.from_reference, second.from_previous)]
    # Unit rows turn by a little less than the noise that is put on them, hence the tolerance.
    assert second.from_reference.value == pytest.approx(-10 * math.log10(sum(powers)), abs=0.3)
    by_hand = metrics.squared_noise(*metrics.check(y, z), centred=True).mean() / metrics.spread(x)
    assert second.from_previous.value == pytest.approx(-10 * math.log10(by_hand), abs=1e-9)
    assert metrics.spread(y) > 1.005 * metrics.spread(x)  # or this would be no test


def test_a_shift_of_all_vectors_is_no_noise_of_a_stage(x: Floats) -> None:
    moved = x + 0.05 * np.eye(x.shape[1])[0]
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    (found,) = ledger.entries(THREE[:1], x, {"float32": moved}, {})
    assert found.from_reference is not None
    assert found.from_reference.value > metrics.sqnr(x, moved, centred=False) + 3


def test_a_stage_that_did_not_run_says_why_and_the_next_is_still_compared_with_the_reference(
    x: Floats,
) -> None:
    vectors = {"float32": noisy(x, 60), "executed": noisy(x, 25)}
    found = ledger.entries(THREE, x, vectors, {"simulated": "it was ended by SIGILL"})
    assert [stage.trouble for stage in found] == ["", "it was ended by SIGILL", ""]
    assert (found[1].from_reference, found[1].from_previous, found[1].cosine_mean) == (None, None, None)
    assert found[2].from_reference is not None
    assert found[2].from_previous is None
