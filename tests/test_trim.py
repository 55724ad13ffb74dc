"""trim.py, vocabulary.py and `edge-embed trim`: the tokenizers library judges tokens, the parent vectors."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from bench import vocabulary as bench_vocabulary
from bench.shapes import write_checkpoint
from edge_embed import Embedder, atomic, ir, quantize, store, tokenizer_ir, trim
from edge_embed.build import build
from edge_embed.cli import main
from edge_embed.errors import InputError, ModelError, OutputError
from edge_embed.manifest import read_manifest
from edge_embed.record import hash_file, read_record
from edge_embed.vocabulary import Bpe, Unigram, Vocabulary, WordPiece, inserted, renumbered
from tests.checkpoints import rewrite_config, tiny_roberta
from tests.modernbert_checkpoints import tiny_modernbert

Capture = pytest.CaptureFixture[str]
Contents = dict[str, bytes]

SIZE = 6000  # pieces of the tables below
INT8 = ("int8_weights", "int8")
LANGUAGES = ("de", "en", "python")

# Names of the special tokens of each table, as tokenizer_config.json calls them.
SPECIAL = {
    "gemma_like": {"pad_token": "<pad>", "cls_token": "<bos>", "sep_token": "<eos>", "unk_token": "<unk>"},
    "byte_level": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"},
    "unigram": {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"},
}
MODELS = ("gemma_like", "byte_level", "unigram", "wordpiece")


def use_tokenizer(folder: Path, kind: str) -> Path:
    """Give a tiny checkpoint a tokenizer of another kind."""
    tokenizer = getattr(bench_vocabulary, kind)(SIZE, 0)
    tokenizer.save(str(folder / "tokenizer.json"))
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **SPECIAL[kind]}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


@pytest.fixture(scope="module")
def models(tiny_built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model with float32 and both INT8 IRs for each kind of tokenizer. Read only."""
    place = tmp_path_factory.mktemp("models")
    found = {"wordpiece": Path(shutil.copytree(tiny_built, place / "wordpiece"))}
    for kind in ("gemma_like", "byte_level"):
        ids = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 1, "sep_token_id": 1}
        folder = tiny_modernbert(place / kind, vocab_size=SIZE)
        found[kind] = build(rewrite_config(use_tokenizer(folder, kind), **ids))
    found["unigram"] = build(use_tokenizer(tiny_roberta(place / "unigram", vocab_size=SIZE), "unigram"))
    for folder in found.values():
        for compute_type in INT8:
            quantize.quantize(folder, compute_type, quantize.Recipe(subset_size=20))
    return found


