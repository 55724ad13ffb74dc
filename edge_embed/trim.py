"""A model folder -> another one with a smaller vocabulary, for the languages and texts that are named.

    choose  which tokens stay, by what the texts use, and what that means for other texts: its coverage
    write   the folder: token rows gathered from each IR, ids renumbered in all files beside it

Rows are copied, not computed: a text whose tokens are all kept has the same vector. Knows folders, graphs and
texts. Does not know why a text keeps its tokens, which `vocabulary` proves, but checks it on every text that
it was given, and the vectors of a few, before a folder is there. Weights in safetensors are not trimmed: what
is quantized anew starts from the float32 IR.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import __version__, atomic, calibration, ir
from edge_embed.build import copy_side_files
from edge_embed.errors import InputError, ModelError, ModelNotFoundError, OutputError
from edge_embed.graph import head
from edge_embed.manifest import NO_LIMIT, POSITIONS_AFTER_PADDING, Manifest, read_manifest, read_object
from edge_embed.record import RECORD, file_entries, hash_file, read_record, write_record
from edge_embed.tokenization import Tokenizer
from edge_embed.vocabulary import Vocabulary

if TYPE_CHECKING:
    from openvino import Model, Node

KEY = "trimmed"  # of edge_embed.json: what was done, once for each time

# Of the parent's record, what holds for the result too.
INHERITED = ("name", "source", "built_by", KEY)

OWN = "own texts"  # the name of their group
NO_LANGUAGE = frozenset({"edge", "other"})  # files of calibration/ that are of many or of none

# Every so many-th text of a group is held out to see how the choice fares with texts that it has not seen.
HELD_OUT = 5

# Files of ids beside tokenizer.json that only older programs read, and that would no longer be true.
STALE = ("vocab.json", "added_tokens.json")

# What a token table may be stored as, and what may lie between it and its lookup.
STORED = frozenset({"f32", "f16", "u8", "i8"})
UNPACKING = frozenset({"Constant", "Convert", "FakeQuantize", "Multiply", "Subtract"})

PROBES = 4  # texts whose vectors are compared before a folder is there
PROBE_TOKENS = 128
TOLERANCE = 1e-5  # of the largest value. The same kernels on the same rows: 0 is expected

# INT8 is simulated: rounding must not hide a difference, and some CPUs have saturating INT8 kernels.
PROPERTIES = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "LP_TRANSFORMS_MODE": "NO",
}

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How one group of texts fares with the smaller vocabulary. Tokens are counted without special ones."""

    group: str
    held_out: bool  # measured without having seen these texts; else they had no say in the choice at all
    texts: int
    tokens: int
    kept_tokens: int  # of these, in the smaller vocabulary
    same_texts: int  # that have the same tokens
    extra_tokens: int  # that the other texts have more, all together

    @property
    def kept_share(self) -> float:
        return self.kept_tokens / self.tokens if self.tokens else 1.0

    @property
    def extra_mean(self) -> float:
        """More tokens for each text that has not the same ones."""
        changed = self.texts - self.same_texts
        return self.extra_tokens / changed if changed else 0.0


@dataclass(frozen=True, slots=True)
class Pack:
    """A choice of tokens, checked, and not yet written."""

    folder: Path  # of the model that it was made for
    languages: tuple[str, ...]
    own_texts: Mapping[str, Any] | None  # of the record: what was read
    size: int | None
    before: int  # V of the model
    rows: Ids  # (V,) the old id of each new one
    settings: Mapping[str, Any]  # of tokenizer.json
    checked: int  # texts that were seen to keep their tokens
    probes: tuple[Ids, ...]  # (T_i,) old ids of a few of them
    coverage: tuple[Coverage, ...]


