"""One subject in a process of its own: loads, embeds one text, then embeds what it is told. Knows no rivals.

    python -m bench.worker PEER KIND FOLDER THREADS CACHE      (CACHE is - for none)

stdout is JSON, line by line. The first follows the first vector: {"at": time.monotonic(), "peak_bytes",
"resident_bytes", "effective"}, or is {"unavailable": reason}. Then each line on stdin,
{"texts": path, "vectors": path or null, "batch_size": number or null, "callers": 0 or more}, is answered by
{"seconds", "each", "peak_bytes", "resident_bytes"}. With callers 1 each text is a call of its own, `each` its
seconds; with more, so many threads make such calls at once.
"""

import importlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.peers import Encoder, Unavailable

FIRST_TEXT = "a first sentence, of ordinary length"


def main(peer: str, kind: str, folder: str, threads: str, cache: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is for people

    try:
        encoder: Encoder = importlib.import_module(f"bench.peers.{peer}").load(
            Path(folder), kind=kind, threads=int(threads), cache=None if cache == "-" else Path(cache)
        )
        loaded = memory("VmRSS")
        encoder.call([FIRST_TEXT], None)
    except Unavailable as reason:
        print(json.dumps({"unavailable": str(reason)}), file=answers)
        return
    first = {"at": time.monotonic(), "effective": dict(encoder.effective), "loaded_bytes": loaded}
    print(json.dumps(first | sizes()), file=answers)

    for line in sys.stdin:
        try:
            answer = embed(encoder, json.loads(line)) | sizes()
        except Unavailable as reason:  # a text that the library cannot take
            print(json.dumps({"unavailable": str(reason)}), file=answers)
            return
        print(json.dumps(answer), file=answers)


def embed(encoder: Encoder, task: dict[str, Any]) -> dict[str, Any]:
    """Do one task; see the head of this file."""
    texts: list[str] = json.loads(Path(task["texts"]).read_text("utf-8"))
    size, callers = task["batch_size"], task["callers"]

    def single(text: str) -> tuple[float, Any]:
        began = time.perf_counter()
        row = encoder.call([text], size)
        return time.perf_counter() - began, row

    began = time.perf_counter()
    if callers > 1:
        with ThreadPoolExecutor(callers) as pool:
            answers = list(pool.map(single, texts))
    elif callers:
        answers = list(map(single, texts))
    else:
        answers = [(0.0, encoder.call(texts, size))]
    seconds = time.perf_counter() - began
    if task["vectors"]:
        import numpy as np  # here, so that it is not counted in a start

        np.save(task["vectors"], np.concatenate([rows for _, rows in answers]))
    return {"seconds": seconds, "each": [took for took, _ in answers] if callers else []}


def sizes() -> dict[str, int]:
    return {"peak_bytes": peak_bytes(), "resident_bytes": memory("VmRSS")}


def peak_bytes() -> int:
    """Peak resident memory of this process.

    VmHWM where there is one: ru_maxrss survives an exec, and so starts from what the parent process had.
    """
    if found := memory("VmHWM"):
        return found
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory(key: str) -> int:
    """A field of /proc/self/status, in bytes; 0 where there is no such file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    fields = dict(line.partition(":")[::2] for line in status.read_text().splitlines())
    return int(fields[key].split()[0]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
