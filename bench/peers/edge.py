"""edge_embed as a user has it. Batches are planned by tokens, so there is one batch size: its own."""

from pathlib import Path

from bench.peers import Encoder

ENVIRONMENT = "test"
KINDS = ("float32", "bfloat16", "int8_weights", "int8_dynamic", "int8")
BATCH_SIZES = (0,)


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """cache None is no blob cache."""
    from edge_embed import Embedder

    embedder = Embedder(folder, compute_type=kind, threads=threads, cache_dir=cache or False)
    plan = embedder.plan
    effective = {
        "file": plan.file.name,
        "compute_type": plan.compute_type,
        "threads": str(plan.threads),
        "streams": str(plan.streams),
        "many_streams": str(plan.many_streams),
        **{key: str(value) for key, value in plan.properties.items() if key not in ("CACHE_DIR",)},
    }
    return Encoder(
        lambda texts, batch_size: embedder.encode(texts, batch_size=batch_size, show_progress_bar=False),
        effective,
    )
