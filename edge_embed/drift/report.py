"""A measurement and a verdict -> what people and CI read: a Markdown summary, JUnit XML, workflow commands.

Strings come out, nothing is written or printed. How checks are worded and which of them is worst stands here
for html.py as well. Knows no formula and no model, and judges nothing: a verdict is taken as it stands.
"""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edge_embed.drift.gate import INCONCLUSIVE, INVARIANT, STAGE, Check, Verdict
from edge_embed.drift.measurement import Measurement, Stage
from edge_embed.drift.metrics import Interval, SliceDrift
from edge_embed.profile import FAIL, PASS

SYMBOLS: Mapping[str, str] = {FAIL: "✗", INCONCLUSIVE: "?", PASS: "✓"}  # the worst first
ORDER = tuple(SYMBOLS)

# What a check is called beside its id, which is what a budget says.
LABELS: Mapping[str, str] = {
    "sqnr": "SQNR",
    "sqnr_slice": "SQNR",
    "sqnr_p1": "SQNR of the noisiest 1 %",
    "sqnr_with_shift": "SQNR with the common shift",
    "sqnr_change": "SQNR against the baseline",
    "sqnr_change_slice": "SQNR against the baseline",
    "overlap_10": "overlap at 10",
    "overlap_10_slice": "overlap at 10",
    "overlap_10_asymmetric": "overlap at 10, index of the reference",
    "overlap_10_change": "overlap at 10 against the baseline",
    "top_1": "nearest text kept",
    "spearman": "Spearman",
    "ndcg_10_change": "nDCG@10, change",
    "bytes_change": "size against the baseline",
    "candidate": "the candidate runs",
    "finite": "finite vectors",
    "unit_norm": "unit length",
    "distinct": "distinct vectors",
    "batch": "the same in any batch",
    "order": "the same in any order",
    "padding": "the same with more padding",
    "repeat": "the same again",
    "pinned": "pinned properties",
    "width": "width of the reference",
    "stage": "SQNR of a stage",
}

ANNOTATIONS = 10  # what GitHub shows of one step and kind
ROWS = 40  # of a table of the summary, which may have 1 MiB
CELL = 200  # characters

# What XML 1.0 forbids, and lone surrogates, which no file can hold.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


# ---- words


def clean(text: str) -> str:
    """Text without the characters that XML and HTML forbid."""
    return FORBIDDEN.sub("", text)


