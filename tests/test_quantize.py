"""quantize.py and `edge-embed quantize`, against NNCF called by hand, and loaded by the Embedder."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset13

from edge_embed import Embedder, atomic, calibration, ir, quantize, store
from edge_embed.build import build
from edge_embed.cli import main
from edge_embed.drift import measure
from edge_embed.drift.metrics import sqnr
from edge_embed.errors import OutputError
from edge_embed.graph import linears, passes
from edge_embed.hardware import machine
from edge_embed.manifest import read_manifest
from edge_embed.plan import Plan, make_plan
from edge_embed.quantize import Recipe
from edge_embed.record import hash_file, read_record, write_record
from edge_embed.tokenization import Tokenizer
from tests.modernbert_checkpoints import tiny_modernbert
from tests.test_offline import notes_of

ROOT = Path(__file__).parents[1]

Capture = pytest.CaptureFixture[str]

KINDS = ("int8_weights", "int8")
FILES = {kind: f"openvino/{ir.VARIANTS[kind]}" for kind in KINDS}
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"

# Short, so that a recipe with few texts is quick. Random weights have no outliers, so the largest will do.
FEW = Recipe(subset_size=200, outlier_channels=2, outlier_ratio=1.2)

TEXTS = [
    "the cat sat on the mat",
    "a dog runs fast and the red house is slow",
    "hello world, how are you?",
    "it is blue or red",
    "the harbour ferry leaves every twenty minutes, and the dog sat in the house.",
]


@pytest.fixture(scope="module")
def bert(tiny_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with both INT8 IRs. Read only."""
    return quantized(Path(shutil.copytree(tiny_built, tmp_path_factory.mktemp("bert") / "model")))


