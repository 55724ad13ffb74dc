"""edge-embed build: make the float32 IR of a checkpoint, and what other OpenVINO programs want beside it."""

import argparse
import json
import sys
from pathlib import Path

HELP = "make the float32 OpenVINO IR of a checkpoint folder (config.json, *.safetensors, tokenizer.json)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", help="folder in hub layout, a pulled name, or a hub id in the local cache"
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="another folder for the result (default: the checkpoint's)"
    )
    parser.add_argument(
        "--via",
        choices=("optimum",),
        help="let optimum-intel export it with torch: for architectures that are not built here",
    )


def run(args: argparse.Namespace) -> int:
    from edge_embed import build, ir, store, tokenizer_ir, via_optimum

    checkpoint = store.resolve(args.checkpoint)
    if args.via:
        print(f"exporting with {via_optimum.exporter()}, which loads the model into torch", file=sys.stderr)
        folder = via_optimum.export(checkpoint, args.output)
    else:
        folder = build.build(checkpoint, args.output)
    if tokenizer_ir.is_installed():
        tokenizer_ir.add(folder)
    file = ir.find_files(folder).variants["float32"]
    size = file.with_suffix(".bin").stat().st_size
    print(f"{file}  {size / 1e6:.1f} MB")
    if args.json:
        print(json.dumps({"folder": str(folder), "file": str(file), "bytes": size}))
    return 0
