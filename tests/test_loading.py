"""Model folders that others made work with `Embedder`, and the folders that we build work with others.

Others are: sentence-transformers, optimum-intel, openvino.convert_model, NNCF, torch's ONNX exporter, and the
hub's cache. The judge of every vector is sentence-transformers with torch.
"""

import inspect
import json
import random
import re
import shutil
import statistics
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from edge_embed import Embedder, vectors
from edge_embed.build import build
from edge_embed.errors import IntegrityError, ModelError, ModelNotFoundError
from edge_embed.manifest import read_manifest
from edge_embed.record import read_record, write_record

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.reference

TEXTS = [
    "the cat sat on the mat",
    "a dog",
    "hello, world!",
    "",
    "the slow dog runs fast and the red cat is slow " * 3,
    "is it you or the blue house " * 40,
    "x",
    "How ARE you?",
]
NAMES = ("input_ids", "attention_mask", "token_type_ids")
EXACT = {
    "ov_config": {"INFERENCE_PRECISION_HINT": "f32"}
}  # others leave it to the CPU, which may take bfloat16
WORDS = (
    "the",
    "cat",
    "dog",
    "sat",
    "red",
    "blue",
    "house",
    "runs",
    "fast",
    "or",
    "and",
    "hello",
    "x",
    "7",
    "!",
)
Vectors = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _others_may_warn() -> Iterator[None]:
    """Tracing, exporting and quantizing warn of their own deprecated parts, which are no business of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def embed(folder: Path, texts: list[str] = TEXTS, **options: Any) -> Vectors:
    return Embedder(folder, cache_dir=False, **options).encode(texts)


def official(folder: Path, texts: list[str] = TEXTS, **options: Any) -> Vectors:
    """What sentence-transformers gives, on torch unless `backend` says otherwise."""
    from sentence_transformers import SentenceTransformer

    found: Vectors = SentenceTransformer(str(folder), device="cpu", **options).encode(texts)
    return found


def assert_same(ours: Vectors, theirs: Vectors) -> None:
    """Equal to 1e-5 for unit vectors, and as closely for longer ones."""
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> Vectors:
    """(N, D) unit vectors of TEXTS by sentence-transformers."""
    return official(tiny_checkpoint)


def without_weights(source: Path, target: Path) -> Path:
    """A copy of a model folder that holds no weights, for others to put theirs in."""
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns("*.safetensors", "openvino", "edge_embed.json")
    )
    return target


def traceable(folder: Path) -> "torch.nn.Module":
    """transformers' BertModel, with the mask made additive outside: its own mask code cannot be traced."""
    import torch
    from transformers import BertModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel.from_pretrained(folder, add_pooling_layer=False)

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
        ) -> Any:
            bias = (1 - attention_mask[:, None, None, :].float()) * -1e9
            return self.bert(input_ids, attention_mask=bias, token_type_ids=token_type_ids)

    return Encoder().eval()


