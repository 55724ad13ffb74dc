"""The offline job against one Embedder.encode call in memory and against sentence-transformers, in one run.

    python -m bench.batch [--model NAME] [--texts 20000] [--rounds 3] [--threads N] [--save NAME]
    python -m bench.batch --input FILE [--model NAME] [--kind int8] [--save NAME]      one job, to the end

Subjects take turns, A B C A B C: encode and sentence-transformers' OpenVINO backend in processes that stay,
the job in a fresh process each time, from JSONL and from Parquet. Its pace is that after the model is loaded,
as it is for the others; the pace with the loading stands beside it. Everybody runs the same IR in float32.
stdout ends with JSON. Knows the command line of edge_embed only.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from bench import models, run, workloads
from bench.measure import REFERENCE, ROOT, Setting, Worker, say, subject_of
from bench.verdict import ST, UNSTEADY, summary
from bench.workloads import Workload

SUFFIXES = ("jsonl", "parquet")
LEAST_OF_ENCODE = 0.95  # of the texts/s of one call in memory
LEAST_OF_PEER = 2.2  # times those of sentence-transformers at its own batch size
CLOSEST = 1e-5  # how near all vectors have to be
FLOAT32 = "float32"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    folder = models.folder(args.model, kinds=() if args.kind == FLOAT32 else (args.kind,))
    result = run.facts(folder, args.threads)
    with tempfile.TemporaryDirectory(prefix="edge-embed-bench-") as scratch:
        setting = Setting(folder, result["threads"], Path(scratch))
        if args.input:
            result["job"] = job(args.input, setting.scratch / "shards", setting, args.kind)
            lines = []
        else:
            tokenizer = workloads.tokenizer_of(str(folder / "tokenizer.json"))
            work = workloads.workload("many", tokenizer, texts=args.texts)
            result["texts"] = work.facts()
            result["subjects"] = measure(args.against, setting, work, args.rounds)
            result["ratios"] = ratios(result["subjects"])
            lines = result["verdict"] = verdict(result["subjects"], subject_of(args.against[0]).name)
            print("", *table(result), "", *lines, sep="\n", file=sys.stderr)
    if args.save:
        run.save(run.RESULTS / f"{args.save}.json", result)
    print(json.dumps(result["job"] if args.input else {"ratios": result["ratios"], "verdict": lines}))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.batch", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--model", default=models.MINILM, help="as of bench.run: folder or name (default: %(default)s)"
    )
    parser.add_argument("--texts", type=int, default=20_000, help="how many (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each subject (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="for all subjects (default: those of edge_embed's plan)")
    parser.add_argument("--input", type=Path, help="run one job over this file instead, with a column text")
    parser.add_argument("--kind", default=FLOAT32, help="compute type of that job (default: %(default)s)")
    parser.add_argument(
        "--against",
        action="append",
        metavar="PEER@KIND:BATCH",
        help=f"repeatable; the first one is judged (default: {ST}, at its own batch size)",
    )
    parser.add_argument("--save", metavar="NAME", help="keep the result as bench/results/NAME.json")
    args = parser.parse_args(argv)
    args.against = args.against or [ST]
    return args


def measure(
    against: Sequence[str], setting: Setting, work: Workload, rounds: int
) -> dict[str, dict[str, Any]]:
    """Texts per second, peak memory and the difference of the vectors of every subject."""
    file = setting.scratch / "texts.json"
    file.write_text(json.dumps(work.texts), "utf-8")
    for suffix in SUFFIXES:
        write_rows(setting.scratch / f"rows.{suffix}", work.texts)
    stays = [subject_of(name) for name in (REFERENCE, *against)]
    names = [*(subject.name for subject in stays), *map(job_name, SUFFIXES)]
    seen: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    found: dict[str, NDArray[np.float32]] = {}

    def note(name: str, turn: int, answer: dict[str, Any]) -> None:
        say(f"round {turn} of {rounds}, {name}: {len(work.texts) / answer['seconds']:.1f} texts/s")
        for key in ("seconds", "all_seconds", "peak_bytes"):
            if key in answer and (
                turn or key == "peak_bytes"
            ):  # round 0 makes the kernels of those that stay
                seen[name].setdefault(key, []).append(answer[key])

    with contextlib.ExitStack() as stack:
        workers = {s.loaded: stack.enter_context(Worker(s, setting, cached=True)) for s in stays}
        for turn in range(rounds + 1):
            for subject in stays:
                kept = None if turn else setting.scratch / f"{subject.name}.npy"
                worker = workers[subject.loaded]
                note(subject.name, turn, worker.encode(file, batch_size=subject.batch_size, vectors=kept))
            for suffix in SUFFIXES:
                target = setting.scratch / f"shards-{suffix}-{turn}"
                note(
                    job_name(suffix), turn, job(setting.scratch / f"rows.{suffix}", target, setting, FLOAT32)
                )
                found[job_name(suffix)] = read_shards(target)
    found |= {subject.name: np.load(setting.scratch / f"{subject.name}.npy") for subject in stays}
    return {
        name: {
            "texts_per_second": summary([len(work.texts) / value for value in seen[name]["seconds"]]),
            "peak_bytes": int(max(seen[name]["peak_bytes"])),
            "max_abs_diff": float(np.abs(found[REFERENCE] - found[name]).max()),
        }
        | (
            {"with_loading": summary([len(work.texts) / value for value in seen[name]["all_seconds"]])}
            if "all_seconds" in seen[name]
            else {}
        )
        for name in names
    }


def job_name(suffix: str) -> str:
    """What the job is called that reads such files."""
    return f"batch:{suffix}"


def write_rows(path: Path, texts: Sequence[str]) -> None:
    """The texts as a column `text`."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": texts}), path)
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")


