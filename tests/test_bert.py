"""graph/bert.py against transformers' BertModel, then what it refuses."""

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

from edge_embed.checkpoint import open_weights, read_config
from edge_embed.errors import CheckpointError
from edge_embed.graph import bert
from tests.checkpoints import Change, change_weights, rewrite_config, tiny_bert

if TYPE_CHECKING:
    from transformers import BertModel

# The steps of padding to multiples of 16, of the position table's end, and the plugin's vector widths.
LENGTHS = (1, 2, 3, 15, 16, 17, 63, 64, 127, 128, 255, 256, 511, 512)

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """One checkpoint, as transformers runs it and as we do."""

    official: "BertModel"
    ours: openvino.CompiledModel
    vocabulary: int

    def hidden(self, ids: Ids, mask: Ids, types: Ids) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """last_hidden_state (B, T, D) of both."""
        import torch

        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        with torch.no_grad():
            tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
            expected = self.official(**tensors).last_hidden_state.numpy()
        return expected, np.array(self.ours(feed)["last_hidden_state"])

    def assert_equal(self, lengths: Sequence[int], tokens: int | None = None, seed: int = 0) -> None:
        """Random texts of these lengths, padded to `tokens`, give the same token vectors and text vectors."""
        rng = np.random.default_rng(seed)
        shape = (len(lengths), tokens or max(lengths))
        ids = rng.integers(0, self.vocabulary, shape)
        types = rng.integers(0, 2, shape)
        mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
        expected, got = self.hidden(ids, mask, types)
        real = mask.astype(bool)
        scale = np.abs(expected[real]).max()
        np.testing.assert_allclose(got[real], expected[real], rtol=0, atol=1e-5 * scale)
        np.testing.assert_allclose(unit_means(got, mask), unit_means(expected, mask), rtol=0, atol=1e-5)


def unit_means(hidden: NDArray[np.float32], mask: Ids) -> NDArray[np.float64]:
    """Mean pooling and L2 norm in float64: (B, T, D), (B, T) -> (B, D)."""
    pooled = np.einsum("btd,bt->bd", hidden.astype(np.float64), mask) / mask.sum(1, keepdims=True)
    unit: NDArray[np.float64] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return unit


def compiled(folder: Path) -> openvino.CompiledModel:
    config = read_config(folder)
    model = bert.build(config, open_weights(folder, bert.PREFIXES))
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def pair(folder: Path) -> Pair:
    import torch
    from transformers import BertModel

    official = BertModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", add_pooling_layer=False
    )
    return Pair(official.eval(), compiled(folder), read_config(folder).integer("vocab_size"))


@pytest.fixture(scope="module")
def tiny_pair(tiny_checkpoint: Path) -> Pair:
    return pair(tiny_checkpoint)


