"""The compiled model and its pool: order, errors, precision, memory. The tiny model but for the last part."""

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed import Embedder, runtime
from edge_embed import embedder as embedder_module
from edge_embed.errors import DeviceError
from edge_embed.plan import MANY_BATCHES, Plan, make_plan
from edge_embed.runtime import Runtime, check_finite

Ints = NDArray[np.int64]
Triple = tuple[int, Ints, Ints]

SHAPES = [(1, 8), (4, 16), (2, 64), (12, 8), (1, 128), (3, 24), (8, 32), (1, 8)]


def batches(count: int = len(SHAPES)) -> list[Triple]:
    """(tag, input_ids, mask) of random ids, padded by a random amount."""
    chosen = np.random.default_rng(0)
    made: list[Triple] = []
    for tag, (rows, tokens) in enumerate(SHAPES[:count]):
        mask = (np.arange(tokens) < chosen.integers(3, tokens + 1, (rows, 1))).astype(np.int64)
        made.append((tag, chosen.integers(5, 50, (rows, tokens)) * mask, mask))
    return made


def bad_batch() -> Triple:
    """A mask that is longer than its ids: OpenVINO refuses it while it runs, not before."""
    ids: Ints = np.ones((2, 8), np.int64)
    return -1, ids, np.ones((2, 16), np.int64)


def runtime_of(folder: Path, **options: Any) -> Runtime:
    return Embedder(folder, cache_dir=False, **options)._runtime


@pytest.fixture(scope="module")
def one(tiny_built: Path) -> Runtime:
    return runtime_of(tiny_built, streams=1)


@pytest.fixture(scope="module", params=[1, 2, 3], ids="{} streams".format)
def several(request: pytest.FixtureRequest, tiny_built: Path) -> Runtime:
    """A runtime that must have its whole pool back after each test."""
    return runtime_of(tiny_built, streams=request.param)


@pytest.fixture
def pool(several: Runtime) -> Iterator[Runtime]:
    """A runtime that has all its requests before the test and must have them after it."""
    count = several._plan.streams
    assert several._pool(1).idle.qsize() == count
    yield several
    assert several._pool(1).idle.qsize() == count, "requests were lost"
    tags = [tag for tag, _ in several.run_many(batches())]
    assert tags == list(range(len(SHAPES)))


@pytest.fixture(params=[1, 2, 3], ids="{} streams".format)
def spare(request: pytest.FixtureRequest, tiny_built: Path) -> Iterator[Runtime]:
    """A runtime for one test: the CPU plugin may refuse sound batches too after one that it could not run."""
    made = runtime_of(tiny_built, streams=request.param)
    yield made
    assert made._pool(1).idle.qsize() == request.param, "requests were lost"


# Results.


def test_any_number_of_streams_gives_the_same_rows_in_the_same_order(one: Runtime, pool: Runtime) -> None:
    alone = [one.run(ids, mask) for _, ids, mask in batches()]
    together = list(pool.run_many(batches()))

    assert [tag for tag, _ in together] == list(range(len(SHAPES)))
    for expected, (_, rows) in zip(alone, together, strict=True):
        assert rows.dtype == np.float32
        assert rows.shape == expected.shape
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-6)


def test_results_are_copies_of_their_own(pool: Runtime) -> None:
    kept = [rows for _, rows in pool.run_many(batches())]
    before = [rows.copy() for rows in kept]
    list(pool.run_many(reversed(batches())))

    assert all(np.array_equal(a, b) for a, b in zip(kept, before, strict=True))
    assert all(rows.flags.owndata and rows.flags.writeable for rows in kept)


def test_a_batch_is_not_read_after_its_result_is_out(pool: Runtime) -> None:
    """What is fed shares its memory with the caller, who may write into it again after the result."""
    expected = [rows.copy() for _, rows in pool.run_many(batches())]
    feeds = batches()
    for (tag, rows), (_, ids, mask) in zip(pool.run_many(iter(feeds)), feeds, strict=True):
        assert np.array_equal(rows, expected[tag])
        ids[:], mask[:] = 7, 1


