"""openvino.genai's TextEmbeddingPipeline, on the IRs of the folder and the tokenizer's.

It runs whatever list it is given as one padded batch, so lists are made for it as sentence-transformers
would: the longest texts first, 32 a batch.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.onnx_model import pooling
from bench.peers import Encoder, Unavailable
from bench.peers.openvino_plain import exact, ir, one_at_a_time, unpinned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENVIRONMENT = "test"
KINDS = ("float32", "default", "int8")
BATCH_SIZES = (32, 16, 8, 4, 1)

TOKENIZER = "openvino_tokenizer.xml"


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """default and int8 pin no precision."""
    import numpy as np
    import openvino
    from openvino_genai import TextEmbeddingPipeline

    file = ir(folder, kind)
    if not (file.parent / TOKENIZER).is_file():
        raise Unavailable(f"{folder.name} has no openvino/{TOKENIZER}; edge-embed build writes it")
    config = TextEmbeddingPipeline.Config()
    config.pooling_type = getattr(TextEmbeddingPipeline.PoolingType, pooling(folder).upper())
    config.normalize = True
    properties = exact(threads, cache) if kind == "float32" else unpinned(threads, cache)
    with tempfile.TemporaryDirectory() as scratch:
        place(folder, file, Path(scratch))
        pipeline = TextEmbeddingPipeline(scratch, "CPU", config, **properties)

    def call(texts: list[str], batch_size: int | None) -> "NDArray[np.float32]":
        size = batch_size or BATCH_SIZES[0]
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors: list[list[float] | list[int]] = [[]] * len(texts)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            found = pipeline.embed_documents([texts[i] for i in rows])
            for i, row in zip(rows, found, strict=True):
                vectors[i] = row
        return np.array(vectors, np.float32)

    # The pipeline keeps its compiled model to itself.
    chosen = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    precision = "f32, asked for" if kind == "float32" else f"{chosen}, OpenVINO's default here"
    effective = {"file": file.name, "precision": precision, "threads": f"{threads}, asked for"}
    return Encoder(one_at_a_time(call), effective)


def place(folder: Path, file: Path, scratch: Path) -> None:
    """Links under the names that the pipeline looks for, all in one folder."""
    links = {"config.json": folder / "config.json"}
    for suffix in (".xml", ".bin"):
        links[f"openvino_model{suffix}"] = file.with_suffix(suffix)
        links[f"openvino_tokenizer{suffix}"] = (file.parent / TOKENIZER).with_suffix(suffix)
    for name, target in links.items():
        (scratch / name).symlink_to(target.absolute())
