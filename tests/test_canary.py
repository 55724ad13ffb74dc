"""canary.py: INT8 kernels are tried in a child first where the CPU has AMX, and left out where that fails."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed import Embedder, canary, child, ir
from edge_embed import embedder as embedder_module
from edge_embed.hardware import Machine, machine
from edge_embed.ir import VARIANTS
from edge_embed.plan import Plan, make_plan

TEXTS = ["the cat sat on the mat", "a dog runs fast", "the red house is blue " * 40]

AMX = frozenset({"avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"})

DIES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
ANSWERS = "from edge_embed import child; child.answer(lambda: {'cosine': %s})"
RAISES = "from edge_embed import child; child.answer(lambda: 1 / 0)"


pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def with_amx(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """This machine, which now says that it has AMX."""
    here = replace(machine(), flags=AMX)
    monkeypatch.setattr(embedder_module, "machine", lambda: here)
    return here


Bird = Callable[[str], None]


@pytest.fixture
def bird(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bird:
    """Makes the child run this code instead of a trial."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(canary, "MODULE", "bird")

    def write(code: str) -> None:
        (tmp_path / "bird.py").write_text(code)

    return write


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that were run in a child during the test."""
    ran: list[str] = []
    really = child.call

    def noted(module: str, *arguments: str | Path) -> dict[str, object]:
        ran.append(module)
        return really(module, *arguments)

    monkeypatch.setattr(child, "call", noted)
    return ran


def planned(folder: Path, compute_type: str, flags: frozenset[str] = AMX, device: str = "CPU") -> Plan:
    here = replace(machine(), flags=flags)
    return make_plan(here, ir.find_files(folder), max_tokens=512, compute_type=compute_type, device=device)


# When there is a trial.


@pytest.mark.parametrize(
    ("compute_type", "flags", "device", "expected"),
    [
        ("int8", AMX, "CPU", True),
        ("int8_dynamic", AMX, "CPU", True),
        ("int8_weights", AMX, "CPU", False),
        ("float32", AMX, "CPU", False),
        ("bfloat16", AMX, "CPU", False),
        ("int8", AMX - {"amx_int8"}, "CPU", False),
        ("int8_dynamic", AMX - {"amx_int8"}, "CPU", False),
        ("int8", frozenset({"avx2"}), "CPU", False),
        ("int8", AMX, "GPU", False),
        ("int8", AMX, "NPU", False),
    ],
)
def test_only_int8_kernels_with_amx_are_tried(
    complete: Path, compute_type: str, flags: frozenset[str], device: str, expected: bool
) -> None:
    plan = planned(complete, compute_type, flags, device)
    assert canary.runs_int8_on_amx(plan, replace(machine(), flags=flags)) is expected


def test_a_cpu_without_amx_starts_no_child(
    complete: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(machine(), flags=AMX - {"amx_tile", "amx_int8", "amx_bf16"})
    monkeypatch.setattr(embedder_module, "machine", lambda: here)
    Embedder(complete, compute_type="int8", cache_dir=False)
    assert calls == []


# The real trial, on whatever CPU this is.


@pytest.mark.parametrize("compute_type", ["int8", "int8_dynamic"])
@pytest.mark.skipif(
    not machine().has_int8_dot, reason="other CPUs round INT8 sums, which the trial finds wrong"
)
def test_kernels_that_work_pass_once_and_for_all(
    complete: Path, with_amx: Machine, calls: list[str], compute_type: str
) -> None:
    embedder = Embedder(complete, compute_type=compute_type, cache_dir=False)
    assert "left out" not in embedder.plan.reasons["compute_type"]
    assert "weight_only_execution" not in embedder.plan.passes
    assert embedder.plan.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == (
        "0" if compute_type == "int8" else "32"
    )
    Embedder(complete, compute_type=compute_type, cache_dir=False)
    assert calls == ["edge_embed.canary"]


def test_the_trial_compares_with_float32_kernels(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = complete / "openvino" / VARIANTS["int8"]
    pinned = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    assert canary.compare(file, {**pinned, **canary.SIMULATED})["cosine"] > 0.999_999
    really = canary.outputs

    def broken(file: Path, properties: dict[str, str]) -> list[NDArray[np.float64]]:
        found = really(file, properties)
        if "LP_TRANSFORMS_MODE" not in properties:
            found[1] = np.roll(found[1], 1)  # one shape only
        return found

    monkeypatch.setattr(canary, "outputs", broken)
    assert canary.compare(file, pinned)["cosine"] < 0.5


# What goes wrong.

FAILURES = {
    DIES: "a trial of them failed: bird was ended by SIGSEGV",
    ANSWERS % "0.42": "a trial of them gave vectors with a cosine of 0.420 to the right ones",
    ANSWERS % "float('nan')": "a cosine of nan",
    RAISES: "a trial of them failed: division by zero",
}


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize(("code", "why"), FAILURES.items())
@pytest.mark.parametrize("compute_type", ["int8", "int8_dynamic"])
def test_int8_that_fails_its_trial_runs_with_float32_activations_and_says_why(
    complete: Path,
    with_amx: Machine,
    bird: Bird,
    calls: list[str],
    caplog: pytest.LogCaptureFixture,
    code: str,
    why: str,
    compute_type: str,
) -> None:
    bird(code)
    plan = Embedder(complete, compute_type=compute_type, cache_dir=False).plan
    assert plan.compute_type == compute_type
    assert why in plan.reasons["compute_type"]
    assert canary.WITHOUT_AMX in plan.reasons["compute_type"]
    assert "INT8 kernels are left out" in caplog.text
    assert plan.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"
    assert plan.weight_only is (compute_type == "int8")
    assert ("weight_only_execution" in plan.passes) is (compute_type == "int8")
    again = Embedder(complete, compute_type=compute_type, cache_dir=False).plan
    assert again == plan
    assert calls == ["bird"]


def test_the_fall_back_gives_the_vectors_of_float32_kernels(
    complete: Path, with_amx: Machine, bird: Bird
) -> None:
    reference = Embedder(complete, compute_type="float32", cache_dir=False).encode(TEXTS)
    bird(DIES)
    rows = Embedder(complete, compute_type="int8", cache_dir=False).encode(TEXTS)
    assert (rows * reference).sum(1).min() > 0.998


@pytest.mark.parametrize("cached", [False, True])
def test_no_int8_kernel_runs_even_where_the_rounding_stays_in_the_graph(
    complete: Path,
    with_amx: Machine,
    bird: Bird,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cached: bool,
) -> None:
    """A file whose activations the passes may not touch: the plugin is told to simulate them."""
    from edge_embed import prepare

    monkeypatch.setattr(prepare, "LEAST_COSINE", 2.0)
    bird(DIES)
    cache: Path | Literal[False] = tmp_path / "blobs" if cached else False
    for _ in range(2):  # the second from the blob
        embedder = Embedder(complete, compute_type="int8", cache_dir=cache)
        assert "weight_only_execution" not in embedder.plan.passes
        assert embedder.plan.properties["LP_TRANSFORMS_MODE"] == "NO"
        assert activations(embedder) == {"f32"}
    assert embedder._runtime.loaded_from_cache is cached


def activations(embedder: Embedder) -> set[str]:
    """What the compiled model's linear layers take."""
    nodes: list[Any] = embedder._runtime.compiled.get_runtime_model().get_ops()
    linears = [node for node in nodes if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"]
    return {node.get_input_element_type(0).get_type_name() for node in linears}


@pytest.mark.skipif(not machine().has_int8_dot, reason="activations are left in float32 on other CPUs")
def test_without_trouble_int8_takes_rounded_activations(complete: Path) -> None:
    assert activations(Embedder(complete, compute_type="int8", cache_dir=False)) <= {"i8", "u8"}


def test_auto_takes_what_a_cpu_without_int8_takes(complete: Path, with_amx: Machine, bird: Bird) -> None:
    bird(DIES)
    plan = Embedder(complete, cache_dir=False).plan
    assert plan.compute_type == "float32"
    assert (
        "without INT8 dot products float32 is faster; INT8 kernels are left out"
        in plan.reasons["compute_type"]
    )


# What is kept.


def test_an_outcome_counts_for_this_file_version_and_cpu_only(
    complete: Path, tmp_path: Path, bird: Bird, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    bird(ANSWERS % "0.99")
    here = replace(machine(), flags=AMX)
    copy = Path(shutil.copytree(complete, tmp_path / "copy"))
    plan = planned(copy, "int8")
    assert canary.trouble(plan, here, tmp_path) == ""
    assert canary.trouble(plan, here, tmp_path) == ""
    assert len(calls) == 1
    canary.trouble(plan, replace(here, cpu_model="another"), tmp_path)
    assert len(calls) == 2
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "get_version", lambda: "2027.0")
        canary.trouble(plan, here, tmp_path)
    assert len(calls) == 3
    os.utime(plan.file.with_suffix(".bin"), ns=(1, 1))
    canary.trouble(plan, here, tmp_path)
    assert len(calls) == 4


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff"])
def test_a_damaged_outcome_is_made_anew(
    complete: Path, tmp_path: Path, bird: Bird, calls: list[str], content: bytes
) -> None:
    bird(ANSWERS % "0.99")
    here, plan = replace(machine(), flags=AMX), planned(complete, "int8")
    canary.trouble(plan, here, tmp_path)
    (kept,) = (tmp_path / "canaries").iterdir()
    kept.write_bytes(content)
    assert canary.trouble(plan, here, tmp_path) == ""
    assert len(calls) == 2
    assert json.loads(kept.read_text())["trouble"] == ""


def test_an_outcome_that_cannot_be_kept_is_used_all_the_same(
    complete: Path, tmp_path: Path, bird: Bird, caplog: pytest.LogCaptureFixture
) -> None:
    bird(ANSWERS % "0.1")
    (tmp_path / "canaries").touch()
    found = canary.trouble(planned(complete, "int8"), replace(machine(), flags=AMX), tmp_path)
    assert "a cosine of 0.100" in found
    assert "will be tried again at the next start" in caplog.text


def test_where_no_process_can_be_started_nothing_is_known_and_nothing_is_kept(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    found = canary.trouble(planned(complete, "int8"), replace(machine(), flags=AMX), tmp_path)
    assert found.startswith("INT8 kernels are left out: a process to try them in cannot be started")
    assert not (tmp_path / "canaries").exists()
