"""drift/compare.py: what is made of the vectors of a candidate, its probes and its stages."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed import quantize, vectors
from edge_embed.build import build
from edge_embed.calibration import Text
from edge_embed.drift import candidate, compare, metrics, record
from edge_embed.drift.candidate import Run, Way
from edge_embed.drift.compare import ALIKE, Found
from edge_embed.drift.ledger import Step
from edge_embed.drift.measurement import Invariant
from edge_embed.drift.record import Reference
from edge_embed.embedder import plan_here
from edge_embed.errors import CrashError, ModelError
from edge_embed.manifest import read_manifest
from edge_embed.plan import COMPUTE_TYPES
from edge_embed.record import hash_file, read_record, write_record
from tests.checkpoints import tiny_bert, write_modules
from tests.measurements import noisy, reference
from tests.test_measure import sentences

Vectors = NDArray[np.float32]

PRECISION, GROUP = candidate.PINS
HALF = 16  # of the tiny model's 32 dimensions


def reference_of(rows: NDArray[Any], texts: Sequence[Text] | None = None) -> Reference:
    """A reference with these rows, of texts that are named by their numbers."""
    texts = sentences(len(rows)) if texts is None else texts
    hashes = tuple(record.hash_text(text.text) for text in texts)
    return Reference(
        vectors=rows.astype(np.float32),
        ids=tuple(text.id for text in texts),
        roles=tuple(record.role_of(text) for text in texts),
        slices=tuple(text.stratum for text in texts),
        text_sha256=hashes,
        token_sha256=hashes,
        source="texts.jsonl",
        weights_sha256="0" * 64,
        commit=None,
        versions={},
        settings={},
    )


def run_of(rows: NDArray[Any] | None, broken: str = "") -> Run:
    return Run(None if rows is None else rows.astype(np.float32), broken, {}, {})


@pytest.fixture(scope="module")
def x() -> Vectors:
    return reference().astype(np.float32)


@pytest.fixture(scope="module")
def y(x: Vectors) -> Vectors:
    return noisy(x.astype(np.float64), 25).astype(np.float32)


# ---- invariants


@pytest.fixture(scope="module")
def folder(tiny_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with INT8 weights. Read only."""
    found = Path(shutil.copytree(tiny_built, tmp_path_factory.mktemp("compare") / "model"))
    quantize.quantize(found, "int8_weights")
    return found


PROBED = list(range(0, 24, 3))


def measured(folder: Path, way: Way) -> Run:
    texts = sentences(24)
    words, is_query = [text.text for text in texts], [text.kind == "query" for text in texts]
    return candidate.run(folder, way, words, is_query, probes=PROBED, widths=[HALF])


@pytest.fixture(scope="module")
def sound(folder: Path) -> Run:
    """A real one, in float32."""
    return measured(folder, Way("float32"))


def judged(run: Run, compute_type: str = "float32", *, normalized: bool = True) -> dict[str, Invariant]:
    """By id; a run without vectors is compared with rows of the tiny model's width."""
    rows = np.eye(24, 32, dtype=np.float32) if run.vectors is None else vectors.l2_normalize(run.vectors)
    x = np.eye(24, 32, dtype=np.float32) if rows.shape != (24, 32) else rows
    y = None if rows.shape != (24, 32) or run.vectors is None else rows
    found = compare.invariants(run, PROBED, x, y, compute_type=compute_type, normalized=normalized)
    assert len({one.id for one in found}) == len(found)
    return {one.id: one for one in found}


def broken(run: Run, compute_type: str = "float32", *, normalized: bool = True) -> set[str]:
    found = judged(run, compute_type, normalized=normalized).values()
    return {one.id for one in found if not one.value <= one.limit}


def nudged(run: Run, name: str, by: float) -> Run:
    """One component of one probe is off by so much."""
    part = run.probes[name].copy()
    part[3, 5] += by
    return replace(run, probes={**run.probes, name: part})


ALL = {
    *("finite", "pinned", "distinct", "unit_norm", "batch", "order", "padding", "repeat"),
    "truncation",
}


@pytest.mark.parametrize("compute_type", ["float32", "int8_weights", "int8_dynamic"])
def test_every_invariant_holds_of_a_real_candidate(folder: Path, compute_type: str) -> None:
    run = measured(folder, Way(compute_type))
    assert judged(run, compute_type).keys() == ALL
    assert broken(run, compute_type) == set()