@pytest.fixture(scope="module")
def minilm_pair(minilm: Path) -> Pair:
    return pair(minilm)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny checkpoint that a test may change."""
    return tiny_bert(tmp_path / "checkpoint")


@pytest.mark.reference
@pytest.mark.parametrize("length", LENGTHS)
def test_a_text_of_any_length_has_the_vectors_of_transformers(tiny_pair: Pair, length: int) -> None:
    tiny_pair.assert_equal([length])
    tiny_pair.assert_equal([length] * 3, seed=1)


@pytest.mark.reference
@pytest.mark.parametrize("length", LENGTHS)
def test_padding_changes_no_vector_of_transformers(tiny_pair: Pair, length: int) -> None:
    tiny_pair.assert_equal([length], tokens=512)
    tiny_pair.assert_equal([length, 512, 1], seed=1)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("lengths", "tokens"),
    [
        (LENGTHS, 512),
        (LENGTHS[::-1], 512),
        ((16, 16, 16), 16),
        ((16, 15, 1), 16),
        ((1, 1, 1, 1), 16),
        ((3, 17, 2, 17), 32),
        ((100, 99, 98), 112),
    ],
)
def test_batches_of_mixed_lengths_have_the_vectors_of_transformers(
    tiny_pair: Pair, lengths: Sequence[int], tokens: int
) -> None:
    tiny_pair.assert_equal(lengths, tokens)


@pytest.mark.reference
def test_padding_is_invisible_whatever_ids_it_holds(tiny_pair: Pair) -> None:
    ids = np.full((2, 32), 7, np.int64)
    ids[1, 20:] = 99
    mask = (np.arange(32) < 20).astype(np.int64)[None].repeat(2, 0)
    _, got = tiny_pair.hidden(ids, mask, np.zeros_like(ids))
    np.testing.assert_array_equal(got[0, :20], got[1, :20])


@pytest.mark.reference
@pytest.mark.minilm
@pytest.mark.parametrize("lengths", [(1,), (16,), (17,), (128,), (512,), (9, 64, 33, 2), (256, 256)])
def test_minilm_has_the_vectors_of_transformers(minilm_pair: Pair, lengths: Sequence[int]) -> None:
    minilm_pair.assert_equal(lengths)
    minilm_pair.assert_equal(lengths, tokens=512)


@pytest.mark.reference
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu_new"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "relu"},
        {"hidden_act": "silu"},
        {"layer_norm_eps": 0.1},
        {"num_attention_heads": 1},
        {"num_attention_heads": 8, "num_hidden_layers": 1},
        {"intermediate_size": 20, "max_position_embeddings": 40, "type_vocab_size": 3},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)
def test_every_option_of_config_json_is_followed(tmp_path: Path, changes: dict[str, Any]) -> None:
    pair(tiny_bert(tmp_path, **changes)).assert_equal([40, 17, 1])


@pytest.mark.reference
def test_the_two_gelus_are_not_the_same(tmp_path: Path) -> None:
    erf = pair(tiny_bert(tmp_path / "erf"))
    tanh = pair(tiny_bert(tmp_path / "tanh", hidden_act="gelu_new"))
    ids = np.arange(16)[None]
    _, one = erf.hidden(ids, np.ones_like(ids), np.zeros_like(ids))
    _, other = tanh.hidden(ids, np.ones_like(ids), np.zeros_like(ids))
    assert np.abs(one - other).max() > 1e-4


@pytest.mark.reference
def test_a_checkpoint_of_a_task_with_prefix_pooler_and_head_is_read(checkpoint: Path) -> None:
    official = pair(checkpoint).official

    def dress(tensors: dict[str, NDArray[Any]]) -> None:
        for name in list(tensors):
            tensors[f"bert.{name}"] = tensors.pop(name)
        tensors["bert.pooler.dense.weight"] = np.ones((32, 32), np.float32)
        tensors["bert.pooler.dense.bias"] = np.ones(32, np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(512)[None]
        tensors["cls.predictions.bias"] = np.ones(124, np.float32)
        tensors["classifier.weight"] = np.ones((2, 32), np.float32)

    change_weights(checkpoint, dress)
    Pair(official, compiled(checkpoint), 124).assert_equal([17, 5])


@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_give_what_transformers_gives_in_float32(checkpoint: Path, dtype: str) -> None:
    import torch
    from transformers import BertModel

    whole = pair(checkpoint)
    half = BertModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype), add_pooling_layer=False)
    half.save_pretrained(checkpoint)
    rounded = pair(checkpoint)
    rounded.assert_equal([40, 17, 1])
    ids = np.arange(16)[None]
    one, _ = whole.hidden(ids, np.ones_like(ids), np.zeros_like(ids))
    other, _ = rounded.hidden(ids, np.ones_like(ids), np.zeros_like(ids))
    assert (
        np.abs(one - other).max() > 1e-4
    )  # so the file is rounded, and the comparison is of rounded weights


@pytest.mark.reference
def test_norms_named_gamma_and_beta_are_read(checkpoint: Path) -> None:
    official = pair(checkpoint).official
    renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(tensors: dict[str, NDArray[Any]]) -> None:
        for name in [name for name in tensors if "LayerNorm" in name]:
            stem, _, kind = name.rpartition("LayerNorm")
            tensors[stem + renamed["LayerNorm" + kind]] = tensors.pop(name)

    change_weights(checkpoint, rename)
    Pair(official, compiled(checkpoint), 124).assert_equal([17, 5])


@pytest.mark.reference
def test_a_sharded_checkpoint_gives_the_same_vectors(checkpoint: Path) -> None:
    official = pair(checkpoint).official
    (checkpoint / "model.safetensors").unlink()
    official.save_pretrained(checkpoint, max_shard_size="20KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 3
    Pair(official, compiled(checkpoint), 124).assert_equal([17, 5])


def test_the_cpu_plugin_fuses_attention_and_every_linear_layer(tiny_checkpoint: Path) -> None:
    nodes = compiled(tiny_checkpoint).get_runtime_model().get_ops()
    kinds = Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)
    assert kinds["FullyConnected"] == 2 * 6
    assert kinds["Subgraph"] + kinds["ScaledDotProductAttention"] + kinds["ScaledAttn"] >= 2
    assert not kinds.keys() & {"Softmax", "SoftMax", "MatMul", "NormalizeL2", "ReduceMean"}, kinds


def test_attention_is_one_node_a_layer_which_passes_and_other_devices_can_find(tiny_checkpoint: Path) -> None:
    model = bert.build(read_config(tiny_checkpoint), open_weights(tiny_checkpoint))
    kinds = Counter(node.get_type_name() for node in model.get_ops())
    assert (kinds["ScaledDotProductAttention"], kinds["Softmax"]) == (2, 0)


def test_constants_share_the_memory_of_the_mapped_file(tiny_checkpoint: Path) -> None:
    weights = open_weights(tiny_checkpoint)
    address = weights.take("embeddings.word_embeddings.weight", (124, 32)).ctypes.data
    model = bert.build(read_config(tiny_checkpoint), weights)
    (table,) = [n for n in model.get_ops() if n.get_friendly_name() == "embeddings.word_embeddings.weight"]
    assert table.data.ctypes.data == address


def test_nodes_are_named_after_the_checkpoint_and_never_after_what_ran_before(tiny_checkpoint: Path) -> None:
    config = read_config(tiny_checkpoint)
    first, second = (
        [
            node.get_friendly_name()
            for node in bert.build(config, open_weights(tiny_checkpoint)).get_ordered_ops()
        ]
        for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == len(first)
    assert set(load_file(tiny_checkpoint / "model.safetensors")) <= set(first)


def test_inputs_and_output_are_named_as_peers_expect(tiny_checkpoint: Path) -> None:
    model = bert.build(read_config(tiny_checkpoint), open_weights(tiny_checkpoint))
    assert [port.get_any_name() for port in model.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [str(port.get_partial_shape()) for port in model.inputs] == ["[?,?]"] * 3
    assert {port.get_element_type().to_string() for port in model.inputs} == {"i64"}
    (output,) = model.outputs
    assert (output.get_names(), str(output.get_partial_shape())) == ({"last_hidden_state"}, "[?,?,32]")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu'"),
        ({"position_embedding_type": "relative_key_query"}, "'relative_key_query'; only 'absolute'"),
        ({"is_decoder": True}, "is_decoder or add_cross_attention"),
        ({"add_cross_attention": True}, "is_decoder or add_cross_attention"),
        ({"num_attention_heads": 5}, "hidden_size 32 .* num_attention_heads 5"),
        ({"num_attention_heads": 0}, "hidden_size 32 .* num_attention_heads 0"),
        ({"num_hidden_layers": 3}, r"no 'encoder\.layer\.2\.attention\.self\.query\.weight'"),
        ({"num_hidden_layers": 1}, r"16 tensors .* 'encoder\.layer\.1\.attention\.output\.LayerNorm\.bias'"),
        ({"vocab_size": 200}, r"'embeddings\.word_embeddings\.weight' .*\(124, 32\).*\(200, 32\)"),
        ({"max_position_embeddings": 128}, r"'embeddings\.position_embeddings\.weight' .*\(512, 32\)"),
        ({"intermediate_size": None}, "no intermediate_size"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps .* not a number"),
    ],
)
def test_a_config_that_is_not_built_or_not_of_these_weights_is_refused(
    checkpoint: Path, values: dict[str, object], said: str
) -> None:
    rewrite_config(checkpoint, **values)
    with pytest.raises(CheckpointError, match=said):
        bert.build(read_config(checkpoint), open_weights(checkpoint))


def set_nan(tensors: dict[str, NDArray[Any]]) -> None:
    tensors["encoder.layer.1.output.dense.bias"][3] = np.nan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.update({"encoder.rel_pos.weight": np.ones(3, np.float32)}),
            r"1 tensors .*'encoder\.rel_pos",
        ),
        (lambda t: t.pop("embeddings.LayerNorm.bias"), r"no 'embeddings\.LayerNorm\.bias'"),
        (
            lambda t: t.update({"embeddings.LayerNorm.bias": np.ones(31, np.float32)}),
            r"LayerNorm\.bias'.*\(31,\)",
        ),
        (set_nan, r"layer\.1\.output\.dense\.bias' .* NaN or Inf in 1 of 32"),
    ],
    ids=["an extra tensor", "a missing one", "a wrong shape", "NaN"],
)
def test_weights_that_are_not_wholly_ours_are_refused_by_name(
    checkpoint: Path, change: Change, said: str
) -> None:
    change_weights(checkpoint, change)
    with pytest.raises(CheckpointError, match=said):
        bert.build(read_config(checkpoint), open_weights(checkpoint))
