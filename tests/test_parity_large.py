"""Real size, minutes: the exact shape of the 311M Granite with random weights, built, against transformers.

The weights have outlier channels, but no meaning: this sees errors of arithmetic, not of retrieval.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from bench.shapes import DType, write_checkpoint
from edge_embed import Embedder
from edge_embed.checkpoint import open_weights, read_config
from edge_embed.graph import modernbert

NAME = "granite-embedding-311m-multilingual-r2"
VOCABULARY, LAYERS = 262_152, 22
PROPERTIES = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}

# One, the ends of the window's halves, of the windowed form's blocks, and where those overlap.
SHORT = (1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 191, 192, 193, 194, 255, 256, 257, 258)
LENGTHS = (*SHORT, 512, 1024, 4096)

# Padded in every mix: by one token and by many, with the longest a multiple of 32 or not, first or last.
BATCHES = (
    (1, 2),
    (128, 1),
    (64, 63, 65),
    (256, 127, 1),
    (130, 129, 66, 2),
    (192, 256, 191, 64, 1),
    (1, 258, 128, 194, 63, 257),
    (512, 130, 65, 256, 2, 193, 127),
    (255, 1, 66, 129, 258, 192, 63, 194),
    (1, 1024, 512, 257),
    (258, 4096),
)

CHILD = """
import sys
from pathlib import Path
from edge_embed.build import build

build(Path(sys.argv[1]))
if sys.platform == "linux":
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
"""

pytestmark = [pytest.mark.large]

Ids = NDArray[np.int64]
Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Built:
    """A checkpoint folder with the IR that a process of its own has built."""

    folder: Path
    peak: int | None  # bytes that the process held at most; None where the system does not tell

    @property
    def weights(self) -> int:
        return (self.folder / "model.safetensors").stat().st_size

    @property
    def ir(self) -> Path:
        return self.folder / "openvino/openvino_model.xml"


def built(folder: Path, dtype: DType) -> Built:
    write_checkpoint(NAME, folder, dtype=dtype)
    done = subprocess.run([sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Built(folder, int(done.stdout) * 1024 if done.stdout else None)


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("float32")
    yield built(folder, "float32")
    shutil.rmtree(folder)  # gigabytes, which pytest would keep for three runs


def texts() -> dict[int, Ids]:
    """One text of random tokens for each of LENGTHS: (T,)."""
    rng = np.random.default_rng(0)
    return {length: rng.integers(3, VOCABULARY, length) for length in LENGTHS}


def unit(pooled: Rows) -> Rows:
    """(..., D), each of norm 1."""
    rows: Rows = pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
    return rows


def vectors(hidden: NDArray[np.float32], lengths: Sequence[int]) -> Rows:
    """CLS and mean pooling with L2 norm in float64: (B, T, D) -> (B, 2, D)."""
    rows = zip(hidden.astype(np.float64), lengths, strict=True)
    return unit(np.array([(row[0], row[:length].mean(0)) for row, length in rows]))


@pytest.fixture(scope="module")
def expected(float32: Built) -> dict[int, Rows]:
    """The vectors (2, D) that transformers in float32, eager, gives each text alone."""
    import torch
    from transformers import ModernBertModel

    official = ModernBertModel.from_pretrained(
        float32.folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    found = {}
    for length, ids in texts().items():
        with torch.no_grad():
            hidden = official(input_ids=torch.from_numpy(ids[None])).last_hidden_state.numpy()
        found[length] = vectors(hidden, [length])[0]
    return found


def padded(lengths: Sequence[int]) -> tuple[Ids, Ids]:
    """The texts of these lengths as one batch, padded to the longest, and its mask: (B, T) each."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.zeros_like(mask)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = texts()[length]
    return ids, mask


