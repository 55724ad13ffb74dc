"""drift/locate.py: damage is found where it was done, and both ends of the switches are the two files."""

import argparse
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset13

from edge_embed import calibration, ir, quantize
from edge_embed.calibration import Text
from edge_embed.cli import locate_step
from edge_embed.drift import locate, measure, measurement
from edge_embed.drift.candidate import Candidate, Way
from edge_embed.drift.locate import Switchboard
from edge_embed.drift.measurement import Located, Source
from edge_embed.errors import InputError, ModelError, ModelNotFoundError
from edge_embed.graph import linears, passes
from edge_embed.manifest import read_manifest
from edge_embed.quantize import Recipe
from tests.checkpoints import tiny_bert
from tests.conftest import EXPORTED
from tests.modernbert_checkpoints import tiny_modernbert

Capture = pytest.CaptureFixture[str]

KINDS = ("int8", "int8_weights")

# Random weights have no outliers, so the largest channels will do.
FEW = Recipe(subset_size=120, outlier_channels=2, outlier_ratio=1.2)

TEXTS = [
    Text(str(i), kind, "", text, "en")
    for i, (kind, text) in enumerate(
        [
            ("query", "the cat sat on the mat"),
            ("passage", "a dog runs fast and the red house is slow"),
            ("passage", "hello world, how are you?"),
            ("query", "it is blue or red"),
            ("passage", "the harbour ferry leaves every twenty minutes, and the dog sat in the house."),
            ("passage", "x"),
        ]
    )
]


