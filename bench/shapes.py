"""Checkpoints of the exact shapes of the Granite models, with random weights, for speed, memory and parity.

Writes whole folders in hub layout, tensor by tensor, so that one tensor is all it holds. Knows nothing of the
real weights, so the vectors mean nothing; where a number is not public knowledge, a comment says so.

    python -m bench.shapes granite-embedding-311m-multilingual-r2 FOLDER [--seed 0] [--dtype bfloat16]
"""

import argparse
import contextlib
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from bench import vocabulary

DType = Literal["float32", "bfloat16"]
SAFETENSORS = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}  # its name for a dtype, and bytes of a number
BLOCK = 1 << 22  # numbers encoded at a time
TRANSFORMERS = "4.51.3"  # without a version, transformers warns of tokenizers that Mistral once got wrong

# Real encoders have a few channels in the GLU far above the rest, which is what makes INT8 hard. A power of
# two scales without rounding, so that the function stays the same.
OUTLIERS = 4  # channels of each layer
OUTLIER_SCALE = 32.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the cost of a model."""

    architecture: Literal["modernbert", "xlm-roberta"]
    layers: int
    hidden: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    activation: str
    tokenizer: Literal["gemma_like", "byte_level", "unigram"]
    outliers: int = 0

    @property
    def max_tokens(self) -> int:
        """XLM-RoBERTa counts positions from pad_token_id + 1 on: two rows of its table serve no token."""
        return self.positions - 2 if self.architecture == "xlm-roberta" else self.positions


SHAPES = {
    "granite-embedding-311m-multilingual-r2": Shape(
        "modernbert", 22, 768, 12, 1152, 262_152, 32_768, "gelu", "gemma_like", OUTLIERS
    ),
    # The card says "180K" rows; its 195 MB of bfloat16 leave room for 180,000, give or take a few hundred.
    "granite-embedding-97m-multilingual-r2": Shape(
        "modernbert", 12, 384, 12, 1536, 180_000, 32_768, "silu", "byte_level", OUTLIERS
    ),
    # No outliers in these two: GELU follows what would be scaled, and GELU is not linear.
    "granite-embedding-278m-multilingual": Shape(
        "xlm-roberta", 12, 768, 12, 3072, 250_002, 514, "gelu", "unigram"
    ),
    "granite-embedding-107m-multilingual": Shape(
        "xlm-roberta", 6, 384, 12, 1536, 250_002, 514, "gelu", "unigram"
    ),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the checkpoint: its name in transformers, and how its numbers are distributed."""

    name: str
    shape: tuple[int, ...]
    mean: float
    spread: float


def write_checkpoint(name: str, folder: Path, *, seed: int = 0, dtype: DType = "float32") -> Path:
    """Write the folder of a model of SHAPES, and return it.

    The same seed gives the same bytes with the same NumPy and tokenizers. model.safetensors comes last, so
    that a folder that has it is whole. Errors: KeyError for a name that is not in SHAPES.
    """
    return write_shape(SHAPES[name], folder, seed=seed, dtype=dtype)


def write_shape(shape: Shape, folder: Path, *, seed: int = 0, dtype: DType = "float32") -> Path:
    """The same for any shape."""
    tokenizer = getattr(vocabulary, shape.tokenizer)(shape.vocabulary, seed)
    texts = {"tokenizer.json": tokenizer.to_str(pretty=True)} | {
        path: json.dumps(values, indent=2) for path, values in settings(shape, dtype).items()
    }
    for path, text in texts.items():
        with writing(folder / path) as file:
            file.write(text.encode("utf-8"))
    with writing(folder / "model.safetensors") as file:
        write_tensors(shape, file, seed, dtype)
    return folder


