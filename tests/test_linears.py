"""graph/linears.py on tiny real models: splitting is exact, and what INT8 then loses is less."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset13

from edge_embed import ir
from edge_embed.build import build
from edge_embed.graph import head, linears, passes
from tests.checkpoints import tiny_bert
from tests.modernbert_checkpoints import tiny_modernbert

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
IDS = np.array([[2, 7, 5, 9, 11, 6, 3]])


@pytest.fixture(scope="module", params=["bert", "modernbert"])
def xml(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 IR of a tiny model."""
    make = {"bert": tiny_bert, "modernbert": tiny_modernbert}[request.param]
    folder = build(make(tmp_path_factory.mktemp("linears") / "model"))
    return folder / "openvino" / ir.VARIANTS["float32"]


def read(xml: Path) -> openvino.Model:
    model = ir.read(openvino.Core(), xml)
    head.standardize(model)
    return model


def run(model: openvino.Model, ids: NDArray[np.int64] = IDS) -> list[NDArray[Any]]:
    names = [port.get_any_name() for port in model.inputs]
    feed = {name: np.zeros_like(ids) if name == "token_type_ids" else np.ones_like(ids) for name in names}
    compiled = openvino.Core().compile_model(model, "CPU", FLOAT32)
    return list(compiled(feed | {"input_ids": ids}).to_dict().values())


def all_sources(model: openvino.Model) -> dict[tuple[str, int], NDArray[np.int64]]:
    """Two channels of every input of a linear."""
    return {linears.source(node): np.array([1, 4]) for node in linears.linears(model)}


def small_model(weight: NDArray[np.float32], *, transposed: bool) -> openvino.Model:
    x = opset13.parameter([-1, -1, 6], np.float32, name="x")
    product = opset13.matmul(x, opset13.constant(weight), False, transposed, name="product")
    return openvino.Model([opset13.result(product)], [x], "small")


def test_every_linear_of_an_encoder_is_found(xml: Path) -> None:
    found = [node.get_friendly_name() for node in linears.linears(read(xml))]
    layers = 1 + max(int(part) for name in found for part in name.split(".") if part.isdigit())
    of_one_layer = 4 if "mlp" in found[-1] else 6
    assert len(found) == of_one_layer * layers
    assert len(set(found)) == len(found)


def test_magnitudes_are_the_largest_of_each_channel(xml: Path) -> None:
    model = read(xml)
    read_by = {linears.source(node): node.input_value(0) for node in linears.linears(model)}
    watched = openvino.Model([opset13.result(x) for x in read_by.values()], model.get_parameters(), "watched")
    for found, inputs in zip(run(linears.magnitudes(model)), run(watched), strict=True):
        np.testing.assert_array_equal(found, np.abs(inputs).reshape(-1, inputs.shape[-1]).max(0))


def test_splitting_changes_nothing_in_float32(xml: Path) -> None:
    model = read(xml)
    added = linears.split_outliers(model, all_sources(model))
    linears.drop_masks(model)
    assert len(added) == len(linears.linears(read(xml)))
    np.testing.assert_allclose(run(model)[0], run(read(xml))[0], atol=2e-6)


def test_before_the_masks_are_dropped_the_old_products_do_not_see_the_channels(xml: Path) -> None:
    model = read(xml)
    channels = all_sources(model)
    linears.split_outliers(model, channels)
    apart = [node for node in linears.linears(model) if not node.get_friendly_name().endswith("/outliers")]
    seen = run(linears.magnitudes(model.clone()))
    order = list(dict.fromkeys(map(linears.source, linears.linears(model))))
    for node in apart:
        assert (seen[order.index(linears.source(node))][[1, 4]] == 0).all()
        weight = linears.stored(node.input_value(1))
        assert not weight[:, [1, 4]].any()
        assert weight.any()


def test_names_of_the_old_products_stay_and_those_of_the_new_say_what_they_are(xml: Path) -> None:
    model = read(xml)
    before = [node.get_friendly_name() for node in linears.linears(model)]
    added = linears.split_outliers(model, all_sources(model))
    after = [node.get_friendly_name() for node in linears.linears(model)]
    assert set(after) == {*before, *added}
    assert added == [f"{name}/outliers" for name in before]


@pytest.mark.parametrize("transposed", [False, True])
def test_both_ways_of_storing_a_weight_are_split(transposed: bool) -> None:
    numbers = np.random.default_rng(0)
    weight = numbers.normal(size=(6, 3)).astype(np.float32)
    x = numbers.normal(size=(2, 4, 6)).astype(np.float32)
    model = small_model(weight.T.copy() if transposed else weight, transposed=transposed)
    assert linears.split_outliers(model, {("x", 0): np.array([0, 5])}) == ["product/outliers"]
    linears.drop_masks(model)
    found = openvino.Core().compile_model(model, "CPU", FLOAT32)(x)[0]
    np.testing.assert_allclose(found, x @ weight, atol=1e-6)


