"""The offline job against Embedder.encode over the same texts, and against everything that stops it.

Shards are read with pandas and NumPy, as their users would. Processes that are killed are forks of a runner
that has imported everything, so that a kill falls into the work and not into the imports.
"""

import gzip
import hashlib
import io
import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
from numpy.typing import NDArray
from pyarrow import parquet
from safetensors.numpy import load_file

import edge_embed
from edge_embed import Embedder, batch, readers, shards, vectors
from edge_embed.batch import Job, Progress
from edge_embed.build import build
from edge_embed.errors import InputError, IntegrityError, MismatchError, NumericsError, OutputError
from tests.checkpoints import WORDS, tiny_bert

DIM = 32  # of the tiny model
LIMIT = 512  # its tokens
JOB = Job(rows_per_shard=8)
BY_ID = Job(id_column="id", keep_columns=("lang",), rows_per_shard=8)

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals, limits and users")

Rows = list[dict[str, Any]]


def make_rows(count: int, seed: int = 0) -> Rows:
    """Rows of one to forty words, some equal, some in other scripts, one empty."""
    chosen = random.Random(seed)
    rows: Rows = []
    for i in range(count):
        text = " ".join(chosen.choices(WORDS, k=chosen.randint(1, 40)))
        rows.append({"id": f"r{i}", "text": text, "lang": chosen.choice(["de", "el", "größe, \"'\n"])})
    for i, text in ((3, ""), (5, "Καλημέρα κόσμε"), (7, rows[2]["text"]), (20, rows[2]["text"])):
        if i < count:
            rows[i]["text"] = text
    return rows


ROWS = make_rows(45)


def json_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_jsonl(path: Path, rows: Rows = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json_lines(rows))
    return path


def texts_of(rows: Rows) -> list[str]:
    return [row["text"] for row in rows]


@pytest.fixture(scope="module")
def embedder(tiny_built: Path) -> Embedder:
    """The same model, all texts in memory: the judge of what a job writes."""
    return Embedder(tiny_built)


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "shards"


def union(folder: Path) -> pandas.DataFrame:
    """All shards in one table, in the order of the input; `embedding` holds arrays."""
    parts = [pandas.read_parquet(path) for path in sorted(folder.glob("part-*.parquet"))]
    for path in sorted(folder.glob("part-*.npy")):
        part = pandas.read_json(path.with_suffix(".jsonl"), lines=True, dtype=False)
        part["embedding"] = list(np.load(path))
        parts.append(part)
    whole = pandas.concat(parts, ignore_index=True)
    order: pandas.DataFrame = whole.sort_values("position", ignore_index=True)
    return order


def vectors_of(table: pandas.DataFrame) -> NDArray[Any]:
    return np.stack(list(table["embedding"]))


def assert_holds(
    folder: Path, rows: Rows, expected: NDArray[Any], positions: list[int] | None = None
) -> None:
    """Each row once, with its id and its vector, and nothing half-written beside them."""
    table = union(folder)
    assert table["position"].tolist() == (list(range(len(rows))) if positions is None else positions)
    if isinstance(table["id"].iloc[0], str):
        assert table["id"].tolist() == [row["id"] for row in rows]
    found = vectors_of(table)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    names = {path.name for path in folder.iterdir()}
    manifest = manifest_of(folder)
    named = {name for shard in manifest["shards"] for name in shard["files"]}
    assert names - {"rejected.jsonl"} == named | {"manifest.json", "journal.jsonl", ".lock"}
    for shard in manifest["shards"]:
        assert shards.verify(folder, shard["files"]) == []
    assert manifest["status"] == "done"


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return manifest


def rejected_of(folder: Path) -> Rows:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_bytes().splitlines()]


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What any writing would change."""
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes())
        for path in folder.iterdir()
    }


def stdin_of(data: bytes, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data))))


def forbid(patch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Let a test fail where something is called that should not be."""

    def called(*_: object, **__: object) -> None:
        raise AssertionError(f"{name} was called")

    patch.setattr(owner, name, called)


# ---- the union of the shards is what encode gives


def as_parquet(path: Path, rows: Rows) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=10)
    return path


def written(folder: Path, kind: str, rows: Rows) -> list[str]:
    """The rows as an input of some kind; what to name for it."""
    data = json_lines(rows)
    name = folder / f"rows.{kind}"
    half = len(rows) // 2
    match kind:
        case "jsonl":
            name.write_bytes(data)
        case "jsonl.gz":
            name.write_bytes(gzip.compress(data))
        case "jsonl.zst":
            name.write_bytes(pyarrow.compress(data, codec="zstd", asbytes=True))
        case "csv" | "tsv":
            pandas.DataFrame(rows).to_csv(name, index=False, sep="," if kind == "csv" else "\t")
        case "parquet":
            as_parquet(name, rows)
        case "folder" | "glob" | "files":
            first = write_jsonl(folder / "in/deep/a.jsonl", rows[:half])
            second = as_parquet(folder / "in/b.parquet", rows[half:])  # b is before deep/a
            if kind == "files":
                return [str(first), str(second)]
            (folder / "in/deep/a.jsonl").rename(folder / "in/a.jsonl")
            return [str(folder / "in/*.*") if kind == "glob" else str(folder / "in")]
    return [str(name)]


KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "csv", "tsv", "parquet", "folder", "glob", "files"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_shards_of_every_kind_of_input_hold_what_encode_gives(
    kind: str, tmp_path: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    inputs = written(tmp_path, kind, ROWS)
    done = batch.run(inputs, target, tiny_built, BY_ID)
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))
    assert union(target)["lang"].tolist() == [row["lang"] for row in ROWS]
    assert (done.rows_in, done.embedded, done.rejected, done.shards) == (45, 45, 0, 6)


@pytest.mark.parametrize("packing", [lambda data: data, gzip.compress], ids=["plain", "gzip"])
def test_stdin_is_an_input_like_any_other(
    packing: Callable[[bytes], bytes],
    target: Path,
    tiny_built: Path,
    embedder: Embedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdin_of(packing(json_lines(ROWS)), monkeypatch)
    batch.run(["-"], target, tiny_built, BY_ID)
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))


@pytest.mark.parametrize("output_format", shards.FORMATS)
@pytest.mark.parametrize("precision", vectors.PRECISIONS)
def test_every_output_holds_the_codes_of_encode(
    output_format: str, precision: str, rows_file: Path, target: Path, tiny: Path
) -> None:
    job = Job(precision=precision, output_format=output_format, rows_per_shard=8, truncate_dim=24)
    batch.run([rows_file], target, tiny, job)
    expected = Embedder(tiny).encode(texts_of(ROWS), precision=precision, truncate_dim=24)
    found = vectors_of(union(target))
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if precision == "float32":
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    else:  # a value on the edge between two codes may fall on either side in another batch
        assert np.mean(found != expected) < 1e-3
    ranges = manifest_of(target)["plan"]["output_ranges"]
    assert (ranges is None) == (precision not in ("int8", "uint8"))
    if output_format == "parquet":
        kind = parquet.read_schema(target / "part-00000.parquet").field("embedding").type
        assert (kind.list_size, kind.value_type.to_pandas_dtype()) == (expected.shape[1], expected.dtype)


