"""The folder that edge_embed did not make, tests/fixtures/modernbert_optimum: it is what its README says."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from openvino import Model

FOLDER = Path(__file__).parent / "fixtures/modernbert_optimum"
FLOAT, INT8 = "openvino_model.xml", "openvino_model_qint8_quantized.xml"
LAYERS = 6
VOCABULARY = 124

# Around half a window (8), a whole one, and well above both; padded against the longest of a row.
LENGTHS = [(1,), (2, 1), (7, 8, 9, 10), (15, 16, 17, 18, 1), (33, 64), (300, 5, 299), (2048,)]


def read(name: str) -> "Model":
    import openvino as ov

    return ov.Core().read_model(FOLDER / "openvino" / name)


def run(name: str, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """(B, T) i64 -> last_hidden_state (B, T, D), every number in float32 but for what FakeQuantize rounds."""
    import openvino as ov

    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "LP_TRANSFORMS_MODE": "NO",  # INT8 kernels differ from CPU to CPU
    }
    result: NDArray[np.float32] = ov.Core().compile_model(read(name), "CPU", properties)([ids, mask])[0]
    return result


def padded(lengths: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Seeded ids and their mask, both (B, T) i64; 0 pads."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(0).integers(5, VOCABULARY, mask.shape)
    return ids * mask, mask


def kinds(model: "Model") -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())


@pytest.mark.reference
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_float_ir_is_what_transformers_computes(lengths: tuple[int, ...]) -> None:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager").eval()
    ids, mask = padded(lengths)
    with torch.no_grad():
        output: Any = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    theirs = output.last_hidden_state.numpy()
    ours = run(FLOAT, ids, mask)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours[mask == 1], theirs[mask == 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [FLOAT, INT8])
def test_every_attention_reads_a_mask_that_the_graph_makes(name: str) -> None:
    model = read(name)
    attentions = [node for node in model.get_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    assert len(attentions) == LAYERS
    assert [port.get_any_name() for port in model.inputs] == ["input_ids", "attention_mask"]
    assert [port.get_any_name() for port in model.outputs] == ["last_hidden_state"]
    masks = {node.input_value(3).get_node().get_friendly_name() for node in attentions}
    assert len(masks) == 2  # one of the global layers, one of the local ones


def test_the_int8_twin_quantizes_weights_and_activations() -> None:
    assert kinds(read(FLOAT))["FakeQuantize"] == 0
    model = read(INT8)
    assert kinds(model)["FakeQuantize"] == 6 * LAYERS  # of activations; weights are stored as integers
    weights = [
        node
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "i8"
    ]
    assert len(weights) == 1 + 4 * LAYERS  # the token table; Wqkv, attn.Wo, Wi, mlp.Wo


def test_the_int8_twin_is_near_the_float_ir_and_not_the_same() -> None:
    ids, mask = padded((50, 50, 20))
    exact, rounded = (run(name, ids, mask)[mask == 1] for name in (FLOAT, INT8))
    cosine = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert 0.95 < cosine.mean() < 0.9999


def test_the_folder_is_small_enough_for_a_repository() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_500_000
