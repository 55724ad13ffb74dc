"""The peers of the benches that read ONNX, and the writer of their folder.

What needs their libraries runs in the environment of the peers, as a large test. In this one OpenVINO stands
in for ONNX Runtime where only the code around it is looked at.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_hub import try_to_load_from_cache
from numpy.typing import NDArray

from bench import onnx_model
from bench.peers import Unavailable, embed_anything_candle, light_embed_onnx, onnx_runtime
from edge_embed import Embedder
from edge_embed.build import build
from tests.checkpoints import tiny_bert, tiny_roberta
from tests.modernbert_checkpoints import spell_as_4, tiny_modernbert

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers"
ONNX_PEERS = ("onnx_runtime", "fastembed_onnx", "light_embed_onnx", "sentence_transformers_onnx")
TEXTS = ["the boat", "a long text about the harbour, " * 9, "bread", "", "the ferry leaves the harbour"]

in_their_environment = [
    pytest.mark.large,
    pytest.mark.skipif(
        not (PEERS / ".installed").exists(), reason="needs the environment of the peers; run: make peers"
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the writer reads, but for the weights; its longest text has 512 tokens."""
    return tiny_bert(tmp_path / "folder")


def write_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "export", lambda folder, target: target.write_text("float32"))
    monkeypatch.setattr(onnx_model, "quantize", lambda source, target, machine: target.write_text(machine))


def test_the_onnx_folder_has_all_that_its_readers_ask_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_in_no_time(monkeypatch)
    out = onnx_model.write(folder)
    assert {path.name for path in out.iterdir()} == {
        *("model.onnx", "model_quint8.onnx", "config.json", "tokenizer.json"),
        *("tokenizer_config.json", "special_tokens_map.json"),
    }
    assert (out / "model_quint8.onnx").read_text() == onnx_model.instructions()
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_an_onnx_folder_that_is_there_is_refused(folder: Path) -> None:
    (folder / "onnx").mkdir()
    with pytest.raises(SystemExit, match="onnx exists; remove it"):
        onnx_model.write(folder)


def test_a_failed_export_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name for path in folder.iterdir()}

    def fail(folder: Path, target: Path) -> None:
        target.touch()
        raise RuntimeError("no memory")

    monkeypatch.setattr(onnx_model, "export", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        onnx_model.write(folder)
    assert {path.name for path in folder.iterdir()} == before


def test_the_longest_text_is_that_of_sentence_transformers(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    files = onnx_model.tokenizer_files(folder)
    assert files["tokenizer_config.json"]["model_max_length"] == 256
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 512


def test_special_tokens_are_kept_where_a_folder_names_them(folder: Path) -> None:
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert onnx_model.tokenizer_files(folder)["special_tokens_map.json"] == {}
    (folder / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
    assert onnx_model.tokenizer_files(folder)["special_tokens_map.json"] == {"pad_token": "[PAD]"}


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
    ],
)
def test_pooling_is_read_from_the_folder(folder: Path, modes: dict[str, bool], expected: str) -> None:
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32} | modes))
    assert onnx_model.pooling(folder) == expected


@pytest.mark.parametrize("modes", [{"pooling_mode_max_tokens": True}, {"pooling_mode_cls_token": False}])
def test_another_pooling_is_unavailable(folder: Path, modes: dict[str, bool]) -> None:
    (folder / "1_Pooling/config.json").write_text(json.dumps(modes))
    with pytest.raises(Unavailable, match="pooling_mode_"):
        onnx_model.pooling(folder)


def test_two_poolings_at_once_are_unavailable(folder: Path) -> None:
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(modes))
    with pytest.raises(Unavailable, match=r"cls_token.*mean_tokens"):
        onnx_model.pooling(folder)


@pytest.mark.parametrize("kind", onnx_model.FILES)
def test_a_folder_without_onnx_says_how_it_is_made(folder: Path, kind: str) -> None:
    with pytest.raises(
        Unavailable, match=f"no onnx/{onnx_model.FILES[kind]}; run: python -m bench.onnx_model"
    ):
        onnx_model.model_file(folder, kind)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx2 avx512f avx512_vnni", "avx512_vnni"), ("avx2 avx512f", "avx2"), ("avx2 avx_vnni", "avx2")],
)
def test_the_recipe_is_that_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags} sse\n")
    monkeypatch.setattr(onnx_model, "CPU_FLAGS", tmp_path / "cpuinfo")
    assert onnx_model.instructions() == expected


def test_each_onnx_peer_runs_both_files() -> None:
    for name in ONNX_PEERS:
        assert set(import_module(f"bench.peers.{name}").KINDS) == onnx_model.FILES.keys()


