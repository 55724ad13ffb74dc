"""drift/measure.py: the drift of a folder's compute types, on the tiny BERT and on real weights."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed import Embedder, calibration, quantize
from edge_embed.calibration import Text
from edge_embed.drift import gate, measure, metrics
from edge_embed.drift.gate import Check
from edge_embed.errors import InputError, ModelNotFoundError
from edge_embed.hardware import machine
from edge_embed.record import read_record, write_record

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "house",
    "red",
    "blue",
    "is",
    "was",
    "runs",
    "sat",
    "on",
    "fast",
    "slow",
    "hello",
]


def sentences(count: int = 30) -> list[Text]:
    """Different texts in words of the tiny model: a query and a passage on each topic, in two strata."""
    random = np.random.default_rng(0)
    found = []
    for i in range(count):
        kind = ("query", "passage")[i % 2]
        text = " ".join(random.choice(WORDS, size=4 + i % 5 + 4 * (i % 2)))
        found.append(Text(f"{i}", kind, f"topic {i // 2}", text, ("first", "second")[i % 3 // 2]))
    return found


@pytest.fixture(scope="module")
def bert(tiny_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with INT8 weights. Read only."""
    folder = Path(shutil.copytree(tiny_built, tmp_path_factory.mktemp("measure") / "model"))
    quantize.quantize(folder, "int8_weights")
    return folder


def by_hand(folder: Path, compute_type: str, texts: list[Text]) -> NDArray[np.float32]:
    """(N, D) of `sentences`, in which queries and passages take turns."""
    embedder = Embedder(folder, compute_type=compute_type)
    assert embedder.prompts["query"] == "how is "
    rows = np.empty((len(texts), embedder.dim), np.float32)
    rows[::2] = embedder.encode_query([text.text for text in texts[::2]])
    rows[1::2] = embedder.encode_document([text.text for text in texts[1::2]])
    return rows


# ---- on a tiny model


def test_drift_is_that_of_vectors_embedded_by_hand_in_their_roles(bert: Path) -> None:
    texts = sentences()
    reference, candidate = (by_hand(bert, kind, texts) for kind in ("float32", "int8_weights"))
    np.testing.assert_allclose(measure.embed(bert, "float32", texts), reference, atol=1e-6)
    found = measure.quick(bert, "int8_weights", texts)
    assert found.sqnr.value == pytest.approx(metrics.sqnr(reference, candidate), abs=0.01)
    assert 15 < found.sqnr.value < 70
    assert found.n == 30
    assert {part.name: part.n for part in found.slices} == {"first": 20, "second": 10}
    assert found.worst_slice == "first"
    assert found.ndcg_10_change is not None


def test_a_reference_that_is_given_is_not_embedded_again(bert: Path, tmp_path: Path) -> None:
    texts = sentences()
    reference = measure.embed(bert, "float32", texts)
    expected = measure.quick(bert, "int8_weights", texts)
    folder = Path(shutil.copytree(bert, tmp_path / "without"))
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (folder / "openvino" / name).unlink()
    assert measure.quick(folder, "int8_weights", texts, reference=reference) == expected
    with pytest.raises(ModelNotFoundError, match=r"has no openvino_model\.xml for float32"):
        measure.quick(folder, "int8_weights", texts)


def test_one_model_is_in_memory_at_a_time(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Embedder]] = []
    before: list[int] = []

    def load(*arguments: Any, **options: Any) -> Embedder:
        before.append(sum(one() is not None for one in alive))
        embedder = Embedder(*arguments, **options)
        alive.append(weakref.ref(embedder))
        return embedder

    monkeypatch.setattr(measure, "Embedder", load)
    gc.collect()
    gc.disable()  # or luck would decide when it runs
    try:
        measure.quick(bert, "int8_weights", sentences())
    finally:
        gc.enable()
    assert before == [0, 0]
    assert [one() for one in alive] == [None, None]


def test_options_reach_both_sides(bert: Path) -> None:
    found = measure.embed(bert, "float32", sentences(), truncate_dim=8)
    assert found.shape == (30, 8)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert measure.quick(bert, "int8_weights", sentences(), truncate_dim=8).n == 30


def test_few_texts_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="11 texts are too few for ten neighbours each; give at least 12"):
        measure.quick(tmp_path, "int8", sentences(11))


def test_float32_against_itself_has_no_drift(bert: Path) -> None:
    found = measure.quick(bert, "float32", sentences())
    assert found.sqnr.value > 120
    assert found.overlap_10.value == 1


# ---- relevance and choice of texts


