"""profile.py: what was measured comes back, and does not once something that it depends on is another."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_embed import profile
from edge_embed.errors import OutputError
from edge_embed.hardware import Machine
from edge_embed.profile import Profile, Tuned
from edge_embed.record import file_entries, write_record

HERE = Machine(
    cpu_model="Xeon",
    architecture="x86_64",
    flags=frozenset({"avx2", "avx512_vnni"}),
    physical_cores=8,
    logical_cores=16,
    quota_cores=4.0,
    memory_bytes=8 << 30,
)
NAMES = ("openvino/openvino_model.xml", "openvino/openvino_model.bin")

FLOAT32 = Tuned(20.1, 0.02, 4, 1, 512, 512, "pass")
DYNAMIC = Tuned(41.2, 0.03, 4, 2, 256, None, "pass", 29.1, 28.8, 29.4, 0.981)
BFLOAT16 = Tuned(35.5, 0.1, None, None, None, None, "fail", 38.9, 38.5, 39.3, 0.996)
MEASURED = Profile(
    "2026-05-04T12:30Z", 61.5, {"float32": FLOAT32, "int8_dynamic": DYNAMIC, "bfloat16": BFLOAT16}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a recorded IR of nonsense."""
    made = tmp_path / "model"
    (made / "openvino").mkdir(parents=True)
    for name in NAMES:
        (made / name).write_text(name)
    write_record(made, {"name": "x", "files": file_entries(made, NAMES)})
    return made


def facts(folder: Path, on: Machine = HERE, device: str = "CPU") -> dict[str, Any]:
    return profile.made_from(folder, [folder / NAMES[0]], on, device)


def test_what_is_kept_comes_back(folder: Path, tmp_path: Path) -> None:
    path = profile.write(tmp_path, facts(folder), MEASURED)
    assert path.parent == tmp_path / "profiles"
    assert profile.read(tmp_path, facts(folder)) == (MEASURED, "tuned on 2026-05-04T12:30Z")


def test_a_later_one_takes_the_place_of_the_former(folder: Path, tmp_path: Path) -> None:
    profile.write(tmp_path, facts(folder), MEASURED)
    later = replace(MEASURED, measured_at="2026-06-01T00:00Z", compute_types={"float32": FLOAT32})
    profile.write(tmp_path, facts(folder), later)
    assert profile.read(tmp_path, facts(folder))[0] == later
    assert len(list((tmp_path / "profiles").iterdir())) == 1


def test_without_one_there_is_a_reason(folder: Path, tmp_path: Path) -> None:
    assert profile.read(tmp_path, facts(folder)) == (None, "this model was not tuned on this machine")


@pytest.mark.parametrize(
    ("on", "why"),
    [
        (replace(HERE, flags=frozenset({"avx2"})), "with other CPU instructions, cores or quota"),
        (replace(HERE, physical_cores=4), "with other CPU instructions, cores or quota"),
        (replace(HERE, logical_cores=8), "with other CPU instructions, cores or quota"),
        (replace(HERE, quota_cores=None), "with other CPU instructions, cores or quota"),
    ],
)
def test_another_machine_makes_it_stale(folder: Path, tmp_path: Path, on: Machine, why: str) -> None:
    profile.write(tmp_path, facts(folder), MEASURED)
    assert profile.read(tmp_path, facts(folder, on)) == (None, f"tuned on 2026-05-04T12:30Z, {why}")


def test_memory_that_others_use_does_not(folder: Path, tmp_path: Path) -> None:
    profile.write(tmp_path, facts(folder), MEASURED)
    assert profile.read(tmp_path, facts(folder, replace(HERE, memory_bytes=1)))[0] == MEASURED


