"""Times the compute types of a model on this machine, with their settings and drift, and keeps the profile.

Speeds are ratios: a compute type and the first one run the same batches in alternating rounds, so that what
else the machine does hits both. Knows models, batches and time; what `auto` makes of it is for `plan` to say.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import batching, ir, prepare, profile, store
from edge_embed.calibration import Text
from edge_embed.drift import gate, measure
from edge_embed.embedder import plan_here, profile_facts, start
from edge_embed.errors import InputError, ModelNotFoundError, NumericsError, ShapeError
from edge_embed.graph.passes import BLOCK
from edge_embed.hardware import Machine, machine
from edge_embed.manifest import Manifest, read_manifest
from edge_embed.plan import (
    COMPUTE_TYPES,
    DRIFT,
    STREAMS,
    TOKEN_BUDGET,
    Plan,
    device_kind,
    fits,
    rungs,
    verdict_on_record,
)
from edge_embed.profile import Profile, Tuned
from edge_embed.record import read_record
from edge_embed.runtime import Runtime
from edge_embed.tokenization import Tokenizer

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS = 60.0
LEAST_SECONDS = 1.0

# Shares of the time: speeds, then drift; settings have the rest.
FOR_SPEED, FOR_DRIFT = 0.3, 0.25

LEAST_ROUNDS, MOST_ROUNDS = 3, 9
WARM_UP = 8  # texts

# Texts: as many as the time allows, between these. Fewer do not fill batches; drift needs neighbours.
TO_TIME = (16, 256)
TO_TIME_SETTINGS = (48, 512)
TO_COMPARE = (48, 400)

# Floors that a sample is judged by. Other floors are for all texts: fewer have other percentiles and ranks.
JUDGED = frozenset({"sqnr", "overlap_10", "overlap_10_asymmetric"})

# A setting other than the usual one must be faster by this, or noise would choose it.
WORTH_IT = 1.03

BUDGETS = (256, 512, 1024)

# Tokens at which the two forms of a model with local attention are compared, with ids of any kind.
LENGTHS = (256, 384, 512, 768, 1024)


@dataclass(frozen=True, slots=True)
class Work:
    """Tokenized texts that every entrant embeds."""

    ids: list[NDArray[np.int64]]
    lengths: NDArray[np.int64]  # (N,)
    max_tokens: int  # of the model
    pad_id: int

    def first(self, count: int) -> "Work":
        """The same with at most `count` texts."""
        return replace(self, ids=self.ids[:count], lengths=self.lengths[:count])


@dataclass(slots=True)
class Clock:
    """The time that is left, for us and on a progress bar in seconds."""

    seconds: float
    bar: "tqdm[Any]"
    began: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def share(self, end: float) -> float:
        """Seconds until this share of the time, from the beginning, is over; 0 when it is."""
        return max(0.0, end * self.seconds - self.elapsed)

    def half(self, until: float) -> float:
        """The middle of now and then: what comes next is left the other half."""
        return self.elapsed + max(0.0, until - self.elapsed) / 2

    def tick(self, doing: str = "") -> None:
        """Move the bar on."""
        if doing:
            self.bar.set_description(f"Tuning, {doing}", refresh=False)
        self.bar.update(min(self.elapsed, self.seconds) - self.bar.n)


@dataclass(frozen=True, slots=True)
class Speed:
    """How many times as fast as the first entrant, and how far rounds are apart."""

    ratio: float
    spread: float  # interquartile range over the median


@dataclass(frozen=True, slots=True)
class Model:
    """The model under test."""

    folder: Path
    device: str
    manifest: Manifest
    facts: prepare.Facts

    def load(self, compute_type: str, *, threads: int | None = None, streams: int = 1) -> "Loaded":
        """A compute type by its plan without a profile, compiled; no blob is kept of what is only tried."""
        plan = plan_here(
            self.folder,
            None,
            max_tokens=self.manifest.max_tokens,
            compute_type=compute_type,
            device=self.device,
            threads=threads,
            streams=streams,
        )
        return self.start(prepare.prepare(plan, self.facts, spare=store.home() / "prepared"))

    def start(self, plan: Plan) -> "Loaded":
        """A prepared plan, compiled."""
        return Loaded(plan, start(plan, self.facts))


@dataclass(frozen=True, slots=True)
class Loaded:
    """One plan, ready to run."""

    plan: Plan
    runtime: Runtime

    def embed(self, work: Work, token_budget: int = TOKEN_BUDGET) -> None:
        """Batch and run, as the Embedder does, and forget the vectors."""
        batches = batching.plan_batches(
            work.lengths,
            rungs(self.plan, work.max_tokens),
            token_budget=token_budget,
            max_rows=1 if self.plan.static_lengths else batching.ROWS[-1],
        )
        padded = (batching.pad([work.ids[i] for i in b.rows], b.tokens, work.pad_id) for b in batches)
        self.run(padded)

    def run(self, batches: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> None:
        """Run (B, T) ids and masks on all streams."""
        for _ in self.runtime.run_many((None, ids, mask) for ids, mask in batches):
            pass


def tune(
    folder: Path,
    *,
    seconds: float = SECONDS,
    compute_types: Sequence[str] = (),
    device: str = "CPU",
    show_progress_bar: bool = False,
) -> Profile:
    """Measure and keep; the former profile stays until that is done.

    seconds        about how long it may take; a large model on a slow machine takes longer for the least that
                   a comparison needs
    compute_types  which, float32 besides; none: all that the folder's files and the CPU allow
    Errors: InputError, ModelError, DeviceError, OutputError, each of one line.
    """
    from tqdm import tqdm

    if not LEAST_SECONDS <= seconds < math.inf:
        raise InputError(f"seconds is {seconds:g}; it must be at least {LEAST_SECONDS:g}")
    here, files = machine(), ir.find_files(folder)
    names = candidates(here, files, compute_types, device)
    manifest = read_manifest(folder)
    facts = profile_facts(folder, device)  # before: files that change meanwhile make it stale
    model = Model(folder, device, manifest, prepare.read_facts(folder, manifest))
    shape = "{desc} |{bar}| {n:.0f} of about {total:.0f} s"
    with tqdm(total=seconds, bar_format=shape, disable=not show_progress_bar) as bar:
        found = measured(model, names, here, Clock(seconds, bar))
    profile.write(store.home(), facts, found)
    return found


def chosen(folder: Path, found: Profile, device: str) -> Plan:
    """The plan that `auto` makes of a profile."""
    manifest = read_manifest(folder)
    return plan_here(folder, found, max_tokens=manifest.max_tokens, device=device)


def candidates(here: Machine, files: ir.Files, wishes: Sequence[str], device: str) -> list[str]:
    """The compute types to time, with float32 where there is a file of it: drift is told against that.

    Errors: InputError for an unknown one, ModelNotFoundError for one without a file.
    """
    stored = set(files.variants) or ({"float32"} if files.onnx else set())
    if not stored:
        raise ModelNotFoundError(
            f"{files.folder} holds no OpenVINO IR and no ONNX file; run: edge-embed build {files.folder}"
        )
    for name in wishes:
        if name not in COMPUTE_TYPES:
            raise InputError(f"compute type {name!r} is unknown; known: {', '.join(COMPUTE_TYPES)}")
        if COMPUTE_TYPES[name][0] not in stored:
            raise ModelNotFoundError(
                f"{files.folder} has no file for {name}; it can be tuned for "
                f"{', '.join(n for n in COMPUTE_TYPES if COMPUTE_TYPES[n][0] in stored)}"
            )
    if wishes:
        reference = {"float32"} & stored
        return [name for name in COMPUTE_TYPES if name in wishes or name in reference]
    on_cpu = device == "CPU"
    left_out = set() if on_cpu and here.has_bf16 else {"bfloat16"}
    if on_cpu and not here.has_int8_dot:
        left_out.add("int8_dynamic")  # there it is int8_weights
    float32 = files.variants.get("float32")
    if on_cpu and float32 and len(stored) > 1 and not fits(here, float32):
        left_out |= {"float32", "bfloat16"}
    return [name for name in COMPUTE_TYPES if COMPUTE_TYPES[name][0] in stored and name not in left_out]


def measured(model: Model, names: Sequence[str], here: Machine, clock: Clock) -> Profile:
    """The profile of these compute types; what there is no time for keeps its usual setting."""
    texts, work = sample(model)
    speeds, work_rate = time_types(model, names, work, clock)
    rates = {name: work_rate * speed.ratio for name, speed in speeds.items()}
    drifts = compare(model, names, texts, rates, here, clock)
    found = {}
    left = sorted(names, key=lambda name: (name == "bfloat16", -rates[name]))  # auto never takes bfloat16
    for name in left:  # half of what time is left for each, so that it is the slow ones that go without
        until = clock.seconds if name == left[-1] else clock.half(clock.seconds)
        gain, fastest = time_settings(model, name, rates[name], work, here, clock, until)
        found[name] = Tuned(
            texts_per_second=round(rates[name] * gain, 4),
            spread=round(speeds[name].spread, 4),
            **fastest,
            **drifts[name],
        )
    clock.tick()
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
    return Profile(at, round(clock.elapsed, 1), {name: found[name] for name in names})


def sample(model: Model) -> tuple[list[Text], Work]:
    """The evaluation texts that the model need not cut, in a seeded order, any prefix of which is mixed.

    Without the long ones, which would be a matter of chance in a few: `switch_over` is for them.
    """
    manifest = model.manifest
    tokenizer = Tokenizer(model.folder, max_tokens=manifest.max_tokens, lower_case=manifest.lower_case)
    tokenizer.check_fits(manifest.vocabulary)
    texts = [text for text in measure.evaluation_texts(model.folder) if text.kind != "long"]
    tokens = tokenizer.encode([text.text for text in texts])
    order = np.random.default_rng(0).permutation(len(texts))
    order = order[tokens.lengths[order] <= manifest.max_tokens]
    ids = [tokens.ids[i] for i in order]
    work = Work(ids, tokens.lengths[order], manifest.max_tokens, manifest.pad_id)
    return [texts[i] for i in order], work


def race(entrants: Sequence[Callable[[], object]], clock: Clock, until: float) -> NDArray[np.float64]:
    """Seconds (rounds, entrants) of alternating rounds after one to warm up, while there is time."""
    for run in entrants:
        run()
    rounds: list[list[float]] = []
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and clock.elapsed < until):
        took = []
        for run in entrants:
            began = time.perf_counter()
            run()
            took.append(time.perf_counter() - began)
            clock.tick()
        rounds.append(took)
    return np.array(rounds)


def speed(seconds: NDArray[np.float64], entrant: int) -> Speed:
    """Of one entrant against the first, round by round: both had the same disturbances then."""
    ratios = seconds[:, 0] / seconds[:, entrant]
    low, middle, high = np.percentile(seconds[:, entrant], [25, 50, 75])
    return Speed(float(np.median(ratios)), float((high - low) / middle))


def texts_in(rate: float, seconds: float, limits: tuple[int, int]) -> int:
    """How many texts take about so long, within limits."""
    return int(min(max(rate * seconds, limits[0]), limits[1]))


def time_types(
    model: Model, names: Sequence[str], work: Work, clock: Clock
) -> tuple[dict[str, Speed], float]:
    """The speed of each compute type as multiple of the first's, and the texts per second of that one."""
    clock.tick(names[0])
    base = model.load(names[0])
    few = work.first(WARM_UP)
    base.embed(few)
    began = time.perf_counter()
    base.embed(few)
    rate = len(few.ids) / (time.perf_counter() - began)
    runs = 2 * max(1, len(names) - 1) * (LEAST_ROUNDS + 1)  # also of the others, taken for as fast
    part = work.first(texts_in(rate, clock.share(FOR_SPEED) / runs, TO_TIME))
    ours = partial(base.embed, part)
    found: dict[str, Speed] = {}
    took: list[NDArray[np.float64]] = []
    for i, name in enumerate(names[1:], 1):
        clock.tick(name)
        rival = model.load(name)
        until = clock.seconds * FOR_SPEED * i / (len(names) - 1)
        seconds = race([ours, partial(rival.embed, part)], clock, until)
        del rival  # before the next is loaded: two are in memory at most
        took.append(seconds)
        found[name] = speed(seconds, 1)
    if not took:
        took = [race([ours], clock, clock.seconds * FOR_SPEED)]
    first = np.concatenate([seconds[:, :1] for seconds in took])
    return {names[0]: speed(first, 0), **found}, len(part.ids) / float(np.median(first))


