"""From measurements to ratios, and to lines of a verdict. Pure: knows no process and no clock."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

UNSTEADY = 0.15  # a spread above it says that the machine was busy, and the ratios mean little
FLOAT32_APART = 1e-3  # a component of a float32 vector that is further off is another vector
LEAST_COSINE = 0.9  # of 8-bit vectors, on average: below it they are not those of the model

BEST = "*"  # for a batch size: the fastest one that was run

INT8_DOT = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})


@dataclass(frozen=True, slots=True)
class Target:
    """A promise: over a workload, `ours` against `theirs` is on the right side of `limit`.

    figure  speed: tokens/s of ours over theirs; time: seconds or ms of ours over theirs; peak: bytes of ours
            over theirs; seconds, bytes: of ours alone; limit: share of what a document costs at least
    cpu     which kind of CPU it was made for
    """

    workload: str
    figure: Literal["speed", "time", "peak", "seconds", "bytes", "limit"]
    ours: str
    theirs: str
    at_least: bool
    limit: float
    cpu: Literal["any", "vnni", "no-vnni"] = "any"


TARGETED = "311m"  # the promises are made for models of this shape, by the name of their folder
ST = "sentence_transformers_openvino"
LIMIT = "matmuls"
TARGETS = (
    Target("mixed", "speed", "edge@float32", f"{ST}@float32", True, 3.0, "vnni"),
    Target("mixed", "speed", "edge@float32", f"{ST}@float32:{BEST}", True, 1.5, "vnni"),
    Target("mixed", "speed", "edge@int8", f"{ST}@int8", True, 3.3, "vnni"),
    Target("mixed", "speed", "edge@int8", f"{ST}@int8:{BEST}", True, 1.8, "vnni"),
    Target("mixed", "speed", "edge@int8_dynamic", f"{ST}@int8", True, 2.2, "vnni"),
    Target("memory", "peak", "edge@int8_dynamic", f"{ST}@int8", False, 0.15, "vnni"),
    Target("mixed", "speed", "edge@float32", f"{ST}@float32", True, 2.2, "no-vnni"),
    Target("mixed", "speed", "edge@int8", f"{ST}@int8", True, 3.5, "no-vnni"),
    Target("many", "speed", "edge@float32", f"{ST}@float32:{BEST}", True, 1.4),
    *(
        Target(workload, "speed", f"edge@{kind}", f"{LIMIT}@{kind}", True, least)
        for workload in ("uniform128", "uniform512")
        for kind, least in (("float32", 0.90), ("bfloat16", 0.88), ("int8", 0.75))
    ),
    Target("document8k", "speed", "edge@float32", "openvino_plain@float32", True, 2.0),
    Target("document8k", "speed", "edge@int8", "openvino_plain@int8", True, 2.3),
    Target("document8k", "peak", "edge@int8_weights", "openvino_plain@float32", False, 0.4),
    Target("document32k", "bytes", "edge@float32", "", False, 5e9),
    Target("document32k", "limit", "edge@float32", "", True, 0.6),
    Target("start", "time", "edge@float32", f"{ST}@float32", False, 1 / 8),
    Target("start", "seconds", "edge@float32", "", False, 1.3),
    Target("query", "time", "edge@int8_dynamic", "openvino_genai_peer@int8", False, 0.85, "vnni"),
    Target("query", "time", "edge@int8", "openvino_genai_peer@int8", False, 0.85, "vnni"),
)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, spread ((max - min) / median) and all values in the order they came."""
    middle = statistics.median(values)
    return {"median": middle, "spread": (max(values) - min(values)) / middle, "all": list(values)}


