"""Bad input: one line and exit 2 at the command line, an EdgeEmbedError in Python, nothing half-written.

Most rows run `main` in this process. What an operating system does (full disks, closed pipes, signals, odd
locales) happens to a real child process.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from edge_embed import EdgeEmbedError, Embedder
from edge_embed.build import build
from edge_embed.cli import main
from edge_embed.errors import (
    CheckpointError,
    DeviceError,
    InputError,
    IntegrityError,
    ModelError,
    ModelNotFoundError,
    NumericsError,
)
from edge_embed.record import read_record, write_record

DIM = 32  # of the tiny model
XML = "openvino/openvino_model.xml"
BIN = "openvino/openvino_model.bin"
GRANITE = "granite-embedding-311m-multilingual-r2"

Stream = int | IO[bytes]

posix = pytest.mark.skipif(os.name == "nt", reason="a mechanism of POSIX systems")


class Place:
    """A folder with a model and texts to start from, an empty folder for outputs, and commands run in it."""

    def __init__(self, folder: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.model = folder, model
        self._capfd = capfd
        self.out = folder / "out"
        self.out.mkdir()
        self.texts = self.write("texts.txt", b"the cat sat\nhello world\n")

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def refused(self, *arguments: str | Path) -> str:
        """Run a command that has to fail; its complaint, which has to be one line and nothing else."""
        self._capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse
            code = left.code if isinstance(left.code, int) else -1
        err = self._capfd.readouterr().err
        assert code == 2, err
        return complaint(err)

    def embed_refused(self, *options: str | Path) -> str:
        """`embed` of the texts into an empty folder, which has to stay empty."""
        line = self.refused("embed", self.texts, "-o", self.out / "v.npy", "-m", self.model, *options)
        assert list(self.out.iterdir()) == []
        return line


def complaint(err: str) -> str:
    """The one line of a refusal, without its prefix."""
    assert "Traceback" not in err
    assert err.endswith("\n")
    (line,) = err.splitlines()
    assert line.startswith("edge-embed: ")
    return line.removeprefix("edge-embed: ")


@pytest.fixture
def place(tmp_path: Path, tiny_built: Path, capfd: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, tiny_built, capfd)


@pytest.fixture(autouse=True)
def _no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A warning would be a second line on stderr. (pytest takes log records before the command line can.)"""
    yield
    assert caplog.messages == []


# model folders


def cut(name: str, keep: float = 0.5) -> Callable[[Path], None]:
    """Keep the first part of a file, as a copy that was interrupted does."""

    def damage(folder: Path) -> None:
        path = folder / name
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return damage


def remove(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()

    return damage


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))

    return damage


