"""The PyTorch reference against sentence-transformers, which reads such folders as well; what it refuses."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed import calibration
from edge_embed.errors import EdgeEmbedError, InputError, ModelError
from edge_embed.reference import POOLINGS, ROLES, TorchModel
from tests.checkpoints import change_weights, rewrite_config, tiny_bert, tiny_roberta
from tests.modernbert_checkpoints import tiny_modernbert
from tests.test_imports import HEAVY, loaded_after
from tests.test_offline import notes_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

pytestmark = pytest.mark.reference

TEXTS = [
    "the cat sat on the mat",
    "",
    "hello, world!",
    "is it you or the blue house " * 100,  # over the limit
    "how are you and the red house " * 9,
    "How ARE you? Straße, ΟΔΟΣ, 東京",
    "x",
]
Vectors = NDArray[np.float32]


def official(folder: Path) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def embed(folder: Path, texts: list[str], role: str = "document", **options: Any) -> Vectors:
    model = TorchModel(folder, **options)
    return model.embed(model.tokenize(texts, [role] * len(texts))[0])


def assert_same(one: Vectors, other: Any, atol: float = 1e-6) -> None:
    assert one.dtype == other.dtype == np.float32
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def edit(folder: Path, file: str, **changes: Any) -> Path:
    """Set keys of a json file of the folder."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


# ---- the same vectors as sentence-transformers


@pytest.mark.parametrize("make", [tiny_bert, tiny_roberta, tiny_modernbert])
@pytest.mark.parametrize("role", ROLES)
def test_a_tiny_model_has_the_vectors_of_sentence_transformers(
    tmp_path: Path, make: Callable[[Path], Path], role: str
) -> None:
    folder = make(tmp_path / "checkpoint")
    theirs = official(folder)
    encode = theirs.encode_query if role == "query" else theirs.encode_document
    assert_same(embed(folder, TEXTS, role), encode(TEXTS))


@pytest.mark.minilm
def test_real_texts_have_the_vectors_of_sentence_transformers(minilm: Path) -> None:
    texts = [text.text for text in calibration.evaluation()[::30]]
    found = embed(minilm, texts)
    assert found.shape == (50, 384)
    assert_same(found, official(minilm).encode(texts))


@pytest.mark.parametrize("modes", [*POOLINGS, ["cls", "mean"], ["weightedmean", "lasttoken", "max"]], ids=str)
def test_a_pooling_is_that_of_sentence_transformers(copy: Path, modes: str | list[str]) -> None:
    (copy / "1_Pooling/config.json").write_text(
        json.dumps({"embedding_dimension": 32, "pooling_mode": modes})
    )
    assert_same(embed(copy, TEXTS), official(copy).encode(TEXTS))


def test_without_a_normalize_module_rows_keep_their_length(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "checkpoint", normalize=False)
    found = embed(folder, TEXTS)
    assert np.linalg.norm(found, axis=1).min() > 1.5
    assert_same(found, official(folder).encode(TEXTS), atol=1e-5)  # of lengths around 4


def test_without_modules_json_it_is_mean_pooling_and_nothing_else(copy: Path) -> None:
    (copy / "modules.json").unlink()
    assert_same(embed(copy, TEXTS), official(copy).encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({"passage": "the dog: ", "query": "q ", "other": "a house: "}, "q ", "the dog: "),
        ({"corpus": "the dog: ", "other": "a house: "}, "a house: ", "the dog: "),
        ({"query": "", "other": "a house: "}, "", "a house: "),
    ],
)
def test_a_role_gets_a_prompt_of_its_own_else_the_default_one(
    copy: Path, prompts: dict[str, str], query: str, document: str
) -> None:
    edit(copy, "config_sentence_transformers.json", prompts=prompts, default_prompt_name="other")
    theirs = official(copy)
    assert_same(embed(copy, TEXTS, "query"), theirs.encode(TEXTS, prompt=query))
    assert_same(embed(copy, TEXTS, "document"), theirs.encode(TEXTS, prompt=document))


def test_texts_are_lower_cased_where_the_folder_asks_for_it(copy: Path) -> None:
    state = json.loads((copy / "tokenizer.json").read_text())
    state["normalizer"]["lowercase"] = False
    (copy / "tokenizer.json").write_text(json.dumps(state))
    edit(copy, "tokenizer_config.json", do_lower_case=False)
    cased = embed(copy, ["the CAT"])
    edit(copy, "sentence_bert_config.json", do_lower_case=True)
    assert np.abs(embed(copy, ["the CAT"]) - cased).max() > 0.01
    assert_same(embed(copy, TEXTS), official(copy).encode(TEXTS))


