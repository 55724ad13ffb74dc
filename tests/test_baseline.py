"""drift/baseline.py: what is approved is kept and found, and nothing is compared across what differs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edge_embed
from edge_embed.drift import baseline, measurement
from edge_embed.drift.baseline import Baseline
from edge_embed.drift.measurement import Measurement
from edge_embed.errors import InputError, MismatchError, OutputError
from tests.measurements import measurement as measured
from tests.measurements import noisy, reference

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


@pytest.fixture(scope="module")
def found() -> Measurement:
    x = reference()
    return measured(x, noisy(x, 25))


@pytest.fixture(scope="module")
def one(found: Measurement) -> Baseline:
    return baseline.approved(found, reason="the first", by="A. Person")


def of(found: Measurement, **changes: Any) -> Measurement:
    """The measurement of another checkpoint, compute type, CPU class, or of other texts."""
    homes = {"cpu_class": "environment", "texts_sha256": "against"}
    for key, value in changes.items():
        home = homes.get(key, "subject")
        found = replace(found, **{home: replace(getattr(found, home), **{key: value})})
    return found


def test_what_is_approved_is_the_measurement_with_who_and_why(found: Measurement, one: Baseline) -> None:
    assert found.drift is not None
    assert found.per_text is not None
    assert (one.reason, one.approved_by) == ("the first", "A. Person")
    assert (one.subject, one.environment, one.against) == (found.subject, found.environment, found.against)
    assert (one.ids, one.noise) == (found.per_text.ids, found.per_text.noise)
    assert one.values["sqnr"] == found.drift.sqnr
    assert one.values["spearman"].low == one.values["spearman"].value == found.drift.spearman
    assert "ndcg_10_change" not in one.values  # was not measured
    assert one.line == f"{'b' * 12}, approved {one.approved_at} by A. Person: the first"
    assert " by " not in replace(one, approved_by="").line


def test_what_is_written_is_read_back_and_holds_no_text(
    found: Measurement, one: Baseline, tmp_path: Path
) -> None:
    both = (one, replace(one, environment=replace(one.environment, cpu_class="no-vnni"), reason="größer"))
    baseline.write(both, tmp_path / "baseline.json")
    assert baseline.read(tmp_path / "baseline.json") == both
    assert found.worst[0].excerpt not in (tmp_path / "baseline.json").read_text("utf-8")


def test_a_measurement_without_vectors_is_no_baseline(found: Measurement) -> None:
    with pytest.raises(InputError, match="gave no vectors"):
        baseline.approved(replace(found, drift=None, per_text=None), reason="none")


def test_a_measurement_that_could_not_be_read_back_is_no_baseline(found: Measurement) -> None:
    assert found.per_text is not None
    nan = replace(found.per_text, noise=(float("nan"), *found.per_text.noise[1:]))
    with pytest.raises(
        InputError, match=r"all-MiniLM-L6-v2\.noise has a row that no measurement gives; meas"
    ):
        baseline.approved(replace(found, per_text=nan), reason="none")


# ---- keys


def test_approving_replaces_the_baseline_of_the_same_key_and_keeps_all_others(
    found: Measurement, one: Baseline
) -> None:
    changes = ({"weights_sha256": "9" * 64}, {"compute_type": "int8_weights"}, {"cpu_class": "no-vnni"})
    kept = tuple(baseline.approved(of(found, **change), reason="another") for change in changes)
    baselines: tuple[Baseline, ...] = ()
    for each in (kept[0], one, *kept[1:]):
        baselines = baseline.put(baselines, each)
    assert baselines == (kept[0], one, *kept[1:])
    newer = baseline.approved(of(found, file_sha256="e" * 64, texts_sha256="f" * 64), reason="newer")
    assert baseline.put(baselines, newer) == (kept[0], newer, *kept[1:])


def test_the_baseline_of_the_same_key_and_texts_is_found(found: Measurement, one: Baseline) -> None:
    other = baseline.approved(of(found, compute_type="int8_weights"), reason="another")
    newer = of(found, file_sha256="e" * 64, file_bytes=25_000_000)
    assert baseline.find((other, one), newer) is one


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"weights_sha256": "9" * 64},
            f"no baseline has the checkpoint sha256 {'9' * 64} of .*, only a{{64}};",
        ),
        ({"compute_type": "int8_weights"}, "no baseline has the compute type int8_weights of .*, only int8;"),
        (
            {"cpu_class": "no-vnni"},
            "no baseline has the CPU class no-vnni of .*, only vnni; approve the cand",
        ),
        (
            {"texts_sha256": "e" * 64},
            "other texts .192 from evaluation, sha256 d{12}. than the candidate .192 from evaluation, e{12}",
        ),
    ],
)
def test_a_baseline_of_something_else_is_refused_by_what_differs(
    found: Measurement, one: Baseline, change: dict[str, str], line: str
) -> None:
    with pytest.raises(MismatchError, match=line) as caught:
        baseline.find((one,), of(found, **change))
    assert "\n" not in str(caught.value)


def test_an_empty_file_has_no_baseline_for_anything(found: Measurement, tmp_path: Path) -> None:
    baseline.write((), tmp_path / "baseline.json")
    with pytest.raises(MismatchError, match="only none at all; approve the candidate: edge-embed approve"):
        baseline.find(baseline.read(tmp_path / "baseline.json"), found)


# ---- damage


def put(value: Any, *keys: Any) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


FIRST = ("baselines", 0)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (put(2, "schema"), "has schema 2, this version reads 1; take it from version control"),
        (put("more", "more"), "is no baseline file of this version: more is unknown, or missing; take"),
        (lambda values: values["baselines"][0].pop("reason"), "baselines.reason is unknown, or missing"),
        (put("much", *FIRST, "values", "sqnr", "low"), r'baselines\.values\.low is "much"'),
        (
            put({"value": 1, "low": 1, "high": 1, "effect": None}, *FIRST, "values", "speed"),
            r"values\.speed is unknown",
        ),
        (
            lambda values: values["baselines"][0]["noise"].pop(),
            r"baselines\[0\]\.noise has 191 rows, and 192 texts were measured",
        ),
        (put(None, *FIRST, "noise", 3), r"baselines\[0\]\.noise has a row that no measurement gives"),
        (put(-0.1, *FIRST, "noise", 3), r"baselines\[0\]\.noise has a row that no measurement gives"),
        (put("text-001", *FIRST, "ids", 0), r"baselines\[0\]\.ids names a text twice"),
        (put(0, *FIRST, "subject", "file_bytes"), r"baselines\[0\]\.subject\.file_bytes is 0"),
        (
            lambda values: values["baselines"].append(values["baselines"][0]),
            "two baselines are of a{64} int8 vnni",
        ),
    ],
)
def test_an_edited_file_is_refused_by_the_key(
    one: Baseline, tmp_path: Path, change: Callable[[Any], Any], line: str
) -> None:
    path = tmp_path / "baseline.json"
    baseline.write((one,), path)
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=line) as caught:
        baseline.read(path)
    assert str(path) in str(caught.value)


def test_a_cut_or_missing_file_is_refused(one: Baseline, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    with pytest.raises(InputError, match=r"cannot read .*baseline\.json: No such file"):
        baseline.read(path)
    baseline.write((one,), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="is no baseline file, or was cut"):
        baseline.read(path)


# ---- writing


def test_a_folder_that_is_not_there_is_one_clear_line(one: Baseline, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*baseline\.json: No such file"):
        baseline.write((one,), tmp_path / "none" / "baseline.json")


WRITER = """\
import os, signal
from pathlib import Path
from edge_embed.drift import baseline, measurement
new = baseline.approved(measurement.read(Path("drift.json")), reason="newer")
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)
baseline.write(baseline.put(baseline.read(Path("baseline.json")), new), Path("baseline.json"))
"""


@posix
def test_kill_9_while_approving_leaves_the_old_baseline(
    found: Measurement, one: Baseline, tmp_path: Path
) -> None:
    """The child stops itself when all is written and only the name is missing."""
    measurement.write(found, tmp_path / "drift.json")
    baseline.write((one,), tmp_path / "baseline.json")
    environment = os.environ | {"PYTHONPATH": str(Path(edge_embed.__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-c", WRITER], cwd=tmp_path, env=environment)
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    (partial,) = {path.name for path in tmp_path.iterdir()} - {"drift.json", "baseline.json"}
    assert baseline.read(tmp_path / partial)[0].reason == "newer"
    assert baseline.read(tmp_path / "baseline.json") == (one,)
