"""edge-embed approve: make a measured candidate the baseline of those to come. Runs no model."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge_embed.cli.common import SURROGATE
from edge_embed.cli.gate import GATE_FAILED, add_budget_argument, check_line, check_targets
from edge_embed.errors import InputError

if TYPE_CHECKING:
    from edge_embed.drift.baseline import Baseline
    from edge_embed.drift.measurement import Against, Environment, Measurement
    from edge_embed.drift.metrics import Interval

HELP = "make a measured candidate the baseline that later ones are compared with"

MOVED = 5  # slices that are shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("drift", type=Path, help="*.json of edge-embed drift measure")
    parser.add_argument(
        "--baseline",
        type=Path,
        required=True,
        metavar="FILE",
        help="*.json, made where there is none; the baselines of other models in it are kept",
    )
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why this is the new measure")
    parser.add_argument("--by", default="", metavar="NAME", help="who says so")
    add_budget_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Show what would change; then write it, unless the candidate fails by itself.

    That it is worse than the baseline is no reason to refuse: to accept that is what approving is for.
    """
    from edge_embed.drift import baseline, gate, measurement, report
    from edge_embed.profile import FAIL

    reason, by = one_line("--reason", args.reason), one_line("--by", args.by)
    if not reason:
        raise InputError("--reason is empty; say why this candidate is the new baseline")
    check_targets([args.baseline], [args.drift, args.budget])
    found = measurement.read(args.drift)
    floors, told = gate.floors_for(found, args.budget)
    known = baseline.read(args.baseline) if args.baseline.exists() else ()
    own = baseline.key_of(found.subject, found.environment)
    before = next((one for one in known if one.key == own), None)
    verdict = gate.verdict(found, floors, budget=told)
    failed = [check for check in verdict.checks if check.verdict == FAIL]
    moved = slices_moved(before, found)
    summary = report.summary(verdict)
    print(f"{verdict.verdict}: {found.subject.name}  {found.subject.compute_type}  {own[2]}  {summary}")
    for line in difference(before, found, moved):
        print(line)
    for check in failed:
        print(check_line(check))
    if failed:
        count = f"{len(failed)} of {len(verdict.checks)} checks fail"
        print(f"edge-embed: not approved: {count}; {args.baseline} is as it was", file=sys.stderr)
    else:
        new = baseline.approved(found, reason=reason, by=by)
        baseline.write(baseline.put(known, new), args.baseline)
        print(f"approved -> {args.baseline}")
    if args.json:
        values = {
            "output": str(args.baseline),
            "approved": not failed,
            "failed": failed,
            "before": None if before is None else before.values,
            "values": None if found.drift is None else baseline.headlines(found.drift),
            "slices": moved,
        }
        print(json.dumps(measurement.to_dict(values), ensure_ascii=False, allow_nan=False))
    return GATE_FAILED if failed else 0


def slices_moved(before: "Baseline | None", found: "Measurement") -> dict[str, float]:
    """The slices whose SQNR changed most, in dB, negative for worse; none where texts are not the same."""
    import numpy as np

    from edge_embed.drift import baseline, metrics

    if before is None or found.drift is None or found.per_text is None:
        return {}
    if before.against.texts_sha256 != found.against.texts_sha256:
        return {}
    noise, _ = baseline.pairs(before, found.per_text)
    gained = -metrics.paired_change(noise, np.array(found.per_text.noise))  # (N,)
    judged = {part.name for part in found.drift.slices if part.judged}
    slices = {name: np.array(rows, np.int64) for name, rows in found.slices.items() if name in judged}
    metrics.check_rows(slices, len(gained))
    means = {name: float(gained[rows].mean()) for name, rows in slices.items()}
    return dict(sorted(means.items(), key=lambda one: -abs(one[1]))[:MOVED])


def difference(before: "Baseline | None", found: "Measurement", moved: Mapping[str, float]) -> list[str]:
    """For people: what was approved before, and what is different now."""
    from edge_embed.drift import baseline

    subject = found.subject
    if found.drift is None:
        return []
    now = baseline.headlines(found.drift)
    if before is None:
        shown = [f"  {key:<22}  {figure(key, value)}" for key, value in now.items()]
        return ["  nothing was approved before for this checkpoint, compute type and CPU class", *shown]
    lines = [f"  {'before':<22}  {before.line}"]
    if before.against.texts_sha256 != found.against.texts_sha256:
        lines.append("  other texts were measured then: what differs below may be due to them")
    lines += [
        f"  {key:<22}  {figure(key, before.values.get(key))} -> {figure(key, now.get(key))}"
        for key in baseline.HEADLINES
        if key in before.values or key in now
    ]
    lines += [f"  {name:<22}  {change:+.2f} dB" for name, change in moved.items()]
    grown = subject.file_bytes / before.subject.file_bytes - 1
    lines.append(
        f"  {'file':<22}  {before.subject.file_sha256[:12]} -> {subject.file_sha256[:12]}, "
        f"{before.subject.file_bytes:,} -> {subject.file_bytes:,} bytes ({grown:+.1%})"
    )
    old, new = versions(before.environment, before.against), versions(found.environment, found.against)
    lines += [
        f"  {name:<22}  {old.get(name, 'none')} -> {new.get(name, 'none')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    return lines


def versions(environment: "Environment", against: "Against") -> dict[str, str]:
    """Of the libraries on both sides; those of the reference are called so."""
    theirs = {f"{name} of the reference": version for name, version in against.versions.items()}
    return {**environment.versions, **theirs}


def figure(key: str, found: "Interval | None") -> str:
    """A headline value with its interval."""
    from edge_embed.drift import report

    if found is None:
        return "not measured"
    return report.with_interval(found, *((2, " dB") if key.startswith("sqnr") else (4, "")))


def one_line(option: str, text: str) -> str:
    """A text for the file, on one line. Errors: InputError for what is not UTF-8."""
    if SURROGATE.search(text):
        raise InputError(f"{option} is not UTF-8")
    return " ".join(text.split())
