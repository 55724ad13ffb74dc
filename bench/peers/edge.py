"""edge_embed in float32, as a user has it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed import Embedder


def load(
    folder: Path,
    *,
    threads: int,
    cache: Path | None,
    batch_size: int | None,
    compute_type: str = "float32",
) -> Callable[[list[str]], NDArray[np.float32]]:
    """batch_size None is the token-budget plan."""
    embedder = Embedder(folder, compute_type=compute_type, threads=threads, cache_dir=cache or False)
    return lambda texts: embedder.encode(texts, batch_size=batch_size)