class Source:
    """The tokenizer of a model folder, and what its files say of ids."""

    def __init__(self, folder: Path) -> None:
        """Errors: ModelError for files that are missing or of no known kind."""
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self.tokenizer = Tokenizer(folder, max_tokens=NO_LIMIT, lower_case=self.manifest.lower_case)
        self.tokenizer.check_fits(self.manifest.vocabulary)
        self.vocabulary = Vocabulary(folder / "tokenizer.json")
        self.prompts = sorted({"", *self.manifest.prompts.values()})
        config = read_object(folder / "config.json", required=True)
        self.size: int = self.manifest.vocabulary or max(self.vocabulary.names) + 1
        self.fixed = {i for i in special_ids(config.values) if 0 <= i < self.size}
        if config.text("model_type") in POSITIONS_AFTER_PADDING:  # their position table begins behind this id
            self.fixed |= set(range(self.manifest.pad_id + 1))

    def encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
        """Ids of texts with every prompt: all with the first, all with the second ..."""
        return [ids for prompt in self.prompts for ids in tokenizer.encode(texts, prompt).ids]

    def pick(self, texts: Sequence[str], size: int | None) -> set[int]:
        """Ids that stay so that these texts keep their tokens, filled up to `size`."""
        used = {token for ids in self.encode(self.tokenizer, texts) for token in ids.tolist()}
        kept = self.vocabulary.needed(used | (self.fixed & self.vocabulary.names.keys())) | self.fixed
        if size is None:
            return kept
        if size < len(kept):
            raise InputError(
                f"a size of {size} is too small: these texts use {len(used)} tokens, and with what those are "
                f"made of, all characters and special tokens that makes {len(kept)}; ask for as many"
            )
        return self.vocabulary.filled(kept, used, size)

    def smaller(self, kept: set[int]) -> tuple[Mapping[str, Any], Ids, Tokenizer]:
        """The settings with these ids only, (V,) the old id of each new one, and that as a Tokenizer."""
        settings, order = self.vocabulary.trimmed(kept)
        rows = np.array(order + sorted(self.fixed - set(order)), np.int64)  # rows without a token come last
        with TemporaryDirectory() as place:
            atomic.write_text(Path(place) / "tokenizer.json", compact(settings))
            tokenizer = Tokenizer(Path(place), max_tokens=NO_LIMIT, lower_case=self.manifest.lower_case)
        return settings, rows, tokenizer

    def coverage(
        self, tokenizer: Tokenizer, rows: Ids, group: str, texts: Sequence[str], *, held_out: bool = False
    ) -> Coverage:
        """Compare the tokens of texts before and after."""
        new = renumbering(rows)
        special = len(self.tokenizer.encode([""]).ids[0])
        pairs = list(zip(self.tokenizer.encode(texts).ids, tokenizer.encode(texts).ids, strict=True))
        return Coverage(
            group,
            held_out,
            texts=len(texts),
            tokens=sum(len(old) - special for old, _ in pairs),
            kept_tokens=sum(sum(token in new for token in old.tolist()) - special for old, _ in pairs),
            same_texts=sum(same(old, now, new) for old, now in pairs),
            extra_tokens=sum(len(now) - len(old) for old, now in pairs),
        )


def choose(
    folder: Path,
    *,
    languages: Sequence[str] = (),
    texts_file: Path | None = None,
    size: int | None = None,
) -> Pack:
    """Choose the tokens that stay, check them on all texts they were chosen by, and measure the others.

    languages   of `known_languages`: their calibration and evaluation texts are used
    texts_file  own texts: one a line, or JSON objects with a "text" in *.jsonl
    size        fill up to so many tokens, the most frequent first; None: what the texts need, no more

    Nothing is written. Errors: InputError for languages that are not known, no texts at all, a size that is
    too small; ModelError for a folder whose tokenizer cannot be trimmed.
    """
    builtin = builtin_texts()
    if unknown := [language for language in languages if language not in builtin]:
        raise InputError(f"unknown language {', '.join(unknown)}; known: {', '.join(sorted(builtin))}")
    groups = {language: builtin[language] for language in languages}
    if texts_file is not None:
        groups[OWN] = own_texts(texts_file)
    if not groups:
        raise InputError("neither languages nor texts are named, so no token would be chosen; name some")
    source = Source(folder)
    if size is not None and size >= source.size:
        raise InputError(f"a size of {size} leaves nothing to trim: the model has {source.size} tokens")

    given = [text for texts in groups.values() for text in texts]
    kept = source.pick(given, size)
    settings, rows, tokenizer = source.smaller(kept)
    checked = given + source.vocabulary.added
    old = source.encode(source.tokenizer, checked)
    check_same(checked, old, source.encode(tokenizer, checked), rows)

    coverage = held_out(source, groups, size) + tuple(
        source.coverage(tokenizer, rows, name, texts)
        for name, texts in sorted(builtin.items())
        if name not in groups
    )
    told = texts_file and {
        "source": texts_file.name,
        "sha256": hash_file(texts_file),
        "texts": len(groups[OWN]),
    }
    return Pack(
        folder=folder,
        languages=tuple(languages),
        own_texts=told or None,
        size=size,
        before=source.size,
        rows=rows,
        settings=settings,
        checked=len(given),
        probes=probes(old, source.manifest.max_tokens),
        coverage=coverage,
    )


