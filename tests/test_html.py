"""drift/html.py: one page that needs nothing else, says what was measured, and is readable in any light."""

import dataclasses
import re
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.drift import gate, html, report
from edge_embed.drift.gate import ABSOLUTE, INVARIANT, STAGE, Check, Verdict
from edge_embed.drift.measurement import Measurement, Neighbour, Stage
from edge_embed.drift.metrics import Interval, SliceDrift
from edge_embed.profile import FAIL, PASS
from tests.measurements import measurement as measured
from tests.measurements import noisy, reference

Pixels = NDArray[np.uint8]

NAN = float("nan")
VOID = frozenset({"br", "meta", "wbr"})  # have no end
DRAWN = frozenset({"circle", "line", "rect"})  # of SVG, which may end where they begin
SCRIPTS = (
    "Der letzte Hafenkran" + "x" * 140,
    "مواعيد العبّارة",
    "港口的渡轮",
    "<b>fett</b> & <script>alert(1)</script>",
)


# ---- samples


@pytest.fixture(scope="module")
def found() -> Measurement:
    """One language of eight is 6 dB noisier than the others; the worst texts are of several scripts."""
    x = reference()
    y = noisy(x, 21)
    y[72:96] = noisy(x, 15, seed=3)[72:96]
    made = measured(x, y)
    near = tuple(Neighbour(f"near-{i}", 0.9 - i / 100, SCRIPTS[i % 4]) for i in range(6))
    worst = tuple(
        replace(
            one, excerpt=f"{SCRIPTS[i % 4]} {i}", reference=near[:5], candidate=(near[1], near[0], *near[3:])
        )
        for i, one in enumerate(made.worst)
    )
    return replace(made, worst=worst)


@pytest.fixture(scope="module")
def judged(found: Measurement) -> Verdict:
    """By the floors for static INT8, with an invariant that fails and a stage that did not run."""
    assert found.drift is not None
    checks = gate.judge(found.drift, gate.DEFAULTS["int8"])
    batch = Check(
        "batch", None, 0.02, 0.02, 0.02, 0.01, FAIL, 32, None, INVARIANT, None, "text-017 in a batch"
    )
    stage = Check(
        "stage", "emulated", NAN, NAN, NAN, 20, gate.INCONCLUSIVE, 0, None, STAGE, None, "ended by SIGILL"
    )
    return Verdict(
        FAIL, (*checks, batch, stage), "defaults for int8", "of 2026-05-01", ("one slice is small",)
    )


@pytest.fixture(scope="module")
def page(found: Measurement, judged: Verdict) -> str:
    return html.page(found, judged)


# ---- reading a page


