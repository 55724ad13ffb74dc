"""edge-embed bench: how fast the compute types of a model are on this machine, and what memory they take."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_embed.speed import Speed

HELP = "how fast a model's compute types are here: texts/s, latency, start and memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder in hub layout, a pulled name, or a hub id in the local cache")
    parser.add_argument(
        "--compute-types",
        metavar="TYPE,TYPE",
        type=lambda names: [name.strip() for name in names.split(",")],
        default=[],
        help="these only (default: all that the files and the CPU allow)",
    )
    parser.add_argument("--texts", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores we may use")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from edge_embed import ir, speed, store, tune
    from edge_embed.hardware import machine

    folder = store.resolve(args.model)
    found = tune.candidates(machine(), ir.find_files(folder), args.compute_types, "CPU")
    names = args.compute_types or found
    with tqdm(total=args.rounds * len(names), disable=not sys.stderr.isatty(), unit="run") as bar:

        def watch(name: str) -> None:
            bar.set_description(name)
            bar.update()

        rows = speed.measure(
            folder, names, texts=args.texts, rounds=args.rounds, threads=args.threads, watch=watch
        )
    for line in table(rows):
        print(line)
    if args.json:
        print(json.dumps(report(rows, str(folder), machine().to_dict())))
    return 0


def table(rows: Sequence["Speed"]) -> list[str]:
    """For people: titles, then a line for each compute type."""
    titles = ("texts/s", "spread", "tokens/s", "p50 ms", "p99 ms", "start s", "peak MB")
    lines = [f"{'compute type':<14}" + "".join(f"{title:>10}" for title in titles)]
    for row in rows:
        cells = (
            f"{row.texts_per_second:.1f}",
            f"{row.spread:.0%}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            f"{row.start_seconds:.2f}",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:,.0f}",
        )
        lines.append(f"{row.compute_type:<14}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def report(rows: Sequence["Speed"], folder: str, machine: dict[str, Any]) -> dict[str, Any]:
    return {"folder": folder, "machine": machine, "compute_types": [asdict(row) for row in rows]}
