"""fastembed with a model of our own: batches in the order of the texts, 256 unless told."""

import uuid
from pathlib import Path

from bench.onnx_model import model_file, pooling, read, session_settings, without_telemetry
from bench.peers import Encoder

ENVIRONMENT = "peers"
KINDS = ("float32", "int8_dynamic")
BATCH_SIZES = (256, 32, 16, 8, 4)


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """cache is not used. One process (`parallel=None`), whose session has all threads."""
    without_telemetry()
    import fastembed
    import numpy as np
    from fastembed.common.model_description import ModelSource, PoolingType

    file = model_file(folder, kind)
    name = f"{folder.name} {kind} {uuid.uuid4()}"  # fastembed refuses a name that it has seen
    fastembed.TextEmbedding.add_custom_model(
        model=name,
        pooling={"cls": PoolingType.CLS, "mean": PoolingType.MEAN}[pooling(folder)],
        normalization=True,
        sources=ModelSource(hf="nowhere/to-be-found"),  # must name one; specific_model_path goes first
        dim=read(folder / "config.json")["hidden_size"],
        model_file=file.name,
    )
    model = fastembed.TextEmbedding(
        name, threads=threads, providers=["CPUExecutionProvider"], specific_model_path=str(file.parent)
    )
    session = model.model.model
    effective = {
        "version": fastembed.__version__,
        "file": file.name,
        **session_settings(session),
    }
    return Encoder(
        lambda texts, batch_size: np.array(
            list(model.embed(texts, batch_size=batch_size or BATCH_SIZES[0], parallel=None)), np.float32
        ),
        effective,
    )
