"""docs/downstream: each example answers a question about shards as an exact search with NumPy does.

The examples run as their readers run them: a script, in a process of its own.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

import edge_embed
from bench.corpus import Passage, docstrings
from edge_embed import Embedder, batch
from edge_embed.batch import Job
from edge_embed.cli import make_parser

DOWNSTREAM = Path(__file__).parents[1] / "docs/downstream"
LIBRARIES = {
    "faiss_search.py": ("faiss",),
    "lancedb_search.py": ("lancedb",),
    "duckdb_search.py": ("duckdb",),
    "sqlite_vec_search.py": ("apsw", "sqlite_vec"),
}
JOBS: dict[str, dict[str, Any]] = {  # options of the shards that are searched
    "plain": {"keep_columns": ("text",)},
    "short": {"truncate_dim": 128},
    "binary": {"precision": "ubinary"},
}
K = 5  # answers of an example
QUESTION = "How do I run several tasks at the same time?"

pytestmark = pytest.mark.minilm


def example(name: str) -> Any:
    """The name of a script as a parameter, skipped where what it shows is not installed."""
    absent = [library for library in LIBRARIES[name] if importlib.util.find_spec(library) is None]
    reason = f"{', '.join(absent)} is not installed"
    return pytest.param(name, marks=pytest.mark.skipif(bool(absent), reason=reason))


each_example = pytest.mark.parametrize("name", [example(name) for name in LIBRARIES])


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    return docstrings(200)


@pytest.fixture(scope="module")
def shards(passages: list[Passage], minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards of each job, four of them."""
    folder = tmp_path_factory.mktemp("downstream")
    names, texts = zip(*passages, strict=True)
    parquet.write_table(pyarrow.table({"name": names, "text": texts}), folder / "passages.parquet")
    for kind, options in JOBS.items():
        job = Job(id_column="name", rows_per_shard=64, on_overflow="truncate", **options)
        done = batch.run([folder / "passages.parquet"], folder / kind, minilm, job)
        assert (done.embedded, done.shards) == (len(passages), 4)
    return folder


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Embedder:
    return Embedder(minilm)


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DOWNSTREAM / name, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(edge_embed.__file__).parents[1]), "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def answers(name: str, folder: Path, model: Path) -> list[tuple[float, str, str]]:
    """(score, id, text) as the example prints them."""
    done = run(name, folder, model, QUESTION)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [(float(score), found, text) for score, found, text in rows]


def cosines(embedder: Embedder, passages: list[Passage], dim: int | None = None) -> NDArray[np.float64]:
    """Of the question with each passage, from vectors that no shard has held."""
    texts = [passage.text for passage in passages]
    documents = embedder.encode(texts, truncate_dim=dim).astype(np.float64)
    query = embedder.encode_query(QUESTION, truncate_dim=dim).astype(np.float64)
    found: NDArray[np.float64] = documents @ query / np.linalg.norm(documents, axis=1) / np.linalg.norm(query)
    return found


@each_example
def test_an_example_finds_what_an_exact_search_finds(
    name: str, shards: Path, minilm: Path, embedder: Embedder, passages: list[Passage]
) -> None:
    exact = cosines(embedder, passages)
    best = np.argsort(-exact)[:K]
    found = answers(name, shards / "plain", minilm)
    assert [row[1] for row in found] == [passages[i].name for i in best]
    np.testing.assert_allclose([row[0] for row in found], exact[best], atol=1e-4)
    for i, (_, _, text) in zip(best, found, strict=True):
        assert " ".join(passages[i].text.split()).startswith(text.removesuffix(" [...]"))
        assert len(text) > 10


@each_example
def test_shorter_vectors_are_searched_with_a_shorter_query(
    name: str, shards: Path, minilm: Path, embedder: Embedder, passages: list[Passage]
) -> None:
    exact = cosines(embedder, passages, 128)
    best = np.argsort(-exact)[:K]
    found = answers(name, shards / "short", minilm)
    assert [row[1:] for row in found] == [(passages[i].name, "") for i in best]  # no text was kept
    np.testing.assert_allclose([row[0] for row in found], exact[best], atol=1e-4)


@pytest.mark.parametrize("name", [example("faiss_search.py")])
def test_faiss_ranks_binary_codes_by_equal_bits(
    name: str, shards: Path, minilm: Path, embedder: Embedder, passages: list[Passage]
) -> None:
    bits = embedder.encode([passage.text for passage in passages]) > 0
    equal = (bits == (embedder.encode_query(QUESTION) > 0)).mean(axis=1)
    found = answers(name, shards / "binary", minilm)
    np.testing.assert_allclose([row[0] for row in found], np.sort(equal)[::-1][:K], atol=1e-4)
    names = [passage.name for passage in passages]
    np.testing.assert_allclose(
        [row[0] for row in found], [equal[names.index(row[1])] for row in found], atol=1e-4
    )


@pytest.mark.parametrize("name", [example(name) for name in LIBRARIES if name != "faiss_search.py"])
def test_codes_that_an_example_cannot_compare_are_refused(name: str, shards: Path, minilm: Path) -> None:
    done = run(name, shards / "binary", minilm, QUESTION)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{shards / 'binary'} holds ubinary codes; this example reads float32\n"


@each_example
def test_an_example_called_the_wrong_way_says_how(name: str) -> None:
    done = run(name, "shards")
    assert done.returncode == 1
    assert f'python docs/downstream/{name} SHARDS MODEL "a question"' in done.stderr


def test_the_page_names_every_example_and_calls_our_command_as_it_is() -> None:
    page = (DOWNSTREAM / "README.md").read_text("utf-8")
    scripts = {path.name for path in DOWNSTREAM.glob("*.py")}
    assert scripts == set(LIBRARIES) == set(re.findall(r"\w+_search\.py", page))
    [command] = re.findall(r"^edge-embed (.*)$", page, re.MULTILINE)
    assert make_parser().parse_args(shlex.split(command)).keep_columns == "text"
