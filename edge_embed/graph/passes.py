"""Makes a loaded graph cheaper without changing what it computes. Knows op patterns, not who exported them.

Each pass takes a model whose ports are standardized and that has no pooling yet, and edits it in memory. It
returns None, or why the graph does not match, and then nothing is changed. None is taken on trust: `prepare`
compares the result with the untouched graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_embed.graph import ops
from edge_embed.graph.head import Ports, lookup, static_size

if TYPE_CHECKING:
    from openvino import Model, Node, Output

# Queries that look at keys together, and those keys: the block's own and half a block to either side. Blocks
# of 256 and 512 were measured to be no faster: they compute more scores that the band then masks.
BLOCK = 128
KEYS = 2 * BLOCK

ATTENTION = "ScaledDotProductAttention"

# Ops that treat every token alike, whatever its position; their inputs broadcast.
ELEMENTWISE = frozenset(
    {"Add", "Convert", "Divide", "Erf", "FakeQuantize", "Gelu", "Multiply", "Power", "Relu", "Sigmoid"}
    | {"Sqrt", "SquaredDifference", "Subtract", "Swish", "Tanh"}
)
REDUCTIONS = frozenset({"MVN", "ReduceMean", "ReduceSum", "ReduceL2"})
SPLITS = frozenset({"Split", "VariadicSplit"})


@dataclass(frozen=True, slots=True)
class Layers:
    """What config.json says of the attention layers, from the first to the last."""

    local: tuple[bool, ...]  # whether layer i sees only its neighbourhood
    reach: int  # how many tokens to either side that is


def weight_only_execution(model: "Model") -> str | None:
    """Take the quantization of activations out of a static INT8 graph, so that float32 meets INT8 weights.

    Where a CPU has no INT8 dot product, its INT8 kernels are slower than float32 and their sums saturate.
    """
    quantizers = activation_quantizers(model)
    if not quantizers:
        return "no activation is quantized"
    for node in quantizers:
        move_consumers(node.output(0), node.input_value(0))
    model.validate_nodes_and_infer_types()
    return None


def activation_quantizers(model: "Model") -> "list[Node]":
    """The FakeQuantize nodes of a graph that do not quantize a weight."""
    found = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    return [node for node in found if not is_constant(node.input_value(0))]


def int8_table(model: "Model", ports: Ports) -> str | None:
    """Look up INT8 token rows and their scales apart, where a static INT8 graph scales the whole table first.

    The CPU plugin folds that product while it compiles: a table of 262,144 x 768 then takes 805 MB, not 201.
    """
    from openvino import opset13

    gather = lookup(ports.inputs["input_ids"])
    if gather is None:
        return "no token table is looked up plainly"
    ids, axis = gather.input_value(1), gather.input_value(2)
    steps: list[tuple[Node, Output]] = []  # Multiply and Subtract on the way from the codes to the rows
    codes = gather.input_value(0)
    while codes.get_node().get_type_name() in ("Multiply", "Subtract"):
        node = codes.get_node()
        steps.append((node, node.input_value(1)))
        codes = node.input_value(0)
    converted = codes.get_node().get_type_name() == "Convert"
    stored = codes.get_node().input_value(0) if converted else codes
    if stored.get_node().get_type_name() != "Constant" or stored.get_element_type().get_size() != 1:
        return "the token table is not stored in 8 bits"
    if any(not is_constant(operand) for _, operand in steps):
        return "the token table is scaled by something that is not stored"

    def rows(table: "Output") -> "Node":
        return opset13.gather(table, ids, axis)

    x = opset13.convert(rows(stored), codes.get_element_type())
    for node, operand in reversed(steps):
        by_row = operand.get_partial_shape().rank == 2 and static_size(operand, 0) != 1
        step = opset13.multiply if node.get_type_name() == "Multiply" else opset13.subtract
        x = step(x, rows(operand) if by_row else operand)
    x.set_friendly_name(gather.get_friendly_name())
    move_consumers(gather.output(0), x.output(0))
    model.validate_nodes_and_infer_types()
    return None


def cls_last_layer(model: "Model", ports: Ports) -> str | None:
    """Compute the last layer for token 0 alone, when that is the only one that pooling reads.

    Its keys and values still need all tokens. Everything behind them that treats tokens alike is rebuilt for
    one row, and last_hidden_state becomes (B, 1, D).
    """
    attention = attention_nodes(model)
    if not attention:
        return "no scaled-dot-product attention op is in the graph"
    last = attention[-1]
    sliced = FirstRow(last)
    row = sliced.of(ports.output.get_node().input_value(0), axis=1)
    if not sliced.reached:
        return f"between the last attention and the output is {sliced.stopped_at}"
    ports.output.get_node().input(0).replace_source_output(row)
    model.validate_nodes_and_infer_types()
    return None


class FirstRow:
    """Rebuilds for token 0 what lies behind the last attention, without that one's own keys and values."""

    def __init__(self, last: "Node") -> None:
        self.reached = False
        self.stopped_at = "nothing"
        self._last = last.get_friendly_name()
        self._whole = ancestors(last.input_values()[1:3])  # computed for all tokens in any case
        self._made: dict[tuple[str, int], list[Output]] = {}

    def of(self, output: "Output", axis: int) -> "Output":
        """Row 0 of an output along its token axis, which stays as an axis of size 1."""
        node = output.get_node()
        name = node.get_friendly_name()
        if name in self._whole:
            return first(output, axis)
        key = (name, axis)
        if key not in self._made:
            inputs = self._inputs(node, axis)
            if inputs is None:
                self.stopped_at = node.get_type_name()
                return first(output, axis)
            self._made[key] = rebuilt(node, inputs)
        return self._made[key][output.get_index()]

    def _inputs(self, node: "Node", axis: int) -> "list[Output] | None":
        """The inputs that give a node's row 0, or None where tokens are not treated alike."""
        kind = node.get_type_name()
        inputs = node.input_values()
        rank = node.get_output_partial_shape(0).rank.get_length()
        if kind in ELEMENTWISE:
            return [self._operand(value, axis - rank) for value in inputs]
        if kind in REDUCTIONS:
            keeps = node.get_attributes().get("keep_dims", True)
            return [self.of(inputs[0], axis), inputs[1]] if keeps and spares(inputs[1], axis, rank) else None
        if kind in SPLITS:
            return [self.of(inputs[0], axis), *inputs[1:]] if spares(inputs[1], axis, rank) else None
        if kind == "Concat":
            along = node.get_attributes()["axis"] % rank
            return None if along == axis else [self.of(value, axis) for value in inputs]
        if kind == "Gather" and is_constant(inputs[1]) and not node.get_attributes()["batch_dims"]:
            return [self.of(inputs[0], axis), *inputs[1:]] if spares(inputs[2], axis, rank) else None
        if kind == "MatMul":
            plain = not node.get_attributes()["transpose_a"] and inputs[1].get_partial_shape().rank == 2
            return [self.of(inputs[0], axis), inputs[1]] if plain and axis < rank - 1 else None
        if kind == "Transpose" and is_constant(inputs[1]):
            order = constant_values(inputs[1])
            return [self.of(inputs[0], order[axis]), inputs[1]]
        if kind == "Reshape" and axis == 1 and same_width(inputs[0], node.output(0)):
            return [self.of(inputs[0], 1), one_token(inputs[1], rank)]
        if kind == ATTENTION and node.get_friendly_name() == self._last and not is_causal(node):
            self.reached = True
            mask = [first(inputs[3], 2) if static_size(inputs[3], 2) != 1 else inputs[3]]
            # Of one row again: behind a Reshape the graph itself may not know that there is only one.
            return [first(self.of(inputs[0], 2), 2), inputs[1], inputs[2], *mask, *inputs[4:]]
        return None

    def _operand(self, value: "Output", axis: int) -> "Output":
        """An input of an element-wise op; `axis` counts from the end: operands may lack leading axes."""
        rank = value.get_partial_shape().rank.get_length()
        if rank + axis < 0 or static_size(value, axis) == 1:
            return value
        return self.of(value, rank + axis)


