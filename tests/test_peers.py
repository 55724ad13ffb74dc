"""The form of every peer, and the vectors of those on PyTorch, OpenVINO and llama.cpp.

edge_embed is what they are compared with here; tests/test_interop.py has it judged by sentence-transformers.
"""

import importlib
import inspect
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from bench import gguf_model
from bench.peers import Encoder, Unavailable
from edge_embed import Embedder, tokenizer_ir
from edge_embed.build import build
from tests.checkpoints import change_weights, rewrite_config, tiny_bert, tiny_roberta
from tests.modernbert_checkpoints import spell_as_4, tiny_modernbert

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers"
NAMES = sorted(file.stem for file in (ROOT / "bench/peers").glob("*.py") if file.stem != "__init__")
KINDS = {"float32", "default", "bfloat16", "int8", "int8_dynamic", "int8_weights", "q8_0", "numpy"}
ON_OPENVINO = ["openvino_plain", "sentence_transformers_openvino", "optimum_openvino", "openvino_genai_peer"]
TEXTS = [
    "the cat sat on the mat",
    "a dog",
    "is it you or the blue house " * 30,  # beyond the windows
    "",
    "How ARE you?",
    "hello, world! " * 500,  # beyond the limit
    "Ünïcödé\tand\nlines, 日本語",
]
Vectors = NDArray[np.float32]
Load = Callable[..., Encoder]

# The standard library and NumPy come with any Python of a bench; nothing else may.
IMPORTED = """
import sys, importlib
before = set(sys.modules)
importlib.import_module(f"bench.peers.{sys.argv[1]}")
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names) - {"bench", "numpy"}))
"""

ENCODE = """
import json, sys
from pathlib import Path
import numpy as np
from bench.peers import llama_cpp
folder, kind, texts, out = sys.argv[1:]
encoder = llama_cpp.load(Path(folder), kind=kind, threads=2, cache=None)
np.save(out, encoder.call(json.loads(texts), 4))
print(json.dumps(dict(encoder.effective)))
"""


@pytest.fixture(autouse=True)
def _others_may_warn() -> Iterator[None]:
    """Of their own deprecated parts, which are no business of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peer(name: str) -> ModuleType:
    return importlib.import_module(f"bench.peers.{name}")


def load(name: str, folder: Path, kind: str = "float32", cache: Path | None = None) -> Encoder:
    encoder: Encoder = peer(name).load(folder, kind=kind, threads=2, cache=cache)
    return encoder


# ---- the form of every peer


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_says_where_it_runs_what_and_in_which_sizes(name: str) -> None:
    module = peer(name)
    assert module.ENVIRONMENT in ("test", "peers")
    assert len(set(module.KINDS)) == len(module.KINDS) > 0
    assert set(module.KINDS) <= KINDS
    assert len(set(module.BATCH_SIZES)) == len(module.BATCH_SIZES) > 0
    assert all(isinstance(size, int) and size >= 0 for size in module.BATCH_SIZES)
    assert module.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_every_load_has_the_same_signature(name: str) -> None:
    def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
        raise NotImplementedError

    assert inspect.signature(peer(name).load) == inspect.signature(load)


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_can_be_read_where_its_library_is_not(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, name], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


# ---- on PyTorch and OpenVINO


@pytest.fixture(scope="module")
def all_files(complete: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ModernBERT with both IRs and that of its tokenizer. Read only."""
    folder = Path(shutil.copytree(complete, tmp_path_factory.mktemp("peers") / "model"))
    assert tokenizer_ir.add(folder)
    return folder


@pytest.fixture(scope="module")
def ours(all_files: Path) -> Vectors:
    return Embedder(all_files, compute_type="float32", cache_dir=False).encode(TEXTS)


@pytest.mark.parametrize("name", ["sentence_transformers_torch", *ON_OPENVINO])
def test_float32_is_our_vectors_in_every_batch_size(name: str, all_files: Path, ours: Vectors) -> None:
    encoder = load(name, all_files)
    for size in (None, 1, 3):
        vectors = encoder.call(TEXTS, size)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, ours, rtol=0, atol=1e-5)
    assert encoder.effective["precision"].startswith(("f32", "float32"))
    assert encoder.effective["threads"].startswith("2")


@pytest.mark.parametrize("name", ["sentence_transformers_torch", *ON_OPENVINO])
def test_mean_pooling_is_read_from_the_folder(name: str, tiny_built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_built, tmp_path / "model"))
    assert tokenizer_ir.add(folder)
    expected = Embedder(folder, compute_type="float32", cache_dir=False).encode(TEXTS)
    np.testing.assert_allclose(load(name, folder).call(TEXTS, None), expected, rtol=0, atol=1e-5)


@pytest.mark.minilm
@pytest.mark.parametrize("name", ["sentence_transformers_torch", *ON_OPENVINO[:3]])
def test_a_real_model_gives_our_vectors_and_cuts_where_we_cut(name: str, minilm: Path) -> None:
    """Its limit of 256 tokens is below that of its config.json."""
    expected = Embedder(minilm, compute_type="float32", cache_dir=False).encode(TEXTS)
    np.testing.assert_allclose(load(name, minilm).call(TEXTS, None), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ON_OPENVINO)
