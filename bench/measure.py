"""Runs subjects in processes of their own, in turns, and times them. Knows no targets.

All subjects of a group are alive at once and take turns, A B C A B C: whatever else the machine does, it does
it to all of them. So many that memory holds are a group; ours are in every one.
"""

import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers import Unavailable
from bench.verdict import summary
from bench.workloads import Workload

ROOT = Path(__file__).parents[1]
OURS = "edge"  # the peer that is us
REFERENCE = "edge@float32"  # the subject whose vectors all others are compared with
# Nothing from the network, and nothing to it: onnxruntime's Linux wheel reports its use unless told not to.
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "ORT_DISABLE_TELEMETRY": "1"}
AT_ONCE = 3  # peers in a group, besides ours: 311M in float32 takes up to 4.6 GB each


@dataclass(frozen=True, slots=True)
class Subject:
    """A library, what it runs, and how many texts it is given at a time: PEER@KIND:BATCH."""

    peer: str
    kind: str
    batch_size: int = 0  # 0: the library's own

    @property
    def name(self) -> str:
        return f"{self.loaded}:{self.batch_size}" if self.batch_size else self.loaded

    @property
    def loaded(self) -> str:
        """What one process serves: all batch sizes of it."""
        return f"{self.peer}@{self.kind}"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all subjects of a run share."""

    folder: Path  # of the model
    threads: int
    scratch: Path  # a folder for caches, texts and vectors


def subject_of(text: str) -> Subject:
    """PEER, PEER@KIND or PEER@KIND:BATCH. Errors: ValueError says what there is."""
    loaded, _, size = text.partition(":")
    peer, _, kind = loaded.partition("@")
    if not (ROOT / "bench" / "peers" / f"{peer}.py").is_file():
        raise ValueError(f"bench/peers has no {peer}.py")
    kinds = importlib.import_module(f"bench.peers.{peer}").KINDS
    if kind and kind not in kinds:
        raise ValueError(f"{peer} runs {', '.join(kinds)}, not {kind}")
    if size and not size.isdecimal():
        raise ValueError(f"the batch size of {text} is no number")
    return Subject(peer, kind or kinds[0], int(size or 0))


def sizes_of(subject: Subject) -> tuple[int, ...]:
    """The batch sizes worth trying, the library's own first."""
    found: tuple[int, ...] = importlib.import_module(f"bench.peers.{subject.peer}").BATCH_SIZES
    return found


def python_of(peer: str) -> str:
    """The interpreter that has a peer's library. Errors: Unavailable where its environment was not made."""
    if importlib.import_module(f"bench.peers.{peer}").ENVIRONMENT == "test":
        return sys.executable
    python = ROOT / ".venv-peers" / "bin" / "python"
    if not (ROOT / ".venv-peers" / ".installed").exists():
        raise Unavailable("its environment was not made; run: make peers")
    return str(python)


