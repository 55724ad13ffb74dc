"""Where a long text may be cut so that its head gives the same tokens alone as in front of the rest.

Works on an object of the tokenizers library: reads its settings and asks it for single tokens. Knows no
limits and no files, and nothing of tokenizers that it does not recognise: for these there are no boundaries.

*Words* are BERT's normalizer and pre-tokenizer with WordPiece, which takes words one by one. *Pieces* are
BPE or Unigram behind NORMALIZERS and a pre-tokenizer that looks at single characters only, or byte-level BPE
behind one of PATTERNS. Why a cut between characters a|b changes no token to its left, for pieces:

1. Added tokens are found by their content, and none fits across a|b. What they swallow of the white space
   around them ends at a, which is none.
2. Normalizers keep to one side of a|b. Both are plain (see `is_plain`) and normalize to plain characters; a
   is no part of a larger grapheme.
3. The pre-tokenizer gives the same words; one that reaches across a|b is cut there. Where only single
   characters are looked at, this is always so. With PATTERNS it is so behind a letter before anything but a
   letter, mark or apostrophe, as no alternative goes on there; and deep inside of a run that is one word.
4. No token of the vocabulary fits across a|b in this text. A merge of BPE makes such a token, so none
   crosses, and merges on one side do not see the other. Every path of Unigram passes a|b, and the best one
   up to there is chosen by the left side alone; as a is known, no fused unknown token crosses either. Words
   that are looked up whole (ignore_merges) end at a|b, or are longer than any token.

In "aaaa" and its like, some token fits across everywhere. But none has more than `longest` characters, so the
tokens of the whole text end at one of as many places in a row. And what ends there is what the text up to
there gives alone: BPE made no merge across it, Unigram's best path to it does not depend on what follows. So
what the heads up to all these places agree on are the tokens of the whole text. BPE agrees in such runs;
Unigram may not, where its tokens depend on the length of the run. Then, and where nothing is recognised, a
text has to be read whole.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Any, Protocol

# So many characters are searched, in blocks, as nearly all texts have a boundary in the first.
SEARCHED = 2048
BLOCK = 64

# Before any of these, BERT's normalizer and pre-tokenizer always end a word: white space, punctuation (what
# added tokens like to hold is left out) and ideographs.
WORD_END = re.compile(r"""[ \t\n\r!"#$%&'()*+,\-./:;=?@\\^`~\u4e00-\u9fff]""")

# A word this long is one unknown token to WordPiece, and so is any longer one. Counted are characters that
# BERT neither splits at nor removes: letters and digits, but no ideographs.
LONG_WORD = 200
LETTER = r"[^\W_\u3400-\u4dbf\u4e00-\u9fff\uf900-\U0010ffff]"
LONGER_WORD = re.compile(rf"(?<!{LETTER}){LETTER}{{{2 * LONG_WORD},}}")
INSIDE_OF_WORD = re.compile(rf"{LETTER}{{{3 * LONG_WORD}}}")

NORMALIZERS: tuple[dict[str, Any], ...] = (
    {"type": "Lowercase"},
    {"type": "NFC"},
    {"type": "NFD"},
    {"type": "NFKC"},
    {"type": "NFKD"},
    {"type": "Nmt"},
    {"type": "Precompiled"},
    {"type": "Strip", "strip_left": False, "strip_right": True},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
)

# Pattern -> categories of the letters that it keeps in one word, however many and in whatever order.
LETTERS = frozenset({"Ll", "Lo"})
OF_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
OF_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OF_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    OF_GPT2: LETTERS,
    OF_CL100K: LETTERS,  # and of Llama 3
    OF_CL100K.replace(r"\p{N}{1,3}", r"\p{N}"): LETTERS,  # of Qwen 2
    OF_O200K: LETTERS | {"Mn", "Mc"},
}

# More than the letters of a contraction, which may be cut off the front of a run.
CONTRACTION = 3

# ASCII of which all PATTERNS keep any number in one word: a slash may end one, an apostrophe begin one.
PUNCTUATION = frozenset('!"#$%&()*+,-.:;<=>?@[\\]^_`{|}~')

# Letters that join what is before or after them, as graphemes or by composition.
JOINING = re.compile(r"[\u0d4e\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]")


