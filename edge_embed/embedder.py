"""Embedder: texts in, vectors out. Knows the order of the steps; each step lives in a module of its own."""

import json
import logging
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from edge_embed import (
    batching,
    calibration,
    canary,
    cards,
    ir,
    output_ranges,
    prepare,
    profile,
    store,
    vectors,
)
from edge_embed.errors import InputError, ModelError, NumericsError
from edge_embed.hardware import machine
from edge_embed.manifest import Manifest, read_manifest
from edge_embed.plan import Plan, make_plan, rungs, verdict_on_record
from edge_embed.profile import Profile
from edge_embed.record import check_json_files, read_record
from edge_embed.runtime import Runtime, check_device, check_finite
from edge_embed.tokenization import Tokenizer, Tokens

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

# Texts that are tokenized, sorted and embedded together. Larger sorts better, smaller starts sooner.
WINDOW = 2048

# What encode_document looks for among the prompts, in sentence-transformers' order.
DOCUMENT_PROMPTS = ("document", "passage", "corpus")

OVERFLOWS = ("truncate", "error")

# Output precisions that spread their codes between stored ranges.
INT8_PRECISIONS = ("int8", "uint8")


class EncodeOptions(TypedDict, total=False):
    """What `encode` takes and explains, for the methods that hand it on."""

    prompt_name: str | None
    prompt: str | None
    batch_size: int | None
    precision: str
    truncate_dim: int | None
    normalize_embeddings: bool | None
    on_overflow: str