def put(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return damage


def grow_tokenizer(folder: Path) -> None:
    """As when the tokenizer of a larger model was copied over."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    words = tokenizer["model"]["vocab"]
    words.update({f"new{i}": len(words) + i for i in range(5)})
    path.write_text(json.dumps(tokenizer))


def lengthen_weights(folder: Path) -> None:
    """As when the .bin of a larger model was copied over."""
    with (folder / BIN).open("ab") as file:
        file.write(bytes(100_000))


def largest_constant(folder: Path) -> tuple[int, int]:
    """(offset, bytes) in the .bin of the IR's largest constant, which is float32."""
    found = [
        (int(data.attrib["size"]), int(data.attrib["offset"]), data.attrib["element_type"])
        for data in ElementTree.parse(folder / XML).iter("data")
        if "offset" in data.attrib
    ]
    size, offset, kind = max(found)
    assert kind == "f32"
    return offset, size


def overwrite_weights(value: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        offset, size = largest_constant(folder)
        with (folder / BIN).open("r+b") as file:
            file.seek(offset)
            file.write(np.full(size // 4, value, np.float32).tobytes())

    return damage


def make_folder(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


# What is done to a whole folder -> the error, and what its line has to name.
DAMAGES: dict[str, tuple[Callable[[Path], None], type[EdgeEmbedError], tuple[str, ...]]] = {
    "no config.json": (remove("config.json"), ModelNotFoundError, ("half copied", "config.json")),
    "no tokenizer.json": (remove("tokenizer.json"), ModelError, ("tokenizer.json is missing",)),
    "no pooling": (remove("1_Pooling/config.json"), ModelError, ("1_Pooling/config.json is missing",)),
    "no .bin": (remove(BIN), ModelError, (f"{BIN} is missing beside openvino_model.xml",)),
    "no .xml": (remove(XML), ModelNotFoundError, ("no OpenVINO IR", "edge-embed build")),
    "half .bin": (cut(BIN), ModelError, (BIN, " bytes, but openvino_model.xml asks for ", "it was cut")),
    "empty .bin": (cut(BIN, 0), ModelError, (BIN, "has 0 bytes, but openvino_model.xml asks for ")),
    "foreign .bin": (lengthen_weights, ModelError, (BIN, " bytes, but openvino_model.xml asks for ")),
    "half .xml": (cut(XML), ModelError, (f"{XML} is not an IR", "line ")),
    "empty .xml": (cut(XML, 0), ModelError, (f"{XML} is not an IR",)),
    "other .xml": (put(XML, b"<net/>"), ModelError, (BIN, "openvino_model.xml asks for 0")),
    "half config.json": (cut("config.json"), ModelError, ("config.json cannot be read as json",)),
    "empty config.json": (cut("config.json", 0), ModelError, ("config.json cannot be read as json",)),
    "config.json is a list": (put("config.json", b"[]"), ModelError, ("config.json holds list",)),
    "no hidden_size": (put("config.json", b"{}"), ModelError, ("config.json has the hidden_size None",)),
    "other hidden_size": (edit("config.json", hidden_size=64), ModelError, ("32", "hidden_size 64")),
    "half modules.json": (cut("modules.json"), ModelError, ("modules.json cannot be read as json",)),
    "empty modules.json": (cut("modules.json", 0), ModelError, ("modules.json cannot be read as json",)),
    "empty pooling": (cut("1_Pooling/config.json", 0), ModelError, ("1_Pooling/config.json cannot",)),
    "empty prompts": (
        cut("config_sentence_transformers.json", 0),
        ModelError,
        ("config_sentence_transformers.json cannot be read as json",),
    ),
    "empty sentence_bert_config.json": (
        cut("sentence_bert_config.json", 0),
        ModelError,
        ("sentence_bert_config.json cannot be read as json",),
    ),
    "empty tokenizer_config.json": (
        cut("tokenizer_config.json", 0),
        ModelError,
        ("tokenizer_config.json cannot be read as json",),
    ),
    "half tokenizer.json": (cut("tokenizer.json"), ModelError, ("tokenizer.json is not a usable tokenizer",)),
    "empty tokenizer.json": (
        cut("tokenizer.json", 0),
        ModelError,
        ("tokenizer.json is not a usable tokenizer",),
    ),
    "other tokenizer.json": (put("tokenizer.json", b"{}"), ModelError, ("not a usable tokenizer",)),
    "tokenizer.json is a folder": (make_folder("tokenizer.json"), ModelError, ("tokenizer.json",)),
    "tokenizer too large": (grow_tokenizer, ModelError, ("tokens, but config.json says vocab_size",)),
    "vocabulary too small": (
        edit("config.json", vocab_size=100),
        ModelError,
        ("tokens, but config.json says vocab_size 100",),
    ),
    "vocabulary larger than the table": (
        edit("config.json", vocab_size=100_000),
        ModelError,
        (XML, "token rows, but config.json says vocab_size 100000"),
    ),
    "unknown similarity": (
        edit("config_sentence_transformers.json", similarity_fn_name="hamming"),
        ModelError,
        ("'hamming'",),
    ),
    "empty record": (cut("edge_embed.json", 0), IntegrityError, ("edge_embed.json cannot be read",)),
    "NaN weights": (overwrite_weights(np.nan), NumericsError, ("text 0 ", "NaN", XML)),
    "infinite weights": (overwrite_weights(np.inf), NumericsError, ("text 0 ", "NaN, Inf or zero", XML)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_folder_is_refused(name: str, tiny: Path, place: Place) -> None:
    damage, kind, parts = DAMAGES[name]
    place.model = tiny
    damage(tiny)
    line = place.embed_refused()
    for part in parts:
        assert part in line
    with pytest.raises(kind) as caught:
        Embedder(tiny).encode(["the cat sat"])
    assert " ".join(str(caught.value).splitlines()) == line


def test_the_whole_folder_would_have_been_taken(place: Place, tiny: Path) -> None:
    """Else all refusals above could be for one reason that has nothing to do with the damage."""
    assert main(["embed", str(place.texts), "-o", str(place.out / "v.npy"), "-m", str(tiny)]) == 0
    assert np.load(place.out / "v.npy").shape == (2, DIM)


def test_a_compiled_blob_does_not_stand_in_for_weights_that_were_cut(tiny: Path, tmp_path: Path) -> None:
    Embedder(tiny, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir())
    cut(BIN)(tiny)
    with pytest.raises(ModelError, match="it was cut"):
        Embedder(tiny, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("nowhere", ("nowhere is neither a folder nor a known model", GRANITE)),
        ("org/nowhere", ("org/nowhere is neither a folder nor in ", "can be pulled: ", GRANITE)),
        (GRANITE, (f"{GRANITE} is not on this machine; run: edge-embed pull {GRANITE}",)),
        (f"ibm-granite/{GRANITE}", ("is not on this machine", f"edge-embed pull {GRANITE}")),
        ("{folder}/out", ("out is not a model folder", "no config.json")),
        ("{folder}/texts.txt", ("texts.txt is a file; name the model folder",)),
        ("{folder}/missing/model", ("missing/model is neither a folder nor a known model",)),
        ("", ("is not a model folder",)),
    ],
)
def test_a_model_that_is_not_here_is_refused(reference: str, parts: tuple[str, ...], place: Place) -> None:
    name = reference.format(folder=place.folder)
    line = place.embed_refused("--model", name)
    for part in parts:
        assert part in line
    with pytest.raises(ModelNotFoundError) as caught:
        Embedder(name)
    assert str(caught.value) == line


# options


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--device", "TPU"], ["no device 'TPU' on this machine", "OpenVINO finds: CPU"]),
        (["--device", ""], ["no device ''", "OpenVINO finds: CPU"]),
        (["--device", "CPU.7"], ["CPU.7"]),
        (["--compute-type", "int4"], ["'int4'", "auto", "int8_dynamic"]),
        (["--compute-type", "int8"], ["openvino_model_qint8_quantized.xml", "only openvino_model.xml"]),
        (["--compute-type", "int8_weights"], ["openvino_model_int8_weights.xml", "edge-embed quantize"]),
        (["--truncate-dim", "0"], ["truncate_dim 0 is not within 1 to 32"]),
        (["--truncate-dim", "-1"], ["truncate_dim -1 is not within 1 to 32"]),
        (["--truncate-dim", "33"], ["truncate_dim 33 is not within 1 to 32"]),
        (["--truncate-dim", "x"], ["--truncate-dim", "'x'"]),
        (["--max-tokens", "0"], ["max_tokens 0 is not within 1 to 512"]),
        (["--max-tokens", "513"], ["max_tokens 513 is not within 1 to 512"]),
        (["--max-tokens", "2"], ["limit of 2 tokens leaves no room beside 2 special tokens"]),
        (["--threads", "0"], ["threads is 0; it must be at least 1"]),
        (["--threads", "-2"], ["threads is -2; it must be at least 1"]),
        (["--streams", "0"], ["streams is 0; it must be at least 1"]),
        (["--batch-size", "0"], ["batch_size is 0; it must be at least 1"]),
        (["--batch-size", "-1"], ["batch_size is -1; it must be at least 1"]),
        (["--prompt-name", "poem"], ["no prompt 'poem'", "query, document"]),
        (["--precision", "int4"], ["'int4'", "ubinary"]),
        (["--on-overflow", "skip"], ["'skip'", "truncate", "error"]),
        (["--max-tokens", "4", "--on-overflow", "error"], ["text 0 has 5 tokens", "limit of 4"]),
        (["--format", "csv"], ["'csv'", "lines", "jsonl"]),
        (["--frobnicate"], ["--frobnicate", "edge-embed --help"]),
        (["--trunc", "8"], ["--trunc"]),
        (["--threads"], ["--threads", "expected one argument", "edge-embed embed --help"]),
    ],
    ids=" ".join,
)
def test_an_option_that_cannot_be_followed_is_refused(
    options: list[str], parts: list[str], place: Place
) -> None:
    line = place.embed_refused(*options)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "required: command; see edge-embed --help"),
        (["frobnicate"], "'frobnicate'"),
        (["search", "cat"], "--corpus; see edge-embed search --help"),
        (["search", "--corpus", "x"], "query; see edge-embed search --help"),
        (["similarity"], "texts; see edge-embed similarity --help"),
        (["build"], "checkpoint; see edge-embed build --help"),
        (["search", "cat", "--corpus", "x", "--k", "0"], "--k is 0; it must be at least 1"),
        (["search", "cat", "--corpus", "x", "--k", "-3"], "--k is -3; it must be at least 1"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], part: str, place: Place) -> None:
    assert part in place.refused(*arguments)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"device": "TPU"}, DeviceError, "no device 'TPU' on this machine; OpenVINO finds: .*CPU"),
        ({"compute_type": "int4"}, InputError, "compute_type is 'int4'; known: auto, float32"),
        ({"compute_type": "int8"}, ModelNotFoundError, "qint8_quantized.xml for int8, only openvino_model"),
        ({"truncate_dim": 33}, InputError, "truncate_dim 33 is not within 1 to 32"),
        ({"truncate_dim": 0}, InputError, "truncate_dim 0 is not within 1 to 32"),
        ({"max_tokens": 513}, InputError, "max_tokens 513 is not within 1 to 512"),
        ({"threads": 0}, InputError, "threads is 0"),
        ({"streams": -1}, InputError, "streams is -1"),
    ],
    ids=str,
)
def test_an_embedder_refuses(
    options: dict[str, Any], kind: type[EdgeEmbedError], message: str, tiny_built: Path
) -> None:
    with pytest.raises(kind, match=message):
        Embedder(tiny_built, **options)