@pytest.fixture(scope="module")
def packs(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same trimmed to LANGUAGES. Read only."""
    place = tmp_path_factory.mktemp("packs")
    return {
        kind: trim.write(trim.choose(folder, languages=LANGUAGES), place / kind)
        for kind, folder in models.items()
    }


@pytest.fixture(scope="module")
def chosen(models: dict[str, Path]) -> trim.Pack:
    """A choice for the model with WordPiece that is not written yet."""
    return trim.choose(models["wordpiece"], languages=["de"])


@pytest.fixture
def words(models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the model with WordPiece that a test may damage."""
    return Path(shutil.copytree(models["wordpiece"], tmp_path / "words"))


def official(folder: Path) -> Any:
    """tokenizer.json as the tokenizers library reads it, cutting and padding nothing."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encoded(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def kept_ids(before: Any, after: Any) -> dict[int, int]:
    """Old id -> new id, by what the library calls each token."""
    old, new = before.get_vocab(with_added_tokens=True), after.get_vocab(with_added_tokens=True)
    assert new.keys() <= old.keys()
    return {old[token]: at for token, at in new.items()}


def texts_of(*languages: str) -> list[str]:
    built_in = trim.builtin_texts()
    return [text for language in languages for text in built_in[language]]


def mixed(texts: list[str], count: int, seed: int = 0) -> list[str]:
    """Texts of words of these, drawn at random: most have not been seen by any choice."""
    chance = random.Random(seed)
    words = sorted({word for text in texts for word in text.split()})
    return [" ".join(chance.choices(words, k=chance.randint(1, 12))) for _ in range(count)]


def contents(folder: Path) -> Contents:
    """Every file under a folder, hidden ones included."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def vectors(folder: Path, texts: list[str], compute_type: str = "float32") -> NDArray[Any]:
    return Embedder(folder, compute_type=compute_type, cache_dir=False).encode(texts)


# ---- tokens, against the tokenizers library


@pytest.mark.parametrize("kind", MODELS)
def test_the_texts_of_the_choice_keep_their_tokens(
    kind: str, models: dict[str, Path], packs: dict[str, Path]
) -> None:
    before, after = official(models[kind]), official(packs[kind])
    ids = kept_ids(before, after)
    texts = texts_of(*LANGUAGES)
    for old, new in zip(encoded(before, texts), encoded(after, texts), strict=True):
        assert [ids[token] for token in old] == new


@pytest.mark.parametrize("kind", MODELS)
def test_a_text_whose_tokens_are_all_kept_keeps_them_though_it_was_never_seen(
    kind: str, models: dict[str, Path], packs: dict[str, Path]
) -> None:
    before, after = official(models[kind]), official(packs[kind])
    ids = kept_ids(before, after)
    texts = [*mixed(texts_of(*LANGUAGES), 2000), *texts_of(*trim.known_languages())]
    inside = [text for text in texts if ids.keys() >= set(before.encode(text).ids)]
    assert len(inside) >= 500
    for old, new in zip(encoded(before, inside), encoded(after, inside), strict=True):
        assert [ids[token] for token in old] == new


@pytest.mark.parametrize("kind", ["gemma_like", "byte_level"])
def test_other_texts_fall_back_to_smaller_pieces_and_lose_nothing(
    kind: str, models: dict[str, Path], packs: dict[str, Path]
) -> None:
    before, after = official(models[kind]), official(packs[kind])
    more = 0
    for text in [*texts_of("fr", "ru", "zh", "th"), "🜚 \x00 ﷽"]:
        old, new = before.encode(text).ids, after.encode(text).ids
        assert after.decode(new) == before.decode(old)
        assert len(new) >= len(old)
        more += len(new) - len(old)
    assert more > 1000


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_what_was_known_stays_known(kind: str, models: dict[str, Path], packs: dict[str, Path]) -> None:
    before, after = official(models[kind]), official(packs[kind])
    unknown = {"unigram": "<unk>", "wordpiece": "[UNK]"}[kind]
    for text in [*texts_of("fr", "ru", "fi"), "a 🜚 b"]:
        counts = [tokenizer.encode(text).tokens.count(unknown) for tokenizer in (before, after)]
        assert counts[0] == counts[1]


def test_a_merge_that_would_compete_needs_its_parts_kept() -> None:
    from tokenizers import Tokenizer, models

    pieces = ["a", "b", "c", "d", "bc", "ab", "abc", "bcd", "cd", "abcd"]
    merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), ("bc", "d"), ("c", "d"), ("abc", "d")]
    model = {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)}, "merges": merges}
    table = Bpe(model, byte_level=False)
    # Not by "ab", though it has the first merge that gives "abc".
    assert table.parts("abc") == frozenset({"a", "b", "c", "bc", "abc"})
    assert table.parts("abcd") == frozenset({"a", "b", "c", "d", "bc", "abc", "abcd"})
    assert table.parts("cd") == frozenset({"c", "d", "cd"})
    assert table.parts("ca") is None

    def tokens(kept: set[str], text: str) -> list[str]:
        small = table.shrunk({piece: i for i, piece in enumerate(p for p in pieces if p in kept)})
        tokenizer = Tokenizer(models.BPE(small["vocab"], [tuple(pair) for pair in small["merges"]]))
        found: list[str] = tokenizer.encode(text).tokens
        return found

    needed = table.parts("abc") or frozenset()
    for text in ("abc", "abcabc", "aabc"):
        assert tokens(set(needed), text) == tokens(set(pieces), text)
    assert tokens(set(needed) - {"bc"}, "abc") != tokens(set(pieces), "abc")


def test_a_word_that_is_looked_up_whole_needs_no_parts() -> None:
    vocab = {"a": 0, "b": 1, "ab": 2, "ba": 3}
    model = {"type": "BPE", "vocab": vocab, "merges": ["a b"], "ignore_merges": True}
    table = Bpe(model, byte_level=False)
    assert table.parts("ba") == frozenset({"ba"})
    assert table.parts("ab") == frozenset({"a", "b", "ab"})
    assert table.shrunk({"a": 0, "b": 1, "ab": 2})["merges"] == ["a b"]  # spelled as in the file


@pytest.mark.parametrize("key", ["dropout", "continuing_subword_prefix", "end_of_word_suffix"])
def test_a_bpe_of_another_kind_is_refused(key: str) -> None:
    with pytest.raises(ModelError, match=f"a BPE with {key} "):
        Bpe({"vocab": {}, "merges": [], key: 0.5}, byte_level=False)


