"""The calibration and evaluation texts are sound, and check.py names each defect planted in a copy."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from calibration import check

Row = dict[str, object]
Edit = Callable[[list[Row]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the texts and their manifest to plant defects in."""
    for split in check.SPLITS:
        shutil.copytree(check.HERE / split, tmp_path / split)
    shutil.copy(check.HERE / "manifest.json", tmp_path)
    return tmp_path


def calibration_texts() -> list[check.Text]:
    texts, _ = check.read(check.HERE)
    return [text for text in texts if text.split == "corpora"]


def evaluation_texts() -> list[check.Text]:
    texts, _ = check.read(check.HERE)
    return [text for text in texts if text.split == "evaluation"]


def rows(folder: Path, stratum: str, split: str = "corpora") -> list[Row]:
    lines = (folder / split / f"{stratum}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def edit(folder: Path, stratum: str, change: Edit, split: str = "corpora") -> tuple[check.Defect, ...]:
    """Change the rows of one file, renew the manifest, and say what the check finds."""
    changed = rows(folder, stratum, split)
    change(changed)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in changed)
    (folder / split / f"{stratum}.jsonl").write_text(text, "utf-8")
    check.write_manifest(folder)
    return check.check(folder)


def rules(defects: tuple[check.Defect, ...]) -> set[str]:
    return {defect.rule for defect in defects}


def put(index: int, **values: object) -> Edit:
    return lambda rows: rows[index].update(values)


def test_the_texts_are_sound() -> None:
    assert check.check() == ()


def test_the_corpus_covers_52_languages_and_9_code_languages_with_424_texts() -> None:
    assert len(set(check.LANGUAGES)) == 52
    assert Counter(check.group(text.stratum) for text in calibration_texts()) == {
        "languages": 312,
        "code": 54,
        "other": 46,
        "edge": 12,
    }


def test_every_topic_has_a_query_and_a_passage_in_every_language() -> None:
    texts = [text for text in evaluation_texts() if text.stratum in check.LANGUAGES]
    assert len(set(check.TOPICS)) == 12
    assert Counter((text.topic, text.stratum, text.kind) for text in texts) == {
        (topic, language, kind): 1
        for topic in check.TOPICS
        for language in check.LANGUAGES
        for kind in ("query", "passage")
    }


def test_every_code_topic_is_one_query_and_one_function() -> None:
    pairs: dict[str, list[str]] = {}
    for text in evaluation_texts():
        if text.stratum in check.CODE_STRATA:
            pairs.setdefault(text.topic, []).append(text.kind)
    assert len(pairs) == 9 * 12
    assert all(sorted(kinds) == ["passage", "query"] for kinds in pairs.values())


def test_the_long_texts_are_in_15_languages_and_7_scripts() -> None:
    languages = [text.language for text in evaluation_texts() if text.kind == "long"]
    assert sorted(languages) == sorted(set(check.LONG))
    assert len(languages) == 15
    assert len({check.SCRIPTS.get(language, ("LATIN",)) for language in languages}) == 7


def test_the_manifest_states_the_licence_and_the_counts_of_each_split() -> None:
    manifest = json.loads((check.HERE / "manifest.json").read_text("utf-8"))
    assert (manifest["licence"], len(manifest["files"])) == ("CC0-1.0", 63 + 62)
    assert (manifest["corpora"]["total"], len(manifest["order"])) == (424, 424)
    assert manifest["evaluation"] == {
        "total": 1479,
        "strata": {"code": 216, "languages": 1248, "long": 15},
        "kinds": {"long": 15, "passage": 732, "query": 732},
    }


def test_any_prefix_of_the_order_is_balanced_over_the_strata() -> None:
    texts = calibration_texts()
    stratum = {text.id: check.group(text.stratum) for text in texts}
    order = check.order(texts)
    assert sorted(order) == sorted(stratum)
    whole, seen = Counter(stratum.values()), Counter[str]()
    for length, identifier in enumerate(order, 1):
        seen[stratum[identifier]] += 1
        assert all(abs(seen[name] - whole[name] * length / len(order)) <= 2 for name in whole), length


def test_each_round_of_the_order_takes_one_text_of_each_language_and_mixes_the_kinds() -> None:
    texts = calibration_texts()
    by_id = {text.id: text for text in texts if text.stratum in check.LANGUAGES}
    order = [by_id[identifier] for identifier in check.order(texts) if identifier in by_id]
    for start in range(0, len(order), len(check.LANGUAGES)):
        part = order[start : start + len(check.LANGUAGES)]
        assert {text.stratum for text in part} == set(check.LANGUAGES)
        kinds = Counter(text.kind for text in part)
        assert 8 <= kinds["long"] <= 9
        assert 16 <= kinds["query"] <= 18


