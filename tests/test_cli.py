"""The commands that run a model: what comes out on stdout and in files, against Embedder itself."""

import argparse
import errno
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from edge_embed import Embedder, __version__, store
from edge_embed.cli import COMMANDS, common, main, similarity
from edge_embed.drift import measurement
from tests import measurements

TEXTS = [
    "the cat sat on the mat",
    "a blue house",
    "hello world",
    "Καλημέρα κόσμε",
    "dogs run fast, cats slow",
]
DIM = 32  # of the tiny model

Capture = pytest.CaptureFixture[str]
Vectors = NDArray[Any]


@pytest.fixture(scope="module")
def embedder(tiny_built: Path) -> Embedder:
    """The same model through the API: the judge of what commands write."""
    return Embedder(tiny_built)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXTS) + "\n", "utf-8")
    return path


def run(*arguments: str | Path) -> None:
    """A command that has to succeed."""
    assert main([str(argument) for argument in arguments]) == 0


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def type_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Let the next command find `data` on stdin."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))


def from_lines(lines: list[str], kind: type = np.float32) -> tuple[list[Any], Vectors]:
    """(ids, vectors) of JSONL output."""
    rows = [json.loads(line) for line in lines]
    assert all(row.keys() == {"id", "embedding"} for row in rows)
    return [row["id"] for row in rows], np.array([row["embedding"] for row in rows], kind)


def read_back(path: Path, kind: type = np.float32) -> tuple[list[Any] | None, Vectors]:
    """(ids, vectors) of an output file, by the libraries that its readers would use."""
    if path.suffix == ".npy":
        return None, np.load(path)
    if path.suffix == ".jsonl":
        return from_lines(path.read_text("utf-8").splitlines(), kind)
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["id", "embedding"]
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    assert flat.dtype == kind
    return table["id"].to_pylist(), flat.reshape(len(table), -1)


def embedded(tiny_built: Path, path: Path, capsys: Capture, *options: str) -> Vectors:
    """What `embed` prints of a file."""
    run("embed", path, "-m", tiny_built, *options)
    return from_lines(capsys.readouterr().out.splitlines())[1]


# embed


@pytest.mark.parametrize("suffix", common.OUTPUT_SUFFIXES)
def test_an_output_file_holds_exactly_the_vectors_of_encode(
    suffix: str, corpus: Path, tiny_built: Path, embedder: Embedder, capsys: Capture
) -> None:
    output = corpus.with_name(f"vectors{suffix}")
    run("embed", corpus, "-o", output, "-m", tiny_built)
    ids, vectors = read_back(output)
    assert ids in (None, [0, 1, 2, 3, 4])
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, embedder.encode(TEXTS))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"5 x {DIM} float32 in ")
    assert err.endswith(f"-> {output}\n")
    assert sorted(path.name for path in corpus.parent.iterdir()) == sorted([corpus.name, output.name])


def test_stdout_gets_jsonl_with_exactly_the_vectors_of_encode(
    corpus: Path, tiny_built: Path, embedder: Embedder, capsys: Capture
) -> None:
    run("embed", corpus, "-m", tiny_built)
    out, err = capsys.readouterr()
    ids, vectors = from_lines(out.splitlines())
    assert ids == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(vectors, embedder.encode(TEXTS))
    assert err == ""


def test_nine_digits_carry_every_float32() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, (1, 20_000), np.uint32).view(np.float32)
    edges = np.array([0, -0.0, 1e-45, 3.4028235e38, 1 / 3], np.float32)
    rows = np.append(bits[np.isfinite(bits)], edges).reshape(1, -1)
    (line,) = common.jsonl_rows([0], rows)
    np.testing.assert_array_equal(np.array(json.loads(line)["embedding"], np.float32), rows[0])


