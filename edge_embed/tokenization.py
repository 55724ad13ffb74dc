"""Texts -> token ids, with prompts, and truncation that is counted. Knows no padding, batches or models.

The file's own truncation and padding settings are ignored (all-MiniLM-L6-v2 ships 128 of both): the limit
is the model's, and padding is the batch's business. Nothing is set on the tokenizer after loading, so any
number of threads may use it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed.boundaries import Boundaries, boundaries
from edge_embed.errors import ModelError

# A text longer than this many characters per token of the limit is first cut to its head.
CHARACTERS_PER_TOKEN = 16

# Texts that are handed to the library at once: what it returns takes some 200 bytes a token.
AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of some texts, special tokens included."""

    ids: list[NDArray[np.int64]]  # one (T_i,) array a text, T_i <= max_tokens
    lengths: NDArray[np.int64]  # (N,) tokens before truncation; a lower bound where only the head was read


class Tokenizer:
    """tokenizer.json of one model folder."""

    def __init__(self, folder: Path, *, max_tokens: int, lower_case: bool = False) -> None:
        """Load and probe.

        max_tokens  the limit, special tokens included
        lower_case  lower-case texts first, as do_lower_case of sentence_bert_config.json asks for
        Errors: ModelError when the file is missing, cut or not a tokenizer.
        """
        import tokenizers

        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelError(f"{path} is missing; the folder is only half copied")
        try:
            data = path.read_bytes()
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path} is not a usable tokenizer: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if lower_case:  # inside of the tokenizer, so that it does not touch special tokens in a text
            steps = [tokenizers.normalizers.Lowercase(), self._tokenizer.normalizer]
            self._tokenizer.normalizer = tokenizers.normalizers.Sequence([s for s in steps if s is not None])
        self.max_tokens = max_tokens
        self._prefix, self._suffix = self._special_ids()
        self._room = max_tokens - len(self._prefix) - len(self._suffix)
        if self._room < 1:
            special = max_tokens - self._room
            raise ModelError(f"a limit of {max_tokens} tokens leaves no room beside {special} special tokens")

    def encode(self, texts: Sequence[str], prompt: str = "") -> Tokens:
        """Tokenize `prompt` + text for each text, cut to max_tokens keeping the special tokens.

        Lone surrogates, which no tokenizer takes, become U+FFFD. Releases the GIL.
        """
        ids: list[NDArray[np.int64]] = []
        lengths: list[int] = []
        for start in range(0, len(texts), AT_ONCE):
            heads = [self.head(encodable(prompt + text)) for text in texts[start : start + AT_ONCE]]
            for encoding in self._tokenizer.encode_batch_fast(heads, add_special_tokens=False):
                own = encoding.ids
                lengths.append(len(self._prefix) + len(own) + len(self._suffix))
                ids.append(np.array(self._prefix + own[: self._room] + self._suffix, np.int64))
        return Tokens(ids, np.array(lengths, np.int64))

    def check_fits(self, rows: int | None) -> None:
        """Refuse a tokenizer that knows more tokens than the model's table has rows (None: not known)."""
        added = max(self._tokenizer.get_added_tokens_decoder(), default=-1)  # their ids may leave gaps
        size = max(self._tokenizer.get_vocab_size(with_added_tokens=True), added + 1)
        if rows is not None and size > rows:
            raise ModelError(
                f"tokenizer.json has {size} tokens, but config.json says vocab_size {rows}; "
                "the two are not of one model"
            )

    def head(self, text: str) -> str:
        """A start of a long text that has the same first max_tokens tokens; the whole where none is sure to.

        The rest does not matter, however long it is, once the head has more tokens than the limit takes.
        """
        size = CHARACTERS_PER_TOKEN * self.max_tokens
        if len(text) <= size or self._boundaries is None:
            return text
        shortened = self._boundaries.shortened
        while size < len(text):
            ends = self._boundaries.ends(text, size)
            is_less = len(ends) * size < len(text)  # than reading the whole
            if is_less and self._agreed(shortened(text[:end]) for end in ends) > self._room:
                return shortened(text[: ends[0]])
            size *= 4
        return shortened(text)

    @cached_property
    def _boundaries(self) -> Boundaries | None:
        """Found at the first long text: most programs have none. Two threads would find the same."""
        return boundaries(self._tokenizer)

    def _agreed(self, heads: Iterable[str]) -> int:
        """How many first tokens all heads have in common; 0 where there are no heads."""
        agreed: list[int] | None = None
        for head in heads:
            own: list[int] = self._tokenizer.encode(head, add_special_tokens=False).ids
            pairs = zip(own if agreed is None else agreed, own, strict=False)
            agreed = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        return len(agreed or [])

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """The ids that the post-processor puts before and after a text."""
        bare: list[int] = self._tokenizer.encode("a", add_special_tokens=False).ids
        full: list[int] = self._tokenizer.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if bare and full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        raise ModelError(f"cannot tell the tokenizer's special tokens: 'a' is {bare}, with them it is {full}")


def encodable(text: str) -> str:
    """`text` with lone surrogates replaced by U+FFFD; the same object when it has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
