"""Token ids against transformers' tokenizer, the early cut of long texts, and files that are no tokenizer."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed.boundaries import boundaries
from edge_embed.errors import ModelError
from edge_embed.tokenization import CHARACTERS_PER_TOKEN, Tokenizer, encodable
from tests.checkpoints import vocabulary, write_tokenizer

TEXTS = [
    "",
    " ",
    "\n\t \r\n",
    "a",
    "The cat sat on the mat.",
    "HELLO world, how are you? (it is 12:30; or 13-00)",
    "unbelievable antidisestablishmentarianism " + "x" * 300,
    "naïve café résumé Ærøskøbing Đặng İstanbul ΣΊΣΥΦΟΣ straße",
    "e\u0301 o\u0308 \u0301 a\u0323\u0302 \u1100\u1161\u11a8",
    "Москва слезам не верит",
    "日本語のテキストと中文字符，混ぜる。",
    "한국어 문장입니다",
    "مرحبا بالعالم",
    "हिन्दी में एक वाक्य",
    "ภาษาไทยไม่มีช่องว่าง",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 ☃️ ❤️‍🔥",
    "control \x00 \x01\x02 \x7f \x85 \u200b\u200d\ufeff \u2028 \u202e \ufffd",
    "no\u00a0break\u3000wide\u2009thin",
    "[CLS] in the text [SEP] and [MASK][PAD] [UNK] [sep]",
    "##s ## # ##the",
    "long " * 2000,
    "日" * 3000,
    "the cat\n" * 1000 + "é" * 1000,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models' tokenizer only."""
    made = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(made)
    return made


def variant(source: Path, target: Path, **changes: Any) -> Path:
    """A tokenizer.json like that of `source` but for some of its top-level keys."""
    content = json.loads((source / "tokenizer.json").read_text("utf-8"))
    target.mkdir(exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(content | changes), "utf-8")
    return target


def content_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    return content


