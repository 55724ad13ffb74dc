"""bench.system_corpus on a small machine of its own: what becomes a row, and what does not."""

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest
from pyarrow import parquet

from bench import system_corpus
from bench.system_corpus import LONGEST, SHORTEST, Machine, Row, roff_paragraphs, rows, summary, write

STATUS = """\
Package: boat
Status: install ok installed
Description: crosses the harbour whenever somebody waits
 The ferry leaves every twenty minutes and carries
 bicycles without a fee.
 .
 In winter it stays at the quay.
Homepage: https://example.org

Package: terse
Description: too short
"""
LISTED = """\
Package: boat
Description: crosses the harbour whenever somebody waits
 The ferry leaves every twenty minutes and carries
 bicycles without a fee.
 .
 In winter it stays at the quay.

Package: oven
Description: bakes bread from a sourdough that is kept warm
"""
PAGE = r""".\" A comment that nobody sees.
.TH FERRY 1 "May 2026" "harbour 1.0" "User Commands"
.de XX
.B never \\$1
..
.SH NAME
ferry \- cross the harbour
.SH DESCRIPTION
.B ferry
takes passengers
.IR across ,
as \fBbridge\fR(1) does \(em without the \(lqdetour\(rq, see
.BR tide (5)
and \fI/etc/harbour\-hours\fP, in a single trip.\" says who
.PP
A second\ paragraph.

After a blank line, with a back\e\&slash.
.TP
.BI \-\-wait= minutes
How long the boat
stays at the quay.
.nf
$ ferry --wait=5 | tee log
.fi
.RS
The end of \s-1THE\s0 page\(aqs text.
.RE
"""
PARAGRAPHS = [
    "ferry - cross the harbour",
    "ferry takes passengers across, as bridge(1) does — without the “detour”, see tide(5) and "
    "/etc/harbour-hours, in a single trip.",
    "A second paragraph.",
    "After a blank line, with a back\\slash.",
    "--wait=minutes How long the boat stays at the quay.",
    "The end of THE page's text.",
]
SOURCE = '''\
"""What the module of the ferry is about, in a line that is long enough."""

# The quay is closed in winter, so that
# no boat is expected before the thaw.
WINTER = (12, 1, 2)


class Boat:
    def cross(self):
        """Cross the harbour
           once, with all who wait.
        """

    def short(self):
        """Too short."""
'''
README = """\
Metadata-Version: 2.4
Name: the header is not a part of the text that anybody would read

Knead the dough until it is smooth, and let it rest for an hour.

```python
# Code is not for reading here, even where it reads as text would.

bake(dough)
```

| column | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 13 |

Sourdough needs a warm kitchen and patience.
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One file of each kind, and some that are left out."""
    found = Machine(tmp_path / "root", tmp_path / "python", tmp_path / "python/site-packages")
    files: dict[Path, str | bytes] = {
        found.root / "var/lib/dpkg/status": STATUS,
        found.root / "var/lib/apt/lists/mirror_dists_stable_main_Packages.gz": gzip.compress(LISTED.encode()),
        found.root / "var/lib/apt/lists/mirror_dists_stable_InRelease": "Package: no\nDescription: "
        + "no " * 20,
        found.root / "usr/share/man/man1/ferry.1.gz": gzip.compress(PAGE.encode()),
        found.root / "usr/share/man/man1/broken.1.gz": gzip.compress(PAGE.encode())[:-9],
        found.root / "usr/share/man/man1/binary.1": b"\xff\xfe nothing that is text in any encoding we read",
        found.root / "usr/share/doc/ferry/README": "The first paragraph\nspans two lines of text.\n\n" * 2,
        found.root / "usr/share/doc/ferry/changelog.gz": gzip.compress(
            b"A changelog is not wanted here. " * 3
        ),
        found.root
        / "usr/share/doc/ferry/copyright": "Everybody may use the ferry as they like.\n .\n And row.",
        found.library / "harbour.py": SOURCE,
        found.library / "broken.py": "def (:\n# A comment is a comment, wherever it stands.\n",
        found.packages / "oven/recipe.py": '"""How bread is baked in an oven that is hot."""\n',
        found.packages / "oven-1.0.dist-info/METADATA": README,
        found.packages
        / "oven-1.0.dist-info/licenses/LICENSE": "Bread is free of charge for all who are hungry.",
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return found


def texts(machine: Machine, source: str) -> list[str]:
    return [row.text for row in rows(machine) if row.source == source]


def test_a_package_is_one_row_of_its_synopsis_and_description_however_often_it_is_listed(
    machine: Machine,
) -> None:
    assert sorted(texts(machine, "package")) == [
        "boat: crosses the harbour whenever somebody waits\n\n"
        "The ferry leaves every twenty minutes and carries\nbicycles without a fee.\n\n"
        "In winter it stays at the quay.",
        "oven: bakes bread from a sourdough that is kept warm",
    ]


def test_lists_that_apt_has_compressed_its_own_way_are_unpacked_by_apt(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "apt-helper"
    helper.write_text('#!/bin/sh\n[ "$1" = cat-file ] && tr a-z b-za <"$2"\n')
    helper.chmod(0o755)
    packed = machine.root / "var/lib/apt/lists/mirror_dists_stable_main_Packages.lz4"
    back = str.maketrans("bcdefghijklmnopqrstuvwxyza", "abcdefghijklmnopqrstuvwxyz")
    packed.write_text("Package: kite\nDescription: flies above the harbour on a long line".translate(back))
    assert not [text for text in texts(machine, "package") if text.startswith("kite")]
    monkeypatch.setattr(system_corpus, "APT_HELPER", helper)
    assert "kite: flies above the harbour on a long line" in texts(machine, "package")


def test_a_manual_page_gives_its_words_without_fonts_examples_and_macros() -> None:
    assert [paragraph for paragraph in roff_paragraphs(PAGE) if paragraph] == PARAGRAPHS


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_a_manual_page_reads_as_groff_shows_it() -> None:
    command = ["groff", "-man", "-Tutf8", "-P-cbou", "-rHY=0", "-rLL=400n", "-dAD=l"]
    shown = subprocess.run(command, input=PAGE, capture_output=True, encoding="utf-8", check=True).stdout
    words = shown.replace("$ ferry --wait=5 | tee log", "").split()
    wanted = " ".join(PARAGRAPHS).split()
    start, end = words.index("NAME"), words.index("text.") + 1  # between the header and the footer
    assert [word for word in words[start:end] if word not in ("NAME", "DESCRIPTION")] == wanted


def test_pages_in_mdoc_macros_are_left_out() -> None:
    page = ".Dd May 1, 2026\n.Dt FERRY 1\n.Sh NAME\n.Nm ferry\n.Nd cross the harbour\nThe boat.\n"
    assert list(roff_paragraphs(page)) == []


def test_neighbouring_paragraphs_are_one_row_and_what_cannot_be_read_is_none(machine: Machine) -> None:
    assert texts(machine, "manual") == ["\n\n".join(PARAGRAPHS)]
    assert texts(machine, "doc") == ["The first paragraph spans two lines of text."]
    assert sorted(texts(machine, "licence")) == [
        "Bread is free of charge for all who are hungry.",
        "Everybody may use the ferry as they like.\n\nAnd row.",
    ]


def test_docstrings_and_comments_come_as_they_read(machine: Machine) -> None:
    assert sorted(texts(machine, "docstring")) == [
        "Cross the harbour\nonce, with all who wait.",
        "How bread is baked in an oven that is hot.",
        "What the module of the ferry is about, in a line that is long enough.",
    ]
    assert sorted(texts(machine, "comment")) == [
        "A comment is a comment, wherever it stands.",
        "The quay is closed in winter, so that\nno boat is expected before the thaw.",
    ]


def test_a_readme_is_read_without_its_header_code_and_tables(machine: Machine) -> None:
    assert texts(machine, "readme") == [
        "Knead the dough until it is smooth, and let it rest for an hour.\n\n"
        "Sourdough needs a warm kitchen and patience."
    ]


def test_a_long_file_becomes_rows_of_whole_paragraphs(machine: Machine) -> None:
    paragraphs = [
        " ".join([f"Paragraph {chr(97 + i // 26)}{chr(97 + i % 26)}", *["word"] * (i % 60)])
        for i in range(200)
    ]
    monster = "endless " * 400
    (machine.root / "usr/share/doc/long.txt").write_text(
        "\n\n".join([*paragraphs[:90], monster, *paragraphs[90:]])
    )
    found = [row.text for row in rows(machine) if row.id.startswith("doc/long.txt#")]
    assert "\n\n".join(found).split("\n\n") == paragraphs
    assert all(system_corpus.ENOUGH <= len(text) <= LONGEST for text in found[:-1])


def test_a_long_paragraph_is_not_joined_to_the_ones_before_it(machine: Machine) -> None:
    short, long = "A short one, but a paragraph. " * 8, "A paragraph that takes up a row nearly alone. " * 42
    (machine.root / "usr/share/doc/long.txt").write_text(f"{short}\n\n{long}\n\n{short}again")
    found = [row.text for row in rows(machine) if row.id.startswith("doc/long.txt#")]
    assert found == [short.strip(), long.strip(), f"{short}again"]


def test_texts_and_ids_are_distinct_and_of_fitting_length_whatever_repeats(machine: Machine) -> None:
    bread = "How bread is baked in an oven that is hot."  # also a docstring
    (machine.packages / "oven/README.md").write_text(bread)
    for name in ("one", "two"):  # a paragraph that several files have beside one of their own
        text = (
            f"Do not lean out of the window of the boat.\n\nThe boat of number {name} leaves from the quay."
        )
        (machine.root / f"usr/share/doc/{name}.txt").write_text(text)
    (machine.packages / "oven/long.py").write_text(f"# {'spaced out ' * 300}\n")
    found = list(rows(machine))
    assert len({row.text for row in found}) == len({row.id for row in found}) == len(found)
    assert all(SHORTEST <= len(row.text) <= LONGEST for row in found)
    assert len([row for row in found if "lean out" in row.text]) == 1
    assert len([row for row in found if "leaves from the quay" in row.text]) == 2
    assert len([row for row in found if row.text == bread]) == 1


def test_links_are_not_followed_and_packages_are_not_read_as_parts_of_the_library(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_text("A text that lies elsewhere, to which only a link leads.")
    (machine.root / "usr/share/doc/link.txt").symlink_to(tmp_path / "elsewhere")
    for i in range(9):
        (machine.packages / f"oven/more{i}.py").write_text(
            f'"""Loaf number {i}, of which every oven has nine."""'
        )
    ids = {row.id for row in rows(machine)}
    assert not [name for name in ids if "link.txt" in name or "docstring/site-packages" in name]
    assert "docstring/oven/recipe.py#1" in ids


def test_every_call_gives_the_same_rows_and_the_first_ones_have_every_source(machine: Machine) -> None:
    found = list(rows(machine))
    assert list(rows(machine)) == found
    assert [row.source for row in found[:7]] == list(system_corpus.SOURCES)
    assert found[0].id == f"package/{found[0].text.partition(':')[0]}#1"


def test_the_file_has_the_first_rows_and_the_summary_counts_them(machine: Machine, tmp_path: Path) -> None:
    target = tmp_path / "corpus.parquet"
    found = write(target, 10, machine)
    table = parquet.read_table(target)
    assert [Row(**row) for row in table.to_pylist()] == found == list(rows(machine))[:10]
    first = target.read_bytes()
    write(target, 10, machine)
    assert target.read_bytes() == first
    lines = {line.split()[0]: line.split()[1:] for line in summary(found).splitlines()}
    lengths = sorted(len(row.text) for row in found)
    assert lines["all"][:2] == ["10", f"{(lengths[4] + lengths[5]) / 2:,.0f}"]


def test_a_machine_with_too_little_text_is_an_error_and_leaves_no_file(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_corpus, "HERE", machine)
    target = tmp_path / "corpus.parquet"
    with pytest.raises(SystemExit, match=r"gave \d+ rows, not 1000; ask for fewer"):
        system_corpus.main([str(target), "--rows", "1000"])
    assert not target.exists()
