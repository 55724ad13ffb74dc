"""locking.py between real processes: refused while one holds it, free however that one ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import edge_embed
from edge_embed.errors import InputError, OutputError
from edge_embed.locking import held

BUSY = InputError("someone else is at it")
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and wording")

HOLDER = """\
import subprocess, sys
from pathlib import Path
from edge_embed.locking import held
with held(Path(sys.argv[1]), RuntimeError()):
    {inside}
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path, inside: str = "") -> Iterator["subprocess.Popen[str]"]:
    """A child that holds the lock until its stdin is closed."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(inside=inside), str(path)],
        env=os.environ | {"PYTHONPATH": str(Path(edge_embed.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout
        try:
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


def test_a_lock_that_another_process_holds_is_refused_at_once_by_the_given_error(tmp_path: Path) -> None:
    with holder(tmp_path / "lock") as child:
        with pytest.raises(InputError) as caught, held(tmp_path / "lock", BUSY):
            pytest.fail("two hold it")
        assert caught.value is BUSY
        child.communicate("")
        assert child.returncode == 0
        with held(tmp_path / "lock", BUSY):
            pass


@posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path, number: signal.Signals) -> None:
    with holder(tmp_path / "lock") as child:
        child.send_signal(number)
        child.communicate()
        assert child.returncode in (-number, 1)
        with held(tmp_path / "lock", BUSY):
            pass


@posix
def test_a_program_that_the_holder_started_does_not_keep_the_lock(tmp_path: Path) -> None:
    start = "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], stdout=2)\n"
    report = "    Path(sys.argv[1] + '.pid').write_text(str(other.pid))"
    with holder(tmp_path / "lock", start + report) as child:
        child.kill()
        child.wait()
        other = int((tmp_path / "lock.pid").read_text())
        try:
            os.kill(other, 0)  # it is alive
            with held(tmp_path / "lock", BUSY):
                pass
        finally:
            os.kill(other, signal.SIGKILL)


def test_one_process_is_refused_its_own_lock_and_gets_it_back_after_the_block(tmp_path: Path) -> None:
    with (
        held(tmp_path / "lock", BUSY),
        pytest.raises(InputError, match="someone else"),
        held(tmp_path / "lock", BUSY),
    ):
        pytest.fail("held twice")
    with held(tmp_path / "lock", BUSY):
        pass


def test_an_exception_in_the_block_passes_and_frees_the_lock(tmp_path: Path) -> None:
    inner = OSError("of the block, not of the lock")
    with pytest.raises(OSError, match="of the block") as caught, held(tmp_path / "lock", BUSY):
        raise inner
    assert caught.value is inner
    with held(tmp_path / "lock", BUSY):
        pass


def test_the_file_stays_and_what_is_in_it_too(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("a note")
    with held(tmp_path / "lock", BUSY):
        pass
    assert (tmp_path / "lock").read_text() == "a note"


@posix
def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, why in [("missing/lock", "No such file or directory"), ("file/lock", "Not a directory")]:
        with pytest.raises(OutputError) as caught, held(tmp_path / path, BUSY):
            pytest.fail("held")
        assert str(caught.value) == f"cannot write {tmp_path / path}: {why}"


@posix
def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", without)
    with (
        pytest.raises(OutputError, match=r"^cannot lock .*: No locks available$"),
        held(tmp_path / "lock", BUSY),
    ):
        pytest.fail("held")
