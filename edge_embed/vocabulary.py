"""A tokenizer.json with fewer pieces: which have to stay for others to work, and the file without the rest.

Knows the json of BPE, Unigram and WordPiece. Does not know the library that reads it, models or texts: which
pieces texts use is the caller's to say, and whether texts keep their tokens is the caller's to check.

Why a text whose pieces are all kept falls into the same pieces afterwards: normalizer, pre-tokenizer and
added tokens stay as they are, so the table is asked for the same words. For one word,

BPE        joins the leftmost pair of lowest rank until there is none. Merges stay, in their order, when both
           parts and the result are kept. Say that whatever is joined on the way is kept. Both tokenizers
           begin with the same characters, as all of these stay. The merge that the full one takes is there in
           the small one, and comes first there too, as no merge is new; and where the full one ends, so does
           the small one. What is joined on the way *is* kept: no merge crosses the end of a final piece, and
           the next merge inside of it does not depend on what is outside, so it came about as it does from
           its own string alone, and `Bpe.parts` keeps what that takes. A word that is looked up whole
           (ignore_merges) is a kept piece, and one that was not found is not found now.
Unigram    takes the path with the highest sum of scores, the first found of equals. Fewer pieces mean fewer
           paths, none of them better than it was; the one that was taken is there, and each of its nodes is
           reached by the same sums, before the equals that came after it. Two things look at the whole
           table. A character without a piece of its own is unknown: all characters stay. What unknown costs
           follows from the lowest score: one piece of that score stays.
WordPiece  takes the longest piece that fits, from left to right; it is kept, and still the longest. A word
           that is unknown may become known, where what led it astray is gone: texts with unknown words are
           left to the caller's check.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from edge_embed.boundaries import BYTE_LETTERS, flattened
from edge_embed.errors import ModelError
from edge_embed.manifest import read_object

BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")  # what byte_fallback spells unknown characters with
BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


class Table(Protocol):
    """The model of a tokenizer.json."""

    ids: Mapping[str, int]

    def basic(self) -> set[str]:
        """Pieces that everything else falls back to: characters, bytes, the unknown token."""

    def parts(self, piece: str) -> frozenset[str] | None:
        """Pieces without which no text falls into `piece`, itself included; None where no text does."""

    def ranking(self) -> list[str]:
        """All pieces, the most frequent in the texts that the table was learned from first."""

    def shrunk(self, kept: Mapping[str, int]) -> dict[str, Any]:
        """The settings of a model that has these pieces under these ids, 0, 1, 2 ... in their order."""


class Bpe:
    """Byte pair encoding, over characters or over the letters that stand for bytes."""

    def __init__(self, model: Mapping[str, Any], *, byte_level: bool) -> None:
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(key):
                raise ModelError(f"a BPE with {key} {model[key]!r} cannot be trimmed; plain BPE can")
        self._model = model
        self._byte_level = byte_level
        self.ids: Mapping[str, int] = model["vocab"]
        self._merges = [
            (left, right)
            for left, right in (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        ]
        self._ranks = {pair: rank for rank, pair in enumerate(self._merges)}

    def basic(self) -> set[str]:
        found = {piece for piece in self.ids if self._is_character(piece) or BYTE_PIECE.fullmatch(piece)}
        return found | named(self._model, self.ids)

    def _is_character(self, piece: str) -> bool:
        """Whether a piece is one character, or one byte of one."""
        if len(piece) == 1 or not self._byte_level:
            return len(piece) == 1
        try:
            return len(bytes(BYTES[letter] for letter in piece).decode("utf-8")) == 1
        except (KeyError, UnicodeDecodeError):  # a special token; some bytes of a character
            return False

    def parts(self, piece: str) -> frozenset[str] | None:
        symbols, found = list(piece), {*piece, piece}
        while len(symbols) > 1:
            ranked = [
                (self._ranks[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in self._ranks
            ]
            if not ranked:
                return frozenset({piece}) if self._model.get("ignore_merges") else None
            _, at = min(ranked)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            found.add(symbols[at])
        return frozenset(found)

    def ranking(self) -> list[str]:
        first: dict[str, int] = {}
        for rank, (left, right) in enumerate(self._merges):
            first.setdefault(left + right, rank)
        return sorted(self.ids, key=lambda piece: (first.get(piece, len(self._merges)), self.ids[piece]))

    def shrunk(self, kept: Mapping[str, int]) -> dict[str, Any]:
        merges = [
            written
            for written, (left, right) in zip(self._model["merges"], self._merges, strict=True)
            if left in kept and right in kept and left + right in kept
        ]
        return {**self._model, "vocab": dict(kept), "merges": merges}


class Unigram:
    """Pieces with scores."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._model = model
        self._scores: dict[str, float] = dict(model["vocab"])
        self.ids: Mapping[str, int] = {piece: at for at, (piece, _) in enumerate(model["vocab"])}

    def basic(self) -> set[str]:
        found = {piece for piece in self.ids if len(piece) == 1 or BYTE_PIECE.fullmatch(piece)}
        found.add(min(self._scores, key=self._scores.__getitem__))
        if (unknown := self._model.get("unk_id")) is not None:
            found.add(self._model["vocab"][unknown][0])
        return found

    def parts(self, piece: str) -> frozenset[str] | None:
        return frozenset({piece})

    def ranking(self) -> list[str]:
        return sorted(self.ids, key=lambda piece: (-self._scores[piece], self.ids[piece]))

    def shrunk(self, kept: Mapping[str, int]) -> dict[str, Any]:
        unknown = self._model.get("unk_id")
        renumbered = None if unknown is None else kept[self._model["vocab"][unknown][0]]
        return {**self._model, "vocab": [[p, self._scores[p]] for p in kept], "unk_id": renumbered}


