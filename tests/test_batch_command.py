"""edge-embed batch: its words, its exit codes, what a scheduler and a person see, and Ctrl-C."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from tqdm import tqdm

import edge_embed
from edge_embed import Embedder, batch, locking, shards
from edge_embed.batch import Job, Progress
from edge_embed.cli import batch as command
from edge_embed.cli import main
from edge_embed.errors import InputError, OutputError
from tests.checkpoints import WORDS

Capture = pytest.CaptureFixture[str]

TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 2 + i % 5]) for i in range(30)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"key": f"k{i}", "body": text, "lang": "en", "n": i} for i, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "shards"


def run(*arguments: str | Path) -> int:
    return main(["batch", *map(str, arguments)])


def table_of(folder: Path) -> pandas.DataFrame:
    parts = [pandas.read_parquet(path) for path in sorted(folder.glob("part-*.parquet"))]
    return pandas.concat(parts, ignore_index=True)


def test_every_option_reaches_the_job(
    rows: Path, target: Path, tiny_built: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, Any] = {}

    def take(inputs: list[str], to: str, model: str, job: Job, **options: Any) -> None:
        taken.update(inputs=inputs, to=to, model=model, job=job, **options)
        raise InputError("enough")

    monkeypatch.setattr(batch, "run", take)
    words = (
        "a b --to out -m model --compute-type float32 --device GPU --truncate-dim 8 --max-tokens 9 "
        "--threads 3 --streams 2 --format tsv --text-column body --id-column key --keep-columns lang,n "
        "--prompt-name query --prompt x --on-overflow truncate --on-bad-row stop --max-rejected 5 "
        "--output-format npy --precision int8 --rows-per-shard 7 --restart"
    )
    assert run(*words.split()) == 2
    assert callable(taken.pop("watch"))
    assert taken == {
        "inputs": ["a", "b"],
        "to": "out",
        "model": "model",
        "job": Job(
            text_column="body",
            id_column="key",
            keep_columns=("lang", "n"),
            prompt_name="query",
            prompt="x",
            truncate_dim=8,
            precision="int8",
            output_format="npy",
            rows_per_shard=7,
            on_overflow="truncate",
        ),
        "input_format": "tsv",
        "on_bad_row": "stop",
        "max_rejected": 5,
        "restart": True,
        "compute_type": "float32",
        "device": "GPU",
        "max_tokens": 9,
        "threads": 3,
        "streams": 2,
    }


def test_the_defaults_are_those_of_the_library() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.job_of(parser.parse_args(["in", "--to", "out"])) == Job()


def test_vectors_go_to_shards_people_read_stderr_and_stdout_is_one_line_of_json(
    rows: Path, target: Path, tiny_built: Path, capsys: Capture
) -> None:
    options = ("--text-column", "body", "--id-column", "key", "--keep-columns", "lang, n")
    assert run(rows, "--to", target, "-m", tiny_built, *options, "--rows-per-shard", "20", "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report.pop("seconds") > report.pop("loading_seconds") > 0
    assert report.pop("tokens") > 0
    assert report == {
        "status": "done",
        "folder": str(target),
        "rows_in": 30,
        "embedded": 30,
        "rejected": 0,
        "truncated": 0,
        "shards": 2,
        "resumed_at": 0,
    }
    assert err.startswith(f"30 rows in, 30 embedded and 0 rejected, in 2 shards -> {target}  (")
    table = table_of(target)
    assert table.columns.tolist() == ["id", "position", "lang", "n", "embedding"]
    assert table["id"].tolist() == [f"k{i}" for i in range(30)]
    assert table["n"].tolist() == list(range(30))
    found = np.stack(list(table["embedding"]))
    np.testing.assert_allclose(found, Embedder(tiny_built).encode(TEXTS), rtol=0, atol=1e-6)

    assert run(rows, "--to", target, "-m", tiny_built, *options, "--rows-per-shard", "20") == 0
    assert capsys.readouterr() == ("", f"{target}: all 30 rows were done already\n")


def test_rejected_and_cut_rows_are_told(
    tmp_path: Path, target: Path, tiny_built: Path, capsys: Capture
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "the cat sat on"}\n{"text": null}\n{"text": "a"}\n')
    assert run(path, "--to", target, "-m", tiny_built, "--max-tokens", "4", "--on-overflow", "truncate") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "3 rows in, 2 embedded, 1 of them cut and 1 rejected, in 1 shards" in err
    assert err.endswith(f"why rows were rejected: {target / 'rejected.jsonl'}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.jsonl"], 2, "missing.jsonl does not exist"),
        (
            ["--text-column", "text", "--on-bad-row", "stop"],
            2,
            "rows.jsonl, line 1: no 'text' among its keys",
        ),
        (["--text-column", "body", "--precision", "int4"], 2, "precision is 'int4'"),
        (["--text-column", "body", "--rows-per-shard", "0"], 2, "rows_per_shard is 0"),
        (["--text-column", "body", "--max-tokens", "4", "--max-rejected", "2"], 2, "over the limit of 2"),
        (["--text-column", "body", "--model", "nowhere"], 2, "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    arguments: list[str], code: int, words: str, rows: Path, target: Path, tiny_built: Path, capsys: Capture
) -> None:
    inputs = [] if arguments[0] == "missing.jsonl" else [rows]
    assert run(*inputs, "--to", target, "-m", tiny_built, *arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_another_job_is_refused_with_exit_code_4_unless_it_may_begin_anew(
    rows: Path, target: Path, tiny_built: Path, capsys: Capture
) -> None:
    arguments = (rows, "--to", target, "-m", tiny_built, "--text-column", "body")
    assert run(*arguments) == 0
    capsys.readouterr()
    assert run(*arguments, "--truncate-dim", "8") == 4
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "holds another job: job truncate_dim was None, now 8" in err
    rows.write_bytes(rows.read_bytes()[:-1000])
    assert run(*arguments) == 4
    assert "has changed: " in capsys.readouterr().err
    assert run(*arguments, "--truncate-dim", "8", "--restart") == 0
    assert len(table_of(target)["embedding"].iloc[0]) == 8


def test_a_folder_that_another_process_works_on_is_refused_with_exit_code_2(
    rows: Path, target: Path, tiny_built: Path, capsys: Capture
) -> None:
    target.mkdir()
    with locking.held(target / ".lock", RuntimeError()):
        assert run(rows, "--to", target, "-m", tiny_built, "--text-column", "body") == 2
    assert "another process is working on" in capsys.readouterr().err


# ---- how far it is


def test_under_json_stdout_is_lines_of_json_all_the_way_and_ends_with_the_summary(
    rows: Path, target: Path, tiny_built: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "HEARTBEAT", 0.02)
    write = shards.write

    def slow(*arguments: Any, **options: Any) -> shards.Written:
        time.sleep(0.1)
        return write(*arguments, **options)

    monkeypatch.setattr(shards, "write", slow)
    arguments = (rows, "--to", target, "-m", tiny_built, "--text-column", "body", "--rows-per-shard", "5")
    assert run(*arguments, "--json") == 0
    *beats, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last["status"] == "done"
    assert last["rows_in"] == 30
    running = [beat for beat in beats if beat["status"] == "running"]
    assert running
    assert {beat["status"] for beat in beats} <= {"starting", "running"}
    assert running[-1].keys() == {
        *("status", "rows", "total", "resumed_at", "shards", "tokens_per_second", "seconds", "seconds_left")
    }
    assert running[-1]["total"] == 30
    assert [beat["rows"] for beat in running] == sorted(beat["rows"] for beat in running)
    assert len({beat["rows"] for beat in running}) > 1

    assert run(*arguments, "--restart") == 0
    assert capsys.readouterr().out == ""


def test_heartbeats_do_not_stop_the_job_when_nobody_reads_them(
    rows: Path, target: Path, tiny_built: Path
) -> None:
    program = f"""\
