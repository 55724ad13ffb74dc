"""drift/candidate.py: a model that is run in a process of its own, as a stage of the ledger asks for it."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edge_embed import Embedder, batching, quantize
from edge_embed.calibration import Text
from edge_embed.drift import candidate, ledger
from edge_embed.drift.candidate import Candidate, Run, Way
from edge_embed.errors import CrashError, ModelError
from edge_embed.hardware import machine
from edge_embed.quantize import Recipe
from tests.test_measure import sentences

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PRECISION, GROUP = candidate.PINS

# What is still to be taken away from this CPU, so that another one can be emulated.
on_vnni = pytest.mark.skipif(
    not (machine().has_int8_dot and machine().architecture == "x86_64"),
    reason="only an x86 CPU with INT8 dot products can be emulated without them",
)
posix = pytest.mark.skipif(sys.platform == "win32", reason="processes are not ended by signals there")

Arrange = Callable[[str], None]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this test alone."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.fixture(scope="module")
def bert(tiny_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with both INT8 IRs. Read only."""
    folder = Path(shutil.copytree(tiny_built, tmp_path_factory.mktemp("candidate") / "model"))
    quantize.quantize(folder, "int8_weights")
    quantize.quantize(folder, "int8", Recipe(subset_size=60, outlier_channels=2, outlier_ratio=1.2))
    return folder


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    return sentences(24)


@pytest.fixture(scope="module")
def ran(bert: Path, texts: list[Text]) -> Callable[[Way], Run]:
    """What a way gives for all texts; each way is run once."""
    runs: dict[str, Run] = {}

    def once(way: Way) -> Run:
        if str(way) not in runs:
            runs[str(way)] = run(bert, way, texts)
        return runs[str(way)]

    return once


def run(folder: Path, way: Way, texts: list[Text], probes: list[int] | None = None) -> Run:
    words, is_query = [text.text for text in texts], [text.kind == "query" for text in texts]
    return candidate.run(folder, way, words, is_query, probes=probes or [], widths=[16])


def put_nan(folder: Path) -> None:
    """Let a weight of the float32 IR be NaN; the checkpoint stays as it is."""
    bias = load_file(folder / "model.safetensors")["encoder.layer.0.output.dense.bias"]
    file = folder / "openvino/openvino_model.bin"
    data = file.read_bytes()
    assert data.count(bias.tobytes()) == 1
    file.write_bytes(data.replace(bias.tobytes(), np.full_like(bias, np.nan).tobytes()))


# ---- vectors


@pytest.fixture(scope="module")
def official(tiny_built: Path) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_built), device="cpu", local_files_only=True)


