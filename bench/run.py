"""Side by side with every peer in one run: `make bench`. What is run, and where the result goes.

    python -m bench.run [--model FOLDER|NAME] [--workloads mixed,query,start] [--subjects edge@int8,...]

Knows nothing of how a peer works (bench/peers), how it is timed (measure) or judged (verdict).
stderr is for people and ends with a table; the last line of stdout is JSON.
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import measure, models, workloads
from bench.limits import share_of_limit
from bench.measure import OURS, REFERENCE, ROOT, Rounds, Setting, Subject, say, subject_of
from bench.peers import Unavailable
from bench.shapes import SHAPES
from bench.verdict import LIMIT, summary, verdict
from bench.workloads import Workload
from edge_embed.cli import main as edge_embed_command

RESULTS = ROOT / "bench" / "results"
STARTS = ("start", "start_cached", "memory")  # of fresh processes: seconds, the same with a cache, bytes
USUAL = ("mixed", "uniform128", "uniform512", "query", "queries4", "document2k", "document8k", *STARTS)
PACKAGES = (
    *("numpy", "openvino", "openvino-genai", "tokenizers", "sentence-transformers"),
    *("optimum-intel", "optimum", "transformers", "torch"),
    *("onnxruntime", "fastembed", "light-embed", "embed_anything", "xllamacpp"),
)
LIMITED = ("uniform128", "uniform512", "mixed", "document8k", "document32k")  # against the matmuls alone


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    subjects = args.subjects or everything()
    folder = models.folder(args.model, kinds={subject.kind for subject in subjects})
    tokenizer = workloads.tokenizer_of(str(folder / "tokenizer.json"))
    result = facts(folder, args.threads)
    with tempfile.TemporaryDirectory(prefix="edge-embed-bench-") as scratch:
        setting = Setting(folder, result["threads"], Path(scratch))
        measured: dict[str, Any] = {}
        for name in args.workloads:
            if name in STARTS:
                continue
            work = workloads.workload(name, tokenizer, texts=args.texts)
            if len(work.texts) == 1 and work.tokens > result["model"]["max_tokens"]:
                say(f"{name} is left out: {result['model']['max_tokens']} tokens are this model's limit")
                continue
            measured[name] = of_texts(subjects, setting, work, args.rounds, best=args.best)
            print(*table(name, measured[name]), sep="\n", file=sys.stderr)
        if asked := [name for name in STARTS if name in args.workloads]:
            found = of_starts(subjects, setting, args.rounds)
            measured |= {name: found[name] for name in asked}
            for name in asked:
                print(*table(name, measured[name]), sep="\n", file=sys.stderr)
    result["versions"] |= elsewhere()
    result["workloads"] = measured
    result["verdict"] = verdict(result)
    print("", *result["verdict"], sep="\n", file=sys.stderr)
    if args.save:
        save(RESULTS / f"{args.save}.json", result)
    print(json.dumps({"workloads": brief(measured), "verdict": result["verdict"]}))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    def subjects(text: str) -> list[Subject]:
        try:
            return [subject_of(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    known = (*workloads.NAMES, *STARTS)

    def names(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not of {', '.join(known)}")
        return text.split(",")

    parser = argparse.ArgumentParser(prog="python -m bench.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model",
        default=models.MINILM,
        help=f"folder, pulled name, or one of {', '.join(SHAPES)} with random weights, made in "
        "build/models (default: %(default)s)",
    )
    parser.add_argument(
        "--workloads", type=names, default=list(USUAL), help=f"of {', '.join(known)} (default: most)"
    )
    parser.add_argument(
        "--subjects",
        type=subjects,
        help="PEER@KIND:BATCH, kind and batch optional (default: all of bench/peers)",
    )
    parser.add_argument(
        "--no-best", dest="best", action="store_false", help="each at its own batch size only"
    )
    parser.add_argument("--texts", type=int, help="another number of texts in each workload")
    parser.add_argument("--rounds", type=int, default=5, help="timed passes of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="for all subjects (default: those of edge_embed's plan)")
    parser.add_argument("--save", metavar="NAME", help="keep the result as bench/results/NAME.json")
    return parser.parse_args(argv)


def everything() -> list[Subject]:
    """All that bench/peers has; those that cannot run a model say so in their row."""
    modules = sorted(path.stem for path in (ROOT / "bench" / "peers").glob("*.py") if path.stem != "__init__")
    kinds = {peer: importlib.import_module(f"bench.peers.{peer}").KINDS for peer in modules}
    return [Subject(peer, kind) for peer in modules for kind in kinds[peer]]


def of_texts(
    subjects: Sequence[Subject], setting: Setting, work: Workload, rounds: int, *, best: bool
) -> dict[str, Any]:
    """A workload of texts as a result has it."""
    here = [s for s in subjects if s.peer != LIMIT or work.name in LIMITED]
    if work.callers:
        here = [s for s in here if s.batch_size == 0]
    elif best:
        here = measure.best_sizes(here, setting, work)
    if work.name == "soak":
        here = [s for s in here if s.peer == OURS]
    found = measure.run(here, setting, work, 1 if work.name == "soak" else rounds)
    rows = {subject.name: row(subject, found, work) for subject in here}
    if len(work.texts) == 1:
        for kind in ("float32", "bfloat16", "int8"):
            ours, limit = rows.get(f"{OURS}@{kind}", {}), rows.get(f"{LIMIT}@{kind}", {})
            if "median" in ours and "median" in limit:
                seconds = work.tokens / ours["median"]
                ours["limit"] = share_of_limit(setting.folder, work.tokens, seconds, limit)
    return {
        "texts": work.facts(),
        "unit": "ms" if work.by_call else "tokens/s",
        "better": "lower" if work.by_call else "higher",
        "subjects": rows,
    }


def row(subject: Subject, found: Rounds, work: Workload) -> dict[str, Any]:
    """What one subject made of a workload."""
    if subject.name not in found.seconds:
        return {"failed": found.failed.get(subject.loaded, "it gave no figures")}
    flat = [seconds for group in found.seconds[subject.name] for seconds in group]
    if work.by_call:
        each = found.each[subject.name]
        figures = summary([1000 * statistics.median(calls) for calls in each])
        every = sorted(1000 * seconds for calls in each for seconds in calls)
        figures |= {"p99": every[min(len(every) - 1, round(0.99 * len(every)))], "calls": len(every)}
    else:
        figures = summary([work.tokens / seconds for seconds in flat])
        figures["texts_per_second"] = len(work.texts) / statistics.median(flat)
    figures |= found.facts[subject.name]
    if subject.peer != LIMIT and REFERENCE in found.vectors:
        figures["difference"] = difference(found.vectors[REFERENCE], found.vectors[subject.name])
    others = {name: found.ratio(subject.name, name) for name in found.seconds if name != subject.name}
    if subject.peer == OURS:
        figures["times_as_fast_as"] = {name: ratio for name, ratio in others.items() if ratio}
    return figures


def difference(reference: NDArray[np.float32], vectors: NDArray[np.float32]) -> dict[str, float]:
    """How far vectors are from those of the reference: the largest component, and cosines."""
    if reference.shape != vectors.shape:
        return {"max_abs": float("inf"), "cosine": 0.0, "least_cosine": 0.0}
    cosines = np.einsum("nd,nd->n", reference, vectors) / (
        np.linalg.norm(reference, axis=1) * np.linalg.norm(vectors, axis=1)
    )
    return {
        "max_abs": float(np.abs(reference - vectors).max()),
        "cosine": float(cosines.mean()),
        "least_cosine": float(cosines.min()),
    }


def of_starts(subjects: Sequence[Subject], setting: Setting, rounds: int) -> dict[str, dict[str, Any]]:
    """Fresh processes as a result has them: `start`, `start_cached`, and `memory` without a cache."""
    found = measure.starts([s for s in subjects if s.peer != LIMIT], setting, rounds)

    def figures(kind: str, *, seconds: bool) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {}
        for name, starts in found.items():
            if isinstance(starts, str):
                rows[name] = {"failed": starts}
                continue
            sizes = {key: value for key, value in starts[kind].items() if key != "seconds"}
            peak = summary([starts[kind]["peak_bytes"]])
            rows[name] = (starts[kind]["seconds"] if seconds else peak) | sizes
        return rows

    return {
        "start": {"unit": "s", "better": "lower", "subjects": figures("uncached", seconds=True)},
        "start_cached": {"unit": "s", "better": "lower", "subjects": figures("cached", seconds=True)},
        "memory": {"unit": "bytes", "better": "lower", "subjects": figures("uncached", seconds=False)},
    }


def facts(folder: Path, threads: int | None) -> dict[str, Any]:
    """Model, machine and versions: all of a result but its figures."""
    info = edge_embed_info(folder, "float32")
    return {
        "schema": 2,
        "model": info["model"] | {"folder": folder.name, "sha256": digests(folder)},
        "machine": info["machine"] | {"governor": governor(), "load_average": load_average()},
        "versions": versions(info),
        "threads": threads or info["plan"]["threads"],
    }


def edge_embed_info(folder: Path, compute_type: str) -> dict[str, Any]:
    """What `edge-embed info --json` says of this model on this machine.

    It also has the passes checked before anything is timed.
    """
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        code = edge_embed_command(["info", str(folder), "--compute-type", compute_type, "--json"])
    if code:
        raise SystemExit(code)
    info: dict[str, Any] = json.loads(shown.getvalue().splitlines()[-1])
    return info


def versions(info: dict[str, Any]) -> dict[str, str]:
    found = {"python": platform.python_version(), **info["versions"]}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def elsewhere() -> dict[str, str]:
    """Versions in the environment of the peers that has other ones, as "peers: NAME"."""
    try:
        python = measure.python_of("onnx_runtime")
    except Unavailable:
        return {}
    script = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({d.name: d.version for d in m.distributions() if d.name in sys.argv[1:]}))"
    )
    shown = subprocess.run([python, "-c", script, *PACKAGES], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, str] = json.loads(shown.stdout)
    return {f"peers: {name}": version for name, version in sorted(found.items())}


def governor() -> str | None:
    """The frequency governor of the first core, where the kernel shows one."""
    file = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return file.read_text().strip() if file.is_file() else None


def load_average() -> list[float] | None:
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


def digests(folder: Path) -> dict[str, str]:
    """sha256 of each IR of a folder, weights included."""
    found = {}
    for file in sorted((folder / "openvino").glob("openvino_model*.*")):
        with file.open("rb") as content:
            found[f"openvino/{file.name}"] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def table(name: str, measured: dict[str, Any]) -> list[str]:
    """Lines for people: every subject of a workload, the fastest first."""
    lower = measured["better"] == "lower"
    rows = measured["subjects"]
    ran = [one for one in rows if "failed" not in rows[one]]
    ran.sort(key=lambda one: rows[one]["median"], reverse=not lower)
    divisor = 1e6 if measured["unit"] == "bytes" else 1
    unit = "MB" if measured["unit"] == "bytes" else measured["unit"]
    lines = ["", f"{name:46}{unit:>12}{'spread':>9}{'p99':>9}{'peak MB':>9}{'cosine':>9}{'off by':>9}"]
    for one in ran:
        found = rows[one]
        apart = found.get("difference")
        lines.append(
            f"{one:46}{found['median'] / divisor:>12.4g}{found['spread']:>9.1%}"
            + (f"{found['p99']:>9.4g}" if "p99" in found else f"{'-':>9}")
            + f"{found['peak_bytes'] / 1e6:>9.0f}"
            + (f"{apart['cosine']:>9.4f}{apart['max_abs']:>9.1e}" if apart else f"{'-':>9}{'-':>9}")
        )
    return [*lines, *(f"{one:46}  {rows[one]['failed']}" for one in rows if one not in ran)]


def brief(measured: dict[str, Any]) -> dict[str, Any]:
    """The medians alone."""
    return {
        name: {one: row.get("median", row.get("failed")) for one, row in found["subjects"].items()}
        for name, found in measured.items()
    }


def save(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(path)
    say(f"kept as {path.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
