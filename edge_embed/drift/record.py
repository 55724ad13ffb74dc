"""Reference vectors and what they are of: making them with PyTorch, reference.npz, and whether they fit.

A reference holds hashes of texts, not texts, so it can be kept and passed on where those cannot. Reading and
checking one needs no torch. Knows no candidate's vectors and no metric.

    reference.npz    an uncompressed zip of .npy, without pickles: equal references have equal bytes
      vectors        (N, D) float32, not truncated; unit rows where the model has a Normalize module
      ids            (N,) str, distinct
      roles          (N,) str, query or document
      slices         (N,) str
      text_sha256    (N,) 64 hex digits: of the text in UTF-8, without its prompt
      token_sha256   (N,) 64 hex digits: of the token ids as little-endian int64, special tokens included
      about          one str, JSON: schema, source, weights_sha256, commit, versions, settings
"""

import hashlib
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import __version__, atomic, calibration
from edge_embed.calibration import JSONL_SUFFIXES, TEXT_KEY, Text
from edge_embed.embedder import DOCUMENT_PROMPTS
from edge_embed.errors import InputError, MismatchError, ModelError
from edge_embed.manifest import Manifest, read_manifest
from edge_embed.record import hash_file, read_record
from edge_embed.reference import ROLES, TorchModel, versions
from edge_embed.tokenization import Tokenizer

SCHEMA = 1
EVALUATION = "evaluation"  # instead of a file of texts
AGAIN = "record the reference again: edge-embed drift record"

WEIGHTS = "model.safetensors"
SHARDS = re.compile(r"model-\d+-of-\d+\.safetensors")
HEX = re.compile(r"[0-9a-f]{64}")

# In edge_embed.json: what made each INT8 file, and of its calibration the first digits of each text's sha256.
QUANTIZED, CALIBRATION, CALIBRATED, DIGITS = "quantized", "calibration", "text_sha256", 16

SURROGATE = re.compile(r"[\ud800-\udfff]")

