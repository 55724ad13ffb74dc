"""`edge-embed drift measure`: a candidate against vectors of PyTorch, by stages, and what it refuses."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed import calibration, quantize, store
from edge_embed.calibration import Text
from edge_embed.cli import drift, main
from edge_embed.drift import candidate, compare, ledger, measurement, metrics, record
from edge_embed.drift.candidate import Way
from edge_embed.drift.measurement import Measurement
from edge_embed.errors import InputError
from edge_embed.hardware import machine
from edge_embed.plan import COMPUTE_TYPES
from edge_embed.quantize import Recipe
from edge_embed.record import hash_file, read_record
from tests.checkpoints import change_weights
from tests.test_candidate import Arrange, posix, put_nan

pytestmark = pytest.mark.reference

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "calibration/references/all-MiniLM-L6-v2.npz"

Capture = pytest.CaptureFixture[str]

# Words that stand nowhere else, so that it shows whether one of them is in a file.
WORDS = ("zephyr", "wyvern", "quibble", "jackdaw", "vortex", "gizmo", "mollusc", "tundra", "fjord", "ocelot")


def own_texts(count: int = 60) -> list[Text]:
    """A query and a passage on each topic, in two slices of unequal size."""
    random = np.random.default_rng(0)
    found = []
    for i in range(count):
        text = " ".join(random.choice(WORDS, size=2 + i % 3 + 2 * (i % 2)))
        found.append(
            Text(f"t{i}", ("query", "passage")[i % 2], f"topic {i // 2}", text, ("one", "two")[i % 3 // 2])
        )
    return found


def write_texts(path: Path, texts: list[Text]) -> Path:
    rows = [
        {
            "id": text.id,
            "role": record.role_of(text),
            "topic": text.topic,
            "text": text.text,
            "slice": text.stratum,
        }
        for text in texts
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@dataclasses.dataclass(frozen=True)
class Case:
    """What a command is given."""

    model: Path
    reference: Path
    texts: Path
    output: Path

    def command(self, *options: str, compute_type: str = "float32") -> list[str]:
        arguments = [str(self.model), "--reference", str(self.reference), "--texts", str(self.texts)]
        return [
            "drift",
            "measure",
            *arguments,
            "--compute-type",
            compute_type,
            "-o",
            str(self.output),
            *options,
        ]

    def measure(self, *options: str, compute_type: str = "float32") -> int:
        return main(self.command(*options, compute_type=compute_type))

    def read(self) -> Measurement:
        return measurement.read(self.output)


@pytest.fixture(scope="module")
def stored(tiny_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The tiny BERT with both INT8 IRs, calibrated on texts of ours, and a reference of others. Read only."""
    folder = tmp_path_factory.mktemp("measure")
    model = Path(shutil.copytree(tiny_built, folder / "model"))
    calibrated = folder / "calibrated.txt"
    calibrated.write_text("\n".join(f"a cat {i} sat on mat {i * i} and the dog is slow" for i in range(60)))
    quantize.quantize(model, "int8_weights")
    recipe = Recipe(outlier_channels=2, outlier_ratio=1.2)
    quantize.quantize(model, "int8", recipe, texts_file=calibrated)
    texts = write_texts(folder / "texts.jsonl", own_texts())
    found, _ = record.record(model, own_texts(), str(texts))
    record.write(found, folder / "reference.npz")
    return Case(model, folder / "reference.npz", texts, folder / "drift.json")


@pytest.fixture
def case(stored: Case, tmp_path: Path) -> Case:
    """The same with an output of this test alone."""
    return dataclasses.replace(stored, output=tmp_path / "drift.json")


@pytest.fixture
def own(case: Case, tmp_path: Path) -> Case:
    """The same with a model that a test may damage."""
    return dataclasses.replace(case, model=Path(shutil.copytree(case.model, tmp_path / "model")))


def strict_json(path: Path) -> Any:
    """JSON as the standard has it, where NaN and Infinity are no numbers."""

    def refuse(token: str) -> None:
        raise AssertionError(f"{path} holds {token}")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def broken(found: Measurement) -> set[str]:
    return {one.id for one in found.invariants if not one.value <= one.limit}


# ---- a sound candidate