def test_each_cpu_device_and_folder_has_its_own(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    folder.rename(copy)
    kept = {
        profile.write(tmp_path, facts(copy), MEASURED),
        profile.write(tmp_path, facts(copy, device="GPU"), MEASURED),
        profile.write(tmp_path, facts(copy, replace(HERE, cpu_model="another")), MEASURED),
        profile.write(tmp_path, facts(copy) | {"folder": "elsewhere"}, MEASURED),
    }
    assert len(kept) == 4


def test_files_that_were_made_anew_make_it_stale(folder: Path, tmp_path: Path) -> None:
    profile.write(tmp_path, facts(folder), MEASURED)
    (folder / NAMES[1]).write_text("another")
    assert profile.read(tmp_path, facts(folder))[0] == MEASURED  # by the record it is still the same
    write_record(folder, {"name": "x", "files": file_entries(folder, NAMES)})
    assert profile.read(tmp_path, facts(folder)) == (
        None,
        "tuned on 2026-05-04T12:30Z, with other files of the model",
    )


def test_another_file_to_choose_from_makes_it_stale(folder: Path, tmp_path: Path) -> None:
    profile.write(tmp_path, facts(folder), MEASURED)
    (folder / "openvino/openvino_model_int8_weights.xml").touch()
    both = [folder / NAMES[0], folder / "openvino/openvino_model_int8_weights.xml"]
    now = profile.made_from(folder, both, HERE, "CPU")
    assert "with other files of the model" in profile.read(tmp_path, now)[1]


@pytest.mark.parametrize("name", NAMES)
def test_files_without_a_record_are_told_by_what_costs_little(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (folder / "edge_embed.json").unlink()
    profile.write(tmp_path, facts(folder), MEASURED)
    assert profile.read(tmp_path, facts(folder))[0] == MEASURED
    (folder / name).write_text("another")
    assert "with other files of the model" in profile.read(tmp_path, facts(folder))[1]


def test_weights_that_were_touched_count_as_others_where_nothing_is_recorded(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "edge_embed.json").unlink()
    profile.write(tmp_path, facts(folder), MEASURED)
    os.utime(folder / NAMES[1], ns=(1, 1))
    assert profile.read(tmp_path, facts(folder))[0] is None


def test_another_openvino_makes_it_stale(folder: Path, tmp_path: Path) -> None:
    before = facts(folder)
    profile.write(tmp_path, before | {"openvino": "2025.4", "machine": {}}, MEASURED)
    assert profile.read(tmp_path, before)[1] == (
        "tuned on 2026-05-04T12:30Z, with other CPU instructions, cores or quota and version of OpenVINO"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "cannot be read"),
        ("[", "cannot be read"),
        ("[]", "is damaged"),
        ("{}", "is damaged: KeyError"),
        ('{"schema": 2}', "has schema 2, this version reads 1"),
        ('{"schema": 1, "made_from": 3, "measured_at": "x"}', "is damaged"),
    ],
)
def test_a_damaged_file_is_left_aside_with_its_name(
    folder: Path, tmp_path: Path, content: str, why: str
) -> None:
    path = profile.write(tmp_path, facts(folder), MEASURED)
    path.write_text(content)
    found, told = profile.read(tmp_path, facts(folder))
    assert found is None
    assert told.startswith(str(path))
    assert why in told


@pytest.mark.parametrize(
    "values",
    [
        {"texts_per_second": 0},
        {"texts_per_second": float("inf")},
        {"texts_per_second": "41"},
        {"threads": 0},
        {"threads": True},
        {"streams": 1.5},
        {"token_budget": -512},
        {"windowed_from": -1},
        {"windowed_from": "512"},
        {"verdict": "maybe"},
        {"sqnr": "29"},
        {"unheard_of": 1},
    ],
)
def test_a_figure_that_no_measurement_gives_is_damage(
    folder: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    path = profile.write(tmp_path, facts(folder), MEASURED)
    kept = json.loads(path.read_text())
    kept["compute_types"]["int8_dynamic"] |= values
    path.write_text(json.dumps(kept))
    found, told = profile.read(tmp_path, facts(folder))
    assert found is None
    assert "is damaged" in told


def test_a_profile_can_be_forgotten_once(folder: Path, tmp_path: Path) -> None:
    profile.write(tmp_path, facts(folder), MEASURED)
    assert profile.forget(tmp_path, facts(folder)) is True
    assert profile.read(tmp_path, facts(folder))[0] is None
    assert profile.forget(tmp_path, facts(folder)) is False


def test_a_profile_that_cannot_be_written_is_an_error_of_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "profiles").touch()
    with pytest.raises(OutputError, match=r"^cannot write .*profiles"):
        profile.write(tmp_path, facts(folder), MEASURED)


def test_a_write_that_fails_leaves_the_former_profile(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile.write(tmp_path, facts(folder), MEASURED)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        profile.write(tmp_path, facts(folder), replace(MEASURED, seconds=1.0))
    assert profile.read(tmp_path, facts(folder))[0] == MEASURED