class OnOpenVINO:
    """What onnx_runtime.py asks of an InferenceSession, from the IR of the folder that the .onnx lies in."""

    def __init__(self, file: Path, options: Any, providers: list[str]) -> None:
        import openvino

        self.options, self.providers, self.widths = options, providers, list[int]()
        self.compiled = openvino.Core().compile_model(
            file.parents[1] / "openvino/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=port.any_name) for port in self.compiled.inputs]

    def run(self, outputs: list[str], feed: dict[str, NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        self.widths.append(feed["input_ids"].shape[1])
        return [self.compiled(feed)[name] for name in outputs]

    def get_session_options(self) -> Any:
        return self.options

    def get_providers(self) -> list[str]:
        return self.providers

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map={onnx_model.INSTRUCTIONS: "avx2", "another": "key"})


def test_onnx_runtime_sorts_pads_and_pools_as_we_do(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[OnOpenVINO] = []

    def session(*arguments: Any, **options: Any) -> OnOpenVINO:
        sessions.append(OnOpenVINO(*arguments, **options))
        return sessions[0]

    library = SimpleNamespace(
        __version__="1", SessionOptions=lambda: SimpleNamespace(), InferenceSession=session
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "")
    (tiny / "onnx").mkdir()
    (tiny / "onnx/model.onnx").touch()
    encoder = onnx_runtime.load(tiny, kind="float32", threads=3, cache=None)
    expected = Embedder(tiny, compute_type="float32").encode(TEXTS)
    for size in (None, 1, 2):
        np.testing.assert_allclose(encoder.call(TEXTS, size), expected, atol=1e-6)
    widths = sessions[0].widths
    assert widths[1:6] == sorted(widths[1:6], reverse=True)  # one text at a time, the longest first
    assert widths[0] == widths[1] == max(widths)
    assert encoder.effective == {
        "version": "1",
        "file": "model.onnx",
        "threads": "3",
        "providers": "CPUExecutionProvider",
        "quantized_for": "avx2",
    }
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_threads_are_counted() -> None:
    before = light_embed_onnx.running()
    done = threading.Event()
    helper = threading.Thread(target=done.wait)
    helper.start()
    assert light_embed_onnx.running() == before + 1
    done.set()
    helper.join()


def test_light_embed_with_other_threads_is_unavailable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        """Takes no thread beside the caller's."""

    monkeypatch.setitem(sys.modules, "light_embed", SimpleNamespace(TextEmbedding=load))
    monkeypatch.setattr(light_embed_onnx, "version", lambda name: "1.0")
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "")
    (folder / "onnx").mkdir()
    (folder / "onnx/model.onnx").touch()
    with pytest.raises(Unavailable, match=r"light-embed 1\.0 takes 1 threads, not 2, and has no setting"):
        light_embed_onnx.load(folder, kind="float32", threads=2, cache=None)


def test_the_hub_finds_the_folder_in_the_cache_that_embed_anything_is_given(folder: Path) -> None:
    hub = embed_anything_candle.hub_cache(folder)
    for name in embed_anything_candle.READ:
        found = try_to_load_from_cache(
            embed_anything_candle.NAME, name, cache_dir=hub, revision=embed_anything_candle.REVISION
        )
        assert isinstance(found, str)
        assert Path(found).resolve() == folder / name
    shutil.rmtree(hub)


ENCODE = """
import importlib, json, sys
from pathlib import Path
import numpy as np
from bench.peers import Unavailable
name, kind, folder, texts, out = sys.argv[1:]
try:
    peer = importlib.import_module(f"bench.peers.{name}")
    encoder = peer.load(Path(folder), kind=kind, threads=2, cache=None)
except Unavailable as reason:
    print(json.dumps({"unavailable": str(reason)}))
else:
    np.save(out, encoder.call(json.loads(texts), 2))
    print(json.dumps(dict(encoder.effective)))
"""


def run(*arguments: str) -> str:
    """The last line that the Python of the peers prints."""
    done = subprocess.run(
        [PEERS / "bin/python", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def encode(peer: str, kind: str, folder: Path) -> tuple[dict[str, str], NDArray[np.float32] | None]:
    """The effective settings of a peer in its own environment, and its vectors of TEXTS if it has any."""
    out = folder / "vectors.npy"
    out.unlink(missing_ok=True)
    effective: dict[str, str] = json.loads(
        run("-c", ENCODE, peer, kind, str(folder), json.dumps(TEXTS), str(out))
    )
    return effective, np.load(out) if out.exists() else None


def modernbert(folder: Path) -> Path:
    """As transformers 4 writes it, which is what exports it."""
    return spell_as_4(tiny_modernbert(folder))


@pytest.mark.parametrize("checkpoint", [tiny_bert, tiny_roberta, modernbert])
class TestInTheEnvironmentOfThePeers:
    pytestmark = in_their_environment

    def test_every_onnx_peer_gives_our_vectors(
        self, tmp_path: Path, checkpoint: Callable[[Path], Path]
    ) -> None:
        import onnx

        folder = build(checkpoint(tmp_path / "model"))
        expected = Embedder(folder, compute_type="float32").encode(TEXTS)
        run("-m", "bench.onnx_model", str(folder))
        graph = onnx.load(folder / "onnx/model.onnx").graph
        inputs = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
        assert {"input_ids", "attention_mask"} <= inputs.keys()
        assert all(dim.dim_param for dims in inputs.values() for dim in dims)
        assert [value.name for value in graph.output] == ["last_hidden_state"]
        for peer in ONNX_PEERS:
            effective, vectors = encode(peer, "float32", folder)
            if peer == "light_embed_onnx" and vectors is None:
                assert "has no setting" in effective["unavailable"]
                continue
            assert vectors is not None, effective
            assert vectors.dtype == np.float32
            np.testing.assert_allclose(vectors, expected, atol=1e-4)
            assert effective["file"] == "model.onnx"
            effective, rough = encode(peer, "int8_dynamic", folder)
            assert rough is not None, effective
            assert 1e-4 < np.abs(rough - expected).max() < 0.5
            assert effective["quantized_for"] == onnx_model.instructions()

    def test_embed_anything_gives_our_vectors_or_says_why_not(
        self, tmp_path: Path, checkpoint: Callable[[Path], Path]
    ) -> None:
        folder = build(checkpoint(tmp_path / "model"))
        effective, vectors = encode("embed_anything_candle", "float32", folder)
        if checkpoint is tiny_bert:
            assert vectors is not None, effective
            expected = Embedder(folder, compute_type="float32").encode(TEXTS)
            np.testing.assert_allclose(vectors, expected, atol=1e-4)
        else:
            assert effective["unavailable"].endswith("Model not supported")