@dataclass(eq=False)
class Node:
    """An element."""

    tag: str
    attributes: dict[str, str]
    children: list["Node | str"] = field(default_factory=list)

    def walk(self) -> Iterator["Node"]:
        """This and all elements in it, in order."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    def text(self) -> str:
        """All text in it."""
        return "".join(child if isinstance(child, str) else child.text() for child in self.children)

    def all(self, tag: str, kind: str = "") -> list["Node"]:
        """Elements in it, of a class if one is given."""
        return [
            n for n in self.walk() if n.tag == tag and (not kind or kind in n.attributes.get("class", ""))
        ]

    def section(self, id: str) -> "Node":
        """The one element with that id."""
        (one,) = (node for node in self.walk() if node.attributes.get("id") == id)
        return one


class Reader(HTMLParser):
    """Refuses elements that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {key: value or "" for key, value in attrs})
        assert len(node.attributes) == len(attrs), f"<{tag}> has an attribute twice: {attrs}"
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in DRAWN
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(page: str) -> Node:
    """The elements of a page, every one closed in its place."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    (root,) = reader.open
    return root


def rows(section: Node) -> list[Node]:
    """Of the charts in a section, without those of the axes."""
    return [row for row in section.all("li") if not row.attributes.get("aria-hidden")]


def name_of(row: Node) -> str:
    """What stands first in a row."""
    (first,) = row.children[:1]
    assert isinstance(first, Node)
    return next(part.strip() for part in [first.text()] if part)


def percent(value: str) -> float:
    assert value.endswith("%")
    return float(value[:-1])


# ---- one file, well formed, and what comes from data is text


def test_a_page_refers_to_nothing_outside(page: str) -> None:
    root = read(page)
    for node in root.walk():
        assert node.tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "use", "form"}
        assert not node.attributes.keys() & {"src", "srcset", "style", "xlink:href", "action", "data"}
        assert node.attributes.get("href", "#").startswith("#")
        assert not any(key.startswith("on") for key in node.attributes)
    assert "url(" not in page
    assert "@import" not in page
    assert "://" not in page
    policy = next(n for n in root.all("meta") if "http-equiv" in n.attributes)
    assert policy.attributes["content"].startswith("default-src 'none';")


def test_ids_are_unique_and_links_lead_to_them(page: str) -> None:
    root = read(page)
    ids = Counter(node.attributes["id"] for node in root.walk() if "id" in node.attributes)
    assert set(ids.values()) == {1}
    assert [link.attributes["href"] for link in root.all("a")] == [f"#{name}" for name in ids]
    assert list(ids) == ["checks", "ledger", "slices", "cosines", "located", "texts", "facts"]


def with_words(value: Any, words: str) -> Any:
    """The same values with every text in them replaced."""
    if isinstance(value, str):
        return words
    if isinstance(value, Mapping):
        return {f"{words}{i}": with_words(item, words) for i, item in enumerate(value.values())}
    if isinstance(value, tuple):
        return tuple(with_words(item, words) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = {"verdict", "kind"} if isinstance(value, Check | Verdict) else set()
        changed = {
            f.name: with_words(getattr(value, f.name), words)
            for f in dataclasses.fields(value)
            if f.name not in kept
        }
        return replace(value, **changed)
    return value


def test_no_text_of_the_data_becomes_an_element_or_an_attribute(found: Measurement, judged: Verdict) -> None:
    evil = "</title>\"'><script>alert(1)</script><b onclick=x>&amp;\x00\x1b\ud800"
    page = html.page(with_words(found, evil), with_words(judged, evil))
    page.encode("utf-8")
    root, plain = read(page), read(html.page(replace(found, crash="SIGILL"), judged))
    assert {node.tag for node in root.walk()} == {node.tag for node in plain.walk()}
    assert {key for node in root.walk() for key in node.attributes} == {
        key for node in plain.walk() for key in node.attributes
    }
    assert "</title>\"'><script>alert(1)</script><b onclick=x>&amp;" in root.section("texts").text()


def test_texts_of_any_script_find_their_own_direction(page: str, found: Measurement) -> None:
    shown = {n.text(): n.attributes.get("dir") for n in read(page).section("texts").all("p", "excerpt")}
    assert shown == {one.excerpt: "auto" for one in found.worst}


# ---- what it says


def test_the_verdict_and_the_headline_numbers_come_first(page: str, found: Measurement) -> None:
    root = read(page)
    (header,) = root.all("header")
    assert header.all("strong")[0].text() == "✗ Fail"
    assert "checks fail" in header.text()
    assert "defaults for int8" in header.text()
    assert "of 2026-05-01" in header.text()
    assert "one slice is small" in header.text()
    assert found.drift is not None
    tiles = {n.all("dt")[0].text(): n.all("dd")[0].text() for n in header.all("div") if n.all("dt")}
    sqnr = found.drift.sqnr
    assert tiles["SQNR"] == f"{sqnr.value:.1f} dB95 %: [{sqnr.low:.1f}, {sqnr.high:.1f}]"
    assert tiles["worst slice: language l3"] == f"{found.drift.worst_slice_sqnr:.1f} dB"
    assert page.index("✗ Fail") < page.index("<nav>")


def test_checks_that_fail_stand_above_those_that_are_inconclusive_and_those_that_pass(
    page: str, judged: Verdict
) -> None:
    section = read(page).section("checks")
    listed = [row.text() for row in section.all("tr") if row.all("td")]
    outcomes = [text.split()[1].removesuffix("the") for text in listed]
    order = [next(o for o in report.ORDER if word.startswith(o)) for word in outcomes]
    assert len(order) == len(judged.checks)
    assert order == sorted(order, key=report.ORDER.index)
    assert "text-017 in a batch" in listed[0]
    (folded,) = section.all("details")
    assert len(folded.all("tr")) - 1 == order.count(PASS)


def test_of_many_failures_the_worst_are_seen_and_the_others_can_be_opened(found: Measurement) -> None:
    checks = [
        Check("sqnr_slice", f"slice {i}", 16 - i / 100, 9, 16.5, 17, FAIL, 24, None, ABSOLUTE)
        for i in range(500)
    ]
    section = read(html.page(found, Verdict(FAIL, tuple(checks), "", ""))).section("checks")
    seen, rest = ([row.all("bdi")[0].text() for row in t.all("tr")[1:]] for t in section.all("table"))
    assert seen == [f"slice {499 - i}" for i in range(html.CHECKS)]
    assert len(rest) == 500 - html.CHECKS
    assert f"{len(rest)} more that fail or are inconclusive" in section.all("summary")[0].text()


def test_slices_are_sorted_by_noise_and_the_floor_and_intervals_stand_where_they_belong(
    page: str, found: Measurement
) -> None:
    assert found.drift is not None
    section = read(page).section("slices")
    first, second = section.all("ul", "chart")
    by_name = {part.name: part for part in found.drift.slices}
    names = [row.all("bdi")[0].text() for row in rows(first)]
    assert names[0] == "language l3"
    assert names == sorted(by_name, key=lambda name: by_name[name].sqnr.value)
    assert [row.all("bdi")[0].text() for row in rows(second)] == ["precision binary", "dim 32"]
    dots, lows, highs, floors = [], [], [], []
    for name, row in zip(names, rows(first), strict=True):
        dots.append((by_name[name].sqnr.value, percent(row.all("circle")[0].attributes["cx"])))
        whisker = row.all("line", "mark")[0].attributes
        lows.append((by_name[name].sqnr.low, percent(whisker["x1"])))
        highs.append((by_name[name].sqnr.high, percent(whisker["x2"])))
        floors += [(17.0, percent(line.attributes["x1"])) for line in row.all("line", "floor")]
        muted = not by_name[name].judged
        assert bool(row.all("g", "off")) == muted == ("not judged" in row.text())
        assert bool(row.all("bdi", "unjudged")) == muted
        assert bool(row.all("line", "floor")) != muted
    values, places = np.array(dots + lows + highs + floors).T
    slope, start = np.polyfit(values, places, 1)
    np.testing.assert_allclose(start + slope * values, places, atol=0.02)  # of one axis, in percent
    assert slope > 0
    assert "✗ fail" in rows(first)[0].text()
    assert "✗" not in rows(first)[-1].text()


def test_the_waterfall_has_widths_of_noise_power_and_steps_begin_where_the_stage_before_ends(
    found: Measurement, judged: Verdict
) -> None:
    stages = (
        Stage("simulated", "in float32", "float32", Interval(23, 22, 24), Interval(23, 22, 24), 0.99, ""),
        Stage("executed", "kernels", "simulated", Interval(20, 19, 21), Interval(23, 22, 24), 0.99, ""),
        Stage("emulated", "a CPU without VNNI", "executed", None, None, None, "ended by SIGILL"),
    )
    section = read(html.page(replace(found, ledger=stages), judged)).section("ledger")
    one, two, three = rows(section)
    assert not three.all("svg")
    assert "ended by SIGILL" in three.text()
    assert "? inconclusive" in three.text()
    total, step = two.all("rect", "bar")[0].attributes, two.all("rect", "step")[0].attributes
    before = one.all("rect", "bar")[0].attributes
    assert percent(total["width"]) / percent(before["width"]) == pytest.approx(10**0.3, abs=0.01)
    assert percent(total["x"]) == 0
    assert percent(step["x"]) == pytest.approx(percent(before["width"]), abs=0.02)
    assert percent(step["x"]) + percent(step["width"]) == pytest.approx(percent(total["width"]), abs=0.3)
    (floor,) = two.all("line", "floor")
    assert percent(floor.attributes["x1"]) == pytest.approx(percent(total["width"]), abs=0.02)  # 20 dB
    whisker = two.all("line", "whisker")[0].attributes
    assert percent(whisker["x2"]) / percent(whisker["x1"]) == pytest.approx(10**0.2, abs=0.01)
    assert "23.0 dB [22.0, 24.0] from simulated" in two.text()


def counts(page: str) -> list[int]:
    """Texts of each bar of the histogram."""
    titles = read(page).section("cosines").all("title")
    return [int(title.text().split(": ")[1].split()[0]) for title in titles]


@pytest.mark.parametrize("cosine", [None, 1.0, 1.0000000001])
def test_the_histogram_holds_every_text_whatever_the_cosines(
    found: Measurement, judged: Verdict, cosine: float | None
) -> None:
    assert found.per_text is not None
    made = found
    if cosine is not None:
        made = replace(found, per_text=replace(found.per_text, cosine=(cosine,) * 192))
    assert sum(counts(html.page(made, judged))) == 192


def test_a_cosine_that_is_no_number_is_left_out_of_the_histogram(found: Measurement, judged: Verdict) -> None:
    assert found.per_text is not None
    cosines = (NAN, *found.per_text.cosine[1:])
    made = replace(found, per_text=replace(found.per_text, cosine=cosines))
    assert sum(counts(html.page(made, judged))) == 191


def test_layers_stand_in_order_and_operators_the_worst_first(page: str, found: Measurement) -> None:
    layers, operators = read(page).section("located").all("ul", "chart")
    widths = [percent(row.all("rect", "bar")[0].attributes["width"]) for row in rows(layers)]
    np.testing.assert_allclose(np.array(widths) / widths[0], np.arange(0.1, 0.36, 0.05) / 0.1, atol=0.01)
    assert [name_of(row) for row in rows(operators)] == [
        "encoder.layer.5.output.denseactivation, layer 5",
        "embeddings.word_embeddingstable, before the layers",
    ]
    assert "25.0 %" in rows(operators)[0].text()


def test_a_measurement_that_was_not_located_says_how_to_do_it(found: Measurement, judged: Verdict) -> None:
    section = read(html.page(replace(found, located=None), judged)).section("located")
    assert "edge-embed drift measure --locate" in section.text()


def test_the_ten_worst_texts_are_there_with_what_they_lost_and_gained(page: str, found: Measurement) -> None:
    articles = read(page).section("texts").all("article")
    assert len(articles) == len(found.worst) == 10
    for one, article in zip(found.worst, articles, strict=True):
        assert one.id in article.text()
        assert one.excerpt in article.text()
        before, after = ([item.text() for item in part.all("li")] for part in article.all("ol"))
        assert [("lost" in line) for line in before] == [False, False, True, False, False]
        assert "near-2" in before[2]
        assert [("new" in line) for line in after] == [False, False, False, False, True]
        assert "near-5" in after[4]


def test_texts_without_excerpts_are_told_by_their_ids(found: Measurement, judged: Verdict) -> None:
    bare = replace(found.worst[0], excerpt="", reference=(Neighbour("near-7", 0.9, ""),), candidate=())
    text = read(html.page(replace(found, worst=(bare,)), judged)).section("texts").text()
    assert "near-7" in text
    assert bare.id in text


def test_settings_and_versions_stand_at_the_end(page: str) -> None:
    text = read(page).section("facts").text()
    for one in ("INFERENCE_PRECISION_HINT", "recipe.smooth_quant_alpha", "avx512_vnni", "2026.4.1", "2.13.0"):
        assert one in text


def test_a_crash_is_said_first_and_the_page_has_nothing_else_to_show(found: Measurement) -> None:
    ended = "the process was ended by SIGILL"
    crashed = replace(
        found,
        crash=ended,
        drift=None,
        per_text=None,
        variants=(),
        slices={},
        invariants=(),
        ledger=(),
        worst=(),
        located=None,
    )
    check = Check("candidate", None, NAN, NAN, NAN, 0, FAIL, 0, None, INVARIANT, None, ended)
    root = read(html.page(crashed, Verdict(FAIL, (check,), "", "")))
    assert [n.attributes["id"] for n in root.all("section")] == ["checks", "facts"]
    (header,) = root.all("header")
    assert f"The candidate crashed: {ended}" in header.text()
    assert header.text().index("crashed") < header.text().index("1 of 1 check fails")


def test_a_pass_says_so_and_numbers_that_are_none_do_not_break_the_page(found: Measurement) -> None:
    assert found.drift is not None
    broken = SliceDrift("language xx", 24, True, Interval(NAN, NAN, NAN), Interval(NAN, NAN, NAN))
    made = replace(
        found,
        drift=replace(found.drift, slices=(*found.drift.slices, broken), cosine_min=NAN),
        ledger=(replace(found.ledger[0], from_reference=Interval(NAN, NAN, NAN), from_previous=None),),
    )
    root = read(html.page(made, Verdict(PASS, (), "", "")))
    assert root.all("strong")[0].text() == "✓ Pass"
    first = rows(root.section("slices"))[0]
    assert "language xx" in first.text()
    assert "not a number" in first.text()
    assert not first.all("circle")
    assert "nan" not in " ".join(v for n in root.walk() for v in n.attributes.values())


def test_two_thousand_slices_are_all_in_the_page_but_most_of_them_folded(
    found: Measurement, judged: Verdict
) -> None:
    assert found.drift is not None
    parts = tuple(
        SliceDrift(f"slice {i}", 24, True, Interval(30 - i / 100, 9, 31), Interval(0.9, 0.8, 1))
        for i in range(2000)
    )
    page = html.page(replace(found, drift=replace(found.drift, slices=parts)), judged)
    seen, rest, _ = read(page).section("slices").all("ul", "chart")
    assert len(rows(seen)) == html.SHOWN
    assert len(rows(seen)) + len(rows(rest)) == 2000
    assert rows(seen)[0].text().startswith("slice 1999")
    assert "1,940 more slices" in page


# ---- how it looks


def themes() -> list[dict[str, str]]:
    """Colours by name: light, dark."""
    light, dark = re.findall(r":root \{([^}]*)\}", html.STYLE)
    found = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part)) for part in (light, dark)]
    assert found[0].keys() == found[1].keys()
    return found


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured_as_wcag_does() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_every_colour_of_text_can_be_read_on_every_ground(theme: dict[str, str]) -> None:
    for text in ("ink", "muted", "accent", "pass", "fail", "unsure"):
        for ground in ("paper", "panel"):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    assert contrast(theme["bar"], theme["paper"]) >= 3  # what is no text


def browser() -> str:
    """Chromium, by whatever name."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium on the PATH")