def short(text: str, length: int = CELL) -> str:
    """Text of at most that many characters, on one line."""
    line = " ".join(clean(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def number(value: float, decimals: int) -> str:
    """A number in words where it is none. Never a negative zero."""
    return "not a number" if math.isnan(value) else f"{round(value, decimals) + 0.0:.{decimals}f}"


def with_interval(found: Interval | None, decimals: int, unit: str = "") -> str:
    """As `22.7 dB [22.5, 22.9]`; without brackets where there is no interval, "" for None."""
    if found is None:
        return ""
    value = number(found.value, decimals)
    if math.isnan(found.value):
        return value
    if found.low == found.high:
        return value + unit
    return f"{value}{unit} [{number(found.low, decimals)}, {number(found.high, decimals)}]"


def decibels(found: Interval | None) -> str:
    """An SQNR with its interval, "" for none."""
    return with_interval(found, 1, " dB")


def counted(count: int, one: str, many: str) -> str:
    """As `1 check` or `1,248 checks`."""
    return f"{count:,} {one if count == 1 else many}"


def megabytes(count: int) -> str:
    """Bytes, as `24.0 MB`."""
    return f"{count / 1e6:,.1f} MB"


def figures(check: Check) -> tuple[str, str]:
    """What was measured, with its interval, and the limit with `at least` or `at most`.

    Enough decimals to tell what was measured from a limit that it misses: 19.96 dB is not 20.0 dB.
    """
    if check.kind == INVARIANT:
        value = "not a number" if math.isnan(check.value) else f"{check.value:.3g}"
        return value, f"at most {check.limit:.3g}"
    factor, decimals, unit = scale(check)
    found = Interval(check.value * factor, check.low * factor, check.high * factor)
    limit = check.limit * factor
    if check.verdict != PASS:
        for more in range(3):
            edges = {number(edge, decimals + more) for edge in (found.low, found.high) if edge != limit}
            if number(limit, decimals + more) not in edges:
                decimals += more
                break
    return with_interval(found, decimals, unit), f"at least {number(limit, decimals)}{unit}"


def scale(check: Check) -> tuple[float, int, str]:
    """Factor, decimals and unit of a check that is no invariant."""
    if check.kind == STAGE or check.id.startswith("sqnr"):
        return 1, 1, " dB"
    if check.id == "bytes_change":
        return 100, 1, " %"
    return 1, 3 if check.id.startswith(("overlap", "top")) else 4, ""


def subject_of(check: Check) -> str:
    """What a check is of: its slice, variant or stage, all texts, or the model where it is of no texts."""
    return check.slice or ("all texts" if check.n else "the model")


def sentence(check: Check) -> str:
    """As `18.2 dB [17.9, 18.5], at least 20.0 dB (192 texts)`, and what else there is to know."""
    value, limit = figures(check)
    found = f"{value}, {limit}{texts_of(check)}"
    if not check.what:
        return found
    yes_or_no = check.kind == INVARIANT and check.limit == 0  # its number says less than its words
    words = check.what if yes_or_no or math.isnan(check.value) else f"{found}: {check.what}"
    return short(words, 2 * CELL)


def texts_of(check: Check) -> str:
    """How many texts a check rests on, and how many would settle it."""
    if not check.n:
        return ""
    needed = f", {check.n_needed:,} would settle it" if check.n_needed else ""
    return f" ({counted(check.n, 'text', 'texts')}{needed})"


def summary(verdict: Verdict) -> str:
    """As `2 of 25 checks fail, 1 is inconclusive`."""
    count = {outcome: sum(check.verdict == outcome for check in verdict.checks) for outcome in ORDER}
    parts = []
    if count[FAIL]:
        parts.append(f"{count[FAIL]:,} of {counted(len(verdict.checks), 'check fails', 'checks fail')}")
    if count[INCONCLUSIVE]:
        parts.append(counted(count[INCONCLUSIVE], "is inconclusive", "are inconclusive"))
    return ", ".join(parts) or counted(len(verdict.checks), "check passes", "checks pass")


def trouble(measurement: Measurement) -> str:
    """Why there is nothing to compare, or ""."""
    if measurement.crash:
        return f"The candidate crashed: {short(measurement.crash, 2 * CELL)}"
    if measurement.drift is None:
        return "The vectors cannot be compared; the checks say why."
    return ""


# ---- order


def worst_first(checks: Iterable[Check]) -> list[Check]:
    """Failures, then what is inconclusive, then the rest; within each the worst first, and else as they came.

    What holds for every model comes before all else: without it other numbers mean little. Then the worst is
    what lies furthest beyond its limit, counted in half intervals: of two losses the more certain one weighs
    more. Half an interval is at least 1 % of the limit, for metrics without one. NaN is beyond everything.
    """
    return sorted(checks, key=lambda c: (ORDER.index(c.verdict), c.kind != INVARIANT, -beyond(c)))


def beyond(check: Check) -> float:
    """How far a check is beyond its limit, in half intervals; below 0 on the right side of it."""
    distance = check.value - check.limit if check.kind == INVARIANT else check.limit - check.value
    if math.isnan(distance):
        return math.inf
    unit = max((check.high - check.low) / 2, 0.01 * abs(check.limit))
    if unit > 0:
        return distance / unit
    return math.copysign(math.inf, distance) if distance else 0.0


def noisiest_first(slices: Iterable[SliceDrift]) -> list[SliceDrift]:
    """By SQNR; NaN is the noisiest."""
    return sorted(slices, key=lambda s: -math.inf if math.isnan(s.sqnr.value) else s.sqnr.value)


# ---- rows that the summary and the page share


def headlines(measurement: Measurement) -> list[tuple[str, str]]:
    """Name and figures of each number that speaks of all texts, as far as it was measured."""
    size = ("file", megabytes(measurement.subject.file_bytes))
    drift = measurement.drift
    if drift is None:
        return [size]
    scores = drift.score_noise
    rows = [
        ("SQNR", decibels(drift.sqnr)),
        ("overlap at 10", with_interval(drift.overlap_10, 3)),
        (LABELS["top_1"], with_interval(drift.top_1, 3)),
        ("cosine, mean", number(drift.cosine_mean, 4)),
        ("cosine, least", number(drift.cosine_min, 4)),
        (
            f"worst slice: {drift.worst_slice}",
            "" if drift.worst_slice_sqnr is None else f"{number(drift.worst_slice_sqnr, 1)} dB",
        ),
        ("nDCG@10, change", change(drift.ndcg_10_change, drift.ndcg_10)),
        (LABELS["sqnr_p1"], "" if drift.sqnr_p1 is None else f"{number(drift.sqnr_p1, 1)} dB"),
        (LABELS["overlap_10_asymmetric"], with_interval(drift.overlap_10_asymmetric, 3)),
        ("overlap at 100", with_interval(drift.overlap_100, 3)),
        ("Spearman", number(drift.spearman, 4)),
        ("cosine, 1st percentile", number(drift.cosine_p1, 4)),
        ("MRR, change", change(drift.mrr_change, drift.mrr)),
        ("noise common to all texts", f"{number(100 * drift.shift_ratio, 1)} %"),
        ("score noise", "" if scores is None else f"{scores.sigma:.2g}"),
        ("distance of neighbours' scores", "" if scores is None else f"{scores.spacing:.2g}"),
        size,
    ]
    return [(name, text) for name, text in rows if text]


def change(found: Interval | None, before: float | None) -> str:
    """A change beside what the reference has."""
    text = with_interval(found, 4)
    return text if not text or before is None else f"{text}, of {number(before, 3)}"


def why_not(stage: Stage) -> str:
    """Why a stage has no numbers, to be put behind what it is."""
    return "" if stage.from_reference else f": {stage.trouble or 'did not run'}"


def provenance(measurement: Measurement) -> list[tuple[str, list[tuple[str, str]]]]:
    """Title and rows of what was measured, how, where and against what."""
    subject, environment, against = measurement.subject, measurement.environment, measurement.against
    machine = {
        "cpu": environment.cpu_model,
        "class": environment.cpu_class,
        "flags": " ".join(environment.flags),
        "threads": environment.threads,
        "ONEDNN_MAX_CPU_ISA": environment.isa,
        "versions": environment.versions,
    }
    candidate = {
        "model": subject.name,
        "compute type": subject.compute_type,
        "file": subject.file,
        "bytes": subject.file_bytes,
        "file sha256": subject.file_sha256,
        "weights sha256": subject.weights_sha256,
        "measured at": measurement.measured_at,
        "seconds": measurement.seconds,
    }
    reference = {
        "texts": against.n,
        "source": against.source,
        "sha256": against.sha256,
        "texts sha256": against.texts_sha256,
        "versions": against.versions,
        "settings": against.settings,
    }
    return [
        ("Candidate", flat(candidate)),
        ("Settings", flat(subject.settings)),
        ("Provenance", flat(subject.provenance)),
        ("Machine", flat(machine)),
        ("Reference", flat(reference)),
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Rows of nested values, as `versions.torch`; without what is empty."""
    rows = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{name}.")
        elif isinstance(value, tuple | list):
            rows += [(name, ", ".join(map(str, value)))] if value else []
        elif value not in (None, ""):
            rows.append((name, str(value)))
    return rows


# ---- Markdown


def markdown(measurement: Measurement, verdict: Verdict) -> str:
    """A summary for a CI step, in GitHub's Markdown: the verdict, what failed, and the numbers behind it.

    Far below 1 MiB whatever was measured: long tables are cut, and say what is left out.
    """
    subject = measurement.subject
    title = f"Drift of {subject.name}, {subject.compute_type}: {verdict.verdict}"
    parts = [f"## {SYMBOLS[verdict.verdict]} {escaped(title)}"]
    if found := trouble(measurement):
        parts.append(f"**{escaped(found)}**")
    parts.append(f"{summary(verdict)}. {escaped(judged_by(verdict))}")
    open_checks = worst_first(check for check in verdict.checks if check.verdict != PASS)
    parts += section("What failed", md_checks(open_checks))
    parts += section("Notes", md_list(verdict.notes))
    parts += section("All texts", md_headlines(measurement))
    parts += section("Stages", md_ledger(measurement))
    parts += section("Slices, the noisiest first", md_slices(measurement))
    parts.append(md_provenance(measurement))
    return "\n\n".join(parts) + "\n"


def judged_by(verdict: Verdict) -> str:
    """What the floors come from, and what was compared with."""
    parts = [f"Budget: {verdict.budget}."] if verdict.budget else []
    return " ".join(parts + ([f"Baseline: {verdict.baseline}."] if verdict.baseline else []))


def section(title: str, body: str) -> list[str]:
    """A heading and what stands below it; nothing without that."""
    return [f"### {title}", body] if body else []


def md_checks(checks: Sequence[Check]) -> str:
    rows = []
    for check in checks[:ROWS]:
        value, limit = figures(check)
        settle = "" if check.n_needed is None else f"{check.n_needed:,}"
        name = code(check.id) + (f" {escaped(check.what)}" if check.what else "")
        n = f"{check.n:,}" if check.n else ""
        symbol = f"{SYMBOLS[check.verdict]} {check.verdict}"
        rows.append((symbol, name, escaped(subject_of(check)), value, limit, n, settle))
    header = ("", "check", "of", "measured", "limit", "texts", "texts that would settle it")
    return md_table(header, rows, len(checks))


def md_headlines(measurement: Measurement) -> str:
    rows = [(escaped(name), text) for name, text in headlines(measurement)]
    texts = ("texts", f"{measurement.against.n:,}")
    return md_table(("", ""), [texts, *rows], len(rows) + 1)


def md_ledger(measurement: Measurement) -> str:
    rows = []
    for stage in measurement.ledger:
        step = decibels(stage.from_previous)
        rows.append(
            (
                escaped(stage.name),
                decibels(stage.from_reference),
                f"{step} ({escaped(stage.previous)})" if step else "",
                "" if stage.cosine_mean is None else number(stage.cosine_mean, 4),
                escaped(stage.what + why_not(stage)),
            )
        )
    header = ("stage", "against the reference", "against the stage before", "cosine", "what it is")
    return md_table(header, rows[:ROWS], len(rows))


def md_slices(measurement: Measurement) -> str:
    slices = measurement.drift.slices if measurement.drift else ()
    rows = [
        (
            escaped(part.name),
            f"{part.n:,}" + ("" if part.judged else ", not judged"),
            decibels(part.sqnr),
            with_interval(part.overlap_10, 3),
        )
        for part in noisiest_first((*slices, *measurement.variants))[:ROWS]
    ]
    return md_table(
        ("slice", "texts", "SQNR", "overlap at 10"), rows, len(slices) + len(measurement.variants)
    )


def md_provenance(measurement: Measurement) -> str:
    rows = [
        (f"{title}: {escaped(name)}", escaped(text))
        for title, part in provenance(measurement)
        for name, text in part
    ]
    table = md_table(("", ""), rows[: 2 * ROWS], len(rows))
    return f"<details><summary>Settings, environment, versions</summary>\n\n{table}\n\n</details>"


def md_list(lines: Sequence[str]) -> str:
    found = [f"- {escaped(line)}" for line in lines[:ROWS]]
    return "\n".join(found + left_out(len(lines) - len(found)))


def md_table(header: Sequence[str], rows: Sequence[Sequence[str]], total: int) -> str:
    """Rows of cells that are Markdown already; `total` is how many there were. "" for none."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *left_out(total - len(rows))])


def left_out(count: int) -> list[str]:
    """A line that says how much is not shown."""
    return [f"… and {count:,} more, in drift.json and in the page of `--html`."] if count > 0 else []


def escaped(text: str) -> str:
    """Text as Markdown that shows it as it is, in one cell of a table."""
    line = short(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]~|$#])", r"\\\1", line)


def code(word: str) -> str:
    """A word as Markdown's code; what is no word, as it is."""
    return f"`{word}`" if re.fullmatch(r"[\w.-]+", word) else escaped(word)


# ---- JUnit


def junit(measurement: Measurement, verdict: Verdict) -> str:
    """JUnit XML with one case per check; a failed one is a failure, an inconclusive one is skipped.

    The attributes are those that pytest writes, without the host's name.
    """
    count = {outcome: sum(check.verdict == outcome for check in verdict.checks) for outcome in ORDER}
    subject = measurement.subject
    root = ET.Element("testsuites", {"name": "edge-embed gate"})
    suite = ET.SubElement(
        root,
        "testsuite",
        {
            "name": clean(f"{subject.name} {subject.compute_type}"),
            "errors": "0",
            "failures": str(count[FAIL]),
            "skipped": str(count[INCONCLUSIVE]),
            "tests": str(len(verdict.checks)),
            "time": f"{measurement.seconds:.3f}",
            "timestamp": clean(measurement.measured_at).replace("Z", ":00+00:00"),  # with seconds
        },
    )
    for check in verdict.checks:
        name = f"{check.id} [{check.slice}]" if check.slice else check.id
        names = {"classname": f"edge_embed.drift.{check.kind}", "name": name, "time": "0.000"}
        case = ET.SubElement(suite, "testcase", {key: clean(text) for key, text in names.items()})
        if check.verdict != PASS:
            kind = "failure" if check.verdict == FAIL else "skipped"
            message = sentence(check)
            ET.SubElement(case, kind, {"message": message}).text = message
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


# ---- workflow commands


def annotations(verdict: Verdict, file: str) -> list[str]:
    """GitHub's workflow commands, one a line: errors for what failed, warnings for what is inconclusive.

    file  which they are shown at
    At most ten, the worst first (`worst_first`); of more, nine and a line that counts the others.
    """
    found = worst_first(check for check in verdict.checks if check.verdict != PASS)
    shown = found if len(found) <= ANNOTATIONS else found[: ANNOTATIONS - 1]
    lines = [
        command(check.verdict, file, f"{check.id}, {subject_of(check)}", sentence(check)) for check in shown
    ]
    if rest := found[len(shown) :]:
        failed = sum(check.verdict == FAIL for check in rest)
        message = (
            f"{failed:,} more fail and {len(rest) - failed:,} more are inconclusive; the report has them"
        )
        lines.append(command(rest[0].verdict, file, f"{len(rest):,} more checks", message))
    return lines


def command(outcome: str, file: str, title: str, message: str) -> str:
    """One workflow command, escaped as actions/toolkit does."""
    level = "error" if outcome == FAIL else "warning"
    name = f"Drift: {short(title, CELL)}"
    return f"::{level} file={as_property(file)},title={as_property(name)}::{as_data(message)}"


def as_data(text: str) -> str:
    """Text after `::`; % first, as it begins the others."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def as_property(text: str) -> str:
    """Text of file= or title=."""
    return as_data(text).replace(":", "%3A").replace(",", "%2C")