def added(content: str, **changes: bool) -> dict[str, Any]:
    """A row of added_tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"id": 400, "content": content, **(flags | changes)}


# Against the official library.


def assert_equal_to_transformers(folder: Path, texts: list[str], limit: int) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(folder)
    expected = reference(texts, truncation=True, max_length=limit, padding=False)["input_ids"]
    whole = reference(texts, truncation=False, padding=False, verbose=False)["input_ids"]
    tokens = Tokenizer(folder, max_tokens=limit).encode(texts)

    for text, ids, want in zip(texts, tokens.ids, expected, strict=True):
        assert ids.tolist() == want, text[:100]
        assert ids.dtype == np.int64
    over = np.array([len(ids) > limit for ids in whole])
    assert ((tokens.lengths > limit) == over).all()
    assert (tokens.lengths <= [len(ids) for ids in whole]).all()
    assert (tokens.lengths == [len(ids) for ids in whole])[~over].all()


@pytest.mark.reference
@pytest.mark.parametrize("limit", [3, 8, 64, 512])
def test_ids_equal_transformers_on_the_tiny_tokenizer(tiny_checkpoint: Path, limit: int) -> None:
    assert_equal_to_transformers(tiny_checkpoint, TEXTS, limit)


@pytest.mark.reference
@pytest.mark.minilm
@pytest.mark.parametrize("limit", [3, 8, 128, 256])
def test_ids_equal_transformers_on_minilm(minilm: Path, limit: int) -> None:
    assert_equal_to_transformers(minilm, TEXTS, limit)


@pytest.mark.reference
@pytest.mark.minilm
def test_ids_equal_transformers_on_mixtures_of_scripts(minilm: Path) -> None:
    chosen = random.Random(0)
    mixtures = ["".join(chosen.choices("".join(TEXTS[:20]), k=chosen.randint(1, 400))) for _ in range(300)]

    assert_equal_to_transformers(minilm, mixtures, 32)


# Truncation, padding, special tokens.


def test_the_files_own_truncation_and_padding_are_ignored(folder: Path) -> None:
    content = content_of(folder)
    assert content["truncation"]["max_length"] == content["padding"]["strategy"]["Fixed"] == 8

    tokens = Tokenizer(folder, max_tokens=512).encode(["the", "the cat sat on a mat and a dog runs fast"])

    assert [len(ids) for ids in tokens.ids] == [3, 13]
    assert tokens.lengths.tolist() == [3, 13]


def test_a_cut_text_keeps_its_special_tokens(folder: Path) -> None:
    whole = Tokenizer(folder, max_tokens=512).encode(["the cat sat on a mat"]).ids[0]
    tokens = Tokenizer(folder, max_tokens=5).encode(["the cat sat on a mat"])

    assert tokens.ids[0].tolist() == [*whole[:4], whole[-1]]
    assert tokens.lengths.tolist() == [8]


def test_a_prompt_is_part_of_the_text(folder: Path) -> None:
    tokenizer = Tokenizer(folder, max_tokens=6)

    with_prompt = tokenizer.encode(["cat runs", "dog " * 9], "how is ")
    written_out = tokenizer.encode(["how is cat runs", "how is " + "dog " * 9])
    assert [ids.tolist() for ids in with_prompt.ids] == [ids.tolist() for ids in written_out.ids]
    assert with_prompt.lengths.tolist() == written_out.lengths.tolist() == [6, 13]


def test_no_texts_give_no_tokens(folder: Path) -> None:
    tokens = Tokenizer(folder, max_tokens=8).encode([])

    assert tokens.ids == []
    assert tokens.lengths.shape == (0,)


def test_a_limit_that_leaves_no_room_is_refused_with_its_number(folder: Path) -> None:
    assert len(Tokenizer(folder, max_tokens=3).encode(["cat sat"]).ids[0]) == 3
    for limit in (0, 1, 2):
        with pytest.raises(ModelError, match=f"a limit of {limit} tokens leaves no room beside 2 special"):
            Tokenizer(folder, max_tokens=limit)


def test_a_tokenizer_without_special_tokens_adds_none(folder: Path, tmp_path: Path) -> None:
    bare = variant(folder, tmp_path / "bare", post_processor=None)

    tokens = Tokenizer(bare, max_tokens=2).encode(["cat sat on", "dog"])
    assert [len(ids) for ids in tokens.ids] == [2, 1]
    assert tokens.lengths.tolist() == [3, 1]


# The early cut: `head` may save time, never change a token.

FRAGMENTS = [
    *(" ", "  ", "\t", "\n", "\r\n", " \u0301", "\u00a0", "\u2028", "\u3000", "\x0b", "\x85", "\x1c"),
    *("\x00", "\x01", "\x7f", "\u200b", "\u200d", "\ufeff", "\ufffd"),
    *("\u0301", "\u0308", "\u0323", "e\u0301", "i\u0307", "İ", "ß", "Σ", "ς", "ﬁ", "\u1100", "\u1161", "한"),
    *("猫", "日本", "。", "，", "👍🏽", "👩‍👧", "🇩🇪"),
    *("[SEP]", "[SEP", "]", "[ SEP]", "[CLS]", "[PAD]", "[MASK]", "[sep]", "word", "WORD"),
    *("the", "cat", "unbelievable", "x" * 90, "x" * 130, "y" * 401, "Z9" * 450, "é" * 300),
    *(" " * 110, "\n" * 120, "\x00" * 120, "\u200b" * 110, "e\u0301" * 60),  # many characters, few tokens
    *(".", "-", "'s", "0", "_", "<|", "|>", "{", "##s", "$5", "\u037e", "\u2126", "\uf900", "\U00020000"),
]
fragments = st.sampled_from(FRAGMENTS)
long_texts = st.builds(
    lambda parts, repeats, tail: "".join(parts) * repeats + tail,
    st.lists(fragments | st.characters(exclude_categories=["Cs"]), min_size=4, max_size=60),
    st.integers(1, 3),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


def normalizer(**changes: Any) -> dict[str, Any]:
    flags = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    return {"type": "BertNormalizer", **(flags | changes)}


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"normalizer": normalizer(clean_text=False)},
        {"normalizer": normalizer(strip_accents=False, lowercase=False)},
        {"added_tokens": [added("[sep]"), added("x["), added("<|cat|>")]},
        {"added_tokens": [added("[SEP]", special=True, normalized=False), added("]x", normalized=False)]},
    ],
    ids=["bert", "unclean", "cased", "normalized added tokens", "raw added tokens"],
)
def pair(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer that cuts long texts early, and the same one told not to."""
    made = variant(folder, tmp_path_factory.mktemp("variant"), **request.param)
    early, whole = Tokenizer(made, max_tokens=8), Tokenizer(made, max_tokens=8)
    assert early._boundaries is not None
    whole._boundaries = None
    return early, whole