@pytest.mark.parametrize(
    ("make", "limit"),
    [(tiny_bert, 512), (tiny_roberta, 512), (tiny_modernbert, 8192)],
    ids=["BERT", "RoBERTa", "ModernBERT"],
)
def test_texts_are_cut_at_the_models_context_and_counted(
    tmp_path: Path, make: Callable[[Path], Path], limit: int
) -> None:
    folder = make(tmp_path / "checkpoint")
    edit(folder, "sentence_bert_config.json", max_seq_length=None)
    edit(folder, "tokenizer_config.json", model_max_length=int(1e30))
    model = TorchModel(folder)
    ids, cut = model.tokenize(["a " * (limit - 2), "a " * (limit - 1)], ["document"] * 2)
    assert [len(row) for row in ids] == [limit, limit]
    assert ids[0].tolist() == ids[1].tolist()
    assert cut == 1


# ---- the same vectors every time


def test_vectors_are_the_same_at_the_second_time_and_in_two_threads(tiny_checkpoint: Path) -> None:
    first = embed(tiny_checkpoint, TEXTS)
    assert_same(embed(tiny_checkpoint, TEXTS), first)
    assert_same(embed(tiny_checkpoint, TEXTS, threads=2), first)


def test_what_the_process_has_set_for_torch_is_neither_used_nor_lost(tiny_checkpoint: Path) -> None:
    import torch

    first = embed(tiny_checkpoint, TEXTS)
    threads = torch.get_num_threads()
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(3)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(embed(tiny_checkpoint, TEXTS), first)
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.get_num_threads() == 3
        assert torch.is_grad_enabled()
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(threads)


def test_what_transformers_was_told_to_say_stays(tiny_checkpoint: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(31)
    logging.enable_progress_bar()
    try:
        TorchModel(tiny_checkpoint)
        assert logging.get_verbosity() == 31
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)


def test_weights_in_bfloat16_are_computed_with_in_float32(copy: Path, tiny_checkpoint: Path) -> None:
    import torch
    from transformers import AutoModel

    AutoModel.from_pretrained(tiny_checkpoint).to(torch.bfloat16).save_pretrained(copy)
    assert json.loads((copy / "config.json").read_text())["dtype"] == "bfloat16"
    rounded = official(copy)
    rounded.float()
    assert_same(embed(copy, TEXTS), rounded.encode(TEXTS))


def test_loading_and_embedding_open_no_socket(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")  # not by the caller's grace
    work = (
        "from pathlib import Path\n"
        "from edge_embed.reference import TorchModel\n"
        "model = TorchModel(Path(sys.argv[2]))\n"
        "assert model.embed(model.tokenize(['a', 'b'], ['query', 'document'])[0]).shape == (2, 32)"
    )
    assert notes_of(tmp_path, work, tiny_checkpoint) == ""


@pytest.mark.parametrize("module", ["reference", "drift.record", "cli.drift"])
def test_importing_the_module_loads_no_torch(module: str) -> None:
    assert loaded_after(f"import edge_embed.{module}") & HEAVY == set()


# ---- what is refused


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_without_torch_one_line_names_the_extra(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"needs {library}: pip install 'edge-embed\[reference\]'"):
        TorchModel(tiny_checkpoint)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: change_weights(folder, lambda tensors: tensors.pop(name))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "edge-embed pull NAME --checkpoint"),
    "cut weights": (lambda f: os.truncate(f / "model.safetensors", 9999), "transformers cannot load"),
    "a tensor less": (
        without("encoder.layer.1.output.dense.bias"),
        "no tensor 'encoder.layer.1.output.dense",
    ),
    "another width": (lambda f: rewrite_config(f, intermediate_size=60), "transformers cannot load"),
    "no config": (lambda f: (f / "config.json").unlink(), "transformers cannot load"),
    "an unknown architecture": (lambda f: rewrite_config(f, model_type="alien"), "transformers cannot load"),
    "no pooling": (lambda f: (f / "1_Pooling/config.json").unlink(), "1_Pooling/config.json cannot be read"),
    "a list for a table": (lambda f: (f / "1_Pooling/config.json").write_text("[]"), "holds list"),
    "no list of modules": (lambda f: (f / "modules.json").write_text('{"a": 1}'), "is not a list of modules"),
    "another module": (
        lambda f: (f / "modules.json").write_text('[{"type": "a.Transformer", "path": ""}]'),
        "lists Transformer; known are",
    ),
    "an unknown pooling": (lambda f: edit(f, "1_Pooling/config.json", pooling_mode="best"), "pooling 'best'"),
    "prompts not pooled": (lambda f: edit(f, "1_Pooling/config.json", include_prompt=False), "leaves prompt"),
    "damaged json": (lambda f: (f / "config_sentence_transformers.json").write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_is_refused_in_one_line_for(copy: Path, damage: str) -> None:
    do, complaint = DAMAGES[damage]
    do(copy)
    with pytest.raises(ModelError) as caught:
        TorchModel(copy)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_no_thread_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(EdgeEmbedError, match="threads is 0"):
        TorchModel(tiny_checkpoint, threads=0)
