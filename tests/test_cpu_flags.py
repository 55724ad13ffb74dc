"""What CPUs say of themselves -> Machine -> Plan, for every set of files; and processes told to use less.

The lines are those of /proc/cpuinfo on Linux and of `sysctl` on macOS, cut to one core.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed.hardware import CAPS, Machine, find_machine, linux_machine, mac_machine
from edge_embed.ir import VARIANTS, Files
from edge_embed.plan import COMPUTE_TYPES, Plan, make_plan

OLD_X86 = (
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 "
    "ht syscall nx pdpe1gb rdtscp lm constant_tsc rep_good nopl nonstop_tsc cpuid aperfmperf pni "
    "pclmulqdq monitor ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand lahf_lm abm "
    "fsgsbase bmi1 avx2 smep bmi2"
)
INTEL = (
    "dts acpi ss tm pbe arch_perfmon pebs bts xtopology dtes64 ds_cpl vmx smx est tm2 sdbg xtpr pdcm "
    "pcid x2apic tsc_deadline_timer cpuid_fault ibrs ibpb stibp tpr_shadow flexpriority ept vpid "
    "tsc_adjust erms invpcid arat"
)
AMD = (
    "mmxext fxsr_opt extd_apicid cmp_legacy svm extapic cr8_legacy sse4a misalignsse 3dnowprefetch osvw "
    "ibs skinit wdt topoext perfctr_core perfctr_nb bpext perfctr_llc mwaitx cpb hw_pstate ssbd ibpb "
    "vmmcall cqm rdt_a rdseed adx smap clflushopt sha_ni xsaveopt xsavec xgetbv1 clzero irperf "
    "xsaveerptr arat npt lbrv svm_lock nrip_save"
)
SKYLAKE_X = (
    "hle rtm mpx rdt_a avx512f avx512dq rdseed adx smap clflushopt clwb intel_pt avx512cd avx512bw "
    "avx512vl xsaveopt xsavec xgetbv1 xsaves dtherm ida pln pts pku ospke md_clear flush_l1d "
    "arch_capabilities"
)
ICE_LAKE = (
    f"{SKYLAKE_X} avx512ifma sha_ni wbnoinvd avx512vbmi umip avx512_vbmi2 gfni vaes vpclmulqdq "
    "avx512_vnni avx512_bitalg tme avx512_vpopcntdq la57 rdpid fsrm pconfig"
)
X86 = {
    "Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz": (
        f"{OLD_X86} {INTEL} xsaveopt dtherm ida pln pts md_clear flush_l1d"
    ),
    "AMD EPYC 7702 64-Core Processor": f"{OLD_X86} {AMD} clwb cat_l3 cdp_l3 wbnoinvd umip rdpid",
    "12th Gen Intel(R) Core(TM) i7-12700": (
        f"{OLD_X86} {INTEL} rdseed adx smap clflushopt clwb intel_pt sha_ni xsaveopt xsavec xgetbv1 "
        "xsaves split_lock_detect avx_vnni dtherm ida pln pts hwp hwp_notify hwp_act_window hwp_epp "
        "hwp_pkg_req hfi umip pku ospke waitpkg gfni vaes vpclmulqdq rdpid movdiri movdir64b fsrm "
        "md_clear serialize arch_lbr flush_l1d arch_capabilities"
    ),
    "Intel(R) N100": (
        f"{OLD_X86} {INTEL} rdseed adx smap clflushopt clwb intel_pt sha_ni xsaveopt xsavec xgetbv1 "
        "xsaves split_lock_detect avx_vnni dtherm ida pln pts hwp hwp_notify hwp_act_window hwp_epp "
        "hwp_pkg_req umip pku ospke waitpkg gfni vaes vpclmulqdq rdpid movdiri movdir64b fsrm md_clear "
        "serialize arch_lbr flush_l1d"
    ),
    "Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz": f"{OLD_X86} {INTEL} {SKYLAKE_X}",
    "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz": f"{OLD_X86} {INTEL} {SKYLAKE_X} avx512_vnni",
    "Intel(R) Xeon(R) Platinum 8380H CPU @ 2.90GHz": (
        f"{OLD_X86} {INTEL} {SKYLAKE_X} avx512_vnni avx512_bf16"
    ),
    "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz": f"{OLD_X86} {INTEL} {ICE_LAKE}",
    "AMD EPYC 9354 32-Core Processor": (
        f"{OLD_X86} {AMD} avx512f avx512dq avx512ifma clwb avx512cd avx512bw avx512vl xsaves avx512_bf16 "
        "avx512vbmi umip pku ospke avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni avx512_bitalg "
        "avx512_vpopcntdq la57 rdpid fsrm flush_l1d"
    ),
    "Intel(R) Xeon(R) Platinum 8480+": (
        f"{OLD_X86} {INTEL} {ICE_LAKE} cat_l2 cdp_l2 avx_vnni avx512_bf16 hfi waitpkg bus_lock_detect "
        "cldemote movdiri movdir64b enqcmd serialize tsxldtrk arch_lbr ibt amx_bf16 avx512_fp16 "
        "amx_tile amx_int8"
    ),
}
ARM = {
    "Graviton2": (
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
        "asimddp ssbs"
    ),
    "Graviton3": (
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma "
        "lrcpc dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg "
        "dcpodp svei8mm svebf16 i8mm bf16 dgh rng"
    ),
    "Raspberry Pi 4 Model B Rev 1.4": "fp asimd evtstrm crc32 cpuid",
}
APPLE = {
    "Apple M1": "DotProd FP16 AES SHA512 LSE FHM",
    "Apple M3": "DotProd FP16 AES SHA512 LSE FHM BF16 I8MM",
    "Apple M4 Pro": "DotProd FP16 AES SHA512 LSE FHM BF16 I8MM SME SME2 SME_I16I64",
}

# The CPU -> whether one instruction sums int8 products, and whether bfloat16 products run natively.
EXPECTED = {
    "Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz": (False, False),
    "AMD EPYC 7702 64-Core Processor": (False, False),
    "12th Gen Intel(R) Core(TM) i7-12700": (True, False),
    "Intel(R) N100": (True, False),
    "Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz": (False, False),
    "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz": (True, False),
    "Intel(R) Xeon(R) Platinum 8380H CPU @ 2.90GHz": (True, True),
    "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz": (True, False),
    "AMD EPYC 9354 32-Core Processor": (True, True),
    "Intel(R) Xeon(R) Platinum 8480+": (True, True),
    "Graviton2": (False, False),
    "Graviton3": (False, False),
    "Raspberry Pi 4 Model B Rev 1.4": (False, False),
    "Apple M1": (False, False),
    "Apple M3": (False, False),
    "Apple M4 Pro": (False, False),
}

# Stored variants -> what auto takes without INT8 dot products, and with them.
CHOICES = {
    ("float32",): ("float32", "float32"),
    ("int8_weights",): ("int8_weights", "int8_dynamic"),
    ("int8",): ("int8", "int8"),
    ("float32", "int8_weights"): ("float32", "int8_dynamic"),
    ("float32", "int8"): ("float32", "float32"),
    ("int8_weights", "int8"): ("int8_weights", "int8_dynamic"),
    ("float32", "int8_weights", "int8"): ("float32", "int8_dynamic"),
}


def machine_of(cpu: str, root: Path) -> Machine:
    """The Machine that this CPU's own words make."""
    if cpu in APPLE:
        lines = [f"hw.optional.arm.FEAT_{name}: 1" for name in APPLE[cpu].split()]
        return mac_machine(
            "\n".join([f"machdep.cpu.brand_string: {cpu}", "hw.optional.AdvSIMD: 1", *lines]), "aarch64"
        )
    (root / "proc").mkdir(exist_ok=True)
    if cpu in X86:
        (root / "proc/cpuinfo").write_text(f"processor\t: 0\nmodel name\t: {cpu}\nflags\t\t: {X86[cpu]}\n\n")
        return linux_machine(root, frozenset({0}), "x86_64")
    (root / "proc/cpuinfo").write_text(
        f"processor\t: 0\nFeatures\t: {ARM[cpu]}\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n"
    )
    return linux_machine(root, frozenset({0}), "aarch64")


