"""Gets the models of the demo and the benchmarks ready: pulls, or makes, what is not there yet."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from bench import stand_in
from bench.measure import say
from bench.shapes import SHAPES, write_checkpoint
from edge_embed import EdgeEmbedError, Embedder
from edge_embed.cli import main

MINILM = "all-MiniLM-L6-v2"
GRANITE = "granite-embedding-311m-multilingual-r2"
MADE = Path(__file__).parents[1] / "build" / "models"
INT8 = {
    "int8_weights": "openvino/openvino_model_int8_weights.xml",
    "int8": stand_in.INT8,
}


def ready(name: str) -> Embedder:
    """The model `name`, from this machine if it is there, else through `edge-embed pull`."""
    try:
        return Embedder(name)
    except EdgeEmbedError as missing:
        print(f"{missing}\nrunning that now, once", file=sys.stderr)
    command("pull", name)
    return Embedder(name)


def folder(name: str, *, kinds: Iterable[str]) -> Path:
    """The folder of a model with all that a benchmark runs of it.

    name   a folder; a name of SHAPES, made with random weights in build/models; or a model to pull
    kinds  compute types; an INT8 IR that they need and that is missing is quantized, which may take minutes
    Errors: SystemExit with the exit code of the command that failed.
    """
    if name in SHAPES and not Path(name).exists():
        found = made(name)
    else:
        found = Path(name) if Path(name).is_dir() else ready(name).folder
    for compute_type in dict.fromkeys("int8_weights" if kind == "int8_dynamic" else kind for kind in kinds):
        if compute_type in INT8 and not (found / INT8[compute_type]).exists():
            command("quantize", str(found), "--compute-type", compute_type, "--no-drift")
    return found


def made(name: str) -> Path:
    """An exact shape with random weights, and the IR that others have of such a model.

    optimum-intel exports what it can, and the published models come from it; its IR is what everybody runs
    then. ModernBERT takes an environment of older versions, build/exporter, made once. Others are built here.
    """
    checkpoint, exported = MADE / name, MADE / f"{name}-exported"
    if not (checkpoint / "model.safetensors").exists():
        say(f"making {name} with random weights")
        write_checkpoint(name, checkpoint)
    if not (checkpoint / "edge_embed.json").exists():
        command("build", str(checkpoint))
    if SHAPES[name].architecture != "modernbert":
        return checkpoint
    if not exported.exists():
        say(f"exporting {name}, in an environment of older versions")
        stand_in.stand_in(checkpoint, exported, MADE.parent / "exporter")
    for file in (checkpoint / "openvino").glob("openvino_tokenizer.*"):  # openvino.genai reads it
        if not (exported / "openvino" / file.name).exists():
            shutil.copy(file, exported / "openvino")
    return exported


def command(*arguments: str) -> None:
    """One of edge-embed's own."""
    if code := main(list(arguments)):
        raise SystemExit(code)
