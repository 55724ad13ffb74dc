"""A measurement made of arrays, for tests of what is done with one: gate, baseline and reports."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_embed.drift import metrics
from edge_embed.drift.measurement import (
    SCHEMA,
    Against,
    Environment,
    Invariant,
    Located,
    Measurement,
    Neighbour,
    PerText,
    Source,
    Stage,
    Subject,
    Worst,
)
from edge_embed.drift.metrics import Interval, Rows

Floats = NDArray[np.float64]

LANGUAGES = 8
OF_EACH = 24


def unit(x: Floats) -> Floats:
    """Rows of length 1."""
    rows: Floats = x / np.linalg.norm(x, axis=1, keepdims=True)
    return rows


def reference(languages: int = LANGUAGES, dim: int = 64) -> Floats:
    """(languages * 24, dim) unit rows that vary in few of many directions, as embeddings do."""
    random = np.random.default_rng(0)
    n = languages * OF_EACH
    return unit(random.normal(size=(n, 12)) @ random.normal(size=(12, dim)) + random.normal(size=dim))


def noisy(x: Floats, decibels: float, seed: int = 1) -> Floats:
    """Rows with even noise of that SQNR."""
    power = (1 - metrics.background(x)) * 10 ** (-decibels / 10) / x.shape[1]
    return unit(x + np.sqrt(power) * np.random.default_rng(seed).normal(size=x.shape))


def slices(n: int) -> dict[str, Rows]:
    """Languages of 24 texts, roles that take turns, and a slice that is too small to be judged."""
    rows = np.arange(n)
    found = {f"language l{i}": rows[rows // OF_EACH == i] for i in range(n // OF_EACH)}
    return found | {"role query": rows[::2], "role document": rows[1::2], "length 257 to 512": rows[:5]}


def measurement(
    x: Floats, y: Floats, *, compute_type: str = "int8", name: str = "all-MiniLM-L6-v2"
) -> Measurement:
    """What `drift measure` would write of a candidate with the vectors y for a reference x, (N, D) each."""
    rows: Mapping[str, Rows] = slices(len(x))
    drift = metrics.summarize(x, y, rows)
    noise = metrics.noise_power(x, y, centred=True)
    ids = tuple(f"text-{i:03}" for i in range(len(x)))
    noisiest = np.argsort(-noise)[:10]
    return Measurement(
        schema=SCHEMA,
        measured_at="2026-05-04T12:30Z",
        seconds=42.0,
        subject=Subject(
            name=name,
            compute_type=compute_type,
            file="openvino/openvino_model_qint8_quantized.xml",
            weights_sha256="a" * 64,
            file_sha256="b" * 64,
            file_bytes=24_000_000,
            settings={"requested": {"INFERENCE_PRECISION_HINT": "f32"}, "threads": 2},
            provenance={"recipe": {"smooth_quant_alpha": 0.85}},
        ),
        environment=Environment("A CPU", "vnni", ("avx2", "avx512_vnni"), 2, "", {"openvino": "2026.4.1"}),
        against=Against("c" * 64, "evaluation", "d" * 64, len(x), {"torch": "2.13.0"}, {"threads": 1}),
        crash="",
        drift=drift,
        variants=(
            metrics.SliceDrift(
                "dim 32", len(x), True, Interval(22.0, 21.8, 22.2), Interval(0.95, 0.94, 0.96)
            ),
            metrics.SliceDrift(
                "precision binary", len(x), False, Interval(14.0, 13.8, 14.2), Interval(0.8, 0.79, 0.81)
            ),
        ),
        slices={name: tuple(part.tolist()) for name, part in rows.items()},
        per_text=PerText(
            ids,
            tuple(noise.tolist()),
            tuple((x * y).sum(1).tolist()),
            tuple(metrics.overlap(x, y).tolist()),
        ),
        invariants=(
            Invariant("finite", 0.0, 0.0, "no vector holds NaN or Inf"),
            Invariant("unit_norm", 2e-7, 1e-3, "text-003 is furthest from length 1"),
        ),
        ledger=(
            Stage(
                "float32",
                "the float32 IR, pinned",
                "reference",
                Interval(120, 119, 121),
                Interval(120, 119, 121),
                1.0,
                "",
            ),
            Stage(
                "simulated",
                "INT8 computed in float32",
                "float32",
                Interval(28, 27.8, 28.2),
                Interval(28, 27.8, 28.2),
                0.999,
                "",
            ),
            Stage("executed", "INT8 kernels", "simulated", drift.sqnr, Interval(45, 44, 46), 0.999, ""),
            Stage("emulated", "a CPU without VNNI", "executed", None, None, None, "ended by SIGILL"),
        ),
        worst=tuple(
            Worst(
                ids[row],
                (f"language l{row // OF_EACH}", "role query"),
                metrics.decibels(float(noise[row])),
                float(x[row] @ y[row]),
                f"The text <{row}> & what it says",
                (Neighbour(ids[0], 0.9, "first <b>"), Neighbour(ids[1], 0.8, "second")),
                (Neighbour(ids[1], 0.91, "second"), Neighbour(ids[0], 0.79, "first <b>")),
            )
            for row in noisiest
        ),
        located=Located(
            40,
            0.0016,
            tuple(Source(f"layer {i}", i, "layer", 0.0002 + 0.0001 * i, 0.1 + 0.05 * i) for i in range(6)),
            (
                Source("encoder.layer.5.output.dense", 5, "activation", 0.0004, 0.25),
                Source("embeddings.word_embeddings", None, "table", 0.0001, 0.06),
            ),
        ),
    )


def crashed(found: Measurement) -> Measurement:
    """The same of a candidate whose process was ended."""
    return replace(
        found,
        crash="ended by SIGSEGV",
        drift=None,
        variants=(),
        slices={},
        per_text=None,
        invariants=(),
        ledger=(),
        worst=(),
        located=None,
    )