def test_a_width_that_the_model_was_not_trained_for_is_refused(tiny: Path, place: Place) -> None:
    write_record(tiny, read_record(tiny) | {"name": GRANITE})
    place.model = tiny
    line = place.embed_refused("--truncate-dim", "16")
    assert line == "truncate_dim 16 is not one that this model was trained for: 768, 512, 384, 256, 128"
    with pytest.raises(InputError, match="truncate_dim 16 is not one"):
        Embedder(tiny).encode("cat", truncate_dim=16)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", "b", 3], "item 2 is int, not str"),
        ([None], "item 0 is NoneType, not str"),
        (["a", b"b"], "item 1 is bytes, not str"),
        (["a", ["b"]], "item 1 is list, not str"),
        (("a", float("nan")), "item 1 is float, not str"),
        (np.array([1, 2]), "item 0 is int64, not str"),
        (iter(["a", "b", "c", 4]), "item 3 is int, not str"),
        (5, "texts must be a str or an iterable of str, not int"),
        (None, "not NoneType"),
        (b"bytes", "not bytes"),
        ({"text": "a"}, "not dict"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_items_that_are_no_texts_are_refused_by_their_index(
    texts: Any, message: str, tiny_built: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Embedder(tiny_built).encode(texts)


def test_encode_iter_names_the_index_in_the_whole_input(tiny_built: Path) -> None:
    def texts() -> Iterator[Any]:
        yield from ["a cat"] * 5000
        yield 7

    rows = Embedder(tiny_built).encode_iter(texts())
    with pytest.raises(InputError, match="item 5000 is int, not str"):
        for _ in rows:
            pass


# inputs


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("x.txt", b"caf\xc3\xa9\nna\xefve\n", ["x.txt is not UTF-8: byte 0xef at 8, line 2"]),
        ("x.txt", b"\xef\xbb\xbfna\xefve\n", ["not UTF-8: byte 0xef at 5, line 1"]),
        ("x.txt", "cat".encode("utf-16"), ["not UTF-8: byte 0xff at 0, line 1"]),
        ("x.jsonl", b'{"text": "na\xefve"}\n', ["not UTF-8: byte 0xef at 12, line 1"]),
        ("x.jsonl", b'{"text": "a"}\n{"text": "b', ["line 2, column 10 is not JSON: Unterminated string"]),
        ("x.jsonl", b'{"text": "a"}\n\n{"text": "b"}\n', ["line 2, column 1 is not JSON"]),
        ("x.jsonl", b'{"text": "a"} {"text": "b"}\n', ["line 1, column 15 is not JSON: Extra data"]),
        ("x.jsonl", b"just text\n", ["line 1, column 1 is not JSON"]),
        ("x.jsonl", b'["a"]\n', ["line 1 is a JSON list, not an object"]),
        ("x.jsonl", b"null\n", ["line 1 is a JSON NoneType, not an object"]),
        ("x.jsonl", b'{"text": "a"}\n{"body": "b"}\n', ["line 2", "'text' is not among ['body']"]),
        ("x.jsonl", b'{"text": 5}\n', ["line 1", "'text' is int", "--text-column"]),
        ("x.jsonl", b'{"text": null}\n', ["line 1", "'text' is NoneType"]),
        ("x.jsonl", b"[" * 200_000 + b"\n", ["line 1 cannot be read as JSON", "recursion"]),
        ("x.jsonl", b'{"text": ' + b"1" * 5000 + b"}\n", ["line 1 cannot be read as JSON", "4300"]),
    ],
)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_an_input_that_cannot_be_read_is_refused_by_its_place(
    source: str, name: str, data: bytes, parts: list[str], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.texts = place.write(name, data)
    if source == "stdin":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        place.texts = Path("-")
    line = place.embed_refused("--format", "jsonl" if name.endswith("l") else "lines")
    for part in ("stdin" if source == "stdin" else str(place.folder / name), *parts):
        assert part.removeprefix("x.txt ") in line


@pytest.mark.parametrize(
    ("ids", "parts"),
    [
        (["a", None], ["line 2", "'key' is null"]),
        ([1.5], ["line 1", "'key' is 1.5"]),
        ([True], ["line 1", "'key' is true"]),
        ([["a"]], ["line 1", "'key' is [\"a\"]"]),
        ([2**63], ["line 1", "9223372036854775808"]),
        (["\ud800"], ["line 1", '"\\ud800"']),
        (["a", 1], ['line 2: the id 1 is not of the kind of line 1, "a"']),
        ([1, "a"], ['line 2: the id "a" is not of the kind of line 1, 1']),
    ],
    ids=repr,
)
def test_an_id_that_no_table_could_hold_is_refused(ids: list[Any], parts: list[str], place: Place) -> None:
    rows = "".join(json.dumps({"text": "a cat", "key": i}) + "\n" for i in ids)
    place.texts = place.write("rows.jsonl", rows.encode())
    line = place.embed_refused("--id-column", "key")
    for part in (str(place.texts), *parts):
        assert part in line


def test_a_row_without_its_id_is_refused(place: Place) -> None:
    place.texts = place.write("rows.jsonl", b'{"text": "a", "key": "x"}\n{"text": "b"}\n')
    assert "line 2: the id 'key' is missing" in place.embed_refused("--id-column", "key")


def test_an_input_that_is_not_there_is_refused(place: Place) -> None:
    place.texts = place.folder / "missing.txt"
    assert place.embed_refused() == f"cannot read {place.texts}: No such file or directory"
    line = place.refused("search", "cat", "--corpus", place.texts, "-m", place.model)
    assert line == f"cannot read {place.texts}: No such file or directory"


def test_a_folder_as_input_is_refused(place: Place) -> None:
    place.texts = place.out
    assert str(place.out) in place.embed_refused()


@posix
def test_a_dangling_link_as_input_is_refused(place: Place) -> None:
    place.texts = place.folder / "link.txt"
    place.texts.symlink_to("gone.txt")
    assert place.embed_refused() == f"cannot read {place.texts}: No such file or directory"


@posix
@pytest.mark.skipif(os.name != "nt" and os.geteuid() == 0, reason="root reads everything")
def test_an_input_without_permission_is_refused(place: Place) -> None:
    place.texts.chmod(0)
    assert place.embed_refused() == f"cannot read {place.texts}: Permission denied"


def test_a_closed_stdin_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert place.refused("embed", "-m", place.model) == "stdin is closed; name a file of texts"


def test_a_corpus_without_texts_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = place.write("empty.txt", b"")
    line = place.refused("search", "cat", "--corpus", empty, "-m", place.model)
    assert line == f"{empty} holds no texts to search"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    line = place.refused("search", "cat", "--corpus", "-", "-m", place.model)
    assert line == "stdin holds no texts to search"


@pytest.mark.parametrize("name", ["a\nb.txt", "a\r\nb.txt", "a\u2028b.txt"], ids=ascii)
def test_a_name_with_line_ends_still_gives_one_line(name: str, place: Place) -> None:
    place.texts = place.folder / name
    assert "cannot read " in place.embed_refused()


# outputs


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("out/v.csv", ["out/v.csv ends in '.csv'; known: .npy, .jsonl, .parquet"]),
        ("out/v", ["out/v ends in ''; known: .npy"]),
        ("missing/v.npy", ["missing does not exist; make that folder first"]),
        ("texts.txt/v.npy", ["texts.txt is not a folder"]),
        ("folder.npy", ["folder.npy: it is not a regular file"]),
        ("out/" + "x" * 300 + ".npy", ["File name too long"]),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    output: str, parts: list[str], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_embed.cli.common.open_embedder", lambda args: pytest.fail("work was done"))
    (place.folder / "folder.npy").mkdir()
    before = sorted(place.folder.rglob("*"))
    line = place.refused("embed", place.texts, "-o", place.folder / output, "-m", place.model)
    for part in parts:
        assert part in line
    assert sorted(place.folder.rglob("*")) == before


def test_the_input_is_not_replaced_by_the_output(place: Place) -> None:
    rows = place.write("rows.jsonl", b'{"text": "a cat"}\n')
    (place.folder / "again.jsonl").hardlink_to(rows)
    for output in (rows, place.folder / "out/../rows.jsonl", place.folder / "again.jsonl"):
        line = place.refused("embed", rows, "-o", output, "-m", place.model)
        assert line == f"{output} is the input as well; name another output"
    assert rows.read_bytes() == b'{"text": "a cat"}\n'


@posix
def test_a_folder_that_may_not_be_written_to_is_refused(place: Place) -> None:
    locked = place.out
    if os.geteuid() == 0:  # modes do not hold root back, but nobody makes files in here
        locked = Path("/sys")
        if not locked.is_dir():
            pytest.skip("no folder that root cannot write to")
    locked.chmod(0o555) if locked is place.out else None
    line = place.refused("embed", place.texts, "-o", locked / "v.npy", "-m", place.model)
    assert f"cannot write {locked / 'v.npy'}" in line
    assert list(place.out.iterdir()) == []


def test_a_folder_that_is_known_to_be_read_only_is_refused_before_the_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_embed.cli.common.open_embedder", lambda args: pytest.fail("work was done"))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as for all but root
    assert f"{place.out} may not be written to" in place.embed_refused()


def test_parquet_without_pyarrow_is_refused_before_the_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    line = place.refused("embed", place.texts, "-o", place.out / "v.parquet", "-m", place.model)
    assert line == "Parquet needs pyarrow: pip install 'edge-embed[batch]'"


# build and verify


def cut_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")


def poison(folder: Path) -> None:
    """One NaN among the weights."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][3, 4] = np.nan
    save_file(tensors, folder / "model.safetensors")


CHECKPOINT_DAMAGES: dict[str, tuple[Callable[[Path], None], type[EdgeEmbedError], tuple[str, ...]]] = {
    "NaN": (
        poison,
        CheckpointError,
        ("'encoder.layer.1.output.dense.weight'", "NaN or Inf in 1 of 2048 values"),
    ),
    "no weights": (remove("model.safetensors"), CheckpointError, ("neither model.safetensors nor",)),
    "half weights": (cut("model.safetensors"), CheckpointError, ("model.safetensors was cut short",)),
    "empty weights": (cut("model.safetensors", 0), CheckpointError, ("model.safetensors has 0 bytes",)),
    "cut header": (cut_header, CheckpointError, ("announces a header of 16 bytes", "9 bytes")),
    "unknown model": (
        edit("config.json", model_type="gpt2"),
        CheckpointError,
        ("'gpt2'", "built are: bert, camembert, modernbert, roberta, xlm-roberta"),
    ),
    "no tokenizer": (remove("tokenizer.json"), ModelError, ("tokenizer.json is missing",)),
    "other width": (edit("config.json", intermediate_size=65), CheckpointError, ("has shape (64, 32)", "65")),
    "more layers": (edit("config.json", num_hidden_layers=3), CheckpointError, ("no 'encoder.layer.2.",)),
    "fewer layers": (
        edit("config.json", num_hidden_layers=1),
        CheckpointError,
        ("unused", "'encoder.layer.1"),
    ),
}


@pytest.mark.parametrize("name", CHECKPOINT_DAMAGES)
def test_a_damaged_checkpoint_is_not_built(name: str, tiny_checkpoint: Path, place: Place) -> None:
    damage, kind, parts = CHECKPOINT_DAMAGES[name]
    checkpoint = place.folder / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    damage(checkpoint)
    before = sorted(checkpoint.rglob("*"))
    line = place.refused("build", checkpoint)
    for part in parts:
        assert part in line
    with pytest.raises(kind, match=re.escape(line)):
        build(checkpoint)
    assert sorted(checkpoint.rglob("*")) == before


def test_a_build_does_not_go_into_a_file(tiny_checkpoint: Path, place: Place) -> None:
    line = place.refused("build", tiny_checkpoint, "-o", place.texts)
    assert line == f"{place.texts} is a file; name a folder for the result"


def test_a_file_with_the_wrong_sha256_is_named_by_verify(tiny: Path, place: Place) -> None:
    with (tiny / BIN).open("r+b") as file:  # of the same size, which loading cannot see
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    recorded = read_record(tiny)["files"][BIN]["sha256"]
    line = place.refused("verify", tiny)
    assert f"{BIN} has " in line
    assert recorded in line
    assert re.match("1 of [0-9]+ files", line)


def test_a_folder_without_a_record_cannot_be_verified(tiny: Path, place: Place) -> None:
    (tiny / "edge_embed.json").unlink()
    assert "no edge_embed.json" in place.refused("verify", tiny)


# real processes

# The file size limit is a disk that is full for every process that has it. Python ignores its signal.
LIMITED = """
import resource, sys
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), hard))
from edge_embed.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def warm(tiny_built: Path) -> Path:
    """The tiny model with its compiled form in the cache, so that a child has only its output to write."""
    Embedder(tiny_built)
    return tiny_built


