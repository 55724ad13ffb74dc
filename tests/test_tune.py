"""tune.py and `edge-embed tune`: what is timed, what is kept, that later loads use it. Asserts no times."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed import Embedder, ir, profile, store, tune
from edge_embed.cli import main
from edge_embed.drift import gate, measure
from edge_embed.drift.metrics import Drift, Interval
from edge_embed.embedder import kept_profile, profile_facts, start
from edge_embed.errors import InputError, ModelNotFoundError, NumericsError
from edge_embed.graph.passes import BLOCK
from edge_embed.hardware import Machine, machine
from edge_embed.ir import VARIANTS, Files
from edge_embed.plan import TOKEN_BUDGET, Plan, make_plan
from edge_embed.profile import Profile, Tuned
from edge_embed.record import file_entries, read_record, write_record
from edge_embed.tune import Clock, Work

TEXTS = ["the cat sat on the mat", "a dog runs fast", "hello world, how are you?"]

Capture = pytest.CaptureFixture[str]


pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture(scope="module")
def complete(complete: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny exported ModernBERT with all three variants, on record. Read only."""
    folder = Path(shutil.copytree(complete, tmp_path_factory.mktemp("on-record") / "model"))
    names = [path.relative_to(folder).as_posix() for path in (folder / "openvino").iterdir()]
    write_record(folder, {"name": "tiny", "files": file_entries(folder, names)})
    return folder


class Silent:
    """A progress bar that nobody sees."""

    n = 0.0

    def update(self, by: float) -> None:
        self.n += by

    def set_description(self, text: str, refresh: bool = True) -> None: ...


def clock(seconds: float = 1e9) -> Clock:
    return Clock(seconds, Silent())


# Which compute types.


def machine_with(*flags: str, memory: int = 8 << 30, threads: int = 4, logical: int = 4) -> Machine:
    return Machine("x", "x86_64", frozenset(flags), threads, logical, None, memory)


def files_of(folder: Path, *variants: str, onnx: bool = False, bytes_each: int = 1_000_000) -> Files:
    for variant in variants:
        with (folder / VARIANTS[variant]).with_suffix(".bin").open("wb") as file:
            file.truncate(bytes_each)
    onnx_file = folder / "model.onnx" if onnx else None
    return Files(folder, {variant: folder / VARIANTS[variant] for variant in variants}, onnx_file)


@pytest.mark.parametrize(
    ("flags", "variants", "expected"),
    [
        ((), ("float32",), ["float32"]),
        (("avx512_bf16",), ("float32",), ["float32", "bfloat16"]),
        ((), ("float32", "int8_weights", "int8"), ["float32", "int8_weights", "int8"]),
        (("avx_vnni",), ("float32", "int8_weights"), ["float32", "int8_weights", "int8_dynamic"]),
        (
            ("amx_int8", "amx_bf16"),
            ("float32", "int8_weights", "int8"),
            ["float32", "bfloat16", "int8_weights", "int8_dynamic", "int8"],
        ),
        (("avx512_vnni", "avx512_bf16"), ("int8_weights",), ["int8_weights", "int8_dynamic"]),
        (("avx512_vnni",), ("int8",), ["int8"]),
    ],
)
def test_all_is_timed_that_the_files_and_the_cpu_allow(
    tmp_path: Path, flags: tuple[str, ...], variants: tuple[str, ...], expected: list[str]
) -> None:
    here = machine_with(*flags)
    assert tune.candidates(here, files_of(tmp_path, *variants), [], "CPU") == expected


def test_float32_that_does_not_fit_into_memory_is_not_loaded(tmp_path: Path) -> None:
    here = machine_with("avx512_vnni", "avx512_bf16", memory=1_900_000)
    both = files_of(tmp_path, "float32", "int8_weights")
    assert tune.candidates(here, both, [], "CPU") == ["int8_weights", "int8_dynamic"]
    assert tune.candidates(here, files_of(tmp_path, "float32"), [], "CPU") == ["float32", "bfloat16"]


def test_what_is_asked_for_comes_with_the_reference_of_its_drift(tmp_path: Path) -> None:
    everything = files_of(tmp_path, *VARIANTS)
    assert tune.candidates(machine_with(), everything, ["int8", "int8_dynamic"], "CPU") == [
        "float32",
        "int8_dynamic",
        "int8",
    ]
    alone = files_of(tmp_path, "int8")
    assert tune.candidates(machine_with(), alone, ["int8"], "CPU") == ["int8"]