@pytest.mark.parametrize("compute_type", COMPUTE_TYPES)
def test_a_candidate_is_measured_by_stages(case: Case, capsys: Capture, compute_type: str) -> None:
    assert case.measure("--json", compute_type=compute_type) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    strict_json(case.output)
    found = case.read()
    assert found.drift is not None
    emulated = compute_type == "bfloat16" and "avx512_bf16" not in machine().flags
    assert broken(found) <= ({"pinned"} if emulated else set())

    steps = ledger.steps(Way(compute_type), machine(), has_float32=True)
    assert [(stage.name, stage.previous) for stage in found.ledger] == [(s.name, s.previous) for s in steps]
    assert [stage.trouble for stage in found.ledger] == [""] * len(steps)
    stages = {stage.name: stage for stage in found.ledger}
    base = stages["float32"]
    assert base.from_reference is not None
    assert base.from_previous is not None
    assert base.from_reference.value > 100  # of PyTorch
    assert base.from_previous.value == pytest.approx(base.from_reference.value)
    own = stages[ledger.candidate_of(compute_type)].from_reference
    assert own is not None
    assert own.value == pytest.approx(found.drift.sqnr.value, abs=1e-3)
    least = {"float32": 100, "bfloat16": 25, "int8_weights": 25, "int8_dynamic": 20, "int8": 8}
    assert own.value > least[compute_type]

    lines = shown.out.splitlines()
    assert lines[0].startswith(f"model  {compute_type}  openvino/openvino_model")
    assert sum("dB from PyTorch" in line for line in lines) == 1
    for step in steps:
        assert sum(line.startswith(f"  {step.name} ") and line.endswith(step.what) for line in lines) == 1
    report = json.loads(lines[-1])
    assert report["output"] == str(case.output)
    assert (report["texts"], report["compute_type"], report["crash"]) == (60, compute_type, "")
    assert report["sqnr"]["value"] == found.drift.sqnr.value
    assert report["overlap_10"]["value"] == found.drift.overlap_10.value
    assert report["worst_slice"] == found.drift.worst_slice


def test_a_file_says_what_was_measured_against_what(case: Case) -> None:
    assert case.measure("--no-stages", compute_type="int8") == 0
    found = case.read()
    reference = record.read(case.reference)
    assert found.drift is not None
    assert found.against.sha256 == hash_file(case.reference)
    assert (found.against.source, found.against.n) == ("texts.jsonl", 60)
    assert found.against.settings == reference.settings
    assert found.subject.weights_sha256 == reference.weights_sha256
    assert found.subject.file == "openvino/openvino_model_qint8_quantized.xml"
    assert found.subject.provenance["calibration"]["source"] == "calibrated.txt"
    assert found.subject.provenance["nncf"]["quantization.model_type"] == "transformer"
    assert found.environment.cpu_class == machine().cpu_class
    assert {name: len(rows) for name, rows in found.slices.items()} == {
        "slice one": 40,
        "slice two": 20,
        "role document": 30,
        "role query": 30,
        **{name: len(rows) for name, rows in found.slices.items() if name.startswith("length ")},
    }
    assert [part.name for part in found.drift.slices] == list(found.slices)
    assert [part.name for part in found.variants] == ["precision int8", "precision binary"]
    assert found.drift.ndcg_10_change is not None
    assert found.per_text is not None
    assert found.per_text.ids == reference.ids
    mean = -10 * np.log10(np.mean(found.per_text.noise))
    assert found.drift.sqnr.value == pytest.approx(mean, abs=1e-3)
    assert found.located is None


def test_without_stages_there_is_the_candidate_alone(case: Case) -> None:
    assert case.measure("--no-stages", compute_type="int8_dynamic") == 0
    (stage,) = case.read().ledger
    assert (stage.name, stage.previous) == ("executed", "reference")
    assert stage.from_reference is not None
    assert stage.from_previous is not None
    assert stage.from_reference.value == pytest.approx(stage.from_previous.value)


def test_what_is_measured_by_default_is_what_would_run_here(case: Case) -> None:
    command = [part for part in case.command("--no-stages") if part not in ("--compute-type", "float32")]
    assert main(command) == 0
    assert case.read().subject.compute_type == ("int8_dynamic" if machine().has_int8_dot else "float32")


