"""The float32 IR of a model folder -> an INT8 one beside it, by NNCF, as a recipe says.

    int8_weights  8 bits for each weight, no data needed; activations stay float32
    int8          activations too, by ranges that calibration texts show

Knows what NNCF is to be told and why, the IR and its record. Does not know how far the result drifts, nor
which machine should run it.
"""

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import __version__, calibration, ir
from edge_embed.drift import gate, measure
from edge_embed.drift.record import CALIBRATED, CALIBRATION, DIGITS, QUANTIZED, hash_text
from edge_embed.errors import InputError, ModelError, ModelNotFoundError
from edge_embed.graph import head, linears, ops, passes
from edge_embed.hardware import machine
from edge_embed.manifest import read_manifest
from edge_embed.plan import COMPUTE_TYPES, DRIFT
from edge_embed.prepare import KEY as PREPARATION
from edge_embed.record import file_entries, hash_file, model_name, read_record, write_record
from edge_embed.resources import data_folder, read_toml
from edge_embed.tokenization import Tokenizer

if TYPE_CHECKING:
    from openvino import Model
    from tqdm import tqdm

logger = logging.getLogger(__name__)

RECIPE = "recipe.toml"

WEIGHT_MODES = ("int8_asym", "int8_sym")
RANGE_ESTIMATORS = (
    "minmax",
    "mean_minmax",
    "median_minmax",
    "mean_no_outliers_minmax",
    "mean_quantile",
    "histogram",
)
OFF = -1.0  # smooth_quant_alpha without SmoothQuant

# Constants of 8 bits with more elements than this are weights that somebody has quantized.
SMALL_CONSTANT = 1000


@dataclass(frozen=True, slots=True)
class Recipe:
    """What NNCF is told, where it is worth choosing. recipe.toml has these keys; what it lacks is as here.

    The rest is fixed. Model type TRANSFORMER: without it norms are quantized, too. Device CPU: CPU_SPR
    quantizes RoPE. Preset MIXED: symmetric activations cost 0.9 dB on MiniLM. No bias correction: it changes
    nothing at best, and its thorough form costs 2.6 dB there.
    """

    weight_mode: str = "int8_asym"  # of int8_weights; on MiniLM 2 dB better than int8_sym, at the same size
    smooth_quant_alpha: float = 0.85  # 0 to 1, or -1: off. On MiniLM 1 dB better than NNCF's 0.95
    range_estimator: str = "mean_minmax"  # of RANGE_ESTIMATORS; all but mean_quantile (-4 dB) are alike
    # Input channels of a linear that are computed in float32, at most so many (0: none), and only those whose
    # largest magnitude is so many times that of the median channel.
    outlier_channels: int = 8
    outlier_ratio: float = 3.0
    # Linears whose activations stay float32 while their weights are INT8, by name and by pattern.
    weight_only_names: tuple[str, ...] = ()
    weight_only_patterns: tuple[str, ...] = ()
    subset_size: int = 512  # the first so many texts are used; below 100 ranges depend on which
    seed: int = 0  # orders the texts of the user; the built-in ones have their own, balanced order
    ignored_names: tuple[str, ...] = ()  # ops that stay as they are, by their name in the IR
    ignored_patterns: tuple[str, ...] = ()  # the same by regular expressions that match a name's start

    def __post_init__(self) -> None:
        for key, value, known in (
            ("weight_mode", self.weight_mode, WEIGHT_MODES),
            ("range_estimator", self.range_estimator, RANGE_ESTIMATORS),
        ):
            if value not in known:
                raise InputError(f"{key} is {value!r}; known: {', '.join(known)}")
        if not (self.smooth_quant_alpha == OFF or 0 <= self.smooth_quant_alpha <= 1):
            raise InputError(f"smooth_quant_alpha is {self.smooth_quant_alpha}; from 0 to 1, or -1 for none")
        if self.subset_size < 1:
            raise InputError(f"subset_size is {self.subset_size}; it must be at least 1")
        if self.outlier_channels < 0:
            raise InputError(f"outlier_channels is {self.outlier_channels}; 0 is for none")
        if not self.outlier_ratio >= 0:
            raise InputError(f"outlier_ratio is {self.outlier_ratio}; it must be at least 0")
        for key, patterns in (
            ("ignored_patterns", self.ignored_patterns),
            ("weight_only_patterns", self.weight_only_patterns),
        ):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise InputError(f"{key} holds {pattern!r}, no regular expression: {error}") from None


