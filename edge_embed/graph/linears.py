"""Linear layers under INT8: their outlier channels apart in float32, or their activations left unquantized.

Edits a float32 graph before NNCF quantizes it, and the result after. Knows graphs; not NNCF, nor texts.

A tensor has one activation range, and a few channels of an encoder are 10 times larger than all others: they
set the step that all share. `split_outliers` computes their part of the product in float32. What remains is
quantized with its own range: it is calibrated without them, and later they meet columns of zeros, so that it
does not matter that they are clipped.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_embed.graph import ops
from edge_embed.graph.passes import constant_values, is_constant, move_consumers

if TYPE_CHECKING:
    from openvino import Model, Node, Output

# What is added to a linear's name, for the ops beside it: all have names, as NNCF makes others from them.
MASK, GATHERED, OUTLIERS, SUM = "/without_outliers", "/gathered", "/outliers", "/with_outliers"

# How NNCF ends the name of the scale that SmoothQuant puts before a linear.
SMOOTHED = "/nncf_smooth_quant"


def linears(model: "Model") -> "list[Node]":
    """The products of activations (..., D_in) with a stored weight of two axes, in order."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_a"]:
            x, weight = node.input_values()
            if is_constant(weight) and weight.get_partial_shape().rank == 2 and not is_constant(x):
                found.append(node)
    return found


def source(node: "Node") -> tuple[str, int]:
    """What a linear reads; query, key and value read the same."""
    output = node.input_value(0)
    return output.get_node().get_friendly_name(), output.get_index()


def magnitudes(model: "Model") -> "Model":
    """The model with other outputs: for each different input of a linear, max |x| over B and T, (D_in,).

    Output i is that of the i-th of `dict.fromkeys(map(source, linears(model)))`.
    """
    from openvino import Model, opset13

    read = {source(node): node.input_value(0) for node in linears(model)}
    results = []
    for output in read.values():
        axes = range(output.get_partial_shape().rank.get_length() - 1)
        results.append(opset13.result(opset13.reduce_max(opset13.absolute(output), ops.integers(*axes))))
    return Model(results, [port.get_node() for port in model.inputs], "magnitudes")


def outliers(magnitude: NDArray[np.float32], most: int, ratio: float) -> NDArray[np.int64]:
    """The channels (k,) to keep apart, ascending: the `most` largest above `ratio` times the median."""
    large = np.flatnonzero(magnitude > ratio * np.median(magnitude))
    return np.sort(large[np.argsort(-magnitude[large], kind="stable")[:most]])


def split_outliers(model: "Model", channels: Mapping[tuple[str, int], NDArray[np.int64]]) -> list[str]:
    """Compute the given input channels of each linear by a product of their own: exact in float32.

    channels  `source` -> channels (k,); linears that read something else stay as they are
    returns   the names of the added products, which must not be quantized

    The old product keeps its name, zeros in these rows of its weight, and a mask over these channels of its
    input, so that ranges are calibrated without them; `drop_masks` takes it out afterwards.
    """
    from openvino import opset13

    added = []
    shared: dict[tuple[str, int], tuple[Node, Node]] = {}
    for node in linears(model):
        key = source(node)
        chosen = channels.get(key, np.array([], np.int64))
        if not len(chosen):
            continue
        name, x = node.get_friendly_name(), node.input_value(0)
        transposed = node.get_attributes()["transpose_b"]
        weight = stored(node.input_value(1))  # (D_out, D_in) where transposed
        if key not in shared:
            kept = np.ones(weight.shape[1 if transposed else 0], np.float32)
            kept[chosen] = 0
            numbers = opset13.constant(chosen, name=name + GATHERED + "/channels")
            axis = opset13.constant(np.int64(-1), name=name + GATHERED + "/axis")
            gathered = opset13.gather(x, numbers, axis, name=name + GATHERED)
            mask = opset13.multiply(x, ops.constant(kept, f"{name}{MASK}/kept"), name=name + MASK)
            shared[key] = mask, gathered
        masked, gathered = shared[key]
        rest = weight.copy()
        rest[(slice(None), chosen) if transposed else chosen] = 0
        apart = weight[:, chosen].T if transposed else weight[chosen]  # (k, D_out)
        label = node.input_value(1).get_node().get_friendly_name()
        main = opset13.matmul(masked, ops.constant(rest, label), transpose_a=False, transpose_b=transposed)
        side = opset13.matmul(
            gathered,
            ops.constant(np.ascontiguousarray(apart), label + OUTLIERS),
            transpose_a=False,
            transpose_b=False,
            name=name + OUTLIERS,
        )
        node.set_friendly_name(name + "/before")  # it goes; two nodes of one name would be renamed
        main.set_friendly_name(name)
        move_consumers(node.output(0), opset13.add(main, side, name=name + SUM).output(0))
        added.append(name + OUTLIERS)
    model.validate_nodes_and_infer_types()
    return added