def test_a_half_precision_weight_is_split(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    openvino.save_model(small_model(weight, transposed=True), tmp_path / "half.xml", compress_to_fp16=True)
    model = openvino.Core().read_model(tmp_path / "half.xml")
    assert len(linears.split_outliers(model, {("x", 0): np.array([2])})) == 1
    (side,) = (node for node in linears.linears(model) if node.get_friendly_name() == "product/outliers")
    np.testing.assert_array_equal(
        side.input_value(1).get_node().get_data()[0], weight[:, 2].astype(np.float16)
    )


def test_a_linear_that_reads_no_outliers_is_left_as_it_is(xml: Path) -> None:
    model = read(xml)
    nothing = {source: np.array([], np.int64) for source in all_sources(model)}
    assert linears.split_outliers(model, nothing) == []
    assert len(model.get_ops()) == len(read(xml).get_ops())


@pytest.mark.parametrize(
    ("most", "ratio", "expected"),
    [
        (8, 3.0, [1, 4]),
        (1, 3.0, [4]),
        (8, 0.0, [0, 1, 2, 3, 4]),
        (2, 0.0, [1, 4]),
        (0, 0.0, []),
        (8, 99.0, []),
    ],
)
def test_outliers_are_the_largest_above_the_ratio(most: int, ratio: float, expected: list[int]) -> None:
    magnitude = np.array([1, 4, 0.5, 1.2, 9], np.float32)  # median 1.2
    assert linears.outliers(magnitude, most, ratio).tolist() == expected


def test_the_last_layer_for_one_token_goes_through_split_linears(tmp_path: Path) -> None:
    xml = build(tiny_modernbert(tmp_path / "model")) / "openvino" / ir.VARIANTS["float32"]
    model = read(xml)
    linears.split_outliers(model, all_sources(model))
    linears.drop_masks(model)
    assert passes.cls_last_layer(model, head.standardize(model)) is None
    found = run(model)[0]
    assert found.shape[1] == 1
    np.testing.assert_allclose(found[:, 0], run(read(xml))[0][:, 0], atol=2e-6)


def with_quantizer(*, two: bool) -> openvino.Model:
    """x -> FakeQuantize -> one product, or two."""
    x = opset13.parameter([-1, -1, 6], np.float32, name="x")
    low, high = opset13.constant(np.float32(-1)), opset13.constant(np.float32(1))
    coarse = opset13.fake_quantize(x, low, high, low, high, 256, name="quantizer")
    weight = opset13.constant(np.eye(6, dtype=np.float32))
    names = ("a", "b") if two else ("a",)
    products = [opset13.matmul(coarse, weight, False, False, name=name) for name in names]
    return openvino.Model([opset13.result(product) for product in products], [x], "quantized")


def test_quantized_inputs_groups_the_linears_that_share_a_quantizer() -> None:
    ((quantizer, names),) = linears.quantized_inputs(with_quantizer(two=True)).items()
    assert (quantizer, sorted(names)) == ("quantizer", ["a", "b"])


def test_activations_are_left_alone_for_the_named_linear_only() -> None:
    model = with_quantizer(two=True)
    linears.leave_activations(model, ["b"])
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 1, 6) + np.float32(1e-4)
    a, b = openvino.Core().compile_model(model, "CPU", FLOAT32 | {"LP_TRANSFORMS_MODE": "NO"})(x).values()
    np.testing.assert_array_equal(b, x)
    assert np.abs(a - x).max() > 1e-5


def smoothed(weight: NDArray[np.float32], scale: NDArray[np.float32], *, transposed: bool) -> openvino.Model:
    """x -> the scale of SmoothQuant -> FakeQuantize -> a product with a weight that is divided by it."""
    x = opset13.parameter([-1, -1, 6], np.float32, name="x")
    scaled = opset13.multiply(x, opset13.constant(scale[None, None]), name=f"x{linears.SMOOTHED}")
    low, high = opset13.constant(np.float32(-9)), opset13.constant(np.float32(9))
    coarse = opset13.fake_quantize(scaled, low, high, low, high, 256)
    held = weight / (scale if transposed else scale[:, None])
    product = opset13.matmul(coarse, opset13.constant(held), False, transposed, name="product")
    return openvino.Model([opset13.result(product)], [x], "smoothed")


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_is_brought_behind_the_scale_of_smooth_quant(transposed: bool) -> None:
    numbers = np.random.default_rng(0)
    weight = numbers.normal(size=(3, 6) if transposed else (6, 3)).astype(np.float32)
    model = smoothed(weight, numbers.uniform(0.1, 9, 6).astype(np.float32), transposed=transposed)
    (node,) = linears.linears(model)
    for apart in ((), (1, 4)):
        held = linears.in_place_of(node, opset13.constant(weight).output(0), apart)
        found = run_constant(held)
        expected = np.array(node.input_value(1).get_node().get_data())
        expected[(slice(None), list(apart)) if transposed else list(apart)] = 0
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def run_constant(output: openvino.Output) -> NDArray[np.float32]:
    model = openvino.Model([opset13.result(output)], [], "constant")
    found: NDArray[np.float32] = openvino.Core().compile_model(model, "CPU", FLOAT32)([])[0]
    return found


def test_the_channels_that_were_kept_apart_are_read_from_the_graph(xml: Path) -> None:
    model = read(xml)
    assert linears.kept_apart(model) == {}
    names = [node.get_friendly_name() for node in linears.linears(model)]
    linears.split_outliers(model, all_sources(model))
    linears.drop_masks(model)
    assert linears.kept_apart(model) == {name: [1, 4] for name in names}


def test_a_weight_is_quantized_when_it_is_stored_in_8_bits_or_rounded() -> None:
    numbers = np.ones((3, 6), np.float32)
    one = opset13.constant(np.float32(1))
    coarse = opset13.fake_quantize(opset13.constant(numbers), one, one, one, one, 255)
    for dtype, quantized in ((np.int8, True), (np.uint8, True), (np.float16, False), (np.float32, False)):
        unpacked = opset13.convert(opset13.constant(numbers.astype(dtype)), "f32")
        scaled = opset13.multiply(opset13.subtract(unpacked, one), one)
        assert linears.is_quantized(scaled.output(0)) is quantized
    assert linears.is_quantized(coarse.output(0))
