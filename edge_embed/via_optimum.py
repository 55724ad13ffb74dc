"""Checkpoint folder -> float32 IR by the exporter of optimum-intel, for what graph/ has no module for.

The exporter loads the model into torch and traces it, in a process of its own. Knows how to call it, not what
comes out: the names in such a graph are the exporter's, and passes may match less of it than of our own.
"""

import importlib.metadata
import sys
import tempfile
from pathlib import Path

from edge_embed import build, child, ir
from edge_embed.errors import InputError, ModelError


def exporter() -> str:
    """Name and version of what exports, for the record and for people.

    Errors: InputError when it is not installed.
    """
    try:
        return f"optimum-intel {importlib.metadata.version('optimum-intel')}"
    except importlib.metadata.PackageNotFoundError:
        raise InputError("--via optimum needs optimum-intel: pip install 'edge-embed[optimum]'") from None


def export(checkpoint: Path, out: Path | None = None) -> Path:
    """As `build.build`, with the IR made by optimum-intel; returns the model folder.

    Errors: those of `build.build`, and ModelError with the exporter's own words where it refuses.
    """
    import openvino

    name = exporter()
    build.check_side_files(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        try:
            made_by = child.call(__name__, checkpoint, folder)
        except ModelError as error:
            raise ModelError(f"{name} does not export {checkpoint}: {error}") from None
        model = ir.read(openvino.Core(), Path(folder, ir.VARIANTS["float32"]))
        return build.install(model, checkpoint, out, {"exporter": name, **made_by})


def trace(checkpoint: Path, folder: Path) -> dict[str, str]:
    """In the child: write the IR of the encoder to `folder`; the versions of what made it."""
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    main_export(
        str(checkpoint),
        folder,
        task="feature-extraction",
        library_name="transformers",  # sentence_transformers would put the pooling into the graph
        local_files_only=True,
        model_loading_kwargs={"torch_dtype": "float32"},  # else a checkpoint's own bfloat16
        ov_config=OVConfig(dtype="fp32"),  # else 8 bits from a billion parameters on
    )
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers")}


if __name__ == "__main__":
    child.answer(lambda: trace(Path(sys.argv[1]), Path(sys.argv[2])))