import sys, time
from edge_embed import shards
from edge_embed.cli import batch, main
batch.HEARTBEAT = 0.01
write = shards.write
def slow(*arguments, **options):
    time.sleep(0.1)
    return write(*arguments, **options)
shards.write = slow
sys.exit(main(["batch", {str(rows)!r}, "--to", {str(target)!r}, "-m", {str(tiny_built)!r},
    "--text-column", "body", "--rows-per-shard", "5", "--json"]))
"""
    child = start([sys.executable, "-c", program])
    with child:
        assert child.stdout
        assert child.stderr
        child.stdout.readline()
        child.stdout.close()
        err = child.stderr.read()
    assert child.returncode == 141, err
    assert "Traceback" not in err
    assert json.loads((target / "manifest.json").read_bytes())["status"] == "done"


def bar_of(said: list[Progress], seconds: float) -> str:
    """What a terminal shows at last, with so many seconds before each time that progress is told."""
    screen = io.StringIO()
    with (
        tqdm(desc="Embedding", unit="row", file=screen, mininterval=0, miniters=0, smoothing=0.05) as bar,
        command.Watcher(bar, heartbeat=None) as watcher,
    ):
        for now in said:
            bar.start_t -= seconds
            bar.last_print_t -= seconds
            watcher.tell(now)
        return screen.getvalue().split("\r")[-1].strip()


def test_the_bar_shows_rows_tokens_a_second_and_the_time_left() -> None:
    said = [
        Progress(1000, None, 1000, 0, 0.0, 10),
        Progress(1100, 2000, 1000, 5000, 10.0, 11),
        Progress(1200, 2000, 1000, 12000, 20.0, 12),
    ]
    shown = bar_of(said, 10)
    assert shown.startswith("Embedding:  60%|")
    assert shown.endswith(" 1200/2000 [00:20<01:20, 10.00row/s, 600 tokens/s]")


def test_rows_of_earlier_runs_and_the_loading_of_the_model_are_no_sign_of_speed() -> None:
    shown = bar_of(
        [Progress(10**6, None, 10**6, 0, 0.0, 9), Progress(10**6 + 50, None, 10**6, 9, 10.0, 9)], 10
    )
    assert shown == "Embedding: 1000050row [00:10,  5.00row/s, 1 tokens/s]"


# ---- interrupted


def start(arguments: list[str], **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        arguments,
        env=os.environ | {"PYTHONPATH": str(Path(edge_embed.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_exits_with_130_and_the_job_goes_on_although_stdin_has_not_ended(
    target: Path, tiny_built: Path
) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    arguments = ["-", "--to", str(target), "-m", str(tiny_built), "--rows-per-shard", "10"]
    child = start([sys.executable, "-m", "edge_embed", "batch", *arguments], stdin=subprocess.PIPE)
    with child:
        assert child.stdin
        assert child.stderr
        child.stdin.write(lines[: lines.rindex("{")])  # the last shard waits for its last row
        child.stdin.flush()
        wait_for(lambda: len(list(target.glob("part-*"))) == 2 and shards_on_record(target) == 2)
        child.send_signal(signal.SIGINT)
        child.stdin.write(lines[lines.rindex("{") :])
        child.stdin.close()
        err = child.stderr.read()
    assert child.returncode == 130, err
    assert err == "edge-embed: interrupted; nothing half-written is left\n"
    assert sorted(path.name for path in target.glob("part-*")) == ["part-00000.parquet", "part-00001.parquet"]
    again = start([sys.executable, "-m", "edge_embed", "batch", *arguments, "--json"], stdin=subprocess.PIPE)
    out, err = again.communicate(lines)
    assert again.returncode == 0, err
    assert json.loads(out)["resumed_at"] == 20
    assert table_of(target)["position"].tolist() == list(range(30))


def shards_on_record(target: Path) -> int:
    return (target / "journal.jsonl").read_bytes().count(b'"shard"')


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it has not happened in two minutes"
        time.sleep(0.01)


def test_a_disk_that_is_full_is_one_line(
    rows: Path, target: Path, tiny_built: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("cannot write part-00000.parquet: No space left on device")

    monkeypatch.setattr(shards, "write", full)
    assert run(rows, "--to", target, "-m", tiny_built, "--text-column", "body") == 2
    expected = "edge-embed: cannot write part-00000.parquet: No space left on device\n"
    assert capsys.readouterr() == ("", expected)
