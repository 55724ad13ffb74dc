"""drift/report.py: what GitHub and JUnit readers expect, which check is worst, and that all of it fits."""

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_embed.drift import gate, report
from edge_embed.drift.gate import ABSOLUTE, INVARIANT, STAGE, Check, Verdict
from edge_embed.drift.measurement import Measurement
from edge_embed.drift.metrics import Interval, SliceDrift
from edge_embed.profile import FAIL, PASS
from tests.measurements import measurement as measured
from tests.measurements import noisy, reference

INCONCLUSIVE = gate.INCONCLUSIVE
NAN = float("nan")


def check(
    id: str = "sqnr",
    value: float = 19.0,
    limit: float = 20.0,
    verdict: str = FAIL,
    *,
    half: float = 0.0,
    slice: str | None = None,
    kind: str = ABSOLUTE,
    what: str = "",
) -> Check:
    """A check whose interval reaches `half` to both sides."""
    return Check(
        id, slice, value, value - half, value + half, limit, verdict, 192, None, kind=kind, what=what
    )


def verdict(*checks: Check) -> Verdict:
    """Of those checks, as a gate makes it."""
    found = next((o for o in (FAIL, INCONCLUSIVE) if any(c.verdict == o for c in checks)), PASS)
    return Verdict(found, checks, "models/all-MiniLM-L6-v2/budget.toml", "", ())


MIXED = verdict(
    check("finite", 0, 0, PASS, kind=INVARIANT),
    check("sqnr", 24, 20, PASS, half=0.3),
    check("sqnr_slice", 15, 17, half=0.5, slice="language l3"),
    replace(check("top_1", 0.87, 0.88, INCONCLUSIVE, half=0.02), n_needed=438),
    check("stage", NAN, 20, INCONCLUSIVE, slice="emulated", kind=STAGE, what="ended by SIGILL"),
)


@pytest.fixture(scope="module")
def found() -> Measurement:
    x = reference()
    return measured(x, noisy(x, 21))


def crashed(measurement: Measurement) -> Measurement:
    """What is left when the candidate's process was ended."""
    return replace(
        measurement,
        crash="the process was ended by SIGILL",
        drift=None,
        per_text=None,
        ledger=(),
        worst=(),
        invariants=(),
        variants=(),
        slices={},
        located=None,
    )


# ---- JUnit


@pytest.fixture(scope="module")
def of_pytest(tmp_path_factory: pytest.TempPathFactory) -> ET.Element:
    """What pytest itself writes of a test that passes, one that fails and one that is skipped."""
    folder = tmp_path_factory.mktemp("junit")
    (folder / "test_three.py").write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): assert not 1, 'no'\n"
        "def test_c(): pytest.skip('not now')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "--junitxml=out.xml", "-p", "no:cacheprovider", "."]
    subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=120)
    return ET.parse(folder / "out.xml").getroot()


def test_junit_has_the_elements_and_attributes_that_pytest_writes(
    found: Measurement, of_pytest: ET.Element
) -> None:
    ours = ET.fromstring(report.junit(found, MIXED))
    assert ours.tag == of_pytest.tag
    assert ours.keys() == of_pytest.keys()
    their_suite, our_suite = of_pytest[0], ours[0]
    assert our_suite.tag == their_suite.tag
    assert set(our_suite.keys()) == set(their_suite.keys()) - {"hostname"}
    for path in ("testcase", "testcase/failure", "testcase/skipped"):
        theirs, mine = their_suite.find(path), our_suite.find(path)
        assert theirs is not None
        assert mine is not None
        assert set(mine.keys()) == set(theirs.keys()) - {"type"}, path


def test_junit_counts_what_it_holds(found: Measurement) -> None:
    suite = ET.fromstring(report.junit(found, MIXED))[0]
    assert [suite.get(key) for key in ("tests", "failures", "skipped", "errors")] == ["5", "1", "2", "0"]
    assert len(suite.findall("testcase")) == 5
    assert len(suite.findall("testcase/failure")) == 1
    assert len(suite.findall("testcase/skipped")) == 2
    assert suite.get("timestamp") == "2026-05-04T12:30:00+00:00"
    failed = next(case for case in suite if case.find("failure") is not None)
    assert failed.get("classname") == "edge_embed.drift.absolute"
    assert failed.get("name") == "sqnr_slice [language l3]"
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("message") == "15.0 dB [14.5, 15.5], at least 17.0 dB (192 texts)"


