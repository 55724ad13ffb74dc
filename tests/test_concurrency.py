"""One Embedder and many threads: everybody gets what they would get alone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed import Embedder
from edge_embed import embedder as module
from edge_embed.errors import EdgeEmbedError, InputError, NumericsError

THREADS = 8
ROUNDS = 4
WORDS = ["the", "cat", "dog", "sat", "on", "a", "mat", "runs", "fast", "red", "hello", "world", "how", "you"]


def mixed_texts(seed: int) -> list[str]:
    """Texts of 0 to 200 words, some of them twice."""
    chosen = np.random.default_rng(seed)
    counts = [0, 1, 2, 5, 9, 30, 60, 200][: 3 + seed % 6]
    texts = [" ".join(chosen.choice(WORDS, count)) for count in counts]
    return [*texts, texts[0], f"only of {seed}"]


def together(*tasks: Callable[[], object]) -> list[object]:
    """Run tasks in threads that start at one time; results, or the errors of those that failed."""
    gate = threading.Barrier(len(tasks))

    def run(task: Callable[[], object]) -> object:
        gate.wait(timeout=60)
        try:
            return task()
        except EdgeEmbedError as error:
            return error

    with ThreadPoolExecutor(len(tasks)) as side:
        return [pending.result(timeout=120) for pending in [side.submit(run, task) for task in tasks]]


@pytest.fixture(scope="module", params=[1, 2], ids="{} streams".format)
def embedder(request: pytest.FixtureRequest, tiny_built: Path) -> Embedder:
    return Embedder(tiny_built, streams=request.param, threads=2, cache_dir=False)


def repeated(embedder: Embedder, texts: list[str], rounds: int) -> list[NDArray[np.float32]]:
    return [embedder.encode(texts) for _ in range(rounds)]


def test_eight_threads_get_the_bits_that_they_get_alone(embedder: Embedder) -> None:
    texts = [mixed_texts(seed) for seed in range(THREADS)]
    alone = [embedder.encode(items) for items in texts]

    results = together(*(lambda items=items: repeated(embedder, items, ROUNDS) for items in texts))

    for expected, rounds in zip(alone, results, strict=True):
        assert isinstance(rounds, list)
        for rows in rounds:
            assert np.array_equal(rows, expected)


def test_one_list_in_eight_threads_gives_one_result(embedder: Embedder) -> None:
    texts = mixed_texts(5)
    expected = embedder.encode(texts)

    for rows in together(*[lambda: embedder.encode(texts)] * THREADS):
        assert isinstance(rows, np.ndarray)
        assert np.array_equal(rows, expected)


def test_options_of_one_thread_do_not_reach_another(embedder: Embedder) -> None:
    texts = mixed_texts(4)
    tasks: list[Callable[[], object]] = [
        lambda: embedder.encode(texts),
        lambda: embedder.encode_query(texts),
        lambda: embedder.encode(texts, truncate_dim=8),
        lambda: embedder.encode(texts, precision="binary"),
        lambda: embedder.encode(texts, batch_size=1),
        lambda: np.array(list(embedder.encode_iter(iter(texts)))),
        lambda: embedder.encode(texts, normalize_embeddings=False),
        lambda: embedder.encode(texts[3]),
    ]
    alone = [task() for task in tasks]

    for expected, rows in zip(alone, together(*tasks), strict=True):
        assert isinstance(expected, np.ndarray)
        assert isinstance(rows, np.ndarray)
        assert rows.dtype == expected.dtype
        assert np.array_equal(rows, expected)


def test_a_thread_that_fails_costs_the_others_nothing(embedder: Embedder) -> None:
    good = [mixed_texts(seed) for seed in range(4)]
    alone = [embedder.encode(items) for items in good]
    bad: list[Callable[[], object]] = [
        lambda: embedder.encode(["fine", 1]),  # type: ignore[list-item]
        lambda: embedder.encode(["cat " * 2_000, "dog"], on_overflow="error"),
        lambda: embedder.encode(["cat"], prompt_name="nobody's"),
        lambda: list(embedder.encode_iter(iter(["cat", None]))),  # type: ignore[arg-type]
    ]

    for _ in range(ROUNDS):
        results = together(*bad, *(lambda items=items: embedder.encode(items) for items in good))
        assert all(isinstance(result, InputError) for result in results[: len(bad)])
        for expected, rows in zip(alone, results[len(bad) :], strict=True):
            assert isinstance(rows, np.ndarray)
            assert np.array_equal(rows, expected)


def test_errors_that_are_kept_keep_no_request(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback holds the frames of its error, and could hold with them what was in flight."""
    texts = mixed_texts(7)
    expected = embedder.encode(texts)
    with monkeypatch.context() as patch:
        patch.setattr(module, "check_finite", lambda rows: 0)
        errors = together(*[lambda: embedder.encode(texts)] * THREADS)
    assert all(isinstance(error, NumericsError) for error in errors)
    assert embedder._runtime._pool(1).idle.qsize() == embedder.plan.streams
    assert np.array_equal(embedder.encode(texts), expected)


def test_iterators_left_early_in_many_threads_leave_the_embedder_whole(embedder: Embedder) -> None:
    texts = mixed_texts(7)
    expected = embedder.encode(texts)

    def left_early() -> NDArray[np.float32]:
        return next(embedder.encode_iter(iter(texts)))

    for row in together(*[left_early] * THREADS):
        assert isinstance(row, np.ndarray)
        assert np.array_equal(row, expected[0])
    assert np.array_equal(embedder.encode(texts), expected)


def test_loading_in_many_threads_gives_equal_models(tiny_built: Path, tmp_path: Path) -> None:
    """They share a folder of compiled blobs that is empty at the start."""

    def load() -> NDArray[np.float32]:
        return Embedder(tiny_built, threads=2, cache_dir=tmp_path).encode("the cat sat")

    first, *others = together(*[load] * 4)
    assert isinstance(first, np.ndarray)
    for row in others:
        assert isinstance(row, np.ndarray)
        assert np.array_equal(row, first)