class Boundaries(Protocol):
    """What is known of one tokenizer."""

    def ends(self, text: str, start: int) -> range:
        """Places near `start`, at one of which tokens of `text` end for sure; empty where none are known.

        For each of them, if tokens do end there, then `text` up to there gives just these tokens alone.
        """

    def shortened(self, text: str) -> str:
        """A text with the same tokens, shorter where that is cheap to know."""


def boundaries(tokenizer: Any) -> Boundaries | None:
    """The boundaries of a tokenizers.Tokenizer; None when it is of no recognised kind."""
    normalizers, splitters = steps(tokenizer.normalizer), steps(tokenizer.pre_tokenizer)
    added = tokenizer.get_added_tokens_decoder().values()
    model = tokenizer.model
    kind = type(model).__name__
    if kind == "WordPiece" and are_words(normalizers, splitters, model, added):
        return Words()
    if not is_one_sided(normalizers) or any(token.single_word for token in added):
        return None
    is_plain_bpe = kind == "BPE" and not (
        model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix
    )
    if is_plain_bpe and (pattern := byte_level_pattern(splitters)):
        return Pieces(tokenizer, mark="Ġ", letters=PATTERNS[pattern])
    if all(map(looks_at_single_characters, splitters)) and (
        kind == "Unigram" or (is_plain_bpe and not model.ignore_merges)
    ):
        metaspace = any(splitter["type"] == "Metaspace" for splitter in splitters)
        return Pieces(tokenizer, mark="▁" if metaspace else "")
    return None


class Words:
    """Boundaries of BERT's tokenizer."""

    def ends(self, text: str, start: int) -> range:
        """Where a word ends, or inside of a word so long that it is one unknown token however it goes on."""
        if end := WORD_END.search(text, start, start + SEARCHED):
            return range(end.start(), end.start() + 1)
        before = start - 2 * LONG_WORD
        known = before >= 0 and INSIDE_OF_WORD.match(text, before)
        return range(start, start + 1) if known else range(0)

    def shortened(self, text: str) -> str:
        """Endless words are shortened to ones that are as unknown."""
        return LONGER_WORD.sub(lambda word: word[0][:LONG_WORD] + word[0][-LONG_WORD:], text)


