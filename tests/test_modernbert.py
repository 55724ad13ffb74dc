"""graph/modernbert.py against transformers' ModernBertModel, layer by layer, then what it refuses."""

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edge_embed import ir
from edge_embed.checkpoint import open_weights, read_config
from edge_embed.errors import CheckpointError
from edge_embed.graph import modernbert, ops
from tests.checkpoints import Change, change_weights, rewrite_config
from tests.modernbert_checkpoints import spell_as_4, tiny_modernbert

if TYPE_CHECKING:
    from transformers import ModernBertModel

# One, the ends of both halves of both windows, of the windowed form's blocks, and where those overlap.
LENGTHS = (1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 66, 127, 128, 129, 130, 191, 192, 193, 194)
LONG_LENGTHS = (255, 256, 257, 258, 512, 1024)

# GeGLU as in the 311m model with a window that short texts leave; SwiGLU as in the 97m with the true window.
TINY: dict[str, dict[str, Any]] = {
    "geglu, window 16": {},
    "swiglu, window 128": {"hidden_activation": "silu", "local_attention": 128, "seed": 1},
}

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


def random_ids(mask: Ids, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, 124, mask.shape)


def right_padded(lengths: Sequence[int], tokens: int | None = None) -> Ids:
    """The attention mask (B, T) of texts of these lengths."""
    return (np.arange(tokens or max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)


def unit_rows(hidden: Vectors, mask: Ids) -> NDArray[np.float64]:
    """CLS and mean pooling, each with L2 norm, in float64: (B, T, D), (B, T) -> (2, B, D)."""
    wide = hidden.astype(np.float64)
    pooled = np.stack([wide[:, 0], np.einsum("btd,bt->bd", wide, mask)])
    unit: NDArray[np.float64] = pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
    return unit


@dataclass(frozen=True)
class Pair:
    """One checkpoint, as transformers runs it and as we do, with the output of every layer."""

    official: "ModernBertModel"
    ours: openvino.CompiledModel

    def hidden(self, mask: Ids, ids: Ids) -> tuple[list[Vectors], list[Vectors]]:
        """Of both: embeddings.norm, layers.0, layers.1, ..., final_norm, each (B, T, D)."""
        import torch

        expected: list[Vectors] = []
        parts = [self.official.embeddings, *self.official.layers, self.official.final_norm]
        hooks = [
            part.register_forward_hook(lambda part, given, out: expected.append(out.numpy()))
            for part in parts
        ]
        with torch.no_grad():
            self.official(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        for hook in hooks:
            hook.remove()
        result = self.ours({"input_ids": ids, "attention_mask": mask})
        last, *others = (np.array(result[port]) for port in self.ours.outputs)
        return expected, [*others, last]

    def assert_equal(self, mask: Ids, seed: int = 0) -> None:
        """Random texts under this mask: every layer's rows of tokens, and the text vectors, are the same."""
        expected, got = self.hidden(mask, random_ids(mask, seed))
        tokens = mask.astype(bool)
        for place, (one, other) in enumerate(zip(expected, got, strict=True)):
            np.testing.assert_allclose(
                other[tokens], one[tokens], rtol=0, atol=1e-5, err_msg=f"output {place} of {len(expected)}"
            )
        whole = tokens[:, 0]  # a text padded on the left has no row to pool
        want, have = (unit_rows(hidden[-1][whole], mask[whole]) for hidden in (expected, got))
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-5)
        assert all(np.isfinite(each).all() for each in got), "rows of padding are not finite"


def built(folder: Path) -> openvino.Model:
    return modernbert.build(read_config(folder), open_weights(folder, modernbert.PREFIXES))


def compiled(folder: Path, extra_outputs: Iterable[str] = ()) -> openvino.CompiledModel:
    """Our graph, with the outputs of these nodes behind last_hidden_state."""
    model = built(folder)
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    for name in extra_outputs:
        model.add_outputs(nodes[name].output(0))
    properties = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    return openvino.Core().compile_model(model, "CPU", properties)


def official_model(folder: Path) -> "ModernBertModel":
    import torch
    from transformers import ModernBertModel

    model = ModernBertModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def pair(folder: Path, official: "ModernBertModel | None" = None) -> Pair:
    layers = range(read_config(folder).integer("num_hidden_layers"))
    ours = compiled(folder, ["embeddings.norm", *(f"layers.{i}" for i in layers)])
    return Pair(official or official_model(folder), ours)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of TINY. Read only."""
    return tiny_modernbert(tmp_path_factory.mktemp("modernbert") / "checkpoint")


@pytest.fixture(scope="module", params=list(TINY.values()), ids=list(TINY))
def tiny_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tiny_modernbert(tmp_path_factory.mktemp("modernbert"), **request.param))


@pytest.fixture
def checkpoint(tiny_folder: Path, tmp_path: Path) -> Path:
    """The first of TINY, which a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))


