"""Search the float32 shards of `edge-embed batch` with DuckDB, which reads them where they lie.

python docs/downstream/duckdb_search.py SHARDS MODEL "a question"
"""

import json
import sys
import textwrap
from pathlib import Path

import duckdb

from edge_embed import Embedder


def main(folder: str, model: str, question: str) -> None:
    job = json.loads(Path(folder, "manifest.json").read_text("utf-8"))["job"]
    if job["precision"] != "float32":
        sys.exit(f"{folder} holds {job['precision']} codes; this example reads float32")
    query = Embedder(model, truncate_dim=job["truncate_dim"]).encode_query(question)

    vector = f"FLOAT[{len(query)}]"  # Parquet lists have no fixed size in DuckDB until they are cast
    best = duckdb.execute(
        f"""
        SELECT array_cosine_similarity(embedding::{vector}, $query::{vector}) AS cosine, * EXCLUDE (embedding)
        FROM read_parquet($shards)
        ORDER BY 1 DESC
        LIMIT 5
        """,
        {"query": query.tolist(), "shards": f"{folder}/part-*.parquet"},
    )
    names = [column[0] for column in best.description]
    for score, *values in best.fetchall():
        found = dict(zip(names[1:], values, strict=True))
        print(f"{score:.4f}", found["id"], textwrap.shorten(found.get("text") or "", 100), sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit(__doc__)
