"""The plan for hand-made machines and folders: what runs, with which properties, and why."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from edge_embed.errors import InputError, ModelNotFoundError
from edge_embed.hardware import Machine
from edge_embed.ir import VARIANTS, Files
from edge_embed.plan import (
    COMPUTE_TYPES,
    Plan,
    choose_cache,
    for_many,
    make_plan,
    rungs,
    static_lengths,
    verdict_on_record,
)
from edge_embed.profile import Profile, Tuned

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
    shown = {"compute_type", "device", "threads", "streams", "many_streams", "token_budget", "cache"}
    shown |= {"windowed_from"} | plan.properties.keys()

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
        ("float32", "int8", "quantize {} --compute-type int8"),
        ("float32", "int8_dynamic", "quantize {} --compute-type int8_weights"),
        ("float32", "int8_weights", "quantize {} --compute-type int8_weights"),
        ("int8", "float32", "build {}"),
        ("int8", "bfloat16", "build {}"),
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
    assert line.endswith(f"run: edge-embed {command.format(tmp_path)}")


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


# What a drift gate said.


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("variants", SETS)
def test_static_int8_needs_a_passed_gate_and_a_cpu_that_executes_it(
    tmp_path: Path, cpu: str, variants: tuple[str, ...]
) -> None:
    before = plan_for(tmp_path, cpu, *variants)
    plan = plan_for(tmp_path, cpu, *variants, int8_passed=True)
    if variants == ("float32", "int8") and cpu in WITH_INT8_DOT:
        assert (before.compute_type, plan.compute_type) == ("float32", "int8")
        assert "is not on record" in before.reasons["compute_type"]
        assert plan.reasons["compute_type"].endswith("the drift of static INT8 is within its floors")
    else:
        assert (plan.compute_type, plan.weight_only) == (before.compute_type, before.weight_only)


@pytest.mark.parametrize(
    ("record", "cpu", "expected"),
    [
        ({"drift": {"int8": {"verdict": "pass", "cpu_class": "vnni"}}}, "amx", "pass"),
        ({"drift": {"int8": {"verdict": "fail", "cpu_class": "vnni"}}}, "amx", "fail"),
        ({"drift": {"int8": {"verdict": "pass", "cpu_class": "no-vnni"}}}, "avx2", "pass"),
        ({"drift": {"int8": {"verdict": "pass", "cpu_class": "no-vnni"}}}, "amx", None),
        ({"drift": {"int8": {"verdict": "pass", "cpu_class": "vnni"}}}, "avx2", None),
        ({"drift": {"int8": {"verdict": "pass"}}}, "amx", None),
        ({"drift": {"int8": {"verdict": True, "cpu_class": "vnni"}}}, "amx", None),
        ({"drift": {"int8_weights": {"verdict": "pass", "cpu_class": "vnni"}}}, "amx", None),
        ({"drift": {"int8": "pass"}}, "amx", None),
        ({"drift": ["int8"]}, "amx", None),
        ({}, "amx", None),
    ],
)
def test_a_verdict_on_record_counts_for_cpus_of_its_class(
    record: dict[str, Any], cpu: str, expected: str | None
) -> None:
    assert verdict_on_record(record, "int8", machine_with(cpu)) == expected


# What was tuned here.


def tuned(rate: float, sqnr: float | None = None, verdict: str | None = "pass", **settings: int) -> Tuned:
    values = {"threads": 4, "streams": 1, "token_budget": 512, "windowed_from": None} | settings
    return Tuned(texts_per_second=rate, spread=0.02, verdict=verdict, sqnr=sqnr, **values)


def profile_of(**types: Tuned) -> Profile:
    return Profile("2026-05-04T12:30Z", 60.0, types)


FAST_INT8 = profile_of(
    float32=tuned(20.1),
    bfloat16=tuned(90.0, 42.0),
    int8_weights=tuned(17.0, 31.0),
    int8_dynamic=tuned(41.2, 29.1, streams=2, token_budget=256, windowed_from=768),
    int8=tuned(54.0, 23.4, streams=2),
)


@pytest.mark.parametrize("cpu", CPUS)
def test_auto_takes_the_fastest_that_passed_but_never_bfloat16(tmp_path: Path, cpu: str) -> None:
    plan = plan_for(tmp_path, cpu, *VARIANTS, profile=FAST_INT8)
    expected = "int8" if cpu in WITH_INT8_DOT else "int8_dynamic"  # static only where the CPU executes it
    assert plan.compute_type == expected
    assert plan.properties["INFERENCE_PRECISION_HINT"] == "f32"


def test_the_reason_tells_the_speeds_and_the_drift(tmp_path: Path) -> None:
    types = {name: FAST_INT8.compute_types[name] for name in ("float32", "int8_dynamic")}
    plan = plan_for(tmp_path, "amx", *VARIANTS, profile=profile_of(**types))
    assert plan.reasons["compute_type"] == "tuned here: 41.2 texts/s against 20.1 of float32, 29.1 dB"
    slow = profile_of(float32=tuned(20.1), int8_weights=tuned(17.0, 31.0))
    plan = plan_for(tmp_path, "amx", *VARIANTS, profile=slow)
    assert plan.compute_type == "float32"
    assert plan.reasons["compute_type"] == "tuned here: 20.1 texts/s against 17.0 of int8_weights"


@pytest.mark.parametrize(
    ("dynamic", "static", "expected"),
    [
        (tuned(100.0, 29.0), tuned(104.9, 23.0), "int8_dynamic"),
        (tuned(100.0, 29.0), tuned(105.1, 23.0), "int8"),
        (tuned(104.9, 29.0), tuned(100.0, 31.0), "int8"),
        (tuned(100.0, None, None), tuned(102.0, 23.0), "int8"),
        (tuned(100.0, 29.0), tuned(300.0, 23.0, "fail"), "int8_dynamic"),
        (tuned(100.0, 29.0), tuned(300.0, None, None), "int8_dynamic"),  # static INT8 has to pass
        (tuned(100.0, 29.0, "fail"), tuned(300.0, 23.0, "fail"), "float32"),
        (tuned(41.0, 29.0), tuned(41.5, 23.0), "float32"),
    ],
)
def test_the_more_accurate_wins_within_five_percent(
    tmp_path: Path, dynamic: Tuned, static: Tuned, expected: str
) -> None:
    measured = profile_of(float32=tuned(40.0), int8_dynamic=dynamic, int8=static)
    plan = plan_for(tmp_path, "amx", *VARIANTS, profile=measured)
    assert plan.compute_type == expected
    others = [one for one in (dynamic, static) if one.verdict == "pass"]
    slower = any(one.texts_per_second > measured.compute_types[expected].texts_per_second for one in others)
    assert ("the more accurate of the equally fast" in plan.reasons["compute_type"]) is slower


def test_faster_ones_that_failed_the_gate_are_named(tmp_path: Path) -> None:
    types = {"int8_dynamic": tuned(41.2, 21.0, "fail"), "int8": tuned(54.0, 15.0, "fail")}
    slow = {"int8_weights": tuned(9.0, 24.0, "fail"), "bfloat16": tuned(99.0, 34.0, "fail")}
    plan = plan_for(tmp_path, "amx", *VARIANTS, profile=profile_of(float32=tuned(20.1), **types, **slow))
    assert plan.compute_type == "float32"
    assert plan.reasons["compute_type"] == (
        "tuned here: 20.1 texts/s, faster but drifting too far: int8_dynamic and int8"
    )


def test_a_profile_of_nothing_that_auto_may_take_leaves_the_rule(tmp_path: Path) -> None:
    for measured in (
        profile_of(),
        profile_of(bfloat16=tuned(90.0, 42.0)),
        profile_of(int8_weights=tuned(9.0)),
    ):
        plan = plan_for(tmp_path, "amx", "float32", profile=measured)
        assert plan.compute_type == "float32"
        assert plan.reasons["compute_type"].startswith("float32 is the reference")


def test_the_settings_of_the_compute_type_that_runs_are_used(tmp_path: Path) -> None:
    wishes: dict[str, Any] = {"profile": FAST_INT8, "compute_type": "int8_dynamic"}
    plan = plan_for(tmp_path, "amx", *VARIANTS, **wishes)
    assert (plan.threads, plan.streams, plan.token_budget, plan.windowed_from) == (4, 2, 256, 768)
    assert plan.properties["NUM_STREAMS"] == "2"
    assert {plan.reasons[key] for key in ("threads", "streams", "token_budget", "windowed_from")} == {
        "tuned here"
    }
    assert plan.reasons["compute_type"] == "as asked"
    other = plan_for(tmp_path, "amx", *VARIANTS, profile=FAST_INT8, compute_type="float32")
    assert (other.streams, other.token_budget, other.windowed_from) == (1, 512, 512)
    assert "tuned" not in other.reasons["windowed_from"]


def test_calls_of_many_batches_get_streams_where_memory_is_not_the_point(tmp_path: Path) -> None:
    for compute_type, many in (("float32", 2), ("bfloat16", 2), ("int8", 2), ("int8_dynamic", 1)):
        plan = plan_for(tmp_path, "amx", *VARIANTS, compute_type=compute_type)
        assert (plan.threads, plan.streams, plan.many_streams) == (4, 1, many)
        both = for_many(plan)
        assert (both.streams, both.properties["NUM_STREAMS"]) == (many, str(many))
        assert plan.properties["NUM_STREAMS"] == "1"
    assert plan_for(tmp_path, "amx", "float32", threads=1).many_streams == 1
    assert plan_for(tmp_path, "amx", "float32", threads=8).many_streams == 4
    assert plan_for(tmp_path, "amx", "float32", streams=3).many_streams == 3
    assert plan_for(tmp_path, "amx", "float32", device="GPU").many_streams == 1
    npu = plan_for(tmp_path, "amx", "float32", device="NPU", max_tokens=100)
    assert for_many(npu).properties == npu.properties  # it refuses NUM_STREAMS
    assert plan_for(tmp_path, "amx", *VARIANTS, profile=FAST_INT8).many_streams == 2  # as tuned


def test_padding_steps_are_fine_where_kernels_serve_all_shapes(tmp_path: Path) -> None:
    found = {
        name: rungs(plan_for(tmp_path, "amx", *VARIANTS, compute_type=name), 512).tolist()
        for name in COMPUTE_TYPES
    }
    assert found["float32"] == found["bfloat16"]
    assert found["int8"] == found["int8_dynamic"] == found["int8_weights"]
    assert set(found["int8"]) < set(found["float32"])
    assert found["float32"][:3] == [4, 8, 12]
    assert rungs(plan_for(tmp_path, "avx2", "float32", device="NPU", max_tokens=100), 100).tolist() == [
        *(32, 64, 100)
    ]


def test_wishes_win_over_a_profile(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"profile": FAST_INT8, "compute_type": "int8_dynamic"}
    more = plan_for(tmp_path, "amx", *VARIANTS, streams=3, **asked)
    assert (more.streams, more.threads, more.token_budget) == (3, 4, 256)
    assert more.reasons["streams"] == "as asked"
    fewer = plan_for(tmp_path, "amx", *VARIANTS, threads=2, **asked)
    assert (fewer.threads, fewer.streams) == (2, 1)  # two streams were measured with four threads
    same = plan_for(tmp_path, "amx", *VARIANTS, threads=4, **asked)
    assert (same.streams, same.reasons["threads"]) == (2, "as asked")


def test_settings_that_were_not_measured_are_the_plans_own(tmp_path: Path) -> None:
    bare = Tuned(41.2, 0.02, None, None, None, None, "pass")
    plan = plan_for(tmp_path, "amx", *VARIANTS, profile=profile_of(int8_dynamic=bare))
    assert (plan.compute_type, plan.threads, plan.streams, plan.token_budget) == ("int8_dynamic", 4, 1, 512)
    assert plan.reasons["threads"] == "4 physical of 8 logical cores"
    assert not any(plan.reasons[key] == "tuned here" for key in plan.reasons)


def test_an_onnx_file_gets_its_settings_too(tmp_path: Path) -> None:
    measured = profile_of(float32=tuned(20.0, streams=2))
    plan = planned(machine_with("amx"), folder_with(tmp_path, onnx=True), profile=measured)
    assert (plan.compute_type, plan.streams) == ("float32", 2)


def test_fixed_shapes_never_switch_to_windows(tmp_path: Path) -> None:
    measured = profile_of(float32=tuned(20.0, windowed_from=256))
    plan = plan_for(tmp_path, "amx", "float32", device="NPU", profile=measured)
    assert (plan.windowed_from, plan.reasons["windowed_from"]) == (None, "not with fixed shapes")


# Kernels that must not run.


@pytest.mark.parametrize("compute_type", ["int8", "int8_dynamic"])
@pytest.mark.parametrize("profile", [None, FAST_INT8])
def test_int8_kernels_in_trouble_are_left_out_with_the_reason(
    tmp_path: Path, compute_type: str, profile: Profile | None
) -> None:
    wishes: dict[str, Any] = {"int8_trouble": "a trial died", "profile": profile}
    plan = plan_for(tmp_path, "amx", *VARIANTS, compute_type=compute_type, **wishes)
    assert plan.reasons["compute_type"] == "as asked; a trial died"
    assert plan.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"
    assert plan.weight_only is (compute_type == "int8")
    assert plan.properties.get("LP_TRANSFORMS_MODE") == ("NO" if compute_type == "int8" else None)
    assert set(plan.properties) <= set(plan.reasons)
    auto = plan_for(tmp_path, "amx", *VARIANTS, int8_passed=True, int8_trouble="a trial died")
    assert auto.compute_type == "float32"
    assert auto.reasons["compute_type"] == "without INT8 dot products float32 is faster; a trial died"