def files_of(folder: Path, variants: tuple[str, ...]) -> Files:
    return Files(folder, {variant: folder / VARIANTS[variant] for variant in variants}, None)


def planned(cpu: str, folder: Path, variants: tuple[str, ...], **wishes: Any) -> Plan:
    return make_plan(machine_of(cpu, folder), files_of(folder, variants), max_tokens=512, **wishes)


def test_every_recorded_cpu_is_expected_to_be_something() -> None:
    assert EXPECTED.keys() == X86.keys() | ARM.keys() | APPLE.keys()


@pytest.mark.parametrize("cpu", EXPECTED)
def test_a_cpu_is_taken_for_what_it_is(tmp_path: Path, cpu: str) -> None:
    found = machine_of(cpu, tmp_path)
    assert (found.has_int8_dot, found.has_bf16) == EXPECTED[cpu]
    assert found.cpu_class == ("vnni" if EXPECTED[cpu][0] else "no-vnni")
    assert ("asimd" in found.flags) == (cpu in ARM.keys() | APPLE.keys())
    assert ("amx_int8" in found.flags) == cpu.endswith("8480+")


@pytest.mark.parametrize(("cpu", "variants"), list(itertools.product(EXPECTED, CHOICES)))
def test_auto_takes_what_the_cpu_and_the_files_allow(
    tmp_path: Path, cpu: str, variants: tuple[str, ...]
) -> None:
    has_int8_dot = EXPECTED[cpu][0]
    plan = planned(cpu, tmp_path, variants)
    assert plan.compute_type == CHOICES[variants][has_int8_dot]
    assert plan.properties["INFERENCE_PRECISION_HINT"] == "f32"
    group = "32" if plan.compute_type == "int8_dynamic" else "0"
    assert plan.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == group
    assert plan.weight_only == (plan.compute_type == "int8" and not has_int8_dot)


