"""A model folder -> its drift from its own float32 IR, on this machine, and the entry of that in its record.

Knows the Embedder and which texts a model is for. Does not know PyTorch: how far the float32 IR itself is
from the original is measured elsewhere. It judges nothing and writes no file.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import __version__, calibration, cards
from edge_embed.calibration import Text
from edge_embed.drift import gate
from edge_embed.drift.candidate import embed_by_role
from edge_embed.drift.gate import Check
from edge_embed.drift.metrics import Drift, Relevance, by_label, check_collapsed, summarize
from edge_embed.drift.slices import CODE, language
from edge_embed.embedder import Embedder
from edge_embed.errors import InputError
from edge_embed.hardware import Machine, machine
from edge_embed.profile import FAIL, PASS
from edge_embed.record import model_name

REFERENCE = "float32 IR"

LEAST_TEXTS = 12  # ten neighbours, one more that could take the place of one, and the text itself


def evaluation_texts(folder: Path) -> list[Text]:
    """The texts of calibration/evaluation that say something of a model: its languages, and code.

    Between texts in a language that a model cannot read there is hardly a distance, and all noise is large
    against it. Code is for every model: it is read as English is. A folder whose record names no model of
    models/ gets all texts.
    """
    texts = calibration.evaluation()
    card = cards.card(model_name(folder))
    if card is None:
        return texts
    return [text for text in texts if text.stratum.startswith(CODE) or language(text) in card.languages]


def quick(
    folder: Path,
    compute_type: str,
    texts: Sequence[Text],
    *,
    reference: NDArray[np.float32] | None = None,
    show_progress_bar: bool | None = None,
    **embedder_options: Any,
) -> Drift:
    """Drift of a compute type from the float32 IR of the same folder. One model is in memory at a time.

    texts             at least 12; the slices are their strata
    reference         (N, D) what `embed` gave for these texts in float32, to measure several compute types
    embedder_options  of Embedder, for both sides
    Errors: those of Embedder and of `summarize`; InputError with fewer than 12 texts.
    """
    if len(texts) < LEAST_TEXTS:
        raise InputError(
            f"{len(texts)} texts are too few for ten neighbours each; give at least {LEAST_TEXTS}"
        )
    if reference is None:
        reference = embed(folder, "float32", texts, show_progress_bar=show_progress_bar, **embedder_options)
    candidate = embed(folder, compute_type, texts, show_progress_bar=show_progress_bar, **embedder_options)
    check_collapsed(reference, candidate)
    strata = by_label([text.stratum for text in texts])
    return summarize(reference, candidate, strata, relevance=relevance(texts))


def embed(
    folder: Path,
    compute_type: str,
    texts: Sequence[Text],
    *,
    show_progress_bar: bool | None = None,
    **embedder_options: Any,
) -> NDArray[np.float32]:
    """(N, D) unit rows, each text by its role; the model is released before this returns."""
    embedder = Embedder(folder, compute_type=compute_type, **embedder_options)
    return embed_by_role(
        embedder,
        [text.text for text in texts],
        [text.kind == "query" for text in texts],
        normalize_embeddings=True,
        show_progress_bar=show_progress_bar,
    )


def relevance(texts: Sequence[Text]) -> Relevance | None:
    """Queries and passages on one topic belong together; None where no query has a passage."""
    documents = np.array([i for i, text in enumerate(texts) if text.kind == "passage"], np.int64)
    answered = {texts[i].topic for i in documents}
    queries = np.array(
        [i for i, text in enumerate(texts) if text.kind == "query" and text.topic in answered], np.int64
    )
    if not len(queries):
        return None
    topics = np.array([text.topic for text in texts])
    return Relevance(queries, documents, (topics[queries][:, None] == topics[documents]).astype(np.int64))


def entry(drift: Drift, checks: Sequence[Check], on: Machine | None = None) -> dict[str, Any]:
    """What edge_embed.json keeps of a measurement, under "drift" and the compute type.

    on  the machine that measured; None: this one
    """
    import openvino

    on = machine() if on is None else on
    return {
        "verdict": PASS if gate.passed(checks) else FAIL,
        "failed": [check.to_dict() for check in checks if check.verdict == FAIL],
        "n": drift.n,
        "sqnr": asdict(drift.sqnr),
        "overlap_10": asdict(drift.overlap_10),
        "worst_slice": drift.worst_slice,
        "worst_slice_sqnr": drift.worst_slice_sqnr,
        "reference": REFERENCE,
        "cpu_class": on.cpu_class,
        "made_by": {"edge_embed": __version__, "openvino": openvino.get_version()},
    }
