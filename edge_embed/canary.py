"""A trial of a CPU's INT8 kernels in a process of its own, before they run in the caller's.

On CPUs with AMX, OpenVINO's INT8 kernels have crashed at their first inference with shapes that are not fixed
(openvino issue 37577). A process that dies so takes the caller's work with it; so does a wrong result. The
outcome is kept for this file, OpenVINO and CPU. Knows a plan and its file; does not know what runs instead.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed import atomic, child
from edge_embed.errors import ModelError, OutputError
from edge_embed.graph import head
from edge_embed.hardware import Machine
from edge_embed.plan import Plan

logger = logging.getLogger(__name__)

MODULE = "edge_embed.canary"  # what the child runs

# INT8 kernels of AMX are left out by this, those of VNNI are not. It counts when OpenVINO is first imported.
WITHOUT_AMX = "ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16"

# (B, T): one row and few rows, where kernels have tails, and enough rows for whole tiles of 16.
SHAPES = ((1, 1), (1, 7), (3, 33), (2, 96))
IDS = 100  # token ids below this; every vocabulary has them

# Rounding activations to 8 bits leaves more than this; what leaves less is no rounding.
LEAST_COSINE = 0.9

# Quantized activations, computed in float32.
SIMULATED = {"LP_TRANSFORMS_MODE": "NO", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def trouble(plan: Plan, on: Machine, home: Path) -> str:
    """Why the INT8 kernels of this CPU must not run this plan, in a line; "" where they may.

    home  the folder whose `canaries/` keeps outcomes; one that cannot be kept costs a trial at the next start
    """
    if not runs_int8_on_amx(plan, on):
        return ""
    path = home / "canaries" / f"{key(plan, on)}.json"
    try:
        return str(json.loads(path.read_bytes())["trouble"])
    except (OSError, ValueError, KeyError, TypeError):
        logger.info("trying the INT8 kernels of this CPU on %s in a process of their own, once", plan.file)
    try:
        found = attempt(plan)
    except OSError as error:  # no process can be started: nothing is known
        return f"INT8 kernels are left out: a process to try them in cannot be started ({error})"
    if found:
        found = f"INT8 kernels are left out: {found}; {WITHOUT_AMX} uses those without AMX, or delete {path}"
        logger.warning("%s: %s", plan.file, found)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, json.dumps({"trouble": found, "file": str(plan.file)}))
    except (OSError, OutputError) as error:
        logger.warning("INT8 will be tried again at the next start: %s", error)
    return found


def runs_int8_on_amx(plan: Plan, on: Machine) -> bool:
    """Whether INT8 kernels with AMX would run."""
    if plan.device != "CPU" or "amx_int8" not in on.flags:
        return False
    executed = plan.compute_type == "int8" and not plan.weight_only
    return executed or plan.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] != "0"


def key(plan: Plan, on: Machine) -> str:
    """What an outcome depends on, as a name."""
    import openvino

    status = plan.file.with_suffix(".bin").stat() if plan.file.with_suffix(".bin").exists() else None
    made_from = {
        "xml": hashlib.sha256(plan.file.read_bytes()).hexdigest(),
        "weights": status and [str(plan.file.absolute()), status.st_size, status.st_mtime_ns],
        "properties": dict(plan.properties),
        "openvino": openvino.get_version(),
        "cpu": [on.cpu_model, sorted(on.flags)],
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


def attempt(plan: Plan) -> str:
    """Run the trial; why it failed, or "". Errors: OSError where no process can be started."""
    try:
        cosine = child.call(MODULE, plan.file, json.dumps(dict(plan.properties)))["cosine"]
    except ModelError as error:
        return f"a trial of them failed: {error}"
    if not cosine >= LEAST_COSINE:  # not `<`: NaN is wrong, too
        return f"a trial of them gave vectors with a cosine of {cosine:.3f} to the right ones"
    return ""


def compare(file: Path, properties: Mapping[str, str]) -> dict[str, float]:
    """In the child: the least cosine between outputs by INT8 kernels and by float32 ones, over SHAPES.

    The file's own graph runs, with no pass taken: its kernels are all that a changed graph may use.
    """
    right = outputs(file, {**properties, **SIMULATED})
    ours = outputs(file, properties)
    return {"cosine": min(float(cosine(a, b)) for a, b in zip(ours, right, strict=True))}


def outputs(file: Path, properties: Mapping[str, str]) -> list[NDArray[np.float64]]:
    """The first output for seeded inputs of each shape; the model is released before this returns."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    ports = head.standardize(model)
    request = core.compile_model(model, "CPU", dict(properties)).create_infer_request()
    chosen = np.random.default_rng(0)
    found = []
    for shape in SHAPES:
        request.infer(head.feed(chosen.integers(0, IDS, shape), ports.inputs))
        found.append(np.array(request.get_output_tensor(0).data, np.float64).ravel())
    return found


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of two vectors; NaN where one is of zeros or not finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))


if __name__ == "__main__":
    child.answer(lambda: compare(Path(sys.argv[1]), json.loads(sys.argv[2])))
