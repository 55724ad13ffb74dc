"""The calibration loader: order, the ladder of lengths, a user's texts, and leaks of evaluation texts."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import check
from edge_embed import calibration
from edge_embed.calibration import Text, cut, folded, leaked, read_user_texts
from edge_embed.errors import InputError, IntegrityError
from edge_embed.tokenization import Tokenizer
from tests.checkpoints import write_tokenizer

CountTokens = Callable[[str], int]
RUNGS = {16: 12, 64: 12, 128: 12, 256: 12, 512: 12, 1024: 12, 2048: 8, 4096: 4, 8192: 4}

# Hashes the whole list; the order of a set would differ between processes.
FINGERPRINT = """
import hashlib
from edge_embed.calibration import builtin
print(hashlib.sha256(repr(builtin(lambda text: len(text) // 3)).encode()).hexdigest())
"""


def words(text: str) -> int:
    """A counter of the kind that a caller hands in: two special tokens beside the words."""
    return len(text.split()) + 2


def rung(text: Text) -> int:
    return int(text.id.split("-")[1])


def ladder(count_tokens: CountTokens, max_tokens: int | None = None) -> list[Text]:
    whole = calibration.builtin(count_tokens, max_tokens=max_tokens)
    return [text for text in whole if text.stratum == "ladder"]


def group(text: Text) -> str:
    return "ladder" if text.stratum == "ladder" else check.group(text.stratum)


def write(folder: Path, content: str | bytes, name: str = "texts.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(count: int) -> str:
    return "".join(f"text number {number}\n" for number in range(count))


def rows(count: int) -> str:
    return "".join(json.dumps({"id": number, "text": f"text {number}"}) + "\n" for number in range(count))


def test_without_a_counter_come_the_424_stored_texts_in_the_order_of_the_manifest() -> None:
    texts = {text.id: text for text in check.read(check.HERE)[0] if text.split == "corpora"}
    manifest = json.loads((check.HERE / "manifest.json").read_text("utf-8"))
    got = calibration.builtin()
    assert len(got) == 424
    assert got == [
        Text(row.id, row.kind, "", row.text * row.repeat, row.stratum)
        for row in (texts[identifier] for identifier in manifest["order"])
    ]


def test_repeats_are_written_out() -> None:
    by_id = {text.id: text.text for text in calibration.builtin()}
    assert by_id["edge-repeated-han"] == "川" * 512
    assert by_id["edge-repeated-word"].split() == ["lantern"] * 512


def test_evaluation_gives_each_record_with_its_topic_and_stratum() -> None:
    texts = [text for text in check.read(check.HERE)[0] if text.split == "evaluation"]
    got = calibration.evaluation()
    assert len(got) == 1479
    assert {(t.id, t.kind, t.topic, t.text, t.stratum) for t in got} == {
        (t.id, t.kind, t.topic, t.text, t.stratum) for t in texts
    }
    assert [text.stratum for text in got] == sorted(text.stratum for text in got)


def test_texts_of_a_kind_come_in_file_and_line_order() -> None:
    stored = [text for text in check.read(check.HERE)[0] if text.split == "corpora"]
    stored.sort(key=lambda text: text.stratum)  # stable: the lines of a file stay in order
    assert calibration.texts() == [text.text for text in stored if text.kind in ("query", "passage")]
    assert calibration.texts(["long"]) == [text.text for text in stored if text.kind == "long"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda order: order.pop(),
        lambda order: order.append(order[0]),
        lambda order: order.__setitem__(0, "xx-q1"),
        lambda order: order.__setitem__(0, order[1]),
    ],
    ids=["one is missing", "one is there twice", "one is unknown", "one stands for another"],
)
def test_a_manifest_of_other_texts_is_refused(
    spoil: Callable[[list[str]], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(check.HERE / "corpora", tmp_path / "corpora")
    manifest = json.loads((check.HERE / "manifest.json").read_text("utf-8"))
    spoil(manifest["order"])
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    monkeypatch.setattr(calibration, "data_folder", lambda name: tmp_path)
    with pytest.raises(IntegrityError, match=r"not the 424 of corpora/; reinstall, or renew"):
        calibration.builtin()


def test_the_ladder_makes_it_512_texts_with_ids_of_their_own() -> None:
    texts = calibration.builtin(words)
    assert len(texts) == 512
    assert len({text.id for text in texts}) == 512
    assert Counter(map(rung, ladder(words))) == RUNGS


def test_the_stored_texts_keep_their_order_beside_the_ladder() -> None:
    texts = calibration.builtin(words)
    assert [text for text in texts if text.stratum != "ladder"] == calibration.builtin()


@pytest.mark.parametrize("max_tokens", [None, 512, 300, 64])
def test_any_prefix_is_balanced_over_strata_and_rungs(max_tokens: int | None) -> None:
    texts = calibration.builtin(words, max_tokens=max_tokens)
    labels = [{group(text), text.id.rpartition("-")[0] if text.kind == "ladder" else ""} for text in texts]
    whole, seen = Counter(name for names in labels for name in names), Counter[str]()
    assert whole["ladder"] == sum(count for tokens, count in RUNGS.items() if tokens <= (max_tokens or 8192))
    for length, names in enumerate(labels, 1):
        seen.update(names)
        assert all(abs(seen[name] - whole[name] * length / len(texts)) <= 2 for name in whole), length


def test_fifty_texts_already_hold_six_rungs_and_thirty_languages() -> None:
    first = calibration.builtin(words)[:50]
    assert {16, 64, 128, 256, 512, 1024} <= {rung(text) for text in first if text.kind == "ladder"}
    assert len({text.stratum for text in first if text.stratum in check.LANGUAGES}) >= 30
    assert {text.kind for text in first} == {"query", "passage", "long", "other", "edge", "ladder"}


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_gives_the_same_texts(seed: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FINGERPRINT],
        capture_output=True,
        text=True,
        check=True,
        cwd=check.HERE.parent,
        env=os.environ | {"PYTHONHASHSEED": seed},
    )
    here = repr(calibration.builtin(lambda text: len(text) // 3)).encode()
    assert run.stdout.strip() == hashlib.sha256(here).hexdigest()


@pytest.mark.parametrize("count_tokens", [len, words], ids=["characters", "words"])
def test_a_ladder_text_has_exactly_the_tokens_of_its_rung(count_tokens: CountTokens) -> None:
    texts = ladder(count_tokens)
    assert [count_tokens(text.text) for text in texts] == [rung(text) for text in texts]


def test_where_a_character_is_several_tokens_a_rung_is_not_passed_and_nearly_reached() -> None:
    for text in ladder(lambda text: len(text.encode())):
        assert 0 <= rung(text) - len(text.text.encode()) < 4


def byte_pairs(folder: Path) -> None:
    """tokenizer.json of a byte-level BPE, learned from the stored texts."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(calibration.texts(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("make", [write_tokenizer, byte_pairs])
def test_the_rungs_hold_for_a_real_tokenizer(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path)
    ours = Tokenizer(tmp_path, max_tokens=2048)
    texts = ladder(lambda text: int(ours.encode([text]).lengths[0]), max_tokens=2048)
    assert Counter(map(rung, texts)) == {tokens: count for tokens, count in RUNGS.items() if tokens <= 2048}
    official = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    official.no_truncation()
    official.no_padding()
    for text in texts:
        assert rung(text) - 4 <= len(official.encode(text.text).ids) <= rung(text), text.id


@pytest.mark.parametrize(
    ("max_tokens", "longest", "count"), [(8191, 4096, 84), (512, 512, 60), (300, 256, 48), (16, 16, 12)]
)
def test_rungs_above_the_limit_of_the_model_are_left_out(max_tokens: int, longest: int, count: int) -> None:
    texts = ladder(words, max_tokens)
    assert (max(map(rung, texts)), len(texts)) == (longest, count)
    assert max(words(text.text) for text in texts) <= max_tokens


def test_a_limit_below_the_ladder_leaves_the_stored_texts() -> None:
    assert calibration.builtin(words, max_tokens=15) == calibration.builtin()


def test_each_ladder_text_begins_at_another_stored_text_and_each_rung_all_over_the_ring() -> None:
    ring = [text for text in calibration.builtin() if text.stratum != "edge"]
    starts: dict[int, list[int]] = {}
    for text in ladder(words):
        places = [place for place in range(len(ring)) if text.text.startswith(ring[place].text[:60])]
        assert len(places) == 1, text.id
        starts.setdefault(rung(text), []).append(places[0])
    every = [start for places in starts.values() for start in places]
    assert len(set(every)) == 88
    for places in starts.values():
        widest = max(
            after - before for before, after in zip(places, [*places[1:], places[0] + len(ring)], strict=True)
        )
        assert widest <= 1.5 * len(ring) / len(places)


def test_a_long_text_runs_on_over_the_end_of_the_ring() -> None:
    ring = [text.text for text in calibration.builtin() if text.stratum != "edge"]
    last = [text for text in ladder(words) if rung(text) == 8192][-1].text
    assert f"{ring[-1]}\n\n{ring[0]}\n\n{ring[1]}" in last


def test_no_edge_text_is_in_the_ladder() -> None:
    pieces = [
        text.text[:20] for text in calibration.builtin() if text.stratum == "edge" and len(text.text) > 15
    ]
    assert len(pieces) >= 4
    assert [(text.id, piece) for text in ladder(words) for piece in pieces if piece in text.text] == []


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=80), st.integers(0, 90))
def test_a_cut_takes_as_much_as_fits(text: str, tokens: int) -> None:
    assert cut(text, tokens, len) == text[:tokens]


@settings(deadline=None, max_examples=150)
@given(st.text("ab", max_size=60), st.integers(1, 20))
def test_a_cut_fits_also_where_counts_fall_with_more_characters(text: str, tokens: int) -> None:
    def merging(text: str) -> int:
        return len(text.replace("aaa", "").replace("bb", ""))

    head = cut(text, tokens, merging)
    assert text.startswith(head)
    assert merging(head) <= tokens
    assert head == text or merging(text[: len(head) + 1]) > tokens


def test_a_cut_never_counts_the_whole_of_a_long_text() -> None:
    sizes: list[int] = []

    def count(text: str) -> int:
        sizes.append(len(text))
        return len(text) // 4

    assert len(cut("x" * 1_000_000, 128, count)) == 128 * 4 + 3
    assert max(sizes) <= 2 * (128 * 4 + 3)
    assert len(sizes) <= 24


def test_lines_are_texts_whatever_their_ends_and_mark(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff" + lines(60).replace("\n", "\r\n") + "one\u2028still one, no end")
    got = read_user_texts(path)
    assert got.texts == [*lines(60).splitlines(), "one\u2028still one, no end"]
    assert (got.duplicates, got.blank) == (0, 0)


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.ndjson"])
def test_json_rows_give_the_text_under_text(name: str, tmp_path: Path) -> None:
    odd = json.dumps({"text": "two\nlines"}) + "\n\n" + json.dumps({"text": "  "}) + "\n"
    got = read_user_texts(write(tmp_path, rows(50) + odd, name))
    assert got.texts == [*(f"text {number}" for number in range(50)), "two\nlines"]
    assert (got.duplicates, got.blank) == (0, 2)


def test_copies_and_blank_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, lines(50) + "\n \t\n" + lines(3) + "Text number 0\n")
    got = read_user_texts(path)
    assert got.texts == [*lines(50).splitlines(), "Text number 0"]
    assert (got.duplicates, got.blank) == (3, 2)


def test_forty_nine_different_texts_are_too_few_unless_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, lines(49) + lines(10))
    with pytest.raises(InputError, match=r"49 different texts, fewer than 50: .* a lottery .*--allow-few$"):
        read_user_texts(path)
    assert len(read_user_texts(path, allow_few=True).texts) == 49
    assert len(read_user_texts(write(tmp_path, lines(50))).texts) == 50


@pytest.mark.parametrize("allow_few", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "", "holds no texts; give at least 50"),
        ("a.txt", "\ufeff", "holds no texts"),
        ("a.txt", "\n \r\n\t\n", "holds no texts"),
        ("a.jsonl", "", "holds no texts"),
        ("a.jsonl", '{"text": " "}\n', "holds no texts"),
        ("a.txt", b"good\nbad \xff\xfe\n", "is not UTF-8: byte 0xff in line 2"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "is not UTF-8: byte 0xe9 in line 1"),
        ("a.jsonl", '{"text": "a"}\nplain\n', "line 2 is not JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1 is not JSON"),
        ("a.jsonl", '{"text": ' + "1" * 5_000 + "}\n", "line 1 is not JSON"),
        ("a.jsonl", '{"text": "a"}\n\n{"body": "b"}\n', "line 3 has no text; each line must be an object"),
        ("a.jsonl", '{"text": null}\n', "line 1 has no text"),
        ("a.jsonl", '{"text": 7}\n', "line 1 has no text"),
        ("a.jsonl", '["text"]\n', "line 1 has no text"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    name: str, content: str | bytes, says: str, allow_few: bool, tmp_path: Path
) -> None:
    path = write(tmp_path, content, name)
    with pytest.raises(InputError) as caught:
        read_user_texts(path, allow_few=allow_few)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.txt", "."])
def test_a_missing_file_and_a_folder_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot read .*: \w+"):
        read_user_texts(tmp_path / name)


def test_a_calibration_text_that_is_an_evaluation_text_is_found_in_any_dress() -> None:
    held_out = [text.text for text in calibration.evaluation()]
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in held_out[30])
    planted = ["a text of mine", held_out[0], "the last one", wide, f"  {held_out[700].upper()} !!\n"]
    assert leaked(planted, held_out) == [held_out[0], wide, planted[4]]


def test_no_built_in_calibration_text_is_an_evaluation_text() -> None:
    texts = [text.text for text in calibration.builtin(words)]
    assert leaked(texts, [text.text for text in calibration.evaluation()]) == []


def test_different_punctuation_alone_is_a_different_text_and_surrogates_do_no_harm() -> None:
    assert leaked(["?!", "\ud800", "a \ud800"], ["...", "b \ud800"]) == []
    assert leaked(["?!"], ["?!"]) == ["?!"]


def test_texts_are_compared_as_the_check_of_the_corpora_compares_them() -> None:
    texts = [text.text for text in check.read(check.HERE)[0]]
    odd = ["", " ", "?!", "Straße", "STRASSE", "①", "Ａ１", "e\u0301", "ﬁ", "क्षत्रिय", "\u00a0", "a_b-c"]
    assert [folded(text) for text in texts + odd] == [check.folded(text) for text in texts + odd]