@given(words=st.text(st.characters()))
@example(words="a\x00b\x1b[31m\ud800\uffff<&>]]>\r\n")
def test_junit_of_any_text_can_be_parsed(found: Measurement, words: str) -> None:
    one = check("stage", NAN, 20, INCONCLUSIVE, slice=f"l{words}", kind=STAGE, what=f"w{words}")
    text = report.junit(found, verdict(one))
    text.encode("utf-8")
    case = ET.fromstring(text).find("testsuite/testcase")
    assert case is not None
    assert case.get("name", "").startswith("stage [l")
    assert len(case.findall("skipped")) == 1


# ---- workflow commands


def test_commands_are_escaped_as_actions_toolkit_does_it() -> None:
    # The expectations of packages/core/__tests__/command.test.ts.
    assert report.as_data("%\r\n%\r\n") == "%25%0D%0A%25%0D%0A"
    assert report.as_property("%\r\n%\r\n:,") == "%25%0D%0A%25%0D%0A%3A%2C"


def unescaped(text: str) -> str:
    """As the runner reads a property."""
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


@given(st.text())
def test_a_property_is_read_back_as_it_was(words: str) -> None:
    escaped = report.as_property(words)
    assert not set(escaped) & set("\r\n:,")
    assert unescaped(escaped) == words


def test_a_failure_is_an_error_and_what_is_inconclusive_a_warning() -> None:
    assert report.annotations(MIXED, "out/drift: 100%.json") == [
        "::error file=out/drift%3A 100%25.json,title=Drift%3A sqnr_slice%2C language l3"
        "::15.0 dB [14.5, 15.5], at least 17.0 dB (192 texts)",
        "::warning file=out/drift%3A 100%25.json,title=Drift%3A stage%2C emulated::ended by SIGILL",
        "::warning file=out/drift%3A 100%25.json,title=Drift%3A top_1%2C all texts"
        "::0.870 [0.850, 0.890], at least 0.880 (192 texts, 438 would settle it)",
    ]


def test_a_verdict_without_trouble_has_no_annotations() -> None:
    assert report.annotations(verdict(check(value=24, verdict=PASS)), "drift.json") == []


def test_a_line_break_in_a_text_does_not_begin_another_command() -> None:
    evil = check(kind=INVARIANT, what="a\n::stop-commands::x\r\n::set-env::")
    (line,) = report.annotations(verdict(evil), "a\nb.json")
    assert line.splitlines() == [line]


@pytest.mark.parametrize(("count", "shown"), [(9, 9), (10, 10), (11, 10), (500, 10)])
def test_at_most_ten_annotations_are_made_and_the_tenth_counts_the_others(count: int, shown: int) -> None:
    checks = [check("sqnr_slice", 20 - 0.01 * i, 20, slice=f"l{i}") for i in range(1, count)]
    lines = report.annotations(verdict(*checks, check("top_1", 0.9, 0.9, INCONCLUSIVE, half=0.1)), "d.json")
    assert len(lines) == shown
    assert f"l{count - 1}::" in lines[0]  # the furthest below
    if count > 10:
        assert f"title=Drift%3A {count - 9:,} more checks" in lines[-1]
        assert f"::{count - 10:,} more fail and 1 more are inconclusive" in lines[-1]
        assert lines[-1].startswith("::error")
    else:
        assert lines[-1].startswith("::warning")


# ---- order and words


def test_failures_come_before_what_is_inconclusive_and_invariants_before_all_else() -> None:
    ordered = [
        check("candidate", NAN, 0, kind=INVARIANT),
        check("unit_norm", 0.02, 0.01, kind=INVARIANT),
        check("sqnr", NAN, 20),
        check("sqnr", 10, 20, half=0.2),
        check("sqnr_slice", 9, 17, half=1.0),
        check("sqnr", 19, 20, half=0.9),
        check("stage", NAN, 60, INCONCLUSIVE, kind=STAGE),
        check("top_1", 0.87, 0.88, INCONCLUSIVE, half=0.02),
        check("top_1", 0.89, 0.88, INCONCLUSIVE, half=0.02),
        check("sqnr", 30, 20, PASS),
    ]
    assert report.worst_first(reversed(ordered)) == ordered


