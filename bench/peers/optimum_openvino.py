"""optimum-intel's OVModelForFeatureExtraction on the IRs of the folder, pooling and L2 norm in NumPy.

What it leaves to its user is done as sentence-transformers does it: the longest texts first, 32 a batch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from bench.onnx_model import max_tokens
from bench.peers import Encoder
from bench.peers.openvino_plain import exact, ir, one_at_a_time, pooling_of, settings, unpinned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENVIRONMENT = "test"
KINDS = ("float32", "default", "int8")
BATCH_SIZES = (32, 16, 8, 4, 1)


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """default and int8 pin no precision: what then runs, `effective` says."""
    import numpy as np
    from optimum.intel import OVModelForFeatureExtraction
    from transformers import AutoTokenizer

    file = ir(folder, kind)
    properties = exact(threads, cache) if kind == "float32" else unpinned(threads, cache)
    model = OVModelForFeatureExtraction.from_pretrained(
        str(folder), export=False, subfolder=file.parent.name, file_name=file.name, ov_config=properties
    )
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    pool, limit = pooling_of(folder), max_tokens(folder)

    def call(texts: list[str], batch_size: int | None) -> "NDArray[np.float32]":
        size = batch_size or BATCH_SIZES[0]
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            batch = tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=limit, return_tensors="np"
            )
            vectors[rows] = pool(model(**batch).last_hidden_state, batch["attention_mask"])
        return vectors

    return Encoder(one_at_a_time(call), {"file": file.name, **settings(model.request)})
