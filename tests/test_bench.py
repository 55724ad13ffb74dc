"""The parts of bench/ that decide what a benchmark says: its texts and its verdict."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from bench import lengths
from bench.corpus import SHORTEST, docstrings, mixed
from bench.verdict import TARGETS, ratios, summary, table, verdict

FIXTURE = Path(__file__).parent / "fixtures/modernbert_optimum"


def test_docstrings_are_real_distinct_and_named() -> None:
    passages = docstrings(1500)
    texts = {passage.name: passage.text for passage in passages}
    assert len(passages) == len(set(texts.values())) == 1500
    assert texts["subprocess.check_output"].startswith("Run command with arguments and return its output.")
    assert min(map(len, texts.values())) >= SHORTEST
    assert not [name for name in texts if any(part.startswith("_") for part in name.split("."))]


def test_a_small_limit_still_covers_all_modules() -> None:
    few, many = docstrings(200), docstrings(1500)
    assert many[:200] == few
    assert len({passage.name for passage in few}) == 200
    assert len({passage.name.partition(".")[0] for passage in few}) > 100


def test_mixed_texts_are_distinct_seeded_and_of_very_different_length() -> None:
    texts = mixed(500, seed=1)
    lengths = sorted(map(len, texts))
    assert len(set(texts)) == 500
    assert mixed(500, seed=1) == texts
    assert mixed(500, seed=2) != texts
    assert 150 < lengths[250] < 350  # characters: four to a token
    assert 500 < lengths[450] < 1100
    assert lengths[-1] > 1600


def test_a_library_without_enough_texts_is_an_error_not_an_endless_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    three = [docstrings(3)]
    monkeypatch.setattr("bench.corpus._by_module", lambda: three)
    with pytest.raises(ValueError, match="not 1000; ask for fewer"):
        mixed(1000)


def test_summary_takes_the_median_and_the_relative_spread() -> None:
    assert summary([4.0, 2.0, 3.0]) == {"median": 3.0, "spread": 2 / 3, "all": [4.0, 2.0, 3.0]}


def measured(rate: float, start: float, peak: int, *, spread: float = 0.01) -> dict[str, Any]:
    begin = {"seconds": {"median": start}, "peak_bytes": peak}
    return {
        "texts_per_second": {"median": rate, "spread": spread},
        "start_uncached": begin,
        "start_cached": begin,
        "peak_bytes": peak,
        "max_abs_diff": 1e-7,
    }


def a_result(**edge: Any) -> dict[str, Any]:
    """A benchmark in which every target is met, but for what `edge` changes."""
    result: dict[str, Any] = {
        "subjects": {"edge": measured(200, 0.5, 100) | edge, "peer:32": measured(100, 5.0, 1000)},
        "overhead": {"tokens": 16, "encode_ms": 2.5, "infer_ms": 2.0, "overhead_ms": 0.5},
        "import_seconds": {"median": 0.2},
        "machine": {"cpu_model": "a CPU"},
        "threads": 2,
        "texts": {"count": 1000},
        "model": {"file": "openvino/openvino_model.xml"},
        "properties": {"INFERENCE_PRECISION_HINT": "f32"},
    }
    return result | {"ratios": {"peer:32": ratios(result, "peer:32")}}


def test_ratios_are_edge_over_the_rival() -> None:
    assert a_result()["ratios"]["peer:32"] == {
        "texts_per_second": 2.0,
        "start_uncached": 0.1,
        "start_cached": 0.1,
        "start_peak": 0.1,
        "work_peak": 0.1,
        "max_abs_diff": 1e-7,
    }


def test_a_result_within_all_targets_is_met_line_by_line() -> None:
    lines = verdict(a_result(), "peer:32")
    assert [line[:4] for line in lines] == ["met "] * len(TARGETS)


@pytest.mark.parametrize("rate", [179.0, float("nan")])
def test_a_rate_below_its_target_or_undefined_is_a_miss(rate: float) -> None:
    lines = verdict(a_result(texts_per_second={"median": rate, "spread": 0.01}), "peer:32")
    assert [line for line in lines if line.startswith("MISS")] == [lines[0]]
    assert "texts/s" in lines[0]


def test_a_wide_spread_is_said_in_the_verdict() -> None:
    *_, last = verdict(a_result(texts_per_second={"median": 200.0, "spread": 0.151}), "peer:32")
    assert last == "UNSTEADY: rounds of edge spread by 15%; run again on a quiet machine"


def test_the_table_has_a_row_for_each_subject() -> None:
    rows = [line.split() for line in table(a_result())]
    assert rows[2] == ["edge", "200.0", "1.0%", "0.50", "0.50", "0", "0", "1.0e-07"]
    assert rows[3][0] == "peer:32"


def test_texts_by_length_are_as_long_as_asked_and_differ() -> None:
    tokenizer = Tokenizer.from_file(str(FIXTURE / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for length, count in ((8, 32), (64, 32), (512, 4), (700, 1)):
        texts = lengths.texts_of(tokenizer, length)
        assert len(set(texts)) == len(texts) == count
        tokens = [len(tokenizer.encode(text).ids) for text in texts]
        assert length * 0.98 <= min(tokens) <= max(tokens) <= length


def test_one_text_by_its_length_has_the_same_vectors_on_both_sides(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "folder"))
    assert lengths.main([str(folder), "--lengths", "16,700", "--rounds", "1"]) == 0
    out, err = capfd.readouterr()
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [row["tokens"] for row in rows] == [16, 700]
    assert all(row["max_abs_diff"] < 1e-5 and row["time_ratio"] > 0 for row in rows)
    assert all(set(row["peak_bytes"]) == {"edge", "openvino_plain"} for row in rows)
    assert "plain ms" in err
