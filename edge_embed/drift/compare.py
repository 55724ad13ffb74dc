"""A candidate and a reference -> a Measurement: what `edge-embed drift measure` writes.

The candidate and every stage before it run in processes of their own. Here are the texts, the order of things
and what is made of the vectors. Formulas are in metrics and stages in ledger; nothing is judged.
"""

import hashlib
import importlib.metadata
import json
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_embed import __version__, cards, ir, vectors
from edge_embed.calibration import Text
from edge_embed.drift import candidate, ledger, measure, metrics, record, slices
from edge_embed.drift.candidate import Run, Way
from edge_embed.drift.ledger import FLOAT32
from edge_embed.drift.measurement import (
    SCHEMA,
    Against,
    Environment,
    Invariant,
    Measurement,
    Neighbour,
    PerText,
    Subject,
    Worst,
)
from edge_embed.drift.metrics import LEAST_SLICE, Rows, SliceDrift
from edge_embed.drift.record import CALIBRATED, CALIBRATION, QUANTIZED, Reference
from edge_embed.embedder import kept_profile, plan_here
from edge_embed.errors import CrashError, InputError, ModelError
from edge_embed.hardware import machine
from edge_embed.manifest import Manifest, read_manifest
from edge_embed.plan import COMPUTE_TYPES, Plan
from edge_embed.record import hash_file, model_name, read_record
from edge_embed.tokenization import Tokenizer

PROBES = 32  # texts that are embedded again in other company
LONGEST_PROBE = 256  # tokens, where there are as short texts

# Largest difference of a component of two unit vectors of one text in other company. Sums in another order
# are some 1e-7. Where activations are rounded, a last bit can decide between two steps; int8_dynamic rounds
# by the largest value of a group, and MiniLM has 1.3e-3 there. Padding that is seen gives 1e-2 and more.
ALIKE = {"float32": 1e-5, "bfloat16": 1e-5, "int8_weights": 1e-5, "int8_dynamic": 5e-3, "int8": 1e-3}
REPEATED = 1e-6

WORST = 10
NEIGHBOURS = 5
EXCERPT = 160  # characters

# As plans say it, and as OpenVINO reports it.
PRECISIONS = {"f32": "<Type: 'float32'>", "bf16": "<Type: 'bfloat16'>"}


@dataclass(frozen=True, slots=True)
class Found:
    """What the processes left."""

    runs: Mapping[str, Run]  # by stage
    trouble: Mapping[str, str]  # stage -> why it did not run
    crash: str  # how the candidate ended, or ""


def measure_against(
    folder: Path,
    reference: Reference,
    sha256: str,
    texts: Sequence[Text],
    *,
    compute_type: str = "auto",
    device: str = "CPU",
    threads: int | None = None,
    stages: bool = True,
    excerpts: bool = True,
    least_slice: int = LEAST_SLICE,
    show_progress_bar: bool = False,
) -> Measurement:
    """Everything that is known of a candidate.

    reference    of the rows that `texts` are, in their order; sha256: of its file
    stages       also run what lies between PyTorch and the candidate
    excerpts     keep the beginnings of the noisiest texts and of their neighbours
    least_slice  texts below which a slice is reported only
    Errors: MismatchError for a reference of something else; ModelError for a candidate that does not load.
    A candidate that is ended by a signal gives a Measurement that says so.
    """
    began = time.perf_counter()
    if len(texts) < measure.LEAST_TEXTS:
        raise InputError(
            f"{len(texts)} texts are too few for ten neighbours each; give at least {measure.LEAST_TEXTS}"
        )
    manifest = read_manifest(folder)
    tokenizer = Tokenizer(folder, max_tokens=manifest.max_tokens, lower_case=manifest.lower_case)
    record.check(reference, folder, texts, tokenizer)
    tokens = np.minimum(tokenizer.encode([text.text for text in texts]).lengths, manifest.max_tokens)
    plan = plan_here(
        folder,
        kept_profile(folder, device)[0],
        max_tokens=manifest.max_tokens,
        compute_type=compute_type,
        device=device,
        threads=threads,
    )
    way = Way(plan.compute_type, device, threads)
    own = ledger.candidate_of(way.compute_type)
    steps = ledger.steps(way, machine(), has_float32=FLOAT32 in ir.find_files(folder).variants)
    if not stages:
        steps = [replace(step, previous=ledger.REFERENCE) for step in steps if step.name == own]
    probes = probe_rows(tokens)
    found = run_all(folder, steps, own, reference, texts, probes, widths(folder, manifest), show_progress_bar)
    measured = Measurement(
        schema=SCHEMA,
        measured_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        seconds=0.0,
        subject=subject(folder, plan, manifest, reference, found.runs.get(own)),
        environment=environment(plan),
        against=Against(
            sha256,
            reference.source,
            texts_sha256(reference),
            len(texts),
            reference.versions,
            reference.settings,
        ),
        crash=found.crash,
        drift=None,
        variants=(),
        slices={},
        per_text=None,
        invariants=(),
        ledger=(),
        worst=(),
        located=None,
    )
    if not found.crash:
        groups = slices.by_text(texts, reference.roles, tokens)
        x = vectors.l2_normalize(reference.vectors)
        units = {
            name: vectors.l2_normalize(run.vectors)
            for name, run in found.runs.items()
            if run.vectors is not None and run.vectors.shape == x.shape
        }
        y = units.get(own)
        normalized = bool(reference.settings.get("normalize", True))
        measured = replace(
            measured,
            slices={name: tuple(rows.tolist()) for name, rows in groups.items()},
            invariants=invariants(
                found.runs[own], probes, x, y, compute_type=way.compute_type, normalized=normalized
            ),
            ledger=ledger.entries(steps, x, units, found.trouble),
        )
        if y is not None:
            noise = metrics.noise_power(x, y, centred=True)
            measured = replace(
                measured,
                drift=metrics.summarize(
                    x, y, groups, least_slice=least_slice, relevance=measure.relevance(texts)
                ),
                variants=variants(x, y, trained_widths(folder, manifest)),
                per_text=per_text(x, y, noise, reference),
                worst=worst(x, y, noise, texts, groups, excerpts),
            )
    return replace(measured, seconds=round(time.perf_counter() - began, 1))


