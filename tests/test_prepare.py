"""prepare.py: a pass is taken when probes agree, the outcome is kept, and a config that lies is caught."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from openvino import opset13

from edge_embed import Embedder, prepare
from edge_embed import embedder as embedder_module
from edge_embed.build import build
from edge_embed.errors import ModelError, NumericsError, OutputError
from edge_embed.graph import head, passes
from edge_embed.hardware import Machine, machine
from edge_embed.manifest import read_manifest
from edge_embed.record import RECORD, read_record
from edge_embed.vectors import l2_normalize
from tests.checkpoints import change_weights, rewrite_config
from tests.modernbert_checkpoints import spell_as_4, tiny_modernbert

FIXTURE = Path(__file__).parent / "fixtures/modernbert_optimum"
WINDOWS, LAST = "windowed_attention", "cls_last_layer"
LONG = "the cat sat on the mat and the dog runs fast " * 80  # 800 tokens and some


pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """The folder that another exporter made, to be damaged."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "exported"))


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A ModernBERT that we built, with its record."""
    folder = tiny_modernbert(tmp_path / "built")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 2048, "do_lower_case": false}')
    return build(folder)


@pytest.fixture
def probes_run(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose passes were tried during the test."""
    tried: list[Path] = []
    really = prepare.try_passes

    def noted(plan: Any, facts: Any) -> Any:
        tried.append(plan.file)
        return really(plan, facts)

    monkeypatch.setattr(prepare, "try_passes", noted)
    return tried


def outcome(embedder: Embedder, name: str) -> str:
    return ("taken; " if name in embedder.plan.passes else "not taken; ") + embedder.plan.reasons[name]


# What is taken.


def test_all_that_match_are_taken_with_their_difference(built: Path) -> None:
    embedder = Embedder(built, compute_type="float32")
    assert embedder.plan.passes == (LAST, WINDOWS)
    assert outcome(embedder, WINDOWS).startswith("taken; checked: ")
    assert outcome(embedder, "int8_table").startswith("not taken; left out: no activation is quantized")
    assert embedder.plan.windowed_from == 512


def test_a_traced_graph_and_its_int8_twin_take_them_too(exported: Path) -> None:
    assert Embedder(exported, compute_type="float32").plan.passes == (LAST, WINDOWS)
    int8 = Embedder(exported, compute_type="int8").plan
    assert int8.passes[-3:] == ("int8_table", LAST, WINDOWS)
    assert "left out" not in int8.reasons["int8_table"]


@pytest.mark.parametrize("has_int8_dot", [True, False])
def test_a_static_int8_file_runs_weight_only_where_int8_is_slow(
    exported: Path, monkeypatch: pytest.MonkeyPatch, has_int8_dot: bool
) -> None:
    flags = frozenset({"avx2", "fma", *(["avx512_vnni"] if has_int8_dot else [])})
    here: Machine = replace(machine(), flags=flags)
    monkeypatch.setattr(embedder_module, "machine", lambda: here)
    embedder = Embedder(exported, compute_type="int8")
    assert ("weight_only_execution" in embedder.plan.passes) is not has_int8_dot
    if not has_int8_dot:
        reference = Embedder(exported, compute_type="float32").encode(["the cat sat", LONG])
        cosine = (embedder.encode(["the cat sat", LONG]) * reference).sum(1)
        assert cosine.min() > 0.999


def test_other_pooling_needs_every_token(tiny: Path) -> None:
    embedder = Embedder(tiny, compute_type="float32")
    assert embedder.plan.passes == ()
    assert outcome(embedder, LAST) == "not taken; left out: mean pooling reads every token"
    assert outcome(embedder, WINDOWS) == "not taken; left out: every layer of bert looks at all tokens"
    assert embedder.plan.windowed_from is None


# Which form runs.


def forms(embedder: Embedder) -> set[str]:
    return {form for form, *_ in embedder._runtime._pools}


def test_windows_are_compiled_when_a_long_text_comes(built: Path) -> None:
    embedder = Embedder(built, compute_type="float32")
    embedder.encode(["a cat", "the dog runs"])
    assert forms(embedder) == {"plain"}
    embedder.encode(LONG)
    assert forms(embedder) == {"plain", "windowed"}


