"""docs/downstream: each example finds in real shards what an exact search finds."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_embed import Embedder, batch, calibration, shards

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs/downstream"
LIBRARIES = {
    "duckdb_search": ("duckdb",),
    "faiss_search": ("faiss",),
    "lancedb_search": ("lancedb",),
    "sqlite_vec_search": ("apsw", "sqlite_vec"),
}
QUESTION = "How do storks find their way to the south?"

pytestmark = pytest.mark.minilm


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = [text.text for text in calibration.evaluation() if text.stratum in ("en", "de", "code-python")]
    assert len(found) == 72
    return found


@pytest.fixture(scope="module", params=["float32", "ubinary"])
def folder(
    request: pytest.FixtureRequest, minilm: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Three shards of real texts in a precision."""
    import pyarrow
    from pyarrow import parquet

    work = tmp_path_factory.mktemp(request.param)
    rows = {"name": [f"text {i}" for i in range(len(texts))], "text": texts}
    parquet.write_table(pyarrow.table(rows), work / "texts.parquet")
    job = batch.Job(
        id_column="name",
        keep_columns=("text",),
        precision=request.param,
        on_overflow="truncate",
        rows_per_shard=30,
    )
    done = batch.run([work / "texts.parquet"], work / "shards", minilm, job, compute_type="float32")
    assert (done.embedded, done.shards) == (72, 3)
    return work / "shards"


def run(name: str, folder: Path, model: Path, question: str) -> subprocess.CompletedProcess[str]:
    for library in LIBRARIES[name]:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    return subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), str(folder), str(model), question],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
    )


def exactly(folder: Path, model: Path) -> list[tuple[float, str]]:
    """(score, id) of all rows, best first, by numpy."""
    parts = [shards.read(folder, path.name) for path in sorted(folder.glob("part-*.parquet"))]
    ids = [name for part in parts for name in part.ids]
    rows = np.concatenate([part.vectors for part in parts])
    precision = "ubinary" if rows.dtype == np.uint8 else "float32"
    query = Embedder(model, compute_type="float32").encode_query(QUESTION, precision=precision)
    scores = 1 - np.unpackbits(rows ^ query, axis=1).mean(1) if precision == "ubinary" else rows @ query
    return sorted(zip(scores.tolist(), ids, strict=True), key=lambda pair: -pair[0])


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_example_finds_what_an_exact_search_finds(
    name: str, folder: Path, minilm: Path, texts: list[str]
) -> None:
    done = run(name, folder, minilm, QUESTION)
    if folder.parent.name.startswith("ubinary") and name != "faiss_search":
        assert done.returncode == 1
        assert "this example reads float32" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    found = [line.split("\t") for line in done.stdout.splitlines()]
    right = exactly(folder, minilm)[:5]
    assert [float(score) for score, _, _ in found] == pytest.approx([s for s, _ in right], abs=2e-4)
    if len({round(score, 4) for score, _ in right}) == 5:  # equal scores may come in any order
        assert [identifier for _, identifier, _ in found] == [identifier for _, identifier in right]
    assert "stork" in found[0][2].lower()
    assert found[0][2][:20] == texts[int(found[0][1].split()[1])][:20]


def test_every_example_has_its_row_and_its_library_in_the_extra() -> None:
    page = (EXAMPLES / "README.md").read_text()
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(LIBRARIES)
    for name in LIBRARIES:
        assert f"[`{name}.py`]({name}.py)" in page
