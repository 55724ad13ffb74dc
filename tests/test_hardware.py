"""hardware.py on recorded machines: the parts of /proc and /sys that it reads, written below tmp_path."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from edge_embed import hardware
from edge_embed.hardware import SMALL_LAPTOP, Machine, linux_machine, mac_machine, machine

GIB = 1 << 30

SSE_TO_AVX2 = (
    "fpu vme de sse sse2 ht syscall nx pni ssse3 fma sse4_1 sse4_2 movbe popcnt aes avx f16c bmi1 avx2"
)
AVX512 = f"{SSE_TO_AVX2} avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512_vbmi2 avx512_bitalg"
ZEN3 = f"{SSE_TO_AVX2} sse4a topoext clzero vaes vpclmulqdq fsrm"
ZEN4 = f"{AVX512} avx512_bf16 avx512_vnni avx512_vpopcntdq clzero"
SAPPHIRE_RAPIDS = f"{AVX512} avx_vnni avx512_bf16 avx512_vnni avx512_fp16 amx_bf16 amx_tile amx_int8"
ALDER_LAKE = f"{SSE_TO_AVX2} avx_vnni vaes vpclmulqdq gfni serialize hfi arch_lbr"
NEOVERSE_V1 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop "
    "sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs dcpodp svei8mm svebf16 i8mm bf16"
)


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def write_x86(root: Path, name: str, flags: str, cores: Iterable[tuple[int, int]]) -> None:
    """cores: (physical id, core id) of each logical core; equal pairs are SMT siblings."""
    pairs = list(cores)
    blocks = [
        f"processor\t: {number}\nvendor_id\t: Some\nmodel name\t: {name}\nphysical id\t: {package}\n"
        f"core id\t\t: {core}\ncpu cores\t: {len(set(pairs))}\nfpu\t\t: yes\nflags\t\t: {flags}\n"
        f"bugs\t\t: spectre_v1 spectre_v2\npower management: ts ttp\n"
        for number, (package, core) in enumerate(pairs)
    ]
    write(root, "proc/cpuinfo", "\n".join(blocks) + "\n")
    for number, pair in enumerate(pairs):
        siblings = ",".join(str(other) for other, its in enumerate(pairs) if its == pair)
        write(root, f"sys/devices/system/cpu/cpu{number}/topology/core_cpus_list", siblings + "\n")


def write_ram(root: Path, gib: int) -> None:
    kilobytes = gib * GIB // 1024
    write(root, "proc/meminfo", f"MemTotal:       {kilobytes} kB\nMemFree:        {kilobytes // 2} kB\n")


def read(root: Path, affinity: Iterable[int], architecture: str = "x86_64") -> Machine:
    return linux_machine(root, frozenset(affinity), architecture)


def write_server(root: Path, cores: int) -> None:
    write_x86(root, "AMD EPYC 9554", ZEN4, [(0, core) for core in range(cores)])
    write_ram(root, 256)


# machines


def test_an_amd_server_with_avx2_only(tmp_path: Path) -> None:
    write_x86(tmp_path, "AMD EPYC 7763 64-Core Processor", ZEN3, [(0, core % 4) for core in range(8)])
    write_ram(tmp_path, 16)
    found = read(tmp_path, range(8))
    assert found == Machine(
        cpu_model="AMD EPYC 7763 64-Core Processor",
        architecture="x86_64",
        flags=frozenset({"sse4_2", "avx", "avx2", "fma", "f16c"}),
        physical_cores=4,
        logical_cores=8,
        quota_cores=None,
        memory_bytes=16 * GIB,
    )
    assert (found.has_int8_dot, found.has_bf16, found.threads) == (False, False, 4)


def test_a_zen4_has_vnni_and_bf16_without_amx(tmp_path: Path) -> None:
    write_x86(tmp_path, "AMD Ryzen 9 7950X 16-Core Processor", ZEN4, [(0, core % 16) for core in range(32)])
    found = read(tmp_path, range(32))
    assert {"avx512f", "avx512_vnni", "avx512_bf16"} < found.flags
    assert not {flag for flag in found.flags if flag.startswith("amx")}
    assert (found.has_int8_dot, found.has_bf16, found.threads) == (True, True, 16)


def test_a_sapphire_rapids_with_two_sockets_whose_core_ids_repeat(tmp_path: Path) -> None:
    cores = [(package, core) for _ in range(2) for package in range(2) for core in range(8)]
    write_x86(tmp_path, "Intel(R) Xeon(R) Platinum 8480+", SAPPHIRE_RAPIDS, cores)
    found = read(tmp_path, range(32))
    assert {"amx_tile", "amx_int8", "amx_bf16", "avx512_fp16", "avx_vnni"} < found.flags
    assert (found.physical_cores, found.logical_cores) == (16, 32)
    assert (found.has_int8_dot, found.has_bf16) == (True, True)


def test_an_alder_lake_laptop_counts_p_cores_once_and_all_e_cores(tmp_path: Path) -> None:
    p_cores = [(0, 4 * (number // 2)) for number in range(8)]  # four with two threads each
    e_cores = [(0, 16 + number) for number in range(8)]
    write_x86(tmp_path, "12th Gen Intel(R) Core(TM) i7-1260P", ALDER_LAKE, p_cores + e_cores)
    write_ram(tmp_path, 32)
    found = read(tmp_path, range(16))
    assert (found.physical_cores, found.logical_cores, found.threads) == (12, 16, 12)
    assert "avx_vnni" in found.flags
    assert (found.has_int8_dot, found.has_bf16) == (True, False)


def test_an_arm_server_is_read_by_its_features(tmp_path: Path) -> None:
    block = (
        "processor\t: {}\nBogoMIPS\t: 2100.00\nFeatures\t: " + NEOVERSE_V1 + "\nCPU implementer\t: 0x41\n"
        "CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd40\nCPU revision\t: 1\n"
    )
    write(tmp_path, "proc/cpuinfo", "\n".join(block.format(number) for number in range(4)) + "\n")
    for number in range(4):
        write(tmp_path, f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", f"{number}\n")
    found = read(tmp_path, range(4), "aarch64")
    assert found.flags == {"asimd", "asimdhp", "asimddp", "sve", "i8mm", "bf16"}
    assert found.cpu_model == "ARM implementer 0x41 part 0xd40"
    assert (found.physical_cores, found.threads) == (4, 4)
    assert (found.has_int8_dot, found.has_bf16) == (False, False)


def test_an_arm_core_that_tells_half_of_its_numbers_has_no_name_and_no_error(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd08\n")
    assert read(tmp_path, {0}, "aarch64").cpu_model == "aarch64"


def test_an_arm_board_is_named_and_only_shared_features_of_big_and_little_cores_count(tmp_path: Path) -> None:
    blocks = [
        f"processor\t: {number}\nFeatures\t: fp asimd{extra}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
        for number, (part, extra) in enumerate([("0xd05", " sve"), ("0xd0b", " asimddp asimdhp")])
    ]
    write(tmp_path, "proc/cpuinfo", "\n".join(blocks) + "\nHardware\t: BCM2712\nModel\t\t: Some board\n")
    write(tmp_path, "proc/device-tree/model", "Some board rev 1.0\0")
    both = read(tmp_path, {0, 1}, "aarch64")
    assert both.flags == {"asimd"}
    assert both.cpu_model == "Some board rev 1.0, ARM implementer 0x41 part 0xd05"
    assert read(tmp_path, {1}, "aarch64").flags == {"asimd", "asimddp", "asimdhp"}


# affinity and topology


def test_only_the_cores_of_the_affinity_count(tmp_path: Path) -> None:
    write_x86(tmp_path, "x", ZEN4, [(0, core % 8) for core in range(16)])
    pinned_to_siblings = read(tmp_path, {3, 11})
    assert (pinned_to_siblings.physical_cores, pinned_to_siblings.logical_cores) == (1, 2)
    apart = read(tmp_path, {3, 4, 12})
    assert (apart.physical_cores, apart.logical_cores, apart.threads) == (2, 3, 2)


def test_without_sys_the_cores_are_told_apart_by_cpuinfo(tmp_path: Path) -> None:
    pairs = [(package, core) for package in range(2) for core in (0, 0, 1, 1)]
    write_x86(tmp_path, "x", ZEN3, pairs)
    for number in range(8):
        (tmp_path / f"sys/devices/system/cpu/cpu{number}/topology/core_cpus_list").unlink()
    assert read(tmp_path, range(8)).physical_cores == 4
    assert read(tmp_path, {0, 1, 2}).physical_cores == 2


def test_where_siblings_cannot_be_told_apart_every_logical_core_counts(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\n\nprocessor\t: 1\n\nprocessor\t: 2\n")
    assert read(tmp_path, range(3)).physical_cores == 3
    assert read(tmp_path, {0, 7}).physical_cores == 2  # core 7 is not described at all


def test_an_empty_tree_gives_a_machine_and_no_error(tmp_path: Path) -> None:
    found = read(tmp_path, {0, 1}, "riscv64")
    assert found == Machine("riscv64", "riscv64", frozenset(), 2, 2, None, SMALL_LAPTOP)
    assert found.threads == 2


def test_unreadable_and_senseless_files_give_a_machine_and_no_error(tmp_path: Path) -> None:
    for folder in ("proc/cpuinfo", "proc/self/cgroup", "sys/devices/system/cpu/cpu0/topology/core_cpus_list"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_bytes(b"MemTotal: \xff\xfe lots\n\n:::\n")
    assert read(tmp_path, {0}).memory_bytes == SMALL_LAPTOP


# cgroup v2


def test_a_container_with_one_and_a_half_cores_gets_one_thread(tmp_path: Path) -> None:
    write_server(tmp_path, 8)
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    found = read(tmp_path, range(8))
    assert (found.quota_cores, found.threads) == (1.5, 1)


@pytest.mark.parametrize(
    ("cpu_max", "quota", "threads"),
    [
        ("400000 100000", 4.0, 4),
        ("50000 100000", 0.5, 1),
        ("399999 100000", 3.99999, 3),
        ("25600000 100000", 256.0, 64),
        ("max 100000", None, 64),
        ("max", None, 64),
        ("", None, 64),
        ("100000 0", None, 64),
        ("many few", None, 64),
    ],
)
def test_a_quota_on_64_cores_sets_the_threads(
    tmp_path: Path, cpu_max: str, quota: float | None, threads: int
) -> None:
    write_server(tmp_path, 64)
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", cpu_max + "\n")
    found = read(tmp_path, range(64))
    assert (found.quota_cores, found.threads) == (quota, threads)


def test_the_strictest_level_of_nested_cgroups_wins(tmp_path: Path) -> None:
    write_server(tmp_path, 16)
    write(tmp_path, "proc/self/cgroup", "0::/kubepods.slice/pod1/app\n")
    levels = {
        "": ("max", "max"),
        "kubepods.slice": ("max", "max"),
        "kubepods.slice/pod1": ("200000", str(2 * GIB)),
    }
    for level, (cpu, memory) in (levels | {"kubepods.slice/pod1/app": ("800000", str(8 * GIB))}).items():
        write(tmp_path, f"sys/fs/cgroup/{level}/cpu.max", f"{cpu} 100000\n")
        write(tmp_path, f"sys/fs/cgroup/{level}/memory.max", f"{memory}\n")
    write(tmp_path, "sys/fs/cgroup/kubepods.slice/pod2/cpu.max", "100000 100000\n")  # a neighbour's
    found = read(tmp_path, range(16))
    assert (found.quota_cores, found.threads, found.memory_bytes) == (2.0, 2, 2 * GIB)


def test_the_stricter_limit_may_also_be_the_own_one(tmp_path: Path) -> None:
    write_server(tmp_path, 16)
    write(tmp_path, "proc/self/cgroup", "0::/user.slice/job\n")
    write(tmp_path, "sys/fs/cgroup/user.slice/cpu.max", "800000 100000\n")
    write(tmp_path, "sys/fs/cgroup/user.slice/job/cpu.max", "300000 100000\n")
    assert read(tmp_path, range(16)).quota_cores == 3.0


@pytest.mark.parametrize("path", ["/docker/0123abc", "/../../system.slice/other", "/a (deleted)"])
def test_a_host_path_that_the_container_cannot_see_ends_at_the_mount(tmp_path: Path, path: str) -> None:
    write_server(tmp_path, 8)
    write(tmp_path, "proc/self/cgroup", f"0::{path}\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "300000 100000\n")
    write(tmp_path, "sys/system.slice/other/cpu.max", "100000 100000\n")  # outside of the mount
    write(tmp_path, "sys/fs/cgroup/memory.max", f"{GIB}\n")
    found = read(tmp_path, range(8))
    assert (found.quota_cores, found.memory_bytes) == (3.0, GIB)


def test_the_unified_mount_of_a_hybrid_system_is_read(tmp_path: Path) -> None:
    write_server(tmp_path, 8)
    write(tmp_path, "proc/self/cgroup", "1:name=systemd:/x\n0::/x\n")
    write(tmp_path, "sys/fs/cgroup/unified/x/cpu.max", "200000 100000\n")
    assert read(tmp_path, range(8)).quota_cores == 2.0


@pytest.mark.parametrize(
    ("limit", "expected"), [(f"{3 * GIB}", 3 * GIB), ("max", 256 * GIB), (f"{512 * GIB}", 256 * GIB)]
)
def test_memory_is_the_lesser_of_ram_and_limit(tmp_path: Path, limit: str, expected: int) -> None:
    write_server(tmp_path, 4)
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", limit + "\n")
    assert read(tmp_path, range(4)).memory_bytes == expected


# cgroup v1

V1 = "12:memory:/docker/ab\n5:cpu,cpuacct:/docker/ab\n2:cpuset:/docker/ab\n1:name=systemd:/docker/ab\n"


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("level", ["docker/ab/", "docker/", ""])
def test_a_v1_quota_is_found_at_every_level_and_under_both_names_of_the_mount(
    tmp_path: Path, mount: str, level: str
) -> None:
    write_server(tmp_path, 8)
    write(tmp_path, "proc/self/cgroup", V1)
    write(tmp_path, f"sys/fs/cgroup/{mount}/{level}cpu.cfs_quota_us", "250000\n")
    write(tmp_path, f"sys/fs/cgroup/{mount}/{level}cpu.cfs_period_us", "100000\n")
    found = read(tmp_path, range(8))
    assert (found.quota_cores, found.threads) == (2.5, 2)


def test_v1_says_no_limit_as_minus_one_and_as_a_huge_number(tmp_path: Path) -> None:
    write_server(tmp_path, 8)
    write(tmp_path, "proc/self/cgroup", V1)
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us", "100000\n")
    write(tmp_path, "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes", "9223372036854771712\n")
    found = read(tmp_path, range(8))
    assert (found.quota_cores, found.memory_bytes) == (None, 256 * GIB)
    (tmp_path / "proc/meminfo").unlink()
    assert read(tmp_path, range(8)).memory_bytes == SMALL_LAPTOP


def test_a_v1_memory_limit_of_the_parent_wins_over_a_wider_own_one(tmp_path: Path) -> None:
    write_server(tmp_path, 8)
    write(tmp_path, "proc/self/cgroup", V1)
    write(tmp_path, "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes", f"{6 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/memory/docker/memory.limit_in_bytes", f"{5 * GIB}\n")
    assert read(tmp_path, range(8)).memory_bytes == 5 * GIB


# macOS and the rest

M2 = """\
hw.ncpu: 8
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.memsize: 17179869184
hw.optional.AdvSIMD: 1
hw.optional.neon: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
machdep.cpu.brand_string: Apple M2
"""

INTEL_MAC = """\
hw.physicalcpu: 4
hw.logicalcpu: 8
hw.memsize: 34359738368
hw.optional.avx2_0: 1
hw.optional.avx512f: 1
machdep.cpu.brand_string: Intel(R) Core(TM) i7-1068NG7 CPU @ 2.30GHz
machdep.cpu.features: FPU VME SSE4.2 AVX1.0 FMA F16C
machdep.cpu.leaf7_features: BMI1 AVX2 AVX512F AVX512BW AVX512VL AVX512VNNI
"""


def test_an_apple_m2_gets_the_names_that_linux_has_for_its_features() -> None:
    assert mac_machine(M2, "aarch64") == Machine(
        cpu_model="Apple M2",
        architecture="aarch64",
        flags=frozenset({"asimd", "neon", "asimddp", "asimdhp", "bf16", "i8mm"}),
        physical_cores=8,
        logical_cores=8,
        quota_cores=None,
        memory_bytes=16 * GIB,
    )


def test_an_intel_mac_gets_its_flags_from_both_lists() -> None:
    found = mac_machine(INTEL_MAC, "x86_64")
    assert found.flags >= {"sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni"}
    assert (found.physical_cores, found.logical_cores, found.has_int8_dot) == (4, 8, True)
    assert found.cpu_model.startswith("Intel(R) Core(TM) i7-1068NG7")


def test_a_mac_whose_sysctl_says_nothing_is_still_a_machine() -> None:
    found = mac_machine("", "aarch64")
    assert (found.cpu_model, found.flags, found.memory_bytes) == ("aarch64", frozenset(), SMALL_LAPTOP)
    assert found.threads >= 1


@pytest.mark.parametrize("system", ["win32", "darwin", "freebsd14"])
def test_other_systems_get_a_machine_from_what_python_knows(
    monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    def no_sysctl(*_: object, **__: object) -> None:
        raise FileNotFoundError("/usr/sbin/sysctl")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(subprocess, "run", no_sysctl)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine() == Machine("x86_64", "x86_64", frozenset(), 6, 6, None, SMALL_LAPTOP)


# this machine, and the type


@pytest.mark.skipif(sys.platform != "linux", reason="compares with Linux's own calls")
def test_this_machine_agrees_with_the_system_calls() -> None:
    found = machine()
    assert found.logical_cores == len(os.sched_getaffinity(0))
    assert 1 <= found.threads <= found.physical_cores <= found.logical_cores
    assert 0 < found.memory_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.cpu_model


@pytest.mark.skipif(sys.platform != "linux", reason="taskset by system call is Linux's")
def test_a_process_pinned_to_one_core_has_one_thread() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert (machine().logical_cores, machine().threads) == (1, 1)
    finally:
        os.sched_setaffinity(0, before)


def test_the_root_is_where_linux_is_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_server(tmp_path, 4)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(hardware, "_affinity", lambda: frozenset({1, 2}))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    found = machine(tmp_path)
    assert (found.cpu_model, found.physical_cores) == ("AMD EPYC 9554", 2)


def test_the_report_is_plain_json_with_sorted_flags(tmp_path: Path) -> None:
    write_server(tmp_path, 4)
    report = json.loads(json.dumps(read(tmp_path, range(4)).to_dict()))
    assert report.pop("flags") == sorted(read(tmp_path, range(4)).flags)
    assert report == {
        "cpu_model": "AMD EPYC 9554",
        "architecture": "x86_64",
        "physical_cores": 4,
        "logical_cores": 4,
        "quota_cores": None,
        "memory_bytes": 256 * GIB,
        "has_int8_dot": True,
        "has_bf16": True,
        "threads": 4,
    }


@pytest.mark.parametrize(
    ("flags", "int8_dot", "bf16"),
    [
        (set(), False, False),
        ({"avx2"}, False, False),
        ({"avx512f"}, False, False),
        ({"avx_vnni"}, True, False),
        ({"avx512_vnni"}, True, False),
        ({"avx512_bf16"}, False, True),
        ({"amx_tile"}, False, False),
        ({"amx_int8"}, True, False),
        ({"amx_bf16"}, False, True),
    ],
)
def test_what_the_flags_mean(flags: set[str], int8_dot: bool, bf16: bool) -> None:
    found = Machine("", "x86_64", frozenset(flags), 1, 1, None, GIB)
    assert (found.has_int8_dot, found.has_bf16) == (int8_dot, bf16)


@pytest.mark.parametrize(
    ("cap", "int8_dot", "bf16", "left"),
    [
        ("", True, True, {"avx512f", "amx_int8", "avx_vnni"}),
        ("DEFAULT", True, True, {"avx512f", "amx_int8", "avx_vnni"}),
        ("AVX2", False, False, {"avx2", "fma"}),
        ("AVX2_VNNI", True, False, {"avx2", "avx_vnni"}),
        ("AVX512_CORE", False, False, {"avx2", "avx512f"}),
        ("AVX512_CORE_VNNI", True, False, {"avx512f", "avx512_vnni"}),
        ("AVX512_CORE_BF16", True, True, {"avx512_vnni", "avx512_bf16"}),
    ],
)
def test_instructions_that_openvino_is_told_to_leave_unused_do_not_count(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cap: str,
    int8_dot: bool,
    bf16: bool,
    left: set[str],
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    monkeypatch.setattr(sys, "platform", "linux")
    write_x86(tmp_path, "Xeon", SAPPHIRE_RAPIDS, [(0, number) for number in range(64)])
    capped = machine(tmp_path)
    assert (capped.has_int8_dot, capped.has_bf16) == (int8_dot, bf16)
    assert left <= capped.flags
    assert capped.flags <= linux_machine(tmp_path, frozenset({0}), "x86_64").flags
