"""Compiles a planned model and runs padded batches. Knows nothing of texts, pooling or output formats."""

import contextlib
import hashlib
import json
import logging
import os
import queue
import shutil
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_embed import atomic, ir
from edge_embed.errors import DeviceError, OutputError
from edge_embed.plan import MANY_BATCHES, PLAIN, WINDOWED, Plan, device_kind, for_many

if TYPE_CHECKING:
    from openvino import CompiledModel, Core, InferRequest, Model

logger = logging.getLogger(__name__)

Tag = TypeVar("Tag")

MADV_DONTNEED = 4  # <sys/mman.h> on Linux


# Makes the graph of one form (of plan.PLAIN, plan.WINDOWED) from the model of the plan's file.
Prepare = Callable[["Model", str], "Model"]


class Runtime:
    """A plan's model, compiled form by form, each with a pool of requests.

    The plain form is compiled at once, another when a batch first needs it. Any number of threads may call
    `run` and `run_many`.
    """

    def __init__(self, plan: Plan, prepare: Prepare, prepare_key: str) -> None:
        """Read, prepare and compile, or import the blob that an earlier start left in the plan's cache.

        prepare      turns the model of the file into one with a single (B, D) output
        prepare_key  says what prepare does, for the blob's name
        Errors: DeviceError for a device that cannot compile it, ModelError for files that do not fit.
        """
        self._plan, self._prepare, self._prepare_key = plan, prepare, prepare_key
        self._pools: dict[tuple[str, int | None, int], Pool] = {}
        self._lock = threading.Lock()
        first = self._pool(plan.static_lengths[0] if plan.static_lengths else 1)
        self.loaded_from_cache = first.loaded_from_cache
        self.compiled = first.compiled
        self.inputs: tuple[str, ...] = tuple(port.get_any_name() for port in first.compiled.inputs)

    def _pool(self, tokens: int, *, many: bool = False) -> "Pool":
        """The compiled form for batches of so many padded tokens, made at its first use.

        many  with the plan's streams for many batches; windows of long texts fill the machine as they are
        """
        plan = self._plan
        windowed = plan.windowed_from is not None and tokens > plan.windowed_from
        if many and not windowed:
            plan = for_many(plan)
        form = WINDOWED if windowed else PLAIN
        key = (form, tokens if plan.static_lengths else None, plan.streams)
        pool = self._pools.get(key)
        if pool is None:
            with self._lock:
                pool = self._pools.get(key)
                if pool is None:
                    # A thread of its own: CPU_DENORMALS_OPTIMIZATION leaves the thread that compiles with
                    # denormals off.
                    with ThreadPoolExecutor(1, "edge-embed-compile") as side:
                        loaded = side.submit(load, plan, self._prepare, self._prepare_key, *key[:2]).result()
                    pool = self._pools[key] = Pool(*loaded, plan.streams)
        return pool

    def effective(self, name: str) -> str:
        """A property as the compiled model reports it."""
        return str(self.compiled.get_property(name))

    def run(self, input_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """input_ids and mask (B, T) int64 -> a new (B, D) float32 array."""
        with self._pool(input_ids.shape[1]).request() as request:
            request.infer(self._feed(input_ids, mask), share_inputs=True)
            return take_output(request)

    def run_many(
        self, batches: Iterable[tuple[Tag, NDArray[np.int64], NDArray[np.int64]]], *, count: int = 0
    ) -> Iterator[tuple[Tag, NDArray[np.float32]]]:
        """Run (tag, input_ids, mask) batches on all streams; yields (tag, (B, D) float32) in their order.

        count  how many there are, if that is known: MANY_BATCHES run on the plan's streams for many
        """
        many = count >= MANY_BATCHES
        running: deque[Running[Tag]] = deque()
        try:
            for tag, input_ids, mask in batches:
                pool = self._pool(input_ids.shape[1], many=many)
                # Wait for our own oldest before taking another request, else two callers could starve: each
                # would hold what the other waits for. So nothing of another form is held, either.
                while running and running[0].pool is not pool:
                    yield finish(running)
                if pool.streams == 1:  # without the way through a queue
                    yield tag, self.run(input_ids, mask)
                    continue
                if len(running) == pool.streams or (running and pool.idle.empty()):
                    yield finish(running)
                feed = self._feed(input_ids, mask)
                request = pool.idle.get()
                running.append(Running(tag, pool, request, feed))
                request.start_async(feed, share_inputs=True)
            while running:
                yield finish(running)
        finally:
            while running:  # the caller stopped early or a batch failed
                batch = running.popleft()
                with contextlib.suppress(RuntimeError):  # the first error is on its way already
                    batch.request.wait()
                batch.pool.idle.put(batch.request)

    def _feed(self, input_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        feed = {"input_ids": input_ids, "attention_mask": mask}
        if "token_type_ids" in self.inputs:
            feed["token_type_ids"] = np.zeros_like(input_ids)
        return feed


class Pool:
    """One compiled form of a model, and its idle requests."""

    def __init__(self, compiled: "CompiledModel", loaded_from_cache: bool, streams: int) -> None:
        self.compiled = compiled
        self.loaded_from_cache = loaded_from_cache
        self.streams = streams
        # SimpleQueue: its get and put are atomic, and a thread that waits for a request holds no lock.
        self.idle: queue.SimpleQueue[InferRequest] = queue.SimpleQueue()
        for _ in range(streams):
            self.idle.put(compiled.create_infer_request())

    @contextlib.contextmanager
    def request(self) -> "Iterator[InferRequest]":
        """A request for the length of a `with` block."""
        request = self.idle.get()
        try:
            yield request
        finally:
            self.idle.put(request)


@dataclass(frozen=True, slots=True)
class Running(Generic[Tag]):
    """A batch on its way. `feed` is held because the request shares its memory."""

    tag: Tag
    pool: Pool
    request: "InferRequest"
    feed: dict[str, NDArray[np.int64]]


def finish(running: deque[Running[Tag]]) -> tuple[Tag, NDArray[np.float32]]:
    """Wait for the oldest batch and give its request back."""
    batch = running.popleft()
    try:
        batch.request.wait()
        return batch.tag, take_output(batch.request)
    finally:
        batch.pool.idle.put(batch.request)


def load(
    plan: Plan, prepare: Prepare, prepare_key: str, form: str, tokens: int | None
) -> tuple["CompiledModel", bool]:
    """The compiled form, and whether it came from the plan's cache; `tokens` is T where shapes are fixed."""
    import openvino

    core = openvino.Core()
    blob = blob_path(core, plan, f"{form} {prepare_key}")
    compiled = import_blob(core, plan, blob) if blob else None
    cached = compiled is not None
    if compiled is None:
        model = prepare(ir.read(core, plan.file), form)
        if tokens is not None:
            model.reshape({port: [1, tokens] for port in model.inputs})
        compiled = compile_model(core, model, plan)
        if blob:
            export_blob(compiled, blob)
    release_pages(plan.file.with_suffix(".bin"))
    return compiled, cached


def release_pages(weights: Path) -> None:
    """Tell Linux that the mapped weights need not stay in memory: the plugin has its own packed copies.

    Pages that are used after all (rows of the token table) come back from the file. Without this they count
    as ours until memory is short.
    """
    if sys.platform != "linux":
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    name = str(weights.resolve())  # the kernel shows the file itself, not the link
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == name and "w" not in fields[1]:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            libc.madvise(start, end - start, MADV_DONTNEED)


def take_output(request: "InferRequest") -> NDArray[np.float32]:
    """Copy the only output: the request's own memory is overwritten by its next inference."""
    return np.array(request.get_output_tensor(0).data, np.float32)


def check_device(plan: Plan) -> None:
    """Refuse a device that is not there, or one that cannot do what the compute type says.

    The CPU is not looked for: asking OpenVINO what there is loads every other device's driver.
    """
    import openvino

    core = openvino.Core()
    kind = device_kind(plan.device)
    if kind != "CPU":
        available = core.available_devices
        present = {name.partition(".")[0] for name in available}
        if kind not in present | {"AUTO"} or ("." in plan.device and plan.device not in available):
            raise DeviceError(
                f"no device {plan.device!r} on this machine; OpenVINO finds: {', '.join(available)}"
            )
    if plan.compute_type == "bfloat16":
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in capabilities:
            raise DeviceError(
                f"this CPU has no bfloat16 arithmetic, only {', '.join(capabilities)}; use float32"
            )


def compile_model(core: "Core", model: "Model", plan: Plan) -> "CompiledModel":
    """Compile with exactly the plan's properties."""
    properties = dict(plan.properties)
    if plan.cache is not None and plan.device != "CPU":
        properties["CACHE_DIR"] = str(
            plan.cache
        )  # OpenVINO's own cache keeps GPU kernels; ours is for CPU blobs
    elif plan.cache is not None:
        properties |= weightless(plan)
    try:
        return core.compile_model(model, plan.device, properties)
    except Exception as error:  # OpenVINO raises RuntimeError of many kinds
        raise DeviceError(f"{plan.device} cannot compile {plan.file}: {ir.first_line(error)}") from None


def blob_path(core: "Core", plan: Plan, prepare_key: str) -> Path | None:
    """Where the compiled form of this plan belongs, by what it was made from; None when it is not cached.

    The weights are recognised by size and time of change rather than by content: hashing a gigabyte at every
    start would cost more than the cache saves.
    """
    if plan.cache is None or plan.device != "CPU":
        return None
    import openvino

    weights = plan.file.with_suffix(".bin")
    if not weights.exists():
        return None  # ir.read says what is wrong
    status = weights.stat()
    made_from = {
        "preparation": prepare_key,
        "xml": hashlib.sha256(plan.file.read_bytes()).hexdigest(),
        "weights": [str(weights.absolute()), status.st_size, status.st_mtime_ns],
        "properties": dict(plan.properties),
        "openvino": openvino.get_version(),
        "cpu": [
            core.get_property("CPU", "FULL_DEVICE_NAME"),
            core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
        ],
        "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),  # emulation compiles for another CPU
    }
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return plan.cache / f"{key[:32]}.blob"


def weightless(plan: Plan) -> dict[str, str]:
    """Properties for a blob that leaves the weights in the IR's .bin."""
    return {"CACHE_MODE": "OPTIMIZE_SIZE", "WEIGHTS_PATH": str(plan.file.with_suffix(".bin"))}


def import_blob(core: "Core", plan: Plan, blob: Path) -> "CompiledModel | None":
    """The compiled model of an earlier start, or None. A damaged blob is removed and compiled anew."""
    import openvino

    try:
        data = blob.read_bytes()
    except OSError:
        return None
    digest, body = data[:32], data[32:]
    try:
        if hashlib.sha256(body).digest() != digest:
            raise ValueError("its checksum is wrong")
        content = openvino.Tensor(np.frombuffer(body, np.uint8))
        return core.import_model(content, plan.device, {**plan.properties, **weightless(plan)})
    except (RuntimeError, ValueError) as error:
        logger.warning("the compiled blob %s is unusable (%s); compiling again", blob, ir.first_line(error))
        blob.unlink(missing_ok=True)
        return None


def export_blob(compiled: "CompiledModel", blob: Path) -> None:
    """Keep the compiled model for the next start. A cache that cannot be written costs time, no result."""
    try:
        body = compiled.export_model().getvalue()
        blob.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(blob.parent).free > 10 * len(body):
            atomic.write_bytes(blob, hashlib.sha256(body).digest() + body)
    except (OSError, RuntimeError, OutputError) as error:
        logger.warning("cannot keep the compiled model in %s: %s", blob.parent, error)


def check_finite(vectors: NDArray[np.float32]) -> int | None:
    """The first row of (B, D) that is NaN, Inf or all zero; None when all are sound."""
    norms = np.einsum("bd,bd->b", vectors, vectors)
    bad = ~np.isfinite(norms) | (norms <= 0)
    return int(bad.argmax()) if bad.any() else None
