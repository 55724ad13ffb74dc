"""edge-embed gate and approve: exit codes, what is printed and written, and what is refused before work."""

import json
import xml.etree.ElementTree as ET
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from edge_embed.cli import approve, gate, main
from edge_embed.drift import baseline, measurement
from edge_embed.drift.gate import DEFAULTS, Floors
from edge_embed.drift.measurement import Invariant, Measurement, Stage
from edge_embed.drift.metrics import Interval
from tests.measurements import crashed as crashed_of
from tests.measurements import measurement as measured
from tests.measurements import noisy, reference

Capture = pytest.CaptureFixture[str]


def made(decibels: float, seed: int = 1, **subject: Any) -> Measurement:
    """A measurement of even noise in which every stage ran."""
    x = reference()
    found = measured(x, noisy(x, decibels, seed), name="mine")
    interval = Interval(26, 25.8, 26.2)
    emulated = Stage("emulated", "without VNNI", "executed", interval, interval, 0.99, "")
    return replace(found, ledger=(*found.ledger[:3], emulated), subject=replace(found.subject, **subject))


@pytest.fixture(scope="module")
def good() -> Measurement:
    """Well above the floors that a model without a budget has, 20 dB."""
    return made(27)


@pytest.fixture(scope="module")
def bad() -> Measurement:
    return made(17)


@pytest.fixture(scope="module")
def unsettled(good: Measurement) -> Measurement:
    """One stage did not run."""
    lost = Stage("emulated", "without VNNI", "executed", None, None, None, "ended by SIGILL")
    return replace(good, ledger=(*good.ledger[:3], lost))


@pytest.fixture(scope="module")
def crashed(good: Measurement) -> Measurement:
    return crashed_of(good)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(command: str, found: Measurement, *options: str) -> int:
    """A command on drift.json of the current folder."""
    measurement.write(found, Path("drift.json"))
    return main([command, "drift.json", *options])


def approved(found: Measurement) -> None:
    """Make it the baseline of the current folder."""
    baseline.write((baseline.approved(found, reason="the first"),), Path("baseline.json"))


def table(compute_type: str = "int8", **floors: float) -> str:
    """A table of a budget with the defaults of static INT8, but for some."""
    values = {field.name: getattr(DEFAULTS["int8"], field.name) for field in fields(Floors)} | floors
    return f"[{compute_type}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())


def lines_of(id: str, out: str) -> list[str]:
    """Outcome and figures of each check with that id; whom it is of is worded in report.py."""
    lines = [line.split() for line in out.splitlines()]
    return [f"{one[0]} {' '.join(one).partition(': ')[2]}" for one in lines if one[1:2] == [f"{id},"]]


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


# ---- exit codes


def test_a_sound_candidate_exits_0_and_says_by_what_it_was_judged(good: Measurement, capsys: Capture) -> None:
    assert run("gate", good) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("pass: mine  int8  openvino/openvino_model_qint8_quantized.xml  ")
    assert lines[0].endswith(" checks pass")
    assert lines[1] == (
        "  note      1 of 11 slices reported, not judged, for too few texts: length 257 to 512 (5)"
    )
    assert lines[-1] == "  budget    the defaults for int8, as models/ has no budget of mine"
    assert err == ""


def test_a_failing_candidate_exits_3_and_each_failure_is_a_line(bad: Measurement, capsys: Capture) -> None:
    assert run("gate", bad) == 3
    out = capsys.readouterr().out
    assert out.startswith("fail: mine")
    (sqnr,) = lines_of("sqnr", out)
    assert sqnr.startswith("fail 17.")
    assert sqnr.endswith("], at least 20.0 dB (192 texts)")
    assert "without --strict" not in out


def test_an_inconclusive_candidate_exits_0_and_says_so_and_5_under_strict(
    unsettled: Measurement, capsys: Capture
) -> None:
    assert run("gate", unsettled) == 0
    out = capsys.readouterr().out
    assert out.startswith("inconclusive: mine")
    assert lines_of("stage", out) == ["inconclusive ended by SIGILL"]
    assert out.endswith("\n  inconclusive checks do not fail without --strict\n")
    assert run("gate", unsettled, "--strict") == 5
    assert "without --strict" not in capsys.readouterr().out


