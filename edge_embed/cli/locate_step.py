"""edge-embed drift locate: which parts of an INT8 model its noise comes from. A step of `drift`."""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_embed.cli import common
from edge_embed.errors import InputError

if TYPE_CHECKING:
    from edge_embed.calibration import Text
    from edge_embed.drift.measurement import Located

HELP = "find the layers and operators of an INT8 model that add the most noise"

COMPUTE_TYPES = ("int8", "int8_weights", "int8_dynamic")  # of drift.locate, which the parser need not import
SCHEMA = 1  # of the file
COUNT = 40

SHOWN = 20  # parts in the table
BAR = 40  # characters of the longest bar

# Parts that are worth a line in a recipe: with such a share of the noise, and at most so many.
SINGLED_OUT, MOST = 0.05, 4

INPUT = re.compile(r" input \d+$")  # ends the name of a part that is no linear's


def add_locate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder with a float32 and an INT8 IR, or a pulled name")
    parser.add_argument(
        "--compute-type",
        choices=COMPUTE_TYPES,
        default="int8",
        metavar="TYPE",
        help="%(choices)s (default: %(default)s)",
    )
    parser.add_argument(
        "--texts",
        default="evaluation",
        metavar="FILE",
        help="own texts, as drift record takes them (default: evaluation, the built-in ones in the languages "
        "of the model)",
    )
    parser.add_argument(
        "--count",
        type=int,
        default=COUNT,
        metavar="N",
        help="so many of them, spread evenly; each is embedded once for every part (default: %(default)s)",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="all parts, as *.json")


def run_locate(args: argparse.Namespace) -> int:
    """Quantize one part at a time. Nothing of the model is changed."""
    from edge_embed import atomic, store
    from edge_embed.drift import locate, measure, measurement, record

    began = time.perf_counter()
    if args.count < 2:
        raise InputError(f"--count is {args.count}; it must be at least 2")
    if args.output is not None:
        if args.output.suffix != ".json":
            raise InputError(f"{args.output} ends in {args.output.suffix!r}; it must end in .json")
        common.check_target(args.output)
    folder = store.resolve(args.model)
    builtin = args.texts == record.EVALUATION
    texts = evenly(measure.evaluation_texts(folder) if builtin else record.read_texts(args.texts), args.count)
    found = locate.locate(
        folder,
        args.compute_type,
        texts,
        show_progress_bar=sys.stderr is not None and sys.stderr.isatty(),
    )
    seconds = round(time.perf_counter() - began, 1)
    for line in [*as_table(found, args.compute_type), *as_bars(found), *advice(found)]:
        print(line)
    written = "" if args.output is None else f" -> {args.output}"
    print(f"{len(found.operators)} parts on {found.n} texts in {seconds:.0f} s{written}", file=sys.stderr)
    if args.output is not None:
        values = {
            "schema": SCHEMA,
            "model": folder.name,
            "compute_type": args.compute_type,
            "texts": args.texts if builtin else Path(args.texts).name,
            "seconds": seconds,
            "located": measurement.to_dict(found),
        }
        atomic.write_text(args.output, json.dumps(values, ensure_ascii=False, indent=1) + "\n")
    if args.json:
        worst = found.operators[0]
        report = {
            "output": None if args.output is None else str(args.output),
            "compute_type": args.compute_type,
            "texts": found.n,
            "parts": len(found.operators),
            "total": found.total,
            "added_up": added_up(found),
            "worst": {"name": worst.name, "kind": worst.kind, "share": worst.share},
            "seconds": seconds,
        }
        print(json.dumps(report, ensure_ascii=False))
    return 0


def evenly(texts: "Sequence[Text]", count: int) -> "list[Text]":
    """So many of the texts, or all where there are fewer, spread over the whole."""
    count = min(count, len(texts))
    return [texts[i * len(texts) // count] for i in range(count)]


def added_up(found: "Located") -> float:
    """The noise of all parts alone, added up, as a share of their noise together."""
    return sum(part.share for part in found.operators)


def as_table(found: "Located", compute_type: str) -> list[str]:
    """The worst parts, the worst first."""
    from edge_embed.drift.metrics import decibels

    lines = [
        f"simulated in float32, {found.n} texts: {decibels(found.total):.1f} dB from the float32 IR; "
        f"parts alone add up to {added_up(found):.0%} of that noise"
    ]
    if compute_type == "int8_dynamic":
        lines.append("weights only: what int8_dynamic does to activations is not located by part")
    lines.append(f"{'share':>7} {'alone dB':>9}  {'kind':<10} {'layer':>5}  operator")
    for part in found.operators[:SHOWN]:
        layer = "-" if part.layer is None else str(part.layer)
        lines.append(
            f"{part.share:>7.1%} {decibels(part.noise):>9.1f}  {part.kind:<10} {layer:>5}  {short(part.name)}"
        )
    if rest := found.operators[SHOWN:]:
        lines.append(
            f"{sum(part.share for part in rest):>7.1%} {'':>9}  {len(rest)} more; -o FILE keeps them all"
        )
    return lines


def short(name: str) -> str:
    """Several names in one: a.{query,key}.b for "a.query.b, a.key.b"."""
    pieces = [re.split("([./])", one) for one in name.split(", ")]
    if len({len(row) for row in pieces}) > 1:
        return name
    columns = [tuple(dict.fromkeys(column)) for column in zip(*pieces, strict=True)]
    return "".join(same[0] if len(same) == 1 else f"{{{','.join(same)}}}" for same in columns)


def as_bars(found: "Located") -> list[str]:
    """The layers in order, each quantized as a whole."""
    most = max(layer.share for layer in found.layers)
    width = max(len(layer.name) for layer in found.layers)
    return [
        "layer by layer",
        *(
            f"{layer.share:>7.1%}  {layer.name:<{width}}  {'█' * round(BAR * layer.share / most)}".rstrip()
            for layer in found.layers
        ),
    ]


def advice(found: "Located") -> list[str]:
    """What to write into recipe.toml about the worst parts, and how much of the noise is theirs."""
    worst = [part for part in found.operators[:MOST] if part.share >= SINGLED_OUT]
    if not worst:
        return [f"no part has {SINGLED_OUT:.0%} of the noise, so there is none to single out"]
    read = [part for part in worst if part.kind == "activation" and not INPUT.search(part.name)]
    lines = ["for recipe.toml, with their share of the noise:"]
    for key, parts, why in (
        ("weight_only_names", read, "their activations stay float32; quantize --search ranks linears alike"),
        ("ignored_names", [part for part in worst if part not in read], "they stay float32 altogether"),
    ):
        names = dict.fromkeys(INPUT.sub("", name) for part in parts for name in part.name.split(", "))
        if names:
            listed = json.dumps(list(names), ensure_ascii=False)
            lines.append(f"{key} = {listed}  # {sum(part.share for part in parts):.0%}; {why}")
    return lines