# Keys of a row of a user's JSONL beside the text, and what takes the place of one that is not there.
SLICE = "all"
KINDS = {"query": "query", "document": "passage"}  # role -> what calibration/ calls such a text


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Vectors of one checkpoint in PyTorch float32, and all that says what they are of. Rows line up."""

    vectors: NDArray[np.float32]  # (N, D)
    ids: tuple[str, ...]
    roles: tuple[str, ...]  # of ROLES
    slices: tuple[str, ...]
    text_sha256: tuple[str, ...]
    token_sha256: tuple[str, ...]
    source: str  # "evaluation", or the name of the file that the texts came from
    weights_sha256: str  # of model.safetensors; of the list of its shards where there are several
    commit: str | None  # of the hub that the weights were pulled from
    versions: Mapping[str, str]
    settings: Mapping[str, Any]


# ---- texts


def read_texts(source: str) -> list[Text]:
    """The texts of calibration/evaluation, or of a user's file: one a line, or JSON objects in *.jsonl.

    A row of JSONL has a "text" and may have an "id" (default: the line's number, from 0), a "role" (query or
    document, the default), a "slice" (default: all) and a "topic", by which queries find what answers them.
    Blank lines are left out.
    Errors: InputError with the line for what cannot be read, an id that occurs twice or a file without texts.
    """
    if source == EVALUATION:
        return calibration.evaluation()
    path = Path(source)
    parse = from_json if path.suffix in JSONL_SUFFIXES else from_line
    lines = enumerate(calibration.read_lines(path))
    texts = [parse(path, number, line) for number, line in lines if line.strip()]
    texts = [text for text in texts if text.text.strip()]
    if not texts:
        raise InputError(f"{path} holds no texts; give one a line")
    seen: set[str] = set()
    for text in texts:
        if text.id in seen:
            raise InputError(f"{path}: the id {text.id!r} occurs twice; give each text its own")
        seen.add(text.id)
    return texts


def from_line(path: Path, number: int, line: str) -> Text:
    """A line of a plain file; `number` counts from 0."""
    return Text(str(number), KINDS["document"], str(number), line, SLICE)


def from_json(path: Path, number: int, line: str) -> Text:
    """A line of a JSONL file."""
    where = f"{path}, line {number + 1}"
    row = calibration.json_row(path, number + 1, line)
    values: dict[str, Any] = {"id": str(number), "role": "document", "slice": SLICE} | row
    if isinstance(values["id"], int) and not isinstance(values["id"], bool):
        values["id"] = str(values["id"])
    # A topic of its own, where none is given, so that no text counts as the answer to another.
    values = {"topic": values["id"]} | values
    for key in ("id", "role", "slice", "topic", TEXT_KEY):
        if not isinstance(values[key], str):
            raise InputError(f"{where}: {key} is {json.dumps(values[key])[:40]}, not a string")
        if SURROGATE.search(values[key]):
            raise InputError(f"{where}: {key} has half a surrogate pair, which is no text; repair the file")
    if values["role"] not in ROLES:
        raise InputError(f"{where}: role is {values['role']!r}; known: {', '.join(ROLES)}")
    return Text(values["id"], KINDS[values["role"]], values["topic"], values[TEXT_KEY], values["slice"])


def role_of(text: Text) -> str:
    """How a text is embedded: as a query, or as a document."""
    return "query" if text.kind == "query" else "document"


# ---- making one


def record(
    folder: Path, texts: Sequence[Text], source: str, *, threads: int = 1, show_progress_bar: bool = False
) -> tuple[Reference, int]:
    """Embed texts with the checkpoint of a folder in PyTorch; the reference, and how many texts were cut.

    source   what `read_texts` was given; of a file only its name is kept
    threads  of torch; TorchModel says what they change
    Errors: those of TorchModel; MismatchError, before the long work, when our tokenizer gives other tokens.
    """
    manifest = read_manifest(folder)
    ours = Tokenizer(folder, max_tokens=manifest.max_tokens, lower_case=manifest.lower_case)
    weights = weights_sha256(folder)
    if weights is None:
        raise ModelError(
            f"{folder} has neither {WEIGHTS} nor shards of it, which PyTorch needs; "
            "for a model of models/: edge-embed pull NAME --checkpoint"
        )
    model = TorchModel(folder, threads=threads)
    roles = [role_of(text) for text in texts]
    token_ids, cut = model.tokenize([text.text for text in texts], roles)
    hashes = [hash_tokens(ids) for ids in token_ids]
    check_tokens([text.id for text in texts], hashes, token_hashes(manifest, texts, ours))
    return Reference(
        vectors=model.embed(token_ids, show_progress_bar=show_progress_bar),
        ids=tuple(text.id for text in texts),
        roles=tuple(roles),
        slices=tuple(text.stratum for text in texts),
        text_sha256=tuple(hash_text(text.text) for text in texts),
        token_sha256=tuple(hashes),
        source=source if source == EVALUATION else Path(source).name,
        weights_sha256=weights,
        commit=commit_of(folder) if weights == recorded_weights(folder) else None,
        versions={"edge_embed": __version__, **versions()},
        settings=model.settings(),
    ), cut


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def hash_tokens(ids: NDArray[np.int64]) -> str:
    return hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()


def token_hashes(manifest: Manifest, texts: Sequence[Text], tokenizer: Tokenizer) -> list[str]:
    """`hash_tokens` of the `token_rows` of texts."""
    return [hash_tokens(ids) for ids in token_rows(manifest, texts, tokenizer)]


def token_rows(manifest: Manifest, texts: Sequence[Text], tokenizer: Tokenizer) -> list[NDArray[np.int64]]:
    """What our tokenizer makes of each text (T_i,) with the prompt that Embedder gives its role."""
    rows: dict[int, NDArray[np.int64]] = {}
    for role, names in {"query": ("query",), "document": DOCUMENT_PROMPTS}.items():
        places = [i for i, text in enumerate(texts) if role_of(text) == role]
        found = tokenizer.encode([texts[i].text for i in places], prompt_of(manifest, names)).ids
        rows |= dict(zip(places, found, strict=True))
    return [rows[i] for i in range(len(texts))]


def prompt_of(manifest: Manifest, names: Sequence[str] = ()) -> str:
    """The first prompt of these names that the model has, else its default one, as Embedder takes it."""
    name = next((name for name in names if name in manifest.prompts), manifest.default_prompt_name)
    return "" if name is None else manifest.prompts[name]


def weights_sha256(folder: Path) -> str | None:
    """One hash for a checkpoint's weights: of the files in a folder, else as its record has it, else None."""
    if (folder / WEIGHTS).exists():
        return hash_file(folder / WEIGHTS)
    shards = sorted(path for path in folder.glob("*.safetensors") if SHARDS.fullmatch(path.name))
    return hash_of_shards({path.name: hash_file(path) for path in shards}) or recorded_weights(folder)