@dataclass(frozen=True, slots=True)
class Quantized:
    """What `quantize` has made, and of how much."""

    file: Path  # the .xml
    texts: int  # calibration texts; 0 where none are needed
    tokens: int  # in these
    cut: int  # texts that were cut to the model's limit


@dataclass(frozen=True, slots=True)
class Samples:
    """Calibration texts as token rows of natural length: iterating gives a feed of batch 1 for each.

    They are gone through for the outlier channels, for SmoothQuant, and for ranges.
    """

    rows: Sequence[NDArray[np.int64]]  # (T_i,)
    inputs: frozenset[str]  # of head.INPUTS
    bar: "tqdm[Any]"  # counts tokens, all passes together

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, NDArray[np.int64]]]:
        for row in self.rows:
            self.bar.update(len(row))
            yield head.feed(row[None], self.inputs)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.toml.

    Errors: InputError naming the file and the key that is unknown, of another type or out of range.
    """
    values = read_toml(path)
    defaults = asdict(Recipe())
    if unknown := sorted(values.keys() - defaults.keys()):
        raise InputError(f"{path}: unknown key {', '.join(unknown)}; known: {', '.join(defaults)}")
    for key, value in values.items():
        kind = type(defaults[key])
        if kind is float and type(value) is int:
            values[key] = float(value)
        elif kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            values[key] = tuple(value)
        elif type(value) is not kind:
            wanted = "a list of strings" if kind is tuple else kind.__name__
            raise InputError(f"{path}: {key} is {value!r}, not {wanted}")
    try:
        return Recipe(**values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def as_toml(recipe: Recipe) -> str:
    """What `read_recipe` reads back."""
    # JSON's numbers, strings and lists of strings are TOML's, too.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in asdict(recipe).items())


def recipe_of(folder: Path) -> Recipe:
    """The recipe in models/ of the model that a folder's record names; the defaults where there is none."""
    path = data_folder("models") / model_name(folder) / RECIPE
    return read_recipe(path) if path.is_file() else Recipe()


def quantize(
    folder: Path,
    compute_type: str,
    recipe: Recipe | None = None,
    *,
    texts_file: Path | None = None,
    allow_few: bool = False,
    show_progress_bar: bool = False,
) -> Quantized:
    """Write the INT8 IR of a model folder and put it on record, whole or not at all.

    compute_type  int8_weights | int8
    recipe        None: `recipe_of` the folder
    texts_file    own calibration texts, lines or JSONL, for int8; None: the built-in ones
    allow_few     take fewer own texts than ranges should be chosen from

    The same IR, recipe, texts, libraries and CPU give the same bytes.
    Errors: InputError, ModelError and OutputError, each of one line.
    """
    if compute_type not in ("int8_weights", "int8"):
        raise InputError(f"compute_type is {compute_type!r}; known: int8_weights, int8")
    if texts_file is not None and compute_type != "int8":
        raise InputError(f"{compute_type} needs no calibration texts; they are for int8")
    import_nncf()
    recipe = recipe_of(folder) if recipe is None else recipe
    source = find_source(folder)
    model = read_source(source, recipe)
    entry: dict[str, Any] = {"recipe": asdict(recipe), "made_by": versions(), "made_from": hashes(source)}
    counts = {"texts": 0, "tokens": 0, "cut": 0}
    if compute_type == "int8_weights":
        model = quantize_weights(model, recipe, show_progress_bar)
    else:
        manifest = read_manifest(folder)
        tokenizer = Tokenizer(folder, max_tokens=manifest.max_tokens, lower_case=manifest.lower_case)
        tokenizer.check_fits(manifest.vocabulary)
        texts = calibration_texts(texts_file, tokenizer, recipe, allow_few)
        tokens = tokenizer.encode(texts)
        cut = int((tokens.lengths > manifest.max_tokens).sum())
        counts = {"texts": len(texts), "tokens": sum(map(len, tokens.ids)), "cut": cut}
        origin = "built-in" if texts_file is None else texts_file.name
        known = sorted(hash_text(text)[:DIGITS] for text in texts)
        entry[CALIBRATION] = {"source": origin, "sha256": hash_texts(texts), **counts, CALIBRATED: known}
        model = quantize_all(model, recipe, tokens.ids, show_progress_bar)
    ops.number_names(model)  # else the bytes depend on the process
    file = folder / "openvino" / ir.VARIANTS[compute_type]
    install(model, file, folder, compute_type, entry)
    return Quantized(file, **counts)


