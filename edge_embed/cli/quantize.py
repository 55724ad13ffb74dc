"""edge-embed quantize: make an INT8 IR of a model's float32 one. Needs NNCF, the extra `quantize`."""

import argparse
import json
import sys
import time
from pathlib import Path

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


def run(args: argparse.Namespace) -> int:
    from edge_embed import quantize, store

    began = time.perf_counter()
    folder = store.resolve(args.model)
    recipe = quantize.recipe_of(folder) if args.recipe is None else quantize.read_recipe(args.recipe)
    done = quantize.quantize(
        folder,
        args.compute_type,
        recipe,
        texts_file=args.calibration,
        allow_few=args.allow_few,
        show_progress_bar=sys.stderr is not None and sys.stderr.isatty(),
    )
    size = done.file.with_suffix(".bin").stat().st_size
    seconds, peak = time.perf_counter() - began, peak_bytes()
    cut = f", {done.cut} of them cut to the model's limit" if done.cut else ""
    shown = f"calibrated on {done.texts} texts, {done.tokens:,} tokens{cut}; " if done.texts else ""
    shown += f"{seconds:.0f} s" + (f", peak memory {peak / 1e6:,.0f} MB" if peak else "")
    print(shown, file=sys.stderr)
    print(f"{done.file}  {size / 1e6:.1f} MB")
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
        }
        print(json.dumps(report))
    return 0


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