# ---- what runs


def run_all(
    folder: Path,
    steps: Sequence[ledger.Step],
    own: str,
    reference: Reference,
    texts: Sequence[Text],
    probes: Sequence[int],
    widths: Sequence[int],
    show_progress_bar: bool,
) -> Found:
    """Each stage in a process of its own, the candidate first: what may be broken should show soon.

    Errors: ModelError for a candidate that does not load; other stages may fail, and say so.
    """
    from tqdm import tqdm

    runs: dict[str, Run] = {}
    trouble: dict[str, str] = {}
    with tqdm(total=len(steps), unit="stage", disable=not show_progress_bar) as bar:
        for step in sorted(steps, key=lambda step: step.name != own):
            bar.set_description(f"Measuring, {step.name}")
            try:
                runs[step.name] = candidate.run(
                    folder,
                    step.way,
                    [text.text for text in texts],
                    [role == "query" for role in reference.roles],
                    probes=probes if step.name == own else (),
                    widths=widths if step.name == own else (),
                )
                if why := unusable(runs[step.name], reference.vectors):
                    trouble[step.name] = why
            except ModelError as error:
                if step.name != own:
                    trouble[step.name] = str(error)
                elif isinstance(error, CrashError):
                    return Found(runs, trouble, str(error))
                else:
                    raise
            bar.update()
    return Found(runs, trouble, "")


def unusable(run: Run, reference: NDArray[np.float32]) -> str:
    """Why there is nothing to compare with the reference (N, D), or ""."""
    if run.vectors is None:
        return run.broken
    if run.vectors.shape != reference.shape:
        return f"vectors are {run.vectors.shape[1]} wide, those of the reference {reference.shape[1]}"
    return ""


def probe_rows(tokens: NDArray[np.int64]) -> list[int]:
    """Texts of all lengths that are not long, to be embedded again in other company; else the shortest."""
    short = int((tokens <= LONGEST_PROBE).sum())
    ordered = np.argsort(tokens, kind="stable")[: max(2, short)]
    places = np.linspace(0, len(ordered) - 1, min(PROBES, len(ordered))).round().astype(int)
    return [int(row) for row in ordered[places]]


def trained_widths(folder: Path, manifest: Manifest) -> tuple[int, ...]:
    """The widths below the full one that the model was trained to be cut to."""
    card = cards.card(model_name(folder))
    return tuple(dim for dim in card.truncate_dims if dim < manifest.dim) if card else ()


