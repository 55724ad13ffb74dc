"""A kept result of `make bench` as a picture: what the machine allows, and what edge_embed reaches of it.

    python -m bench.roofline bench/results/NAME.json docs/plots/roofline.svg

Ceilings are the products alone (matmuls@KIND) of the result. The bandwidth of memory is measured here, by
adding up more numbers than caches hold on as many threads as the result had, so run it on the same machine.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench import svg
from bench.svg import Point
from bench.verdict import LIMIT

BYTES_A_WEIGHT = {"float32": 4, "bfloat16": 2, "int8": 1}
TOKEN_BUDGET = 512  # tokens that one inference of many short texts has
WORKLOADS = {"query": 12, "uniform128": TOKEN_BUDGET, "uniform512": TOKEN_BUDGET}
"""Workload -> tokens of one inference."""

BLOCK = 64 << 20  # float32 numbers a thread adds up: 256 MB
ROUNDS = 5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.roofline", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("result", type=Path, help="of bench.run, with uniform128 and matmuls")
    parser.add_argument("picture", type=Path, help="the .svg to write")
    args = parser.parse_args(argv)
    result = json.loads(args.result.read_text("utf-8"))
    limits = ceilings(result["workloads"])
    reached = {kind: points(result["workloads"], kind) for kind in limits}
    speed = bandwidth(result["threads"])
    svg.roofline(
        args.picture,
        title=f"{result['model']['folder']}, {result['threads']} threads",
        ceilings={kind: limit["flops"] for kind, limit in limits.items()},
        bandwidth=speed,
        points=reached,
    )
    print(json.dumps({"bytes_per_second": speed, "flops": {kind: limits[kind]["flops"] for kind in limits}}))
    return 0


def ceilings(workloads: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Compute type -> FLOP/s of its products, and FLOP a token. Errors: SystemExit where none was run."""
    found = {}
    for workload in ("uniform128", "uniform512"):
        for name, row in workloads.get(workload, {}).get("subjects", {}).items():
            peer, _, kind = name.partition("@")
            if peer == LIMIT and kind in BYTES_A_WEIGHT and "median" in row and kind not in found:
                per_token = float(row["effective"]["flop_per_token"])
                found[kind] = {"flops": row["median"] * per_token, "per_token": per_token}
    if not found:
        raise SystemExit(f"bench: the result has no uniform128 with {LIMIT}@float32; run that first")
    return found


def points(workloads: Mapping[str, Any], kind: str) -> list[Point]:
    """What edge_embed reached in one compute type, workload by workload."""
    per_token = ceilings(workloads)[kind]["per_token"]
    found = []
    for workload, tokens in WORKLOADS.items():
        row = workloads.get(workload, {}).get("subjects", {}).get(f"edge@{kind}", {})
        if "median" not in row:
            continue
        lower = workloads[workload]["better"] == "lower"
        rate = tokens / (row["median"] / 1000) if lower else row["median"]  # tokens/s
        found.append(Point(workload, 2 * tokens / BYTES_A_WEIGHT[kind], rate * per_token))
    return found


def bandwidth(threads: int) -> float:
    """Bytes/s that memory gives to so many threads, each reading an array of its own: the best of ROUNDS."""
    arrays = [np.ones(BLOCK, np.float32) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            list(pool.map(np.sum, arrays))
            best = max(best, sum(array.nbytes for array in arrays) / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    sys.exit(main())