def import_nncf() -> None:
    """Import NNCF, which is an extra."""
    try:
        import nncf  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "nncf":  # it is there, but broken
            raise
        raise InputError("quantizing needs NNCF: pip install 'edge-embed[quantize]'") from None


def find_source(folder: Path) -> Path:
    """The float32 IR of a model folder."""
    source = ir.find_files(folder).variants.get("float32")
    if source is None:
        raise ModelNotFoundError(f"{folder} has no float32 IR to quantize; run: edge-embed build {folder}")
    return source


def read_source(source: Path, recipe: Recipe) -> "Model":
    """A float32 IR, after a look at whether it is one and has what the recipe names."""
    import openvino

    model = ir.read(openvino.Core(), source)
    check_float(model, source)
    check_scope(model, source, recipe)
    return model


def check_float(model: "Model", source: Path) -> None:
    """Refuse a model that is quantized already."""
    found = [kind for kind in ("quantization", "weight_compression") if model.has_rt_info(["nncf", kind])]
    why = f"NNCF's {found[0]} is on record in it" if found else ""
    if not why and passes.activation_quantizers(model):
        why = "activations are quantized in it"
    if not why and any(map(is_quantized_weight, model.get_ops())):
        why = "it holds weights of 8 bits or less"
    if why:
        raise ModelError(
            f"{source} is quantized already: {why}; rounding what is rounded adds error and measures the "
            "wrong ranges, so start from the float32 IR"
        )


def is_quantized_weight(node: Any) -> bool:
    """Whether an op is a constant that holds weights in 8 bits or less."""
    if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() == "boolean":
        return False
    return bool(node.get_element_type().bitwidth <= 8 and np.prod(node.get_output_shape(0)) > SMALL_CONSTANT)


def check_scope(model: "Model", source: Path, recipe: Recipe) -> None:
    """Refuse a recipe that names ops which the model does not have: it is of another exporter's graph."""
    names = sorted({node.get_friendly_name() for node in model.get_ops()})
    products = sorted(node.get_friendly_name() for node in linears.linears(model))
    for kind, known, wanted, patterns in (
        ("ignores", names, recipe.ignored_names, recipe.ignored_patterns),
        ("leaves the activations of", products, recipe.weight_only_names, recipe.weight_only_patterns),
    ):
        unknown = [name for name in wanted if name not in known]
        unknown += [pattern for pattern in patterns if not any(re.match(pattern, name) for name in known)]
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.4)
            hint = f"; names like that are: {', '.join(near)}" if near else ""
            what = "op" if known is names else "linear"
            raise InputError(
                f"the recipe {kind} {', '.join(unknown)}, which no {what} of {source} is called{hint}"
            )


def calibration_texts(file: Path | None, tokenizer: Tokenizer, recipe: Recipe, allow_few: bool) -> list[str]:
    """The texts that int8 is calibrated on, at most recipe.subset_size, in their order."""
    if file is not None:
        return own_texts(file, recipe, allow_few)
    found = calibration.builtin(
        lambda text: int(tokenizer.encode([text]).lengths[0]), max_tokens=tokenizer.max_tokens
    )
    return [text.text for text in found[: recipe.subset_size]]


