"""Search the float32 shards of `edge-embed batch` with sqlite-vec.

python docs/downstream/sqlite_vec_search.py SHARDS MODEL "a question"
"""

import json
import sys
import textwrap
from pathlib import Path

import apsw  # not sqlite3: many Pythons build that without extensions
import pyarrow.dataset
import sqlite_vec

from edge_embed import Embedder


def main(folder: str, model: str, question: str) -> None:
    manifest = json.loads(Path(folder, "manifest.json").read_text("utf-8"))
    job, dim = manifest["job"], manifest["plan"]["dim"]
    if job["precision"] != "float32":
        sys.exit(f"{folder} holds {job['precision']} codes; this example reads float32")

    db = apsw.Connection(":memory:")  # the name of a file keeps the tables
    db.enable_load_extension(True)
    db.load_extension(sqlite_vec.loadable_path())
    db.execute("CREATE TABLE passages (position INTEGER PRIMARY KEY, id, text)")
    db.execute(f"""CREATE VIRTUAL TABLE vectors USING vec0(
        position INTEGER PRIMARY KEY, embedding FLOAT[{dim}] distance_metric=cosine)""")
    for shard in sorted(Path(folder).glob("part-*.parquet")):
        table = pyarrow.dataset.dataset(str(shard)).to_table()
        positions, vectors = table["position"].to_pylist(), table["embedding"].combine_chunks().flatten()
        texts = table["text"].to_pylist() if "text" in table.column_names else [""] * len(table)
        with db:  # one transaction
            passages = zip(positions, table["id"].to_pylist(), texts, strict=True)
            db.executemany("INSERT INTO passages VALUES (?, ?, ?)", passages)
            rows = zip(positions, vectors.to_numpy().reshape(-1, dim), strict=True)
            db.executemany("INSERT INTO vectors VALUES (?, ?)", rows)

    query = Embedder(model, truncate_dim=job["truncate_dim"]).encode_query(question)
    nearest = """SELECT 1 - distance, id, text FROM vectors JOIN passages USING (position)
        WHERE embedding MATCH ? AND k = 5 ORDER BY distance"""
    for score, name, text in db.execute(nearest, (query,)):
        print(f"{score:.4f}", name, textwrap.shorten(text or "", 100), sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit(__doc__)
