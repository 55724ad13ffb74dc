"""Machine + files of a model + wishes -> Plan: what runs where, and why. Knows no OpenVINO and opens nothing.

OpenVINO's own defaults change numbers from CPU to CPU (bfloat16 where the CPU has it, dynamic quantization
where it has VNNI), so every property that does is chosen here, passed on, and shown with its reason. What
`edge-embed tune` has measured on this machine comes before rules that were measured elsewhere; the caller's
wishes come before both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import batching
from edge_embed.errors import InputError, ModelNotFoundError
from edge_embed.hardware import INT8_DOT, Machine
from edge_embed.ir import VARIANTS, Files
from edge_embed.profile import FAIL, PASS, Profile, Tuned

# Compute type -> (stored variant of VARIANTS, INFERENCE_PRECISION_HINT, DYNAMIC_QUANTIZATION_GROUP_SIZE).
COMPUTE_TYPES = {
    "float32": ("float32", "f32", "0"),
    "bfloat16": ("float32", "bf16", "0"),
    "int8_weights": ("int8_weights", "f32", "0"),
    "int8_dynamic": ("int8_weights", "f32", "32"),
    "int8": ("int8", "f32", "0"),
}

# The two forms of a model with local attention layers: short batches are faster with masks, long ones with
# windows. A batch is run as WINDOWED when its texts have more tokens than the plan's `windowed_from`.
PLAIN, WINDOWED = "plain", "windowed"
WINDOWED_FROM = 512

# An NPU takes fixed shapes only. Shorter ones than this are hardly faster there.
SHORTEST_STATIC = 32

# Speeds no further apart than this count as equal: the more accurate compute type is taken.
EQUALLY_FAST = 1.05

# From the most accurate to the least, where no drift was measured.
BY_ACCURACY = ("float32", "bfloat16", "int8_weights", "int8_dynamic", "int8")

DRIFT = "drift"  # of edge_embed.json: how far from float32 each compute type is, and whether that will do
TUNED = "tuned here"  # the reason for what a profile says

# A call of so many batches is worth a form with several streams, which is a second compilation.
MANY_BATCHES = 16

# Streams, and the threads that they need: an inference of fewer than two threads only where there are two.
STREAMS = ((2, 2), (4, 8), (8, 16))

# Compute types that are not chosen for their small memory: a second form holds the packed weights again.
WITH_MANY = ("float32", "bfloat16", "int8")

# Compute types whose kernels serve all shapes, so that a finer ladder costs nothing: 5 and 3 % faster.
FINE = ("float32", "bfloat16")

# Padded tokens per batch. Larger leaves the caches, smaller reads the weights too often; flat 256 to 1,024.
TOKEN_BUDGET = 512


@dataclass(frozen=True, slots=True)
class Plan:
    """How one model runs on this machine. `reasons` has a line for each choice."""

    folder: Path
    file: Path  # the .xml or .onnx in use
    compute_type: str
    device: str
    properties: Mapping[str, str]  # passed to compile_model
    threads: int
    streams: int
    many_streams: int  # of calls with MANY_BATCHES or more: a form of its own, where it is another number
    token_budget: int
    cache: Path | None  # folder of compiled blobs
    static_lengths: tuple[int, ...]  # T of the only shapes that the device takes, (1, T); empty: any shape
    weight_only: bool  # a static INT8 file is to be run without quantizing activations
    passes: tuple[str, ...]  # changes of the graph that are taken, in order; `prepare` decides
    windowed_from: int | None  # padded tokens above which the WINDOWED form runs; None: never
    reasons: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, in the order that `edge-embed info` shows."""
        return {
            "folder": str(self.folder),
            "file": str(self.file),
            "compute_type": self.compute_type,
            "device": self.device,
            "threads": self.threads,
            "streams": self.streams,
            "many_streams": self.many_streams,
            "token_budget": self.token_budget,
            "properties": dict(self.properties),
            "cache": None if self.cache is None else str(self.cache),
            "static_lengths": list(self.static_lengths),
            "passes": list(self.passes),
            "windowed_from": self.windowed_from,
            "reasons": dict(self.reasons),
        }


