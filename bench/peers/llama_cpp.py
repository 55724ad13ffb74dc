"""llama.cpp through the xllamacpp wheel, on the GGUF files that bench.gguf_model writes.

Its server inside the process, without HTTP. It is given token ids. A batch size is how many texts one call
asks for, which the server runs at once as far as they fit its physical batch.
"""

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers import Encoder, Unavailable
from bench.peers.openvino_plain import tokenizer_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENVIRONMENT = "peers"
KINDS = ("float32", "q8_0")
BATCH_SIZES = (4, 1, 8, 16, 32)  # llama-server runs 4 at once

FILES = {"float32": "gguf/model-f32.gguf", "q8_0": "gguf/model-q8_0.gguf"}
TOKENS = 512  # of a physical batch: llama.cpp's own
MEMORY = Path("/proc/meminfo")


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """cache is not used: llama.cpp maps its file as it is."""
    import numpy as np
    import xllamacpp

    file = folder / FILES[kind]
    if not file.is_file():
        raise Unavailable(f"{folder.name} has no {FILES[kind]}; run: python -m bench.gguf_model FOLDER")
    tokenizer = tokenizer_of(folder)
    rows = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    server = Server(file, threads)
    server.fit(TOKENS)

    def call(texts: list[str], batch_size: int | None) -> "NDArray[np.float32]":
        size = batch_size or BATCH_SIZES[0]
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        longest = max(map(len, ids))
        spare(longest * rows * 4)
        server.fit(longest)
        batches = (ids[start : start + size] for start in range(0, len(ids), size))
        return np.array([row for batch in batches for row in server.embed(batch)], np.float32)

    return Encoder(
        call,
        {
            "file": file.name,
            "precision": kind,
            "threads": str(threads),
            "instructions": xllamacpp.get_system_info().strip(" |\n"),
            "version": xllamacpp.__version__,
        },
    )


def spare(size: int) -> None:
    """llama.cpp has a place for the logits of each token that it reads at once, also where there are none.

    Errors: Unavailable if these bytes are more than are free.
    """
    if not MEMORY.exists():
        return
    fields = dict(line.split(":") for line in MEMORY.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    if size > free:
        raise Unavailable(
            f"its buffer of logits would take {size / 1e9:.0f} GB; {free / 1e9:.0f} GB are free"
        )


class Server:
    """The server, started again with a larger physical batch when a text does not fit it."""

    def __init__(self, file: Path, threads: int) -> None:
        self._file, self._threads = file, threads
        self._tokens = 0
        self._server: Any = None
        self._growing = threading.Lock()

    def fit(self, tokens: int) -> None:
        """Make room for texts of `tokens`: an encoder has to read a text in one physical batch."""
        import xllamacpp

        with self._growing:
            if tokens <= self._tokens:
                return
            self._tokens = max(TOKENS, 1 << (tokens - 1).bit_length())
            params = xllamacpp.CommonParams()
            params.model.path = str(self._file)
            params.embedding = True
            params.n_batch = params.n_ubatch = self._tokens
            params.n_ctx = self._tokens
            params.n_parallel, params.kv_unified = max(BATCH_SIZES), True  # each may have the whole context
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
            params.fit_params = False  # or it tries sizes first
            params.verbosity = 0
            self._server = xllamacpp.Server(params)

    def embed(self, batch: list[list[int]]) -> list[list[float]]:
        """Unit vectors of texts given as token ids."""
        answer = self._server.handle_embeddings({"input": batch})
        return [row["embedding"] for row in sorted(answer["data"], key=lambda row: row["index"])]
