"""sweep.py and `edge-embed quantize --search` on a tiny model; which recipe wins there means nothing."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from openvino import opset13
from tqdm import tqdm

from edge_embed import calibration, quantize, sweep
from edge_embed.cli import main
from edge_embed.drift.metrics import Interval
from edge_embed.errors import InputError
from edge_embed.graph import linears, passes
from edge_embed.hardware import machine
from edge_embed.quantize import Recipe
from edge_embed.record import read_record
from edge_embed.sweep import Row
from edge_embed.tokenization import Tokenizer

Capture = pytest.CaptureFixture[str]

searches = pytest.mark.skipif(not machine().has_int8_dot, reason="nothing to search on this CPU")


@pytest.fixture
def few_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "CHANNELS", ((0, 0.0), (2, 1.2)))
    monkeypatch.setattr(sweep, "ALPHAS", (0.85, quantize.OFF))
    monkeypatch.setattr(sweep, "ESTIMATORS", ("mean_minmax", "minmax"))
    monkeypatch.setattr(sweep, "WEIGHT_ONLY", (1, 2))
    monkeypatch.setattr(sweep, "ROUNDS", 1)
    monkeypatch.setattr(sweep, "LEAST_SPEED", 0.0)  # a tiny model's speed is noise


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.txt"
    path.write_text("\n".join(f"the cat {i} sat on mat {i * i} and the dog is slow" for i in range(60)))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def row(sqnr: float, speed: float, *, size: int = 10, overlap: float = 0.9, seed: int = 0) -> Row:
    return Row(Recipe(seed=seed), Interval(sqnr, sqnr - 1, sqnr + 1), overlap, 100 * speed, speed, size)


@searches
def test_each_turn_starts_from_the_best_before_and_nothing_of_the_model_changes(
    few_recipes: None, tiny: Path, own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = contents(tiny)
    found = sweep.sweep(tiny, texts_file=own, start=Recipe(subset_size=48), least_speed=0.0)
    after = contents(tiny)
    assert {name: after[name] for name in before if name != "edge_embed.json"} == {
        name: before[name] for name in before if name != "edge_embed.json"
    }
    assert after.keys() == before.keys()
    assert list(tmp_path.glob("edge-embed-search-*")) == []

    recipes = [row.recipe for row in found.rows]
    assert len(set(recipes)) == len(recipes)
    assert (found.texts, found.held_out) == (36, 12)
    stock, *others = recipes
    assert stock == Recipe(smooth_quant_alpha=0.95, outlier_channels=0, subset_size=48)
    by_channels = others[:2]
    assert [recipe.outlier_channels for recipe in by_channels] == [0, 2]
    best = max(found.rows[:3], key=lambda row: row.sqnr.value).recipe
    later = [recipe for recipe in others[2:] if not recipe.weight_only_names]
    assert {recipe.outlier_channels for recipe in later} == {best.outlier_channels}
    one, two = (set(recipe.weight_only_names) for recipe in others if recipe.weight_only_names)
    assert one < two
    assert found.chosen == max(found.rows, key=lambda row: row.sqnr.value).recipe
    assert found.rows[0].speed == 1
    assert any(row.pareto for row in found.rows)


@searches
def test_the_linears_that_add_the_most_noise_come_first(tiny: Path, tmp_path: Path) -> None:
    texts = [f"the dog {i} and the cat" for i in range(12)]
    rows = Tokenizer(tiny, max_tokens=512).encode(texts).ids
    trials = sweep.Trials(tiny, tmp_path, rows, texts, 1, 0.9, tqdm(disable=True))
    model = trials._quantized(Recipe())
    wanted = list(linears.quantized_inputs(model))[5]
    for node in passes.activation_quantizers(model):
        if node.get_friendly_name() == wanted:
            for port in node.inputs()[1:]:  # 30 times too wide, and so are its steps
                limit = port.get_source_output().get_node().get_data()
                port.replace_source_output(opset13.constant(30 * limit).output(0))
    assert trials._ranked(model)[0] == linears.quantized_inputs(model)[wanted]


def test_the_best_has_the_least_drift_among_those_that_are_fast_enough() -> None:
    trials = object.__new__(sweep.Trials)
    trials._least_speed = 0.9
    trials.rows = [row(20, 1), row(25, 0.95, seed=1), row(30, 0.89, seed=2), row(24, 1.2, seed=3)]
    assert trials.best().recipe.seed == 1


def test_a_row_is_worth_having_unless_another_is_as_good_in_everything_and_better_in_one() -> None:
    rows = [row(20, 1), row(25, 1), row(24, 1.1), row(25, 1, size=9), row(25, 1, size=9, overlap=0.8)]
    assert [row.pareto for row in sweep.marked(rows)] == [False, False, True, True, False]
    twins = [row(20, 1), row(20, 1)]
    assert [row.pareto for row in sweep.marked(twins)] == [True, True]


def test_what_is_chosen_by_is_in_no_text_that_is_calibrated_on(tiny: Path) -> None:
    tokenizer = Tokenizer(tiny, max_tokens=512)
    used, held_out = sweep.split_texts(None, tokenizer, Recipe(), False)
    assert len(held_out) == len(calibration.builtin()) // sweep.HELD_OUT
    joined = "\n".join(used)
    # A ladder text may stop in the middle of one, and an edge text may be a single letter.
    assert [text for text in held_out if len(text) > 40 and text[:40] in joined] == []
    ladder = [text for text in used if text not in {stored.text for stored in calibration.builtin()}]
    assert len(ladder) > 50
    assert set(used).isdisjoint(held_out)


def test_a_cpu_that_would_not_run_static_int8_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = replace(machine(), flags=frozenset({"avx2"}))
    monkeypatch.setattr(sweep, "machine", lambda: plain)
    with pytest.raises(InputError, match="no INT8 dot products"):
        sweep.sweep(tiny)


@searches
def test_the_command_writes_table_and_recipe_and_quantizes_by_it(
    few_recipes: None, tiny: Path, own: Path, tmp_path: Path, capsys: Capture
) -> None:
    table, start = tmp_path / "table.json", tmp_path / "start.toml"
    start.write_text("subset_size = 48")
    options = ["--calibration", str(own), "--recipe", str(start), "--search", str(table), "--no-drift"]
    assert main(["quantize", str(tiny), "--compute-type", "int8", *options]) == 0
    out, err = capsys.readouterr()
    told = json.loads(table.read_text())
    chosen = quantize.read_recipe(table.with_suffix(".toml"))
    assert told["chosen"] == json.loads(json.dumps(asdict(chosen)))
    assert read_record(tiny)["quantized"]["int8"]["recipe"] == told["chosen"]
    assert told["machine"]["flags"]
    lines = out.splitlines()
    assert sum("stock alpha 0.95, mean_minmax" in line for line in lines) == 1
    assert sum("chosen " in line for line in lines) == 1
    assert f"compared on {told['held_out']} held-out texts; {table}" in err


@pytest.mark.parametrize(
    ("kind", "name", "complaint"),
    [
        ("int8_weights", "table.json", "int8_weights has nothing to search; --search is for int8"),
        ("int8", "absent/table.json", "absent does not exist; make that folder first"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_any_work(
    kind: str, name: str, complaint: str, tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    command = ["quantize", str(tiny), "--compute-type", kind, "--search", str(tmp_path / name)]
    assert main(command) == 2
    assert complaint in capsys.readouterr().err


@searches
def test_too_few_texts_to_choose_by_are_refused(tiny: Path, own: Path) -> None:
    with pytest.raises(InputError, match="40 texts leave 10 to choose recipes by, and 12 are needed"):
        sweep.sweep(tiny, texts_file=own, start=Recipe(subset_size=40))


def test_a_recipe_survives_being_written(tmp_path: Path) -> None:
    recipe = Recipe(smooth_quant_alpha=-1, weight_only_names=("a", "b\\c"), ignored_patterns=(r"x\.y",))
    (tmp_path / "recipe.toml").write_text(quantize.as_toml(recipe))
    assert quantize.read_recipe(tmp_path / "recipe.toml") == recipe


def test_the_folder_of_a_trial_has_no_weights_of_the_original(tiny: Path, tmp_path: Path) -> None:
    copied = shutil.ignore_patterns(*sweep.LEFT_BEHIND)(str(tiny), [path.name for path in tiny.rglob("*")])
    assert {"model.safetensors", "openvino_model.bin", "openvino_model.xml"} <= set(copied)
    assert "tokenizer.json" not in copied
