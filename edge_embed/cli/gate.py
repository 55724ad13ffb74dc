"""edge-embed gate: judge a measurement by a budget and a baseline. Runs no model."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_embed.cli.common import check_target
from edge_embed.errors import InputError

if TYPE_CHECKING:
    from edge_embed.drift.gate import Check, Verdict
    from edge_embed.drift.measurement import Measurement

HELP = "judge a drift.json by a budget and a baseline: exits 3 where it fails"

GATE_FAILED = 3  # not 1, so that CI tells a model that drifted from a program that crashed
UNSETTLED = 5  # inconclusive, under --strict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("drift", type=Path, help="*.json of edge-embed drift measure")
    add_budget_argument(parser)
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="*.json of edge-embed approve: also compare with the candidate that was approved there",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit 5 where too few texts were measured to settle a check"
    )
    group = parser.add_argument_group("reports")
    group.add_argument("--markdown", type=Path, metavar="FILE", help="for the summary of a CI step")
    group.add_argument(
        "--html", type=Path, metavar="FILE", help="one page with charts, which needs no other file"
    )
    group.add_argument("--junit", type=Path, metavar="FILE", help="XML with one case per check")
    group.add_argument(
        "--annotations",
        action="store_true",
        help="print workflow commands for GitHub, at most ten and the worst first",
    )


def add_budget_argument(parser: argparse.ArgumentParser) -> None:
    """--budget, as `approve` has it too."""
    parser.add_argument(
        "--budget",
        type=Path,
        metavar="FILE",
        help="*.toml of floors for each compute type (default: those of the model in models/, "
        "else built-in ones)",
    )


def run(args: argparse.Namespace) -> int:
    """Judge, write the reports, and print the verdict; reports are there whatever it is."""
    from edge_embed.drift import baseline, gate, measurement, report
    from edge_embed.profile import FAIL

    targets = [path for path in (args.markdown, args.html, args.junit) if path is not None]
    check_targets(targets, [args.drift, args.budget, args.baseline])
    found = measurement.read(args.drift)
    floors, told = gate.floors_for(found, args.budget)
    approved = baseline.find(baseline.read(args.baseline), found) if args.baseline is not None else None
    verdict = gate.verdict(found, floors, budget=told, baseline=approved)
    write_reports(args, found, verdict)
    for line in in_words(found, verdict):
        print(line)
    unsettled = verdict.verdict == gate.INCONCLUSIVE
    if unsettled and not args.strict:
        print("  inconclusive checks do not fail without --strict")
    if args.annotations:
        for line in report.annotations(verdict, str(args.budget or args.drift)):
            print(line)
    if args.json:
        print(json.dumps(measurement.to_dict(verdict), ensure_ascii=False, allow_nan=False))
    if verdict.verdict == FAIL:
        return GATE_FAILED
    return UNSETTLED if unsettled and args.strict else 0


def check_targets(targets: Sequence[Path], inputs: Iterable[Path | None]) -> None:
    """Refuse reports that cannot be written, or that would replace an input or one another."""
    for target in targets:
        for source in inputs:
            check_target(target, "" if source is None else str(source))
    if len({target.absolute() for target in targets}) < len(targets):
        raise InputError(f"two reports would be one file: {', '.join(map(str, targets))}; name each apart")


def write_reports(args: argparse.Namespace, found: "Measurement", verdict: "Verdict") -> None:
    """Those that are asked for."""
    from edge_embed import atomic
    from edge_embed.drift import html, report

    for target, made in (
        (args.markdown, report.markdown),
        (args.html, html.page),
        (args.junit, report.junit),
    ):
        if target is not None:
            atomic.write_text(target, made(found, verdict))


def in_words(found: "Measurement", verdict: "Verdict") -> list[str]:
    """The verdict for people: what does not pass, the worst first, what else is to be known, and by what."""
    from edge_embed.drift import report
    from edge_embed.profile import PASS

    subject = found.subject
    unsound = report.worst_first(check for check in verdict.checks if check.verdict != PASS)
    summary = report.summary(verdict)
    return [
        f"{verdict.verdict}: {subject.name}  {subject.compute_type}  {subject.file}  {summary}",
        *(check_line(check) for check in unsound),
        *(f"  note      {note}" for note in verdict.notes),
        f"  budget    {verdict.budget}",
        *([f"  baseline  {verdict.baseline}"] if verdict.baseline else []),
    ]


def check_line(check: "Check") -> str:
    """One check: what was measured with its interval, its limit, the texts and those that would settle it."""
    from edge_embed.drift import report

    return f"  {check.verdict:<12}  {check.id}, {report.subject_of(check)}: {report.sentence(check)}"