def make_plan(
    machine: Machine,
    files: Files,
    *,
    max_tokens: int,
    compute_type: str = "auto",
    device: str = "CPU",
    threads: int | None = None,
    streams: int | None = None,
    cache: Path | None = None,
    cache_asked: bool = False,
    profile: Profile | None = None,
    int8_passed: bool = False,
    int8_trouble: str = "",
) -> Plan:
    """Decide. Wishes that are not None are followed as they are.

    max_tokens    the longest text that will come
    cache         folder for compiled blobs, None for none; used where it pays, or if `cache_asked` everywhere
    profile       what was measured on this machine, for this device and these files
    int8_passed   the drift of static INT8 on CPUs like this one is on record, and within its floors
    int8_trouble  why the CPU's INT8 kernels must not be used; "" if they may

    Errors: InputError for an unknown compute type, for one that the device lacks and for a count below 1;
    ModelNotFoundError when the folder has no file for the compute type: the line says what it has and how to
    make the missing one.
    """
    for name, count in (("threads", threads), ("streams", streams)):
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; it must be at least 1")
    reasons: dict[str, str] = {}
    on_cpu = device == "CPU"
    if int8_trouble:
        machine = replace(machine, flags=machine.flags - INT8_DOT)
    chosen, file = choose_file(machine, files, compute_type, reasons, profile, int8_passed)
    tuned = profile.compute_types.get(chosen) if profile else None
    if int8_trouble:
        reasons["compute_type"] += f"; {int8_trouble}"
    _, precision, group = COMPUTE_TYPES[chosen]
    undotted = on_cpu and group != "0" and not machine.has_int8_dot
    group = "0" if undotted else group
    if precision == "bf16" and not on_cpu:
        raise InputError(f"bfloat16 is computed on CPUs only, not on {device}; use float32")
    reasons["device"] = "runs everywhere, and is what this package is measured on" if on_cpu else "as asked"

    asked = threads
    if threads is not None:
        reasons["threads"] = "as asked"
    elif tuned is not None and tuned.threads is not None:
        threads, reasons["threads"] = tuned.threads, TUNED
    else:
        threads = machine.threads
        quota = "" if machine.quota_cores is None else f", quota of {machine.quota_cores:g} cores"
        reasons["threads"] = (
            f"{machine.physical_cores} physical of {machine.logical_cores} logical cores{quota}"
        )
    if streams is not None:
        many_streams = streams
        reasons["streams"] = reasons["many_streams"] = "as asked"
    elif tuned is not None and tuned.streams is not None and asked in (None, tuned.threads):
        streams = many_streams = tuned.streams
        reasons["streams"] = reasons["many_streams"] = TUNED
    else:
        streams, reasons["streams"] = 1, "one stream has all threads, and answers soonest"
        many_streams, reasons["many_streams"] = (
            (
                streams_for_many(threads),
                f"from {MANY_BATCHES} batches on: threads of different streams never wait for each other",
            )
            if on_cpu and chosen in WITH_MANY
            else (1, "a second form would hold the packed weights again")
        )

    kind = device_kind(device)
    if (
        kind == "NPU"
    ):  # it has no other precision, takes no group size, and tells its streams instead of taking them
        properties = {"INFERENCE_PRECISION_HINT": "f16"}
        reasons["INFERENCE_PRECISION_HINT"] = "an NPU computes in float16, whatever is stored"
    else:
        properties = {
            "INFERENCE_PRECISION_HINT": precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
            "NUM_STREAMS": str(streams),
        }
        reasons["INFERENCE_PRECISION_HINT"] = (
            "bfloat16 was asked for"
            if precision == "bf16"
            else "pinned: OpenVINO's default is bfloat16 on some CPUs, float16 on GPUs"
        )
        reasons["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = (
            "activations in groups of 32, as int8_dynamic says"
            if group != "0"
            else "off: without INT8 dot products int8_dynamic is int8_weights"
            if undotted
            else "pinned off: OpenVINO's default is 32"
        )
        reasons["NUM_STREAMS"] = "the streams above"
    if on_cpu:
        properties["INFERENCE_NUM_THREADS"] = str(threads)
        reasons["INFERENCE_NUM_THREADS"] = "the plan's threads, shared by all streams"
        if int8_trouble and chosen == "int8":
            # For files whose activations prepare does not take the rounding out of: then it is simulated.
            properties["LP_TRANSFORMS_MODE"] = "NO"
            reasons["LP_TRANSFORMS_MODE"] = (
                "quantized activations are computed in float32: no INT8 kernel runs"
            )
        properties["CPU_DENORMALS_OPTIMIZATION"] = "YES"
        reasons["CPU_DENORMALS_OPTIMIZATION"] = (
            "numbers below 1e-38 count as 0; OpenVINO then need not read every weight at start to find them"
        )
    budget, reasons["token_budget"] = (
        (TOKEN_BUDGET, "measured: flat from 256 to 1,024 padded tokens a batch")
        if tuned is None or tuned.token_budget is None
        else (tuned.token_budget, TUNED)
    )
    cache, reasons["cache"] = choose_cache(cache, cache_asked, chosen, file, on_cpu)
    lengths = static_lengths(max_tokens) if kind == "NPU" else ()
    windowed_from, reasons["windowed_from"] = (
        (None, "not with fixed shapes")
        if lengths
        else (WINDOWED_FROM, "measured: longer texts are faster with windows than with masks")
        if tuned is None or tuned.windowed_from is None
        else (tuned.windowed_from, TUNED)
    )
    return Plan(
        folder=files.folder,
        file=file,
        compute_type=chosen,
        device=device,
        properties=properties,
        threads=threads,
        streams=streams,
        many_streams=many_streams,
        token_budget=budget,
        cache=cache,
        static_lengths=lengths,
        weight_only=chosen == "int8" and on_cpu and not machine.has_int8_dot,
        passes=(),
        windowed_from=windowed_from,
        reasons=reasons,
    )


