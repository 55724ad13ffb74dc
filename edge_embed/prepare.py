"""From the graph of a file to the graph that runs: which passes it takes, each checked before it is used.

Knows passes, probes and the record of their outcome; does not know texts, nor how batches are run.

A pass is a claim: that the exporter's graph is what it looks like, and that config.json tells the truth about
it. It is tested once, when a model is first prepared: the untouched graph and the changed one embed the same
probe tokens in float32, and unit vectors further apart than TOLERANCE leave the pass out. Quantized
activations are taken out of both sides for that, because rounding to 8 bits makes a whole step of the last
bit of a float. The outcome is kept in edge_embed.json.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import atomic
from edge_embed.checkpoint import read_config
from edge_embed.errors import CheckpointError, DeviceError, ModelError, OutputError
from edge_embed.graph import head, modernbert, passes
from edge_embed.graph.passes import Layers
from edge_embed.manifest import Manifest
from edge_embed.plan import WINDOWED, Plan
from edge_embed.record import read_record, write_record
from edge_embed.runtime import Runtime

if TYPE_CHECKING:
    from openvino import Model

logger = logging.getLogger(__name__)

# Changing a pass, or pooling, must change this: outcomes and blobs of before are not taken then.
VERSION = 4

KEY = "preparation"

# Largest difference of a component of two unit vectors. Reordered float32 sums give 1e-6 in 22 layers.
TOLERANCE = 1e-5

# A static INT8 file with and without quantized activations is two models; 20 dB apart is a cosine of 0.995.
# What is below this is no rounding. INT8 is simulated in float32 for that: without INT8 dot products the real
# kernels saturate, and those are the CPUs where it matters.
LEAST_COSINE = 0.9

# In the order in which they are taken.
PASSES = ("weight_only_execution", "int8_table", "cls_last_layer", "windowed_attention")
EXACT = PASSES[1:]  # these change nothing but the order of float32 sums


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one pass."""

    taken: bool
    why: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the files beside a graph say of it."""

    manifest: Manifest
    layers: Layers | None
    no_layers: str  # why there are none


def read_facts(folder: Path, manifest: Manifest) -> Facts:
    """Facts for a model folder. A config.json that is silent about its layers costs the windows, no more."""
    try:
        config = read_config(folder)
        if config.model_type != "modernbert":
            return Facts(manifest, None, f"every layer of {config.model_type} looks at all tokens")
        kinds = modernbert.layer_kinds(config, config.integer("num_hidden_layers"))
        reach = config.integer("local_attention") // 2
    except CheckpointError as error:
        return Facts(manifest, None, str(error))
    return Facts(manifest, Layers(tuple(kind == modernbert.LOCAL for kind in kinds), reach), "")


def prepare(plan: Plan, facts: Facts, *, spare: Path) -> Plan:
    """The plan with its passes decided, each with a reason; probes run where no outcome is on record.

    spare  folder for the outcomes of model folders that are not ours, or cannot be written
    Errors: ModelError when even pooling does not give what the token vectors say.
    """
    outcomes = kept(plan, facts, spare)
    if outcomes is None:
        outcomes = try_passes(plan, facts)
        keep(plan, facts, outcomes, spare)
    if outcomes["weight_only_execution"].taken and not plan.weight_only:
        why = "left out: this device computes INT8 faster than float32"
        outcomes = {**outcomes, "weight_only_execution": Outcome(False, why)}
    taken = tuple(name for name in PASSES if outcomes[name].taken)
    reasons = {**plan.reasons, **{name: outcomes[name].why for name in PASSES}}
    if "windowed_attention" in taken:
        return replace(plan, passes=taken, reasons=reasons)
    reasons["windowed_from"] = "there is one form only: windowed_attention is not taken"
    return replace(plan, passes=taken, reasons=reasons, windowed_from=None)


def graph(plan: Plan, facts: Facts, model: "Model", form: str) -> "Model":
    """The model of the plan's file with its passes, pooling and norm: one output, (B, D).

    form  PLAIN or WINDOWED; only the second has windowed attention
    """
    ports = standardize(plan, facts, model)
    for name in plan.passes:
        if name != "windowed_attention" or form == WINDOWED:
            why = apply(name, model, ports, facts)
            if why:
                raise ModelError(f"{plan.file} has changed since it was prepared: {name}, {why}")
    return head.attach(model, ports, facts.manifest.pooling, normalize=facts.manifest.normalize)


def standardize(plan: Plan, facts: Facts, model: "Model") -> head.Ports:
    """The ports of a model, after a look at whether it and its config.json belong together."""
    ports = head.standardize(model)
    rows, vocabulary = head.token_table_rows(ports), facts.manifest.vocabulary
    if rows is not None and vocabulary is not None and rows < vocabulary:
        raise ModelError(
            f"{plan.file} looks up {rows} token rows, but config.json says vocab_size {vocabulary}; "
            "the files are not of one model"
        )
    return ports


def apply(name: str, model: "Model", ports: head.Ports, facts: Facts) -> str | None:
    """Take one pass; or why it does not match."""
    if name == "weight_only_execution":
        return passes.weight_only_execution(model)
    if name == "int8_table":
        return passes.int8_table(model, ports)
    if ports.pooled:
        return "the graph pools by itself"
    if name == "cls_last_layer":
        if facts.manifest.pooling != ("cls",):
            return f"{'+'.join(facts.manifest.pooling)} pooling reads every token"
        return passes.cls_last_layer(model, ports)
    return facts.no_layers if facts.layers is None else passes.windowed_attention(model, ports, facts.layers)


def try_passes(plan: Plan, facts: Facts) -> dict[str, Outcome]:
    """Take all passes that match, compare with the untouched graph, and leave out what does not agree."""
    logger.info("comparing the passes of %s with the untouched graph, once", plan.file)
    probes = make_probes(facts)
    unmatched: dict[str, str] = {}
    found: dict[str, int] = {}

    def untouched(model: "Model") -> "Model":
        ports = standardize(plan, facts, model)
        found["quantized activations"] = len(passes.activation_quantizers(model))
        passes.weight_only_execution(model)
        return head.token_vectors(model, ports)

    def changed(names: Sequence[str], *, executed: bool = False) -> "Callable[[Model], Model]":
        def build(model: "Model") -> "Model":
            ports = standardize(plan, facts, model)
            if not executed:
                passes.weight_only_execution(model)
            for name in names:
                if why := apply(name, model, ports, facts):
                    unmatched[name] = why
            return head.attach(model, ports, facts.manifest.pooling, normalize=facts.manifest.normalize)

        return build

    def difference(names: Sequence[str]) -> float:
        try:
            pairs = zip(reference, run(plan, changed(names), probes), strict=True)
        except (DeviceError, RuntimeError) as error:  # what does not run does not agree
            logger.info("%s with %s: %s", plan.file, ", ".join(names), error)
            return float("nan")
        return float(np.max([np.abs(unit(ours) - theirs).max() for theirs, ours in pairs]))  # NaN if any is

    reference = [
        unit(pool(vectors, mask, facts.manifest.pooling))
        for vectors, (_, mask) in zip(run(plan, untouched, probes), probes, strict=True)
    ]
    if not all(np.isfinite(rows).all() for rows in reference):  # `encode` will say which text that hits
        why = "left out: the untouched graph gives NaN, Inf or zero on probes"
        return {name: Outcome(False, why) for name in PASSES}
    if not found["quantized activations"]:
        unmatched["int8_table"] = "no activation is quantized, and then the plugin keeps a table as it is"
    tried = [name for name in EXACT if name not in unmatched]
    apart = difference(tried)
    tried = [name for name in tried if name not in unmatched]
    outcomes = {name: Outcome(True, agreed(apart)) for name in tried}
    if not apart <= TOLERANCE:  # not `>`: NaN does not agree
        outcomes = try_singly(plan, tried, difference)
    outcomes |= {name: Outcome(False, f"left out: {why}") for name, why in unmatched.items()}
    if found["quantized activations"]:
        as_is = run(plan, changed([], executed=True), probes, LP_TRANSFORMS_MODE="NO")
        cosine = min(float((unit(a) * b).sum(1).min()) for a, b in zip(as_is, reference, strict=True))
        told = f"checked: a cosine of {cosine:.3f} or more with quantized activations on probes"
        outcomes["weight_only_execution"] = Outcome(cosine >= LEAST_COSINE, told)
    else:
        outcomes["weight_only_execution"] = Outcome(False, "left out: no activation is quantized")
    return outcomes


def try_singly(
    plan: Plan, names: Sequence[str], difference: Callable[[Sequence[str]], float]
) -> dict[str, Outcome]:
    """The passes that agree with the untouched graph alone, and then together."""
    apart = {name: difference([name]) for name in names}
    good = [name for name in names if apart[name] <= TOLERANCE]
    together = difference(good)
    if not good and not together <= TOLERANCE:
        raise ModelError(
            f"pooling {plan.file} in its graph gives vectors {together:.1e} off those pooled from its token "
            "vectors; the weights are damaged, or overflow"
        )
    outcomes = {}
    for name in names:
        told = apart[name] if name not in good else together
        why = agreed(told) if told <= TOLERANCE else differs(told)
        outcomes[name] = Outcome(bool(told <= TOLERANCE), why)
        if not outcomes[name].taken:
            logger.warning("%s: %s is %s", plan.file, name, why)
    return outcomes


def agreed(apart: float) -> str:
    return f"checked: {apart:.0e} off the untouched graph on probes"


def differs(apart: float) -> str:
    return (
        f"left out: {apart:.0e} off the untouched graph on probes, {TOLERANCE:.0e} is allowed; "
        "config.json may be of another model"
    )


def make_probes(facts: Facts) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Seeded token ids and masks: a few tokens, and two padded rows in which every window ends somewhere.

    The long row is longer than both the window that config.json tells and a block, so that a wrong one shows:
    a narrower one leaves keys out, a wider one lets keys in.
    """
    chosen = np.random.default_rng(0)
    vocabulary = facts.manifest.vocabulary or 1
    window = 0 if facts.layers is None else 2 * facts.layers.reach
    longest = min(facts.manifest.max_tokens, window + passes.BLOCK + 7)
    probes = []
    for lengths in ([min(3, longest)], [longest, max(1, longest * 5 // 8)]):
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        probes.append(
            (chosen.integers(0, vocabulary, mask.shape) * mask + facts.manifest.pad_id * (1 - mask), mask)
        )
    return probes


def run(
    plan: Plan,
    build: "Callable[[Model], Model]",
    probes: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]],
    **properties: str,
) -> list[NDArray[np.float32]]:
    """What a graph gives for each probe, on the CPU in float32; `properties` besides those that say so."""
    pinned = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(plan.threads),
        "CPU_DENORMALS_OPTIMIZATION": "YES",
    }
    on_cpu = replace(
        plan,
        device="CPU",
        compute_type="float32",
        properties=pinned | properties,
        streams=1,
        many_streams=1,
        cache=None,
        static_lengths=(),
    )
    runtime = Runtime(on_cpu, lambda model, form: build(model), "probe")
    return [runtime.run(ids, mask) for ids, mask in probes]