def windowed_attention(model: "Model", ports: Ports, layers: Layers) -> str | None:
    """Let each local layer compute the scores within its reach only, and no mask be larger than it has to.

    Queries go in blocks of BLOCK, each beside KEYS keys and values, from half a block before it to half a
    block behind it; blocks of one text stand where heads were, so that the plugin's own attention kernel runs
    them. Global layers get a (B, 1, 1, T) mask. Time and memory of local layers then grow with T, not T^2.
    """
    attention = attention_nodes(model)
    if len(attention) != len(layers.local):
        return (
            f"the graph has {len(attention)} attention ops, config.json tells of {len(layers.local)} layers"
        )
    if not any(layers.local):
        return "every layer looks at all tokens"
    for node in attention:
        sizes = [static_size(node.input_value(0), axis) for axis in (1, 3)]
        if None in sizes or len(node.input_values()) not in (4, 5) or is_causal(node):
            return "an attention op has open sizes, no mask, or is causal"
    if 2 * layers.reach > BLOCK:
        return f"the window of {2 * layers.reach} tokens is wider than a block of {BLOCK}"
    mask = ports.inputs["attention_mask"]
    padding = ops.mask_bias(mask.get_node())  # (B, 1, 1, T)
    windows = Windows(mask, layers.reach)
    for node, local in zip(attention, layers.local, strict=True):
        if not local:
            node.input(3).replace_source_output(padding.output(0))
        elif static_size(node.input_value(0), 2) == 1:  # token 0 alone
            node.input(3).replace_source_output(first_window(mask, padding, layers.reach).output(0))
        else:
            move_consumers(node.output(0), windows.attend(node))
    model.validate_nodes_and_infer_types()
    return None