def rungs(plan: Plan, max_tokens: int) -> NDArray[np.int64]:
    """The token counts that batches are padded to: the only ones a device takes, or a ladder."""
    if plan.static_lengths:
        return np.array(plan.static_lengths, np.int64)
    return batching.ladder(max_tokens, fine=plan.compute_type in FINE)


def streams_for_many(threads: int) -> int:
    """Inferences at once when throughput counts: of one or two threads each, as `tune` tries them first.

    >>> [streams_for_many(threads) for threads in (1, 2, 4, 8, 16, 64)]
    [1, 2, 2, 4, 8, 8]
    """
    return max((streams for streams, least in STREAMS if threads >= least), default=1)


def for_many(plan: Plan) -> Plan:
    """The same plan with the streams of long calls from the start; not all devices take a number of them."""
    if plan.many_streams == plan.streams:
        return plan
    properties = dict(plan.properties) | {"NUM_STREAMS": str(plan.many_streams)}
    return replace(plan, streams=plan.many_streams, properties=properties)


def device_kind(device: str) -> str:
    """CPU, GPU, NPU or AUTO of OpenVINO's device names, as GPU.1 or AUTO:GPU,CPU."""
    return device.partition(":")[0].partition(".")[0]


def static_lengths(max_tokens: int) -> tuple[int, ...]:
    """Powers of two up to max_tokens, and that one: each is a compilation, which takes an NPU long.

    >>> static_lengths(300)
    (32, 64, 128, 256, 300)
    """
    lengths = [SHORTEST_STATIC << i for i in range(max(1, max_tokens).bit_length())]
    return (*(length for length in lengths if length < max_tokens), max_tokens)