def test_of_two_losses_the_more_certain_one_is_worse_and_one_percent_is_the_least_unit() -> None:
    certain, doubtful = check(value=18, half=0.4), check(value=17, half=2.9)
    assert report.beyond(certain) == pytest.approx(5)
    assert report.beyond(doubtful) == pytest.approx(3 / 2.9)
    assert report.beyond(check("spearman", 0.94, 0.95)) == pytest.approx(0.01 / 0.0095)
    assert report.beyond(check("width", 1, 0, kind=INVARIANT)) == math.inf
    assert report.beyond(check("finite", 0, 0, PASS, kind=INVARIANT)) == 0


@pytest.mark.parametrize(
    ("one", "value", "limit"),
    [
        (check("sqnr", 19.2, 20, half=0.3), "19.2 dB [18.9, 19.5]", "at least 20.0 dB"),
        (check("sqnr", 19.97, 20), "19.97 dB", "at least 20.00 dB"),
        (check("sqnr", 24, 20, PASS), "24.0 dB", "at least 20.0 dB"),
        (check("overlap_10_slice", 0.86, 0.87), "0.860", "at least 0.870"),
        (check("overlap_10", 0.92991, 0.93), "0.9299", "at least 0.9300"),
        (check("spearman", 0.9948, 0.995), "0.9948", "at least 0.9950"),
        (
            check("ndcg_10_change", -0.02, -0.0075, half=0.01),
            "-0.0200 [-0.0300, -0.0100]",
            "at least -0.0075",
        ),
        (check("bytes_change", -0.05, -0.02), "-5.0 %", "at least -2.0 %"),
        (check("batch", 0.0123, 0.01, kind=INVARIANT), "0.0123", "at most 0.01"),
        (check("batch", NAN, 1e-5, kind=INVARIANT), "not a number", "at most 1e-05"),
        (check("sqnr", NAN, 20), "not a number", "at least 20.0 dB"),
        (check("overlap_10_change", -0.00001, 0, PASS), "0.000", "at least 0.000"),
    ],
)
def test_figures_have_the_decimals_that_they_need(one: Check, value: str, limit: str) -> None:
    assert report.figures(one) == (value, limit)


# ---- Markdown


def cells(line: str) -> list[str]:
    """Of one line of a table, as GitHub takes it apart: a backslash goes with what follows it."""
    assert line.startswith("|")
    return [part.strip() for part in re.findall(r"((?:\\.|[^\\|])*)\|", line)[1:]]