@pytest.fixture(scope="module")
def modernbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny ModernBERT with both INT8 IRs. Read only."""
    return quantized(build(tiny_modernbert(tmp_path_factory.mktemp("modernbert") / "model")))


def quantized(folder: Path) -> Path:
    for kind in KINDS:
        quantize.quantize(folder, kind, FEW)
    return folder


def read(folder: Path, kind: str) -> openvino.Model:
    path = folder / "openvino" / ir.VARIANTS[kind]
    return ir.read(openvino.Core(), path)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones included."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def own_texts(path: Path, count: int = 60) -> Path:
    path.write_text("\n".join(f"the cat {i} sat on mat {i * i} and the dog is slow" for i in range(count)))
    return path


def hidden(model: openvino.Model, rows: list[NDArray[np.int64]]) -> NDArray[Any]:
    """last_hidden_state of token rows, one after another, in float32 with quantization simulated."""
    pinned = {"INFERENCE_PRECISION_HINT": "f32", GROUP: "0", "LP_TRANSFORMS_MODE": "NO"}
    run = openvino.Core().compile_model(model, "CPU", pinned)
    return np.concatenate([run(feed)[0][0] for feed in feeds(model, rows)])


def feeds(model: openvino.Model, rows: list[NDArray[np.int64]]) -> list[dict[str, NDArray[np.int64]]]:
    names = [port.get_any_name() for port in model.inputs]
    values = {
        "input_ids": lambda ids: ids[None],
        "attention_mask": lambda ids: np.ones_like(ids)[None],
        "token_type_ids": lambda ids: np.zeros_like(ids)[None],
    }
    return [{name: values[name](ids) for name in names} for ids in rows]


def tokens(folder: Path, texts: list[str]) -> list[NDArray[np.int64]]:
    return Tokenizer(folder, max_tokens=read_manifest(folder).max_tokens).encode(texts).ids


def least_cosine(folder: Path, compute_type: str, texts: list[str] = TEXTS) -> float:
    """Of unit vectors with those of float32, over texts."""
    reference = Embedder(folder, compute_type="float32", cache_dir=False).encode(texts)
    embedder = Embedder(folder, compute_type=compute_type, cache_dir=False)
    assert embedder.plan.compute_type == compute_type
    found = embedder.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    return float((reference * found).sum(1).min())


# ---- against NNCF itself


def test_int8_weights_are_those_of_nncf(bert: Path) -> None:
    import nncf

    expected = nncf.compress_weights(read(bert, "float32"), mode=nncf.CompressWeightsMode.INT8_ASYM)
    rows = tokens(bert, TEXTS)
    np.testing.assert_array_equal(hidden(read(bert, "int8_weights"), rows), hidden(expected, rows))


def test_int8_without_outlier_channels_is_that_of_nncf_on_the_same_texts(tiny: Path) -> None:
    import nncf

    bert = tiny
    quantize.quantize(bert, "int8", replace(FEW, outlier_channels=0))
    tokenizer = Tokenizer(bert, max_tokens=512)
    built_in = calibration.builtin(lambda text: int(tokenizer.encode([text]).lengths[0]), max_tokens=512)
    model = read(bert, "float32")
    expected = nncf.quantize(
        model.clone(),
        nncf.Dataset(feeds(model, tokens(bert, [text.text for text in built_in[:200]]))),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=0.85), disable_bias_correction=True
        ),
    )
    rows = tokens(bert, TEXTS)
    np.testing.assert_array_equal(hidden(read(bert, "int8"), rows), hidden(expected, rows))


def test_nncf_gets_its_statistics_in_the_order_of_the_graph_and_is_then_as_it_was(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nncf.openvino.engine import OVNativeEngine

    compiled: list[openvino.Model] = []
    monkeypatch.setattr(OVNativeEngine, "__init__", lambda engine, model: compiled.append(model))
    before = OVNativeEngine.__init__
    model = read(tiny, "float32")
    steps = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    shuffled = [opset13.result(steps[place]) for place in (5, 0, 9)]
    with quantize.outputs_in_order():
        OVNativeEngine(openvino.Model(shuffled, model.get_parameters(), "statistics"))
    (ordered,) = compiled
    read_from = [result.input_value(0).get_node().get_friendly_name() for result in ordered.get_results()]
    assert read_from == [steps[place].get_friendly_name() for place in (0, 5, 9)]
    assert OVNativeEngine.__init__ is before


def test_the_products_of_outlier_channels_stay_in_float32(bert: Path) -> None:
    model = read(bert, "int8")
    weights = {
        node.get_friendly_name(): node.input_value(1).get_node().get_type_name()
        for node in linears.linears(model)
    }
    apart = [name for name in weights if name.endswith(linears.OUTLIERS)]
    assert apart
    assert {weights[name] for name in apart} == {
        "Constant"
    }  # float32 as it is; INT8 is unpacked by a Multiply
    assert {weights[name] for name in weights if name not in apart} == {"Multiply"}
    assert not [node for node in model.get_ops() if node.get_friendly_name().endswith(linears.MASK)]


def test_the_linears_that_a_recipe_leaves_to_weights_alone_read_float32(tiny: Path) -> None:
    name, pattern = "encoder.layer.0.output.dense.matmul", r"encoder\.layer\.1\.attention\.self"
    quantize.quantize(tiny, "int8", replace(FEW, weight_only_names=(name,), weight_only_patterns=(pattern,)))
    model = read(tiny, "int8")
    coarse = {name for names in linears.quantized_inputs(model).values() for name in names}
    alone = {node.get_friendly_name() for node in linears.linears(model)} - coarse
    left = {name for name in alone if not name.endswith(linears.OUTLIERS)}
    assert left == {
        name,
        *(f"encoder.layer.1.attention.self.{part}.matmul" for part in ("query", "key", "value")),
    }
    for node in linears.linears(model):
        if node.get_friendly_name() in left:
            assert node.input_value(1).get_node().get_type_name() == "Multiply"  # INT8 weights all the same


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_what_is_quantized(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    # BERT: one for query, key and value, one for each of three linears; ModernBERT: for each of four linears.
    # Both: the queries and keys of attention.
    assert len(passes.activation_quantizers(read(folder, "int8"))) == 6 * layers
    assert passes.activation_quantizers(read(folder, "int8_weights")) == []


# ---- what the Embedder makes of it


@pytest.mark.parametrize("name", ["bert", "modernbert"])
@pytest.mark.parametrize(
    ("compute_type", "bound"), [("int8_weights", 0.999), ("int8_dynamic", 0.998), ("int8", 0.99)]
)
def test_the_embedder_runs_it_close_to_float32(
    name: str, compute_type: str, bound: float, request: pytest.FixtureRequest
) -> None:
    assert bound < least_cosine(request.getfixturevalue(name), compute_type) < 1 - 1e-7


@pytest.mark.minilm
@pytest.mark.parametrize(
    ("compute_type", "bound"), [("int8_weights", 0.999), ("int8_dynamic", 0.998), ("int8", 0.99)]
)
def test_minilm_stays_close_to_float32_on_evaluation_texts(
    minilm_quantized: Path, compute_type: str, bound: float
) -> None:
    texts = [text.text for text in calibration.evaluation() if text.stratum in ("en", "code-python")]
    assert bound < least_cosine(minilm_quantized, compute_type, texts) < 1 - 1e-7


@pytest.fixture(scope="module")
def minilm_quantized(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all-MiniLM-L6-v2 with both INT8 IRs, by its own recipe and enough texts. Read only."""
    folder = Path(shutil.copytree(minilm, tmp_path_factory.mktemp("minilm") / "model"))
    for kind in KINDS:
        quantize.quantize(folder, kind, Recipe(subset_size=100))
    return folder


