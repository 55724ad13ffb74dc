"""The stages between PyTorch and what runs: which ones a compute type has, and what each of them cost.

    reference -> float32 -> simulated -> executed -> emulated
                     \\-> default            \\-> executed_default, saturated

Each stage is compared with the reference and with the one before it, so that noise has a place. Knows ways to
run a model, and arrays; runs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edge_embed.drift.candidate import Way
from edge_embed.drift.measurement import Stage
from edge_embed.drift.metrics import Vectors, check, noise_power, spread, sqnr_of, squared_noise
from edge_embed.hardware import Machine

REFERENCE = "reference"
FLOAT32, EXECUTED = "float32", "executed"

# INT8 is computed in float32 then: what is left is rounding, and no kernel's doing.
SIMULATED = {"LP_TRANSFORMS_MODE": "NO"}

PLAIN_CPU = "AVX2"  # ONEDNN_MAX_CPU_ISA: a CPU without INT8 dot products


@dataclass(frozen=True, slots=True)
class Step:
    """A stage to be run."""

    name: str
    what: str
    previous: str
    way: Way


def candidate_of(compute_type: str) -> str:
    """The stage that is the candidate itself, as Embedder runs it."""
    return FLOAT32 if compute_type == FLOAT32 else EXECUTED


def steps(way: Way, on: Machine, *, has_float32: bool) -> list[Step]:
    """The stages of a compute type on this machine, in order; `way` is the candidate's.

    has_float32  the folder has the IR that the INT8 one was made from
    """
    kind = way.compute_type
    found = []
    base = REFERENCE
    if has_float32 or kind == FLOAT32:
        base = FLOAT32
        float32 = replace(way, compute_type=FLOAT32)
        unpinned = replace(float32, unpinned=True)
        found += [
            Step(FLOAT32, "the float32 IR, with its precision pinned", REFERENCE, float32),
            Step("default", "the same as OpenVINO runs it by default", FLOAT32, unpinned),
        ]
    if kind == FLOAT32:
        return found
    before = base
    if kind == "int8":
        simulated = replace(way, properties=SIMULATED, weight_only=False)
        found.append(Step("simulated", "static INT8, computed in float32", base, simulated))
        before = "simulated"
    elif kind == "int8_dynamic":
        simulated = replace(way, compute_type="int8_weights")
        found.append(Step("simulated", "INT8 weights, computed in float32", base, simulated))
        before = "simulated"
    found.append(Step(EXECUTED, f"{kind}, as this package runs it here", before, way))
    if kind == "bfloat16" or way.device != "CPU":
        return found
    unpinned = replace(way, unpinned=True)
    found.append(Step("executed_default", "the same as OpenVINO runs it by default", EXECUTED, unpinned))
    if on.has_int8_dot and on.architecture == "x86_64":  # only then is there something to take away
        emulated = replace(way, isa=PLAIN_CPU)
        found.append(
            Step("emulated", "as this package runs it on a CPU without VNNI, emulated", EXECUTED, emulated)
        )
        if kind == "int8":
            saturated = replace(emulated, weight_only=False)
            found.append(
                Step("saturated", "INT8 kernels on such a CPU, whose sums saturate", EXECUTED, saturated)
            )
    return found


def entries(
    planned: list[Step], reference: Vectors, vectors: Mapping[str, Vectors], trouble: Mapping[str, str]
) -> tuple[Stage, ...]:
    """The ledger, from the vectors (N, D) of the stages that ran, and why the others did not."""
    known = {REFERENCE: reference, **vectors}
    found = []
    for step in planned:
        if step.name not in vectors:
            why = trouble.get(step.name, "")
            found.append(Stage(step.name, step.what, step.previous, None, None, None, why))
            continue
        x, y = check(reference, vectors[step.name])
        unit_of_noise = spread(x)  # of the reference for both: noise of stages can then be added up
        before = known.get(step.previous)
        gained = None if before is None else squared_noise(check(before, y)[0], y, centred=True)
        found.append(
            Stage(
                step.name,
                step.what,
                step.previous,
                sqnr_of(noise_power(x, y, centred=True)),
                None if gained is None else sqnr_of(gained / unit_of_noise),
                float(1 - squared_noise(x, y, centred=False).mean() / 2),
                "",
            )
        )
    return tuple(found)
