"""Two models or two settings of one, side by side in one process: two recipes, or streams against none.

    python -m bench.side_by_side FOLDER OTHER [--kind int8] [--texts 200] [--rounds 7] [--save NAME]
    python -m bench.side_by_side FOLDER --kind float32 --streams 1      as it comes, against one stream

They embed the same texts in turns, so that what else the machine does hits both. The ratio is the median over
rounds of the speed of the first over that of the other. stdout ends with JSON. Knows nothing of recipes, nor
of how near the vectors are to float32.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.corpus import mixed
from bench.run import RESULTS, edge_embed_info, save
from edge_embed import Embedder


def seconds(embedder: Embedder, texts: Sequence[str]) -> float:
    """What one call takes."""
    began = time.perf_counter()
    embedder.encode(texts, show_progress_bar=False)
    return time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.side_by_side", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("other", type=Path, nargs="?", help="default: the same folder")
    parser.add_argument("--kind", default="int8", help="compute type of both (default: %(default)s)")
    parser.add_argument("--streams", type=int, help="of the other one only (default: as the plan has it)")
    parser.add_argument("--texts", type=int, default=200, help="of mixed length (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="of both (default: %(default)s)")
    parser.add_argument("--save", metavar="NAME", help="keep the result as bench/results/NAME.json")
    args = parser.parse_args(argv)

    texts = mixed(args.texts)
    other = args.other or args.folder
    pair = [
        Embedder(args.folder, compute_type=args.kind, cache_dir=False),
        Embedder(other, compute_type=args.kind, cache_dir=False, streams=args.streams),
    ]
    for embedder in pair:
        seconds(embedder, texts)  # kernels for every shape
    rounds = [[seconds(embedder, texts) for embedder in pair] for _ in range(args.rounds)]
    ratios = [theirs / ours for ours, theirs in rounds]
    info = edge_embed_info(args.folder, args.kind)
    result: dict[str, Any] = {
        "schema": 1,
        "machine": info["machine"],
        "versions": info["versions"],
        "folders": [args.folder.name, other.name],
        "compute_type": args.kind,
        "streams": [[embedder.plan.streams, embedder.plan.many_streams] for embedder in pair],
        "bytes": [embedder.plan.file.with_suffix(".bin").stat().st_size for embedder in pair],
        "texts": len(texts),
        "seconds": [[round(value, 3) for value in row] for row in rounds],
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }
    print(f"{args.folder.name} at {result['ratio']} ({result['spread']}) of {other.name}", file=sys.stderr)
    if args.save:
        save(RESULTS / f"{args.save}.json", result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