@pytest.mark.minilm
@pytest.mark.skipif(not machine().has_int8_dot, reason="static INT8 is run by weights alone here")
def test_outlier_channels_apart_make_the_drift_of_minilm_less_than_that_of_stock(
    minilm_quantized: Path, tmp_path: Path
) -> None:
    stock = Path(shutil.copytree(minilm_quantized, tmp_path / "stock"))
    quantize.quantize(stock, "int8", Recipe(smooth_quant_alpha=0.95, outlier_channels=0, subset_size=100))
    texts = [text.text for text in measure.evaluation_texts(minilm_quantized)]

    def vectors(folder: Path, compute_type: str) -> NDArray[np.float32]:
        return Embedder(folder, compute_type=compute_type, cache_dir=False).encode(texts)

    float32 = vectors(stock, "float32")
    ours, theirs = (sqnr(float32, vectors(folder, "int8")) for folder in (minilm_quantized, stock))
    assert ours > theirs + 2.5


def test_the_plan_takes_what_was_quantized(bert: Path) -> None:
    files = ir.find_files(bert)
    assert files.variants.keys() == {"float32", *KINDS}

    def planned(*flags: str, compute_type: str = "auto") -> Plan:
        cpu = replace(machine(), flags=frozenset(flags))
        return make_plan(cpu, files, max_tokens=512, compute_type=compute_type)

    assert planned("avx2", "avx512_vnni").compute_type == "int8_dynamic"
    assert planned("avx2").compute_type == "float32"
    assert not planned("avx2", "avx512_vnni", compute_type="int8").weight_only
    assert planned("avx2", compute_type="int8").weight_only


def test_other_programs_do_not_quantize_activations_on_the_fly_unless_they_ask(bert: Path) -> None:
    core, path = openvino.Core(), bert / FILES["int8_weights"]
    float32 = {"INFERENCE_PRECISION_HINT": "f32"}
    default = core.compile_model(bert / FILES["int8"], "CPU", float32).get_property(GROUP)
    assert default != 0  # OpenVINO's own
    assert core.compile_model(path, "CPU", float32).get_property(GROUP) == 0
    assert core.compile_model(path, "CPU", float32 | {GROUP: "32"}).get_property(GROUP) == 32
    dynamic = "32" if machine().has_int8_dot else "0"
    for compute_type, group in (("int8_weights", "0"), ("int8_dynamic", dynamic)):
        assert Embedder(bert, compute_type=compute_type, cache_dir=False).effective(GROUP) == group


# ---- files and record