def test_codes_can_be_turned_back_by_the_ranges_that_travel_with_them(
    rows_file: Path, target: Path, tiny: Path
) -> None:
    batch.run([rows_file], target, tiny, Job(precision="int8"))
    about = json.loads(parquet.read_schema(target / "part-00000.parquet").metadata[b"edge_embed"])
    ranges = vectors.Ranges.from_json(about["plan"]["output_ranges"])
    floats = vectors.dequantize(vectors_of(union(target)), "int8", ranges)
    steps = (ranges.maximum - ranges.minimum) / 255
    inside = np.clip(Embedder(tiny).encode(texts_of(ROWS)), ranges.minimum, ranges.maximum)
    assert (np.abs(floats - inside) <= steps * 0.51 + 1e-6).all()


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_name": "query"},
        {"prompt": "the red "},
        {"truncate_dim": 8},
        {"prompt": "", "truncate_dim": 16},
    ],
    ids=str,
)
def test_options_mean_what_they_mean_to_encode(
    options: dict[str, Any], rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    batch.run([rows_file], target, tiny_built, Job(rows_per_shard=16, id_column="id", **options))
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS), **options))


def test_options_of_the_embedder_count_as_well(rows_file: Path, target: Path, tiny_built: Path) -> None:
    batch.run([rows_file], target, tiny_built, JOB, truncate_dim=8, threads=1)
    assert_holds(target, ROWS, Embedder(tiny_built, truncate_dim=8).encode(texts_of(ROWS)))
    with pytest.raises(MismatchError, match="plan dim was 8, now 32"):
        batch.run([rows_file], target, tiny_built, JOB)


@pytest.mark.parametrize("output_format", shards.FORMATS)
def test_kept_columns_keep_their_types(
    output_format: str, tmp_path: Path, target: Path, tiny_built: Path
) -> None:
    columns: dict[str, list[Any]] = {
        "flag": [None, True, False, True],
        "count": [1, -(2**62), None, 0],
        "score": [1, 0.5, None, 2],
        "list": [[1, "é"], None, [], [2]],
    }
    rows = [{"text": "a"} | {name: columns[name][i] for name in columns} for i in range(4)]
    job = Job(keep_columns=tuple(columns), rows_per_shard=4, output_format=output_format)
    batch.run([write_jsonl(tmp_path / "rows.jsonl", rows)], target, tiny_built, job)
    kept = shards.read(target, next(path.name for path in target.glob("part-*"))).kept
    assert kept == columns | {"list": ['[1, "é"]', None, "[]", "[2]"], "score": [1.0, 0.5, None, 2.0]}
    assert [type(value) for value in kept["score"]] == [float, float, type(None), float]


def test_a_column_keeps_its_type_when_the_job_goes_on(tmp_path: Path, target: Path, tiny_built: Path) -> None:
    values = [None, 1, 2, None, "three", 4]
    rows = [{"text": "a", "n": value} for value in values]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    job = Job(keep_columns=("n",), rows_per_shard=2)
    stopped(path, target, tiny_built, job, shard=3)
    assert batch.run([path], target, tiny_built, job).resumed_at == 4
    assert [row["reason"] for row in rejected_of(target)] == ["n: 'three' is of type str, not int64"]
    kinds = [parquet.read_schema(path).field("n").type for path in target.glob("part-*.parquet")]
    assert kinds == [pyarrow.int64()] * 3


@pytest.mark.parametrize("size", [1, 7, 45, 1000])
def test_the_size_of_shards_moves_no_vector(
    size: int, rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    done = batch.run([rows_file], target, tiny_built, Job(rows_per_shard=size, id_column="id"))
    assert done.shards == -(-45 // size)
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))


def test_long_texts_make_shards_of_fewer_rows(
    rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "CHARACTERS_PER_SHARD", 300)
    done = batch.run([rows_file], target, tiny_built, Job(rows_per_shard=20, id_column="id"))
    assert done.shards > 5
    for shard in manifest_of(target)["shards"]:
        characters = [len(row["text"]) for row in ROWS[shard["start"] : shard["stop"]]]
        assert len(characters) <= 20
        assert sum(characters[:-1]) < 300
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))
    before = state(target)
    assert batch.run([rows_file], target, tiny_built, Job(rows_per_shard=20, id_column="id")).resumed_at == 45
    assert state(target) == before


def test_equal_texts_of_a_shard_are_embedded_once(tmp_path: Path, target: Path, tiny_built: Path) -> None:
    texts = ["the cat", "a dog runs", "the cat", "The  cat"] * 10  # the last one has the tokens of the first
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    done = batch.run([path], target, tiny_built, Job(rows_per_shard=100))
    assert done.tokens == 4 + 5  # two tokens of each are special
    assert len(np.unique(vectors_of(union(target)), axis=0)) == 2


def test_the_manifest_says_what_was_made_of_what(rows_file: Path, target: Path, tiny_built: Path) -> None:
    batch.run([rows_file], target, tiny_built, BY_ID)
    manifest = manifest_of(target)
    for name, sha256 in manifest["model"]["files"].items():
        assert hashlib.sha256((tiny_built / name).read_bytes()).hexdigest() == sha256
    assert {"openvino/openvino_model.bin", "openvino/openvino_model.xml", "tokenizer.json"} <= set(
        manifest["model"]["files"]
    )
    assert manifest["job"]["id_column"] == "id"
    assert manifest["plan"]["compute_type"] == "float32"
    assert manifest["versions"]["edge_embed"] == edge_embed.__version__
    assert manifest["inputs"] == [[str(rows_file), "jsonl", None]]
    counts = [(shard["start"], shard["stop"], shard["rows"]) for shard in manifest["shards"]]
    assert counts == [(start, min(start + 8, 45), min(8, 45 - start)) for start in range(0, 45, 8)]


# ---- rows that cannot be embedded