def test_bytes_and_characters_stay_whatever_the_table() -> None:
    vocab = {"Ã": 0, "¤": 1, "Ã¤": 2, "Ã¤Ã¤": 3, "Ã¤x": 4, "ab": 5, "<0x0A>": 6, "?": 7}
    bpe = {"vocab": vocab, "merges": [], "unk_token": "ab"}
    assert Bpe(bpe, byte_level=True).basic() == {"Ã", "¤", "Ã¤", "<0x0A>", "?", "ab"}
    assert Bpe(bpe, byte_level=False).basic() == {"Ã", "¤", "<0x0A>", "?", "ab"}
    wordpiece = {"vocab": {"a": 0, "##b": 1, "##bc": 2, "ab": 3, "##": 4}, "continuing_subword_prefix": "##"}
    assert WordPiece(wordpiece).basic() == {"a", "##b"}
    unigram = {"vocab": [["<unk>", 0.0], ["a", -1.0], ["rare", -9.5], ["ab", -2.0]], "unk_id": 0}
    assert Unigram(unigram).basic() == {"<unk>", "a", "rare"}  # the lowest score decides what unknown costs


def test_unknown_characters_cost_unigram_what_they_did() -> None:
    """Ten more than the lowest score; were it less, "é" would be unknown here, and "bcdef" one piece."""
    from tokenizers import Tokenizer, models

    rows = [("<unk>", 0.0), ("éb", -16.0), ("cd", -16.0), ("ef", -16.0), ("bcdef", -1.0), ("rare", -60.0)]
    table = Unigram({"type": "Unigram", "vocab": rows, "unk_id": 0})
    used = {"éb", "cd", "ef", "bcdef"}

    def tokens(pieces: set[str]) -> list[str]:
        small = table.shrunk({p: i for i, p in enumerate(p for p, _ in rows if p in pieces)})
        vocab = [(piece, score) for piece, score in small["vocab"]]
        found: list[str] = Tokenizer(models.Unigram(vocab, small["unk_id"], False)).encode("ébcdef").tokens
        return found

    assert tokens(table.basic() | used) == tokens({p for p, _ in rows}) == ["éb", "cd", "ef"]
    assert tokens({"<unk>", *used}) == ["é", "bcdef"]


# ---- the rest of tokenizer.json


def test_special_tokens_get_new_ids_wherever_they_stand(
    models: dict[str, Path], tmp_path: Path, packs: dict[str, Path]
) -> None:
    for kind in MODELS:
        before, after = official(models[kind]), official(packs[kind])
        settings = json.loads((packs[kind] / "tokenizer.json").read_bytes())
        for token in settings["added_tokens"]:
            assert after.token_to_id(token["content"]) == token["id"]
        added = before.get_added_tokens_decoder().values()
        assert {t.content for t in after.get_added_tokens_decoder().values()} == {t.content for t in added}
        assert after.encode("").tokens == before.encode("").tokens


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing"])
def test_ids_of_every_post_processor_are_renumbered(kind: str) -> None:
    pair = {"type": kind, "sep": ["</s>", 7], "cls": ["<s>", 5]}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [5, 9], "tokens": ["<s>", "<t>"]}},
    }
    other = {"type": "ByteLevel", "trim_offsets": True}
    whole = {"type": "Sequence", "processors": [pair, template, other]}
    assert inserted(whole) == {5, 7, 9}
    assert inserted(None) == set()
    new = renumbered(whole, {5: 0, 7: 1, 9: 2})
    assert new["processors"][0] == {"type": kind, "sep": ["</s>", 1], "cls": ["<s>", 0]}
    assert new["processors"][1]["special_tokens"]["<s>"]["ids"] == [0, 2]
    assert new["processors"][1]["single"] == template["single"]
    assert new["processors"][2] == other


def test_truncation_and_padding_blocks_stay_but_for_their_id(words: Path, tmp_path: Path) -> None:
    settings = json.loads((words / "tokenizer.json").read_bytes())
    settings["padding"]["pad_id"] = settings["model"]["vocab"]["or"]  # one that has to move
    (words / "tokenizer.json").write_text(json.dumps(settings))
    trimmed = trim.write(trim.choose(words, languages=["km"]), tmp_path / "out")
    new = json.loads((trimmed / "tokenizer.json").read_bytes())
    assert new["truncation"] == settings["truncation"] is not None
    assert new["padding"].pop("pad_id") == new["model"]["vocab"]["or"] < settings["padding"].pop("pad_id")
    assert new["padding"] == settings["padding"]


