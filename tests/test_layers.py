"""The direction of imports: a lower layer never knows a higher one, and libraries stay in their rooms."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edge_embed"
PUBLIC = {"edge_embed.EdgeEmbedError", "edge_embed.Embedder", "edge_embed.__version__", "edge_embed.cli.main"}

# Every module has its room here, from the ground up; a package speaks for the modules in it. A new module
# fails the test until it is given a room. A room may import all lower layers, and itself.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "resources"}),
    frozenset(
        {
            "atomic",
            "batching",
            "calibration",
            "cards",
            "checkpoint",
            "child",
            "hardware",
            "journal",
            "locking",
            "manifest",
            "record",
            "vectors",
        }
    ),
    frozenset(
        {
            "boundaries",
            "canary",
            "fetch",
            "graph",
            "ir",
            "output_ranges",
            "plan",
            "prepare",
            "profile",
            "readers",
            "runtime",
            "shards",
            "store",
            "tokenization",
            "vocabulary",
        }
    ),
    frozenset({"batch", "build", "embedder"}),
    frozenset(
        {
            "drift",
            "drift.metrics",
            "integrations",
            "quantize",
            "reference",
            "speed",
            "sweep",
            "tokenizer_ir",
            "trim",
            "tune",
            "via_optimum",
        }
    ),
    frozenset({"cli"}),
    frozenset({"edge_embed", "__main__"}),
)

# Neighbours in one layer: importer -> imported.
NEIGHBOURS = frozenset(
    {
        ("batch", "build"),
        ("batch", "embedder"),
        ("canary", "graph"),
        ("canary", "plan"),
        ("canary", "runtime"),
        ("drift", "drift.metrics"),
        ("drift", "reference"),
        ("journal", "atomic"),
        ("plan", "ir"),
        ("plan", "profile"),
        ("prepare", "graph"),
        ("prepare", "plan"),
        ("prepare", "runtime"),
        ("quantize", "drift"),
        ("readers", "shards"),
        ("record", "atomic"),
        ("resources", "errors"),
        ("runtime", "ir"),
        ("runtime", "plan"),
        ("speed", "drift"),
        ("store", "fetch"),
        ("sweep", "drift"),
        ("sweep", "drift.metrics"),
        ("sweep", "quantize"),
        ("tokenization", "boundaries"),
        ("tune", "drift"),
        ("vocabulary", "boundaries"),
    }
)

# Rooms that know less than their layer would allow: room -> all of ours that it may import.
STRICTER = {
    "boundaries": frozenset[str](),
    "hardware": frozenset[str](),
    "graph": frozenset({"checkpoint", "errors"}),
    "drift.metrics": frozenset({"errors"}),
    "reference": frozenset({"errors"}),
    "edge_embed": frozenset({"embedder", "errors"}),
    "__main__": frozenset({"cli"}),
}

# Libraries that only some rooms may import. Layer 0 has NumPy and nothing else, whatever stands here.
HOMES = {
    "huggingface_hub": frozenset({"fetch"}),
    "nncf": frozenset({"quantize"}),
    "openvino_genai": frozenset[str](),
    "openvino_tokenizers": frozenset({"tokenizer_ir"}),
    "optimum": frozenset({"via_optimum"}),
    "ray": frozenset({"integrations"}),
    "tokenizers": frozenset({"reference", "tokenization"}),
    "torch": frozenset({"reference"}),
    "transformers": frozenset({"reference", "tokenizer_ir"}),
}
THIRD_PARTY = frozenset(HOMES) | {"numpy", "openvino", "pandas", "pyarrow", "tqdm"}


def layer(room: str) -> int:
    """The height of a room; 0 is the first that has NumPy, and errors and resources lie below it."""
    return next(height for height, rooms in enumerate(LAYERS, start=-1) if room in rooms)


def room_of(name: str) -> str:
    """The room of a dotted name of ours: the longest prefix that has one. `edge_embed` is one, too."""
    if name == "edge_embed" or name in PUBLIC - {"edge_embed.cli.main"}:
        return "edge_embed"
    prefix = name.removeprefix("edge_embed.")
    while prefix:
        if any(prefix in rooms for rooms in LAYERS):
            return prefix
        prefix = prefix.rpartition(".")[0]
    raise AssertionError(f"{name} has no place in the layer table")


def imports(source: str, package: str) -> Iterator[str]:
    """Dotted names that a source imports anywhere, functions and type checking included, made absolute.

    package: the package that the source lies in, which is what one leading dot stands for
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = package.split(".")
            base = here[: len(here) - node.level + 1] if node.level else []
            stem = [*base, node.module] if node.module else base
            yield from (".".join([*stem, alias.name]) for alias in node.names)