def compare(
    model: Model,
    names: Sequence[str],
    texts: Sequence[Text],
    rates: dict[str, float],
    here: Machine,
    clock: Clock,
) -> dict[str, dict[str, Any]]:
    """The fields of Tuned that tell drift, of each compute type, against the float32 IR on the CPU.

    What is on record, by all evaluation texts, is not measured again by a sample.
    """
    found: dict[str, dict[str, Any]] = {}
    if model.device == "CPU":
        found = on_record(read_record(model.folder), here)
        found["float32"] = {"verdict": profile.PASS}
    left = [name for name in names if name not in found]
    if "float32" not in names or not left:
        return {name: found.get(name, {"verdict": None}) for name in names}
    cost = 1 / rates["float32"] + sum(1 / rates[name] for name in left)
    part = texts[: texts_in(1 / cost, clock.share(FOR_SPEED + FOR_DRIFT), TO_COMPARE)]
    clock.tick("drift of float32")
    reference = measure.embed(model.folder, "float32", part, cache_dir=False, show_progress_bar=False)
    for name in left:
        clock.tick(f"drift of {name}")
        try:
            drift = measure.quick(
                model.folder,
                name,
                part,
                reference=reference,
                device=model.device,
                cache_dir=False,
                show_progress_bar=False,
            )
        except (NumericsError, ShapeError) as error:  # no vectors, or no texts told apart: as bad as can be
            logger.warning("%s: %s", name, error)
            found[name] = {"verdict": profile.FAIL}
            continue
        checks = gate.judge(drift, gate.floors_of(model.folder, name))
        passed = gate.passed([check for check in checks if check.id in JUDGED])
        verdict = profile.PASS if passed else profile.FAIL
        found[name] = figures(verdict, asdict(drift.sqnr), asdict(drift.overlap_10))
    return found