def test_threads_are_those_that_were_asked_for(case: Case) -> None:
    assert case.measure("--no-stages", "--threads", "1") == 0
    found = case.read()
    assert found.environment.threads == 1
    assert found.subject.settings["effective"]["INFERENCE_NUM_THREADS"] == "1"


def test_measuring_again_gives_the_same(case: Case, tmp_path: Path) -> None:
    again = dataclasses.replace(case, output=tmp_path / "again.json")
    for each in (case, again):
        assert each.measure("--no-stages", compute_type="int8_weights") == 0
    one, other = case.read(), again.read()
    assert one.per_text == other.per_text
    assert (one.drift, one.variants, one.ledger) == (other.drift, other.variants, other.ledger)
    assert (one.invariants, one.worst, one.slices) == (other.invariants, other.worst, other.slices)


# ---- what is kept of texts


def test_the_worst_texts_are_shown_by_their_beginnings_unless_they_are_to_be_left_out(case: Case) -> None:
    assert case.measure("--no-stages") == 0
    kept = case.read()
    texts = {text.id: text.text for text in own_texts()}
    assert len(kept.worst) == 10
    for one in kept.worst:
        assert one.excerpt == texts[one.id]
        assert [near.excerpt for near in one.reference] == [texts[near.id] for near in one.reference]
    assert all(word in case.output.read_text() for word in WORDS)

    assert case.measure("--no-stages", "--no-excerpts") == 0
    left = case.read()
    assert [one.id for one in left.worst] == [one.id for one in kept.worst]
    assert [word for word in WORDS if word in case.output.read_text()] == []


def test_few_texts_are_no_slice_to_be_judged(case: Case) -> None:
    def judged(*options: str) -> dict[str, bool]:
        assert case.measure("--no-stages", *options) == 0
        drift = case.read().drift
        assert drift is not None
        assert drift.worst_slice in {part.name for part in drift.slices if part.judged}
        return {part.name: part.judged for part in drift.slices if part.name.startswith("slice")}

    assert judged() == {"slice one": True, "slice two": True}
    assert judged("--least-slice", "21") == {"slice one": True, "slice two": False}


def test_the_command_judges_slices_from_as_many_texts_on_as_the_rest_does() -> None:
    assert drift.LEAST_SLICE == metrics.LEAST_SLICE


# ---- a candidate or a stage that is broken


@posix
def test_a_candidate_that_crashes_is_on_record_with_the_signal(
    case: Case, stand_in: Arrange, capsys: Capture
) -> None:
    stand_in("os.kill(os.getpid(), signal.SIGSEGV)")
    assert case.measure("--json") == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line == (
        f"edge-embed: the candidate crashed: stand_in was ended by SIGSEGV; {case.output} says so"
    )
    report = json.loads(shown.out.splitlines()[-1])
    assert report["crash"] == "stand_in was ended by SIGSEGV"
    assert (report["sqnr"], report["worst_slice"]) == (None, None)
    strict_json(case.output)
    found = case.read()
    assert found.crash == "stand_in was ended by SIGSEGV"
    assert (found.drift, found.per_text) == (None, None)
    assert (found.ledger, found.invariants, found.worst, found.variants, found.slices) == ((), (), (), (), {})
    assert found.subject.file == "openvino/openvino_model.xml"
    assert found.subject.settings["requested"]["INFERENCE_PRECISION_HINT"] == "f32"
    assert found.against.n == 60


@posix
def test_a_stage_that_crashes_or_fails_says_so_and_the_rest_is_measured(
    case: Case, stand_in: Arrange, capsys: Capture
) -> None:
    stand_in(
        "if way['unpinned']: os.kill(os.getpid(), signal.SIGABRT)\n"
        "    if way['compute_type'] == 'float32': raise ValueError('no\\nfloat32 today')"
    )
    assert case.measure(compute_type="int8_weights") == 0
    found = case.read()
    told = {stage.name: stage.trouble for stage in found.ledger}
    assert told.pop("float32") == "no float32 today"
    assert told.pop("default") == told.pop("executed_default") == "stand_in was ended by SIGABRT"
    assert set(told.values()) == {""}
    assert found.drift is not None
    stages = {stage.name: stage for stage in found.ledger}
    assert stages["executed"].from_reference is not None
    assert stages["executed"].from_previous is None  # which would be float32
    out = capsys.readouterr().out.splitlines()
    assert "  float32             did not run: no float32 today" in out


