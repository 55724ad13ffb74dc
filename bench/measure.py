"""Runs subjects in processes of their own, in turns, and times them. Knows no targets."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.verdict import EDGE, summary

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Subject:
    """A peer and the batch size it is given."""

    peer: str
    batch_size: int  # 0: the peer's own

    @property
    def name(self) -> str:
        return f"{self.peer}:{self.batch_size}" if self.batch_size else self.peer


@dataclass(frozen=True, slots=True)
class Setting:
    """What all subjects of a run share."""

    folder: Path  # of the model
    threads: int
    scratch: Path  # a folder for caches, texts and vectors


class Worker:
    """A subject in a process of its own, from its start to the end of a `with` block."""

    def __init__(self, subject: Subject, setting: Setting, *, cached: bool) -> None:
        self._name = subject.name
        cache = str(setting.scratch / f"cache-{subject.peer}") if cached else "-"
        arguments = [subject.peer, str(setting.folder), str(setting.threads), cache, str(subject.batch_size)]
        began = time.monotonic()  # one clock for all processes of a machine
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )
        first = self._answer()
        self.start_seconds: float = first["at"] - began
        self.start_peak: int = first["peak_bytes"]

    def encode(self, texts: Path, vectors: Path | None = None, *, single: bool = False) -> dict[str, Any]:
        """{"seconds", "peak_bytes"} of one pass over a JSON list of texts; keeps the vectors if told.

        single  each text in a call of its own
        """
        assert self._process.stdin is not None
        task = {"texts": str(texts), "vectors": None if vectors is None else str(vectors), "single": single}
        print(json.dumps(task), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"bench: {self._name} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def starts(subjects: Sequence[Subject], setting: Setting, rounds: int) -> dict[str, dict[str, Any]]:
    """Fresh process to first vector, in turns, without a cache and with one that an earlier start has filled.

    A start does not depend on the batch size, so a peer that comes in several sizes is started once for all.
    """
    peers = dict.fromkeys(subject.peer for subject in subjects)
    kinds = {"start_uncached": False, "start_cached": True}
    seconds: dict[tuple[str, str], list[float]] = {(peer, kind): [] for peer in peers for kind in kinds}
    peaks: dict[tuple[str, str], list[int]] = {key: [] for key in seconds}
    for turn in range(rounds + 1):  # turn 0 warms the disk and fills the caches
        for peer, kind in seconds:
            say(f"{kind} {turn} of {rounds}, {peer}")
            with Worker(Subject(peer, 0), setting, cached=kinds[kind]) as worker:
                if turn:
                    seconds[peer, kind].append(worker.start_seconds)
                    peaks[peer, kind].append(worker.start_peak)
    return {
        subject.name: {
            kind: {
                "seconds": summary(seconds[subject.peer, kind]),
                "peak_bytes": int(statistics.median(peaks[subject.peer, kind])),
            }
            for kind in kinds
        }
        for subject in subjects
    }


def work(
    subjects: Sequence[Subject], setting: Setting, texts: Sequence[str], rounds: int
) -> dict[str, dict[str, Any]]:
    """Texts per second, A B C A B C: whatever else the machine does, it does it to all of them."""
    file = setting.scratch / "texts.json"
    file.write_text(json.dumps(texts), "utf-8")
    rates: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    peaks: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        workers = {
            subject.name: stack.enter_context(Worker(subject, setting, cached=True)) for subject in subjects
        }
        for turn in range(rounds + 1):  # turn 0 is the warm-up, and keeps the vectors
            for name, worker in workers.items():
                say(f"round {turn} of {rounds}, {name}")
                answer = worker.encode(file, None if turn else setting.scratch / f"{name}.npy")
                peaks[name] = answer["peak_bytes"]
                if turn:
                    rates[name].append(len(texts) / answer["seconds"])
    edge = np.load(setting.scratch / f"{EDGE}.npy")
    return {
        name: {
            "texts_per_second": summary(rates[name]),
            "peak_bytes": peaks[name],
            "max_abs_diff": float(np.abs(edge - np.load(setting.scratch / f"{name}.npy")).max()),
        }
        for name in workers
    }


def child(*arguments: str) -> str:
    """stdout of a fresh Python."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True).stdout


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