def test_added_tokens_beside_the_table_get_the_ids_that_the_library_gives(
    words: Path, tmp_path: Path
) -> None:
    before = official(words)
    before.add_tokens(["edge_embed", "<custom>"])
    before.add_special_tokens(["[EXTRA]"])
    before.save(str(words / "tokenizer.json"))
    size = before.get_vocab_size(with_added_tokens=True)
    texts = tmp_path / "own.txt"
    texts.write_text("the cat edge_embed sat\na <custom> dog [EXTRA]")
    with pytest.raises(ModelError, match=f"{size} tokens, but config.json says vocab_size {size - 3}"):
        trim.choose(words, texts_file=texts)
    rewrite_config(words, vocab_size=size)
    pack = trim.choose(words, texts_file=texts)
    (words / "small").mkdir()
    (words / "small/tokenizer.json").write_text(json.dumps(pack.settings))
    after = official(words / "small")
    ids = kept_ids(before, after)
    assert [before.token_to_id(after.id_to_token(i)) for i in range(len(pack.rows))] == pack.rows.tolist()
    assert sorted(ids.values()) == list(range(len(pack.rows)))
    for text in [*texts.read_text().splitlines(), "<custom>edge_embed"]:
        assert [ids[i] for i in before.encode(text).ids] == after.encode(text).ids


# ---- size


def test_a_size_is_filled_with_the_most_frequent_pieces_of_the_scripts_that_are_used(
    models: dict[str, Path],
) -> None:
    folder = models["unigram"]
    needed = set(trim.choose(folder, languages=["en"]).rows.tolist())
    for size in (len(needed), len(needed) + 1, len(needed) + 300):
        pack = trim.choose(folder, languages=["en"], size=size)
        assert len(pack.rows) == size
    added = set(pack.rows.tolist()) - needed
    tokenizer = official(folder)
    letters = set("".join(token for text in texts_of("en") for token in tokenizer.encode(text).tokens))
    first = [i for i in range(SIZE) if i not in needed and letters.issuperset(tokenizer.id_to_token(i))]
    assert added == set(first[:300])  # ids of this table go by score


@pytest.mark.parametrize("kind", ["gemma_like", "byte_level"])
def test_what_fills_up_a_bpe_can_be_reached(kind: str, models: dict[str, Path]) -> None:
    folder = models[kind]
    needed = len(trim.choose(folder, languages=["en"]).rows)
    pack = trim.choose(folder, languages=["en"], size=needed + 200)
    assert needed + 190 <= len(pack.rows) <= needed + 200
    table = pack.settings["model"]
    reached = {left + right for left, right in table["merges"]}
    grown = [piece for piece in table["vocab"] if len(piece) > 1 and not piece.startswith(("<", "["))]
    assert sum(piece in reached for piece in grown) >= 0.99 * len(grown)


def test_a_size_that_is_too_small_is_refused_by_the_number_that_is_needed(models: dict[str, Path]) -> None:
    needed = len(trim.choose(models["unigram"], languages=["de"]).rows)
    with pytest.raises(InputError, match=f"a size of {needed - 1} is too small.* makes {needed}; ask for"):
        trim.choose(models["unigram"], languages=["de"], size=needed - 1)
    with pytest.raises(InputError, match=f"a size of {SIZE} leaves nothing to trim: the model has {SIZE} "):
        trim.choose(models["unigram"], languages=["de"], size=SIZE)


# ---- vectors


@pytest.mark.parametrize("compute_type", ["float32", *INT8])
@pytest.mark.parametrize("kind", MODELS)
def test_texts_inside_have_the_same_vectors_bit_by_bit(
    kind: str, compute_type: str, models: dict[str, Path], packs: dict[str, Path]
) -> None:
    texts = texts_of(*LANGUAGES)[::4]
    expected, found = (vectors(folder, texts, compute_type) for folder in (models[kind], packs[kind]))
    np.testing.assert_array_equal(found, expected)
    sizes = [read_manifest(folder).vocabulary or 0 for folder in (packs[kind], models[kind])]
    assert 0 < sizes[0] < sizes[1]


@pytest.mark.parametrize("kind", ["gemma_like", "unigram"])
def test_the_float32_ir_quantizes_to_what_was_trimmed_of_int8_weights(
    kind: str, packs: dict[str, Path], tmp_path: Path
) -> None:
    anew = Path(shutil.copytree(packs[kind], tmp_path / "anew"))
    quantize.quantize(anew, "int8_weights")
    name = Path("openvino", ir.VARIANTS["int8_weights"])
    for texts in (texts_of("fr")[:8], texts_of("en")[:8]):
        np.testing.assert_array_equal(
            vectors(anew, texts, "int8_weights"), vectors(packs[kind], texts, "int8_weights")
        )
    assert (anew / name).with_suffix(".bin").stat().st_size == (packs[kind] / name).with_suffix(
        ".bin"
    ).stat().st_size


def test_the_padding_token_of_roberta_keeps_its_id(packs: dict[str, Path]) -> None:
    """Its graph compares ids with it, and its positions begin behind it."""
    config = json.loads((packs["unigram"] / "config.json").read_bytes())
    assert config["pad_token_id"] == official(packs["unigram"]).token_to_id("<pad>") == 1