@pytest.fixture(scope="module")
def bert(tiny_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT, which has a prompt for queries, with both INT8 IRs. Read only."""
    return quantized(Path(shutil.copytree(tiny_built, tmp_path_factory.mktemp("bert") / "model")))


@pytest.fixture(scope="module")
def modernbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the tiny ModernBERT."""
    from edge_embed.build import build

    return quantized(build(tiny_modernbert(tmp_path_factory.mktemp("modernbert") / "model")))


@pytest.fixture(scope="module")
def small(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 with both INT8 IRs, by its recipe. Read only."""
    ignored = shutil.ignore_patterns("*.safetensors")
    folder = shutil.copytree(minilm, tmp_path_factory.mktemp("small") / "model", ignore=ignored)
    return quantized(Path(folder), None)  # with few texts, clipping would be most of the noise


def quantized(folder: Path, recipe: Recipe | None = FEW) -> Path:
    for kind in KINDS:
        quantize.quantize(folder, kind, recipe)
    return folder


@pytest.fixture(scope="module")
def texts(small: Path) -> list[Text]:
    """Twenty for MiniLM."""
    return locate_step.evenly(measure.evaluation_texts(small), 20)


@pytest.fixture(scope="module")
def located(small: Path, texts: list[Text]) -> dict[str, Located]:
    """What is found of MiniLM as it should be."""
    return {kind: locate.locate(small, kind, texts) for kind in KINDS}


@pytest.fixture(
    params=[("bert", "int8"), ("bert", "int8_weights"), ("modernbert", "int8"), ("exported", "int8")]
)
def pair(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A folder and a compute type: ours, and one that optimum-intel exported and stock NNCF quantized."""
    name, kind = request.param
    return (EXPORTED if name == "exported" else request.getfixturevalue(name)), kind


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors")))


def changed(folder: Path, target: Path, kind: str, change: Callable[[openvino.Model], object]) -> Path:
    """A copy of a folder whose INT8 IR of this kind has been edited."""
    target = copied(folder, target)
    file = target / "openvino" / ir.VARIANTS[kind]
    model = openvino.Core().read_model(folder / "openvino" / ir.VARIANTS[kind])
    change(model)
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, file, compress_to_fp16=False)
    return target


def node_of(model: openvino.Model, name: str) -> Any:
    (found,) = (node for node in model.get_ops() if node.get_friendly_name() == name)
    return found


def constant_of(output: Any) -> NDArray[np.float32]:
    """What OpenVINO makes of a graph without inputs."""
    request = openvino.Core().compile_model(openvino.Model([opset13.result(output)], [], "constant"), "CPU")
    values: NDArray[np.float32] = request([])[0]
    return values


def steps_of(weight: Any) -> NDArray[np.float32]:
    """The distance between neighbouring numbers of an INT8 weight, for each of its rows."""
    node = weight.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    assert node.get_type_name() == "Multiply"
    return np.asarray(node.input_value(1).get_node().get_data()).astype(np.float32)


# ---- the two ends


def test_with_every_switch_off_it_is_the_float32_file_and_with_every_switch_on_the_int8_file(
    pair: tuple[Path, str],
) -> None:
    folder, kind = pair
    float32, file = locate.find_files(folder, kind)
    manifest = read_manifest(folder)
    batches = locate.to_batches(locate.tokenized(folder, manifest, TEXTS), manifest)
    core = openvino.Core()
    original, rounded = (
        locate.float32_vectors(ir.read(core, path), manifest, batches) for path in (float32, file)
    )
    board = Switchboard(ir.read(core, file))
    assert board.add_weights(ir.read(core, float32), file) == 0
    board.add_activations()
    simulation = board.compile(manifest, batches)
    np.testing.assert_allclose(simulation.vectors(()), original, atol=3e-6)
    everything = simulation.vectors(range(len(board.parts)))
    total = locate.noise(original, rounded)
    assert total > 1e-5
    # The last bit of a float can decide between two steps of a quantizer.
    assert locate.noise(rounded, everything) < (0.05 if kind == "int8" else 1e-6) * total


@pytest.mark.parametrize("kind", KINDS)
def test_the_total_is_what_the_embedder_gives_when_int8_is_simulated(bert: Path, kind: str) -> None:
    """Prompts, pooling and padding included."""
    roles = [text.kind == "query" for text in TEXTS]
    ways = (Way("float32"), Way(kind, properties={"LP_TRANSFORMS_MODE": "NO"}, weight_only=False))
    embedded = [Candidate(bert, way).embed([text.text for text in TEXTS], roles) for way in ways]
    expected = locate.noise(embedded[0], embedded[1])
    found = locate.locate(bert, kind, TEXTS)
    assert found.n == len(TEXTS)
    assert found.total == pytest.approx(expected, rel=0.05 if kind == "int8" else 1e-3)


@pytest.mark.minilm
@pytest.mark.parametrize("kind", KINDS)
def test_a_real_models_total_is_what_the_embedder_gives_when_int8_is_simulated(
    small: Path, texts: list[Text], located: dict[str, Located], kind: str
) -> None:
    roles = [text.kind == "query" for text in texts]
    ways = (Way("float32"), Way(kind, properties={"LP_TRANSFORMS_MODE": "NO"}, weight_only=False))
    embedded = [Candidate(small, way).embed([text.text for text in texts], roles) for way in ways]
    expected = locate.noise(embedded[0], embedded[1])
    assert located[kind].total == pytest.approx(expected, rel=0.1 if kind == "int8" else 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_for_a_weight_is_off_by_half_a_rounding_step(bert: Path, kind: str) -> None:
    check_weights(bert, kind)


@pytest.mark.minilm
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_for_a_real_models_weight_is_off_by_half_a_rounding_step(
    small: Path, kind: str
) -> None:
    """SmoothQuant's scales and outlier channels included."""
    check_weights(small, kind)


def check_weights(folder: Path, kind: str) -> None:
    """By evaluating both with OpenVINO itself."""
    float32, file = locate.find_files(folder, kind)
    core = openvino.Core()
    model, original = ir.read(core, file), ir.read(core, float32)
    apart = linears.kept_apart(model)
    assert bool(apart) == (kind == "int8")
    compared = 0
    for node in linears.linears(model):
        name, weight = node.get_friendly_name(), node.input_value(1)
        if linears.is_quantized(weight):
            held = linears.in_place_of(node, node_of(original, name).input_value(1), apart.get(name, ()))
            exact = constant_of(held)
            off = np.abs(constant_of(weight) - exact) / steps_of(weight)
            # A zero point is rounded, too, and a scale may be a float16.
            assert off.max() < (0.501 if kind == "int8" else 1.2)
            assert off.max() > 0.4
            assert not exact[:, apart.get(name, [])].any()
            compared += 1
    assert compared == len(linears.linears(original))


# ---- what is found


@pytest.mark.minilm
def test_a_quantizer_that_is_four_times_too_wide_comes_first(
    small: Path, texts: list[Text], located: dict[str, Located], tmp_path: Path
) -> None:
    wanted = "encoder.layer.3.output.dense.matmul"

    def widen(model: openvino.Model) -> None:
        quantizer = node_of(model, wanted).input_value(0).get_node()
        assert quantizer.get_type_name() == "FakeQuantize"
        for port in quantizer.inputs()[1:]:
            limit = port.get_source_output().get_node().get_data()
            port.replace_source_output(opset13.constant(4 * limit).output(0))

    found = locate.locate(changed(small, tmp_path / "model", "int8", widen), "int8", texts)
    before = next(
        part for part in located["int8"].operators if (part.name, part.kind) == (wanted, "activation")
    )
    worst = found.operators[0]
    assert located["int8"].operators[0].name != wanted
    assert (worst.name, worst.kind, worst.layer) == (wanted, "activation", 3)
    assert worst.noise == pytest.approx(4**2 * before.noise, rel=0.3)
    assert max(found.layers, key=lambda layer: layer.noise).name == "layer 3"


@pytest.mark.minilm
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_with_a_wrong_scale_comes_first(
    small: Path, texts: list[Text], located: dict[str, Located], kind: str, tmp_path: Path
) -> None:
    wanted = "encoder.layer.3.attention.output.dense.matmul"

    def damage(model: openvino.Model) -> None:
        node = node_of(model, wanted).input_value(1).get_node()
        if node.get_type_name() == "Convert":
            node = node.input_value(0).get_node()
        scale = node.input_value(1).get_node().get_data()
        node.input(1).replace_source_output(opset13.constant((scale * 1.5).astype(scale.dtype)).output(0))

    found = locate.locate(changed(small, tmp_path / "model", kind, damage), kind, texts)
    worst = found.operators[0]
    assert located[kind].operators[0].name != wanted
    assert (worst.name, worst.kind, worst.layer) == (wanted, "weight", 3)
    assert max(found.layers, key=lambda layer: layer.noise).name == "layer 3"
    assert found.total > located[kind].total


@pytest.mark.minilm
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_parts_add_alone_is_nearly_what_they_add_together(
    located: dict[str, Located], kind: str
) -> None:
    found = located[kind]
    assert locate_step.added_up(found) == pytest.approx(1, abs=0.25)
    assert sum(layer.share for layer in found.layers) == pytest.approx(1, abs=0.25)
    assert [layer.name for layer in found.layers] == ["embeddings", *(f"layer {i}" for i in range(6))]
    noises = [part.noise for part in found.operators]
    assert noises == sorted(noises, reverse=True)
    assert all(part.share == pytest.approx(part.noise / found.total) for part in found.operators)


def test_each_quantizer_weight_and_table_is_a_part(bert: Path) -> None:
    found = {(part.name, part.kind): part.layer for part in locate.locate(bert, "int8", TEXTS).operators}
    assert found["embeddings.token_type_embeddings", "table"] is None
    attention = [f"encoder.layer.1.attention.self.{name}.matmul" for name in ("query", "key", "value")]
    assert found[", ".join(attention), "activation"] == 1
    assert found["encoder.layer.0.attention.self input 1", "activation"] == 0
    assert [found[name, "weight"] for name in attention] == [1, 1, 1]
    kinds = [kind for _, kind in found]
    model = openvino.Core().read_model(bert / "openvino" / ir.VARIANTS["int8"])
    assert kinds.count("activation") == len(passes.activation_quantizers(model))
    assert (kinds.count("weight"), kinds.count("table")) == (12, 3)


def test_what_an_exporter_calls_its_operators_has_layers_too() -> None:
    found = locate.locate(EXPORTED, "int8", TEXTS)
    assert [layer.layer for layer in found.layers] == [None, 0, 1, 2, 3, 4, 5]
    assert {part.layer for part in found.operators if part.kind != "table"} == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.layer.3.output.dense.matmul", 3),
        ("layers.21.mlp.Wo", 21),
        ("__module.layers.0.attn.Wo/aten::linear/MatMul", 0),
        ("__module.encoder.layer.10.output.dense/aten::linear/MatMul", 10),
        ("/layers.3/attn/Wqkv/MatMul", 3),
        ("/encoder/layer.4/attention/self/query/MatMul", 4),
        ("embeddings.word_embeddings", None),
        ("__module.embeddings.norm/aten::layer_norm/Multiply_1", None),
        ("MatMul_12", None),
        ("player.7", None),
    ],
)
def test_the_layer_is_read_from_a_name(name: str, layer: int | None) -> None:
    assert locate.layer_of(name) == layer


