"""One text at a time, by its length: edge_embed against OpenVINO alone on the same IR. Time and peak memory.

    python -m bench.lengths FOLDER [--int8] [--lengths 8,64,512,2048,8192] [--rounds 5] [--save NAME]

FOLDER is a model folder with an IR that edge_embed did not make, as bench/stand_in.py writes one: then the
graph that others run is compared with the same graph after the passes. Every length has two fresh processes
that take turns. stdout ends with JSON.
"""

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import Setting, Subject, Worker, say
from bench.run import RESULTS, edge_embed_info, save
from bench.verdict import summary
from bench.workloads import texts_of, tokenizer_of

LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
SHORT = 512  # up to here one round is many texts, each a call of its own
TOKENS_A_ROUND = 2048
MOST_TEXTS = 32

PLACES = ("folder", "file", "cache")  # of a plan; where things lie on one machine is nobody's business


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lengths", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="model folder with openvino/openvino_model.xml")
    parser.add_argument("--int8", action="store_true", help="the static INT8 IR instead of the float32 one")
    parser.add_argument(
        "--lengths", default=",".join(map(str, LENGTHS)), help="tokens (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="for both (default: those of edge_embed's plan)")
    parser.add_argument(
        "--alone", action="store_true", help="edge_embed alone, where the other has no memory"
    )
    parser.add_argument("--save", metavar="NAME", help="keep the result as bench/results/NAME.json")
    args = parser.parse_args(argv)

    kind = "int8" if args.int8 else "float32"
    info = edge_embed_info(args.folder, kind)
    threads = args.threads or info["plan"]["threads"]
    tokenizer = tokenizer_of(str(args.folder / "tokenizer.json"))
    peers = ["edge"] if args.alone else ["edge", "openvino_plain"]
    subjects = [Subject(peer, kind) for peer in peers]
    rows = []
    with tempfile.TemporaryDirectory(prefix="edge-embed-bench-") as scratch:
        setting = Setting(args.folder, threads, Path(scratch))
        for length in map(int, args.lengths.split(",")):
            count = max(1, min(MOST_TEXTS, TOKENS_A_ROUND // length)) if length <= SHORT else 1
            rows.append(measure(subjects, setting, texts_of(tokenizer, length, count), args.rounds, length))
            print(*table(rows[-1:], heading=len(rows) == 1), sep="\n", file=sys.stderr)
    result = {
        "schema": 1,
        "model": {"folder": args.folder.name, "file": info["model"]["file"]},
        "machine": info["machine"],
        "versions": {"python": platform.python_version(), **info["versions"]},
        "plan": {key: value for key, value in info["plan"].items() if key not in PLACES},
        "threads": threads,
        "rows": rows,
    }
    if args.save:
        save(RESULTS / f"{args.save}.json", result)
    print(json.dumps({"rows": rows}))
    return 0


def measure(
    subjects: Sequence[Subject], setting: Setting, texts: list[str], rounds: int, length: int
) -> dict[str, Any]:
    """One row: seconds a text, peak memory of the process, and how far the vectors are apart."""
    file = setting.scratch / f"texts-{length}.json"
    file.write_text(json.dumps(texts), "utf-8")
    peers = [subject.peer for subject in subjects]
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}
    peaks: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        workers = {s.peer: stack.enter_context(Worker(s, setting, cached=False)) for s in subjects}
        for turn in range(rounds + 1):  # turn 0 is the warm-up, and keeps the vectors
            for peer, worker in workers.items():
                say(f"{length} tokens, round {turn} of {rounds}, {peer}")
                vectors = None if turn else setting.scratch / f"{peer}.npy"
                answer = worker.encode(file, vectors=vectors, callers=1)
                peaks[peer] = answer["peak_bytes"]
                if turn:
                    seconds[peer].append(answer["seconds"] / len(texts))
    edge, *others = peers
    row: dict[str, Any] = {
        "tokens": length,
        "texts": len(texts),
        "seconds": {peer: summary(seconds[peer]) for peer in peers},
        "peak_bytes": peaks,
    }
    for other in others:
        pairs = zip(seconds[edge], seconds[other], strict=True)
        row["time_ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
        row["memory_ratio"] = peaks[edge] / peaks[other]
        ours, theirs = (np.load(setting.scratch / f"{peer}.npy") for peer in (edge, other))
        row["max_abs_diff"] = float(np.abs(ours - theirs).max())
    return row


def table(rows: Sequence[dict[str, Any]], *, heading: bool) -> list[str]:
    """Lines for people: milliseconds and megabytes of each side, and ours over theirs."""
    lines = []
    if heading:
        lines.append(
            f"{'tokens':>7}{'ms':>12}{'plain ms':>12}{'time':>8}{'MB':>8}{'plain MB':>10}{'memory':>8}"
        )
    for row in rows:
        times = [1000 * seconds["median"] for seconds in row["seconds"].values()]
        peaks = [peak / 1e6 for peak in row["peak_bytes"].values()]
        if len(times) == 1:
            lines.append(
                f"{row['tokens']:>7}{times[0]:>12.1f}{'-':>12}{'-':>8}{peaks[0]:>8.0f}{'-':>10}{'-':>8}"
            )
            continue
        lines.append(
            f"{row['tokens']:>7}{times[0]:>12.1f}{times[1]:>12.1f}{row['time_ratio']:>8.3f}"
            f"{peaks[0]:>8.0f}{peaks[1]:>10.0f}{row['memory_ratio']:>8.3f}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