@pytest.mark.parametrize(("cpu", "variants"), list(itertools.product(EXPECTED, CHOICES)))
def test_a_passed_gate_lets_static_int8_in_only_where_the_cpu_executes_it(
    tmp_path: Path, cpu: str, variants: tuple[str, ...]
) -> None:
    expected = CHOICES[variants][EXPECTED[cpu][0]]
    if variants == ("float32", "int8") and EXPECTED[cpu][0]:
        expected = "int8"
    assert planned(cpu, tmp_path, variants, int8_passed=True).compute_type == expected


@pytest.mark.parametrize(("cpu", "compute_type"), list(itertools.product(EXPECTED, COMPUTE_TYPES)))
def test_what_is_asked_for_gets_the_kernels_that_the_cpu_has(
    tmp_path: Path, cpu: str, compute_type: str
) -> None:
    has_int8_dot = EXPECTED[cpu][0]
    plan = planned(cpu, tmp_path, tuple(VARIANTS), compute_type=compute_type)
    assert plan.compute_type == compute_type
    assert plan.properties["INFERENCE_PRECISION_HINT"] == ("bf16" if compute_type == "bfloat16" else "f32")
    dynamic = compute_type == "int8_dynamic" and has_int8_dot
    assert plan.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == ("32" if dynamic else "0")
    assert plan.weight_only == (compute_type == "int8" and not has_int8_dot)


# Processes that leave instructions unused.

TEXTS = [
    "the cat sat on the mat",
    "a dog runs fast",
    "hello world, how are you?",
    "the red house is blue " * 40,
]

CHILD = """
import json, sys
from pathlib import Path
from edge_embed import Embedder
from edge_embed.hardware import machine

folder, types, texts = json.loads(sys.argv[1])
found = {}
for name in types:
    embedder = Embedder(folder, compute_type=name, cache_dir=False)
    plan = embedder.plan
    found[name] = {
        "compute_type": plan.compute_type,
        "group": embedder.effective("DYNAMIC_QUANTIZATION_GROUP_SIZE"),
        "precision": embedder.effective("INFERENCE_PRECISION_HINT"),
        "weight_only": "weight_only_execution" in plan.passes,
        "vectors": embedder.encode(texts).tolist(),
    }
print(json.dumps({"int8_dot": machine().has_int8_dot, "found": found}))
"""


def in_a_process(folder: Path, isa: str, types: tuple[str, ...], home: Path) -> Mapping[str, Any]:
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([str(folder), types, TEXTS])],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": path, "EDGE_EMBED_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the emulation is of x86 CPUs whose flags Linux tells")
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_a_process_with_fewer_instructions_plans_and_embeds_as_a_cpu_without_them(
    complete: Path, tmp_path: Path, isa: str
) -> None:
    here = find_machine(Path("/"), "x86_64")
    has_int8_dot = not (here.flags - CAPS[isa]).isdisjoint({"avx_vnni", "avx512_vnni", "amx_int8"})
    answer = in_a_process(
        complete, isa, ("auto", "float32", "int8_weights", "int8_dynamic", "int8"), tmp_path
    )
    found = answer["found"]

    assert answer["int8_dot"] is has_int8_dot
    assert found["auto"]["compute_type"] == ("int8_dynamic" if has_int8_dot else "float32")
    assert found["int8"]["weight_only"] is not has_int8_dot
    assert {name: row["group"] for name, row in found.items() if row["group"] != "0"} == (
        {"auto": "32", "int8_dynamic": "32"} if has_int8_dot else {}
    )
    assert all("f32" in row["precision"] or "float32" in row["precision"] for row in found.values())
    vectors = {name: np.array(row["vectors"]) for name, row in found.items()}
    cosines = {name: float((rows * vectors["float32"]).sum(1).min()) for name, rows in vectors.items()}
    assert all(cosine > 0.95 for cosine in cosines.values()), cosines
    assert cosines["int8_weights"] > 0.999
    if not has_int8_dot:  # one computation by two names, and no rounding of activations
        np.testing.assert_array_equal(vectors["int8_dynamic"], vectors["int8_weights"])
        assert cosines["int8"] > 0.998
