"""Synthetic tokenizers of a given size, for checkpoints whose real tokenizer is not at hand.

Pieces are learned from the calibration texts, so that ordinary text falls into tokens of three characters;
real ones have about four. Seeded pairs of pieces of one script fill the table, so that loading takes about as
long as for a real one. Knows nothing of models, nor how a real tokenizer would cut a text.
"""

import itertools
import json
import random
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

TEXTS = Path(__file__).parents[1] / "calibration" / "corpora"
MARK = "▁"  # stands for a space in the tables that come from SentencePiece
LEARNED = 40_000  # more would be whole sentences: the texts are a quarter of a megabyte
LONGEST = 16  # characters of a piece
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# Whole scripts, as the texts have few of the Han and Hangul: Latin to Khmer, kana, Han, Hangul, wide forms.
CHARACTERS = tuple(
    chr(code)
    for first, last in (
        *((0x21, 0x7E), (0xA1, 0x17FF), (0x1E00, 0x1FFF), (0x2010, 0x2BFF), (0x3000, 0x30FF)),
        *((0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF01, 0xFF9F)),
    )
    for code in range(first, last + 1)
)
GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
GEMMA_RESERVED = 8  # rows behind the 262,144 of Gemma 3
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
BYTE_SPECIAL = ("[PAD]", "[SEP]", "[CLS]", "[UNK]", "[MASK]")


def gemma_like(size: int, seed: int) -> Any:
    """A BPE over whole texts, spaces as ▁, unknown characters as bytes. Ids: pad 0, eos 1, bos 2, unk 3."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    reserved = [f"<reserved_{i}>" for i in range(GEMMA_RESERVED)]
    runs = [character * n for character in (MARK, "\n") for n in range(1, LONGEST)]
    learned = _learned(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\n"), "isolated"), _metaspace()])
    )
    pieces = dict.fromkeys([*GEMMA_SPECIAL, *BYTES])
    whole = _sized([*pieces, *runs, *learned, *CHARACTERS], size - GEMMA_RESERVED, learned, seed)
    vocabulary = {piece: i for i, piece in enumerate([*whole, *reserved])}
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges(whole[len(pieces) :]),
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", MARK)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    tokenizer.add_special_tokens([*GEMMA_SPECIAL, *reserved])
    return tokenizer


def byte_level(size: int, seed: int) -> Any:
    """A byte-level BPE over words, as GPT-2 has it. Ids: pad 0, sep 1, cls 2, unk 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned = _learned(words, sorted(pre_tokenizers.ByteLevel.alphabet()))
    whole = _sized([*BYTE_SPECIAL, *learned], size, learned, seed)
    vocabulary = {piece: i for i, piece in enumerate(whole)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(whole[len(BYTE_SPECIAL) :])))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 1)]
    )
    tokenizer.add_special_tokens(list(BYTE_SPECIAL))
    return tokenizer


def unigram(size: int, seed: int) -> Any:
    """A Unigram table with the scores of Zipf's law. Ids as in XLM-RoBERTa: <s> 0, pad 1, </s> 2, unk 3."""
    import numpy as np
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    learned = _learned(_metaspace())
    whole = _sized([*ROBERTA_SPECIAL, *learned, *CHARACTERS], size - 1, learned, seed)
    scores = -np.log(np.arange(10, 10 + len(whole), dtype=np.float64))  # a longer piece is a later one
    table = [*zip(whole, scores.tolist(), strict=True), ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(table, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(MARK, prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(MARK)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*ROBERTA_SPECIAL, "<mask>"])
    return tokenizer


def _metaspace() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Metaspace(MARK, prepend_scheme="never")


def _learned(pre_tokenizer: Any, alphabet: Iterable[str] = ()) -> list[str]:
    """Pieces that a BPE finds in the calibration texts: characters, then merges, the most frequent first."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED,
        min_frequency=1,
        initial_alphabet=list(alphabet),
        max_token_length=LONGEST,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _texts() -> Iterator[str]:
    for path in sorted(TEXTS.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            yield json.loads(line)["text"]


def _sized(first: list[str], size: int, learned: list[str], seed: int) -> list[str]:
    """`first`, each once, and as many new pairs of learned pieces as `size` takes."""
    pieces = dict.fromkeys(first)  # a set that keeps its order
    new = (pair for pair in _pairs(learned, seed) if pair not in pieces)
    while len(pieces) < size:
        pieces[next(new)] = None
    return list(itertools.islice(pieces, size))


def _pairs(learned: list[str], seed: int) -> Iterator[str]:
    """Endless random pairs of short pieces of one script; the second does not begin a word."""
    chance = random.Random(seed)
    by_script: dict[str, list[str]] = {}
    for piece in learned:
        if len(piece) <= LONGEST // 2:
            by_script.setdefault(_script(piece), []).append(piece)
    inside = {script: [p for p in pieces if p[0] not in (MARK, "Ġ")] for script, pieces in by_script.items()}
    short = [piece for pieces in by_script.values() for piece in pieces]
    while True:
        piece = chance.choice(short)
        if others := inside[_script(piece)]:
            yield piece + chance.choice(others)


def _script(piece: str) -> str:
    """LATIN, CYRILLIC, CJK ...: how Unicode's name of the last character begins."""
    return unicodedata.name(piece[-1], "").partition(" ")[0]


def _merges(pieces: list[str]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, earlier pieces first, as SentencePiece's converters do."""
    known = set(pieces)
    return [
        (piece[:i], piece[i:])
        for piece in pieces
        for i in range(1, len(piece))
        if piece[:i] in known and piece[i:] in known
    ]
