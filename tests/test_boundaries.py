"""Heads of long texts against the plain tokenizers library on the whole, for tiny tokenizers of each kind."""

import json
import re
import struct
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os.path import commonprefix
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

from edge_embed.boundaries import LETTER, OF_CL100K, OF_O200K, PATTERNS, Pieces, boundaries, is_plain
from edge_embed.tokenization import CHARACTERS_PER_TOKEN, Tokenizer

SENTENCES = [
    "The cat sat on the mat, and the catalogue of cats isn't what they've said; we'll see.\n\n",
    "def f(x):\n\treturn x + 12345 # ==== ---- ....\r\n",
    "HTTPServer getElementById XMLHttpRequest fooBar  aaaaaaaaaaaaaaaaaaaaaaaaaaaa\n",
    "日本語のテキストと中文字符，混ぜる。猫はマットの上に座った。日本日本日本。",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ แมวนั่งบนเสื่อ",
    "ភាសាខ្មែរមិនមានចន្លោះរវាងពាក្យទេ។",
    "한국어 문장입니다. 고양이가 매트 위에 앉았다.",
    "Москва слезам не верит. naïve café résumé e\u0301te\u0301 ﬁn Ω ① ａｂｃ ™",
    "👩‍👩‍👧‍👦 🇩🇪🇫🇷 👍🏽 ❤️‍🔥 हिन्दी में क्षत्रिय مرحبا بالعالم",
]
FRAGMENTS = [
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\u200d", "\x00"),
    *(
        "the",
        "cat",
        "The",
        " the",
        " cat",
        "isn't",
        "'ll",
        "'s",
        "'",
        "we'l",
        "XML",
        "Http",
        "fooBar",
        "aaaa",
    ),
    *("=", "====", "--", "/", "//", ".", ",", "?!", "0", "123", "12345", "٣", "½", "①", "_", "▁", "Ġ"),
    *(
        "日本",
        "語",
        "猫",
        "。",
        "，",
        "の",
        "カ",
        "カ\u3099",
        "แมว",
        "ไม่",
        "น้ำ",
        "ខ្មែរ",
        "មាន",
        "한국",
        "\u1100\u1161",
    ),
    *(
        "Москва",
        "é",
        "e\u0301",
        "\u0301",
        "\u0308",
        "ﬁ",
        "Ω",
        "ａ",
        "İ",
        "ß",
        "Σ",
        "क्ष",
        "मा",
        "م",
        "\u0d4e",
        "ക",
    ),
    *("👍🏽", "👩‍👧", "🇩🇪", "🇫", "❤️", "\u0600", "\u2126", "\uf900", "\U00020000", "<0x41>", "<unk>"),
    *("<mask>", "<mas", "k>", "[cat]", "[CAT]", "[ca", "t]", "<|x|>", "xyz"),
]
SCRIPTS = sorted({c for text in SENTENCES for c in text})
LONGEST = 8  # characters of trained tokens; short ones let boundaries be found in short texts
texts = st.builds(
    lambda parts, repeats: "".join(parts) * repeats,
    st.lists(
        st.sampled_from(FRAGMENTS) | st.sampled_from(SENTENCES) | st.characters(exclude_categories=["Cs"]),
        min_size=5,
        max_size=40,
    ),
    st.integers(1, 3),
)


def charsmap(mapping: dict[str, str]) -> bytes:
    """A charsmap as SentencePiece writes it: the size of a double-array trie, the trie, the values.

    Each node has 256 units of its own for its children, so that none collide; the first holds its value.
    """
    values, at = b"", {}
    for key, value in mapping.items():
        at[key.encode()] = len(values)
        values += value.encode() + b"\0"
    nodes = sorted({key[:n] for key in at for n in range(len(key) + 1)})
    children = {node: 256 * n for n, node in enumerate(nodes, start=1)}
    units = [0] * (256 * (len(nodes) + 1))
    for node in nodes:
        label = node[-1] if node else 0
        position = children[node[:-1]] ^ label if node else 0
        units[position] = (position ^ children[node]) << 10 | (node in at) << 8 | label
        if node in at:
            units[children[node]] = 1 << 31 | at[node]
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + values


def nfkc_charsmap() -> bytes:
    """White space, compatibility characters and compositions of the texts, as in the charsmap nmt_nfkc."""
    mapping = dict.fromkeys("\t\n\r\u00a0\u3000\u200b", " ") | {"\x00": ""}
    mapping |= {c: unicodedata.normalize("NFKC", c) for c in "ﬁΩ①ａｂｃ™½，？\uf900\u2126\u0e33"}
    pairs = ("e\u0301", "カ\u3099", "\u1100\u1161", "i\u0307")
    return charsmap(mapping | {pair: unicodedata.normalize("NFKC", pair) for pair in pairs})


