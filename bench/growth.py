"""Cost as it should grow: time and memory of edge_embed along five axes, with the exponent of each.

    python -m bench.growth FOLDER [--kind float32] [--axis length,batch,rows,threads,vocabulary] [--save NAME]

    length      one text of 8 to 32,768 tokens
    batch       1 to 64 texts of 128 tokens in one call with that batch size
    rows        1,000 to 100,000 short texts through `edge-embed batch`
    threads     16 texts of 128 tokens with 1, 2, ... threads
    vocabulary  a query through a small exact shape with 16,384 to 262,144 rows

Every point has fresh processes. A cost is fitted as a power of the axis over the upper half of its points,
where what does not grow weighs least. stdout ends with JSON; --save also writes a picture of each axis to
docs/plots. Knows no peers, and nothing of how good vectors are.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import models
from bench.corpus import mixed
from bench.measure import OURS, ROOT, Setting, Subject, Worker, child, say
from bench.peers import Unavailable
from bench.run import RESULTS, facts, save
from bench.shapes import SHAPES, write_shape
from bench.workloads import texts_of, tokenizer_of

PLOTS = ROOT / "docs" / "plots"
ROUNDS = 3  # after one warm-up
ROUND_SECONDS = 0.3  # a shorter call is made several times a round
TEXT, TEXTS, QUERY = 128, 16, 12  # tokens of a text, texts a call, tokens of a query
SMALL = "granite-embedding-97m-multilingual-r2"
BENT = 2048  # tokens; longer texts feel the layers that look at all tokens

Point = dict[str, float]  # "x", then cost -> seconds or bytes


@dataclass(frozen=True, slots=True)
class Expected:
    """What a cost should grow by: an exponent from `low` to `high`, over points from `first` to `last`."""

    cost: str
    low: float
    high: float
    first: float = 0
    last: float = math.inf


@dataclass(frozen=True, slots=True)
class Fit:
    """cost = factor * x ** exponent, from one x to another."""

    expected: Expected
    exponent: float
    factor: float
    first: float
    last: float

    @property
    def met(self) -> bool:
        return self.expected.low <= self.exponent <= self.expected.high


@dataclass(frozen=True, slots=True)
class Run:
    """What all points of a run share."""

    folder: Path
    kind: str
    threads: int
    scratch: Path
    rows_model: str


@dataclass(frozen=True, slots=True)
class Axis:
    """What is varied, how a point of it is measured, and what is expected."""

    name: str
    values: tuple[int, ...]
    counts: str  # label of the axis
    point: Callable[[Run, int], Point]
    expected: tuple[Expected, ...]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    folder = models.folder(args.folder, kinds=[args.kind])
    result = facts(folder, None) | {"schema": 1, "kind": args.kind, "axes": {}}
    with tempfile.TemporaryDirectory(prefix="edge-embed-growth-") as scratch:
        run = Run(folder, args.kind, result["threads"], Path(scratch), args.rows_model)
        load_seconds(run)  # the first load compares the passes, which is no cost of a later one
        for axis in args.axis:
            values = getattr(args, axis.name) or usual(axis, result)
            result["axes"][axis.name] = found = along(axis, values, run)
            print(*table(axis, found["points"]), *found["verdict"], "", sep="\n", file=sys.stderr)
    if args.save:
        save(RESULTS / f"{args.save}.json", result)
        draw(result, PLOTS, args.save)
    print(json.dumps({name: found["verdict"] for name, found in result["axes"].items()}))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    def axes(text: str) -> list[Axis]:
        if unknown := set(text.split(",")) - AXES.keys():
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not of {', '.join(AXES)}")
        return [AXES[name] for name in text.split(",")]

    def numbers(text: str) -> tuple[int, ...]:
        if not all(part.isdecimal() and int(part) for part in text.split(",")):
            raise argparse.ArgumentTypeError(f"{text} is no list of numbers above 0")
        return tuple(sorted({int(part) for part in text.split(",")}))

    parser = argparse.ArgumentParser(
        prog="python -m bench.growth", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", help="model folder, or a name that `make bench` takes")
    parser.add_argument("--kind", default="float32", help="compute type (default: %(default)s)")
    parser.add_argument("--axis", type=axes, default=list(AXES.values()), help=f"of {', '.join(AXES)}")
    for axis in AXES.values():
        shown = ",".join(map(str, axis.values)) or "1, 2, 4, ... cores"
        parser.add_argument(f"--{axis.name}", type=numbers, metavar="N,N,...", help=f"(default: {shown})")
    parser.add_argument(
        "--rows-model", default=models.MINILM, metavar="MODEL", help="of the axis rows (default: %(default)s)"
    )
    parser.add_argument(
        "--save", metavar="NAME", help="keep bench/results/NAME.json, docs/plots/NAME-AXIS.svg"
    )
    return parser.parse_args(argv)


def usual(axis: Axis, result: dict[str, Any]) -> tuple[int, ...]:
    """The values of an axis, as far as the model and the machine go."""
    if axis.name == "threads":
        cores = result["machine"]["physical_cores"] or result["threads"]
        return tuple(sorted({2**i for i in range(cores.bit_length())} | {cores}))
    if axis.name == "length":
        return tuple(value for value in axis.values if value <= result["model"]["max_tokens"])
    return axis.values


def along(axis: Axis, values: Sequence[int], run: Run) -> dict[str, Any]:
    """{"counts", "points", "failed", "fits", "verdict"}; a point that fails is left out, and said."""
    points: list[Point] = []
    failed: dict[str, str] = {}
    for value in values:
        say(f"{axis.name} {value:,}")
        try:
            points.append(axis.point(run, value))
        except (Unavailable, subprocess.CalledProcessError) as error:
            failed[str(value)] = str(error)
            say(f"{axis.name} {value:,} failed: {error}")
    fits = [fit for expected in axis.expected if (fit := fitted(points, expected))]
    return {
        "counts": axis.counts,
        "points": points,
        "failed": failed,
        "fits": [asdict(fit) for fit in fits],
        "verdict": [verdict(axis, fit) for fit in fits]
        + [f"FAIL  {axis.name} {value}: {reason}" for value, reason in failed.items()],
    }


def fitted(points: Sequence[Point], expected: Expected) -> Fit | None:
    """Least squares of the logarithms over the upper half of the points; None for fewer than two."""
    inside = [point for point in points if expected.first <= point["x"] <= expected.last]
    if len(inside) < 2:
        return None
    upper = inside[min(len(inside) // 2, len(inside) - 2) :]
    x, y = ([math.log(point[key]) for point in upper] for key in ("x", expected.cost))
    exponent, constant = np.polyfit(x, y, 1)
    return Fit(expected, float(exponent), math.exp(constant), upper[0]["x"], upper[-1]["x"])


def verdict(axis: Axis, fit: Fit) -> str:
    """One line: the exponent, and what was expected."""
    expected, word = fit.expected, "met " if fit.met else "MISS"
    return (
        f"{word}  {axis.name}: {expected.cost} grows with exponent {fit.exponent:z.2f}, expected "
        f"{expected.low:g} to {expected.high:g}, from {fit.first:,.0f} to {fit.last:,.0f} {axis.counts}"
    )


def table(axis: Axis, points: Sequence[Point]) -> Iterator[str]:
    """Lines for people: milliseconds and megabytes."""
    if not points:
        return
    costs = [cost for cost in points[0] if cost != "x"]
    titles = [f"{cost}, {'MB' if is_memory(cost) else 'ms'}" for cost in costs]
    yield "".join(f"{title:>25}" for title in (axis.counts, *titles))
    for point in points:
        cells = (point[cost] / 1e6 if is_memory(cost) else 1000 * point[cost] for cost in costs)
        yield f"{point['x']:>25,.0f}" + "".join(f"{cell:>25,.1f}" for cell in cells)


def is_memory(cost: str) -> bool:
    """Costs are seconds, but for those that are called memory."""
    return "memory" in cost


def of_length(run: Run, tokens: int) -> Point:
    texts = texts_of(tokenizer_of(str(run.folder / "tokenizer.json")), tokens, 1)
    return {"x": tokens} | of_call(run, texts)


def of_batch(run: Run, size: int) -> Point:
    texts = texts_of(tokenizer_of(str(run.folder / "tokenizer.json")), TEXT, size)
    return {"x": size} | of_call(run, texts, batch_size=size)


def of_threads(run: Run, threads: int) -> Point:
    texts = texts_of(tokenizer_of(str(run.folder / "tokenizer.json")), TEXT, TEXTS)
    return {"x": threads} | of_call(replace(run, threads=threads), texts)


def of_call(run: Run, texts: Sequence[str], *, batch_size: int = 0) -> Point:
    """The time of a call with these texts, and the peak memory of the process that made it."""
    with started(run) as worker:
        seconds, peak = timed(worker, run, texts, batch_size)
    return {"time": seconds, "peak memory": peak}


def started(run: Run) -> Worker:
    """A fresh process that has embedded its first text."""
    return Worker(Subject(OURS, run.kind), Setting(run.folder, run.threads, run.scratch), cached=False)


def timed(worker: Worker, run: Run, texts: Sequence[str], batch_size: int = 0) -> tuple[float, int]:
    """Seconds of a call, median of the rounds, and the peak memory. Short calls are made often in a round."""
    file = run.scratch / "texts.json"
    file.write_text(json.dumps(texts), "utf-8")
    warm = worker.encode(file, batch_size=batch_size)["seconds"]
    calls = max(1, round(ROUND_SECONDS / warm))
    rounds = [[worker.encode(file, batch_size=batch_size) for _ in range(calls)] for _ in range(ROUNDS)]
    seconds = statistics.median(statistics.fmean(call["seconds"] for call in calls) for calls in rounds)
    return seconds, rounds[-1][-1]["peak_bytes"]


# Peak memory by VmHWM, as a worker has it: what the system counts for a child starts from its parent's.
BATCH = """
import json, sys
from bench.worker import peak_bytes
from edge_embed.cli import main
if code := main(sys.argv[1:]):
    sys.exit(code)
