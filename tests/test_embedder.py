"""Embedder against itself: every kind of input and option, and what may not change a vector.

That the vectors are right is judged by sentence-transformers, in test_sentence_transformers.py.
"""

import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from edge_embed import Embedder
from edge_embed import embedder as module
from edge_embed.batching import ladder
from edge_embed.build import build
from edge_embed.checkpoint import open_weights
from edge_embed.errors import DeviceError, InputError, ModelError, NumericsError
from edge_embed.record import read_record, write_record
from tests.checkpoints import WORDS, tiny_bert, write_modules

DIM = 32  # of the tiny model
LIMIT = 512  # its tokens
BIN = "openvino/openvino_model.bin"
TEXTS = ["the cat sat on the mat", "a dog", "hello, world!", "how are you and the red house " * 6, "7"]

Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def tiny_embedder(tiny_built: Path) -> Embedder:
    return Embedder(tiny_built, cache_dir=False)


@pytest.fixture(scope="module")
def expected(tiny_embedder: Embedder) -> Vectors:
    """(N, D) of TEXTS, each embedded alone."""
    return np.stack([tiny_embedder.encode(text) for text in TEXTS])


def assert_same(one: Vectors, other: Vectors) -> None:
    assert one.shape == other.shape
    assert one.dtype == other.dtype == np.float32
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def of_tokens(count: int, start: int = 0) -> str:
    """A text of so many tokens, the two special ones included."""
    return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(count - 2))