def test_the_command_writes_one_ir_puts_it_on_record_and_keeps_the_rest(tiny: Path, capfd: Capture) -> None:
    before = contents(tiny)
    assert main(["quantize", str(tiny), "--compute-type", "int8_weights", "--no-drift", "--json"]) == 0
    out, err = capfd.readouterr()
    shown, report = out.splitlines()
    file = tiny / FILES["int8_weights"]
    size = file.with_suffix(".bin").stat().st_size
    assert shown == f"{file}  {size / 1e6:.1f} MB"
    report = json.loads(report)
    assert 0 < report.pop("seconds") < 600
    assert report.pop("peak_bytes") > 50e6
    assert report == {
        "folder": str(tiny),
        "file": str(file),
        "bytes": size,
        "compute_type": "int8_weights",
        **{"texts": 0, "tokens": 0, "cut": 0},
        "drift": {},
    }
    assert re.fullmatch(r"\d+ s, peak memory [\d,]+ MB\n", err)
    assert size < 0.4 * (tiny / "openvino/openvino_model.bin").stat().st_size

    after = contents(tiny)
    assert after.keys() - before.keys() == {FILES["int8_weights"], FILES["int8_weights"][:-3] + "bin"}
    del before["edge_embed.json"]
    assert {name: after[name] for name in before} == before


def test_the_command_calibrates_on_own_texts_and_says_so(tiny: Path, tmp_path: Path, capfd: Capture) -> None:
    texts = own_texts(tmp_path / "own.txt")
    command = ["quantize", str(tiny), "--compute-type", "int8", "--calibration", str(texts), "--no-drift"]
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 1
    assert re.fullmatch(r"calibrated on 60 texts, [\d,]+ tokens; \d+ s, peak memory [\d,]+ MB\n", err)
    entry = read_record(tiny)["quantized"]["int8"]["calibration"]
    assert (entry["source"], entry["texts"], entry["cut"]) == ("own.txt", 60, 0)


def test_the_command_measures_drift_judges_it_and_puts_it_on_record(tiny: Path, capfd: Capture) -> None:
    assert main(["quantize", str(tiny), "--compute-type", "int8_weights", "--json"]) == 0
    _, *shown, report = capfd.readouterr().out.splitlines()
    served = ["int8_weights", *(["int8_dynamic"] if machine().has_int8_dot else [])]
    kept = read_record(tiny)["drift"]
    assert json.loads(report)["drift"] == kept
    assert list(kept) == served
    for line, (compute_type, entry) in zip(shown, kept.items(), strict=True):
        assert re.fullmatch(
            rf"{compute_type} +[\d.]+ dB from float32 \([\d.]+ to [\d.]+\), worst in \S+ with [\d.]+; "
            r"of ten neighbours [\d.]+% stay: (pass|fail \(.+\))",
            line,
        )
        low, value, high = (entry["sqnr"][key] for key in ("low", "value", "high"))
        assert 20 < low < value < high < 60
        assert entry["verdict"] in ("pass", "fail")
    assert kept[served[-1]]["sqnr"]["value"] <= kept["int8_weights"]["sqnr"]["value"]


def test_a_new_file_does_not_inherit_the_drift_of_the_one_before(tiny: Path) -> None:
    drift = {name: {"verdict": "pass"} for name in ("int8_weights", "int8_dynamic", "int8", "bfloat16")}
    write_record(tiny, read_record(tiny) | {"drift": drift})
    quantize.quantize(tiny, "int8_weights", FEW)
    assert read_record(tiny)["drift"].keys() == {"int8", "bfloat16"}


def test_the_record_tells_recipe_versions_origin_and_texts(bert: Path) -> None:
    import nncf

    record = read_record(bert)
    entries = record["quantized"]
    assert entries.keys() == set(KINDS)
    for kind, entry in entries.items():
        assert entry["recipe"] == json.loads(json.dumps(asdict(FEW)))
        assert entry["made_by"].keys() == {"edge_embed", "nncf", "openvino"}
        assert entry["made_by"]["nncf"] == nncf.__version__
        for name, digest in entry["made_from"].items():
            assert digest == hash_file(bert / "openvino" / name)
        assert ("calibration" in entry) == (kind == "int8")
    calibrated = entries["int8"]["calibration"]
    tokenizer = Tokenizer(bert, max_tokens=512)
    texts = quantize.calibration_texts(None, tokenizer, FEW, False)
    assert calibrated == {
        "source": "built-in",
        "sha256": quantize.hash_texts(texts),
        "texts": 200,
        "tokens": sum(map(len, tokenizer.encode(texts).ids)),
        "cut": int((tokenizer.encode(texts).lengths > 512).sum()),
        "text_sha256": sorted(hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts),
    }
    report = store.verify(bert)
    assert (report.wrong, report.unrecorded) == ((), ())


