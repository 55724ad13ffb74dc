"""The offline job on a Ray cluster: the folder, shards, journal and rules of `batch`, made by many processes.

The driver counts the rows, cuts them into tasks of one shard each, and hands these to actors by Ray Data. An
actor holds one model, reads its rows, and writes its shard whole into the folder, which all machines share.
The driver alone holds the lock and writes journal, rejected rows and manifest, in the order of the shards; so
a job that one engine has begun goes on with the other. Knows Ray, and which shard holds which rows. What a
shard is made of, and how, `batch` knows.
"""

import contextlib
import json
import logging
import os
import platform
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from edge_embed import batch, errors, readers
from edge_embed.batch import Done, Job, Progress, Stretch, Summary, Work, Worker
from edge_embed.errors import CrashError, EdgeEmbedError, InputError, MismatchError, OutputError
from edge_embed.hardware import machine
from edge_embed.plan import Plan
from edge_embed.readers import Bad, Columns, Cursor, Row, Source

logger = logging.getLogger(__name__)

RETRIES = 3  # of a shard whose actor died: machines go, but a shard that kills its actor must end the job
LOADS = 10  # actors in a row that may die while they load the model
ANSWERS_WITHIN = 10.0  # seconds
SHARED_WITHIN = 60.0  # seconds until a file is seen by all: network file systems keep listings for a while
PINNING = "ENABLE_CPU_PINNING"
CONVERT = "convert it to Parquet or plain JSONL, or leave out --engine ray"


@dataclass(frozen=True, slots=True)
class Task:
    """One shard to be made."""

    number: int
    start: int  # position of the first row
    stop: int  # and after the last
    source: int  # which holds the first row
    before: int  # rows of all sources before that one
    known_types: dict[str, str] = field(default_factory=dict)  # of kept columns, as the shards before decide


@dataclass(frozen=True, slots=True)
class Order:
    """What an actor needs to know beside its tasks. Paths are absolute: an actor has a folder of its own."""

    job: Job
    model: str | Path
    folder: Path
    sources: tuple[Source, ...]
    id_type: type | None  # of all rows
    identity: dict[str, Any]  # of the job, as the journal has it
    embedder_options: dict[str, Any]


def run_ray(
    inputs: Sequence[str | Path],
    folder: str | Path,
    model: str | Path,
    job: Job | None = None,
    *,
    address: str | None = None,
    workers: int | None = None,
    input_format: str | None = None,
    on_bad_row: str = "reject",
    max_rejected: int | None = None,
    restart: bool = False,
    watch: Callable[[Progress], object] | None = None,
    **embedder_options: Any,
) -> Summary:
    """`batch.run` on a Ray cluster: the same folder, whichever engine began it.

    inputs, folder, model  under the same paths on all machines; a pulled model by its name
    address                of a cluster; None: RAY_ADDRESS, else a Ray of its own here, for this job
    workers                actors, with a model each; None: as many as have room on the cluster
    threads                (among embedder_options) of an actor, and the CPUs that Ray reserves for it; None:
                           one per physical core of the driver's machine
    Errors: as batch.run; InputError for inputs that cannot be divided and for a cluster that is not there,
    CrashError for a shard whose actors die.
    """
    import_ray()
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; it must be at least 1")
    refuse_whole(readers.find([str(item) for item in inputs], format=input_format))

    def driver(*values: Any) -> Driver:
        return Driver(
            *values, model=model, address=address, workers=workers, embedder_options=embedder_options
        )

    return batch.run(
        inputs,
        folder,
        model,
        job,
        input_format=input_format,
        on_bad_row=on_bad_row,
        max_rejected=max_rejected,
        restart=restart,
        watch=watch,
        engine=driver,
        **embedder_options,
    )


def refuse_whole(sources: Sequence[Source]) -> None:
    """Refuse inputs of which no part can be read alone. Errors: InputError."""
    for source in sources:
        if source.path is None:
            raise InputError(f"stdin cannot be divided among workers; save it, and {CONVERT}")
        if source.compression is not None:
            raise InputError(
                f"{source.name} is compressed with {source.compression} and cannot be divided among workers; "
                f"{CONVERT}"
            )


# ---- in the driver