def child(
    *arguments: str | Path,
    limit: int | None = None,
    environment: dict[str, str] | None = None,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = subprocess.PIPE,
    stderr: Stream = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """The real command; with a limit in bytes on what it writes to any file."""
    start = ["-m", "edge_embed"] if limit is None else ["-c", LIMITED, str(limit)]
    return subprocess.Popen(
        [sys.executable, *start, *map(str, arguments)],
        env=os.environ | (environment or {}),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    """(exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err.decode(errors="replace")


def long_texts(folder: Path, count: int = 400) -> Path:
    path = folder / "long.txt"
    path.write_text("\n".join(f"the cat {i}" for i in range(count)))
    return path


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["embed", "missing.txt", "-m", "{model}"], "cannot read missing.txt"),
        (["embed", "-m", "nowhere"], "nowhere is neither a folder nor a known model"),
        (["info", "{model}", "--device", "TPU"], "OpenVINO finds: CPU"),
        (["frobnicate"], "'frobnicate'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_real_process_exits_with_2_and_one_line(arguments: list[str], part: str, warm: Path) -> None:
    code, out, err = finish(child(*(argument.format(model=warm) for argument in arguments)))
    assert (code, out) == (2, b"")
    assert part in complaint(err)


@posix
@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_a_full_disk_leaves_no_output(suffix: str, warm: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / f"v{suffix}"
    output.parent.mkdir()
    texts = long_texts(tmp_path)
    code, _, err = finish(child("embed", texts, "-o", output, "-m", warm, limit=8192))
    assert code == 2, err
    assert complaint(err) == f"cannot write {output}: File too large"
    assert list(output.parent.iterdir()) == []
    code, _, err = finish(child("embed", texts, "-o", output, "-m", warm, limit=10_000_000))
    assert code == 0, err


@posix
def test_a_full_disk_keeps_the_output_of_before(warm: Path, tmp_path: Path) -> None:
    output = tmp_path / "v.npy"
    output.write_bytes(b"of before")
    code, _, err = finish(child("embed", long_texts(tmp_path), "-o", output, "-m", warm, limit=8192))
    assert (code, complaint(err)) == (2, f"cannot write {output}: File too large")
    assert output.read_bytes() == b"of before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.txt", "v.npy"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["similarity", "a", "b"], ["embed", "long.txt"]], ids=lambda a: a[0])
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_full_disk_under_stdout_is_one_line(
    unbuffered: str, arguments: list[str], warm: Path, tmp_path: Path
) -> None:
    long_texts(tmp_path)
    arguments = [argument.replace("long.txt", str(tmp_path / "long.txt")) for argument in arguments]
    environment = {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        code, _, err = finish(child(*arguments, "-m", warm, stdout=full, environment=environment))
    assert (code, complaint(err)) == (2, "cannot write stdout: No space left on device")


@posix
@pytest.mark.parametrize("limit", [4_096, 60_000])
def test_a_full_disk_leaves_no_half_built_ir(limit: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    before = {path for path in checkpoint.rglob("*") if path.is_file()}
    code, _, err = finish(child("build", checkpoint, limit=limit))
    assert code == 2, err
    assert f"cannot write {checkpoint / XML}" in complaint(err)
    assert {path for path in checkpoint.rglob("*") if path.is_file()} == before


@posix
def test_a_full_disk_keeps_the_ir_of_before(tiny: Path) -> None:
    before = {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    code, _, err = finish(child("build", tiny, limit=4_096))
    assert code == 2, err
    assert f"cannot write {tiny / XML}" in complaint(err)
    assert {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()} == before


@posix
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(warm: Path, tmp_path: Path) -> None:
    with child("embed", long_texts(tmp_path, 5000), "-m", warm) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert json.loads(first)["id"] == 0
    assert process.returncode == 141


@posix
@pytest.mark.parametrize(("unbuffered", "expected"), [("", 2), ("1", 141)], ids=["buffered", "unbuffered"])
def test_a_reader_that_left_does_not_turn_a_failure_into_success(
    unbuffered: str, expected: int, tiny: Path
) -> None:
    (tiny / BIN).write_bytes(b"changed")
    reading, writing = os.pipe()
    os.close(reading)
    code, _, err = finish(child("verify", tiny, stdout=writing, environment={"PYTHONUNBUFFERED": unbuffered}))
    os.close(writing)
    assert code == expected
    assert (BIN in complaint(err)) if expected == 2 else (err == "")


def read_until(descriptor: int, pattern: bytes) -> str:
    """What a child wrote, up to and including the first match; it is an error when that never comes."""
    seen = b""
    while not re.search(pattern, seen):
        piece = os.read(descriptor, 4096)
        assert piece, seen.decode()
        seen += piece
    return seen.decode()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A background job of a shell starts with SIGINT ignored, and so do the children of its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@posix
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_the_middle_of_embedding_leaves_nothing(warm: Path, tmp_path: Path) -> None:
    import pty
    import termios

    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"{i} the cat and the dog are in house {i * i}" for i in range(100_000)))
    (tmp_path / "out").mkdir()
    near, far = pty.openpty()  # a progress bar is for terminals, and tells when the work has begun
    termios.tcsetwinsize(far, (24, 100))
    with child("embed", texts, "-o", tmp_path / "out/v.npy", "-m", warm, stderr=far) as process:
        os.close(far)
        read_until(near, rb"[1-9][0-9]*/100000")
        process.send_signal(signal.SIGINT)
        seen = read_until(near, rb"interrupted.*\n")
    os.close(near)
    assert process.returncode == 130
    assert seen.splitlines()[-1] == "edge-embed: interrupted; nothing half-written is left"
    assert "Traceback" not in seen
    assert list((tmp_path / "out").iterdir()) == []


@posix
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_at_the_prompt_is_one_line(warm: Path) -> None:
    import pty

    near, far = pty.openpty()
    with child("embed", "-m", warm, stdin=far) as process:
        assert process.stderr is not None
        read_until(process.stderr.fileno(), rb"from the terminal.*\n")
        process.send_signal(signal.SIGINT)
        line = complaint(process.stderr.read().decode())
    os.close(near)
    os.close(far)
    assert (process.returncode, line) == (130, "interrupted; nothing half-written is left")


@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}],
    ids=lambda environment: " ".join(f"{name}={value}" for name, value in environment.items()),
)
def test_texts_in_any_script_come_out_in_any_locale(
    environment: dict[str, str], warm: Path, tmp_path: Path
) -> None:
    texts = ["日本の猫", "кошка 🙂", "γάτα"]
    corpus = tmp_path / "größe.txt"
    corpus.write_text("\n".join(texts), "utf-8")
    command = child("search", "кошка", "--corpus", corpus, "-m", warm, "--json", environment=environment)
    code, out, err = finish(command)
    assert (code, err) == (0, "")
    lines = out.decode("utf-8").splitlines()
    (found,) = json.loads(lines[-1])
    assert found["query"] == lines[0] == "кошка"
    assert sorted(hit["text"] for hit in found["hits"]) == sorted(texts)

    code, _, err = finish(child("embed", tmp_path / "größe 2.txt", "-m", warm, environment=environment))
    assert code == 2
    assert "cannot read" in complaint(err)