def recorded_weights(folder: Path) -> str | None:
    """The same of the weights that a folder was pulled with or built from, wherever they are now."""
    kept = read_record(folder)
    files = {name: entry["sha256"] for name, entry in kept.get("files", {}).items()}
    known = kept.get("source", {}).get("sha256", {}) | files
    return known.get(WEIGHTS) or hash_of_shards({n: h for n, h in known.items() if SHARDS.fullmatch(n)})


def commit_of(folder: Path) -> str | None:
    """The hub's commit that a pulled folder came from; None for other folders."""
    commit = read_record(folder).get("source", {}).get("revision")
    return commit if isinstance(commit, str) else None


def hash_of_shards(hashes: Mapping[str, str]) -> str | None:
    """sha256 of the lines that sha256sum would print for the shards; None where there are none."""
    lines = [f"{hashes[name]}  {name}\n" for name in sorted(hashes)]
    return hash_text("".join(lines)) if lines else None


# ---- whether it fits


def select(reference: Reference, ids: Collection[str]) -> Reference:
    """The rows with these ids, in the order of the reference, for a candidate that embeds some texts only.

    Errors: MismatchError naming an id that the reference does not have.
    """
    wanted = set(ids)
    if lost := sorted(wanted - set(reference.ids)):
        raise MismatchError(f"the reference lacks {len(lost)} texts, first {lost[0]!r}; {AGAIN}")
    rows = [row for row, i in enumerate(reference.ids) if i in wanted]
    per_row: dict[str, Any] = {
        name: tuple(getattr(reference, name)[row] for row in rows)
        for name in ("ids", "roles", "slices", "text_sha256", "token_sha256")
    }
    return replace(reference, vectors=reference.vectors[rows], **per_row)


def check(reference: Reference, folder: Path, texts: Sequence[Text], tokenizer: Tokenizer) -> None:
    """Refuse a reference by which a candidate cannot be judged.

    folder     of the candidate
    texts      that the candidate embeds, as `read_texts` gives them
    tokenizer  of the candidate, with the limit that it runs with
    Errors: MismatchError for another model's reference, for texts that were edited or calibrated on, and for
    other tokens.
    """
    check_weights(reference, folder)
    check_apart(reference, folder)
    if len(texts) != len(reference.ids):
        raise MismatchError(
            f"the reference has {len(reference.ids)} texts, but {len(texts)} are given; {AGAIN}"
        )
    recorded = zip(reference.ids, reference.roles, reference.slices, reference.text_sha256, strict=True)
    for row, (was, text) in enumerate(zip(recorded, texts, strict=True)):
        now = (text.id, role_of(text), text.stratum, hash_text(text.text))
        if was != now:
            what = next(
                n for n, a, b in zip(("id", "role", "slice", "text"), was, now, strict=True) if a != b
            )
            raise MismatchError(
                f"text {row} ({text.id!r}) has another {what} than when the reference was recorded; {AGAIN}"
            )
    check_tokens(reference.ids, reference.token_sha256, token_hashes(read_manifest(folder), texts, tokenizer))


def check_weights(reference: Reference, folder: Path) -> None:
    """Refuse the reference of another checkpoint; a pulled folder without weights is known by its commit."""
    weights = weights_sha256(folder)
    if weights is None and (reference.commit is None or commit_of(folder) != reference.commit):
        raise MismatchError(
            f"{folder} has neither {WEIGHTS} nor a record of it, so nobody can tell whether the reference is "
            "of this model; put the checkpoint there: edge-embed pull NAME --checkpoint"
        )
    if weights not in (None, reference.weights_sha256):
        raise MismatchError(
            f"{folder} has weights with sha256 {weights}, the reference is of {reference.weights_sha256}; "
            f"{AGAIN}"
        )


def check_apart(reference: Reference, folder: Path) -> None:
    """Refuse texts that an INT8 file of a folder was calibrated on: ranges were fitted to them."""
    hashes = zip(reference.ids, reference.text_sha256, strict=True)
    known = {sha256[:DIGITS]: i for i, sha256 in hashes}
    for variant, entry in read_record(folder).get(QUANTIZED, {}).items():
        seen = set(entry.get(CALIBRATION, {}).get(CALIBRATED, ()))
        same = [i for digits, i in known.items() if digits in seen]
        if same:
            raise MismatchError(
                f"{len(same)} texts of the reference, first {same[0]!r}, are among those that {variant} of "
                f"{folder} was calibrated on; record a reference of other texts"
            )


