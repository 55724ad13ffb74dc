"""graph/head.py: pooling against sentence-transformers' own module, then ports of every kind of model."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset13

from edge_embed.errors import ModelError
from edge_embed.graph import head
from edge_embed.manifest import POOLINGS

if TYPE_CHECKING:
    from openvino import Model, Node

V, D = 50, 8  # rows of the token table, hidden width
TABLE = np.random.default_rng(0).normal(size=(V, D)).astype(np.float32)
TYPES = np.random.default_rng(1).normal(size=(2, D)).astype(np.float32)


def parameter(name: str | None, shape: Sequence[int] = (-1, -1), dtype: type = np.int64) -> "Node":
    node = opset13.parameter(list(shape), dtype)
    if name:
        node.output(0).get_tensor().set_names({name})
    return node


def result(node: "Node", name: str | None) -> "Node":
    made = opset13.result(node)
    made.output(0).get_tensor().set_names({name} if name else set())
    return made


def without_names(model: "Model", *kept: str) -> "Model":
    """Take away the names that OpenVINO gives to ports without one; a file can lack them all the same."""
    for port in [*model.inputs, *model.outputs]:
        port.get_tensor().set_names(port.get_names() & set(kept))
    return model


def look_up(table: NDArray[np.float32], ids: "Node") -> "Node":
    return opset13.gather(opset13.constant(table), opset13.convert(ids, "i32"), opset13.constant(np.int64(0)))


def encoder(
    *names: str | None,
    output: str | None = "last_hidden_state",
    shape: Sequence[int] = (-1, -1),
    dtype: type = np.int64,
) -> "Model":
    """ids, mask, types -> TABLE[ids] * mask + TYPES[types]: a model in which each input has its own effect.

    names  of these three inputs, or of the first two
    """
    inputs = [parameter(name, shape, dtype) for name in names]
    x = opset13.multiply(look_up(TABLE, inputs[0]), as_numbers(inputs[1]))
    if len(inputs) == 3:
        x = opset13.add(x, look_up(TYPES, inputs[2]))
    model = openvino.Model([result(x, output)], inputs, "encoder")
    return without_names(model, *(name for name in (*names, output) if name))


def as_numbers(ids: "Node") -> "Node":
    """(B, T) -> (B, T, 1) float32."""
    return opset13.unsqueeze(opset13.convert(ids, "f32"), opset13.constant(np.array([2])))


def hidden_states(dtype: str = "f32") -> "Model":
    """(B, T, D) hidden states come in as they go out, beside ids that nothing reads: for pooling alone."""
    ids, mask = parameter("input_ids"), parameter("attention_mask")
    states = opset13.parameter([-1, -1, D], np.float32)
    states.output(0).get_tensor().set_names({"states"})
    out = result(opset13.convert(states, dtype), "last_hidden_state")
    keep_ids = result(opset13.convert(ids, "i32"), "ids")
    return openvino.Model([out, keep_ids], [ids, mask, states], "states")


def pool(
    states: NDArray[np.float32], mask: NDArray[np.int64], modes: Sequence[str], *, normalize: bool
) -> NDArray[np.float32]:
    """Our head on given hidden states (B, T, D)."""
    model = hidden_states()
    inputs = {port.get_any_name(): port for port in model.inputs}
    ports = head.Ports({name: inputs[name] for name in head.INPUTS[:2]}, model.outputs[0], pooled=False)
    whole = head.attach(model, ports, modes, normalize=normalize)
    feed = {"attention_mask": mask, "states": states, "input_ids": mask}
    compiled = openvino.Core().compile_model(whole, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert [port.get_names() for port in compiled.outputs] == [{"sentence_embedding"}]
    return np.array(compiled(feed)["sentence_embedding"])


def official(
    states: NDArray[np.float32], mask: NDArray[np.int64], modes: Sequence[str], *, normalize: bool
) -> NDArray[np.float32]:
    """sentence-transformers' modules on the same."""
    import torch
    from sentence_transformers.base.modules.normalize import Normalize
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling

    features = {"token_embeddings": torch.from_numpy(states), "attention_mask": torch.from_numpy(mask)}
    features = Pooling(D, tuple(modes))(features)
    if normalize:
        features = Normalize()(features)
    vectors: NDArray[np.float32] = features["sentence_embedding"].numpy()
    return vectors


