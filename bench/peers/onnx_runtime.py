"""ONNX Runtime alone, as its users run it: texts sorted by length, each batch padded to its longest text."""

from pathlib import Path
from typing import TYPE_CHECKING

from bench.onnx_model import max_tokens, model_file, pooling, session_settings, without_telemetry
from bench.peers import Encoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENVIRONMENT = "peers"
KINDS = ("float32", "int8_dynamic")
BATCH_SIZES = (32, 16, 8, 4)  # it has no size of its own


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """cache is not used: ONNX Runtime optimizes the graph anew each time it loads."""
    without_telemetry()
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    file, mode = model_file(folder, kind), pooling(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = {value.name for value in session.get_inputs()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens(folder))

    def batch(ids: list[list[int]]) -> "NDArray[np.float32]":
        mask = np.arange(max(map(len, ids))) < np.array([[len(row)] for row in ids])  # (B, T)
        padded = np.zeros(mask.shape, np.int64)  # which id pads is no matter behind the mask
        padded[mask] = np.concatenate(ids)
        feed = {"input_ids": padded, "attention_mask": mask.astype(np.int64)}
        if "token_type_ids" in inputs:
            feed["token_type_ids"] = np.zeros_like(padded)
        hidden = session.run(["last_hidden_state"], feed)[0]  # (B, T, D)
        # The sum over tokens is the mean, but for its length, which the norm takes away.
        rows = hidden[:, 0] if mode == "cls" else np.einsum("btd,bt->bd", hidden, mask.astype(np.float32))
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    def call(texts: list[str], batch_size: int | None) -> "NDArray[np.float32]":
        size = batch_size or BATCH_SIZES[0]
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        parts = (order[start : start + size] for start in range(0, len(order), size))
        sorted_rows = np.concatenate([batch([ids[i] for i in part]) for part in parts])
        rows = np.empty_like(sorted_rows)
        rows[order] = sorted_rows
        return rows

    effective = {
        "version": onnxruntime.__version__,
        "file": file.name,
        **session_settings(session),
    }
    return Encoder(call, effective)
