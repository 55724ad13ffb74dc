"""A measurement and a verdict -> one HTML page that needs nothing else: no network, no script, no other file.

Charts are rows of HTML, each with a small SVG whose places are percentages, so that they fit any width. Words
and the order of checks come from report.py. Knows no formula and judges nothing. What comes from data goes
through `text` on its way into the page.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from edge_embed.drift import report
from edge_embed.drift.gate import STAGE, Check, Verdict
from edge_embed.drift.measurement import Located, Measurement, Neighbour, Source, Stage, Worst
from edge_embed.drift.metrics import SliceDrift
from edge_embed.profile import PASS

TILES = 8  # of report.headlines, which begins with what matters most
BINS = 40  # of the histogram
CHECKS = 20  # that do not pass and are not folded away
FEW = 12  # so many that pass are not, either
SHOWN = 60  # rows of a chart or a table that are not folded away
OPERATORS = 20
TALL = 140  # pixels of the histogram

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f4f6f8; --line: #d5dae0; --ink: #1b2026; --muted: #56606b;
  --accent: #1f5f99; --bar: #5b93c4; --pass: #1d6b3a; --fail: #b0241c; --unsure: #855500;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --panel: #1d232a; --line: #38414b; --ink: #e7eaee; --muted: #a4aeb9;
    --accent: #74b4f0; --bar: #3f7fb8; --pass: #74cf92; --fail: #ff8f85; --unsure: #e6b557;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: 1.2rem; }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem; }
h4 { margin: 0; font-size: .85rem; font-weight: 600; color: var(--muted); }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--accent); }
code, .id { font: .88em ui-monospace, monospace; }
.muted, .id, .explained { color: var(--muted); }
.explained { margin-bottom: 1rem; }
.pass { color: var(--pass); } .fail { color: var(--fail); } .inconclusive { color: var(--unsure); }
.verdict { margin: 1rem 0; padding: .75rem 1rem; background: var(--panel); border-left: 5px solid; }
.verdict strong { font-size: 1.25rem; }
.verdict p { margin: .25rem 0 0; color: var(--ink); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1.25rem 0; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem; margin: 1rem 0;
}
.tiles div { padding: .6rem .85rem; background: var(--panel); border-radius: 4px; }
.tiles dt { color: var(--muted); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.3rem; line-height: 1.3; }
.tiles small { display: block; color: var(--muted); font-size: .85rem; }
table { width: 100%; border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; }
th, td { vertical-align: top; }
thead th { color: var(--muted); font-size: .85rem; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 400; color: var(--muted); width: 18rem; }
td .id { display: block; }
td.tight { white-space: nowrap; }
ul.chart { list-style: none; margin: 1rem 0; padding: 0; }
ul.chart li {
  display: grid; grid-template-columns: 14rem 1fr 17rem; column-gap: 1rem; align-items: center;
  padding: .1rem 0;
}
ul.chart small { display: block; color: var(--muted); font-size: .85rem; line-height: 1.35; }
ul.wordy li { padding: .4rem 0; border-bottom: 1px solid var(--line); }
ul.chart .unjudged { color: var(--muted); }
svg { display: block; width: 100%; overflow: visible; }
svg text { fill: var(--muted); font-size: 12px; }
.bar { fill: var(--bar); } .dot { fill: var(--accent); }
.step { fill: none; stroke: var(--accent); stroke-width: 1.5; }
.whisker { stroke: var(--ink); stroke-width: 1.5; } .mark { stroke: var(--accent); stroke-width: 2; }
.grid { stroke: var(--line); } .floor { stroke: var(--fail); stroke-width: 1.5; stroke-dasharray: 4 3; }
.off .dot { fill: var(--paper); stroke: var(--muted); stroke-width: 1.5; }
.off .mark { stroke: var(--muted); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; color: var(--muted); font-size: .85rem; }
.legend svg { display: inline-block; width: 28px; vertical-align: middle; margin-right: .4rem; }
figure { margin: 1rem 0; }
article { margin: 1rem 0; padding: .85rem 1rem; background: var(--panel); border-radius: 4px; }
article h3 { margin: 0; }
.excerpt { margin: .35rem 0 .75rem; font-size: 1.05rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
.pair ol { margin: .25rem 0 0; padding-left: 1.5rem; }
.pair li { padding: .15rem 0; }
.change { padding: 0 .35rem; border: 1px solid; border-radius: 3px; font-size: .8rem; white-space: nowrap; }
.lost { color: var(--fail); } .new { color: var(--accent); }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 60rem) {
  ul.chart li { grid-template-columns: 1fr auto; }
  ul.chart svg { grid-row: 2; grid-column: 1 / -1; }
  ul.wordy li { grid-template-columns: 1fr; }
  ul.wordy svg { grid-row: auto; }
  table.cards, .cards tbody, .cards tr, .cards td { display: block; }
  .cards thead { display: none; }
  .cards tr { padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .cards td { padding: .05rem 0; border: 0; }
  .cards td[data-of]::before { content: attr(data-of) ": "; color: var(--muted); }
}
@media (max-width: 40rem) {
  main { padding: 1rem .85rem 3rem; }
  .pair { grid-template-columns: 1fr; gap: .75rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  tbody th { width: 40%; }
}
@media print {
  body { font-size: 11px; }
  nav { display: none; }
  article, tr, ul.chart li { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""

# Says to browsers what the page promises: nothing is fetched, nothing runs.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(measurement: Measurement, verdict: Verdict) -> str:
    """The whole page. A candidate that crashed gives one too, which says so first."""
    sections = [
        ("checks", "Checks", checks_section(verdict)),
        ("ledger", "Stages", ledger_section(measurement.ledger, verdict)),
        ("slices", "Slices", slices_section(measurement, verdict)),
        ("cosines", "Cosines", cosines_section(measurement)),
        ("located", "Where noise comes from", located_section(measurement)),
        ("texts", "Worst texts", texts_section(measurement.worst)),
        ("facts", "Settings, environment, versions", facts_section(measurement)),
    ]
    present = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{title}</a>\n' for name, title, _ in present)
    bodies = "".join(
        f'<section id="{name}">\n<h2>{title}</h2>\n{body}</section>\n' for name, title, body in present
    )
    subject = measurement.subject
    title = text(f"Drift of {subject.name}, {subject.compute_type}: {verdict.verdict}")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{head(measurement, verdict)}
<nav>
{links}</nav>
{bodies}</main>
</body>
</html>
"""


