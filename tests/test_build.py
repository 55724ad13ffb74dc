"""build.py and `edge-embed build`, from a checkpoint folder to one that is loaded and verified."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_embed import Embedder, store
from edge_embed.build import build
from edge_embed.cli import main
from edge_embed.drift.record import weights_sha256
from edge_embed.errors import CheckpointError, EdgeEmbedError, InputError, ModelError, OutputError
from edge_embed.record import hash_file, read_record, write_record
from tests.checkpoints import tiny_bert

ROOT = Path(__file__).parents[1]
IR = ("openvino/openvino_model.bin", "openvino/openvino_model.xml")
TOKENIZER = ("openvino/openvino_tokenizer.bin", "openvino/openvino_tokenizer.xml")  # by the command only
SIDE = (
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones included."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_command_builds_an_ir_that_the_embedder_loads_and_verify_knows(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(checkpoint)
    assert main(["build", str(checkpoint), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["file"] == str(checkpoint / IR[1])
    assert told["bytes"] == (checkpoint / IR[0]).stat().st_size
    assert contents(checkpoint).keys() == before.keys() | {*IR, *TOKENIZER, "edge_embed.json"}
    assert {name: contents(checkpoint)[name] for name in before} == before
    vectors = Embedder(checkpoint, cache_dir=False).encode(["the cat", "a dog runs fast"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    report = store.verify(checkpoint)
    assert (report.wrong, report.unrecorded) == ((), ())
    assert {check.path for check in report.files} == {*IR, *TOKENIZER, *SIDE}


def test_the_record_has_the_hash_and_size_of_every_file_and_the_versions(checkpoint: Path) -> None:
    record = read_record(build(checkpoint))
    for name, entry in record["files"].items():
        assert entry == {"sha256": hash_file(checkpoint / name), "bytes": (checkpoint / name).stat().st_size}
    assert record["built_by"].keys() == {"edge_embed", "openvino"}


def test_weights_of_another_model_of_this_shape_are_seen_by_verify(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint)
    other = build(tiny_bert(tmp_path / "other", seed=1))
    shutil.copy(other / IR[0], checkpoint / IR[0])
    assert [(check.path, check.state) for check in store.verify(checkpoint).wrong] == [(IR[0], "changed")]


def test_another_folder_gets_all_that_is_needed_and_the_checkpoint_is_not_touched(
    checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint / "LICENSE").write_text("Apache-2.0")
    before = contents(checkpoint)
    out = tmp_path / "some/where"
    assert build(checkpoint, out) == out
    assert contents(checkpoint) == before
    assert contents(out).keys() == {*IR, *SIDE, "LICENSE", "edge_embed.json"}
    assert store.verify(out).wrong == ()
    whole = Embedder(build(checkpoint), cache_dir=False).encode(["the cat sat"])
    np.testing.assert_array_equal(Embedder(out, cache_dir=False).encode(["the cat sat"]), whole)


def test_links_of_a_hub_cache_become_files_of_their_own(checkpoint: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    for path in [path for path in checkpoint.rglob("*") if path.is_file()]:
        link = snapshot / path.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    out = build(snapshot, tmp_path / "out")
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert contents(out).keys() == {*IR, *SIDE, "edge_embed.json"}


def test_a_second_build_makes_the_same_bytes_in_this_process_and_in_another(
    checkpoint: Path, tmp_path: Path
) -> None:
    first = contents(build(checkpoint, tmp_path / "first"))
    assert contents(build(checkpoint, tmp_path / "second")) == first
    script = "import sys; from pathlib import Path; from edge_embed.build import build; "
    script += "build(Path(sys.argv[1]), Path(sys.argv[2]))"
    arguments = [str(checkpoint), str(tmp_path / "third")]
    subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, check=True, capture_output=True)
    assert contents(tmp_path / "third") == first
    assert contents(build(checkpoint, tmp_path / "first")) == first  # and over itself


@pytest.mark.parametrize("spelling", ["same", "dots", "link"])
def test_naming_the_checkpoint_as_its_own_output_is_building_in_place(
    checkpoint: Path, spelling: str
) -> None:
    (checkpoint.parent / "link").symlink_to(checkpoint)
    write_record(checkpoint, {"recipe": "kept", "files": {"x": {"sha256": "0", "bytes": 1}}})
    stamp = (checkpoint / "config.json").stat().st_mtime_ns
    out = {"same": checkpoint, "dots": checkpoint / ".." / "checkpoint", "link": checkpoint.parent / "link"}
    build(checkpoint, out[spelling])
    assert (checkpoint / "config.json").stat().st_mtime_ns == stamp
    assert read_record(checkpoint)["recipe"] == "kept"
    assert read_record(checkpoint)["files"].keys() == {*IR, *SIDE, "x"}


def test_name_and_source_of_a_pulled_checkpoint_go_with_the_ir_and_nothing_else(
    checkpoint: Path, tmp_path: Path
) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    origin = {
        "name": "a-model",
        "source": {"kind": "hub"},
        "files": {"model.safetensors": entry},
        "recipe": 1,
    }
    write_record(checkpoint, origin)
    out = tmp_path / "out"
    out.mkdir()
    write_record(out, {"name": "an older one", "files": {"gone": entry}})
    record = read_record(build(checkpoint, out))
    assert (record["name"], record["source"]) == ("a-model", {"kind": "hub"})
    assert record.keys() == {"schema", "name", "source", "files", "built_by"}
    assert record["files"].keys() == {*IR, *SIDE}


def test_a_folder_built_elsewhere_from_a_checkpoint_that_was_not_pulled_names_its_weights(
    checkpoint: Path, tmp_path: Path
) -> None:
    build(checkpoint, tmp_path / "out")
    sha256 = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    source = read_record(tmp_path / "out")["source"]
    assert source == {"kind": "checkpoint", "sha256": {"model.safetensors": sha256}}
    assert weights_sha256(tmp_path / "out") == weights_sha256(checkpoint) == sha256


def more_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["onemore"] = len(tokenizer["model"]["vocab"])
    path.write_text(json.dumps(tokenizer))


def cut_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (more_tokens, ModelError, "tokenizer.json has 125 tokens, but config.json says vocab_size 124"),
        (
            lambda f: edit(f / "config.json", model_type="gpt2"),
            CheckpointError,
            "model_type 'gpt2'; built are",
        ),
        (lambda f: edit(f / "config.json", hidden_size=64), ModelError, "word_embedding_dimension 32"),
        (lambda f: (f / "tokenizer.json").unlink(), ModelError, "tokenizer.json is missing"),
        (lambda f: (f / "1_Pooling/config.json").unlink(), ModelError, "1_Pooling/config.json is missing"),
        (lambda f: (f / "config.json").unlink(), CheckpointError, "config.json"),
        (lambda f: (f / "model.safetensors").unlink(), CheckpointError, "neither model.safetensors nor"),
        (cut_weights, CheckpointError, "model.safetensors"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_before_anything_is_written(
    checkpoint: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    kind: type[EdgeEmbedError],
    said: str,
) -> None:
    damage(checkpoint)
    before = contents(checkpoint)
    with pytest.raises(kind, match=said) as caught:
        build(checkpoint, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(kind, match=said):
        build(checkpoint)
    assert contents(checkpoint) == before


def test_the_command_says_in_one_line_what_is_wrong_and_exits_2(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more_tokens(checkpoint)
    assert main(["build", str(checkpoint)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("edge-embed: tokenizer.json has 125 tokens")
    assert shown.err.count("\n") == 1


def test_an_output_that_is_a_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out is a file; name a folder"):
        build(checkpoint, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_output_below_a_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot copy .* to .*out/below/"):
        build(checkpoint, tmp_path / "out/below")


@pytest.mark.parametrize("limit", [0, 3000, 50_000, 150_000])
def test_a_full_disk_leaves_no_ir_and_no_temporary_file(checkpoint: Path, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands for the disk; the .bin has 150,412 bytes."""
    before = contents(checkpoint)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for out in (None, tmp_path / "out"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OutputError, match="cannot write ") as caught:
                build(checkpoint, out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
    assert contents(checkpoint) == before
    assert contents(tmp_path / "out").keys() <= set(SIDE)


MEMORY = """
import resource, sys
from pathlib import Path
import numpy, openvino, tokenizers
from edge_embed.build import build

openvino.Core().available_devices
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
build(Path(sys.argv[1]), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.minilm
def test_building_holds_the_weights_once(minilm: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", MEMORY, str(minilm), str(tmp_path)]
    child = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True)
    kibibytes = int(child.stdout.split()[-1])
    assert kibibytes * 1024 < 1.5 * (minilm / "model.safetensors").stat().st_size