class Windows:
    """Cuts (B, H, T, K) into blocks of queries and the windows of keys that they see; shared by all layers.

    Shapes below: S = BLOCK, G = ceil(T / S) blocks, W = KEYS in the window of each.
    """

    def __init__(self, mask: "Output", reach: int) -> None:
        from openvino import opset13

        self._reach = reach
        self._length = length_of(mask)  # T as (1,), like all sizes here
        blocks = opset13.divide(opset13.add(self._length, ops.integers(BLOCK - 1)), ops.integers(BLOCK))
        self._blocks = blocks  # G
        self._padded = opset13.multiply(blocks, ops.integers(BLOCK))  # G * S
        self._missing = opset13.subtract(self._padded, self._length)
        self._tokens = opset13.convert(mask, "f32")  # (B, T) of 0 and 1
        self._biases: dict[int, Node] = {}
        # With half a block of zeros on both sides, window g is the half blocks 2g to 2g + 3.
        zero, one = opset13.constant(np.int64(0)), opset13.constant(np.int64(1))
        numbers = opset13.range(zero, opset13.squeeze(blocks, ops.integers(0)), one, "i64")
        firsts = opset13.multiply(opset13.unsqueeze(numbers, ops.integers(1)), ops.integers(2))
        halves = opset13.add(firsts, opset13.constant(np.arange(4)[None]))
        self._halves = opset13.reshape(halves, ops.integers(-1), special_zero=False)  # (4 * G,)

    def attend(self, node: "Node") -> "Output":
        """What an attention op gives, (B, H, T, K), when each query sees its window only."""
        from openvino import opset13

        query, key, value = node.input_values()[:3]
        heads, width = (static_size(query, axis) for axis in (1, 3))
        assert heads is not None
        assert width is not None  # windowed_attention has looked
        blocks = opset13.reshape(
            pad_tokens(query, ops.integers(0), self._missing, axis=2),
            opset13.concat([ops.integers(-1), self._blocks, ops.integers(BLOCK, width)], 0),
            special_zero=False,
        )  # (B * H, G, S, K)
        keys, values = (
            opset13.reshape(
                self._windows(x, axis=2, width=width),
                opset13.concat([ops.integers(-1), self._blocks, ops.integers(KEYS, width)], 0),
                special_zero=False,
            )
            for x in (key, value)
        )  # (B * H, G, W, K)
        scale = node.input_value(4) if len(node.input_values()) == 5 else scale_of(width)
        context = opset13.scaled_dot_product_attention(
            blocks, keys, values, self._bias(heads), scale, causal=False, name=node.get_friendly_name()
        )
        joined = opset13.reshape(
            context,
            opset13.concat([ops.integers(-1, heads), self._padded, ops.integers(width)], 0),
            special_zero=False,
        )  # (B, H, G * S, K)
        cut: Output = opset13.slice(
            joined, ops.integers(0), self._length, ops.integers(1), ops.integers(2)
        ).output(0)
        return cut

    def _windows(self, x: "Output", *, axis: int, width: int) -> "Node":
        """(..., T[, K]) -> (..., 4 * G, S / 2 * K), `axis` that of T: the half blocks of all windows."""
        from openvino import opset13

        half = ops.integers(BLOCK // 2)
        x = pad_tokens(x, half, opset13.add(self._missing, half), axis)
        shape = ops.integers(*[0] * axis, -1, BLOCK // 2 * width)
        rows = opset13.reshape(x, shape, special_zero=True)
        return opset13.gather(rows, self._halves, opset13.constant(np.int64(axis)))

    def _bias(self, heads: int) -> "Node":
        """0 for a key that a query may see, MASKED for others: (1 or B * H, G, S, W).

        Heads stand beside texts there, so a batch of one text has one mask for all of them; more get copies.
        """
        from openvino import opset13

        if heads not in self._biases:
            query, key = np.arange(BLOCK)[:, None], np.arange(KEYS)[None]
            band = np.abs(key - BLOCK // 2 - query) <= self._reach
            seen = opset13.reshape(
                self._windows(self._tokens.output(0), axis=1, width=1),
                opset13.concat([ops.integers(0, 1), self._blocks, ops.integers(1, KEYS)], 0),
                special_zero=True,
            )
            seen = opset13.greater(seen, opset13.constant(np.float32(0)))
            both = opset13.logical_and(seen, opset13.constant(band))  # (B, 1, G, S, W)
            bias = opset13.select(both, opset13.constant(np.float32(0)), opset13.constant(ops.MASKED))
            batch = opset13.gather(
                opset13.shape_of(self._tokens), ops.integers(0), opset13.constant(np.int64(0))
            )
            copies = opset13.select(
                opset13.equal(batch, ops.integers(1)), ops.integers(1), ops.integers(heads)
            )
            bias = opset13.tile(bias, opset13.concat([ops.integers(1), copies, ops.integers(1, 1, 1)], 0))
            shape = opset13.concat([ops.integers(-1), self._blocks, ops.integers(BLOCK, KEYS)], 0)
            self._biases[heads] = opset13.reshape(bias, shape, special_zero=False)
        return self._biases[heads]


def first_window(mask: "Output", padding: "Node", reach: int) -> "Node":
    """padding (B, 1, 1, T) -> the same, and MASKED for keys beyond the reach of token 0."""
    from openvino import opset13

    end = opset13.squeeze(length_of(mask), ops.integers(0))
    positions = opset13.range(opset13.constant(np.int64(0)), end, opset13.constant(np.int64(1)), "i64")
    near = opset13.less_equal(positions, opset13.constant(np.int64(reach)))
    return opset13.select(near, padding, opset13.constant(ops.MASKED))


def pad_tokens(x: "Output", before: "Node", after: "Node", axis: int) -> "Output":
    """Zeros before and after along one axis; both counts are (1,) i64."""
    from openvino import opset13

    rank = x.get_partial_shape().rank.get_length()
    begin, end = (
        opset13.concat([count if i == axis else ops.integers(0) for i in range(rank)], 0)
        for count in (before, after)
    )
    padded: Output = opset13.pad(x, begin, end, "constant", opset13.constant(np.float32(0))).output(0)
    return padded


def length_of(mask: "Output") -> "Node":
    """T of a (B, T) port, as (1,) i64."""
    from openvino import opset13

    return opset13.gather(opset13.shape_of(mask), ops.integers(1), opset13.constant(np.int64(0)))


def scale_of(width: int) -> "Node":
    """The scale that an attention op without one has: 1 / sqrt(K)."""
    from openvino import opset13

    return opset13.constant(np.float32(width**-0.5))


def attention_nodes(model: "Model") -> "list[Node]":
    """The attention ops of a graph, from the first layer to the last."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() == ATTENTION]


def is_causal(node: "Node") -> bool:
    """Whether an attention op masks later tokens by itself."""
    return bool(node.get_attributes()["causal"])


def ancestors(outputs: "Sequence[Output]") -> frozenset[str]:
    """Friendly names of all nodes that some outputs are computed from, their own included."""
    found: set[str] = set()
    queue = [output.get_node() for output in outputs]
    while queue:
        node = queue.pop()
        if node.get_friendly_name() not in found:
            found.add(node.get_friendly_name())
            queue.extend(value.get_node() for value in node.input_values())
    return frozenset(found)


def rebuilt(node: "Node", inputs: "list[Output]") -> "list[Output]":
    """The outputs of a copy of a node on other inputs; the copy takes the name over."""
    from openvino.utils.node_factory import NodeFactory

    factory = NodeFactory(node.get_type_info().version_id)
    copy = factory.create(node.get_type_name(), inputs, node.get_attributes())
    copy.set_friendly_name(node.get_friendly_name())
    return list(copy.outputs())


def first(output: "Output", axis: int) -> "Output":
    """Row 0 along an axis, which stays as an axis of size 1, also in the graph's own eyes."""
    from openvino import opset13

    row: Output = opset13.gather(output, ops.integers(0), opset13.constant(np.int64(axis))).output(0)
    return row


def move_consumers(old: "Output", new: "Output") -> None:
    """Let everything that reads `old` read `new`."""
    for target in list(old.get_target_inputs()):
        target.replace_source_output(new)


def is_constant(output: "Output") -> bool:
    """Whether an output is stored, or unpacked from what is stored."""
    node = output.get_node()
    while node.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def constant_values(output: "Output") -> list[int]:
    """The whole numbers of a Constant: axes, orders."""
    values: list[int] = np.asarray(output.get_node().get_data()).reshape(-1).tolist()
    return values


def one_token(pattern: "Output", rank: int) -> "Output":
    """The pattern of a Reshape to (B, T, ...), with 1 in the place of T."""
    from openvino import opset13

    dtype = pattern.get_element_type().to_dtype()
    if pattern.get_node().get_type_name() == "Constant":
        batch, _, *rest = constant_values(pattern)
        stored: Output = opset13.constant(np.array([batch, 1, *rest], dtype)).output(0)
        return stored

    def part(start: int, end: int) -> "Node":
        return opset13.slice(pattern, ops.integers(start), ops.integers(end), ops.integers(1))

    one = opset13.constant(np.array([1], dtype))
    joined: Output = opset13.concat([part(0, 1), one, part(2, rank)], 0).output(0)
    return joined


def spares(axes: "Output", axis: int, rank: int) -> bool:
    """Whether stored axes do not include this one."""
    if axes.get_node().get_type_name() != "Constant":
        return False
    return axis not in {value % rank for value in constant_values(axes)}


def same_width(before: "Output", after: "Output") -> bool:
    """Whether two shapes are (B, T, ...) with the same number of values for each token."""
    widths = []
    for port in (before, after):
        rank = port.get_partial_shape().rank.get_length()
        sizes = [static_size(port, axis) for axis in range(2, rank)]
        if rank < 3 or None in sizes:
            return False
        widths.append(np.prod([size for size in sizes if size is not None]))
    return bool(widths[0] == widths[1])