def stored(output: "Output") -> NDArray[np.float32]:
    """The numbers of a weight that may be stored in half precision."""
    node = output.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    values: NDArray[np.float32] = np.asarray(node.get_data()).astype(np.float32)
    return values


def drop_masks(model: "Model") -> None:
    """Let the outlier channels into the quantized products, whose weights have zeros for them."""
    for node in model.get_ops():
        if node.get_type_name() == "Multiply" and node.get_friendly_name().endswith(MASK):
            move_consumers(node.output(0), node.input_value(0))
    model.validate_nodes_and_infer_types()


def quantized_inputs(model: "Model") -> dict[str, tuple[str, ...]]:
    """The quantizers that linears read -> the names of these linears, in order."""
    found: dict[str, tuple[str, ...]] = {}
    for node in linears(model):
        x = node.input_value(0).get_node()
        if x.get_type_name() == "FakeQuantize":
            found[x.get_friendly_name()] = (
                *found.get(x.get_friendly_name(), ()),
                node.get_friendly_name(),
            )
    return found


def leave_activations(model: "Model", names: Collection[str]) -> None:
    """Take the quantizer off the input of the linears so named; their weights stay in INT8."""
    for node in linears(model):
        x = node.input_value(0).get_node()
        if node.get_friendly_name() in names and x.get_type_name() == "FakeQuantize":
            node.input(0).replace_source_output(x.input_value(0))
    model.validate_nodes_and_infer_types()


def is_quantized(weight: "Output") -> bool:
    """Whether a stored weight or table has 8 bits or less, or is rounded to so many."""
    node = weight.get_node()
    while node.get_type_name() not in ("Constant", "FakeQuantize"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize" or node.get_element_type().bitwidth <= 8)


def kept_apart(model: "Model") -> dict[str, list[int]]:
    """The linears that `split_outliers` has split -> their outlier channels."""
    found = {}
    for node in linears(model):
        name = node.get_friendly_name()
        x = node.input_value(0).get_node()
        if x.get_type_name() == "Multiply" and x.get_friendly_name().endswith(SMOOTHED):
            x = x.input_value(0).get_node()
        if name.endswith(OUTLIERS) and x.get_type_name() == "Gather":
            found[name.removesuffix(OUTLIERS)] = constant_values(x.input_value(1))
    return found


def in_place_of(node: "Node", original: "Output", apart: Sequence[int]) -> "Output":
    """The weight of the float32 graph, as a quantized linear would hold it were it not rounded.

    original  the weight, stored as the linear stores its own
    apart     input channels of which another product takes care: zeros here
    SmoothQuant multiplies what the linear reads by a scale for each channel, so weights are divided by it.
    """
    from openvino import opset13

    transposed = node.get_attributes()["transpose_b"]
    width = original.get_partial_shape()[1 if transposed else 0].get_length()
    factor = np.ones(width, np.float32)
    x = node.input_value(0).get_node()
    while x.get_type_name() == "FakeQuantize":
        x = x.input_value(0).get_node()
    if x.get_type_name() == "Multiply" and x.get_friendly_name().endswith(SMOOTHED):
        factor /= stored(x.input_value(1)).reshape(-1)
    factor[list(apart)] = 0
    shaped = factor[None] if transposed else factor[:, None]
    held: Output = opset13.multiply(original, opset13.constant(shaped)).output(0)
    return held
