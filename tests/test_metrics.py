"""drift/metrics.py, against SciPy, scikit-learn and formulas written out, on arrays whose drift is known."""

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import ndcg_score

from edge_embed.drift import metrics
from edge_embed.drift.metrics import Relevance
from edge_embed.errors import InputError, NumericsError, ShapeError

Floats = NDArray[np.float64]


def unit(x: Floats) -> Floats:
    scaled: Floats = x / np.linalg.norm(x, axis=1, keepdims=True)
    return scaled


def texts(n: int, dim: int = 64, common: float = 0.5, seed: int = 0) -> Floats:
    """Unit rows with something in common, as embeddings have."""
    random = np.random.default_rng(seed)
    return unit(random.normal(size=(n, dim)) + common * random.normal(size=dim))


def noisy(x: Floats, decibels: float, seed: int = 1) -> Floats:
    """x, each row turned to a random side by a random angle, so that the SQNR is about that."""
    noise = np.random.default_rng(seed).normal(size=x.shape)
    noise -= (noise * x).sum(1, keepdims=True) * x
    power = (1 - mean_cosine(x)) * 10 ** (-decibels / 10) / (x.shape[1] - 1)
    distance = np.sqrt(power) * np.linalg.norm(noise, axis=1, keepdims=True)
    cosine = 1 - distance**2 / 2
    turned: Floats = cosine * x + np.sqrt(1 - cosine**2) * unit(noise)
    return turned


def mean_cosine(x: Floats) -> float:
    """Of different rows."""
    cosines = x @ x.T
    return float(cosines[~np.eye(len(x), dtype=bool)].mean())


# ---- noise


def test_noise_is_what_the_cosine_lacks_as_a_share_of_the_spread() -> None:
    x = texts(30)
    y = noisy(x, 20)
    expected = [2 * (1 - a @ b) / (1 - mean_cosine(x)) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(metrics.noise_power(x, y, centred=False), expected, rtol=1e-9)
    assert metrics.sqnr(x, y, centred=False) == pytest.approx(-10 * math.log10(np.mean(expected)))


@pytest.mark.parametrize("decibels", [10.0, 22.7, 45.0])
def test_even_noise_of_g_decibels_measures_g(decibels: float) -> None:
    x = texts(400, dim=128)
    y = noisy(x, decibels)
    found = metrics.sqnr_interval(x, y, centred=False)
    assert found.low < decibels < found.high
    assert found.high - found.low < 0.3
    assert found.value == pytest.approx(metrics.sqnr(x, y, centred=False))
    assert metrics.sqnr(x, y) == pytest.approx(found.value, abs=0.1)


def test_a_mean_cosine_follows_from_decibels_and_the_background() -> None:
    x = texts(300, common=1.0)
    y = noisy(x, 22.7)
    expected = 1 - (1 - mean_cosine(x)) / 2 * 10 ** (-metrics.sqnr(x, y, centred=False) / 10)
    assert (x * y).sum(1).mean() == pytest.approx(expected, rel=1e-9)


def test_the_wrong_rows_are_at_minus_three_decibels() -> None:
    x = texts(400, dim=128)
    assert metrics.sqnr(x, np.roll(x, 1, axis=0), centred=False) == pytest.approx(-3.01, abs=0.1)


def test_a_shift_that_all_texts_share_is_told_from_noise() -> None:
    x = texts(200)
    shift = np.random.default_rng(3).normal(size=x.shape[1])
    y = unit(noisy(x, 30) + 0.1 * shift / np.linalg.norm(shift))
    drift = metrics.summarize(x, y, metrics.by_label(["a"] * 200))
    assert drift.shift_ratio > 0.8
    assert drift.sqnr_plain < 20.5
    # Making rows unit again turns a little of the shift into noise.
    assert 25 < drift.sqnr.value < 30


def test_few_texts_do_not_look_better_for_having_their_own_mean_taken_out() -> None:
    x = texts(4000)
    y = noisy(x, 20)
    of_four = [
        metrics.noise_power(x[i : i + 4], y[i : i + 4], centred=True).mean() for i in range(0, 4000, 4)
    ]
    plain = [metrics.noise_power(x[i : i + 4], y[i : i + 4], centred=False).mean() for i in range(0, 4000, 4)]
    # Taking the mean out of four rows leaves three quarters of their noise.
    assert np.mean(of_four) / np.mean(plain) == pytest.approx(1, abs=0.02)


def test_equal_rows_have_a_number_that_json_can_hold() -> None:
    x = texts(40)
    drift = metrics.summarize(x, x, metrics.by_label(["a"] * 40))
    assert (drift.sqnr.value, drift.overlap_10.value, drift.cosine_min) == (150, 1, 1)
    assert json.loads(json.dumps(drift.to_dict(), allow_nan=False))["slices"][0]["sqnr"]["low"] == 150


def test_noise_far_below_what_a_float32_cosine_can_tell_is_measured() -> None:
    x = texts(100, dim=384).astype(np.float32)
    y = noisy(x.astype(np.float64), 90).astype(np.float32)
    assert metrics.sqnr(x, y) == pytest.approx(90, abs=0.3)


# ---- statistics


def test_the_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).gamma(2, size=80)
    found = metrics.bootstrap(values)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    spread = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.05 * spread)
    assert found.high == pytest.approx(theirs.high, abs=0.05 * spread)
    assert metrics.bootstrap(values) == found


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 1000)
    random = np.random.default_rng(5)
    shape = 1 / 0.36**2  # noise powers of static INT8 vary by 0.36 of their mean
    truth = -10 * math.log10(shape)
    found = [metrics.sqnr_of(random.gamma(shape, size=60)) for _ in range(600)]
    share = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.92 <= share <= 0.97


