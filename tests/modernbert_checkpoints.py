"""Tiny seeded ModernBERT checkpoints in hub layout, with config.json as transformers 5.x or 4.x writes it."""

import json
from pathlib import Path
from typing import Any

from tests.checkpoints import write_modules, write_tokenizer

# What transformers 5 adds to a config.json of 4.x.
NEW_KEYS = ("layer_types", "rope_parameters", "dtype")
THETAS = {"global_rope_theta": 80_000.0, "local_rope_theta": 10_000.0}


def tiny_modernbert(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A ModernBERT of 4 layers (global, local, local, global), hidden 64, 4 heads, a window of 16 tokens.

    Its random weights are large enough that every part matters, also the norms'.

    changes  options of ModernBertConfig that differ from these
    """
    import torch
    from transformers import ModernBertConfig, ModernBertModel

    size = write_tokenizer(folder, max_length=8192)
    options: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "local_attention": 16,
        "global_attn_every_n_layers": 3,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
        **THETAS,
    }
    config = ModernBertConfig(**(options | changes))
    write_modules(folder, pooling="cls", hidden=config.hidden_size)
    model = ModernBertModel(config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.2 if "norm" in name else parameter.shape[-1] ** -0.5
            parameter.copy_(("norm" in name) + spread * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def spell_as_4(folder: Path, **thetas: float) -> Path:
    """Rewrite config.json as transformers 4.48 to 4.57, and scripts that convert training code, spell it."""
    config = json.loads((folder / "config.json").read_text())
    old = {name: value for name, value in config.items() if name not in NEW_KEYS}
    extra = {
        "global_attn_every_n_layers": 3,
        "layer_norm_eps": 1e-05,
        "position_embedding_type": "sans_pos",
        "repad_logits_with_grad": False,
        "reference_compile": False,
        "torch_dtype": "float32",
        "transformers_version": "4.51.3",
    }
    (folder / "config.json").write_text(json.dumps(old | extra | THETAS | thetas))
    return folder
