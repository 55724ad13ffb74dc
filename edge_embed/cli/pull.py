"""edge-embed pull: bring a model here, build what is missing, and let it prove itself.

Knows the order of these steps and what of them the record keeps; not how files travel or IRs are made.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from edge_embed import store
from edge_embed.cards import FP32_IR, ModelCard, SelfCheck
from edge_embed.embedder import Embedder
from edge_embed.errors import ModelError, ModelNotFoundError
from edge_embed.record import read_record, write_record

HELP = "download a model, check its sha256, build its IR where it has none, run its self-check"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a name in models/, or its hub id")
    parser.add_argument(
        "--revision", help="commit, branch or tag on the hub (default: the commit in model.toml)"
    )
    parser.add_argument(
        "--force", action="store_true", help="pull again and replace the folder and all built in it"
    )
    parser.add_argument(
        "--checkpoint",
        action="store_true",
        help="bring model.safetensors as well, to build, quantize or compare with the reference; "
        "where the hub has no IR it comes anyway",
    )
    parser.add_argument(
        "--no-build", action="store_true", help="leave the files as they are: no IR built, no self-check"
    )


def run(args: argparse.Namespace) -> int:
    card = store.card(args.model)
    if card is None:
        known = ", ".join(card.name for card in store.cards())
        raise ModelNotFoundError(f"{args.model} has no card here; models that can be pulled: {known}")
    for line in (f"licence {card.licence}", *card.licence_notes):
        print(f"{card.name}: {line}", file=sys.stderr)

    folder = store.pull(card, revision=args.revision, force=args.force, checkpoint=args.checkpoint)
    cards_own = store.is_cards_own(card, read_record(folder).get("source", {}))
    if not cards_own and args.revision is None:
        print(f"{card.name}: kept, but not at the card's revision; --force brings that", file=sys.stderr)
    if not args.no_build:
        built = build_missing(folder)
        if card.self_check and cards_own and (built or not has_passed(folder, card.self_check)):
            prove(card, card.self_check, folder)

    print(folder)
    if args.json:
        print(json.dumps({"model": card.name, "folder": str(folder)} | summary(folder)))
    return 0


def build_missing(folder: Path) -> bool:
    """Build the FP32 IR of a checkpoint that came without one; whether it did."""
    if (folder / FP32_IR).exists() or not (folder / "model.safetensors").exists():
        return False
    from edge_embed.build import build

    print(f"{folder.name}: building the IR", file=sys.stderr)
    build(folder)
    return True


def has_passed(folder: Path, check: SelfCheck) -> bool:
    """Whether the record says that the self-check passed, under the tolerance of the card."""
    recorded = store.self_check(read_record(folder)) or {}
    return recorded.get("passed") is True and recorded.get("tolerance") == check.tolerance


def prove(card: ModelCard, check: SelfCheck, folder: Path) -> None:
    """Embed the card's own example in float32 and compare the cosines with those that the card states.

    The outcome is recorded; while it says that the check failed, `store.resolve` refuses the model's name.
    Errors: ModelError when the cosines are further apart than the card allows.
    """
    embedder = Embedder(folder, compute_type="float32")
    got = embedder.similarity(embedder.encode_query(check.queries), embedder.encode_document(check.passages))
    difference = float(np.abs(got - np.asarray(check.cosine, np.float32)).max())
    passed = difference <= check.tolerance
    outcome = {"passed": passed, "difference": difference, "tolerance": check.tolerance}
    write_record(folder, read_record(folder) | {store.SELF_CHECK: outcome})
    if not passed:
        raise ModelError(
            f"{card.name} failed its self-check: cosines up to {difference:.4f} off its card, "
            f"{check.tolerance} is allowed; its name is refused until a pull passes; see {folder}"
        )
    told = f"cosines within {difference:.1e} of the card's, {check.tolerance} is allowed"
    print(f"{card.name}: self-check passed, {told}", file=sys.stderr)


def summary(folder: Path) -> dict[str, object]:
    """What --json says of a folder, from its record."""
    record = read_record(folder)
    files = record.get("files", {})
    total = sum(entry["bytes"] for entry in files.values())
    return {"files": len(files), "bytes": total, "self_check": store.self_check(record)}
