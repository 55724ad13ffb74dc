"""One folder for several libraries: what `edge-embed build` makes and what others export give equal vectors.

The judge of every vector is sentence-transformers with torch, on the checkpoint.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from bench.corpus import docstrings
from edge_embed import Embedder, calibration, child, store, tokenizer_ir, via_optimum
from edge_embed.build import build
from edge_embed.cli import main
from edge_embed.errors import CheckpointError, InputError, ModelError
from edge_embed.manifest import read_manifest
from edge_embed.record import read_record
from tests.checkpoints import disturb, tiny_bert, tiny_roberta, write_modules, write_tokenizer
from tests.modernbert_checkpoints import tiny_modernbert

pytestmark = pytest.mark.reference

ROOT = Path(__file__).parents[1]
TEXTS = [
    "the cat sat on the mat",
    "a dog",
    "hello, world!",
    "",
    "How ARE you?",
    "is it you or the blue house " * 100,  # over the limit
    "x",
    "Ünïcödé\tand\nlines, 日本語",
]
# Others leave these to the CPU, which may take bfloat16, and 8 bits for what meets 8-bit weights.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
TOKENIZER = {"openvino/openvino_tokenizer.bin", "openvino/openvino_tokenizer.xml"}
MAKERS: dict[str, Callable[[Path], Path]] = {
    "bert": tiny_bert,
    "modernbert": tiny_modernbert,
    "xlm-roberta": tiny_roberta,
}
NAMES = [*MAKERS, pytest.param("minilm", marks=pytest.mark.minilm)]
Vectors = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _others_may_warn() -> Iterator[None]:
    """Exporting and tracing warn of their own deprecated parts, which are no business of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def by_sentence_transformers(folder: Path, texts: list[str], backend: Any = "torch") -> Vectors:
    from sentence_transformers import SentenceTransformer

    options = {"dtype": "float32"} if backend == "torch" else {"ov_config": EXACT}
    model = SentenceTransformer(str(folder), device="cpu", backend=backend, model_kwargs=options)
    found: Vectors = model.encode(texts)
    return found


def by_sentence_transformers_on_openvino(folder: Path, texts: list[str]) -> Vectors:
    return by_sentence_transformers(folder, texts, "openvino")


def by_optimum_intel(folder: Path, texts: list[str]) -> Vectors:
    """Its hidden states, pooled here as the folder's files say."""
    from optimum.intel import OVModelForFeatureExtraction
    from transformers import AutoTokenizer

    manifest = read_manifest(folder)
    model = OVModelForFeatureExtraction.from_pretrained(folder, subfolder="openvino", ov_config=EXACT)
    options: dict[str, Any] = {"truncation": True, "max_length": manifest.max_tokens, "return_tensors": "pt"}
    tokenizer, rows = AutoTokenizer.from_pretrained(folder), []
    for text in texts:
        hidden = model(**tokenizer([text], **options)).last_hidden_state.numpy()[0]
        rows.append(hidden[0] if manifest.pooling == ("cls",) else hidden.mean(axis=0))
    return np.stack([row / np.linalg.norm(row) for row in rows])


def by_openvino_genai(folder: Path, texts: list[str]) -> Vectors:
    from openvino_genai import TextEmbeddingPipeline

    manifest = read_manifest(folder)
    config = TextEmbeddingPipeline.Config()
    config.pooling_type = getattr(TextEmbeddingPipeline.PoolingType, manifest.pooling[0].upper())
    config.normalize = manifest.normalize
    pipeline = TextEmbeddingPipeline(folder / "openvino", "CPU", config, **EXACT)
    batches = (texts[start : start + 8] for start in range(0, len(texts), 8))
    return np.array([row for batch in batches for row in pipeline.embed_documents(batch)], np.float32)


LIBRARIES = [by_sentence_transformers_on_openvino, by_optimum_intel, by_openvino_genai]


def by_us(folder: Path, texts: list[str] = TEXTS) -> Vectors:
    return Embedder(folder, cache_dir=False).encode(texts)


def assert_same(ours: Vectors, theirs: Vectors) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---- one folder, four libraries