def text(value: object) -> str:
    """Data as it may stand in the page, also between quotes."""
    return escape(report.clean(str(value)))


def breakable(name: str) -> str:
    """A long name that may go on in the next line after a dot or a low line."""
    return re.sub("([._])", r"\1<wbr>", text(name))


# ---- what stands above


def head(measurement: Measurement, verdict: Verdict) -> str:
    """Model, verdict, the numbers of all texts."""
    subject, outcome = measurement.subject, verdict.verdict
    against = report.counted(measurement.against.n, "text", "texts")
    found = report.trouble(measurement)
    notes = "".join(f'<li dir="auto">{text(note)}</li>' for note in verdict.notes)
    return f"""<header>
<h1>{text(subject.name)} <span class="muted">{text(subject.compute_type)}</span></h1>
<p class="muted">Drift from PyTorch over {against}, measured at {text(measurement.measured_at)}
on {text(measurement.environment.cpu_model)}</p>
<div class="verdict {outcome}">
<strong>{report.SYMBOLS[outcome]} {outcome.capitalize()}</strong>
{f"<p><b>{text(found)}</b></p>" if found else ""}
<p>{report.summary(verdict)}. {text(report.judged_by(verdict))}</p>
</div>
{tiles(report.headlines(measurement))}
{f"<h3>Notes</h3><ul>{notes}</ul>" if notes else ""}
</header>"""