def test_int8_runs_the_static_file(name: str, all_files: Path, ours: Vectors) -> None:
    encoder = load(name, all_files, "int8")
    assert encoder.effective["file"] == "openvino_model_qint8_quantized.xml"
    vectors = encoder.call(TEXTS, None)
    assert 1e-4 < np.abs(vectors - ours).max() < 0.3
    if "default" in peer(name).KINDS:  # which rounds as much as the rest of int8 does
        assert np.abs(vectors - load(name, all_files, "default").call(TEXTS, None)).max() > 1e-4


@pytest.mark.parametrize(
    "name", ["sentence_transformers_openvino", "optimum_openvino", "openvino_genai_peer"]
)
def test_default_says_the_precision_that_openvino_chose(name: str, all_files: Path) -> None:
    import openvino

    chosen = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    assert load(name, all_files, "default").effective["precision"].startswith(chosen)


def test_bfloat16_is_what_torch_runs(all_files: Path, ours: Vectors) -> None:
    encoder = load("sentence_transformers_torch", all_files, "bfloat16")
    assert encoder.effective["precision"] == "bfloat16"
    vectors = encoder.call(TEXTS, None)
    assert vectors.dtype == np.float32
    assert 1e-4 < np.abs(vectors - ours).max() < 0.1


@pytest.mark.parametrize("name", ["sentence_transformers_torch", *ON_OPENVINO])
def test_several_threads_may_call_at_once(name: str, all_files: Path, ours: Vectors) -> None:
    encoder = load(name, all_files)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text: encoder.call([text], None), TEXTS * 4))
    np.testing.assert_allclose(np.concatenate(rows), np.concatenate([ours] * 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ON_OPENVINO)
@pytest.mark.parametrize(("kind", "suffix"), [("float32", ""), ("int8", "_qint8_quantized")])
def test_a_file_that_is_not_there_is_named_and_nothing_is_exported(
    name: str, kind: str, suffix: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    before = sorted(folder.rglob("*"))
    with pytest.raises(Unavailable, match=f"model has no openvino/openvino_model{suffix}.xml"):
        load(name, folder, kind)
    assert sorted(folder.rglob("*")) == before


def test_genai_without_a_tokenizer_says_who_writes_it(tiny: Path) -> None:
    for file in (tiny / "openvino").glob("openvino_tokenizer.*"):
        file.unlink()
    with pytest.raises(Unavailable, match=r"openvino/openvino_tokenizer\.xml; edge-embed build writes it"):
        load("openvino_genai_peer", tiny)


@pytest.mark.parametrize("name", ON_OPENVINO)
def test_the_cache_is_filled_where_it_was_asked_for(name: str, all_files: Path, tmp_path: Path) -> None:
    load(name, all_files, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir())


# ---- llama.cpp and its files


def modernbert(folder: Path) -> Path:
    """As transformers 4 writes it. Its sizes are multiples of 32, the blocks of Q8_0."""
    return spell_as_4(tiny_modernbert(folder, intermediate_size=64))


MAKERS = {"modernbert": modernbert, "bert": tiny_bert, "xlm-roberta": tiny_roberta}


def fields(reader: gguf.GGUFReader) -> dict[str, Any]:
    """The metadata, without what the format itself counts."""
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def add_tensor(folder: Path, name: str, dtype: type) -> Path:
    return change_weights(folder, lambda tensors: tensors.update({name: np.ones(32, dtype)}))


def test_a_gguf_says_what_a_modernbert_is(tmp_path: Path) -> None:
    f32, _ = gguf_model.write(modernbert(tmp_path / "model"))
    assert fields(gguf.GGUFReader(f32)) == {
        "general.architecture": "modern-bert",
        "general.name": "model",
        "general.file_type": gguf.LlamaFileType.ALL_F32,
        "modern-bert.context_length": 8192,
        "modern-bert.embedding_length": 64,
        "modern-bert.block_count": 4,
        "modern-bert.feed_forward_length": 64,
        "modern-bert.attention.head_count": 4,
        "modern-bert.attention.layer_norm_epsilon": pytest.approx(1e-5),
        "modern-bert.attention.causal": False,
        "modern-bert.attention.sliding_window": 16,
        "modern-bert.attention.sliding_window_pattern": 3,
        "modern-bert.pooling_type": gguf.PoolingType.CLS,
        "modern-bert.vocab_size": 124,
        "modern-bert.rope.scaling.type": "none",
        "modern-bert.rope.freq_base": 80_000.0,
        "modern-bert.rope.freq_base_swa": 10_000.0,
        "modern-bert.hidden_activation": "gelu",
        "tokenizer.ggml.model": "no_vocab",
    }


def test_a_gguf_has_every_tensor_under_llama_cpps_name(tmp_path: Path) -> None:
    folder = modernbert(tmp_path / "model")
    f32, _ = gguf_model.write(folder)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(f32).tensors}
    block = {"attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"}
    names = {f"blk.{i}.{part}" for i in range(4) for part in block} - {"blk.0.attn_norm"}
    whole = {*names, "token_embd", "token_embd_norm", "output_norm"}
    assert found.keys() == {f"{name}.weight" for name in whole}
    stored = dict(gguf_model.tensors(folder / "model.safetensors"))
    np.testing.assert_array_equal(found["blk.2.attn_qkv.weight"].data, stored["layers.2.attn.Wqkv.weight"])
    np.testing.assert_array_equal(found["blk.1.attn_norm.weight"].data, stored["layers.1.attn_norm.weight"])


def test_q8_0_quantizes_the_matrices_and_nothing_else(tmp_path: Path) -> None:
    f32, q8_0 = gguf_model.write(tiny_bert(tmp_path / "model"))
    exact = {tensor.name: tensor for tensor in gguf.GGUFReader(f32).tensors}
    rough = {tensor.name: tensor for tensor in gguf.GGUFReader(q8_0).tensors}
    assert exact.keys() == rough.keys()
    kept = {name for name, tensor in rough.items() if tensor.tensor_type == gguf.GGMLQuantizationType.F32}
    vectors = {name for name, tensor in exact.items() if tensor.data.ndim == 1}
    assert kept == vectors | {"token_types.weight", "position_embd.weight"}
    for name in exact.keys() - kept:
        values = gguf.dequantize(rough[name].data, rough[name].tensor_type)
        error = np.abs(values - exact[name].data).max() / np.abs(exact[name].data).max()
        assert 0 < error < 1 / 127


def test_the_positions_of_a_roberta_start_with_its_first_token(tmp_path: Path) -> None:
    folder = tiny_roberta(tmp_path / "model")
    f32, _ = gguf_model.write(folder)
    reader = gguf.GGUFReader(f32)
    stored = dict(gguf_model.tensors(folder / "model.safetensors"))["embeddings.position_embeddings.weight"]
    (positions,) = (tensor.data for tensor in reader.tensors if tensor.name == "position_embd.weight")
    np.testing.assert_array_equal(positions, stored[2:])
    assert fields(reader)["bert.context_length"] == len(positions) == 512
    assert fields(reader)["bert.pooling_type"] == gguf.PoolingType.CLS


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: rewrite_config(folder, model_type="gpt2"), "model is a gpt2; GGUF is written of"),
        (lambda folder: add_tensor(folder, "head", np.float32), "no place for the tensor head"),
        (
            lambda folder: add_tensor(folder, "embeddings.LayerNorm.bias", np.float16),
            r"embeddings\.LayerNorm\.bias .* is F16; GGUF is written of float32",
        ),
    ],
)
def test_what_cannot_be_written_is_one_line_and_leaves_no_file(
    damage: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    folder = damage(tiny_bert(tmp_path / "model"))
    with pytest.raises(SystemExit, match=message):
        gguf_model.write(folder)
    assert not list(folder.glob("gguf/*.gguf"))


def test_the_command_names_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_bert(tmp_path / "model")
    capsys.readouterr()
    assert gguf_model.main([str(folder)]) == 0
    written = [str(folder / f"gguf/model-{kind}.gguf") for kind in ("f32", "q8_0")]
    assert capsys.readouterr().out.splitlines() == written
    assert sorted(map(str, (folder / "gguf").iterdir())) == written


def test_llama_cpp_without_its_file_says_who_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", ModuleType("xllamacpp"))
    with pytest.raises(Unavailable, match=r"no gguf/model-q8_0\.gguf; run: python -m bench\.gguf_model"):
        load("llama_cpp", tmp_path, "q8_0")


def test_logits_that_do_not_fit_are_said_before_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = peer("llama_cpp")
    (tmp_path / "meminfo").write_text("MemTotal:  4000000 kB\nMemAvailable:  2000000 kB\n")
    monkeypatch.setattr(module, "MEMORY", tmp_path / "meminfo")
    module.spare(2_000_000_000)
    with pytest.raises(Unavailable, match="would take 34 GB; 2 GB are free"):
        module.spare(32_768 * 262_152 * 4)


@pytest.mark.large
@pytest.mark.skipif(
    not (PEERS / ".installed").exists(), reason="needs the environment of the peers; run: make peers"
)
@pytest.mark.parametrize("architecture", MAKERS)
def test_llama_cpp_gives_our_vectors(architecture: str, tmp_path: Path) -> None:
    """Its GELU is the tanh form, looked up in float16."""
    folder = build(MAKERS[architecture](tmp_path / "model"))
    gguf_model.write(folder)
    expected = Embedder(folder, compute_type="float32", cache_dir=False).encode(TEXTS)
    errors = []
    for kind in ("float32", "q8_0"):
        done = subprocess.run(
            [PEERS / "bin/python", "-c", ENCODE, folder, kind, json.dumps(TEXTS), tmp_path / "rows.npy"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout.splitlines()[-1])["file"] == Path(peer("llama_cpp").FILES[kind]).name
        errors.append(np.abs(np.load(tmp_path / "rows.npy") - expected).max())
    assert errors[0] < 5e-3
    assert errors[0] < errors[1] < 0.1
