"""sentence-transformers as it comes, on PyTorch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers import Encoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENVIRONMENT = "test"
KINDS = ("float32", "bfloat16")
BATCH_SIZES = (32, 16, 8, 4, 1)


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """cache is not used: PyTorch has nothing to keep."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": kind}
    )

    transformer: Any = model[0]

    def call(texts: list[str], batch_size: int | None) -> "NDArray[np.float32]":
        vectors: NDArray[np.float32] = model.encode(
            texts, batch_size=batch_size or BATCH_SIZES[0], show_progress_bar=False
        )
        return vectors

    return Encoder(
        call,
        {
            "file": "model.safetensors",
            "precision": str(model.dtype).removeprefix("torch."),
            "attention": str(transformer.auto_model.config._attn_implementation),
            "threads": str(torch.get_num_threads()),
            "device": str(model.device),
        },
    )