def tiles(rows: Sequence[tuple[str, str]]) -> str:
    """The first numbers large, the others in a table that can be opened."""
    large = []
    for name, figures in rows[:TILES]:
        value, bracket, rest = figures.partition(" [")
        below = f"<small>95 %: {text(bracket.strip() + rest)}</small>" if bracket else ""
        large.append(f"<div><dt>{text(name)}</dt><dd>{text(value)}{below}</dd></div>")
    more = pairs(rows[TILES:])
    return f'<dl class="tiles">\n{"".join(large)}\n</dl>\n' + (opened("More numbers", more) if more else "")


# ---- checks


def checks_section(verdict: Verdict) -> str:
    """What failed or is inconclusive, the worst first; then what passed. Long tables are folded."""
    unsettled = report.worst_first(check for check in verdict.checks if check.verdict != PASS)
    passed = [check for check in verdict.checks if check.verdict == PASS]
    first, rest = unsettled[:CHECKS], unsettled[CHECKS:]
    parts = [checks_table(first) if first else "<p>Nothing failed and nothing is inconclusive.</p>\n"]
    if rest:
        parts.append(opened(f"{len(rest):,} more that fail or are inconclusive", checks_table(rest)))
    if passed:
        count = report.counted(len(passed), "check passes", "checks pass")
        parts.append(opened(count, checks_table(passed), at_once=len(passed) <= FEW))
    return "".join(parts)


def checks_table(checks: Sequence[Check]) -> str:
    """The last column only where it says something."""
    names = ("", "check", "of", "measured", "limit", "texts", "would settle it")
    shown = names if any(check.n_needed for check in checks) else names[:-1]
    header = "".join(f"<th>{name}</th>" for name in shown)
    rows = []
    for check in checks:
        value, limit = report.figures(check)
        bodies = (
            outcome(check),
            check_name(check),
            f"<bdi>{text(report.subject_of(check))}</bdi>",
            value,
            limit,
            f"{check.n:,}" if check.n else "",
            f"{check.n_needed:,} texts" if check.n_needed else "",
        )
        cells = "".join(cell(name, body) for name, body in zip(shown, bodies, strict=False))
        rows.append(f"<tr>{cells}</tr>\n")
    return f"""<table class="cards">
<thead><tr>{header}</tr></thead>
<tbody>
{"".join(rows)}</tbody>
</table>
"""


def cell(name: str, body: str) -> str:
    """One cell; where the window is narrow, the name of its column stands before it."""
    kind = classed("" if name in ("check", "of") else "tight")
    named = f' data-of="{name}"' if body and name not in ("", "check") else ""
    return f"<td{kind}{named}>{body}</td>"


def classed(kind: str) -> str:
    """A class, or nothing."""
    return f' class="{kind}"' if kind else ""


def lead(words: str) -> str:
    """What a section shows, above it."""
    return f'<p class="explained">{words}</p>\n'


def outcome(check: Check) -> str:
    """A verdict by symbol, word and colour."""
    return f'<span class="{check.verdict}">{report.SYMBOLS[check.verdict]} {check.verdict}</span>'


def check_name(check: Check) -> str:
    """What a check is called, its id, and what is to know."""
    label = report.LABELS.get(check.id, "")
    what = f'<span class="muted" dir="auto">{text(check.what)}</span>' if check.what else ""
    return f'{text(label)} <span class="id">{text(check.id)}</span>{what}'


# ---- stages