def test_ids_up_to_the_padding_of_roberta_stay_though_nothing_uses_them(
    models: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models["unigram"], tmp_path / "model"))
    unused = trim.choose(folder, languages=["zh"]).rows
    pad = next(i for i in range(SIZE) if i not in unused) + 10
    rewrite_config(folder, pad_token_id=pad, max_position_embeddings=512 + pad + 1)
    rows = trim.choose(folder, languages=["zh"]).rows
    assert rows[: pad + 1].tolist() == list(range(pad + 1))


def test_a_graph_that_uses_ids_otherwise_is_found_out(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_rows = trim.take_rows

    def wrongly(model: openvino.Model, source: Path, rows: NDArray[np.int64]) -> None:
        take_rows(model, source, np.roll(rows, 1))

    monkeypatch.setattr(trim, "take_rows", wrongly)
    pack = trim.choose(models["gemma_like"], languages=["de"])
    with pytest.raises(ModelError, match="gives other vectors with fewer token rows"):
        trim.write(pack, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_token_table_that_is_not_plain_is_refused() -> None:
    from openvino import opset13

    def model(table: Any) -> openvino.Model:
        ids, mask = (opset13.parameter([-1, -1], np.int64, name) for name in ("input_ids", "attention_mask"))
        for port, name in ((ids, "input_ids"), (mask, "attention_mask")):
            port.output(0).get_tensor().set_names({name})
        return openvino.Model([opset13.result(table(ids)), opset13.result(mask)], [ids, mask])

    rows, values = np.array([0, 2]), np.ones((3, 4), np.float32)
    path = Path("graph.xml")
    axis = np.int64(0)
    with pytest.raises(ModelError, match=r"graph\.xml does not look up a token table plainly"):
        trim.take_rows(model(lambda ids: opset13.one_hot(ids, 3, 1.0, 0.0, -1)), path, rows)
    with pytest.raises(ModelError, match="has 3 token rows, but row 3 stays"):
        trim.take_rows(model(lambda ids: opset13.gather(values, ids, axis)), path, np.array([0, 3]))
    with pytest.raises(ModelError, match="goes through Sin, which is not known"):
        trim.take_rows(model(lambda ids: opset13.gather(opset13.sin(values), ids, axis)), path, rows)
    wide = opset13.constant(values.astype(np.float64))
    with pytest.raises(ModelError, match="is stored as f64; known: "):
        trim.take_rows(model(lambda ids: opset13.gather(wide, ids, axis)), path, rows)
    small = model(
        lambda ids: opset13.gather(
            opset13.constant(np.arange(6.0, dtype=np.float32).reshape(3, 2)), ids, axis
        )
    )
    trim.take_rows(small, path, rows)
    tables = [node.get_data().tolist() for node in small.get_ops() if node.get_type_name() == "Constant"]
    assert [[0, 1], [4, 5]] in tables


# ---- the folder


def test_config_and_tokenizer_config_name_the_new_ids(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["gemma_like"], tmp_path / "model"))
    before = official(folder)
    token = before.id_to_token(5000)
    options = {"added_tokens_decoder": {"2": {"content": "<bos>"}, "5000": {"content": token}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    rewrite_config(folder, mask_token_id=5000, decoder_start_token_id=None, eos_token_id=[1, 5000])
    rewrite_config(folder, sep_token_id=SIZE + 7)
    shutil.copy(folder / "config.json", folder / "openvino/config.json")
    (folder / "vocab.json").write_text(json.dumps(before.get_vocab()))
    out = trim.write(trim.choose(folder, languages=["zh"]), tmp_path / "out")
    after = official(out)
    at = after.token_to_id(token)
    for place in (out / "config.json", out / "openvino/config.json"):
        config = json.loads(place.read_bytes())
        assert config["vocab_size"] == after.get_vocab_size(with_added_tokens=True)
        assert (config["mask_token_id"], config["eos_token_id"]) == (at, [1, at])
        assert (config["pad_token_id"], config["bos_token_id"], config["decoder_start_token_id"]) == (
            0,
            2,
            None,
        )
        assert config["sep_token_id"] == SIZE + 7  # of no row, before and after
    decoder = json.loads((out / "tokenizer_config.json").read_bytes())["added_tokens_decoder"]
    assert decoder == {"2": {"content": "<bos>"}, str(at): {"content": token}}
    assert not (out / "vocab.json").exists()


def test_a_row_that_config_json_names_stays_though_no_token_has_it(
    models: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models["wordpiece"], tmp_path / "model"))
    settings = json.loads((folder / "tokenizer.json").read_bytes())
    last = max(settings["model"]["vocab"], key=settings["model"]["vocab"].get)
    row = settings["model"]["vocab"].pop(last)
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    rewrite_config(folder, pad_token_id=row)
    pack = trim.choose(folder, languages=["zh"])
    assert pack.rows[-1] == row
    out = trim.write(pack, tmp_path / "out")
    assert read_manifest(out).pad_id == len(pack.rows) - 1
    vectors(out, ["the cat", "a"])


def test_the_record_tells_parent_texts_and_coverage_and_the_folder_verifies(
    models: dict[str, Path], tmp_path: Path
) -> None:
    texts = tmp_path / "own.jsonl"
    texts.write_text("".join(json.dumps({"text": f"the cat {i}"}) + "\n" for i in range(7)))
    folder = models["wordpiece"]
    pack = trim.choose(folder, languages=["de"], texts_file=texts)
    out = trim.write(pack, tmp_path / "out", compute_types=["int8_weights"])
    record = read_record(out)
    (entry,) = record["trimmed"]
    files = ["tokenizer.json", *(f"openvino/openvino_model_int8_weights.{end}" for end in ("xml", "bin"))]
    assert entry["parent"] == {name: hash_file(folder / name) for name in files}
    assert entry["languages"] == ["de"]
    assert entry["texts"] == {"source": "own.jsonl", "sha256": hash_file(texts), "texts": 7}
    assert entry["vocabulary"] == {"before": 124, "after": len(pack.rows)}
    assert [row["group"] for row in entry["coverage"][:2]] == ["de", "own texts"]
    assert record["quantized"].keys() == {"int8_weights"}
    assert ir.find_files(out).variants.keys() == {"int8_weights"}
    report = store.verify(out)
    assert (report.wrong, report.unrecorded) == ((), ())
    vectors(out, ["the cat"], "int8_weights")


def test_what_is_trimmed_can_be_trimmed_again_and_both_times_are_on_record(
    packs: dict[str, Path], models: dict[str, Path], tmp_path: Path
) -> None:
    pack = trim.choose(packs["byte_level"], languages=["en"])
    twice = trim.write(pack, tmp_path / "twice")
    once = trim.write(trim.choose(models["byte_level"], languages=["en"]), tmp_path / "once")
    first, second = read_record(twice)["trimmed"]
    assert (first["languages"], second["languages"]) == (list(LANGUAGES), ["en"])
    assert second["vocabulary"]["before"] == first["vocabulary"]["after"] > len(pack.rows)
    assert (twice / "tokenizer.json").read_bytes() == (once / "tokenizer.json").read_bytes()
    bins = [(folder / "openvino/openvino_model.bin").read_bytes() for folder in (once, twice)]
    assert bins[0] == bins[1]


def test_prompts_count_as_a_part_of_the_texts(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["gemma_like"], tmp_path / "model"))
    behaviour = {"prompts": {"query": "запрос: ", "document": ""}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(behaviour))
    out = trim.write(trim.choose(folder, languages=["en"]), tmp_path / "out", compute_types=["float32"])
    texts = texts_of("en")[:6]
    expected, found = (
        Embedder(place, compute_type="float32", cache_dir=False).encode_query(texts)
        for place in (folder, out)
    )
    np.testing.assert_array_equal(found, expected)


# ---- coverage


def test_coverage_counts_what_the_library_counts(models: dict[str, Path], tmp_path: Path) -> None:
    folder = models["gemma_like"]
    pack = trim.choose(folder, languages=LANGUAGES)
    (tmp_path / "tokenizer.json").write_text(json.dumps(pack.settings))
    before, after = official(folder), official(tmp_path)
    ids = kept_ids(before, after)
    row = next(row for row in pack.coverage if row.group == "fr")
    texts = texts_of("fr")
    pairs = [
        (before.encode(t, add_special_tokens=False).ids, after.encode(t, add_special_tokens=False).ids)
        for t in texts
    ]
    changed = [(old, new) for old, new in pairs if [ids.get(i) for i in old] != new]
    assert not row.held_out
    assert (row.texts, row.tokens) == (len(texts), sum(len(old) for old, _ in pairs))
    assert row.kept_tokens == sum(i in ids for old, _ in pairs for i in old) < row.tokens
    assert row.same_texts == len(texts) - len(changed)
    assert row.extra_tokens == sum(len(new) - len(old) for old, new in changed)
    assert row.extra_mean == row.extra_tokens / len(changed)
    assert {r.group for r in pack.coverage} == set(trim.known_languages())


def test_chosen_groups_are_measured_on_texts_that_were_held_out(models: dict[str, Path]) -> None:
    pack = trim.choose(models["gemma_like"], languages=["en", "de"])
    measured = {row.group: row for row in pack.coverage if row.held_out}
    assert measured.keys() == {"en", "de"}
    assert measured["en"].texts == len(texts_of("en")) // 5
    assert 0.3 < measured["en"].kept_share < 0.95  # it would be 1 on texts that had been seen
    roomy = trim.choose(models["gemma_like"], languages=["en", "de"], size=SIZE - 1)
    assert all(row.kept_share > 0.99 for row in roomy.coverage if row.held_out)


def test_few_own_texts_are_not_held_out(models: dict[str, Path], tmp_path: Path) -> None:
    texts = tmp_path / "own.txt"
    texts.write_text("the cat\n\nthe cat\na dog\n")
    pack = trim.choose(models["wordpiece"], texts_file=texts)
    assert (pack.checked, [row for row in pack.coverage if row.held_out]) == (2, [])


def test_every_language_of_the_texts_is_known() -> None:
    known = trim.known_languages()
    assert len(known) == 61
    assert {"de", "zh", "python", "c", "sql"} <= set(known)
    assert len(texts_of("de")) == 6 + 24 + 1  # with the long one


# ---- the command


def test_the_command_shows_coverage_and_writes_the_folder(
    models: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    folder, out = models["wordpiece"], tmp_path / "out"
    command = ["trim", str(folder), "--languages", "de, en", "--to", str(out), "--json"]
    assert main([*command, "--compute-type", "float32,int8_weights"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    size = sum(map(len, contents(out).values()))
    assert lines[-1] == f"{out}  {size / 1e6:.1f} MB"
    assert lines[0].startswith(f"{report['tokens']:,} of 124 tokens stay (")
    assert lines[1] == "all 62 texts that they were chosen by keep their tokens: checked"
    assert (report["folder"], report["to"], report["bytes"]) == (str(folder), str(out), size)
    assert (report["tokens_before"], report["texts_checked"]) == (124, 62)
    assert {"group", "held_out", "kept_share", "extra_mean"} <= report["coverage"][0].keys()
    assert ir.find_files(out).variants.keys() == {"float32", "int8_weights"}


def test_a_dry_run_shows_the_same_and_writes_nothing(words: Path, tmp_path: Path, capsys: Capture) -> None:
    before = contents(tmp_path)
    assert main(["trim", str(words), "--languages", "de", "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["tokens"] > 100
    assert (report["to"], report["bytes"]) == (None, None)
    assert contents(tmp_path) == before


@pytest.mark.reference
def test_the_tokenizer_of_openvino_genai_is_made_anew_where_there_was_one(
    words: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert tokenizer_ir.add(words)
    out = tmp_path / "out"
    assert main(["trim", str(words), "--languages", "km", "--to", str(out)]) == 0
    assert (out / tokenizer_ir.FILE).exists()
    assert read_record(out)["tokenizer_ir"]["different"] == 0
    report = store.verify(out)
    assert (report.wrong, report.unrecorded) == ((), ())


def refused(capsys: Capture, place: Path, *options: str | Path) -> str:
    """The one line of a command that exits with 2 and leaves everything below `place` as it was."""
    before = contents(place)
    assert main(["trim", *map(str, options)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert contents(place) == before
    (line,) = err.splitlines()
    return line.removeprefix("edge-embed: ")


def test_bad_input_is_refused_in_one_line(words: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("ein\nschöner Tag".encode("latin-1"))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    out = tmp_path / "out"
    cases: list[tuple[list[str | Path], str]] = [
        (["--languages", "de,klingon,xx"], "unknown language klingon, xx; known: ar, az, "),
        ([], "neither languages nor texts are named"),
        (["--texts", tmp_path / "empty.txt"], "holds no texts; put one on each line"),
        (["--texts", tmp_path / "latin.txt"], "is not UTF-8: byte 0xf6 in line 2"),
        (["--texts", tmp_path / "bad.jsonl"], "bad.jsonl, line 2 has no text"),
        (["--texts", tmp_path / "none.txt"], "cannot read"),
        (["--languages", "de", "--compute-type", "int8,bf16"], "has no IR of bf16; it has: float32, "),
        (["--languages", "de", "--size", "50"], "a size of 50 is too small: "),
    ]
    for options, complaint in cases:
        assert complaint in refused(capsys, tmp_path, words, "--to", out, *options)
    assert "name one by --to" in refused(capsys, tmp_path, words, "--languages", "de")
    for target, complaint in (
        (full, f"{full} is not empty; name a new folder"),
        (full / "file", "is a file; name a new folder"),
        (words / "small", "lies in the folder of the model"),
        (tmp_path / "a/b", f"{tmp_path / 'a'} is no folder; make it first"),
    ):
        assert complaint in refused(capsys, tmp_path, words, "--languages", "de", "--to", target)
    with pytest.raises(SystemExit):
        main(["trim", str(words), "--size", "many"])
    assert "'many' is not a number of tokens like 64000 or 64k" in capsys.readouterr().err


def test_a_folder_that_cannot_be_trimmed_says_why(words: Path, tmp_path: Path, capsys: Capture) -> None:
    command: list[str | Path] = [words, "--languages", "de", "--to", tmp_path / "out"]
    settings = json.loads((words / "tokenizer.json").read_bytes())
    words_alone = {"type": "WordLevel", "vocab": settings["model"]["vocab"], "unk_token": "[UNK]"}
    (words / "tokenizer.json").write_text(json.dumps(settings | {"model": words_alone}))
    assert "a tokenizer of the kind WordLevel cannot be trimmed" in refused(capsys, tmp_path, *command)
    (words / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refused(capsys, tmp_path, *command)
    shutil.rmtree(words / "openvino")
    assert f"has no IR to trim; run: edge-embed build {words}" in refused(capsys, tmp_path, *command)


def test_a_text_that_would_change_stops_it(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = Vocabulary.needed

    def too_little(self: Vocabulary, used: set[int]) -> set[int]:
        return needed(self, used) - {self._ids["the"]}

    monkeypatch.setattr(Vocabulary, "needed", too_little)
    with pytest.raises(ModelError, match="of the texts would get other tokens though all of theirs are kept"):
        trim.choose(words, languages=["en"])


@pytest.mark.parametrize("moment", ["copying", "writing", "recording", "publishing"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OutputError("cannot write: the disk is full")], ids=repr
)
def test_nothing_is_left_where_it_fails_or_is_interrupted(
    error: BaseException, moment: str, chosen: trim.Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    place: dict[str, tuple[object, str]] = {
        "copying": (atomic, "write_bytes"),
        "writing": (ir, "write"),
        "recording": (trim, "write_record"),
        "publishing": (atomic, "publish"),
    }
    monkeypatch.setattr(*place[moment], fail)
    with pytest.raises(type(error)):
        trim.write(chosen, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "new").mkdir()  # an empty folder may be there
    monkeypatch.chdir(tmp_path / "new")
    trim.write(chosen, Path())
    assert ir.find_files(tmp_path / "new").variants.keys() == {"float32", *INT8}


# ---- others load it


@pytest.mark.reference
@pytest.mark.parametrize("kind", [*MODELS, pytest.param("minilm", marks=pytest.mark.minilm)])
def test_transformers_and_sentence_transformers_load_it_with_the_same_vectors(
    kind: str, packs: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    folder = request.getfixturevalue("minilm_pack") if kind == "minilm" else packs[kind]
    texts = [*texts_of("en", "python")[:9], "Ünïcödé, 日本語 und ein ganz anderer Text"]
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs(texts)["input_ids"] == encoded(official(folder), texts)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    options = {"ov_config": exact, "file_name": "openvino/openvino_model.xml"}
    model = SentenceTransformer(str(folder), device="cpu", backend="openvino", model_kwargs=options)
    found = model.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(found, vectors(folder, texts), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def minilm_pack(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 trimmed to LANGUAGES, both float32 and int8_weights. Read only."""
    place = tmp_path_factory.mktemp("minilm")
    folder = Path(shutil.copytree(minilm, place / "model"))
    quantize.quantize(folder, "int8_weights")
    return trim.write(trim.choose(folder, languages=LANGUAGES, size=8000), place / "pack")


@pytest.mark.minilm
@pytest.mark.parametrize("compute_type", ["float32", "int8_weights"])
def test_minilm_gives_texts_inside_the_same_vectors(minilm_pack: Path, compute_type: str) -> None:
    parent = minilm_pack.parent / "model"
    before, after = official(parent), official(minilm_pack)
    ids = kept_ids(before, after)
    assert len(ids) == 8000
    texts = [*texts_of(*LANGUAGES), *mixed(texts_of("en"), 500)]
    for old, new in zip(encoded(before, texts), encoded(after, texts), strict=True):
        assert [ids[token] for token in old] == new
    texts = texts[::12]
    expected, found = (vectors(folder, texts, compute_type) for folder in (parent, minilm_pack))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


# ---- real size


@pytest.mark.large
def test_the_311m_shape_with_64k_tokens_in_int8_weights_takes_less_than_175_mb(tmp_path: Path) -> None:
    model = build(write_checkpoint("granite-embedding-311m-multilingual-r2", tmp_path / "model"))
    (model / "model.safetensors").unlink()
    quantize.quantize(model, "int8_weights")
    pack = trim.choose(model, languages=("de", "en", "fr", "es", "it", "python"), size=65_536)
    assert len(pack.rows) == 65_536
    out = trim.write(pack, tmp_path / "pack", compute_types=["int8_weights"])
    size = sum(map(len, contents(out).values()))
    assert size < 175e6
    texts = texts_of("de", "python")[:12]
    expected, found = (vectors(folder, texts, "int8_weights") for folder in (model, out))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    shutil.rmtree(model)