def violations(module: str, source: str, package: str = "edge_embed") -> list[str]:
    """One line for each import that the table forbids. An empty list means that the direction holds."""
    me = room_of(module)
    lines = []
    for name in imports(source, package):
        library = name.partition(".")[0]
        if name == "edge_embed.__version__":  # a constant, and the only place of it
            continue
        if library == "edge_embed":
            other = room_of(name)
            if me in STRICTER:
                allowed = other in STRICTER[me]
            else:
                allowed = layer(other) < layer(me) or (me, other) in NEIGHBOURS
            if not (allowed or other == me):
                lines.append(f"{module} (layer {layer(me)}) imports {name} (layer {layer(other)})")
        elif library in THIRD_PARTY:
            home = HOMES.get(library, frozenset({me}))
            if me not in home or (layer(me) <= 0 and library != "numpy"):
                lines.append(f"{module} imports {library}, which belongs to {sorted(home - {me})}")
    return lines


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_its_layer_allows(module: str) -> None:
    path = modules()[module]
    package = ".".join(path.relative_to(ROOT).parent.parts)
    assert violations(module, path.read_text("utf-8"), package) == []


@pytest.mark.parametrize("path", sorted((ROOT / "bench").rglob("*.py")), ids=lambda path: path.stem)
def test_bench_uses_the_public_interface_only(path: Path) -> None:
    imported = imports(path.read_text("utf-8"), ".".join(path.relative_to(ROOT).parent.parts))
    assert {name for name in imported if name.partition(".")[0] == "edge_embed"} <= PUBLIC


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vectors", "from edge_embed.embedder import Embedder"),
        ("vectors", "from edge_embed import embedder"),
        ("vectors", "from .embedder import Embedder"),
        ("vectors", "def f():\n    import edge_embed.plan"),
        ("vectors", "from edge_embed import Embedder"),
        ("vectors", "from edge_embed.checkpoint import Config"),
        ("vectors", "import tqdm"),
        ("hardware", "from edge_embed.errors import EdgeEmbedError"),
        ("graph.bert", "from edge_embed.ir import write"),
        ("ir", "from edge_embed.runtime import Runtime"),
        ("embedder", "from edge_embed.cli import main"),
        ("embedder", "from edge_embed.batch import run"),
        ("embedder", "import torch.nn"),
        ("cli.pull", "import nncf"),
        ("cli.pull", "import edge_embed"),
        ("reference", "from edge_embed.vectors import l2_normalize"),
        ("drift.metrics", "from edge_embed.drift.gate import violations"),
        ("errors", "from edge_embed.atomic import write_text"),
        ("__main__", "from edge_embed.embedder import Embedder"),
    ],
)
def test_the_table_forbids(module: str, source: str) -> None:
    assert len(violations(f"edge_embed.{module}", source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vectors", "import json\nimport numpy\nfrom edge_embed.errors import ShapeError"),
        ("graph.bert", "from edge_embed.graph import ops\nfrom edge_embed.checkpoint import Config"),
        ("runtime", "from edge_embed import ir\nfrom .plan import Plan"),
        ("batch", "from edge_embed.embedder import Embedder\nfrom edge_embed.journal import Journal"),
        ("build", "from edge_embed import __version__"),
        ("quantize", "import nncf\nfrom edge_embed.build import build"),
        ("cli.drift", "from edge_embed.drift import gate\nfrom edge_embed.cli import COMMANDS"),
        ("drift.gate", "from edge_embed.drift.metrics import row_sqnr_db"),
    ],
)
def test_the_table_allows(module: str, source: str) -> None:
    assert violations(f"edge_embed.{module}", source) == []


def test_a_module_without_a_place_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"edge_embed\.attic has no place"):
        violations("edge_embed.attic", "")