@pytest.mark.parametrize(
    ("probe", "names"),
    [
        ("alone", {"batch", "padding"}),
        ("reversed", {"order", "repeat"}),
        ("repeated", {"repeat"}),
        ("padded", {"padding"}),
        (f"cut-{HALF}", {"truncation"}),
    ],
)
def test_a_probe_with_other_vectors_breaks_its_invariant(sound: Run, probe: str, names: set[str]) -> None:
    assert broken(nudged(sound, probe, 1e-4)) == names
    # Two bits that round to another side are no defect where activations are rounded.
    assert broken(nudged(sound, probe, 1e-4), "int8") <= {"repeat"}
    assert broken(nudged(sound, probe, 1e-7)) == set()


def test_vectors_that_are_not_finite_break_only_what_can_be_told_of_them(sound: Run) -> None:
    run = replace(sound, vectors=None, probes={}, broken="text 3 gave a vector that is NaN, Inf or zero")
    assert judged(run).keys() == {"finite", "pinned"}
    assert broken(run) == {"finite"}
    assert judged(run)["finite"].what == run.broken


def test_a_probe_that_is_nan_breaks_its_invariant(sound: Run) -> None:
    run = nudged(sound, "padded", float("nan"))
    assert broken(run) == {"padding"}
    assert np.isnan(judged(run)["padding"].value)
    zero = {**sound.probes, "padded": np.zeros_like(sound.probes["padded"])}
    assert broken(replace(sound, probes=zero)) == {"padding"}


def test_vectors_of_another_width_are_not_compared(sound: Run) -> None:
    assert sound.vectors is not None
    run = replace(sound, vectors=sound.vectors[:, :HALF])
    assert broken(run) == {"width"}
    found = judged(run)["width"]
    assert (found.value, found.what) == (16, "vectors are 16 wide, those of the reference 32")
    assert judged(run).keys() == {"finite", "pinned", "width"}


def test_two_texts_with_one_vector_are_named(sound: Run) -> None:
    assert sound.vectors is not None
    rows = sound.vectors.copy()
    rows[7] = rows[2]
    x, y = (vectors.l2_normalize(each) for each in (sound.vectors, rows))
    found = compare.invariants(sound, PROBED, x, y, compute_type="float32", normalized=True)
    (distinct,) = [one for one in found if one.id == "distinct"]
    assert distinct.value > distinct.limit
    assert distinct.what.startswith("rows 2 and 7 are one vector")


def test_a_missing_norm_is_told_whole_or_cut(sound: Run) -> None:
    assert sound.vectors is not None
    longer = replace(sound, vectors=sound.vectors * np.float32(1.01))
    assert broken(longer) == {"unit_norm"}
    assert judged(longer)["unit_norm"].value == pytest.approx(0.01, abs=1e-4)
    assert judged(longer)["unit_norm"].what.endswith("of all dimensions")
    cut = sound.vectors[PROBED][:, :HALF]  # of unit rows, and not normalised again
    uncut = replace(sound, probes={**sound.probes, f"cut-{HALF}": cut})
    assert broken(uncut) == {"unit_norm"}
    assert judged(uncut)["unit_norm"].what.endswith("of the first 16")


def test_rows_of_any_length_are_sound_where_the_model_does_not_normalise(sound: Run) -> None:
    assert sound.vectors is not None
    # Rounding is relative: at this length it is 1e-4 of a component, ten times what unit rows may differ by.
    scaled = {name: part * np.float32(2000) for name, part in sound.probes.items()}
    run = replace(sound, vectors=sound.vectors * np.float32(2000), probes=scaled)
    assert judged(run, normalized=False).keys() == ALL - {"unit_norm"}
    assert broken(run, normalized=False) == set()
    assert broken(run) == {"unit_norm"}
    assert broken(nudged(run, "padded", 2000 * 1e-4), normalized=False) == {"padding"}


def with_facts(
    run: Run, *, properties: dict[str, str] | None = None, effective: dict[str, str | None] | None = None
) -> Run:
    plan = run.facts["plan"]
    changed = plan | {"properties": plan["properties"] | (properties or {})}
    return replace(
        run,
        facts={**run.facts, "plan": changed, "effective": run.facts["effective"] | (effective or {})},
    )