def test_the_order_depends_neither_on_the_order_of_the_files_nor_on_evaluation() -> None:
    texts = calibration_texts()
    both = sorted(texts + evaluation_texts(), key=lambda text: text.stratum)
    assert check.order(both) == check.order(texts)


def test_a_text_equal_but_for_case_and_punctuation_is_a_duplicate(folder: Path) -> None:
    twin = str(rows(folder, "sk")[2]["text"])
    defects = edit(folder, "sl", put(2, text=twin.upper().replace(".", "!")))
    assert [str(defect) for defect in defects] == ["corpora/sl.jsonl:3: duplicate: the same text as sk-p1"]


def test_eight_shared_words_are_an_overlap_and_seven_are_not(folder: Path) -> None:
    source = str(rows(folder, "en")[2]["text"]).split()
    own = str(rows(folder, "en")[3]["text"])
    assert edit(folder, "en", put(3, text=" ".join([own, *source[4:11]]))) == ()
    defects = edit(folder, "en", put(3, text=" ".join([own, *source[4:12]])))
    assert [(defect.rule, defect.where) for defect in defects] == [("overlap", "corpora/en.jsonl:4")]
    assert "en-p1" in defects[0].what


def test_24_shared_letters_are_an_overlap_where_words_are_not_separated(folder: Path) -> None:
    source = "".join(character for character in str(rows(folder, "zh")[5]["text"]) if character.isalpha())
    own = str(rows(folder, "zh")[2]["text"])
    assert edit(folder, "zh", put(2, text=own + source[50:73])) == ()
    assert rules(edit(folder, "zh", put(2, text=own + source[50:74]))) == {"overlap"}


@pytest.mark.parametrize(
    ("stratum", "change", "rule", "where"),
    [
        (
            "sr",
            put(2, text=" ".join(["Voz za Bar polazi iz Beograda uveče i stiže ujutru"] * 2)),
            "script",
            3,
        ),
        ("ja", put(5, text="電車" * 400), "length", 6),
        ("de", put(0, text="Wasserkocher"), "length", 1),
        ("th", put(5, text="ปลา" * 100), "length", 6),
        ("code-c", put(3, text="int one(void)\n{\n\treturn 1;\n}"), "length", 4),
        ("edge", put(3, repeat=513), "length", 4),
        ("vi", put(0, text="phở bò ngon nhất".replace("ở", "o\u031b\u0309")), "nfc", 1),
        ("fi", put(0, id="sv-q9"), "ids", 1),
        ("fi", put(1, id="fi-q1"), "ids", 2),
        ("pl", put(0, source="a web page"), "keys", 1),
        ("pl", put(0, repeat=2), "keys", 1),
        ("pl", put(0, topic="glass"), "keys", 1),
        ("pl", lambda rows: rows[0].pop("kind"), "keys", 1),
        ("pl", put(0, text=7), "keys", 1),
    ],
    ids=[
        "Serbian in Latin script",
        "Japanese text longer than any",
        "a query of one word",
        "a long text that is short",
        "a code block of four lines",
        "513 repeats",
        "decomposed accents",
        "an id of another file",
        "an id used twice",
        "a fourth key",
        "repeat outside edge",
        "a topic in corpora",
        "no kind",
        "a text that is a number",
    ],
)
def test_a_planted_defect_is_named_with_its_line(
    folder: Path, stratum: str, change: Edit, rule: str, where: int
) -> None:
    found = {(defect.rule, defect.where) for defect in edit(folder, stratum, change)}
    assert (rule, f"corpora/{stratum}.jsonl:{where}") in found


def test_a_missing_kind_is_counted(folder: Path) -> None:
    defects = edit(folder, "ka", lambda rows: rows.pop())
    assert [str(defect) for defect in defects] == ["corpora/ka.jsonl: counts: 0 of kind long, not 1"]


def test_an_unknown_kind_is_counted(folder: Path) -> None:
    defects = edit(folder, "ka", put(0, kind="headline"))
    assert {defect.what for defect in defects} == {"1 of kind headline, not 0", "1 of kind query, not 2"}


def test_a_missing_file_and_a_stray_one_are_named(folder: Path) -> None:
    corpora = folder / "corpora"
    (corpora / "bg.jsonl").rename(corpora / "mk.jsonl")
    found = {(defect.rule, defect.where) for defect in check.check(folder)}
    assert {("files", "corpora/bg.jsonl"), ("files", "corpora/mk.jsonl")} <= found


