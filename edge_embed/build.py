"""Checkpoint folder -> float32 IR, and the record of both. Knows which module builds which model_type."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edge_embed import __version__, atomic, ir
from edge_embed.checkpoint import open_weights, read_config
from edge_embed.errors import CheckpointError, InputError, OutputError
from edge_embed.graph import bert, modernbert
from edge_embed.manifest import read_manifest
from edge_embed.record import RECORD, file_entries, read_record, write_record
from edge_embed.tokenization import Tokenizer

if TYPE_CHECKING:
    from openvino import Model

    from edge_embed.checkpoint import Config, Weights


class Architecture(Protocol):
    """What a module in graph/ offers."""

    PREFIXES: tuple[str, ...]  # that checkpoints of tasks put before the encoder's tensor names

    def build(self, config: "Config", weights: "Weights") -> "Model": ...


# By model_type of config.json.
BUILDERS: dict[str, Architecture] = {
    "bert": bert,
    "camembert": bert,
    "modernbert": modernbert,
    "roberta": bert,
    "xlm-roberta": bert,
}

# What a model folder has besides weights: copied when the IR is built elsewhere.
SIDE_FILES = ("*.json", "*/config.json", "vocab.txt", "README.md", "LICENSE*", "NOTICE*")
LEFT_BEHIND = (RECORD, "model.safetensors.index.json")


def build(checkpoint: Path, out: Path | None = None) -> Path:
    """Build openvino/openvino_model.xml of a checkpoint folder in hub layout; returns the model folder.

    out  another folder for the result, which gets the side files too; None: the checkpoint's own

    Everything is read and checked before anything is written, and what is written is whole or not there.
    Errors: CheckpointError, ModelError, InputError and OutputError, each of one line.
    """
    config = read_config(checkpoint)
    architecture = BUILDERS.get(config.model_type)
    if architecture is None:
        built = ", ".join(sorted(BUILDERS))
        raise CheckpointError(
            f"{config.path} is of model_type {config.model_type!r}; built are: {built}; "
            "optimum-intel may know it: edge-embed build --via optimum"
        )
    check_side_files(checkpoint)
    model = architecture.build(config, open_weights(checkpoint, architecture.PREFIXES))
    return install(model, checkpoint, out, {})


def check_side_files(checkpoint: Path) -> None:
    """Read what the Embedder will read beside the graph, so that a folder it would refuse is not built."""
    manifest = read_manifest(checkpoint)
    tokenizer = Tokenizer(checkpoint, max_tokens=manifest.max_tokens, lower_case=manifest.lower_case)
    tokenizer.check_fits(manifest.vocabulary)


def install(model: "Model", checkpoint: Path, out: Path | None, made_by: dict[str, str]) -> Path:
    """Write the float32 IR of a checkpoint, side files where they are missing, and the record of all.

    made_by  what made the graph, where that was not us
    """
    origin = read_record(checkpoint)
    folder = checkpoint if out is None else out
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the result")
    in_place = folder.exists() and folder.samefile(checkpoint)
    if not in_place:
        copy_side_files(checkpoint, folder)
    file = folder / "openvino" / ir.VARIANTS["float32"]
    ir.write(model, file)

    present = [*side_files(folder), file, file.with_suffix(".bin")]
    entries = file_entries(folder, [path.relative_to(folder).as_posix() for path in present])
    if in_place:  # what was found out about the graph before does not hold for this one
        known = {key: value for key, value in origin.items() if key not in ("self_check", "preparation")}
        record = known | {"files": origin.get("files", {}) | entries}
    else:  # where the checkpoint came from holds for the result, and nothing else does
        inherited = {key: origin[key] for key in origin if key in ("name", "source")}
        record = {"source": source_of(checkpoint)} | inherited | {"files": entries}
    write_record(folder, record | {"built_by": versions() | made_by})
    return folder


def source_of(checkpoint: Path) -> dict[str, Any]:
    """What a record says of a checkpoint that was not pulled: the weights, by which references are told."""
    weights = file_entries(checkpoint, [path.name for path in checkpoint.glob("*.safetensors")])
    return {"kind": "checkpoint", "sha256": {name: entry["sha256"] for name, entry in weights.items()}}


def side_files(folder: Path) -> list[Path]:
    """The files of a folder that an IR needs, or has to have, beside it."""
    found = {path for pattern in SIDE_FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name not in LEFT_BEHIND)


def copy_side_files(source: Path, target: Path) -> None:
    """Copy the side files of one folder to another."""
    for path in side_files(source):
        copy = target / path.relative_to(source)
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_bytes(copy, path.read_bytes())
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot copy {path} to {copy}: {error.strerror or error}") from error


def versions() -> dict[str, str]:
    """What built an IR."""
    import openvino

    return {"edge_embed": __version__, "openvino": openvino.get_version()}
