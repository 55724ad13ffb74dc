"""The offline job: files of texts in, shards of vectors out, each row once, whatever stops it on the way.

    FOLDER/part-00000.parquet ...   ids, positions, kept columns and vectors of consecutive rows
    FOLDER/rejected.jsonl           rows that could not be embedded, each with its file, line and reason
    FOLDER/journal.jsonl            what the job is, then one line for each shard that is safely on the disk
    FOLDER/manifest.json            the job, its totals, and sha256 of every shard

A shard holds a fixed stretch of input rows, so that a job that was killed goes on after the last one in the
journal and makes the same shards that it would have made. Reading and tokenizing, inference, and writing each
have a thread. Knows the Embedder and the order of things; files are read by `readers`, written by `shards`.

What becomes of a job that is run again:

    the same model, options and input            goes on; what is complete is left as it is
    another model, compute type or option        refused, with what differs
    another list of inputs                       refused
    files of another size or time, and stdin     the rows that are done are read again and compared: where one
                                                 differs or is missing it is refused, else it goes on; so
                                                 rows that were appended since are embedded
    a file changed with its size and time kept   not noticed: nobody reads it again
    threads, streams, what to do with bad rows   may differ: they move no vector by more than 1e-6
    a shard that is missing or of another size   made again, with those that follow it
"""

import hashlib
import json
import logging
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import __version__, atomic, journal, locking, readers, shards, vectors
from edge_embed.build import side_files
from edge_embed.embedder import Embedder, Options, in_precision
from edge_embed.errors import InputError, IntegrityError, MismatchError, OutputError
from edge_embed.plan import Plan, for_many
from edge_embed.readers import Bad, Columns, Row, Source
from edge_embed.record import hash_file
from edge_embed.runtime import check_finite
from edge_embed.tokenization import Tokens

logger = logging.getLogger(__name__)

SCHEMA = 1
JOURNAL, MANIFEST, REJECTED, LOCK = "journal.jsonl", "manifest.json", "rejected.jsonl", ".lock"

JOURNAL_HEAD = b'{"schema": '

# What a job may leave in its folder, beside the four above.
SHARD = re.compile(r"part-\d{5,}\.(parquet|npy|jsonl)")
PARTIAL = re.compile(r"\.(part-\d{5,}|manifest|journal)\.[0-9a-f]{8}\.partial\.(parquet|npy|jsonl|json)")

ROWS_PER_SHARD = 8192  # sorted by length together; 25 MB of 768 float32 dimensions
CHARACTERS_PER_SHARD = 16 << 20  # and no more rows than this many characters take: memory has a limit
ON_BAD_ROW = ("reject", "stop")
ON_OVERFLOW = ("reject", "truncate")
# Properties that a resumed job may have otherwise.
FREE = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")
EXCERPT = 200  # characters of a bad row
COUNTED = 1 << 20  # bytes at a time


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked for, beside the model and where things are. Any change of it makes other shards."""

    text_column: str = "text"
    id_column: str | None = None  # None: the row's position
    keep_columns: tuple[str, ...] = ()  # of the type of their first value; text in shards before it
    prompt_name: str | None = None
    prompt: str | None = None
    truncate_dim: int | None = None
    precision: str = "float32"
    output_format: str = "parquet"  # of shards.FORMATS
    rows_per_shard: int = ROWS_PER_SHARD  # at most; long texts make it fewer
    on_overflow: str = "reject"  # a text over the model's limit is a bad row; or its start is embedded


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is; handed to whoever watches, at the beginning and after each batch and each shard."""

    rows: int  # embedded or rejected, those of earlier runs included
    total: int | None  # rows of the input; None as long as, and where, it is not known. Lines of text files
    #                    count, also blank ones, so that it may be a little too high
    resumed_at: int  # the row where this run began
    tokens: int  # of this run
    seconds: float  # of this run
    shards: int

    @property
    def tokens_per_second(self) -> float:
        """Of this run."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the pace of this run so far; None where that cannot be told."""
        fresh = self.rows - self.resumed_at
        if self.total is None or not fresh:
            return None
        return max(0, self.total - self.rows) * self.seconds / fresh


