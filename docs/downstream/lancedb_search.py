"""Search the float32 shards of `edge-embed batch` with LanceDB.

python docs/downstream/lancedb_search.py SHARDS MODEL "a question"
"""

import json
import sys
import textwrap
from pathlib import Path

import lancedb
import pyarrow.dataset

from edge_embed import Embedder


def main(folder: str, model: str, question: str) -> None:
    job = json.loads(Path(folder, "manifest.json").read_text("utf-8"))["job"]
    if job["precision"] != "float32":
        sys.exit(f"{folder} holds {job['precision']} codes; this example reads float32")
    shards = pyarrow.dataset.dataset(sorted(map(str, Path(folder).glob("part-*.parquet"))))

    database = lancedb.connect("memory://")  # a folder or an s3:// address keeps the table
    table = database.create_table("passages", shards)

    query = Embedder(model, truncate_dim=job["truncate_dim"]).encode_query(question)
    best = table.search(query, vector_column_name="embedding").distance_type("cosine").limit(5)
    for found in best.to_list():
        text = textwrap.shorten(found.get("text") or "", 100)
        print(f"{1 - found['_distance']:.4f}", found["id"], text, sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit(__doc__)