@pytest.mark.parametrize(
    ("effective", "what"),
    [
        ({PRECISION: "<Type: 'bfloat16'>"}, f"{PRECISION} is <Type: 'bfloat16'>, and f32 was asked for"),
        ({GROUP: "32"}, f"{GROUP} is 32, and 0 was asked for"),
        ({GROUP: "18446744073709551615"}, f"{GROUP} is 18446744073709551615, and 0 was asked for"),
        ({GROUP: None}, f"{GROUP} is None, and 0 was asked for"),
    ],
)
def test_what_openvino_does_not_do_as_asked_is_told(
    sound: Run, effective: dict[str, str | None], what: str
) -> None:
    run = with_facts(sound, effective=effective)
    assert broken(run) == {"pinned"}
    assert judged(run)["pinned"].what == what


def test_pins_are_as_plans_say_them_or_as_openvino_does(sound: Run) -> None:
    for asked, told in (("f32", "f32"), ("bf16", "bf16"), ("bf16", "<Type: 'bfloat16'>")):
        run = with_facts(sound, properties={PRECISION: asked}, effective={PRECISION: told})
        assert broken(run) == set()
    run = with_facts(sound, properties={PRECISION: "bf16"})
    assert broken(run) == {"pinned"}


def test_a_run_without_pins_says_so(folder: Path) -> None:
    run = measured(folder, Way("float32", unpinned=True))
    found = judged(run)["pinned"]
    assert found.value == 2
    assert found.what == f"{PRECISION} is left to OpenVINO; {GROUP} is left to OpenVINO"


def test_other_devices_have_their_own_pins(sound: Run) -> None:
    plan = sound.facts["plan"] | {"device": "GPU", "properties": {}}
    assert broken(replace(sound, facts={**sound.facts, "plan": plan})) == set()


def test_every_compute_type_has_a_limit() -> None:
    assert ALIKE.keys() == COMPUTE_TYPES.keys()


# ---- probes


def test_probes_are_of_all_lengths_that_are_not_long() -> None:
    tokens = np.random.default_rng(0).permutation(np.arange(1, 600))
    rows = compare.probe_rows(tokens)
    assert len(set(rows)) == compare.PROBES
    lengths = tokens[rows].tolist()
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (1, 256)
    assert max(np.diff(lengths)) < 12


def test_of_few_texts_all_are_probes_and_of_long_ones_the_two_shortest() -> None:
    assert sorted(compare.probe_rows(np.array([9, 3, 300, 7, 7]))) == [0, 1, 3, 4]
    assert compare.probe_rows(np.array([512, 400, 9000, 300])) == [3, 1]


