"""References: recorded with PyTorch, written and read strictly, and refused where they do not fit."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed import Embedder, calibration
from edge_embed.build import build
from edge_embed.calibration import Text
from edge_embed.cli import main
from edge_embed.drift import record
from edge_embed.drift.record import Reference
from edge_embed.errors import InputError, MismatchError, ModelError
from edge_embed.manifest import read_manifest
from edge_embed.record import hash_file, read_record, write_record
from edge_embed.tokenization import Tokenizer
from tests.checkpoints import change_weights, tiny_roberta
from tests.modernbert_checkpoints import tiny_modernbert

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "calibration/references/all-MiniLM-L6-v2.npz"

TEXTS = [
    Text("q", "query", "cats", "the cat sat on the mat", "en"),
    Text("p", "passage", "cats", "a cat, a mat and a red house", "en"),
    Text("empty", "passage", "", "", "edge"),
    Text("long", "long", "", "is it you or the blue house " * 100, "long"),
    Text("ξένο", "query", "", "How ARE you? Straße, ΟΔΟΣ, 東京", "other"),
]
Arrays = dict[str, NDArray[Any]]


def tokenizer(folder: Path, max_tokens: int | None = None) -> Tokenizer:
    return Tokenizer(folder, max_tokens=max_tokens or read_manifest(folder).max_tokens)


def embedded(folder: Path, texts: list[Text]) -> NDArray[np.float32]:
    """(N, D) by our own path, each text by its role."""
    embedder = Embedder(folder, compute_type="float32", cache_dir=False)
    rows = [
        (embedder.encode_query if record.role_of(text) == "query" else embedder.encode_document)(text.text)
        for text in texts
    ]
    return np.stack(rows)


def equal(one: Reference, other: Reference) -> bool:
    fields = [f.name for f in dataclasses.fields(Reference) if f.name != "vectors"]
    same = all(getattr(one, name) == getattr(other, name) for name in fields)
    return same and one.vectors.tobytes() == other.vectors.tobytes()


@pytest.fixture(scope="module")
def reference(tiny_built: Path) -> Reference:
    return record.record(tiny_built, TEXTS, "some/where/texts.jsonl")[0]


@pytest.fixture
def file(reference: Reference, tmp_path: Path) -> Path:
    record.write(reference, tmp_path / "reference.npz")
    return tmp_path / "reference.npz"


# ---- recording


@pytest.mark.reference
def test_a_reference_says_what_its_rows_are_of(reference: Reference, tiny_built: Path) -> None:
    assert reference.vectors.shape == (5, 32)
    assert reference.vectors.dtype == np.float32
    assert reference.ids == ("q", "p", "empty", "long", "ξένο")
    assert reference.roles == ("query", "document", "document", "document", "query")
    assert reference.slices == ("en", "en", "edge", "long", "other")
    assert reference.source == "texts.jsonl"
    assert reference.weights_sha256 == hash_file(tiny_built / "model.safetensors")
    assert reference.versions.keys() == {"edge_embed", "torch", "transformers", "tokenizers", "numpy"}
    assert reference.settings["prompts"] == {"query": "how is ", "document": ""}
    assert reference.settings["max_tokens"] == 512
    assert len(set(reference.token_sha256)) == len(set(reference.text_sha256)) == 5


@pytest.mark.reference
def test_recording_twice_agrees_to_a_millionth(reference: Reference, tiny_built: Path) -> None:
    again, cut = record.record(tiny_built, TEXTS, "texts.jsonl")
    assert cut == 1
    assert np.abs(again.vectors - reference.vectors).max() <= 1e-6
    assert equal(dataclasses.replace(again, vectors=reference.vectors), reference)


@pytest.mark.reference
@pytest.mark.parametrize("make", [tiny_modernbert, tiny_roberta])
def test_our_own_vectors_are_those_of_a_reference_that_fits(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    folder = build(make(tmp_path / "model"))
    found, _ = record.record(folder, TEXTS, "evaluation")
    record.check(found, folder, TEXTS, tokenizer(folder))
    np.testing.assert_allclose(embedded(folder, TEXTS), found.vectors, rtol=0, atol=1e-5)


@pytest.mark.reference
def test_a_default_prompt_and_one_for_passages_are_those_of_our_own_path(
    tiny_built: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_built, tmp_path / "model"))
    prompts = {"prompts": {"passage": "the dog: ", "other": "a house: "}, "default_prompt_name": "other"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    found, _ = record.record(folder, TEXTS, "evaluation")
    assert found.settings["prompts"] == {"query": "a house: ", "document": "the dog: "}
    np.testing.assert_allclose(embedded(folder, TEXTS), found.vectors, rtol=0, atol=1e-5)


@pytest.mark.reference
def test_other_tokens_in_pytorch_than_here_are_refused_before_the_long_work(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_built, tmp_path / "model"))
    config = json.loads(
        (folder / "tokenizer_config.json").read_text()
    )  # transformers reads it, and we do not
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    monkeypatch.delattr("edge_embed.drift.record.TorchModel.embed")
    with pytest.raises(MismatchError, match=r"1 of 5 texts have other tokens here .* first 'ξένο'"):
        record.record(folder, TEXTS, "evaluation")


# ---- the committed reference of a real model


def test_the_committed_reference_is_small_and_of_the_evaluation_texts() -> None:
    assert COMMITTED.stat().st_size < 10e6
    found = record.read(COMMITTED)
    texts = calibration.evaluation()
    assert found.source == record.EVALUATION
    assert found.ids == tuple(text.id for text in texts)
    assert found.text_sha256 == tuple(record.hash_text(text.text) for text in texts)
    assert found.vectors.shape == (len(texts), 384)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)


@pytest.mark.minilm
def test_the_committed_reference_fits_the_pulled_model(minilm: Path) -> None:
    record.check(record.read(COMMITTED), minilm, calibration.evaluation(), tokenizer(minilm))


@pytest.mark.minilm
@pytest.mark.reference
def test_the_committed_reference_is_what_pytorch_gives_now(minilm: Path) -> None:
    found = record.read(COMMITTED)
    again, _ = record.record(minilm, calibration.evaluation()[::30], record.EVALUATION)
    assert len(again.ids) == 50
    assert again.ids == found.ids[::30]
    assert again.token_sha256 == found.token_sha256[::30]
    np.testing.assert_allclose(again.vectors, found.vectors[::30], rtol=0, atol=1e-6)


@pytest.mark.minilm
def test_our_own_vectors_are_those_of_the_committed_reference(minilm: Path) -> None:
    texts = calibration.evaluation()[::30]
    found = record.read(COMMITTED).vectors[::30]
    np.testing.assert_allclose(embedded(minilm, texts), found, rtol=0, atol=2e-6)


# ---- the file


@pytest.mark.reference
def test_what_is_written_reads_back_and_equal_references_have_equal_bytes(
    reference: Reference, file: Path, tmp_path: Path
) -> None:
    assert equal(record.read(file), reference)
    record.write(record.read(file), tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.npz", "reference.npz"]


@pytest.mark.reference
def test_reading_and_checking_need_no_torch(file: Path, tiny_built: Path) -> None:
    work = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from pathlib import Path\n"
        "from edge_embed.drift import record\n"
        "from edge_embed.tokenization import Tokenizer\n"
        "from tests.test_drift_record import TEXTS\n"
        "folder = Path(sys.argv[2])\n"
        "record.check(record.read(Path(sys.argv[1])), folder, TEXTS, Tokenizer(folder, max_tokens=512))\n"
        "print('fits')"
    )
    command = [sys.executable, "-c", work, str(file), str(tiny_built)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "fits\n", done.stderr


@pytest.mark.reference
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused_in_one_line(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match="is no reference, or was cut") as caught:
        record.read(file)
    assert "\n" not in str(caught.value)


@pytest.mark.reference
def test_a_file_with_a_flipped_bit_in_its_vectors_is_refused(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[400] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="Bad CRC-32"):
        record.read(file)


@pytest.mark.parametrize("data", [b"", b"some text", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "reference.npz").write_bytes(data)
    with pytest.raises(InputError, match="is no reference, or was cut"):
        record.read(tmp_path / "reference.npz")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        record.read(tmp_path / "reference.npz")


def test_an_array_alone_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.eye(3, dtype=np.float32))
    with pytest.raises(InputError, match="is no reference, or was cut"):
        record.read(tmp_path / "vectors.npy")


def about(**changes: object) -> Callable[[Arrays], object]:
    """Change the JSON; None takes a key out."""

    def change(arrays: Arrays) -> None:
        values = json.loads(str(arrays["about"])) | changes
        kept = {key: value for key, value in values.items() if value is not None}
        arrays["about"] = np.array(json.dumps(kept))

    return change


def put(name: str, change: Callable[[NDArray[Any]], Any]) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: np.asarray(change(arrays[name]))})


def with_nan(vectors: NDArray[Any]) -> NDArray[Any]:
    vectors[3, 7] = np.nan
    return vectors


DEFECTS: Mapping[str, tuple[Callable[[Arrays], object], str]] = {
    "another schema": (about(schema=2), "has schema 2, this version reads 1"),
    "no schema": (about(schema=None), "is no reference"),
    "no json": (lambda arrays: arrays.update(about=np.array("{")), "is no reference"),
    "a list for the json": (lambda arrays: arrays.update(about=np.array("[]")), "is no reference"),
    "no source": (about(source=None), "source or weights_sha256 is missing"),
    "no hash of the weights": (about(weights_sha256="abc"), "source or weights_sha256 is missing"),
    "a number for the commit": (about(commit=3), "commit is no text"),
    "no settings": (about(settings=None), "versions or settings is missing"),
    "a missing array": (lambda arrays: arrays.pop("roles"), "it holds"),
    "a further array": (lambda arrays: arrays.update(more=np.zeros(3)), "it holds"),
    "float64": (put("vectors", lambda a: a.astype(np.float64)), "vectors are float64"),
    "bits of another order": (put("vectors", lambda a: a.astype(">f4")), "vectors are >f4"),
    "one axis": (put("vectors", np.ravel), r"shape (160,), not float32 (N, D)"),
    "no vectors": (put("vectors", lambda a: a[:0]), r"shape (0, 32), not float32 (N, D)"),
    "not finite": (put("vectors", with_nan), "vectors are not finite"),
    "a vector less": (put("vectors", lambda a: a[:-1]), "ids have the shape (5,) for 4 vectors"),
    "an id less": (put("ids", lambda a: a[:-1]), "ids have the shape (4,) for 5 vectors"),
    "slices in a table": (put("slices", lambda a: a[:, None]), "slices have the shape (5, 1)"),
    "a hash less": (put("token_sha256", lambda a: a[:-1]), "token_sha256 have the shape (4,)"),
    "ids as numbers": (put("ids", lambda a: np.arange(5)), "ids are int64"),
    "pickled ids": (put("ids", lambda a: a.astype(object)), "is no reference"),
    "an id twice": (put("ids", lambda a: [*a[:4], a[0]]), "an id occurs twice"),
    "an unknown role": (put("roles", lambda a: [*a[:4], "answer"]), "the role 'answer' is not known"),
    "no hash of a text": (put("text_sha256", lambda a: np.array([b"z" * 64] * 5)), "is not 64 hex digits"),
}


@pytest.mark.reference
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_file_is_refused_in_one_line_for(file: Path, defect: str) -> None:
    change, complaint = DEFECTS[defect]
    with np.load(file) as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez(file, **arrays)
    with pytest.raises(InputError) as caught:
        record.read(file)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- whether it fits


@pytest.mark.reference
def test_a_reference_fits_its_own_model_and_texts(reference: Reference, tiny_built: Path) -> None:
    record.check(reference, tiny_built, TEXTS, tokenizer(tiny_built))


def swapped(row: int, **changes: str) -> list[Text]:
    texts = list(TEXTS)
    texts[row] = dataclasses.replace(texts[row], **changes)
    return texts


@pytest.mark.reference
@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (swapped(1, text="a cat, a mat and a red house."), r"text 1 \('p'\) has another text"),
        (swapped(1, id="r"), r"text 1 \('r'\) has another id"),
        (swapped(0, kind="passage"), r"text 0 \('q'\) has another role"),
        (swapped(3, stratum="en"), r"text 3 \('long'\) has another slice"),
        (TEXTS[::-1], r"text 0 \('ξένο'\) has another id"),
        (TEXTS[:-1], "the reference has 5 texts, but 4 are given"),
    ],
)
def test_texts_that_were_edited_after_recording_are_refused(
    reference: Reference, tiny_built: Path, texts: list[Text], complaint: str
) -> None:
    with pytest.raises(MismatchError, match=f"{complaint}.*record the reference again"):
        record.check(reference, tiny_built, texts, tokenizer(tiny_built))


@pytest.mark.reference
def test_some_rows_of_a_reference_fit_some_of_its_texts(reference: Reference, tiny_built: Path) -> None:
    some = record.select(reference, ["long", "q"])
    assert some.ids == ("q", "long")
    np.testing.assert_array_equal(some.vectors, reference.vectors[[0, 3]])
    record.check(some, tiny_built, [TEXTS[0], TEXTS[3]], tokenizer(tiny_built))
    with pytest.raises(MismatchError, match="the reference lacks 2 texts, first 'x'"):
        record.select(reference, ["y", "q", "x"])


@pytest.mark.reference
def test_other_tokens_of_the_candidate_are_refused(
    reference: Reference, tiny_built: Path, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match=r"1 of 5 texts have other tokens here .* first 'long'"):
        record.check(reference, tiny_built, TEXTS, tokenizer(tiny_built, 511))
    folder = Path(shutil.copytree(tiny_built, tmp_path / "model"))
    (folder / "config_sentence_transformers.json").unlink()
    with pytest.raises(MismatchError, match=r"2 of 5 texts have other tokens here .* first 'q'"):
        record.check(reference, folder, TEXTS, tokenizer(folder))


@pytest.mark.reference
def test_the_reference_of_another_model_is_refused(
    reference: Reference, tiny_built: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_built, tmp_path / "model"))

    def nudge(tensors: dict[str, NDArray[Any]]) -> None:
        tensors["encoder.layer.0.output.dense.bias"][0] += 1e-3

    change_weights(folder, nudge)
    with pytest.raises(MismatchError, match=f"the reference is of {reference.weights_sha256}"):
        record.check(reference, folder, TEXTS, tokenizer(folder))


@pytest.mark.reference
def test_a_folder_without_weights_is_known_by_its_record_or_not_at_all(
    reference: Reference, tiny_built: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_built, tmp_path / "model"))
    (folder / "model.safetensors").unlink()

    def check(of: Reference, **source: object) -> None:
        write_record(folder, read_record(folder) | {"source": source})
        record.check(of, folder, TEXTS, tokenizer(folder))

    check(reference, sha256={"model.safetensors": reference.weights_sha256})
    pulled = dataclasses.replace(reference, commit="c0ffee")
    check(pulled, revision="c0ffee")
    with pytest.raises(MismatchError, match=r"has neither model\.safetensors nor a record of it"):
        check(reference)
    with pytest.raises(MismatchError, match=r"has neither model\.safetensors nor a record of it"):
        check(pulled, revision="decaf")
    with pytest.raises(MismatchError, match="has weights with sha256 0000"):
        check(pulled, revision="c0ffee", sha256={"model.safetensors": "0" * 64})


@pytest.mark.reference
def test_a_commit_is_kept_only_of_the_very_weights_that_it_has(tiny_built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_built, tmp_path / "model"))
    pulled = {"model.safetensors": hash_file(folder / "model.safetensors")}
    for sha256, kept in ((pulled, "c0ffee"), ({"model.safetensors": "0" * 64}, None)):
        write_record(folder, read_record(folder) | {"source": {"revision": "c0ffee", "sha256": sha256}})
        assert record.record(folder, TEXTS, "evaluation")[0].commit == kept


def test_shards_have_one_hash_from_their_files_and_from_the_record(tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in reversed(names):
        (tmp_path / name).write_text(name)
    (tmp_path / "adapter_model.safetensors").write_text("not of the model")
    found = record.weights_sha256(tmp_path)
    lines = [f"{hash_file(tmp_path / name)}  {name}\n" for name in names]
    assert found == record.hash_text("".join(lines))

    files = {name: {"sha256": hash_file(tmp_path / name), "bytes": 1} for name in reversed(names)}
    for name in names:
        (tmp_path / name).unlink()
    assert record.weights_sha256(tmp_path) is None
    write_record(tmp_path, {"files": files})
    assert record.weights_sha256(tmp_path) == found


# ---- texts of the user


def test_evaluation_stands_for_the_built_in_texts() -> None:
    assert record.read_texts("evaluation") == calibration.evaluation()


def test_lines_are_documents_and_blank_ones_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a cat\n\n  \nein Hund\n", "utf-8")
    assert record.read_texts(str(tmp_path / "texts.txt")) == [
        Text("0", "passage", "0", "a cat", "all"),
        Text("3", "passage", "3", "ein Hund", "all"),
    ]


def test_rows_of_jsonl_have_an_id_a_role_a_slice_and_a_topic_or_not(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "which cat?", "id": 7, "role": "query", "slice": "en", "topic": "cats"},
        {"text": "this cat", "role": "document", "topic": "cats"},
        {"text": " "},
        {"text": "ein Hund", "id": "hund", "colour": "red"},
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert record.read_texts(str(path)) == [
        Text("7", "query", "cats", "which cat?", "en"),
        Text("1", "passage", "cats", "this cat", "all"),
        Text("hund", "passage", "hund", "ein Hund", "all"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.txt", b"", "holds no texts"),
        ("a.txt", b"\n \n", "holds no texts"),
        ("a.txt", b"fine\n\xff\n", "is not UTF-8: byte 0xff in line 2"),
        ("a.jsonl", b'{"text": "a"}\n{"text"}\n', "line 2 is not JSON"),
        ("a.jsonl", b'["a"]\n', "line 1 has no text"),
        ("a.jsonl", b'{"body": "a"}\n', "line 1 has no text"),
        ("a.jsonl", b'{"text": "a", "role": "passage"}\n', "role is 'passage'; known: query, document"),
        ("a.jsonl", b'{"text": "a", "id": 1.5}\n', "id is 1.5, not a string"),
        ("a.jsonl", b'{"text": "a", "id": true}\n', "id is true, not a string"),
        ("a.jsonl", b'{"text": "a", "slice": null}\n', "slice is null, not a string"),
        ("a.jsonl", b'{"text": "a \\ud800"}\n', "text has half a surrogate pair"),
        ("a.jsonl", b'{"text": "a", "id": 1}\n{"text": "b"}\n', "the id '1' occurs twice"),
    ],
)
def test_a_file_of_texts_is_refused_with_the_place(
    tmp_path: Path, name: str, data: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        record.read_texts(str(tmp_path / name))
    assert complaint in str(caught.value)
    assert name in str(caught.value)


# ---- the command


@pytest.mark.reference
@pytest.mark.parametrize("before", [True, False])
def test_the_command_writes_a_reference_and_ends_with_json(
    tiny_built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    texts, target = tmp_path / "texts.txt", tmp_path / "out.npz"
    texts.write_text("the cat\n" + "a dog " * 600 + "\n")
    arguments = ["record", str(tiny_built), "--texts", str(texts), "-o", str(target), "--threads", "2"]
    assert main(["drift", "--json", *arguments] if before else ["drift", *arguments, "--json"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out.splitlines()[-1])
    found = record.read(target)
    assert (report["texts"], report["dim"], report["cut"]) == (2, 32, 1)
    assert report["bytes"] == target.stat().st_size
    assert report["weights_sha256"] == found.weights_sha256
    assert report["settings"] == found.settings
    assert found.settings["threads"] == 2
    assert shown.err == "1 of 2 texts were cut to the model's limit of 512 tokens\n"


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("reference.npy", "it must end in .npz"),
        ("nowhere/reference.npz", "is not a folder that may be written to"),
        ("taken.npz", "it is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, complaint: str
) -> None:
    (tmp_path / "taken.npz").mkdir()
    assert main(["drift", "record", "no-such-model", "-o", str(tmp_path / output)]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.reference
def test_a_reference_that_nothing_could_be_judged_by_is_not_written_and_exits_with_4(
    tiny_built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_built, tmp_path / "model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    (tmp_path / "texts.txt").write_text("The CAT\n")
    target = tmp_path / "out.npz"
    arguments = [str(folder), "--texts", str(tmp_path / "texts.txt"), "-o", str(target)]
    assert main(["drift", "record", *arguments]) == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert not target.exists()


@pytest.mark.reference
def test_a_model_without_weights_is_refused_with_the_way_to_get_them(
    tiny_built: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_built, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="edge-embed pull NAME --checkpoint"):
        record.record(folder, TEXTS, "evaluation")
