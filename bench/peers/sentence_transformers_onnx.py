"""sentence-transformers with its ONNX backend.

In the environment of the peers it is an older one: the newest needs transformers 5, and optimum-onnx, which
the backend loads models with, needs transformers below 4.58.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.onnx_model import model_file, session_settings, without_telemetry
from bench.peers import Encoder

ENVIRONMENT = "peers"
KINDS = ("float32", "int8_dynamic")
BATCH_SIZES = (32, 16, 8, 4)


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """cache is not used: ONNX Runtime optimizes the graph anew each time it loads."""
    without_telemetry()
    import numpy as np
    import onnxruntime
    import torch
    from sentence_transformers import SentenceTransformer

    file = model_file(folder, kind)
    torch.set_num_threads(threads)  # it pools and normalises in torch
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = SentenceTransformer(
        str(folder),
        backend="onnx",
        device="cpu",
        local_files_only=True,
        model_kwargs={
            "file_name": file.relative_to(folder).as_posix(),
            "export": False,  # else it would silently export its own if it found none
            "provider": "CPUExecutionProvider",
            "session_options": options,
        },
    )
    transformer: Any = model.transformers_model
    names = ("sentence-transformers", "optimum-onnx", "transformers", "onnxruntime")
    effective = {
        "version": ", ".join(f"{name} {version(name)}" for name in names),
        "file": file.name,
        **session_settings(transformer.model),
    }
    return Encoder(
        lambda texts, batch_size: np.asarray(
            model.encode(
                texts,
                batch_size=batch_size or BATCH_SIZES[0],
                normalize_embeddings=True,
                show_progress_bar=False,
            ),
            np.float32,
        ),
        effective,
    )
