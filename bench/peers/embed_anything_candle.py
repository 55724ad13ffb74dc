"""embed_anything with its own engine, candle, on the checkpoint: batches in the order of the texts.

Its ONNX engine is not asked: of a model of one's own it always takes the mean of the tokens, and it gives
ONNX Runtime half of the cores, whatever the threads are to be. Candle cuts at the model's positions, not at
the shorter limit that sentence_bert_config.json may set.
"""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.onnx_model import pooling, read, without_telemetry
from bench.peers import Encoder, Unavailable

ENVIRONMENT = "peers"
KINDS = ("float32",)
BATCH_SIZES = (32, 16, 8, 4)

NAME, REVISION = "local/model", "0" * 40
READ = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """cache is not used.

    It takes models from the hub's cache only, so `folder` is shown to it as one. Threads are set in the
    environment, as it has no other way, and so for the whole process.

    Errors: Unavailable for an architecture that it does not know.
    """
    import numpy as np

    hub = hub_cache(folder)
    os.environ |= {
        "HF_HUB_CACHE": str(hub),
        "RAYON_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
    }
    without_telemetry()  # it imports onnxruntime too
    import embed_anything  # after the environment, which is read once

    mode = {"cls": embed_anything.Pooling.Cls, "mean": embed_anything.Pooling.Mean}[pooling(folder)]
    try:
        model: Any = embed_anything.EmbeddingModel.from_pretrained_hf(NAME, revision=REVISION, pooling=mode)
    except BaseException as error:  # Rust's panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise Unavailable(
            f"embed_anything {version('embed_anything')}: {str(error).splitlines()[0]}"
        ) from error
    effective = {
        "version": version("embed_anything"),
        "file": "model.safetensors",
        "threads": f"{threads}, as RAYON_NUM_THREADS and OMP_NUM_THREADS",
        "max_tokens": str(read(folder / "config.json")["max_position_embeddings"]),
    }
    return Encoder(
        lambda texts, batch_size: np.array(
            [
                row.embedding
                for row in embed_anything.embed_query(
                    texts,
                    embedder=model,
                    config=embed_anything.TextEmbedConfig(batch_size=batch_size or BATCH_SIZES[0]),
                )
            ],
            np.float32,
        ),
        effective,
    )


def hub_cache(folder: Path) -> Path:
    """A cache of the hub with one model, `folder`, in links; it goes when the process does."""
    hub = Path(tempfile.mkdtemp(prefix="edge-embed-hub-"))
    atexit.register(shutil.rmtree, hub, ignore_errors=True)
    repository = hub / f"models--{NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for name in READ:
        (snapshot / name).symlink_to((folder / name).resolve())
    return hub