@pytest.mark.reference
def test_vectors_are_those_of_sentence_transformers_each_text_by_its_role(
    ran: Callable[[Way], Run], texts: list[Text], official: "SentenceTransformer"
) -> None:
    found = ran(Way("float32")).vectors
    assert found is not None
    expected = np.stack(
        [
            (official.encode_query if text.kind == "query" else official.encode_document)(text.text)
            for text in texts
        ]
    )
    assert found.shape == (24, 32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(found[0] - official.encode(texts[0].text)).max() > 0.01  # its prompt matters


def test_probes_are_rows_of_the_same_texts_in_other_company(bert: Path, texts: list[Text]) -> None:
    found = run(bert, Way("float32"), texts, [3, 0, 17])
    assert found.vectors is not None
    assert found.probes.keys() == {"alone", "reversed", "repeated", "padded", "cut-16"}
    rows = found.vectors[[3, 0, 17]]
    for name in ("alone", "reversed", "repeated", "padded"):
        np.testing.assert_allclose(found.probes[name], rows, rtol=0, atol=1e-6, err_msg=name)
    cut = rows[:, :16] / np.linalg.norm(rows[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(found.probes["cut-16"], cut, rtol=0, atol=1e-6)


def test_a_padded_probe_has_a_step_more_padding_than_it_needs(
    bert: Path, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Candidate(bert, Way("float32"))
    seen: list[tuple[int, int]] = []
    run_batch = model._runtime.run

    def note(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        seen.append((ids.shape[1], int(mask.sum())))
        return run_batch(ids, mask)

    monkeypatch.setattr(model._runtime, "run", note)
    model.embed_padded([text.text for text in texts], [text.kind == "query" for text in texts])
    ladder = batching.ladder(512, fine=True).tolist()
    for padded, tokens in seen:
        needed = next(rung for rung in ladder if rung >= tokens)
        assert padded == ladder[ladder.index(needed) + 1]
    assert len(seen) == 24


def test_of_a_model_that_is_cut_by_default_vectors_are_whole(
    tiny_built: Path, texts: list[Text], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_built, tmp_path / "model"))
    write = '{"prompts": {}, "default_prompt_name": null, "truncate_dim": 8}'
    (folder / "config_sentence_transformers.json").write_text(write)
    assert Embedder(folder, cache_dir=False).dim == 8
    found = run(folder, Way("float32"), texts).vectors
    assert found is not None
    assert found.shape == (24, 32)


def test_nan_is_told_and_no_vectors_are_given(tiny: Path, texts: list[Text]) -> None:
    put_nan(tiny)
    found = run(tiny, Way("float32"), texts, [0])
    assert found.vectors is None
    assert found.probes == {}
    assert "gave a vector that is NaN, Inf or zero" in found.broken
    assert found.facts["effective"][GROUP] == "0"


# ---- the way that was asked for


@pytest.mark.parametrize("compute_type", ["float32", "int8_weights", "int8_dynamic", "int8"])
def test_what_was_asked_for_is_what_openvino_reports(ran: Callable[[Way], Run], compute_type: str) -> None:
    found = ran(Way(compute_type, threads=1))
    group = "32" if compute_type == "int8_dynamic" and machine().has_int8_dot else "0"
    assert found.facts["plan"]["compute_type"] == compute_type
    assert found.facts["plan"]["threads"] == 1
    assert found.facts["plan"]["properties"][GROUP] == group
    assert found.facts["effective"] == {
        PRECISION: "<Type: 'float32'>",
        GROUP: group,
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": "1",
        "CPU_DENORMALS_OPTIMIZATION": "True",
    }
    assert 0 < found.facts["load_seconds"] <= found.facts["seconds"] < 600
    if sys.platform != "win32":
        assert 50e6 < found.facts["peak_bytes"] < 50e9


def test_without_pins_openvino_is_asked_for_neither(ran: Callable[[Way], Run]) -> None:
    pinned = ran(Way("float32")).facts["plan"]["properties"]
    free = ran(Way("float32", unpinned=True)).facts["plan"]["properties"]
    assert pinned.keys() - free.keys() == {PRECISION, GROUP}
    assert {name: pinned[name] for name in free} == free


def test_properties_of_a_way_come_over_those_of_the_plan(ran: Callable[[Way], Run]) -> None:
    simulated = ran(Way("int8", properties=ledger.SIMULATED, weight_only=False))
    assert simulated.facts["plan"]["properties"].items() >= {("LP_TRANSFORMS_MODE", "NO"), (GROUP, "0")}
    assert simulated.facts["effective"]["LP_TRANSFORMS_MODE"] is None  # it cannot be read back
    executed = ran(Way("int8", weight_only=False))
    assert simulated.vectors is not None
    assert executed.vectors is not None
    # Exact sums of INT8 products differ by roundings alone; sums that saturate are off by far more.
    apart = np.abs(simulated.vectors - executed.vectors).max()
    assert apart < (0.01 if machine().has_int8_dot else 1)


def test_activations_are_left_in_float32_where_a_way_says_so(ran: Callable[[Way], Run]) -> None:
    taken = {
        weight_only: "weight_only_execution"
        in ran(Way("int8", weight_only=weight_only)).facts["plan"]["passes"]
        for weight_only in (True, False, None)
    }
    assert taken == {True: True, False: False, None: not machine().has_int8_dot}


@on_vnni
def test_the_child_takes_its_cpu_for_the_one_that_is_emulated(ran: Callable[[Way], Run]) -> None:
    native, emulated = (ran(Way("int8", isa=isa)).facts["plan"] for isa in ("", "AVX2"))
    assert "weight_only_execution" not in native["passes"]
    assert "weight_only_execution" in emulated["passes"]
    native, emulated = (ran(Way("int8_dynamic", isa=isa)).facts["plan"] for isa in ("", "AVX2"))
    assert (native["properties"][GROUP], emulated["properties"][GROUP]) == ("32", "0")


@on_vnni
def test_sums_saturate_on_the_cpu_that_is_emulated(ran: Callable[[Way], Run]) -> None:
    """What counts is whether the kernels of OpenVINO have heard of it, and not our own plan alone."""
    native, saturated = (ran(Way("int8", weight_only=False, isa=isa)).vectors for isa in ("", "AVX2"))
    assert native is not None
    assert saturated is not None
    assert np.abs(native - saturated).max() > 0.01


# ---- how it ends


def test_a_model_that_does_not_load_is_an_error_of_one_line(
    tiny: Path, texts: list[Text], scratch: Path
) -> None:
    file = tiny / "openvino/openvino_model.bin"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"openvino_model\.bin has 1000 bytes.*it was cut") as caught:
        run(tiny, Way("float32"), texts)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, CrashError)
    assert list(scratch.iterdir()) == []


@posix
def test_a_process_that_is_ended_by_a_signal_is_a_crash_that_names_it(
    bert: Path, texts: list[Text], stand_in: Arrange, scratch: Path
) -> None:
    stand_in("os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(CrashError, match=r"^stand_in was ended by SIGSEGV$"):
        run(bert, Way("float32"), texts)
    assert list(scratch.iterdir()) == []


def test_nothing_is_left_of_what_a_child_was_given(bert: Path, texts: list[Text], scratch: Path) -> None:
    assert run(bert, Way("float32"), texts).vectors is not None
    assert list(scratch.iterdir()) == []