def test_int8_dynamic_is_located_by_its_weights(bert: Path) -> None:
    assert locate.locate(bert, "int8_dynamic", TEXTS) == locate.locate(bert, "int8_weights", TEXTS)
    assert {part.kind for part in locate.locate(bert, "int8_dynamic", TEXTS).operators} == {"weight", "table"}


def test_two_graphs_are_compiled_however_many_parts_there_are(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    compiled = locate.compiled

    def counted(model: openvino.Model) -> Any:
        made.append(model.get_friendly_name())
        return compiled(model)

    monkeypatch.setattr(locate, "compiled", counted)
    assert len(locate.locate(bert, "int8", TEXTS).operators) > 20
    assert len(made) == 2


# ---- what cannot be located


def test_a_weight_without_a_counterpart_is_left_out_and_counted(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "encoder.layer.1.output.dense.matmul"

    def rename(model: openvino.Model) -> None:
        node_of(model, name).set_friendly_name("other")

    folder = changed(bert, tmp_path / "model", "int8_weights", rename)
    with caplog.at_level(logging.WARNING):
        found = locate.locate(folder, "int8_weights", TEXTS)
    assert "1 of 15 quantized weights have no counterpart" in caplog.text
    assert len(found.operators) == 14
    assert found.total == pytest.approx(locate.locate(bert, "int8_weights", TEXTS).total, rel=1e-3)


def test_an_int8_file_of_another_graph_is_refused(bert: Path, tmp_path: Path) -> None:
    def rename(model: openvino.Model) -> None:
        for node in model.get_ops():
            if node.get_type_name() in ("MatMul", "Gather"):
                node.set_friendly_name(f"their_{node.get_friendly_name()}")

    folder = changed(bert, tmp_path / "model", "int8", rename)
    with pytest.raises(ModelError, match=r"none of its 15 quantized weights.*made from another graph"):
        locate.locate(folder, "int8", TEXTS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_int8_file_of_other_weights_is_refused(bert: Path, tmp_path: Path, kind: str) -> None:
    from edge_embed.build import build

    other = build(tiny_bert(tmp_path / "other", seed=1))
    folder = copied(bert, tmp_path / "model")
    for suffix in (".xml", ".bin"):
        name = Path("openvino", ir.VARIANTS["float32"]).with_suffix(suffix)
        shutil.copy(other / name, folder / name)
    with pytest.raises(ModelError, match=rf"made from other weights.*--compute-type {kind}"):
        locate.locate(folder, kind, TEXTS)


def test_a_folder_without_the_file_is_told_how_to_make_it(tiny: Path) -> None:
    wanted = r"no openvino_model_int8_weights.xml for int8_dynamic; .*quantize .*--compute-type int8_weights$"
    with pytest.raises(ModelNotFoundError, match=wanted):
        locate.locate(tiny, "int8_dynamic", TEXTS)
    (tiny / "openvino" / ir.VARIANTS["float32"]).unlink()
    with pytest.raises(ModelNotFoundError, match="no float32 IR to compare with; run: edge-embed build"):
        locate.locate(tiny, "int8", TEXTS)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int4"])
def test_what_is_not_quantized_is_refused(tiny: Path, kind: str) -> None:
    with pytest.raises(InputError, match=f"{kind} has no quantized part to locate; known: int8, "):
        locate.locate(tiny, kind, TEXTS)


def test_one_text_is_refused_before_any_work(tiny: Path) -> None:
    with pytest.raises(InputError, match="1 texts have no spread"):
        locate.locate(tiny, "int8", TEXTS[:1])


def test_a_file_in_which_nothing_is_quantized_is_refused(tiny: Path) -> None:
    for suffix in (".xml", ".bin"):
        source = (tiny / "openvino" / ir.VARIANTS["float32"]).with_suffix(suffix)
        shutil.copy(source, (tiny / "openvino" / ir.VARIANTS["int8"]).with_suffix(suffix))
    with pytest.raises(ModelError, match="has no quantized part; run: edge-embed quantize"):
        locate.locate(tiny, "int8", TEXTS)


# ---- the command


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    locate_step.add_locate_arguments(parser)
    parser.add_argument("--json", action="store_true")
    return locate_step.run_locate(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_shows_parts_and_layers_and_keeps_them_all(
    bert: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "located.json"
    assert run(bert, "--count", 8, "-o", out, "--json") == 0
    *shown, last = capsys.readouterr().out.splitlines()
    values = json.loads(out.read_text("utf-8"))
    found = measurement.from_values(Located, values["located"], "located")
    assert values["schema"] == locate_step.SCHEMA
    assert (values["compute_type"], found.n) == ("int8", 8)
    assert json.loads(last)["parts"] == len(found.operators)
    table = shown[2 : 2 + locate_step.SHOWN]
    assert table[0].split()[0] == f"{found.operators[0].share:.1%}"
    assert shown[2 + locate_step.SHOWN].endswith(
        f"{len(found.operators) - locate_step.SHOWN} more; -o FILE keeps them all"
    )
    start = shown.index("layer by layer") + 1
    bars = {line.split("%")[1].rstrip("█ ").strip(): line.count("█") for line in shown[start : start + 3]}
    assert list(bars) == ["embeddings", "layer 0", "layer 1"]
    assert max(bars.values()) == locate_step.BAR


def test_what_the_command_advises_is_taken_by_quantize(bert: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(bert, "--count", 8) == 0
    lines = capsys.readouterr().out.splitlines()
    recipe = tmp_path / "recipe.toml"
    at = next(i for i, line in enumerate(lines) if line.startswith("for recipe.toml"))
    recipe.write_text("\n".join(lines[at + 1 :]), encoding="utf-8")
    advised = quantize.read_recipe(recipe)
    assert advised.weight_only_names or advised.ignored_names
    quantize.read_source(quantize.find_source(bert), advised)  # names are those of the IR


def test_own_texts_are_taken(bert: Path, tmp_path: Path, capsys: Capture) -> None:
    own = tmp_path / "own.txt"
    own.write_text("\n".join(text.text for text in TEXTS), encoding="utf-8")
    assert run(bert, "--compute-type", "int8_dynamic", "--texts", own) == 0
    shown = capsys.readouterr().out
    assert f"simulated in float32, {len(TEXTS)} texts" in shown
    assert "what int8_dynamic does to activations is not located by part" in shown


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--count", "1"], "--count is 1; it must be at least 2"),
        (["-o", "located.txt"], "must end in .json"),
        (["-o", "absent/located.json"], "absent does not exist"),
        (["--texts", "absent.txt"], "cannot read absent.txt"),
    ],
)
def test_wrong_use_is_told_before_any_work(bert: Path, options: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        run(bert, *options)


def test_the_command_offers_what_can_be_located() -> None:
    assert locate_step.COMPUTE_TYPES == locate.LOCATED


def part(name: str, kind: str, share: float) -> Source:
    return Source(name, locate.layer_of(name), kind, share / 100, share)


def test_advice_says_of_each_kind_of_part_what_a_recipe_can_do() -> None:
    found = Located(
        40,
        0.01,
        (),
        (
            part("layers.1.mlp.Wo", "activation", 0.4),
            part("layers.0.attn input 1", "activation", 0.2),
            part("tok_embeddings", "table", 0.1),
            part("layers.0.attn input 0", "activation", 0.06),
            part("layers.2.mlp.Wo", "activation", 0.05),
        ),
    )
    _, read, ignored = locate_step.advice(found)
    assert read.startswith('weight_only_names = ["layers.1.mlp.Wo"]  # 40%')
    assert ignored.startswith('ignored_names = ["layers.0.attn", "tok_embeddings"]  # 36%')


def test_no_part_is_singled_out_where_none_stands_out() -> None:
    found = Located(40, 0.01, (), (part("a", "weight", 0.049), part("b", "weight", 0.04)))
    (line,) = locate_step.advice(found)
    assert line.startswith("no part has 5% of the noise")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("layers.3.mlp.Wo", "layers.3.mlp.Wo"),
        ("self.query.matmul, self.key.matmul", "self.{query,key}.matmul"),
        ("m.query/linear/MatMul, m.key/linear/MatMul", "m.{query,key}/linear/MatMul"),
        ("a.b, c", "a.b, c"),
    ],
)
def test_names_that_share_a_quantizer_are_shown_as_one(name: str, shown: str) -> None:
    assert locate_step.short(name) == shown


def test_texts_are_taken_evenly() -> None:
    texts = calibration.evaluation()[:10]
    assert [text.id for text in locate_step.evenly(texts, 3)] == [texts[i].id for i in (0, 3, 6)]
    assert locate_step.evenly(texts, 40) == texts
