"""Search the shards of `edge-embed batch` with FAISS: exact, in memory.

    python docs/downstream/faiss_search.py SHARDS MODEL "a question"

Takes float32 shards (cosine) and ubinary ones (share of equal bits).
"""

import json
import sys
import textwrap
from pathlib import Path

import faiss
import pyarrow.dataset

from edge_embed import Embedder


def main(folder: str, model: str, question: str) -> None:
    job = json.loads(Path(folder, "manifest.json").read_text("utf-8"))["job"]
    if job["precision"] not in ("float32", "ubinary"):
        sys.exit(f"{folder} holds {job['precision']} codes; this example reads float32 and ubinary")
    table = pyarrow.dataset.dataset(sorted(map(str, Path(folder).glob("part-*.parquet")))).to_table()

    width = table["embedding"].type.list_size
    binary = job["precision"] == "ubinary"
    # The inner product of unit vectors is their cosine.
    index = faiss.IndexBinaryFlat(8 * width) if binary else faiss.IndexFlatIP(width)
    for chunk in table["embedding"].chunks:
        index.add(chunk.flatten().to_numpy().reshape(-1, width))

    embedder = Embedder(model, truncate_dim=job["truncate_dim"])
    distances, rows = index.search(embedder.encode_query([question], precision=job["precision"]), 5)
    scores = 1 - distances[0] / (8 * width) if binary else distances[0]
    best = rows[0][rows[0] >= 0]  # -1 where there are fewer rows than asked for
    for score, found in zip(scores, table.drop_columns("embedding").take(best).to_pylist(), strict=False):
        print(f"{score:.4f}", found["id"], textwrap.shorten(found.get("text") or "", 100), sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit(__doc__)