def run(model: openvino.CompiledModel, lengths: Sequence[int]) -> Rows:
    """What a graph of token vectors gives, pooled: (B, 2, D)."""
    ids, mask = padded(lengths)
    hidden = model({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
    assert np.isfinite(hidden).all(), "rows of padding are not finite"
    return vectors(hidden, lengths)


@pytest.fixture(scope="module")
def ours(float32: Built) -> openvino.CompiledModel:
    return openvino.Core().compile_model(float32.ir, "CPU", PROPERTIES)


@pytest.mark.reference
def test_every_length_has_the_vectors_of_transformers(
    expected: dict[int, Rows], ours: openvino.CompiledModel
) -> None:
    for length in LENGTHS:
        np.testing.assert_allclose(
            run(ours, [length])[0], expected[length], rtol=0, atol=1e-5, err_msg=f"{length} tokens"
        )


@pytest.mark.reference
@pytest.mark.parametrize("lengths", BATCHES, ids=str)
def test_batches_of_mixed_lengths_have_the_vectors_of_transformers(
    expected: dict[int, Rows], ours: openvino.CompiledModel, lengths: Sequence[int]
) -> None:
    want = np.stack([expected[length] for length in lengths])
    np.testing.assert_allclose(run(ours, lengths), want, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def embedder(float32: Built) -> Embedder:
    return Embedder(float32.folder, compute_type="float32")


def test_the_passes_of_the_exact_shape_are_taken(embedder: Embedder) -> None:
    assert embedder.plan.passes == ("cls_last_layer", "windowed_attention")


@pytest.mark.reference
@pytest.mark.parametrize("lengths", [*((length,) for length in LENGTHS), *BATCHES], ids=str)
def test_after_the_passes_the_vectors_are_still_those_of_transformers(
    expected: dict[int, Rows], embedder: Embedder, lengths: Sequence[int]
) -> None:
    """As `encode` runs them: windows above the switch-over length, masks up to it."""
    got = embedder._runtime.run(*padded(lengths))
    want = np.stack([expected[length][0] for length in lengths])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    used = "windowed" if max(lengths) > 512 else "plain"
    assert used in {form for form, *_ in embedder._runtime._pools}


@pytest.mark.reference
@pytest.mark.parametrize(
    "lie",
    [
        {"local_attention": 126},
        {"local_attention": 100_000},
        {"global_rope_theta": 10_000.0},
        {"local_rope_theta": 80_000.0},
        {"global_attn_every_n_layers": 4},
        {"hidden_activation": "gelu_pytorch_tanh"},
    ],
    ids=str,
)
def test_a_config_that_lies_about_the_weights_is_seen_by_these_tests(
    expected: dict[int, Rows], float32: Built, lie: dict[str, object]
) -> None:
    config = read_config(float32.folder)
    lying = dataclasses.replace(config, values={**config.values, **lie})
    model = modernbert.build(lying, open_weights(float32.folder))
    got = run(openvino.Core().compile_model(model, "CPU", PROPERTIES), [258, 130])
    want = np.stack([expected[258], expected[130]])
    assert np.abs(got - want).max() > 1e-5


def test_every_rope_attention_and_linear_layer_is_fused(ours: openvino.CompiledModel) -> None:
    nodes = ours.get_runtime_model().get_ops()
    kinds = Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)
    assert (kinds["RoPE"], kinds["FullyConnected"]) == (2 * LAYERS, 4 * LAYERS)
    assert kinds["Subgraph"] + kinds["ScaledDotProductAttention"] + kinds["ScaledAttn"] >= LAYERS
    assert not kinds.keys() & {"Softmax", "SoftMax", "MatMul", "ReduceMean"}, kinds


def test_the_weights_have_outlier_channels(float32: Built) -> None:
    inner = json.loads((float32.folder / "config.json").read_text())["intermediate_size"]
    wide = open_weights(float32.folder).take("layers.11.mlp.Wi.weight", (2 * inner, 768))
    norms = np.linalg.norm(wide[inner:], axis=1)
    assert norms.max() > 10 * np.median(norms)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_build_holds_less_than_twice_its_float32_checkpoint(float32: Built) -> None:
    assert float32.peak is not None
    assert float32.peak < 2 * float32.weights


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_build_from_bfloat16_holds_the_widened_weights_but_not_the_narrow_ones(tmp_path: Path) -> None:
    narrow = built(tmp_path, "bfloat16")
    wide = narrow.ir.with_suffix(".bin").stat().st_size
    shutil.rmtree(tmp_path)
    assert narrow.peak is not None
    assert narrow.peak < 1.25 * wide  # both together would be 1.5
