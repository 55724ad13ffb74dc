"""edge-embed drift: how far an IR's vectors are from those of the original model. A group of steps."""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_embed.cli import locate_step
from edge_embed.errors import InputError
from edge_embed.plan import COMPUTE_TYPES

if TYPE_CHECKING:
    from edge_embed.drift.measurement import Measurement
    from edge_embed.drift.metrics import Interval

LEAST_SLICE = 20  # of drift.metrics, which the parser should not have to import
HELP = "record reference vectors in PyTorch, measure a candidate against them, locate its noise"


@dataclass(frozen=True, slots=True)
class Step:
    """What a step of the group is for, its arguments, and its work."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(required=True, title="steps", metavar="step")
    for name, step in STEPS.items():
        subparser = steps.add_parser(name, help=step.help, description=step.help)
        step.add_arguments(subparser)
        # Without a default of its own, which would undo a --json that stands before the step.
        subparser.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="end stdout with one line of JSON"
        )
        subparser.set_defaults(step=step.run)


def run(args: argparse.Namespace) -> int:
    step: Callable[[argparse.Namespace], int] = args.step
    return step(args)


def add_record_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder with a checkpoint in hub layout, or a pulled name")
    parser.add_argument(
        "--texts",
        default="evaluation",
        metavar="FILE",
        help='own texts: one a line, or in *.jsonl objects with a "text" and, if you like, an "id", a "role" '
        '(query or document), a "slice" and a "topic" (default: evaluation, the built-in ones in 52 '
        "languages and code)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the reference: *.npz"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="threads of torch; more are faster for a large model and move vectors by 1e-7 (default: 1)",
    )


def run_record(args: argparse.Namespace) -> int:
    """Make a reference: slow, once for each checkpoint and set of texts."""
    from edge_embed import store
    from edge_embed.drift import record

    began = time.perf_counter()
    check_target(args.output, ".npz")
    texts = record.read_texts(args.texts)
    reference, cut = record.record(
        store.resolve(args.model),
        texts,
        args.texts,
        threads=args.threads,
        show_progress_bar=sys.stderr is not None and sys.stderr.isatty(),
    )
    record.write(reference, args.output)
    seconds, size = time.perf_counter() - began, args.output.stat().st_size
    n, dim = reference.vectors.shape
    if cut:
        limit = reference.settings["max_tokens"]
        print(f"{cut:,} of {n:,} texts were cut to the model's limit of {limit:,} tokens", file=sys.stderr)
    print(f"{n:,} x {dim} float32 in {seconds:.0f} s -> {args.output}  {size:,} bytes")
    if args.json:
        report = {
            "output": str(args.output),
            "bytes": size,
            "texts": n,
            "dim": dim,
            "cut": cut,
            "source": reference.source,
            "weights_sha256": reference.weights_sha256,
            "versions": dict(reference.versions),
            "settings": dict(reference.settings),
            "seconds": round(seconds, 3),
        }
        print(json.dumps(report))
    return 0


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of the candidate, or a pulled name")
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="FILE", help="*.npz of edge-embed drift record"
    )
    parser.add_argument(
        "--compute-type",
        choices=("auto", *COMPUTE_TYPES),
        default="auto",
        metavar="TYPE",
        help="%(choices)s (default: what would run here)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="*.json")
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help="the file that the reference was recorded with, unless it was with the built-in texts",
    )
    parser.add_argument(
        "--all-languages",
        action="store_true",
        help="measure the built-in texts of all languages, not only of those that the model is made for",
    )
    parser.add_argument("--device", default="CPU", help="as OpenVINO names them (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="inference threads (default: by the plan)")
    parser.add_argument(
        "--no-stages",
        action="store_true",
        help="leave out the ledger: what lies between PyTorch and the candidate",
    )
    parser.add_argument(
        "--locate", action="store_true", help="also measure the noise of each layer and operator alone"
    )
    parser.add_argument(
        "--no-excerpts", action="store_true", help="keep ids of the worst texts only, and no word of them"
    )
    parser.add_argument(
        "--least-slice",
        type=int,
        default=LEAST_SLICE,
        metavar="N",
        help="texts below which a slice is reported, and not judged (default: %(default)s)",
    )


def run_measure(args: argparse.Namespace) -> int:
    """Measure a candidate; nothing is judged here. A candidate that crashes is on record, and exits 1."""
    from edge_embed import store
    from edge_embed.drift import compare, measure, measurement, record
    from edge_embed.record import hash_file

    check_target(args.output, ".json")
    if args.least_slice < 2:
        raise InputError(f"--least-slice is {args.least_slice}; it must be at least 2")
    folder = store.resolve(args.model)
    watched = sys.stderr is not None and sys.stderr.isatty()
    reference = record.read(args.reference)
    if args.texts is None and reference.source != record.EVALUATION:
        raise InputError(f"{args.reference} was recorded with {reference.source}; name that file by --texts")
    if args.texts is None and not args.all_languages:
        texts = measure.evaluation_texts(folder)
        reference = record.select(reference, {text.id for text in texts})
    else:
        texts = record.read_texts(args.texts or record.EVALUATION)
    found = compare.measure_against(
        folder,
        reference,
        hash_file(args.reference),
        texts,
        compute_type=args.compute_type,
        device=args.device,
        threads=args.threads,
        stages=not args.no_stages,
        excerpts=not args.no_excerpts,
        least_slice=args.least_slice,
        show_progress_bar=watched,
    )
    if args.locate and found.drift is not None and found.subject.compute_type in locate_step.COMPUTE_TYPES:
        from edge_embed.drift import locate

        sample = locate_step.evenly(texts, locate_step.COUNT)
        located = locate.locate(folder, found.subject.compute_type, sample, show_progress_bar=watched)
        found = dataclasses.replace(found, located=located)
    measurement.write(found, args.output)
    for line in in_words(found):
        print(line)
    print(f"{found.against.n:,} texts in {found.seconds:.0f} s -> {args.output}")
    if found.crash:
        print(f"edge-embed: the candidate crashed: {found.crash}; {args.output} says so", file=sys.stderr)
    if args.json:
        drift = measurement.to_dict(found.drift)
        report = {
            "output": str(args.output),
            "texts": found.against.n,
            "compute_type": found.subject.compute_type,
            "crash": found.crash,
            "sqnr": drift and drift["sqnr"],
            "overlap_10": drift and drift["overlap_10"],
            "worst_slice": drift and drift["worst_slice"],
            "seconds": found.seconds,
        }
        print(json.dumps(report))
    return 1 if found.crash else 0


def in_words(found: "Measurement") -> list[str]:
    """A measurement for people: the candidate, then how the noise came about."""
    lines = [f"{found.subject.name}  {found.subject.compute_type}  {found.subject.file}"]
    if found.drift is not None:
        drift = found.drift
        lines += [
            f"  SQNR        {interval(drift.sqnr, 1)} dB   cosine {drift.cosine_mean:.5f}, "
            f"p1 {drift.cosine_p1:.5f}, least {drift.cosine_min:.5f}",
            f"  top 10 kept {interval(drift.overlap_10, 3)}   on a float32 index "
            f"{interval(drift.overlap_10_asymmetric, 3)}",
        ]
        if drift.ndcg_10_change is not None:
            lines.append(
                f"  nDCG@10     {interval(drift.ndcg_10_change, 4)}   from {drift.ndcg_10:.4f}; "
                f"what changes it by less than {drift.ndcg_10_change.effect:.4f} does not show"
            )
        if drift.worst_slice is not None:
            lines.append(f"  worst slice {drift.worst_slice}, {drift.worst_slice_sqnr:.1f} dB")
    broken = [one for one in found.invariants if not one.value <= one.limit]
    lines += [f"  broken      {one.id}: {one.what} ({one.value:.3g})" for one in broken]
    if found.ledger:
        lines.append(f"  {'stage':<18}{'dB from PyTorch':>18}{'from the one before':>22}")
    for stage in found.ledger:
        if stage.from_reference is None:
            lines.append(f"  {stage.name:<18}  did not run: {stage.trouble}")
        else:
            before = "" if stage.from_previous is None else f"{stage.from_previous.value:.1f}"
            told = f"{before:>10} {stage.previous}"
            lines.append(f"  {stage.name:<18}{stage.from_reference.value:>18.1f}{told:<22}  {stage.what}")
    return lines


def interval(found: "Interval | None", digits: int) -> str:
    """A value with its interval."""
    if found is None:
        return "not measured"
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def check_target(target: Path, suffix: str) -> None:
    """Refuse an output that cannot be written before the work is done."""
    if target.suffix != suffix:
        raise InputError(f"{target} ends in {target.suffix!r}; it must end in {suffix}")
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(f"cannot write {target}: {target.parent} is not a folder that may be written to")
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder; name a file")


STEPS = {
    "record": Step("record what a checkpoint gives in PyTorch", add_record_arguments, run_record),
    "measure": Step("measure a candidate against a reference", add_measure_arguments, run_measure),
    "locate": Step(locate_step.HELP, locate_step.add_locate_arguments, locate_step.run_locate),
}
