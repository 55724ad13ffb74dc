"""edge-embed trim: a smaller model for some languages and texts, by leaving token rows out."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edge_embed.errors import InputError

if TYPE_CHECKING:
    from edge_embed.trim import Coverage, Pack

HELP = "make a smaller model that has the tokens of some languages and texts only"

FEW_KEPT = 0.97  # of the tokens of unseen texts; below this, there is a hint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder in hub layout, a pulled name, or a hub id in the local cache")
    parser.add_argument(
        "--languages",
        type=names,
        default=(),
        metavar="LIST",
        help="of which texts are built in, like de,en,python: what those texts use stays",
    )
    parser.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help='own texts, like those to come: one a line, or objects with a "text" in *.jsonl',
    )
    parser.add_argument(
        "--size",
        type=tokens,
        metavar="N",
        help="fill up to N tokens, the most frequent first; 64k is 64,000 (default: what the texts need)",
    )
    parser.add_argument(
        "--compute-type",
        type=names,
        default=(),
        metavar="LIST",
        help="which IRs to trim, of float32,int8_weights,int8 (default: all that the model has)",
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="the new folder")
    parser.add_argument("--dry-run", action="store_true", help="show what would be kept, and write nothing")


def run(args: argparse.Namespace) -> int:
    from edge_embed import store, tokenizer_ir, trim

    folder = store.resolve(args.model)
    if not args.dry_run:  # before a minute's work
        if args.to is None:
            raise InputError(
                "no folder for the result; name one by --to, or see what would be in it: --dry-run"
            )
        trim.check_target(folder, args.to)
        trim.find_variants(folder, args.compute_type)
    pack = trim.choose(folder, languages=args.languages, texts_file=args.texts, size=args.size)
    show(pack)
    written = None
    if not args.dry_run:
        trim.write(pack, args.to, compute_types=args.compute_type)
        if (folder / tokenizer_ir.FILE).exists() and tokenizer_ir.is_installed():
            tokenizer_ir.add(args.to)
        written = sum(path.stat().st_size for path in args.to.rglob("*") if path.is_file())
        print(f"{args.to}  {written / 1e6:.1f} MB")
    if args.json:
        report = {
            "folder": str(folder),
            "to": None if args.dry_run else str(args.to),
            "bytes": written,
            "tokens": len(pack.rows),
            "tokens_before": pack.before,
            "texts_checked": pack.checked,
            "coverage": [
                asdict(row) | {"kept_share": row.kept_share, "extra_mean": row.extra_mean}
                for row in pack.coverage
            ],
        }
        print(json.dumps(report))
    return 0


def show(pack: "Pack") -> None:
    """The coverage, for people."""
    share = len(pack.rows) / pack.before
    print(f"{len(pack.rows):,} of {pack.before:,} tokens stay ({share:.1%})")
    print(f"all {pack.checked:,} texts that they were chosen by keep their tokens: checked")
    unseen = [row for row in pack.coverage if row.held_out]
    others = [row for row in pack.coverage if not row.held_out]
    table("texts like those (each fifth, had it not been seen)", unseen)
    table("other languages", others)
    if any(row.kept_share < FEW_KEPT for row in unseen):
        print("more of new texts stays with more --texts, or a larger --size", file=sys.stderr)


def table(title: str, rows: "list[Coverage]") -> None:
    if not rows:
        return
    print(f"\n{title:<52} {'texts':>7} {'same tokens':>12} {'tokens kept':>12} {'more in others':>15}")
    for row in rows:
        same = f"{row.same_texts / row.texts:.0%}"
        print(f"  {row.group:<50} {row.texts:>7,} {same:>12} {row.kept_share:>12.1%} {row.extra_mean:>15.1f}")


def names(value: str) -> tuple[str, ...]:
    """Words between commas, each once."""
    return tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))


def tokens(value: str) -> int:
    """A number of tokens: 64000 or 64k."""
    digits = value.removesuffix("k")
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of tokens like 64000 or 64k")
    return int(digits) * (1 if digits == value else 1000)
