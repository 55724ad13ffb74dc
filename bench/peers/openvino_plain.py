"""OpenVINO alone: the IR of a folder as it is, text by text, pooling and L2 norm outside of the graph.

Also what the peers that stand on OpenVINO share. Knows nothing of batches.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.onnx_model import max_tokens, pooling
from bench.peers import Encoder, Unavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENVIRONMENT = "test"
KINDS = ("float32", "int8")
BATCH_SIZES = (1,)

Call = Callable[[list[str], int | None], "NDArray[np.float32]"]
Pool = Callable[["NDArray[np.float32]", "NDArray[np.int64]"], "NDArray[np.float32]"]

FLOAT32 = "openvino/openvino_model.xml"
INT8 = "openvino/openvino_model_qint8_quantized.xml"


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """One text at a time, whatever the batch size; what is not 8 bits runs in float32."""
    import openvino

    file = ir(folder, kind)
    properties = exact(threads, cache) | {"NUM_STREAMS": "1"}
    compiled = openvino.Core().compile_model(file, "CPU", properties)
    names = [port.any_name for port in compiled.inputs]
    request = compiled.create_infer_request()
    tokenizer, pool = tokenizer_of(folder), pooling_of(folder)

    def call(texts: list[str], batch_size: int | None) -> "NDArray[np.float32]":
        import numpy as np

        rows = []
        for text in texts:
            ids = np.array([tokenizer.encode(text).ids], np.int64)
            ones, zeros = np.ones_like(ids), np.zeros_like(ids)
            given = {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}
            feed = {name: given[name] for name in names}
            hidden = request.infer(feed, share_inputs=True, share_outputs=True)[0]
            rows.append(pool(hidden, ones)[0])
        return np.array(rows, np.float32)

    return Encoder(one_at_a_time(call), {"file": file.name, **settings(compiled)})


def one_at_a_time(call: Call) -> Call:
    """A call for any number of threads: OpenVINO refuses an infer request that another thread waits for.

    sentence-transformers, optimum-intel and openvino.genai have one request and no lock.
    """
    lock = threading.Lock()

    def locked(texts: list[str], batch_size: int | None) -> "NDArray[np.float32]":
        with lock:
            return call(texts, batch_size)

    return locked


def ir(folder: Path, kind: str) -> Path:
    """The .xml of a kind. Errors: Unavailable where there is none: some libraries would export their own."""
    file = folder / (INT8 if kind == "int8" else FLOAT32)
    if not file.is_file():
        raise Unavailable(f"{folder.name} has no {file.relative_to(folder)}")
    return file


def exact(threads: int, cache: Path | None) -> dict[str, str]:
    """OpenVINO's properties for float32 activations."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        **unpinned(threads, cache),
    }


def unpinned(threads: int, cache: Path | None) -> dict[str, str]:
    """The same without what changes numbers: they are OpenVINO's own choice."""
    return {"INFERENCE_NUM_THREADS": str(threads)} | ({} if cache is None else {"CACHE_DIR": str(cache)})


def settings(compiled: Any) -> dict[str, str]:
    """What a compiled model says it runs with."""
    asked = {
        "precision": "INFERENCE_PRECISION_HINT",
        "dynamic_quantization_group_size": "DYNAMIC_QUANTIZATION_GROUP_SIZE",
        "threads": "INFERENCE_NUM_THREADS",
        "streams": "NUM_STREAMS",
        "device": "EXECUTION_DEVICES",
    }
    found = {key: compiled.get_property(name) for key, name in asked.items()}
    return {
        key: ",".join(value) if isinstance(value, list) else getattr(value, "to_string", value.__str__)()
        for key, value in found.items()
    }


def tokenizer_of(folder: Path) -> Any:
    """tokenizer.json without padding, cut at the limit of the folder."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens(folder))
    return tokenizer


def pooling_of(folder: Path) -> Pool:
    """(B, T, D) hidden states and (B, T) mask -> (B, D) unit vectors, float32."""
    cls = pooling(folder) == "cls"

    def pool(hidden: "NDArray[np.float32]", mask: "NDArray[np.int64]") -> "NDArray[np.float32]":
        import numpy as np

        # A sum: its length is not that of the mean, and makes no difference to the unit vector.
        rows = hidden[:, 0] if cls else np.einsum("btd,bt->bd", hidden, mask.astype(np.float32))
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    return pool
