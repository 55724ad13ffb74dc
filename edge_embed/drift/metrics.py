"""How far candidate vectors are from reference vectors: noise, ranking, their intervals. Knows arrays only.

    N  texts     D  width     Nq, Nd  rows that act as queries and as documents     K  slices

Row i of both arrays comes from the same text. Both are unit rows; what is computed from them is float64, with
the rows normalised once more. It does not know what made them, what a floor is, or what a slice stands for.

The unit of noise is the spread of the reference itself. Different texts have a mean cosine of 0.1 in one
model and of 0.6 in another, so a cosine of 0.9976 between both sides is 22.7 dB there and 19.2 dB here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import InputError, NumericsError, ShapeError

Vectors = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

RESAMPLES = 10_000
SEED = 20260101
LEVEL = 0.95

# What rounding a unit row to float32 makes. Less is not drift, and with it the SQNR of equal rows is a
# number, 150 dB, which JSON can hold.
LEAST_NOISE = 1e-15

UNIT = 1e-3  # a norm further than this from 1 is a missing normalisation, not rounding
SAME = 1e-9  # 1 - cosine of documents that are one: the same tokens, embedded in batches of other shapes
COLLAPSED, APART = 0.99999, 0.99  # cosines: candidate rows are one where the reference's are two
ALIKE = 1e-6  # a spread below this: the reference has one vector for all texts
LEAST_DOCUMENTS = 15  # for `score_noise`
LEAST_SLICE = 20  # texts; the interval of a slice is +-0.7 dB then, and narrower than what a slice is allowed

BLOCK = 512  # queries whose scores are held at once
DRAWN = 1 << 22  # resampled values held at once


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float
    effect: float | None = None  # the smallest change that as many texts show; `smallest_effect`


@dataclass(frozen=True, slots=True)
class ScoreNoise:
    """What the cosines of queries with documents gain, beside the distances that decide a ranking."""

    sigma: float  # standard deviation of candidate score - reference score
    bias: float  # its mean
    margin: float  # median over queries of best - tenth best score of the reference
    spacing: float  # median over queries of (fifth - fifteenth best) / 10: swaps grow with sigma / spacing


@dataclass(frozen=True, slots=True)
class SliceDrift:
    """Drift of the texts with one label: their noise, against their own spread, and their rankings of all."""

    name: str
    n: int
    judged: bool  # enough texts for a verdict; otherwise for people to read
    sqnr: Interval
    overlap_10: Interval


@dataclass(frozen=True, slots=True)
class Drift:
    """How far candidate vectors are from the reference. Higher is closer, but for shift_ratio.

    None is what was not measured.
    """

    n: int
    sqnr: Interval  # dB, without the mean shift
    sqnr_plain: float  # dB, with it
    cosine_mean: float
    cosine_p1: float  # first percentile over texts
    cosine_min: float
    shift_ratio: float  # share of the noise that is the same in all texts, 0 to 1
    overlap_10: Interval  # mean share of each text's ten nearest that stay, 0 to 1
    spearman: float  # mean over texts of the rank correlation of their cosines with all others
    worst_slice: str | None  # by SQNR, of those with enough texts
    worst_slice_sqnr: float | None
    slices: tuple[SliceDrift, ...] = ()
    sqnr_p1: float | None = None  # dB at the 99th percentile of noise, without the mean shift
    overlap_10_asymmetric: Interval | None = None  # candidate queries on an index of the reference
    overlap_100: Interval | None = None  # as overlap_10, where there are so many texts
    overlap_100_asymmetric: Interval | None = None
    top_1: Interval | None = None  # share of texts that keep their nearest
    top_1_asymmetric: Interval | None = None
    score_noise: ScoreNoise | None = None
    ndcg_10: float | None = None  # of the reference, over queries with known relevance
    ndcg_10_change: Interval | None = None  # candidate - reference
    mrr: float | None = None  # of the reference
    mrr_change: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"slices": [asdict(part) for part in self.slices]}


@dataclass(frozen=True, slots=True)
class Relevance:
    """Which documents answer which queries."""

    queries: Rows  # (Nq,) rows of the arrays
    documents: Rows  # (Nd,)
    grades: NDArray[np.int64]  # (Nq, Nd), 0: not relevant


# ---- what is refused


def check(reference: Vectors, candidate: Vectors) -> tuple[Floats, Floats]:
    """Both arrays as float64 unit rows.

    Errors: ShapeError unless both are (N, D) with N of at least 2; NumericsError naming the row for NaN, Inf,
    a zero vector, and a norm further than 0.001 from 1.
    """
    if reference.ndim != 2 or reference.shape != candidate.shape:
        raise ShapeError(f"vectors do not line up: reference {reference.shape}, candidate {candidate.shape}")
    if len(reference) < 2:
        raise ShapeError(f"{len(reference)} texts have no spread to compare noise with; give at least 2")
    return unit("reference", reference), unit("candidate", candidate)


def unit(name: str, vectors: Vectors) -> Floats:
    """Rows (N, D) in float64 and of length 1, which they must nearly have already."""
    rows = vectors.astype(np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    for bad, what in (
        (~np.isfinite(norms), "holds NaN or Inf"),
        (norms == 0, "is a zero vector"),
        (np.abs(norms - 1) > UNIT, "is no unit vector"),
    ):
        if bad.any():
            row = int(bad.argmax())
            raise NumericsError(
                f"row {row} of the {name} vectors {what} (norm {norms[row]:.6g}; {int(bad.sum())} such rows "
                f"of {len(rows)}); drift is measured between unit vectors"
            )
    unit_rows: Floats = rows / norms[:, None]
    return unit_rows


def collapsed(reference: Vectors, candidate: Vectors) -> tuple[int, int] | None:
    """The first two candidate rows that have become one where the reference keeps their texts apart.

    Errors: those of `check`.
    """
    x, y = check(reference, candidate)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        pairs = np.argwhere(np.triu((y[rows] @ y.T > COLLAPSED) & (x[rows] @ x.T < APART), start + 1))
        if len(pairs):
            return int(start + pairs[0][0]), int(pairs[0][1])
    return None


def check_collapsed(reference: Vectors, candidate: Vectors) -> None:
    """Refuse `collapsed` rows. Errors: those of `check`; NumericsError naming two of them."""
    if (rows := collapsed(reference, candidate)) is not None:
        first, second = rows
        raise NumericsError(
            f"candidate rows {first} and {second} are one vector where the reference tells them apart "
            f"(cosine {reference[first] @ reference[second]:.4f}); the candidate is broken"
        )


# ---- noise


def background(x: Floats) -> float:
    """Mean cosine of different rows (N, D)."""
    n = len(x)
    total = x.sum(0)
    return float((total @ total - n) / (n * (n - 1)))


def spread(x: Floats) -> float:
    """1 - `background`, what noise is measured against. Errors: NumericsError where all rows are one."""
    found = 1 - background(x)
    if found < ALIKE:
        raise NumericsError(f"all {len(x)} reference vectors are one (spread {found:.1e}); is it a model?")
    return found


def squared_noise(x: Floats, y: Floats, *, centred: bool) -> Floats:
    """(N,) squared length of candidate - reference, from the difference, as 1 - cosine would cancel.

    centred  subtract the mean shift first. It is estimated from the same rows, which takes 1 / N of the noise
             with it, so that is put back.
    """
    difference = y - x
    if centred:
        n = len(x)
        difference = (difference - difference.mean(0)) * np.sqrt(n / (n - 1))
    power: Floats = np.einsum("nd,nd->n", difference, difference)
    return power


def noise_power(reference: Vectors, candidate: Vectors, *, centred: bool) -> Floats:
    """Noise of each text as a share of the spread: p = |y - x|^2 / (1 - b), b the mean cosine of these texts.

    reference, candidate: (N, D) unit rows
    centred:              without the mean shift, which moves all texts alike and so hardly any ranking
    returns:              (N,) float64, 0 for equal rows and about 2 for unrelated ones
    Errors: those of `check`; NumericsError where the reference has one vector for all.
    """
    x, y = check(reference, candidate)
    return squared_noise(x, y, centred=centred) / spread(x)


def decibels(power: float) -> float:
    """SQNR of a mean noise power: 10 is -10 dB, 0.01 is 20 dB, nothing at all is 150 dB."""
    return float(-10 * np.log10(max(power, LEAST_NOISE)))


def sqnr(reference: Vectors, candidate: Vectors, *, centred: bool = True) -> float:
    """Signal-to-quantization-noise ratio of all texts in dB, of the mean `noise_power`."""
    return decibels(float(noise_power(reference, candidate, centred=centred).mean()))


def sqnr_interval(reference: Vectors, candidate: Vectors, *, centred: bool = True) -> Interval:
    """`sqnr` with its bootstrap interval over texts.

    Noise powers are resampled; the mean shift and the spread of the reference are held fixed, as they belong
    to the unit that floors are given in.
    """
    return sqnr_of(noise_power(reference, candidate, centred=centred))


def sqnr_of(power: Floats) -> Interval:
    """SQNR of noise powers (N,), with its interval."""
    found = bootstrap(power)
    effect = (
        None if found.effect is None else 10 / math.log(10) * found.effect / max(found.value, LEAST_NOISE)
    )
    return Interval(decibels(found.value), decibels(found.high), decibels(found.low), effect)


# ---- ranking


def overlap(
    reference: Vectors,
    candidate: Vectors,
    k: int = 10,
    *,
    queries: Rows | None = None,
    documents: Rows | None = None,
    asymmetric: bool = False,
) -> Floats:
    """Share of each query's k best documents by the reference that are among the candidate's k best.

    queries, documents: (Nq,), (Nd,) rows that have these roles; None: all rows. No row is its own document
    asymmetric:         candidate queries on reference documents, as on an index that was made before
    returns:            (Nq,) float64, 0 to 1; with k=1 it is 1 where the best document stays

    Of documents that the reference has one vector for, the first is kept; equal scores rank by row.
    Errors: those of `check`; ShapeError where a query has no more than k documents, as all would stay.
    """
    blocks = score_blocks(reference, candidate, queries, documents, asymmetric=asymmetric)
    return np.concatenate([shared(block, k) for block in blocks])


def spearman(
    reference: Vectors,
    candidate: Vectors,
    *,
    queries: Rows | None = None,
    documents: Rows | None = None,
    asymmetric: bool = False,
) -> Floats:
    """Rank correlation of each query's scores by the reference and by the candidate; roles as in `overlap`.

    returns: (Nq,) float64, -1 to 1; equal scores share their mean rank. NaN where one side has one score only
    """
    blocks = score_blocks(reference, candidate, queries, documents, asymmetric=asymmetric)
    return np.concatenate([correlation(block) for block in blocks])


def score_noise(
    reference: Vectors,
    candidate: Vectors,
    *,
    queries: Rows | None = None,
    documents: Rows | None = None,
    asymmetric: bool = False,
) -> ScoreNoise:
    """Noise of scores beside the distances between the best ones; roles as in `overlap`.

    Errors: those of `check`; ShapeError with fewer than 15 documents for a query.
    """
    total, squares, count = 0.0, 0.0, 0
    margins, spacings = [], []
    for block in score_blocks(reference, candidate, queries, documents, asymmetric=asymmetric):
        block.need(LEAST_DOCUMENTS)
        change = (block.candidate - block.reference)[block.other]
        total += float(change.sum())
        squares += float(change @ change)
        count += change.size
        best = -np.sort(-np.where(block.other, block.reference, -np.inf), axis=1)
        margins.append(best[:, 0] - best[:, 9])
        spacings.append((best[:, 4] - best[:, 14]) / 10)
    bias = total / count
    return ScoreNoise(
        sigma=math.sqrt(max(squares / count - bias**2, 0)),
        bias=bias,
        margin=float(np.median(np.concatenate(margins))),
        spacing=float(np.median(np.concatenate(spacings))),
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Scores of some queries with all documents."""

    reference: Floats  # (B, Nd) cosines
    candidate: Floats  # (B, Nd)
    other: NDArray[np.bool_]  # (B, Nd) whether the document is not the query itself

    def need(self, k: int) -> None:
        """Refuse queries with fewer than k documents."""
        least = int(self.other.sum(1).min())
        if least < k:
            raise ShapeError(f"a query has only {least} different documents, and {k} are needed; add texts")


