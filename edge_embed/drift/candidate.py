"""One way to run a model, in a process of its own: texts in, vectors and what must hold of them out.

A kernel that crashes takes only this process along, the memory of one stage is free before the next begins,
and a CPU can be emulated, which OpenVINO wants to know before it is imported. Knows the Embedder; does not
know references, drift, or what a stage is for.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import batching, child
from edge_embed.embedder import DOCUMENT_PROMPTS, Embedder
from edge_embed.errors import NumericsError
from edge_embed.plan import Plan

MODULE = "edge_embed.drift.candidate"  # what the child runs

# What pins the numbers; without them OpenVINO chooses by CPU.
PINS = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE")


@dataclass(frozen=True, slots=True)
class Way:
    """How the model is to be run, beside its compute type."""

    compute_type: str
    device: str = "CPU"
    threads: int | None = None
    properties: Mapping[str, str] | None = None  # for compile_model, over those of the plan
    unpinned: bool = False  # leave PINS to OpenVINO
    weight_only: bool | None = None  # of a static INT8 file; None: as the plan says
    isa: str = ""  # ONEDNN_MAX_CPU_ISA: the CPU to emulate


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What came out."""

    vectors: NDArray[np.float32] | None  # (N, D), as the model gives them; None: see `broken`
    broken: str  # why there are no vectors: NaN, Inf or zero rows
    probes: Mapping[str, NDArray[np.float32]]  # alone, reversed, repeated, padded, and cut-K for widths K
    facts: Mapping[str, Any]  # requested and effective properties, plan, seconds, peak memory


class Candidate(Embedder):
    """An Embedder whose plan is changed in places before it is compiled."""

    def __init__(self, folder: Path, way: Way) -> None:
        self._way = way
        super().__init__(
            folder, compute_type=way.compute_type, device=way.device, threads=way.threads, cache_dir=False
        )

    def _planned(self, **wishes: Any) -> Plan:
        plan, way = super()._planned(**wishes), self._way
        kept = {n: v for n, v in plan.properties.items() if not (way.unpinned and n in PINS)}
        weight_only = plan.weight_only if way.weight_only is None else way.weight_only
        return replace(plan, properties=kept | dict(way.properties or {}), weight_only=weight_only)

    def embed(
        self, texts: Sequence[str], is_query: Sequence[bool], truncate_dim: int | None = None
    ) -> NDArray[np.float32]:
        """(N, D) as the model gives them, each text by its role."""
        dim = truncate_dim or self.manifest.dim
        return embed_by_role(self, texts, is_query, truncate_dim=dim, show_progress_bar=False)

    def embed_padded(self, texts: Sequence[str], is_query: Sequence[bool]) -> NDArray[np.float32]:
        """(N, D) of each text alone, with one step of the ladder more padding than it needs."""
        rows = []
        for text, query in zip(texts, is_query, strict=True):
            options = self._with_prompt(("query",) if query else DOCUMENT_PROMPTS, {})
            ids = self._tokenizer.encode([text], self._prompt(options.get("prompt_name"), None)).ids[0]
            longer = self._rungs[self._rungs >= len(ids)][:2]
            rows.append(self._runtime.run(*batching.pad([ids], int(longer[-1]), self.manifest.pad_id))[0])
        return np.stack(rows)


def embed_by_role(
    embedder: Embedder, texts: Sequence[str], is_query: Sequence[bool], **options: Any
) -> NDArray[np.float32]:
    """(N, D) float32 rows of queries and documents, each by its method; `options` are of `encode`."""
    rows = np.empty((len(texts), options.get("truncate_dim") or embedder.dim), np.float32)
    for encode, role in ((embedder.encode_query, True), (embedder.encode_document, False)):
        places = [i for i, query in enumerate(is_query) if query == role]
        if places:
            rows[places] = encode([texts[i] for i in places], **options)
    return rows


def run(
    folder: Path,
    way: Way,
    texts: Sequence[str],
    is_query: Sequence[bool],
    *,
    probes: Sequence[int] = (),
    widths: Sequence[int] = (),
) -> Run:
    """Embed texts in a child process.

    is_query  the role of each text
    probes    rows that are embedded again in other company; widths: and cut to so many dimensions
    Errors: those of Embedder as a ModelError; CrashError naming the signal that ended the child.
    """
    with tempfile.TemporaryDirectory(prefix="edge-embed-drift-") as work:
        request, out = Path(work) / "request.json", Path(work) / "vectors.npz"
        values = {
            "folder": str(folder),
            "way": asdict(way),
            "texts": list(texts),
            "is_query": list(is_query),
            "probes": list(probes),
            "widths": list(widths),
        }
        request.write_text(json.dumps(values), encoding="utf-8")
        environment = {"ONEDNN_MAX_CPU_ISA": way.isa} if way.isa else {}
        facts = child.call(MODULE, request, out, environment=environment)
        broken = str(facts.pop("broken"))
        if broken:
            return Run(None, broken, {}, facts)
        with np.load(out) as file:
            arrays = {name: file[name] for name in file.files}
    return Run(arrays.pop("vectors"), "", arrays, facts)


def work(request: Path, out: Path) -> dict[str, Any]:
    """In the child: what `run` asks for; vectors go to `out`."""
    values = json.loads(request.read_bytes())
    way = Way(**values["way"])
    texts, is_query = values["texts"], values["is_query"]
    began = time.perf_counter()
    candidate = Candidate(Path(values["folder"]), way)
    facts: dict[str, Any] = {
        "plan": candidate.plan.to_dict(),
        "effective": {name: candidate.effective(name) for name in candidate.plan.properties},
        "load_seconds": round(time.perf_counter() - began, 3),
        "broken": "",
    }
    try:
        arrays: dict[str, Any] = {"vectors": candidate.embed(texts, is_query)}
        if probes := values["probes"]:
            arrays |= again(
                candidate, [texts[i] for i in probes], [is_query[i] for i in probes], values["widths"]
            )
    except NumericsError as error:
        return facts | {"broken": str(error)}
    with out.open("wb") as file:
        np.savez(file, **arrays)
    return facts | {"seconds": round(time.perf_counter() - began, 3), "peak_bytes": peak_bytes()}


def again(
    candidate: Candidate, texts: list[str], is_query: list[bool], widths: Sequence[int]
) -> dict[str, NDArray[np.float32]]:
    """The probes in other company; each (P, D), cut ones (P, K)."""
    both = list(zip(texts, is_query, strict=True))
    backwards = candidate.embed(texts[::-1], is_query[::-1])
    found = {
        "alone": np.concatenate([candidate.embed([text], [query]) for text, query in both]),
        "reversed": backwards[::-1],
        "repeated": candidate.embed(texts[::-1], is_query[::-1])[::-1],
        "padded": candidate.embed_padded(texts, is_query),
    }
    return found | {f"cut-{width}": candidate.embed(texts, is_query, width) for width in widths}


def peak_bytes() -> int | None:
    """The most memory that this process had; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    child.answer(lambda: work(Path(sys.argv[1]), Path(sys.argv[2])))
