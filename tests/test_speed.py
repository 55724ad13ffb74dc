"""`edge-embed bench`: what it counts, on models so small that their speed is nobody's business."""

import json
from pathlib import Path

import pytest

from edge_embed import speed
from edge_embed.cli import main
from edge_embed.errors import InputError


def answer(seconds: float, call: float, start: float, peak: int | None = 5) -> dict[str, object]:
    return {
        "seconds": seconds,
        "calls": [call] * 99 + [10 * call],
        "start_seconds": start,
        "peak_bytes": peak,
    }


def test_medians_and_the_spread_are_those_of_the_rounds() -> None:
    found = speed.summarize(
        "float32", [answer(2, 0.01, 1.0), answer(4, 0.01, 3.0), answer(5, 0.01, 2.0, 7)], 100, 900
    )
    assert found.texts_per_second == 25.0
    assert found.spread == pytest.approx((50 - 20) / 25)
    assert found.tokens_per_second == 225.0
    assert found.p50_ms == pytest.approx(10)
    assert 10 < found.p99_ms <= 100
    assert found.start_seconds == 2.0
    assert found.peak_bytes == 7


def test_memory_that_no_system_tells_is_none() -> None:
    assert speed.summarize("int8", [answer(1, 1, 1, None)], 1, 1).peak_bytes is None


def test_every_compute_type_has_a_line_and_an_entry(
    tiny_built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "bench",
        str(tiny_built),
        "--texts",
        "20",
        "--rounds",
        "2",
        "--compute-types",
        "float32",
        "--json",
    ]
    assert main(command) == 0
    title, line, last = capsys.readouterr().out.splitlines()
    assert title.split()[:2] == ["compute", "type"]
    assert line.startswith("float32")
    (entry,) = json.loads(last)["compute_types"]
    assert entry["compute_type"] == "float32"
    assert entry["texts_per_second"] > 0
    assert 0 < entry["p50_ms"] <= entry["p99_ms"]
    assert entry["start_seconds"] > 0
    assert entry["tokens_per_second"] > entry["texts_per_second"]  # a text has several tokens


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (["--texts", "0"], "0 texts were asked for; there are 1 to"),
        (["--rounds", "0"], "rounds is 0; it must be at least 1"),
        (["--compute-types", "int8"], "has no file for int8"),
        (["--threads", "0"], "threads is 0; it must be at least 1"),
    ],
)
def test_wrong_use_is_one_line(
    tiny_built: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], line: str
) -> None:
    assert main(["bench", str(tiny_built), *wrong]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert len(err.splitlines()) == 1


def test_more_texts_than_there_are_is_an_error(tiny_built: Path) -> None:
    with pytest.raises(InputError, match="1000000 texts were asked for"):
        speed.texts_of(tiny_built, 1_000_000)