@settings(deadline=None, max_examples=50)
@given(text=long_texts)
def test_the_early_cut_changes_no_token(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    early, whole = (tokenizer.encode([text]) for tokenizer in pair)

    assert early.ids[0].tolist() == whole.ids[0].tolist()
    assert early.lengths[0] <= whole.lengths[0]
    assert (early.lengths[0] > 8) == (whole.lengths[0] > 8)


def test_a_huge_text_is_cut_before_it_is_tokenized(folder: Path) -> None:
    tokenizer = Tokenizer(folder, max_tokens=8)
    text = "the cat sat " * 100_000

    head = tokenizer.head(text)
    assert len(head) <= CHARACTERS_PER_TOKEN * 8 + len("the cat sat ")
    assert text.startswith(head)
    assert tokenizer.encode([text]).lengths[0] > 8  # a lower bound that still says "too long"


def test_the_cut_goes_on_until_there_are_enough_tokens(folder: Path) -> None:
    tokenizer = Tokenizer(folder, max_tokens=8)
    text = "the" + " " * 5_000 + "cat sat on a mat and a dog runs " + " " * 5_000 + "fast"

    head = tokenizer.head(text)
    assert 5_000 < len(head) < len(text)
    assert len(tokenizer.encode([text]).ids[0]) == 8


def test_a_long_text_without_boundaries_is_left_whole(folder: Path) -> None:
    text = "\u0e31" * 10_000  # marks, which could be removed

    assert Tokenizer(folder, max_tokens=8).head(text) is text


@pytest.mark.parametrize("letter", ["x", "é", "я", "ก", "ស", "ლ", "ア", "한", "7"])
def test_an_endless_word_is_shortened_to_one_that_is_as_unknown(folder: Path, letter: str) -> None:
    tokenizer = Tokenizer(folder, max_tokens=8)

    assert len(tokenizer.head("cat " + letter * 1_000_000 + " cat")) < 1_000
    tokens = tokenizer.encode(["cat " + letter * 1_000_000 + " dog"])
    assert tokens.ids[0].tolist() == tokenizer.encode(["cat [UNK] dog"]).ids[0].tolist()


def test_a_cut_inside_of_an_endless_word_needs_no_look_at_its_end(folder: Path) -> None:
    tokenizer = Tokenizer(folder, max_tokens=64)

    head = tokenizer.head("the cat sat " * 40 + "x" * 50_000_000)
    assert len(head) < 2_000
    assert len(tokenizer.encode([head]).ids[0]) == 64


@pytest.mark.parametrize(
    "unit", ["the cat, sat. ", "猫の日本", "ひらがな", "x", "é", "日本語のテキストと中文字符，混ぜる。"]
)
def test_fifty_megabytes_are_not_tokenized_whole(folder: Path, unit: str) -> None:
    text = unit * (50_000_000 // len(unit.encode()))

    head = Tokenizer(folder, max_tokens=32).head(text)
    assert len(head) < 4_000
    # Ten times as much gives the same tokens.
    longer = Tokenizer(folder, max_tokens=320).encode([text[:40_000]]).ids[0]
    assert Tokenizer(folder, max_tokens=32).encode([text]).ids[0].tolist()[:-1] == longer.tolist()[:-1][:31]


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}},
        {"pre_tokenizer": None},
        {"normalizer": None},
        {"normalizer": {"type": "NFC"}},
        {"normalizer": normalizer(handle_chinese_chars=False)},
        {"max_input_chars_per_word": 101},
        {"normalizer": {"type": "Sequence", "normalizers": []}},
        {"added_tokens": [added("two words")]},
        {"added_tokens": [added("two\twords")]},
        {"added_tokens": [added("two\u00a0words")]},  # BERT's normalizer makes it "two words"
        {"added_tokens": [added("two\u3000words")]},
        {"added_tokens": [added("the-cat")]},
        {"added_tokens": [added("猫")]},
        {"added_tokens": [added("word")]},  # would be found inside of an endless word
        {"added_tokens": [added("[MASK]", single_word=True)]},
        {"added_tokens": [added("[MASK]", lstrip=True)]},
        {"added_tokens": [added("[MASK]", rstrip=True)]},
    ],
)
def test_what_may_look_across_a_boundary_is_never_cut_early(folder: Path, changes: dict[str, Any]) -> None:
    content = content_of(folder)
    for key, value in changes.items():
        (content["model"] if key in content["model"] else content)[key] = value

    assert boundaries(tokenizers.Tokenizer.from_str(json.dumps(content_of(folder)))) is not None
    assert boundaries(tokenizers.Tokenizer.from_str(json.dumps(content))) is None


