"""graph/passes.py: what a pass changes is the cost; the vectors are those of the untouched graph."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset13

from edge_embed.build import build
from edge_embed.graph import head, passes
from edge_embed.graph.passes import Layers
from tests.checkpoints import tiny_bert, tiny_roberta
from tests.modernbert_checkpoints import tiny_modernbert

if TYPE_CHECKING:
    from openvino import CompiledModel, Model

FIXTURE = Path(__file__).parent / "fixtures/modernbert_optimum"
FLOAT, INT8 = "openvino/openvino_model.xml", "openvino/openvino_model_qint8_quantized.xml"
FIXTURE_LAYERS = Layers((False, True, True, False, True, True), 8)

F32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
TOLERANCE = 1e-5  # of a component of a unit vector

# Around half a window of 128, a whole one, blocks of 128 and two blocks; long; padded in every mix.
ALONE = (1, 2, *range(63, 67), *range(127, 131), *range(191, 195), *range(255, 259), 512, 1024)
MIXES = ((63, 1), (129, 128, 2, 127), (258, 193, 64, 1, 255, 66, 130, 3), (512, 500), (1024, 5, 700))

Edit = Callable[["Model", head.Ports], str | None]


def local_config(folder: Path) -> Layers:
    config = json.loads((folder / "config.json").read_text())
    kinds = tuple(kind == "sliding_attention" for kind in config["layer_types"])
    return Layers(kinds, config["local_attention"] // 2)


def read(file: Path) -> "Model":
    return openvino.Core().read_model(file)


def compiled(file: Path, *edits: Edit, pooling: str = "cls", simulate: bool = False) -> "CompiledModel":
    """The model of a file after some passes, pooled.

    simulate  quantized activations stay as FakeQuantize in float32, whose INT8 kernels differ from CPU to CPU
    """
    model = read(file)
    ports = head.standardize(model)
    for edit in edits:
        assert edit(model, ports) is None
    whole = head.attach(model, ports, [pooling], normalize=True)
    return openvino.Core().compile_model(
        whole, "CPU", F32 | ({"LP_TRANSFORMS_MODE": "NO"} if simulate else {})
    )


def windowed(layers: Layers) -> Edit:
    return lambda model, ports: passes.windowed_attention(model, ports, layers)


def weight_only(model: "Model", ports: head.Ports) -> str | None:
    return passes.weight_only_execution(model)


def batch(lengths: Sequence[int], vocabulary: int = 120) -> dict[str, NDArray[np.int64]]:
    """Seeded ids (B, T), padded with 0, and their mask."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(sum(lengths)).integers(5, vocabulary, mask.shape)
    return {"input_ids": ids * mask, "attention_mask": mask}


def embed(model: "CompiledModel", lengths: Sequence[int]) -> NDArray[np.float32]:
    feed = batch(lengths)
    if len(model.inputs) == 3:
        feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
    rows: NDArray[np.float32] = model(feed)[0].copy()
    return rows


def kinds(model: "CompiledModel") -> Counter[str]:
    """Nodes by the CPU plugin's own names for what it runs."""
    return Counter(
        node.get_rt_info()["layerType"].astype(str) for node in model.get_runtime_model().get_ops()
    )


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Granite's window of 128 tokens on a tiny model: global, local, local, global."""
    folder = tmp_path_factory.mktemp("wide")
    return build(tiny_modernbert(folder, local_attention=128))


@pytest.fixture(scope="module")
def plain_wide(wide: Path) -> "CompiledModel":
    return compiled(wide / FLOAT)


@pytest.fixture(scope="module")
def all_wide(wide: Path) -> "CompiledModel":
    return compiled(wide / FLOAT, passes.cls_last_layer, windowed(local_config(wide)))


# Windows.


@pytest.mark.parametrize("lengths", [*((n,) for n in ALONE), *MIXES], ids=str)
def test_windows_and_one_row_give_the_vectors_of_masks(
    plain_wide: "CompiledModel", all_wide: "CompiledModel", lengths: tuple[int, ...]
) -> None:
    np.testing.assert_allclose(embed(all_wide, lengths), embed(plain_wide, lengths), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("reach", [1, 8, 63, 64])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 400])