def test_other_devices_have_no_bfloat16_and_an_onnx_file_has_no_int8(tmp_path: Path) -> None:
    here = machine_with("amx_int8", "amx_bf16")
    assert "bfloat16" not in tune.candidates(here, files_of(tmp_path, "float32"), [], "GPU")
    assert tune.candidates(here, files_of(tmp_path, onnx=True), [], "CPU") == ["float32", "bfloat16"]


def test_what_cannot_be_timed_is_refused_by_name(tmp_path: Path) -> None:
    files = files_of(tmp_path, "float32")
    with pytest.raises(InputError, match=r"compute type 'int4' is unknown; known: float32, bfloat16"):
        tune.candidates(machine_with(), files, ["int4"], "CPU")
    with pytest.raises(ModelNotFoundError, match=r"no file for int8; it can be tuned for float32, bfloat16"):
        tune.candidates(machine_with(), files, ["int8"], "CPU")
    with pytest.raises(ModelNotFoundError, match=r"no OpenVINO IR and no ONNX file; run: edge-embed build"):
        tune.candidates(machine_with(), files_of(tmp_path), [], "CPU")


# Which settings.


@pytest.mark.parametrize(
    ("threads", "logical", "expected"),
    [
        (1, 1, []),
        (2, 2, [(2, 2)]),
        (4, 4, [(4, 2)]),
        (4, 8, [(4, 2), (8, 1), (8, 2)]),
        (8, 8, [(8, 2), (8, 4)]),
        (16, 16, [(16, 2), (16, 4), (16, 8)]),
    ],
)
def test_more_streams_are_tried_on_more_cores(
    threads: int, logical: int, expected: list[tuple[int, int]]
) -> None:
    assert tune.settings(machine_with(threads=threads, logical=logical)) == expected


def test_a_quota_is_not_exceeded_by_smt_siblings() -> None:
    here = replace(machine_with(threads=4, logical=8), quota_cores=4.0)
    assert tune.settings(here) == [(4, 2)]


# How it is timed.


def test_entrants_take_turns_after_a_round_to_warm_up() -> None:
    order: list[str] = []
    seconds = tune.race([partial(order.append, "a"), partial(order.append, "b")], clock(), 0.0)
    assert order == ["a", "b"] * (1 + tune.LEAST_ROUNDS)
    assert seconds.shape == (tune.LEAST_ROUNDS, 2)
    assert tune.race([lambda: None], clock(), 1e9).shape == (tune.MOST_ROUNDS, 1)


def test_a_disturbance_of_one_round_does_not_change_who_is_faster() -> None:
    seconds = np.array([[1.0, 0.5], [5.0, 2.5], [1.0, 0.5], [1.1, 0.5], [1.0, 4.0]])
    found = tune.speed(seconds, 1)
    assert found.ratio == 2.0
    assert tune.speed(seconds, 0).ratio == 1.0
    assert found.spread == pytest.approx((2.5 - 0.5) / 0.5)


def test_texts_are_as_many_as_the_time_allows_within_limits() -> None:
    assert tune.texts_in(10.0, 5.0, (16, 256)) == 50
    assert tune.texts_in(10.0, 0.0, (16, 256)) == 16
    assert tune.texts_in(10.0, 1e6, (16, 256)) == 256
    assert tune.texts_in(10.0, -3.0, (16, 256)) == 16


def test_no_text_that_is_timed_is_cut_and_any_prefix_is_mixed(complete: Path) -> None:
    texts, work = tune.sample(model_of(complete))
    assert len(texts) == len(work.ids) == len(work.lengths)
    assert all(len(ids) == length for ids, length in zip(work.ids, work.lengths, strict=True))
    assert {text.kind for text in texts[:30]} == {"query", "passage"}
    assert len({text.stratum for text in texts[:30]}) > 15
    again, _ = tune.sample(model_of(complete))
    assert [text.id for text in texts] == [text.id for text in again]


def model_of(folder: Path) -> tune.Model:
    from edge_embed.manifest import read_manifest
    from edge_embed.prepare import read_facts

    manifest = read_manifest(folder)
    return tune.Model(folder, "CPU", manifest, read_facts(folder, manifest))


class Fake:
    """A model whose speed is a formula of its plan; `race` asks it instead of running anything."""

    def __init__(self, folder: Path, cost: Callable[[Plan, int], float]) -> None:
        self.model, self.cost = model_of(folder), cost
        self.manifest, self.device, self.folder = self.model.manifest, "CPU", folder
        self.loaded: list[tuple[int, int]] = []

    def load(self, compute_type: str, *, threads: int | None = None, streams: int = 1) -> "Entrant":
        files = ir.find_files(self.folder)
        wishes: dict[str, Any] = {"compute_type": compute_type, "threads": threads, "streams": streams}
        plan = make_plan(machine_with("avx512_vnni", threads=8), files, max_tokens=2048, **wishes)
        self.loaded.append((plan.threads, plan.streams))
        return self.start(plan)

    def start(self, plan: Plan) -> "Entrant":
        return Entrant(plan, self.cost)