def test_an_added_token_with_a_wide_space_is_found_behind_the_cut(folder: Path, tmp_path: Path) -> None:
    """The cut would fall between the two words, which the normalizer makes one added token."""
    made = variant(folder, tmp_path / "wide", added_tokens=[added("cat\u00a0cat")])
    text = "cat " * 1_000

    short, long = (Tokenizer(made, max_tokens=limit).encode([text]) for limit in (8, 2_000))
    assert short.ids[0].tolist()[:-1] == long.ids[0].tolist()[:7]


def test_a_byte_level_tokenizer_reads_long_texts_whole(folder: Path, tmp_path: Path) -> None:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = Tokenizer(variant(folder, tmp_path / "bytes", pre_tokenizer=level), max_tokens=8)
    text = "the cat " * 1_000

    assert tokenizer.head(text) is text


# Files that are no tokenizer, or that of another model.


def test_a_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Tokenizer(tmp_path, max_tokens=8)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "list", "binary"])
def test_a_damaged_file_is_refused_in_one_line(folder: Path, tmp_path: Path, damage: str) -> None:
    data = (folder / "tokenizer.json").read_bytes()
    cases = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "text": b"hello",
        "list": b"[]",
        "binary": b"\xff\x00",
    }
    (tmp_path / "tokenizer.json").write_bytes(cases[damage])

    with pytest.raises(ModelError, match=r"tokenizer\.json is not a usable tokenizer") as caught:
        Tokenizer(tmp_path, max_tokens=8)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_rows_are_refused_with_both_numbers(folder: Path) -> None:
    tokenizer = Tokenizer(folder, max_tokens=8)
    size = len(vocabulary())

    tokenizer.check_fits(None)
    tokenizer.check_fits(size)
    tokenizer.check_fits(size + 100)  # tables are often rounded up
    with pytest.raises(ModelError, match=f"has {size} tokens, .* vocab_size {size - 1}"):
        tokenizer.check_fits(size - 1)


def test_added_tokens_count_as_vocabulary(folder: Path, tmp_path: Path) -> None:
    more = variant(folder, tmp_path / "more", added_tokens=[added("[extra]")])

    with pytest.raises(ModelError, match=f"vocab_size {len(vocabulary())}"):
        Tokenizer(more, max_tokens=8).check_fits(len(vocabulary()))


# Characters.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("\ud800", "\ufffd"),
        ("a\udfffb", "a\ufffdb"),
        ("\ud83d\ude00", "😀"),  # two halves that belong together, as from a careless UTF-16 decoder
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("😀\ud83d", "😀\ufffd"),
    ],
)
def test_lone_surrogates_become_replacement_characters(folder: Path, text: str, expected: str) -> None:
    tokenizer = Tokenizer(folder, max_tokens=16)

    assert encodable(text) == expected
    assert tokenizer.encode([text]).ids[0].tolist() == tokenizer.encode([expected]).ids[0].tolist()


def test_a_text_without_surrogates_is_not_copied() -> None:
    text = "".join(["日本", "😀"])

    assert encodable(text) is text


def test_lower_case_is_applied_to_prompt_and_text(folder: Path, tmp_path: Path) -> None:
    cased = variant(folder, tmp_path / "cased", normalizer=normalizer(lowercase=False))

    lowered = Tokenizer(cased, max_tokens=16, lower_case=True).encode(["CAT runs"], "How ")
    written = Tokenizer(cased, max_tokens=16).encode(["how cat runs"])
    kept = Tokenizer(cased, max_tokens=16).encode(["CAT runs"], "How ")
    assert lowered.ids[0].tolist() == written.ids[0].tolist() != kept.ids[0].tolist()