@dataclass(slots=True, kw_only=True)
class Driver(Work):
    """One run of a job on a cluster: rows -> tasks -> what actors made of them -> journal."""

    model: str | Path
    address: str | None
    workers: int | None
    embedder_options: dict[str, Any]

    def go(self) -> None:
        """Do what is not done."""
        self.resumed_at, self.bad = self.done.stop, self.done.total("rejected")
        if self.done.complete and not self.done.doubtful:
            return
        self._sweep()
        if self.done.doubtful:
            self._compare_all()
        tasks = cut(self.sources, self.columns, self.job, self.done)
        self.total = tasks[-1].stop if tasks else self.done.stop
        self._tell(self.resumed_at)
        if tasks:
            self.done.write_manifest("running")
            tasks = self._typed(tasks)
            self._make(tasks, id_type_of(self.sources, self.columns))
        self.done.end()
        self._tell(self.total)

    def _compare_all(self) -> None:
        """Refuse an input that no longer has the rows that are done."""
        with contextlib.closing(readers.read(self.sources, self.columns)) as rows:
            for entry in self.done.entries:
                self._compare(entry, list(islice(rows, entry["stop"] - entry["start"])))
        self.done.saw([[source.bytes, source.mtime_ns] for source in self.sources])

    def _typed(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks with the types of kept columns, for which rows are read until each has shown a value."""
        for entry in self.done.entries[-1:]:
            self.kept_types = dict(entry["known_types"])
        typed = []
        with contextlib.closing(readers.read(self.sources, self.columns, skip=tasks[0].start)) as rows:
            for task in tasks:
                typed.append(replace(task, known_types=dict(self.kept_types)))
                if self.kept_types.keys() < set(self.job.keep_columns):
                    taken = list(islice(rows, task.stop - task.start))
                    self._check_columns(batch.make_stretch(task.number, taken))
        return typed

    def _make(self, tasks: Sequence[Task], id_type: type | None) -> None:
        """Have the shards made, and put each on record once all before it are."""
        import ray
        import ray.data
        from ray.util.annotations import RayDeprecationWarning

        threads = self.worker.plan.threads
        order = Order(
            job=self.job,
            model=Path(self.model).absolute() if Path(self.model).exists() else self.model,
            folder=self.folder.absolute(),
            sources=tuple(replace(one, path=one.path.absolute()) for one in self.sources if one.path),
            id_type=id_type,
            identity=self.done.job,
            embedder_options=self.embedder_options | {"threads": threads},
        )
        with connected(self.address):
            nodes = ray.nodes()  # type: ignore[no-untyped-call]
            workers = min(self.workers or room(nodes, threads), len(tasks))
            context = ray.data.DataContext.get_current().copy()
            context.enable_progress_bars = context.print_on_execution_start = False
            context.max_consecutive_actor_init_deaths = LOADS
            with ray.data.DataContext.current(context), warnings.catch_warnings():
                # A block for each task: it comes back, and is repeated, alone. Two calls at once: while one
                # embeds, the other reads and tokenizes, or writes. Ray Data restarts actors without end, and
                # repeats their tasks so, too, but for max_task_retries, which it will know by another name.
                items = [{"task": json.dumps(asdict(task))} for task in tasks]
                warnings.simplefilter("ignore", RayDeprecationWarning)
                made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                    Maker,
                    batch_size=1,
                    compute=ray.data.ActorPoolStrategy(
                        size=workers, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
                    ),
                    num_cpus=threads,
                    fn_constructor_args=(order,),
                    max_task_retries=RETRIES,
                )
                batches: Any = iter(made.iter_batches(batch_size=None, prefetch_batches=0))
                with contextlib.closing(batches):
                    self._record(json.loads(line) for found in batches for line in found["made"])

    def _record(self, found: Iterator[dict[str, Any]]) -> None:
        """Append what comes, in any order, in the order of the shards."""
        from ray import exceptions

        waiting: dict[int, dict[str, Any]] = {}
        rows = self.resumed_at
        try:
            for made in found:
                if error := made.get("error"):
                    raise getattr(errors, error["kind"])(error["line"])
                entry = made["entry"]
                waiting[entry["shard"]] = made
                rows += entry["stop"] - entry["start"]
                self.tokens += made["tokens"]
                while following := waiting.pop(len(self.done.entries), None):
                    self._confirm(following)
                self._tell(rows)
        except (exceptions.RayActorError, exceptions.OutOfMemoryError) as error:
            reason = " ".join(str(error).split())
            raise CrashError(
                f"an actor died {RETRIES + 1} times over one shard, or {LOADS + 1} did while they loaded the "
                "model; give each more memory (fewer workers, fewer rows a shard) and run it again: it goes "
                f"on from row {self.done.stop}. Ray says: {reason:.300}"
            ) from error

    def _confirm(self, made: Mapping[str, Any]) -> None:
        """The rejected rows of a shard, then the line that makes both count."""
        entry, rejected = made["entry"], [Bad(**bad) for bad in made["bad"]]
        self._judge(rejected)
        for name, about in entry["files"].items():
            wait_for(self.folder / name, about["bytes"])
        self.done.add(entry | {"rejected_bytes": self._reject(rejected)})


def id_type_of(sources: Sequence[Source], columns: Columns) -> type | None:
    """The type of the ids of a job, which is that of its first row; None without any."""
    with contextlib.closing(readers.read(sources, columns)) as rows:
        return next((type(row.id) for row in rows if isinstance(row, Row)), None)


def cut(sources: Sequence[Source], columns: Columns, job: Job, done: Done) -> list[Task]:
    """The shards that are to be made. Reads all text files once; of Parquet only what it says of itself.

    A shard ends after job.rows_per_shard rows, or earlier where these take more than CHARACTERS_PER_SHARD
    bytes in their file, on average within a group of Parquet rows.
    Errors: InputError for a table with rows of several lines.
    """
    tasks: list[Task] = []
    start = done.stop
    position = size = 0  # size: bytes since `start`
    first = (0, 0)  # the source that holds row `start`, and the rows before that source

    def end() -> None:
        nonlocal start, size
        tasks.append(Task(len(done.entries) + len(tasks), start, position, *first))
        start, size = position, 0

    for index, source in enumerate(sources):
        before = position
        for rows, each in runs(source, columns):
            last = position + rows
            while position < last:
                if position < start:  # done
                    position = min(last, start)
                    continue
                if position == start:
                    first = (index, before)
                fitting = (batch.CHARACTERS_PER_SHARD - size + each - 1) // each if each else rows
                taken = min(last - position, start + job.rows_per_shard - position, max(1, fitting))
                position += taken
                size += taken * each
                if position - start == job.rows_per_shard or size >= batch.CHARACTERS_PER_SHARD:
                    end()
    if position > start:
        end()
    return tasks


def runs(source: Source, columns: Columns) -> Iterator[tuple[int, int]]:
    """(rows, bytes of each) of the rows of a source: one by one, or by the groups of a Parquet file."""
    if source.kind == "parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(source.path) as file:
            place = file.schema_arrow.names.index(columns.text)
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                if group.num_rows:
                    yield group.num_rows, group.column(place).total_uncompressed_size // group.num_rows
        return
    for record in readers.RECORDS[source.kind](source, Cursor(columns, skip=0)):
        if isinstance(record.shown, str) and "\n" in record.shown.rstrip("\r\n"):
            raise InputError(
                f"{source.name} cannot be divided among workers: the row in line {record.line} has several "
                f"lines; {CONVERT}"
            )
        yield 1, len(record.shown)


def wait_for(path: Path, size: int) -> None:
    """Return when a file that an actor wrote is seen here. Errors: OutputError."""
    until = time.monotonic() + SHARED_WITHIN
    while batch.size_of(path) != size:
        if time.monotonic() >= until:
            raise OutputError(
                f"{path} was written by a worker, but is not seen here; name a folder that all machines share"
            )
        time.sleep(0.2)


# ---- Ray


def import_ray() -> None:
    """Ray and Ray Data, which are an extra. Without a say of the user's it does not phone home."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise InputError(f"Ray Data is not installed ({error}): pip install 'edge-embed[ray]'") from None


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a cluster while the block runs; one that is there already is used and kept."""
    import ray

    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    try:
        if address:
            reach(address)
            ray.init(address, **quiet)
        else:
            ray.init("local", num_cpus=machine().threads, include_dashboard=False, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"no Ray cluster answers at {address or 'this machine'}: {reason:.200}") from error
    try:
        yield
    finally:
        ray.shutdown()


def reach(address: str) -> None:
    """Return when someone listens there: Ray itself would wait without end. Errors: OSError."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdigit():  # not "auto"
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN).close()


