"""edge-embed verify: compare a model folder with the sha256 that were recorded, offline."""

import argparse
import json
import sys
from dataclasses import asdict

from tqdm import tqdm

from edge_embed import store
from edge_embed.errors import IntegrityError
from edge_embed.record import read_record

HELP = "compare a model folder with its recorded sha256; exit 2 when a file differs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model folder, a name in models/, or a hub id")


def run(args: argparse.Namespace) -> int:
    folder = store.resolve(args.model)
    total = sum(entry["bytes"] for entry in read_record(folder).get("files", {}).values())
    with tqdm(
        total=total, desc="verify", unit="B", unit_scale=True, disable=None, leave=False, delay=1
    ) as bar:
        report = store.verify(folder, bar.update)
    for file in report.files:
        print(f"{file.state:8}{file.path}")
    for path in report.unrecorded:
        print(f"{'new':8}{path}")
        print(f"verify: {path} is not in the record; nothing vouches for it", file=sys.stderr)
    if report.self_check:
        check = report.self_check
        state = "passed" if check.get("passed") else "FAILED"
        print(f"self-check {state}: {check.get('difference')} off, {check.get('tolerance')} allowed")
    if args.json:
        print(json.dumps({"ok": not report.wrong} | asdict(report) | {"folder": str(folder)}))
    if report.wrong:
        raise IntegrityError(complaint(report))
    return 0


def complaint(report: store.Report) -> str:
    """One line for a folder that is not as recorded: how many files, and the first of them."""
    first = report.wrong[0]
    what = (
        f"{first.path} is missing"
        if first.sha256 is None
        else f"{first.path} has {first.bytes:,} bytes and sha256 {first.sha256}, "
        f"recorded are {first.expected_bytes:,} and {first.expected_sha256}"
    )
    count = f"{len(report.wrong)} of {len(report.files)} files"
    return f"{count} in {report.folder} are not as recorded: {what}; pull or build again"