def test_an_older_output_is_replaced_as_a_whole(corpus: Path, tiny_built: Path) -> None:
    output = corpus.with_name("vectors.jsonl")
    output.write_text("x" * 100_000)
    run("embed", corpus, "-o", output, "-m", tiny_built)
    assert len(read_back(output)[1]) == len(TEXTS)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a cat\na dog\n", ["a cat", "a dog"]),
        (b"a cat\na dog", ["a cat", "a dog"]),
        (b"a cat\r\na dog\r\n", ["a cat", "a dog"]),
        (b"\xef\xbb\xbfa cat\n", ["a cat"]),
        (b"a cat\n\n\na dog\n\n", ["a cat", "", "", "a dog", ""]),
        (b"\n", [""]),
        ("a\x0bb\x0cc\x1dd\x85e\u2028f\rg\n".encode(), ["a\x0bb\x0cc\x1dd\x85e\u2028f\rg"]),
        ("日本 🙂\n".encode(), ["日本 🙂"]),
        (b"", []),
        (b"\xef\xbb\xbf", []),
    ],
    ids=[
        "lines",
        "no end",
        "windows",
        "bom",
        "empty lines",
        "one end",
        "other breaks",
        "utf-8",
        "empty",
        "only bom",
    ],
)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_row_is_a_line(
    source: str, data: bytes, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_bytes(data)
    type_in(monkeypatch, data)
    args = argparse.Namespace(format=None, text_column=None, id_column=None)
    path = str(tmp_path / "texts.txt") if source == "file" else "-"
    assert common.read_texts(path, args) == (list(range(len(expected))), expected)


@pytest.mark.parametrize("arguments", [[], ["-"]], ids=["nothing", "dash"])
def test_texts_come_from_stdin_when_no_file_is_named(
    arguments: list[str],
    tiny_built: Path,
    embedder: Embedder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    type_in(monkeypatch, "\n".join(TEXTS).encode())
    run("embed", *arguments, "-m", tiny_built)
    _, vectors = from_lines(capsys.readouterr().out.splitlines())
    np.testing.assert_array_equal(vectors, embedder.encode(TEXTS))


def test_a_person_at_the_terminal_is_told_what_is_waited_for(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    type_in(monkeypatch, b"hello world\n")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    run("embed", "-m", tiny_built)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err == "edge-embed: reading texts from the terminal, one a line, to the end (Ctrl-D)\n"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson"])
def test_rows_of_a_jsonl_file_are_read_by_column(
    name: str, tmp_path: Path, tiny_built: Path, embedder: Embedder, capsys: Capture
) -> None:
    rows = [{"text": text, "body": text.upper() + "!", "key": f"é{i}"} for i, text in enumerate(TEXTS)]
    path = write_rows(tmp_path / name, rows)
    np.testing.assert_array_equal(embedded(tiny_built, path, capsys), embedder.encode(TEXTS))
    run("embed", path, "-m", tiny_built, "--text-column", "body", "--id-column", "key")
    ids, vectors = from_lines(capsys.readouterr().out.splitlines())
    assert ids == ["é0", "é1", "é2", "é3", "é4"]
    np.testing.assert_array_equal(vectors, embedder.encode([text.upper() + "!" for text in TEXTS]))


@pytest.mark.parametrize(
    "options", [["--format", "jsonl"], ["--text-column", "text"], ["--id-column", "key"]], ids=lambda o: o[0]
)
def test_stdin_is_jsonl_when_its_format_or_a_column_is_named(
    options: list[str],
    tiny_built: Path,
    embedder: Embedder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    type_in(monkeypatch, b'\xef\xbb\xbf{"text": "a cat", "key": 7}\r\n{"text": "a dog", "key": 8}\r\n')
    run("embed", "-m", tiny_built, *options)
    ids, vectors = from_lines(capsys.readouterr().out.splitlines())
    assert ids == ([7, 8] if "--id-column" in options else [0, 1])
    np.testing.assert_array_equal(vectors, embedder.encode(["a cat", "a dog"]))


def test_a_jsonl_file_can_be_read_as_lines(
    tmp_path: Path, tiny_built: Path, embedder: Embedder, capsys: Capture
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "a cat"}])
    vectors = embedded(tiny_built, path, capsys, "--format", "lines")
    np.testing.assert_array_equal(vectors, embedder.encode(['{"text": "a cat"}']))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("ids", [["x", "", "日本"], [2**63 - 1, -(2**63), 0]], ids=["strings", "numbers"])
def test_ids_are_kept(ids: list[Any], suffix: str, tmp_path: Path, tiny_built: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "a cat", "id": i} for i in ids])
    run("embed", path, "--id-column", "id", "-m", tiny_built, "-o", tmp_path / f"out{suffix}")
    assert read_back(tmp_path / f"out{suffix}")[0] == ids


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("suffix", common.OUTPUT_SUFFIXES)
def test_every_precision_reads_back_from_every_file(
    suffix: str, precision: str, corpus: Path, tiny: Path, capsys: Capture
) -> None:
    output = corpus.with_name(f"vectors{suffix}")
    run("embed", corpus, "-o", output, "-m", tiny, "--precision", precision)
    expected = Embedder(tiny).encode(TEXTS, precision=precision)
    _, vectors = read_back(output, expected.dtype.type)
    assert vectors.dtype == expected.dtype
    np.testing.assert_array_equal(vectors, expected)
    assert f"x {vectors.shape[1]} {expected.dtype} in" in capsys.readouterr().err


