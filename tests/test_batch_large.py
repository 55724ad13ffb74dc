"""Real size, minutes: what a job of 100,000 rows keeps in memory beside one of 1,000."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edge_embed

FEW, MANY = 1_000, 100_000
APART_MB = 150
DISTINCT = 2_000  # texts, each of which a shard embeds once, so that a busy machine is done in minutes

# VmHWM, because ru_maxrss survives an exec and so starts from what this process has.
CHILD = """
import json, sys
from pathlib import Path
from edge_embed import batch

path, folder, model = sys.argv[1:]
done = batch.run([path], folder, model, watch=lambda now: None, compute_type="float32")
[line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(json.dumps(done.to_dict() | {"peak_mb": int(line.split()[1]) / 1024}))
"""


def job(count: int, folder: Path, model: Path) -> dict[str, Any]:
    """The summary of a job over so many rows, and the most memory that it had, in MB."""
    chosen = random.Random(0)
    words = ["river", "stone", "cloud", "market", "engine", "violin", "garden", "winter", "letter", "music"]
    texts = [" ".join([*chosen.choices(words, k=chosen.randint(1, 24)), str(i)]) for i in range(DISTINCT)]
    path = folder / f"{count}.jsonl"
    with path.open("w") as file:
        for i in range(count):
            file.write(json.dumps({"text": texts[i % DISTINCT]}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(folder / f"shards-{count}"), str(model)],
        env=os.environ | {"PYTHONPATH": str(Path(edge_embed.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["rows_in"], report["embedded"]) == (count, count)
    return report


@pytest.mark.large
@pytest.mark.minilm
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_hundred_times_the_rows_take_no_more_memory(tmp_path: Path, minilm: Path) -> None:
    few, many = (job(count, tmp_path, minilm) for count in (FEW, MANY))
    assert many["shards"] == 13
    apart = many["peak_mb"] - few["peak_mb"]
    seen = f"{few['peak_mb']:.0f} MB for {FEW} rows, {many['peak_mb']:.0f} MB for {MANY}"
    print(f"{seen}, in {many['seconds']:.0f} s")
    assert apart < APART_MB, seen