@dataclass(frozen=True, slots=True)
class Summary:
    """What a job has done when it is through."""

    folder: Path
    rows_in: int
    embedded: int
    rejected: int
    truncated: int  # embedded without their ends, which `on_overflow="truncate"` allows
    shards: int
    resumed_at: int  # the row where this run began; rows_in where there was nothing left to do
    tokens: int  # of this run
    seconds: float  # of this run
    loading_seconds: float  # of them, until the model was loaded and the job known

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"folder": str(self.folder)}


@dataclass(slots=True)
class Stretch:
    """Consecutive rows of the input that make one shard."""

    number: int
    start: int  # position of the first row
    stop: int  # and after the last
    rows: list[Row]
    bad: list[Bad]
    sha256: str  # of what the rows hold, by which a changed input is noticed
    kept_types: dict[str, str] = field(default_factory=dict)
    known_types: dict[str, str] = field(default_factory=dict)  # those that some value has decided
    truncated: int = 0
    tokens: Tokens | None = None
    vectors: NDArray[Any] | None = None

    def reject(self, reasons: Mapping[int, str]) -> None:
        """Make rows, by their place in `rows`, bad ones."""
        for i, reason in reasons.items():
            row = self.rows[i]
            self.bad.append(Bad(row.position, row.source, row.line, reason, row.text[:EXCERPT]))
        self.rows = [row for i, row in enumerate(self.rows) if i not in reasons]
        self.bad.sort(key=lambda bad: bad.position)


class Worker(Embedder):
    """An Embedder that takes texts apart from their tokens, so that one thread can run ahead of the other."""

    def _planned(self, **wishes: Any) -> Plan:
        """With the streams of many batches from the start: a job has few calls of few batches."""
        return for_many(super()._planned(**wishes))

    def options(self, job: Job) -> Options:
        """The options of a job, checked."""
        return self._options(
            prompt_name=job.prompt_name,
            prompt=job.prompt,
            truncate_dim=job.truncate_dim,
            precision=job.precision,
        )

    def tokenize(self, texts: Sequence[str], prompt: str) -> Tokens:
        """Token ids of texts; releases the GIL."""
        return self._tokenizer.encode(texts, prompt)

    def ranges(self, options: Options) -> vectors.Ranges | None:
        """What int8 and uint8 codes are spread between; measured where the model folder has none."""
        return self._output_ranges(options, None)

    def embed_tokens(
        self, tokens: Tokens, options: Options, label: Callable[[int], str], advance: Callable[[int], object]
    ) -> NDArray[Any]:
        """(N, K) vectors in the precision of the options, in the order of the tokens.

        label    what to call the text of a number, in errors
        advance  hears the tokens of each batch
        Errors: NumericsError for a vector that is NaN, Inf or zero.
        """
        rows = np.empty((len(tokens.ids), options.dim), np.float32)
        with closing(self._pooled(tokens, None)) as batches:
            for places, pooled in batches:
                if (bad := check_finite(pooled)) is not None:
                    raise self._broken(label(int(places[bad])))
                rows[places] = self._finish(pooled, options, places)
                advance(int(tokens.lengths[places].sum()))
        return in_precision(rows, options.precision, self.ranges(options))


