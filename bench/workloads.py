"""What the subjects of a benchmark are given: texts, and whether in one call or each in its own.

Real text of this machine, measured in tokens of the model at hand. Knows nothing of subjects and clocks.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer

from bench.corpus import mixed

MIXED, MANY = 200, 10_000
UNIFORM_TOKENS = 8_192  # in all, of texts of one length
QUERY, QUERIES = 12, 200
CALLERS = 4
SOAK, SOAK_LONGEST = 5_000, 384
SAMPLE = 200  # texts that tell how many characters a token has


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts, their tokens in all, and who calls: 0 one call for all, 1 a call each, more: so many threads."""

    name: str
    texts: tuple[str, ...]
    tokens: int
    callers: int = 0

    @property
    def by_call(self) -> bool:
        """Whether it is about the milliseconds of single calls, not about throughput."""
        return self.callers > 0 and len(self.texts) > 1

    def facts(self) -> dict[str, int | str]:
        """What a result says of it."""
        return {
            "count": len(self.texts),
            "tokens": self.tokens,
            "characters": sum(map(len, self.texts)),
            "sha256": hashlib.sha256(json.dumps(self.texts).encode()).hexdigest(),
        }


def workload(name: str, tokenizer: Tokenizer, *, texts: int | None = None) -> Workload:
    """One of NAMES; `texts` is another number of them. The tokenizer neither cuts nor pads.

    Errors: KeyError for another name.
    """
    chosen, callers = NAMES[name](tokenizer, texts)
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(chosen))
    return Workload(name, tuple(chosen), tokens, callers)


def mixed_of(tokenizer: Tokenizer, count: int) -> list[str]:
    """Texts of mixed length in tokens of this tokenizer."""
    sample = mixed(SAMPLE)
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(sample))
    return mixed(count, characters_per_token=sum(map(len, sample)) / tokens)


def uniform(length: int) -> "Make":
    """Texts of one length, UNIFORM_TOKENS in all."""
    return lambda tokenizer, count: (
        texts_of(tokenizer, length, count or max(1, UNIFORM_TOKENS // length)),
        0,
    )


def document(length: int) -> "Make":
    """One long text, in a call of its own."""
    return lambda tokenizer, _: (texts_of(tokenizer, length, 1), 1)


def queries(callers: int) -> "Make":
    """Short texts, each in a call of its own, from so many threads."""
    return lambda tokenizer, count: (texts_of(tokenizer, QUERY, count or QUERIES), callers)


def soak(tokenizer: Tokenizer, count: int | None) -> tuple[list[str], int]:
    """Texts of random lengths up to SOAK_LONGEST tokens, one by one: does memory grow with what was seen?"""
    words = " ".join(mixed(2000)).split()
    chance = random.Random(0)
    lengths = [chance.randint(1, SOAK_LONGEST // 2) for _ in range(count or SOAK)]
    starts = [chance.randrange(len(words) - SOAK_LONGEST) for _ in lengths]
    return [" ".join(words[start : start + n]) for start, n in zip(starts, lengths, strict=True)], 1


Make = Callable[[Tokenizer, int | None], tuple[list[str], int]]
NAMES: Mapping[str, Make] = {
    "mixed": lambda tokenizer, count: (mixed_of(tokenizer, count or MIXED), 0),
    "many": lambda tokenizer, count: (mixed_of(tokenizer, count or MANY), 0),
    "uniform128": uniform(128),
    "uniform512": uniform(512),
    "query": queries(1),
    "queries4": queries(CALLERS),
    "document2k": document(2_048),
    "document8k": document(8_192),
    "document32k": document(32_768),
    "soak": soak,
}
"""Name -> what makes its texts, with the number of callers."""


def texts_of(tokenizer: Tokenizer, length: int, count: int) -> list[str]:
    """`count` different real texts of `length` tokens or up to 2 % less, special tokens included."""
    words = " ".join(mixed(4000)).split()

    def size(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    texts: list[str] = []
    start = 0
    while len(texts) < count:
        low, high = 1, length  # words; a word has a token or more, so there are never more words than tokens
        while low < high:
            middle = (low + high + 1) // 2
            fits = size(" ".join(words[start : start + middle])) <= length
            low, high = (middle, high) if fits else (low, middle - 1)
        text = " ".join(words[start : start + low])
        start += 1 if low < 8 else low
        while size(text) < length - length // 50:
            text += "."
        if size(text) <= length and text not in texts:
            texts.append(text)
    return texts


def tokenizer_of(file: str) -> Tokenizer:
    """A tokenizer.json that neither cuts nor pads."""
    tokenizer = Tokenizer.from_file(file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