def test_an_edited_file_does_not_match_the_manifest(folder: Path) -> None:
    path = folder / "corpora" / "hu.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Suzuki", b"Lada"))
    assert [str(defect) for defect in check.check(folder)] == [
        "corpora/hu.jsonl: manifest: not as the manifest records it"
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("licence", "MIT"), ("corpora", {}), ("evaluation", {"total": 0}), ("order", []), ("author", "someone")],
)
def test_an_edited_manifest_names_the_key(folder: Path, key: str, value: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: value}), "utf-8")
    assert [str(defect) for defect in check.check(folder)] == [
        f"manifest.json: manifest: {key} is out of date"
    ]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}'])
def test_a_broken_manifest_is_a_defect_not_a_crash(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content, "utf-8")
    assert rules(check.check(folder)) == {"manifest"}


def test_a_missing_manifest_says_how_to_make_it(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert [defect.what for defect in check.check(folder)] == ["missing; run check.py --write"]


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (lambda raw: raw[:-1], "lines"),
        (lambda raw: raw.replace(b"\n", b"\r\n"), "lines"),
        (lambda raw: raw.replace(b". ", ".\u2028".encode(), 1), "lines"),
        (lambda raw: raw.replace(b"}", b"", 1), "json"),
        (lambda raw: raw + b"[]\n", "keys"),
        (lambda raw: raw + b"\xff\n", "files"),
    ],
    ids=["no last line end", "CRLF", "a Unicode line separator", "cut JSON", "a list", "not UTF-8"],
)
def test_damaged_bytes_are_named(folder: Path, damage: Callable[[bytes], bytes], rule: str) -> None:
    path = folder / "corpora" / "it.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    assert rule in rules(check.check(folder))


def test_an_edge_line_that_is_no_object_is_a_defect_not_a_crash(folder: Path) -> None:
    with (folder / "corpora" / "edge.jsonl").open("a", encoding="utf-8") as file:
        file.write("7\n")
    assert ("keys", "corpora/edge.jsonl:13") in {(found.rule, found.where) for found in check.check(folder)}


@pytest.mark.parametrize(
    ("stratum", "change", "rule", "where"),
    [
        ("sr", put(1, text="Dimničar iz Zemuna duva staklo i peva dok se peć hladi. " * 3), "script", 2),
        ("long", put(4, text="Lenta i zvuk. " * 120), "script", 5),
        ("de", put(0, text="Waldglas grün"), "length", 1),
        ("de", put(1, text="Sand und Asche schmelzen im Ofen. " * 4), "length", 2),
        ("de", put(1, text="Sand und Asche schmelzen im Ofen. " * 14), "length", 2),
        ("zh", put(1, text="玻璃" * 24), "length", 2),
        ("long", put(0, text="Das Salz der Berge ist weiß. " * 49), "length", 1),
        ("long", put(9, text="地图" * 299), "length", 10),
        ("code-go", put(1, text="func one() int {\n\treturn 1\n}"), "length", 2),
        ("code-go", put(1, text="\n".join(f"var v{number} = {number}" for number in range(31))), "length", 2),
        ("vi", put(0, text="thổi thủy tinh như thế nào".replace("ổ", "o\u0302\u0309")), "nfc", 1),
        ("fi", put(0, id="sv-glass-q"), "ids", 1),
        ("fi", put(0, id="fi-glass-p"), "ids", 1),
        ("code-c", put(0, id="c-01-q"), "ids", 1),
        ("long", put(0, id="long-at"), "ids", 1),
        ("fi", put(2, topic="glass"), "ids", 3),
        ("fi", put(2, id="fi-glass-q", topic="glass"), "ids", 3),
        ("fi", put(0, topic="bread", id="fi-bread-q"), "topics", 1),
        ("code-c", put(0, topic="code-cpp-01", id="code-cpp-01-q"), "topics", 1),
        ("code-c", put(0, topic="glass", id="glass-q"), "topics", 1),
        ("long", put(0, topic="long-cs", id="long-cs"), "topics", 1),
        ("pl", put(0, source="a web page"), "keys", 1),
        ("pl", put(0, topic=None), "keys", 1),
        ("pl", lambda rows: rows[0].pop("topic"), "keys", 1),
    ],
    ids=[
        "Serbian in Latin script",
        "a long Russian text in Latin script",
        "a query of two words",
        "a passage of 24 words",
        "a passage of 84 words",
        "a Chinese passage of 48 letters",
        "a long text of 294 words",
        "a long Chinese text of 598 letters",
        "a function of three lines",
        "a block of 31 lines",
        "decomposed accents",
        "an id of another file",
        "an id of another kind",
        "a code id without its topic",
        "a long id without its topic",
        "an id of another topic",
        "an id used twice",
        "a topic that is not among the twelve",
        "a topic of another code file",
        "a language topic in code",
        "a long text in a language not chosen",
        "a fifth key",
        "a topic that is null",
        "no topic",
    ],
)
def test_a_defect_planted_in_evaluation_is_named_with_its_line(
    folder: Path, stratum: str, change: Edit, rule: str, where: int
) -> None:
    found = {(defect.rule, defect.where) for defect in edit(folder, stratum, change, "evaluation")}
    assert (rule, f"evaluation/{stratum}.jsonl:{where}") in found


