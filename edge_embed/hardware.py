"""What this process may use: instruction sets, cores, CPU quota, memory. Knows no OpenVINO, decides nothing.

Linux is read from /proc and /sys, below a `root` that tests replace by a recorded tree; macOS from `sysctl`;
Windows tells only what `os` and `platform` know. Nothing here raises: what cannot be read is an empty set of
flags, no quota, or the modest guess named at the field.
"""

import contextlib
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

FLAGS = frozenset(
    {"sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni"}
    | {"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"}
    | {"amx_tile", "amx_int8", "amx_bf16", "amx_fp16"}
    | {"neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"}
)
"""The instruction sets that decide which kernels OpenVINO picks, as /proc/cpuinfo names them."""

INT8_DOT = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
"""Any of these sums int8 products in 32 bits. ARM has its own, but OpenVINO's INT8 there is not relied on."""

SYSCTL_FLAGS = {
    "avx1.0": "avx",
    "sse4.2": "sse4_2",
    "avx512vnni": "avx512_vnni",
    "advsimd": "asimd",
    "feat_fp16": "asimdhp",
    "feat_dotprod": "asimddp",
    "feat_i8mm": "i8mm",
    "feat_bf16": "bf16",
    "feat_sme": "sme",
}
"""What macOS calls differently, in lower case."""

_AMX = frozenset({"amx_tile", "amx_int8", "amx_bf16", "amx_fp16"})
_ABOVE_BF16 = _AMX | {"avx512_fp16"}
_ABOVE_VNNI = _ABOVE_BF16 | {"avx512_bf16"}
_ABOVE_AVX512 = _ABOVE_VNNI | {"avx512_vnni", "avx_vnni"}
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl"}) | (_ABOVE_AVX512 - {"avx_vnni"})
CAPS = {
    "AVX2": _AVX512 | {"avx_vnni"},
    "AVX2_VNNI": _AVX512,
    "AVX2_VNNI_2": _AVX512,
    "AVX512_CORE": _ABOVE_AVX512,
    "AVX512_CORE_VNNI": _ABOVE_VNNI,
    "AVX512_CORE_BF16": _ABOVE_BF16,
    "AVX512_CORE_FP16": _AMX,
}
"""What OpenVINO leaves unused when ONEDNN_MAX_CPU_ISA says so: oneDNN's own name -> flags above it."""

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}

# cgroup v1 says "no limit" as the largest multiple of the page size in 63 bits; no machine has 2^60 bytes.
NO_LIMIT = 1 << 60

SMALL_LAPTOP = 4 << 30


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process may use of the machine it runs on."""

    cpu_model: str
    architecture: str  # as Linux says it: x86_64, aarch64
    flags: frozenset[str]  # of FLAGS, those that every usable core has and that OpenVINO may use
    physical_cores: int  # within the affinity; equal to logical_cores where SMT siblings cannot be told apart
    logical_cores: int  # within the affinity
    quota_cores: float | None  # CPU time per wall time that cgroups allow; None: no quota
    memory_bytes: int  # RAM or the cgroup limit, whichever is less; SMALL_LAPTOP where neither can be read

    @property
    def has_int8_dot(self) -> bool:
        """int8 products are summed in 32 bits by one instruction; without it they cost more than float32."""
        return not self.flags.isdisjoint(INT8_DOT)

    @property
    def cpu_class(self) -> str:
        """INT8 models give the same on CPUs of one class; their drift in one says nothing of the other."""
        return "vnni" if self.has_int8_dot else "no-vnni"

    @property
    def has_bf16(self) -> bool:
        """bfloat16 products run natively."""
        return not self.flags.isdisjoint({"avx512_bf16", "amx_bf16"})

    @property
    def threads(self) -> int:
        """One thread a physical core, and no more than the quota pays for in full.

        A thread beyond the quota does not slow down: all of them stop, together, for the rest of each period.
        """
        paid = self.physical_cores if self.quota_cores is None else math.floor(self.quota_cores)
        return max(1, min(self.physical_cores, paid))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON reports, the derived ones included."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        derived = {"has_int8_dot": self.has_int8_dot, "has_bf16": self.has_bf16, "threads": self.threads}
        return plain | {"flags": sorted(self.flags)} | derived


def machine(root: Path = Path("/")) -> Machine:
    """The machine as this process sees it now; `root` is where Linux's /proc and /sys are looked for."""
    architecture = platform.machine().lower()
    architecture = ARCHITECTURES.get(architecture, architecture)
    found = find_machine(root, architecture)
    return replace(found, flags=found.flags - CAPS.get(os.environ.get("ONEDNN_MAX_CPU_ISA", ""), frozenset()))


def find_machine(root: Path, architecture: str) -> Machine:
    """The machine with all flags that it has."""
    if sys.platform == "linux":
        return linux_machine(root, _affinity(), architecture)
    if sys.platform == "darwin":
        return mac_machine(_sysctl(), architecture)
    cores = os.cpu_count() or 1
    return Machine(
        cpu_model=platform.processor() or architecture,
        architecture=architecture,
        flags=frozenset(),
        physical_cores=cores,
        logical_cores=cores,
        quota_cores=None,
        memory_bytes=SMALL_LAPTOP,
    )


