"""What a loaded graph needs to give vectors: its ports, pooling and L2 norm. Knows graphs, not their origin.

The model is edited in memory; files on disk keep `last_hidden_state`, so that other tools can read them.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import ModelError
from edge_embed.graph import ops

if TYPE_CHECKING:
    from openvino import Model, Node, Output

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HIDDEN_NAMES = frozenset({"last_hidden_state", "token_embeddings"})
POOLED_NAMES = frozenset({"sentence_embedding", "text_embeds"})
MOST_TOKEN_TYPES = 16  # a larger table is of tokens, or of positions, which nothing here feeds
SMALLEST_NORM = np.float32(1e-12)  # torch.nn.functional.normalize's eps


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a model takes tokens and gives vectors."""

    inputs: dict[str, "Output"]  # of INPUTS; input_ids and attention_mask always
    output: "Output"
    pooled: bool  # the output is (B, D), else (B, T, D)

    @property
    def width(self) -> int | None:
        """D of the output; None where the graph leaves it open."""
        return static_size(self.output, -1)


def standardize(model: "Model") -> Ports:
    """Find the ports, name the inputs as INPUTS, and make B and T dynamic where an exporter fixed them.

    Errors: ModelError, with what the model has, when its ports cannot be told or stay fixed to one shape.
    """
    ports = Ports(find_inputs(model), *find_output(model))
    fixed = describe(model.inputs)
    if any(static_size(port, axis) is not None for port in model.inputs for axis in (0, 1)):
        with contextlib.suppress(RuntimeError):  # what could not be changed is seen below
            model.reshape({port: [-1, -1] for port in model.inputs})
        ports = Ports(find_inputs(model), *find_output(model))
    free = (0,) if ports.pooled else (0, 1)
    places = [*((port, axis) for port in model.inputs for axis in (0, 1)), *((ports.output, a) for a in free)]
    if any(static_size(port, axis) is not None for port, axis in places):
        raise ModelError(
            f"the model works for one shape only, {fixed}; export it with dynamic batch and length"
        )
    for name, port in ports.inputs.items():
        port.get_tensor().set_names({name})
    return ports


def find_inputs(model: "Model") -> dict[str, "Output"]:
    """input_ids, attention_mask and, where the model takes them, token_type_ids: by name, or else by use."""
    ports = [port for port in model.inputs if is_token_input(port)]
    found = {name: port for port in ports for name in INPUTS if name in port.get_names()}
    found = found or inputs_by_use(ports)
    if len(found) != len(model.inputs) or not {"input_ids", "attention_mask"} <= found.keys():
        raise ModelError(
            f"cannot tell the model's inputs: it has {describe(model.inputs)}; needed are input_ids and "
            "attention_mask, whole numbers (B, T), and token_type_ids may be there"
        )
    return found


def is_token_input(port: "Output") -> bool:
    """Whether a port could be (B, T) ids or a mask."""
    return bool(port.get_partial_shape().rank == 2 and port.get_element_type().is_integral())


def inputs_by_use(ports: Sequence["Output"]) -> dict[str, "Output"]:
    """Inputs without names of ours: tokens look up a large table, token types a small one, the mask none.

    Their order would not do: exporters differ in it, and a mask taken for token types gives wrong vectors.
    """
    found: dict[str, list[Output]] = {name: [] for name in INPUTS}
    for port in ports:
        rows = table_rows(port)
        if rows is None:
            found["attention_mask"].append(port)
        else:
            found["token_type_ids" if rows <= MOST_TOKEN_TYPES else "input_ids"].append(port)
    return {name: alike[0] for name, alike in found.items() if len(alike) == 1}


def find_output(model: "Model") -> tuple["Output", bool]:
    """The output to use, and whether it is pooled already. Token vectors come first: we know how to pool."""
    floats = [port for port in model.outputs if port.get_element_type().is_real()]
    for names, pooled in ((HIDDEN_NAMES, False), (POOLED_NAMES, True)):
        for port in floats:
            if port.get_names() & names:
                return port, pooled
    for rank, pooled in ((3, False), (2, True)):
        matches = [port for port in floats if port.get_partial_shape().rank == rank]
        if len(matches) == 1:
            return matches[0], pooled
    raise ModelError(
        f"cannot tell the model's output: it has {describe(model.outputs)}; "
        "needed is last_hidden_state (B, T, D) or sentence_embedding (B, D)"
    )


def feed(ids: NDArray[np.int64], names: Iterable[str]) -> dict[str, NDArray[np.int64]]:
    """What inputs of these names, of INPUTS, take for (B, T) ids without padding and of one token type."""
    values = dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
    return {name: values[name] for name in names}


def describe(ports: Sequence["Output"]) -> str:
    """Names and shapes for an error line."""
    return ", ".join(
        f"{'/'.join(sorted(port.get_names())) or '(unnamed)'} {port.get_partial_shape()}" for port in ports
    )