def job(rows: Path, target: Path, setting: Setting, kind: str) -> dict[str, Any]:
    """One job in a fresh process: its own summary, seconds after loading and all of them, peak memory."""
    options = ["--threads", str(setting.threads), "--compute-type", kind, "--on-overflow", "truncate"]
    arguments = [str(rows), "--to", str(target), "--model", str(setting.folder), *options, "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "edge_embed", "batch", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"bench: edge-embed batch ended with exit code {process.returncode}")
    done: dict[str, Any] = json.loads(lines[-1])
    seconds = done["seconds"] - done["loading_seconds"]
    return {
        "input": rows.name,
        "compute_type": kind,
        **{key: value for key, value in done.items() if key not in ("folder", "seconds")},
        "seconds": seconds,
        "all_seconds": done["seconds"],
        "rows_per_second": done["rows_in"] / seconds,
        "tokens_per_second": done["tokens"] / seconds,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "shard_bytes": sum(path.stat().st_size for path in target.glob("part-*")),
    }


def read_shards(folder: Path) -> NDArray[np.float32]:
    """(N, D) vectors of all shards, in the order of the input."""
    tables = [parquet.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    column = pyarrow.concat_tables(tables).sort_by("position")["embedding"].combine_chunks()
    rows: NDArray[np.float32] = column.flatten().to_numpy().reshape(len(column), -1)
    return rows


def ratios(subjects: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Texts/s of each kind of job over those of every other subject."""
    pace = {name: subject["texts_per_second"]["median"] for name, subject in subjects.items()}
    jobs = list(map(job_name, SUFFIXES))
    return {one: {name: pace[one] / pace[name] for name in pace if name not in jobs} for one in jobs}


def verdict(subjects: dict[str, dict[str, Any]], peer: str) -> list[str]:
    """One line for each promise, then one for each subject whose rounds were too far apart to be believed."""
    lines = []
    for one, found in ratios(subjects).items():
        for name, least in ((REFERENCE, LEAST_OF_ENCODE), (peer, LEAST_OF_PEER)):
            word = "met " if found[name] >= least else "MISS"
            lines.append(f"{word} {found[name]:6.3f} >= {least:<5}  texts/s, {one} over {name}")
    for name, subject in subjects.items():
        if not subject["max_abs_diff"] <= CLOSEST:
            lines.append(f"MISS {subject['max_abs_diff']:.1e} <= {CLOSEST}  largest difference of {name}")
        spread = subject["texts_per_second"]["spread"]
        if not spread <= UNSTEADY:
            lines.append(f"UNSTEADY: rounds of {name} spread by {spread:.0%}; run again on a quiet machine")
    return lines


def table(result: dict[str, Any]) -> list[str]:
    """The lines of a table for people."""
    lines = [
        f"{result['machine']['cpu_model']}, {result['threads']} threads, {result['texts']['count']:,} texts, "
        f"{result['model']['folder']}",
        f"{'subject':36}{'texts/s':>10}{'spread':>9}{'with loading':>14}{'peak MB':>9}{'difference':>12}",
    ]
    for name, subject in result["subjects"].items():
        pace = subject["texts_per_second"]
        loading = f"{subject['with_loading']['median']:.1f}" if "with_loading" in subject else "-"
        lines.append(
            f"{name:36}{pace['median']:>10.1f}{pace['spread']:>9.1%}{loading:>14}"
            f"{subject['peak_bytes'] / 1e6:>9.0f}{subject['max_abs_diff']:>12.1e}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