def score_blocks(
    reference: Vectors,
    candidate: Vectors,
    queries: Rows | None = None,
    documents: Rows | None = None,
    *,
    asymmetric: bool = False,
) -> Iterator[Block]:
    """All queries in their order, some at a time; roles as in `overlap`. Errors: those of `check`."""
    x, y = check(reference, candidate)
    queries = np.arange(len(x)) if queries is None else queries
    documents = distinct(x, np.arange(len(x)) if documents is None else documents)
    x_documents, y_documents = x[documents], x[documents] if asymmetric else y[documents]
    for start in range(0, len(queries), BLOCK):
        rows = queries[start : start + BLOCK]
        other = rows[:, None] != documents
        yield Block(x[rows] @ x_documents.T, y[rows] @ y_documents.T, other)


def distinct(x: Floats, rows: Rows) -> Rows:
    """Those of `rows` (Nd,) of x (N, D) that no earlier one equals, in their order."""
    vectors = x[rows]
    repeated = np.zeros(len(rows), bool)
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        repeated[block] = np.tril(vectors[block] @ vectors.T > 1 - SAME, start - 1).any(1)
    return rows[~repeated]


def shared(block: Block, k: int) -> Floats:
    """(B,) share of the k best that both sides have in common."""
    block.need(k + 1)
    tops = [
        np.argsort(-np.where(block.other, scores, -np.inf), axis=1, kind="stable")[:, :k]
        for scores in (block.reference, block.candidate)
    ]
    share: Floats = (tops[0][:, :, None] == tops[1][:, None, :]).any(2).mean(1)
    return share