def write_tensors(shape: Shape, file: BinaryIO, seed: int, dtype: DType) -> None:
    """A safetensors file: the length of a JSON header, the header, the numbers."""
    code, size = SAFETENSORS[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors(shape):
        start, end = end, end + size * prod(tensor.shape)
        header[tensor.name] = {"dtype": code, "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the numbers have to begin at a multiple of eight bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors(shape):
        flat = numbers(shape, tensor, seed).reshape(-1)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            file.write((block if dtype == "float32" else bfloat16(block)).tobytes())


def numbers(shape: Shape, tensor: Tensor, seed: int) -> NDArray[np.float32]:
    """The values of one tensor, float32 of its shape, from a stream of its own."""
    values = stream(seed, tensor.name).standard_normal(tensor.shape, dtype=np.float32)
    values *= np.float32(tensor.spread)
    values += np.float32(tensor.mean)
    layer, _, part = tensor.name.partition(".mlp.")
    if part and shape.outliers:
        channels = stream(seed, f"{layer}.outliers").choice(shape.inner, shape.outliers, replace=False)
        if (
            part == "Wi.weight"
        ):  # (2 * inner, D): the activation takes the first half, and the second is linear
            values[shape.inner + channels] *= np.float32(OUTLIER_SCALE)
        else:  # Wo (D, inner)
            values[:, channels] /= np.float32(OUTLIER_SCALE)
    return values


def stream(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode("utf-8"))])


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even: its upper 16 bits. Finite values only."""
    bits = values.view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return rounded


def tensors(shape: Shape) -> list[Tensor]:
    """All tensors of the checkpoint, in the order of the file."""
    return modernbert(shape) if shape.architecture == "modernbert" else xlm_roberta(shape)


def modernbert(shape: Shape) -> list[Tensor]:
    hidden, inner = shape.hidden, shape.inner
    parts = [table("embeddings.tok_embeddings", shape.vocabulary, hidden), norm("embeddings.norm", hidden)]
    for i in range(shape.layers):
        layer = f"layers.{i}"
        parts += [
            *([norm(f"{layer}.attn_norm", hidden)] if i else []),  # layer 0 follows embeddings.norm
            table(f"{layer}.attn.Wqkv", 3 * hidden, hidden),
            table(f"{layer}.attn.Wo", hidden, hidden),
            norm(f"{layer}.mlp_norm", hidden),
            table(f"{layer}.mlp.Wi", 2 * inner, hidden),
            table(f"{layer}.mlp.Wo", hidden, inner),
        ]
    return [*parts, norm("final_norm", hidden)]


def xlm_roberta(shape: Shape) -> list[Tensor]:
    hidden, inner = shape.hidden, shape.inner
    parts = [
        table("embeddings.word_embeddings", shape.vocabulary, hidden),
        table("embeddings.position_embeddings", shape.positions, hidden),
        table("embeddings.token_type_embeddings", 1, hidden),
        *norm_and_bias("embeddings.LayerNorm", hidden),
    ]
    for i in range(shape.layers):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            parts += linear(f"{layer}.attention.self.{part}", hidden, hidden)
        parts += [
            *linear(f"{layer}.attention.output.dense", hidden, hidden),
            *norm_and_bias(f"{layer}.attention.output.LayerNorm", hidden),
            *linear(f"{layer}.intermediate.dense", inner, hidden),
            *linear(f"{layer}.output.dense", hidden, inner),
            *norm_and_bias(f"{layer}.output.LayerNorm", hidden),
        ]
    return [*parts, *linear("pooler.dense", hidden, hidden)]


def table(name: str, rows: int, columns: int) -> Tensor:
    """A matrix whose product with unit noise is unit noise."""
    return Tensor(f"{name}.weight", (rows, columns), 0.0, columns**-0.5)


def bias(name: str, size: int) -> Tensor:
    return Tensor(f"{name}.bias", (size,), 0.0, 0.02)


def linear(name: str, rows: int, columns: int) -> list[Tensor]:
    return [table(name, rows, columns), bias(name, rows)]


def norm(name: str, size: int) -> Tensor:
    return Tensor(f"{name}.weight", (size,), 1.0, 0.1)


def norm_and_bias(name: str, size: int) -> list[Tensor]:
    return [norm(name, size), bias(name, size)]


def settings(shape: Shape, dtype: DType) -> dict[str, dict[str, Any] | list[dict[str, Any]]]:
    """The json files of the folder beside tokenizer.json."""
    kinds = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    return {
        "config.json": (modernbert_config if shape.architecture == "modernbert" else xlm_roberta_config)(
            shape, dtype
        ),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": shape.max_tokens,
            "model_input_names": ["input_ids", "attention_mask"],
            **SPECIAL[shape.tokenizer],
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": shape.hidden,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
            "include_prompt": True,
        },
        "sentence_bert_config.json": {"max_seq_length": shape.max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }


SPECIAL = {
    "gemma_like": {"pad_token": "<pad>", "cls_token": "<bos>", "sep_token": "<eos>", "unk_token": "<unk>"},
    "byte_level": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"},
    "unigram": {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"},
}


def modernbert_config(shape: Shape, dtype: DType) -> dict[str, Any]:
    """As transformers 4.x spells it, which 4.x and 5.x read.

    The window, the pattern and the RoPE bases are those of the English Granite R2; the multilingual ones may
    differ in the bases, which change no cost.
    """
    return {
        "architectures": ["ModernBertModel"],
        "model_type": "modernbert",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        "hidden_activation": shape.activation,
        "max_position_embeddings": shape.positions,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 80_000.0,
        "local_rope_theta": 10_000.0,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_pooling": "cls",
        "reference_compile": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "sep_token_id": 1,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "torch_dtype": dtype,
        "transformers_version": TRANSFORMERS,
    }


def xlm_roberta_config(shape: Shape, dtype: DType) -> dict[str, Any]:
    return {
        "architectures": ["XLMRobertaModel"],
        "model_type": "xlm-roberta",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        "hidden_act": shape.activation,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "position_embedding_type": "absolute",
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
        "transformers_version": TRANSFORMERS,
    }


@contextlib.contextmanager
def writing(target: Path) -> Iterator[BinaryIO]:
    """A file that becomes `target`, flushed, when the block ends well, and vanishes when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("name", choices=SHAPES, metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=SAFETENSORS, default="float32")
    args = parser.parse_args(argv)
    print(write_checkpoint(args.name, args.folder, seed=args.seed, dtype=args.dtype))
    return 0


if __name__ == "__main__":
    sys.exit(main())