BAD: list[tuple[bytes, str]] = [
    (b'{"id": "b0"}', "no 'text' among its keys: 'id'"),
    (b'{"id": "b1", "text": null}', "the text 'text' is null, not a string"),
    (b'{"id": "b2", "text": 5}', "the text 'text' is a whole number, not a string"),
    (b'{"id": "b3", "text": "caf\xe9"}', "not UTF-8: byte 0xe9 at 25"),
    (b'{"id": "b4", "text": "the c', "not JSON at column 22: Unterminated string starting at"),
    (b"[1, 2]", "the line is a list, not an object"),
    (b'{"text": "no id"}', "no 'id' among its keys: 'text'"),
    (b'{"id": 7, "text": "x"}', "the id 'id' is a whole number, but the first of the job is a string"),
    (
        json.dumps({"id": "b8", "text": "cat " * (LIMIT - 1)}).encode(),
        f"has {LIMIT + 1} tokens or more, over the limit of {LIMIT}",
    ),
    (b'{"id": "b9", "text": "x", "lang": 5}', "lang: 5 is of type int, not string"),
]


def with_bad_rows(path: Path) -> tuple[Path, Rows, list[int]]:
    """(file, good rows, their positions): a bad row after every second good one, as long as there are any."""
    good = ROWS[:24]
    lines: list[bytes] = []
    positions: list[int] = []
    for i, row in enumerate(good):
        positions.append(len(lines))
        lines.append(json_lines([row]).rstrip(b"\n"))
        if i % 2 and i // 2 < len(BAD):
            lines.append(BAD[i // 2][0])
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path, good, positions


def test_each_bad_row_is_rejected_with_its_place_and_reason_and_the_others_are_embedded(
    tmp_path: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    path, good, positions = with_bad_rows(tmp_path / "rows.jsonl")
    done = batch.run([path], target, tiny_built, BY_ID)
    assert (done.rows_in, done.embedded, done.rejected) == (24 + len(BAD), 24, len(BAD))
    assert_holds(target, good, embedder.encode(texts_of(good)), positions)
    found = rejected_of(target)
    places = sorted(set(range(34)) - set(positions))
    assert [row["position"] for row in found] == places
    assert [row["line"] for row in found] == [position + 1 for position in places]
    assert {row["file"] for row in found} == {str(path)}
    for row, (line, reason) in zip(found, BAD, strict=True):
        assert row["reason"].startswith(reason)
        assert row["excerpt"][:5] in line.decode("latin-1")
    manifest = manifest_of(target)
    assert (manifest["rows_in"], manifest["embedded"], manifest["rejected"]) == (34, 24, 10)


def test_bad_rows_can_stop_the_job_which_goes_on_where_they_are_allowed(
    tmp_path: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    path, good, positions = with_bad_rows(tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match=r"rows\.jsonl, line 3: no 'text' among its keys: 'id'; mend it, or"):
        batch.run([path], target, tiny_built, BY_ID, on_bad_row="stop")
    assert not list(target.glob("part-*"))
    assert batch.run([path], target, tiny_built, BY_ID).resumed_at == 0
    assert_holds(target, good, embedder.encode(texts_of(good)), positions)


@pytest.mark.parametrize("cap", [0, 3, 9])
def test_more_bad_rows_than_the_cap_stop_the_job_which_goes_on_under_a_higher_one(
    cap: int, tmp_path: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    path, good, positions = with_bad_rows(tmp_path / "rows.jsonl")
    words = []
    for _ in range(2):  # bad rows of earlier runs count
        with pytest.raises(
            InputError, match=rf"over the limit of {cap}; the last one is .*, line \d+"
        ) as caught:
            batch.run([path], target, tiny_built, BY_ID, max_rejected=cap)
        words.append(str(caught.value))
    assert words[0] == words[1]
    known = len(rejected_of(target)) if (target / "rejected.jsonl").exists() else 0
    assert known <= cap
    assert batch.run([path], target, tiny_built, BY_ID, max_rejected=len(BAD)).rejected == len(BAD)
    assert [row["reason"][:5] for row in rejected_of(target)] == [reason[:5] for _, reason in BAD]
    assert_holds(target, good, embedder.encode(texts_of(good)), positions)


def test_texts_over_the_limit_are_cut_where_that_is_asked_for_and_counted(
    tmp_path: Path, target: Path, tiny_built: Path, embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": "the cat"}, {"text": "dog cat " * LIMIT}, {"text": "a"}, {"text": "cat " * 600}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    done = batch.run([path], target, tiny_built, Job(on_overflow="truncate", rows_per_shard=2))
    assert (done.embedded, done.rejected, done.truncated) == (4, 0, 2)
    assert_holds(target, rows, embedder.encode(texts_of(rows)))
    assert "2 of 4 texts were cut" in caplog.text  # by encode, the judge
    assert manifest_of(target)["truncated"] == 2


def test_a_lower_limit_of_the_job_decides_what_is_over_it(
    tmp_path: Path, target: Path, tiny_built: Path
) -> None:
    rows = [{"text": "the cat sat"}, {"text": "the cat sat on"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    done = batch.run([path], target, tiny_built, JOB, max_tokens=5)
    assert (done.embedded, done.rejected) == (1, 1)
    assert rejected_of(target)[0]["reason"] == "has 6 tokens or more, over the limit of 5"


@pytest.mark.parametrize("output_format", shards.FORMATS)
def test_a_shard_whose_rows_are_all_bad_is_no_file_and_is_not_done_twice(
    output_format: str, tmp_path: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    good = [{"id": f"{i}", "text": "the cat"} for i in range(4)]
    path = write_jsonl(tmp_path / "rows.jsonl", [*good[:2], {"id": "x"}, {"id": "y"}, *good[2:], {"id": "z"}])
    job = Job(rows_per_shard=2, id_column="id", output_format=output_format)
    done = batch.run([path], target, tiny_built, job)
    assert (done.embedded, done.rejected, done.shards) == (4, 3, 4)
    assert_holds(target, good, embedder.encode(["the cat"] * 4), [0, 1, 4, 5])
    before = state(target)
    assert batch.run([path], target, tiny_built, job).rejected == 3
    assert state(target) == before


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"text": 1}\n'], ids=["empty", "blank", "bad"])
def test_an_input_without_a_usable_row_is_done_and_goes_on_when_one_comes(
    content: bytes, tmp_path: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    bad = content.count(b"1")
    done = batch.run([path], target, tiny_built, JOB)
    assert (done.rows_in, done.embedded, done.rejected) == (bad, 0, bad)
    assert manifest_of(target)["status"] == "done"
    path.write_bytes(content + b'{"text": "the cat"}\n')
    assert batch.run([path], target, tiny_built, JOB).embedded == 1
    assert_holds(target, [{"text": "the cat"}], embedder.encode(["the cat"]), [bad])


# ---- run again


def test_a_finished_job_run_again_changes_no_file_and_embeds_nothing(
    tmp_path: Path, target: Path, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, _ = with_bad_rows(tmp_path / "rows.jsonl")
    first = batch.run([path], target, tiny_built, BY_ID)
    before = state(target)
    forbid(monkeypatch, batch.Worker, "embed_tokens")
    again = batch.run([path], target, tiny_built, BY_ID)
    assert state(target) == before
    assert (again.rows_in, again.embedded, again.rejected) == (first.rows_in, first.embedded, first.rejected)
    assert (again.resumed_at, again.tokens) == (first.rows_in, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_column": "lang"}, "job text_column was 'text', now 'lang'"),
        ({"id_column": "id"}, "job id_column was None, now 'id'"),
        ({"keep_columns": ("lang",)}, "job keep_columns was [], now ['lang']"),
        ({"prompt_name": "query"}, "job prompt_name was None, now 'query'"),
        ({"prompt": "x"}, "job prompt was None, now 'x'"),
        ({"truncate_dim": 8}, "job truncate_dim was None, now 8"),
        ({"precision": "binary"}, "job precision was 'float32', now 'binary'"),
        ({"output_format": "npy"}, "job output_format was 'parquet', now 'npy'"),
        ({"rows_per_shard": 9}, "job rows_per_shard was 8, now 9"),
        ({"on_overflow": "truncate"}, "job on_overflow was 'reject', now 'truncate'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_another_option_is_refused_by_name_and_leaves_the_job_as_it_was(
    change: dict[str, Any], words: str, rows_file: Path, target: Path, tiny_built: Path
) -> None:
    batch.run([rows_file], target, tiny_built, JOB)
    before = state(target)
    with pytest.raises(MismatchError) as refused:
        batch.run([rows_file], target, tiny_built, Job(**({"rows_per_shard": 8} | change)))
    assert words in str(refused.value)
    assert str(target) in str(refused.value)
    assert "--restart" in str(refused.value)
    assert state(target) == before


def test_another_model_is_refused_by_the_file_that_differs(
    rows_file: Path, target: Path, tiny: Path, tmp_path: Path
) -> None:
    batch.run([rows_file], target, tiny, JOB)
    shutil.rmtree(tiny)
    build(tiny_bert(tiny, seed=1))
    with pytest.raises(
        MismatchError, match=r"model files openvino/openvino_model\.bin was '\w{39}, now '\w{39};"
    ):
        batch.run([rows_file], target, tiny, JOB)


def test_another_compute_type_is_refused(rows_file: Path, target: Path, complete: Path) -> None:
    batch.run([rows_file], target, complete, JOB, compute_type="float32")
    with pytest.raises(MismatchError, match="plan compute_type was 'float32', now 'int8_weights'"):
        batch.run([rows_file], target, complete, JOB, compute_type="int8_weights")


def test_another_list_of_inputs_is_refused(rows_file: Path, target: Path, tiny_built: Path) -> None:
    batch.run([rows_file], target, tiny_built, JOB)
    other = write_jsonl(rows_file.with_name("more.jsonl"))
    with pytest.raises(
        MismatchError, match=r"it has 1 inputs, now 2: where none was, there is .*more\.jsonl"
    ):
        batch.run([rows_file, other], target, tiny_built, JOB)
    with pytest.raises(MismatchError, match=r"now 1: where .*rows\.jsonl was, there is .*more\.jsonl"):
        batch.run([other], target, tiny_built, JOB)


def test_threads_and_what_to_do_with_bad_rows_may_differ(
    rows_file: Path, target: Path, tiny_built: Path
) -> None:
    batch.run([rows_file], target, tiny_built, JOB, threads=1)
    before = state(target)
    batch.run([rows_file], target, tiny_built, JOB, threads=2, on_bad_row="stop", max_rejected=0)
    assert state(target) == before


def test_an_input_that_was_only_touched_is_read_again_once_and_goes_on(
    rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.run([rows_file], target, tiny_built, BY_ID)
    os.utime(rows_file, ns=(1, 1))
    forbid(monkeypatch, batch.Worker, "embed_tokens")
    done = batch.run([rows_file], target, tiny_built, BY_ID)
    assert (done.rows_in, done.resumed_at) == (45, 45)
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))
    before = state(target)
    forbid(monkeypatch, batch.Work, "_stretches")
    batch.run([rows_file], target, tiny_built, BY_ID)
    assert state(target) == before


@pytest.mark.parametrize("at", [0, 17, 44])
def test_an_input_of_which_a_row_that_is_done_was_edited_is_refused(
    at: int, rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    batch.run([rows_file], target, tiny_built, BY_ID)
    before = state(target)
    edited = [dict(row) for row in ROWS]
    edited[at]["text"] = edited[at]["text"][:-1] + "x"  # of the same size
    write_jsonl(rows_file, edited)
    stop = min(45, at // 8 * 8 + 8)
    with pytest.raises(
        MismatchError, match=f"rows {at // 8 * 8} to {stop - 1} are not those of shard {at // 8};"
    ):
        batch.run([rows_file], target, tiny_built, BY_ID)
    assert state(target) == before
    batch.run([rows_file], target, tiny_built, BY_ID, restart=True)
    assert_holds(target, edited, embedder.encode(texts_of(edited)))


@pytest.mark.parametrize("column", ["id", "lang"])
def test_an_edited_id_or_kept_value_is_an_edit_too(
    column: str, rows_file: Path, target: Path, tiny_built: Path
) -> None:
    batch.run([rows_file], target, tiny_built, BY_ID)
    edited = [dict(row) for row in ROWS]
    edited[9][column] = "other"
    write_jsonl(rows_file, edited)
    with pytest.raises(MismatchError, match="rows 8 to 15 are not those of shard 1"):
        batch.run([rows_file], target, tiny_built, BY_ID)


def test_an_edit_that_keeps_size_and_time_is_not_looked_for(
    rows_file: Path, target: Path, tiny_built: Path
) -> None:
    """What the module says of it; it would take reading everything at every start."""
    batch.run([rows_file], target, tiny_built, BY_ID)
    about = rows_file.stat()
    rows_file.write_bytes(rows_file.read_bytes().replace(b"r7", b"q7"))
    os.utime(rows_file, ns=(about.st_atime_ns, about.st_mtime_ns))
    before = state(target)
    batch.run([rows_file], target, tiny_built, BY_ID)
    assert state(target) == before


@pytest.mark.parametrize("before", [16, 20], ids=["whole shards", "a short one at the end"])
def test_rows_that_were_appended_are_embedded_and_the_rest_is_kept(
    before: int, tmp_path: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:before])
    batch.run([path], target, tiny_built, BY_ID)
    kept = {name: known for name, known in state(target).items() if name.startswith("part-")}
    write_jsonl(path, ROWS)
    done = batch.run([path], target, tiny_built, BY_ID)
    assert (done.resumed_at, done.rows_in) == (before, 45)
    assert state(target).items() >= kept.items()
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))


@pytest.mark.parametrize("failing", [1, 2])
def test_a_job_that_stops_among_appended_rows_goes_on_among_them(
    failing: int,
    tmp_path: Path,
    target: Path,
    tiny_built: Path,
    embedder: Embedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The journal says of an earlier input that it was read to the end."""
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:20])
    batch.run([path], target, tiny_built, BY_ID)
    write_jsonl(path, ROWS)
    with monkeypatch.context() as patch:
        break_at(patch, failing)
        with pytest.raises(OutputError):
            batch.run([path], target, tiny_built, BY_ID)
    assert manifest_of(target)["status"] == "running"
    assert batch.run([path], target, tiny_built, BY_ID).resumed_at == 20 + 8 * (failing - 1)
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))


def break_at(patch: pytest.MonkeyPatch, call: int) -> None:
    """Let the shard of a certain call fail."""
    calls = 0
    write = shards.write

    def failing(*arguments: Any, **options: Any) -> shards.Written:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OutputError("cannot write")
        return write(*arguments, **options)

    patch.setattr(shards, "write", failing)


def stopped(inputs: Path | list[str], target: Path, model: Path, job: Job = BY_ID, shard: int = 4) -> None:
    """A job that has failed at a shard (the first is 1)."""
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, shard)
        with pytest.raises(OutputError):
            batch.run(inputs if isinstance(inputs, list) else [inputs], target, model, job)


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_was_stopped_goes_on_in_every_kind_of_input(
    kind: str, touched: bool, tmp_path: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    inputs = written(tmp_path, kind, ROWS)
    stopped(inputs, target, tiny_built)
    if touched:
        for source in readers.find(inputs):
            os.utime(source.name, ns=(1, 1))
    assert batch.run(inputs, target, tiny_built, BY_ID).resumed_at == 24
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))
    assert union(target)["lang"].tolist() == [row["lang"] for row in ROWS]


def test_an_edit_of_rows_that_are_not_done_yet_is_welcome(
    rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    stopped(rows_file, target, tiny_built)
    edited = [*ROWS[:24], *make_rows(10, seed=9)]
    for i, row in enumerate(edited):
        row["id"] = f"r{i}"
    write_jsonl(rows_file, edited)
    assert batch.run([rows_file], target, tiny_built, BY_ID).resumed_at == 24
    assert_holds(target, edited, embedder.encode(texts_of(edited)))


@pytest.mark.parametrize("left", [0, 3, 16, 23])
def test_an_input_that_has_become_shorter_than_what_is_done_is_refused_and_resumes_when_it_is_back(
    left: int, rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    stopped(rows_file, target, tiny_built)
    write_jsonl(rows_file, ROWS[:left])
    with pytest.raises(MismatchError, match=f"it ends at row {left}, and 24 are done; bring it back"):
        batch.run([rows_file], target, tiny_built, BY_ID)
    write_jsonl(rows_file, ROWS)
    assert batch.run([rows_file], target, tiny_built, BY_ID).resumed_at == 24
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))


def test_a_packed_input_that_breaks_off_is_an_error_and_resumes_when_it_is_whole(
    tmp_path: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    rows = make_rows(3000)
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(json_lines(rows))
    path.write_bytes(whole[: len(whole) // 2])
    job = Job(rows_per_shard=100, id_column="id")
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz breaks off after line \d+"):
        batch.run([path], target, tiny_built, job)
    path.write_bytes(whole)
    assert batch.run([path], target, tiny_built, job).resumed_at > 0
    assert_holds(target, rows, embedder.encode(texts_of(rows)))


def test_restart_begins_anew_and_removes_only_what_a_job_has_made(
    rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    stopped(rows_file, target, tiny_built)
    foreign = ["part-of-mine.txt", "part-00001.parquet.bak", "notes.md", ".hidden.partial.parquet"]
    for name in foreign:
        (target / name).write_text("mine")
    (target / "part-00099.npy").write_bytes(b"of a job with another format")
    (target / ".part-00003.0123abcd.partial.parquet").write_bytes(b"killed")
    done = batch.run([rows_file], target, tiny_built, Job(id_column="id", rows_per_shard=30), restart=True)
    assert (done.resumed_at, done.shards) == (0, 2)
    for name in foreign:
        assert (target / name).read_text() == "mine"
        (target / name).unlink()
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_of_something_else_is_left_alone(
    restart: bool, rows_file: Path, target: Path, tiny_built: Path
) -> None:
    target.mkdir()
    (target / "manifest.json").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no job"):
        batch.run([rows_file], target, tiny_built, JOB, restart=restart)
    (target / "journal.jsonl").write_text('{"entry": "a journal of somebody else"}\n')
    error, words = (
        (InputError, "is not of a job; nothing is removed") if restart else (IntegrityError, "schema None")
    )
    with pytest.raises(error, match=words):
        batch.run([rows_file], target, tiny_built, JOB, restart=restart)
    assert (target / "manifest.json").read_text() == "mine"


@pytest.mark.parametrize("place", ["", "deeper/shards"])
def test_an_output_folder_within_the_input_is_refused(place: str, tmp_path: Path, tiny_built: Path) -> None:
    write_jsonl(tmp_path / "in/rows.jsonl")
    with pytest.raises(InputError, match="lies in the input"):
        batch.run([tmp_path / "in"], tmp_path / "in" / place, tiny_built, JOB)
    with pytest.raises(InputError, match="name another folder for the output"):
        batch.run([tmp_path / "in/rows.jsonl"], tmp_path / "in", tiny_built, JOB)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_bad_row": "ignore"}, "on_bad_row is 'ignore'; known: reject, stop"),
        ({"job": Job(on_overflow="cut")}, "on_overflow is 'cut'; known: reject, truncate"),
        ({"job": Job(output_format="csv")}, "output_format is 'csv'; known: parquet, npy"),
        ({"job": Job(precision="int4")}, "precision is 'int4'"),
        ({"job": Job(rows_per_shard=0)}, "rows_per_shard is 0; it must be at least 1"),
        ({"job": Job(keep_columns=("position",))}, "the column 'position' cannot be kept"),
        ({"job": Job(id_column="key")}, "no 'key' among its keys"),
        ({"job": Job(prompt_name="passage")}, "no prompt 'passage'"),
        ({"job": Job(truncate_dim=33)}, "truncate_dim 33 is not within 1 to 32"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused_before_anything_is_written(
    options: dict[str, Any], words: str, rows_file: Path, target: Path, tiny_built: Path
) -> None:
    if "no 'key'" in words:
        rows_file = as_parquet(rows_file.with_suffix(".parquet"), ROWS)
        words = "has no column 'key'"
    with pytest.raises(InputError) as refused:
        batch.run([rows_file], target, tiny_built, **options)
    assert words in str(refused.value)
    assert not target.exists() or {path.name for path in target.iterdir()} == {".lock"}


def test_stdin_goes_on_with_the_same_stream_and_refuses_another(
    target: Path, tiny_built: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin_of(json_lines(ROWS), monkeypatch)
    with monkeypatch.context() as patch:
        break_at(patch, 3)
        with pytest.raises(OutputError):
            batch.run(["-"], target, tiny_built, BY_ID)
    stdin_of(json_lines(make_rows(45, seed=1)), monkeypatch)
    with pytest.raises(MismatchError, match="rows 0 to 7 are not those of shard 0"):
        batch.run(["-"], target, tiny_built, BY_ID)
    for resumed_at in (16, 45):
        stdin_of(json_lines(ROWS), monkeypatch)
        assert batch.run(["-"], target, tiny_built, BY_ID).resumed_at == resumed_at
        assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))
    stdin_of(b"", monkeypatch)
    with pytest.raises(MismatchError, match="it ends at row 0, and 45 are done"):
        batch.run(["-"], target, tiny_built, BY_ID)


# ---- what somebody has done to the shards


@pytest.mark.parametrize("damage", ["missing", "cut", "rejected missing", "rejected cut", "rejected longer"])
@pytest.mark.parametrize("output_format", shards.FORMATS)
def test_what_was_removed_or_cut_is_made_again_and_what_came_before_is_kept(
    damage: str,
    output_format: str,
    tmp_path: Path,
    target: Path,
    tiny_built: Path,
    embedder: Embedder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, good, positions = with_bad_rows(tmp_path / "rows.jsonl")
    job = Job(id_column="id", keep_columns=("lang",), rows_per_shard=8, output_format=output_format)
    batch.run([path], target, tiny_built, job)
    rejected = (target / "rejected.jsonl").read_bytes()
    shard = target / f"part-00002.{output_format}"
    again = {"missing": 16, "cut": 16, "rejected missing": 0, "rejected cut": 24, "rejected longer": 34}[
        damage
    ]
    match damage:
        case "missing":
            shard.unlink()
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "rejected missing":
            (target / "rejected.jsonl").unlink()
        case "rejected cut":
            (target / "rejected.jsonl").write_bytes(rejected[:-1])
        case "rejected longer":
            (target / "rejected.jsonl").write_bytes(rejected + rejected[:100])
    before = state(target)
    assert batch.run([path], target, tiny_built, job).resumed_at == again
    for name in before:
        if name.startswith("part-") and int(name[5:10]) < again // 8:
            assert state(target)[name] == before[name]
    assert_holds(target, good, embedder.encode(texts_of(good)), positions)
    assert (target / "rejected.jsonl").read_bytes() == rejected
    assert ("is missing or cut; going back" in caplog.text) == (again < 34)


def test_a_missing_shard_and_a_changed_input_do_not_hide_each_other(
    rows_file: Path, target: Path, tiny_built: Path
) -> None:
    batch.run([rows_file], target, tiny_built, BY_ID)
    (target / "part-00003.parquet").unlink()
    edited = [dict(row) for row in ROWS]
    edited[1]["text"] = "other"
    write_jsonl(rows_file, edited)
    for _ in range(2):
        with pytest.raises(MismatchError, match="rows 0 to 7 are not those of shard 0"):
            batch.run([rows_file], target, tiny_built, BY_ID)


def test_counts_that_do_not_add_up_are_an_error(rows_file: Path, target: Path, tiny_built: Path) -> None:
    batch.run([rows_file], target, tiny_built, BY_ID)
    journal = target / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"rows": 8, "rejected": 0', '"rows": 7, "rejected": 0', 1))
    with pytest.raises(IntegrityError, match="shard 0 has 7 rows embedded and 0 rejected of rows 0 to 7"):
        batch.run([rows_file], target, tiny_built, BY_ID)


# ---- killed


RUNNER = """\
import json, os, sys
from pathlib import Path
import numpy, openvino, pandas, pyarrow.parquet, tokenizers, tqdm
from edge_embed import batch, journal, shards
from edge_embed.errors import EdgeEmbedError

def crash(owner, name, when, nth):
    called, calls = getattr(owner, name), [0]
    def crashing(*arguments, **options):
        calls[0] += 1
        if calls[0] == nth and when == "before":
            os._exit(99)
        result = called(*arguments, **options)
        if calls[0] == nth:
            os._exit(99)
        return result
    setattr(owner, name, crashing)

def work(task):
    if "crash" in task:
        module, _, names = task["crash"][0].partition(".")
        *classes, name = names.split(".")
        owner = globals()[module]
        for part in classes:
            owner = getattr(owner, part)
        crash(owner, name, *task["crash"][1:])
    if "limit" in task:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["limit"], task["limit"]))
    if task.get("nobody") and os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    job = batch.Job(**task["job"])
    begun = []
    def watch(now):
        if not begun:
            begun.append(now)
            print("begun", flush=True)
    try:
        batch.run(task["inputs"], task["folder"], task["model"], job, watch=watch, cache_dir=False)
    except EdgeEmbedError as error:
        print("refused", type(error).__name__, error, flush=True)
        os._exit(2)
    os._exit(0)

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        work(json.loads(line))
    print("pid", pid, flush=True)
    print("ended", os.waitpid(pid, 0)[1], flush=True)
"""


class Runner:
    """Runs jobs, each in a process of its own, one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RUNNER],
            env=os.environ | {"PYTHONPATH": str(Path(edge_embed.__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, path: Path, folder: Path, model: Path, job: Job, **task: Any) -> int:
        """Begin a job; its process id."""
        assert self._process.stdin
        options = {name: getattr(job, name) for name in Job.__dataclass_fields__}
        task |= {"inputs": [str(path)], "folder": str(folder), "model": str(model), "job": options}
        print(json.dumps(task), file=self._process.stdin, flush=True)
        self.said: list[str] = []
        return int(self.wait_for("pid").split()[1])

    def wait_for(self, word: str) -> str:
        """The next line that begins with a word, from the job or about it."""
        assert self._process.stdout
        while not any(line.startswith(word) for line in self.said):
            line = self._process.stdout.readline()
            assert line, "the runner has ended"
            self.said.append(line.rstrip("\n"))
        return next(line for line in self.said if line.startswith(word))

    def end(self) -> int:
        """Wait until the job ends: its exit code, or minus the signal."""
        return os.waitstatus_to_exitcode(int(self.wait_for("ended").split()[1]))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def runner(tiny_built: Path) -> Iterator[Runner]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    own = Runner()
    yield own
    own.close()


POINTS = [
    (name, when, nth)
    for name, nth in (
        ("journal.append", 1),  # what the job is
        ("batch.Done.write_manifest", 1),
        ("shards.write", 1),
        ("shards.write", 3),
        ("batch.atomic.publish", 2),  # the first shard; the first call is the manifest
        ("batch.Work._reject", 1),
        ("batch.Work._reject", 3),
        ("batch.Done.add", 1),
        ("batch.Done.add", 3),
        ("batch.Done.add", 5),  # the last
        ("batch.Done.end", 1),
        ("batch.Done.write_manifest", 2),
    )
    for when in ("before", "after")
]


@posix
@pytest.mark.parametrize(("name", "when", "nth"), POINTS, ids=lambda value: str(value).removeprefix("batch."))
@pytest.mark.parametrize("output_format", ["parquet"])
def test_a_process_that_ends_beside_a_step_loses_and_doubles_nothing(
    name: str,
    when: str,
    nth: int,
    output_format: str,
    runner: Runner,
    tmp_path: Path,
    target: Path,
    tiny_built: Path,
    embedder: Embedder,
) -> None:
    path, good, positions = with_bad_rows(tmp_path / "rows.jsonl")
    job = Job(id_column="id", keep_columns=("lang",), rows_per_shard=8, output_format=output_format)
    runner.start(path, target, tiny_built, job, crash=[name, when, nth])
    assert runner.end() == 99, runner.said
    done = batch.run([path], target, tiny_built, job)
    assert (done.rows_in, done.embedded, done.rejected) == (34, 24, 10)
    assert_holds(target, good, embedder.encode(texts_of(good)), positions)
    missing = sorted(set(range(34)) - set(positions))
    assert [row["position"] for row in rejected_of(target)] == missing
    before = state(target)
    batch.run([path], target, tiny_built, job)
    assert state(target) == before


@posix
def test_a_kill_between_the_two_files_of_an_npy_shard_is_mended(
    runner: Runner, rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    job = Job(rows_per_shard=8, id_column="id", output_format="npy")
    runner.start(rows_file, target, tiny_built, job, crash=["shards.write_npy", "before", 2])
    assert runner.end() == 99
    assert (target / "part-00001.jsonl").exists()
    assert not (target / "part-00001.npy").exists()
    assert batch.run([rows_file], target, tiny_built, job).resumed_at == 8
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))


@posix
def test_what_a_killed_process_has_left_is_removed_even_where_the_input_has_become_shorter(
    runner: Runner, rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    runner.start(rows_file, target, tiny_built, BY_ID, crash=["batch.Work._reject", "before", 3])
    assert runner.end() == 99
    assert (target / "part-00002.parquet").exists()  # and the journal does not know of it
    write_jsonl(rows_file, ROWS[:16])
    (target / ".part-00003.0123abcd.partial.parquet").write_bytes(b"cut")
    batch.run([rows_file], target, tiny_built, BY_ID)
    assert_holds(target, ROWS[:16], embedder.encode(texts_of(ROWS[:16])))


@posix
@pytest.mark.parametrize("output_format", shards.FORMATS)
def test_killed_at_random_moments_again_and_again_every_row_comes_out_once(
    output_format: str, runner: Runner, tmp_path: Path, tiny_built: Path
) -> None:
    """Each kill falls some time after the work has begun: into reading, embedding, writing or noting."""
    rows = make_rows(6000)
    for i in range(5, len(rows), 17):
        rows[i]["text"] = None
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    job = Job(id_column="id", keep_columns=("lang",), rows_per_shard=8, output_format=output_format)
    whole, target = tmp_path / "whole", tmp_path / "killed"
    batch.run([path], whole, tiny_built, job)
    chance = random.Random(output_format)
    marks = set()
    for _ in range(25):
        pid = runner.start(path, target, tiny_built, job)
        runner.wait_for("begun")
        threading.Event().wait(chance.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert runner.end() == -signal.SIGKILL, "the job has ended before it was killed: too few rows"
        marks.add((target / "journal.jsonl").read_bytes().count(b'"shard"'))
    assert len(marks) > 6, "hardly a kill has fallen into the work"
    done = batch.run([path], target, tiny_built, job)
    assert 0 < done.resumed_at < 6000
    assert_holds(
        target,
        [row for row in rows if row["text"] is not None],
        vectors_of(union(whole)),
        [i for i, row in enumerate(rows) if row["text"] is not None],
    )
    assert (target / "rejected.jsonl").read_bytes() == (whole / "rejected.jsonl").read_bytes()


@posix
def test_a_second_process_is_refused_and_the_lock_is_free_after_a_kill(
    runner: Runner, rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    rows = make_rows(3000)
    write_jsonl(rows_file, rows)
    pid = runner.start(rows_file, target, tiny_built, BY_ID)
    runner.wait_for("begun")
    os.kill(pid, signal.SIGSTOP)
    for restart in (False, True):
        with pytest.raises(InputError, match="another process is working on"):
            batch.run([rows_file], target, tiny_built, BY_ID, restart=restart)
    os.kill(pid, signal.SIGKILL)
    assert runner.end() == -signal.SIGKILL
    batch.run([rows_file], target, tiny_built, BY_ID)
    assert_holds(target, rows, embedder.encode(texts_of(rows)))


@posix
@pytest.mark.parametrize(
    ("size", "file"), [(100, "part-00000.parquet"), (8, "journal.jsonl")], ids=["shard", "journal"]
)
def test_a_full_disk_is_one_line_and_the_job_goes_on_when_there_is_room(
    size: int, file: str, runner: Runner, rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    rows = make_rows(400)
    write_jsonl(rows_file, rows)
    job = Job(id_column="id", rows_per_shard=size)
    runner.start(rows_file, target, tiny_built, job, limit=9000)
    assert runner.end() == 2, runner.said
    assert runner.wait_for("refused") == f"refused OutputError cannot write {target / file}: File too large"
    done = batch.run([rows_file], target, tiny_built, job)
    assert (done.resumed_at > 0) == (file == "journal.jsonl")
    assert_holds(target, rows, embedder.encode(texts_of(rows)))


@posix
def test_a_full_disk_among_rejected_rows_does_not_reject_any_twice(
    runner: Runner, tmp_path: Path, target: Path, tiny_built: Path
) -> None:
    rows: Rows = [{"text": "the cat" if i % 8 == 0 else "cat " * 600} for i in range(80)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    runner.start(path, target, tiny_built, JOB, limit=9000)
    assert runner.end() == 2, runner.said
    assert f"cannot write {target / 'rejected.jsonl'}: File too large" in runner.wait_for("refused")
    done = batch.run([path], target, tiny_built, JOB)
    assert done.resumed_at > 0
    assert [row["position"] for row in rejected_of(target)] == [i for i in range(80) if i % 8]


@posix
def test_a_folder_that_may_not_be_written_is_one_line_and_the_job_goes_on_when_it_may(
    runner: Runner, rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder, tmp_path: Path
) -> None:
    stopped(rows_file, target, tiny_built)
    for folder in (tmp_path, *tmp_path.parents):  # for nobody, who has to come by
        if folder == tmp_path or folder.name.startswith("pytest-"):
            folder.chmod(0o755)
    before = state(target)
    (target / ".lock").chmod(0o444)
    target.chmod(0o555)
    try:
        runner.start(rows_file, target, tiny_built, BY_ID, nobody=True)
        assert runner.end() == 2, runner.said
    finally:
        target.chmod(0o755)
        (target / ".lock").chmod(0o644)
    assert (
        runner.wait_for("refused")
        == f"refused OutputError cannot write {target / '.lock'}: Permission denied"
    )
    assert state(target) == before
    batch.run([rows_file], target, tiny_built, BY_ID)
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))


def test_a_vector_that_is_not_a_number_stops_the_job_at_its_row_and_the_job_can_go_on(
    tmp_path: Path, target: Path, tiny: Path
) -> None:
    """The word `world` has a broken row in the token table."""
    model = tiny
    number = json.loads((model / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]["world"]
    row = load_file(model / "model.safetensors")["embeddings.word_embeddings.weight"][number].tobytes()
    weights = model / "openvino/openvino_model.bin"
    assert weights.read_bytes().count(row) == 1
    weights.write_bytes(weights.read_bytes().replace(row, np.full(DIM, np.nan, np.float32).tobytes()))
    rows = [row for row in make_rows(200) if "world" not in row["text"]][:30]
    rows[17]["text"] = rows[16]["text"]  # embedded once, so that places in a batch are not places of rows
    rows[21]["text"] = "hello world"
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        NumericsError, match=r"the text of .*rows\.jsonl, line 22 gave a vector that is NaN"
    ) as caught:
        batch.run([path], target, model, BY_ID)
    assert "openvino_model.xml are damaged" in str(caught.value)
    rows[21]["text"] = "hello"
    write_jsonl(path, rows)
    assert batch.run([path], target, model, BY_ID).resumed_at == 16
    assert_holds(target, rows, Embedder(model).encode(texts_of(rows)))


# ---- how far it is


def watched(inputs: list[Any], target: Path, model: Path, job: Job = JOB) -> list[Progress]:
    seen: list[Progress] = []
    batch.run(inputs, target, model, job, watch=seen.append)
    return seen


def test_progress_only_ever_grows_and_ends_at_the_total(
    rows_file: Path, target: Path, tiny_built: Path
) -> None:
    stopped(rows_file, target, tiny_built, JOB)
    seen = watched([rows_file], target, tiny_built)
    assert seen[0].rows == seen[0].resumed_at == 24
    assert seen[0].seconds_left is None
    for one, other in itertools.pairwise(seen):
        assert one.rows <= other.rows
        assert one.tokens <= other.tokens
        assert one.shards <= other.shards
        assert one.seconds <= other.seconds
    assert len({now.rows for now in seen}) > 3
    last = seen[-1]
    assert (last.rows, last.total, last.shards, last.seconds_left) == (45, 45, 6, 0)
    assert last.tokens_per_second == last.tokens / last.seconds > 0


def test_the_time_left_is_that_of_the_rows_that_are_left_at_the_pace_of_this_run() -> None:
    assert Progress(300, 1000, 100, 5000, 10.0, 3).seconds_left == 35.0
    assert Progress(300, None, 100, 5000, 10.0, 3).seconds_left is None
    assert Progress(100, 1000, 100, 0, 10.0, 3).seconds_left is None
    assert Progress(300, 290, 100, 0, 10.0, 3).seconds_left == 0
    assert Progress(100, 1000, 100, 0, 0.0, 3).tokens_per_second == 0


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_counted_as_they_are_read(kind: str, tmp_path: Path) -> None:
    rows = [row | {"lang": "de"} for row in ROWS]  # a line end within quotes would count
    sources = readers.find(written(tmp_path, kind, rows))
    assert batch.count_rows(sources, threading.Event()) == 45


@pytest.mark.parametrize("content", ["", "a", "a\nb", "a\nb\n"])
def test_the_last_line_counts_without_its_end(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert batch.count_rows(readers.find([str(path)]), threading.Event()) == len(content.split())
    table = tmp_path / "rows.csv"
    table.write_text(content)
    assert batch.count_rows(readers.find([str(table)]), threading.Event()) == max(0, len(content.split()) - 1)


def test_what_cannot_be_counted_is_unknown(tmp_path: Path, rows_file: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(json_lines(ROWS))[:-9])
    never, at_once = threading.Event(), threading.Event()
    at_once.set()
    assert batch.count_rows(readers.find(["-"]), never) is None
    assert batch.count_rows(readers.find([str(rows_file), str(packed)]), never) is None
    assert batch.count_rows(readers.find([str(rows_file)]), at_once) is None
    assert batch.count_rows(readers.find([str(rows_file)]), never) == 45


def test_an_input_that_cannot_be_counted_is_embedded_all_the_same(
    target: Path, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin_of(json_lines(ROWS), monkeypatch)
    seen = watched(["-"], target, tiny_built)
    assert {now.total for now in seen[:-1]} == {None}
    assert seen[-1].total == 45


def test_an_error_of_who_watches_stops_the_job_which_can_go_on(
    rows_file: Path, target: Path, tiny_built: Path, embedder: Embedder
) -> None:
    def interrupt(now: Progress) -> None:
        if now.shards == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.run([rows_file], target, tiny_built, BY_ID, watch=interrupt)
    assert batch.run([rows_file], target, tiny_built, BY_ID).resumed_at in (16, 24)
    assert_holds(target, ROWS, embedder.encode(texts_of(ROWS)))


def test_an_interrupted_comparison_is_not_taken_for_a_changed_input_nor_for_a_finished_one(
    rows_file: Path, target: Path, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(rows_file, target, tiny_built)
    os.utime(rows_file, ns=(1, 1))
    journal = (target / "journal.jsonl").read_bytes()
    take, calls = batch.Work._take, 0

    def interrupted(work: batch.Work, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            work.stopping.set()
        return take(work, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(batch.Work, "_take", interrupted)
        patch.setattr(batch.Done, "end", lambda done: None)
        batch.run([rows_file], target, tiny_built, BY_ID)
    assert (target / "journal.jsonl").read_bytes() == journal
    edited = [dict(row) for row in ROWS]
    edited[20]["text"] = "other"
    write_jsonl(rows_file, edited)
    with pytest.raises(MismatchError):
        batch.run([rows_file], target, tiny_built, BY_ID)


def test_a_job_says_nothing_of_its_own_while_all_is_well(
    rows_file: Path, target: Path, tiny_built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    batch.run([rows_file], target, tiny_built, BY_ID)
    batch.run([rows_file], target, tiny_built, BY_ID)
    assert caplog.text == ""
