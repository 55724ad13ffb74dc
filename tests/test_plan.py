"""The plan for hand-made machines and folders: what runs, with which properties, and why."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from edge_embed.errors import InputError, ModelNotFoundError
from edge_embed.hardware import Machine
from edge_embed.ir import VARIANTS, Files
from edge_embed.plan import COMPUTE_TYPES, Plan, choose_cache, make_plan, static_lengths

AVX2 = frozenset({"avx", "avx2", "fma"})
CPUS = {
    "avx2": AVX2,
    "avx_vnni": AVX2 | {"avx_vnni"},
    "avx512_vnni": AVX2 | {"avx512f", "avx512_vnni"},
    "bf16": AVX2 | {"avx512f", "avx512_bf16"},
    "vnni and bf16": AVX2 | {"avx512f", "avx512_vnni", "avx512_bf16"},
    "amx": AVX2 | {"avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"},
    "arm": frozenset({"neon", "asimd", "asimddp"}),
}
WITH_INT8_DOT = ("avx_vnni", "avx512_vnni", "vnni and bf16", "amx")

# Every set of stored variants that a folder may have, the empty one left out.
SETS = [
    subset
    for size in (1, 2, 3)
    for subset in itertools.combinations(("float32", "int8_weights", "int8"), size)
]
BIN_BYTES = 1_000_000
PLENTY, LITTLE = 8 << 30, 1_900_000  # bytes of memory; float32 is taken to need twice its .bin


def machine_with(cpu: str = "avx2", *, memory: int = PLENTY, quota: float | None = None) -> Machine:
    return Machine(
        cpu_model="hand-made",
        architecture="x86_64",
        flags=CPUS[cpu],
        physical_cores=4,
        logical_cores=8,
        quota_cores=quota,
        memory_bytes=memory,
    )


def folder_with(folder: Path, *variants: str, onnx: bool = False) -> Files:
    """Files of the given variants, each with a .bin of BIN_BYTES that takes no space."""
    paths = {variant: folder / "openvino" / VARIANTS[variant] for variant in variants}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
        path.touch()
        with path.with_suffix(".bin").open("wb") as file:
            file.truncate(BIN_BYTES)
    return Files(folder, paths, folder / "onnx/model.onnx" if onnx else None)


def planned(machine: Machine, files: Files, max_tokens: int = 8192, **wishes: Any) -> Plan:
    return make_plan(machine, files, max_tokens=max_tokens, **wishes)


def plan_for(folder: Path, cpu: str, *variants: str, memory: int = PLENTY, **wishes: Any) -> Plan:
    return planned(machine_with(cpu, memory=memory), folder_with(folder, *variants), **wishes)


@pytest.mark.parametrize(("cpu", "variants"), list(itertools.product(CPUS, SETS)))
def test_auto_follows_the_table_of_compute_types(tmp_path: Path, cpu: str, variants: tuple[str, ...]) -> None:
    plan = plan_for(tmp_path, cpu, *variants)

    if "int8_weights" in variants and cpu in WITH_INT8_DOT:
        expected = "int8_dynamic"
    elif "float32" in variants:
        expected = "float32"
    else:
        expected = "int8_weights" if "int8_weights" in variants else "int8"
    assert plan.compute_type == expected
    assert plan.file == tmp_path / "openvino" / VARIANTS[COMPUTE_TYPES[expected][0]]


@pytest.mark.parametrize(("cpu", "variants"), list(itertools.product(CPUS, SETS)))
def test_auto_never_takes_what_was_not_asked_for(tmp_path: Path, cpu: str, variants: tuple[str, ...]) -> None:
    for memory in (PLENTY, LITTLE):
        plan = plan_for(tmp_path, cpu, *variants, memory=memory)

        assert plan.compute_type != "bfloat16"
        assert plan.properties["INFERENCE_PRECISION_HINT"] == "f32"
        assert plan.compute_type != "int8" or variants == ("int8",)


def test_short_memory_takes_int8_weights_and_says_the_numbers(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "avx2", "float32", "int8_weights", "int8", memory=LITTLE)

    assert plan.compute_type == "int8_weights"
    assert plan.reasons["compute_type"] == "float32 needs about 2 MB of 2 MB"
    enough = plan_for(tmp_path, "avx2", "float32", "int8_weights", memory=2 * BIN_BYTES)
    assert enough.compute_type == "float32"


@pytest.mark.parametrize("variants", [("float32",), ("float32", "int8")])
def test_short_memory_without_int8_weights_stays_with_float32(
    tmp_path: Path, variants: tuple[str, ...]
) -> None:
    assert plan_for(tmp_path, "amx", *variants, memory=LITTLE).compute_type == "float32"


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize(
    ("compute_type", "variant", "precision", "group"),
    [
        ("float32", "float32", "f32", "0"),
        ("bfloat16", "float32", "bf16", "0"),
        ("int8_weights", "int8_weights", "f32", "0"),
        ("int8_dynamic", "int8_weights", "f32", "32"),
        ("int8", "int8", "f32", "0"),
    ],
)
def test_what_is_asked_for_is_done_on_any_machine(
    tmp_path: Path, cpu: str, compute_type: str, variant: str, precision: str, group: str
) -> None:
    plan = plan_for(tmp_path, cpu, *VARIANTS, compute_type=compute_type)

    assert plan.compute_type == compute_type
    assert plan.file.name == VARIANTS[variant]
    assert plan.properties["INFERENCE_PRECISION_HINT"] == precision
    has_int8_dot = not CPUS[cpu].isdisjoint({"avx_vnni", "avx512_vnni", "amx_int8"})
    assert plan.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == (group if has_int8_dot else "0")
    assert plan.reasons["compute_type"] == "as asked"


@pytest.mark.parametrize("device", ["CPU", "GPU", "GPU.1", "AUTO"])
@pytest.mark.parametrize("cpu", CPUS)
def test_what_openvino_would_choose_by_cpu_is_always_pinned(tmp_path: Path, cpu: str, device: str) -> None:
    properties = plan_for(tmp_path, cpu, "float32", device=device).properties

    assert properties["INFERENCE_PRECISION_HINT"] == "f32"
    assert properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"
    assert properties["NUM_STREAMS"] == "1"
    assert ("INFERENCE_NUM_THREADS" in properties) == (device == "CPU")  # other devices refuse it


@pytest.mark.parametrize("device", ["NPU", "NPU.0"])
def test_an_npu_gets_fixed_shapes_in_float16_and_no_property_that_it_refuses(
    tmp_path: Path, device: str
) -> None:
    """Read-write there: the precision. Its number of streams is read-only, a group size is unknown to it."""
    plan = plan_for(tmp_path, "avx2", "float32", device=device, streams=2, max_tokens=1000)
    assert plan.properties == {"INFERENCE_PRECISION_HINT": "f16"}
    assert plan.static_lengths == (32, 64, 128, 256, 512, 1000)
    assert plan.windowed_from is None
    assert plan.streams == 2  # requests that run at once


@pytest.mark.parametrize("device", ["CPU", "GPU", "AUTO", "AUTO:GPU,CPU"])
def test_other_devices_take_any_shape(tmp_path: Path, device: str) -> None:
    plan = plan_for(tmp_path, "avx2", "float32", device=device)
    assert plan.static_lengths == ()
    assert plan.windowed_from is not None


@pytest.mark.parametrize("max_tokens", [1, 31, 32, 33, 300, 32768])
def test_fixed_lengths_end_at_the_limit_and_ascend(max_tokens: int) -> None:
    lengths = static_lengths(max_tokens)
    assert lengths[-1] == max_tokens
    assert list(lengths) == sorted(set(lengths))
    assert all(length <= max(64, 2 * shorter) for shorter, length in itertools.pairwise(lengths))


@pytest.mark.parametrize("device", ["GPU", "NPU", "AUTO"])
def test_bfloat16_is_for_cpus(tmp_path: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"bfloat16 is computed on CPUs only, not on {device}; use float32"):
        plan_for(tmp_path, "amx", "float32", device=device, compute_type="bfloat16")


@pytest.mark.parametrize(
    ("cpu", "device", "compute_type", "expected"),
    [
        ("avx2", "CPU", "int8", True),
        ("avx512_vnni", "CPU", "int8", False),
        ("amx", "CPU", "int8", False),
        ("avx2", "GPU", "int8", False),
        ("avx2", "CPU", "float32", False),
    ],
)
def test_static_int8_runs_weight_only_on_cpus_without_int8_dot_products(
    tmp_path: Path, cpu: str, device: str, compute_type: str, expected: bool
) -> None:
    plan = plan_for(tmp_path, cpu, *VARIANTS, device=device, compute_type=compute_type)
    assert plan.weight_only is expected


@pytest.mark.parametrize(
    ("device", "wishes"),
    [
        ("CPU", {"compute_type": "bfloat16"}),
        *itertools.product(
            ["CPU", "GPU", "NPU"],
            [
                {},
                {"compute_type": "int8_dynamic"},
                {"threads": 3, "streams": 2},
                {"cache": Path("blobs"), "cache_asked": True},
            ],
        ),
    ],
)
def test_everything_that_info_prints_has_a_reason(
    tmp_path: Path, device: str, wishes: dict[str, Any]
) -> None:
    plan = plan_for(tmp_path, "avx2", *VARIANTS, device=device, **wishes)
    shown = {"compute_type", "device", "threads", "streams", "token_budget", "cache", "windowed_from"}
    shown |= plan.properties.keys()

    assert {name for name in shown if not plan.reasons.get(name)} == set()
    assert set(plan.reasons) <= shown


def test_threads_stay_within_cores_and_quota(tmp_path: Path) -> None:
    files = folder_with(tmp_path, "float32")

    free = planned(machine_with(), files)
    assert (free.threads, free.properties["INFERENCE_NUM_THREADS"]) == (4, "4")
    assert free.reasons["threads"] == "4 physical of 8 logical cores"
    limited = planned(machine_with(quota=2.5), files)
    assert (limited.threads, limited.properties["INFERENCE_NUM_THREADS"]) == (2, "2")
    assert "quota of 2.5 cores" in limited.reasons["threads"]


def test_asked_threads_and_streams_are_followed(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "avx2", "float32", threads=7, streams=3)

    assert (plan.threads, plan.streams) == (7, 3)
    assert plan.properties["INFERENCE_NUM_THREADS"] == "7"
    assert plan.properties["NUM_STREAMS"] == "3"


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"streams": -2}, "streams is -2; it must be at least 1"),
        ({"compute_type": "int4"}, "compute_type is 'int4'; known: auto, float32, bfloat16"),
    ],
)
def test_an_impossible_wish_is_refused_with_its_value(
    tmp_path: Path, wishes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        plan_for(tmp_path, "avx2", "float32", **wishes)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("have", "wish", "command"),
    [
        ("float32", "int8", "quantize --compute-type int8"),
        ("float32", "int8_dynamic", "quantize --compute-type int8_weights"),
        ("float32", "int8_weights", "quantize --compute-type int8_weights"),
        ("int8", "float32", "build"),
        ("int8", "bfloat16", "build"),
    ],
)
def test_a_missing_variant_is_named_with_what_makes_it(
    tmp_path: Path, have: str, wish: str, command: str
) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        plan_for(tmp_path, "amx", have, compute_type=wish)

    line = str(caught.value)
    assert VARIANTS[COMPUTE_TYPES[wish][0]] in line  # what is missing
    assert f"only {VARIANTS[have]}" in line  # what is there
    assert f"edge-embed {command}" in line


def test_an_empty_folder_is_refused_with_the_build_command(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no OpenVINO IR and no ONNX file; run: edge-embed build"):
        plan_for(tmp_path, "avx2")


def test_an_onnx_file_serves_only_where_there_is_no_ir(tmp_path: Path) -> None:
    alone = folder_with(tmp_path, onnx=True)
    plan = planned(machine_with("amx"), alone)

    assert (plan.compute_type, plan.file) == ("float32", alone.onnx)
    assert planned(machine_with(), alone, compute_type="bfloat16").compute_type == "bfloat16"
    with pytest.raises(ModelNotFoundError, match=r"holds only model\.onnx; int8_dynamic needs an INT8 IR"):
        planned(machine_with(), alone, compute_type="int8_dynamic")
    both = folder_with(tmp_path, "int8", onnx=True)
    assert planned(machine_with(), both).file == both.variants["int8"]


@pytest.mark.parametrize(
    ("compute_type", "name", "device", "asked", "used"),
    [
        ("float32", "a.xml", "CPU", False, False),
        ("bfloat16", "a.xml", "CPU", False, False),
        ("float32", "a.xml", "CPU", True, True),
        ("int8", "a.xml", "CPU", False, True),
        ("int8_weights", "a.xml", "CPU", False, True),
        ("int8_dynamic", "a.xml", "CPU", False, True),
        ("float32", "a.xml", "GPU", False, True),
        ("float32", "a.onnx", "CPU", True, False),
    ],
)
def test_blobs_are_kept_where_it_pays_or_where_asked(
    compute_type: str, name: str, device: str, asked: bool, used: bool
) -> None:
    folder, reason = choose_cache(Path("blobs"), asked, compute_type, Path(name), device == "CPU")

    assert folder == (Path("blobs") if used else None)
    assert reason


def test_no_cache_folder_means_no_cache(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "avx2", "int8", cache=None, cache_asked=True)

    assert plan.cache is None
    assert plan.reasons["cache"] == "off"