NFKC = normalizers.Precompiled(nfkc_charsmap())
SPACES = normalizers.Replace(tokenizers.Regex(" {2,}"), "▁")
METASPACE = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
ADDED = [
    AddedToken("<mask>", lstrip=True, special=True, normalized=False),
    AddedToken("[CAT]", normalized=True),
    AddedToken("<|x|>", normalized=False, rstrip=True),
    AddedToken("\n\n", normalized=False),
    AddedToken("XMLHttp", normalized=False),
]


def byte_level(pattern: str | None) -> Any:
    if pattern is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def bpe(normalizer: Any, splitter: Any, *, size: int = 700, **options: Any) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(**options))
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), *SCRIPTS]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, max_token_length=LONGEST, show_progress=False
    )
    made.train_from_iterator(SENTENCES * 3, trainer)
    return made


def gemma() -> tokenizers.Tokenizer:
    """BPE over whole texts, as spaces are gone before they could split; bytes for unknown characters."""
    splitter = pre_tokenizers.Split(" ", "merged_with_previous")
    made = bpe(normalizers.Replace(" ", "▁"), splitter, byte_fallback=True, fuse_unk=True)
    content = json.loads(made.to_str())
    vocabulary = content["model"]["vocab"]
    for token in ("<unk>", *(f"<0x{byte:02X}>" for byte in range(256))):
        vocabulary[token] = len(vocabulary)
    for rare in "語ំक":  # single characters that the model does not know
        for token in [token for token in vocabulary if rare in token]:
            del vocabulary[token]
    content["model"]["merges"] = [
        pair for pair in content["model"]["merges"] if not set("".join(pair)) & set("語ំक")
    ]
    content["model"]["unk_token"] = "<unk>"
    content["model"]["vocab"] = {token: n for n, token in enumerate(vocabulary)}
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def unigram(normalizer: Any, splitter: Any) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    trainer = trainers.UnigramTrainer(
        vocab_size=500,
        max_piece_length=LONGEST,
        special_tokens=["<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    made.train_from_iterator(SENTENCES * 3, trainer)
    return made


def with_words(made: tokenizers.Tokenizer, *words: str, ignore_merges: bool) -> tokenizers.Tokenizer:
    """The tokenizer with more words in its vocabulary, to which no merges lead."""
    content = json.loads(made.to_str())
    content["model"]["ignore_merges"] = ignore_merges
    for word in words:
        content["model"]["vocab"].setdefault(word, len(content["model"]["vocab"]))
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def looked_up_whole() -> tokenizers.Tokenizer:
    made = bpe(normalizers.NFC(), byte_level(OF_O200K))
    return with_words(made, "aaaaaa", "Ġcatal", "fooB", "=====", ignore_merges=True)


QWEN2 = OF_CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "gemma": gemma,
    "unknown characters dropped": lambda: bpe(None, None, size=600),
    "metaspace bpe": lambda: bpe(normalizers.NFC(), METASPACE),
    "gpt2": lambda: bpe(None, byte_level(None)),
    "cl100k": lambda: bpe(None, byte_level(OF_CL100K)),
    "qwen2": lambda: bpe(normalizers.NFC(), byte_level(QWEN2)),
    "o200k": lambda: bpe(None, byte_level(OF_O200K)),
    "o200k, words looked up whole": looked_up_whole,
    "xlm-r": lambda: unigram(NFKC, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), METASPACE])),
    "xlm-r of 2023": lambda: unigram(
        normalizers.Sequence([NFKC, normalizers.Strip(left=False, right=True), SPACES]), METASPACE
    ),
    "unigram nfkc": lambda: unigram(
        normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Lowercase()]), METASPACE
    ),
}