class Pieces:
    """Boundaries of BPE and Unigram, as the module's first lines prove them."""

    def __init__(self, tokenizer: Any, *, mark: str, letters: frozenset[str] | None = None) -> None:
        """Reads the settings and the added tokens, not the vocabulary.

        mark     what the pre-tokenizer may put before a word, and makes of a space; "" for none
        letters  for byte-level BPE, the categories of letters that are one word together; None for others
        """
        self._tokenizer = tokenizer
        self._mark = mark
        self._starts = {"", mark}
        self._letters = letters
        self._is_bpe = type(tokenizer.model).__name__ == "BPE"
        self.normalize: Callable[[str], str] = (
            tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
        )
        self._added = frozenset(
            content
            for token in tokenizer.get_added_tokens_decoder().values()
            for content in (token.content, self.normalize(token.content))
        )
        self._settled: dict[str, bool] = {}

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token. Looks through the vocabulary, for the first long text only."""
        return max(map(len, self._added.union(self._tokenizer.get_vocab(with_added_tokens=True))), default=1)

    @cached_property
    def _bytes_stay(self) -> bool:
        """Whether all that is unknown becomes tokens of bytes, of which no others are made."""
        if not (self._is_bpe and self._tokenizer.model.byte_fallback):
            return False
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        of_bytes = {f"<0x{byte:02X}>" for byte in range(256)}
        return of_bytes == {token for token in vocabulary if "<0x" in token}

    def ends(self, text: str, start: int) -> range:
        """One place that no token fits across, else `longest` places in a row."""
        for block in range(start, min(start + SEARCHED, len(text)), BLOCK):
            view = View(self, text, block)
            for end in range(block, block + BLOCK):
                if view.may_end(end) and not view.is_crossed(end):
                    return range(end, end + 1)
        view, row = View(self, text, start), range(start, start + self.longest)
        return row if view.is_row(row) else range(0)

    def shortened(self, text: str) -> str:
        """The text itself."""
        return text

    def parts(self, a: str, b: str) -> bool:
        """Whether the normalizer keeps to one side between two characters, whatever is around them."""
        return self._is_settled(a) and (b == " " or self._is_settled(b))

    def seen(self, normal: str) -> str:
        """Normalized text as the model gets it, but for marks where no space was."""
        if self._letters is not None:
            return "".join(map(BYTE_LETTERS.__getitem__, normal.encode("utf-8")))
        return normal.replace(" ", self._mark) if self._mark else normal

    def knows(self, characters: str) -> bool:
        """Whether each of these, as the model gets them, is a token."""
        return all(self._tokenizer.token_to_id(character) is not None for character in set(characters))

    def takes(self, before: str, after: str) -> bool:
        """Whether no unknown character around a place matters to both of its sides.

        BPE may drop unknown ones or fuse them, and merges what that leaves: it has to know all that a token
        can reach. For Unigram the last one before the place is enough.
        """
        if self._is_bpe:
            return self._bytes_stay or self.knows(before + after)
        return before != "" and self.knows(before[-1])

    def keeps_words(self, before: str, after: str) -> bool:
        """Whether the words before a place are the same without what is after it; both normalized."""
        if self._letters is None or ends_word(before[-1:], after[:1]):
            return True
        run = before[-self.longest - CONTRACTION :] + after[:1]
        return len(run) > self.longest + CONTRACTION and (
            all(unicodedata.category(character) in self._letters for character in run)
            or all(character in PUNCTUATION for character in run)
        )

    def has_across(self, before: str, after: str) -> bool:
        """Whether some token fits across a place, at the start of a word or elsewhere."""
        return any(
            part in self._added
            or any(self._tokenizer.token_to_id(start + part) is not None for start in self._starts)
            for left in range(1, min(len(before), self.longest - 1) + 1)
            for right in range(1, min(len(after), self.longest - left) + 1)
            for part in [before[-left:] + after[:right]]
        )

    def _is_settled(self, character: str) -> bool:
        """Whether a character is plain, no space, and stays so in all steps of the normalizer."""
        if character not in self._settled:
            normal = self.normalize(character)
            self._settled[character] = normal != "" and all(
                is_plain(c) and c != " " for c in character + normal
            )
        return self._settled[character]


class View:
    """A stretch of a text in three forms: raw, normalized, and as the model gets it."""

    def __init__(self, pieces: Pieces, text: str, start: int) -> None:
        """start  where tokens are wanted to end; the view also holds what those may depend on"""
        self._pieces = pieces
        self._reach = pieces.longest + CONTRACTION
        first, last = max(0, start - 2 * self._reach), min(len(text), start + BLOCK + 4 * self._reach)
        inner = [place for place in range(first + 1, last) if pieces.parts(text[place - 1], text[place])]
        self._is_start, self._is_end = first == 0, last == len(text)
        places = [*([0] if self._is_start else []), *inner, *([last] if self._is_end else [])]
        raw = [text[here:there] for here, there in pairwise(places)]
        normal = [pieces.normalize(part) for part in raw]
        forms = [raw, normal, [pieces.seen(part) for part in normal]]
        self._forms = ["".join(form) for form in forms]
        offsets = zip(*(accumulate(map(len, form), initial=0) for form in forms), strict=True)
        known = dict(zip(places, offsets, strict=False))
        self._offsets = {place: known[place] for place in inner if place - 1 in known}

    def may_end(self, end: int) -> bool:
        """Whether tokens that end at this place of the text are those that the text up to it gives alone."""
        if end not in self._offsets:
            return False
        sides = self._sides(end)
        for before, after in sides:
            if (len(before) < self._reach and not self._is_start) or (
                len(after) < self._reach and not self._is_end
            ):
                return False
        _, normal, seen = sides
        return self._pieces.keeps_words(*normal) and self._pieces.takes(*seen)

    def is_crossed(self, end: int) -> bool:
        """Whether some token fits across this place in any of the forms."""
        return any(self._pieces.has_across(*sides) for sides in self._sides(end))

    def is_row(self, row: range) -> bool:
        """Whether tokens may end at all these places, and at no others from the first to the last."""
        if not all(map(self.may_end, row)):
            return False
        first, last = self._offsets[row[0]][-1], self._offsets[row[-1]][-1]
        return last - first == len(row) - 1 and self._pieces.knows(self._forms[-1][first - 1 : last + 1])

    def _sides(self, end: int) -> list[tuple[str, str]]:
        """In each form, as much before and after a place as tokens and words there may depend on."""
        return [
            (form[max(0, at - self._reach) : at], form[at : at + self._reach])
            for form, at in zip(self._forms, self._offsets[end], strict=True)
        ]


@lru_cache(maxsize=4096)
def is_plain(character: str) -> bool:
    """Whether nothing composes with a character before it, and others of its kind are never of its grapheme.

    So are printed ASCII, the ideographic comma and stop, and letters of the basic plane that NFKC leaves
    alone but for those that join others: conjoining jamo and the Malayalam dot reph.
    """
    if character < "\x80" or character in "、。":
        return character.isprintable()
    return (
        character < "\ud800"
        and unicodedata.category(character) in ("Lu", "Ll", "Lo")
        and JOINING.match(character) is None
        and unicodedata.normalize("NFKC", character) == character
    )


def ends_word(a: str, b: str) -> bool:
    """Whether all PATTERNS end a word between two plain characters."""
    return a.isalpha() and not b.isalpha() and b != "'"


def steps(component: Any) -> list[dict[str, Any]]:
    """The settings of a normalizer or pre-tokenizer, step by step; none for None."""
    return flattened(json.loads(component.__getstate__())) if component is not None else []


def flattened(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings of a component with its sequences, which may be nested, taken apart."""
    if settings["type"] != "Sequence":
        return [settings]
    parts = settings.get("normalizers") or settings.get("pretokenizers") or []
    return [step for part in parts for step in flattened(part)]


