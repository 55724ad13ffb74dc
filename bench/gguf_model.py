"""Writes a model folder as GGUF for llama.cpp: gguf/model-f32.gguf and gguf/model-q8_0.gguf.

    python -m bench.gguf_model FOLDER

From config.json as transformers 4 spells it, 1_Pooling, and a model.safetensors in float32; names and keys
are those of llama.cpp's own converter. ModernBERT, BERT and XLM-RoBERTa. Knows nothing of texts: the files
have no vocabulary, so that llama.cpp is given token ids, the same as every other library.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.onnx_model import pooling

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILES = {"F32": "gguf/model-f32.gguf", "Q8_0": "gguf/model-q8_0.gguf"}  # by what GGUF calls the numbers
ARCHITECTURES = {"modernbert": "modern-bert", "bert": "bert", "xlm-roberta": "bert"}
UNUSED = ("pooler.", "embeddings.position_ids")  # what no vector depends on
KEPT = ("token_types", "position_embd")  # tables that llama.cpp leaves in float32 whatever the rest is


def write(folder: Path) -> list[Path]:
    """Write both files, and return them.

    A file takes its place when it is whole; one tensor is all that is held of it.
    Errors: SystemExit for an architecture or numbers that are not written here.
    """
    return [write_as(folder, kind) for kind in FILES]


def write_as(folder: Path, kind: str) -> Path:
    """One of FILES."""
    import gguf

    config = json.loads((folder / "config.json").read_text("utf-8"))
    architecture = ARCHITECTURES.get(config["model_type"])
    if architecture is None:
        raise SystemExit(
            f"{folder} is a {config['model_type']}; GGUF is written of {', '.join(ARCHITECTURES)}"
        )
    target = folder / FILES[kind]
    target.parent.mkdir(exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture)
    describe(writer, config, folder, kind)

    tensors = list(named(folder, architecture, config))
    kinds = gguf.GGMLQuantizationType
    stored = [
        kinds[kind] if values.ndim == 2 and not name.startswith(KEPT) else kinds.F32
        for name, values in tensors
    ]
    for (name, values), dtype in zip(tensors, stored, strict=True):
        shape = gguf.quant_shape_to_byte_shape(values.shape, dtype) if dtype is kinds.Q8_0 else values.shape
        number = np.dtype(np.uint8 if dtype is kinds.Q8_0 else np.float32)
        size = int(np.prod(shape)) * number.itemsize
        writer.add_tensor_info(name, shape, number, size, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for (_, values), dtype in zip(tensors, stored, strict=True):
        writer.write_tensor_data(gguf.quantize(values, dtype))
    writer.close()
    partial.replace(target)
    return target


def describe(writer: "GGUFWriter", config: dict[str, Any], folder: Path, kind: str) -> None:
    """The metadata: sizes, attention, pooling."""
    import gguf

    modern = config["model_type"] == "modernbert"
    writer.add_name(folder.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if kind == "F32" else gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(config["max_position_embeddings"] - first_position(config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["norm_eps" if modern else "layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType[pooling(folder).upper()])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    if not modern:
        writer.add_token_type_count(config["type_vocab_size"])
        return
    writer.add_sliding_window(config["local_attention"])
    writer.add_sliding_window_pattern(config["global_attn_every_n_layers"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    writer.add_rope_freq_base(config["global_rope_theta"])
    writer.add_rope_freq_base_swa(config["local_rope_theta"])
    writer.add_string(f"{ARCHITECTURES['modernbert']}.hidden_activation", config["hidden_activation"])


def named(
    folder: Path, architecture: str, config: dict[str, Any]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(llama.cpp's name, values as they lie on the disk) of each tensor that it takes."""
    import gguf

    ids = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(ids[architecture], config["num_hidden_layers"])
    for name, values in tensors(folder / "model.safetensors"):
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise SystemExit(f"llama.cpp's {architecture} has no place for the tensor {name}")
        # RoBERTa's first rows of positions serve no token, and llama.cpp counts from 0.
        yield found, values[first_position(config) :] if found == "position_embd.weight" else values


def first_position(config: dict[str, Any]) -> int:
    return config["pad_token_id"] + 1 if config["model_type"] == "xlm-roberta" else 0


def tensors(file: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """What a safetensors file has, but for UNUSED: mapped, not read.

    It is the length of a JSON header, the header, the numbers.
    """
    data = np.memmap(file, np.uint8, "r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    for name, entry in json.loads(data[8:start].tobytes()).items():
        if name == "__metadata__" or name.startswith(UNUSED):
            continue
        if entry["dtype"] != "F32":
            raise SystemExit(f"{name} of {file} is {entry['dtype']}; GGUF is written of float32")
        first, last = (start + offset for offset in entry["data_offsets"])
        yield name, data[first:last].view(np.float32).reshape(entry["shape"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    for file in write(parser.parse_args(argv).folder):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
