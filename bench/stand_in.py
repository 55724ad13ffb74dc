"""A model folder whose IR was exported as the published ones were, by the last optimum-intel that could.

    python -m bench.shapes granite-embedding-311m-multilingual-r2 CHECKPOINT
    python -m bench.stand_in CHECKPOINT OUT [--int8] [--environment FOLDER]

The export runs in an environment of its own, some gigabytes of the old versions of EXPORTER. It is made in a
temporary folder, or kept in --environment for the next time. Nothing of it is imported here. pip's settings
say where packages come from; as they are, the torch for Linux brings CUDA, which nothing here uses.

The graph is a traced one: padding and windows are masks (B, 1, T, T) that every layer's attention reads.
--int8 adds the static INT8 twin, from the installed NNCF with its defaults. Knows nothing of accuracy: the
texts that the twin is calibrated with are few, and in English.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.corpus import mixed

# The last optimum-intel that exports ModernBERT, and what it works with. It asks for less than it needs.
EXPORTER = (
    "torch==2.13.0",
    "transformers==4.51.3",
    "huggingface-hub<1.0",
    "datasets<4",
    "openvino==2026.4.1",
    "onnx<2",
)
WITHOUT_DEPENDENCIES = ("optimum==1.25.3", "optimum-intel==1.23.0")
EXPORT = """
import sys
from optimum.intel import OVModelForFeatureExtraction
model = OVModelForFeatureExtraction.from_pretrained(sys.argv[1], export=True, compile=False)
model.save_pretrained(sys.argv[2])
"""
OWN = shutil.ignore_patterns(
    "openvino", "onnx", "gguf", "edge_embed.json"
)  # made of the checkpoint by others
IR = "openvino/openvino_model.xml"
INT8 = "openvino/openvino_model_qint8_quantized.xml"
CALIBRATION_TEXTS = 24
CALIBRATION_TOKENS = range(16, 129)


def stand_in(checkpoint: Path, out: Path, environment: Path, *, int8: bool = False) -> Path:
    """Copy a checkpoint folder to `out` and put its exported IR into it, whole or not at all.

    environment  made if it is not there yet
    int8         also the static INT8 twin

    Errors: SystemExit if `out` exists; CalledProcessError if pip or the exporter fails.
    """
    if out.exists():
        raise SystemExit(f"{out} exists; name a folder that does not")
    python = exporter(environment)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.partial.") as scratch:
        folder = Path(shutil.copytree(checkpoint, Path(scratch, "folder"), ignore=OWN))
        export(python, checkpoint, folder / IR)
        if int8:
            quantize(folder / IR, folder / INT8, calibration(folder))
        folder.rename(out)
    return out


def exporter(environment: Path) -> Path:
    """The Python of the environment of EXPORTER, made if it is not there."""
    finished = environment / ".exporter"
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not finished.exists():
        venv.create(environment, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *EXPORTER], check=True)
        subprocess.run([*pip, "--no-deps", *WITHOUT_DEPENDENCIES], check=True)
        finished.touch()
    return python


def export(python: Path, checkpoint: Path, target: Path) -> None:
    """Export `checkpoint` with the environment of `python` to `target`, an .xml with its .bin beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        subprocess.run([python, "-c", EXPORT, checkpoint.absolute(), scratch], check=True, env=offline)
        for suffix in (".xml", ".bin"):
            Path(scratch, "openvino_model").with_suffix(suffix).rename(target.with_suffix(suffix))


def quantize(source: Path, target: Path, token_ids: Iterable[Sequence[int]]) -> None:
    """Write the static INT8 twin of the IR `source`, as NNCF makes it of any Transformer."""
    import nncf
    import numpy as np
    import openvino as ov

    rows = (np.array([ids], np.int64) for ids in token_ids)
    batches = [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in rows]
    model = ov.Core().read_model(source)
    quantized = nncf.quantize(model, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER)
    ov.save_model(quantized, target, compress_to_fp16=False)


def calibration(folder: Path) -> list[list[int]]:
    """Ids of some texts of CALIBRATION_TOKENS, cut where they are longer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(CALIBRATION_TOKENS[-1])
    ids = (encoding.ids for encoding in tokenizer.encode_batch(mixed(4 * CALIBRATION_TEXTS)))
    return [row for row in ids if len(row) in CALIBRATION_TOKENS][:CALIBRATION_TEXTS]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--int8", action="store_true", help="also the static INT8 twin (needs nncf)")
    parser.add_argument("--environment", type=Path, help="keep the exporter's environment here")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="edge-embed-exporter-") as temporary:
        environment = args.environment or Path(temporary)
        print(stand_in(args.checkpoint, args.out, environment, int8=args.int8))
    return 0


if __name__ == "__main__":
    sys.exit(main())