def test_many_batches_run_on_streams_of_their_own_and_give_the_same(tiny_built: Path) -> None:
    runtime = runtime_of(tiny_built, threads=2)
    few = [rows for _, rows in runtime.run_many(batches(), count=MANY_BATCHES - 1)]
    assert [pool.streams for pool in runtime._pools.values()] == [1]
    many = list(runtime.run_many(batches(), count=MANY_BATCHES))
    assert [pool.streams for pool in runtime._pools.values()] == [1, 2]
    assert [tag for tag, _ in many] == list(range(len(few)))
    for (_, rows), expected in zip(many, few, strict=True):
        np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_a_call_of_many_texts_uses_the_streams_for_many(tiny_built: Path) -> None:
    embedder = Embedder(tiny_built, cache_dir=False, threads=2)
    texts = [f"text {number} " + "and so on " * (number % 30) for number in range(2000)]
    embedder.encode(texts[:20])
    assert [pool.streams for pool in embedder._runtime._pools.values()] == [1]
    embedder.encode(texts)
    assert [pool.streams for pool in embedder._runtime._pools.values()] == [1, 2]


def test_run_gives_what_run_many_gives(pool: Runtime) -> None:
    for tag, ids, mask in batches():
        (_, rows), *_ = pool.run_many([(tag, ids, mask)])
        assert np.array_equal(rows, pool.run(ids, mask))


def test_no_batches_give_no_results(pool: Runtime) -> None:
    assert list(pool.run_many([])) == []


# The pool.


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_leaving_early_returns_every_request(pool: Runtime, taken: int) -> None:
    results = pool.run_many(batches())
    for _ in range(taken):
        next(results)

    results.close()  # type: ignore[attr-defined]


def test_a_single_run_fits_between_the_results_of_many(pool: Runtime) -> None:
    _, ids, mask = batches(1)[0]
    expected = pool.run(ids, mask)

    for _ in pool.run_many(batches()):
        assert np.array_equal(pool.run(ids, mask), expected)


def test_two_callers_that_take_turns_do_not_starve(pool: Runtime) -> None:
    first, second = pool.run_many(batches()), pool.run_many(batches())

    for (tag, rows), (other, same) in zip(first, second, strict=True):
        assert tag == other
        assert np.array_equal(rows, same)


@pytest.mark.parametrize("good", [0, 1, 4])
def test_an_error_while_batches_are_made_loses_no_request(pool: Runtime, good: int) -> None:
    def failing() -> Iterator[Triple]:
        yield from batches(good)
        raise MemoryError("no room for the next batch")

    with pytest.raises(MemoryError, match="no room"):
        list(pool.run_many(failing()))


