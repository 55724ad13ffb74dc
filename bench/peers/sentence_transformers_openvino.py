"""sentence-transformers with its OpenVINO backend, on the IRs of the folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers import Encoder
from bench.peers.openvino_plain import exact, ir, one_at_a_time, settings, unpinned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENVIRONMENT = "test"
KINDS = ("float32", "default", "int8")
BATCH_SIZES = (32, 16, 8, 4, 1)


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """default and int8 pin no precision: what then runs, `effective` says."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)  # it pools and normalises in torch
    file = ir(folder, kind)  # named, since it would silently export its own if it found none
    properties = exact(threads, cache) if kind == "float32" else unpinned(threads, cache)
    options = {"device": "CPU", "file_name": str(file.relative_to(folder)), "ov_config": properties}
    model = SentenceTransformer(str(folder), backend="openvino", local_files_only=True, model_kwargs=options)

    transformer: Any = model[0]

    def call(texts: list[str], batch_size: int | None) -> "NDArray[np.float32]":
        vectors: NDArray[np.float32] = model.encode(
            texts, batch_size=batch_size or BATCH_SIZES[0], show_progress_bar=False
        )
        return vectors

    return Encoder(one_at_a_time(call), {"file": file.name, **settings(transformer.auto_model.request)})