def widths(folder: Path, manifest: Manifest) -> tuple[int, ...]:
    """Widths that vectors are cut to: the trained ones, else one half, as cutting must work all the same."""
    return trained_widths(folder, manifest) or ((manifest.dim // 2,) if manifest.dim > 1 else ())


# ---- what holds for every model


def invariants(
    run: Run,
    probes: Sequence[int],
    x: NDArray[np.float32],
    y: NDArray[np.float32] | None,
    *,
    compute_type: str,
    normalized: bool,
) -> tuple[Invariant, ...]:
    """What must hold of the rows (N, D) as the candidate gave them, and of its probes.

    x, y        (N, D) unit rows of the reference and of the candidate; y is None where there are none
    normalized  the reference has unit rows by the model's own modules
    """
    lost = pins_lost(run)
    found = [
        Invariant("finite", float(bool(run.broken)), 0.0, run.broken or "every vector is finite and not 0"),
        Invariant("pinned", float(len(lost)), 0.0, "; ".join(lost) or "OpenVINO runs as it was asked to"),
    ]
    if run.vectors is None:
        return tuple(found)
    if what := unusable(run, x):
        return (*found, Invariant("width", float(abs(run.vectors.shape[1] - x.shape[1])), 0.0, what))
    if y is not None:
        rows = metrics.collapsed(x, y)
        what = "texts that the reference tells apart have different vectors"
        if rows is not None:
            what = f"rows {rows[0]} and {rows[1]} are one vector where the reference tells them apart"
        found.append(Invariant("distinct", float(rows is not None), 0.0, what))
    full = run.vectors[list(probes)]
    cut = {
        int(name.removeprefix("cut-")): part for name, part in run.probes.items() if name.startswith("cut-")
    }
    if normalized:
        norms = {"of all dimensions": furthest_from_1(run.vectors)}
        norms |= {f"of the first {k}": furthest_from_1(part) for k, part in cut.items()}
        name = max(norms, key=lambda name: norms[name])
        found.append(Invariant("unit_norm", norms[name], metrics.UNIT, f"largest |norm - 1|, {name}"))
    limit = ALIKE[compute_type]
    found += [
        alike("batch", run.probes["alone"], full, limit, "alone and among all texts"),
        alike("order", run.probes["reversed"], full, limit, "in reverse order and among all texts"),
        alike("padding", run.probes["padded"], run.probes["alone"], limit, "with more padding and with less"),
        alike("repeat", run.probes["repeated"], run.probes["reversed"], REPEATED, "twice in the same way"),
    ]
    cuts = [
        alike("truncation", part, full[:, :k], limit, f"cut to {k} dimensions by the model and afterwards")
        for k, part in cut.items()
    ]
    return (*found, *sorted(cuts, key=lambda one: -one.value)[:1])


def pins_lost(run: Run) -> list[str]:
    """What decides numbers and was not asked for, or is not what OpenVINO reports after compiling."""
    plan, reported = run.facts["plan"], run.facts["effective"]
    if plan["device"] != "CPU":
        return []
    lost = []
    for name in candidate.PINS:
        asked, got = plan["properties"].get(name), reported.get(name)
        if asked is None:
            lost.append(f"{name} is left to OpenVINO")
        elif got not in (asked, PRECISIONS.get(asked, asked)):
            lost.append(f"{name} is {got}, and {asked} was asked for")
    return lost


def furthest_from_1(rows: NDArray[np.float32]) -> float:
    """The largest |norm - 1| of (N, D) rows."""
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return float(np.abs(norms - 1).max())


def alike(
    name: str, one: NDArray[np.float32], other: NDArray[np.float32], limit: float, what: str
) -> Invariant:
    """Two ways to the same (P, D) rows, by the largest difference of a component; NaN where one holds NaN.

    Made unit rows, as rounding grows with their length, and not every model gives unit rows.
    """
    with np.errstate(invalid="ignore"):  # a row of zeros becomes NaN
        units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other)]
    apart = float(np.abs(units[0] - units[1]).max())
    return Invariant(name, apart, limit, f"largest difference of a component: {len(one)} texts {what}")


# ---- what is made of vectors


