"""tokenizer.json -> openvino/openvino_tokenizer.xml, which openvino.genai wants beside the IR.

The conversion is that of openvino-tokenizers, which takes objects of transformers only: hence the extra
`genai`, and a process of its own. Knows no model's graph. Nothing of this package reads the result.
"""

import logging
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from edge_embed import calibration, child, ir
from edge_embed.errors import ModelError
from edge_embed.manifest import read_manifest
from edge_embed.record import file_entries, read_record, write_record
from edge_embed.tokenization import Tokenizer

logger = logging.getLogger(__name__)

FILE = "openvino/openvino_tokenizer.xml"  # beside openvino_model.xml, where openvino.genai looks for both


def is_installed() -> bool:
    """Whether the libraries that convert are here."""
    return all(find_spec(name) for name in ("openvino_tokenizers", "transformers"))


def add(folder: Path) -> bool:
    """Convert the tokenizer of a model folder and record the result; whether that was possible.

    Texts are cut to the model's limit, as here. Where openvino-tokenizers cannot convert a tokenizer, or its
    result gives other tokens for some of the built-in texts, one line in the log says so.
    """
    try:
        found = child.call(__name__, folder)
    except ModelError as error:
        logger.warning("no %s, so that openvino.genai cannot load %s: %s", FILE, folder, error)
        return False
    if found["different"]:
        logger.warning(
            "%s gives other tokens than tokenizer.json for %d of %d texts in many languages; "
            "openvino.genai gives other vectors for such texts",
            FILE,
            found["different"],
            found["texts"],
        )
    record = read_record(folder)
    files = record.get("files", {}) | file_entries(folder, [FILE, FILE.replace(".xml", ".bin")])
    made_by = {name: version(name) for name in ("openvino-tokenizers", "transformers")}
    write_record(folder, record | {"files": files, "tokenizer_ir": made_by | found})
    return True


def convert(folder: Path) -> dict[str, int]:
    """In the child: write the IR; how many texts were compared, and how many get other tokens from it."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # transformers would load it, for nothing here
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import PreTrainedTokenizerFast

    manifest = read_manifest(folder)
    official = PreTrainedTokenizerFast.from_pretrained(folder)
    model = convert_tokenizer(official, max_length=manifest.max_tokens, truncation=True)
    run = openvino.compile_model(model, "CPU")

    tokenizer = Tokenizer(folder, max_tokens=manifest.max_tokens, lower_case=manifest.lower_case)
    texts = calibration.texts()
    pairs = zip(texts, tokenizer.encode(texts).ids, strict=True)
    different = sum(run([text])["input_ids"][0].tolist() != ids.tolist() for text, ids in pairs)
    ir.write(model, folder / FILE)
    return {"texts": len(texts), "different": different}


if __name__ == "__main__":
    child.answer(lambda: convert(Path(sys.argv[1])))
