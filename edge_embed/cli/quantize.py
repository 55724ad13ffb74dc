"""edge-embed quantize: make an INT8 IR of a model's float32 one. Needs NNCF, the extra `quantize`."""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_embed.errors import InputError

if TYPE_CHECKING:
    from edge_embed.quantize import Recipe
    from edge_embed.sweep import Sweep

HELP = "make an INT8 IR of a model's float32 one (pip install 'edge-embed[quantize]')"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder in hub layout, a pulled name, or a hub id in the local cache")
    parser.add_argument(
        "--compute-type",
        choices=("int8_weights", "int8"),
        required=True,
        metavar="TYPE",
        help="int8_weights: 8 bits for weights, which int8_dynamic runs too; int8: for activations as well",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="own texts to choose the ranges of int8 from, like those to come: one a line, or objects with a "
        '"text" in *.jsonl (default: the built-in ones, in 52 languages and code)',
    )
    parser.add_argument(
        "--allow-few",
        action="store_true",
        help="take also a FILE of fewer texts than ranges can be trusted from",
    )
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE", help="another recipe.toml than that of the model in models/"
    )
    parser.add_argument(
        "--search",
        type=Path,
        metavar="TABLE",
        help="try recipes for int8 on this machine, take the one of least drift that has 90 %% of the speed "
        "of NNCF's defaults, and write what all gave to TABLE (JSON), the recipe beside it (TOML)",
    )
    parser.add_argument(
        "--no-drift",
        action="store_false",
        dest="drift",
        help="do not measure the drift from float32; static INT8 is then not chosen automatically",
    )


def run(args: argparse.Namespace) -> int:
    from edge_embed import quantize, store

    began = time.perf_counter()
    folder = store.resolve(args.model)
    recipe = quantize.recipe_of(folder) if args.recipe is None else quantize.read_recipe(args.recipe)
    bars = sys.stderr is not None and sys.stderr.isatty()
    searched = search(args, folder, recipe, bars) if args.search is not None else None
    done = quantize.quantize(
        folder,
        args.compute_type,
        recipe if searched is None else searched.chosen,
        texts_file=args.calibration,
        allow_few=args.allow_few,
        show_progress_bar=bars,
    )
    size = done.file.with_suffix(".bin").stat().st_size
    seconds, peak = time.perf_counter() - began, peak_bytes()
    cut = f", {done.cut} of them cut to the model's limit" if done.cut else ""
    shown = f"calibrated on {done.texts} texts, {done.tokens:,} tokens{cut}; " if done.texts else ""
    shown += f"{seconds:.0f} s" + (f", peak memory {peak / 1e6:,.0f} MB" if peak else "")
    print(shown, file=sys.stderr)
    print(f"{done.file}  {size / 1e6:.1f} MB", flush=True)
    drift = {}
    if args.drift:
        drift = quantize.measure_drift(folder, args.compute_type, show_progress_bar=bars)
        for compute_type, entry in drift.items():
            print(f"{compute_type:<12} {as_line(entry)}")
    if args.json:
        report = {
            "folder": str(folder),
            "file": str(done.file),
            "bytes": size,
            "compute_type": args.compute_type,
            "texts": done.texts,
            "tokens": done.tokens,
            "cut": done.cut,
            "seconds": round(seconds, 3),
            "peak_bytes": peak,
            "drift": drift,
        }
        print(json.dumps(report, ensure_ascii=False))
    return 0


def search(args: argparse.Namespace, folder: Path, recipe: "Recipe", bars: bool) -> "Sweep":
    """Try recipes, keep the table in the file that --search names, and its recipe beside it."""
    from edge_embed import atomic, sweep
    from edge_embed.cli import common
    from edge_embed.quantize import as_toml

    if args.compute_type != "int8":
        raise InputError(f"{args.compute_type} has nothing to search; --search is for int8")
    common.check_target(args.search)
    found = sweep.sweep(
        folder, texts_file=args.calibration, allow_few=args.allow_few, start=recipe, show_progress_bar=bars
    )
    atomic.write_text(args.search, json.dumps(sweep.to_dict(found), indent=2, ensure_ascii=False) + "\n")
    chosen = args.search.with_suffix(".toml")
    atomic.write_text(chosen, as_toml(found.chosen))
    for line in sweep.as_table(found):
        print(line)
    print(
        f"compared on {found.held_out} held-out texts; {args.search} and {chosen} hold all", file=sys.stderr
    )
    return found


def as_line(entry: Mapping[str, Any]) -> str:
    """A drift entry of the record for people."""
    sqnr, verdict = entry["sqnr"], entry["verdict"]
    worst = (
        ""
        if entry["worst_slice"] is None
        else (f", worst in {entry['worst_slice']} with {entry['worst_slice_sqnr']:.1f}")
    )
    failed = (
        "" if verdict == "pass" else f" ({', '.join(sorted({check['id'] for check in entry['failed']}))})"
    )
    return (
        f"{sqnr['value']:.1f} dB from float32 ({sqnr['low']:.1f} to {sqnr['high']:.1f}){worst}; "
        f"of ten neighbours {entry['overlap_10']['value']:.1%} stay: {verdict}{failed}"
    )


def peak_bytes() -> int | None:
    """The most resident memory that this process has held; None where the system does not tell.

    VmHWM where there is one: ru_maxrss survives an exec, and so starts from what the parent process had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.partition(":")[::2] for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
