"""drift/measurement.py: what is written is read back, and what is damaged is refused by one line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_embed.drift import measurement
from edge_embed.drift.measurement import Invariant, Measurement
from edge_embed.errors import InputError
from tests.measurements import measurement as measured
from tests.measurements import noisy, reference


@pytest.fixture(scope="module")
def found() -> Measurement:
    x = reference()
    return measured(x, noisy(x, 25))


def test_what_is_written_is_read_back(found: Measurement, tmp_path: Path) -> None:
    measurement.write(found, tmp_path / "drift.json")
    assert measurement.read(tmp_path / "drift.json") == found


def test_a_number_that_is_none_is_null_in_the_file(found: Measurement, tmp_path: Path) -> None:
    broken = replace(found, invariants=(Invariant("batch", float("nan"), 1e-5, "did not run"),), drift=None)
    measurement.write(broken, tmp_path / "drift.json")
    assert json.loads((tmp_path / "drift.json").read_text())["invariants"][0]["value"] is None
    back = measurement.read(tmp_path / "drift.json")
    assert back.invariants[0].value != back.invariants[0].value
    assert back.drift is None


def without(key: str) -> Any:
    return lambda values: values.pop(key)


def put(value: Any, *keys: Any) -> Any:
    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (put(2, "schema"), "has schema 2, this version reads 1; measure again: edge-embed drift measure"),
        (without("ledger"), "is no drift file of this version: ledger is unknown, or missing"),
        (put(1, "more"), "more is unknown, or missing"),
        (put("much", "drift", "sqnr", "value"), r'drift\.sqnr\.value is "much"'),
        (put(None, "subject"), "subject is not an object"),
        (put(0.5, "drift", "n"), r"drift\.n is 0\.5"),
        (put([1, 2], "slices"), r"slices is \[1, 2\]"),
    ],
)
def test_a_damaged_file_is_refused_by_the_key(
    found: Measurement, tmp_path: Path, change: Any, line: str
) -> None:
    values = measurement.to_dict(found)
    change(values)
    (tmp_path / "drift.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=line):
        measurement.read(tmp_path / "drift.json")


def test_a_cut_or_missing_file_is_refused(found: Measurement, tmp_path: Path) -> None:
    path = tmp_path / "drift.json"
    with pytest.raises(InputError, match=r"cannot read .*drift\.json: No such file"):
        measurement.read(path)
    measurement.write(found, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="is no drift file, or was cut"):
        measurement.read(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="has schema 'list', this version reads 1"):
        measurement.read(path)