@pytest.fixture(scope="module", params=[*KINDS, *(f"{kind} + added" for kind in KINDS)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer.json of one kind."""
    kind, *added = request.param.split(" + ")
    made = KINDS[kind]()
    if added:
        made.add_tokens(ADDED)
    target = tmp_path_factory.mktemp("kind")
    made.save(str(target / "tokenizer.json"))
    return target


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


def agreed(tokenizer: tokenizers.Tokenizer, heads: list[str]) -> list[int]:
    """The first tokens that all heads have in common."""
    return list(commonprefix([ids(tokenizer, head) for head in heads]))  # noqa: RUF071  tokens, not paths


@settings(deadline=None, max_examples=20)
@given(text=texts, starts=st.lists(st.integers(1, 240), min_size=10, max_size=10))
def test_a_boundary_leaves_the_tokens_before_it_as_they_are(
    tokenizer: tokenizers.Tokenizer, text: str, starts: list[int]
) -> None:
    found = boundaries(tokenizer)
    assert isinstance(found, Pieces)
    text = text[:250]
    whole = ids(tokenizer, text)

    for start in starts:
        ends = found.ends(text, start)
        if len(ends) == 1 < found.longest:
            head = ids(tokenizer, text[: ends[0]])
            assert head == whole[: len(head)], (text[: ends[0]], text[ends[0] :])
        elif ends:
            same = agreed(tokenizer, [text[:end] for end in ends])
            assert same == whole[: len(same)], (text[: ends[0]], text[ends[0] :])


@settings(deadline=None, max_examples=20)
@given(text=texts, limit=st.integers(1, 6))
def test_the_early_cut_changes_no_token(folder: Path, text: str, limit: int) -> None:
    tokenizer = Tokenizer(folder, max_tokens=limit)
    whole = ids(tokenizer._tokenizer, text)

    tokens = tokenizer.encode([text])
    assert tokens.ids[0].tolist() == whole[:limit]
    assert tokens.lengths[0] <= len(whole)
    assert (tokens.lengths[0] > limit) == (len(whole) > limit)


def test_a_cut_inside_of_a_contraction_is_none() -> None:
    """Alone, "we'l" is three words. No token fits across l|l, and yet the tokens before it change."""
    for pattern in (None, OF_CL100K, OF_O200K):
        made = bpe(None, byte_level(pattern), size=256)
        content = json.loads(made.to_str())
        content["model"]["vocab"]["'l"] = 256
        content["model"]["merges"] = [["'", "l"]]
        made = tokenizers.Tokenizer.from_str(json.dumps(content))
        text = "we'll " * 30
        found = boundaries(made)
        assert isinstance(found, Pieces)

        cuts = {found.ends(text, start)[0] for start in range(30, 120)}
        assert cuts
        for cut in cuts:
            assert ids(made, text[:cut]) == ids(made, text)[: len(ids(made, text[:cut]))]


@pytest.mark.parametrize("text", ["cat's " * 30, "we'llabcdefghijkl " * 9, "abcabcabcABDEFGHIJ " * 9])
def test_a_word_that_would_be_looked_up_alone_is_not_cut_off(text: str) -> None:
    """Words of the vocabulary that no merges lead to are tokens only where they stand alone."""
    made = with_words(
        bpe(None, byte_level(OF_O200K), size=256), "Ġcat", "abcd", "AB", "zzzzzz", ignore_merges=True
    )
    found, whole = boundaries(made), ids(made, text)
    assert isinstance(found, Pieces)

    for start in range(30, 120):
        cut = found.ends(text, start)[0]
        assert ids(made, text[:cut]) == whole[: len(ids(made, text[:cut]))], text[:cut]


def assert_boundaries_change_nothing(made: tokenizers.Tokenizer, text: str) -> None:
    found, whole = boundaries(made), ids(made, text)
    assert isinstance(found, Pieces)
    assert found.longest > 1  # so that one place is no row

    cuts = [ends[0] for start in range(1, len(text)) if len(ends := found.ends(text, start)) == 1]
    assert cuts
    for cut in set(cuts):
        head = ids(made, text[:cut])
        assert head == whole[: len(head)], text[:cut]


def test_what_merges_over_a_dropped_character_is_seen() -> None:
    """No token fits across a|b in "cЖab", but the model drops Ж and makes "cab" of the rest."""
    vocabulary = {token: n for n, token in enumerate([*"abcxyz", "ca", "cab"])}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [("c", "a"), ("ca", "b")]))
    assert [made.id_to_token(token) for token in ids(made, "cЖab")] == ["cab"]

    assert_boundaries_change_nothing(made, "xyzzyxyzzyx" * 3 + "cЖab" + "xyzzyxyzzyx" * 3)


def test_added_tokens_are_looked_for_as_they_normalize() -> None:
    made = KINDS["unigram nfkc"]()
    made.add_tokens([AddedToken("[CAT]", normalized=True)])

    assert_boundaries_change_nothing(made, "the mat [cAt] sat on " * 6)


def test_white_space_that_an_added_token_may_swallow_is_not_cut() -> None:
    made = tokenizers.Tokenizer(models.BPE({token: n for n, token in enumerate("abcxyz <msk>")}, []))
    made.add_tokens([AddedToken("<mask>", lstrip=True)])

    assert_boundaries_change_nothing(made, "abc xyz cab xyz     <mask>xyz  abc  cab " * 3)


def test_a_letter_that_is_part_of_a_larger_grapheme_ends_nothing() -> None:
    """A charsmap takes graphemes; here it makes a space of one with a letter, and then spaces are joined."""
    join = normalizers.Sequence([normalizers.Precompiled(charsmap({"\u0600": " "})), SPACES])
    made = unigram(join, METASPACE)
    text = "the cat sat \u0600a on \u0600a mat, " * 8
    found = boundaries(made)
    assert isinstance(found, Pieces)
    assert made.normalizer.normalize_str("\u0600a  b") == "▁b"

    for start in range(20, 150):
        cut = found.ends(text, start)[0]
        assert text[cut - 2] != "\u0600"
        assert ids(made, text[:cut]) == ids(made, text)[: len(ids(made, text[:cut]))]


def test_characters_of_several_bytes_form_no_row() -> None:
    """The tokens of their bytes may end inside of each of them."""
    made = bpe(None, byte_level(OF_O200K))
    found = boundaries(with_words(made, "©Ã", ignore_merges=False))
    assert isinstance(found, Pieces)

    assert len(found.ends("a" * 500, 200)) == found.longest > 1
    assert len(found.ends("é" * 500, 200)) == 0


# What is not recognised is read whole.


def changed(kind: str, **changes: Any) -> tokenizers.Tokenizer:
    """A tokenizer of a kind with other settings, of the model where they are its own."""
    content = json.loads(KINDS[kind]().to_str())
    for key, value in changes.items():
        (content["model"] if key in content["model"] else content)[key] = value
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    """A pre-tokenizer: a pattern, and byte level."""
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
    return {"type": "Sequence", "pretokenizers": [first, LEVEL]}


def test_patterns_are_known_by_how_they_are_used_too() -> None:
    for pattern in PATTERNS:
        assert boundaries(changed("cl100k", pre_tokenizer=split(pattern))) is not None
        assert boundaries(changed("cl100k", pre_tokenizer=split(pattern, "Removed", True))) is not None


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("cl100k", {"pre_tokenizer": split(OF_CL100K + "|x")}),
        ("cl100k", {"pre_tokenizer": split(r"\w+|\W+")}),
        ("cl100k", {"pre_tokenizer": split(OF_CL100K, "Removed")}),
        ("cl100k", {"pre_tokenizer": split(OF_CL100K, "MergedWithNext")}),
        ("cl100k", {"pre_tokenizer": split(OF_CL100K)["pretokenizers"][0]}),
        ("cl100k", {"pre_tokenizer": LEVEL}),
        ("cl100k", {"pre_tokenizer": {"type": "Whitespace"}}),
        ("cl100k", {"pre_tokenizer": {"type": "Digits", "individual_digits": False}}),
        ("cl100k", {"dropout": 0.1}),
        ("cl100k", {"end_of_word_suffix": "</w>"}),
        ("cl100k", {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}}),
        ("cl100k", {"normalizer": {"type": "Prepend", "prepend": "▁"}}),
        ("gemma", {"ignore_merges": True}),
        ("gemma", {"normalizer": replace({"String": "ab"}, "c")}),
        ("gemma", {"normalizer": replace({"Regex": "a+"}, "a")}),
        (
            "gemma",
            {"normalizer": {"type": "BertNormalizer", **dict.fromkeys(["clean_text", "lowercase"], True)}},
        ),
        ("xlm-r", {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}}),
        ("xlm-r", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "BertPreTokenizer"}]}}),
    ],
)
def test_an_unknown_way_to_split_or_join_has_no_boundaries(kind: str, changes: dict[str, Any]) -> None:
    if kind == "gemma" and "BertNormalizer" in str(changes):
        changes["normalizer"] |= {"handle_chinese_chars": True, "strip_accents": None}

    assert boundaries(changed(kind)) is not None
    assert boundaries(changed(kind, **changes)) is None


def test_an_added_token_that_looks_around_for_words_leaves_no_boundaries() -> None:
    made = KINDS["xlm-r"]()
    assert boundaries(made) is not None

    made.add_tokens([AddedToken("cat", single_word=True)])
    assert boundaries(made) is None


def test_a_step_behind_a_charsmap_may_only_look_at_spaces() -> None:
    """A charsmap may give what composes with what is before it."""
    charsmap_last = unigram(normalizers.Sequence([normalizers.NFC(), NFKC]), METASPACE)
    charsmap_first = unigram(normalizers.Sequence([NFKC, normalizers.NFC()]), METASPACE)

    assert boundaries(charsmap_last) is not None
    assert boundaries(charsmap_first) is None


# Characters.

ALL = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def test_plain_characters_are_graphemes_of_their_own() -> None:
    plain = [c for c in ALL if is_plain(c)]
    graphemes = pre_tokenizers.Split(tokenizers.Regex(r"\X"), "isolated")

    assert len(plain) > 40_000
    assert [part for part, _ in graphemes.pre_tokenize_str("".join(plain))] == plain
    assert [part for part, _ in graphemes.pre_tokenize_str("".join(plain[::-1]))] == plain[::-1]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_plain_characters_compose_with_nothing_before_them(form: str) -> None:
    """All that composes at all does so as the second of a decomposition, as a mark, or as a jamo."""
    normalize = getattr(normalizers, form)().normalize_str
    seconds = {
        chr(int(unicodedata.decomposition(c).split()[-1], 16))
        for c in ALL
        if unicodedata.decomposition(c)[:1].isalnum() and " " in unicodedata.decomposition(c)
    }

    for c in ALL:
        if is_plain(c):
            assert c not in seconds
            assert normalize("e\u0301\u1100" + c) == normalize("e\u0301\u1100") + normalize(c)


def test_letters_of_berts_words_are_neither_split_at_nor_removed() -> None:
    bert = normalizers.BertNormalizer().normalize_str
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    letters = [c for c in ALL if re.fullmatch(LETTER, c)]

    assert len(letters) > 20_000
    for c in letters:
        normal = bert(f"a{c}a")
        assert len(normal) >= 3
        assert len(split(normal)) == 1, f"U+{ord(c):04X}"


# Fifty megabytes.


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.characters = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self.tokenizer.encode(text, **options)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.characters += sum(map(len, texts))
        return self.tokenizer.encode_batch_fast(texts, **options)


@pytest.fixture(
    scope="module", params=["gemma", "o200k", "o200k, words looked up whole", "xlm-r", "xlm-r of 2023"]
)
def of_a_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer.json of the shape of a Granite model's."""
    target = tmp_path_factory.mktemp("model")
    KINDS[request.param]().save(str(target / "tokenizer.json"))
    return target


@pytest.mark.parametrize(
    "unit",
    [
        *SENTENCES[:4],
        "Каждый день мы ходим в парк, а потом домой. ",
        "我们每天早上去公园散步然后回家吃饭",  # no white space, no punctuation
        "毎朝公園を散歩してから家に帰ってご飯を食べる",
        "ประเทศไทยมีอากาศร้อนและฝนตกบ่อย",
        "ប្រទេសកម្ពុជាមានអាកាសធាតុក្តៅ",
    ],
)
def test_fifty_megabytes_are_not_read_whole(of_a_model: Path, unit: str) -> None:
    assert_not_read_whole(of_a_model, unit)


@pytest.mark.parametrize("kind", ["gemma", "o200k", "o200k, words looked up whole"])
@pytest.mark.parametrize("unit", ["a", "=", "ab"])
def test_fifty_megabytes_of_one_run_are_not_read_whole_by_bpe(tmp_path: Path, kind: str, unit: str) -> None:
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))

    assert_not_read_whole(tmp_path, unit)