def test_any_reach_up_to_half_a_block_is_exact(tmp_path: Path, reach: int, length: int) -> None:
    folder = build(tiny_modernbert(tmp_path, local_attention=2 * reach))
    layers = local_config(folder)
    assert layers.reach == reach
    expected = embed(compiled(folder / FLOAT), [length, 1])
    np.testing.assert_allclose(
        embed(compiled(folder / FLOAT, windowed(layers)), [length, 1]), expected, rtol=0, atol=TOLERANCE
    )


def test_token_vectors_behind_windows_are_those_behind_masks(wide: Path) -> None:
    """CLS reads little of the later windows; here every token is looked at."""

    def tokens(*edits: Edit) -> NDArray[np.float32]:
        model = read(wide / FLOAT)
        ports = head.standardize(model)
        for edit in edits:
            assert edit(model, ports) is None
        request = openvino.Core().compile_model(head.token_vectors(model, ports), "CPU", F32)
        rows: NDArray[np.float32] = request(batch([700, 259]))[0].copy()
        return rows

    seen = batch([700, 259])["attention_mask"] == 1
    ours, theirs = tokens(windowed(local_config(wide))), tokens()
    np.testing.assert_allclose(ours[seen], theirs[seen], rtol=0, atol=5e-5)  # not unit vectors: norm 8
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("last", [True, False], ids=["last layer local", "last layer global"])
def test_a_last_layer_of_either_kind_is_cut_to_one_row(tmp_path: Path, last: bool) -> None:
    folder = build(tiny_modernbert(tmp_path, num_hidden_layers=3 if last else 4))
    layers = local_config(folder)
    assert layers.local[-1] is last
    changed = compiled(folder / FLOAT, passes.cls_last_layer, windowed(layers))
    expected = compiled(folder / FLOAT)
    for lengths in ((9,), (17, 40, 3), (300, 200)):
        np.testing.assert_allclose(embed(changed, lengths), embed(expected, lengths), rtol=0, atol=TOLERANCE)


def largest(model: "Model", length: int) -> int:
    """Most values in any tensor of the graph for one text of this length; weights left out."""
    model.reshape({port: [1, length] for port in model.inputs})
    sizes = [
        int(np.prod(port.get_shape()))
        for node in model.get_ops()
        if node.get_type_name() != "Constant"
        for port in node.outputs()
        if port.get_partial_shape().is_static
    ]
    assert len(sizes) > 100
    return max(sizes)


def test_no_tensor_of_the_windowed_form_grows_with_the_square_of_the_length(wide: Path) -> None:
    length = 8192
    model = read(wide / FLOAT)
    assert largest(model, length) >= length * length  # the mask of local layers, and this test would see it

    model = read(wide / FLOAT)
    assert passes.windowed_attention(model, head.standardize(model), local_config(wide)) is None
    assert largest(model, length) < length * 1024


def test_attention_and_rope_stay_fused(wide: Path) -> None:
    """RoPE is a node of its own; attention is one ScaledDotProductAttention or one Subgraph."""
    masks = kinds(compiled(wide / FLOAT))
    windows = kinds(compiled(wide / FLOAT, windowed(local_config(wide))))
    both = kinds(compiled(wide / FLOAT, passes.cls_last_layer, windowed(local_config(wide))))

    assert masks["RoPE"] == windows["RoPE"] == 2 * 4
    assert both["RoPE"] == 2 * 4
    for found in (masks, windows, both):
        assert found["Subgraph"] + found["ScaledDotProductAttention"] + found["ScaledAttn"] >= 4
        assert not found.keys() & {"Softmax", "SoftMax"}


# One row of the last layer.


@pytest.mark.parametrize("make", [tiny_bert, tiny_roberta, tiny_modernbert], ids=lambda make: make.__name__)
def test_one_row_of_the_last_layer_serves_cls_pooling(make: Callable[[Path], Path], tmp_path: Path) -> None:
    file = build(make(tmp_path)) / FLOAT
    changed, expected = compiled(file, passes.cls_last_layer), compiled(file)
    for lengths in ((1,), (12, 5), (64, 63, 2), (300,)):
        np.testing.assert_allclose(embed(changed, lengths), embed(expected, lengths), rtol=0, atol=TOLERANCE)


def rows_of_products(model: "Model") -> Counter[int]:
    """How many rows of the graph's products with weights are computed for one text of 50 tokens."""
    model.reshape({port: [1, 50] for port in model.inputs})
    return Counter(
        node.get_output_shape(0)[1]
        for node in model.get_ops()
        if node.get_type_name() == "MatMul" and passes.is_constant(node.input_value(1))
    )