def figures(
    verdict: str, sqnr: Mapping[str, float], overlap_10: Mapping[str, float]
) -> dict[str, str | float]:
    """The fields of Tuned that tell drift, of intervals as JSON values."""
    return {
        "verdict": verdict,
        "sqnr": round(sqnr["value"], 2),
        "sqnr_low": round(sqnr["low"], 2),
        "sqnr_high": round(sqnr["high"], 2),
        "overlap_10": round(overlap_10["value"], 4),
    }


def on_record(record: Mapping[str, Any], here: Machine) -> dict[str, dict[str, Any]]:
    """The same fields as `edge-embed quantize` recorded them, by this OpenVINO on a CPU of this class."""
    import openvino

    found = {}
    for name in COMPUTE_TYPES:
        verdict = verdict_on_record(record, name, here)
        if verdict is None:
            continue
        entry = record[DRIFT][name]
        with contextlib.suppress(KeyError, TypeError):  # a figure is missing: it is measured
            if entry["made_by"]["openvino"] != openvino.get_version():
                continue
            found[name] = figures(verdict, entry["sqnr"], entry["overlap_10"])
    return found


def time_settings(
    model: Model, name: str, rate: float, work: Work, here: Machine, clock: Clock, until: float
) -> tuple[float, dict[str, Any]]:
    """How many times as fast as by the plan's own settings the fastest are, and those, as fields of Tuned."""
    clock.tick(f"settings of {name}")
    found: dict[str, Any] = dict.fromkeys(("threads", "streams", "token_budget", "windowed_from"))
    if clock.elapsed >= until:
        return 1.0, found
    best, gain = model.load(name), 1.0
    kind = device_kind(model.device)
    tries = settings(here) if kind == "CPU" else [(None, 2)] if kind == "GPU" else []
    runs = (LEAST_ROUNDS + 1) * (2 * len(tries) + len(BUDGETS))
    part = work.first(texts_in(rate, (until - clock.elapsed) / runs, TO_TIME_SETTINGS))
    for threads, streams in tries:
        if clock.elapsed >= until:
            break
        rival = model.load(name, threads=threads, streams=streams)
        pair = [partial(best.embed, part), partial(rival.embed, part)]
        ratio = speed(race(pair, clock, clock.half(until)), 1).ratio
        if ratio >= WORTH_IT:
            best, gain = rival, gain * ratio
        del rival, pair  # before the next is loaded
        found |= {"threads": best.plan.threads, "streams": best.plan.streams}
    plan = best.plan
    if clock.elapsed < until and not plan.static_lengths:
        budgets = (TOKEN_BUDGET, *(other for other in BUDGETS if other != TOKEN_BUDGET))
        seconds = race([partial(best.embed, part, other) for other in budgets], clock, clock.half(until))
        ratios = [speed(seconds, i).ratio for i in range(len(budgets))]
        fastest = int(np.argmax(ratios)) if max(ratios) >= WORTH_IT else 0
        found["token_budget"], gain = budgets[fastest], gain * ratios[fastest]
    del best
    found["windowed_from"] = switch_over(model, plan, clock, until)
    return gain, found