@pytest.mark.parametrize(
    ("stratum", "what"),
    [
        ("ka", "11 of kind passage, not 12"),
        ("code-sql", "11 of kind passage, not 12"),
        ("long", "14 of kind long, not 15"),
    ],
)
def test_a_text_missing_from_evaluation_is_counted(folder: Path, stratum: str, what: str) -> None:
    defects = edit(folder, stratum, lambda rows: rows.pop(), "evaluation")
    assert [str(defect) for defect in defects] == [f"evaluation/{stratum}.jsonl: counts: {what}"]


def test_a_missing_and_a_stray_file_of_evaluation_are_named(folder: Path) -> None:
    (folder / "evaluation" / "bg.jsonl").rename(folder / "evaluation" / "mk.jsonl")
    (folder / "evaluation" / "drafts").mkdir()
    found = {(defect.rule, defect.where) for defect in check.check(folder)}
    names = ("bg.jsonl", "mk.jsonl", "drafts")
    assert {("files", f"evaluation/{name}") for name in names} <= found


def test_two_passages_of_evaluation_that_differ_in_case_only_are_duplicates(folder: Path) -> None:
    twin = str(rows(folder, "da", "evaluation")[3]["text"]).upper()
    (defect,) = edit(folder, "no", put(5, text=twin), "evaluation")
    assert str(defect) == "evaluation/no.jsonl:6: duplicate: the same text as da-storks-p"


def test_eight_words_shared_within_evaluation_are_an_overlap_and_seven_are_not(folder: Path) -> None:
    source = str(rows(folder, "long", "evaluation")[1]["text"]).split()
    own = str(rows(folder, "en", "evaluation")[1]["text"]).split()[:30]
    assert edit(folder, "en", put(1, text=" ".join([*own, *source[40:47]])), "evaluation") == ()
    defects = edit(folder, "en", put(1, text=" ".join([*own, *source[40:48]])), "evaluation")
    # long.jsonl is read last, so it is the one that repeats
    assert [(defect.rule, defect.where) for defect in defects] == [("overlap", "evaluation/long.jsonl:2")]
    assert defects[0].what.endswith("with en-glass-p")


def test_a_calibration_text_in_evaluation_is_a_leak(folder: Path) -> None:
    known = str(rows(folder, "nl")[2]["text"])
    (defect,) = edit(folder, "nl", put(1, text=known.lower()), "evaluation")
    assert str(defect) == "evaluation/nl.jsonl:2: leak: the same text as nl-p1"


def test_eight_words_of_calibration_in_evaluation_are_a_leak_and_seven_are_not(folder: Path) -> None:
    source = str(rows(folder, "nl")[2]["text"]).split()
    own = str(rows(folder, "nl", "evaluation")[1]["text"]).split()[:30]
    assert edit(folder, "nl", put(1, text=" ".join([*own, *source[:7]])), "evaluation") == ()
    (defect,) = edit(folder, "nl", put(1, text=" ".join([*own, *source[:8]])), "evaluation")
    assert (defect.rule, defect.where) == ("leak", "evaluation/nl.jsonl:2")
    assert defect.what.endswith("with nl-p1")


def test_an_edited_evaluation_file_does_not_match_the_manifest(folder: Path) -> None:
    path = folder / "evaluation" / "long.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Wakatobi", b"Bunaken"))
    assert [str(defect) for defect in check.check(folder)] == [
        "evaluation/long.jsonl: manifest: not as the manifest records it"
    ]


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """The command line, pointed at the copy."""
    argv = ["check.py"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(check, "HERE", folder)
    return argv


def test_the_command_exits_3_on_a_defect_and_0_after_the_manifest_is_renewed(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "manifest.json").unlink()
    assert check.main() == check.EXIT_DEFECTS
    assert "missing; run check.py --write" in capsys.readouterr().err
    arguments.append("--write")
    assert check.main() == 0
    assert capsys.readouterr().out == "1903 texts in 125 files, 0 defects\n"


def test_the_manifest_of_a_defective_corpus_is_not_renewed(folder: Path, arguments: list[str]) -> None:
    path = folder / "corpora" / "nl.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    before = (folder / "manifest.json").read_bytes()
    arguments.append("--write")
    assert check.main() == check.EXIT_DEFECTS
    assert (folder / "manifest.json").read_bytes() == before