def assert_not_read_whole(folder: Path, unit: str) -> None:
    """The cost, and that the tokens are those of a start so long that none of the limit's can differ."""
    text, limit = unit * (50_000_000 // len(unit.encode())), 64
    tokenizer = Tokenizer(folder, max_tokens=limit)
    plain = tokenizer._tokenizer
    tokenizer._tokenizer = counting = Counting(plain)

    tokens = tokenizer.encode([text])
    assert counting.characters < 50 * CHARACTERS_PER_TOKEN * limit
    assert tokens.lengths[0] > limit
    assert tokens.ids[0].tolist() == ids(plain, text[: 100 * CHARACTERS_PER_TOKEN * limit])[:limit]


def test_the_vocabulary_is_looked_through_for_the_first_long_text_only(folder: Path) -> None:
    tokenizer = Tokenizer(folder, max_tokens=8)
    tokenizer.encode(["the cat"])
    assert "_boundaries" not in vars(tokenizer)

    tokenizer.encode(["the cat " * 100])
    assert "longest" in vars(tokenizer._boundaries)


def test_threads_that_meet_the_first_long_text_together_agree(folder: Path) -> None:
    tokenizer, text = Tokenizer(folder, max_tokens=8), "the cat sat on the mat. " * 100
    with ThreadPoolExecutor(8) as pool:
        heads = list(pool.map(tokenizer.head, [text] * 32))

    assert len(set(heads)) == 1
    assert len(heads[0]) < len(text)
