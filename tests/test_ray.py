"""The offline job on a Ray cluster: the very shards of one machine, whoever dies on the way.

A cluster of two workers on this machine, started here. What needs no cluster comes first.
"""

import gzip
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("ray.data")

from pyarrow import parquet  # noqa: E402

from edge_embed import Embedder, batch, locking, readers, shards  # noqa: E402
from edge_embed.batch import JOURNAL, LOCK, MANIFEST, REJECTED, Done, Job  # noqa: E402
from edge_embed.cli import main  # noqa: E402
from edge_embed.errors import CrashError, InputError, MismatchError, OutputError  # noqa: E402
from edge_embed.integrations import ray as engine  # noqa: E402
from edge_embed.integrations.ray import Maker, Order, Task, run_ray  # noqa: E402
from edge_embed.readers import Columns  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    # Ray 2.60 in its own code: a copy of its settings sets deprecated ones, files are forgotten.
    "ignore:.*deprecated:DeprecationWarning:ray.data.context",
    "ignore:unclosed:ResourceWarning",
    "ignore:subprocess .* is still running:ResourceWarning",
)

JOB = Job(id_column="id", keep_columns=("year", "late"), rows_per_shard=16)


# ---- inputs, and what is made of them


def rows_of(first: int, count: int) -> list[dict[str, Any]]:
    """Rows of several lengths; `late` has its first value in row 150, `year` is a string from 280 to 299."""
    return [
        {
            "id": f"row {i}",
            "text": " ".join(["harbour", "ferry", "bread", "kitchen"][: 1 + i % 4] * (1 + i % 9)) + f" {i}",
            "year": f"{i}" if 280 <= i < 300 else 1900 + i if i % 5 else None,
            "late": i / 4 if i >= 150 else None,
        }
        for i in range(first, first + count)
    ]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]], *more: str) -> Path:
    path.write_text("".join(line + "\n" for line in [*map(json.dumps, rows), *more]))
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """342 rows of JSONL and of Parquet in groups of 30, some of them bad. Read only."""
    folder = tmp_path_factory.mktemp("inputs")
    bad = [
        "not JSON",
        "",
        json.dumps({"id": 7, "text": "an id of another kind"}),
        json.dumps({"id": "textless"}),
    ]
    one = write_lines(folder / "one.jsonl", rows_of(0, 100), *bad)
    two = folder / "two.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows_of(100, 137)), two, row_group_size=30)
    other = {"id": 8, "text": "an id of another kind, and the first of its file"}
    long = {"id": "long", "text": "ferry " * 900}
    three = write_lines(folder / "three.jsonl", [other, *rows_of(237, 100), long])
    return [one, two, three]


def journal_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


@pytest.fixture(scope="module")
def alone(tiny_built: Path, inputs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one machine makes of the inputs. Read only."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    batch.run(inputs, folder, tiny_built, JOB, threads=1)
    return folder


def assert_same(folder: Path, other: Path) -> None:
    """Two folders have the same files with the same content, journals and all."""
    assert journal_of(folder) == journal_of(other)
    assert files_of(folder) == files_of(other)


# ---- without a cluster


def task_columns(job: Job) -> Columns:
    return Columns(job.text_column, job.id_column, job.keep_columns)


def order_for(inputs: Sequence[Path], folder: Path, model: Path, job: Job = JOB) -> Order:
    """The order of a job that has just begun."""
    sources = readers.find([str(path) for path in inputs])
    folder.mkdir(exist_ok=True)
    worker = batch.Worker(model, threads=1)
    identity = batch.identify(job, worker, worker.options(job), sources)
    id_type = engine.id_type_of(sources, task_columns(job))
    return Order(job, model, folder, tuple(sources), id_type, identity, {"threads": 1})


def begun(folder: Path, *entries: dict[str, Any]) -> Done:
    return Done(folder, {}, list(entries), complete=False, doubtful=False)


@pytest.mark.parametrize("rows_per_shard", [1, 7, 16, 100, 1000])
def test_each_task_reads_the_rows_that_a_reader_of_everything_finds_there(
    rows_per_shard: int, inputs: list[Path], tiny_built: Path, tmp_path: Path
) -> None:
    job = Job(id_column="id", keep_columns=("year",), rows_per_shard=rows_per_shard)
    order = order_for(inputs, tmp_path / "out", tiny_built, job)
    columns = task_columns(job)
    everything = list(readers.read(order.sources, columns))
    tasks = engine.cut(order.sources, columns, job, begun(tmp_path))
    assert [task.number for task in tasks] == list(range(len(tasks)))
    assert [task.start for task in tasks] == [*range(0, len(everything), rows_per_shard)]
    found = [list(islice(engine.read(order, columns, task), task.stop - task.start)) for task in tasks]
    assert [row for rows in found for row in rows] == everything


def test_a_job_that_goes_on_is_cut_from_where_it_is(inputs: list[Path], tmp_path: Path) -> None:
    sources, columns = readers.find([str(path) for path in inputs]), task_columns(JOB)
    whole = engine.cut(sources, columns, JOB, begun(tmp_path))
    entries = [{"stop": task.stop} for task in whole]
    for done in range(len(whole) + 1):
        assert engine.cut(sources, columns, JOB, begun(tmp_path, *entries[:done])) == whole[done:]


def test_shards_of_long_texts_have_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "CHARACTERS_PER_SHARD", 1000)
    rows = [{"text": "x" * length} for length in [*[90] * 25, 5000, 10, 10]]
    lines = write_lines(tmp_path / "rows.jsonl", rows)
    table = tmp_path / "rows.parquet"
    texts = ["".join(chr(97 + (i * j) % 26) for j in range(100)) for i in range(40)]
    parquet.write_table(pyarrow.table({"text": texts}), table, compression=None, use_dictionary=False)
    for path, sizes in ((lines, [10, 10, 6, 2]), (table, [10, 10, 10, 10])):
        tasks = engine.cut(readers.find([str(path)]), Columns("text", None), Job(), begun(tmp_path))
        assert [task.stop - task.start for task in tasks] == sizes