def static_size(port: "Output", axis: int) -> int | None:
    """The size of one axis; None where it is dynamic, or the rank is."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic or shape[axis].is_dynamic:
        return None
    return int(shape[axis].get_length())


def token_table_rows(ports: Ports) -> int | None:
    """V: rows of the table that input_ids looks up, or None where the graph does not show it plainly."""
    return table_rows(ports.inputs["input_ids"])


def table_rows(ids: "Output") -> int | None:
    """Rows of the (V, D) table that an input of ids looks up, if it does."""
    gather = lookup(ids)
    return None if gather is None else static_size(gather.input_value(0), 0)


def lookup(ids: "Output") -> "Node | None":
    """The Gather that takes rows of a (V, D) table for an input of ids, if there is one."""
    queue = [ids]
    while queue:
        for target in queue.pop(0).get_target_inputs():
            node = target.get_node()
            if node.get_type_name() == "Gather" and target.get_index() == 1:
                return node if node.input_value(0).get_partial_shape().rank == 2 else None
            if node.get_type_name() in ("Convert", "Reshape", "Squeeze", "Unsqueeze"):
                queue.extend(node.outputs())
    return None


def token_vectors(model: "Model", ports: Ports) -> "Model":
    """The model with the chosen output alone, as it is, in float32: what `attach` is checked against."""
    from openvino import Model, opset13

    result = opset13.result(opset13.convert(ports.output.get_node().input_value(0), "f32"))
    return Model([result], [port.get_node() for port in model.inputs], model.get_friendly_name())


def attach(model: "Model", ports: Ports, pooling: Sequence[str], *, normalize: bool) -> "Model":
    """Pool (B, T, D) to (B, D * len(pooling)), L2-normalise, and make that the only output.

    The output tensor is named `sentence_embedding`. Formulas are those of sentence-transformers' Pooling and
    Normalize modules; padding is on the right.
    """
    from openvino import Model, opset13

    x = opset13.convert(ports.output.get_node().input_value(0), "f32")  # of the Result
    if not ports.pooled:
        mask = opset13.convert(ports.inputs["attention_mask"], "f32")
        pooled = [POOL[mode](x, mask) for mode in pooling]
        x = pooled[0] if len(pooled) == 1 else opset13.concat(pooled, 1)
    if normalize:
        norm = opset13.sqrt(opset13.reduce_sum(opset13.multiply(x, x), ops.integers(1), keep_dims=True))
        x = opset13.divide(x, opset13.maximum(norm, opset13.constant(SMALLEST_NORM)))
    result = opset13.result(x)
    result.output(0).get_tensor().set_names({"sentence_embedding"})
    return Model([result], [port.get_node() for port in model.inputs], model.get_friendly_name())


def pool_cls(x: "Node", mask: "Node") -> "Node":
    """(B, T, D) -> (B, D): the first token."""
    from openvino import opset13

    return opset13.gather(x, opset13.constant(np.int64(0)), opset13.constant(np.int64(1)))


def pool_max(x: "Node", mask: "Node") -> "Node":
    """(B, T, D) -> (B, D): the largest value over tokens that are not padding."""
    from openvino import opset13

    real = opset13.greater(opset13.unsqueeze(mask, ops.integers(2)), opset13.constant(np.float32(0)))
    lowest = opset13.constant(np.finfo(np.float32).min)
    return opset13.reduce_max(opset13.select(real, x, lowest), ops.integers(1))


def pool_mean(x: "Node", mask: "Node") -> "Node":
    """(B, T, D) -> (B, D): the mean over tokens that are not padding."""
    from openvino import opset13

    return opset13.divide(masked_sum(x, mask), total(mask))


def pool_mean_sqrt(x: "Node", mask: "Node") -> "Node":
    """(B, T, D) -> (B, D): the sum over tokens, divided by the square root of their number."""
    from openvino import opset13

    return opset13.divide(masked_sum(x, mask), opset13.sqrt(total(mask)))


def pool_weighted(x: "Node", mask: "Node") -> "Node":
    """(B, T, D) -> (B, D): the mean with the weight 1, 2, 3 ... of each token's position."""
    from openvino import opset13

    weights = opset13.multiply(mask, opset13.cum_sum(mask, opset13.constant(np.int64(1))))
    return opset13.divide(masked_sum(x, weights), total(weights))


def pool_last(x: "Node", mask: "Node") -> "Node":
    """(B, T, D) -> (B, D): the last token that is not padding."""
    from openvino import opset13

    tokens = opset13.convert(opset13.reduce_sum(mask, ops.integers(1)), "i64")
    last = opset13.subtract(tokens, opset13.constant(np.int64(1)))
    return opset13.gather(x, last, opset13.constant(np.int64(1)), batch_dims=1)


def masked_sum(x: "Node", weights: "Node") -> "Node":
    """Sum over T of x (B, T, D) times weights (B, T), as one small matrix product: (B, D)."""
    from openvino import opset13

    row = opset13.unsqueeze(weights, ops.integers(1))
    return opset13.squeeze(opset13.matmul(row, x, transpose_a=False, transpose_b=False), ops.integers(1))


def total(weights: "Node") -> "Node":
    """Sum over T of weights (B, T), never zero: (B, 1)."""
    from openvino import opset13

    added = opset13.reduce_sum(weights, ops.integers(1), keep_dims=True)
    return opset13.maximum(added, opset13.constant(np.float32(1e-9)))


# Poolings by sentence-transformers' names; each takes hidden states (B, T, D) and the mask (B, T), both f32.
POOL: dict[str, Callable[["Node", "Node"], "Node"]] = {
    "cls": pool_cls,
    "max": pool_max,
    "mean": pool_mean,
    "mean_sqrt_len_tokens": pool_mean_sqrt,
    "weightedmean": pool_weighted,
    "lasttoken": pool_last,
}