def probes(rows: Sequence[Ids], max_tokens: int) -> tuple[Ids, ...]:
    """A few of these rows, short and long, no longer than the model takes."""
    ordered = sorted(rows, key=len)
    chosen = ordered[:: -(-len(ordered) // PROBES)]
    return tuple(ids[: min(max_tokens, PROBE_TOKENS)] for ids in chosen)


def held_out(source: Source, groups: Mapping[str, Sequence[str]], size: int | None) -> tuple[Coverage, ...]:
    """How every fifth text of each group fares with a vocabulary that was chosen by the rest alone."""
    unseen = {name: texts[HELD_OUT - 1 :: HELD_OUT] for name, texts in groups.items()}
    measured = {name: texts for name, texts in unseen.items() if texts}
    if not measured:
        return ()
    rest = [text for texts in groups.values() for i, text in enumerate(texts) if i % HELD_OUT != HELD_OUT - 1]
    _, rows, tokenizer = source.smaller(source.pick(rest, size))
    return tuple(
        source.coverage(tokenizer, rows, name, texts, held_out=True) for name, texts in measured.items()
    )


def known_languages() -> list[str]:
    """What `choose` knows texts of: languages by their ISO 639-1 code, programming languages by name."""
    return sorted(builtin_texts())


def builtin_texts() -> dict[str, list[str]]:
    """Calibration and evaluation texts by language."""
    found: dict[str, list[str]] = {}
    for text in [*calibration.stored("corpora"), *calibration.evaluation()]:
        stratum = text.id if text.stratum == "long" else text.stratum
        name = stratum.removeprefix("long-").removeprefix("code-")
        if name not in NO_LANGUAGE:
            found.setdefault(name, []).append(text.text)
    return found


def own_texts(path: Path) -> list[str]:
    """The different texts of a user's file. Errors: InputError where there are none, or it is not UTF-8."""
    found = [text for text in dict.fromkeys(calibration.read_texts(path)) if text.strip()]
    if not found:
        raise InputError(f"{path} holds no texts; put one on each line")
    return found


def special_ids(config: Mapping[str, Any]) -> set[int]:
    """Ids of tokens that a config.json names."""
    values = [value for key, value in config.items() if key.endswith("_token_id")]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return {item for item in flat if type(item) is int}


def renumbering(rows: Ids) -> dict[int, int]:
    """Old id -> new id."""
    return {token: at for at, token in enumerate(rows.tolist())}


def same(old: Ids, new: Ids, ids: Mapping[int, int]) -> bool:
    """Whether ids are the same but for their numbers."""
    return list(map(ids.get, old.tolist())) == list(new)


def check_same(texts: Sequence[str], old: Sequence[Ids], new: Sequence[Ids], rows: Ids) -> None:
    """Refuse a choice with which some text that it was made for has other tokens than before."""
    ids = renumbering(rows)
    changed = [i for i, pair in enumerate(zip(old, new, strict=True)) if not same(*pair, ids)]
    if changed:
        text = texts[changed[0] % len(texts)]
        raise ModelError(
            f"{len(changed)} of the texts would get other tokens though all of theirs are kept, the first is "
            f"{text[:60]!r}; leave them out"
        )


def check_target(folder: Path, target: Path) -> None:
    """Refuse a place for the result that is taken, or lies in the model's own folder."""
    try:
        if target.exists() and not target.is_dir():
            raise InputError(f"{target} is a file; name a new folder")
        if target.exists() and any(target.iterdir()):
            raise InputError(f"{target} is not empty; name a new folder")
        if not target.resolve().parent.is_dir():
            raise InputError(f"{target.parent} is no folder; make it first, or name another place")
        if target.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{target} lies in the folder of the model; name one outside of it")
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None


def find_variants(folder: Path, compute_types: Sequence[str] = ()) -> dict[str, Path]:
    """The IRs of a folder that are to be trimmed, by what they store; no names: all that are there."""
    found = ir.find_files(folder).variants
    if not found:
        raise ModelNotFoundError(f"{folder} has no IR to trim; run: edge-embed build {folder}")
    if missing := [name for name in compute_types if name not in found]:
        raise InputError(f"{folder} has no IR of {', '.join(missing)}; it has: {', '.join(found)}")
    return {name: path for name, path in found.items() if name in (compute_types or found)}


def write(pack: Pack, target: Path, *, compute_types: Sequence[str] = ()) -> Path:
    """Write the folder of a choice, whole or not at all; returns it.

    compute_types  which IRs to trim: float32, int8_weights, int8; none named: all that the folder has
    Errors: InputError for a target that is taken, ModelError for a graph whose token table is not found,
    OutputError when the disk is full.
    """
    check_target(pack.folder, target)
    variants = find_variants(pack.folder, compute_types)
    place = target.resolve()  # so that "." has a name
    temporary = atomic.sibling(place)
    try:
        try:
            temporary.mkdir()
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
        write_side_files(pack, temporary)
        for path in variants.values():
            write_graph(pack, path, temporary / path.relative_to(pack.folder))
        put_on_record(pack, variants, temporary)
        atomic.publish(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def write_side_files(pack: Pack, target: Path) -> None:
    """Copy what stands beside the weights, with new ids wherever there were old ones."""
    copy_side_files(pack.folder, target)
    for name in STALE:
        (target / name).unlink(missing_ok=True)
    new = renumbering(pack.rows)
    for path in target.rglob("config.json"):
        config = read_object(path).values
        if "vocab_size" in config:
            write_json(path, renumbered_config(config, new) | {"vocab_size": len(new)})
    path = target / "tokenizer_config.json"
    options = read_object(path).values
    if isinstance(decoder := options.get("added_tokens_decoder"), dict):
        kept = {str(new[int(token)]): value for token, value in decoder.items() if int(token) in new}
        write_json(path, {**options, "added_tokens_decoder": kept})
    atomic.write_text(target / "tokenizer.json", compact(pack.settings))
    if (target / "vocab.txt").exists():
        pieces = Vocabulary(target / "tokenizer.json").pieces
        atomic.write_text(target / "vocab.txt", "".join(f"{piece}\n" for piece in pieces))


def renumbered_config(config: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """A config.json with new ids. An id that no row had is left: it means as little as before."""

    def renumbered(value: Any) -> Any:
        if isinstance(value, list):
            return [renumbered(item) for item in value]
        return new.get(value, value) if type(value) is int else value

    return {key: renumbered(value) if key.endswith("_token_id") else value for key, value in config.items()}


def write_graph(pack: Pack, source: Path, target: Path) -> None:
    """Write one IR with the rows that stay, and compare what both files give."""
    import openvino

    model = ir.read(openvino.Core(), source)
    take_rows(model, source, pack.rows)
    ir.write(model, target)
    new = renumbering(pack.rows)
    before = token_vectors(source, pack.probes)
    after = token_vectors(target, [np.array([new[i] for i in ids.tolist()]) for ids in pack.probes])
    largest = max(float(np.abs(rows).max()) for rows in before)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True))
    if not apart <= TOLERANCE * largest:  # not `>`: NaN does not agree
        raise ModelError(
            f"{source} gives other vectors with fewer token rows, {apart:.1e} off: it uses ids for more than "
            "looking up rows; such a graph cannot be trimmed"
        )


def take_rows(model: "Model", source: Path, rows: Ids) -> None:
    """Replace the token table of a model, and scales and zero points that go row by row, by some rows (V,).

    Errors: ModelError where the table is not looked up plainly, is stored in another way or has fewer rows.
    """
    from openvino import opset13

    gather = head.lookup(head.find_inputs(model)["input_ids"])
    if gather is None:
        raise ModelError(f"{source} does not look up a token table plainly, so that none can be trimmed")
    size = head.static_size(gather.input_value(0), 0)
    if size is None or size <= int(rows.max()):
        raise ModelError(
            f"{source} has {size} token rows, but row {rows.max()} stays; the files do not match"
        )
    nodes = unpacking(gather.input_value(0).get_node())
    if odd := sorted({node.get_type_name() for node in nodes} - UNPACKING):
        raise ModelError(
            f"the token table of {source} goes through {', '.join(odd)}, which is not known here"
        )
    tables = [node for node in nodes if node.get_type_name() == "Constant"]
    for node in tables:
        shape, kind = node.get_output_shape(0), node.get_element_type().get_type_name()
        if len(shape) != 2 or shape[0] != size:
            continue  # one value for all rows
        if kind not in STORED:
            raise ModelError(f"the token table of {source} is stored as {kind}; known: {', '.join(STORED)}")
        table = opset13.constant(np.asarray(node.get_data())[rows], name=node.get_friendly_name())
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(table.output(0))
    model.validate_nodes_and_infer_types()


def unpacking(node: "Node") -> "list[Node]":
    """A node and all that it is computed from."""
    return [node, *(other for value in node.input_values() for other in unpacking(value.get_node()))]


def token_vectors(path: Path, rows: Iterable[Ids]) -> list[NDArray[np.float32]]:
    """The output of an IR for token rows (T_i,), one by one: (1, T_i, D) or (1, D) each."""
    import openvino

    core = openvino.Core()
    model = ir.read(core, path)
    ports = head.standardize(model)
    run = core.compile_model(head.token_vectors(model, ports), "CPU", PROPERTIES)
    return [np.array(run(head.feed(row[None], ports.inputs))[0]) for row in rows]


def put_on_record(pack: Pack, variants: Mapping[str, Path], target: Path) -> None:
    """Say in edge_embed.json what the folder holds and what it was made of."""
    parent = read_record(pack.folder)
    sources = [pack.folder / "tokenizer.json", *variants.values()]
    sources += [path.with_suffix(".bin") for path in variants.values()]
    entry = {
        "parent": {path.relative_to(pack.folder).as_posix(): hash_file(path) for path in sources},
        "languages": list(pack.languages),
        "texts": pack.own_texts,
        "size": pack.size,
        "vocabulary": {"before": pack.before, "after": len(pack.rows)},
        "coverage": [asdict(row) for row in pack.coverage],
        "made_by": __version__,
    }
    record = {key: parent[key] for key in INHERITED if key in parent}
    record[KEY] = [*record.get(KEY, []), entry]
    if made := {kind: how for kind, how in parent.get("quantized", {}).items() if kind in variants}:
        record["quantized"] = made  # how its numbers came about, which are the same
    present = (path for path in target.rglob("*") if path.is_file() and path.name != RECORD)
    record["files"] = file_entries(target, [path.relative_to(target).as_posix() for path in present])
    write_record(target, record)


def compact(settings: Mapping[str, Any]) -> str:
    """JSON without white space: merges of 64,000 pieces are megabytes with it."""
    return json.dumps(settings, ensure_ascii=False, separators=(",", ":"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    atomic.write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