def is_greek(text: str) -> bool:
    return "ς" in text.lower()


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    """What people write, in 52 languages and in code, but no Greek: see the test of it below."""
    texts = [*(passage.text for passage in docstrings(60)), *calibration.texts()[::3]]
    return [text for text in texts if not is_greek(text)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny ones, seeded. Read only."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def checkpoint(name: str, checkpoints: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue("minilm") if name == "minilm" else checkpoints[name]
    return folder


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[Path, Vectors]]:
    """What `built` made so far, for the tests of one module."""
    return {}


@pytest.fixture
def built(
    name: str,
    checkpoint: Path,
    texts: list[str],
    results: dict[str, tuple[Path, Vectors]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Vectors]:
    """(what the command builds, (N, D) by sentence-transformers with torch). Read only.

    It has no safetensors, so that no library can quietly export its own.
    """
    if name not in results:
        out = tmp_path_factory.mktemp("built") / name
        assert main(["build", str(checkpoint), "-o", str(out)]) == 0
        results[name] = out, by_sentence_transformers(checkpoint, texts)
    return results[name]


@pytest.fixture
def texts(name: str, request: pytest.FixtureRequest) -> list[str]:
    found: list[str] = request.getfixturevalue("real_texts") if name == "minilm" else TEXTS
    return found


def test_our_vectors_are_those_of_the_judge(built: tuple[Path, Vectors], texts: list[str]) -> None:
    folder, expected = built
    assert not any(folder.glob("*.safetensors"))
    assert_same(by_us(folder, texts), expected)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_the_same_folder_gives_equal_vectors(
    library: Callable[[Path, list[str]], Vectors], built: tuple[Path, Vectors], texts: list[str]
) -> None:
    folder, expected = built
    before = files(folder)
    assert_same(library(folder, texts), expected)
    assert files(folder) == before


@pytest.mark.minilm
def test_greek_is_what_openvino_genai_gives_other_vectors_for_and_the_build_says_so(
    minilm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """openvino-tokenizers folds a final ς to σ, which BERT's own tokenizer keeps."""
    folder = tmp_path / "out"
    assert main(["build", str(minilm), "-o", str(folder)]) == 0
    greek = [text for text in calibration.texts() if is_greek(text)]
    different = read_record(folder)["tokenizer_ir"]["different"]
    assert 0 < different <= len(greek)
    assert f"gives other tokens than tokenizer.json for {different} of " in caplog.text
    off = np.abs(by_us(folder, greek) - by_openvino_genai(folder, greek)).max(axis=1)
    assert (off > 1e-3).sum() == different


# ---- the tokenizer's IR


def test_the_tokenizer_is_written_recorded_and_made_the_same_again(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "model")
    assert main(["build", str(folder)]) == 0
    assert files(folder) >= TOKENIZER
    record = read_record(folder)
    assert record["files"].keys() >= TOKENIZER
    assert record["tokenizer_ir"] == {
        "openvino-tokenizers": importlib.metadata.version("openvino-tokenizers"),
        "transformers": importlib.metadata.version("transformers"),
        "texts": len(calibration.texts()),
        "different": 0,
    }
    report = store.verify(folder)
    assert (report.wrong, report.unrecorded) == ((), ())
    assert main(["build", str(folder)]) == 0
    assert read_record(folder) == record


def test_without_the_extra_nothing_is_converted_and_nothing_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenizer_ir, "is_installed", lambda: False)
    folder = tiny_bert(tmp_path / "model")
    capsys.readouterr()
    assert main(["build", str(folder)]) == 0
    assert capsys.readouterr().err == ""
    assert not files(folder) & TOKENIZER
    assert "tokenizer_ir" not in read_record(folder)


@pytest.mark.parametrize("gone", ["openvino_tokenizers", "transformers"])
def test_the_extra_is_both_libraries(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokenizer_ir.is_installed()
    monkeypatch.setattr(tokenizer_ir, "find_spec", lambda name: None if name == gone else object())
    assert not tokenizer_ir.is_installed()


def test_a_tokenizer_that_cannot_be_converted_is_one_line_and_the_build_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tokenizers import Tokenizer, normalizers

    folder = tiny_bert(tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.Lowercase()])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert main(["build", str(folder)]) == 0
    (line,) = (record.getMessage() for record in caplog.records if record.name == tokenizer_ir.__name__)
    assert line.startswith(f"no {tokenizer_ir.FILE}, so that openvino.genai cannot load {folder}: ")
    assert "Nmt" in line
    assert "\n" not in line
    assert not files(folder) & TOKENIZER
    assert store.verify(folder).wrong == ()
    assert by_us(folder).shape == (len(TEXTS), 32)


def test_lower_casing_that_only_sentence_transformers_does_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """do_lower_case of sentence_bert_config.json is no part of the tokenizer that is converted."""
    folder = tiny_bert(tmp_path / "model")
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["normalizer"] |= {"lowercase": False, "strip_accents": True}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    assert tokenizer_ir.add(build(folder))
    different = read_record(folder)["tokenizer_ir"]["different"]
    assert different > 100  # most texts have a capital letter
    assert f"other tokens than tokenizer.json for {different} of" in caplog.text


# ---- what a build leaves alone

REPORT = """
import sys
from edge_embed.cli import main
assert main(["build", *sys.argv[1:]]) == 0
print(*{name.partition(".")[0] for name in sys.modules})
"""

# Runs at the start of every Python process that finds it, also of those that a build starts.
WATCH = """
import os, sys

def audit(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["NOTES"], "a") as file:
            file.write(f"{event} {args}\\n")

sys.addaudithook(audit)
"""


def run(script: str, *arguments: str | Path, **environment: str) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.parametrize("via", [[], ["--via", "optimum"]], ids=["ours", "optimum"])
def test_a_build_loads_no_torch_into_its_own_process_and_opens_no_connection_in_any(
    via: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    notes = tmp_path / "notes.txt"
    # Where openvino-telemetry looks for its user's consent: given here, so that it would send.
    (tmp_path / "intel").mkdir()
    (tmp_path / "intel/openvino_telemetry").write_text("1")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    watched = {"PYTHONPATH": path, "NOTES": str(notes), "HOME": str(tmp_path), "CI": ""}

    folder = tiny_bert(tmp_path / "model")
    loaded = set(run(REPORT, folder, *via, **watched).splitlines()[-1].split())
    assert "openvino" in loaded
    assert not loaded & {"torch", "transformers", "optimum", "openvino_tokenizers", "nncf"}
    assert files(folder) >= TOKENIZER
    assert not notes.exists()

    child_too = "from edge_embed import child; child.call('asker')"
    asker = "import socket\nfrom edge_embed import child\nsocket.socket().connect_ex(('127.0.0.1', 9))\n"
    (tmp_path / "asker.py").write_text(asker + "child.answer(dict)")
    run(child_too, **watched)
    assert "socket.connect" in notes.read_text()


# ---- what others make


def test_a_folder_that_sentence_transformers_exported_is_loaded(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {"export": True, "ov_config": EXACT}
    model = SentenceTransformer(str(checkpoints["bert"]), backend="openvino", model_kwargs=options)
    model.save_pretrained(str(tmp_path / "saved"))
    folder = tmp_path / "saved"
    assert not any(folder.glob("*.safetensors"))
    assert Embedder(folder, cache_dir=False).plan.file == folder / "openvino/openvino_model.xml"
    assert_same(by_us(folder), model.encode(TEXTS))
    assert_same(by_us(folder), by_sentence_transformers(checkpoints["bert"], TEXTS))


def test_eight_bit_weights_by_optimum_intel_give_its_own_vectors(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from optimum.intel import OVModelForFeatureExtraction

    source, no_weights = checkpoints["bert"], shutil.ignore_patterns("*.safetensors")
    folder = Path(shutil.copytree(source, tmp_path / "model", ignore=no_weights))
    eight = OVModelForFeatureExtraction.from_pretrained(
        str(source), export=True, load_in_8bit=True, compile=False
    )
    eight.save_pretrained(folder / "openvino")
    assert "u8" in (folder / "openvino/openvino_model.xml").read_text()
    ours = by_us(folder)
    assert_same(ours, by_sentence_transformers_on_openvino(folder, TEXTS))
    exact = by_sentence_transformers(source, TEXTS)
    assert 1e-5 < np.abs(ours - exact).max() < 0.1


# ---- edge-embed build --via optimum


def tiny(folder: Path, model_type: str, dtype: str = "float32", **options: Any) -> Path:
    """A seeded encoder of an architecture that has no module in graph/, saved with weights of `dtype`."""
    import torch
    from transformers import AutoConfig, AutoModel

    size = write_tokenizer(folder)
    write_modules(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model(model_type, vocab_size=size, **sizes, **options)
    config.initializer_range = 0.3
    model = AutoModel.from_config(config)
    disturb(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


ELECTRA: dict[str, Any] = {"embedding_size": 16}
MPNET: dict[str, Any] = {"max_position_embeddings": 514, "pad_token_id": 1}


@pytest.mark.parametrize(
    ("model_type", "dtype", "options"),
    [("electra", "float32", ELECTRA), ("mpnet", "bfloat16", MPNET), ("distilbert", "float32", {})],
)
def test_an_architecture_of_optimum_intel_gives_the_vectors_of_sentence_transformers(
    model_type: str,
    dtype: str,
    options: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, out = tiny(tmp_path / "model", model_type, dtype, **options), tmp_path / "out"
    before = files(checkpoint)
    capsys.readouterr()
    assert main(["build", str(checkpoint), "--via", "optimum", "-o", str(out)]) == 0
    name = f"optimum-intel {importlib.metadata.version('optimum-intel')}"
    assert capsys.readouterr().err == f"exporting with {name}, which loads the model into torch\n"
    assert files(checkpoint) == before
    built_by = read_record(out)["built_by"]
    assert built_by["exporter"] == name
    assert built_by.keys() == {"edge_embed", "openvino", "exporter", "torch", "transformers"}
    assert store.verify(out).wrong == ()

    constants = openvino.Core().read_model(out / "openvino/openvino_model.xml").get_ops()
    weights = [op for op in constants if op.get_type_name() == "Constant" and len(op.shape) == 2]
    assert {op.get_element_type() for op in weights if op.shape[1] == 32} == {openvino.Type.f32}
    expected = by_sentence_transformers(checkpoint, TEXTS)
    assert_same(by_us(out), expected)
    assert_same(by_openvino_genai(out, TEXTS), expected)
    assert_same(by_sentence_transformers_on_openvino(out, TEXTS), expected)


def test_an_architecture_that_is_not_built_here_leads_to_optimum(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path / "model", "electra", **ELECTRA)
    with pytest.raises(CheckpointError, match=r"model_type 'electra'; .*edge-embed build --via optimum"):
        build(checkpoint)


def test_what_optimum_intel_refuses_is_one_line_and_nothing_is_written(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", str(checkpoints["modernbert"]), "--via", "optimum", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    announced, refused = capsys.readouterr().err.splitlines()
    assert announced.startswith("exporting with optimum-intel")
    assert refused.startswith("edge-embed: optimum-intel ")
    assert f"does not export {checkpoints['modernbert']}: Trying to export a modernbert model" in refused
    assert not (tmp_path / "out").exists()


def test_a_folder_that_does_not_fit_together_is_refused_before_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_bert(tmp_path / "model")
    edit(checkpoint / "config.json", vocab_size=7)

    def never(*arguments: object) -> dict[str, str]:
        raise AssertionError("the exporter was called")

    monkeypatch.setattr(child, "call", never)
    with pytest.raises(ModelError, match=r"has 124 tokens, but config.json says vocab_size 7"):
        via_optimum.export(checkpoint)


def test_without_optimum_intel_the_command_says_what_to_install(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(InputError, match=r"pip install 'edge-embed\[optimum\]'"):
        via_optimum.exporter()
    assert main(["build", str(checkpoints["bert"]), "--via", "optimum", "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
