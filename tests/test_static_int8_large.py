"""Real size, minutes: what the static INT8 IR of the exact 311M shape keeps in memory once it is loaded.

Stock NNCF stores the token table in 201 MB, and OpenVINO alone unpacks it to 805. The weights are random, and
change no byte of that. Each side is a process of its own; both hold the tokenizer.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import stand_in
from bench.resident import Resident, measure
from bench.shapes import write_checkpoint
from edge_embed.build import build
from edge_embed.hardware import machine
from edge_embed.quantize import Recipe, quantize

NAME = "granite-embedding-311m-multilingual-r2"
MOST = 0.45  # of what OpenVINO alone keeps
TEXTS = 4  # to calibrate with: ranges change no byte of what is kept

pytestmark = [
    pytest.mark.large,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc"),
]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model folder with the static INT8 IR that stock NNCF makes, never loaded before."""
    folder = build(write_checkpoint(NAME, tmp_path_factory.mktemp("shipped")))
    stand_in.quantize(folder / stand_in.IR, folder / stand_in.INT8, stand_in.calibration(folder)[:TEXTS])
    yield folder
    shutil.rmtree(folder)  # gigabytes, which pytest would keep for three runs


@pytest.fixture(scope="module")
def alone(shipped: Path) -> Resident:
    """What OpenVINO alone keeps of it."""
    return measure("openvino_plain", "int8", shipped, machine().threads)


def assert_small(folder: Path, alone: Resident) -> None:
    """At the first start, which compares the passes with the untouched graph, and at a later one."""
    for start in ("first", "later"):
        ours = measure("edge", "int8", folder, machine().threads)
        print(f"{start} start: {ours} of {alone}")
        assert ours.loaded < MOST * alone.loaded, start
        assert ours.used < MOST * alone.used, start


def test_the_token_table_of_a_shipped_file_stays_int8_in_memory(shipped: Path, alone: Resident) -> None:
    assert alone.anonymous > 805e6  # the table in float32: this is what there is to save
    assert_small(shipped, alone)


def test_the_token_table_of_a_file_that_we_quantized_stays_int8_in_memory(
    shipped: Path, alone: Resident, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"the harbour ferry leaves at {i}" for i in range(TEXTS)))
    quantize(shipped, "int8", Recipe(), texts_file=texts, allow_few=True)  # in the place of the shipped one
    assert_small(shipped, alone)
