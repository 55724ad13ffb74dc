"""child.py: a module of ours run in a process of its own, and what comes back from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_embed import child
from edge_embed.errors import CrashError, ModelError


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `worker` that only our sys.path knows; a test writes its work."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "worker.py"


def works(module: Path, work: str) -> None:
    module.write_text(f"import os, sys\nfrom edge_embed import child\n\ndef work():\n    {work}\n\n")
    with module.open("a") as file:
        file.write("child.answer(work)\n")


def test_arguments_go_there_and_the_answer_comes_back_after_all_that_is_printed(module: Path) -> None:
    works(module, "print('noise'); print('more', file=sys.stderr); return {'got': sys.argv[1:], 'n': 1}")
    assert child.call("worker", "a b", module, "ü") == {"got": ["a b", str(module), "ü"], "n": 1}


def test_it_is_another_process_that_takes_the_hub_for_offline(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    works(module, "return {'pid': os.getpid(), 'hub': os.environ['HF_HUB_OFFLINE']}")
    found = child.call("worker")
    assert found["pid"] != os.getpid()
    assert found["hub"] == "1"


def test_it_does_not_read_what_is_typed_for_us(module: Path) -> None:
    works(module, "return {'read': sys.stdin.read()}")
    ours = "import sys; from edge_embed import child; print(child.call('worker'), sys.stdin.read())"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", ours],
        input="typed",
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "{'read': ''} typed\n"


def test_a_folder_named_like_a_library_does_not_come_before_it(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "here"
    (trap / "numpy").mkdir(parents=True)
    (trap / "numpy/__init__.py").touch()
    monkeypatch.chdir(trap)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    works(module, "import numpy; return {'version': numpy.__version__}")
    assert child.call("worker")["version"]


def test_what_it_raises_is_one_line_here(module: Path) -> None:
    works(module, "print('{}'); raise ValueError('a model\\n  of   no kind')")
    with pytest.raises(ModelError, match=r"^a model of no kind$"):
        child.call("worker")


def test_an_error_without_words_says_its_kind(module: Path) -> None:
    works(module, "raise KeyboardInterrupt if len(sys.argv) > 9 else MemoryError")
    with pytest.raises(ModelError, match=r"^MemoryError$"):
        child.call("worker")


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("sys.exit('not today')", "worker ended with exit code 1: not today$"),
        ("print('7', flush=True); os._exit(3)", "worker ended with exit code 3: it said nothing; "),
    ],
)
def test_a_process_that_ends_without_an_answer_is_an_error_of_one_line(
    module: Path, work: str, said: str
) -> None:
    works(module, work)
    with pytest.raises(ModelError, match=said) as caught:
        child.call("worker")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="processes are not ended by signals there")
@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("signal.SIGSEGV", "worker was ended by SIGSEGV"),
        ("signal.SIGABRT", "worker was ended by SIGABRT"),
        ("signal.SIGILL", "worker was ended by SIGILL"),
        ("signal.SIGKILL", "worker was ended by SIGKILL; was there enough memory?"),
        ("signal.SIGTERM", "worker was ended by SIGTERM"),
        pytest.param(
            "40",  # a real-time one, which has no name
            "worker was ended by signal 40",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="numbers differ elsewhere"),
        ),
    ],
)
def test_a_process_that_a_signal_ends_is_a_crash_that_names_it(module: Path, number: str, said: str) -> None:
    without_core = "import resource, signal; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    works(module, f"{without_core}; print('{{}}x'); os.kill(os.getpid(), {number})")
    with pytest.raises(CrashError) as caught:
        child.call("worker")
    assert str(caught.value) == said


def test_a_process_that_ends_by_itself_is_no_crash(module: Path) -> None:
    works(module, "os._exit(139)")  # what a shell says of SIGSEGV, but here nobody is between
    with pytest.raises(ModelError) as caught:
        child.call("worker")
    assert not isinstance(caught.value, CrashError)


def test_variables_reach_the_child_beside_ours_and_before_them_and_not_us(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_EMBED_TEST", "ours")
    monkeypatch.setenv("EDGE_EMBED_OTHER", "kept")
    names = ("EDGE_EMBED_TEST", "EDGE_EMBED_OTHER", "ONEDNN_MAX_CPU_ISA", "HF_HUB_OFFLINE", "PATH")
    works(module, f"return {{name: os.environ[name] for name in {names!r}}}")
    before = dict(os.environ)
    found = child.call("worker", environment={"EDGE_EMBED_TEST": "theirs", "ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert found == {
        "EDGE_EMBED_TEST": "theirs",
        "EDGE_EMBED_OTHER": "kept",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "HF_HUB_OFFLINE": "1",
        "PATH": os.environ["PATH"],
    }
    assert dict(os.environ) == before


def test_an_answer_counts_even_if_the_process_crashes_at_its_end(module: Path) -> None:
    works(module, "import atexit; atexit.register(os.abort); return {'done': True}")
    assert child.call("worker") == {"done": True}


def test_a_module_that_is_not_there_is_an_error_of_one_line(module: Path) -> None:
    with pytest.raises(ModelError, match=r"exit code 1: .*No module named worker"):
        child.call("worker")


def test_an_answer_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    child.answer(lambda: {"text": "two\nlines"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"text": "two\nlines"}
