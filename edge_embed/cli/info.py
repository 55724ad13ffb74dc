"""edge-embed info: the model, the machine, the plan with its reasons, and what was measured here."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from edge_embed import __version__, store
from edge_embed.cli import common
from edge_embed.cli.tune import table
from edge_embed.hardware import machine
from edge_embed.prepare import PASSES
from edge_embed.record import read_record

if TYPE_CHECKING:
    from edge_embed.embedder import Embedder

# Keys of the plan that are printed with their reasons, before the properties.
CHOICES = (
    "compute_type",
    "device",
    "threads",
    "streams",
    "many_streams",
    "token_budget",
    "windowed_from",
    "cache",
)

HELP = "show how a model would run here: file, compute type, properties, threads, each with its reason"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="MODEL", help="the same as --model MODEL")
    common.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    args.model = args.name or args.model
    report = describe(common.open_embedder(args))
    for title in ("model", "machine", "versions"):
        print(title)
        for key, value in report[title].items():
            print(f"  {key:<32} {as_text(value)}")
    print("plan")
    plan = report["plan"]
    for key in (*CHOICES, *plan["properties"]):
        value = plan["properties"].get(key, plan.get(key))
        print(f"  {key:<32} {as_text(value):<14} {plan['reasons'].get(key, '')}".rstrip())
    print("profile")
    for line in as_lines(report["profile"], plan["folder"]):
        print(f"  {line}")
    print("passes")
    for name in PASSES:
        print(f"  {name:<32} {'taken' if name in plan['passes'] else '-':<14} {plan['reasons'][name]}")
    if args.json:
        print(json.dumps(report, ensure_ascii=False))
    return 0


def describe(embedder: "Embedder") -> dict[str, Any]:
    """The whole report as JSON values. `effective` is what OpenVINO says of each property after compiling."""
    import openvino

    from edge_embed.embedder import kept_profile

    manifest, plan = embedder.manifest, embedder.plan
    found, told = kept_profile(plan.folder, plan.device)
    return {
        "model": {
            "folder": str(plan.folder),
            "file": str(plan.file.relative_to(plan.folder)),
            "pooling": "+".join(manifest.pooling),
            "normalize": manifest.normalize,
            "dim": embedder.dim,
            "truncate_dims": list(embedder.truncate_dims),
            "max_tokens": embedder.max_tokens,
            "limits": dict(manifest.limits),
            "prompts": dict(manifest.prompts),
            "similarity": manifest.similarity,
            "self_check": store.self_check(read_record(plan.folder)),
        },
        "machine": machine().to_dict(),
        "plan": plan.to_dict() | {"effective": {name: embedder.effective(name) for name in plan.properties}},
        "profile": {"told": told} | (found.to_dict() if found else {}),
        "versions": {"edge_embed": __version__, "openvino": openvino.get_version()},
    }


def as_lines(kept: dict[str, Any], folder: str) -> list[str]:
    """The profile for people."""
    if "compute_types" not in kept:
        return [f"{kept['told']}; run: edge-embed tune {folder}"]
    return [kept["told"], *table(kept["compute_types"])]


def as_text(value: Any) -> str:
    """A value for people: lists and tables on one line, nothing as a dash."""
    if isinstance(value, dict):
        value = [
            f"{key} {item!r}" if isinstance(item, str) else f"{key} {item}" for key, item in value.items()
        ]
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "-" if value in (None, "") else str(value)
