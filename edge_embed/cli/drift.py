"""edge-embed drift: how far an IR's vectors are from those of the original model. A group of steps."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_embed.errors import InputError

HELP = "record reference vectors in PyTorch"


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


def check_target(target: Path, suffix: str) -> None:
    """Refuse an output that cannot be written before the work is done."""
    if target.suffix != suffix:
        raise InputError(f"{target} ends in {target.suffix!r}; it must end in {suffix}")
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(f"cannot write {target}: {target.parent} is not a folder that may be written to")
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder; name a file")


STEPS = {"record": Step("record what a checkpoint gives in PyTorch", add_record_arguments, run_record)}