def own_texts(file: Path, recipe: Recipe, allow_few: bool) -> list[str]:
    """A user's calibration texts, at most recipe.subset_size, in the order that the recipe's seed gives.

    Errors: InputError for a file that cannot be used, holds too few texts, or some that drift is measured on.
    """
    own = calibration.read_user_texts(file, allow_few=allow_few)
    if own.duplicates or own.blank:
        logger.warning("%s: %d repeated and %d blank texts are left out", file, own.duplicates, own.blank)
    if leaked := calibration.leaked(own.texts, (text.text for text in calibration.evaluation())):
        raise InputError(
            f"{file} holds {len(leaked)} of the texts that drift is measured on, the first is "
            f"{leaked[0][:60]!r}; take them out, or the measure means nothing"
        )
    # By hash, so that neither the order of the file nor the version of Python matters.
    ordered = sorted(own.texts, key=lambda text: hash_texts([str(recipe.seed), text]))
    return ordered[: recipe.subset_size]


def hash_texts(texts: Sequence[str]) -> str:
    """sha256 of texts in their order."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def quantize_weights(model: "Model", recipe: Recipe, show_progress_bar: bool) -> "Model":
    """8 bits for each weight and row of a table, with a scale and a zero point for each output channel.

    The file says that activations stay float32: OpenVINO's default is to quantize them on the fly where the
    CPU has INT8 dot products. The compute type int8_dynamic asks for that when it compiles.
    """
    import nncf

    with quiet(bars=show_progress_bar):
        model = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode[recipe.weight_mode.upper()],
            ignored_scope=ignored(recipe),
        )
    model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    return model


def quantize_all(
    model: "Model", recipe: Recipe, rows: Sequence[NDArray[np.int64]], show_progress_bar: bool
) -> "Model":
    """8 bits for weights and for activations, whose ranges come from token rows (T_i,).

    The token table stays as NNCF leaves it, in int8; the pass int8_table keeps it so when it is loaded.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    from tqdm import tqdm

    inputs = frozenset(head.standardize(model).inputs)
    rounds = 1 + (recipe.smooth_quant_alpha != OFF) + (recipe.outlier_channels > 0)
    with (
        quiet(bars=False),
        outputs_in_order(),
        tqdm(
            total=sum(map(len, rows)) * rounds,
            smoothing=0.05,
            desc="Calibrating",
            unit="token",
            unit_scale=True,
            disable=not show_progress_bar,
        ) as bar,
    ):
        samples = Samples(rows, inputs, bar)
        apart = split_outliers(model, recipe, samples) if recipe.outlier_channels else []
        names = [node.get_friendly_name() for node in linears.linears(model)]
        model = nncf.quantize(
            model,
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(rows),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=ignored(recipe, apart),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                disable_bias_correction=True,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=recipe.smooth_quant_alpha),
                activations_range_estimator_params=getattr(
                    RangeEstimatorParametersSet, recipe.range_estimator.upper()
                ),
            ),
        )
    linears.drop_masks(model)
    linears.leave_activations(model, {name for name in names if is_weight_only(name, recipe)})
    return model