def correlation(block: Block) -> Floats:
    """(B,) Spearman's rank correlation, the query itself left out."""
    block.need(3)
    # Below all others in both, the query itself shifts their ranks alike, which a correlation does not see.
    a, b = (mean_ranks(np.where(block.other, s, -2.0)) for s in (block.reference, block.candidate))
    count = block.other.sum(1, keepdims=True)
    a, b = (np.where(block.other, r - (r * block.other).sum(1, keepdims=True) / count, 0.0) for r in (a, b))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as it says
        rho: Floats = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return rho


def mean_ranks(scores: Floats) -> Floats:
    """Ranks of each row (B, Nd) from 0, ascending; equal scores share the mean of theirs."""
    order = np.argsort(scores, axis=1)
    ordered = np.take_along_axis(scores, order, 1)
    new = np.ones(scores.shape, bool)  # where a value differs from the one before it
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    last = np.ones(scores.shape, bool)
    last[:, :-1] = new[:, 1:]
    places = np.arange(scores.shape[1])
    first_of = np.maximum.accumulate(np.where(new, places, 0), axis=1)
    last_of = np.minimum.accumulate(np.where(last, places, places[-1])[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(scores.shape)
    np.put_along_axis(ranks, order, (first_of + last_of) / 2, 1)
    return ranks


# ---- ranking against known relevance


def ndcg(scores: NDArray[np.floating[Any]], grades: NDArray[np.integer[Any]], k: int = 10) -> Floats:
    """nDCG at k of each query, with the gain 2^grade - 1.

    scores:  (Nq, Nd) float, higher first, equal ones by document
    grades:  (Nq, Nd) int, 0: not relevant
    Errors: ShapeError where they do not line up; InputError naming a query without a relevant document.
    """
    ordered = ranked_grades(scores, grades)[:, :k]
    best = -np.sort(-grades, axis=1)[:, :k]
    discount = 1 / np.log2(np.arange(2, ordered.shape[1] + 2))
    gained: Floats = (np.exp2(ordered) - 1) @ discount / ((np.exp2(best) - 1) @ discount)
    return gained


def mrr(scores: NDArray[np.floating[Any]], grades: NDArray[np.integer[Any]]) -> Floats:
    """One over the rank of each query's first relevant document: (Nq,). Arguments and errors as of `ndcg`."""
    first: Floats = 1 / (1 + (ranked_grades(scores, grades) > 0).argmax(1))
    return first


def ranked_grades(
    scores: NDArray[np.floating[Any]], grades: NDArray[np.integer[Any]]
) -> NDArray[np.integer[Any]]:
    """(Nq, Nd) grades in the order of falling scores."""
    if scores.shape != grades.shape or scores.ndim != 2:
        raise ShapeError(f"scores {scores.shape} and grades {grades.shape} do not line up")
    if len(lost := np.flatnonzero(~(grades > 0).any(1))):
        raise InputError(f"query {lost[0]} has no relevant document, and {len(lost)} queries like it")
    return np.take_along_axis(grades, np.argsort(-scores, axis=1, kind="stable"), 1)


def against_relevance(
    reference: Vectors, candidate: Vectors, relevance: Relevance
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """nDCG@10 and MRR of each query, each by the reference and by the candidate: four arrays (Nq,)."""
    x, y = check(reference, candidate)
    x_scores, y_scores = (v[relevance.queries] @ v[relevance.documents].T for v in (x, y))
    grades = relevance.grades
    return (ndcg(x_scores, grades), ndcg(y_scores, grades)), (mrr(x_scores, grades), mrr(y_scores, grades))


# ---- statistics


def bootstrap(values: Floats, level: float = LEVEL) -> Interval:
    """Mean of values (N,), and its percentile interval over resampled texts. Seeded: it repeats."""
    means = resampled_means(values)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(values.mean()), float(low), float(high), smallest_effect(values))


def resampled_means(values: Floats) -> Floats:
    """(RESAMPLES,) means of N values drawn from N with replacement."""
    n = len(values)
    if n == 0:
        raise ShapeError("no values to resample; give at least one text")
    random = np.random.Generator(np.random.PCG64(SEED))
    at_once = max(1, DRAWN // n)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, at_once):
        part = means[start : start + at_once]
        part[:] = values[random.integers(n, size=(len(part), n), dtype=np.int32)].mean(1)
    return means


def paired_change(old: Floats, new: Floats) -> Floats:
    """Noise gained by each text in dB, from noise powers (N,) of the same texts; positive is worse.

    Pairs take out how hard a text is, which is most of what noise powers differ by. Take `bootstrap` of it.
    Errors: ShapeError where they do not line up.
    """
    if old.shape != new.shape:
        raise ShapeError(f"noise of {old.shape} texts before and {new.shape} after are not pairs")
    change: Floats = 10 * np.log10(np.maximum(new, LEAST_NOISE) / np.maximum(old, LEAST_NOISE))
    return change


def p_above(values: Floats, margin: float) -> float:
    """One-sided p-value of "the mean of values (N,) is above margin", from 1 / (RESAMPLES + 1) to 1.

    By turning the signs of values - margin at random. Resampled means have too short tails for this: with 60
    slices of 24 texts, Holm's level of 5 % would be 15 %.
    """
    excess = values - margin
    random = np.random.Generator(np.random.PCG64(SEED))
    signs = random.integers(2, size=(RESAMPLES, len(values)), dtype=np.int8) * 2.0 - 1.0
    as_large = (signs @ excess >= excess.sum()).sum()
    return float((1 + as_large) / (1 + RESAMPLES))


def holm(p_values: Sequence[float]) -> Floats:
    """Holm's adjusted p-values (K,): those of at most 0.05 are rejected at a family level of 5 %.

    >>> holm([0.01, 0.04, 0.03]).round(6).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def smallest_effect(values: Floats) -> float | None:
    """Change of the mean of values (N,) that as many texts show: 80 % power, two-sided 5 %. None for one."""
    if len(values) < 2:
        return None
    return float(2.8 * values.std(ddof=1) / np.sqrt(len(values)))


# ---- all at once


def by_label(labels: Sequence[str]) -> dict[str, Rows]:
    """Label -> the rows (n,) that have it, by name."""
    found = np.asarray(labels)
    return {str(name): np.flatnonzero(found == name) for name in np.unique(found)}


def summarize(
    reference: Vectors,
    candidate: Vectors,
    slices: Mapping[str, Rows],
    *,
    least_slice: int = LEAST_SLICE,
    relevance: Relevance | None = None,
) -> Drift:
    """Everything that a gate judges. Each text is a query against all others.

    reference, candidate: (N, D) unit rows, N of at least 12
    slices:               name -> rows; they may overlap
    least_slice:          texts below which a slice is reported, but neither judged nor the worst
    relevance:            for nDCG and MRR

    The noise of a slice is measured against the spread of its own texts, which is what a search among them
    has to tell apart. But only the shift of all texts is taken out: one language that moves alone does harm.
    Errors: those of `check`, and ShapeError for rows that are not there or too few texts.
    """
    x, y = check(reference, candidate)
    check_rows(slices, len(x))
    plain, centred = (squared_noise(x, y, centred=c) for c in (False, True))  # (N,) squared lengths
    cosines = 1 - plain / 2
    unit_of_noise = spread(x)
    rankings = [ranking(x, y, asymmetric=asymmetric) for asymmetric in (False, True)]
    kept = rankings[0][10]
    parts = slice_drifts(x, centred, kept, slices, least_slice)
    worst = min((part for part in parts if part.judged), key=lambda part: part.sqnr.value, default=None)
    shift = (y - x).mean(0)
    found = Drift(
        n=len(x),
        sqnr=sqnr_of(centred / unit_of_noise),
        sqnr_plain=decibels(float(plain.mean()) / unit_of_noise),
        cosine_mean=float(cosines.mean()),
        cosine_p1=float(np.quantile(cosines, 0.01)),
        cosine_min=float(cosines.min()),
        shift_ratio=float(shift @ shift / max(float(plain.mean()), LEAST_NOISE)),
        overlap_10=bootstrap(kept),
        spearman=float(spearman(x, y).mean()),
        worst_slice=worst.name if worst else None,
        worst_slice_sqnr=worst.sqnr.value if worst else None,
        slices=parts,
        sqnr_p1=decibels(float(np.quantile(centred, 0.99)) / unit_of_noise),
        overlap_10_asymmetric=bootstrap(rankings[1][10]),
        overlap_100=bootstrap(rankings[0][100]) if 100 in rankings[0] else None,
        overlap_100_asymmetric=bootstrap(rankings[1][100]) if 100 in rankings[1] else None,
        top_1=bootstrap(rankings[0][1]),
        top_1_asymmetric=bootstrap(rankings[1][1]),
        score_noise=score_noise(x, y) if len(x) > LEAST_DOCUMENTS else None,
    )
    if relevance is None:
        return found
    (ndcg_x, ndcg_y), (mrr_x, mrr_y) = against_relevance(x, y, relevance)
    return replace(
        found,
        ndcg_10=float(ndcg_x.mean()),
        ndcg_10_change=bootstrap(ndcg_y - ndcg_x),
        mrr=float(mrr_x.mean()),
        mrr_change=bootstrap(mrr_y - mrr_x),
    )


def ranking(x: Floats, y: Floats, *, asymmetric: bool) -> dict[int, Floats]:
    """k -> `overlap` at k for 1, 10 and, where there are enough texts, 100: (N,) each, in one go."""
    ks = (1, 10, 100) if len(distinct(x, np.arange(len(x)))) > 101 else (1, 10)
    blocks = [[shared(block, k) for k in ks] for block in score_blocks(x, y, asymmetric=asymmetric)]
    return {k: np.concatenate(column) for k, column in zip(ks, zip(*blocks, strict=True), strict=True)}


def check_rows(slices: Mapping[str, Rows], n: int) -> None:
    """Refuse slices with rows that are not there."""
    for name, rows in slices.items():
        if len(rows) and (rows.min() < 0 or rows.max() >= n):
            raise ShapeError(f"slice {name!r} has the rows {rows.min()} to {rows.max()}, but there are {n}")


def slice_drifts(
    x: Floats, noise: Floats, kept: Floats, slices: Mapping[str, Rows], least_slice: int
) -> tuple[SliceDrift, ...]:
    """In the order given; without those that the reference has only one vector for, which have no spread.

    noise: (N,) squared lengths, kept: (N,) overlaps at 10
    """
    parts = []
    for name, rows in slices.items():
        if len(rows) < 2 or 1 - background(x[rows]) < ALIKE:
            continue
        noise_of_slice = sqnr_of(noise[rows] / spread(x[rows]))
        enough = len(rows) >= least_slice
        parts.append(SliceDrift(name, len(rows), enough, noise_of_slice, bootstrap(kept[rows])))
    return tuple(parts)