def run(
    inputs: Sequence[str | Path],
    folder: str | Path,
    model: str | Path,
    job: Job | None = None,
    *,
    input_format: str | None = None,
    on_bad_row: str = "reject",
    max_rejected: int | None = None,
    restart: bool = False,
    watch: Callable[[Progress], object] | None = None,
    engine: Callable[..., "Work"] | None = None,
    **embedder_options: Any,
) -> Summary:
    """Embed every row of the inputs into shards; go on where an earlier run of the same job was stopped.

    inputs            files, folders, globs, or "-" for stdin; JSONL and CSV (plain, .gz, .zst), Parquet
    input_format      of stdin, and of files with other suffixes: jsonl, csv or parquet
    on_bad_row        reject: bad rows go to rejected.jsonl; stop: the first one is an error
    max_rejected      more of them stop the job, which can be resumed after the cause is removed
    restart           throw away what an earlier run has left in the folder
    watch             hears of progress, in this thread
    engine            what makes the work of its fields: another way of doing it, such as a cluster's
    embedder_options  of Embedder
    Errors: InputError for inputs and options, OutputError for the folder, MismatchError where it holds
    another job or the input has changed; each one line. Whatever is raised, the next run goes on from there.
    """
    began = time.perf_counter()
    job = Job() if job is None else job
    check(job, on_bad_row)
    target = Path(folder)
    sources = readers.find([str(item) for item in inputs], format=input_format)
    columns = Columns(job.text_column, job.id_column, job.keep_columns)
    check_apart(inputs, sources, target)
    readers.check(sources, columns)
    prepare_folder(target)
    busy = InputError(f"another process is working on {target}; wait for it, or name another folder")
    with locking.held(target / LOCK, busy):
        if restart:
            clear(target)
        worker = Worker(model, **embedder_options)
        options = worker.options(job)
        identity = identify(job, worker, options, sources)
        done = Done.read(target, identity)
        done.check_files()
        made = engine or Work
        work = made(job, target, worker, options, columns, sources, done, on_bad_row, max_rejected, watch)
        loaded = time.perf_counter()
        work.go()
        summary = Summary(
            folder=target,
            rows_in=done.stop,
            embedded=done.total("rows"),
            rejected=done.total("rejected"),
            truncated=done.total("truncated"),
            shards=len(done.entries),
            resumed_at=work.resumed_at,
            tokens=work.tokens,
            seconds=round(time.perf_counter() - began, 3),
            loading_seconds=round(loaded - began, 3),
        )
        done.check_sums()
        done.write_manifest("done")
    return summary


def check(job: Job, on_bad_row: str) -> None:
    """Refuse options that mean nothing, before anything is opened."""
    for name, value, known in (
        ("on_bad_row", on_bad_row, ON_BAD_ROW),
        ("on_overflow", job.on_overflow, ON_OVERFLOW),
        ("output_format", job.output_format, shards.FORMATS),
        ("precision", job.precision, vectors.PRECISIONS),
    ):
        if value not in known:
            raise InputError(f"{name} is {value!r}; known: {', '.join(known)}")
    shards.check_names(job.keep_columns)
    if job.output_format == "parquet":
        shards.import_pyarrow()
    if job.rows_per_shard < 1:
        raise InputError(f"rows_per_shard is {job.rows_per_shard}; it must be at least 1")


def check_apart(inputs: Sequence[str | Path], sources: Sequence[Source], target: Path) -> None:
    """Refuse an output folder in which, or in the parent of which, inputs are looked for."""
    place = target.resolve()
    for given in map(Path, inputs):
        if given.is_dir() and place.is_relative_to(given.resolve()):
            raise InputError(
                f"{target} lies in the input {given}, of which it would become a part; name another"
            )
    for source in sources:
        if source.path is not None and source.path.resolve().is_relative_to(place):
            raise InputError(f"the input {source.name} lies in {target}; name another folder for the output")


# ---- what is done, and of which job