def test_a_candidate_that_does_not_load_is_refused_by_one_line(own: Case, capsys: Capture) -> None:
    file = own.model / "openvino/openvino_model.bin"
    file.write_bytes(file.read_bytes()[:1000])
    assert own.measure() == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert "openvino_model.bin has 1000 bytes" in line
    assert not own.output.exists()


def test_a_candidate_that_gives_nan_is_told_as_a_broken_invariant(own: Case, capsys: Capture) -> None:
    put_nan(own.model)
    assert own.measure("--json") == 0  # measuring judges nothing
    shown = capsys.readouterr().out.splitlines()
    assert json.loads(shown[-1])["sqnr"] is None
    assert sum(line.startswith("  broken      finite: text ") for line in shown) == 1
    strict_json(own.output)
    found = own.read()
    assert broken(found) == {"finite"}
    assert (found.crash, found.drift, found.per_text) == ("", None, None)
    assert "NaN" in found.ledger[0].trouble
    assert found.ledger[0].from_reference is None


def test_vectors_of_another_width_are_told_as_a_broken_invariant(own: Case) -> None:
    """As with another pooling: the graph is the same, and the reference fits its weights."""
    pooling = own.model / "1_Pooling/config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"pooling_mode_cls_token": True}))
    assert own.measure("--no-stages") == 0
    found = own.read()
    assert broken(found) == {"width"}
    assert found.drift is None
    assert found.ledger[0].trouble == "vectors are 64 wide, those of the reference 32"


def test_a_candidate_that_does_not_normalise_breaks_unit_norm_and_nothing_else(own: Case) -> None:
    modules = own.model / "modules.json"
    modules.write_text(json.dumps(json.loads(modules.read_text())[:2]))
    assert own.measure("--no-stages") == 0
    assert broken(own.read()) == {"unit_norm"}


# ---- what is refused

Change = Callable[[Case, Path], Case]


def other_weights(case: Case, folder: Path) -> Case:
    def nudge(tensors: dict[str, NDArray[Any]]) -> None:
        tensors["encoder.layer.0.output.dense.bias"][0] += 1e-3

    return dataclasses.replace(case, model=change_weights(copied(case, folder), nudge))


def other_tokens(case: Case, folder: Path) -> Case:
    model = copied(case, folder)
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 8, "do_lower_case": false}')
    return dataclasses.replace(case, model=model)


def copied(case: Case, folder: Path) -> Path:
    return Path(shutil.copytree(case.model, folder / "model"))


def with_texts(change: Callable[[list[Text]], list[Text]]) -> Change:
    def changed(case: Case, folder: Path) -> Case:
        return dataclasses.replace(case, texts=write_texts(folder / "texts.jsonl", change(own_texts())))

    return changed


def edited(texts: list[Text]) -> list[Text]:
    return [*texts[:7], dataclasses.replace(texts[7], text=texts[7].text + "."), *texts[8:]]


def calibrated(case: Case, folder: Path) -> Case:
    """One text of the reference is among those that static INT8 was calibrated on."""
    texts = [*own_texts(), Text("seen", "passage", "cat", "a cat 7 sat on mat 49 and the dog is slow", "one")]
    found, _ = record.record(case.model, texts, "texts.jsonl")
    record.write(found, folder / "reference.npz")
    file = write_texts(folder / "texts.jsonl", texts)
    return dataclasses.replace(case, reference=folder / "reference.npz", texts=file)


def cut(case: Case, folder: Path) -> Case:
    (folder / "reference.npz").write_bytes(case.reference.read_bytes()[:5000])
    return dataclasses.replace(case, reference=folder / "reference.npz")


def output(name: str) -> Change:
    return lambda case, folder: dataclasses.replace(case, output=folder / name)


def options(**changes: str) -> Change:
    return lambda case, folder: dataclasses.replace(
        case, **{name: folder / value for name, value in changes.items()}
    )