def pool(vectors: NDArray[np.float32], mask: NDArray[np.int64], modes: Sequence[str]) -> NDArray[np.float64]:
    """Token vectors (B, T, D) and their mask (B, T) -> (B, D * len(modes)), without a graph.

    Written apart from `head`, which it judges. What is pooled already, (B, D), stays as it is.
    """
    if vectors.ndim == 2:
        return vectors.astype(np.float64)
    rows = []
    for tokens, seen in zip(vectors.astype(np.float64), mask.astype(bool), strict=True):
        real = tokens[seen]  # (T_i, D)
        count = np.arange(1, len(real) + 1)[:, None]
        by_mode = {
            "cls": real[0],
            "max": real.max(0),
            "mean": real.mean(0),
            "mean_sqrt_len_tokens": real.sum(0) / len(real) ** 0.5,
            "weightedmean": (real * count).sum(0) / count.sum(),
            "lasttoken": real[-1],
        }
        rows.append(np.concatenate([by_mode[mode] for mode in modes]))
    return np.array(rows)


def unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """(B, D) with rows of length 1, and of NaN for rows of zeros: the direction is what is compared."""
    wide = vectors.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        rows: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return rows


def made_from(plan: Plan, facts: Facts) -> dict[str, Any]:
    """What an outcome depends on, besides the weights themselves: those `edge-embed verify` vouches for."""
    import openvino

    xml = plan.file.suffix == ".xml"
    weights = plan.file.with_suffix(".bin") if xml else plan.file
    layers = facts.layers
    return {
        "version": VERSION,
        "openvino": openvino.get_version(),
        "xml": hashlib.sha256(plan.file.read_bytes()).hexdigest() if xml else None,
        "weights_bytes": weights.stat().st_size if weights.exists() else 0,
        "pooling": list(facts.manifest.pooling),
        "layers": None if layers is None else {"local": list(layers.local), "reach": layers.reach},
        "max_tokens": facts.manifest.max_tokens,
        "vocabulary": facts.manifest.vocabulary,
    }