def choose_cache(
    folder: Path | None, asked: bool, compute_type: str, file: Path, on_cpu: bool
) -> tuple[Path | None, str]:
    """Where compiled blobs are kept, and why.

    Importing a blob makes the CPU plugin read the whole .bin. A float32 model compiles as fast without one,
    and never touches the rows of the token table that no text needs: with a table of 262,144 x 768, 0.26 s
    and 184 MB against 0.40 s and 940 MB.
    """
    if folder is None:
        return None, "off"
    if file.suffix != ".xml":
        return None, "off: an ONNX file has no separate weights to share"
    if asked:
        return folder, "as asked"
    if on_cpu and compute_type in ("float32", "bfloat16"):
        return None, "off: compiling float32 is as fast as importing a blob, and reads less of the weights"
    return folder, "a later start skips graph compilation; the weights stay in the IR's own file"


def choose_file(
    machine: Machine,
    files: Files,
    wish: str,
    reasons: dict[str, str],
    profile: Profile | None,
    int8_passed: bool,
) -> tuple[str, Path]:
    """The compute type, and the file that serves it."""
    if wish != "auto" and wish not in COMPUTE_TYPES:
        raise InputError(f"compute_type is {wish!r}; known: auto, {', '.join(COMPUTE_TYPES)}")
    if not files.variants:
        if files.onnx is None:
            raise ModelNotFoundError(
                f"{files.folder} holds no OpenVINO IR and no ONNX file; run: edge-embed build {files.folder}"
            )
        if wish not in ("auto", "float32", "bfloat16"):
            raise ModelNotFoundError(f"{files.folder} holds only {files.onnx.name}; {wish} needs an INT8 IR")
        chosen = "float32" if wish == "auto" else wish
        reasons["compute_type"] = "as asked" if wish != "auto" else "the folder has an ONNX file and no IR"
        return chosen, files.onnx
    if wish != "auto":
        variant = COMPUTE_TYPES[wish][0]
        if variant not in files.variants:
            have = ", ".join(path.name for path in files.variants.values())
            command = f"build {files.folder}"
            if variant != "float32":
                command = f"quantize {files.folder} --compute-type {variant}"
            raise ModelNotFoundError(
                f"{files.folder} has no {VARIANTS[variant]} for {wish}, only {have}; "
                f"run: edge-embed {command}"
            )
        reasons["compute_type"] = "as asked"
        return wish, files.variants[variant]
    if profile is not None:
        tuned = choose_tuned(machine, files, profile, reasons)
        if tuned is not None:
            return tuned, files.variants[COMPUTE_TYPES[tuned][0]]
    return choose_automatically(machine, files, reasons, int8_passed)


def choose_tuned(machine: Machine, files: Files, profile: Profile, reasons: dict[str, str]) -> str | None:
    """The fastest compute type of a profile that auto may take, or an equally fast, more accurate one.

    None where the profile has none. Never bfloat16, never what failed the drift gate, and static INT8 only
    with a gate that it passed where INT8 dot products compute it.
    """
    measured = {
        name: tuned
        for name, tuned in profile.compute_types.items()
        if name in COMPUTE_TYPES and COMPUTE_TYPES[name][0] in files.variants and name != "bfloat16"
    }
    open_to_auto = {
        name: tuned
        for name, tuned in measured.items()
        if (
            tuned.verdict == PASS and machine.has_int8_dot
            if name == "int8"
            else tuned.verdict in (None, PASS)
        )
    }
    if not open_to_auto:
        return None
    most = max(tuned.texts_per_second for tuned in open_to_auto.values())
    fast = {n: tuned for n, tuned in open_to_auto.items() if tuned.texts_per_second * EQUALLY_FAST >= most}
    chosen = max(fast, key=lambda name: accuracy(name, fast[name]))
    tuned = measured[chosen]
    told = [f"{TUNED}: {tuned.texts_per_second:.1f} texts/s"]
    others = ["float32"] if chosen != "float32" else [name for name in open_to_auto if name != chosen]
    against = [f"{measured[name].texts_per_second:.1f} of {name}" for name in others if name in measured]
    if against:
        told[0] += f" against {', '.join(against)}"
    if tuned.sqnr is not None:
        told.append(f"{tuned.sqnr:.1f} dB")
    if tuned.texts_per_second < most:
        told.append("the more accurate of the equally fast")
    refused = [n for n, one in measured.items() if one.verdict == FAIL and one.texts_per_second > most]
    if refused:
        told.append(f"faster but drifting too far: {' and '.join(refused)}")
    reasons["compute_type"] = ", ".join(told)
    return chosen


