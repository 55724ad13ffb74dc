"""Tries recipes for static INT8 on one model and one machine, and says which ones are worth having.

    stock, then by turns: outlier channels -> SmoothQuant -> range estimator -> linears left to weights alone

Each turn starts from the best of the turn before. Recipes are chosen on texts that none of them was
calibrated on, and that are not those of calibration/evaluation: the winner can be confirmed there. Knows
recipes and how to compare them; how one is carried out is `quantize`'s.

NNCF's quantize_with_accuracy_control is not used. It ranks layers by how little they matter where it is given
vectors to compare, and gives a reverted layer the weights of before SmoothQuant, behind the scales that
SmoothQuant put there; both were run with NNCF 3.4. It also knows one number, where this is a trade of drift
against speed.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import calibration, ir
from edge_embed.calibration import Text
from edge_embed.drift import locate
from edge_embed.drift.measure import LEAST_TEXTS
from edge_embed.drift.metrics import Interval, overlap, sqnr_interval
from edge_embed.drift.record import prompt_of
from edge_embed.embedder import Embedder
from edge_embed.errors import InputError
from edge_embed.graph import linears, ops
from edge_embed.hardware import machine
from edge_embed.manifest import read_manifest
from edge_embed.quantize import OFF, Recipe, find_source, own_texts, quantize_all, read_source
from edge_embed.record import RECORD, write_record
from edge_embed.tokenization import Tokenizer

if TYPE_CHECKING:
    from openvino import Model

# (outlier_channels, outlier_ratio), from the cheapest.
CHANNELS = ((0, 0.0), (8, 5.0), (8, 3.0), (8, 0.0), (32, 0.0))
ALPHAS = (OFF, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
ESTIMATORS = ("mean_minmax", "minmax", "median_minmax", "mean_no_outliers_minmax")
WEIGHT_ONLY = (1, 2, 4, 8)  # so many of the worst linears

HELD_OUT = 4  # one of so many calibration texts is not calibrated on, but chosen by
LEAST_SPEED = 0.9  # of stock
ROUNDS = 3  # timings of a recipe, each beside one of stock
RANKED_ON = 40  # texts for the noise of one linear alone; it is not large against its spread over linears

LEFT_BEHIND = ("*.safetensors", "*.bin", "*.xml", "*.onnx", "*.onnx_data", "*.pt", RECORD)


@dataclass(frozen=True, slots=True)
class Row:
    """One recipe, measured on held-out texts."""

    recipe: Recipe
    sqnr: Interval  # dB, centred, from the float32 IR
    overlap_10: float
    tokens_per_second: float
    speed: float  # of stock: the median over rounds
    bytes: int  # of the .bin
    pareto: bool = False  # no other is at least as good in all of these and better in one


@dataclass(frozen=True, slots=True)
class Sweep:
    """What came out."""

    rows: tuple[Row, ...]  # the first is stock
    chosen: Recipe
    texts: int  # calibrated on
    held_out: int  # compared on
    least_speed: float


def sweep(
    folder: Path,
    *,
    texts_file: Path | None = None,
    allow_few: bool = False,
    start: Recipe | None = None,
    least_speed: float = LEAST_SPEED,
    show_progress_bar: bool = False,
) -> Sweep:
    """Try recipes for the float32 IR of a model folder; nothing in it is changed.

    texts_file   own calibration texts, a quarter of which is held out; None: the built-in ones
    start        where the search begins, and what keeps its scope, seed and subset; None: the defaults
    least_speed  tokens/s against stock that a chosen recipe has at least
    Errors: those of `quantize`; InputError for few texts, and on a CPU that would not run static INT8.
    """
    from tqdm import tqdm

    if not machine().has_int8_dot:
        raise InputError(
            "this CPU has no INT8 dot products, and so would run none of the recipes as they are; "
            "search on one with VNNI or AMX"
        )
    start = Recipe() if start is None else start
    manifest = read_manifest(folder)
    tokenizer = Tokenizer(folder, max_tokens=manifest.max_tokens, lower_case=manifest.lower_case)
    tokenizer.check_fits(manifest.vocabulary)
    used, held_out = split_texts(texts_file, tokenizer, start, allow_few)
    if len(held_out) < LEAST_TEXTS:
        raise InputError(
            f"{len(used) + len(held_out)} texts leave {len(held_out)} to choose recipes by, and "
            f"{LEAST_TEXTS} are needed; give at least {HELD_OUT * LEAST_TEXTS}"
        )
    rows = tokenizer.encode(used).ids
    tokens = sum(map(len, tokenizer.encode(held_out).ids))
    with (
        tempfile.TemporaryDirectory(prefix="edge-embed-search-") as work,
        tqdm(desc="Searching", unit="recipe", disable=not show_progress_bar) as bar,
    ):
        trials = Trials(folder, Path(work), rows, held_out, tokens, least_speed, bar)
        # What NNCF does when it is told the model type.
        trials.try_all([replace(start, smooth_quant_alpha=0.95, outlier_channels=0)])
        trials.try_all([replace(start, outlier_channels=k, outlier_ratio=ratio) for k, ratio in CHANNELS])
        trials.try_all([replace(trials.best().recipe, smooth_quant_alpha=alpha) for alpha in ALPHAS])
        trials.try_all([replace(trials.best().recipe, range_estimator=name) for name in ESTIMATORS])
        trials.try_weight_only(WEIGHT_ONLY)
        chosen = trials.best().recipe
        return Sweep(marked(trials.rows), chosen, len(used), len(held_out), least_speed)


def split_texts(
    file: Path | None, tokenizer: Tokenizer, recipe: Recipe, allow_few: bool
) -> tuple[list[str], list[str]]:
    """Texts to calibrate on and texts to choose by; no ladder of lengths is cut from the latter."""
    if file is not None:
        own = own_texts(file, recipe, allow_few)
        return [text for i, text in enumerate(own) if i % HELD_OUT], own[::HELD_OUT]
    stored = calibration.builtin()
    used = [text for i, text in enumerate(stored) if i % HELD_OUT]

    def count(text: str) -> int:
        return int(tokenizer.encode([text]).lengths[0])

    steps: list[Text] = calibration.ladder(used, count, tokenizer.max_tokens)
    mixed = calibration.interleaved(used, steps)[: recipe.subset_size]
    return [text.text for text in mixed], [text.text for text in stored[::HELD_OUT]]


class Trials:
    """Carries recipes out in a folder of its own, and keeps what was measured."""

    def __init__(
        self,
        folder: Path,
        work: Path,
        rows: Sequence[NDArray[np.int64]],
        texts: Sequence[str],
        tokens: int,
        least_speed: float,
        bar: Any,
    ) -> None:
        self.rows: list[Row] = []
        self._folder, self._work, self._texts = folder, work, texts
        self._samples, self._least_speed, self._bar = rows, least_speed, bar
        self._stock: Embedder | None = None
        float32 = Embedder(folder, compute_type="float32", cache_dir=False)
        self._reference = float32.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        self._tokens = tokens

    def try_all(self, recipes: Iterable[Recipe]) -> None:
        """Measure those that have not been yet."""
        for recipe in recipes:
            if recipe not in [row.recipe for row in self.rows]:
                self._measure(recipe, self._quantized(recipe))

    def try_weight_only(self, counts: Sequence[int]) -> None:
        """Leave the activations of the worst linears of the best recipe alone, so many at a time."""
        recipe = self.best().recipe
        model = self._quantized(recipe)
        worst = self._ranked(model)
        for count in counts:
            names = tuple(name for group in worst[:count] for name in group)
            changed = model.clone()
            linears.leave_activations(changed, names)
            self._measure(replace(recipe, weight_only_names=(*recipe.weight_only_names, *names)), changed)

    def best(self) -> Row:
        """The least drift among those that are fast enough; stock is, by definition."""
        return max(
            (row for row in self.rows if row.speed >= self._least_speed), key=lambda row: row.sqnr.value
        )

    def _quantized(self, recipe: Recipe) -> "Model":
        model = read_source(find_source(self._folder), recipe)
        return quantize_all(model, recipe, self._samples, False)

    def _ranked(self, model: "Model") -> list[tuple[str, ...]]:
        """Linears by the noise that quantizing their activations adds alone, the most first."""
        manifest = read_manifest(self._folder)
        tokenizer = Tokenizer(self._folder, max_tokens=manifest.max_tokens, lower_case=manifest.lower_case)
        ids = tokenizer.encode(self._texts[:RANKED_ON], prompt_of(manifest)).ids
        return locate.rank_activations(model, manifest, ids)

    def _load(self, name: str, model: "Model") -> Embedder:
        """A model in a folder of its own, without what only `quantize` needs."""
        folder = self._work / name
        if not folder.exists():
            shutil.copytree(self._folder, folder, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
            write_record(folder, {})  # ours, so that what is found out about it is kept in it
        ops.number_names(model)
        ir.write(model, folder / "openvino" / ir.VARIANTS["int8"])
        return Embedder(folder, compute_type="int8", cache_dir=False)

    def _measure(self, recipe: Recipe, model: "Model") -> None:
        embedder = self._load("recipe" if self._stock else "stock", model)
        self._stock = self._stock or embedder
        found = embedder.encode(self._texts, normalize_embeddings=True, show_progress_bar=False)
        seconds, speeds = [], []
        for _ in range(ROUNDS):
            before, now = (self._seconds(side) for side in (self._stock, embedder))
            seconds.append(now)
            speeds.append(before / now)
        weights = embedder.plan.file.with_suffix(".bin").stat().st_size
        row = Row(
            recipe,
            sqnr_interval(self._reference, found),
            float(overlap(self._reference, found).mean()),
            self._tokens / statistics.median(seconds),
            1.0 if embedder is self._stock else statistics.median(speeds),
            weights,
        )
        self.rows.append(row)
        self._bar.update()
        self._bar.set_postfix_str(f"best {self.best().sqnr.value:.1f} dB")

    def _seconds(self, embedder: Embedder) -> float:
        began = time.perf_counter()
        embedder.encode(self._texts, show_progress_bar=False)
        return time.perf_counter() - began


def marked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with `pareto` filled in."""

    def worth(row: Row) -> tuple[float, ...]:
        return row.sqnr.value, row.overlap_10, row.speed, -row.bytes

    def beaten(row: Row) -> bool:
        mine = worth(row)
        return any(
            theirs != mine and all(a >= b for a, b in zip(theirs, mine, strict=True))
            for theirs in map(worth, rows)
        )

    return tuple(replace(row, pareto=not beaten(row)) for row in rows)


