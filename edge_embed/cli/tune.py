"""edge-embed tune: time a model's compute types and settings on this machine, and keep what is fastest."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

HELP = "time a model's compute types on this machine, with their drift; later loads use what was fastest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder in hub layout, a pulled name, or a hub id in the local cache")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="about how long it may take (default: %(default)g)",
    )
    parser.add_argument(
        "--compute-types",
        metavar="TYPE,TYPE",
        type=lambda names: [name.strip() for name in names.split(",")],
        default=[],
        help="time these and float32 only (default: all that the files and the CPU allow)",
    )
    parser.add_argument("--device", default="CPU", help="as OpenVINO names it (default: %(default)s)")
    parser.add_argument("--forget", action="store_true", help="remove what was kept, and time nothing")


def run(args: argparse.Namespace) -> int:
    from edge_embed import profile, store, tune
    from edge_embed.embedder import profile_facts

    folder = store.resolve(args.model)
    if args.forget:
        forgotten = profile.forget(store.home(), profile_facts(folder, args.device))
        print("forgotten" if forgotten else "nothing was kept")
        if args.json:
            print(json.dumps({"folder": str(folder), "device": args.device, "forgotten": forgotten}))
        return 0
    found = tune.tune(
        folder,
        seconds=args.seconds,
        compute_types=args.compute_types,
        device=args.device,
        show_progress_bar=sys.stderr is not None and sys.stderr.isatty(),
    )
    report = found.to_dict()
    for line in table(report["compute_types"]):
        print(line)
    chosen = tune.chosen(folder, found, args.device)
    print(f"auto takes {chosen.compute_type}: {chosen.reasons['compute_type']}")
    if args.json:
        auto = {"folder": str(folder), "device": args.device, "auto": chosen.compute_type}
        print(json.dumps(auto | report))
    return 0


COLUMNS = {
    "compute type": "",
    "texts/s": "texts_per_second",
    "spread": "spread",
    "drift, dB": "sqnr",
    "overlap": "overlap_10",
    "gate": "verdict",
    "threads": "threads",
    "streams": "streams",
    "budget": "token_budget",
    "windows": "windowed_from",
}
"""Title -> key of a profile's compute type."""


def table(compute_types: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The compute types of a profile, given as its JSON values, for people: titles, then a line for each."""
    rows = [list(COLUMNS)]
    for name, tuned in compute_types.items():
        rows.append([name, *(cell(key, tuned) for key in list(COLUMNS.values())[1:])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]


def cell(key: str, tuned: Mapping[str, Any]) -> str:
    """One figure; a dash for what was not measured."""
    value = tuned[key]
    if value is None:
        return "-"
    if key == "sqnr":
        return f"{value:.1f} ({tuned['sqnr_low']:.1f} to {tuned['sqnr_high']:.1f})"
    forms = {"texts_per_second": ".1f", "spread": ".0%", "overlap_10": ".3f"}
    return f">{value}" if key == "windowed_from" else format(value, forms.get(key, ""))