def test_the_last_layer_multiplies_one_row_behind_its_keys_and_values(wide: Path) -> None:
    model = read(wide / FLOAT)
    assert rows_of_products(model) == {50: 16}

    model = read(wide / FLOAT)
    assert passes.cls_last_layer(model, head.standardize(model)) is None
    assert rows_of_products(model) == {50: 13, 1: 3}  # Wo, Wi and Wo of the MLP; Wqkv serves all tokens


# Graphs of others.


@pytest.mark.parametrize("lengths", [(3,), (17, 16, 9), (130, 64), (300, 1)], ids=str)
def test_passes_hold_on_a_traced_graph(lengths: tuple[int, ...]) -> None:
    file = FIXTURE / FLOAT
    changed = compiled(file, passes.cls_last_layer, windowed(FIXTURE_LAYERS))
    np.testing.assert_allclose(
        embed(changed, lengths), embed(compiled(file), lengths), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("lengths", [(3,), (17, 16, 9), (130, 64), (300, 1)], ids=str)
def test_passes_hold_on_its_quantized_twin(lengths: tuple[int, ...]) -> None:
    """Without activation quantizers, which turn the last bit of a float into a step of 8 bits."""
    file = FIXTURE / INT8
    edits = (weight_only, passes.int8_table, passes.cls_last_layer, windowed(FIXTURE_LAYERS))
    np.testing.assert_allclose(
        embed(compiled(file, *edits), lengths),
        embed(compiled(file, weight_only), lengths),
        rtol=0,
        atol=TOLERANCE,
    )


def test_quantizers_that_stay_are_where_they_were() -> None:
    """6 to a layer; the passes neither lose one nor quantize anything anew."""
    model = read(FIXTURE / INT8)
    ports = head.standardize(model)
    before = len(passes.activation_quantizers(model))
    assert before == 6 * 6
    for edit in (passes.int8_table, passes.cls_last_layer, windowed(FIXTURE_LAYERS)):
        assert edit(model, ports) is None
    assert len(passes.activation_quantizers(model)) == before


# Static INT8.


def test_weight_only_execution_is_closer_to_float32_than_int8(tmp_path: Path) -> None:
    lengths = (40, 33, 12, 5)
    reference = embed(compiled(FIXTURE / FLOAT), lengths)
    executed = embed(compiled(FIXTURE / INT8, simulate=True), lengths)
    weights = embed(compiled(FIXTURE / INT8, weight_only), lengths)
    assert np.abs(weights - reference).max() < np.abs(executed - reference).max() / 2


def test_weight_only_execution_leaves_no_quantizer_and_all_int8_weights() -> None:
    model = read(FIXTURE / INT8)

    def int8_weights() -> int:
        return sum(
            node.get_type_name() == "Constant" and node.get_element_type().get_size() == 1
            for node in model.get_ops()
        )

    before = int8_weights()
    assert passes.weight_only_execution(model) is None
    assert "FakeQuantize" not in {node.get_type_name() for node in model.get_ops()}
    assert int8_weights() == before >= 4 * 6


def float_tables(model: "CompiledModel", rows: int) -> int:
    """Stored tables of so many rows that the plugin holds in float32."""
    return sum(
        node.get_rt_info()["layerType"].astype(str) == "Const"
        and node.get_output_partial_shape(0)[0] == rows
        and node.get_output_element_type(0) == openvino.Type.f32
        and node.get_output_size() > 0
        and np.prod(node.get_output_shape(0)) > rows
        for node in model.get_runtime_model().get_ops()
    )


def test_the_int8_table_is_not_unpacked() -> None:
    rows = 124
    assert float_tables(compiled(FIXTURE / INT8), rows) == 1  # what the plugin does, and this test would see
    assert float_tables(compiled(FIXTURE / INT8, passes.int8_table), rows) == 0


def test_rows_of_the_int8_table_are_the_same_numbers() -> None:
    lengths = (30, 7)
    np.testing.assert_array_equal(
        embed(compiled(FIXTURE / INT8, passes.int8_table, simulate=True), lengths),
        embed(compiled(FIXTURE / INT8, simulate=True), lengths),
    )


@pytest.mark.parametrize("asymmetric", [False, True])
def test_a_table_with_zero_points_is_looked_up_row_by_row(asymmetric: bool) -> None:
    chosen = np.random.default_rng(0)
    codes = chosen.integers(0, 255, (50, 8)).astype(np.uint8)
    scales = chosen.uniform(0.5, 2, (50, 1)).astype(np.float32)
    zeros = chosen.integers(100, 150, (50, 1)).astype(np.uint8)
    ids, mask = (opset13.parameter([-1, -1], np.int64, name=name) for name in ("input_ids", "attention_mask"))
    for port in (ids, mask):
        port.output(0).get_tensor().set_names({port.get_friendly_name()})
    table = opset13.convert(opset13.constant(codes), "f32")
    if asymmetric:
        table = opset13.subtract(table, opset13.convert(opset13.constant(zeros), "f32"))
    table = opset13.multiply(table, opset13.constant(scales))
    rows = opset13.gather(table, ids, opset13.constant(np.int64(0)))
    x = opset13.multiply(
        rows, opset13.unsqueeze(opset13.convert(mask, "f32"), opset13.constant(np.array([2])))
    )
    result = opset13.result(x)
    result.output(0).get_tensor().set_names({"last_hidden_state"})
    model = openvino.Model([result], [ids, mask], "table")

    feed = {"input_ids": np.array([[3, 49, 0]]), "attention_mask": np.ones((1, 3), np.int64)}
    expected = openvino.Core().compile_model(model, "CPU", F32)(feed)[0].copy()
    assert passes.int8_table(model, head.standardize(model)) is None
    gathered = [n.input_value(0).get_element_type() for n in model.get_ops() if n.get_type_name() == "Gather"]
    assert openvino.Type.u8 in gathered
    np.testing.assert_array_equal(openvino.Core().compile_model(model, "CPU", F32)(feed)[0], expected)


# What does not match is told, and left alone.


def unchanged(model: "Model", edit: Edit) -> str:
    """The reason why a pass does not match; the graph stays as it was."""
    before = [node.get_friendly_name() for node in model.get_ordered_ops()]
    why = edit(model, head.standardize(model))
    assert why is not None
    assert [node.get_friendly_name() for node in model.get_ordered_ops()] == before
    return why


def test_a_float_graph_has_nothing_to_bypass_and_no_int8_table(wide: Path) -> None:
    assert unchanged(read(wide / FLOAT), weight_only) == "no activation is quantized"
    assert unchanged(read(wide / FLOAT), passes.int8_table) == "the token table is not stored in 8 bits"


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        (Layers((True, True), 8), "the graph has 4 attention ops, config.json tells of 2 layers"),
        (Layers((False,) * 4, 8), "every layer looks at all tokens"),
        (Layers((True,) * 4, 65), "the window of 130 tokens is wider than a block of 128"),
    ],
)
def test_windows_that_do_not_fit_are_refused(wide: Path, layers: Layers, why: str) -> None:
    assert unchanged(read(wide / FLOAT), windowed(layers)) == why