class WordPiece:
    """Pieces that begin a word, and with a prefix those that go on with it."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._model = model
        self.ids: Mapping[str, int] = model["vocab"]

    def basic(self) -> set[str]:
        prefix = self._model["continuing_subword_prefix"]
        found = {piece for piece in self.ids if len(piece) == 1 or len(piece.removeprefix(prefix)) == 1}
        return found | named(self._model, self.ids)

    def parts(self, piece: str) -> frozenset[str] | None:
        return frozenset({piece})

    def ranking(self) -> list[str]:
        return sorted(self.ids, key=self.ids.__getitem__)

    def shrunk(self, kept: Mapping[str, int]) -> dict[str, Any]:
        return {**self._model, "vocab": dict(kept)}


class Vocabulary:
    """All tokens of one tokenizer.json, by id: the pieces of its table, and added tokens beside it."""

    def __init__(self, path: Path) -> None:
        """Read a file that the tokenizers library has read without complaint.

        Errors: ModelError for a model of another kind than the three.
        """
        self._settings = read_object(path, required=True).values
        try:
            self._table = table_of(self._settings)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        self._added: list[dict[str, Any]] = self._settings.get("added_tokens") or []
        beside = {token["content"]: token["id"] for token in self._added}
        self._ids: dict[str, int] = {**beside, **self._table.ids}
        self.names: dict[int, str] = {at: token for token, at in self._ids.items()}

    @property
    def added(self) -> list[str]:
        """The added tokens, special or not, as they stand in a text."""
        return [token["content"] for token in self._added]

    @property
    def pieces(self) -> list[str]:
        """The pieces of the table in the order of their ids."""
        return sorted(self._table.ids, key=self._table.ids.__getitem__)

    def needed(self, used: Iterable[int]) -> set[int]:
        """These ids and all that has to stay beside them, so that what they make up is not cut otherwise.

        That is: added tokens; what the post-processor and the padding insert; characters and bytes; for BPE
        all that is joined on the way to one of these.
        Errors: ModelError for an id that no token has.
        """
        padding = self._settings.get("padding")
        tokens = {*used, *inserted(self._settings.get("post_processor"))}
        tokens |= {padding["pad_id"]} if padding else set()
        if nameless := sorted(tokens - self.names.keys()):
            raise ModelError(f"tokenizer.json gives the ids {nameless[:5]}, which no token of it has")
        roots = {*(self.names[token] for token in tokens), *self.added, *self._table.basic()}
        return {self._ids[part] for root in roots for part in self._parts(root) or {root}}

    def filled(self, kept: Collection[int], used: Collection[int], size: int) -> set[int]:
        """`kept` and as many more as make `size`, the most frequent first, each with what it needs.

        Pieces of characters that no used one has come last: they are of other scripts. It stays below `size`
        where no more pieces can be of use.
        """
        result = set(kept)
        known = {letter for token in used for letter in self.names[token]}
        rest = [piece for piece in self._table.ranking() if self._ids[piece] not in result]
        for piece in sorted(rest, key=lambda piece: not known.issuperset(piece)):
            if len(result) >= size:
                break
            new = {self._ids[part] for part in self._parts(piece) or ()} - result
            if len(result) + len(new) <= size:
                result |= new
        return result

    def _parts(self, token: str) -> frozenset[str] | None:
        return self._table.parts(token) if token in self._table.ids else None

    def trimmed(self, kept: Collection[int]) -> tuple[dict[str, Any], list[int]]:
        """The settings of a tokenizer.json that has only these tokens, and the old id of each new one.

        New ids follow the order of the old ones, but for added tokens that the table does not have: these
        come behind it, as the library numbers them so, whatever the file says.
        """
        table = [piece for piece in self.pieces if self._table.ids[piece] in kept]
        beside = [token["content"] for token in self._added if token["content"] not in self._table.ids]
        order = [*table, *sorted(beside, key=self._ids.__getitem__)]
        old = [self._ids[token] for token in order]
        new = {token: at for at, token in enumerate(old)}
        settings = {
            **self._settings,
            "added_tokens": sorted(
                ({**token, "id": new[self._ids[token["content"]]]} for token in self._added),
                key=lambda token: token["id"],
            ),
            "post_processor": renumbered(self._settings.get("post_processor"), new),
            "model": self._table.shrunk({piece: at for at, piece in enumerate(table)}),
        }
        if padding := self._settings.get("padding"):
            settings["padding"] = {**padding, "pad_id": new[padding["pad_id"]]}
        return settings, old


def table_of(settings: Mapping[str, Any]) -> Table:
    """The table of a tokenizer.json."""
    model = settings["model"]
    match model.get("type"):
        case "BPE":
            splitter = settings.get("pre_tokenizer")
            steps = flattened(splitter) if splitter else []
            return Bpe(model, byte_level=any(step["type"] == "ByteLevel" for step in steps))
        case "Unigram":
            return Unigram(model)
        case "WordPiece":
            return WordPiece(model)
        case other:
            raise ModelError(
                f"a tokenizer of the kind {other} cannot be trimmed; BPE, Unigram, WordPiece can"
            )


def named(model: Mapping[str, Any], ids: Mapping[str, int]) -> set[str]:
    """The unknown token of a model, where it has one."""
    return {model["unk_token"]} & ids.keys() if model.get("unk_token") else set()


def inserted(processor: Any) -> set[int]:
    """The ids that a post-processor puts beside those of a text."""
    match processor:
        case {"type": "Sequence", "processors": steps}:
            return {token for step in steps for token in inserted(step)}
        case {"type": "TemplateProcessing", "special_tokens": special}:
            return {token for row in special.values() for token in row["ids"]}
        case {"type": "BertProcessing" | "RobertaProcessing", "sep": [_, last], "cls": [_, first]}:
            return {first, last}
    return set()


def renumbered(processor: Any, new: Mapping[int, int]) -> Any:
    """The settings of a post-processor with other ids."""
    match processor:
        case {"type": "Sequence", "processors": steps}:
            return {**processor, "processors": [renumbered(step, new) for step in steps]}
        case {"type": "TemplateProcessing", "special_tokens": special}:
            tokens = {
                name: {**token, "ids": [new[i] for i in token["ids"]]} for name, token in special.items()
            }
            return {**processor, "special_tokens": tokens}
        case {"type": "BertProcessing" | "RobertaProcessing", "sep": [sep, last], "cls": [cls, first]}:
            return {**processor, "sep": [sep, new[last]], "cls": [cls, new[first]]}
    return processor
