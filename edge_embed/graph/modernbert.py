"""ModernBERT from a checkpoint, op by op, in forward order. Knows no pooling, files or tokenizers.

Follows ModernBertModel of transformers (modeling_modernbert.py): norms precede each block, positions are
rotations of queries and keys, and most layers look only half a window to either side.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import CheckpointError
from edge_embed.graph import ops

if TYPE_CHECKING:
    from openvino import Model, Node, Output

    from edge_embed.checkpoint import Config, Weights

PREFIXES: tuple[str, ...] = ("model.",)

# Not part of last_hidden_state: the heads of the masked-token and classification models.
IGNORED = (r"head\..*", r"decoder\..*", r"classifier\..*")

# Each kind of layer, and what transformers 4.x calls its RoPE base.
GLOBAL, LOCAL = "full_attention", "sliding_attention"
THETA = {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}

# What conversion scripts copied from the training code: a table of positions is not part of any ModernBERT.
POSITION_TYPES = ("absolute", "sans_pos")

Value = TypeVar("Value", str, float)


def build(config: "Config", weights: "Weights") -> "Model":
    """input_ids, attention_mask (B, T) i64 -> last_hidden_state (B, T, D) float32.

    The output of layer i has the friendly name `layers.i`. Rows of padding tokens are finite, and no more.

    Errors: CheckpointError for a variant that is not built, for a config that contradicts itself or leaves
    out what differs between models, and for a tensor that is not used.
    """
    from openvino import opset13

    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    layers = config.integer("num_hidden_layers")
    inner = config.integer("intermediate_size")
    vocabulary = config.integer("vocab_size")
    window = config.integer("local_attention")
    eps = config.number("norm_eps", 1e-5)
    act = config.text("hidden_activation", "gelu")
    refuse_variants(config)
    kinds = layer_kinds(config, layers)
    if heads < 1 or hidden % (2 * heads):
        raise CheckpointError(
            f"hidden_size {hidden} does not give num_attention_heads {heads} an even number of channels each"
        )
    if window < 1:
        raise config.unlike("local_attention", "a window of 1 or more tokens")
    if config.integer("sliding_window", window // 2) != window // 2:  # it overrules in transformers 5
        raise config.unlike("sliding_window", f"local_attention {window} // 2")
    width = hidden // heads
    if config.integer("head_dim", width) != width:
        raise config.unlike("head_dim", f"hidden_size / num_attention_heads = {width}")

    def norm(x: "Node", name: str) -> "Node":
        return ops.layer_norm(x, weights.take(f"{name}.weight", (hidden,)), None, eps, name)

    def linear(x: "Node", name: str, d_in: int, d_out: int) -> "Node":
        return ops.linear(x, weights.take(f"{name}.weight", (d_out, d_in)), None, name)

    inputs = [ops.token_input(name) for name in ("input_ids", "attention_mask")]
    input_ids, attention_mask = inputs

    # Once for all layers of a kind: the rotations (1, 1, T, K) and what is added to the scores.
    positions = ops.token_positions(input_ids, "f32")
    rotations = {kind: rotary_table(positions, rope_theta(config, kind), width) for kind in THETA}
    padding = ops.mask_bias(attention_mask)  # (B, 1, 1, T)
    biases = {GLOBAL: padding, LOCAL: local_bias(positions, padding, window // 2)}  # (B, 1, T, T)

    # Embeddings: (B, T) -> (B, T, D).
    table = weights.take("embeddings.tok_embeddings.weight", (vocabulary, hidden))
    x = norm(ops.embedding(table, input_ids, "embeddings.tok_embeddings"), "embeddings.norm")

    for i, kind in enumerate(kinds):
        layer = f"layers.{i}"
        y = norm(x, f"{layer}.attn_norm") if i else x  # layer 0 follows embeddings.norm
        qkv = linear(y, f"{layer}.attn.Wqkv", hidden, 3 * hidden)
        q, k, v = (ops.split_heads(part, heads, width) for part in equal_parts(qkv, 3))
        q, k = rope(q, *rotations[kind]), rope(k, *rotations[kind])
        context = ops.attention(q, k, v, biases[kind], width**-0.5, f"{layer}.attn")
        x = opset13.add(x, linear(ops.merge_heads(context, hidden), f"{layer}.attn.Wo", hidden, hidden))
        y = norm(x, f"{layer}.mlp_norm")
        y = glu(linear(y, f"{layer}.mlp.Wi", hidden, 2 * inner), act, f"{layer}.mlp.act")
        x = opset13.add(x, linear(y, f"{layer}.mlp.Wo", inner, hidden), name=layer)
    x = norm(x, "final_norm")
    weights.assert_consumed(IGNORED)
    return ops.model(x, inputs, "modernbert")


def refuse_variants(config: "Config") -> None:
    """Raise CheckpointError for what is not built: biases, and positions other than plain RoPE."""
    for name in ("norm_bias", "attention_bias", "mlp_bias"):
        if config.flag(name, False):
            raise config.unlike(name, "false, which alone is built")
    if config.text("position_embedding_type", POSITION_TYPES[0]) not in POSITION_TYPES:
        raise config.unlike("position_embedding_type", f"one of {', '.join(POSITION_TYPES)}")
    if "rope_scaling" in config:
        raise config.unlike("rope_scaling", "null, which alone is built")
    if config.number("partial_rotary_factor", 1.0) != 1.0:
        raise config.unlike("partial_rotary_factor", "1, which alone is built")


def layer_kinds(config: "Config", layers: int) -> tuple[str, ...]:
    """GLOBAL or LOCAL for each layer, from `layer_types` or from `global_attn_every_n_layers`.

    transformers 5 writes the first and keeps the second, which is all that 4.x knows: both have to agree.
    """
    listed: Sequence[str | None] = [None] * layers
    counted: Sequence[str | None] = [None] * layers
    if "layer_types" in config:
        listed = config.texts("layer_types")
        if len(listed) != layers:
            raise config.unlike("layer_types", f"one of num_hidden_layers {layers}")
        if not set(listed) <= THETA.keys():
            raise config.unlike("layer_types", f"only {' and '.join(THETA)}")
    if "global_attn_every_n_layers" in config:
        every = config.integer("global_attn_every_n_layers")
        if every < 1:
            raise config.unlike("global_attn_every_n_layers", "1 or more")
        counted = [LOCAL if i % every else GLOBAL for i in range(layers)]
    return tuple(
        agreed(config, f"layer {i}", layer_types=new, global_attn_every_n_layers=old)
        for i, (new, old) in enumerate(zip(listed, counted, strict=True))
    )


def rope_theta(config: "Config", kind: str) -> float:
    """The RoPE base of one kind of layer, from `rope_parameters` of transformers 5 or as 4.x names it."""
    tables = config.table("rope_parameters", {})
    table = tables.table(kind, {})
    for where, known in ((tables, THETA.keys()), (table, {"rope_type", "rope_theta"})):
        for name in sorted(where.values.keys() - known):
            if name in where:
                raise where.unlike(name, "null, which alone is built")
    if table.text("rope_type", "default") != "default":
        raise table.unlike("rope_type", "'default', which alone is built")
    spellings = {f"{table.prefix}rope_theta": (table, "rope_theta"), THETA[kind]: (config, THETA[kind])}
    told = {name: where.number(key) if key in where else None for name, (where, key) in spellings.items()}
    theta = agreed(config, f"the RoPE base of {kind}", **told)
    if theta < 1:
        raise CheckpointError(f"the RoPE base of {kind} in {config.path} is {theta}, not 1 or more")
    return theta


def agreed(config: "Config", what: str, **told: Value | None) -> Value:
    """The value that all present spellings tell. Errors: CheckpointError for none, and for two values."""
    present = {name: value for name, value in told.items() if value is not None}
    if not present:
        raise CheckpointError(f"{config.path} has neither {' nor '.join(told)}, which tell {what}")
    if len(set(present.values())) > 1:
        both = " but ".join(f"{name} tells {value!r}" for name, value in present.items())
        raise CheckpointError(f"{config.path} contradicts itself about {what}: {both}")
    return next(iter(present.values()))


def inverse_frequencies(theta: float, width: int) -> NDArray[np.float32]:
    """theta ** (-2i / K) for i < K/2: (K/2,), rounded where torch rounds, so that its angles are ours.

    At position 4096 one unit in the last place of a frequency turns by 1e-4. The power itself is taken in
    float64, because its last place in float32 differs from one CPU to another.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers: NDArray[np.float32] = (theta ** exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1) / powers


