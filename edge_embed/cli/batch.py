"""edge-embed batch: embed files of any size into shards, and go on where it was stopped."""

import argparse
import contextlib
import json
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edge_embed.cli.common import TEXT_COLUMN, add_model_arguments
from edge_embed.errors import InputError

if TYPE_CHECKING:
    from tqdm import tqdm

    from edge_embed.batch import Job, Progress, Summary

HELP = "embed files of any size into shards; killed and run again, it goes on where it was"

HEARTBEAT = 10.0  # seconds between lines of --json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "--json prints a line of JSON every ten seconds, with the rows that are done, and at the end the "
        "summary.\nKilled at any moment, the same command goes on where it was; vectors, rejected.jsonl and "
        "manifest.json\nare then as if nothing had happened. A finished job run again does nothing."
    )
    parser.add_argument(
        "input",
        nargs="+",
        help="JSONL, CSV or TSV (plain, .gz or .zst) or Parquet: files, folders, globs; - is stdin",
    )
    parser.add_argument("--to", required=True, metavar="FOLDER", help="where shards and their journal go")
    add_model_arguments(parser)
    texts = parser.add_argument_group("rows")
    texts.add_argument(
        "--format",
        choices=("jsonl", "csv", "tsv", "parquet"),
        help="of stdin, and of files with other suffixes",
    )
    texts.add_argument("--text-column", default=TEXT_COLUMN, metavar="KEY", help="default: %(default)s")
    texts.add_argument(
        "--id-column", metavar="KEY", help="strings or whole numbers (default: the row's place in the input)"
    )
    texts.add_argument(
        "--keep-columns",
        default="",
        metavar="KEY,KEY",
        help="columns that are copied beside the vectors",
    )
    texts.add_argument("--prompt-name", metavar="NAME", help="the model's prompt to put before each text")
    texts.add_argument("--prompt", metavar="TEXT", help="such a prompt itself")
    texts.add_argument(
        "--on-overflow",
        choices=("reject", "truncate"),
        default="reject",
        help="texts over --max-tokens are bad rows, or are cut (default: %(default)s)",
    )
    texts.add_argument(
        "--on-bad-row",
        choices=("reject", "stop"),
        default="reject",
        help="bad rows go to rejected.jsonl, or end the job (default: %(default)s)",
    )
    texts.add_argument("--max-rejected", type=int, metavar="N", help="more bad rows than this end the job")
    output = parser.add_argument_group("output")
    output.add_argument("--output-format", choices=("parquet", "npy"), default="parquet")
    output.add_argument(
        "--precision",
        default="float32",
        help="float32, int8, uint8, binary or ubinary (default: %(default)s)",
    )
    output.add_argument(
        "--rows-per-shard",
        type=int,
        default=8192,
        metavar="N",
        help="input rows, fewer where texts are long (default: %(default)s)",
    )
    output.add_argument("--restart", action="store_true", help="throw away what is in the folder of this job")
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="this process, or a Ray cluster: docs/batch.md (default: %(default)s)",
    )
    engine.add_argument(
        "--address", help="of the Ray cluster, HOST:PORT (default: RAY_ADDRESS, else one of its own here)"
    )
    engine.add_argument(
        "--workers", type=int, metavar="N", help="processes with a model each (default: as many as have room)"
    )


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from edge_embed import batch

    watched = sys.stderr is not None and sys.stderr.isatty()
    with (
        tqdm(desc="Embedding", unit="row", smoothing=0.05, disable=not watched) as bar,
        Watcher(bar, heartbeat=HEARTBEAT if args.json else None) as watcher,
    ):
        done = engine_of(args)(
            args.input,
            args.to,
            args.model,
            job_of(args),
            input_format=args.format,
            on_bad_row=args.on_bad_row,
            max_rejected=args.max_rejected,
            restart=args.restart,
            watch=watcher.tell,
            compute_type=args.compute_type,
            device=args.device,
            max_tokens=args.max_tokens,
            threads=args.threads,
            streams=args.streams,
        )
    print(summary_line(done), file=sys.stderr)
    if done.rejected:
        print(f"why rows were rejected: {done.folder / batch.REJECTED}", file=sys.stderr)
    if args.json:
        print(json.dumps({"status": "done"} | done.to_dict()))
    return 0


def engine_of(args: argparse.Namespace) -> Callable[..., "Summary"]:
    """What runs the job. Errors: InputError."""
    if args.engine == "ray":
        from edge_embed.integrations.ray import run_ray

        return partial(run_ray, address=args.address, workers=args.workers)
    if args.address is not None or args.workers is not None:
        raise InputError("--address and --workers are for --engine ray; add it, or leave them out")
    from edge_embed.batch import run

    return run


def job_of(args: argparse.Namespace) -> "Job":
    """What decides the vectors, as the library takes it."""
    from edge_embed.batch import Job

    return Job(
        text_column=args.text_column,
        id_column=args.id_column,
        keep_columns=tuple(name.strip() for name in args.keep_columns.split(",") if name.strip()),
        prompt_name=args.prompt_name,
        prompt=args.prompt,
        truncate_dim=args.truncate_dim,
        precision=args.precision,
        output_format=args.output_format,
        rows_per_shard=args.rows_per_shard,
        on_overflow=args.on_overflow,
    )


def summary_line(done: "Summary") -> str:
    """What a job has done, for people."""
    if done.rows_in and done.resumed_at == done.rows_in:
        return f"{done.folder}: all {done.rows_in:,} rows were done already"
    rate = (done.rows_in - done.resumed_at) / done.seconds if done.seconds else 0.0
    began = f", from row {done.resumed_at:,} on" if done.resumed_at else ""
    cut = f", {done.truncated:,} of them cut" if done.truncated else ""
    return (
        f"{done.rows_in:,} rows in, {done.embedded:,} embedded{cut} and {done.rejected:,} rejected, in "
        f"{done.shards:,} shards -> {done.folder}  ({rate:,.0f} rows/s{began})"
    )


class Watcher:
    """Moves the bar, and prints where the job is every so many seconds, also when nothing moves."""

    def __init__(self, bar: "tqdm[Any]", *, heartbeat: float | None) -> None:
        self._bar, self._heartbeat = bar, heartbeat
        self._last: Progress | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="edge-embed-heartbeat", daemon=True)

    def __enter__(self) -> "Watcher":
        if self._heartbeat:
            self._thread.start()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        if self._heartbeat:
            self._thread.join()

    def tell(self, now: "Progress") -> None:
        """Take in how far the job is."""
        if (
            self._last is None
        ):  # what earlier runs have done, and the loading of the model, is no sign of speed
            self._bar.initial = self._bar.n = self._bar.last_print_n = now.rows
            self._bar.unpause()
        self._last = now
        self._bar.total = now.total
        self._bar.set_postfix_str(f"{now.tokens_per_second:,.0f} tokens/s", refresh=False)
        self._bar.update(now.rows - self._bar.n)

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # who reads has left; the job goes on, and its end will tell
            while not self._ended.wait(self._heartbeat):
                print(json.dumps(heartbeat(self._last)), flush=True)


def heartbeat(now: "Progress | None") -> dict[str, Any]:
    """The values of one line; before the first row, while the model loads, there are few."""
    if now is None:
        return {"status": "starting"}
    return {
        "status": "running",
        "rows": now.rows,
        "total": now.total,
        "resumed_at": now.resumed_at,
        "shards": now.shards,
        "tokens_per_second": round(now.tokens_per_second, 1),
        "seconds": round(now.seconds, 1),
        "seconds_left": None if now.seconds_left is None else round(now.seconds_left),
    }