def test_a_model_is_cut_to_what_it_was_trained_for_or_to_one_half(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    assert compare.widths(folder, manifest) == (16,)
    assert compare.trained_widths(folder, manifest) == ()
    assert compare.widths(folder, replace(manifest, hidden=1)) == ()
    write_record(tmp_path, {"name": "granite-embedding-311m-multilingual-r2"})
    wide = replace(manifest, hidden=768)
    assert compare.widths(tmp_path, wide) == compare.trained_widths(tmp_path, wide) == (512, 384, 256, 128)


# ---- the order of stages, and what becomes of those that fail

STEPS = [
    Step("float32", "the IR", "reference", Way("float32")),
    Step("default", "without pins", "float32", Way("float32", unpinned=True)),
    Step("executed", "the candidate", "float32", Way("int8")),
]


def all_run(
    monkeypatch: pytest.MonkeyPatch, x: Vectors, run: Callable[[Way], Run]
) -> tuple[Found, list[tuple[str, bool, bool]]]:
    """What comes of `run` in place of the processes; and of each its compute type and whether it probed."""
    asked: list[tuple[str, bool, bool]] = []

    def instead(folder: Path, way: Way, texts: Sequence[str], is_query: Sequence[bool], **more: Any) -> Run:
        asked.append((way.compute_type, bool(more["probes"]), bool(more["widths"])))
        assert len(texts) == len(is_query) == len(x)
        return run(way)

    monkeypatch.setattr(candidate, "run", instead)
    texts = sentences(len(x))
    found = compare.run_all(
        Path("model"), STEPS, "executed", reference_of(x, texts), texts, [0, 1], [16], False
    )
    return found, asked


def test_the_candidate_runs_first_and_it_alone_is_probed(monkeypatch: pytest.MonkeyPatch, x: Vectors) -> None:
    found, asked = all_run(monkeypatch, x, lambda way: run_of(x))
    assert asked == [("int8", True, True), ("float32", False, False), ("float32", False, False)]
    assert list(found.runs) == ["executed", "float32", "default"]
    assert (found.trouble, found.crash) == ({}, "")


def test_stages_that_fail_say_why_and_the_others_run(monkeypatch: pytest.MonkeyPatch, x: Vectors) -> None:
    def run(way: Way) -> Run:
        if way.unpinned:
            raise CrashError("it was ended by SIGILL")
        if way.compute_type == "float32":
            return run_of(None, "text 3 gave a vector that is NaN, Inf or zero")
        return run_of(x)

    found, _ = all_run(monkeypatch, x, run)
    assert found.trouble == {
        "float32": "text 3 gave a vector that is NaN, Inf or zero",
        "default": "it was ended by SIGILL",
    }
    assert found.crash == ""


def test_a_stage_of_another_width_says_so(monkeypatch: pytest.MonkeyPatch, x: Vectors) -> None:
    found, _ = all_run(monkeypatch, x, lambda way: run_of(x[:, :16] if way.unpinned else x))
    assert found.trouble == {"default": "vectors are 16 wide, those of the reference 64"}


def test_nothing_runs_after_a_candidate_that_crashes(monkeypatch: pytest.MonkeyPatch, x: Vectors) -> None:
    def run(way: Way) -> Run:
        raise CrashError("it was ended by SIGSEGV")

    found, asked = all_run(monkeypatch, x, run)
    assert (found.runs, found.crash, len(asked)) == ({}, "it was ended by SIGSEGV", 1)


def test_a_candidate_that_does_not_load_is_an_error(monkeypatch: pytest.MonkeyPatch, x: Vectors) -> None:
    def run(way: Way) -> Run:
        raise ModelError("no model")

    with pytest.raises(ModelError, match=r"^no model$"):
        all_run(monkeypatch, x, run)


# ---- other forms of the vectors


def test_cut_vectors_are_normalised_again_before_they_are_compared(x: Vectors, y: Vectors) -> None:
    found = {part.name: part for part in compare.variants(x, y, (48, 24))}
    assert list(found) == ["dim 48", "dim 24", "precision int8", "precision binary"]
    for k in (48, 24):
        one, other = (
            rows[:, :k] / np.linalg.norm(rows[:, :k], axis=1, keepdims=True)
            for rows in (x.astype(np.float64), y.astype(np.float64))
        )
        assert found[f"dim {k}"].sqnr.value == pytest.approx(metrics.sqnr(one, other), abs=1e-4)
        assert found[f"dim {k}"].overlap_10.value == pytest.approx(metrics.overlap(one, other).mean())
        assert found[f"dim {k}"].n == len(x)
        assert found[f"dim {k}"].judged
    assert found["dim 24"].sqnr.value != pytest.approx(found["dim 48"].sqnr.value, abs=0.01)


@pytest.mark.reference
def test_binary_codes_are_those_of_sentence_transformers(x: Vectors, y: Vectors) -> None:
    from sentence_transformers import quantize_embeddings

    found = compare.variants(x, y, ())[-1]
    signs = [
        np.unpackbits(quantize_embeddings(rows, "ubinary"), axis=1) * 2.0 - 1 for rows in (x, y)
    ]  # (N, D)
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in signs]
    assert found.name == "precision binary"
    assert found.sqnr.value == pytest.approx(metrics.sqnr(*units), abs=1e-6)
    assert found.overlap_10.value == pytest.approx(metrics.overlap(*units).mean(), abs=1e-3)
    assert not found.judged
    assert found.sqnr.value < 20 < metrics.sqnr(x, y)


