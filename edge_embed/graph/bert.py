"""BERT and RoBERTa from a checkpoint, op by op, in forward order. Knows no pooling, files or tokenizers.

Follows BertModel and XLMRobertaModel of transformers (modeling_bert.py, modeling_xlm_roberta.py): three
embeddings are added, and norms follow each block. The two differ in positions and token types alone.
"""

from typing import TYPE_CHECKING

import numpy as np

from edge_embed.errors import CheckpointError
from edge_embed.graph import ops

if TYPE_CHECKING:
    from openvino import Model, Node

    from edge_embed.checkpoint import Config, Weights

PREFIXES: tuple[str, ...] = ("bert.", "roberta.")

# RoBERTa by its model_types: one class of transformers under three names, and one prefix.
ROBERTA = frozenset({"camembert", "roberta", "xlm-roberta"})

# Not part of last_hidden_state: the pooler, training heads, and the position ids that old versions stored.
IGNORED = (
    r"pooler\..*",
    r"cls\..*",
    r"lm_head\..*",
    r"classifier\..*",
    r"qa_outputs\..*",
    r"embeddings\.position_ids",
)


def build(config: "Config", weights: "Weights") -> "Model":
    """input_ids, attention_mask (B, T) i64 -> last_hidden_state (B, T, D) float32; BERT: token_type_ids too.

    The output of layer i has the friendly name `encoder.layer.i.output.LayerNorm`.

    Errors: CheckpointError for a variant that only transformers has, and for a tensor that is not used.
    """
    from openvino import opset13

    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    layers = config.integer("num_hidden_layers")
    inner = config.integer("intermediate_size")
    rows = {
        "word": config.integer("vocab_size"),
        "position": config.integer("max_position_embeddings"),
        "token_type": config.integer("type_vocab_size"),
    }
    eps = config.number("layer_norm_eps", 1e-12)
    act = config.text("hidden_act", "gelu")
    positions = config.text("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointError(f"position_embedding_type is {positions!r}; only 'absolute' is built")
    if config.flag("is_decoder", False) or config.flag("add_cross_attention", False):
        raise CheckpointError("is_decoder or add_cross_attention is set; only encoders are built")
    if heads < 1 or hidden % heads:
        raise CheckpointError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")

    def norm(x: "Node", name: str) -> "Node":
        # The names of the first BERT, which transformers 5 writes again after it has read a checkpoint.
        scale, shift = ("gamma", "beta") if f"{name}.gamma" in weights else ("weight", "bias")
        weight, bias = weights.take(f"{name}.{scale}", (hidden,)), weights.take(f"{name}.{shift}", (hidden,))
        return ops.layer_norm(x, weight, bias, eps, name)

    def linear(x: "Node", name: str, d_in: int, d_out: int) -> "Node":
        weight, bias = weights.take(f"{name}.weight", (d_out, d_in)), weights.take(f"{name}.bias", (d_out,))
        return ops.linear(x, weight, bias, name)

    def table(kind: str, ids: "Node") -> "Node":
        name = f"embeddings.{kind}_embeddings"
        return ops.embedding(weights.take(f"{name}.weight", (rows[kind], hidden)), ids, name)

    input_ids, attention_mask = inputs = [ops.token_input(name) for name in ("input_ids", "attention_mask")]
    if config.model_type in ROBERTA:  # every token is of type 0, for which its tokenizers give no input
        token_type_ids = opset13.constant(np.int64(0))
        position_ids = positions_after_padding(input_ids, padding_id(config, rows["position"]))
    else:
        token_type_ids = ops.token_input("token_type_ids")
        inputs.append(token_type_ids)
        position_ids = ops.token_positions(input_ids, "i64")

    # Embeddings: (B, T) -> (B, T, D).
    x = opset13.add(table("word", input_ids), table("token_type", token_type_ids))
    x = opset13.add(x, table("position", position_ids))
    x = norm(x, "embeddings.LayerNorm")

    bias = ops.mask_bias(attention_mask)  # (B, 1, 1, T)
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            ops.split_heads(
                linear(x, f"{layer}.attention.self.{part}", hidden, hidden), heads, hidden // heads
            )
            for part in ("query", "key", "value")
        )
        context = ops.attention(q, k, v, bias, (hidden // heads) ** -0.5, f"{layer}.attention.self")
        attended = linear(ops.merge_heads(context, hidden), f"{layer}.attention.output.dense", hidden, hidden)
        x = norm(opset13.add(attended, x), f"{layer}.attention.output.LayerNorm")
        wide = ops.activation(
            linear(x, f"{layer}.intermediate.dense", hidden, inner), act, f"{layer}.activation"
        )
        x = norm(
            opset13.add(linear(wide, f"{layer}.output.dense", inner, hidden), x), f"{layer}.output.LayerNorm"
        )
    weights.assert_consumed(IGNORED)
    return ops.model(x, inputs, config.model_type)


def padding_id(config: "Config", positions: int) -> int:
    """RoBERTa's pad_token_id, from which positions count. Errors: CheckpointError where it leaves none."""
    padding = config.integer("pad_token_id")
    if not 0 <= padding < positions - 1:
        raise config.unlike("pad_token_id", f"from 0 to max_position_embeddings {positions} - 2")
    return padding


def positions_after_padding(input_ids: "Node", padding: int) -> "Node":
    """input_ids (B, T) -> i64 (B, T): padding + 1, padding + 2, ... for tokens, and `padding` for padding.

    As in transformers, the ids tell what is padding, not the mask. The two differ for a text that spells
    the padding token out: its vector is then that of transformers, to which such a token takes no place.
    """
    from openvino import opset13

    pad = opset13.constant(np.int64(padding))
    token = opset13.convert(opset13.not_equal(input_ids, pad), "i64")
    count = opset13.cum_sum(token, opset13.constant(np.int64(1)))
    return opset13.add(opset13.multiply(count, token), pad)