def test_prompts_come_by_name_or_as_text(
    corpus: Path, tiny_built: Path, embedder: Embedder, capsys: Capture
) -> None:
    queries = embedder.encode([f"how is {text}" for text in TEXTS])
    np.testing.assert_array_equal(embedded(tiny_built, corpus, capsys, "--prompt-name", "query"), queries)
    np.testing.assert_array_equal(embedded(tiny_built, corpus, capsys, "--prompt", "how is "), queries)
    assert not np.array_equal(queries, embedder.encode(TEXTS))


def test_options_reach_the_embedder(corpus: Path, tiny_built: Path, capsys: Capture) -> None:
    short = embedded(tiny_built, corpus, capsys, "--truncate-dim", "8")
    np.testing.assert_array_equal(short, Embedder(tiny_built, truncate_dim=8).encode(TEXTS))
    cut = embedded(tiny_built, corpus, capsys, "--max-tokens", "4", "--threads", "1", "--streams", "1")
    np.testing.assert_array_equal(cut, Embedder(tiny_built, max_tokens=4, threads=1).encode(TEXTS))
    single = embedded(tiny_built, corpus, capsys, "--batch-size", "1", "--compute-type", "float32")
    np.testing.assert_allclose(single, Embedder(tiny_built).encode(TEXTS), atol=1e-6)