def verdict(result: Mapping[str, Any]) -> list[str]:
    """A line for each target that this run has the figures for, then what puts its figures in doubt."""
    cpu = "no-vnni" if INT8_DOT.isdisjoint(result["machine"]["flags"]) else "vnni"
    lines = []
    for target in TARGETS if TARGETED in result["model"]["folder"] else ():
        if target.cpu not in ("any", cpu):
            continue
        found = value(result["workloads"], target)
        if found is None:
            continue
        met = found >= target.limit if target.at_least else found <= target.limit
        sign, word = ">=" if target.at_least else "<=", "met " if met else "MISS"
        against = f" over {target.theirs}" if target.theirs else ""
        lines.append(
            f"{word} {found:10.4g} {sign} {target.limit:<6.4g}  {target.workload}, {target.figure}: "
            f"{target.ours}{against}"
        )
    return lines + best_of_others(result["workloads"]) + doubts(result["workloads"])


def value(workloads: Mapping[str, Any], target: Target) -> float | None:
    """What a target is about; None where this run has not measured it."""
    subjects = workloads.get(target.workload, {}).get("subjects", {})
    ours = subjects.get(target.ours)
    if ours is None or "failed" in ours:
        return None
    if target.figure == "limit":
        return float(ours["limit"]["share"]) if "limit" in ours else None
    if target.figure in ("seconds", "bytes"):
        return float(ours["median"] if target.figure == "seconds" else ours["peak_bytes"])
    name = best(subjects, target.theirs) if target.theirs.endswith(BEST) else target.theirs
    theirs = subjects.get(name)
    if theirs is None or "failed" in theirs:
        return None
    if target.figure == "peak":
        return float(ours["peak_bytes"] / theirs["peak_bytes"])
    paired = ours.get("times_as_fast_as", {}).get(name)
    if paired is None:
        return float(ours["median"] / theirs["median"])
    return float(paired["median"] if target.figure == "speed" else 1 / paired["median"])


def best(subjects: Mapping[str, Any], wanted: str) -> str:
    """The fastest batch size of PEER@KIND:* that was run, its own included."""
    loaded = wanted.partition(":")[0]
    sizes = {
        name: subject["median"]
        for name, subject in subjects.items()
        if name.partition(":")[0] == loaded and "failed" not in subject
    }
    return max(sizes, key=lambda name: sizes[name], default=loaded)


def best_of_others(workloads: Mapping[str, Any]) -> list[str]:
    """Ours at its fastest over the fastest of every other peer, whatever it runs: at least 1.3."""
    subjects = workloads.get("mixed", {}).get("subjects", {})
    pace = {name: subject["median"] for name, subject in subjects.items() if "failed" not in subject}
    pace = {name: value for name, value in pace.items() if not name.startswith(LIMIT)}
    ours = {name: value for name, value in pace.items() if name.startswith("edge@")}
    others = {name: value for name, value in pace.items() if name not in ours}
    if not ours or not others:
        return []
    one, other = max(ours, key=lambda name: ours[name]), max(others, key=lambda name: others[name])
    ratio = ours[one] / others[other]
    word = "met " if ratio >= 1.3 else "MISS"
    return [f"{word} {ratio:10.4g} >= 1.3     mixed, speed: {one} over {other}, the fastest of the others"]


def doubts(workloads: Mapping[str, Any]) -> list[str]:
    """Rounds too far apart to be believed, and vectors that are not those of the model."""
    lines = []
    for workload, found in workloads.items():
        for name, subject in found["subjects"].items():
            if "failed" in subject or name.startswith(LIMIT):
                continue
            if not subject["spread"] <= UNSTEADY:
                lines.append(
                    f"UNSTEADY: {workload}, {name}: rounds spread by {subject['spread']:.0%}; "
                    "run again on a quiet machine"
                )
            apart = subject.get("difference")
            if apart is None:
                continue
            exact = name.partition(":")[0].endswith("@float32")
            wrong = apart["max_abs"] > FLOAT32_APART if exact else apart["cosine"] < LEAST_COSINE
            if wrong:
                lines.append(
                    f"WRONG: {workload}, {name}: vectors are {apart['max_abs']:.1e} off in a component, "
                    f"cosine {apart['cosine']:.4f}: no answer, however fast"
                )
    return lines
