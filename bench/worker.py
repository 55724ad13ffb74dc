"""One subject in a process of its own: loads, embeds one text, then embeds what it is told. Knows no rivals.

    python -m bench.worker PEER FOLDER THREADS CACHE BATCH_SIZE      (- is no cache, 0 the peer's own size)

stdout is JSON, line by line. The first follows the first vector: {"at": time.monotonic(), "peak_bytes"}.
Then each line {"texts": path, "vectors": path or null, "single": bool} on stdin is answered by
{"seconds", "peak_bytes"}; with `single`, each text is a call of its own.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

FIRST_TEXT = "a first sentence, of ordinary length"


def main(peer: str, folder: str, threads: str, cache: str, batch_size: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is for people

    load = importlib.import_module(f"bench.peers.{peer}").load
    encode = load(
        Path(folder),
        threads=int(threads),
        cache=None if cache == "-" else Path(cache),
        batch_size=int(batch_size) or None,
    )
    encode([FIRST_TEXT])
    print(json.dumps({"at": time.monotonic(), "peak_bytes": peak_bytes()}), file=answers)

    for line in sys.stdin:
        task = json.loads(line)
        texts = json.loads(Path(task["texts"]).read_text("utf-8"))
        calls = [[text] for text in texts] if task["single"] else [texts]
        began = time.perf_counter()
        parts = [encode(call) for call in calls]
        seconds = time.perf_counter() - began
        if task["vectors"]:
            import numpy as np  # here, so that it is not counted in a start

            np.save(task["vectors"], np.concatenate(parts))
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}), file=answers)


def peak_bytes() -> int:
    """Peak resident memory of this process.

    VmHWM where there is one: ru_maxrss survives an exec, and so starts from what the parent process had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.partition(":")[::2] for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