def test_attention_in_small_ops_is_not_recognised(wide: Path, tmp_path: Path) -> None:
    """As an exporter without scaled_dot_product_attention writes it."""
    from openvino.passes import Manager

    shutil.copytree(wide, tmp_path / "copy")
    model = read(tmp_path / "copy" / FLOAT)
    for node in passes.attention_nodes(model):
        query, key, value, bias, scale = node.input_values()
        scores = opset13.matmul(opset13.multiply(query, scale), key, transpose_a=False, transpose_b=True)
        weights = opset13.softmax(opset13.add(scores, bias), -1)
        passes.move_consumers(node.output(0), opset13.matmul(weights, value, False, False).output(0))
    Manager().run_passes(model)
    no_op = "no scaled-dot-product attention op is in the graph"
    assert unchanged(model, passes.cls_last_layer) == no_op
    assert "has 0 attention ops" in unchanged(model, windowed(local_config(wide)))


def test_an_op_that_mixes_tokens_behind_the_last_attention_is_named(wide: Path) -> None:
    model = read(wide / FLOAT)
    result = model.get_results()[0]
    mixed = opset13.reverse_sequence(
        result.input_value(0),
        opset13.convert(opset13.reduce_sum(model.input("attention_mask"), np.array([1])), "i32"),
        0,
        1,
    )
    result.input(0).replace_source_output(mixed.output(0))
    assert (
        unchanged(model, passes.cls_last_layer)
        == "between the last attention and the output is ReverseSequence"
    )