def example() -> dict[str, "torch.Tensor"]:
    import torch

    ids = torch.ones(2, 8, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def trace(checkpoint: Path, **options: Any) -> openvino.Model:
    return openvino.convert_model(traceable(checkpoint), example_input=example(), **options)


@pytest.fixture(scope="module")
def traced(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an IR by openvino.convert_model. Read only."""
    folder = without_weights(tiny_checkpoint, tmp_path_factory.mktemp("traced") / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = trace(tiny_checkpoint)
    openvino.save_model(model, folder / "openvino/openvino_model.xml", compress_to_fp16=False)
    return folder


def quantize(folder: Path, texts: Sequence[str]) -> Path:
    """Put the static INT8 IR of stock NNCF, calibrated on `texts`, beside the float32 one."""
    import nncf

    from edge_embed.tokenization import Tokenizer

    ids = Tokenizer(folder, max_tokens=read_manifest(folder).max_tokens).encode(texts).ids
    rows = [(row[None], np.ones_like(row)[None], np.zeros_like(row)[None]) for row in ids]
    feeds = nncf.Dataset([dict(zip(NAMES, row, strict=True)) for row in rows])
    model = openvino.Core().read_model(folder / "openvino/openvino_model.xml")
    quantized = nncf.quantize(model, feeds, model_type=nncf.ModelType.TRANSFORMER)
    file = folder / "openvino/openvino_model_qint8_quantized.xml"
    openvino.save_model(quantized, file, compress_to_fp16=False)
    return folder


# ---- what others made


def test_our_ir_gives_the_vectors_of_sentence_transformers(tiny_built: Path, expected: Vectors) -> None:
    assert_same(embed(tiny_built), expected)


def test_an_ir_traced_by_openvino_is_loaded(traced: Path, expected: Vectors) -> None:
    assert_same(embed(traced), expected)


def test_an_ir_exported_by_optimum_intel_is_loaded(
    tiny_checkpoint: Path, tmp_path: Path, expected: Vectors
) -> None:
    from optimum.intel import OVModelForFeatureExtraction

    folder = without_weights(tiny_checkpoint, tmp_path / "model")
    exported = OVModelForFeatureExtraction.from_pretrained(tiny_checkpoint, export=True, compile=False)
    exported.save_pretrained(tmp_path / "exported")
    for suffix in (".xml", ".bin"):
        shutil.copy(tmp_path / f"exported/openvino_model{suffix}", folder)
    assert Embedder(folder, cache_dir=False).plan.file == folder / "openvino_model.xml"
    assert_same(embed(folder), expected)


def test_an_ir_whose_ports_have_no_names_is_loaded(traced: Path, tmp_path: Path, expected: Vectors) -> None:
    folder = Path(shutil.copytree(traced, tmp_path / "model"))
    file = folder / "openvino/openvino_model.xml"
    nameless = re.sub(r' names="[^"]*"', "", file.read_text())
    for name in NAMES:
        nameless = nameless.replace(f'name="{name}"', f'name="{name[:3]}"')
    file.write_text(nameless)
    ports = openvino.Core().read_model(file).inputs
    assert [port.get_names() for port in ports] == [set()] * 3
    assert_same(embed(folder), expected)


def test_an_ir_traced_for_one_shape_is_refused(traced: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(traced, tmp_path / "model"))
    model = trace(tiny_checkpoint, input=[(name, [1, 16]) for name in NAMES])
    openvino.save_model(model, folder / "openvino/openvino_model.xml", compress_to_fp16=False)
    with pytest.raises(ModelError, match=r"one shape only, input_ids \[1,16\].*; export it with dynamic"):
        Embedder(folder, cache_dir=False)


def test_an_ir_that_asks_for_more_than_tokens_is_refused_with_what_it_has(
    traced: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(traced, tmp_path / "model"))
    file = folder / "openvino/openvino_model.xml"
    file.write_text(file.read_text().replace("token_type_ids", "position_ids"))
    with pytest.raises(
        ModelError, match=r"has input_ids \[\?,\?\], .*attention_mask \[\?,\?\], position_ids"
    ):
        Embedder(folder, cache_dir=False)


def test_an_ir_with_pooling_in_it_is_loaded(tiny_built: Path, tmp_path: Path, expected: Vectors) -> None:
    from edge_embed.graph import head

    folder = without_weights(tiny_built, tmp_path / "model")
    model = openvino.Core().read_model(tiny_built / "openvino/openvino_model.xml")
    pooled = head.attach(model, head.standardize(model), ["mean"], normalize=False)
    openvino.save_model(pooled, folder / "openvino/openvino_model.xml", compress_to_fp16=False)
    assert_same(embed(folder), expected)


def cosines(a: Vectors, b: Vectors) -> Vectors:
    found: Vectors = np.diagonal(vectors.cosine(a, b))
    return found


def test_an_ir_quantized_by_stock_nncf_is_loaded_by_its_compute_type(
    traced: Path, tmp_path: Path, expected: Vectors
) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 40))) for _ in range(60)]
    folder = quantize(Path(shutil.copytree(traced, tmp_path / "model")), texts)
    embedder = Embedder(folder, compute_type="int8", cache_dir=False)
    assert embedder.plan.file.name == "openvino_model_qint8_quantized.xml"
    int8 = embedder.encode(TEXTS)
    assert cosines(int8, expected).min() > 0.9
    assert not np.allclose(int8, expected, atol=1e-4)  # it is the INT8 model that ran
    assert_same(embed(folder, compute_type="float32"), expected)


@pytest.mark.minilm
def test_minilm_quantized_by_stock_nncf_stays_close(minilm: Path, tmp_path: Path) -> None:
    members = [*vars(statistics).values(), *vars(random).values(), *vars(textwrap).values()]
    docs = {inspect.getdoc(member) or "" for member in members}
    texts = sorted(doc for doc in docs if 80 < len(doc) < 400)
    folder = quantize(Path(shutil.copytree(minilm, tmp_path / "model")), texts[::2])
    whole, int8 = (embed(folder, texts[1::2], compute_type=kind) for kind in ("float32", "int8"))
    assert cosines(whole, int8).min() > 0.97


@pytest.mark.parametrize("place", ["onnx/model.onnx", "model.onnx"])
def test_an_onnx_file_serves_where_there_is_no_ir(
    tiny_checkpoint: Path, tmp_path: Path, expected: Vectors, place: str
) -> None:
    import torch

    folder = without_weights(tiny_checkpoint, tmp_path / "model")
    (folder / place).parent.mkdir(exist_ok=True)
    feed = example()
    torch.onnx.export(
        traceable(tiny_checkpoint),
        tuple(feed.values()),
        str(folder / place),
        input_names=list(feed),
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in (*feed, "last_hidden_state")},
        dynamo=False,  # the newer exporter needs onnxscript
    )
    assert Embedder(folder, cache_dir=False).plan.file == folder / place
    assert_same(embed(folder), expected)
    shutil.copytree(build(tiny_checkpoint, tmp_path / "built") / "openvino", folder / "openvino")
    assert Embedder(folder, cache_dir=False).plan.file == folder / "openvino/openvino_model.xml"


def modules_of(checkpoint: Path, mode: str | tuple[str, ...], *, normalize: bool) -> Any:
    """A SentenceTransformer of the tiny BERT with a pooling of choice."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.normalize import Normalize
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling

    parts = [Transformer(str(checkpoint)), Pooling(32, mode), *([Normalize()] if normalize else [])]
    return SentenceTransformer(modules=parts, device="cpu", prompts={"query": "how is ", "document": ""})


@pytest.mark.parametrize(
    ("mode", "normalize"),
    [
        ("cls", True),
        ("mean", False),
        ("max", False),
        ("mean_sqrt_len_tokens", False),
        ("weightedmean", True),
        ("lasttoken", True),
        (("mean", "cls", "max"), True),
    ],
)
def test_a_folder_saved_by_sentence_transformers_is_built_and_gives_its_vectors(
    tiny_checkpoint: Path, tmp_path: Path, mode: str | tuple[str, ...], normalize: bool
) -> None:
    model = modules_of(tiny_checkpoint, mode, normalize=normalize)
    model.save(str(tmp_path / "saved"))
    embedder = Embedder(build(tmp_path / "saved"), cache_dir=False)
    assert_same(embedder.encode(TEXTS), model.encode(TEXTS))
    assert_same(embedder.encode_query(TEXTS), model.encode_query(TEXTS))
    assert_same(embedder.encode_document(TEXTS), model.encode_document(TEXTS))


def test_a_length_limit_that_sentence_transformers_saved_is_kept(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = modules_of(tiny_checkpoint, "mean", normalize=True)
    model.max_seq_length = 20
    model.save(str(tmp_path / "saved"))
    embedder = Embedder(build(tmp_path / "saved"), cache_dir=False)
    assert embedder.max_tokens == 20
    assert_same(embedder.encode(TEXTS), model.encode(TEXTS))


OLD_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
}


@pytest.mark.parametrize("modes", [["cls"], ["max"], ["mean"], ["cls", "mean"], ["max", "mean"]])
@pytest.mark.parametrize("keys", ["old", "6.x"])
def test_pooling_keys_of_every_age_give_the_vectors_of_sentence_transformers(
    tiny_built: Path, tmp_path: Path, modes: list[str], keys: str
) -> None:
    folder = Path(shutil.copytree(tiny_built, tmp_path / "model"))
    old: dict[str, object] = {"word_embedding_dimension": 32}
    old |= {key: mode in modes for mode, key in OLD_KEYS.items()}
    new: dict[str, object] = {"embedding_dimension": 32, "pooling_mode": modes, "include_prompt": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(old if keys == "old" else new))
    assert_same(embed(folder), official(folder))


# ---- what we build, for others


def test_sentence_transformers_loads_what_we_build(
    tiny_checkpoint: Path, tmp_path: Path, expected: Vectors
) -> None:
    folder = build(tiny_checkpoint, tmp_path / "out")  # without safetensors, so that it cannot export its own
    assert_same(official(folder, backend="openvino", model_kwargs=EXACT), expected)
    assert_same(embed(folder), expected)


def test_optimum_intel_loads_what_we_build(tiny_built: Path, tmp_path: Path, expected: Vectors) -> None:
    from optimum.intel import OVModelForFeatureExtraction
    from transformers import AutoTokenizer

    folder = build(tiny_built, tmp_path / "out")
    model = OVModelForFeatureExtraction.from_pretrained(folder, subfolder="openvino", **EXACT)
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, truncation=True, max_length=512, return_tensors="pt"
    )
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    pooled = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    assert_same(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), expected)