@pytest.mark.parametrize("others", [[], ["float32"]], ids=["alone", "beside float32"])
def test_a_new_file_does_not_inherit_the_check_of_the_one_before(
    others: list[str], bert: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    write_record(folder, {key: value for key, value in read_record(folder).items() if key != "preparation"})
    for compute_type in ("int8", *others):
        Embedder(folder, compute_type=compute_type, cache_dir=False)
    assert FILES["int8"] in read_record(folder)["preparation"]
    quantize.quantize(folder, "int8", FEW)
    assert read_record(folder)["preparation"].keys() == {f"openvino/{ir.VARIANTS[name]}" for name in others}


PROCESS = """
import sys
from pathlib import Path
from edge_embed.quantize import Recipe, quantize

for kind in ("int8_weights", "int8"):
    quantize(Path(sys.argv[1]), kind, Recipe(subset_size=200, outlier_channels=2, outlier_ratio=1.2))
"""


def test_the_same_inputs_give_the_same_bytes_in_any_process(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bert, folder)
    # Nodes that were made before, and the order of sets, are other ones there.
    other = "import openvino.opset13 as o\nfor _ in range(100): o.constant(0)\n" + PROCESS
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", other, str(folder)], check=True, env=environment)
    for kind in KINDS:
        for suffix in (".xml", ".bin"):
            name = Path(FILES[kind]).with_suffix(suffix)
            assert (folder / name).read_bytes() == (bert / name).read_bytes(), name
    assert read_record(folder)["quantized"] == read_record(bert)["quantized"]


# ---- texts and recipes


def test_own_texts_are_ordered_by_the_seed_not_by_the_file(tiny: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(tiny, max_tokens=512)
    file = own_texts(tmp_path / "own.txt", 80)
    turned = tmp_path / "turned.txt"
    turned.write_text("\n".join(reversed(file.read_text().splitlines())))

    def chosen(path: Path, recipe: Recipe) -> list[str]:
        return quantize.calibration_texts(path, tokenizer, recipe, False)

    first = chosen(file, Recipe(subset_size=60))
    assert len(set(first)) == 60
    assert chosen(turned, Recipe(subset_size=60)) == first
    assert set(chosen(file, Recipe(subset_size=60, seed=1))) != set(first)
    assert sorted(chosen(file, Recipe(subset_size=80))) == sorted(file.read_text().splitlines())


def test_built_in_texts_reach_the_length_of_the_model(tiny: Path) -> None:
    tokenizer = Tokenizer(tiny, max_tokens=512)
    texts = quantize.calibration_texts(None, tokenizer, Recipe(subset_size=1000), False)
    assert len(texts) == 424 + 60  # the rungs of the ladder from 16 to 512 tokens
    assert texts[:200] == quantize.calibration_texts(None, tokenizer, FEW, False)


def test_texts_over_the_limit_are_cut_and_counted(tiny: Path, tmp_path: Path) -> None:
    texts = own_texts(tmp_path / "own.txt")
    texts.write_text(texts.read_text() + "\n" + "cat " * 2000)
    lengths = [len(ids) for ids in tokens(tiny, texts.read_text().splitlines())]
    done = quantize.quantize(tiny, "int8", texts_file=texts)
    assert (done.texts, done.cut, done.tokens) == (61, 1, sum(lengths))
    assert max(lengths) == 512


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*/recipe.toml")), ids=lambda p: p.parent.name)
def test_every_recipe_in_models_is_sound(path: Path) -> None:
    assert quantize.read_recipe(path).smooth_quant_alpha == 0.85


def test_the_recipe_is_that_of_the_model_which_the_record_names(tiny: Path, tmp_path: Path) -> None:
    assert quantize.recipe_of(tiny) == Recipe()
    name = "all-MiniLM-L6-v2"
    write_record(tiny, read_record(tiny) | {"name": name})
    assert quantize.recipe_of(tiny) == quantize.read_recipe(ROOT / "models" / name / "recipe.toml")


def test_a_recipe_file_is_followed(tiny: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'weight_mode = "int8_sym"\nsmooth_quant_alpha = -1\nrange_estimator = "minmax"\nsubset_size = 55\n'
        'seed = 3\nignored_names = ["embeddings.token_type_embeddings"]\n'
        r'ignored_patterns = ["encoder\\.layer\\.1\\.output"]'
    )
    command = ["quantize", str(tiny), "--no-drift", "--recipe", str(recipe), "--compute-type"]
    assert main([*command, "int8_weights"]) == 0
    assert main([*command, "int8"]) == 0
    entries = read_record(tiny)["quantized"]
    assert entries["int8"]["recipe"] == entries["int8_weights"]["recipe"]
    assert entries["int8"]["recipe"]["ignored_names"] == ["embeddings.token_type_embeddings"]
    assert entries["int8"]["calibration"]["texts"] == 55
    for kind in KINDS:
        constants = {
            node.get_friendly_name(): node.get_element_type().get_type_name()
            for node in read(tiny, kind).get_ops()
            if node.get_type_name() == "Constant"
        }
        assert {constants[name] for name in constants if name.startswith("embeddings.token_type")} == {"f32"}
        assert set(constants.values()) >= {"i8"}
        assert "u8" not in constants.values()
    smooth = [node for node in read(tiny, "int8").get_ops() if "smooth_quant" in node.get_friendly_name()]
    assert smooth == []
    quantizers = [node.get_friendly_name() for node in passes.activation_quantizers(read(tiny, "int8"))]
    inner = [name for name in quantizers if ".activation/" in name]  # named by what comes before
    assert [name.partition("/")[0] for name in inner] == ["encoder.layer.0.activation"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("alpha = 0.5", "unknown key alpha; known: weight_mode, "),
        ("subset_size = 1.5", "subset_size is 1.5, not int"),
        ("subset_size = true", "subset_size is True, not int"),
        ("subset_size = 0", "subset_size is 0; it must be at least 1"),
        ("smooth_quant_alpha = 1.1", "smooth_quant_alpha is 1.1; from 0 to 1, or -1 for none"),
        ("smooth_quant_alpha = nan", "smooth_quant_alpha is nan; from 0 to 1, or -1 for none"),
        ('weight_mode = "int4"', "weight_mode is 'int4'; known: int8_asym, int8_sym"),
        ('range_estimator = "mean"', "range_estimator is 'mean'; known: minmax, "),
        ('ignored_names = "a"', "ignored_names is 'a', not a list of strings"),
        ("ignored_names = [1]", "ignored_names is [1], not a list of strings"),
        ('ignored_patterns = ["("]', "ignored_patterns holds '(', no regular expression: "),
        ('weight_only_patterns = ["("]', "weight_only_patterns holds '(', no regular expression: "),
        ("outlier_channels = -1", "outlier_channels is -1; 0 is for none"),
        ("outlier_ratio = nan", "outlier_ratio is nan; it must be at least 0"),
        ("seed", "is not TOML: "),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(
    text: str, complaint: str, tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    assert main(["quantize", str(tiny), "--compute-type", "int8", "--recipe", str(recipe)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"edge-embed: {recipe}")
    assert complaint in line


# ---- refusals


def refused(capsys: Capture, folder: Path, *options: str | Path, kind: str = "int8") -> str:
    """The one line of a command that exits with 2 and leaves the folder as it was."""
    before = contents(folder)
    assert main(["quantize", str(folder), "--compute-type", kind, *map(str, options)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert contents(folder) == before
    (line,) = err.splitlines()
    return line.removeprefix("edge-embed: ")


def test_names_that_the_model_lacks_are_named(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'ignored_names = ["encoder.layer.7.output.dense", "embeddings.token_type_embeddings"]\n'
        'ignored_patterns = ["encoder", "^decoder"]'
    )
    for kind in KINDS:
        line = refused(capsys, tiny, "--recipe", recipe, kind=kind)
        assert line.startswith("the recipe ignores encoder.layer.7.output.dense, ^decoder, which no op of ")
        assert "names like that are: encoder.layer." in line


def test_linears_that_the_model_lacks_are_named(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'weight_only_names = ["encoder.layer.0.output.dense"]\nweight_only_patterns = ["embed"]'
    )
    line = refused(capsys, tiny, "--recipe", recipe)
    told = "the recipe leaves the activations of encoder.layer.0.output.dense, embed, which no linear of "
    assert line.startswith(told)
    assert "names like that are: encoder.layer.0.output.dense.matmul" in line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", KINDS)
@pytest.mark.parametrize("on_record", [True, False])
def test_what_is_quantized_already_is_refused(
    on_record: bool, stored: str, kind: str, bert: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bert, folder)
    for suffix in (".xml", ".bin"):
        file = Path(FILES[stored]).with_suffix(suffix)
        shutil.copy(bert / file, folder / f"openvino/openvino_model{suffix}")
    if not on_record:  # as other tools may write it
        xml = folder / "openvino/openvino_model.xml"
        xml.write_text(re.sub(r"<nncf>.*</nncf>", "", xml.read_text(), flags=re.DOTALL))
    line = refused(capsys, folder, kind=kind)
    assert line.startswith(f"{folder / 'openvino/openvino_model.xml'} is quantized already: ")
    assert ("on record in it" in line) == on_record
    assert line.endswith("start from the float32 IR")


def test_a_folder_without_a_float32_ir_is_told_to_build_one(tiny: Path, capsys: Capture) -> None:
    (tiny / "openvino/openvino_model.xml").unlink()
    assert refused(capsys, tiny).endswith(f"run: edge-embed build {tiny}")


def test_without_nncf_the_extra_is_named(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert refused(capsys, tiny) == "quantizing needs NNCF: pip install 'edge-embed[quantize]'"


def test_few_own_texts_are_refused_unless_allowed(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    texts = own_texts(tmp_path / "own.txt", 49)
    assert "holds 49 different texts, fewer than 50" in refused(capsys, tiny, "--calibration", texts)
    assert quantize.quantize(tiny, "int8", texts_file=texts, allow_few=True).texts == 49


def test_texts_that_drift_is_measured_on_are_refused(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    leaked = [text.text for text in calibration.evaluation() if text.stratum == "pl"][:2]
    texts = own_texts(tmp_path / "own.txt")
    texts.write_text(texts.read_text() + "\n" + "\n".join(leaked), "utf-8")
    line = refused(capsys, tiny, "--calibration", texts)
    assert line.startswith(
        f"{texts} holds 2 of the texts that drift is measured on, the first is '{leaked[0][:60]}'"
    )


def test_texts_for_weights_alone_are_refused(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    texts = own_texts(tmp_path / "own.txt")
    line = refused(capsys, tiny, "--calibration", texts, kind="int8_weights")
    assert line == "int8_weights needs no calibration texts; they are for int8"


def test_repeated_own_texts_are_counted(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = own_texts(tmp_path / "own.txt")
    texts.write_text("\n\n".join([texts.read_text(), "same", "same"]))
    chosen = quantize.calibration_texts(texts, Tokenizer(tiny, max_tokens=512), Recipe(), False)
    assert len(chosen) == 61
    assert caplog.messages == [f"{texts}: 1 repeated and 2 blank texts are left out"]


# ---- failing, and keeping quiet


@pytest.mark.parametrize("moment", ["calibrating", "writing", "recording"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OutputError("cannot write: the disk is full")], ids=repr
)
def test_a_failed_or_interrupted_run_leaves_nothing(
    error: BaseException, moment: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nncf.telemetry import decorator

    def fail(*args: object, **options: object) -> None:
        raise error

    passes_begun = []
    samples = quantize.Samples.__iter__

    def failing_in_the_second_pass(self: quantize.Samples) -> Iterator[Any]:
        passes_begun.append(self)
        for number, feed in enumerate(samples(self)):
            if len(passes_begun) == 2 and number == 30:
                fail()
            yield feed

    before, telemetry = contents(tiny), decorator.telemetry
    if moment == "calibrating":
        monkeypatch.setattr(quantize.Samples, "__iter__", failing_in_the_second_pass)
    elif moment == "writing":
        monkeypatch.setattr(atomic, "sync_file", fail)
    else:
        monkeypatch.setattr(quantize, "write_record", fail)
    with pytest.raises(type(error)):
        quantize.quantize(tiny, "int8", FEW)
    assert contents(tiny) == before
    assert decorator.telemetry is telemetry
    assert len(passes_begun) == (2 if moment == "calibrating" else 0)


SOCKETS = """
from edge_embed.cli import main

for kind in ("int8_weights", "int8"):
    command = ["quantize", sys.argv[2], "--compute-type", kind, "--recipe", sys.argv[3]]
    assert main(command) == 0
"""


def small_recipe(folder: Path) -> Path:
    path = folder / "recipe.toml"
    path.write_text("subset_size = 50")
    return path


def test_quantizing_opens_no_socket(tiny: Path, tmp_path: Path) -> None:
    assert notes_of(tmp_path, SOCKETS, tiny, small_recipe(tmp_path)) == ""
    assert all((tiny / name).exists() for name in FILES.values())


# NNCF imports the telemetry then, which our package would have blocked.
EARLY = """
import nncf
from nncf.telemetry.wrapper import NNCFTelemetry

assert sys.modules["openvino_telemetry"]
notes.seek(0)
notes.truncate()
for name in ("start_session", "send_event", "end_session"):
    setattr(NNCFTelemetry, name, lambda *args, name=name, **options: notes.write(f"{name} {args}"))
"""


def test_nncf_reports_nothing_of_our_calls_where_it_was_imported_before(tiny: Path, tmp_path: Path) -> None:
    assert notes_of(tmp_path, EARLY + SOCKETS, tiny, small_recipe(tmp_path)) == ""


def test_the_watch_would_notice_a_report(tiny: Path, tmp_path: Path) -> None:
    work = "import openvino\nnncf.compress_weights(openvino.Core().read_model(sys.argv[2]))"
    assert "send_event" in notes_of(tmp_path, EARLY + work, tiny / "openvino/openvino_model.xml")


class Terminal:
    """`edge-embed quantize FOLDER --compute-type int8` whose stderr is a terminal."""

    def __init__(self, folder: Path) -> None:
        import pty
        import termios

        self.near, far = pty.openpty()
        termios.tcsetwinsize(far, (24, 100))
        command = [sys.executable, "-m", "edge_embed", "quantize", str(folder), "--no-drift"]
        command += ["--compute-type", "int8"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=far)
        os.close(far)

    def read_until(self, pattern: bytes) -> str:
        """What it wrote, up to and including the first match; it is an error when that never comes."""
        seen = b""
        while not re.search(pattern, seen):
            piece = os.read(self.near, 4096)
            assert piece, seen.decode()
            seen += piece
        return seen.decode()

    def end(self) -> tuple[int, str]:
        """Exit code and stdout."""
        out, _ = self.process.communicate()
        os.close(self.near)
        return self.process.returncode, out.decode()


posix = pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals and no SIGINT there")


@posix
def test_on_a_terminal_a_bar_tells_the_time_left_and_nothing_else_is_said(tiny: Path) -> None:
    terminal = Terminal(tiny)
    seen = terminal.read_until(rb"peak memory.*\n")
    code, out = terminal.end()
    assert (code, len(out.splitlines())) == (0, 1)
    lines = [line for line in re.split(r"[\r\n]+", seen) if line.strip()]
    assert all(line.startswith("Calibrating: ") for line in lines[:-1])
    assert any(re.search(r"[1-9]\d*%.*\[\d\d:\d\d<\d\d:\d\d, ", line) for line in lines[:-1])
    assert lines[-2].startswith("Calibrating: 100%")
    assert lines[-1].startswith("calibrated on ")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A background job of a shell starts with SIGINT ignored, and so do the children of its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@posix
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_calibrating_leaves_nothing(tiny: Path) -> None:
    before = contents(tiny)
    terminal = Terminal(tiny)
    terminal.read_until(rb"Calibrating: +[1-9][0-9]*%")
    terminal.process.send_signal(signal.SIGINT)
    seen = terminal.read_until(rb"interrupted.*\n")
    assert terminal.end() == (130, "")
    assert seen.splitlines()[-1] == "edge-embed: interrupted; nothing half-written is left"
    assert "Traceback" not in seen
    assert contents(tiny) == before
