"""graph/bert.py against transformers' XLMRobertaModel and its twins, layer by layer, then what it refuses."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edge_embed import Embedder, ir
from edge_embed.build import build
from edge_embed.checkpoint import open_weights, read_config
from edge_embed.errors import CheckpointError
from edge_embed.graph import bert, head
from tests.checkpoints import Change, change_weights, rewrite_config, tiny_roberta

if TYPE_CHECKING:
    from transformers import XLMRobertaModel

# The steps of padding to multiples of 16, the plugin's vector widths, and the end of the position table.
LENGTHS = (1, 2, 3, 15, 16, 17, 63, 64, 65, 66, 127, 128, 129, 130, 191, 192, 193, 194, 255, 256, 257, 258)
LAST_LENGTHS = (511, 512)

PAD = 1
VOCABULARY = 124
TASKS = ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
MODEL_TYPES = {"xlm-roberta": "XLMRoberta", "roberta": "Roberta", "camembert": "Camembert"}

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


def right_padded(lengths: Sequence[int], tokens: int | None = None) -> Ids:
    """The attention mask (B, T) of texts of these lengths."""
    return (np.arange(tokens or max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)


def random_ids(mask: Ids, seed: int = 0) -> Ids:
    """Tokens (B, T) without the padding token, which stands where the mask says padding."""
    ids = np.random.default_rng(seed).integers(PAD + 1, VOCABULARY, mask.shape)
    return np.where(mask == 1, ids, PAD)


def unit_rows(hidden: Vectors, mask: Ids) -> dict[str, NDArray[np.float64]]:
    """CLS and mean pooling with L2 norm in float64: (B, T, D), (B, T) -> (B, D) each."""
    wide = hidden.astype(np.float64)
    pooled = {
        "cls": wide[:, 0],
        "mean": np.einsum("btd,bt->bd", wide, mask) / mask.sum(1, keepdims=True),
    }
    return {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in pooled.items()}


@dataclass(frozen=True)
class Pair:
    """One checkpoint, as transformers runs it and as we do, with the output of every layer."""

    official: "XLMRobertaModel"
    ours: openvino.CompiledModel

    def hidden(self, mask: Ids, ids: Ids) -> tuple[list[Vectors], list[Vectors]]:
        """Of both: embeddings, layer 0, layer 1, ..., each (B, T, D)."""
        import torch

        expected: list[Vectors] = []
        hooks = [
            part.register_forward_hook(lambda part, given, out: expected.append(out.numpy()))
            for part in [self.official.embeddings, *self.official.encoder.layer]
        ]
        with torch.no_grad():
            self.official(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        for hook in hooks:
            hook.remove()
        result = self.ours({"input_ids": ids, "attention_mask": mask})
        last, *others = (np.array(result[port]) for port in self.ours.outputs)
        return expected, [*others, last]

    def assert_equal(self, mask: Ids, seed: int = 0, ids: Ids | None = None) -> None:
        """Texts under this mask: every layer's rows of tokens, and the text vectors, are the same."""
        expected, got = self.hidden(mask, random_ids(mask, seed) if ids is None else ids)
        tokens = mask.astype(bool)
        for place, (one, other) in enumerate(zip(expected, got, strict=True)):
            np.testing.assert_allclose(
                other[tokens], one[tokens], rtol=0, atol=1e-5, err_msg=f"output {place} of {len(expected)}"
            )
        want, have = unit_rows(expected[-1], mask), unit_rows(got[-1], mask)
        for name in want:
            np.testing.assert_allclose(have[name], want[name], rtol=0, atol=1e-5, err_msg=name)


def built(folder: Path) -> openvino.Model:
    return bert.build(read_config(folder), open_weights(folder, bert.PREFIXES))


def compiled(folder: Path, extra_outputs: Sequence[str] = ()) -> openvino.CompiledModel:
    """Our graph, with the outputs of these nodes behind last_hidden_state."""
    model = built(folder)
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    for name in extra_outputs:
        model.add_outputs(nodes[name].output(0))
    properties = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    return openvino.Core().compile_model(model, "CPU", properties)


