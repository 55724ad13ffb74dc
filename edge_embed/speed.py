"""How fast the compute types of one model are here: a process for each, in turns. Knows no other library.

`tune` looks for the best settings and keeps them; this only says what a user gets. A process embeds the
evaluation texts in one call, then short queries one by one, so that starting, throughput, latency and memory
are all of the same process.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_embed import child
from edge_embed.drift.candidate import peak_bytes
from edge_embed.drift.measure import evaluation_texts
from edge_embed.embedder import Embedder
from edge_embed.errors import InputError
from edge_embed.manifest import read_manifest
from edge_embed.tokenization import Tokenizer

MODULE = "edge_embed.speed"
TEXTS, QUERIES, QUERY_WORDS = 200, 100, 8


@dataclass(frozen=True, slots=True)
class Speed:
    """What the rounds of one compute type gave; medians, and the spread (max - min) / median of the first."""

    compute_type: str
    texts_per_second: float
    spread: float
    tokens_per_second: float
    p50_ms: float  # of a query of some words in a call of its own
    p99_ms: float
    start_seconds: float  # from before the process to after its first vector, imports included
    peak_bytes: int | None  # None on Windows


def texts_of(folder: Path, count: int) -> tuple[list[str], list[str]]:
    """`count` evaluation texts that the model is for, of all lengths but the longest, and beginnings of some.

    Errors: InputError for more than there are.
    """
    found = [text.text for text in evaluation_texts(folder) if text.kind != "long"]
    if not 1 <= count <= len(found):
        raise InputError(f"{count} texts were asked for; there are 1 to {len(found)}")
    chosen = [found[i] for i in np.random.default_rng(0).permutation(len(found))[:count]]
    return chosen, [" ".join(text.split()[:QUERY_WORDS]) for text in chosen[:QUERIES]]


def measure(
    folder: Path,
    compute_types: Sequence[str],
    *,
    texts: int = TEXTS,
    rounds: int = 3,
    threads: int | None = None,
    watch: Callable[[str], object] = lambda name: None,
) -> list[Speed]:
    """One Speed for each compute type, in turns.

    watch  hears which one comes next
    Errors: InputError for counts that cannot be; those of Embedder, as ModelError of one line.
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; it must be at least 1")
    passages, queries = texts_of(folder, texts)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in compute_types}
    with tempfile.TemporaryDirectory(prefix="edge-embed-speed-") as work:
        request = Path(work, "request.json")
        for _ in range(rounds):
            for name, seen in answers.items():
                watch(name)
                wishes = {"folder": str(folder), "compute_type": name, "threads": threads}
                request.write_text(json.dumps(wishes | {"texts": passages, "queries": queries}), "utf-8")
                began = time.monotonic()  # one clock for all processes of a machine
                answer = child.call(MODULE, request)
                seen.append(answer | {"start_seconds": answer["first_vector_at"] - began})
    tokens = tokens_of(folder, passages)
    return [summarize(name, seen, len(passages), tokens) for name, seen in answers.items()]


def tokens_of(folder: Path, texts: Sequence[str]) -> int:
    """What the texts are to the model, together; without a prompt."""
    manifest = read_manifest(folder)
    tokenizer = Tokenizer(folder, max_tokens=manifest.max_tokens, lower_case=manifest.lower_case)
    return int(np.minimum(tokenizer.encode(texts).lengths, manifest.max_tokens).sum())


def summarize(name: str, answers: Sequence[dict[str, Any]], texts: int, tokens: int) -> Speed:
    """The answers of one compute type."""
    rates = [texts / answer["seconds"] for answer in answers]
    calls = np.concatenate([answer["calls"] for answer in answers])
    peaks = [answer["peak_bytes"] for answer in answers]
    middle = statistics.median(rates)
    return Speed(
        compute_type=name,
        texts_per_second=middle,
        spread=(max(rates) - min(rates)) / middle,
        tokens_per_second=middle * tokens / texts,
        p50_ms=float(np.percentile(calls, 50)) * 1000,
        p99_ms=float(np.percentile(calls, 99)) * 1000,
        start_seconds=statistics.median(answer["start_seconds"] for answer in answers),
        peak_bytes=None if None in peaks else max(peaks),
    )


def work(request: Path) -> dict[str, Any]:
    """In the child: one model, one process."""
    task = json.loads(request.read_bytes())
    texts, queries = task["texts"], task["queries"]
    embedder = Embedder(task["folder"], compute_type=task["compute_type"], threads=task["threads"])
    embedder.encode_query(queries[0])
    first_vector_at = time.monotonic()
    embedder.encode_document(texts, show_progress_bar=False)  # makes the kernels of every shape
    began = time.perf_counter()
    embedder.encode_document(texts, show_progress_bar=False)
    seconds = time.perf_counter() - began
    calls = []
    for query in queries:
        began = time.perf_counter()
        embedder.encode_query(query)
        calls.append(time.perf_counter() - began)
    return {
        "first_vector_at": first_vector_at,
        "seconds": seconds,
        "calls": calls,
        "peak_bytes": peak_bytes(),
    }


if __name__ == "__main__":
    child.answer(lambda: work(Path(sys.argv[1])))