# ---- the hub's cache


def hub_cache(source: Path, root: Path, *, levels: int) -> str:
    """A folder as huggingface_hub caches it: links to blobs, which for `levels` 2 are links themselves."""
    commit = "0" * 40
    repository = root / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "blobs").mkdir()
    (root / "blobs").mkdir()
    for number, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        blob, link = (
            repository / f"blobs/{number:064x}",
            repository / "snapshots" / commit / path.relative_to(source),
        )
        shutil.copy(path, blob)
        if levels == 2:
            blob.rename(root / f"blobs/{number:032x}")
            blob.symlink_to(root / f"blobs/{number:032x}")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return "someone/tiny"


@pytest.mark.parametrize("levels", [1, 2])
def test_a_hub_id_in_the_cache_is_loaded_through_its_links(
    tiny_built: Path, tmp_path: Path, expected: Vectors, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    ref = hub_cache(tiny_built, tmp_path, levels=levels)
    embedder = Embedder(ref, cache_dir=False)
    assert embedder.folder == tmp_path / "models--someone--tiny/snapshots" / ("0" * 40)
    assert_same(embedder.encode(TEXTS), expected)
    assert_same(Embedder(ref, cache_dir=tmp_path / "compiled").encode(TEXTS), expected)
    assert_same(Embedder(ref, cache_dir=tmp_path / "compiled").encode(TEXTS), expected)  # from the cache


# ---- folders that do not fit together


def test_a_folder_without_an_ir_says_how_to_make_one(tiny_checkpoint: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no OpenVINO IR and no ONNX file; .*edge-embed build"):
        Embedder(tiny_checkpoint)


def remove_weights(folder: Path) -> None:
    (folder / "openvino/openvino_model.bin").unlink()


def cut_weights(folder: Path) -> None:
    file = folder / "openvino/openvino_model.bin"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove_weights, r"openvino_model\.bin is missing beside"),
        (cut_weights, r"openvino_model\.bin has 150411 bytes, but .* asks for 150412: it was cut"),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_damaged_weights_are_refused_with_or_without_a_compiled_blob(
    tiny: Path, tmp_path: Path, damage: Callable[[Path], None], said: str, warm: bool
) -> None:
    if warm:
        Embedder(tiny, cache_dir=tmp_path / "compiled")
    damage(tiny)
    with pytest.raises(ModelError, match=said):
        Embedder(tiny, cache_dir=tmp_path / "compiled")


@pytest.mark.parametrize(
    "name",
    [
        "1_Pooling/config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
    ],
)
def test_a_json_file_that_the_record_lists_and_that_is_gone_is_refused(tiny: Path, name: str) -> None:
    (tiny / name).unlink()
    with pytest.raises(IntegrityError, match=rf"{name} is missing, though edge_embed\.json lists it"):
        Embedder(tiny, cache_dir=False)


def test_the_index_of_shards_is_not_missed_once_the_ir_is_built(tiny: Path) -> None:
    record = read_record(tiny)
    record["files"]["model.safetensors.index.json"] = {"sha256": "0" * 64, "bytes": 1}
    write_record(tiny, record)
    assert Embedder(tiny, cache_dir=False).encode("a dog").shape == (32,)
