"""What a loaded model keeps in memory: edge_embed against OpenVINO alone on the same IR.

    python -m bench.resident FOLDER [--int8] [--save NAME]

The resident set of a fresh process, after loading and after its first vector, from /proc: Linux only.
Both sides hold the tokenizer, and neither holds torch. Knows nothing of time and of accuracy.
"""

import argparse
import importlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.lengths import PLACES
from bench.measure import child
from bench.run import RESULTS, edge_embed_info, save
from bench.worker import FIRST_TEXT, memory

MEASURE = "import sys; from bench.resident import report; report(*sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes of one process. Pages of the mapped weights count, for as long as the system keeps them."""

    loaded: int
    used: int  # after the first vector
    anonymous: int  # the part of `used` that is no file's, which the system cannot drop


def measure(peer: str, kind: str, folder: Path, threads: int) -> Resident:
    """Load a module of bench/peers in a process of its own, and embed one text there."""
    shown = child("-c", MEASURE, peer, kind, str(folder), str(threads))
    return Resident(**json.loads(shown.splitlines()[-1]))


def report(peer: str, kind: str, folder: str, threads: str) -> None:
    """In the child: the fields of Resident as JSON."""
    load = importlib.import_module(f"bench.peers.{peer}").load
    encoder = load(Path(folder), kind=kind, threads=int(threads), cache=None)
    loaded = memory("VmRSS")
    encoder.call([FIRST_TEXT], None)
    print(json.dumps(asdict(Resident(loaded, memory("VmRSS"), memory("RssAnon")))))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.resident", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="model folder with openvino/openvino_model.xml")
    parser.add_argument("--int8", action="store_true", help="the static INT8 IR instead of the float32 one")
    parser.add_argument("--save", metavar="NAME", help="keep the result as bench/results/NAME.json")
    args = parser.parse_args(argv)

    kind = "int8" if args.int8 else "float32"
    info = edge_embed_info(args.folder, kind)  # the first start, with its probes
    threads = info["plan"]["threads"]
    found = {peer: measure(peer, kind, args.folder, threads) for peer in ("edge", "openvino_plain")}
    ours, theirs = found.values()
    result: dict[str, Any] = {
        "schema": 1,
        "model": {"folder": args.folder.name, "file": info["model"]["file"]},
        "machine": info["machine"],
        "versions": {"python": platform.python_version(), **info["versions"]},
        "plan": {key: value for key, value in info["plan"].items() if key not in PLACES},
        "bytes": {peer: asdict(resident) for peer, resident in found.items()},
        "ratios": {key: value / asdict(theirs)[key] for key, value in asdict(ours).items()},
    }
    for key, ratio in result["ratios"].items():
        megabytes = (f"{resident[key] / 1e6:,.0f}" for resident in result["bytes"].values())
        print(f"{key:>10}  {' / '.join(megabytes)} MB  {ratio:.2f}", file=sys.stderr)
    if args.save:
        save(RESULTS / f"{args.save}.json", result)
    print(json.dumps({"bytes": result["bytes"], "ratios": result["ratios"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