def run_browser(folder: Path, *options: str) -> str:
    """What it prints of page.html, without a network."""
    command = [
        browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        *options,
        (folder / "page.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode()


def decode(path: Path) -> Pixels:
    """(height, width, 3 or 4) of a PNG as Chromium writes it: eight bits, not interlaced."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height, depth, colour, *_, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    assert (depth, interlaced) == (8, 0)
    size = {2: 3, 6: 4}[colour]
    packed, at = b"", 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        packed += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * size)
    above = np.zeros((width, size), np.int64)
    pixels = []
    for line in lines:
        above = unfiltered(int(line[0]), line[1:].reshape(width, size).astype(np.int64), above)
        pixels.append(above)
    return np.stack(pixels).astype(np.uint8)


def unfiltered(kind: int, line: NDArray[np.int64], above: NDArray[np.int64]) -> NDArray[np.int64]:
    """One line (width, size) of a PNG, from the differences to its neighbours that a filter kept."""
    if kind == 0:
        return line
    if kind == 1:
        summed: NDArray[np.int64] = line.cumsum(0) % 256
        return summed
    if kind == 2:
        return (line + above) % 256
    made = []
    left = corner = [0] * line.shape[1]
    for differences, up in zip(line.tolist(), above.tolist(), strict=True):
        if kind == 3:
            guess = [(a + b) // 2 for a, b in zip(left, up, strict=True)]
        else:  # Paeth: whichever of the three is nearest to left + up - corner
            guess = [
                min((a, b, c), key=lambda near, aim=a + b - c: abs(near - aim))  # type: ignore[misc]
                for a, b, c in zip(left, up, corner, strict=True)
            ]
        corner = up
        left = [(d + g) % 256 for d, g in zip(differences, guess, strict=True)]
        made.append(left)
    return np.array(made)


def screenshot(folder: Path, *options: str) -> Pixels:
    """(height, width, 3) of page.html."""
    run_browser(folder, f"--screenshot={folder / 'page.png'}", *options)
    return decode(folder / "page.png")[:, :, :3]


def paper(theme: dict[str, str]) -> list[int]:
    """The ground of a theme, as a pixel."""
    return [int(theme["paper"][i : i + 2], 16) for i in (1, 3, 5)]


@pytest.mark.large
def test_in_a_browser_the_page_is_light_or_dark_as_the_reader_likes(page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    shots = [
        screenshot(tmp_path, f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1000,1600")
        for scheme in (1, 0)
    ]
    for pixels, theme in zip(shots, themes(), strict=True):
        assert pixels[0, 0].tolist() == paper(theme)
        empty = (pixels == paper(theme)).all(2)
        assert 0.3 < empty.mean() < 0.97
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
        assert not empty[-300:].all()  # charts are drawn, not only what stands above them
    light, dark = (pixels.mean() for pixels in shots)
    assert light > 220
    assert dark < 60
    assert (shots[0] != shots[1]).any(2).mean() > 0.9


@pytest.mark.large
@pytest.mark.parametrize("width", [400, 970])
def test_in_a_browser_nothing_reaches_the_edge_of_a_narrow_window(
    page: str, tmp_path: Path, width: int
) -> None:
    (tmp_path / "page.html").write_text(page.replace("<details", "<details open"), encoding="utf-8")
    pixels = screenshot(tmp_path, "--blink-settings=preferredColorScheme=1", f"--window-size={width},9000")
    assert pixels.shape[1] == width
    ground = (pixels == paper(themes()[0])).all(2)
    assert ground[:, -4:].all()
    assert not ground[:, -width // 4 : -16].all()


@pytest.mark.large
def test_in_a_browser_without_a_network_nothing_is_missing(page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    drawn, written = read(run_browser(tmp_path, "--dump-dom")), read(page)
    assert [n.tag for n in drawn.walk() if n.tag != "tbody"] == [
        n.tag for n in written.walk() if n.tag != "tbody"
    ]
    for section in written.all("section"):
        assert drawn.section(section.attributes["id"]).text() == section.text()