# Equal to transformers.


@pytest.mark.reference
@pytest.mark.parametrize("length", LENGTHS + LONG_LENGTHS)
def test_every_layer_gives_a_text_of_any_length_the_vectors_of_transformers(
    tiny_pair: Pair, length: int
) -> None:
    tiny_pair.assert_equal(right_padded([length]))


@pytest.mark.reference
@pytest.mark.parametrize("length", LENGTHS)
def test_padding_changes_no_vector_of_transformers(tiny_pair: Pair, length: int) -> None:
    tiny_pair.assert_equal(right_padded([length], tokens=length + 1))
    tiny_pair.assert_equal(right_padded([length, 256, 1]))


@pytest.mark.reference
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("tokens", [17, 130, 258])
def test_batches_of_mixed_lengths_have_the_vectors_of_transformers(
    tiny_pair: Pair, batch: int, tokens: int
) -> None:
    rng = np.random.default_rng(1000 * batch + tokens)
    mixed = rng.choice([length for length in LENGTHS if length <= tokens], batch).tolist()
    tiny_pair.assert_equal(right_padded(mixed, tokens))
    tiny_pair.assert_equal(right_padded([*mixed[1:], tokens]))


@pytest.mark.reference
@pytest.mark.parametrize("lengths", [(1024, 1), (1000, 512), (258, 1024, 255)], ids=str)
def test_long_batches_have_the_vectors_of_transformers(tiny_pair: Pair, lengths: Sequence[int]) -> None:
    tiny_pair.assert_equal(right_padded(lengths))


@pytest.mark.reference
def test_padding_on_the_left_and_inside_a_text_counts_as_transformers_counts_it(tiny_pair: Pair) -> None:
    mask = right_padded([130, 40, 66])
    tiny_pair.assert_equal(mask[:, ::-1].copy())
    mask[:, 10:90] = 0
    tiny_pair.assert_equal(mask)


@pytest.mark.reference
def test_4096_tokens_have_the_vectors_of_transformers(tmp_path: Path) -> None:
    tiny_modernbert(tmp_path, hidden_size=32, num_attention_heads=1, num_hidden_layers=3, local_attention=128)
    both = pair(tmp_path)
    both.assert_equal(right_padded([4096]))
    both.assert_equal(right_padded([130, 4096, 1]))


@pytest.mark.reference
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_activation": "relu"},
        {"norm_eps": 0.1},
        {"num_attention_heads": 1},
        {"num_attention_heads": 32},
        {"hidden_size": 48, "num_attention_heads": 2},
        {"intermediate_size": 20},
        {"local_attention": 2},
        {"local_attention": 5},
        {"global_attn_every_n_layers": 2},
        {"global_rope_theta": 160_000.0, "local_rope_theta": 160_000.0},
        {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]},
        {"num_hidden_layers": 7},
        {"embedding_dropout": 0.5, "mlp_dropout": 0.5, "attention_dropout": 0.5},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)
def test_every_option_of_config_json_is_followed(tmp_path: Path, changes: dict[str, Any]) -> None:
    if "layer_types" in changes:
        changes = {"global_attn_every_n_layers": None, **changes}
    pair(tiny_modernbert(tmp_path, **changes)).assert_equal(right_padded([40, 17, 1]))