def identify(job: Job, worker: Worker, options: Options, sources: Sequence[Source]) -> dict[str, Any]:
    """What decides the rows of a shard, as JSON values; "seen" is what hints that the input has changed."""
    import openvino

    plan, folder = worker.plan, worker.folder
    settings = (path for path in side_files(folder) if path.suffix == ".json")
    files = {plan.file, plan.file.with_suffix(".bin"), *settings}
    hashes = {path.relative_to(folder).as_posix(): hash_file(path) for path in files if path.exists()}
    ranges = worker.ranges(options)
    found = {
        "job": asdict(job),
        "model": {"name": folder.name, "files": dict(sorted(hashes.items()))},
        "plan": {
            "compute_type": plan.compute_type,
            "device": plan.device,
            "properties": {name: plan.properties[name] for name in plan.properties if name not in FREE},
            "passes": list(plan.passes),
            "max_tokens": worker.max_tokens,
            "prompt": options.prompt,
            "dim": options.dim,
            "output_ranges": None if ranges is None else ranges.to_json(),
        },
        "versions": {"edge_embed": __version__, "openvino": openvino.get_version()},
        "inputs": [[source.name, source.kind, source.compression] for source in sources],
        "seen": [[source.bytes, source.mtime_ns] for source in sources],
    }
    values: dict[str, Any] = json.loads(json.dumps(found))  # tuples are lists on the disk
    return values


@dataclass(slots=True)
class Done:
    """What the journal says."""

    folder: Path
    job: dict[str, Any]  # its first line: the schema and the identity, with what was last seen of the input
    entries: list[dict[str, Any]]  # of shards, in order
    complete: bool  # the input was read to its end, and nothing has happened since
    doubtful: bool  # the rows that are done have to be compared with the input

    @classmethod
    def read(cls, folder: Path, identity: dict[str, Any]) -> "Done":
        """The journal of a folder, begun where there is none.

        Errors: MismatchError for another job, naming what differs; IntegrityError for a damaged journal.
        """
        path = folder / JOURNAL
        lines = journal.read(path)
        if not lines:
            job = {"schema": SCHEMA, **identity}
            journal.append(path, job)
            return cls(folder, job, [], complete=False, doubtful=False)
        job, *rest = lines
        if job.get("schema") != SCHEMA:
            raise IntegrityError(f"{path} has schema {job.get('schema')!r}, this version reads {SCHEMA}")
        if differing := differences(job, identity):
            raise MismatchError(
                f"{folder} holds another job: {'; '.join(differing[:3])}; name another folder, or throw its "
                "shards away with --restart"
            )
        for line in rest:
            job["seen"] = line.get("seen", job["seen"])
        entries = [line for line in rest if "shard" in line]
        stdin = [None, None] in identity["seen"]
        doubtful = stdin or job["seen"] != identity["seen"]
        return cls(folder, job, entries, complete="complete" in lines[-1], doubtful=doubtful)

    @property
    def stop(self) -> int:
        """The first row that is not done."""
        return int(self.entries[-1]["stop"]) if self.entries else 0

    def total(self, key: str) -> int:
        """The sum over all shards of their "rows", "rejected" or "truncated"."""
        return sum(int(entry[key]) for entry in self.entries)

    @property
    def files(self) -> set[str]:
        """The names of all files of all shards."""
        return {name for entry in self.entries for name in entry["files"]}

    def check_files(self) -> None:
        """Go back to before the first shard that is missing or cut, and forget rejections after that.

        Errors: OutputError.
        """
        sound = []
        path = self.folder / REJECTED
        size = size_of(path) or 0
        for entry in self.entries:
            sizes = {name: info["bytes"] for name, info in entry["files"].items()}
            lost = [name for name in sizes if size_of(self.folder / name) != sizes[name]]
            if size < entry["rejected_bytes"]:
                lost.append(REJECTED)
            if lost:
                logger.warning(
                    "%s is missing or cut; going back to row %d", self.folder / lost[0], entry["start"]
                )
                break
            sound.append(entry)
        if len(sound) < len(self.entries):
            self.entries, self.complete = sound, False
            lines = "".join(json.dumps(line) + "\n" for line in [self.job, *sound])
            atomic.write_text(self.folder / JOURNAL, lines)
        least = int(sound[-1]["rejected_bytes"]) if sound else 0
        if size > least:  # written, but never confirmed by the journal
            try:
                with path.open("r+b") as file:
                    file.truncate(least)
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

    def saw(self, seen: list[Any]) -> None:
        """Note how the input looks, of which the rows that are done were compared and found the same."""
        if self.job["seen"] != seen:
            journal.append(self.folder / JOURNAL, {"seen": seen})
            self.job["seen"], self.complete = seen, False
        self.doubtful = False

    def add(self, entry: dict[str, Any]) -> None:
        """Put a shard on record that is safely on the disk."""
        journal.append(self.folder / JOURNAL, entry)
        self.entries.append(entry)
        self.complete = False

    def end(self) -> None:
        """Note that the input has no further row."""
        if not self.complete:
            journal.append(self.folder / JOURNAL, {"complete": True, "rows": self.stop})
            self.complete = True

    def check_sums(self) -> None:
        """Shards follow each other without a gap, each row is embedded or rejected.

        Errors: IntegrityError.
        """
        stop = 0
        for entry in self.entries:
            if entry["start"] != stop or entry["stop"] != stop + entry["rows"] + entry["rejected"]:
                raise IntegrityError(
                    f"{self.folder}: shard {entry['shard']} has {entry['rows']} rows embedded and "
                    f"{entry['rejected']} rejected of rows {entry['start']} to {entry['stop'] - 1}, and the "
                    f"one before ends at {stop - 1}; that does not add up, please report this"
                )
            stop = entry["stop"]

    def write_manifest(self, status: str) -> None:
        """manifest.json: the job, its totals and its files. One that says so already is left alone."""
        manifest = {
            **self.job,
            "status": status,
            "rows_in": self.stop,
            "embedded": self.total("rows"),
            "rejected": self.total("rejected"),
            "truncated": self.total("truncated"),
            "shards": [
                {key: entry[key] for key in ("shard", "start", "stop", "rows", "rejected", "files")}
                for entry in self.entries
            ],
        }
        path = self.folder / MANIFEST
        data = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
        if not (path.is_file() and path.read_bytes() == data):
            atomic.write_bytes(path, data)


