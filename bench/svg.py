"""The pictures of the docs, as SVG: the roofline of a machine, and how cost grows. Knows no measurement.

Drawn with matplotlib, which knows one set of colours: those of `INK` and `COLOURS` are for light pages, and a
style sheet in the file turns each into its twin where the reader has asked for dark ones. The same data give
the same bytes; 700 pixels is the width they are made for.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

WIDTH, HEIGHT = 7.0, 3.7  # inches; 504 points become 700 pixels on a page
INK, FAINT = "#24292f", "#d0d7de"
COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df")  # told apart without red against green
DARK = {
    INK: "#e6edf3",
    FAINT: "#373e47",
    "#0969da": "#58a6ff",
    "#bc4c00": "#f0883e",
    "#1a7f37": "#56d364",
    "#8250df": "#d2a8ff",
}
MARKERS = ("o", "s", "^", "D")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters: small, sharp, and they can be searched
    "svg.hashsalt": "edge_embed",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.titlesize": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.markersize": 5,
}


@dataclass(frozen=True, slots=True)
class Point:
    """A throughput of ours under the roof."""

    label: str
    intensity: float  # FLOP for each byte that has to be read
    flops: float  # FLOP a second


@dataclass(frozen=True, slots=True)
class Line:
    """factor * x ** exponent, from one x to another."""

    factor: float
    exponent: float
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Series:
    """A cost along an axis, all numbers above 0, and the powers that were fitted to parts of it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    lines: Sequence[Line] = ()


def roofline(
    path: Path,
    *,
    title: str,
    ceilings: Mapping[str, float],
    bandwidth: float,
    points: Mapping[str, Sequence[Point]],
) -> None:
    """Write the limits of a machine, and what is reached of them.

    ceilings   compute type -> FLOP/s of matrix products alone
    bandwidth  bytes/s that memory gives
    points     compute type -> what was reached; the types are those of `ceilings`
    Errors: ValueError for a compute type without a ceiling.
    """
    if unknown := points.keys() - ceilings.keys():
        raise ValueError(f"no ceiling for {', '.join(sorted(unknown))}")
    knees = [ceiling / bandwidth for ceiling in ceilings.values()]
    inside = [point.intensity for row in points.values() for point in row]
    left, right = min([*knees, *inside]) / 2, max([*knees, *inside]) * 6
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        log_log(axes, "FLOP per byte of weights read", "FLOP/s", title, "")
        for i, (name, ceiling) in enumerate(ceilings.items()):
            colour, knee = COLOURS[i % len(COLOURS)], ceiling / bandwidth
            axes.plot([left, knee, right], [left * bandwidth, ceiling, ceiling], color=colour, linewidth=1.2)
            axes.annotate(
                f"{name}: {engineering(ceiling)}FLOP/s",
                (right, ceiling),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color=colour,
            )
            row = points.get(name, ())
            axes.plot(
                [point.intensity for point in row],
                [point.flops for point in row],
                MARKERS[i % len(MARKERS)],
                color=colour,
            )
            for point in row:
                axes.annotate(
                    point.label,
                    (point.intensity, point.flops),
                    xytext=(0, -12),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
        axes.annotate(
            f"memory: {engineering(bandwidth)}B/s",
            (left, left * bandwidth),
            xytext=(10, 2),
            textcoords="offset points",
            va="bottom",
        )
        axes.set_xlim(left, right)
        write(figure, path)


def growth(path: Path, *, title: str, x: str, panels: Mapping[str, Sequence[Series]]) -> None:
    """Write how costs grow along an axis, with the exponent of each line in the legend.

    x       what the axis counts
    panels  unit, s or B -> what is drawn in one panel
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, HEIGHT), layout="constrained")
        figure.suptitle(title, fontsize=10)
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (unit, rows) in zip(row, panels.items(), strict=True):
            log_log(axes, x, "", "", unit)
            counted(axes, sorted({value for series in rows for value in series.x}))
            for i, series in enumerate(rows):
                colour = COLOURS[i % len(COLOURS)]
                exponents = ", then ".join(f"{line.exponent:z.2f}" for line in series.lines)
                label = f"{series.label}, exponent {exponents}" if exponents else series.label
                axes.plot(series.x, series.y, MARKERS[i % len(MARKERS)], color=colour, label=label)
                for line in series.lines:
                    ends = [line.first, line.last]
                    heights = [line.factor * end**line.exponent for end in ends]
                    axes.plot(ends, heights, color=colour, linewidth=1.2)
            roomy(axes, [value for series in rows for value in series.y], len(rows))
            axes.legend(loc="upper left", handlelength=1, borderaxespad=0.2)
        write(figure, path)


def log_log(axes: Axes, x: str, y: str, title: str, unit: str) -> None:
    """Both axes logarithmic, with numbers that are read without an exponent."""
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
    for axis, suffix in ((axes.xaxis, ""), (axes.yaxis, unit)):
        axis.set_major_formatter(
            FuncFormatter(lambda v, _, suffix=suffix: f"{engineering(v)}{suffix}".strip())
        )
        axis.set_minor_locator(NullLocator())


def counted(axes: Axes, values: Sequence[float]) -> None:
    """Ticks where something was measured, six at most, and the last of all."""
    step = -(-len(values) // 6)
    axes.xaxis.set_major_locator(FixedLocator(values[::-1][::step]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def roomy(axes: Axes, values: Sequence[float], legend: int) -> None:
    """Room above for the lines of the legend, and a decade at the least: a flat cost has to look flat."""
    low, high = math.log10(min(values)), math.log10(max(values))
    span = max(high - low + 0.3, 1.0)
    middle = (low + high) / 2
    bottom, top = middle - span / 2, middle + span / 2
    axes.set_ylim(10**bottom, 10 ** (top + span * (0.05 + 0.12 * legend)))
    if span < 2:  # powers of ten alone would be one tick
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def engineering(value: float) -> str:
    """A number with the prefix of its unit: 1.5 k, 12 M, 300 m.

    >>> [engineering(value) for value in (0.012, 8, 1500, 32_000, 1.25e12)]
    ['12 m', '8 ', '1.5 k', '32 k', '1.25 T']
    """
    if value <= 0:
        return "0 "
    power = max(-3, min(4, math.floor(math.log10(value * (1 + 1e-12)) / 3)))
    prefix = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T"}[power]
    return f"{value / 1000.0**power:.3g} {prefix}"


def write(figure: Figure, path: Path) -> None:
    """The same bytes for the same picture: no date, no version, no random ids."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("</defs>", f"{dark_style()}</defs>", 1), "utf-8")


def dark_style() -> str:
    """Matplotlib writes colours into each element; only !important overrides those."""
    rules = "".join(
        f'  [style*="{kind}: {light}"] {{ {kind}: {dark} !important }}\n'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    return f'<style type="text/css">\n @media (prefers-color-scheme: dark) {{\n{rules} }}\n</style>\n'