class Embedder:
    """A text-embedding model on this machine's CPU (or another OpenVINO device).

    Thread-safe: many threads may call one Embedder. It opens no socket; `edge-embed pull` downloads.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        compute_type: str = "auto",
        device: str = "CPU",
        truncate_dim: int | None = None,
        max_tokens: int | None = None,
        threads: int | None = None,
        streams: int | None = None,
        cache_dir: str | Path | Literal[False] | None = None,
    ) -> None:
        """Load a model.

        model         a folder in hub layout, a pulled name of models/, or a hub id in the local hub cache
        compute_type  auto | float32 | bfloat16 | int8_weights | int8_dynamic | int8
        device        as OpenVINO names them: CPU, GPU, GPU.1, NPU, AUTO
        truncate_dim  keep the first so many dimensions (Matryoshka), re-normalised
        max_tokens    a limit below the model's own
        threads       inference threads; None: one per physical core that affinity and CPU quota allow
        streams       inferences at once, sharing the threads; None: one, and more in calls of many texts
        cache_dir     folder of compiled blobs; None: the user's cache folder, where it pays; False: no cache
        Errors: ModelNotFoundError, ModelError, InputError, DeviceError; each one line that says what to do.
        """
        self.folder: Path = store.resolve(model)
        record = read_record(self.folder)
        check_json_files(self.folder, record)
        self.manifest: Manifest = read_manifest(self.folder)
        self.max_tokens = self._limit(max_tokens)
        self.prompts: Mapping[str, str] = dict(self.manifest.prompts)
        card = cards.card(str(model)) or cards.card(record.get("name", ""))
        self.truncate_dims: tuple[int, ...] = card.truncate_dims if card else ()
        self._truncate_dim = self._check_dim(
            self.manifest.truncate_dim if truncate_dim is None else truncate_dim
        )
        if self.manifest.similarity not in vectors.SIMILARITIES:
            raise ModelError(
                f"{self.folder} asks for the similarity {self.manifest.similarity!r}, which is not known"
            )

        cache = store.home() / "compiled" if cache_dir is None else Path(cache_dir) if cache_dir else None
        plan = self._planned(
            max_tokens=self.max_tokens,
            compute_type=compute_type,
            device=device,
            threads=threads,
            streams=streams,
            cache=cache,
            cache_asked=bool(cache_dir),
        )
        # A large tokenizer takes a second to parse and releases the GIL, as compiling does: side by side.
        with ThreadPoolExecutor(1, "edge-embed-tokenizer") as side:
            tokenizer = side.submit(
                Tokenizer, self.folder, max_tokens=self.max_tokens, lower_case=self.manifest.lower_case
            )
            facts = prepare.read_facts(self.folder, self.manifest)
            self.plan: Plan = prepare.prepare(plan, facts, spare=store.home() / "prepared")
            self._runtime = start(self.plan, facts)
            self._tokenizer = tokenizer.result()
        self._tokenizer.check_fits(self.manifest.vocabulary)
        self._rungs = rungs(self.plan, self.max_tokens)
        self._most_rows = 1 if self.plan.static_lengths else batching.ROWS[-1]
        self._ranges: dict[int, vectors.Ranges] = {}
        self._ranges_lock = threading.Lock()

    @property
    def dim(self) -> int:
        """Width of the vectors that `encode` returns by default."""
        return self._truncate_dim or self.manifest.dim

    def effective(self, name: str) -> str | None:
        """A property of the plan as OpenVINO reports it after compiling; None where it does not tell."""
        try:
            return self._runtime.effective(name)
        except RuntimeError:
            return None

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: str = "float32",
        truncate_dim: int | None = None,
        normalize_embeddings: bool | None = None,
        on_overflow: str = "truncate",
    ) -> NDArray[Any]:
        """Embed texts; a single str gives (D,), anything iterable gives (N, D), nothing gives (0, D).

        prompt_name           one of `prompts`, put before every text; `prompt` is such a text, and wins
        batch_size            at most so many texts a batch; None: by token budget (`plan.token_budget`)
        show_progress_bar     None: when this package's logger is at INFO or below
        precision             float32 | int8 | uint8 (D codes by stored ranges) | binary | ubinary (D/8 bytes)
        truncate_dim          keep the first so many dimensions
        normalize_embeddings  None: unit rows if the model normalises, also after truncation; True: unit rows;
                              False: what the model's own modules give, truncated without re-normalisation
        on_overflow           truncate (one warning with counts) or error, for texts over `max_tokens`
        Errors: InputError names the index of an item that is not a str, NumericsError that of a text whose
        vector is NaN, Inf or zero.
        """
        options = self._options(
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            precision=precision,
            truncate_dim=truncate_dim,
            normalize_embeddings=normalize_embeddings,
            on_overflow=on_overflow,
        )
        items = as_texts(texts)
        ranges = self._output_ranges(options, show_progress_bar)
        overflow = Overflow(self.max_tokens, refuse=options.on_overflow == "error")
        with progress_bar(len(items), show_progress_bar) as bar:
            rows = self._embed(items, options, overflow, bar)
        overflow.warn()
        out = in_precision(rows, options.precision, ranges)
        return out[0] if is_single(texts) else out

    def encode_query(
        self,
        texts: str | Iterable[str],
        *,
        show_progress_bar: bool | None = None,
        **options: Unpack[EncodeOptions],
    ) -> NDArray[Any]:
        """`encode` with the model's prompt for queries, if it has one."""
        options = self._with_prompt(("query",), options)
        return self.encode(texts, show_progress_bar=show_progress_bar, **options)

    def encode_document(
        self,
        texts: str | Iterable[str],
        *,
        show_progress_bar: bool | None = None,
        **options: Unpack[EncodeOptions],
    ) -> NDArray[Any]:
        """`encode` with the model's prompt for documents, passages or a corpus, the first that it has."""
        options = self._with_prompt(DOCUMENT_PROMPTS, options)
        return self.encode(texts, show_progress_bar=show_progress_bar, **options)

    def encode_iter(
        self,
        texts: Iterable[str],
        *,
        show_progress_bar: bool | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Iterator[NDArray[Any]]:
        """Rows in input order for any number of texts; holds about two thousand of them at a time.

        Takes the options of `encode`. Errors name the index within the whole input.
        """
        if is_single(texts):
            raise InputError("encode_iter takes an iterable of texts, not a single str; use encode")
        check_iterable(texts)
        return self._rows(iter(texts), self._options(**options), show_progress_bar)

    def similarity(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
        """The model's similarity, cosine for all Granite models: (N, D), (M, D) float -> (N, M) float32."""
        return vectors.SIMILARITIES[self.manifest.similarity](a, b)

    def _rows(
        self, texts: Iterator[str], options: "Options", show_progress_bar: bool | None
    ) -> Iterator[NDArray[Any]]:
        """What encode_iter returns: one window of texts after another."""
        ranges = self._output_ranges(options, show_progress_bar)
        overflow = Overflow(self.max_tokens, refuse=options.on_overflow == "error")
        done = 0
        with progress_bar(None, show_progress_bar) as bar:
            try:
                for window in batching.windows(texts, WINDOW):
                    check_texts(window, first=done)
                    rows = self._embed(window, options, overflow, bar, before=done)
                    for row in in_precision(rows, options.precision, ranges):
                        yield row.copy()  # a view would keep all rows of its window alive
                    done += len(window)
            finally:  # also when the caller has seen enough
                overflow.warn()

    def _embed(
        self,
        items: list[str],
        options: "Options",
        overflow: "Overflow",
        bar: "tqdm[Any]",
        before: int = 0,
    ) -> NDArray[np.float32]:
        """(N, k) rows of texts; each distinct text is embedded once, its row written wherever it belongs.

        before  how many texts of the same input came earlier, so that errors name the right index
        """
        numbers: dict[str, int] = {}
        inverse = np.array([numbers.setdefault(text, len(numbers)) for text in items], np.int64)
        unique = list(numbers)
        _, first, repeats = np.unique(inverse, return_index=True, return_counts=True)
        rows = np.empty((len(unique), options.dim), np.float32)
        # `closing`: a request in flight goes back to the pool now, not when the traceback is forgotten.
        with closing(self._tokenized(unique, options.prompt)) as windows:
            for start, tokens in windows:
                window = slice(start, start + len(tokens.ids))
                overflow.add(tokens.lengths, repeats[window], before + first[window])
                count, work = int(repeats[window].sum()), max(1, int(tokens.lengths.sum()))
                done = shown = 0
                with closing(self._pooled(tokens, options.batch_size)) as batches:
                    for places, pooled in batches:
                        numbered = before + first[start + places]
                        rows[start + places] = self._finish(pooled, options, numbered)
                        # Longest first: a bar of texts would crawl, then race. It shows shares of tokens.
                        done += int(tokens.lengths[places].sum())
                        bar.update(count * done // work - shown)
                        shown = count * done // work
        return rows if len(unique) == len(items) else rows[inverse]

    def _tokenized(self, texts: list[str], prompt: str) -> Generator[tuple[int, Tokens], None, None]:
        """(start, tokens) of each window; the next one is tokenized while the caller works on this one."""
        starts = range(0, len(texts), WINDOW)
        if len(starts) < 2:
            if texts:
                yield 0, self._tokenizer.encode(texts, prompt)
            return
        with ThreadPoolExecutor(1, "edge-embed-tokenizer") as side:
            pending = side.submit(self._tokenizer.encode, texts[:WINDOW], prompt)
            for start in starts:
                tokens = pending.result()
                following = texts[start + WINDOW : start + 2 * WINDOW]
                if following:
                    pending = side.submit(self._tokenizer.encode, following, prompt)
                yield start, tokens

    def _pooled(
        self, tokens: Tokens, batch_size: int | None
    ) -> Generator[tuple[NDArray[np.int64], NDArray[np.float32]], None, None]:
        """(places in the window, (B, D) rows as the graph gives them) of each batch."""
        batches = batching.plan_batches(
            np.minimum(tokens.lengths, self.max_tokens),
            self._rungs,
            token_budget=self.plan.token_budget if batch_size is None else sys.maxsize,
            max_rows=min(batch_size or self._most_rows, self._most_rows),
        )
        pad_id = self.manifest.pad_id
        padded = (
            (batch.rows, *batching.pad([tokens.ids[i] for i in batch.rows], batch.tokens, pad_id))
            for batch in batches
        )
        yield from self._runtime.run_many(padded, count=len(batches))

    def _finish(
        self, pooled: NDArray[np.float32], options: "Options", numbers: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(B, D) rows of the texts with these numbers, checked, cut and normalised: (B, k)."""
        if (bad := check_finite(pooled)) is not None:
            raise self._broken(f"text {numbers[bad]}")
        pooled = pooled[:, : options.dim]
        return vectors.l2_normalize(pooled) if options.normalize else pooled

    def _broken(self, text: str) -> NumericsError:
        """What to raise for a vector that is NaN, Inf or zero."""
        return NumericsError(
            f"{text} gave a vector that is NaN, Inf or zero; the weights of {self.plan.file} are damaged or "
            f"overflow in {self.plan.compute_type}"
        )

    def _output_ranges(self, options: "Options", show_progress_bar: bool | None) -> vectors.Ranges | None:
        """Ranges for int8 output: measured once per width on the calibration texts, kept in the folder.

        They do not depend on the texts of a call, so a query and an index made on different days agree.
        """
        if options.precision not in INT8_PRECISIONS:
            return None
        dim = options.dim
        with self._ranges_lock:
            if dim not in self._ranges:
                ranges = output_ranges.read_ranges(self.folder, dim)
                if ranges is None:
                    ranges = self._measure_ranges(options, show_progress_bar)
                    output_ranges.keep_ranges(self.folder, dim, ranges)
                self._ranges[dim] = ranges
            return self._ranges[dim]

    def _measure_ranges(self, options: "Options", show_progress_bar: bool | None) -> vectors.Ranges:
        logger.info("measuring the ranges of int8 output on the calibration texts, once")
        texts = calibration.texts()
        plain = replace(options, prompt="", batch_size=None)
        with progress_bar(len(texts), show_progress_bar, "Measuring int8 ranges") as bar:
            rows = self._embed(texts, plain, Overflow(self.max_tokens, refuse=False), bar)
        return vectors.measure_ranges(rows)

    def _planned(self, **wishes: Any) -> Plan:
        """The plan for the wishes of `make_plan`, before its passes are decided."""
        return plan_here(self.folder, kept_profile(self.folder, wishes["device"])[0], **wishes)

    def _limit(self, wish: int | None) -> int:
        own = self.manifest.max_tokens
        if wish is None:
            return own
        if not 1 <= wish <= own:
            source = min(self.manifest.limits, key=lambda name: self.manifest.limits[name])
            raise InputError(f"max_tokens {wish} is not within 1 to {own} ({source})")
        return wish

    def _check_dim(self, wish: int | None) -> int | None:
        """Refuse a width that the model was not trained for, where its card says which ones it was."""
        if wish is None:
            return None
        if self.truncate_dims and wish not in self.truncate_dims:
            allowed = ", ".join(map(str, self.truncate_dims))
            raise InputError(f"truncate_dim {wish} is not one that this model was trained for: {allowed}")
        if not 1 <= wish <= self.manifest.dim:
            raise InputError(f"truncate_dim {wish} is not within 1 to {self.manifest.dim}")
        return wish

    def _options(
        self,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        precision: str = "float32",
        truncate_dim: int | None = None,
        normalize_embeddings: bool | None = None,
        on_overflow: str = "truncate",
    ) -> "Options":
        """Check the options of one call, and resolve what they leave open."""
        if precision not in vectors.PRECISIONS:
            raise InputError(f"precision is {precision!r}; known: {', '.join(vectors.PRECISIONS)}")
        if on_overflow not in OVERFLOWS:
            raise InputError(f"on_overflow is {on_overflow!r}; known: {', '.join(OVERFLOWS)}")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1")
        dim = self._check_dim(truncate_dim) or self.dim
        unit = self.manifest.normalize if normalize_embeddings is None else normalize_embeddings
        shortened = dim < self.manifest.dim
        if precision in INT8_PRECISIONS and not (unit or (self.manifest.normalize and not shortened)):
            raise InputError(f"precision {precision} needs unit vectors; pass normalize_embeddings=True")
        return Options(
            prompt=self._prompt(prompt_name, prompt),
            batch_size=batch_size,
            precision=precision,
            dim=dim,
            # The graph has normalised already where the model says so; only a cut makes it needed again.
            normalize=unit and (shortened or not self.manifest.normalize),
            on_overflow=on_overflow,
        )

    def _with_prompt(self, names: Sequence[str], options: EncodeOptions) -> EncodeOptions:
        """The options with the first of these prompts that the model has, unless the caller chose one."""
        if options.get("prompt_name") is None and options.get("prompt") is None:
            options["prompt_name"] = next((name for name in names if name in self.prompts), None)
        return options

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            if name is not None:
                logger.warning("both prompt and prompt_name=%r were given; prompt is used", name)
        else:
            name = self.manifest.default_prompt_name if name is None else name
            if name is None:
                return ""
            if name not in self.prompts:
                raise InputError(f"no prompt {name!r}; this model has: {', '.join(self.prompts) or 'none'}")
            prompt = self.prompts[name]
        if prompt and not self.manifest.include_prompt:
            raise InputError(
                f"{self.folder} leaves prompt tokens out of its pooling, which is not built; pass prompt=''"
            )
        return prompt


def kept_profile(folder: Path, device: str) -> tuple[Profile | None, str]:
    """What `edge-embed tune` has kept for this machine, or None; and in a line why."""
    return profile.read(store.home(), profile_facts(folder, device))


def profile_facts(folder: Path, device: str) -> dict[str, Any]:
    """What a profile of a model folder depends on."""
    files = ir.find_files(folder)
    runnable = [*files.variants.values(), *([files.onnx] if files.onnx and not files.variants else [])]
    return profile.made_from(folder, runnable, machine(), device)


def plan_here(folder: Path, tuned: Profile | None, **wishes: Any) -> Plan:
    """The plan of a model folder on this machine, on a device that is there and with kernels that work.

    wishes  of `make_plan`
    """
    here, files = machine(), ir.find_files(folder)
    passed = verdict_on_record(read_record(folder), "int8", here) == profile.PASS
    plan = make_plan(here, files, profile=tuned, int8_passed=passed, **wishes)
    check_device(plan)
    if trouble := canary.trouble(plan, here, store.home()):
        plan = make_plan(here, files, profile=tuned, int8_passed=passed, int8_trouble=trouble, **wishes)
    return plan


def start(plan: Plan, facts: prepare.Facts) -> Runtime:
    """The compiled model of a prepared plan."""
    return Runtime(
        plan,
        lambda model, form: prepare.graph(plan, facts, model, form),
        json.dumps([prepare.made_from(plan, facts), facts.manifest.normalize]),
    )


@dataclass(frozen=True, slots=True)
class Options:
    """One call's options, checked and resolved."""

    prompt: str
    batch_size: int | None
    precision: str
    dim: int  # k, the width of the result before any packing of bits
    normalize: bool  # L2-normalise outside the graph
    on_overflow: str


class Overflow:
    """Counts the texts of one call that are over the limit, for one warning at its end; or refuses them."""

    def __init__(self, limit: int, *, refuse: bool) -> None:
        self.limit, self.refuse = limit, refuse
        self.texts = self.cut = self.longest = 0

    def add(self, lengths: NDArray[np.int64], repeats: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Distinct texts: their tokens, how often each occurs, and the index of its first occurrence."""
        over = lengths > self.limit
        if self.refuse and over.any():
            at = int(over.argmax())
            raise InputError(
                f"text {numbers[at]} has {lengths[at]} tokens or more, over the limit of {self.limit}; "
                "shorten it or pass on_overflow='truncate'"
            )
        self.texts += int(repeats.sum())
        self.cut += int(repeats[over].sum())
        self.longest = max(self.longest, int(lengths.max()))

    def warn(self) -> None:
        """Log what was cut, if anything was."""
        if self.cut:
            logger.warning(
                "%d of %d texts were cut to the limit of %d tokens; the longest has %d or more",
                self.cut,
                self.texts,
                self.limit,
                self.longest,
            )


def in_precision(rows: NDArray[np.float32], precision: str, ranges: vectors.Ranges | None) -> vectors.Output:
    """Finished rows as `precision` asks for; float32 ones as they are, they were checked batch by batch."""
    return rows if precision == "float32" else vectors.quantize(rows, precision, ranges)


def is_single(texts: object) -> bool:
    """Whether this is one text: a str, or a numpy array without axes, which may hold one."""
    return isinstance(texts, str) or (isinstance(texts, np.ndarray) and texts.ndim == 0)


def as_texts(texts: str | Iterable[str]) -> list[str]:
    """One text, or any iterable of str, as a list: tuple, generator, numpy array of str, pandas Series."""
    if isinstance(texts, np.ndarray) and texts.ndim == 0:
        texts = texts.item()
    if isinstance(texts, str):
        return [texts]
    check_iterable(texts)
    items = list(texts)
    check_texts(items)
    return items


def check_iterable(texts: object) -> None:
    """Refuse what holds no texts, and what would silently give others: keys, column names, bytes."""
    if isinstance(texts, Mapping | bytes) or not isinstance(texts, Iterable):
        raise InputError(f"texts must be a str or an iterable of str, not {type(texts).__name__}")
    axes = getattr(texts, "ndim", 1)
    if axes != 1:
        raise InputError(f"texts must be one column, not a {type(texts).__name__} of {axes} axes")


def check_texts(items: list[str], first: int = 0) -> None:
    """Refuse the first item that is not a str, by its index."""
    for i, item in enumerate(items, first):
        if not isinstance(item, str):
            raise InputError(f"item {i} is {type(item).__name__}, not str")


def progress_bar(total: int | None, wish: bool | None, title: str = "Embedding") -> "tqdm[Any]":
    """A bar over texts on stderr; `wish` None means as the package's log level says."""
    from tqdm import tqdm

    if wish is None:
        wish = logging.getLogger("edge_embed").getEffectiveLevel() <= logging.INFO
    return tqdm(total=total, desc=title, unit="text", smoothing=0.05, disable=not wish)
