"""The exact-shape checkpoints of bench/shapes.py, judged by transformers and sentence-transformers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import shapes
from bench.shapes import SHAPES, Shape, write_checkpoint, write_shape

# Parameters in millions: the card's number for 311m, the count of these very shapes for the others.
MILLIONS = {
    "granite-embedding-311m-multilingual-r2": 311.66,
    "granite-embedding-97m-multilingual-r2": 97.45,
    "granite-embedding-278m-multilingual": 278.04,
    "granite-embedding-107m-multilingual": 106.99,
}
TEXT = "When does the ferry go? Le bac part à midi.\n\n    for word in 文.split():\n"


def small(name: str, layers: int = 2) -> Shape:
    """The shape `name` with few layers, narrow, and with a table of 3,000 rows."""
    return replace(SHAPES[name], layers=layers, hidden=96, inner=64, vocabulary=3000)


@pytest.mark.reference
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_has_the_same_tensors_for_the_config(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    values = shapes.settings(SHAPES[name], "float32")["config.json"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(tmp_path))
    theirs = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    assert {tensor.name: tensor.shape for tensor in shapes.tensors(SHAPES[name])} == theirs
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[name], abs=0.01)


@pytest.mark.reference
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_loads_the_folder_and_its_output_is_of_unit_size(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    folder = write_shape(small(name), tmp_path)
    model, info = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())  # missing, unexpected, mismatched keys, error messages
    ids = torch.arange(5, 105).reshape(2, 50)
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert 0.5 < hidden.std() < 2


@pytest.mark.reference
def test_outlier_channels_are_there_and_leave_the_function_unchanged(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    shape = small("granite-embedding-311m-multilingual-r2", layers=3)
    ids = torch.arange(5, 105).reshape(2, 50)
    outputs, largest = [], []
    for outliers in (0, 4):
        folder = write_shape(replace(shape, outliers=outliers), tmp_path / str(outliers))
        model = AutoModel.from_pretrained(folder).eval()
        seen: list[torch.Tensor] = []
        model.layers[1].mlp.Wo.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            outputs.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state)
        largest.append(seen[0].abs().amax(dim=(0, 1)).sort().values)  # of each channel
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-6)
    assert (largest[1][-4:] > 4 * largest[1][-5]).all()
    assert largest[0][-1] < 2 * largest[0][-5]


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(name: str, tmp_path: Path) -> None:
    first, second = (write_shape(small(name), tmp_path / str(seed), seed=seed) for seed in (0, 1))
    again = tmp_path / "again"
    child = f"""from pathlib import Path; from bench.shapes import Shape, write_shape
write_shape({small(name)!r}, Path({str(again)!r}))"""
    subprocess.run([sys.executable, "-c", child], check=True, cwd=Path(__file__).parents[1])
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 8
    assert all((first / path).read_bytes() == (again / path).read_bytes() for path in files)
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()


@pytest.mark.reference
def test_bfloat16_is_float32_rounded_as_torch_rounds(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    shape = small("granite-embedding-97m-multilingual-r2")
    full = load_file(write_shape(shape, tmp_path / "full") / "model.safetensors")
    half = load_file(write_shape(shape, tmp_path / "half", dtype="bfloat16") / "model.safetensors")
    assert full.keys() == half.keys()
    assert all(torch.equal(full[name].to(torch.bfloat16), half[name]) for name in full)


@pytest.mark.parametrize("name", SHAPES)
def test_the_tokenizer_fills_the_table_and_cuts_text_into_pieces_of_some_characters(
    name: str, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    shape = SHAPES[name]
    folder = write_shape(replace(shape, layers=0, hidden=1, positions=3, inner=0, outliers=0), tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == shape.vocabulary
    assert sorted(tokenizer.get_vocab().values()) == list(range(shape.vocabulary))
    encoding = tokenizer.encode(TEXT)
    config = json.loads((folder / "config.json").read_text())
    assert encoding.ids[0] == config["bos_token_id"]
    assert encoding.ids[-1] == config["eos_token_id"]
    assert tokenizer.token_to_id(shapes.SPECIAL[shape.tokenizer]["pad_token"]) == config["pad_token_id"]
    assert 2 < len(TEXT) / (len(encoding.ids) - 2) < 6
    assert tokenizer.token_to_id(shapes.SPECIAL[shape.tokenizer]["unk_token"]) not in encoding.ids


@pytest.mark.parametrize("tokenizer", ["gemma_like", "byte_level"])
def test_a_bpe_gives_every_text_back(tokenizer: str) -> None:
    from bench import vocabulary

    table = getattr(vocabulary, tokenizer)(60_000, 0)
    text = f"{TEXT}🦄 ሰላም \t  Ünï"
    assert table.decode(table.encode(text).ids) == text


@pytest.mark.reference
def test_sentence_transformers_and_edge_embed_embed_alike_from_the_folder(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from edge_embed import Embedder
    from edge_embed.build import build

    folder = write_shape(small("granite-embedding-311m-multilingual-r2"), tmp_path)
    texts = [TEXT, "ferry", 40 * TEXT]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    build(folder)
    ours = Embedder(str(folder)).encode(texts)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_failed_write_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(shapes, "numbers", fail)
    with pytest.raises(OSError, match="disk full"):
        write_shape(small("granite-embedding-311m-multilingual-r2"), tmp_path)
    assert not list(tmp_path.glob("*safetensors*"))


def test_an_unknown_name_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        shapes.main(["granite", "folder"])
    assert "granite-embedding-97m-multilingual-r2" in capsys.readouterr().err


@pytest.mark.large
@pytest.mark.parametrize("name", SHAPES)
def test_the_exact_shape_is_written_in_full(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(name, tmp_path)
    size = (folder / "model.safetensors").stat().st_size
    assert size / 4e6 == pytest.approx(MILLIONS[name], abs=0.02)