def accuracy(name: str, tuned: Tuned) -> tuple[float, int]:
    """What sorts compute types by their drift, the most accurate last."""
    sqnr = math.inf if name == "float32" else -math.inf if tuned.sqnr is None else tuned.sqnr
    return sqnr, -BY_ACCURACY.index(name)


def choose_automatically(
    machine: Machine, files: Files, reasons: dict[str, str], int8_passed: bool
) -> tuple[str, Path]:
    """Never bfloat16, and INT8 only where it is measured to be faster or float32 does not fit.

    Of the two INT8 files the one with weights only comes first: it is the more accurate by some dB, and which
    of them is faster here is for `edge-embed tune` to say.
    """
    variants = files.variants
    if machine.has_int8_dot and "int8_weights" in variants:
        reasons["compute_type"] = "the CPU has INT8 dot products and the folder has INT8 weights"
        return "int8_dynamic", variants["int8_weights"]
    if machine.has_int8_dot and int8_passed and "int8" in variants:
        reasons["compute_type"] = (
            "the CPU has INT8 dot products, and the drift of static INT8 is within its floors"
        )
        return "int8", variants["int8"]
    if "float32" not in variants:
        chosen = "int8_weights" if "int8_weights" in variants else "int8"
        reasons["compute_type"] = "the folder has no float32 IR"
        return chosen, variants[chosen]
    if "int8_weights" not in variants:
        reasons["compute_type"] = without_int8_weights(machine, files)
        return "float32", variants["float32"]
    if not fits(machine, variants["float32"]):
        needed, memory = 2 * weight_bytes(variants["float32"]), machine.memory_bytes
        reasons["compute_type"] = f"float32 needs about {needed / 1e6:.0f} MB of {memory / 1e6:.0f} MB"
        return "int8_weights", variants["int8_weights"]
    reasons["compute_type"] = "without INT8 dot products float32 is faster"
    return "float32", variants["float32"]


def without_int8_weights(machine: Machine, files: Files) -> str:
    """Why float32 is taken where the folder has it, and no INT8 weights."""
    if "int8" not in files.variants:
        return "float32 is the reference; the folder has no INT8 weights"
    if not machine.has_int8_dot:
        return "float32 is the reference; static INT8 is for CPUs with INT8 dot products"
    return "float32 is the reference; the drift of static INT8 is not on record as within its floors"


def fits(machine: Machine, xml: Path) -> bool:
    """Whether a float32 IR is expected to fit into memory: its weights once as read, once as packed."""
    return 2 * weight_bytes(xml) <= machine.memory_bytes


def verdict_on_record(record: Mapping[str, Any], compute_type: str, machine: Machine) -> str | None:
    """What the drift gate said of a compute type on CPUs like this one, by the record; None: nothing."""
    drift = record.get(DRIFT)
    entry = drift.get(compute_type) if isinstance(drift, dict) else None
    if not isinstance(entry, dict) or entry.get("cpu_class") != machine.cpu_class:
        return None
    verdict = entry.get("verdict")
    return verdict if verdict in (PASS, FAIL) else None


def weight_bytes(xml: Path) -> int:
    """The size of an IR's weights; 0 where they are missing, which reading the IR will complain about."""
    weights = xml.with_suffix(".bin")
    return weights.stat().st_size if weights.exists() else 0