def rotary_table(positions: "Node", theta: float, width: int) -> "tuple[Node, Node]":
    """positions (T,) -> cosine and sine (1, 1, T, K) of the angles by which each pair of channels turns."""
    from openvino import opset13

    frequencies = opset13.constant(inverse_frequencies(theta, width)[None])  # (1, K/2)
    angles = opset13.multiply(opset13.unsqueeze(positions, ops.integers(1)), frequencies)
    angles = opset13.unsqueeze(opset13.concat([angles, angles], -1), ops.integers(0, 1))
    return opset13.cos(angles), opset13.sin(angles)


def equal_parts(x: "Node", count: int) -> "list[Output]":
    """Cut the last axis of x (B, T, n*D) in n parts (B, T, D)."""
    from openvino import opset13

    parts: list[Output] = opset13.split(x, opset13.constant(np.int64(-1)), count).outputs()
    return parts


def rope(x: "Node", cosine: "Node", sine: "Node") -> "Node":
    """Turn channel i of x (B, H, T, K) with channel i + K/2 by the angle of its position."""
    from openvino import opset13

    # The CPU plugin recognises this form only: VariadicSplit of axis 3, a product with -1, Concat.
    half = x.get_output_partial_shape(0)[3].get_length() // 2
    first, second = opset13.variadic_split(x, ops.integers(3), ops.integers(half, -1)).outputs()
    turned = opset13.concat([opset13.multiply(second, opset13.constant(np.float32(-1))), first], -1)
    return opset13.add(opset13.multiply(x, cosine), opset13.multiply(turned, sine))


def local_bias(positions: "Node", padding: "Node", reach: int) -> "Node":
    """positions (T,), padding (B, 1, 1, T) -> (B, 1, T, T): padding within reach of a token, MASKED beyond.

    The two are not added: twice MASKED is beyond float16. Both are finite, so that a row whose whole window
    is padding becomes some average and not NaN, which would reach other rows as 0 * NaN.
    """
    from openvino import opset13

    rows, columns = (opset13.unsqueeze(positions, ops.integers(axis)) for axis in (1, 0))
    distance = opset13.abs(opset13.subtract(rows, columns))  # (T, T)
    near = opset13.less_equal(distance, opset13.constant(np.float32(reach)))
    return opset13.select(near, padding, opset13.constant(ops.MASKED))


def glu(x: "Node", act: str, name: str) -> "Node":
    """x (..., 2I) -> act(first half) * second half (..., I): GeGLU or SwiGLU, arXiv 2002.05202."""
    from openvino import opset13

    value, gate = equal_parts(x, 2)
    return opset13.multiply(ops.activation(value, act, name), gate)