def ledger_section(stages: Sequence[Stage], verdict: Verdict) -> str:
    """A waterfall of noise: each stage against the reference, and what it adds to the stage before."""
    if not stages:
        return ""
    floor = next((c.limit for c in verdict.checks if c.id == "sqnr" and c.slice is None), None)
    totals = {s.name: power(s.from_reference.value) for s in stages if s.from_reference}
    judged = {c.slice: c for c in verdict.checks if c.kind == STAGE}
    ends = [power(s.from_reference.low) for s in stages if s.from_reference]
    ends += [totals.get(s.previous, 0) + power(s.from_previous.value) for s in stages if s.from_previous]
    axis = Axis(0, 1.05 * max([*ends, 0 if floor is None else power(floor)], default=0))
    rows = "\n".join(
        stage_row(stage, axis, totals.get(stage.previous, 0), floor, judged.get(stage.name))
        for stage in stages
    )
    words = """How much noise each way of running the model has, as a share of the distances between texts:
1&nbsp;% is 20&nbsp;dB. What a stage adds is drawn from where the stage before it ends."""
    line = f"the floor of all texts, {report.number(floor, 1)} dB" if floor is not None else ""
    return f"""{lead(words)}<div class="legend">
{swatch('<rect class="bar" y="3" width="100%" height="8"/>', "noise against the reference")}
{swatch('<rect class="step" y="4" width="100%" height="6"/>', "noise against the stage before")}
{swatch(horizontal_whisker("0%", "100%", 7), "95 % interval")}
{swatch('<line class="floor" y1="7" y2="7" x2="100%"/>', line) if line else ""}
</div>
<ul class="chart wordy">
{axis_row(axis, lambda share: f"{100 * share:g} %")}
{rows}
</ul>
"""


def stage_row(stage: Stage, axis: "Axis", before: float, floor: float | None, check: Check | None) -> str:
    """A bar from zero for all its noise, and one from where the stage before ends for what it adds."""
    name = f"{text(stage.name)}{flag(check)}<small>{text(stage.what)}</small>"
    if stage.from_reference is None:
        return chart_row(name, f"<span>{text(stage.trouble or 'did not run')}</span>", "no number")
    total = stage.from_reference
    marks = [
        *axis.lines(44),
        bar(axis, 0, power(total.value), 6, 16),
        horizontal_whisker(axis.at(power(total.high)), axis.at(power(total.low)), 14),
    ]
    figures = report.decibels(total)
    if stage.from_previous is not None:
        added = power(stage.from_previous.value)
        marks.append(bar(axis, before, before + added, 28, 9, "step"))
        figures += f"<small>{report.decibels(stage.from_previous)} from {text(stage.previous)}</small>"
    if floor is not None:
        marks.append(vertical(axis.at(power(floor)), 44, "floor"))
    return chart_row(name, drawing(44, marks), figures)


def power(decibels: float) -> float:
    """Noise as a share of the spread."""
    return 0.0 if math.isnan(decibels) else 10 ** (-decibels / 10)


# ---- slices


def slices_section(measurement: Measurement, verdict: Verdict) -> str:
    """SQNR of each slice and variant with its interval, the noisiest first."""
    if measurement.drift is None:
        return ""
    checks = {c.slice: c for c in verdict.checks if c.id == "sqnr_slice"}
    words = """SQNR in dB with its 95 % interval, the noisiest first; more is better. The broken line is the
floor. Hollow: reported, not judged. Overlap is the share of each text's ten nearest that stay."""
    parts = [lead(words)]
    for title, slices in (("", measurement.drift.slices), ("Cut and coded vectors", measurement.variants)):
        if slices:
            parts.append(f"<h3>{title}</h3>\n" if title else "")
            parts.append(slices_chart(report.noisiest_first(slices), checks))
    return "".join(parts)


def slices_chart(slices: Sequence[SliceDrift], checks: Mapping[str | None, Check]) -> str:
    limits = [checks[part.name].limit for part in slices if part.name in checks]
    edges = [edge for part in slices for edge in (part.sqnr.low, part.sqnr.high)] + limits
    finite = [edge for edge in edges if math.isfinite(edge)] or [0.0]
    axis = Axis(math.floor(min(finite)) - 1, math.ceil(max(finite)) + 1)
    rows = [slice_row(part, axis, checks.get(part.name)) for part in slices]
    first = f'<ul class="chart">\n{axis_row(axis, lambda value: f"{value:g} dB")}\n'
    return folded(first, rows, "</ul>\n", "slices")