@pytest.fixture
def batches(tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (B, T) of every batch that reaches the runtime of `tiny_embedder` during a test."""
    shapes: list[tuple[int, int]] = []
    run_many = tiny_embedder._runtime.run_many

    def counted(batches: Any, *, count: int) -> Any:
        def seen() -> Iterator[Any]:
            for tag, ids, mask in batches:
                shapes.append(ids.shape)
                yield tag, ids, mask

        return run_many(seen(), count=count)

    monkeypatch.setattr(tiny_embedder._runtime, "run_many", counted)
    return shapes


# ---- what texts may come in


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        iter,
        lambda texts: (text for text in texts),
        lambda texts: dict.fromkeys(texts).keys(),
        np.array,
        lambda texts: np.array(texts, object),
        lambda texts: [np.str_(text) for text in texts],
        lambda texts: pd.Series(texts, index=[9, 3, 3, -1, 0]),
        lambda texts: pd.Series(texts, dtype="string"),
    ],
    ids=[
        "list",
        "tuple",
        "iterator",
        "generator",
        "keys",
        "array",
        "objects",
        "np.str_",
        "series",
        "strings",
    ],
)
def test_every_kind_of_iterable_gives_the_same_rows(
    make: Callable[[list[str]], Any], tiny_embedder: Embedder, expected: Vectors
) -> None:
    assert_same(tiny_embedder.encode(make(TEXTS)), expected)
    assert_same(np.stack(list(tiny_embedder.encode_iter(make(TEXTS)))), expected)


def test_one_text_gives_one_axis(tiny_embedder: Embedder, expected: Vectors) -> None:
    assert tiny_embedder.encode(TEXTS[0]).shape == (DIM,)
    assert_same(tiny_embedder.encode(np.str_(TEXTS[0])), expected[0])
    assert_same(tiny_embedder.encode(np.array(TEXTS[0])), expected[0])
    assert tiny_embedder.encode([TEXTS[0]]).shape == (1, DIM)


@pytest.mark.parametrize("texts", [{"a": "b"}, b"the cat", None, 7, 1.5], ids=lambda t: type(t).__name__)
def test_what_is_no_collection_of_texts_is_refused_by_its_type(texts: Any, tiny_embedder: Embedder) -> None:
    words = f"texts must be a str or an iterable of str, not {type(texts).__name__}"
    with pytest.raises(InputError, match=words):
        tiny_embedder.encode(texts)
    with pytest.raises(InputError, match=words):
        next(tiny_embedder.encode_iter(texts))


@pytest.mark.parametrize(
    "texts",
    [np.array([["a", "b"]]), pd.DataFrame({"text": ["a", "b"]})],
    ids=lambda t: type(t).__name__,
)
def test_a_table_is_refused_for_it_would_give_rows_or_column_names(
    texts: Any, tiny_embedder: Embedder
) -> None:
    with pytest.raises(InputError, match=f"not a {type(texts).__name__} of 2 axes"):
        tiny_embedder.encode(texts)
    with pytest.raises(InputError, match=f"not a {type(texts).__name__} of 2 axes"):
        tiny_embedder.encode_iter(texts)


@pytest.mark.parametrize("text", ["the cat", np.str_("the cat"), np.array("the cat")], ids=repr)
def test_encode_iter_does_not_take_a_text_apart(text: Any, tiny_embedder: Embedder) -> None:
    with pytest.raises(InputError, match="not a single str; use encode"):
        tiny_embedder.encode_iter(text)


@pytest.mark.parametrize(
    ("item", "name"),
    [(None, "NoneType"), (float("nan"), "float"), (b"cat", "bytes"), (3, "int"), (["a"], "list")],
    ids=lambda value: str(value),
)
def test_an_item_that_is_no_text_is_named_by_its_index(
    item: Any, name: str, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS, *TEXTS, item, "a", item]
    with pytest.raises(InputError, match=f"^item 10 is {name}, not str$"):
        tiny_embedder.encode(texts)
    monkeypatch.setattr(module, "WINDOW", 4)
    rows = tiny_embedder.encode_iter(iter(texts))
    assert len(list(itertools.islice(rows, 8))) == 8  # whole windows before it still come out
    with pytest.raises(InputError, match=f"^item 10 is {name}, not str$"):
        next(rows)


def test_a_missing_value_of_a_series_is_named_by_position_not_by_label(tiny_embedder: Embedder) -> None:
    with pytest.raises(InputError, match=r"^item 1 is NoneType"):
        tiny_embedder.encode(pd.Series(["a", None], index=[5, 9], dtype=object))


@pytest.mark.parametrize(
    ("precision", "width", "dtype"),
    [
        ("float32", DIM, np.float32),
        ("binary", DIM // 8, np.int8),
        ("ubinary", DIM // 8, np.uint8),
        ("int8", DIM, np.int8),
    ],
)
def test_no_texts_give_no_rows_of_the_right_width(
    precision: str, width: int, dtype: type, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = Embedder(tiny, cache_dir=False)
    rows = embedder.encode([], precision=precision)
    assert rows.shape == (0, width)
    assert rows.dtype == dtype
    assert embedder.encode(iter(()), precision=precision).shape == (0, width)
    assert list(embedder.encode_iter([], precision=precision)) == []
    assert caplog.messages == []


def test_empty_and_blank_texts_give_one_and_the_same_unit_row(tiny_embedder: Embedder) -> None:
    rows = tiny_embedder.encode(["", " ", "\n\t ", "\u3000", "the cat"])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rows[1:4], rows[[0, 0, 0]], atol=1e-6)
    assert not np.allclose(rows[4], rows[0], atol=1e-2)
    assert tiny_embedder.encode("").shape == (DIM,)


def test_lone_surrogates_count_as_the_replacement_character(tiny_embedder: Embedder) -> None:
    broken = tiny_embedder.encode(["the \ud800cat", "cat \udfff", "\ud83d", "\ud83d\ude00 dog"])
    whole = tiny_embedder.encode(["the \ufffdcat", "cat \ufffd", "\ufffd", "\U0001f600 dog"])
    np.testing.assert_array_equal(broken, whole)


def test_ten_megabytes_have_the_vector_of_their_first_part(
    tiny_embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    sentence = "the red cat sat on the blue mat and "
    text = sentence * (10_000_000 // len(sentence))
    assert_same(tiny_embedder.encode(text), tiny_embedder.encode(text[:20_000]))
    assert all(line.startswith("1 of 1 texts were cut to the limit of 512") for line in caplog.messages)
    assert len(caplog.messages) == 2


# ---- order, duplicates, windows


def test_a_text_is_embedded_once_however_often_it_comes(
    tiny_embedder: Embedder, expected: Vectors, batches: list[tuple[int, int]]
) -> None:
    order = [0, 3, 0, 1, 1, 0, 2, 4, 3, 0]
    rows = tiny_embedder.encode([TEXTS[i] for i in order])
    assert sum(b for b, _ in batches) == len(TEXTS)
    assert_same(rows, expected[order])
    np.testing.assert_array_equal(rows[0], rows[5])


def test_rows_come_in_the_order_of_the_texts(
    tiny_embedder: Embedder, batches: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [3, 90, 17, 200, 4, 64, 65, 63, 3, 33, 500, 12, 8, 9]
    texts = [of_tokens(length, start) for start, length in enumerate(lengths)]
    alone = np.stack([tiny_embedder.encode(text) for text in texts])
    batches.clear()
    assert_same(tiny_embedder.encode(texts), alone)
    assert 1 < len(batches) < len(texts)
    assert_same(tiny_embedder.encode(texts[::-1]), alone[::-1])
    monkeypatch.setattr(module, "WINDOW", 4)
    assert_same(tiny_embedder.encode(texts), alone)
    assert_same(np.stack(list(tiny_embedder.encode_iter(texts))), alone)


def test_encode_iter_takes_no_more_than_a_window_ahead(
    tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 4)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield of_tokens(3 + taken % 7)

    rows = tiny_embedder.encode_iter(endless())
    assert taken == 0
    for asked in range(1, 14):
        row = next(rows)
        assert row.shape == (DIM,)
        assert row.base is None  # a view would keep all of its window
        assert taken == -(-asked // 4) * 4


def test_encode_iter_takes_the_options_of_encode(tiny_embedder: Embedder) -> None:
    options: dict[str, Any] = {"prompt_name": "query", "truncate_dim": 16, "precision": "ubinary"}
    rows = np.stack(list(tiny_embedder.encode_iter(TEXTS, **options)))
    np.testing.assert_array_equal(rows, tiny_embedder.encode(TEXTS, **options))
    with pytest.raises(InputError, match="precision is 'int4'"):
        next(tiny_embedder.encode_iter(TEXTS, precision="int4"))


# ---- what may not change a vector


def test_vectors_at_every_edge_of_the_ladder_do_not_depend_on_neighbours(
    tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = sorted({n for rung in ladder(LIMIT).tolist() for n in (rung - 1, rung, rung + 1) if n <= LIMIT})
    texts = [of_tokens(n, start=n) for n in lengths]
    together = tiny_embedder.encode(texts)
    assert_same(np.stack([tiny_embedder.encode(text) for text in texts]), together)
    assert_same(tiny_embedder.encode(texts, batch_size=1), together)
    assert_same(tiny_embedder.encode(texts[::-1], batch_size=32)[::-1], together)
    monkeypatch.setattr(tiny_embedder, "_rungs", np.array([LIMIT]))  # all padding there can be
    assert_same(tiny_embedder.encode(texts[::4]), together[::4])


@pytest.mark.parametrize(("count", "tokens"), [(2, 8), (3, 24), (4, 40), (4, 100), (6, 64), (16, 20)])
def test_neighbours_in_a_batch_of_one_shape_do_not_change_a_bit(
    count: int, tokens: int, tiny_embedder: Embedder, batches: list[tuple[int, int]]
) -> None:
    text = of_tokens(tokens)
    rows = []
    for place in (0, 1, count - 1):
        texts = [of_tokens(tokens - i % 4, start=1 + i + place) for i in range(count)]
        texts[place] = text
        rows.append(tiny_embedder.encode(texts, batch_size=count)[place])
    assert len(batches) == 3
    assert len(set(batches)) == 1
    np.testing.assert_array_equal(rows[1:], [rows[0]] * 2)


def test_a_batch_has_no_more_texts_than_batch_size(
    tiny_embedder: Embedder, batches: list[tuple[int, int]]
) -> None:
    texts = [of_tokens(100, start) for start in range(20)]
    tiny_embedder.encode(texts, batch_size=3)
    assert max(b for b, _ in batches) == 3
    batches.clear()
    tiny_embedder.encode(texts)
    assert max(b * t for b, t in batches) <= tiny_embedder.plan.token_budget
    batches.clear()
    tiny_embedder.encode(texts, batch_size=16)  # asked for: the token budget does not count
    assert max(b for b, _ in batches) == 16


def test_the_same_call_gives_the_same_bits(tiny_embedder: Embedder) -> None:
    np.testing.assert_array_equal(tiny_embedder.encode(TEXTS), tiny_embedder.encode(TEXTS))


def test_two_streams_give_the_vectors_of_one(tiny_built: Path, tiny_embedder: Embedder) -> None:
    texts = [of_tokens(3 + 7 * i, i) for i in range(40)]
    two = Embedder(tiny_built, streams=2, threads=2, cache_dir=False)
    assert_same(two.encode(texts), tiny_embedder.encode(texts))


def test_many_threads_may_use_one_embedder(tiny_embedder: Embedder) -> None:
    calls = [[of_tokens(3 + (5 * i + j) % 60, i) for j in range(6)] for i in range(16)]
    alone = [tiny_embedder.encode(texts) for texts in calls]
    with ThreadPoolExecutor(8) as pool:
        for found, rows in zip(pool.map(tiny_embedder.encode, calls), alone, strict=True):
            np.testing.assert_array_equal(found, rows)


def test_vectors_stay_as_they_are_when_the_embedder_goes_on(tiny_embedder: Embedder) -> None:
    row = tiny_embedder.encode("the cat")
    before = row.copy()
    tiny_embedder.encode("a dog")
    np.testing.assert_array_equal(row, before)


# ---- prompts


def test_a_prompt_stands_before_every_text(tiny_embedder: Embedder) -> None:
    expected = tiny_embedder.encode([f"how is {text}" for text in TEXTS])
    for rows in (
        tiny_embedder.encode(TEXTS, prompt="how is "),
        tiny_embedder.encode(TEXTS, prompt_name="query"),
        tiny_embedder.encode_query(TEXTS),
    ):
        np.testing.assert_array_equal(rows, expected)
    assert not np.allclose(tiny_embedder.encode(TEXTS), expected, atol=1e-2)


def test_a_prompt_of_the_callers_own_is_no_conflict_with_the_models(
    tiny_embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_embedder.encode_query("a dog", prompt="the red ")
    tiny_embedder.encode_document("a dog", prompt="the red ")
    assert caplog.messages == []
    tiny_embedder.encode("a dog", prompt="the red ", prompt_name="query")
    assert caplog.messages == ["both prompt and prompt_name='query' were given; prompt is used"]


def test_an_unknown_prompt_is_refused_with_the_known_ones(tiny_embedder: Embedder) -> None:
    with pytest.raises(InputError, match="no prompt 'title'; this model has: query, document"):
        tiny_embedder.encode(TEXTS, prompt_name="title")


# ---- texts that are too long


LONG = [of_tokens(20), "a dog", of_tokens(42), of_tokens(42), of_tokens(16), of_tokens(17)]


def test_cut_texts_are_counted_in_one_warning(tiny_built: Path, caplog: pytest.LogCaptureFixture) -> None:
    embedder = Embedder(tiny_built, max_tokens=16, cache_dir=False)
    rows = embedder.encode(LONG)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages == ["4 of 6 texts were cut to the limit of 16 tokens; the longest has 42 or more"]
    assert_same(rows[2], embedder.encode(of_tokens(16)))  # all three begin alike
    assert_same(rows[0], rows[2])


def test_encode_iter_warns_once_for_all_windows(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    embedder = Embedder(tiny_built, max_tokens=16, cache_dir=False)
    assert len(list(embedder.encode_iter(LONG))) == 6
    assert caplog.messages == ["4 of 6 texts were cut to the limit of 16 tokens; the longest has 42 or more"]


def test_texts_at_the_limit_are_not_counted(tiny_built: Path, caplog: pytest.LogCaptureFixture) -> None:
    Embedder(tiny_built, max_tokens=42, cache_dir=False).encode(LONG, on_overflow="error")
    assert caplog.messages == []


def test_a_text_over_the_limit_is_an_error_on_demand(
    tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(tiny_built, max_tokens=16, cache_dir=False)
    texts = ["hello", "hello", *LONG[1:]]
    words = "^text 3 has 42 tokens or more, over the limit of 16;"
    with pytest.raises(InputError, match=words):
        embedder.encode(texts, on_overflow="error")
    with pytest.raises(InputError, match=r"^text 0 has 18 tokens"):  # the prompt counts
        embedder.encode(of_tokens(16), prompt="how is ", on_overflow="error")
    monkeypatch.setattr(module, "WINDOW", 2)
    with pytest.raises(InputError, match=words):
        embedder.encode(texts, on_overflow="error")
    with pytest.raises(InputError, match=words):
        list(embedder.encode_iter(texts, on_overflow="error"))


# ---- progress


def test_a_progress_bar_comes_when_asked_and_ends_at_the_total(
    tiny_embedder: Embedder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 3)
    texts = [*TEXTS, *TEXTS[:4], of_tokens(300)]
    tiny_embedder.encode(texts, show_progress_bar=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Embedding: 100%" in captured.err
    assert "| 10/10 [" in captured.err


def test_encode_iter_counts_on_without_knowing_a_total(
    tiny_embedder: Embedder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 3)
    list(tiny_embedder.encode_iter(iter([*TEXTS, *TEXTS]), show_progress_bar=True))
    assert "Embedding: 10text [" in capsys.readouterr().err
    list(tiny_embedder.encode_iter(TEXTS))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("level", "wish", "shown"),
    [
        (logging.INFO, None, True),
        (logging.DEBUG, None, True),
        (logging.WARNING, None, False),
        (logging.INFO, False, False),
    ],
)
def test_a_progress_bar_follows_the_log_level_unless_told(
    level: int,
    wish: bool | None,
    shown: bool,
    tiny_embedder: Embedder,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(level, "edge_embed")
    tiny_embedder.encode(TEXTS, show_progress_bar=wish)
    assert ("5/5" in capsys.readouterr().err) is shown


# ---- widths


def test_every_width_is_taken_where_the_model_has_no_list(tiny_embedder: Embedder, expected: Vectors) -> None:
    for dim in range(1, DIM + 1):
        rows = tiny_embedder.encode(TEXTS, truncate_dim=dim)
        cut = expected[:, :dim]
        assert_same(rows, cut / np.linalg.norm(cut, axis=1, keepdims=True))


@pytest.mark.parametrize("dim", [-1, 0, 33])
def test_a_width_outside_of_the_model_is_refused_with_both_numbers(
    dim: int, tiny_built: Path, tiny_embedder: Embedder
) -> None:
    words = f"truncate_dim {dim} is not within 1 to 32"
    with pytest.raises(InputError, match=words):
        tiny_embedder.encode(TEXTS, truncate_dim=dim)
    with pytest.raises(InputError, match=words):
        Embedder(tiny_built, truncate_dim=dim, cache_dir=False)


def test_the_width_of_a_call_wins_over_the_embedders_and_that_over_the_models(tiny: Path) -> None:
    file = tiny / "config_sentence_transformers.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncate_dim": 24}))
    own, asked = (Embedder(tiny, truncate_dim=dim, cache_dir=False) for dim in (None, 16))
    assert (own.dim, asked.dim) == (24, 16)
    assert own.encode("the cat").shape == (24,)
    assert asked.encode("the cat").shape == (16,)
    assert asked.encode("the cat", truncate_dim=32).shape == (32,)
    assert asked.encode([]).shape == (0, 16)


def test_only_the_widths_on_the_card_are_taken(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "wide", hidden_size=256)
    write_modules(folder, hidden=256)
    build(folder)
    write_record(folder, read_record(folder) | {"name": "granite-embedding-311m-multilingual-r2"})
    embedder = Embedder(folder, truncate_dim=128, cache_dir=False)
    assert embedder.encode("the cat").shape == (128,)
    assert embedder.encode("the cat", truncate_dim=256).shape == (256,)
    words = "truncate_dim 64 is not one that this model was trained for: 768, 512, 384, 256, 128"
    with pytest.raises(InputError, match=words):
        embedder.encode("the cat", truncate_dim=64)
    with pytest.raises(InputError, match=words):
        Embedder(folder, truncate_dim=64, cache_dir=False)
    with pytest.raises(InputError, match="truncate_dim 512 is not within 1 to 256"):
        embedder.encode("the cat", truncate_dim=512)


# ---- options that are refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int4"}, "precision is 'int4'; known: float32, int8, uint8, binary, ubinary"),
        ({"on_overflow": "drop"}, "on_overflow is 'drop'; known: truncate, error"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -3}, "batch_size is -3"),
    ],
)
def test_an_unknown_option_of_a_call_is_refused(
    options: dict[str, Any], words: str, tiny_embedder: Embedder
) -> None:
    with pytest.raises(InputError, match=words):
        tiny_embedder.encode([], **options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"compute_type": "float16"}, InputError, "'float16'; known: auto, float32, bfloat16, int8_weights"),
        ({"device": "TPU"}, DeviceError, "no device 'TPU' on this machine; OpenVINO finds: CPU"),
        ({"max_tokens": 513}, InputError, "max_tokens 513 is not within 1 to 512"),
        ({"max_tokens": 0}, InputError, "max_tokens 0 is not within 1 to 512"),
        ({"max_tokens": 2}, ModelError, "a limit of 2 tokens leaves no room beside 2 special tokens"),
        ({"threads": 0}, InputError, "threads is 0"),
        ({"streams": 0}, InputError, "streams is 0"),
    ],
)
def test_an_unknown_option_of_the_embedder_is_refused(
    options: dict[str, Any], error: type[Exception], words: str, tiny_built: Path
) -> None:
    with pytest.raises(error, match=words):
        Embedder(tiny_built, cache_dir=False, **options)


# ---- broken models


def test_a_vector_that_is_nan_is_refused_with_the_index_of_its_text(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = json.loads((tiny / "tokenizer.json").read_text())["model"]["vocab"]
    table = open_weights(tiny).take("embeddings.word_embeddings.weight", (len(tokens), DIM))
    row = np.array(table[tokens["cat"]])
    data = (tiny / BIN).read_bytes()
    assert data.count(row.tobytes()) == 1
    (tiny / BIN).write_bytes(data.replace(row.tobytes(), np.full_like(row, np.nan).tobytes()))

    embedder = Embedder(tiny, cache_dir=False)
    texts = ["a dog", "a dog", "hello", "a dog", "the house is red", "the cat", "hello"]
    assert np.isfinite(embedder.encode(texts[:5])).all()
    words = "^text 5 gave a vector that is NaN, Inf or zero; the weights of .* in float32$"
    with pytest.raises(NumericsError, match=words):
        embedder.encode(texts)
    monkeypatch.setattr(module, "WINDOW", 2)
    with pytest.raises(NumericsError, match=words):
        embedder.encode(texts)
    with pytest.raises(NumericsError, match=words):
        list(embedder.encode_iter(texts))


def test_a_tokenizer_with_more_tokens_than_the_table_is_refused_with_both_numbers(tiny: Path) -> None:
    path = tiny / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    rows = len(words)
    words["one-more"] = rows
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=f"has {rows + 1} tokens, but config.json says vocab_size {rows}"):
        Embedder(tiny, cache_dir=False)


# ---- compiled blobs


def test_a_later_start_takes_the_compiled_blob(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = Embedder(tiny, cache_dir=cache)
    (blob,) = cache.iterdir()
    assert blob.suffix == ".blob"
    second = Embedder(tiny, cache_dir=str(cache))
    assert (first._runtime.loaded_from_cache, second._runtime.loaded_from_cache) == (False, True)
    assert_same(second.encode(TEXTS), first.encode(TEXTS))


def test_a_damaged_blob_is_replaced_with_a_warning(
    tiny: Path, tmp_path: Path, expected: Vectors, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    Embedder(tiny, cache_dir=cache)
    (blob,) = cache.iterdir()
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 0xFF
    blob.write_bytes(data)
    embedder = Embedder(tiny, cache_dir=cache)
    assert not embedder._runtime.loaded_from_cache
    (line,) = caplog.messages
    assert str(blob) in line
    assert_same(embedder.encode(TEXTS), expected)
    assert Embedder(tiny, cache_dir=cache)._runtime.loaded_from_cache
    assert len(caplog.messages) == 1


def test_other_weights_do_not_get_the_blob_of_before(tiny: Path, tmp_path: Path, expected: Vectors) -> None:
    cache = tmp_path / "cache"
    Embedder(tiny, cache_dir=cache)
    other = build(tiny_bert(tmp_path / "other", seed=1))
    shutil.copyfile(other / BIN, tiny / BIN)
    embedder = Embedder(tiny, cache_dir=cache)
    assert not embedder._runtime.loaded_from_cache
    assert not np.allclose(embedder.encode(TEXTS), expected, atol=1e-2)


def test_without_a_cache_no_blob_is_made(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("EDGE_EMBED_HOME", str(home))
    before = sorted(tmp_path.rglob("*"))
    embedder = Embedder(tiny, cache_dir=False)
    embedder.encode(TEXTS)
    assert embedder.plan.cache is None
    assert sorted(tmp_path.rglob("*")) == before