def settings(here: Machine) -> Sequence[tuple[int | None, int]]:
    """(threads, streams) to try beside one stream with a thread for each physical core.

    SMT siblings are tried where no quota forbids it; streams of fewer than two threads are not.
    """
    found = [(here.threads, streams) for streams, least in STREAMS if here.threads >= least]
    if here.quota_cores is None and here.logical_cores > here.threads:
        found += [(here.logical_cores, streams) for streams in (1, 2)]
    return found


def switch_over(model: Model, plan: Plan, clock: Clock, until: float) -> int | None:
    """Padded tokens above which windows beat masks; None where there is one form, or no time left."""
    lengths = [length for length in LENGTHS if length <= model.manifest.max_tokens]
    if plan.windowed_from is None or not lengths or clock.elapsed >= until:
        return None
    plain, windowed = (model.start(replace(plan, windowed_from=above)) for above in (None, 0))
    chosen = np.random.default_rng(0)
    low, high = 0, len(lengths)  # of `lengths`, the first at which windows are faster is from low to high
    while low < high:
        if clock.elapsed >= until:
            return None
        middle = (low + high) // 2
        shape = (max(1, TOKEN_BUDGET // lengths[middle]), lengths[middle])
        ids = chosen.integers(0, model.manifest.vocabulary or 1, shape)
        batches = [(ids, np.ones_like(ids))] * plan.streams
        pair = [partial(plain.run, batches), partial(windowed.run, batches)]
        seconds = race(pair, clock, clock.half(until))
        if speed(seconds, 1).ratio > 1:
            high = middle
        else:
            low = middle + 1
    return lengths[low - 1] if low else BLOCK