@pytest.mark.reference
def test_int8_codes_are_as_near_as_those_of_sentence_transformers(x: Vectors) -> None:
    from sentence_transformers import quantize_embeddings

    y = noisy(x.astype(np.float64), 55).astype(np.float32)  # less than what such codes lose
    found = compare.variants(x, y, ())[-2]
    ranges = np.vstack([x.min(axis=0), x.max(axis=0)])
    step = (ranges[1] - ranges[0]) / 255
    coded = []
    for rows in (x, np.clip(y, ranges[0], ranges[1])):  # ours clips; theirs would wrap around
        codes = np.asarray(quantize_embeddings(rows, "int8", ranges=ranges), np.float64)
        values = (codes + 128.5) * step + ranges[0]  # theirs rounds down, hence the half step
        coded.append(values / np.linalg.norm(values, axis=1, keepdims=True))
    assert found.name == "precision int8"
    assert found.judged
    assert found.sqnr.value == pytest.approx(metrics.sqnr(*coded), abs=0.5)
    assert abs(found.sqnr.value - metrics.sqnr(x, y)) > 2  # or codes would not matter


@pytest.mark.reference
def test_a_matryoshka_model_is_measured_at_every_width_that_it_was_trained_for(tmp_path: Path) -> None:
    folder = build(write_wide(tmp_path / "model"))
    write_record(folder, read_record(folder) | {"name": "granite-embedding-311m-multilingual-r2"})
    texts = sentences(24)
    found, _ = record.record(folder, texts, "texts.jsonl")
    measured = compare.measure_against(folder, found, "0" * 64, texts, compute_type="float32", stages=False)
    assert measured.subject.name == "granite-embedding-311m-multilingual-r2"
    widths = [f"dim {k}" for k in (512, 384, 256, 128)]
    assert [part.name for part in measured.variants] == [*widths, "precision int8", "precision binary"]
    assert all(part.sqnr.value > 100 for part in measured.variants[:4])
    # Of the four, the widest difference and norm are told.
    told = {one.id: one for one in measured.invariants}
    assert "cut to " in told["truncation"].what
    assert [one for one in measured.invariants if not one.value <= one.limit] == []


def write_wide(folder: Path) -> Path:
    """A tiny BERT with as wide vectors as the largest Granite model."""
    tiny_bert(folder, hidden_size=768, initializer_range=0.05)
    write_modules(folder, hidden=768)
    return folder


# ---- texts


def test_each_text_has_its_noise_cosine_and_overlap(x: Vectors, y: Vectors) -> None:
    noise = metrics.noise_power(x, y, centred=True)
    found = compare.per_text(x, y, noise, reference_of(x))
    assert found.ids == tuple(str(i) for i in range(len(x)))
    np.testing.assert_array_equal(found.noise, noise)
    np.testing.assert_allclose(found.cosine, [float(a @ b) for a, b in zip(x, y, strict=True)], atol=1e-6)
    np.testing.assert_array_equal(found.overlap_10, metrics.overlap(x, y))


def test_the_worst_texts_are_the_noisiest_with_their_neighbours_on_both_sides(x: Vectors, y: Vectors) -> None:
    texts = sentences(len(x))
    noise = metrics.noise_power(x, y, centred=True)
    groups = {"role query": np.arange(0, len(x), 2), "all": np.arange(len(x))}
    found = compare.worst(x, y, noise, texts, groups, True)
    by_hand = sorted(range(len(x)), key=lambda row: -float(np.square((y - x - (y - x).mean(0))[row]).sum()))
    assert [one.id for one in found] == [str(row) for row in by_hand[:10]]
    for one in found:
        row = int(one.id)
        assert one.slices == (("role query", "all") if row % 2 == 0 else ("all",))
        assert one.sqnr == metrics.decibels(float(noise[row]))
        assert one.cosine == pytest.approx(float(x[row] @ y[row]), abs=1e-6)
        assert one.excerpt == texts[row].text
        for side, neighbours in ((x, one.reference), (y, one.candidate)):
            cosines = {i: float(side[i] @ side[row]) for i in range(len(x)) if i != row}
            nearest = sorted(cosines, key=lambda i: -cosines[i])[:5]
            assert [neighbour.id for neighbour in neighbours] == [str(i) for i in nearest]
            for neighbour, i in zip(neighbours, nearest, strict=True):
                assert neighbour.cosine == pytest.approx(cosines[i], abs=1e-6)
                assert neighbour.excerpt == texts[i].text
    assert any(one.reference != one.candidate for one in found)