def room(nodes: Iterable[Mapping[str, Any]], threads: int) -> int:
    """How many actors of so many threads the machines of a cluster have CPUs for. Errors: InputError."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    found = sum(count // threads for count in cpus)
    if not found:
        raise InputError(
            f"an actor has {threads} threads, and no machine of the cluster more than "
            f"{max(cpus, default=0)} CPUs; ask for fewer threads"
        )
    return found


# ---- in an actor


class Maker:
    """An actor: holds a model, makes shards. What is wrong comes back as a value, for one clear line."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._embedding = threading.Lock()
        self._trouble: EdgeEmbedError | None = None
        try:
            self._worker = Unpinned(order.model, **order.embedder_options)
            self._options = self._worker.options(order.job)
            own = batch.identify(order.job, self._worker, self._options, order.sources)
            if differing := batch.differences(order.identity, own | {"inputs": order.identity["inputs"]}):
                raise MismatchError(
                    f"{platform.node()} would make other vectors: {'; '.join(differing[:3])}; give all "
                    "machines the same files and versions, and name a compute type"
                )
        except EdgeEmbedError as error:
            self._trouble = error

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """One task as JSON -> what became of it."""
        try:
            if self._trouble:
                raise self._trouble
            made = self._made(Task(**json.loads(batch["task"][0])))
        except EdgeEmbedError as error:
            made = {"error": {"kind": type(error).__name__, "line": str(error)}}
        return {"made": [json.dumps(made)]}

    def _made(self, task: Task) -> dict[str, Any]:
        order, job = self._order, self._order.job
        columns = Columns(job.text_column, job.id_column, job.keep_columns)
        with contextlib.closing(read(order, columns, task)) as rows:
            taken = list(islice(rows, task.stop - task.start))
        if len(taken) < task.stop - task.start:
            raise MismatchError(
                f"the input ends at row {task.start + len(taken)}, and had {task.stop} when the job began; "
                "run it again when the input no longer changes"
            )
        done = Unconfirmed(order.folder, order.identity, [], complete=False, doubtful=False)
        work = Part(
            job, order.folder, self._worker, self._options, columns, order.sources, done, "reject", None, None
        )
        work.kept_types = dict(task.known_types)
        stretch = batch.make_stretch(task.number, taken)
        work.make(stretch, self._embedding)
        return {"entry": done.entries[0], "bad": [asdict(bad) for bad in stretch.bad], "tokens": work.tokens}