class Worker:
    """A subject in a process of its own, from its start to the end of a `with` block."""

    def __init__(self, subject: Subject, setting: Setting, *, cached: bool) -> None:
        """Start it and wait for its first vector.

        Errors: Unavailable with the reason, where the library does not run the model.
        """
        self._name = subject.loaded
        cache = str(setting.scratch / f"cache-{subject.loaded}") if cached else "-"
        arguments = [subject.peer, subject.kind, str(setting.folder), str(setting.threads), cache]
        began = time.monotonic()  # one clock for all processes of a machine
        self._process = subprocess.Popen(
            [python_of(subject.peer), "-m", "bench.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | QUIET,
        )
        try:
            first = self._answer()
        except Unavailable:
            self.__exit__()
            raise
        self.start_seconds: float = first["at"] - began
        self.start_peak: int = first["peak_bytes"]
        self.loaded_bytes: int = first["loaded_bytes"]
        self.start_bytes: int = first["resident_bytes"]
        self.effective: dict[str, str] = first["effective"]

    def encode(
        self, texts: Path, *, batch_size: int = 0, vectors: Path | None = None, callers: int = 0
    ) -> dict[str, Any]:
        """{"seconds", "each", "peak_bytes", "resident_bytes"} of a pass over a JSON list of texts.

        vectors  where to keep them
        callers  1: each text in a call of its own; more: so many threads at once; 0: all in one call
        """
        task = {
            "texts": str(texts),
            "vectors": None if vectors is None else str(vectors),
            "batch_size": batch_size or None,
            "callers": callers,
        }
        assert self._process.stdin is not None
        print(json.dumps(task), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(f"{self._name} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def groups(subjects: Sequence[Subject], at_once: int = AT_ONCE) -> Iterator[list[Subject]]:
    """Subjects that are alive together: ours, and so many other processes as memory holds."""
    ours = [subject for subject in subjects if subject.peer == OURS]
    others = list(dict.fromkeys(subject.loaded for subject in subjects if subject.peer != OURS))
    for start in range(0, max(1, len(others)), at_once):
        here = others[start : start + at_once]
        yield ours + [subject for subject in subjects if subject.loaded in here]


class Rounds:
    """What the rounds of one workload gave, subject by subject."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[list[float]]] = {}  # by group
        self.each: dict[str, list[list[float]]] = {}  # by round, of single calls
        self.facts: dict[str, dict[str, Any]] = {}
        self.vectors: dict[str, NDArray[np.float32]] = {}
        self.failed: dict[str, str] = {}

    def ratio(self, one: str, other: str) -> dict[str, Any] | None:
        """How many times as fast as `other` `one` was, round by round, in the groups that had both."""
        pairs = zip(self.seconds.get(one, ()), self.seconds.get(other, ()), strict=False)
        found = [theirs / ours for a, b in pairs for ours, theirs in zip(a, b, strict=True)]
        return summary(found) if found else None


def run(subjects: Sequence[Subject], setting: Setting, workload: Workload, rounds: int) -> Rounds:
    """Time a workload of texts, group after group."""
    found = Rounds()
    file = setting.scratch / f"{workload.name}.json"
    file.write_text(json.dumps(workload.texts), "utf-8")
    for group in groups(subjects):
        with contextlib.ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for subject in group:
                if subject.loaded in workers or subject.loaded in found.failed:
                    continue
                say(f"{workload.name}: loading {subject.loaded}")
                try:
                    workers[subject.loaded] = stack.enter_context(Worker(subject, setting, cached=True))
                except Unavailable as reason:
                    found.failed[subject.loaded] = str(reason)
                    say(f"{subject.loaded}: {reason}")
            alive = [subject for subject in group if subject.loaded in workers]
            turns(alive, workers, setting, workload, file, rounds, found)
    return found


def turns(
    alive: Sequence[Subject],
    workers: dict[str, Worker],
    setting: Setting,
    workload: Workload,
    file: Path,
    rounds: int,
    found: Rounds,
) -> None:
    """The rounds of one group. Round 0 is the warm-up, and keeps the vectors."""
    took: dict[str, list[float]] = {subject.name: [] for subject in alive}
    for turn in range(rounds + 1):
        for subject in alive:
            name, worker = subject.name, workers[subject.loaded]
            if subject.loaded in found.failed:
                continue
            keep = None if turn or name in found.vectors else setting.scratch / f"{name}.npy"
            try:
                answer = worker.encode(
                    file, batch_size=subject.batch_size, vectors=keep, callers=workload.callers
                )
            except Unavailable as reason:
                found.failed[subject.loaded] = str(reason)
                continue
            rate = workload.tokens / answer["seconds"]
            say(f"{workload.name}: round {turn} of {rounds}, {name}: {rate:,.0f} tokens/s")
            if keep is not None:
                found.vectors[name] = np.load(keep)
            if turn:
                took[name].append(answer["seconds"])
                found.each.setdefault(name, []).append(answer["each"])
            found.facts[name] = {
                "peak_bytes": answer["peak_bytes"],
                "resident_bytes": answer["resident_bytes"],
                "effective": worker.effective,
            }
    for name, seconds in took.items():
        if seconds:
            found.seconds.setdefault(name, []).append(seconds)


def best_sizes(subjects: Sequence[Subject], setting: Setting, workload: Workload) -> list[Subject]:
    """Each peer at its own batch size, and at the fastest of those worth trying where that is another.

    One pass of each size in one process a peer: a size that is hardly faster is no matter.
    """
    file = setting.scratch / f"{workload.name}-sizes.json"
    file.write_text(json.dumps(workload.texts), "utf-8")
    found: list[Subject] = []
    for subject in subjects:
        found.append(subject)
        own, *others = sizes_of(subject)
        if not others or subject.batch_size:
            continue
        try:
            with Worker(subject, setting, cached=True) as worker:
                seconds = {}
                for size in (own, *others):
                    seconds[size] = worker.encode(file, batch_size=size)["seconds"]
                    say(f"{subject.loaded} at batch size {size}: {seconds[size]:.2f} s")
        except Unavailable as reason:  # `run` will say so in its place
            say(f"{subject.loaded}: {reason}")
            continue
        best = min(seconds, key=lambda size: seconds[size])
        if best != own:
            found.append(replace(subject, batch_size=best))
    return found


def starts(
    subjects: Sequence[Subject], setting: Setting, rounds: int
) -> dict[str, dict[str, dict[str, Any]] | str]:
    """Fresh process to first vector, in turns, without a cache and with one that an earlier start has filled.

    A start does not depend on the batch size, so what comes in several sizes is started once for all.
    Of each: {"uncached", "cached"}, each {"seconds", "peak_bytes", "resident_bytes", "loaded_bytes"}; or why
    it cannot.
    """
    kinds = {"uncached": False, "cached": True}
    once = {subject.loaded: subject for subject in subjects}
    seen: dict[tuple[str, str], list[Worker]] = {(name, kind): [] for name in once for kind in kinds}
    failed: dict[str, str] = {}
    for turn in range(rounds + 1):  # turn 0 warms the disk and fills the caches
        for name, kind in seen:
            if name in failed:
                continue
            try:
                with Worker(once[name], setting, cached=kinds[kind]) as worker:
                    say(f"{kind} start {turn} of {rounds}, {name}: {worker.start_seconds:.2f} s")
                    if turn:
                        seen[name, kind].append(worker)
            except Unavailable as reason:
                failed[name] = str(reason)
    return {
        name: failed[name]
        if name in failed
        else {
            kind: {
                "seconds": summary([worker.start_seconds for worker in seen[name, kind]]),
                "peak_bytes": int(statistics.median(worker.start_peak for worker in seen[name, kind])),
                "resident_bytes": int(statistics.median(worker.start_bytes for worker in seen[name, kind])),
                "loaded_bytes": int(statistics.median(worker.loaded_bytes for worker in seen[name, kind])),
            }
            for kind in kinds
        }
        for name in once
    }


def child(*arguments: str) -> str:
    """stdout of a fresh Python."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True).stdout


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
