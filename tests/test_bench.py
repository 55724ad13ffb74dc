"""The parts of bench/ that decide what a benchmark says: its texts and its verdict."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import lengths, roofline, run, workloads
from bench.corpus import SHORTEST, docstrings, mixed
from bench.limits import attention_flop
from bench.measure import Subject, groups, subject_of
from bench.peers import matmuls
from bench.svg import Point
from bench.verdict import ST, summary, verdict

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
    with pytest.raises(ValueError, match="not 500; ask for fewer"):
        mixed(500)


def test_summary_takes_the_median_and_the_relative_spread() -> None:
    assert summary([4.0, 2.0, 3.0]) == {"median": 3.0, "spread": 2 / 3, "all": [4.0, 2.0, 3.0]}


def row(median: float, *, spread: float = 0.01, peak: float = 1e9, **more: Any) -> dict[str, Any]:
    apart = {"max_abs": 1e-7, "cosine": 1.0, "least_cosine": 1.0}
    return {"median": median, "spread": spread, "peak_bytes": peak, "difference": apart} | more


def a_result(
    workload: str, subjects: dict[str, dict[str, Any]], folder: str = "granite-311m"
) -> dict[str, Any]:
    return {
        "model": {"folder": folder},
        "machine": {"flags": ["avx2", "avx512_vnni"]},
        "workloads": {workload: {"subjects": subjects, "unit": "tokens/s", "better": "higher"}},
    }


FAST = row(1550.0) | {
    "times_as_fast_as": {f"{ST}@float32": {"median": 3.2}, f"{ST}@float32:8": {"median": 1.55}}
}
MIXED = {"edge@float32": FAST, f"{ST}@float32": row(500.0), f"{ST}@float32:8": row(1000.0)}


def test_a_target_is_judged_by_pairs_of_rounds_and_at_the_best_batch_size() -> None:
    lines = verdict(a_result("mixed", MIXED))
    assert lines[0] == f"met         3.2 >= 3       mixed, speed: edge@float32 over {ST}@float32"
    assert lines[1] == f"met        1.55 >= 1.5     mixed, speed: edge@float32 over {ST}@float32:*"
    assert lines[2].endswith(f"mixed, speed: edge@float32 over {ST}@float32:8, the fastest of the others")
    assert len(lines) == 3


def test_what_was_not_run_or_has_failed_is_not_judged() -> None:
    failed = {"failed": "it does not install"}
    assert verdict(a_result("mixed", MIXED | {"edge@float32": failed})) == []
    assert verdict(a_result("query", MIXED)) == []


def test_targets_are_those_of_the_large_shape_and_of_the_kind_of_cpu() -> None:
    other = verdict(a_result("mixed", MIXED, "all-MiniLM-L6-v2"))
    assert [line for line in other if "fastest of the others" not in line] == []
    old = a_result("mixed", MIXED)
    old["machine"]["flags"] = ["avx2"]
    assert next(line[:24] for line in verdict(old)) == "met         3.2 >= 2.2  "


@pytest.mark.parametrize("rate", [2.99, float("nan")])
def test_a_ratio_below_its_target_or_undefined_is_a_miss(rate: float) -> None:
    slow = FAST | {"times_as_fast_as": {f"{ST}@float32": {"median": rate}}}
    assert verdict(a_result("mixed", MIXED | {"edge@float32": slow}))[0].startswith("MISS")


def test_seconds_bytes_and_shares_of_the_limit_have_targets_of_their_own() -> None:
    slow = verdict(a_result("start", {"edge@float32": row(1.4)}))
    assert slow == ["MISS        1.4 <= 1.3     start, seconds: edge@float32"]
    long = row(300.0, peak=4.1e9, limit={"share": 0.61})
    assert [line[:4] for line in verdict(a_result("document32k", {"edge@float32": long}))] == ["met "] * 2
    pair = {"edge@int8_weights": row(1.0, peak=3.9e8), "openvino_plain@float32": row(1.0, peak=1e9)}
    assert verdict(a_result("document8k", pair))[0].startswith("met        0.39 <= 0.4")


def test_a_wide_spread_and_other_vectors_put_figures_in_doubt() -> None:
    apart = {"max_abs": 2e-3, "cosine": 0.89, "least_cosine": 0.5}
    subjects = {
        "edge@float32": row(100.0, spread=0.151),
        "a@float32": row(1.0, difference=apart),
        "a@int8:4": row(1.0, difference=apart),
        "a@int8": row(1.0, difference=apart | {"cosine": 0.91}),
        "matmuls@float32": {"median": 1.0, "spread": 0.5, "peak_bytes": 1},
    }
    lines = verdict(a_result("uniform128", subjects, "other"))
    assert lines[0] == (
        "UNSTEADY: uniform128, edge@float32: rounds spread by 15%; run again on a quiet machine"
    )
    assert [line[:34] for line in lines[1:]] == [
        "WRONG: uniform128, a@float32: vect",
        "WRONG: uniform128, a@int8:4: vecto",
    ]


def test_groups_have_ours_in_each_and_all_sizes_of_a_peer_in_one() -> None:
    ours = [Subject("edge", "float32"), Subject("edge", "int8")]
    others = [
        Subject("a", "x"),
        Subject("a", "x", 8),
        Subject("b", "x"),
        Subject("c", "x"),
        Subject("d", "x"),
    ]
    found = list(groups([*ours, *others], at_once=2))
    assert found == [[*ours, *others[:3]], [*ours, *others[3:]]]
    assert list(groups(ours)) == [ours]


def test_a_subject_is_written_with_its_kind_and_batch_size() -> None:
    found = subject_of(f"{ST}@int8:8")
    assert found == Subject(ST, "int8", 8)
    assert found.name == f"{ST}@int8:8"
    assert subject_of("edge") == Subject("edge", "float32")
    for wrong, reason in (
        ("nobody", "has no nobody.py"),
        ("edge@int4", "runs float32, bfloat16"),
        ("edge:x", "no number"),
    ):
        with pytest.raises(ValueError, match=reason):
            subject_of(wrong)


def test_differences_are_the_largest_component_and_cosines() -> None:
    reference = np.eye(3, dtype=np.float32)[:2]
    assert run.difference(reference, reference) == {"max_abs": 0.0, "cosine": 1.0, "least_cosine": 1.0}
    turned = np.array([[1, 0, 0], [1, 0, 0]], np.float32)
    assert run.difference(reference, turned) == {"max_abs": 1.0, "cosine": 0.5, "least_cosine": 0.0}
    assert run.difference(reference, turned[:, :2])["max_abs"] == np.inf


def test_attention_costs_by_what_each_layer_sees() -> None:
    layers = {"num_hidden_layers": 3, "hidden_size": 10}
    assert attention_flop(layers, 1000) == 3 * 4 * 1000 * 1000 * 10
    local = layers | {"local_attention": 128, "global_attn_every_n_layers": 3}
    assert attention_flop(local, 1000) == 4 * 10 * 1000 * (1000 + 2 * 129)
    assert attention_flop(local, 100) == 3 * 4 * 10 * 100 * 100


def test_the_limit_has_the_products_of_the_model_and_gives_no_vectors(tmp_path: Path) -> None:
    shapes = matmuls.products(FIXTURE / "openvino/openvino_model.xml")
    config = json.loads((FIXTURE / "config.json").read_text("utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layer = [(hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]
    assert shapes == layer * config["num_hidden_layers"]
    encoder = matmuls.load(FIXTURE, kind="float32", threads=1, cache=None)
    assert np.isnan(encoder.call(["one text", "another"], None)).all()
    assert encoder.effective["flop_per_token"] == str(2 * sum(k * n for k, n in shapes))


def test_a_roofline_has_ceilings_of_the_products_and_points_of_ours(tmp_path: Path) -> None:
    effective = {"flop_per_token": "1000"}
    limits = {"matmuls@float32": row(50.0, effective=effective), "matmuls@numpy": row(9.0)}
    result = a_result("uniform128", limits | {"edge@float32": row(40.0), "edge@int8": row(80.0)})
    result["workloads"]["query"] = {"better": "lower", "subjects": {"edge@float32": row(24.0)}}
    assert roofline.ceilings(result["workloads"]) == {"float32": {"flops": 50_000.0, "per_token": 1000.0}}
    assert roofline.points(result["workloads"], "float32") == [
        Point("query", 6.0, 500_000.0),  # 12 tokens in 24 ms
        Point("uniform128", 256.0, 40_000.0),
    ]
    file, picture = tmp_path / "result.json", tmp_path / "roofline.svg"
    file.write_text(json.dumps(result | {"threads": 1}), "utf-8")
    assert roofline.main([str(file), str(picture)]) == 0
    assert "uniform128" in picture.read_text("utf-8")
    with pytest.raises(SystemExit, match="run that first"):
        roofline.ceilings({})


def test_ours_and_openvino_alone_take_turns_and_give_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "folder"))
    subjects = "edge@float32,openvino_plain@float32,matmuls@float32"
    command = ["--model", str(folder), "--subjects", subjects, "--workloads", "mixed,query,start,memory"]
    assert run.main([*command, "--texts", "6", "--rounds", "2", "--no-best"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out.splitlines()[-1])["workloads"]
    assert set(found) == {"mixed", "query", "start", "memory"}
    assert set(found["mixed"]) == {"edge@float32", "openvino_plain@float32", "matmuls@float32"}
    assert all(median > 0 for row in found.values() for median in row.values())
    assert "WRONG" not in err


def test_texts_by_length_are_as_long_as_asked_and_differ() -> None:
    tokenizer = workloads.tokenizer_of(str(FIXTURE / "tokenizer.json"))
    for length, count in ((8, 32), (64, 32), (512, 4), (700, 1)):
        texts = workloads.texts_of(tokenizer, length, count)
        assert len(set(texts)) == len(texts) == count
        tokens = [len(tokenizer.encode(text).ids) for text in texts]
        assert length * 0.98 <= min(tokens) <= max(tokens) <= length


def test_mixed_texts_have_the_lengths_of_the_issue_in_any_vocabulary() -> None:
    tokenizer = workloads.tokenizer_of(str(FIXTURE / "tokenizer.json"))
    texts = workloads.mixed_of(tokenizer, 400)
    tokens = np.array([len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)])
    assert 45 < np.median(tokens) < 75
    assert 130 < np.percentile(tokens, 90) < 210
    assert 600 < tokens.max() < 1000


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