def test_resampling_in_parts_is_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    monkeypatch.setattr(metrics, "DRAWN", 120)
    means = metrics.resampled_means(values)
    assert means.shape == (10_000,)
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.std() == pytest.approx(values.std() / np.sqrt(50), rel=0.05)


def test_twice_the_noise_in_every_text_is_three_decibels_however_they_vary() -> None:
    old = np.random.default_rng(0).gamma(2, size=50)
    found = metrics.bootstrap(metrics.paired_change(old, 2 * old))
    np.testing.assert_allclose([found.value, found.low, found.high], 10 * math.log10(2))
    assert metrics.paired_change(np.zeros(2), np.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("sd", "n", "effect"), [(0.07, 200, 0.0139), (0.07, 1000, 0.0062), (0.061, 200, 0.012)]
)
def test_the_smallest_effect_is_that_of_the_normal_approximation(sd: float, n: int, effect: float) -> None:
    values = np.tile([-1.0, 1.0], n // 2)
    assert metrics.smallest_effect(sd * values / values.std(ddof=1)) == pytest.approx(effect, abs=1e-4)
    power = stats.norm.cdf(2.8 - stats.norm.ppf(0.975))
    assert power == pytest.approx(0.8, abs=0.001)


def test_holm_rejects_what_its_definition_rejects() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        p = random.uniform(size=8) ** 4
        rejected = np.zeros(8, bool)
        for rank, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (8 - rank):
                break
            rejected[i] = True
        assert (metrics.holm(p.tolist()) <= 0.05).tolist() == rejected.tolist()


def test_a_mean_far_above_the_margin_has_the_least_p_value_and_one_below_a_large_one() -> None:
    values = np.random.default_rng(0).normal(1, 0.2, size=40)
    assert metrics.p_above(values, 0) == pytest.approx(1 / 10_001)
    assert metrics.p_above(values, 2) == 1
    expected = stats.ttest_1samp(values, 0.95, alternative="greater").pvalue
    assert metrics.p_above(values, 0.95) == pytest.approx(expected, abs=0.01)
    assert metrics.p_above(np.zeros(24), 0) == 1


def test_small_p_values_are_as_rare_as_they_say() -> None:
    random = np.random.default_rng(0)
    found = np.array([metrics.p_above(random.normal(size=24), 0) for _ in range(1000)])
    assert np.mean(found <= 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.mean(found <= 0.001) <= 0.004


# ---- ranking


def overlap_by_sets(s: Floats, t: Floats, k: int, selves: list[int | None]) -> list[float]:
    """Of score rows, the plain way; selves: the column that is the query itself."""
    shares = []
    for row_s, row_t, me in zip(s, t, selves, strict=True):
        columns = [i for i in range(len(row_s)) if i != me]
        best = [set(sorted(columns, key=lambda i: (-row[i], i))[:k]) for row in (row_s, row_t)]
        shares.append(len(best[0] & best[1]) / k)
    return shares


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_overlap_is_that_of_sets(k: int, asymmetric: bool) -> None:
    x = texts(40)
    y = noisy(x, 8)
    t = y @ (x if asymmetric else y).T
    expected = overlap_by_sets(x @ x.T, t, k, list(range(40)))
    assert metrics.overlap(x, y, k, asymmetric=asymmetric).tolist() == pytest.approx(expected)
    assert min(expected) < 1

    queries, documents = np.arange(5, 20), np.arange(15, 40)
    selves = [list(documents).index(q) if q in documents else None for q in queries]
    expected = overlap_by_sets((x @ x.T)[5:20, 15:], t[5:20, 15:], k, selves)
    found = metrics.overlap(x, y, k, queries=queries, documents=documents, asymmetric=asymmetric)
    assert found.tolist() == pytest.approx(expected)


def test_documents_that_are_one_count_once() -> None:
    # Rows 2 to 14 are one document, and so the last of three for each query.
    x = unit(np.array([[1, 0, 0], [0.9, 0.1, 0], *[[0, 0, 1]] * 13, [0.5, 0.5, 0]], np.float64))
    assert metrics.distinct(x, np.arange(16)).tolist() == [0, 1, 2, 15]
    with pytest.raises(ShapeError, match="a query has only 3 different documents, and 4 are needed"):
        metrics.overlap(x, x, 3)


def test_equal_scores_rank_by_row() -> None:
    y = np.eye(50)  # all documents are as far from the query, row 0
    x = unit(y + np.linspace(1, 0.1, 50)[:, None] * y[0])  # the earlier, the nearer
    assert metrics.overlap(x, y, 5, queries=np.array([0])).tolist() == [1]


@pytest.mark.parametrize("block", [1, 7, 512])
def test_spearman_is_that_of_scipy_ties_included(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", block)
    x = texts(40)
    y = unit(np.sign(noisy(x, 5)))  # binary vectors have many equal scores
    expected = [
        stats.spearmanr(np.delete(x @ x[i], i), np.delete((y @ y[i]).round(9), i)).statistic
        for i in range(40)
    ]
    monkeypatch.setattr(metrics, "check", lambda a, b: (a, b))
    rounded = [
        metrics.Block(part.reference, part.candidate.round(9), part.other)
        for part in metrics.score_blocks(x, y)
    ]
    found = np.concatenate([metrics.correlation(part) for part in rounded])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert len(rounded) == math.ceil(40 / block)


def test_spearman_leaves_out_the_query_itself_where_it_is_a_document() -> None:
    x = texts(30)
    y = noisy(x, 5)
    documents = np.arange(20)
    expected = [
        stats.spearmanr(*(v[documents[documents != i]] @ v[i] for v in (x, y))).statistic for i in range(30)
    ]
    np.testing.assert_allclose(metrics.spearman(x, y, documents=documents), expected, atol=1e-12)


def test_ndcg_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    scores, grades = random.normal(size=(20, 50)), random.integers(0, 4, size=(20, 50))
    expected = [
        ndcg_score([2.0**grade - 1], [score], k=10, ignore_ties=True)
        for grade, score in zip(grades, scores, strict=True)
    ]
    np.testing.assert_allclose(metrics.ndcg(scores, grades), expected)


def test_mrr_is_one_over_the_rank_of_the_first_relevant_document() -> None:
    scores = np.array([[0.9, 0.8, 0.7], [0.1, 0.2, 0.3], [0.5, 0.5, 0.5]])
    grades = np.array([[0, 0, 1], [1, 1, 1], [0, 2, 0]])
    np.testing.assert_allclose(metrics.mrr(scores, grades), [1 / 3, 1, 1 / 2])


def test_ndcg_changes_by_what_a_swap_costs() -> None:
    x = np.eye(4)[[0, 0, 1, 2]] + 0.1 * np.eye(4)[[3, 0, 3, 3]]
    y = x.copy()
    y[1], y[2] = x[2], x[1]  # the relevant document and another change places
    relevance = Relevance(np.array([0]), np.array([1, 2, 3]), np.array([[1, 0, 0]]))
    (before, after), (first, later) = metrics.against_relevance(unit(x), unit(y), relevance)
    assert (after - before).tolist() == pytest.approx([1 / math.log2(3) - 1])
    assert (first.tolist(), later.tolist()) == ([1], [0.5])


@pytest.mark.parametrize("asymmetric", [False, True])
def test_score_noise_is_that_of_its_formulas(asymmetric: bool) -> None:
    x = texts(30)
    y = noisy(x, 15)
    queries, documents = np.arange(10), np.arange(10, 30)
    s, t = x[:10] @ x[10:].T, y[:10] @ (x if asymmetric else y)[10:].T
    best = np.sort(s, axis=1)[:, ::-1]
    found = metrics.score_noise(x, y, queries=queries, documents=documents, asymmetric=asymmetric)
    assert found.sigma == pytest.approx((t - s).std())
    assert found.bias == pytest.approx((t - s).mean())
    assert found.margin == pytest.approx(np.median(best[:, 0] - best[:, 9]))
    assert found.spacing == pytest.approx(np.median(best[:, 4] - best[:, 14]) / 10)
    # A text's cosine with itself is 1 on both sides, so that counting it would make the noise look smaller.
    assert metrics.score_noise(x, y).sigma == pytest.approx(
        np.concatenate([np.delete((y @ y.T - x @ x.T)[i], i) for i in range(30)]).std()
    )


# ---- slices


def many_languages() -> tuple[Floats, list[str]]:
    """52 languages of 24 texts, each language a little apart from the others."""
    random = np.random.default_rng(0)
    labels = np.repeat([f"l{i:02}" for i in range(52)], 24)
    x = random.normal(size=(52 * 24, 96)) + np.repeat(0.3 * random.normal(size=(52, 96)), 24, axis=0)
    return unit(x + 0.3 * random.normal(size=96)), labels.tolist()


def test_the_slice_of_one_broken_language_is_the_worst_while_the_mean_stays() -> None:
    x, labels = many_languages()
    y = noisy_language(x, labels, "l17", 10)
    drift = metrics.summarize(x, y, metrics.by_label(labels))
    assert drift.worst_slice == "l17"
    assert drift.worst_slice_sqnr == pytest.approx(10, abs=1)
    assert drift.sqnr.value > 24
    assert all(part.sqnr.value > 28 for part in drift.slices if part.name != "l17")


def noisy_language(x: Floats, labels: list[str], name: str, decibels: float) -> Floats:
    """x at 30 dB, but for one language."""
    rows = np.array(labels) == name
    random = np.random.default_rng(2)
    spread = 1 - metrics.background(x)
    power = np.where(rows, 10 ** (-decibels / 10), 1e-3)[:, None] * spread / x.shape[1]
    return unit(x + np.sqrt(power) * random.normal(size=x.shape))


def test_a_language_that_moves_as_a_whole_is_seen_in_its_slice() -> None:
    x, labels = many_languages()
    y = noisy_language(x, labels, "none", 0)
    y[:24] += 0.5 * x[600]
    drift = metrics.summarize(x, unit(y), metrics.by_label(labels))
    assert drift.worst_slice == "l00"
    assert drift.worst_slice_sqnr is not None
    assert drift.worst_slice_sqnr < 12


def test_a_slice_is_measured_against_its_own_spread_and_the_shift_of_all() -> None:
    x = texts(80)
    x[:40] = unit(x[:40] + x[0])  # nearer to each other than the others
    y = unit(noisy(x, 20) + 0.1 * x[70])
    shifted = y - x
    residual = np.square(shifted - shifted.mean(0)).sum(1) * 80 / 79
    drift = metrics.summarize(x, y, metrics.by_label(["near"] * 40 + ["wide"] * 40))
    for part, rows in zip(drift.slices, (slice(40), slice(40, 80)), strict=True):
        expected = -10 * math.log10(residual[rows].mean() / (1 - mean_cosine(x[rows])))
        assert part.sqnr.value == pytest.approx(expected)
        assert part.overlap_10.value == pytest.approx(metrics.overlap(x, y)[rows].mean())
    assert drift.worst_slice == "near"


def test_the_noisiest_texts_are_one_in_a_hundred() -> None:
    x = texts(300)
    y = noisy(x, 25)
    y[:4] = noisy(x, 8)[:4]
    drift = metrics.summarize(x, y, metrics.by_label(["a"] * 300))
    power = metrics.noise_power(x, y, centred=True)
    assert drift.sqnr_p1 == pytest.approx(-10 * math.log10(np.quantile(power, 0.99)))
    assert drift.sqnr_p1 is not None
    assert drift.sqnr_p1 < 10 < 20 < drift.sqnr.value
    cosines = (x * y).sum(1)
    assert drift.cosine_p1 == pytest.approx(np.quantile(cosines, 0.01))
    assert (drift.cosine_mean, drift.cosine_min) == pytest.approx((cosines.mean(), cosines.min()))
    assert drift.top_1 is not None
    assert drift.top_1.value == pytest.approx(metrics.overlap(x, y, 1).mean())
    assert drift.overlap_10_asymmetric is not None
    assert drift.overlap_10_asymmetric.value == pytest.approx(metrics.overlap(x, y, asymmetric=True).mean())
    assert drift.spearman == pytest.approx(metrics.spearman(x, y).mean())


def test_a_slice_with_few_texts_is_reported_but_neither_judged_nor_the_worst() -> None:
    x = texts(60)
    y = noisy(x, 30)
    y[:19] = noisy(x, 5)[:19]
    labels = ["few"] * 19 + ["many"] * 40 + ["one"]
    drift = metrics.summarize(x, y, metrics.by_label(labels))
    assert [(part.name, part.n, part.judged) for part in drift.slices] == [
        ("few", 19, False),
        ("many", 40, True),
    ]
    assert drift.worst_slice == "many"
    assert metrics.summarize(x, y, metrics.by_label(labels), least_slice=19).worst_slice == "few"
    assert metrics.summarize(x, y, metrics.by_label(labels), least_slice=50).worst_slice is None


def test_a_slice_that_the_reference_has_one_vector_for_is_left_out() -> None:
    x = texts(60)
    x[:20] = x[0]
    drift = metrics.summarize(x, noisy(x, 30), metrics.by_label(["one"] * 20 + ["many"] * 40))
    assert [part.name for part in drift.slices] == ["many"]


# ---- what is refused


@pytest.mark.parametrize("side", ["reference", "candidate"])
@pytest.mark.parametrize(
    ("value", "line"), [(np.nan, "holds NaN or Inf"), (np.inf, "holds NaN or Inf"), (0.0, "is a zero vector")]
)
def test_a_broken_row_is_refused_by_its_number(side: str, value: float, line: str) -> None:
    arrays = {"reference": texts(20), "candidate": texts(20)}
    arrays[side][7] = value
    with pytest.raises(NumericsError, match=f"row 7 of the {side} vectors {line}"):
        metrics.noise_power(**arrays, centred=True)


def test_a_missing_normalisation_is_refused_and_rounding_is_not() -> None:
    x = texts(20)
    y = x.copy()
    y[3] *= 1.0009
    assert metrics.sqnr(x, y) == 150  # the length itself is not drift
    y[3] *= 1.001
    with pytest.raises(
        NumericsError, match=r"row 3 of the candidate vectors is no unit vector \(norm 1\.0019"
    ):
        metrics.sqnr(x, y)


def test_rows_that_collapse_are_refused_unless_the_reference_has_them_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 8)
    x = texts(30)
    y = x.copy()
    y[21] = y[5]
    with pytest.raises(NumericsError, match="candidate rows 5 and 21 are one vector"):
        metrics.check_collapsed(x, y)
    assert metrics.collapsed(x, y) == (5, 21)
    x[21] = x[5]
    metrics.check_collapsed(x, y)
    assert metrics.collapsed(x, y) is None


def test_arrays_that_do_not_line_up_are_refused() -> None:
    x = texts(20)
    with pytest.raises(ShapeError, match=r"reference \(20, 64\), candidate \(19, 64\)"):
        metrics.sqnr(x, x[1:])
    with pytest.raises(ShapeError, match="1 texts have no spread"):
        metrics.sqnr(x[:1], x[:1])
    with pytest.raises(ShapeError, match="slice 'a' has the rows 0 to 20, but there are 20"):
        metrics.summarize(x, x, metrics.by_label(["a"] * 21))
    with pytest.raises(ShapeError, match="a query has only 10 different documents, and 11 are needed"):
        metrics.summarize(x[:11], x[:11], metrics.by_label(["a"] * 11))
    with pytest.raises(ShapeError, match=r"\(3,\) texts before and \(4,\) after"):
        metrics.paired_change(np.ones(3), np.ones(4))
    with pytest.raises(ShapeError, match="no values"):
        metrics.bootstrap(np.ones(0))
    with pytest.raises(ShapeError, match="only 14 different documents, and 15"):
        metrics.score_noise(x[:15], x[:15])


def test_a_reference_with_one_vector_for_all_is_refused() -> None:
    x = np.tile(texts(1), (20, 1))
    with pytest.raises(NumericsError, match="all 20 reference vectors are one"):
        metrics.sqnr(x, texts(20))


def test_a_query_without_a_relevant_document_is_refused() -> None:
    with pytest.raises(InputError, match="query 1 has no relevant document"):
        metrics.ndcg(np.zeros((2, 3)), np.array([[1, 0, 0], [0, 0, 0]]))
    with pytest.raises(ShapeError, match="do not line up"):
        metrics.mrr(np.zeros((2, 3)), np.zeros((2, 4), np.int64))