def random_states(lengths: Sequence[int], tokens: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Hidden states, padding included, that are not zero anywhere, and the mask of right padding."""
    states = np.random.default_rng(2).normal(size=(len(lengths), tokens, D)).astype(np.float32)
    return states, (np.arange(tokens) < np.array(lengths)[:, None]).astype(np.int64)


@pytest.mark.reference
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "modes",
    [*((mode,) for mode in POOLINGS), ("mean", "cls"), ("lasttoken", "max", "weightedmean"), POOLINGS],
)
def test_pooling_is_that_of_sentence_transformers(modes: tuple[str, ...], normalize: bool) -> None:
    for lengths, tokens in (((7, 1, 5, 12), 12), ((3, 3), 3), ((1,), 1), ((16, 2, 9), 32)):
        states, mask = random_states(lengths, tokens)
        ours = pool(states, mask, modes, normalize=normalize)
        theirs = official(states, mask, modes, normalize=normalize)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", POOLINGS)
def test_what_stands_in_the_padding_does_not_matter(mode: str) -> None:
    states, mask = random_states((7, 1, 5), 12)
    other = np.where(mask[..., None] > 0, states, 1000).astype(np.float32)
    one, two = (pool(x, mask, [mode], normalize=False) for x in (states, other))
    np.testing.assert_array_equal(one, two)


def test_the_largest_of_negative_numbers_is_negative() -> None:
    states = np.full((1, 4, D), -3, np.float32)
    states[0, 2:] = 9  # padding
    np.testing.assert_array_equal(
        pool(states, np.array([[1, 1, 0, 0]]), ["max"], normalize=False), [[-3] * D]
    )


def test_a_zero_vector_stays_zero_instead_of_nan() -> None:
    states, mask = random_states((3,), 3)
    assert np.array_equal(pool(0 * states, mask, ["mean"], normalize=True), np.zeros((1, D)))


def test_half_precision_hidden_states_are_pooled_in_float32() -> None:
    model = hidden_states("f16")
    inputs = {port.get_any_name(): port for port in model.inputs}
    ports = head.Ports({name: inputs[name] for name in head.INPUTS[:2]}, model.outputs[0], pooled=False)
    whole = head.attach(model, ports, ["mean"], normalize=True)
    assert whole.output(0).get_element_type().to_string() == "f32"


# ---- ports


IDS = np.array([[3, 1, 4], [1, 5, 9]])
MASK = np.array([[1, 1, 1], [1, 1, 0]])
KINDS = np.array([[0, 1, 1], [1, 0, 1]])
FEED = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": KINDS}


def prepared(model: "Model", pooling: Sequence[str] = ("mean",), *, normalize: bool = False) -> "Model":
    return head.attach(model, head.standardize(model), pooling, normalize=normalize)


def run(model: "Model") -> NDArray[np.float32]:
    """Feed IDS, MASK and KINDS by name, as the runtime does: in int64."""
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.get_names()}
    request.infer({name: value for name, value in FEED.items() if name in names}, share_inputs=True)
    return np.array(request.get_output_tensor(0).data)


def expected(*, types: bool) -> NDArray[np.float32]:
    """Mean-pooled `encoder` on FEED, in NumPy."""
    x = TABLE[IDS] * MASK[..., None] + (TYPES[KINDS] if types else 0)
    pooled: NDArray[np.float32] = (x * MASK[..., None]).sum(1) / MASK.sum(1, keepdims=True)
    return pooled


@pytest.mark.parametrize(
    "model",
    [
        lambda: encoder("input_ids", "attention_mask", "token_type_ids"),
        lambda: encoder("input_ids", "attention_mask", "token_type_ids", output=None),
        lambda: encoder("input_ids", "attention_mask", "token_type_ids", output="token_embeddings"),
        lambda: encoder("input_ids", "attention_mask", "token_type_ids", output="1234"),
        lambda: encoder("input_ids", "attention_mask", "token_type_ids", dtype=np.int32),
        lambda: encoder("input_ids", "attention_mask", "token_type_ids", shape=(1, 128)),
        lambda: encoder("input_ids", "attention_mask", "token_type_ids", shape=(1, -1)),
        lambda: encoder("input_ids", "attention_mask", "token_type_ids", shape=(-1, 4)),
        lambda: encoder(None, None, None),
        lambda: encoder(None, None, None, output=None, shape=(1, 16), dtype=np.int32),
    ],
    ids=["names", "no output name", "token_embeddings", "a number", "i32", "static", "static batch",
         "static length", "no names", "no names, static, i32"],
)  # fmt: skip
def test_inputs_and_output_are_found(model: Callable[[], "Model"]) -> None:
    np.testing.assert_allclose(run(prepared(model())), expected(types=True), atol=1e-6)


@pytest.mark.parametrize("names", [("input_ids", "attention_mask"), (None, None)])
def test_a_model_without_token_types_is_found(names: Sequence[str | None]) -> None:
    np.testing.assert_allclose(run(prepared(encoder(*names))), expected(types=False), atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2), (2, 0, 1), (1, 2, 0)])
def test_inputs_without_names_are_told_by_their_use_in_any_order(order: Sequence[int]) -> None:
    model = encoder(None, None, None)
    nodes = [port.get_node() for port in model.inputs]
    shuffled = openvino.Model(model.get_results(), [nodes[place] for place in order], "shuffled")
    np.testing.assert_allclose(run(prepared(shuffled)), expected(types=True), atol=1e-6)


def with_outputs(*wanted: str | None) -> "Model":
    """`encoder` with outputs of these names.

    Output number i is (B, T, D) and i times as large; with `sentence` in its name it is the (B, D) maximum.
    """
    model = encoder("input_ids", "attention_mask")
    x = model.get_results()[0].input_value(0)
    pooled = opset13.reduce_max(x, opset13.constant(np.array([1])))
    nodes = []
    for factor, name in enumerate(wanted, start=1):
        whole = opset13.multiply(x, opset13.constant(np.float32(factor)))
        nodes.append(pooled if name and "sentence" in name else whole)
    results = [result(node, name) for node, name in zip(nodes, wanted, strict=True)]
    inputs = [port.get_node() for port in model.inputs]
    names = ("input_ids", "attention_mask", *(name for name in wanted if name))
    return without_names(openvino.Model(results, inputs, "outputs"), *names)


def test_of_both_outputs_the_token_vectors_are_pooled_by_us() -> None:
    model = with_outputs("last_hidden_state", "sentence_embedding")
    assert not head.standardize(model).pooled
    np.testing.assert_allclose(run(prepared(model)), expected(types=False), atol=1e-6)
    other = with_outputs("sentence_embedding", "token_embeddings")
    np.testing.assert_allclose(run(prepared(other)), 2 * expected(types=False), atol=1e-6)


@pytest.mark.parametrize("names", [("sentence_embedding",), ("sentence_embedding", "x", "y")])
def test_a_pooled_output_is_normalised_but_not_pooled_again(names: Sequence[str]) -> None:
    model = with_outputs(*names)
    ports = head.standardize(model)
    assert ports.pooled
    assert ports.width == D
    pooled = (TABLE[IDS] * MASK[..., None]).max(1)
    np.testing.assert_allclose(run(prepared(model)), pooled, atol=1e-6)
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(run(prepared(model, normalize=True)), unit, atol=1e-6)


def test_the_only_output_of_rank_2_is_taken_for_pooled_whatever_its_name() -> None:
    model = with_outputs("my sentence")
    assert head.standardize(model).pooled


def test_an_output_of_whole_numbers_is_no_candidate() -> None:
    model = encoder("input_ids", "attention_mask", output="x")
    counts = result(opset13.convert(model.get_results()[0].input_value(0), "i64"), "last_hidden_state")
    nodes = [port.get_node() for port in model.inputs]
    both = openvino.Model([counts, *model.get_results()], nodes, "both")
    assert head.standardize(both).output.get_names() == {"x"}


def test_two_outputs_of_rank_3_without_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(
        ModelError, match=r"output: it has \(unnamed\) \[\?,\?,8\], \(unnamed\) \[\?,\?,8\]; needed"
    ):
        head.standardize(with_outputs(None, None))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("input_ids",), r"it has input_ids \[\?,\?\]; needed are input_ids and attention_mask"),
        (("input_ids", "token_type_ids"), r"it has input_ids \[\?,\?\], token_type_ids \[\?,\?\]; needed"),
        (
            ("input_ids", "attention_mask", "position_ids"),
            r"attention_mask \[\?,\?\], position_ids \[\?,\?\];",
        ),
        (("input_ids", "attention_mask", None), r"attention_mask \[\?,\?\], \(unnamed\) \[\?,\?\];"),
        ((None,), r"it has \(unnamed\) \[\?,\?\];"),
    ],
)
def test_inputs_that_are_not_ours_are_refused_with_what_there_is(
    names: Sequence[str | None], said: str
) -> None:
    inputs = [parameter(name) for name in names]
    x = look_up(TABLE, inputs[0])
    for extra in inputs[1:]:
        x = opset13.add(x, look_up(TYPES, extra))
    model = openvino.Model([result(x, "last_hidden_state")], inputs, "other")
    without_names(model, *filter(None, names))
    with pytest.raises(ModelError, match=said):
        head.standardize(model)


@pytest.mark.parametrize(
    "rows",
    [(V, V, 0), (V, 2), (V, 2, 2, 0), (V, 0, 0)],
    ids=["tokens and positions", "no mask", "token types twice", "two masks"],
)
def test_inputs_without_names_that_could_be_another_thing_are_refused(rows: Sequence[int]) -> None:
    inputs = [parameter(None) for _ in rows]
    x = opset13.constant(np.zeros((1, 1, D), np.float32))
    for node, count in zip(inputs, rows, strict=True):
        x = opset13.add(x, look_up(np.ones((count, D), np.float32), node) if count else as_numbers(node))
    with pytest.raises(ModelError, match=r"the model's inputs: it has .* \[\?,\?\], .* \[\?,\?\].*; needed"):
        head.standardize(openvino.Model([result(x, "last_hidden_state")], inputs, "alike"))


def test_an_input_of_other_rank_or_type_is_refused() -> None:
    ids, mask = parameter("input_ids"), parameter("attention_mask", (-1,))
    model = openvino.Model([result(look_up(TABLE, ids), "last_hidden_state")], [ids, mask], "rank 1")
    with pytest.raises(ModelError, match=r"it has input_ids \[\?,\?\], attention_mask \[\?\]; needed"):
        head.standardize(model)
    with pytest.raises(ModelError, match="needed are input_ids and attention_mask, whole numbers"):
        head.standardize(encoder("input_ids", "attention_mask", dtype=np.float32))


def baked(shape: Sequence[int]) -> "Model":
    """`encoder` for one shape, which a constant in its middle holds, as exporters leave it."""
    model = encoder("input_ids", "attention_mask", shape=shape)
    x = model.get_results()[0].input_value(0)
    fixed = opset13.reshape(x, opset13.constant(np.array([*shape, D])), special_zero=False)
    nodes = [port.get_node() for port in model.inputs]
    return openvino.Model([result(fixed, "last_hidden_state")], nodes, "baked")


def test_a_model_that_only_works_for_one_shape_is_refused_with_that_shape() -> None:
    with pytest.raises(
        ModelError, match=r"one shape only, input_ids \[2,16\], attention_mask \[2,16\]; export"
    ):
        head.standardize(baked((2, 16)))


def test_the_rows_of_the_token_table_are_seen() -> None:
    model = encoder("input_ids", "attention_mask", "token_type_ids")
    ports = head.standardize(model)
    assert head.token_table_rows(ports) == V
    assert ports.width == D


def test_a_graph_that_hides_its_token_table_has_no_rows() -> None:
    ids, mask = parameter("input_ids"), parameter("attention_mask")
    numbers = result(as_numbers(opset13.multiply(ids, mask)), "last_hidden_state")
    model = openvino.Model([numbers], [ids, mask], "no table")
    assert head.token_table_rows(head.standardize(model)) is None
