"""What importing costs and shows: no heavy library, and three public names."""

import subprocess
import sys
from types import ModuleType

import pytest

import edge_embed

HEAVY = {
    "huggingface_hub",
    "nncf",
    "openvino",
    "openvino_genai",
    "openvino_tokenizers",
    "optimum",
    "pandas",
    "pyarrow",
    "torch",
    "transformers",
}


def loaded_after(statements: str) -> set[str]:
    """Names of the top-level modules that a fresh process has loaded after running `statements`."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    child = subprocess.run(
        [sys.executable, "-c", f"{statements}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(child.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "statements",
    [
        "import edge_embed",
        "from edge_embed import Embedder, EdgeEmbedError",
        "import edge_embed.cli; edge_embed.cli.main",
        "from edge_embed.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["package", "Embedder", "cli", "help"],
)
def test_no_heavy_library_is_imported_by(statements: str) -> None:
    loaded = loaded_after(statements)
    assert "edge_embed" in loaded
    assert loaded & HEAVY == set()


def test_the_child_process_would_see_a_heavy_library() -> None:
    assert loaded_after("import openvino") & HEAVY == {"openvino"}


def test_three_names_are_public() -> None:
    shown = {
        name
        for name, value in vars(edge_embed).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert sorted(edge_embed.__all__) == ["EdgeEmbedError", "Embedder", "__version__"]
    assert shown | {"__version__"} == set(edge_embed.__all__)
