"""store and record: from a reference to a folder, in the layouts that huggingface_hub leaves."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_embed import cards, store
from edge_embed.cli import main
from edge_embed.errors import IntegrityError, ModelError, ModelNotFoundError
from edge_embed.record import RECORD, file_entries, hash_file, read_record, write_record
from tests.hub_server import HubServer
from tests.test_pull import child_environment

MAIN = "granite-embedding-311m-multilingual-r2"
HUB_ID = f"ibm-granite/{MAIN}"
COMMIT = "a" * 40
FILES = {
    "config.json": b"{}",
    "openvino/openvino_model.xml": b"<net/>",
    "openvino/openvino_model.bin": b"weights",
}


@pytest.fixture(autouse=True)
def _empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing pulled, nothing cached, and the current folder holds nothing of that name."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("EDGE_EMBED_HOME", str(tmp_path / "edge-embed"))
    (tmp_path / "user").mkdir()
    monkeypatch.chdir(tmp_path / "user")


def write_files(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def cache_repository(
    cache: Path, hub_id: str = HUB_ID, *, links: int = 1, ref: str | None = COMMIT, commit: str = COMMIT
) -> Path:
    """A repository in a hub cache; returns the snapshot. links: symlinks from a snapshot's file to its bytes.

    0 is what systems without symlinks get, 1 the layout up to huggingface_hub 1.31, 2 the shared blobs since.
    """
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for path, data in FILES.items():
        file = snapshot / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if links == 0:
            file.write_bytes(data)
            continue
        blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        file.symlink_to(Path(*[".."] * len(file.relative_to(repository).parts[:-1]), "blobs", blob.name))
        if links == 1:
            blob.write_bytes(data)
        else:
            shared = cache / "blobs" / "4f" / f"xet-{path.replace('/', '-')}"
            shared.parent.mkdir(parents=True, exist_ok=True)
            shared.write_bytes(data)
            blob.symlink_to(Path("..", "..", "blobs", "4f", shared.name))
    if ref:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(ref)
    return snapshot


def default_cache(tmp_path: Path) -> Path:
    return tmp_path / "user" / ".cache" / "huggingface" / "hub"


# --- resolve


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "model")
    assert store.resolve(folder) == folder
    assert store.resolve(str(folder)) == folder


def test_a_relative_folder_comes_before_every_name(tmp_path: Path) -> None:
    write_files(store.models_home() / MAIN)
    write_files(tmp_path / "user" / MAIN)
    assert store.resolve(MAIN) == Path(MAIN)


def test_a_folder_that_only_shares_the_name_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "user" / MAIN).mkdir()
    pulled = write_files(store.models_home() / MAIN)
    assert store.resolve(MAIN) == pulled


@pytest.mark.parametrize("ref", [MAIN, HUB_ID])
def test_a_pulled_model_has_its_name_and_its_hub_id(ref: str, tmp_path: Path) -> None:
    pulled = write_files(store.models_home() / MAIN)
    cache_repository(default_cache(tmp_path))
    assert store.resolve(ref) == pulled


@pytest.mark.parametrize("ref", [MAIN, HUB_ID])
@pytest.mark.parametrize("links", [0, 1, 2])
def test_the_hub_cache_gives_the_snapshot_with_its_links_alone(tmp_path: Path, links: int, ref: str) -> None:
    snapshot = cache_repository(default_cache(tmp_path), links=links)
    found = store.resolve(ref)
    assert found == snapshot
    assert (found / "openvino/openvino_model.xml").with_suffix(".bin").read_bytes() == b"weights"


def test_the_hub_cache_is_read_as_huggingface_hub_writes_it(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add("org/other", COMMIT, FILES)
        program = "from huggingface_hub import snapshot_download; print(snapshot_download('org/other'))"
        environment = child_environment(server.url, tmp_path / "user" / ".cache")
        written = subprocess.run(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
    found = store.resolve("org/other")
    assert str(found) == written
    assert (found / "openvino/openvino_model.bin").is_symlink()
    assert (found / "openvino/openvino_model.bin").read_bytes() == b"weights"


def test_a_path_object_is_never_a_name(tmp_path: Path) -> None:
    write_files(store.models_home() / MAIN)
    with pytest.raises(ModelNotFoundError):
        store.resolve(Path(MAIN))


def test_a_newer_main_is_the_one_that_counts(tmp_path: Path) -> None:
    cache_repository(default_cache(tmp_path))
    newer = cache_repository(default_cache(tmp_path), commit="b" * 40, ref="b" * 40)
    assert store.resolve(HUB_ID) == newer


def test_a_download_by_commit_leaves_no_ref_and_is_found(tmp_path: Path) -> None:
    snapshot = cache_repository(default_cache(tmp_path), ref=None)
    assert store.resolve(HUB_ID) == snapshot


def test_two_snapshots_without_a_ref_are_not_guessed_between(tmp_path: Path) -> None:
    cache_repository(default_cache(tmp_path), ref=None)
    cache_repository(default_cache(tmp_path), commit="b" * 40, ref=None)
    with pytest.raises(ModelNotFoundError, match=r"holds 2 snapshots and no refs/main; name one by its path"):
        store.resolve(HUB_ID)


def test_a_ref_to_a_snapshot_that_is_gone_says_how_to_repair_it(tmp_path: Path) -> None:
    cache_repository(default_cache(tmp_path), ref="c" * 40)
    with pytest.raises(
        ModelNotFoundError, match=f"points to {'c' * 40}, which is not in the cache; run: edge-embed"
    ):
        store.resolve(HUB_ID)


@pytest.mark.parametrize("links", [1, 2])
def test_a_link_to_a_blob_that_is_gone_is_named(tmp_path: Path, links: int) -> None:
    snapshot = cache_repository(default_cache(tmp_path), links=links)
    (snapshot / "openvino/openvino_model.bin").resolve().unlink()
    with pytest.raises(
        ModelNotFoundError,
        match=r"openvino_model\.bin points to a blob that is gone \(1 do\); run: edge-embed",
    ):
        store.resolve(HUB_ID)


@pytest.mark.parametrize("missing", ["config.json", "openvino/openvino_model.xml"])
def test_a_partial_download_in_the_cache_is_not_a_model(tmp_path: Path, missing: str) -> None:
    (cache_repository(default_cache(tmp_path)) / missing).unlink()
    with pytest.raises(ModelNotFoundError, match=f"is only part of {HUB_ID}.*edge-embed pull {MAIN}"):
        store.resolve(HUB_ID)


def test_the_variables_of_the_hub_cache_rank_as_in_huggingface_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.hub_cache() == default_cache(tmp_path)
    ranked = [
        ("XDG_CACHE_HOME", tmp_path / "xdg", tmp_path / "xdg" / "huggingface" / "hub"),
        ("HF_HOME", tmp_path / "hf", tmp_path / "hf" / "hub"),
        ("HUGGINGFACE_HUB_CACHE", tmp_path / "legacy", tmp_path / "legacy"),
        ("HF_HUB_CACHE", tmp_path / "cache", tmp_path / "cache"),
    ]
    for name, value, expected in ranked:  # each outranks all that came before it
        snapshot = cache_repository(expected)
        monkeypatch.setenv(name, str(value))
        assert store.hub_cache() == expected
        assert store.resolve(HUB_ID) == snapshot


def test_the_hub_cache_is_where_huggingface_hub_puts_it(tmp_path: Path) -> None:
    # The official answer, for each setting of its own variables.
    program = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    settings = [
        {},
        {"HF_HOME": "~/hf"},
        {"HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg"},
        {"HUGGINGFACE_HUB_CACHE": "$HOME/legacy", "HF_HOME": "/hf"},
        {"HF_HUB_CACHE": "/cache", "HUGGINGFACE_HUB_CACHE": "/legacy"},
    ]
    for setting in settings:
        environment = {"HOME": str(tmp_path / "user"), "PATH": "/usr/bin:/bin"} | setting
        official = subprocess.run(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in setting.items():
                patch.setenv(name, value)
            assert str(store.hub_cache()) == official


def test_home_is_chosen_by_variable_then_by_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.home() == tmp_path / "edge-embed"
    monkeypatch.setenv("EDGE_EMBED_HOME", "~/mine")
    assert store.home() == tmp_path / "user" / "mine"
    monkeypatch.setenv("EDGE_EMBED_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.home() == tmp_path / "xdg" / "edge-embed"
    monkeypatch.delenv("XDG_CACHE_HOME")
    user = tmp_path / "user"
    monkeypatch.setattr(sys, "platform", "linux")
    assert store.home() == user / ".cache" / "edge-embed"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert store.home() == user / "Library" / "Caches" / "edge-embed"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    assert store.home() == tmp_path / "Local" / "edge-embed"


def test_a_known_model_that_is_not_here_says_how_to_pull_it() -> None:
    for ref in (MAIN, HUB_ID):
        with pytest.raises(ModelNotFoundError) as caught:
            store.resolve(ref)
        assert str(caught.value) == f"{ref} is not on this machine; run: edge-embed pull {MAIN}"


@pytest.mark.parametrize("ref", ["granite", "BAAI/bge-m3"])
def test_an_unknown_name_lists_the_known_ones(ref: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        store.resolve(ref)
    assert str(caught.value).startswith(f"{ref} is neither a folder nor")
    assert all(card.name in str(caught.value) for card in cards.cards())


def test_a_reference_that_is_not_a_model_folder_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for name, complaint in [
        ("empty", "is not a model folder, or only half copied: it holds no config.json"),
        ("file", "is a file; name the model folder around it"),
        ("link", "is a link to nowhere, which does not exist"),
    ]:
        with pytest.raises(ModelNotFoundError) as caught:
            store.resolve(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name} {complaint}"


@pytest.mark.parametrize("ref", ["x" * 300, f"org/{'x' * 300}", "/".join(["x" * 200] * 30)])
def test_an_endless_name_is_one_short_line(ref: str) -> None:
    for reference in (ref, Path(ref)):
        with pytest.raises(ModelNotFoundError) as caught:
            store.resolve(reference)
        line = str(caught.value)
        assert line.startswith(f"{ref[:60]}... ({len(ref):,} characters) ")
        assert ref not in line
        assert "\n" not in line


def test_a_name_is_refused_while_its_self_check_stands_failed(tmp_path: Path) -> None:
    folder = recorded(store.models_home() / MAIN)
    outcome = {"passed": False, "difference": 0.2, "tolerance": 0.005}
    write_record(folder, read_record(folder) | {"self_check": outcome})
    for ref in (MAIN, HUB_ID):
        with pytest.raises(
            ModelError, match=f"{MAIN} failed its self-check.* pull --force {MAIN};.*{folder}$"
        ):
            store.resolve(ref)
    assert store.resolve(folder) == folder
    assert store.resolve(str(folder)) == folder
    write_record(folder, read_record(folder) | {"self_check": outcome | {"passed": True}})
    assert store.resolve(MAIN) == folder


# --- record and verify


def recorded(folder: Path) -> Path:
    write_files(folder)
    write_record(folder, {"name": "tiny", "files": file_entries(folder, FILES)})
    return folder


def test_a_record_is_read_back_and_keeps_keys_of_others(tmp_path: Path) -> None:
    write_record(tmp_path, {"name": "tiny", "recipe": {"alpha": 0.5}, "files": {}})
    assert read_record(tmp_path) == {"schema": 1, "name": "tiny", "recipe": {"alpha": 0.5}, "files": {}}


def test_a_folder_without_a_record_has_an_empty_one(tmp_path: Path) -> None:
    assert read_record(tmp_path) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"files": {}}',
        '{"schema": 2}',
        '{"schema": 1, "files": {"a": {"sha256": 1}}}',
        '{"schema": 1, "source": "hub"}',
    ],
)
def test_a_record_that_is_not_ours_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(IntegrityError, match=str(tmp_path / RECORD)):
        read_record(tmp_path)


def test_a_file_is_hashed_in_pieces_as_hashlib_does_it_whole(tmp_path: Path) -> None:
    data = bytes(range(251)) * 10_000  # 2.5 MB, not a multiple of a piece
    (tmp_path / "file").write_bytes(data)
    heard: list[int] = []
    assert hash_file(tmp_path / "file", heard.append) == hashlib.sha256(data).hexdigest()
    assert sum(heard) == len(data)
    assert len(heard) == 3


def test_verify_tells_whole_missing_and_changed_files_apart(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "tiny")
    assert store.verify(folder).wrong == ()
    (folder / "config.json").unlink()
    (folder / "openvino/openvino_model.bin").write_bytes(b"WEIGHTS")  # of the same length
    report = store.verify(folder)
    assert [(file.path, file.state) for file in report.files] == [
        ("config.json", "missing"),
        ("openvino/openvino_model.bin", "changed"),
        ("openvino/openvino_model.xml", "ok"),
    ]
    missing, changed = report.wrong
    assert (missing.sha256, missing.bytes, missing.expected_bytes) == (None, None, 2)
    assert changed.expected_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert changed.sha256 == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_verify_names_an_ir_that_nobody_recorded(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "tiny")
    (folder / "openvino/openvino_model_int8_weights.xml").write_text("<net/>")
    (folder / "notes.txt").write_text("not an IR")
    report = store.verify(folder)
    assert report.unrecorded == ("openvino/openvino_model_int8_weights.xml",)
    assert report.wrong == ()


def test_verify_reports_the_recorded_self_check(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "tiny")
    assert store.verify(folder).self_check is None
    outcome = {"passed": True, "difference": 1e-5, "tolerance": 0.005}
    write_record(folder, read_record(folder) | {"self_check": outcome})
    assert store.verify(folder).self_check == outcome


def test_verify_follows_the_folder_when_it_is_moved(tmp_path: Path) -> None:
    recorded(tmp_path / "tiny").rename(tmp_path / "moved")
    assert store.verify(tmp_path / "moved").wrong == ()


def test_verify_without_a_record_says_that_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"has no edge_embed\.json"):
        store.verify(write_files(tmp_path / "tiny"))


def test_the_verify_command_prints_a_table_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded(tmp_path / "tiny")
    assert main(["verify", str(folder), "--json"]) == 0
    *table, summary = capsys.readouterr().out.splitlines()
    assert table[0] == "ok      config.json"
    assert len(table) == 3
    assert json.loads(summary)["ok"] is True


def test_the_verify_command_exits_2_with_one_line_about_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded(tmp_path / "tiny")
    (folder / "config.json").write_bytes(b"{ }")
    assert main(["verify", str(folder), "--json"]) == 2
    out, err = capsys.readouterr()
    *table, summary = out.splitlines()
    assert table[0] == "changed config.json"
    assert json.loads(summary)["ok"] is False
    [line] = err.splitlines()
    assert line.startswith(
        f"edge-embed: 1 of 3 files in {folder} are not as recorded: config.json has 3 bytes"
    )
    assert hash_file(folder / "config.json") in line