def test_strict_changes_neither_a_pass_nor_a_failure(good: Measurement, bad: Measurement) -> None:
    assert run("gate", good, "--strict") == 0
    assert run("gate", bad, "--strict") == 3


def test_the_number_of_texts_that_would_settle_a_check_is_told(good: Measurement, capsys: Capture) -> None:
    assert good.drift is not None
    wide = replace(good, drift=replace(good.drift, sqnr=Interval(21, 19, 23)))
    assert run("gate", wide) == 0
    line = "inconclusive 21.0 dB [19.0, 23.0], at least 20.0 dB (192 texts, 768 would settle it)"
    assert lines_of("sqnr", capsys.readouterr().out) == [line]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"weights_sha256": "9" * 64}, "checkpoint sha256"),
        ({"compute_type": "int8_weights"}, "compute type"),
        ({"cpu_class": "no-vnni"}, "CPU class"),
        ({"texts_sha256": "e" * 64}, "other texts"),
    ],
)
def test_a_baseline_of_something_else_exits_4_and_writes_nothing(
    good: Measurement, capsys: Capture, change: dict[str, str], what: str
) -> None:
    home = {"cpu_class": "environment", "texts_sha256": "against"}.get(next(iter(change)), "subject")
    approved(replace(good, **{home: replace(getattr(good, home), **change)}))
    assert run("gate", good, "--baseline", "baseline.json", "--markdown", "out.md") == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert what in err
    assert err.count("\n") == 1
    assert names() == ["baseline.json", "drift.json"]


def test_a_candidate_that_became_worse_or_larger_exits_3(good: Measurement, capsys: Capture) -> None:
    approved(good)
    assert run("gate", good, "--baseline", "baseline.json") == 0
    assert "  baseline  bbbbbbbbbbbb, approved " in capsys.readouterr().out
    assert run("gate", made(25.5), "--baseline", "baseline.json") == 3
    assert lines_of("sqnr_change", capsys.readouterr().out)[0].startswith("fail -1.5 dB [")
    assert run("gate", made(27, file_bytes=25_000_000), "--baseline", "baseline.json") == 3
    line = "fail -4.2 %, at least -2.0 %: 24,000,000 bytes were approved, and it has 25,000,000"
    assert lines_of("bytes_change", capsys.readouterr().out) == [line]


def test_a_crashed_candidate_exits_3_by_the_signal(crashed: Measurement, capsys: Capture) -> None:
    reports = ("--markdown", "out.md", "--html", "out.html", "--junit", "out.xml")
    assert run("gate", crashed, *reports) == 3
    assert lines_of("candidate", capsys.readouterr().out) == ["fail ended by SIGSEGV"]
    for name in ("out.md", "out.html", "out.xml"):
        assert "ended by SIGSEGV" in Path(name).read_text("utf-8")


# ---- budgets


def test_a_budget_of_ones_own_is_what_counts(good: Measurement, capsys: Capture) -> None:
    Path("own.toml").write_text(table(sqnr=30, sqnr_slice=17))
    assert run("gate", good, "--budget", "own.toml") == 3
    out = capsys.readouterr().out
    assert lines_of("sqnr", out) == ["fail 27.1 dB [27.0, 27.2], at least 30.0 dB (192 texts)"]
    assert out.endswith("  budget    own.toml\n")