@pytest.mark.parametrize("streams", [1, 2])
def test_long_and_short_texts_of_one_call_are_as_in_sentence_transformers(built: Path, streams: int) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [
        "a cat",
        LONG,
        "the dog runs fast",
        LONG[:5000],
        "",
        LONG[: len(LONG) // 2] + "slow",
        "hello " * 600,
    ]
    reference = SentenceTransformer(str(built), device="cpu", model_kwargs={"attn_implementation": "eager"})
    reference.max_seq_length = 2048
    embedder = Embedder(built, compute_type="float32", streams=streams)
    np.testing.assert_allclose(embedder.encode(texts), reference.encode(texts), rtol=0, atol=1e-5)
    assert forms(embedder) == {"plain", "windowed"}


def test_batches_of_long_texts_are_the_single_ones(built: Path) -> None:
    embedder = Embedder(built, compute_type="float32")
    texts = [LONG[i:] for i in range(0, 40, 5)]
    alone = np.stack([embedder.encode(text) for text in texts])
    np.testing.assert_allclose(embedder.encode(texts, batch_size=8), alone, rtol=0, atol=1e-6)


# Lies.


def lying(folder: Path, **values: Any) -> Path:
    (folder / RECORD).unlink(missing_ok=True)
    return rewrite_config(folder, **values)


@pytest.mark.parametrize("window", [2, 14, 18, 32, 100, 128])
def test_a_config_with_another_window_is_caught(
    exported: Path, window: int, caplog: pytest.LogCaptureFixture
) -> None:
    truth = Embedder(exported, compute_type="float32").encode(LONG)
    caplog.clear()
    embedder = Embedder(lying(exported, local_attention=window), compute_type="float32")
    assert embedder.plan.passes == (LAST,)
    assert "off the untouched graph on probes, 1e-05 is allowed" in outcome(embedder, WINDOWS)
    assert "windowed_attention is left out" in caplog.text
    assert embedder.plan.windowed_from is None
    np.testing.assert_allclose(embedder.encode(LONG), truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("every", [1, 2, 4, 6])
def test_a_config_with_another_pattern_is_caught(exported: Path, every: int) -> None:
    embedder = Embedder(lying(exported, global_attn_every_n_layers=every), compute_type="float32")
    assert WINDOWS not in embedder.plan.passes
    assert LAST in embedder.plan.passes


def test_a_config_with_another_number_of_layers_is_caught(exported: Path) -> None:
    embedder = Embedder(lying(exported, num_hidden_layers=7), compute_type="float32")
    assert outcome(embedder, WINDOWS) == (
        "not taken; left out: the graph has 6 attention ops, config.json tells of 7 layers"
    )


def test_a_config_that_is_silent_or_contradicts_itself_costs_the_windows_only(exported: Path) -> None:
    for values in ({"local_attention": None}, {"global_attn_every_n_layers": None}):
        copy = Path(shutil.copytree(exported, exported.with_name(f"copy-{next(iter(values))}")))
        embedder = Embedder(lying(copy, **values), compute_type="float32")
        assert embedder.plan.passes == (LAST,)
        assert next(iter(values)) in outcome(embedder, WINDOWS)


def test_a_pass_that_breaks_vectors_is_left_out_and_the_others_stay(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = passes.cls_last_layer

    def second_row(model: Any, ports: head.Ports) -> str | None:
        with monkeypatch.context() as patch:
            patch.setattr(passes, "first", lambda output, axis: third(output, axis))
            return really(model, ports)

    def third(output: Any, axis: int) -> Any:
        return opset13.gather(output, np.array([2]), np.int64(axis)).output(0)

    monkeypatch.setattr(passes, "cls_last_layer", second_row)
    embedder = Embedder(built, compute_type="float32")
    assert embedder.plan.passes == (WINDOWS,)


def test_pooling_that_is_wrong_in_the_graph_is_an_error(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = head.POOL["cls"]
    monkeypatch.setitem(head.POOL, "cls", lambda x, mask: opset13.add(really(x, mask), np.float32(0.5)))
    with pytest.raises(ModelError, match=r"pooling .* gives vectors .* off those pooled"):
        Embedder(built, compute_type="float32")


def test_weights_that_overflow_leave_the_answer_to_encode(built: Path) -> None:
    change_weights(built, lambda tensors: tensors["final_norm.weight"].fill(0))
    embedder = Embedder(build(built), compute_type="float32")
    assert embedder.plan.passes == ()
    assert "gives NaN, Inf or zero on probes" in outcome(embedder, LAST)
    with pytest.raises(NumericsError, match="text 0 gave a vector that is NaN, Inf or zero"):
        embedder.encode(["a cat"])


@pytest.mark.parametrize("modes", [(mode,) for mode in head.POOL])
def test_the_judge_of_pooling_agrees_with_sentence_transformers(modes: tuple[str, ...]) -> None:
    import torch
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling

    chosen = np.random.default_rng(0)
    vectors = chosen.normal(size=(3, 7, 8)).astype(np.float32)
    mask = (np.arange(7) < np.array([[7], [3], [1]])).astype(np.int64)
    theirs = Pooling(8, modes)(
        {"token_embeddings": torch.from_numpy(vectors), "attention_mask": torch.from_numpy(mask)}
    )
    np.testing.assert_allclose(
        prepare.pool(vectors, mask, modes), theirs["sentence_embedding"].numpy(), rtol=1e-6, atol=1e-6
    )


# The record.


def test_the_outcome_is_kept_and_not_tried_again(built: Path, probes_run: list[Path]) -> None:
    first = Embedder(built, compute_type="float32")
    again = Embedder(built, compute_type="float32")
    assert len(probes_run) == 1
    assert again.plan.passes == first.plan.passes
    assert again.plan.reasons == first.plan.reasons
    kept = read_record(built)["preparation"]["openvino/openvino_model.xml"]["passes"]
    assert kept[WINDOWS]["taken"] is True
    assert set(kept) == set(prepare.PASSES)


def test_the_outcome_moves_with_the_folder(built: Path, probes_run: list[Path]) -> None:
    Embedder(built, compute_type="float32")
    moved = built.rename(built.with_name("moved"))
    Embedder(moved, compute_type="float32")
    assert len(probes_run) == 1


@pytest.mark.parametrize("change", ["xml", "config", "pooling"])
def test_what_the_outcome_depends_on_is_looked_at(built: Path, probes_run: list[Path], change: str) -> None:
    Embedder(built, compute_type="float32")
    if change == "xml":
        file = built / "openvino/openvino_model.xml"
        file.write_text(file.read_text() + "\n")
    elif change == "config":
        rewrite_config(built, layer_types=["full_attention"] * 4, global_attn_every_n_layers=1)
    else:
        (built / "1_Pooling/config.json").write_text('{"pooling_mode": "mean", "embedding_dimension": 64}')
    Embedder(built, compute_type="float32")
    assert len(probes_run) == 2


def test_a_damaged_entry_is_made_anew(built: Path, probes_run: list[Path]) -> None:
    Embedder(built, compute_type="float32")
    record = json.loads((built / RECORD).read_text())
    entries: list[Any] = [
        [],
        {"openvino/openvino_model.xml": 3},
        {"openvino/openvino_model.xml": {"made_from": {}}},
    ]
    for damaged in entries:
        (built / RECORD).write_text(json.dumps(record | {"preparation": damaged}))
        assert Embedder(built, compute_type="float32").plan.passes == (LAST, WINDOWS)
    assert len(probes_run) == 4


def test_a_folder_that_is_not_ours_gets_no_file_and_is_tried_once(
    exported: Path, probes_run: list[Path]
) -> None:
    before = sorted(exported.rglob("*"))
    for _ in range(2):
        assert Embedder(exported, compute_type="float32").plan.passes == (LAST, WINDOWS)
    assert sorted(exported.rglob("*")) == before
    assert len(probes_run) == 1


def test_a_record_that_cannot_be_written_is_replaced_by_the_spare_one(
    built: Path, probes_run: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, record: Any) -> None:
        raise OutputError(f"cannot write {folder / RECORD}")

    monkeypatch.setattr(prepare, "write_record", refuse)
    for _ in range(2):
        assert Embedder(built, compute_type="float32").plan.passes == (LAST, WINDOWS)
    assert len(probes_run) == 1


def test_other_entries_of_the_record_stay(built: Path) -> None:
    before = read_record(built)
    Embedder(built, compute_type="float32")
    after = read_record(built)
    assert {key: after[key] for key in before} == before


# Probes.


@pytest.mark.parametrize("window", [16, 128])
def test_probes_are_longer_than_the_window_and_a_block(tmp_path: Path, window: int) -> None:
    folder = spell_as_4(tiny_modernbert(tmp_path, local_attention=window))
    facts = prepare.read_facts(folder, read_manifest(folder))
    lengths = [mask.sum(1).tolist() for _, mask in prepare.make_probes(facts)]
    assert max(max(rows) for rows in lengths) > window + passes.BLOCK
    assert any(len(set(rows)) > 1 for rows in lengths)  # padded


def test_unit_rows_have_length_one() -> None:
    vectors: NDArray[np.float32] = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    np.testing.assert_allclose(prepare.unit(vectors), l2_normalize(vectors), rtol=1e-6)


def test_preparing_says_so_once(built: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "edge_embed"):
        Embedder(built, compute_type="float32")
        Embedder(built, compute_type="float32")
    assert caplog.text.count("with the untouched graph, once") == 1