def as_table(found: Sweep) -> list[str]:
    """The rows that are worth having, for people: what differs from stock, and what that gives."""
    lines = [f"{'SQNR dB':>22} {'top 10':>7} {'speed':>6} {'tokens/s':>9} {'MB':>7}  recipe"]
    for row in found.rows:
        if not (row.pareto or row.recipe == found.chosen or row is found.rows[0]):
            continue
        sqnr = f"{row.sqnr.value:.2f} ({row.sqnr.low:.2f}-{row.sqnr.high:.2f})"
        mark = "stock " if row is found.rows[0] else "chosen " if row.recipe == found.chosen else ""
        lines.append(
            f"{sqnr:>22} {row.overlap_10:>7.3f} {row.speed:>6.2f} {row.tokens_per_second:>9,.0f} "
            f"{row.bytes / 1e6:>7.1f}  {mark}{in_words(row.recipe)}"
        )
    return lines


def in_words(recipe: Recipe) -> str:
    """What a recipe does, in a few words."""
    alpha = "no SmoothQuant" if recipe.smooth_quant_alpha == OFF else f"alpha {recipe.smooth_quant_alpha:g}"
    parts = [alpha, recipe.range_estimator]
    if recipe.outlier_channels:
        above = f" above {recipe.outlier_ratio:g} medians" if recipe.outlier_ratio else ""
        parts.append(f"{recipe.outlier_channels} outlier channels{above}")
    if recipe.weight_only_names:
        parts.append(f"{len(recipe.weight_only_names)} linears by weights alone")
    return ", ".join(parts)


def to_dict(found: Sweep) -> dict[str, Any]:
    """A sweep as JSON values, with the machine that it holds for."""
    return asdict(found) | {"machine": machine().to_dict()}