class Entrant:
    def __init__(self, plan: Plan, cost: Callable[[Plan, int], float]) -> None:
        self.plan, self.cost = plan, cost

    def embed(self, work: Work, token_budget: int = TOKEN_BUDGET) -> float:
        return self.cost(self.plan, token_budget)

    def run(self, batches: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> float:
        return self.cost(self.plan, batches[0][0].shape[1])


@pytest.fixture
def by_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """`race` takes what entrants return for their seconds."""

    def race(entrants: Sequence[Callable[[], float]], clock: Clock, until: float) -> NDArray[np.float64]:
        return np.array([[run() for run in entrants]] * 3)

    monkeypatch.setattr(tune, "race", race)


def settings_of(fake: Fake, until: float = 1e9) -> tuple[float, dict[str, Any]]:
    _, work = tune.sample(fake.model)
    here = machine_with("avx512_vnni", threads=8, logical=8)
    return tune.time_settings(fake, "int8", 10.0, work, here, clock(), until)  # type: ignore[arg-type]


@pytest.mark.usefixtures("by_formula")
def test_the_fastest_settings_are_found_one_after_the_other(
    complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost(plan: Plan, size: int) -> float:
        by_streams = {1: 1.0, 2: 0.8, 4: 0.5}[plan.streams]
        return by_streams * {256: 0.9, 512: 1.0, 1024: 1.2}[size]

    fake = Fake(complete, cost)
    monkeypatch.setattr(tune, "switch_over", lambda *_: None)
    gain, found = settings_of(fake)
    assert found == {"threads": 8, "streams": 4, "token_budget": 256, "windowed_from": None}
    assert gain == pytest.approx(1 / (0.5 * 0.9))
    assert fake.loaded == [(8, 1), (8, 2), (8, 4)]


@pytest.mark.usefixtures("by_formula")
def test_a_gain_that_could_be_noise_changes_no_setting(
    complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "switch_over", lambda *_: None)
    gain, found = settings_of(
        Fake(complete, lambda plan, size: 1 - 0.02 * (plan.streams > 1) - 0.02 * (size > 512))
    )
    assert (found["streams"], found["token_budget"], gain) == (1, 512, 1.0)


def test_no_setting_takes_the_time_of_those_that_come_after_it(
    complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[float] = []

    def race(entrants: Sequence[Callable[[], float]], clock: Clock, until: float) -> NDArray[np.float64]:
        ends.append(until)
        clock.began -= until - clock.elapsed  # all the time that it was given has gone by
        return np.ones((3, len(entrants)))

    monkeypatch.setattr(tune, "race", race)
    _, found = settings_of(Fake(complete, lambda plan, size: 1.0), until=1000.0)
    assert found["streams"] == 1
    assert found["token_budget"] == 512
    assert found["windowed_from"] is not None
    assert ends == sorted(ends)
    assert ends[-1] < 1000.0


@pytest.mark.usefixtures("by_formula")
def test_without_time_no_setting_is_claimed_to_be_measured(complete: Path) -> None:
    fake = Fake(complete, lambda plan, size: 1.0)
    gain, found = settings_of(fake, until=-1.0)
    assert gain == 1.0
    assert set(found.values()) == {None}
    assert fake.loaded == []


@pytest.mark.usefixtures("by_formula")
@pytest.mark.parametrize(
    ("faster_from", "expected"),
    [(0, BLOCK), (257, 256), (385, 384), (513, 512), (769, 768), (1025, 1024), (10**9, 1024)],
)
def test_the_switch_over_lies_below_the_first_length_at_which_windows_win(
    complete: Path, faster_from: int, expected: int
) -> None:
    def cost(plan: Plan, length: int) -> float:
        windowed = plan.windowed_from == 0
        return (0.5 if length >= faster_from else 2.0) if windowed else 1.0

    fake = Fake(complete, cost)
    plan = fake.load("float32").plan
    assert plan.windowed_from == 512
    assert tune.switch_over(fake, plan, clock(), 1e9) == expected  # type: ignore[arg-type]


@pytest.mark.usefixtures("by_formula")
def test_a_model_of_one_form_has_no_switch_over(complete: Path) -> None:
    fake = Fake(complete, lambda plan, size: 1.0)
    plan = replace(fake.load("float32").plan, windowed_from=None)
    assert tune.switch_over(fake, plan, clock(), 1e9) is None  # type: ignore[arg-type]


# Drift.


def compared(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: Sequence[str],
    drift: Callable[..., Any] | None = None,
) -> dict[str, dict[str, Any]]:
    if drift is not None:
        monkeypatch.setattr(measure, "quick", drift)
    model = model_of(folder)
    texts, _ = tune.sample(model)
    return tune.compare(model, names, texts, dict.fromkeys(names, 100.0), machine(), clock(1.0))


def test_drift_is_judged_by_what_a_sample_can_tell(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = replace(
        gate.DEFAULTS["int8_weights"], spearman=1.0, sqnr_p1=1e9, top_1=2.0, sqnr=1.0, overlap_10=0.1
    )
    monkeypatch.setattr(gate, "floors_of", lambda folder, name: replace(strict, overlap_10_asymmetric=0.1))
    found = compared(complete, monkeypatch, ["float32", "int8_weights"])
    assert found["float32"] == {"verdict": "pass"}
    assert found["int8_weights"]["verdict"] == "pass"
    assert (
        found["int8_weights"]["sqnr_low"]
        <= found["int8_weights"]["sqnr"]
        <= found["int8_weights"]["sqnr_high"]
    )
    monkeypatch.setattr(gate, "floors_of", lambda folder, name: replace(strict, sqnr=1e9))
    assert compared(complete, monkeypatch, ["float32", "int8_weights"])["int8_weights"]["verdict"] == "fail"


@pytest.fixture(scope="module")
def drift(complete: Path) -> Drift:
    """One of int8_weights with figures that no sample has."""
    texts, _ = tune.sample(model_of(complete))
    found = measure.quick(complete, "int8_weights", texts[:12])
    return replace(found, sqnr=Interval(31.25, 31.0, 31.5), overlap_10=Interval(0.987, 0.98, 0.99))


@pytest.fixture
def recorded(complete: Path, drift: Drift, tmp_path: Path) -> Path:
    """A copy whose record tells that drift, as `quantize` writes it."""
    folder = Path(shutil.copytree(complete, tmp_path / "model"))
    entry = measure.entry(drift, []) | {"verdict": "fail"}
    write_record(folder, read_record(folder) | {"drift": {"int8_weights": entry}})
    return folder


def test_drift_on_record_is_taken_and_not_measured_again(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(measure, "embed", never)
    found = compared(recorded, monkeypatch, ["float32", "int8_weights"], never)
    figures = {"sqnr": 31.25, "sqnr_low": 31.0, "sqnr_high": 31.5, "overlap_10": 0.987}
    assert found == {"float32": {"verdict": "pass"}, "int8_weights": {"verdict": "fail"} | figures}
    alone = compared(recorded, monkeypatch, ["int8_weights", "int8_dynamic"], never)
    assert alone == {"int8_weights": found["int8_weights"], "int8_dynamic": {"verdict": None}}


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_class": "another"},
        {"made_by": {"openvino": "2025.4"}},
        {"made_by": None},
        {"sqnr": None},
        {"sqnr": {"value": "31", "low": 1, "high": 2}},
        {"overlap_10": {}},
        {"verdict": "maybe"},
    ],
)
def test_drift_of_other_kernels_or_without_figures_is_not_taken(
    recorded: Path, change: dict[str, Any]
) -> None:
    record = read_record(recorded)
    assert set(tune.on_record(record, machine())) == {"int8_weights"}
    record["drift"]["int8_weights"] |= change
    assert tune.on_record(record, machine()) == {}


def test_a_compute_type_that_gives_no_vectors_fails(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, compute_type: str, texts: Any, **options: Any) -> Any:
        raise NumericsError("text 0 gave a vector that is NaN")

    found = compared(complete, monkeypatch, ["float32", "int8_weights"], broken)
    assert found["int8_weights"] == {"verdict": "fail"}


# All of it, by the command.


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_what_tune_measures_is_kept_used_and_shown(complete: Path, capsys: Capture) -> None:
    assert run("tune", complete, "--seconds", "1", "--json") == 0
    *shown, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    names = tune.candidates(machine(), ir.find_files(complete), [], "CPU")
    assert list(report["compute_types"]) == names
    assert [line.split()[0] for line in shown[1:-1]] == names
    assert shown[-1] == f"auto takes {report['auto']}: {Embedder(complete).plan.reasons['compute_type']}"
    assert shown[-1].split(": ", 1)[1].startswith("tuned here: ")
    for name, row in report["compute_types"].items():
        assert row["texts_per_second"] > 0
        assert (row["sqnr"] is None) == (name == "float32")
    found, told = kept_profile(complete, "CPU")
    assert found is not None
    assert told == f"tuned on {report['measured_at']}"
    assert found.to_dict() == {key: report[key] for key in ("measured_at", "seconds", "compute_types")}
    assert Embedder(complete).plan.compute_type == report["auto"]

    assert run("info", complete, "--json") == 0
    *shown, last = capsys.readouterr().out.splitlines()
    described = json.loads(last)
    assert described["profile"] == {"told": told, **found.to_dict()}
    at = shown.index("profile")
    assert shown[at + 1] == f"  {told}"
    assert [line.split()[0] for line in shown[at + 3 : at + 3 + len(names)]] == names

    assert run("tune", complete, "--forget", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["forgotten"] is True
    assert kept_profile(complete, "CPU") == (None, "this model was not tuned on this machine")
    assert run("tune", complete, "--forget") == 0
    assert capsys.readouterr().out == "nothing was kept\n"


def keep(folder: Path, **types: Tuned) -> Profile:
    found = Profile("2026-05-04T12:30Z", 60.0, types)
    profile.write(store.home(), profile_facts(folder, "CPU"), found)
    return found


FASTER = Tuned(41.2, 0.02, 1, 2, 256, None, "pass", 29.1, 28.8, 29.4, 0.98)
SLOWER = Tuned(20.1, 0.02, 1, 1, 1024, None, "pass")


def test_a_kept_profile_decides_and_its_vectors_are_those_of_the_compute_type(complete: Path) -> None:
    expected = Embedder(complete, compute_type="int8_weights").encode(TEXTS)
    keep(complete, float32=SLOWER, int8_weights=FASTER)
    embedder = Embedder(complete)
    assert embedder.plan.compute_type == "int8_weights"
    assert (embedder.plan.threads, embedder.plan.streams, embedder.plan.token_budget) == (1, 2, 256)
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, rtol=0, atol=1e-5)
    reference = Embedder(complete, compute_type="float32", streams=3)
    assert (reference.plan.streams, reference.plan.token_budget) == (3, 1024)


def test_info_shows_the_speed_and_drift_of_bfloat16_which_auto_does_not_take(
    complete: Path, capsys: Capture
) -> None:
    keep(complete, float32=SLOWER, bfloat16=replace(FASTER, texts_per_second=99.5, sqnr=42.1, sqnr_low=41.9))
    run("info", complete, "--json")
    *shown, last = capsys.readouterr().out.splitlines()
    (line,) = [line for line in shown if line.split()[0] == "bfloat16"]
    assert "99.5" in line
    assert "42.1 (41.9 to 29.4)" in line
    assert json.loads(last)["plan"]["compute_type"] == "float32"


def test_info_says_why_a_profile_does_not_count_and_what_to_do(
    complete: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = Path(shutil.copytree(complete, tmp_path / "model"))
    keep(folder, float32=SLOWER, int8_weights=FASTER)
    (folder / "openvino" / VARIANTS["int8"]).unlink()
    run("info", folder)
    shown = capsys.readouterr().out.splitlines()
    assert shown[shown.index("profile") + 1] == (
        f"  tuned on 2026-05-04T12:30Z, with other files of the model; run: edge-embed tune {folder}"
    )
    assert not any("tuned here" in line for line in shown)


def test_ctrl_c_leaves_the_former_profile(
    complete: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    former = keep(complete, float32=SLOWER)

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "time_settings", interrupted)
    assert run("tune", complete, "--seconds", "1", "--compute-types", "float32") == 130
    assert kept_profile(complete, "CPU")[0] == former
    assert len(list((store.home() / "profiles").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0.5"], "seconds is 0.5; it must be at least 1"),
        (["--seconds", "nan"], "seconds is nan; it must be at least 1"),
        (["--seconds", "inf"], "seconds is inf; it must be at least 1"),
        (["--compute-types", "float32,int4"], "compute type 'int4' is unknown"),
        (["--compute-types", ""], "compute type '' is unknown"),
        (["--device", "XPU"], "no device 'XPU' on this machine"),
    ],
)
def test_wrong_use_is_one_line_and_keeps_nothing(
    complete: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    assert run("tune", complete, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert kept_profile(complete, "CPU")[0] is None


def test_two_models_at_most_are_in_memory(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = [0]

    def counted(*arguments: Any) -> Any:
        runtime = start(*arguments)
        alive.add(runtime)
        most[0] = max(most[0], len(alive))
        return runtime

    gc.disable()  # what only the collector would free is not free when the next model is loaded
    try:
        monkeypatch.setattr("edge_embed.tune.start", counted)
        tune.tune(complete, seconds=1.0)
    finally:
        gc.enable()
    assert most[0] == 2