def kept(plan: Plan, facts: Facts, spare: Path) -> dict[str, Outcome] | None:
    """The outcomes on record for this very file; None when there are none."""
    told = read_record(plan.folder).get(KEY, {})
    entry = told.get(relative(plan)) if isinstance(told, dict) else None
    if entry is None:
        try:
            entry = json.loads(spare_file(plan, spare).read_bytes())
        except (OSError, ValueError):
            return None
    try:
        if entry["made_from"] != made_from(plan, facts):
            return None
        return {
            name: Outcome(entry["passes"][name]["taken"], entry["passes"][name]["why"]) for name in PASSES
        }
    except (KeyError, TypeError):
        return None


def keep(plan: Plan, facts: Facts, outcomes: Mapping[str, Outcome], spare: Path) -> None:
    """Put outcomes on record: in edge_embed.json where the folder has one, else in the spare folder.

    A model folder that is not ours gets no file of ours, and a shared one may be read-only.
    """
    told = {name: {"taken": outcome.taken, "why": outcome.why} for name, outcome in outcomes.items()}
    entry = {"made_from": made_from(plan, facts), "passes": told}
    record = read_record(plan.folder)
    try:
        if record:
            others = record.get(KEY, {}) if isinstance(record.get(KEY), dict) else {}
            write_record(plan.folder, record | {KEY: others | {relative(plan): entry}})
            return
    except OutputError as error:
        logger.info("%s", error)
    try:
        file = spare_file(plan, spare)
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(file, json.dumps(entry))
    except (OSError, OutputError) as error:
        logger.warning("the check of %s will run again at the next start: %s", plan.file, error)


def relative(plan: Plan) -> str:
    """The plan's file as the record names it."""
    return plan.file.relative_to(plan.folder).as_posix()


def spare_file(plan: Plan, spare: Path) -> Path:
    """Where the outcomes of this file are kept outside of its folder."""
    return spare / f"{hashlib.sha256(str(plan.file.absolute()).encode()).hexdigest()[:32]}.json"