def differences(began: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of a job is not as it was, in words; sizes and times of the input are not looked at."""
    found = []
    for part in ("job", "plan", "model", "versions"):
        before, after = began.get(part), now[part]
        if before == after:
            continue
        if not isinstance(before, dict):
            return [f"its {part} is not on record"]
        found += [f"{part} {line}" for line in changes(before, after)]
    before, after = began.get("inputs", []), now["inputs"]
    if before != after:
        pairs = zip([*before, None], [*after, None], strict=False)
        one, other = next(pair for pair in pairs if pair[0] != pair[1])
        was, is_now = (item[0] if item else "none" for item in (one, other))
        found.append(f"it has {len(before)} inputs, now {len(after)}: where {was} was, there is {is_now}")
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Each key whose value differs, with both values; of tables in it, their keys."""
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from (f"{key} {line}" for line in changes(was, now))
        elif was != now:
            yield f"{key} was {was!r:.40}, now {now!r:.40}"


def size_of(path: Path) -> int | None:
    """Bytes of a file, None where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def prepare_folder(folder: Path) -> None:
    """Make the folder; one with other things in it is left alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise OutputError(f"cannot use {folder}: {error.strerror or error}") from error
    if others and JOURNAL not in others and set(others) != {LOCK}:
        raise InputError(f"{folder} is not empty and holds no job ({others[0]}); name a new folder")


def clear(folder: Path) -> None:
    """Remove what a job has left, the journal last: a folder without one is refused.

    Errors: InputError where the journal is someone else's; OutputError.
    """
    ours = {MANIFEST, REJECTED, JOURNAL, *leftovers(folder, set())}
    try:
        if (folder / JOURNAL).exists():
            with (folder / JOURNAL).open("rb") as file:
                head = file.read(len(JOURNAL_HEAD))
            if not JOURNAL_HEAD.startswith(head):
                raise InputError(f"{folder / JOURNAL} is not of a job; nothing is removed, name a new folder")
        for name in sorted(ours, key=lambda name: name == JOURNAL):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot clear {folder}: {error.strerror or error}") from error


def leftovers(folder: Path, kept: set[str]) -> list[str]:
    """Files by the names of shards, whole or partial, beside those to be kept."""
    names = [path.name for path in folder.iterdir()]
    return [name for name in names if name not in kept and (SHARD.fullmatch(name) or PARTIAL.fullmatch(name))]


# ---- how much there is


def count_rows(sources: Sequence[Source], stopping: threading.Event) -> int | None:
    """About how many rows there are: lines of text files, blank ones and all. None where it cannot be known.

    Packed files are unpacked for it, which takes a hundredth of the time that embedding them takes.
    """
    total = 0
    for source in sources:
        if source.path is None:
            return None
        try:
            total += parquet_rows(source.path) if source.kind == "parquet" else text_rows(source, stopping)
        except (OSError, EOFError, ValueError, zlib.error):  # who reads the rows will say it
            return None
    return None if stopping.is_set() else total


def parquet_rows(path: Path) -> int:
    """What the file itself says."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def text_rows(source: Source, stopping: threading.Event) -> int:
    """Lines, without the header that a table has."""
    count, last = 0, b"\n"
    with readers.opened(source) as stream:
        while not stopping.is_set() and (data := stream.read(COUNTED)):
            count += data.count(b"\n")
            last = data[-1:]
    count += last != b"\n"
    return count if source.kind == "jsonl" else max(0, count - 1)


# ---- the work


@dataclass(slots=True)
class Work:
    """One run of a job: rows -> stretches -> vectors -> shards."""

    job: Job
    folder: Path
    worker: Worker
    options: Options
    columns: Columns
    sources: Sequence[Source]
    done: Done
    on_bad_row: str
    max_rejected: int | None
    watch: Callable[[Progress], object] | None
    tokens: int = 0
    resumed_at: int = 0
    bad: int = 0  # rows, those of earlier runs included
    total: int | None = None
    # Of the first value that is there, for all that come: no column changes its type on the way.
    kept_types: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    stopping: threading.Event = field(default_factory=threading.Event)

    def go(self) -> None:
        """Do what is not done."""
        self.resumed_at, self.bad = self.done.stop, self.done.total("rejected")
        for entry in self.done.entries[-1:]:
            self.kept_types = dict(entry["known_types"])
        if self.done.complete and not self.done.doubtful:
            return
        self._sweep()
        with (
            ThreadPoolExecutor(1, "edge-embed-count") as counting,
            ThreadPoolExecutor(1, "edge-embed-read") as reading,
            ThreadPoolExecutor(1, "edge-embed-write") as writing,
            closing(self._stretches()) as stretches,
        ):
            if self.watch:
                counting.submit(self._count)
                self._tell(self.resumed_at)
            pending = reading.submit(next, stretches, None)
            written: Future[None] | None = None
            try:
                while (stretch := pending.result()) is not None:
                    pending = reading.submit(next, stretches, None)
                    if written is None:
                        self.done.write_manifest("running")
                    self._embed(stretch)
                    if written:
                        written.result()
                    written = writing.submit(self._write, stretch)
            finally:
                self.stopping.set()
                pending.cancel()
                wait([pending])  # a generator that runs cannot be closed
                if written:
                    written.result()
        self.done.end()
        self.total = self.done.stop
        self._tell(self.total)

    def _sweep(self) -> None:
        """Remove what the journal does not name: it is of a process that was killed."""
        try:
            for name in leftovers(self.folder, self.done.files):
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot clear {self.folder}: {error.strerror or error}") from error

    def _count(self) -> None:
        """In a thread of its own, for whoever watches."""
        self.total = count_rows(self.sources, self.stopping)

    def _stretches(self) -> Generator[Stretch, None, None]:
        """What is to be done, tokenized; before that, what is done is compared where that is in doubt."""
        done = self.done.entries.copy()  # the writing thread adds to them
        skip = 0 if self.done.doubtful else self.done.stop
        with closing(readers.read(self.sources, self.columns, skip=skip)) as rows:
            if self.done.doubtful:
                for entry in done:
                    self._compare(entry, self._take(rows, entry["stop"] - entry["start"], sys.maxsize))
                if self.stopping.is_set():
                    return
                self.done.saw([[source.bytes, source.mtime_ns] for source in self.sources])
            number = len(done)
            while (
                taken := self._take(rows, self.job.rows_per_shard, CHARACTERS_PER_SHARD)
            ) and not self.stopping.is_set():
                stretch = make_stretch(number, taken)
                self._check_columns(stretch)
                self._tokenize(stretch)
                yield stretch
                number += 1

    def _take(self, rows: Iterator[Row | Bad], most: int, room: int) -> list[Row | Bad]:
        """The next rows: so many, or fewer where their texts have `room` characters before that."""
        taken: list[Row | Bad] = []
        while len(taken) < most and room > 0 and not self.stopping.is_set():
            row = next(rows, None)
            if row is None:
                break
            taken.append(row)
            room -= len(row.text) if isinstance(row, Row) else 0
        return taken

    def _compare(self, entry: Mapping[str, Any], taken: list[Row | Bad]) -> None:
        """Refuse an input that no longer has the rows of a shard that is done."""
        if self.stopping.is_set():  # then they were not read to their end
            return
        if len(taken) < entry["stop"] - entry["start"]:
            how = f"it ends at row {entry['start'] + len(taken)}, and {self.done.stop} are done"
        elif make_stretch(entry["shard"], taken).sha256 != entry["sha256"]:
            how = f"rows {entry['start']} to {entry['stop'] - 1} are not those of shard {entry['shard']}"
        else:
            return
        raise MismatchError(
            f"the input of {self.folder} has changed: {how}; bring it back as it was, name another folder, "
            "or begin again with --restart"
        )

    def _check_columns(self, stretch: Stretch) -> None:
        """Rows whose kept values are of another type than those of the first shard become bad ones."""
        for i, name in enumerate(self.job.keep_columns):
            values = [row.kept[i] for row in stretch.rows]
            if name not in self.kept_types and any(value is not None for value in values):
                self.kept_types[name] = shards.infer(values)
        wrong = {}
        for i, row in enumerate(stretch.rows):
            for name, value in zip(self.job.keep_columns, row.kept, strict=True):
                try:
                    shards.fit(value, self.kept_types.get(name, "string"))
                except ValueError as error:
                    wrong[i] = f"{name}: {error}"
        stretch.kept_types = {name: self.kept_types.get(name, "string") for name in self.job.keep_columns}
        stretch.known_types = dict(self.kept_types)
        stretch.reject(wrong)

    def _tokenize(self, stretch: Stretch) -> None:
        """Tokens of the rows; those over the limit become bad rows, if they are not to be cut."""
        tokens = self.worker.tokenize([row.text for row in stretch.rows], self.options.prompt)
        limit = self.worker.max_tokens
        over = np.flatnonzero(tokens.lengths > limit).tolist()
        if self.job.on_overflow == "truncate":
            stretch.truncated = len(over)
        elif over:
            why = "has {} tokens or more, over the limit of {}"
            stretch.reject({i: why.format(tokens.lengths[i], limit) for i in over})
            kept = np.flatnonzero(tokens.lengths <= limit)
            tokens = Tokens([tokens.ids[i] for i in kept], tokens.lengths[kept])
        stretch.tokens = tokens

    def _embed(self, stretch: Stretch) -> None:
        """Vectors of the rows; equal texts are embedded once."""
        self._judge(stretch.bad)
        assert stretch.tokens is not None
        numbers: dict[bytes, int] = {}
        inverse = [numbers.setdefault(ids.tobytes(), len(numbers)) for ids in stretch.tokens.ids]
        firsts = np.unique(np.array(inverse, np.int64), return_index=True)[1]
        unique = Tokens([stretch.tokens.ids[i] for i in firsts], stretch.tokens.lengths[firsts])
        size, work, through = stretch.stop - stretch.start, int(unique.lengths.sum()), 0

        def label(number: int) -> str:
            return f"the text of {self._place(stretch.rows[firsts[number]])}"

        def advance(tokens: int) -> None:
            nonlocal through
            through += tokens
            self.tokens += tokens
            # Longest first: rows would crawl, then race. The share of tokens is the share of the time.
            self._tell(stretch.start + size * through // work)

        found = self.worker.embed_tokens(unique, self.options, label, advance)
        stretch.vectors = found[inverse] if inverse else found
        stretch.tokens = None

    def _judge(self, bad: Sequence[Bad]) -> None:
        """Refuse bad rows that end the job. Errors: InputError."""
        self.bad += len(bad)
        if bad and self.on_bad_row == "stop":
            first = bad[0]
            raise InputError(f"{self._place(first)}: {first.reason}; mend it, or let bad rows be rejected")
        if self.max_rejected is not None and self.bad > self.max_rejected:
            last = bad[-1]
            raise InputError(
                f"{self.bad} rows are bad, over the limit of {self.max_rejected}; the last one is "
                f"{self._place(last)}: {last.reason}"
            )

    def _place(self, row: Row | Bad) -> str:
        """Where a row stands, for people."""
        return f"{self.sources[row.source].name}, line {row.line}"

    def _write(self, stretch: Stretch) -> None:
        """In the writing thread: the shard, then the rejected rows, then the line that makes both count."""
        rows, job = stretch.rows, self.job
        assert stretch.vectors is not None
        columns = {name: [row.kept[i] for row in rows] for i, name in enumerate(job.keep_columns)}
        files = shards.write(
            self.folder,
            stretch.number,
            job.output_format,
            ids=[row.id for row in rows],  # type: ignore[arg-type]  # all of one kind, see _check_columns
            vectors=stretch.vectors,
            kept=columns,
            kept_types=stretch.kept_types,
            positions=np.array([row.position for row in rows], np.int64),
            about={key: self.done.job[key] for key in ("job", "model", "plan", "versions")},
        ).files
        size = self._reject(stretch.bad)
        self.done.add(
            {
                "shard": stretch.number,
                "start": stretch.start,
                "stop": stretch.stop,
                "rows": len(rows),
                "rejected": len(stretch.bad),
                "truncated": stretch.truncated,
                "sha256": stretch.sha256,
                "files": files,
                "rejected_bytes": size,
                "known_types": stretch.known_types,
            }
        )

    def _reject(self, bad: Sequence[Bad]) -> int:
        """Append bad rows; the size of the file afterwards."""
        path = self.folder / REJECTED
        if not bad:
            return size_of(path) or 0
        lines = [
            {
                "file": self.sources[one.source].name,
                "line": one.line,
                "position": one.position,
                "reason": one.reason,
                "excerpt": one.excerpt,
            }
            for one in bad
        ]
        try:
            with path.open("ab") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            atomic.sync_folder(self.folder)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        return size

    def _tell(self, rows: int) -> None:
        if self.watch:
            seconds = time.perf_counter() - self.began
            shards_done = len(self.done.entries)
            self.watch(Progress(rows, self.total, self.resumed_at, self.tokens, seconds, shards_done))


def make_stretch(number: int, taken: Sequence[Row | Bad]) -> Stretch:
    """Rows as they were read, at least one."""
    digest = hashlib.sha256()
    for row in taken:
        held = (row.id, row.text, row.kept) if isinstance(row, Row) else (row.reason,)
        digest.update(json.dumps([row.position, *held]).encode())
    rows = [row for row in taken if isinstance(row, Row)]
    bad = [row for row in taken if isinstance(row, Bad)]
    return Stretch(number, taken[0].position, taken[-1].position + 1, rows, bad, digest.hexdigest())
