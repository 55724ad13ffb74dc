"""bench/growth.py and bench/svg.py: exponents of cost, and the pictures of them."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from bench import growth, svg
from bench.growth import AXES, Axis, Expected, Fit, Point, Run, along, draw, fitted, usual, verdict
from bench.peers import Unavailable
from edge_embed.build import build
from tests.checkpoints import tiny_bert

SVG = "{http://www.w3.org/2000/svg}"
LARGEST = 60_000  # bytes of a picture


def points(x: list[int], exponent: float) -> list[Point]:
    return [{"x": value, "time": 0.25 * value**exponent} for value in x]


def test_the_fit_is_that_of_scipy_over_the_upper_half() -> None:
    chance = np.random.default_rng(0)
    noisy = [{"x": 2**i, "time": 2**i * float(np.exp(0.2 * chance.standard_normal()))} for i in range(9)]
    fit = fitted(noisy, Expected("time", 0, 2))
    upper = noisy[4:]
    theirs = stats.linregress(np.log([p["x"] for p in upper]), np.log([p["time"] for p in upper]))
    assert fit is not None
    assert fit.exponent == pytest.approx(theirs.slope)
    assert fit.factor == pytest.approx(np.exp(theirs.intercept))
    assert (fit.first, fit.last) == (16, 256)


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.0, 1.7])
def test_a_power_is_found_again(exponent: float) -> None:
    fit = fitted(points([1, 2, 4, 8], exponent), Expected("time", exponent, exponent))
    assert fit is not None
    assert fit.exponent == pytest.approx(exponent, abs=1e-12)
    assert fit.factor == pytest.approx(0.25)


def test_two_points_are_enough_and_one_is_not() -> None:
    assert fitted(points([1, 2], 1), Expected("time", 0, 2)) is not None
    assert fitted(points([1], 1), Expected("time", 0, 2)) is None


def test_a_fit_keeps_to_its_part_of_the_axis() -> None:
    bent = points([256, 512, 1024, 2048], 1) + points([4096, 8192, 16384], 2)
    below = fitted(bent, Expected("time", 0.8, 1.15, last=2048))
    above = fitted(bent, Expected("time", 1, 2, first=2049))
    assert below is not None
    assert above is not None
    assert (round(below.exponent, 9), below.last) == (1, 2048)
    assert (round(above.exponent, 9), above.first) == (2, 8192)


def test_a_verdict_says_what_was_met_and_what_missed() -> None:
    axis = Axis("rows", (), "rows", lambda run, value: {}, ())
    line = verdict(axis, Fit(Expected("time", 0.9, 1.1), 1.0, 1.0, 1000, 100_000))
    assert (
        line == "met   rows: time grows with exponent 1.00, expected 0.9 to 1.1, from 1,000 to 100,000 rows"
    )
    for exponent in (0.89, 1.11, float("nan")):
        assert verdict(axis, Fit(Expected("time", 0.9, 1.1), exponent, 1.0, 1, 2)).startswith("MISS")


def test_every_axis_of_the_issue_is_there_and_expects_time_and_memory() -> None:
    assert list(AXES) == ["length", "batch", "rows", "threads", "vocabulary"]
    for axis in AXES.values():
        assert {growth.is_memory(expected.cost) for expected in axis.expected} == {True, False}


def test_a_point_that_fails_is_said_and_the_others_are_kept() -> None:
    def point(run: Run, value: int) -> Point:
        if value == 3:
            raise Unavailable("edge@float32 ended with exit code -9")
        return {"x": value, "time": float(value)}

    axis = Axis("length", (), "tokens", point, (Expected("time", 0.9, 1.1),))
    found = along(axis, (1, 2, 3), Run(Path(), "float32", 1, Path(), ""))
    assert [row["x"] for row in found["points"]] == [1, 2]
    assert found["verdict"][0].startswith("met ")
    assert found["verdict"][1] == "FAIL  length 3: edge@float32 ended with exit code -9"


def test_lengths_stop_at_the_limit_of_the_model_and_threads_at_the_cores() -> None:
    here = {"model": {"max_tokens": 512}, "machine": {"physical_cores": 6}, "threads": 2}
    assert usual(AXES["length"], here) == (8, 16, 32, 64, 128, 256, 512)
    assert usual(AXES["threads"], here) == (1, 2, 4, 6)
    assert usual(AXES["batch"], here) == AXES["batch"].values


@pytest.mark.parametrize("options", [["--axis", "depth"], ["--rows", "ten"], ["--rows", "0"]])
def test_unknown_axes_and_numbers_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        growth.parse(["folder", *options])
    assert "error: argument" in capsys.readouterr().err


def test_a_small_model_is_measured_in_processes_of_its_own(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "model")
    build(folder)
    run = Run(folder, "float32", 1, tmp_path, "")
    found = along(AXES["batch"], (1, 3), run)
    assert found["failed"] == {}
    assert [point["x"] for point in found["points"]] == [1, 3]
    for point in found["points"]:
        assert 0 < point["time"] < 10
        assert point["peak memory"] > 30e6  # of a Python with OpenVINO, not of this one
    assert len(found["verdict"]) == 2


def result() -> dict[str, Any]:
    """A result of one axis, as main writes it, with what JSON makes of it."""
    rows = [
        {"x": 2.0**i, "time": 0.001 * 2**i, "peak memory": 1e9, "memory after loading": 8e8}
        for i in range(3, 16)
    ]
    fits = [fitted(rows, Expected("time", 0.9, 1.1)), fitted(rows, Expected("peak memory", 0, 1))]
    length = {
        "counts": "tokens",
        "points": rows,
        "fits": [asdict(fit) for fit in fits if fit],
    }
    found: dict[str, Any] = {
        "model": {"folder": "granite"},
        "machine": {"cpu_model": "EPYC"},
        "kind": "float32",
        "threads": 2,
        "axes": {"length": length, "batch": length | {"points": rows[:1]}},
    }
    return found


def texts_of(file: Path) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.parse(file).iter(f"{SVG}text")]


def test_the_picture_of_an_axis_names_costs_exponents_and_units(tmp_path: Path) -> None:
    draw(json.loads(json.dumps(result())), tmp_path, "granite")
    assert [file.name for file in tmp_path.iterdir()] == ["granite-length.svg"]  # one point is no picture
    shown = texts_of(tmp_path / "granite-length.svg")
    assert "granite, float32, EPYC, 2 threads" in shown
    assert {"time, exponent 1.00", "peak memory, exponent 0.00", "memory after loading"} <= set(shown)
    assert {"tokens", "32,768", "100 ms", "1 GB"} <= set(shown)


def machine(file: Path, *, flops: float = 2e11) -> None:
    """A roofline with one point, by default on the knee."""
    svg.roofline(
        file,
        title="EPYC, 2 threads",
        ceilings={"float32": 2e11, "int8": 8e11},
        bandwidth=2e10,
        points={"float32": [svg.Point("128 tokens", 10, flops)]},
    )


def test_a_point_on_the_knee_is_drawn_on_the_knee(tmp_path: Path) -> None:
    machine(tmp_path / "roof.svg")
    text = (tmp_path / "roof.svg").read_text("utf-8")
    colour = svg.COLOURS[0]
    (line,) = re.findall(rf'd="([^"]*)"[^>]*style="fill: none; stroke: {colour}', text)
    corners = re.findall(r"[ML] ([\d.]+) ([\d.]+)", line)
    (marker,) = re.findall(rf'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: {colour}', text)
    assert [float(value) for value in marker] == pytest.approx([float(v) for v in corners[1]], abs=0.1)
    assert {"float32: 200 GFLOP/s", "int8: 800 GFLOP/s", "memory: 20 GB/s", "128 tokens"} <= set(
        texts_of(tmp_path / "roof.svg")
    )


def test_a_compute_type_without_a_ceiling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no ceiling for int8"):
        svg.roofline(
            tmp_path / "roof.svg",
            title="",
            ceilings={"float32": 1e11},
            bandwidth=1e10,
            points={"int8": [svg.Point("8", 1, 1e9)]},
        )


def test_pictures_are_small_the_same_every_time_and_in_any_process(tmp_path: Path) -> None:
    draw(result(), tmp_path, "one")
    script = (
        "import json, sys; from pathlib import Path; from bench.growth import draw\n"
        "draw(json.load(sys.stdin), Path(sys.argv[1]), 'two')"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        input=json.dumps(result()),
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    one, two = (tmp_path / f"{name}-length.svg" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size < LARGEST


def test_every_colour_of_a_picture_has_a_twin_for_dark_pages(tmp_path: Path) -> None:
    machine(tmp_path / "roof.svg")
    draw(result(), tmp_path, "granite")
    for file in tmp_path.iterdir():
        drawn, _, _ = file.read_text("utf-8").partition("@media")
        _, _, rest = file.read_text("utf-8").partition("</style>\n")
        used = set(re.findall(r"(?:fill|stroke): (#\w+)", drawn + rest.partition("</style>")[2]))
        assert svg.INK in used
        assert used <= svg.DARK.keys()
        assert "prefers-color-scheme: dark" in file.read_text("utf-8")
        rule = f'[style*="stroke: {svg.INK}"] {{ stroke: {svg.DARK[svg.INK]} !important }}'
        assert rule in file.read_text("utf-8")


def test_letters_stay_letters_and_are_large_enough_at_700_pixels(tmp_path: Path) -> None:
    draw(result(), tmp_path, "granite")
    root = ElementTree.parse(tmp_path / "granite-length.svg").getroot()
    width = float(root.attrib["width"].removesuffix("pt"))
    styles = [node.attrib["style"] for node in root.iter(f"{SVG}text")]
    sizes = [float(re.search(r"([\d.]+)px", style)[1]) for style in styles]  # type: ignore[index]
    assert len(sizes) > 10
    assert min(sizes) * 700 / width >= 11
