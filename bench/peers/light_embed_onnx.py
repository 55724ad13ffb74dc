"""light-embed with a local model: sorted by characters, each batch padded to its longest text."""

from importlib.metadata import version
from pathlib import Path

from bench.onnx_model import model_file, pooling, session_settings, without_telemetry
from bench.peers import Encoder, Unavailable

ENVIRONMENT = "peers"
KINDS = ("float32", "int8_dynamic")
BATCH_SIZES = (32, 16, 8, 4)

TASKS = Path("/proc/self/task")  # one entry a thread


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """cache is not used.

    Errors: Unavailable if it takes another number of threads, which it has no setting for.
    """
    without_telemetry()
    import light_embed
    import numpy as np

    file = model_file(folder, kind)
    before = running()
    model = light_embed.TextEmbedding(
        str(file.parent),
        device="cpu",
        model_config={"onnx_file": file.name, "pooling_mode": pooling(folder), "normalize": True},
    )
    taken = running() - before + 1  # the caller's is one of them
    if taken != threads:
        raise Unavailable(
            f"light-embed {version('light-embed')} takes {taken} threads, not {threads}, and has no setting"
        )
    session = model.modules[0]._session
    effective = {
        "version": version("light-embed"),
        "file": file.name,
        **session_settings(session),
        "threads": f"{taken}, not set: what ONNX Runtime takes",
    }
    return Encoder(
        lambda texts, batch_size: np.asarray(
            model.encode(texts, batch_size=batch_size or BATCH_SIZES[0]), np.float32
        ),
        effective,
    )


def running() -> int:
    """How many threads this process has."""
    if not TASKS.exists():
        raise Unavailable("how many threads light-embed takes can only be seen on Linux")
    return len(list(TASKS.iterdir()))