def test_every_option_of_embed_is_handed_on(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that do not show in the vectors of a tiny model."""
    made: dict[str, Any] = {}

    class Recorder:
        plan = argparse.Namespace(compute_type="float32")

        def __init__(self, model: str, **options: Any) -> None:
            made.update(options, model=model)

        def encode(self, texts: list[str], **options: Any) -> Vectors:
            made.update(options)
            return np.zeros((len(texts), 1), np.float32)

    monkeypatch.setattr("edge_embed.embedder.Embedder", Recorder)
    monkeypatch.setattr(store, "resolve", Path)
    arguments = {
        "--model": "m",
        "--compute-type": "int8",
        "--device": "AUTO",
        "--truncate-dim": 1,
        "--max-tokens": 2,
        "--threads": 3,
        "--streams": 4,
        "--prompt-name": "query",
        "--prompt": "p",
        "--precision": "ubinary",
        "--batch-size": 5,
        "--on-overflow": "error",
    }
    run("embed", corpus, *(str(part) for pair in arguments.items() for part in pair))
    expected = {name.removeprefix("--").replace("-", "_"): value for name, value in arguments.items()}
    assert made == expected | {"show_progress_bar": False}


@pytest.mark.parametrize("suffix", common.OUTPUT_SUFFIXES)
@pytest.mark.parametrize("precision", ["float32", "ubinary"])
def test_no_texts_give_a_file_of_no_rows(
    precision: str, suffix: str, tmp_path: Path, tiny_built: Path, capsys: Capture
) -> None:
    (tmp_path / "empty.txt").touch()
    output = tmp_path / f"vectors{suffix}"
    run("embed", tmp_path / "empty.txt", "-o", output, "-m", tiny_built, "--precision", precision, "--json")
    width = DIM if precision == "float32" else DIM // 8
    report = json.loads(capsys.readouterr().out)
    assert (report["texts"], report["dim"]) == (0, width)
    if suffix == ".npy":
        assert np.load(output).shape == (0, width)
    elif suffix == ".jsonl":
        assert output.read_bytes() == b""
    else:
        schema = pyarrow.parquet.read_schema(output)
        assert str(schema.field("id").type) == "int64"
        assert schema.field("embedding").type.list_size == width


def test_texts_over_the_limit_are_counted(
    corpus: Path, tiny_built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("embed", corpus, "-m", tiny_built, "--max-tokens", "8", "-o", corpus.with_name("v.npy"))
    (record,) = caplog.records
    assert "of 5 texts were cut to the limit of 8 tokens" in record.getMessage()


# progress


@pytest.mark.parametrize(
    ("repeat", "terminal", "shown"),
    [(1000, True, True), (1000, False, False), (1, True, False)],
    ids=["long", "long into a file", "short"],
)
@pytest.mark.parametrize("command", ["embed", "search"])
def test_a_bar_is_shown_to_a_person_who_would_have_to_wait(
    command: str,
    repeat: int,
    terminal: bool,
    shown: bool,
    tmp_path: Path,
    tiny_built: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS * repeat), "utf-8")
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    if command == "embed":
        run("embed", path, "-m", tiny_built, "-o", tmp_path / "v.npy")
    else:
        run("search", "cat", "--corpus", path, "-m", tiny_built)
    err = capsys.readouterr().err
    assert ("Embedding: 100%" in err) is shown
    assert (f"{len(TEXTS) * repeat}/{len(TEXTS) * repeat}" in err) is shown


def test_without_a_stderr_nobody_is_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert not common.wants_bar(["x" * 1_000_000])


# search


def brute_force(embedder: Embedder, query: str, texts: list[str]) -> list[tuple[int, float]]:
    """All (row, cosine), best first, in float64 and without our ranking."""
    q = embedder.encode([f"how is {query}"]).astype(np.float64)[0]
    rows = embedder.encode(texts).astype(np.float64)
    cosines = [float(q @ row / np.linalg.norm(q) / np.linalg.norm(row)) for row in rows]
    return sorted(enumerate(cosines), key=lambda pair: (-pair[1], pair[0]))


def test_search_finds_what_brute_force_finds(
    tmp_path: Path, tiny_built: Path, embedder: Embedder, capsys: Capture
) -> None:
    words = ["the", "cat", "dog", "sat", "mat", "runs", "fast", "red", "blue", "house", "hello", "world"]
    texts = [f"{a} {b} {c}" for a in words for b in words for c in ("is", "are you")]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(texts))
    queries = ["a red cat", "the slow world"]
    run("search", *queries, "--corpus", corpus, "--k", "7", "-m", tiny_built, "--json")
    out, err = capsys.readouterr()
    *shown, last = out.splitlines()
    found = json.loads(last)
    assert [entry["query"] for entry in found] == queries
    for entry in found:
        expected = brute_force(embedder, entry["query"], texts)[:7]
        assert [hit["id"] for hit in entry["hits"]] == [row for row, _ in expected]
        assert [hit["text"] for hit in entry["hits"]] == [texts[row] for row, _ in expected]
        got = [hit["score"] for hit in entry["hits"]]
        np.testing.assert_allclose(got, [score for _, score in expected], atol=2e-6)
    assert len(shown) == 2 * (1 + 7)
    best = found[0]["hits"][0]
    assert shown[0] == queries[0]
    assert shown[1].split(maxsplit=2) == [f"{best['score']:.4f}", str(best["id"]), best["text"]]
    assert err == ""


def test_search_shows_the_ids_of_the_rows_and_no_more_rows_than_there_are(
    tmp_path: Path, tiny_built: Path, capsys: Capture
) -> None:
    rows = [{"key": f"k{i}", "text": text} for i, text in enumerate(TEXTS)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    run("search", "cat", "--corpus", path, "--id-column", "key", "-k", "50", "-m", tiny_built, "--json")
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sorted(hit["id"] for hit in found["hits"]) == ["k0", "k1", "k2", "k3", "k4"]


def test_search_reads_its_corpus_from_stdin(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    type_in(monkeypatch, "\n".join(TEXTS).encode())
    run("search", "hello world", "--corpus", "-", "-k", "1", "-m", tiny_built)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_long_text_is_shortened_for_people_and_whole_in_json(
    tmp_path: Path, tiny_built: Path, capsys: Capture
) -> None:
    text = "cat " * 100
    (tmp_path / "corpus.txt").write_text(text)
    run("search", "cat", "--corpus", tmp_path / "corpus.txt", "-m", tiny_built, "--json")
    _, line, last = capsys.readouterr().out.splitlines()
    assert line.endswith("cat cat …") or line.endswith("…")
    assert len(line) < 120
    assert json.loads(last)[0]["hits"][0]["text"] == text


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [("a b", 3, "a b"), ("a  b\n c", 9, "a b c"), ("abcd", 3, "ab…"), ("", 5, "")],
)
def test_shorten_keeps_to_one_line(text: str, width: int, expected: str) -> None:
    assert similarity.shorten(text, width) == expected


def test_half_a_surrogate_pair_in_a_text_is_printed_as_its_escape(
    tmp_path: Path, tiny_built: Path, capsys: Capture
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "cat \\ud800"}\n')
    run("search", "cat", "--corpus", tmp_path / "rows.jsonl", "-m", tiny_built, "--json")
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last)[0]["hits"][0]["text"] == "cat \ud800"


# similarity


def test_texts_are_compared_all_against_all(tiny_built: Path, embedder: Embedder, capsys: Capture) -> None:
    run("similarity", *TEXTS, "-m", tiny_built, "--json")
    *shown, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    rows = embedder.encode(TEXTS).astype(np.float64)
    np.testing.assert_allclose(report["similarity"], rows @ rows.T, atol=2e-6)
    assert report["queries"] == report["texts"] == TEXTS
    assert len(shown) == len(TEXTS)
    assert shown[3].startswith("Καλημέρα κόσμε")
    matrix = np.array([line.split()[-len(TEXTS) :] for line in shown], np.float64)
    np.testing.assert_allclose(matrix, rows @ rows.T, atol=6e-5)


def test_queries_are_compared_with_passages(tiny_built: Path, embedder: Embedder, capsys: Capture) -> None:
    run("similarity", "-q", "a cat", "--query", "a dog", *TEXTS[:3], "-m", tiny_built, "--json")
    *shown, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    expected = embedder.encode(["how is a cat", "how is a dog"]) @ embedder.encode(TEXTS[:3]).T
    np.testing.assert_allclose(report["similarity"], expected, atol=2e-6)
    assert (report["queries"], report["texts"], len(shown)) == (["a cat", "a dog"], TEXTS[:3], 2)


# info, build, and what all commands share


def test_info_shows_every_choice_with_its_reason(
    tiny_built: Path, embedder: Embedder, capsys: Capture
) -> None:
    run("info", tiny_built, "--json")
    *shown, last = capsys.readouterr().out.splitlines()
    lines = {line.split()[0]: line for line in shown}
    reasons = embedder.plan.reasons
    assert reasons
    for name, reason in reasons.items():
        assert lines[name].endswith(f" {reason}")
    plan = embedder.plan.to_dict()
    for name in ("compute_type", "device", "threads", "streams", "token_budget", "cache"):
        assert lines[name].split()[1] == ("-" if plan[name] is None else str(plan[name]))
    for name, value in embedder.plan.properties.items():
        assert lines[name].split()[1] == value
    report = json.loads(last)
    assert report["plan"]["reasons"] == dict(reasons)
    assert "32" in report["plan"]["effective"]["INFERENCE_PRECISION_HINT"]  # not bf16, nor f16
    assert report["plan"]["effective"]["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"
    assert report["model"]["prompts"] == {"query": "how is ", "document": ""}
    assert (report["model"]["dim"], report["model"]["max_tokens"]) == (DIM, 512)
    assert report["versions"]["edge_embed"] == __version__
    assert lines["prompts"].endswith("query 'how is ', document ''")


def test_info_takes_the_model_by_option_as_well(tiny_built: Path, capsys: Capture) -> None:
    run("info", tiny_built)
    first = capsys.readouterr().out
    run("info", "--model", tiny_built)
    assert capsys.readouterr().out == first


def test_info_of_a_device_that_tells_no_properties_leaves_them_open(
    tiny_built: Path, capsys: Capture
) -> None:
    run("info", tiny_built, "--device", "AUTO", "--json")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["plan"]["device"] == "AUTO"
    assert set(report["plan"]["effective"]) == set(report["plan"]["properties"])


def test_build_makes_an_ir_elsewhere_that_embeds_alike(
    tiny_checkpoint: Path, embedder: Embedder, corpus: Path, capsys: Capture
) -> None:
    target = corpus.with_name("model")
    run("build", tiny_checkpoint, "--output", target, "--json")
    *_, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert report["folder"] == str(target)
    assert Path(report["file"]) == target / "openvino/openvino_model.xml"
    assert report["bytes"] == (target / "openvino/openvino_model.bin").stat().st_size
    np.testing.assert_array_equal(embedded(target, corpus, capsys), embedder.encode(TEXTS))


def measured(texts: Path) -> Path:
    """A drift.json beside the texts, of a candidate that passes."""
    x = measurements.reference()
    path = texts.with_name("drift.json")
    measurement.write(measurements.measurement(x, measurements.noisy(x, 27), name="mine"), path)
    return path


def fresh(texts: Path) -> Path:
    """A baseline that is not there yet."""
    path = texts.with_name("baseline.json")
    path.unlink(missing_ok=True)
    return path


def rows_of(texts: Path) -> Path:
    """The lines of a file as JSONL."""
    lines = texts.read_text("utf-8").splitlines()
    return write_rows(texts.with_suffix(".jsonl"), [{"text": line} for line in lines])


JSON_RUNS: dict[str, Callable[[Path, Path], list[str | Path]]] = {
    "pull": lambda folder, texts: ["all-MiniLM-L6-v2"],
    "build": lambda folder, texts: [folder],
    "quantize": lambda folder, texts: [folder, "--compute-type", "int8_weights", "--no-drift"],
    "trim": lambda folder, texts: [folder, "--languages", "en", "--dry-run"],
    "tune": lambda folder, texts: [folder, "--forget"],
    "bench": lambda folder, texts: [folder, "--texts", "4", "--rounds", "1", "--compute-types", "float32"],
    "drift": lambda folder, texts: ["record", folder, "--texts", texts, "-o", texts.with_suffix(".npz")],
    "gate": lambda folder, texts: [measured(texts)],
    "approve": lambda folder, texts: [measured(texts), "--baseline", fresh(texts), "--reason", "first"],
    "embed": lambda folder, texts: [texts, "-m", folder],
    "batch": lambda folder, texts: [rows_of(texts), "-m", folder, "--to", texts.with_name("shards")],
    "similarity": lambda folder, texts: ["a", "b", "-m", folder],
    "search": lambda folder, texts: ["a", "--corpus", texts, "-m", folder],
    "info": lambda folder, texts: [folder],
    "verify": lambda folder, texts: [folder],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_stdout_of_every_command_ends_with_json_when_asked(
    command: str, tiny: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("EDGE_EMBED_HOME", str(corpus.parent / "home"))
    shutil.copytree(tiny, corpus.parent / "home/models/all-MiniLM-L6-v2")  # pulled already
    run(command, *JSON_RUNS[command](tiny, corpus), "--json")
    with_json = capsys.readouterr().out.splitlines()
    assert json.loads(with_json[-1])
    run(command, *JSON_RUNS[command](tiny, corpus))
    without = capsys.readouterr().out.splitlines()
    if command == "bench":  # times, which are never the same
        assert [line.split()[0] for line in without] == [line.split()[0] for line in with_json[:-1]]
    else:
        assert without == with_json[:-1]


def test_the_summary_of_embed_says_what_was_done(corpus: Path, tiny_built: Path, capsys: Capture) -> None:
    output = corpus.with_name("vectors.npy")
    run("embed", corpus, "-m", tiny_built, "-o", output, "--json")
    report = json.loads(capsys.readouterr().out)
    assert report.pop("seconds") >= 0
    assert report == {
        "texts": 5,
        "dim": DIM,
        "dtype": "float32",
        "output": str(output),
        "compute_type": "float32",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed"],
        ["embed", "missing.txt"],
        ["info"],
        ["search", "q", "--corpus", "-"],
        ["similarity", "a", "b"],
    ],
    ids=" ".join,
)
def test_without_the_default_model_one_is_told_how_to_pull_it(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("sys.stdin", None)  # it is noticed before anything is read
    assert main(arguments) == 2
    name = "granite-embedding-311m-multilingual-r2"
    assert capsys.readouterr() == (
        "",
        f"edge-embed: {name} is not on this machine; run: edge-embed pull {name}\n",
    )


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_there_and_names_defaults(command: str | None, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"] if command else ["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    if command is None:
        assert all(f"\n    {name}" in shown for name in COMMANDS)
        assert "edge-embed pull all-MiniLM-L6-v2" in shown
    else:
        assert "--json" in shown
        assert "%(" not in shown
    if command in ("embed", "search", "similarity", "info"):
        assert "granite-" in shown
        assert "auto, float32, bfloat16" in shown


def test_the_version_is_told(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"edge-embed {__version__}\n")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "gone", "x"), OSError(errno.ENOSPC, "full", "x")],
    ids=lambda error: type(error).__name__,
)
def test_a_crash_keeps_its_traceback(
    error: Exception, corpus: Path, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(args: argparse.Namespace) -> Embedder:
        raise error

    monkeypatch.setattr(common, "open_embedder", crash)
    with pytest.raises(type(error)):
        main(["embed", str(corpus), "-m", str(tiny_built)])