def read(order: Order, columns: Columns, task: Task) -> Generator[Row | Bad, None, None]:
    """`readers.read` with skip=task.start, but for the sources before that of the first row."""
    cursor = Cursor(columns, task.start, task.before, order.id_type)
    for index, source in enumerate(order.sources[task.source :], task.source):
        for record in readers.RECORDS[source.kind](source, cursor):
            if not cursor.passes(1):
                row = readers.understood(record, index, cursor)
                if cursor.position >= task.start:
                    yield row
            cursor.position += 1


class Part(Work):
    """The work on one shard, up to where it counts: that is the driver's."""

    def make(self, stretch: Stretch, embedding: threading.Lock) -> None:
        """Write a shard; other threads of this process may read or write meanwhile, but not embed."""
        self._check_columns(stretch)
        self._tokenize(stretch)
        with embedding:
            self._embed(stretch)
        self._write(stretch)

    def _reject(self, bad: Sequence[Bad]) -> int:
        return 0


class Unconfirmed(Done):
    """A journal in memory."""

    def add(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)


class Unpinned(Worker):
    """A Worker beside others: OpenVINO would pin the threads of all of them to the same first cores."""

    def _planned(self, **wishes: Any) -> Plan:
        plan = super()._planned(**wishes)
        if "INFERENCE_NUM_THREADS" not in plan.properties:
            return plan
        return replace(plan, properties={**plan.properties, PINNING: "NO"})