def slice_row(part: SliceDrift, axis: "Axis", check: Check | None) -> str:
    kind = classed("" if part.judged else "unjudged")
    texts = report.counted(part.n, "text", "texts") + ("" if part.judged else ", not judged")
    name = f"<bdi{kind}>{text(part.name)}</bdi>{flag(check)} <small>{texts}</small>"
    figures = f"<span{kind}>{report.decibels(part.sqnr)}</span>"
    figures += f"<small>overlap {report.with_interval(part.overlap_10, 3)}</small>"
    if math.isnan(part.sqnr.value):
        return chart_row(name, drawing(24, axis.lines(24)), figures)
    marks = [*axis.lines(24)]
    if check is not None:
        marks.append(vertical(axis.at(check.limit), 24, "floor"))
    dot = f'<circle class="dot" cx="{axis.at(part.sqnr.value)}" cy="12" r="4.5"/>'
    whisker = horizontal_whisker(axis.at(part.sqnr.low), axis.at(part.sqnr.high), 12, "mark")
    marks.append(f"<g{classed('' if part.judged else 'off')}>{whisker}{dot}</g>")
    return chart_row(name, drawing(24, marks), figures)


# ---- cosines


def cosines_section(measurement: Measurement) -> str:
    """A histogram of each text's cosine with its reference."""
    if measurement.per_text is None or measurement.drift is None:
        return ""
    known = np.asarray(measurement.per_text.cosine, np.float64)
    known = known[np.isfinite(known)]
    drift = measurement.drift
    if not len(known):
        return ""
    # Cosines of one value, and what rounding makes of 1, still need a width.
    high = float(known.max())
    low = min(float(known.min()), high - 1e-7)
    counts, edges = np.histogram(known, BINS, (low, high))
    axis = Axis(low, high)
    digits = max(3, 2 - math.floor(math.log10(high - low)))
    bars = "".join(
        f'<rect class="bar" x="{axis.at(left)}" width="{100 / BINS - 0.2:.2f}%" y="{TALL - tall:.1f}"'
        f' height="{tall:.1f}"><title>{left:.{digits}f} to {right:.{digits}f}: '
        f"{report.counted(int(count), 'text', 'texts')}</title></rect>\n"
        for left, right, count, tall in zip(
            edges[:-1], edges[1:], counts, counts / counts.max() * TALL, strict=True
        )
        if count
    )
    places = (("0%", "start", edges[0]), ("50%", "middle", edges[BINS // 2]), ("100%", "end", edges[-1]))
    labels = "".join(
        f'<text x="{x}" y="{TALL + 18}" text-anchor="{anchor}">{value:.{digits}f}</text>'
        for x, anchor, value in places
    )
    says = f"mean {drift.cosine_mean:.{digits}f}, first percentile {drift.cosine_p1:.{digits}f}"
    highest = report.counted(int(counts.max()), "text", "texts")
    words = f"""Cosine of each text's vector with that of PyTorch: {says},
least {drift.cosine_min:.{digits}f}. The highest bar is {highest}."""
    return f"""{lead(words)}<figure>
<svg role="img" aria-label="Histogram of cosines: {says}" height="{TALL + 24}">
<line class="grid" y1="{TALL}" y2="{TALL}" x2="100%"/>
{bars}{labels}
</svg></figure>
"""


# ---- where noise comes from


def located_section(measurement: Measurement) -> str:
    """Noise of each layer, and the worst operators; or how to find out."""
    located = measurement.located
    if measurement.drift is None:
        return ""
    if located is None:
        return lead(
            "Not looked for: <code>edge-embed drift measure --locate</code> finds what adds most noise."
        )
    total = report.number(to_decibels(located.total), 1)
    words = f"""Noise of each part when it alone is quantized, as a share of that of all parts together
({total} dB), over {report.counted(located.n, "text", "texts")}. Shares need not add up to 100 %."""
    return f"""{lead(words)}<h3>Layers</h3>
{sources_chart(located.layers, located)}
<h3>Operators, the worst first</h3>
{sources_chart(located.operators[:OPERATORS], located)}
{"".join(f"<p>{line}</p>" for line in report.left_out(len(located.operators) - OPERATORS))}
"""


def sources_chart(sources: Sequence[Source], located: Located) -> str:
    every = (*located.layers, *located.operators)
    axis = Axis(0, 1.02 * max((s.share for s in every if math.isfinite(s.share)), default=0))
    rows = []
    for source in sources:
        kind = "" if source.kind == "layer" else f"<small>{text(source.kind)}, {layer_of(source)}</small>"
        name = breakable(source.name)
        share = 0.0 if math.isnan(source.share) else source.share
        figures = f"{report.number(100 * source.share, 1)} %"
        figures += f"<small>{report.number(to_decibels(source.noise), 1)} dB by itself</small>"
        marks = [*axis.lines(24), bar(axis, 0, share, 6, 12)]
        rows.append(chart_row(f"{name}{kind}", drawing(24, marks), figures))
    first = f'<ul class="chart">\n{axis_row(axis, lambda share: f"{100 * share:g} %")}\n'
    return folded(first, rows, "</ul>\n", "parts") if rows else "<p>None.</p>\n"


def layer_of(source: Source) -> str:
    """Where in the model a part stands."""
    return "before the layers" if source.layer is None else f"layer {source.layer}"


def to_decibels(noise: float) -> float:
    """SQNR of a noise power; NaN of none, which has no SQNR."""
    return -10 * math.log10(noise) if noise > 0 else math.nan


# ---- texts


def texts_section(worst: Sequence[Worst]) -> str:
    """The noisiest texts with their nearest on both sides."""
    if not worst:
        return ""
    words = "Whose vectors moved most, each with what is nearest to it for PyTorch and for the candidate."
    return lead(words) + "".join(article(one) for one in worst)


def article(worst: Worst) -> str:
    reference = {neighbour.id for neighbour in worst.reference}
    candidate = {neighbour.id for neighbour in worst.candidate}
    said = f'<p class="excerpt" dir="auto">{text(worst.excerpt)}</p>\n' if worst.excerpt else ""
    slices = "".join(f" · <bdi>{text(name)}</bdi>" for name in worst.slices)
    return f"""<article>
<h3><bdi class="id">{text(worst.id)}</bdi></h3>
<div class="muted">{report.number(worst.sqnr, 1)} dB · cosine {report.number(worst.cosine, 4)}{slices}</div>
{said}<div class="pair">
<div><h4>Nearest in the reference</h4>
{neighbours(worst.reference, candidate, '<span class="change lost">− lost</span> ')}</div>
<div><h4>Nearest in the candidate</h4>
{neighbours(worst.candidate, reference, '<span class="change new">+ new</span> ')}</div>
</div>
</article>
"""


def neighbours(listed: Iterable[Neighbour], other: set[str], mark: str) -> str:
    """Nearest texts in order; `mark` stands at those that the other side has not."""
    items = "".join(
        f"<li>{'' if one.id in other else mark}{report.number(one.cosine, 4)} "
        f'<bdi class="id">{text(one.id)}</bdi>'
        + (f'<div dir="auto">{text(one.excerpt)}</div>' if one.excerpt else "")
        + "</li>\n"
        for one in listed
    )
    return f"<ol>\n{items}</ol>"


# ---- facts


def facts_section(measurement: Measurement) -> str:
    """Settings, machine, versions, provenance."""
    return "".join(
        f"<h3>{title}</h3>\n{pairs(rows)}" for title, rows in report.provenance(measurement) if rows
    )


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and what they stand for; "" for none."""
    if not rows:
        return ""
    body = "\n".join(
        f"<tr><th>{breakable(name)}</th><td><bdi>{text(value)}</bdi></td></tr>" for name, value in rows
    )
    return f"<table><tbody>\n{body}\n</tbody></table>\n"


# ---- what charts are made of


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from left to right."""

    low: float
    high: float

    def at(self, value: float) -> str:
        """Where a value stands, in percent of the width; at the edge if it is outside."""
        width = self.high - self.low
        share = (value - self.low) / width if width > 0 else 0.0
        return f"{100 * min(max(share, 0), 1):.2f}%"

    def anchor(self, value: float) -> str:
        """On which side of a place its label stands, so that it stays inside."""
        share = (value - self.low) / (self.high - self.low)
        return "start" if share < 0.04 else "end" if share > 0.96 else "middle"

    def ticks(self) -> list[float]:
        """At most seven round values."""
        width = self.high - self.low
        if not width > 0:
            return []
        unit = 10 ** math.floor(math.log10(width / 5))
        step = next(unit * factor for factor in (1, 2, 5, 10) if width / (unit * factor) <= 6)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [place * step for place in range(first, last + 1)]

    def lines(self, height: int) -> list[str]:
        """A thin line at each tick."""
        return [vertical(self.at(tick), height, "grid") for tick in self.ticks()]


def axis_row(axis: Axis, label: Callable[[float], str]) -> str:
    """A row with the values of the ticks."""
    labels = [
        f'<text x="{axis.at(tick)}" y="14" text-anchor="{axis.anchor(tick)}">{label(round(tick, 15))}</text>'
        for tick in axis.ticks()
    ]
    return f'<li aria-hidden="true"><span></span>{drawing(18, labels)}<span></span></li>'


def chart_row(name: str, drawn: str, figures: str) -> str:
    """One row of a chart; its parts are HTML already."""
    return f"<li><div>{name}</div>{drawn}<div>{figures}</div></li>"


def drawing(height: int, marks: Sequence[str]) -> str:
    """A picture of what stands beside it in figures, so that readers of screens may pass over it."""
    return f'<svg aria-hidden="true" height="{height}">{"".join(marks)}</svg>'


def bar(axis: Axis, start: float, end: float, y: int, height: int, kind: str = "bar") -> str:
    left, right = (float(axis.at(value).rstrip("%")) for value in (start, end))
    # What is too little to be seen is still there.
    return (
        f'<rect class="{kind}" x="{left}%" y="{y}" width="{max(right - left, 0.15):.2f}%" height="{height}"/>'
    )


def vertical(x: str, height: int, kind: str) -> str:
    return f'<line class="{kind}" x1="{x}" x2="{x}" y2="{height}"/>'


def horizontal_whisker(left: str, right: str, y: int, kind: str = "whisker") -> str:
    """An interval with its ends."""
    ends = "".join(
        f'<line class="{kind}" x1="{x}" x2="{x}" y1="{y - 4}" y2="{y + 4}"/>' for x in (left, right)
    )
    return f'<line class="{kind}" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>{ends}'


def swatch(marks: str, label: str) -> str:
    """One entry of a legend."""
    return f'<span><svg aria-hidden="true" height="14">{marks}</svg>{label}</span>'


def flag(check: Check | None) -> str:
    """The verdict beside a name, where it is not a pass."""
    return "" if check is None or check.verdict == PASS else f" {outcome(check)}"


def folded(first: str, rows: Sequence[str], last: str, what: str) -> str:
    """Rows of which the first are seen, and the others can be opened."""
    seen = first + "\n".join(rows[:SHOWN]) + "\n" + last
    if len(rows) <= SHOWN:
        return seen
    rest = first + "\n".join(rows[SHOWN:]) + "\n" + last
    return seen + opened(f"{len(rows) - SHOWN:,} more {what}", rest)


def opened(summary: str, body: str, *, at_once: bool = False) -> str:
    """What is seen after a click, or at once."""
    return f"<details{' open' if at_once else ''}><summary>{summary}</summary>\n{body}</details>\n"
