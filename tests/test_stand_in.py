"""The recipe of the exported stand-in, bench/stand_in.py. Exporting is a large test: it installs packages."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench import stand_in

FIXTURE = Path(__file__).parent / "fixtures/modernbert_optimum"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The fixture's folder without its IRs."""
    ignored = shutil.ignore_patterns("openvino", "*.py", "*.md", "__pycache__")
    return Path(shutil.copytree(FIXTURE, tmp_path / "checkpoint", ignore=ignored))


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An exporter's environment whose Python is this one, without optimum-intel 1.23 in it."""
    folder = tmp_path / "environment"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (folder / ".exporter").touch()
    return folder


def test_an_existing_folder_is_refused(checkpoint: Path, environment: Path) -> None:
    with pytest.raises(SystemExit, match="checkpoint exists"):
        stand_in.stand_in(checkpoint, checkpoint, environment)


def test_the_export_lies_in_a_whole_copy_of_the_checkpoint(
    checkpoint: Path, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = "import pathlib, sys; out = pathlib.Path(sys.argv[2], 'openvino_model')\n"
    write += "for suffix in ('.xml', '.bin'): out.with_suffix(suffix).write_text(sys.argv[1])"
    monkeypatch.setattr(stand_in, "EXPORT", write)
    out = stand_in.stand_in(checkpoint, tmp_path / "out", environment)
    assert (out / stand_in.IR).read_text() == str(checkpoint)
    new = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    old = {path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file()}
    assert new - old == {Path(stand_in.IR), Path(stand_in.IR).with_suffix(".bin")}
    assert old < new


def test_a_failed_export_leaves_nothing(
    checkpoint: Path, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "EXPORT", "raise SystemExit(7)")
    with pytest.raises(subprocess.CalledProcessError, match="exit status 7"):
        stand_in.stand_in(checkpoint, tmp_path / "out", environment)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "environment"}


def test_calibration_texts_have_16_to_128_tokens(checkpoint: Path) -> None:
    lengths = {len(ids) for ids in stand_in.calibration(checkpoint)}
    assert min(lengths) >= 16
    assert max(lengths) <= 128
    assert len(lengths) > 1


@pytest.mark.large
def test_the_exporter_makes_the_fixture_again(checkpoint: Path, tmp_path: Path) -> None:
    import openvino as ov

    core = ov.Core()
    folder = stand_in.stand_in(checkpoint, tmp_path / "out", tmp_path / "environment", int8=True)
    ids = np.arange(5, 105).reshape(2, 50)
    for name in (stand_in.IR, stand_in.INT8):
        old, new = core.read_model(FIXTURE / name), core.read_model(folder / name)
        kinds = [Counter(node.get_type_name() for node in model.get_ops()) for model in (old, new)]
        assert kinds[0] == kinds[1]
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    before, after = (
        core.compile_model(path / stand_in.IR, "CPU", exact)([ids, np.ones_like(ids)])[0]
        for path in (FIXTURE, folder)
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)