def test_a_model_of_models_has_its_own_budget(good: Measurement, capsys: Capture) -> None:
    known = replace(good, subject=replace(good.subject, name="all-MiniLM-L6-v2"))
    run("gate", known)
    assert capsys.readouterr().out.endswith("  budget    models/all-MiniLM-L6-v2/budget.toml\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (table() + "cosine = 0.9\n", "[int8] has the unknown key cosine"),
        (table().replace("top_1 = 0.88\n", ""), "[int8] lacks top_1"),
        (
            table("int8_weights"),
            "has no table [int8], only int8_weights; add one with a number for each of sqnr",
        ),
        ("", "has no table [int8], only none at all"),
        ("[int8", "is not TOML"),
        (None, "cannot read own.toml"),
    ],
)
def test_a_budget_that_cannot_be_used_exits_2(
    good: Measurement, capsys: Capture, text: str | None, line: str
) -> None:
    if text is not None:
        Path("own.toml").write_text(text)
    for command, options in (("gate", []), ("approve", ["--baseline", "b.json", "--reason", "x"])):
        assert run(command, good, "--budget", "own.toml", *options) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert line in err
    assert not Path("b.json").exists()


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"schema": 1}', b"\xff"])
@pytest.mark.parametrize("damaged", ["drift.json", "baseline.json"])
def test_a_damaged_input_exits_2(
    good: Measurement, capsys: Capture, damaged: str, content: bytes | None
) -> None:
    measurement.write(good, Path("drift.json"))
    approved(good)
    if content is None:
        Path(damaged).unlink()
    else:
        Path(damaged).write_bytes(content)
    assert main(["gate", "drift.json", "--baseline", "baseline.json", "--markdown", "out.md"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert damaged in err
    assert not Path("out.md").exists()


# ---- JSON and reports


def test_the_last_line_of_stdout_is_the_verdict_without_nan(good: Measurement, capsys: Capture) -> None:
    approved(good)
    broken = replace(good, invariants=(Invariant("batch", float("nan"), 1e-5, "did not run"),))
    assert run("gate", broken, "--baseline", "baseline.json", "--json") == 3
    last = capsys.readouterr().out.splitlines()[-1]
    verdict = json.loads(last, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(verdict) == ["verdict", "checks", "budget", "baseline", "notes"]
    assert verdict["verdict"] == "fail"
    assert verdict["checks"][0] == {
        "id": "batch",
        "slice": None,
        "value": None,
        "low": None,
        "high": None,
        "limit": 1e-5,
        "verdict": "fail",
        "n": 0,
        "n_needed": None,
        "kind": "invariant",
        "effect": None,
        "what": "did not run",
    }
    assert {check["kind"] for check in verdict["checks"]} == {
        "invariant",
        "absolute",
        "stage",
        "regression",
    }


def test_reports_are_written_whatever_the_verdict_is(good: Measurement, bad: Measurement) -> None:
    reports = ("--markdown", "out.md", "--html", "out.html", "--junit", "out.xml")
    for found, code in ((good, 0), (bad, 3)):
        assert run("gate", found, *reports) == code
        failures = int(ET.parse("out.xml").getroot()[0].attrib["failures"])
        assert (failures > 0) == (code == 3)
        word = "pass" if code == 0 else "fail"
        assert Path("out.md").read_text("utf-8").splitlines()[0].endswith(f"mine, int8: {word}")
        assert "</html>" in Path("out.html").read_text("utf-8")
    assert names() == ["drift.json", "out.html", "out.md", "out.xml"]


def test_annotations_stand_between_the_text_and_the_json(bad: Measurement, capsys: Capture) -> None:
    assert run("gate", bad, "--annotations", "--json") == 3
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("::")]
    assert 1 <= len(commands) <= 10
    assert lines[-1 - len(commands) : -1] == commands
    assert commands[0].startswith("::error file=drift.json,")
    assert json.loads(lines[-1])["verdict"] == "fail"
    Path("own.toml").write_text(table())
    assert run("gate", bad, "--annotations", "--budget", "own.toml") == 3
    assert "::error file=own.toml," in capsys.readouterr().out  # which a change can be made in


# ---- targets


@pytest.mark.parametrize("option", ["--markdown", "--html", "--junit"])
@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("none/out", "none does not exist; make that folder first"),
        ("folder", "it is not a regular file"),
        ("drift.json", "drift.json is the input as well"),
        ("baseline.json", "baseline.json is the input as well"),
        ("own.toml", "own.toml is the input as well"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_any_work(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, option: str, target: str, line: str
) -> None:
    def too_early(path: Path) -> None:
        pytest.fail(f"{path} was read before the targets were checked")

    monkeypatch.setattr(measurement, "read", too_early)
    Path("folder").mkdir()
    inputs = {name: f"{name} is kept" for name in ("drift.json", "baseline.json", "own.toml")}
    for name, text in inputs.items():
        Path(name).write_text(text)
    options = ["--budget", "own.toml", "--baseline", "baseline.json", option, target]
    assert main(["gate", "drift.json", *options]) == 2
    assert line in capsys.readouterr().err
    assert {name: Path(name).read_text() for name in inputs} == inputs


def test_two_reports_are_not_written_over_each_other(good: Measurement, capsys: Capture) -> None:
    assert run("gate", good, "--markdown", "out", "--junit", str(Path("out").absolute())) == 2
    assert "two reports would be one file" in capsys.readouterr().err
    assert names() == ["drift.json"]


# ---- approve


def test_the_first_approval_makes_the_file_and_shows_what_is_in_it(
    good: Measurement, capsys: Capture
) -> None:
    options = ("--baseline", "baseline.json", "--reason", " to\nstart with ", "--by", "A. Person")
    assert run("approve", good, *options) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("pass: mine  int8  vnni  ")
    assert lines[1] == "  nothing was approved before for this checkpoint, compute type and CPU class"
    assert lines[2].split() == ["sqnr", "27.11", "dB", "[27.00,", "27.21]"]
    assert (lines[-1], err) == ("approved -> baseline.json", "")
    (one,) = baseline.read(Path("baseline.json"))
    assert (one.reason, one.approved_by, one.subject) == ("to start with", "A. Person", good.subject)


def test_an_approval_shows_what_changed_and_keeps_other_baselines(good: Measurement, capsys: Capture) -> None:
    other = replace(good, subject=replace(good.subject, compute_type="int8_weights"))
    both = (baseline.approved(other, reason="another"), baseline.approved(good, reason="the first"))
    baseline.write(both, Path("baseline.json"))
    worse = made(25.5, file_bytes=24_600_000, file_sha256="e" * 64)
    assert worse.per_text is not None
    noise = [p * (2 if 120 <= i < 144 else 1) for i, p in enumerate(worse.per_text.noise)]
    worse = replace(
        worse,
        per_text=replace(worse.per_text, noise=tuple(noise)),
        environment=replace(worse.environment, versions={"openvino": "2026.5.0"}),
    )
    assert run("gate", worse, "--baseline", "baseline.json") == 3
    capsys.readouterr()
    options = ("--baseline", "baseline.json", "--reason", "half the time")
    assert run("approve", worse, *options, "--json") == 0  # regressions are what approving is for
    out = capsys.readouterr().out
    *lines, last = out.splitlines()
    shown = [" ".join(line.split()) for line in lines]
    assert shown[1].startswith("before bbbbbbbbbbbb, approved ")
    assert "sqnr 27.11 dB [27.00, 27.21] -> 25.61 dB [25.51, 25.72]" in shown
    assert "language l5 -4.51 dB" in shown  # 1.5 dB and a factor of two
    assert "file bbbbbbbbbbbb -> eeeeeeeeeeee, 24,000,000 -> 24,600,000 bytes (+2.5%)" in shown
    assert "openvino 2026.4.1 -> 2026.5.0" in shown
    report = json.loads(last)
    assert (report["approved"], report["failed"], report["output"]) == (True, [], "baseline.json")
    assert report["before"]["sqnr"]["value"] == pytest.approx(27.11, abs=0.01)
    assert report["values"]["sqnr"]["value"] == pytest.approx(25.61, abs=0.01)
    assert next(iter(report["slices"])) == "language l5"
    assert len(report["slices"]) == approve.MOVED
    kept, new = baseline.read(Path("baseline.json"))
    assert kept == both[0]
    assert (new.reason, new.subject) == ("half the time", worse.subject)
    assert run("gate", worse, "--baseline", "baseline.json") == 0


def test_texts_that_changed_are_told_and_no_slice_is_compared(good: Measurement, capsys: Capture) -> None:
    approved(good)
    other = replace(good, against=replace(good.against, texts_sha256="e" * 64))
    options = ("--baseline", "baseline.json", "--reason", "more texts", "--json")
    assert run("approve", other, *options) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert "  other texts were measured then: what differs below may be due to them" in lines
    assert json.loads(last)["slices"] == {}
    assert baseline.read(Path("baseline.json"))[0].against.texts_sha256 == "e" * 64


FAULTS: dict[str, dict[str, Any]] = {
    "sqnr": {},
    "finite": {"invariants": (Invariant("finite", 1.0, 0.0, "row 3 holds NaN"),)},
    "stage": {"ledger": (Stage("float32", "pinned", "reference", Interval(50, 49, 51), None, None, ""),)},
}


@pytest.mark.parametrize("fault", [*FAULTS, "candidate"])
def test_what_fails_by_itself_is_not_approved_and_the_file_stays(
    good: Measurement, bad: Measurement, crashed: Measurement, capsys: Capture, fault: str
) -> None:
    approved(good)
    before = Path("baseline.json").read_bytes()
    broken = crashed if fault == "candidate" else replace(bad if fault == "sqnr" else good, **FAULTS[fault])
    options = ("--baseline", "baseline.json", "--reason", "it must go out", "--json")
    assert run("approve", broken, *options) == 3
    out, err = capsys.readouterr()
    assert err.startswith("edge-embed: not approved: ")
    assert err.endswith("; baseline.json is as it was\n")
    report = json.loads(out.splitlines()[-1])
    assert not report["approved"]
    assert fault in {check["id"] for check in report["failed"]}
    assert Path("baseline.json").read_bytes() == before
    assert run("approve", broken, "--baseline", "new.json", "--reason", "it must go out") == 3
    assert not Path("new.json").exists()


def test_an_inconclusive_check_does_not_keep_from_approving(unsettled: Measurement, capsys: Capture) -> None:
    assert run("approve", unsettled, "--baseline", "baseline.json", "--reason", "no such CPU here") == 0
    assert capsys.readouterr().out.startswith("inconclusive: mine  int8  vnni  1 is inconclusive\n")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--baseline", "b.json", "--reason", ""], "--reason is empty; say why"),
        (["--baseline", "b.json", "--reason", " \n"], "--reason is empty; say why"),
        (["--baseline", "b.json", "--reason", "\udce4"], "--reason is not UTF-8"),
        (["--baseline", "b.json", "--reason", "x", "--by", "\udce4"], "--by is not UTF-8"),
        (["--baseline", "drift.json", "--reason", "x"], "drift.json is the input as well"),
        (["--baseline", "none/b.json", "--reason", "x"], "none does not exist; make that folder first"),
        (["--baseline", "cut.json", "--reason", "x"], "cut.json is no baseline file, or was cut"),
    ],
)
def test_an_approval_that_cannot_be_written_is_refused(
    good: Measurement, capsys: Capture, options: list[str], line: str
) -> None:
    Path("cut.json").write_text("{")
    assert run("approve", good, *options) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert line in err
    assert measurement.read(Path("drift.json")) == good
    assert names() == ["cut.json", "drift.json"]


def test_approve_needs_a_reason_and_a_file(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main(["approve", "drift.json"])
    assert left.value.code == 2
    assert "--baseline, --reason" in capsys.readouterr().err


def test_exit_codes_are_told_apart(capsys: Capture) -> None:
    assert (gate.GATE_FAILED, gate.UNSETTLED) == (3, 5)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "3 gate failed, 4 cannot judge,\n  5 inconclusive under --strict" in capsys.readouterr().out
