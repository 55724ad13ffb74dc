"""Writes what libraries that read ONNX need of a model folder, into its onnx/ folder.

    .venv-peers/bin/python -m bench.onnx_model FOLDER

    model.onnx              float32, traced by optimum-onnx: dynamic batch and length, gives last_hidden_state
    model_quint8.onnx       its dynamic INT8 twin, as sentence-transformers makes it for this machine
    config.json, tokenizer.json, tokenizer_config.json, special_tokens_map.json
                            the folder's own; the longest text, which those libraries read from
                            tokenizer_config.json, is what sentence_bert_config.json says

Also says what the folder is (`pooling`, `max_tokens`), without any library. Writes no file of 2 GB or more,
and knows nothing of accuracy: the twin is not calibrated.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bench.peers import Unavailable

FOLDER = "onnx"
FILES = {"float32": "model.onnx", "int8_dynamic": "model_quint8.onnx"}
COPIED = ("config.json", "tokenizer.json")
CPU_FLAGS = Path("/proc/cpuinfo")
INSTRUCTIONS = "quantized_for"  # the key in the twin's metadata


def without_telemetry() -> None:
    """To be called before onnxruntime is imported: its wheels send usage data out unless told not to."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def write(folder: Path) -> Path:
    """Write folder/onnx, whole or not at all, and return it. The largest shapes take about 8 GB.

    Errors: SystemExit if it is there already.
    """
    out = folder / FOLDER
    if out.exists():
        raise SystemExit(f"{out} exists; remove it to have it written again")
    without_telemetry()
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{FOLDER}.partial.") as scratch:
        partial = Path(scratch, FOLDER)
        partial.mkdir()
        export(folder, partial / FILES["float32"])
        quantize(partial / FILES["float32"], partial / FILES["int8_dynamic"], instructions())
        for name in COPIED:
            shutil.copy(folder / name, partial)
        for name, content in tokenizer_files(folder).items():
            (partial / name).write_text(json.dumps(content, ensure_ascii=False, indent=2), "utf-8")
        partial.rename(out)
    return out


def export(folder: Path, target: Path) -> None:
    """Trace the checkpoint in `folder` as optimum-onnx does it for sentence-transformers."""
    from optimum.exporters.onnx import main_export

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        main_export(
            str(folder),
            scratch,
            task="feature-extraction",
            library_name="transformers",  # else the graph pools, and has an output of that too
            dtype="fp32",
            do_validation=False,
            local_files_only=True,
        )
        Path(scratch, FILES["float32"]).rename(target)


def quantize(source: Path, target: Path, machine: str) -> None:
    """Write the dynamic INT8 twin of `source`, and in its metadata the `machine` that it is for.

    machine  avx2 or avx512_vnni, as in sentence-transformers' export_dynamic_quantized_onnx_model
    """
    import onnx
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    recipe = getattr(AutoQuantizationConfig, machine)(is_static=False)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        ORTQuantizer(source).quantize(recipe, save_dir=scratch, file_suffix="")
        model = onnx.load(Path(scratch, source.name))
    onnx.helper.set_model_props(model, {INSTRUCTIONS: machine})
    onnx.save(model, target)


def instructions() -> str:
    """Which of sentence-transformers' recipes is for this machine."""
    flags = CPU_FLAGS.read_text().split() if CPU_FLAGS.exists() else []
    return "avx512_vnni" if "avx512_vnni" in flags else "avx2"


def tokenizer_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The two small files that say how a tokenizer is used. light-embed asks for the second, be it empty."""
    tokens = read(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").exists() else {}
    return {
        "tokenizer_config.json": read(folder / "tokenizer_config.json")
        | {"model_max_length": max_tokens(folder)},
        "special_tokens_map.json": tokens,
    }


def max_tokens(folder: Path) -> int:
    """The longest text in tokens, special ones included, as sentence-transformers has it."""
    return int(read(folder / "sentence_bert_config.json")["max_seq_length"])


def pooling(folder: Path) -> Literal["cls", "mean"]:
    """How the vectors of the tokens become one. Errors: Unavailable for any other way than these two."""
    modes = read(folder / "1_Pooling" / "config.json")
    on = [name for name, value in modes.items() if name.startswith("pooling_mode_") and value is True]
    if on == ["pooling_mode_cls_token"]:
        return "cls"
    if on == ["pooling_mode_mean_tokens"]:
        return "mean"
    raise Unavailable(f"{folder.name} is pooled by {on or modes}; the benches know CLS and mean")


def model_file(folder: Path, kind: str) -> Path:
    """The ONNX file of a kind. Errors: Unavailable where it was not written."""
    file = folder / FOLDER / FILES[kind]
    if not file.exists():
        raise Unavailable(
            f"{folder.name} has no {FOLDER}/{file.name}; run: python -m bench.onnx_model FOLDER"
        )
    return file


def session_settings(session: Any) -> dict[str, str]:
    """What an onnxruntime.InferenceSession says it runs with."""
    written = session.get_modelmeta().custom_metadata_map
    return {
        "threads": str(session.get_session_options().intra_op_num_threads),
        "providers": ", ".join(session.get_providers()),
        **{key: written[key] for key in (INSTRUCTIONS,) if key in written},
    }


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    print(write(parser.parse_args(argv).folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