@pytest.mark.reference
@pytest.mark.parametrize(
    "lie",
    [
        {"rope_parameters": None, "global_rope_theta": 10_000.0, "local_rope_theta": 80_000.0},
        {"local_attention": 14},
        {"local_attention": 18},
        {"local_attention": 8},
        {"layer_types": [*["sliding_attention"] * 2, *["full_attention"] * 2]},
        {"layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]},
        {"layer_types": ["full_attention"] * 4},
        {"hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_activation": "silu"},
        {"norm_eps": 1e-3},
        {"num_attention_heads": 2},
    ],
    ids=lambda lie: ",".join(f"{key}={value}" for key, value in lie.items()),
)
def test_a_config_that_lies_about_the_weights_is_seen_by_these_tests(
    checkpoint: Path, lie: dict[str, Any]
) -> None:
    official = official_model(checkpoint)
    both = pair(rewrite_config(checkpoint, global_attn_every_n_layers=None, **lie), official)
    with pytest.raises(AssertionError, match=r"output \d of 6"):
        both.assert_equal(right_padded([40, 17, 12]))


def swap_glu_halves(tensors: dict[str, NDArray[Any]]) -> None:
    for name in tensors:
        if name.endswith("mlp.Wi.weight"):
            tensors[name] = np.roll(tensors[name], 48, axis=0)


def swap_query_and_key(tensors: dict[str, NDArray[Any]]) -> None:
    for name in tensors:
        if name.endswith("attn.Wqkv.weight"):
            q, k, v = np.split(tensors[name], 3)
            tensors[name] = np.concatenate([k, q, v])


def halve(part: str) -> Change:
    def change(tensors: dict[str, NDArray[Any]]) -> None:
        (name,) = (name for name in tensors if name == f"{part}.weight")
        tensors[name] *= 0.5

    return change


@pytest.mark.reference
@pytest.mark.parametrize(
    "change",
    [
        swap_glu_halves,
        swap_query_and_key,
        *map(
            halve,
            [
                "embeddings.tok_embeddings",
                "embeddings.norm",
                "layers.3.attn_norm",
                "layers.3.attn.Wqkv",
                "layers.3.attn.Wo",
                "layers.3.mlp_norm",
                "layers.3.mlp.Wi",
                "layers.3.mlp.Wo",
                "final_norm",
            ],
        ),
    ],
)
def test_every_tensor_of_the_tiny_weights_matters(checkpoint: Path, change: Change) -> None:
    official = official_model(checkpoint)
    both = pair(change_weights(checkpoint, change), official)
    with pytest.raises(AssertionError, match=r"output \d of 6"):
        both.assert_equal(right_padded([40, 17, 1]))


# Traps that others fell into.


@pytest.mark.reference
@pytest.mark.parametrize("tokens", [32, 96, 128, 160, 256, 512])
def test_a_row_whose_whole_window_is_padding_is_finite_and_harms_no_other(
    tiny_pair: Pair, tokens: int
) -> None:
    tiny_pair.assert_equal(right_padded([tokens, 1, 5, tokens // 2 - 1]))


def test_a_text_of_padding_only_is_finite_and_harms_no_other(tiny_folder: Path) -> None:
    ours = compiled(tiny_folder)
    mask = right_padded([20, 0], 40)
    ids = random_ids(mask)
    together = ours([ids, mask])[0].copy()
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together[0], ours([ids[:1], mask[:1]])[0][0], rtol=0, atol=1e-6)


def test_padding_is_invisible_whatever_ids_it_holds(tiny_folder: Path) -> None:
    mask = right_padded([20, 20], 64)
    ids = np.full(mask.shape, 7)
    ids[1, 20:] = 99
    hidden = compiled(tiny_folder)([ids, mask])[0]
    np.testing.assert_array_equal(hidden[0, :20], hidden[1, :20])


@pytest.mark.reference
def test_the_first_layer_turns_by_the_base_of_global_layers(checkpoint: Path) -> None:
    official = official_model(checkpoint)
    spell_as_4(checkpoint, global_rope_theta=10_000.0)
    with pytest.raises(AssertionError, match="output 1 of 6"):  # output 0 is that of the embeddings
        pair(checkpoint, official).assert_equal(right_padded([40]))


@pytest.mark.reference
@pytest.mark.parametrize("tokens", [64, 65, 66, 130])
def test_a_dropped_window_is_seen_by_these_tests_as_soon_as_a_text_is_longer_than_half_of_it(
    tmp_path: Path, tokens: int
) -> None:
    folder = tiny_modernbert(tmp_path, local_attention=128)
    official = official_model(folder)
    both = pair(rewrite_config(folder, local_attention=1_000_000), official)
    if tokens <= 65:  # the first token and the last are 64 apart
        both.assert_equal(right_padded([tokens]))
    else:
        with pytest.raises(AssertionError, match="output 2 of 6"):  # of layer 1, the first local one
            both.assert_equal(right_padded([tokens]))


@pytest.mark.reference
def test_a_dropped_padding_mask_is_seen_by_these_tests(tiny_pair: Pair) -> None:
    mask = right_padded([40, 17])
    ids = random_ids(mask)
    expected, _ = tiny_pair.hidden(mask, ids)
    _, got = tiny_pair.hidden(np.ones_like(mask), ids)
    assert np.abs(got[1][1, :17] - expected[1][1, :17]).max() > 1e-3  # layer 0, in which all see the padding


@pytest.mark.parametrize("window", [1, 2, 5, 16, 128])
def test_a_local_layer_sees_half_the_window_to_either_side_and_no_further(
    tmp_path: Path, window: int
) -> None:
    types = ["sliding_attention", "full_attention"]
    changes: dict[str, Any] = {"global_attn_every_n_layers": None, "layer_types": types}
    folder = tiny_modernbert(tmp_path, num_hidden_layers=2, local_attention=window, **changes)
    ours = compiled(folder, ["layers.0"])
    mask = right_padded([200])
    ids = random_ids(mask)
    ids[0, 100] = 5
    before = ours([ids, mask])[1].copy()
    ids[0, 100] = 6
    (changed,) = np.nonzero((before != ours([ids, mask])[1]).any(axis=(0, 2)))
    assert changed.tolist() == list(range(100 - window // 2, 100 + window // 2 + 1))


@pytest.mark.reference
@pytest.mark.parametrize("theta", [10_000.0, 80_000.0, 160_000.0])
@pytest.mark.parametrize("width", [32, 48, 64])
def test_rope_frequencies_are_those_of_transformers_to_the_last_two_places(theta: float, width: int) -> None:
    import torch
    from transformers import ModernBertConfig
    from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

    config = ModernBertConfig(
        hidden_size=width, num_attention_heads=1, num_hidden_layers=2, global_rope_theta=theta
    )
    frequencies, scaling = ModernBertRotaryEmbedding.compute_default_rope_parameters(
        config, torch.device("cpu"), layer_type="full_attention"
    )
    ours = modernbert.inverse_frequencies(theta, width)
    assert scaling == 1.0
    assert ours.dtype == np.float32
    np.testing.assert_array_max_ulp(ours, frequencies.numpy(), maxulp=2)
    assert (ours == frequencies.numpy()).mean() > 0.9


def test_positions_are_exact_to_the_end_of_the_context() -> None:
    ids = ops.token_input("input_ids")
    model = openvino.Model([ops.token_positions(ids, "f32")], [ids])
    ours = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_array_equal(ours([np.zeros((1, 32_768), np.int64)])[0], np.arange(32_768))


# All ways in which checkpoints are saved.


@pytest.mark.reference
def test_a_config_of_transformers_4_gives_the_same_file_as_one_of_5(checkpoint: Path, tmp_path: Path) -> None:
    official = official_model(checkpoint)
    ir.write(built(checkpoint), tmp_path / "new" / "model.xml")
    spell_as_4(checkpoint)
    ir.write(built(checkpoint), tmp_path / "old" / "model.xml")
    for name in ("model.xml", "model.bin"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes()
    pair(checkpoint, official).assert_equal(right_padded([40, 17]))
    pair(checkpoint).assert_equal(right_padded([40, 17]))


@pytest.mark.reference
def test_the_thetas_of_a_config_of_transformers_4_are_followed(checkpoint: Path) -> None:
    spell_as_4(checkpoint, global_rope_theta=500.0, local_rope_theta=50.0)
    pair(checkpoint).assert_equal(right_padded([40, 17]))


@pytest.mark.reference
@pytest.mark.parametrize("task", ["MaskedLM", "SequenceClassification", "TokenClassification"])
def test_a_checkpoint_of_a_task_with_prefix_and_head_is_read(checkpoint: Path, task: str) -> None:
    import transformers

    official = official_model(checkpoint)
    trained = getattr(transformers, f"ModernBertFor{task}")(official.config)
    trained.model = official
    trained.save_pretrained(checkpoint)
    names = set(load_file(checkpoint / "model.safetensors"))
    assert "model.final_norm.weight" in names
    assert names & {"head.dense.weight"}
    pair(checkpoint, official).assert_equal(right_padded([17, 5]))


@pytest.mark.reference
def test_a_decoder_with_weights_of_its_own_changes_nothing(checkpoint: Path) -> None:
    official = official_model(checkpoint)
    change_weights(checkpoint, lambda t: t.update({"decoder.weight": np.ones((124, 64), np.float32)}))
    rewrite_config(checkpoint, tie_word_embeddings=False)
    pair(checkpoint, official).assert_equal(right_padded([17, 5]))


@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_give_what_transformers_gives_in_float32(checkpoint: Path, dtype: str) -> None:
    import torch

    whole = official_model(checkpoint)
    official_model(checkpoint).to(getattr(torch, dtype)).save_pretrained(checkpoint)
    pair(checkpoint).assert_equal(right_padded([40, 17, 1]))
    with pytest.raises(AssertionError, match="output 0 of 6"):  # so the file is rounded
        pair(checkpoint, whole).assert_equal(right_padded([40, 17, 1]))


@pytest.mark.reference
def test_a_sharded_checkpoint_gives_the_same_vectors(checkpoint: Path) -> None:
    official = official_model(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    official.save_pretrained(checkpoint, max_shard_size="60KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 3
    pair(checkpoint, official).assert_equal(right_padded([17, 5]))


# The graph.


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_the_cpu_plugin_fuses_rope_attention_and_every_linear_layer(tmp_path: Path, activation: str) -> None:
    folder = tiny_modernbert(tmp_path, hidden_activation=activation)
    nodes = compiled(folder).get_runtime_model().get_ops()
    kinds = Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)
    assert kinds["RoPE"] == 2 * 4
    assert kinds["FullyConnected"] == 4 * 4
    assert kinds["Subgraph"] + kinds["ScaledDotProductAttention"] + kinds["ScaledAttn"] >= 4
    assert kinds["MVN"] == 1 + 3 + 4 + 1
    assert not kinds.keys() & {"Softmax", "SoftMax", "MatMul", "NormalizeL2", "ReduceMean"}, kinds


def test_masks_and_rotations_are_built_once_for_all_layers(tiny_folder: Path) -> None:
    model = built(tiny_folder)
    kinds = Counter(node.get_type_name() for node in model.get_ops())
    assert kinds["ScaledDotProductAttention"] == 4
    assert (kinds["Select"], kinds["Range"]) == (1, 1)
    assert (kinds["Cos"], kinds["Sin"]) == (2, 2)
    assert len(model.input("attention_mask").get_target_inputs()) == 1


def test_constants_share_the_memory_of_the_mapped_file(tiny_folder: Path) -> None:
    weights = open_weights(tiny_folder)
    address = weights.take("embeddings.tok_embeddings.weight", (124, 64)).ctypes.data
    model = modernbert.build(read_config(tiny_folder), weights)
    (table,) = [n for n in model.get_ops() if n.get_friendly_name() == "embeddings.tok_embeddings.weight"]
    assert table.data.ctypes.data == address


def test_nodes_are_named_after_the_checkpoint_and_never_after_what_ran_before(tiny_folder: Path) -> None:
    first, second = (
        [node.get_friendly_name() for node in built(tiny_folder).get_ordered_ops()] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == len(first)
    assert set(load_file(tiny_folder / "model.safetensors")) <= set(first)
    assert {f"layers.{i}" for i in range(4)} | {f"layers.{i}.attn" for i in range(4)} <= set(first)


def test_inputs_and_output_are_named_as_peers_expect(tiny_folder: Path) -> None:
    model = built(tiny_folder)
    assert [port.get_any_name() for port in model.inputs] == ["input_ids", "attention_mask"]
    assert [str(port.get_partial_shape()) for port in model.inputs] == ["[?,?]"] * 2
    assert {port.get_element_type().to_string() for port in model.inputs} == {"i64"}
    (output,) = model.outputs
    assert (output.get_names(), str(output.get_partial_shape())) == ({"last_hidden_state"}, "[?,?,64]")


# What is refused.

FULL, SLIDING = "full_attention", "sliding_attention"


def rope_tables(**changes: object) -> dict[str, object]:
    """rope_parameters of the tiny checkpoint, with one table changed."""
    table = {"rope_type": "default", "rope_theta": 10_000.0}
    return {"rope_parameters": {FULL: table | {"rope_theta": 80_000.0}, SLIDING: table | changes}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_activation": "quick_gelu"}, "activation 'quick_gelu'"),
        ({"norm_bias": True}, "^norm_bias in .*config.json is True, not false"),
        ({"attention_bias": True}, "^attention_bias in .* is True, not false"),
        ({"mlp_bias": True}, "^mlp_bias in .* is True, not false"),
        ({"norm_eps": "1e-5"}, "^norm_eps in .* is '1e-5', not a number"),
        ({"position_embedding_type": "relative_key"}, "is 'relative_key', not one of absolute, sans_pos"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "^rope_scaling in .* is {'type': 'linear'"),
        ({"partial_rotary_factor": 0.5}, "^partial_rotary_factor in .* is 0.5, not 1"),
        ({"sliding_window": 16}, "^sliding_window in .* is 16, not local_attention 16 // 2$"),
        ({"head_dim": 32}, "^head_dim in .* is 32, not hidden_size / num_attention_heads = 16"),
        (
            rope_tables(rope_type="yarn"),
            r"^rope_parameters\.sliding_attention\.rope_type in .* is 'yarn', no",
        ),
        (rope_tables(factor=4.0), r"^rope_parameters\.sliding_attention\.factor in .* is 4\.0, not null"),
        (
            rope_tables(type="linear"),
            r"^rope_parameters\.sliding_attention\.type in .* is 'linear', not null",
        ),
        (
            rope_tables(rope_theta="10"),
            r"^rope_parameters\.sliding_attention\.rope_theta in .* is '10', not a",
        ),
        (rope_tables(rope_theta=0), "^the RoPE base of sliding_attention in .* is 0.0, not 1 or more$"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            r"^rope_parameters\.rope_theta in .* is 10000\.0, not null",
        ),
        ({"rope_parameters": [1e4]}, r"^rope_parameters in .* is \[10000\.0\], not a table$"),
        (
            {"rope_parameters": {FULL: 1e4}},
            r"^rope_parameters\.full_attention in .* is 10000\.0, not a table$",
        ),
        (
            {"rope_parameters": None},
            r"neither rope_parameters\.full_attention\.rope_theta nor global_rope_theta, which tell the RoPE",
        ),
        (
            {"rope_parameters": None, "global_rope_theta": 8e4, "local_rope_theta": None},
            "nor local_rope_theta, which tell the RoPE base of sliding_attention$",
        ),
        (
            {"global_rope_theta": 160_000},
            r"about the RoPE base of full_attention: .* tells 80000\.0 but global_rope_theta tells 160000",
        ),
        (
            {"layer_types": None, "global_attn_every_n_layers": None},
            "neither layer_types nor global_attn_every",
        ),
        (
            {"layer_types": [FULL, SLIDING, FULL, SLIDING]},
            r"about layer 2: layer_types tells 'full_attention' but global_attn_every_n_layers tells 'sli",
        ),
        ({"layer_types": [FULL, SLIDING]}, r"^layer_types in .* is \[.*\], not one of num_hidden_layers 4$"),
        ({"layer_types": [FULL, SLIDING, "chunked_attention", FULL]}, "'chunked_attention', .*only full_att"),
        ({"layer_types": [FULL, SLIDING, 1, FULL]}, "not a list of strings$"),
        ({"layer_types": FULL}, "^layer_types in .* is 'full_attention', not a list of strings$"),
        ({"global_attn_every_n_layers": 0}, "^global_attn_every_n_layers in .* is 0, not 1 or more$"),
        ({"local_attention": None}, "has no local_attention, which this model needs$"),
        ({"local_attention": -1}, "^local_attention in .* is -1, not a window of 1 or more tokens$"),
        ({"num_attention_heads": 5}, "^hidden_size 64 does not give num_attention_heads 5 an even"),
        ({"num_attention_heads": 64}, "^hidden_size 64 does not give num_attention_heads 64 an even"),
        ({"num_attention_heads": 0}, "^hidden_size 64 does not give num_attention_heads 0 an even"),
        ({"vocab_size": 200}, r"'embeddings\.tok_embeddings\.weight' .*\(124, 64\).*\(200, 64\)"),
        ({"intermediate_size": 96}, r"'layers\.0\.mlp\.Wi\.weight' .*\(96, 64\).*\(192, 64\)"),
        (
            {"num_hidden_layers": 3, "layer_types": [FULL, SLIDING, SLIDING]},
            r"6 tensors .*unused: 'layers\.3\.attn\.Wo\.weight'",
        ),
        (
            {"num_hidden_layers": 5, "layer_types": [FULL, SLIDING, SLIDING, FULL, SLIDING]},
            r"no 'layers\.4\.attn_norm\.weight'",
        ),
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
    "values",
    [{"head_dim": 16}, {"partial_rotary_factor": 1}, {"rope_scaling": None}, {"sliding_window": 8}],
    ids=str,
)
def test_an_option_that_says_what_is_built_anyway_is_accepted(
    checkpoint: Path, values: dict[str, object]
) -> None:
    assert len(built(rewrite_config(checkpoint, **values)).outputs) == 1


def set_nan(tensors: dict[str, NDArray[Any]]) -> None:
    tensors["layers.1.mlp.Wo.weight"][3, 5] = np.nan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.update({"layers.0.attn_norm.weight": np.ones(64, np.float32)}),
            r"1 tensors .*'layers\.0\.attn_norm\.weight'",
        ),
        (
            lambda t: t.update({"layers.1.attn.Wqkv.bias": np.ones(192, np.float32)}),
            r"1 tensors .*'layers\.1\.attn\.Wqkv\.bias'",
        ),
        (
            lambda t: t.update({"final_norm.bias": np.ones(64, np.float32)}),
            r"1 tensors .*'final_norm\.bias'",
        ),
        (lambda t: t.pop("final_norm.weight"), r"no 'final_norm\.weight'"),
        (
            lambda t: t.update({"layers.2.mlp.Wi.weight": np.ones((48, 64), np.float32)}),
            r"layers\.2\.mlp\.Wi\.weight'.*\(48, 64\).*\(96, 64\)",
        ),
        (set_nan, r"layers\.1\.mlp\.Wo\.weight' .* NaN or Inf in 1 of 3072"),
    ],
    ids=["a norm before layer 0", "a bias", "a norm's bias", "a missing one", "half a GLU", "NaN"],
)
def test_weights_that_are_not_wholly_ours_are_refused_by_name(
    checkpoint: Path, change: Change, said: str
) -> None:
    change_weights(checkpoint, change)
    with pytest.raises(CheckpointError, match=said):
        built(checkpoint)
