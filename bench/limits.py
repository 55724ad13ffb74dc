"""How much arithmetic a text costs at least, and how fast this machine does it at best. Pure: times nothing.

A multiplication with its addition is 2 FLOP. Linears: 2 K N of each product, for each token. Attention, Q K^T
and P V of one layer: 4 T D for each of T tokens, or 4 W D in a layer that sees W tokens only. Softmax, norms,
activations and the token table are left out: nobody's limit should rest on them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def attention_flop(config: Mapping[str, Any], tokens: int) -> float:
    """Of one text of T tokens through all layers, as config.json describes them."""
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    window = config.get("local_attention")
    every = config.get("global_attn_every_n_layers", 1)
    total = 0.0
    for layer in range(layers):
        seen = tokens if window is None or layer % every == 0 else min(tokens, window + 1)
        total += 4.0 * tokens * seen * hidden
    return total


def share_of_limit(folder: Path, tokens: int, seconds: float, limit: Mapping[str, Any]) -> dict[str, float]:
    """One text of T tokens that took so long, against products and attention at the rate of the products.

    limit  the row of matmuls@KIND of the same run: tokens/s, and FLOP a token
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    per_token = float(limit["effective"]["flop_per_token"])
    rate = limit["median"] * per_token  # FLOP/s
    flop = tokens * per_token + attention_flop(config, tokens)
    return {"gflop": flop / 1e9, "seconds": flop / rate, "share": flop / rate / seconds}