REFUSED: dict[str, tuple[Change, int, str]] = {
    "the reference of other weights": (other_weights, 4, "the reference is of"),
    "other tokens": (other_tokens, 4, "of 60 texts have other tokens here than in PyTorch, first 't"),
    "an edited text": (with_texts(edited), 4, "text 7 ('t7') has another text than when"),
    "texts in another order": (with_texts(lambda t: t[::-1]), 4, "text 0 ('t59') has another id"),
    "missing texts": (with_texts(lambda t: t[:40]), 4, "the reference has 60 texts, but 40 are given"),
    "calibrated texts": (calibrated, 4, "1 texts of the reference, first 'seen', are among those that int8"),
    "a cut reference": (cut, 2, "is no reference, or was cut"),
    "no reference": (options(reference="nowhere.npz"), 2, "cannot read"),
    "no texts": (options(texts="nowhere.jsonl"), 2, "cannot read"),
    "few texts": (with_texts(lambda t: t[:11]), 2, "11 texts are too few for ten neighbours each; give at"),
    "no model": (options(model="nowhere"), 2, "nowhere"),
    "an output of another kind": (output("drift.txt"), 2, "it must end in .json"),
    "an output in no folder": (output("nowhere/drift.json"), 2, "is not a folder that may be written to"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses_before_any_work(
    case: Case, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    change, code, complaint = REFUSED[name]
    changed = change(case, tmp_path)
    monkeypatch.delattr(candidate, "run")
    assert changed.measure("--json") == code
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("edge-embed: ")
    assert complaint in line
    assert not changed.output.exists()


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: Capture
) -> None:
    command = ["drift", "measure", "no-such-model", "--reference", "no-such.npz", "-o"]
    assert main([*command, str(tmp_path / "drift.npz")]) == 2
    assert "it must end in .json" in capsys.readouterr().err


def test_a_reference_of_a_users_texts_needs_them(case: Case, capsys: Capture) -> None:
    command = ["drift", "measure", str(case.model), "--reference", str(case.reference), "-o"]
    assert main([*command, str(case.output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("was recorded with texts.jsonl; name that file by --texts")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (["--least-slice", "1"], "--least-slice is 1; it must be at least 2"),
        (["--threads", "0"], "threads is 0; it must be at least 1"),
        (["--device", "TPU"], "TPU"),
    ],
)
def test_wrong_options_are_refused_by_one_line(
    case: Case, capsys: Capture, wrong: list[str], complaint: str
) -> None:
    assert case.measure(*wrong) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert not case.output.exists()


def test_a_compute_type_without_a_file_is_refused_with_the_way_to_make_it(own: Case, capsys: Capture) -> None:
    (own.model / "openvino/openvino_model_int8_weights.xml").unlink()
    assert own.measure(compute_type="int8_dynamic") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run: edge-embed quantize" in line


# ---- texts that a file was calibrated on


def test_each_text_that_int8_was_calibrated_on_is_on_record_by_its_hash(stored: Case) -> None:
    kept = read_record(stored.model)["quantized"]
    lines = (stored.model.parent / "calibrated.txt").read_text().splitlines()
    expected = sorted(hashlib.sha256(line.encode()).hexdigest()[:16] for line in lines)
    assert kept["int8"]["calibration"]["text_sha256"] == expected
    assert len(set(expected)) == 60
    assert "calibration" not in kept["int8_weights"]


# ---- several at once, and an end in the middle


def test_runs_in_one_folder_do_not_disturb_each_other(own: Case, stored: Case, tmp_path: Path) -> None:
    kinds = ("float32", "int8")
    cases = {kind: dataclasses.replace(own, output=tmp_path / f"{kind}.json") for kind in kinds}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "edge_embed", *case.command("--no-stages", compute_type=kind)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        for kind, case in cases.items()
    ]
    for process in running:
        _, err = process.communicate()
        assert (process.returncode, err) == (0, b"")
    for kind, case in cases.items():
        alone = dataclasses.replace(stored, output=tmp_path / "alone.json")
        assert alone.measure("--no-stages", compute_type=kind) == 0
        assert case.read().subject.compute_type == kind
        assert case.read().per_text == alone.read().per_text
    report = store.verify(own.model)
    assert report.wrong == ()
    assert {path.name for path in tmp_path.iterdir()} == {
        "model",
        "alone.json",
        *(f"{k}.json" for k in kinds),
    }


SLEEPER = """
import os, sys, time
from pathlib import Path

path = Path(os.environ["PID_FILE"])
path.with_suffix(".new").write_text(str(os.getpid()))
path.with_suffix(".new").replace(path)
time.sleep(600)
"""

INTERRUPTIBLE = """
import signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from edge_embed.cli import main
from edge_embed.drift import candidate

candidate.MODULE = "sleeper"
sys.exit(main(sys.argv[1:]))
"""


@posix
@pytest.mark.parametrize("to_all", [True, False], ids=["as a terminal does", "to the parent alone"])
def test_ctrl_c_leaves_no_output_and_no_child(case: Case, tmp_path: Path, to_all: bool) -> None:
    for name in ("modules", "scratch", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "modules/sleeper.py").write_text(SLEEPER)
    pid_file = tmp_path / "pid"
    path = os.pathsep.join([str(tmp_path / "modules"), str(ROOT)])
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", INTERRUPTIBLE),
            *dataclasses.replace(case, output=tmp_path / "out/drift.json").command(),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PID_FILE": str(pid_file), "TMPDIR": str(tmp_path / "scratch"), "PYTHONPATH": path},
        start_new_session=True,
    )
    while not pid_file.exists():
        assert process.poll() is None
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    if to_all:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert err.decode() == "edge-embed: interrupted; nothing half-written is left\n"
    assert list((tmp_path / "out").iterdir()) == []
    assert list((tmp_path / "scratch").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


# ---- a real model


@pytest.mark.minilm
def test_minilm_in_float32_is_pytorch_and_its_default_is_told_apart(
    minilm: Path, tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / "drift.json"
    command = ["drift", "measure", str(minilm), "--reference", str(COMMITTED), "-o", str(target)]
    assert main([*command, "--compute-type", "float32", "--json"]) == 0
    strict_json(target)
    found = measurement.read(target)
    assert found.subject.name == "all-MiniLM-L6-v2"
    assert found.against.source == record.EVALUATION
    assert found.against.n == 24 + 9 * 24 + 1
    assert found.drift is not None
    assert found.drift.sqnr.low > 100
    assert found.drift.overlap_10.value == 1
    assert found.drift.ndcg_10 is not None
    assert found.drift.ndcg_10 > 0.9
    assert broken(found) == set()
    assert {one.id for one in found.invariants} >= {"batch", "order", "padding", "repeat", "truncation"}
    assert [stage.name for stage in found.ledger] == ["float32", "default"]
    assert {name for name in found.slices if not name.startswith("length")} == {
        "language en",
        *(
            f"code {name}"
            for name in ("c", "cpp", "go", "java", "javascript", "php", "python", "ruby", "sql")
        ),
        "role query",
        "role document",
    }
    texts = {text.id: text.text for text in calibration.evaluation()}
    for one in found.worst:
        assert one.excerpt == " ".join(texts[one.id][: compare.EXCERPT].split())
        assert [near.id for near in one.reference] == [near.id for near in one.candidate]
    default = found.ledger[1].from_reference
    assert default is not None
    if "avx512_bf16" in machine().flags:  # where OpenVINO's own choice is bfloat16
        assert 30 < default.value < 60
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["texts"] == 241


@pytest.mark.minilm
@pytest.mark.parametrize(
    ("wish", "strata"), [([], 11), (["--all-languages"], 62), (["--texts", "evaluation"], 62)]
)
def test_the_built_in_texts_are_those_of_the_model_unless_all_are_asked_for(
    minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: list[str], strata: int
) -> None:
    seen: list[tuple[record.Reference, list[Text]]] = []

    def instead(folder: Path, reference: record.Reference, sha256: str, texts: list[Text], **_: Any) -> None:
        seen.append((reference, texts))
        raise InputError("enough")

    monkeypatch.setattr(compare, "measure_against", instead)
    command = ["drift", "measure", str(minilm), "--reference", str(COMMITTED), *wish]
    assert main([*command, "-o", str(tmp_path / "drift.json")]) == 2
    ((reference, texts),) = seen
    assert len({text.stratum for text in texts}) == strata
    assert reference.ids == tuple(text.id for text in texts)
    everything = record.read(COMMITTED)
    rows = [everything.ids.index(text.id) for text in texts]
    np.testing.assert_array_equal(reference.vectors, everything.vectors[rows])