def check_tokens(ids: Sequence[str], theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Refuse texts whose tokens differ: that is no drift of a model."""
    different = [i for i, a, b in zip(ids, theirs, ours, strict=True) if a != b]
    if different:
        raise MismatchError(
            f"{len(different)} of {len(ids)} texts have other tokens here than in PyTorch, first "
            f"{different[0]!r}; tokenizer.json, a prompt or the limit of tokens is not the same on both sides"
        )


# ---- reference.npz


def write(reference: Reference, target: Path) -> None:
    """Write reference.npz, whole or not at all.

    Errors: OutputError when the disk is full or the folder cannot be written.
    """
    about = {
        "schema": SCHEMA,
        "source": reference.source,
        "weights_sha256": reference.weights_sha256,
        "commit": reference.commit,
        "versions": dict(reference.versions),
        "settings": dict(reference.settings),
    }
    with atomic.writing(target) as file:
        np.savez(
            file,
            vectors=reference.vectors.astype("<f4", copy=False),
            ids=np.array(reference.ids, "<U"),
            roles=np.array(reference.roles, "<U"),
            slices=np.array(reference.slices, "<U"),
            text_sha256=np.array(reference.text_sha256, "S64"),
            token_sha256=np.array(reference.token_sha256, "S64"),
            about=np.array(json.dumps(about, ensure_ascii=False, sort_keys=True), "<U"),
        )


def read(path: Path) -> Reference:
    """Read reference.npz.

    Errors: InputError for a file that is missing, cut, of another schema, or whose rows do not line up.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        schema = about["schema"]
    except Exception as error:  # a damaged zip raises errors of zipfile, zlib, struct, numpy and json
        raise InputError(f"{path} is no reference, or was cut: {error}; {AGAIN}") from None
    if schema != SCHEMA:
        raise InputError(f"{path} has schema {schema!r}, this version reads {SCHEMA}; {AGAIN}")
    if wrong := defect(arrays, about):
        raise InputError(f"{path} is not as this version writes it: {wrong}; {AGAIN}")
    hashes = {name: tuple(arrays[name].astype("U64").tolist()) for name in ("text_sha256", "token_sha256")}
    return Reference(
        vectors=arrays["vectors"],
        ids=tuple(arrays["ids"].tolist()),
        roles=tuple(arrays["roles"].tolist()),
        slices=tuple(arrays["slices"].tolist()),
        source=about["source"],
        weights_sha256=about["weights_sha256"],
        commit=about.get("commit"),
        versions=about["versions"],
        settings=about["settings"],
        **hashes,
    )


def defect(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> str | None:
    """What is wrong with the arrays of a file, or None."""
    kinds = {"vectors": "f", "ids": "U", "roles": "U", "slices": "U", "text_sha256": "S", "token_sha256": "S"}
    if arrays.keys() != kinds.keys():
        return f"it holds {', '.join(arrays)}, not {', '.join(kinds)}"
    vectors = arrays["vectors"]
    if vectors.dtype != np.float32 or vectors.ndim != 2 or 0 in vectors.shape:
        return f"vectors are {vectors.dtype} of shape {vectors.shape}, not float32 (N, D)"
    for name, kind in kinds.items():
        array = arrays[name]
        if array.dtype.kind != kind:
            return f"{name} are {array.dtype}"
        if name != "vectors" and array.shape != vectors.shape[:1]:
            return f"{name} have the shape {array.shape} for {len(vectors)} vectors"
    if not np.isfinite(vectors).all():
        return "vectors are not finite"
    if len(set(arrays["ids"].tolist())) != len(vectors):
        return "an id occurs twice"
    if unknown := set(arrays["roles"].tolist()) - set(ROLES):
        return f"the role {min(unknown)!r} is not known"
    if not all(
        is_hash(h.decode("latin-1")) for n in ("text_sha256", "token_sha256") for h in arrays[n].tolist()
    ):
        return "a hash is not 64 hex digits"
    return about_defect(about)


def about_defect(about: Mapping[str, Any]) -> str | None:
    """What is wrong with the JSON of a file, or None."""
    if not isinstance(about.get("source"), str) or not is_hash(about.get("weights_sha256")):
        return "source or weights_sha256 is missing"
    if not isinstance(about.get("commit"), str | None):
        return "commit is no text"
    if not all(isinstance(about.get(key), dict) for key in ("versions", "settings")):
        return "versions or settings is missing"
    return None


def is_hash(value: object) -> bool:
    return isinstance(value, str) and HEX.fullmatch(value) is not None