@pytest.mark.parametrize("good", [0, 1, 4])
def test_an_error_while_a_feed_is_made_loses_no_request(
    spare: Runtime, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, left = spare._feed, [good]

    def failing(ids: Ints, mask: Ints) -> dict[str, Ints]:
        if not left[0]:
            raise MemoryError("no room for token_type_ids")
        left[0] -= 1
        return feed(ids, mask)

    with monkeypatch.context() as patch:
        patch.setattr(spare, "_feed", failing)
        with pytest.raises(MemoryError, match="no room"):
            list(spare.run_many(batches()))


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_batches_that_cannot_run_lose_no_request(spare: Runtime, bad: int) -> None:
    with pytest.raises(RuntimeError):
        list(spare.run_many([*batches(1), *[bad_batch()] * bad, *batches(2)]))
    with pytest.raises(RuntimeError):
        spare.run(*bad_batch()[1:])


def test_leaving_early_beside_batches_that_cannot_run_loses_no_request(spare: Runtime) -> None:
    results = spare.run_many([*batches(1), bad_batch(), bad_batch()])
    next(results)
    with contextlib.suppress(RuntimeError):
        results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("good", [0, 1, 4])
def test_a_batch_that_cannot_start_loses_no_request(pool: Runtime, good: int) -> None:
    words: Any = np.array([["not", "numbers"]])

    with pytest.raises(ValueError, match="not"):
        list(pool.run_many([*batches(good), (-1, words, words)]))


# What the CPU does with numbers.


def test_float32_is_computed_in_float32(one: Runtime) -> None:
    assert "f32" in one.effective("INFERENCE_PRECISION_HINT") or "float32" in one.effective(
        "INFERENCE_PRECISION_HINT"
    )
    assert one.effective("DYNAMIC_QUANTIZATION_GROUP_SIZE") == "0"


# Devices.


def test_fixed_shapes_give_the_vectors_of_any_shape(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an NPU, on the CPU: one model for each length, compiled when a text of that length comes."""
    texts = ["the cat sat", "hello world " * 50, "", "a dog runs " * 12, "the cat sat on the mat"]
    expected = Embedder(tiny_built, cache_dir=False).encode(texts)
    really = make_plan

    def fixed(*args: Any, **wishes: Any) -> Plan:
        return replace(
            really(*args, **wishes), static_lengths=(32, 64, 128, 512), windowed_from=None, many_streams=1
        )

    monkeypatch.setattr(embedder_module, "make_plan", fixed)
    embedder = Embedder(tiny_built, cache_dir=False)
    pools = embedder._runtime._pools
    assert set(pools) == {("plain", 32, 1)}
    np.testing.assert_allclose(embedder.encode(texts), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(embedder.encode(texts, batch_size=4), expected, rtol=0, atol=1e-6)
    assert set(pools) == {("plain", 32, 1), ("plain", 64, 1), ("plain", 128, 1)}
    for (_, length, _), pool in pools.items():
        assert {tuple(port.get_shape()) for port in pool.compiled.inputs} == {(1, length)}


def test_auto_computes_what_the_cpu_does(tiny_built: Path) -> None:
    texts = ["the cat sat", "hello world " * 50]
    auto = Embedder(tiny_built, device="AUTO").encode(texts)
    np.testing.assert_allclose(auto, Embedder(tiny_built).encode(texts), rtol=0, atol=1e-6)


@pytest.mark.parametrize("device", ["GPU", "NPU", "GPU.1", "XPU"])
def test_a_device_that_is_not_there_is_named_before_anything_is_compiled(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    import openvino

    if any(name.startswith(device) for name in openvino.Core().available_devices):
        pytest.skip(f"{device} is there")
    monkeypatch.setattr(embedder_module, "Runtime", lambda *_: pytest.fail("compiled"))
    with pytest.raises(DeviceError, match=f"no device '{device}' on this machine; OpenVINO finds: .*CPU"):
        Embedder(tiny_built, device=device)


@pytest.mark.parametrize("streams", [1, 2])
def test_the_callers_thread_keeps_its_denormal_numbers(tiny_built: Path, streams: int) -> None:
    """The compiling thread reads them as 0 from then on; the caller's own arithmetic must not change."""
    small, unit = np.full(64, 1e-40, np.float32), np.ones(64, np.float32)
    assert (small * unit).all()

    embedder = Embedder(tiny_built, streams=streams, cache_dir=False)
    assert (small * unit).all(), "after loading"
    embedder.encode(["the cat sat", "hello world " * 50])
    assert (small * unit).all(), "after encoding"
    assert float(np.float32(1e-40) * np.float32(1)) != 0


def test_sound_rows_are_finite() -> None:
    assert check_finite(np.eye(4, 3, dtype=np.float32)[:3]) is None
    assert check_finite(np.full((2, 3), 1e-10, np.float32)) is None
    assert check_finite(np.full((2, 3), 1e10, np.float32)) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 4), (6, 1)])
def test_one_number_that_is_not_finite_gives_its_row(value: float, place: tuple[int, int]) -> None:
    vectors = np.ones((7, 5), np.float32)
    vectors[place] = value

    assert check_finite(vectors) == place[0]


def test_the_first_of_several_bad_rows_is_named() -> None:
    vectors = np.ones((7, 5), np.float32)
    vectors[5, 0], vectors[3] = np.nan, 0

    assert check_finite(vectors) == 3


def test_inf_beside_minus_inf_and_minus_zero_are_bad_too() -> None:
    assert check_finite(np.array([[np.inf, -np.inf]], np.float32)) == 0
    assert check_finite(np.array([[0.0, -0.0]], np.float32)) == 0


# Memory.


def resident_kb(file: Path) -> int:
    """Resident memory of this process's mappings of a file."""
    name, total, inside = str(file.resolve()), 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(name)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.minilm
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_loading_leaves_few_pages_of_the_weights_resident(
    minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = minilm / "openvino/openvino_model.bin"
    texts = ["the cat sat on the mat", "where is the library?", "naïve café", "日本語"]

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "release_pages", lambda weights: None)
        kept = Embedder(minilm, compute_type="float32", cache_dir=False)
    before = resident_kb(weights)
    expected = kept.encode(texts)
    released = Embedder(minilm, compute_type="float32", cache_dir=False)
    after = resident_kb(weights)

    assert before > 10_000  # what there is to release
    assert after < 2_000
    assert np.array_equal(released.encode(texts), expected)
    assert np.array_equal(kept.encode(texts), expected)  # its pages are gone too, and come back
