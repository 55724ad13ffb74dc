"""OpenVINO alone: the IR of a folder as it is, text by text, CLS pooling and L2 norm outside of the graph."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray
from tokenizers import Tokenizer


def load(
    folder: Path,
    *,
    threads: int,
    cache: Path | None,
    batch_size: int | None,
    file: str = "openvino/openvino_model.xml",
) -> Callable[[list[str]], NDArray[np.float32]]:
    """One text at a time, whatever batch_size says; cache is OpenVINO's CACHE_DIR, off unless given."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": "1",
    }
    if cache is not None:
        properties["CACHE_DIR"] = str(cache)
    request = openvino.Core().compile_model(folder / file, "CPU", properties).create_infer_request()

    def encode(texts: list[str]) -> NDArray[np.float32]:
        rows = []
        for text in texts:
            ids = np.array([tokenizer.encode(text).ids], np.int64)
            feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            row = request.infer(feed, share_inputs=True, share_outputs=True)[0][0, 0]
            rows.append(row / np.linalg.norm(row))
        return np.array(rows, np.float32)

    return encode