def tables(text: str) -> list[list[list[str]]]:
    """Rows of cells of each table."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(cells(line))
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_a_summary_begins_with_the_verdict_and_what_failed(found: Measurement) -> None:
    text = report.markdown(found, MIXED)
    assert text.splitlines()[0] == "## ✗ Drift of all-MiniLM-L6-v2, int8: fail"
    assert "1 of 5 checks fails" not in text
    assert "1 of 5 checks fail, 2 are inconclusive. Budget: models/all-MiniLM-L6-v2/budget.toml." in text
    failed = tables(text)[0]
    assert failed[0] == ["", "check", "of", "measured", "limit", "texts", "texts that would settle it"]
    assert failed[2:] == [
        ["✗ fail", "`sqnr_slice`", "language l3", "15.0 dB [14.5, 15.5]", "at least 17.0 dB", "192", ""],
        [
            "? inconclusive",
            "`stage` ended by SIGILL",
            "emulated",
            "not a number",
            "at least 20.0 dB",
            "192",
            "",
        ],
        ["? inconclusive", "`top_1`", "all texts", "0.870 [0.850, 0.890]", "at least 0.880", "192", "438"],
    ]


def test_a_summary_has_the_numbers_of_the_measurement(found: Measurement) -> None:
    text = report.markdown(found, MIXED)
    drift = found.drift
    assert drift is not None
    _, headline, stages, slices, environment = tables(text)
    numbers = {row[0]: row[1] for row in headline[2:]}
    assert numbers["SQNR"] == f"{drift.sqnr.value:.1f} dB [{drift.sqnr.low:.1f}, {drift.sqnr.high:.1f}]"
    assert numbers["cosine, least"] == f"{drift.cosine_min:.4f}"
    assert numbers["texts"] == "192"
    assert "nDCG@10, change" not in numbers  # None: it was not measured
    assert stages[2][:3] == ["float32", "120.0 dB [119.0, 121.0]", "120.0 dB [119.0, 121.0] (reference)"]
    assert stages[-1] == ["emulated", "", "", "", "a CPU without VNNI: ended by SIGILL"]
    listed = [float(row[2].split()[0]) for row in slices[2:]]
    assert listed == sorted(listed)
    assert {row[0] for row in slices[2:]} == {part.name for part in (*drift.slices, *found.variants)}
    assert ["Machine: versions.openvino", "2026.4.1"] in environment


def test_every_row_of_a_table_has_as_many_cells_as_its_header(found: Measurement) -> None:
    evil = "a|b\\|c\n| d `e` <img src=x>\r\n***"
    assert found.drift is not None
    part = SliceDrift(evil, 24, True, Interval(15, 14, 16), Interval(0.9, 0.8, 1))
    worded = replace(
        found,
        subject=replace(found.subject, name=evil, settings={evil: {evil: evil}}),
        drift=replace(found.drift, slices=(part,), worst_slice=evil),
        ledger=tuple(replace(stage, trouble=evil, previous=evil) for stage in found.ledger),
    )
    text = report.markdown(worded, verdict(check(evil, slice=evil, what=evil), check(slice=evil)))
    assert "<img" not in text
    for table in tables(text):
        assert {len(row) for row in table} == {len(table[0])}
    assert text.splitlines()[0].startswith("## ✗ Drift of a")
    assert len([line for line in text.splitlines() if line.startswith("#")]) == 5


def test_two_thousand_slices_stay_below_100_kb_and_the_summary_says_what_it_leaves_out(
    found: Measurement,
) -> None:
    assert found.drift is not None
    names = [f"slice {'long ' * 10}{i}" for i in range(2000)]
    parts = tuple(
        SliceDrift(name, 24, True, Interval(10 + i / 100, 9, 31), Interval(0.9, 0.8, 1))
        for i, name in enumerate(names)
    )
    many = replace(found, drift=replace(found.drift, slices=parts))
    checks = [check("sqnr_slice", 10, 17, half=1, slice=name, what="why " * 200) for name in names]
    text = report.markdown(many, replace(verdict(*checks), notes=tuple(names)))
    assert len(text.encode()) < 100_000
    assert "2000 of" not in text
    assert "2,000 of 2,000 checks fail" in text
    assert text.count("… and 1,960 more") == 2  # checks and notes
    assert "… and 1,962 more" in text  # slices, with two variants


def test_a_crash_is_said_before_anything_else_but_the_verdict(found: Measurement) -> None:
    ended = check("candidate", NAN, 0, kind=INVARIANT, what="the process was ended by SIGILL")
    text = report.markdown(crashed(found), verdict(ended))
    first, _, second = text.splitlines()[:3]
    assert first.endswith("fail")
    assert second == "**The candidate crashed: the process was ended by SIGILL**"
    assert "### Slices" not in text
    assert "### Stages" not in text
    assert Counter(ET.fromstring(report.junit(crashed(found), verdict(ended)))[0][0].itertext()).total() > 0
    assert report.annotations(verdict(ended), "d.json") == [
        "::error file=d.json,title=Drift%3A candidate%2C all texts::the process was ended by SIGILL"
    ]


def test_vectors_that_cannot_be_compared_are_said_too(found: Measurement) -> None:
    text = report.markdown(replace(found, drift=None, per_text=None), MIXED)
    assert "The vectors cannot be compared" in text


def test_a_pass_lists_nothing_that_failed(found: Measurement) -> None:
    text = report.markdown(found, verdict(check(value=24, verdict=PASS)))
    assert text.splitlines()[0].startswith("## ✓")
    assert "1 check passes." in text
    assert "What failed" not in text