def split_outliers(model: "Model", recipe: Recipe, samples: Samples) -> list[str]:
    """Put the outlier channels that samples show apart, in place; the names of what must stay float32."""
    import openvino

    compiled = openvino.Core().compile_model(
        linears.magnitudes(model.clone()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    )
    request = compiled.create_infer_request()
    largest: list[NDArray[np.float32]] = []
    for feed in samples:
        request.infer(feed)
        seen = [tensor.data for tensor in request.output_tensors]
        largest = [np.maximum(*pair) for pair in zip(largest or seen, seen, strict=True)]
    read = dict.fromkeys(map(linears.source, linears.linears(model)))
    return linears.split_outliers(
        model,
        {
            source: linears.outliers(magnitude, recipe.outlier_channels, recipe.outlier_ratio)
            for source, magnitude in zip(read, largest, strict=True)
        },
    )


def is_weight_only(name: str, recipe: Recipe) -> bool:
    """Whether a recipe leaves the activations of the linear of this name alone."""
    return name in recipe.weight_only_names or any(
        re.match(pattern, name) for pattern in recipe.weight_only_patterns
    )


def ignored(recipe: Recipe, names: Sequence[str] = ()) -> Any:
    """The nncf.IgnoredScope of a recipe, and further names."""
    import nncf

    return nncf.IgnoredScope(names=[*recipe.ignored_names, *names], patterns=list(recipe.ignored_patterns))


@contextmanager
def quiet(*, bars: bool) -> Iterator[None]:
    """Keep NNCF from writing to stdout and from reporting its use; what it had before comes back.

    bars  let its progress bars be seen, on stderr
    """
    import nncf.telemetry.decorator as reporter
    import rich
    from nncf.telemetry.wrapper import NNCFTelemetryStub

    console, log = rich.get_console(), logging.getLogger("nncf")
    before = console.quiet, console.stderr, log.level, reporter.telemetry
    # Our own package blocks its telemetry, but not where NNCF was imported before.
    console.quiet, console.stderr, reporter.telemetry = not bars, True, NNCFTelemetryStub()
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        console.quiet, console.stderr, _, reporter.telemetry = before
        log.setLevel(before[2])


@contextmanager
def outputs_in_order() -> Iterator[None]:
    """Let the models that NNCF collects statistics by have their outputs in the order of the graph.

    In NNCF's own order OpenVINO computes late layers before it has reduced what early ones gave, and so keeps
    that: with texts of 8,192 tokens the exact 311M shape then takes 10.8 GB and 474 s, and 4.2 GB and 316 s
    in the order of the graph.
    """
    from nncf.openvino.engine import OVNativeEngine
    from openvino import Model

    before = OVNativeEngine.__init__

    def ordered(engine: Any, model: Model, *options: Any, **named: Any) -> None:
        depth: dict[str, int] = {}
        for node in model.get_ordered_ops():
            inputs = (value.get_node().get_friendly_name() for value in node.input_values())
            depth[node.get_friendly_name()] = 1 + max((depth[name] for name in inputs), default=0)
        results = sorted(model.get_results(), key=lambda result: depth[result.get_friendly_name()])
        same = Model(results, model.get_sinks(), model.get_parameters(), model.get_friendly_name())
        before(engine, same, *options, **named)

    OVNativeEngine.__init__ = ordered
    try:
        yield
    finally:
        OVNativeEngine.__init__ = before


def install(model: "Model", file: Path, folder: Path, variant: str, entry: Mapping[str, Any]) -> None:
    """Write the IR and its place in the record; neither is left where that fails or is interrupted."""
    ir.write(model, file)
    written = (file, file.with_suffix(".bin"))
    try:
        record = read_record(folder)
        files = file_entries(folder, [path.relative_to(folder).as_posix() for path in written])
        record["files"] = record.get("files", {}) | files
        record[QUANTIZED] = record.get(QUANTIZED, {}) | {variant: entry}
        if DRIFT in record:
            stale = {name for name, (stored, *_) in COMPUTE_TYPES.items() if stored == variant}
            record[DRIFT] = {name: found for name, found in record[DRIFT].items() if name not in stale}
        if PREPARATION in record:  # what was found out about the file before does not hold for this one
            known = record[PREPARATION].items()
            record[PREPARATION] = {name: outcome for name, outcome in known if name not in files}
        write_record(folder, record)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def measure_drift(folder: Path, variant: str, *, show_progress_bar: bool = False) -> dict[str, Any]:
    """Drift from the float32 IR of each compute type that an INT8 file serves here; kept on record.

    variant  int8_weights, which int8_dynamic runs, too, or int8
    """
    texts = measure.evaluation_texts(folder)
    options = {"cache_dir": False, "show_progress_bar": show_progress_bar}
    reference = measure.embed(folder, "float32", texts, **options)
    entries = {}
    for compute_type, (stored, _, group) in COMPUTE_TYPES.items():
        if stored == variant and (group == "0" or machine().has_int8_dot):
            drift = measure.quick(folder, compute_type, texts, reference=reference, **options)
            checks = gate.judge(drift, gate.floors_of(folder, compute_type))
            entries[compute_type] = measure.entry(drift, checks)
    record = read_record(folder)
    record[DRIFT] = record.get(DRIFT, {}) | entries
    write_record(folder, record)
    return entries


def hashes(source: Path) -> dict[str, str]:
    """sha256 of the two files of an IR."""
    return {path.name: hash_file(path) for path in (source, source.with_suffix(".bin"))}


def versions() -> dict[str, str]:
    """What makes an INT8 IR."""
    import nncf
    import openvino

    return {"edge_embed": __version__, "nncf": nncf.__version__, "openvino": openvino.get_version()}