print(json.dumps(peak_bytes()))
"""


def of_rows(run: Run, rows: int) -> Point:
    """Jobs over so many rows, without the time that loading the model takes."""
    source = run.scratch / "rows.jsonl"
    lines = [text.partition("\n")[0] for text in mixed(1000)]
    with source.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"{i} {lines[i % len(lines)]}"}) + "\n" for i in range(rows))
    folder = models.folder(run.rows_model, kinds=[run.kind])
    options = [
        "--compute-type",
        run.kind,
        "--threads",
        str(run.threads),
        "--on-overflow",
        "truncate",
        "--json",
    ]
    seconds, peaks = [], []
    with tempfile.TemporaryDirectory(dir=run.scratch) as shards:
        for turn in range(ROUNDS):
            target = str(Path(shards, str(turn)))
            shown = child("-c", BATCH, "batch", str(source), "--to", target, "--model", str(folder), *options)
            *_, job, peak = shown.splitlines()
            done = json.loads(job)
            seconds.append(done["seconds"] - done["loading_seconds"])
            peaks.append(int(peak))
    return {"x": rows, "time": statistics.median(seconds), "peak memory": statistics.median(peaks)}


LOAD = """
import sys, time
from edge_embed import Embedder
began = time.perf_counter()
Embedder(sys.argv[1], compute_type=sys.argv[2], threads=int(sys.argv[3]), cache_dir=False)
print(time.perf_counter() - began)
"""


def load_seconds(run: Run) -> float:
    """What it takes to make an Embedder in a fresh process, imports left out."""
    return float(child("-c", LOAD, str(run.folder), run.kind, str(run.threads)))


def of_vocabulary(run: Run, rows: int) -> Point:
    """Loading, a fresh process to its first vector, one query, and memory, with a table of so many rows."""
    with tempfile.TemporaryDirectory(dir=run.scratch) as made:
        folder = write_shape(replace(SHAPES[SMALL], vocabulary=rows), Path(made, "model"))
        models.command("build", str(folder))
        models.folder(str(folder), kinds=[run.kind])
        here = replace(run, folder=folder)
        _, *loads = [load_seconds(here) for _ in range(1 + ROUNDS)]
        query = texts_of(tokenizer_of(str(folder / "tokenizer.json")), QUERY, 1)
        starts, queries, resident, peaks = [], [], [], []
        for _ in range(ROUNDS):
            with started(here) as worker:
                starts.append(worker.start_seconds)
                resident.append(worker.loaded_bytes)
                seconds, peak = timed(worker, here, query)
                queries.append(seconds)
                peaks.append(peak)
    return {
        "x": rows,
        "query": statistics.median(queries),
        "load": statistics.median(loads),
        "first vector": statistics.median(starts),
        "memory after loading": statistics.median(resident),
        "peak memory": statistics.median(peaks),
    }


# A little room about whole exponents: rounds waver, and what does not grow bends the lower end of a line.
AXES = {
    axis.name: axis
    for axis in (
        Axis(
            "length",
            tuple(2**i for i in range(3, 16)),
            "tokens",
            of_length,
            (
                Expected("time", 0.8, 1.15, last=BENT),
                Expected("time", 0.9, 2.0, first=BENT),
                Expected("peak memory", -0.1, 1.0),
            ),
        ),
        Axis(
            "batch",
            (1, 2, 4, 8, 16, 32, 64),
            "texts a batch",
            of_batch,
            (Expected("time", 0.85, 1.1), Expected("peak memory", -0.1, 1.0)),
        ),
        Axis(
            "rows",
            (1_000, 3_000, 10_000, 30_000, 100_000),
            "rows",
            of_rows,
            (Expected("time", 0.9, 1.1), Expected("peak memory", -0.1, 0.1)),
        ),
        Axis(
            "threads",
            (),
            "threads",
            of_threads,
            (Expected("time", -1.1, -0.8), Expected("peak memory", -0.1, 0.1)),
        ),
        Axis(
            "vocabulary",
            (16_384, 32_768, 65_536, 131_072, 262_144),
            "rows of the token table",
            of_vocabulary,
            (
                Expected("query", -0.1, 0.1),
                Expected("load", -0.1, 1.0),
                Expected("first vector", -0.1, 1.0),
                Expected("memory after loading", -0.1, 1.0),
                Expected("peak memory", -0.1, 1.0),
            ),
        ),
    )
}


def draw(result: dict[str, Any], folder: Path, name: str) -> None:
    """Write a picture of each axis that has two points or more."""
    from bench import svg

    for axis, found in result["axes"].items():
        if len(found["points"]) < 2:
            continue
        panels: dict[str, list[svg.Series]] = {"s": [], "B": []}
        for cost in found["points"][0]:
            if cost == "x":
                continue
            lines = [
                svg.Line(fit["factor"], fit["exponent"], fit["first"], fit["last"])
                for fit in found["fits"]
                if fit["expected"]["cost"] == cost
            ]
            x, y = ([point[key] for point in found["points"]] for key in ("x", cost))
            panels["B" if is_memory(cost) else "s"].append(svg.Series(cost, x, y, lines))
        model = SMALL if axis == "vocabulary" else result["model"]["folder"]
        title = f"{model}, {result['kind']}, {result['machine']['cpu_model']}"
        if axis != "threads":
            title += f", {result['threads']} threads"
        svg.growth(folder / f"{name}-{axis}.svg", title=title, x=found["counts"], panels=panels)


if __name__ == "__main__":
    sys.exit(main())
