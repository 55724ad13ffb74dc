"""drift/slices.py: which texts are looked at together."""

from collections import Counter

import numpy as np
import pytest

from edge_embed import calibration, cards
from edge_embed.calibration import Text
from edge_embed.drift import record, slices
from edge_embed.drift.metrics import Rows

# The script that each language of calibration/evaluation is written in; the others in Latin letters.
SCRIPTS = {
    **dict.fromkeys(("ar", "fa", "ur"), "arabic"),
    **dict.fromkeys(("bg", "kk", "ru", "sr", "uk"), "cyrillic"),
    **dict.fromkeys(("hi", "mr"), "devanagari"),
    "bn": "bengali",
    "el": "greek",
    "he": "hebrew",
    "ja": "japanese",
    "ka": "georgian",
    "km": "khmer",
    "ko": "hangul",
    "te": "telugu",
    "th": "thai",
    "zh": "han",
}


def document(text: str, stratum: str = "all", identifier: str = "0") -> Text:
    """A text as a user's file gives it."""
    return Text(identifier, "passage", identifier, text, stratum)


def sliced(texts: list[Text], tokens: list[int] | None = None) -> dict[str, list[int]]:
    roles = [record.role_of(text) for text in texts]
    counts = np.array([8] * len(texts) if tokens is None else tokens, np.int64)
    return {name: rows.tolist() for name, rows in slices.by_text(texts, roles, counts).items()}


# ---- the texts that are measured


@pytest.fixture(scope="module")
def evaluation() -> list[Text]:
    return calibration.evaluation()


@pytest.fixture(scope="module")
def found(evaluation: list[Text]) -> dict[str, Rows]:
    tokens = np.array([len(text.text) // 4 for text in evaluation], np.int64)
    return slices.by_text(evaluation, [record.role_of(text) for text in evaluation], tokens)


def test_every_text_of_every_language_has_the_script_of_its_language(evaluation: list[Text]) -> None:
    card = cards.card("granite-embedding-311m-multilingual-r2")
    assert card is not None
    seen = Counter((slices.language(text), slices.script(text.text)) for text in evaluation)
    of_languages = {pair for pair in seen if not pair[0].startswith(slices.CODE)}
    assert of_languages == {(language, SCRIPTS.get(language, "latin")) for language in card.languages}
    assert len(of_languages) == 52
    assert {script for language, script in seen if language.startswith(slices.CODE)} == {"latin"}


def test_languages_code_and_roles_have_slices_of_their_own(found: dict[str, Rows]) -> None:
    sizes = {name: len(rows) for name, rows in found.items()}
    assert sizes["language sq"] == 24
    assert sizes["language de"] == 25  # with the long one
    assert sizes["code python"] == 24
    assert sizes["role query"] == 61 * 12
    assert sizes["role document"] == 61 * 12 + 15
    assert sizes["script cyrillic"] == 5 * 24 + 1
    assert Counter(name.split()[0] for name in sizes if not name.startswith("length")) == {
        "language": 52,
        "code": 9,
        "script": 4,  # of 14: the others have one language each, whose slice they would repeat
        "role": 2,
    }
    assert len({rows.tobytes() for rows in found.values()}) == len(found)


def test_each_text_is_in_one_slice_of_each_kind(found: dict[str, Rows], evaluation: list[Text]) -> None:
    alone = ("bn", "el", "he", "ja", "ka", "km", "ko", "te", "th", "zh")  # in their scripts
    for kinds in (("language", "code"), ("script",), ("length",), ("role",)):
        names = [name for name in found if name.split()[0] in kinds]
        names += [f"language {code}" for code in alone if kinds == ("script",)]
        rows = np.concatenate([found[name] for name in names])
        assert sorted(rows.tolist()) == list(range(len(evaluation))), kinds


# ---- scripts


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("", "none"),
        ("12:30, 7 % !? 🙂", "none"),
        ("ferry F-16 в", "latin"),
        ("паром F", "cyrillic"),
        ("東京大学の歴史", "japanese"),
        ("カレー", "japanese"),
        ("ー", "japanese"),
        ("东京大学历史", "han"),
        ("The word の is a particle", "latin"),  # one letter in kana makes no Japanese text
        ("def f(text): return 'ひらがな'  # as it stands", "latin"),
        ("oʻzbekcha", "latin"),
        ("नमस्ते", "devanagari"),
        ("ქართული", "georgian"),
        ("አማርኛ", "ethiopic"),
    ],
)
def test_a_text_has_the_script_of_most_of_its_letters(text: str, script: str) -> None:
    assert slices.script(text) == script


# ---- lengths


@pytest.mark.parametrize(
    ("tokens", "bucket"),
    [
        (1, "1 to 16"),
        (16, "1 to 16"),
        (17, "17 to 32"),
        (32, "17 to 32"),
        (33, "33 to 64"),
        (512, "257 to 512"),
        (513, "513 to 1024"),
        (8192, "4097 to 8192"),
        (8193, "8193 and more"),
        (32768, "8193 and more"),
    ],
)
def test_both_ends_of_a_range_of_lengths_belong_to_it(tokens: int, bucket: str) -> None:
    assert slices.bucket(tokens) == bucket


def test_no_length_is_between_two_ranges() -> None:
    seen = dict.fromkeys(slices.bucket(tokens) for tokens in range(1, 9000))
    ends = [part.split(" to ") for part in seen if " to " in part]
    assert [int(low) for low, _ in ends] == [1, *(int(high) + 1 for _, high in ends[:-1])]
    assert list(seen)[-1] == "8193 and more"


def test_lengths_come_in_their_order() -> None:
    tokens = [9000, 3, 100, 20, 5000, 2000]
    names = list(sliced([document("a", identifier=str(i)) for i in range(6)], tokens))
    assert names == [
        "length 1 to 16",
        "length 17 to 32",
        "length 65 to 128",
        "length 1025 to 2048",
        "length 4097 to 8192",
        "length 8193 and more",
    ]


# ---- what a user's file gives


def test_a_slice_of_the_user_keeps_its_word_and_two_letters_are_a_language() -> None:
    texts = [document("a", stratum) for stratum in ("faq", "de", "manual", "de", "QA")]
    assert sliced(texts) == {
        "slice QA": [4],
        "language de": [1, 3],
        "slice faq": [0],
        "slice manual": [2],
    }


def test_a_slice_of_the_user_that_is_called_long_is_one_slice() -> None:
    texts = [document("a", "long", "7"), document("b", "long", "long-de"), document("c", "short", "9")]
    assert sliced(texts) == {"slice long": [0, 1], "slice short": [2]}


def test_code_of_the_user_is_code() -> None:
    assert sliced([document("a", "code-rust"), document("b", "en")]) == {
        "code rust": [0],
        "language en": [1],
    }


def test_what_all_texts_have_in_common_is_no_slice() -> None:
    """A file of plain lines in one language has none at all."""
    assert sliced([document("a boat"), document("a ferry"), document("12")]) == {
        "script latin": [0, 1],
        "script none": [2],
    }
    assert sliced([document("a boat"), document("a ferry")]) == {}


def test_roles_are_those_that_are_given() -> None:
    texts = [document("a"), document("b"), document("c")]
    found = slices.by_text(texts, ["query", "document", "query"], np.array([8, 8, 8]))
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "role document": [1],
        "role query": [0, 2],
    }