def variants(
    x: NDArray[np.float32], y: NDArray[np.float32], trained: Sequence[int]
) -> tuple[SliceDrift, ...]:
    """Drift of all texts (N, D) cut to the widths that the model is trained for, and in output precisions.

    Both sides have codes by the ranges of the reference. Binary codes are reported only: bits that flip are
    those of components near 0, which is what such codes lose against float32 anyway.
    """
    found = [variant(f"dim {k}", vectors.truncate(x, k), vectors.truncate(y, k)) for k in trained]
    ranges = vectors.measure_ranges(x)

    def coded(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return vectors.l2_normalize(
            vectors.dequantize(vectors.quantize(rows, "int8", ranges), "int8", ranges)
        )

    found.append(variant("precision int8", coded(x), coded(y)))
    signs = [vectors.l2_normalize(np.where(rows > 0, 1.0, -1.0)) for rows in (x, y)]
    return (*found, replace(variant("precision binary", *signs), judged=False))


def variant(name: str, x: NDArray[np.float32], y: NDArray[np.float32]) -> SliceDrift:
    """Drift of all texts in another form, (N, K) unit rows."""
    noise = metrics.sqnr_interval(x, y)
    return SliceDrift(name, len(x), True, noise, metrics.bootstrap(metrics.overlap(x, y)))


def per_text(
    x: NDArray[np.float32], y: NDArray[np.float32], noise: metrics.Floats, reference: Reference
) -> PerText:
    """What pairs are made of when another candidate comes."""
    cosines = np.einsum("nd,nd->n", x, y, dtype=np.float64)
    kept = metrics.overlap(x, y)
    return PerText(reference.ids, tuple(noise.tolist()), tuple(cosines.tolist()), tuple(kept.tolist()))


def worst(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    noise: metrics.Floats,
    texts: Sequence[Text],
    groups: Mapping[str, Rows],
    excerpts: bool,
) -> tuple[Worst, ...]:
    """The noisiest texts with their neighbours on both sides."""

    def excerpt(row: int) -> str:
        return " ".join(texts[row].text[:EXCERPT].split()) if excerpts else ""

    def nearest(rows: NDArray[np.float32], row: int) -> tuple[Neighbour, ...]:
        scores = rows @ rows[row]
        scores[row] = -np.inf
        best = np.argsort(-scores, kind="stable")[:NEIGHBOURS].tolist()
        return tuple(Neighbour(texts[i].id, float(scores[i]), excerpt(i)) for i in best)

    return tuple(
        Worst(
            texts[row].id,
            tuple(name for name, rows in groups.items() if row in rows),
            metrics.decibels(float(noise[row])),
            float(x[row] @ y[row]),
            excerpt(row),
            nearest(x, row),
            nearest(y, row),
        )
        for row in np.argsort(-noise, kind="stable")[:WORST].tolist()
    )


# ---- what it is about


def subject(folder: Path, plan: Plan, manifest: Manifest, reference: Reference, run: Run | None) -> Subject:
    """What was measured; `run` is None where it crashed."""
    weights = plan.file.with_suffix(".bin")
    files = [path for path in (plan.file, weights) if path.exists()]
    kept = read_record(folder).get(QUANTIZED, {}).get(COMPUTE_TYPES[plan.compute_type][0], {})
    calibration = {k: v for k, v in kept.get(CALIBRATION, {}).items() if k != CALIBRATED}
    known = kept | ({CALIBRATION: calibration} if calibration else {})
    return Subject(
        name=model_name(folder) or folder.name,
        compute_type=plan.compute_type,
        file=plan.file.relative_to(folder).as_posix(),
        weights_sha256=reference.weights_sha256,
        file_sha256=lines_sha256(f"{hash_file(path)}  {path.name}" for path in files),
        file_bytes=sum(path.stat().st_size for path in files),
        settings={
            "device": plan.device,
            "requested": dict(plan.properties),
            "effective": {} if run is None else run.facts["effective"],
            "passes": [] if run is None else run.facts["plan"]["passes"],
            "peak_bytes": None if run is None else run.facts.get("peak_bytes"),
            "pooling": list(manifest.pooling),
            "normalize": manifest.normalize,
            "max_tokens": manifest.max_tokens,
            "prompts": dict(manifest.prompts),
            "tokenizer_sha256": hash_file(folder / "tokenizer.json"),
        },
        provenance=known | {"nncf": nncf_settings(plan.file)},
    )


def nncf_settings(file: Path) -> dict[str, str]:
    """What NNCF wrote into an IR of itself, by dotted names; {} for a file that it has not touched."""
    if file.suffix != ".xml":
        return {}
    found: dict[str, str] = {}

    def walk(element: ET.Element, name: str) -> None:
        if (value := element.get("value")) is not None:
            found[name] = value
        for child in element:
            walk(child, f"{name}.{child.tag}".lstrip("."))

    for element in ET.parse(file).getroot().findall("rt_info/nncf"):
        walk(element, "")
    return found


def environment(plan: Plan) -> Environment:
    """Where it was measured."""
    import openvino

    here = machine()
    packages = ("numpy", "tokenizers")
    made_by = {name: importlib.metadata.version(name) for name in packages}
    return Environment(
        cpu_model=here.cpu_model,
        cpu_class=here.cpu_class if plan.device == "CPU" else plan.device.lower(),
        flags=tuple(sorted(here.flags)),
        threads=plan.threads,
        isa=os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        versions={"edge_embed": __version__, "openvino": openvino.get_version(), **made_by},
    )


def texts_sha256(reference: Reference) -> str:
    """One hash of the texts that were measured, with their ids, roles and tokens."""
    rows = zip(reference.ids, reference.roles, reference.text_sha256, reference.token_sha256, strict=True)
    return lines_sha256(json.dumps(row) for row in rows)


def lines_sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
