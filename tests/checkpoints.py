"""Tiny seeded checkpoints in hub layout, written by transformers itself so that it is the judge of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from torch.nn import Module

# Enough words for the tests' sentences; the rest falls apart into characters, as in a real WordPiece table.
WORDS = [
    *("the", "a", "cat", "dog", "sat", "on", "mat", "runs", "fast", "slow", "red", "blue", "house", "hello"),
    *("world", "how", "are", "you", "is", "it", "and", "or"),
]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-_/"

Change = Callable[[dict[str, NDArray[Any]]], object]

# Special tokens by what tokenizer_config.json calls them, in the order of their ids.
OF_BERT = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
OF_ROBERTA = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def vocabulary(special: dict[str, str] = OF_BERT) -> list[str]:
    """Special tokens, characters, their continuations, words."""
    return [
        *special.values(),
        *CHARACTERS,
        *(f"##{c}" for c in CHARACTERS),
        *(word for word in WORDS if len(word) > 1),
    ]


def write_tokenizer(folder: Path, *, max_length: int = 512, special: dict[str, str] = OF_BERT) -> int:
    """tokenizer.json and tokenizer_config.json of a lower-casing WordPiece; returns the vocabulary's size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = vocabulary(special)
    first, last, unknown = (special[key] for key in ("cls_token", "sep_token", "unk_token"))
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(word, words.index(word)) for word in (first, last)]
    )
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.enable_truncation(8)  # as all-MiniLM-L6-v2 does: settings that a loader has to ignore
    tokenizer.enable_padding(length=8)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        # The classes of RoBERTa are of other kinds of tokenizer; this one takes the file as it is.
        "tokenizer_class": "BertTokenizer" if special is OF_BERT else "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "do_lower_case": True,
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(words)


def write_modules(folder: Path, *, pooling: str = "mean", hidden: int = 32, normalize: bool = True) -> None:
    """modules.json, 1_Pooling and the sentence-transformers files, with the old keys."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    rows = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    config = {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": pooling == "mean"}
    config["pooling_mode_cls_token"] = pooling == "cls"
    (folder / "1_Pooling/config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 512, "do_lower_case": False})
    )
    behaviour = {"prompts": {"query": "how is ", "document": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(behaviour))


def tiny_bert(
    folder: Path, seed: int = 0, *, pooling: str = "mean", normalize: bool = True, **changes: Any
) -> Path:
    """A BERT of 2 layers, hidden 32, 4 heads, with random weights large enough that every part matters.

    changes  options of BertConfig that differ from these
    """
    import torch
    from transformers import BertConfig, BertModel

    size = write_tokenizer(folder)
    write_modules(folder, pooling=pooling, normalize=normalize)
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    }
    config = BertConfig(**(options | changes))
    model = BertModel(config, add_pooling_layer=False)
    disturb(model)
    model.save_pretrained(folder)
    return folder


def tiny_roberta(folder: Path, seed: int = 0, *, model_type: str = "xlm-roberta", **changes: Any) -> Path:
    """An XLM-RoBERTa, or another RoBERTa, of the sizes of `tiny_bert`: 512 tokens, the padding token is 1.

    changes  options of XLMRobertaConfig that differ from these
    """
    import torch
    from transformers import AutoConfig, AutoModel

    size = write_tokenizer(folder, special=OF_ROBERTA)
    write_modules(folder, pooling="cls")
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.3,
    }
    config = AutoConfig.for_model(model_type, **(options | changes))
    model = AutoModel.from_config(config, add_pooling_layer=False)
    disturb(model)
    with torch.no_grad():  # rows that transformers starts with zeros, as if they could not matter
        for table in (model.embeddings.word_embeddings, model.embeddings.position_embeddings):
            table.weight[config.pad_token_id] = 0.3 * torch.randn(config.hidden_size)
    model.save_pretrained(folder)
    return folder


def disturb(model: "Module") -> None:
    """Move norms and biases from their defaults, weight 1 and bias 0, which would hide a forgotten one."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))


def change_weights(folder: Path, change: Change) -> Path:
    """Rewrite model.safetensors after `change` has edited the table of its tensors."""
    tensors = {name: value.copy() for name, value in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def rewrite_config(folder: Path, **values: object) -> Path:
    """Set keys of config.json; None writes a null, which counts as absent."""
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    return folder
