"""Opset wrappers that the encoder builders share. Knows op patterns, not architectures or checkpoints.

Every function takes and returns graph nodes; the shapes in comments use N texts, B batch, T tokens,
D hidden width, H heads, K = D / H. Constants carry the checkpoint's key as friendly name, so that ignored
scopes, sensitivity tables and weights share one vocabulary.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import CheckpointError

if TYPE_CHECKING:
    from openvino import Model, Node

# Added to the score of a padded key. exp() of it is exactly 0, and it is finite in float16 as well (iGPU).
MASKED = np.float32(-65504.0)

# config.json's `hidden_act` -> the approximation that OpenVINO's Gelu computes.
GELU = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_fast": "tanh",
}


def constant(value: NDArray[np.float32], name: str) -> "Node":
    """A weight. It shares memory with `value` (a view of the mapped file), which the node keeps alive."""
    from openvino import op

    view = value.view()
    view.flags.writeable = True  # OpenVINO shares nothing else, though it never writes to a constant
    node = op.Constant(view, shared_memory=True)
    node.set_friendly_name(name)
    return node


def integers(*values: int) -> "Node":
    """A small (len(values),) i64 constant: axes, shapes, orders."""
    from openvino import opset13 as ops

    return ops.constant(np.array(values, np.int64))


def token_input(name: str) -> "Node":
    """A model input of shape (B, T), i64, whose tensor carries `name`: peers find inputs by it."""
    from openvino import opset13 as ops

    node = ops.parameter([-1, -1], np.int64, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def token_positions(input_ids: "Node", dtype: str) -> "Node":
    """input_ids (B, T) -> 0..T-1 (T,), for every text alike: padding is on the right, and counts as well."""
    from openvino import opset13 as ops

    length = ops.gather(ops.shape_of(input_ids), integers(1), ops.constant(np.int64(0)))
    length = ops.squeeze(length, integers(0))
    return ops.range(ops.constant(np.int64(0)), length, ops.constant(np.int64(1)), dtype)


def linear(x: "Node", weight: NDArray[np.float32], bias: NDArray[np.float32] | None, name: str) -> "Node":
    """x (..., D_in) @ weight (D_out, D_in)^T + bias (D_out,), as torch.nn.Linear stores it."""
    from openvino import opset13 as ops

    y = ops.matmul(x, constant(weight, f"{name}.weight"), transpose_a=False, transpose_b=True)
    if bias is None:
        y.set_friendly_name(name)
        return y
    y.set_friendly_name(f"{name}.matmul")
    return ops.add(y, constant(bias, f"{name}.bias"), name=name)


def embedding(table: NDArray[np.float32], ids: "Node", name: str) -> "Node":
    """Rows of table (V, D) for ids (...): (..., D)."""
    from openvino import opset13 as ops

    return ops.gather(constant(table, f"{name}.weight"), ids, ops.constant(np.int64(0)), name=name)


def layer_norm(
    x: "Node", weight: NDArray[np.float32], bias: NDArray[np.float32] | None, eps: float, name: str
) -> "Node":
    """(x - mean) / sqrt(var + eps) over the last axis, then weight and bias (D,): the form that is fused."""
    from openvino import opset13 as ops

    y = ops.mvn(x, integers(-1), True, eps, "inside_sqrt")
    y = ops.multiply(y, constant(weight, f"{name}.weight"))
    if bias is not None:
        y = ops.add(y, constant(bias, f"{name}.bias"))
    y.set_friendly_name(name)
    return y


def activation(x: "Node", kind: str, name: str) -> "Node":
    """The element-wise function that config.json calls `kind`. Errors: CheckpointError for an unknown one."""
    from openvino import opset13 as ops

    if kind in GELU:
        return ops.gelu(x, GELU[kind], name=name)
    if kind == "relu":
        return ops.relu(x, name=name)
    if kind in ("silu", "swish"):
        return ops.swish(x, name=name)
    known = ", ".join(sorted([*GELU, "relu", "silu", "swish"]))
    raise CheckpointError(
        f"config.json asks for the activation {kind!r}, which is not built yet; known: {known}"
    )


def mask_bias(attention_mask: "Node") -> "Node":
    """attention_mask (B, T) of 0 and 1 -> (B, 1, 1, T) float32: 0 for a token, MASKED for padding."""
    from openvino import opset13 as ops

    mask = ops.unsqueeze(ops.convert(attention_mask, "f32"), integers(1, 2))
    return ops.multiply(ops.subtract(ops.constant(np.float32(1)), mask), ops.constant(MASKED))


def split_heads(x: "Node", heads: int, width: int) -> "Node":
    """(B, T, H*K) -> (B, H, T, K)."""
    from openvino import opset13 as ops

    return ops.transpose(
        ops.reshape(x, integers(0, 0, heads, width), special_zero=True), integers(0, 2, 1, 3)
    )


def merge_heads(x: "Node", hidden: int) -> "Node":
    """(B, H, T, K) -> (B, T, D)."""
    from openvino import opset13 as ops

    return ops.reshape(ops.transpose(x, integers(0, 2, 1, 3)), integers(0, 0, hidden), special_zero=True)


def attention(query: "Node", key: "Node", value: "Node", bias: "Node", scale: float, name: str) -> "Node":
    """softmax(query key^T * scale + bias) value over (B, H, T, K), as the one op that the plugin fuses."""
    from openvino import opset13 as ops

    return ops.scaled_dot_product_attention(
        query, key, value, bias, ops.constant(np.float32(scale)), causal=False, name=name
    )


def model(result: "Node", inputs: Sequence["Node"], name: str) -> "Model":
    """Wrap a (B, T, D) node as the model whose output tensor is `last_hidden_state`."""
    from openvino import Model

    result.output(0).get_tensor().set_names({"last_hidden_state"})
    whole = Model([result], list(inputs), name)
    number_names(whole)
    return whole


def number_names(model: "Model") -> None:
    """Name the nodes that nobody named by their place in the graph.

    OpenVINO numbers them through the whole process; so the same checkpoint always makes the same file, and an
    ignored scope names the same node.
    """
    for place, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(rf"{node.get_type_name()}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{place}")