def test_inputs_that_cannot_be_divided_are_refused(tiny_built: Path, tmp_path: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    table = tmp_path / "rows.csv"
    table.write_text('id,text\n1,a\n2,"two\nlines"\n')
    for given, reason in (
        ("-", "stdin cannot be divided"),
        (packed, "compressed with gzip"),
        (table, "the row in line 3 has several lines"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            run_ray([given], tmp_path / "out", tiny_built, threads=1)
        assert "convert it to Parquet or plain JSONL" in str(error.value)


def test_a_table_of_one_line_a_row_can_be_divided(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text('id,text\n1,"a, b"\n\n2,c\n3,"d ""quoted"""')
    tasks = engine.cut(
        readers.find([str(table)]), Columns("text", "id"), Job(rows_per_shard=2), begun(tmp_path)
    )
    assert [(task.start, task.stop) for task in tasks] == [(0, 2), (2, 3)]


def test_an_actor_that_would_make_other_vectors_says_so(
    inputs: list[Path], tiny_built: Path, tmp_path: Path
) -> None:
    order = order_for(inputs, tmp_path / "out", tiny_built)
    order.identity["plan"]["compute_type"] = "bfloat16"
    task = json.dumps({"number": 0, "start": 0, "stop": 16, "source": 0, "before": 0})
    (made,) = Maker(order)({"task": [task]})["made"]
    error = json.loads(made)["error"]
    assert error["kind"] == "MismatchError"
    assert "compute_type was 'bfloat16', now 'float32'" in error["line"]


def test_an_actor_notices_an_input_that_has_shrunk(
    inputs: list[Path], tiny_built: Path, tmp_path: Path
) -> None:
    order = order_for(inputs, tmp_path / "out", tiny_built)
    task = json.dumps({"number": 0, "start": 336, "stop": 352, "source": 2, "before": 240})
    (made,) = Maker(order)({"task": [task]})["made"]
    assert json.loads(made)["error"] == {
        "kind": "MismatchError",
        "line": "the input ends at row 342, and had 352 when the job began; run it again when the input no "
        "longer changes",
    }


def test_threads_of_an_actor_are_not_pinned_to_cores_that_another_has(tiny_built: Path) -> None:
    assert batch.Worker(tiny_built, threads=1).effective("ENABLE_CPU_PINNING") in ("True", "YES")
    assert engine.Unpinned(tiny_built, threads=1).effective("ENABLE_CPU_PINNING") in ("False", "NO")


def test_a_shard_that_is_not_seen_here_means_that_the_folder_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SHARED_WITHIN", 0.3)
    (tmp_path / "part-00000.parquet").write_bytes(b"12")
    engine.wait_for(tmp_path / "part-00000.parquet", 2)
    with pytest.raises(OutputError, match="name a folder that all machines share"):
        engine.wait_for(tmp_path / "part-00000.parquet", 3)


def test_a_cluster_without_a_machine_of_so_many_cores_is_refused() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 9.0}},
        {"Alive": True, "Resources": {}},
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    assert [engine.room(nodes, threads) for threads in (1, 4, 5)] == [13, 3, 1]
    with pytest.raises(
        InputError, match="an actor has 10 threads, and no machine of the cluster more than 9"
    ):
        engine.room(nodes, 10)


def test_a_second_driver_is_refused(inputs: list[Path], tiny_built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (
        locking.held(out / LOCK, AssertionError()),
        pytest.raises(InputError, match="another process is working on"),
    ):
        run_ray(inputs, out, tiny_built, JOB, threads=1)


def test_a_job_that_is_done_starts_no_cluster(
    alone: Path, inputs: list[Path], tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    monkeypatch.setattr(engine, "connected", None)
    summary = run_ray(inputs, out, tiny_built, JOB, threads=1)
    assert (summary.rows_in, summary.resumed_at, summary.tokens) == (342, 342, 0)
    assert_same(out, alone)


def test_another_job_in_the_folder_is_refused(
    alone: Path, inputs: list[Path], tiny_built: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    with pytest.raises(MismatchError, match="holds another job: job id_column was 'id', now None"):
        run_ray(inputs, out, tiny_built, threads=1)
    assert_same(out, alone)


def test_no_cluster_at_the_address_is_one_line(inputs: list[Path], tiny_built: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no Ray cluster answers at 127\.0\.0\.1:9") as error:
        run_ray(inputs, tmp_path / "out", tiny_built, JOB, threads=1, address="127.0.0.1:9")
    assert "\n" not in str(error.value)


def test_without_ray_the_extra_is_named(
    inputs: list[Path], tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(InputError, match=r"pip install 'edge-embed\[ray\]'"):
        run_ray(inputs, tmp_path / "out", tiny_built, JOB)


@pytest.mark.large
def test_without_an_address_a_cluster_is_started_and_ended(
    alone: Path, inputs: list[Path], tiny_built: Path, tmp_path: Path
) -> None:
    folder = tempfile.mkdtemp(prefix="ray-")
    code = (
        "import json, sys\n"
        "from edge_embed.batch import Job\n"
        "from edge_embed.integrations.ray import run_ray\n"
        "inputs, out, model = json.loads(sys.argv[1])\n"
        "job = Job(id_column='id', keep_columns=('year', 'late'), rows_per_shard=16)\n"
        "run_ray(inputs, out, model, job, threads=1)\n"
        "import ray\n"
        "print(ray.is_initialized())\n"
    )
    given = json.dumps([[str(path) for path in inputs], str(tmp_path / "out"), str(tiny_built)])
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, given],
            env=environment | {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert_same(tmp_path / "out", alone)


# ---- with a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two CPUs, to which this process is connected."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # or Ray keeps a token in the home folder
        patch.delenv("RAY_ADDRESS", raising=False)
        folder = tempfile.mkdtemp(prefix="ray-")  # its sockets have no room for pytest's long paths
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 << 20,
            _temp_dir=folder,
        )
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


class Stopped(Exception):
    """What a test raises in the middle of a job."""


def stop_after(rows: int) -> Any:
    """A watcher that ends the run when so many rows are through."""

    def watch(now: batch.Progress) -> None:
        if now.rows - now.resumed_at >= rows:
            raise Stopped

    return watch


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("output_format", shards.FORMATS)
def test_a_cluster_makes_the_very_files_that_one_machine_makes(
    output_format: str, inputs: list[Path], tiny_built: Path, tmp_path: Path
) -> None:
    job = Job(id_column="id", keep_columns=("year", "late"), rows_per_shard=16, output_format=output_format)
    seen: list[batch.Progress] = []
    there = run_ray(inputs, tmp_path / "there", tiny_built, job, threads=1, watch=seen.append)
    here = batch.run(inputs, tmp_path / "here", tiny_built, job, threads=1)
    assert_same(tmp_path / "there", tmp_path / "here")
    ignored = {"folder", "seconds", "loading_seconds"}
    assert {k: v for k, v in there.to_dict().items() if k not in ignored} == {
        k: v for k, v in here.to_dict().items() if k not in ignored
    }
    assert (there.embedded, there.rejected, there.shards) == (317, 25, 22)
    assert [now.rows for now in seen] == sorted(now.rows for now in seen)
    assert (seen[0].rows, seen[-1].rows, seen[-1].total) == (0, 342, 342)


@pytest.mark.usefixtures("cluster")
def test_the_vectors_are_those_of_the_embedder(tiny_built: Path, tmp_path: Path) -> None:
    rows = rows_of(0, 100)
    run_ray([write_lines(tmp_path / "rows.jsonl", rows)], tmp_path / "out", tiny_built, JOB, threads=1)
    found: dict[Any, Any] = {}
    for path in sorted((tmp_path / "out").glob("part-*.parquet")):
        shard = shards.read(path.parent, path.name)
        found |= dict(zip(shard.ids, shard.vectors, strict=True))
    assert list(found) == [row["id"] for row in rows]
    expected = Embedder(tiny_built, threads=1).encode([row["text"] for row in rows])
    np.testing.assert_allclose(np.array(list(found.values())), expected, atol=1e-6)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("written", [False, True], ids=["before its shard is written", "after"])
def test_an_actor_that_is_killed_costs_nothing(
    written: bool,
    alone: Path,
    inputs: list[Path],
    tiny_built: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flag = tmp_path / "killed"

    class Dies(Maker):
        def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
            made = super().__call__(batch) if written else None
            try:
                os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return made or super().__call__(batch)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    monkeypatch.setattr(engine, "Maker", Dies)
    run_ray(inputs, tmp_path / "out", tiny_built, JOB, threads=1)
    assert flag.exists()
    assert_same(tmp_path / "out", alone)


@pytest.mark.usefixtures("cluster")
def test_the_command_takes_a_cluster(
    tiny_built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "rows.jsonl", rows_of(0, 40))
    command = [
        "batch",
        str(source),
        "--to",
        str(tmp_path / "out"),
        "-m",
        str(tiny_built),
        "--threads",
        "1",
        "--json",
    ]
    assert main([*command, "--engine", "ray", "--workers", "1", "--rows-per-shard", "16"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["shards"] == 3
    assert main([*command, "--workers", "1"]) == 2
    assert "--address and --workers are for --engine ray" in capsys.readouterr().err


@pytest.mark.large
@pytest.mark.usefixtures("cluster")
def test_a_shard_that_kills_each_of_its_actors_ends_the_job(
    alone: Path, inputs: list[Path], tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly(Maker):
        def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
            if json.loads(batch["task"][0])["number"] == 3:
                os._exit(1)
            return super().__call__(batch)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "Maker", Deadly)
        with pytest.raises(CrashError, match="an actor died 4 times over one shard") as error:
            run_ray(inputs, out, tiny_built, JOB, threads=1)
    assert "\n" not in str(error.value)
    run_ray(inputs, out, tiny_built, JOB, threads=1)
    assert_same(out, alone)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("engines", ["cluster, machine", "machine, cluster", "cluster, cluster"])
def test_a_job_that_was_stopped_goes_on_with_either_engine(
    engines: str, alone: Path, inputs: list[Path], tiny_built: Path, tmp_path: Path
) -> None:
    first, second = (run_ray if name == "cluster" else batch.run for name in engines.split(", "))
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        first(inputs, out, tiny_built, JOB, threads=1, watch=stop_after(100))
    before = journal_of(out)
    assert "complete" not in before[-1]
    summary = second(inputs, out, tiny_built, JOB, threads=1)
    assert summary.resumed_at == before[-1].get("stop", 0)
    assert (summary.rows_in, summary.shards) == (342, 22)
    assert_same(out, alone)


def test_a_driver_that_was_killed_is_followed_by_another(
    cluster: str, alone: Path, inputs: list[Path], tiny_built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = [[str(path) for path in inputs], str(out), str(tiny_built)]
    code = (
        "import json, sys, time\n"
        "from edge_embed.batch import Job\n"
        "from edge_embed.integrations.ray import run_ray\n"
        "inputs, out, model = json.loads(sys.argv[1])\n"
        "job = Job(id_column='id', keep_columns=('year', 'late'), rows_per_shard=16)\n"
        "slowly = lambda now: time.sleep(0.2)\n"
        "run_ray(inputs, out, model, job, address=sys.argv[2], threads=1, watch=slowly)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(given), cluster]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        until = time.monotonic() + 120
        while not (out / JOURNAL).exists() or len(journal_of(out)) < 6:
            assert driver.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        driver.kill()
    done = len(journal_of(out)) - 1
    assert 5 <= done < 22
    summary = run_ray(inputs, out, tiny_built, JOB, threads=1)
    assert summary.resumed_at == 16 * done
    assert_same(out, alone)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("limit", [{"on_bad_row": "stop"}, {"max_rejected": 2}], ids=str)
def test_bad_rows_end_a_job_where_they_end_it_on_one_machine(
    limit: dict[str, Any], inputs: list[Path], tiny_built: Path, tmp_path: Path
) -> None:
    said = []
    for run, name in ((run_ray, "there"), (batch.run, "here")):
        with pytest.raises(InputError) as error:
            run(inputs, tmp_path / name, tiny_built, JOB, threads=1, **limit)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert journal_of(tmp_path / "there") == journal_of(tmp_path / "here")
    assert len(journal_of(tmp_path / "there")) == 7  # what the job is, and the six shards before the bad rows


@pytest.mark.usefixtures("cluster")
def test_rows_that_were_added_are_embedded_and_rows_that_were_changed_refused(
    tiny_built: Path, tmp_path: Path
) -> None:
    rows = rows_of(0, 40)
    path, job = tmp_path / "rows.jsonl", Job(id_column="id", rows_per_shard=16)
    run_ray([write_lines(path, rows)], tmp_path / "out", tiny_built, job, threads=1)
    summary = run_ray([write_lines(path, rows_of(0, 50))], tmp_path / "out", tiny_built, job, threads=1)
    assert (summary.resumed_at, summary.rows_in, summary.shards) == (40, 50, 4)
    rows[20]["text"] = "something else"
    with pytest.raises(MismatchError, match="rows 16 to 31 are not those of shard 1"):
        run_ray([write_lines(path, rows)], tmp_path / "out", tiny_built, job, threads=1)


def test_an_empty_input_is_a_job_without_shards(tiny_built: Path, tmp_path: Path) -> None:
    summary = run_ray([write_lines(tmp_path / "none.jsonl", [])], tmp_path / "out", tiny_built, threads=1)
    assert (summary.rows_in, summary.shards) == (0, 0)
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["status"] == "done"
    assert not (tmp_path / "out" / REJECTED).exists()


@pytest.mark.usefixtures("cluster")
def test_what_is_wrong_in_an_actor_is_said_in_one_line(
    alone: Path, inputs: list[Path], tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Maker):
        def _made(self, task: Task) -> dict[str, Any]:
            if task.number == 3:
                raise OutputError("cannot write here: no space left; free some")
            return super()._made(task)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "Maker", Full)
        with pytest.raises(OutputError, match="cannot write here: no space left; free some"):
            run_ray(inputs, out, tiny_built, JOB, threads=1)
    assert len(journal_of(out)) <= 4
    run_ray(inputs, out, tiny_built, JOB, threads=1)
    assert_same(out, alone)


@pytest.mark.large
@pytest.mark.usefixtures("cluster")
def test_rays_own_checkpoint_serves_a_pipeline_with_our_model(tiny_built: Path, tmp_path: Path) -> None:
    import ray
    from ray.data.checkpoint import CheckpointConfig

    flag, seen = tmp_path / "failed", tmp_path / "seen"
    seen.mkdir()

    class Embed:
        def __init__(self) -> None:
            self.embedder = engine.Unpinned(tiny_built, threads=1)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            if "row 170" in batch["id"] and not flag.exists():
                flag.touch()
                raise RuntimeError("once")
            for name in batch["id"]:
                (seen / name).write_text((seen / name).read_text() + "x" if (seen / name).exists() else "x")
            return batch | {"embedding": self.embedder.encode_document(list(batch["text"]))}

    def run() -> None:
        context = ray.data.DataContext.get_current().copy()
        context.checkpoint_config = CheckpointConfig(
            id_column="id", checkpoint_path=str(tmp_path / "checkpoint")
        )
        with ray.data.DataContext.current(context):
            ray.data.read_parquet(str(tmp_path / "in")).map_batches(
                Embed, batch_size=10, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.5
            ).write_parquet(str(tmp_path / "out"))

    rows = rows_of(0, 200)
    (tmp_path / "in").mkdir()
    for i in range(0, 200, 20):
        table = pyarrow.Table.from_pylist(
            [{key: row[key] for key in ("id", "text")} for row in rows[i : i + 20]]
        )
        parquet.write_table(table, tmp_path / "in" / f"{i:03d}.parquet")
    with pytest.raises(Exception, match="once"):
        run()
    run()
    found = pyarrow.concat_tables(parquet.read_table(path) for path in (tmp_path / "out").rglob("*.parquet"))
    assert sorted(found["id"].to_pylist()) == sorted(row["id"] for row in rows)
    assert sum(len(path.read_text()) for path in seen.iterdir()) < 2 * len(rows)
    vectors = {row["id"]: row["embedding"] for row in found.to_pylist()}
    expected = Embedder(tiny_built, threads=1).encode_document([row["text"] for row in rows])
    np.testing.assert_allclose([vectors[row["id"]] for row in rows], expected, atol=1e-6)