def test_excerpts_are_the_beginnings_of_texts_on_one_line_or_nothing(x: Vectors, y: Vectors) -> None:
    texts = [replace(text, text="two\n lines  " * 100) for text in sentences(len(x))]
    noise = metrics.noise_power(x, y, centred=True)
    for one in compare.worst(x, y, noise, texts, {}, True):
        assert one.excerpt.startswith("two lines two lines")
        assert 100 < len(one.excerpt) <= compare.EXCERPT
    for one in compare.worst(x, y, noise, texts, {}, False):
        excerpts = [one.excerpt, *(near.excerpt for near in (*one.reference, *one.candidate))]
        assert set(excerpts) == {""}


def test_the_hash_of_the_texts_is_that_of_every_row_and_of_no_vector(x: Vectors) -> None:
    one = reference_of(x)
    known = compare.texts_sha256(one)
    assert compare.texts_sha256(replace(one, vectors=-one.vectors, versions={"torch": "1"})) == known
    changes: list[dict[str, Any]] = [
        {"ids": ("other", *one.ids[1:])},
        {"roles": ("document", *one.roles[1:])},
        {"text_sha256": ("f" * 64, *one.text_sha256[1:])},
        {"token_sha256": ("f" * 64, *one.token_sha256[1:])},
        {name: getattr(one, name)[:-1] for name in ("ids", "roles", "text_sha256", "token_sha256")},
    ]
    found = {compare.texts_sha256(replace(one, **change)) for change in changes}
    assert len(found | {known}) == len(changes) + 1


# ---- what it is about


def test_a_subject_is_the_file_with_its_settings_and_what_made_it(folder: Path, x: Vectors) -> None:
    manifest = read_manifest(folder)
    plan = plan_here(folder, None, max_tokens=512, compute_type="int8_weights", threads=1)
    found = compare.subject(folder, plan, manifest, reference_of(x), None)
    assert (found.name, found.compute_type) == (folder.name, "int8_weights")
    assert found.file == "openvino/openvino_model_int8_weights.xml"
    files = [folder / found.file, (folder / found.file).with_suffix(".bin")]
    assert found.file_bytes == sum(path.stat().st_size for path in files)
    lines = "".join(f"{hash_file(path)}  {path.name}\n" for path in files)  # as sha256sum prints them
    assert found.file_sha256 == record.hash_text(lines)
    assert found.settings["requested"] == plan.properties
    assert found.settings["tokenizer_sha256"] == hash_file(folder / "tokenizer.json")
    assert found.settings["prompts"] == {"query": "how is ", "document": ""}
    assert found.provenance["recipe"]["weight_mode"] == "int8_asym"
    assert found.provenance["nncf"]["weight_compression.mode"] == "int8_asym"
    plan = replace(plan, compute_type="float32", file=folder / "openvino/openvino_model.xml")
    assert compare.subject(folder, plan, manifest, reference_of(x), None).provenance == {"nncf": {}}


def test_a_subject_tells_of_its_calibration_but_not_each_text(
    folder: Path, x: Vectors, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    calibrated = {"source": "own.txt", "texts": 60, "text_sha256": ["0123456789abcdef"] * 60}
    kept = read_record(copy)
    entry = kept["quantized"]["int8_weights"] | {"calibration": calibrated}
    write_record(copy, kept | {"quantized": {"int8_weights": entry}})
    plan = plan_here(copy, None, max_tokens=512, compute_type="int8_weights")
    found = compare.subject(copy, plan, read_manifest(copy), reference_of(x), None)
    assert found.provenance["calibration"] == {"source": "own.txt", "texts": 60}
    assert "0123456789abcdef" not in json.dumps(dict(found.provenance))


# ---- a model that does not normalise


@pytest.mark.reference
def test_a_model_without_normalize_is_measured_without_complaint(tmp_path: Path) -> None:
    folder = build(tiny_bert(tmp_path / "model", normalize=False))
    texts = sentences(30)
    found, _ = record.record(folder, texts, "texts.jsonl")
    assert np.linalg.norm(found.vectors, axis=1).min() > 2
    measured = compare.measure_against(folder, found, "0" * 64, texts, compute_type="float32", stages=False)
    assert measured.drift is not None
    assert measured.drift.sqnr.value > 100
    assert {one.id for one in measured.invariants} == ALL - {"unit_norm"}
    assert [one for one in measured.invariants if not one.value <= one.limit] == []
