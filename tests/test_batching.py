"""The batch plan against brute force and against its own promises, over random token counts."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_embed.batching import BATCH_COST, ROWS, Batch, ladder, pad, plan_batches, windows

LIMIT = 300
RUNGS = ladder(LIMIT)

lengths_of = st.lists(st.integers(1, LIMIT), max_size=80)
few_lengths = st.lists(st.integers(1, LIMIT), min_size=1, max_size=6)
budgets = st.sampled_from([1, 64, 256, 512, 1 << 62])


def batches_of(lengths: list[int], budget: int, max_rows: int = ROWS[-1]) -> list[Batch]:
    return plan_batches(np.array(lengths, np.int64), RUNGS, token_budget=budget, max_rows=max_rows)


def rung(length: int) -> int:
    """The padded length, found by looking at every rung."""
    return min(int(step) for step in RUNGS if step >= length)


def cost(groups: list[list[int]]) -> int:
    """What groups of token counts cost, by the formula of the module's first lines."""
    return sum(BATCH_COST + len(group) * rung(max(group)) for group in groups)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Every way to divide items into groups."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for groups in partitions(rest):
        yield [[first], *groups]
        for i, group in enumerate(groups):
            yield [*groups[:i], [first, *group], *groups[i + 1 :]]


@settings(deadline=None, max_examples=150)
@given(lengths=lengths_of, budget=budgets, max_rows=st.integers(1, 40))
def test_every_text_runs_once_in_a_batch_that_fits(lengths: list[int], budget: int, max_rows: int) -> None:
    batches = batches_of(lengths, budget, max_rows)

    assert sorted(int(row) for batch in batches for row in batch.rows) == list(range(len(lengths)))
    for batch in batches:
        count = len(batch.rows)
        assert batch.rows.dtype == np.int64
        assert count in ROWS
        assert count <= max_rows
        assert count == 1 or count * batch.tokens <= budget
        assert batch.tokens == rung(max(lengths[row] for row in batch.rows))


@settings(deadline=None, max_examples=150)
@given(lengths=lengths_of, budget=budgets)
def test_batches_come_longest_first(lengths: list[int], budget: int) -> None:
    planned = [lengths[row] for batch in batches_of(lengths, budget) for row in batch.rows]

    assert planned == sorted(lengths, reverse=True)


@settings(deadline=None, max_examples=150)
@given(lengths=lengths_of, budget=budgets)
def test_a_plan_costs_no_more_than_one_batch_a_text(lengths: list[int], budget: int) -> None:
    groups = [[lengths[row] for row in batch.rows] for batch in batches_of(lengths, budget)]

    assert cost(groups) <= cost([[length] for length in lengths])


@settings(deadline=None, max_examples=150)
@given(lengths=few_lengths, budget=budgets, max_rows=st.integers(1, 6))
def test_no_other_division_of_few_texts_costs_less(lengths: list[int], budget: int, max_rows: int) -> None:
    allowed = [
        groups
        for groups in partitions(lengths)
        if all(len(group) in ROWS and len(group) <= max_rows for group in groups)
        and all(len(group) == 1 or len(group) * rung(max(group)) <= budget for group in groups)
    ]
    planned = [[lengths[row] for row in batch.rows] for batch in batches_of(lengths, budget, max_rows)]

    assert cost(planned) == min(cost(groups) for groups in allowed)


def test_thirteen_equal_texts_run_as_twelve_and_one() -> None:
    counts = sorted(len(batch.rows) for batch in batches_of([8] * 13, 512))

    assert counts == [1, 12]


def test_no_texts_make_no_batches() -> None:
    assert batches_of([], 512) == []


@pytest.mark.parametrize("limit", [1, 7, 8, 9, 63, 64, 65, 128, 255, 256, 257, 300, 512, 8192, 32768])
def test_the_ladder_ascends_to_the_limit(limit: int) -> None:
    rungs = ladder(limit)

    assert rungs.dtype == np.int64
    assert (np.diff(rungs) > 0).all()
    assert rungs[0] >= 1
    assert rungs[-1] == limit


def test_padding_is_bounded_on_every_part_of_the_ladder() -> None:
    rungs = ladder(32768)
    lengths = np.arange(1, 32769)
    waste = rungs[np.searchsorted(rungs, lengths)] - lengths

    assert waste.min() == 0
    assert waste[lengths <= 64].max() < 8
    assert waste[(lengths > 64) & (lengths <= 256)].max() < 16
    assert (waste[lengths > 256] <= lengths[lengths > 256] / 8).all()
    assert len(rungs) < 80  # the CPU plugin keeps kernels for each; 28 for a limit of 512
    assert {1 << power for power in range(3, 16)} <= set(rungs.tolist())  # where long texts are cut


def test_padding_is_on_the_right_and_masked() -> None:
    rows: list[NDArray[np.int64]] = [np.array([5, 6, 7]), np.array([8])]
    input_ids, mask = pad(rows, 4, pad_id=9)

    assert input_ids.tolist() == [[5, 6, 7, 9], [8, 9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert input_ids.dtype == mask.dtype == np.int64


def test_windows_take_no_more_than_they_need() -> None:
    source = iter(range(7))
    parts = windows(source, 3)

    assert next(parts) == [0, 1, 2]
    assert next(source) == 3
    assert list(parts) == [[4, 5, 6]]
