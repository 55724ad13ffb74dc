"""A static INT8 file as others ship it, on CPUs with INT8 dot products and on those without.

optimum-intel exports it with masks in its graph, stock NNCF quantizes it, and OpenVINO alone runs the same
file beside us. CPUs that are not here are emulated: oneDNN leaves unused what ONEDNN_MAX_CPU_ISA excludes.
That gives their numbers, saturating sums included, but not their speed. The judge is torch; noise is centred
SQNR in dB.
"""

import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from edge_embed import Embedder, calibration, ir
from edge_embed.drift.metrics import sqnr
from edge_embed.hardware import machine
from edge_embed.manifest import read_manifest
from edge_embed.prepare import pool, unit
from edge_embed.quantize import Recipe
from edge_embed.quantize import quantize as quantize_ours
from edge_embed.tokenization import Tokenizer
from tests.test_loading import quantize as quantize_stock
from tests.test_loading import without_weights

ROOT = Path(__file__).parents[1]
FIXTURE = ROOT / "tests/fixtures/modernbert_optimum"
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
COMPUTE_TYPES = "int8,int8_weights,int8_dynamic"
WITHOUT_INT8_DOT = ("AVX2", "AVX512_CORE")
EVERY = 4  # of the evaluation texts, to be quick

Vectors = NDArray[np.float32]

pytestmark = pytest.mark.reference
x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="ONEDNN_MAX_CPU_ISA is for x86"
)


def english_and_code(texts: list[calibration.Text]) -> list[str]:
    return [text.text for text in texts if text.stratum == "en" or text.stratum.startswith("code-")]


TEXTS = english_and_code(calibration.evaluation())[::EVERY]


# ---- in a process of its own, whose environment says which CPU it is


def embed_here(folder: str, compute_types: str, out: str) -> None:
    """Keep the vectors of TEXTS that each side gives, and the passes that ours took, in an .npz file."""
    found: dict[str, Any] = {
        "alone": alone(Path(folder)),
        "simulated": alone(Path(folder), LP_TRANSFORMS_MODE="NO"),
    }
    for compute_type in compute_types.split(","):
        embedder = Embedder(folder, compute_type=compute_type, cache_dir=False)
        found[compute_type] = embedder.encode(TEXTS)
        found[f"{compute_type} passes"] = np.array(embedder.plan.passes)
    np.savez(out, **found)


def alone(folder: Path, **properties: str) -> Vectors:
    """Unit vectors (N, D) of TEXTS by OpenVINO alone on the static INT8 file, one text at a time."""
    manifest = read_manifest(folder)
    file = folder / "openvino" / ir.VARIANTS["int8"]
    run = openvino.Core().compile_model(file, "CPU", EXACT | properties)
    names = [port.get_any_name() for port in run.inputs]
    rows = []
    for ids in Tokenizer(folder, max_tokens=manifest.max_tokens).encode(TEXTS).ids:
        ids = ids[None]  # (1, T)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        hidden = run({name: feed[name] for name in names})[0]
        rows.append(pool(hidden, np.ones_like(ids), manifest.pooling)[0])
    vectors: Vectors = unit(np.array(rows)).astype(np.float32)
    return vectors


def embed_as(cpu: str | None, folder: Path, compute_types: str, scratch: Path) -> Mapping[str, Any]:
    """`embed_here` on a CPU with the instruction sets up to `cpu`; None: with all that this one has."""
    out = scratch / f"{cpu}.npz"
    code = "import sys; from tests.test_static_int8 import embed_here; embed_here(*sys.argv[1:])"
    environment = {key: value for key, value in os.environ.items() if key != "ONEDNN_MAX_CPU_ISA"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), compute_types, str(out)],
        env=environment if cpu is None else environment | {"ONEDNN_MAX_CPU_ISA": cpu},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        return dict(found)


# ---- real weights


@pytest.fixture(scope="module")
def shipped(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 as others ship it, and our int8_weights beside it."""
    from optimum.intel import OVModelForFeatureExtraction

    folder = without_weights(minilm, tmp_path_factory.mktemp("shipped") / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = OVModelForFeatureExtraction.from_pretrained(minilm, export=True, compile=False)
        exported.save_pretrained(folder / "openvino")
        quantize_stock(folder, english_and_code(calibration.builtin()))
    quantize_ours(folder, "int8_weights", Recipe())
    return folder


@pytest.fixture(scope="module")
def reference(minilm: Path) -> Vectors:
    """(N, D) unit vectors of TEXTS by sentence-transformers with torch."""
    from sentence_transformers import SentenceTransformer

    found: Vectors = SentenceTransformer(str(minilm), device="cpu").encode(TEXTS)
    return found


@pytest.fixture(scope="module")
def native(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    return embed_as(None, shipped, COMPUTE_TYPES, tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module", params=WITHOUT_INT8_DOT)
def emulated(
    request: pytest.FixtureRequest, shipped: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Any]:
    return embed_as(request.param, shipped, COMPUTE_TYPES, tmp_path_factory.mktemp("emulated"))


@pytest.mark.minilm
@pytest.mark.skipif(not machine().has_int8_dot, reason="INT8 sums saturate here")
def test_what_int8_dot_products_execute_is_what_the_file_says(
    native: Mapping[str, Any], reference: Vectors
) -> None:
    assert list(native["int8 passes"]) == ["int8_table"]
    assert sqnr(native["simulated"], native["alone"]) > 30
    assert sqnr(native["simulated"], native["int8"]) > 30
    assert sqnr(reference, native["int8"]) < 28  # next to the noise of the file itself, 30 dB is little


@x86
@pytest.mark.minilm
def test_without_int8_dot_products_ours_is_closer_than_the_file_executed_as_it_is(
    emulated: Mapping[str, Any], reference: Vectors
) -> None:
    assert list(emulated["int8 passes"]) == ["weight_only_execution", "int8_table"]
    ours, executed, simulated = (sqnr(reference, emulated[side]) for side in ("int8", "alone", "simulated"))
    assert executed < simulated - 2  # its sums saturate, so the emulation works
    assert ours > executed + 3
    assert ours > simulated + 0.5  # and closer than any CPU that quantizes activations


@x86
@pytest.mark.minilm
def test_weights_of_8_bits_give_the_same_vectors_on_every_cpu(
    native: Mapping[str, Any], emulated: Mapping[str, Any], reference: Vectors
) -> None:
    """int8_dynamic, too, where activations are quantized on INT8 dot products only."""
    assert sqnr(reference, native["int8_weights"]) > 31
    for compute_type in ("int8_weights", "int8_dynamic"):
        assert sqnr(native["int8_weights"], emulated[compute_type]) > 80  # float32 sums in another order


# ---- the exported ModernBERT, whose weights are random


@x86
def test_a_shipped_modernbert_takes_all_passes_and_runs_weight_only_without_int8_dot_products(
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "model"))
    there = embed_as("AVX2", folder, "int8,float32", tmp_path)
    assert list(there["int8 passes"]) == [
        "weight_only_execution",
        "int8_table",
        "cls_last_layer",
        "windowed_attention",
    ]
    reference = there["float32"]
    assert sqnr(reference, there["int8"]) > sqnr(reference, there["alone"]) + 10