def official_model(folder: Path) -> "XLMRobertaModel":
    import torch
    from transformers import AutoModel

    options = {"attn_implementation": "eager", "add_pooling_layer": False}
    return AutoModel.from_pretrained(folder, dtype=torch.float32, **options).eval()


def pair(folder: Path, official: "XLMRobertaModel | None" = None) -> Pair:
    before_last = range(read_config(folder).integer("num_hidden_layers") - 1)
    names = ["embeddings.LayerNorm", *(f"encoder.layer.{i}.output.LayerNorm" for i in before_last)]
    return Pair(official or official_model(folder), compiled(folder, names))


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny XLM-RoBERTa. Read only."""
    return tiny_roberta(tmp_path_factory.mktemp("roberta") / "checkpoint")


@pytest.fixture(scope="module")
def tiny_pair(tiny_folder: Path) -> Pair:
    return pair(tiny_folder)


@pytest.fixture
def checkpoint(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))


# Equal to transformers.


@pytest.mark.reference
@pytest.mark.parametrize("length", LENGTHS + LAST_LENGTHS)
def test_every_layer_gives_a_text_of_any_length_the_vectors_of_transformers(
    tiny_pair: Pair, length: int
) -> None:
    tiny_pair.assert_equal(right_padded([length]))
    tiny_pair.assert_equal(right_padded([length], tokens=512), seed=1)


@pytest.mark.reference
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("tokens", [17, 130, 258, 512])
def test_batches_of_mixed_lengths_have_the_vectors_of_transformers(
    tiny_pair: Pair, batch: int, tokens: int
) -> None:
    rng = np.random.default_rng(1000 * batch + tokens)
    mixed = rng.choice([length for length in LENGTHS if length <= tokens], batch).tolist()
    tiny_pair.assert_equal(right_padded(mixed, tokens))
    tiny_pair.assert_equal(right_padded([*mixed[1:], tokens]))


@pytest.mark.reference
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_roberta_under_each_of_its_names_has_the_vectors_of_transformers(
    tmp_path: Path, model_type: str
) -> None:
    both = pair(tiny_roberta(tmp_path, model_type=model_type))
    assert type(both.official).__name__ == f"{MODEL_TYPES[model_type]}Model"
    both.assert_equal(right_padded([130, 17, 1]))


@pytest.mark.reference
def test_the_padding_token_inside_a_text_takes_no_position_as_in_transformers(tiny_pair: Pair) -> None:
    mask = right_padded([40, 33], 48)
    ids = random_ids(mask)
    ids[0, 1:39:3] = PAD  # also twice in a row, and first
    ids[0, 20:24] = PAD
    ids[1, 0] = PAD
    tiny_pair.assert_equal(mask, ids=ids)
    other = ids.copy()
    other[0, 1] = PAD + 1  # every later position moves by one
    _, (one, *_) = tiny_pair.hidden(mask, ids)
    _, (two, *_) = tiny_pair.hidden(mask, other)
    assert np.abs(one[0, 2:40] - two[0, 2:40]).max() > 0.1


@pytest.mark.reference
@pytest.mark.parametrize(
    "changes",
    [
        {"pad_token_id": 0},
        {"pad_token_id": 5, "max_position_embeddings": 46},
        {"type_vocab_size": 2},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu"},
        {"layer_norm_eps": 0.1},
        {"num_attention_heads": 1},
        {"num_attention_heads": 8, "num_hidden_layers": 3},
        {"intermediate_size": 20, "max_position_embeddings": 42},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)
def test_every_option_of_config_json_is_followed(tmp_path: Path, changes: dict[str, Any]) -> None:
    both = pair(tiny_roberta(tmp_path, **changes))
    mask = right_padded([40, 17, 1])
    ids = np.random.default_rng(0).integers(6, VOCABULARY, mask.shape)
    both.assert_equal(mask, ids=np.where(mask == 1, ids, changes.get("pad_token_id", PAD)))


@pytest.mark.reference
@pytest.mark.parametrize(
    "lie",
    [
        {"pad_token_id": 0},
        {"pad_token_id": 2},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "silu"},
        {"layer_norm_eps": 1e-3},
        {"num_attention_heads": 2},
    ],
    ids=lambda lie: ",".join(f"{key}={value}" for key, value in lie.items()),
)
def test_a_config_that_lies_about_the_weights_is_seen_by_these_tests(
    checkpoint: Path, lie: dict[str, Any]
) -> None:
    official = official_model(checkpoint)
    both = pair(rewrite_config(checkpoint, **lie), official)
    with pytest.raises(AssertionError, match=r"output \d of 3"):
        both.assert_equal(right_padded([40, 17, 12]))


@pytest.mark.reference
@pytest.mark.parametrize(
    "name",
    [
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.1.attention.self.query.weight",
        "encoder.layer.1.attention.self.key.weight",
        "encoder.layer.1.attention.self.value.bias",
        "encoder.layer.1.attention.output.LayerNorm.weight",
        "encoder.layer.1.output.dense.weight",
        "encoder.layer.1.output.LayerNorm.bias",
    ],
)
def test_every_tensor_of_the_tiny_weights_matters(checkpoint: Path, name: str) -> None:
    def halve(tensors: dict[str, NDArray[Any]]) -> None:
        tensors[name] = tensors[name] / 2

    official = official_model(checkpoint)
    both = pair(change_weights(checkpoint, halve), official)
    with pytest.raises(AssertionError, match=r"output \d of 3"):
        both.assert_equal(right_padded([40, 17, 1]))


# All ways in which checkpoints are saved.


@pytest.mark.reference
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_checkpoint_of_a_task_with_prefix_and_head_is_read(
    tmp_path: Path, model_type: str, task: str
) -> None:
    import transformers

    folder = tiny_roberta(tmp_path, model_type=model_type)
    official = official_model(folder)
    trained = getattr(transformers, f"{MODEL_TYPES[model_type]}For{task}")(official.config)
    trained.roberta = official
    trained.save_pretrained(folder)
    names = set(load_file(folder / "model.safetensors"))
    assert "roberta.embeddings.LayerNorm.weight" in names
    assert not all(name.startswith("roberta.") for name in names)
    pair(folder, official).assert_equal(right_padded([17, 5]))


@pytest.mark.reference
def test_a_checkpoint_of_transformers_4_gives_the_same_file_as_one_of_5(
    checkpoint: Path, tmp_path: Path
) -> None:
    def dress(tensors: dict[str, NDArray[Any]]) -> None:
        for name in list(tensors):
            tensors[f"roberta.{name}"] = tensors.pop(name)
        tensors["roberta.embeddings.position_ids"] = np.arange(514)[None]
        tensors["roberta.pooler.dense.weight"] = np.ones((32, 32), np.float32)
        tensors["roberta.pooler.dense.bias"] = np.ones(32, np.float32)
        tensors["lm_head.decoder.weight"] = np.ones((VOCABULARY, 32), np.float32)

    official = official_model(checkpoint)
    ir.write(built(checkpoint), tmp_path / "new" / "model.xml")
    change_weights(checkpoint, dress)
    rewrite_config(
        checkpoint,
        dtype=None,
        torch_dtype="float32",
        output_past=True,
        position_embedding_type="absolute",
        transformers_version="4.17.0.dev0",
    )
    ir.write(built(checkpoint), tmp_path / "old" / "model.xml")
    for name in ("model.xml", "model.bin"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes()
    pair(checkpoint, official).assert_equal(right_padded([40, 17]))


@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_give_what_transformers_gives_in_float32(checkpoint: Path, dtype: str) -> None:
    import torch

    whole = official_model(checkpoint)
    official_model(checkpoint).to(getattr(torch, dtype)).save_pretrained(checkpoint)
    pair(checkpoint).assert_equal(right_padded([40, 17, 1]))
    with pytest.raises(AssertionError, match="output 0 of 3"):  # so the file is rounded
        pair(checkpoint, whole).assert_equal(right_padded([40, 17, 1]))


@pytest.mark.reference
def test_a_sharded_checkpoint_gives_the_same_vectors(checkpoint: Path) -> None:
    official = official_model(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    official.save_pretrained(checkpoint, max_shard_size="20KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 3
    pair(checkpoint, official).assert_equal(right_padded([17, 5]))


# The graph, and the folder that is built.


def test_the_cpu_plugin_fuses_attention_and_every_linear_layer(tiny_folder: Path) -> None:
    nodes = compiled(tiny_folder).get_runtime_model().get_ops()
    kinds = Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)
    assert kinds["FullyConnected"] == 2 * 6
    assert kinds["Subgraph"] + kinds["ScaledDotProductAttention"] + kinds["ScaledAttn"] >= 2
    assert not kinds.keys() & {"Softmax", "SoftMax", "MatMul", "NormalizeL2", "ReduceMean"}, kinds


def test_token_types_are_no_input_and_their_row_is_in_the_graph(tiny_folder: Path) -> None:
    model = built(tiny_folder)
    ports = head.standardize(model)
    assert [port.get_any_name() for port in model.inputs] == ["input_ids", "attention_mask"]
    assert (ports.output.get_names(), ports.width) == ({"last_hidden_state"}, 32)
    assert head.token_table_rows(ports) == VOCABULARY
    names = [node.get_friendly_name() for node in model.get_ops()]
    assert set(load_file(tiny_folder / "model.safetensors")) <= set(names)


@pytest.mark.reference
def test_the_embedder_gives_texts_the_cls_vectors_of_transformers(checkpoint: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    texts = ["the cat sat on the mat", "a <pad> dog runs <pad><pad> fast", "hello", "word " * 600]
    official = official_model(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    expected = []
    for text in texts:
        batch = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
        with torch.no_grad():
            hidden = official(batch["input_ids"], batch["attention_mask"]).last_hidden_state.numpy()
        expected.append(unit_rows(hidden, batch["attention_mask"].numpy())["cls"][0])
    vectors = Embedder(build(checkpoint), cache_dir=False).encode(texts)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


# What is refused.


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu'"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'; only 'absolute'"),
        ({"is_decoder": True}, "is_decoder or add_cross_attention"),
        ({"pad_token_id": None}, "has no pad_token_id, which this model needs$"),
        ({"pad_token_id": -1}, "^pad_token_id in .* is -1, not from 0 to max_position_embeddings 514 - 2$"),
        ({"pad_token_id": 513}, "^pad_token_id in .* is 513, not from 0"),
        ({"type_vocab_size": 2}, r"'embeddings\.token_type_embeddings\.weight' .*\(1, 32\).*\(2, 32\)"),
        ({"max_position_embeddings": 512}, r"'embeddings\.position_embeddings\.weight' .*\(514, 32\)"),
        ({"num_hidden_layers": 3}, r"no 'encoder\.layer\.2\.attention\.self\.query\.weight'"),
        ({"num_hidden_layers": 1}, r"16 tensors .* 'encoder\.layer\.1\.attention\.output\.LayerNorm\.bias'"),
    ],
    ids=lambda value: None if isinstance(value, str) else ",".join(value),
)
def test_a_config_that_is_not_built_or_not_of_these_weights_is_refused(
    checkpoint: Path, values: dict[str, object], said: str
) -> None:
    rewrite_config(checkpoint, **values)
    with pytest.raises(CheckpointError, match=said) as caught:
        built(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.update({"embeddings.emb_layer_norm_before.weight": np.ones(32, np.float32)}),
            r"1 tensors .*'embeddings\.emb_layer_norm_before\.weight'",
        ),
        (
            lambda t: t.pop("embeddings.token_type_embeddings.weight"),
            r"no 'embeddings\.token_type_embeddings",
        ),
    ],
    ids=["an extra tensor", "a missing one"],
)
def test_weights_that_are_not_wholly_ours_are_refused_by_name(
    checkpoint: Path, change: Change, said: str
) -> None:
    change_weights(checkpoint, change)
    with pytest.raises(CheckpointError, match=said):
        built(checkpoint)