def is_one_sided(normalizers: list[dict[str, Any]]) -> bool:
    """Whether all steps are known to keep to one side between plain characters.

    A charsmap may give what composes or splits anew, so only such steps may follow it as look at spaces.
    """
    mapped = False
    for step in normalizers:
        kind = step["type"]
        known = {key: value for key, value in step.items() if key != "precompiled_charsmap"}
        if known not in NORMALIZERS or (mapped and kind not in ("Replace", "Strip")):
            return False
        mapped = mapped or kind == "Precompiled"
    return True


def byte_level_pattern(splitters: list[dict[str, Any]]) -> str | None:
    """The pattern in front of, or inside of, a ByteLevel that is all the rest of the pre-tokenizer."""
    if not splitters or splitters[-1]["type"] != "ByteLevel":
        return None
    *before, level = splitters
    if level["use_regex"]:
        return OF_GPT2 if not before else None
    if len(before) != 1 or before[0]["type"] != "Split":
        return None
    pattern = before[0]["pattern"].get("Regex")
    keeps_all = (before[0]["behavior"], before[0]["invert"]) in (("Isolated", False), ("Removed", True))
    return pattern if keeps_all and pattern in PATTERNS else None


def looks_at_single_characters(splitter: dict[str, Any]) -> bool:
    """Whether words on the left of any place are the same whatever is on its right."""
    match splitter:
        case {"type": "WhitespaceSplit"}:
            return True
        case {"type": "Metaspace", "replacement": "▁"}:
            return True
        case {"type": "Split", "pattern": {"String": " "}}:
            return True
    return False


def are_words(
    normalizers: list[dict[str, Any]], splitters: list[dict[str, Any]], model: Any, added: Any
) -> bool:
    """Whether words provably end at WORD_END for a tokenizer of these settings.

    That is: BERT's normalizer, which handles one character, or one run of combining marks, at a time; BERT's
    pre-tokenizer; WordPiece, which takes words one by one; no added token that could lie across a boundary.
    """
    *before, last = normalizers or [{"type": ""}]
    return (
        all(step["type"] == "Lowercase" for step in before)
        and last["type"] == "BertNormalizer"
        and last["handle_chinese_chars"] is True
        and [splitter["type"] for splitter in splitters] == ["BertPreTokenizer"]
        and int(model.max_input_chars_per_word) <= LONG_WORD // 2
        and all(is_compact(token) for token in added)
    )


def is_compact(token: Any) -> bool:
    """Whether an added token holds no boundary, and looks at nothing around it.

    ASCII, because normalizing could put a space around anything else; shorter than half a long word, and not
    of letters and digits alone, so that none lies inside of one.
    """
    content = token.content
    return (
        re.fullmatch(r"[!-~]+", content) is not None
        and WORD_END.search(content) is None
        and not content.isalnum()
        and len(content) < LONG_WORD // 2
        and not (token.lstrip or token.rstrip or token.single_word)
    )


def byte_letters() -> list[str]:
    """The letter for each byte in byte-level tokens: itself where it prints, else one from U+0100 on."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printed)
    moved = {byte: chr(0x100 + n) for n, byte in enumerate(others)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]


BYTE_LETTERS = byte_letters()