def test_relevance_is_the_topic() -> None:
    texts = [
        Text("a", "query", "glass", "", "en"),
        Text("b", "passage", "glass", "", "en"),
        Text("c", "long", "glass", "", "en"),
        Text("d", "query", "storks", "", "en"),
        Text("e", "passage", "glass", "", "de"),
        Text("f", "query", "glass", "", "de"),
    ]
    found = measure.relevance(texts)
    assert found is not None
    assert found.queries.tolist() == [0, 5]  # nothing answers the one on storks
    assert found.documents.tolist() == [1, 4]
    assert found.grades.tolist() == [[1, 1], [1, 1]]
    assert measure.relevance(texts[1:3]) is None


def test_a_model_is_measured_in_its_languages_and_on_code(tmp_path: Path) -> None:
    assert measure.evaluation_texts(tmp_path) == calibration.evaluation()
    write_record(tmp_path, {"name": "all-MiniLM-L6-v2"})
    texts = measure.evaluation_texts(tmp_path)
    assert {text.stratum for text in texts if not text.stratum.startswith("code-")} == {"en", "long"}
    assert [text.id for text in texts if text.stratum == "long"] == ["long-en"]
    assert len(texts) == 24 + 9 * 24 + 1
    write_record(tmp_path, {"name": "granite-embedding-311m-multilingual-r2"})
    assert measure.evaluation_texts(tmp_path) == calibration.evaluation()


# ---- what is kept


def test_an_entry_says_what_was_measured_on_what_and_whether_it_passes(bert: Path) -> None:
    drift = measure.quick(bert, "int8_weights", sentences())
    good = Check("sqnr", None, 30.0, 29.0, 31.0, 20.0, "pass", 30, None)
    bad = Check("top_1", None, 0.5, 0.4, 0.6, 0.9, "fail", 30, None)
    found = json.loads(json.dumps(measure.entry(drift, [good]), allow_nan=False))
    assert found["verdict"] == "pass"
    assert found["failed"] == []
    assert found["sqnr"]["value"] == drift.sqnr.value
    assert (found["n"], found["worst_slice"], found["reference"]) == (30, "first", "float32 IR")
    assert found["made_by"].keys() == {"edge_embed", "openvino"}
    assert found["cpu_class"] == ("vnni" if machine().has_int8_dot else "no-vnni")
    found = measure.entry(drift, [good, bad])
    assert found["verdict"] == "fail"
    assert [check["id"] for check in found["failed"]] == ["top_1"]


# ---- on real weights


@pytest.mark.minilm
def test_int8_weights_of_minilm_pass_their_budget_and_worse_ones_fail(minilm: Path, tmp_path: Path) -> None:
    folder = Path(
        shutil.copytree(minilm, tmp_path / "model", ignore=shutil.ignore_patterns("model.safetensors"))
    )
    texts = measure.evaluation_texts(folder)
    assert read_record(folder)["name"] == "all-MiniLM-L6-v2"
    reference = measure.embed(folder, "float32", texts)
    floors = gate.floors_of(folder, "int8_weights")

    quantize.quantize(folder, "int8_weights")
    drift = measure.quick(folder, "int8_weights", texts, reference=reference)
    checks = gate.judge(drift, floors)
    assert [check for check in checks if check.verdict == "fail"] == []
    assert {check.verdict for check in checks if check.id in ("sqnr", "sqnr_slice")} == {"pass"}
    assert drift.sqnr.value > 31

    # Symmetric weights are the least loss that a wrong recipe brings.
    quantize.quantize(folder, "int8_weights", quantize.Recipe(weight_mode="int8_sym"))
    worse = measure.quick(folder, "int8_weights", texts, reference=reference)
    assert not gate.passed(gate.judge(worse, floors))

    # Even noise on real vectors, a little above each floor and a little below it.
    random = np.random.default_rng(0)
    labels = [text.stratum for text in texts]
    for compute_type in gate.DEFAULTS:
        floors = gate.floors_of(folder, compute_type)
        for offset, passes in ((1.5, True), (-1.5, False)):
            power = (1 - metrics.background(reference.astype(np.float64))) * 10 ** (
                -(floors.sqnr + offset) / 10
            )
            noise = random.normal(size=reference.shape) * np.sqrt(power / reference.shape[1])
            candidate = reference + noise
            candidate /= np.linalg.norm(candidate, axis=1, keepdims=True)
            checks = gate.judge(metrics.summarize(reference, candidate, metrics.by_label(labels)), floors)
            assert checks[0].verdict == ("pass" if passes else "fail")
            assert gate.passed(checks) == passes, compute_type