def linux_machine(root: Path, affinity: frozenset[int], architecture: str) -> Machine:
    """`affinity`: the numbers of the logical cores that the process may run on, at least one."""
    processors = _processors(root)
    usable = [processors[number] for number in sorted(affinity) if number in processors]
    usable = usable or list(processors.values())
    memory = [
        limit for limit in (_ram(root), *_memory_limits(root)) if limit is not None and limit < NO_LIMIT
    ]
    return Machine(
        cpu_model=_cpu_model(root, usable) or architecture,
        architecture=architecture,
        flags=_common_flags(usable),
        physical_cores=_physical_cores(root, affinity, usable),
        logical_cores=len(affinity),
        quota_cores=min(_quotas(root), default=None),
        memory_bytes=min(memory, default=SMALL_LAPTOP),
    )


def mac_machine(sysctl: str, architecture: str) -> Machine:
    """`sysctl`: what `sysctl hw machdep.cpu` prints, `key: value` lines."""
    values = _key_values(sysctl)
    names = {key.rpartition(".")[2] for key, value in values.items() if "hw.optional" in key and value == "1"}
    names.update(
        values.get("machdep.cpu.features", "").split(), values.get("machdep.cpu.leaf7_features", "").split()
    )
    lowered = [name.lower() for name in names]
    logical = _integer(values.get("hw.logicalcpu", "")) or os.cpu_count() or 1
    return Machine(
        cpu_model=values.get("machdep.cpu.brand_string") or architecture,
        architecture=architecture,
        flags=FLAGS.intersection(SYSCTL_FLAGS.get(name, name) for name in lowered),
        physical_cores=_integer(values.get("hw.physicalcpu", "")) or logical,
        logical_cores=logical,
        quota_cores=None,
        memory_bytes=_integer(values.get("hw.memsize", "")) or SMALL_LAPTOP,
    )


def _affinity() -> frozenset[int]:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _sysctl() -> str:
    command = ["/usr/sbin/sysctl", "hw", "machdep.cpu"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    return ""


def _processors(root: Path) -> dict[int, dict[str, str]]:
    """The blocks of /proc/cpuinfo by processor number; a block without one describes the board."""
    blocks = [_key_values(block) for block in _read(root / "proc/cpuinfo").split("\n\n")]
    numbers = [_integer(block.get("processor", "")) for block in blocks]
    return {number: block for number, block in zip(numbers, blocks, strict=True) if number is not None}


def _common_flags(processors: list[dict[str, str]]) -> frozenset[str]:
    """Big and little cores may differ: a thread can be moved to either, so only what all have counts."""
    each = [(block.get("flags") or block.get("Features") or "").split() for block in processors]
    return FLAGS.intersection(*each) if each else frozenset()


def _cpu_model(root: Path, processors: list[dict[str, str]]) -> str:
    """The name on x86; 64-bit ARM names no model, so the board, if any, and the numbers of the core."""
    first = processors[0] if processors else {}
    if "model name" in first:
        return first["model name"]
    board = _read(root / "proc/device-tree/model").strip("\0 \n")
    core = ""
    if "CPU implementer" in first and "CPU part" in first:
        core = f"ARM implementer {first['CPU implementer']} part {first['CPU part']}"
    return ", ".join(filter(None, (board, core)))


def _physical_cores(root: Path, affinity: frozenset[int], processors: list[dict[str, str]]) -> int:
    """Distinct sets of SMT siblings; in sandboxes without /sys, distinct (physical id, core id) pairs."""
    topology = [root / f"sys/devices/system/cpu/cpu{number}/topology" for number in affinity]
    siblings = [_read(at / "core_cpus_list") or _read(at / "thread_siblings_list") for at in topology]
    if all(siblings):
        return len(set(siblings))
    pairs = [(block.get("physical id"), block.get("core id")) for block in processors]
    if len(pairs) == len(affinity) and all(core for _, core in pairs):
        return len(set(pairs))
    return len(affinity)


def _ram(root: Path) -> int | None:
    """MemTotal is given in kB, which here means 1024 bytes."""
    total = _integer(_key_values(_read(root / "proc/meminfo")).get("MemTotal", "").removesuffix("kB"))
    return None if total is None else total * 1024


def _memory_limits(root: Path) -> Iterator[int]:
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _cgroups(root, controller):
            limit = _integer(_read(folder / name))
            if limit is not None:
                yield limit


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of CPU time, one for each level that limits it."""
    for folder in _cgroups(root, ""):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        yield from _cores(quota, period)
    for folder in _cgroups(root, "cpu"):
        yield from _cores(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _cores(quota: str, period: str) -> Iterator[float]:
    """Nothing for "max" (v2), -1 (v1) and files that are not there."""
    microseconds, every = _integer(quota), _integer(period)
    if microseconds and every and microseconds > 0 and every > 0:
        yield microseconds / every


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders that limit this process: its own cgroup and all above it, where the usual mounts have them.

    controller: "" for cgroup v2, which has one hierarchy, or the name of a v1 controller

    A container often sees the host's path in /proc/self/cgroup but only its own part of the tree below the
    mount. Then the folders of the path are missing, and the walk ends at the mount, which has the limits.
    https://docs.kernel.org/admin-guide/cgroup-v2.html, man 7 cgroups
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        names, _, path = line.partition(":")[2].partition(":")
        if controller not in names.split(","):
            continue
        parts = path.strip("/").split("/")
        if ".." in parts:  # a cgroup outside of this namespace: only the mount can be seen
            parts = []
        for mount in (names, controller) if controller else ("", "unified"):
            for depth in range(len(parts), -1, -1):
                yield (root / "sys/fs/cgroup" / mount).joinpath(*parts[:depth])


def _key_values(text: str) -> dict[str, str]:
    """`key : value` lines; other lines are left out."""
    split = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, colon, value in split if colon}


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _read(path: Path) -> str:
    """The text of a file, and "" when there is none: sandboxes hide any of them."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
