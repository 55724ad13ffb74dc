"""Where the noise of an INT8 model comes from: what each part of it adds when it alone is quantized.

    activation  one quantizer, by the linears that read it
    weight      that of one linear, also of a split one
    table       the rows of one lookup

Every part of the INT8 graph gets a switch between what it is and what it was made from, so one compiled
graph gives all of them. With every switch off it is the float32 IR, which is checked; with every switch on it
is the INT8 file. INT8 is simulated in float32: what a CPU's INT8 kernels add is not here, nor what
int8_dynamic does to activations. Knows graphs, and texts as tokens; does not know recipes, nor what to do.
"""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed import batching, ir
from edge_embed.calibration import Text
from edge_embed.canary import SIMULATED
from edge_embed.drift.measurement import Located, Source
from edge_embed.drift.metrics import LEAST_NOISE, noise_power
from edge_embed.drift.record import token_rows
from edge_embed.errors import InputError, ModelError, ModelNotFoundError
from edge_embed.graph import head, linears, passes
from edge_embed.hardware import machine
from edge_embed.manifest import Manifest, read_manifest
from edge_embed.plan import COMPUTE_TYPES, TOKEN_BUDGET
from edge_embed.tokenization import Tokenizer

if TYPE_CHECKING:
    from openvino import CompiledModel, Model, Node, Output

logger = logging.getLogger(__name__)

Feed = Mapping[str, NDArray[np.int64]]  # of head.INPUTS, (B, T) each: texts that run together

LOCATED = ("int8", "int8_weights", "int8_dynamic")
ACTIVATION, WEIGHT, TABLE, LAYER = "activation", "weight", "table", "layer"
EMBEDDINGS = "embeddings"  # the name of what stands before the layers

SWITCHES = "switches"  # the input of a graph with switches: (P,) bool, on for a part that is quantized

# As encoder.layer.3.output, layers.3.mlp, __module.layers.3.attn and /layers.3/mlp have it.
NUMBER = re.compile(r"(?<![a-z])layers?[./_](\d+)(?!\d)")

# Ops that move the numbers of a tensor about and change none.
LAYOUT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze"})

# Noise that is left with nothing quantized, as a share of all: more, and the two files are not of one model.
MOST_LEFT = 0.05


@dataclass(frozen=True, slots=True)
class Part:
    """What can be quantized alone."""

    name: str  # of the operator; of several linears that share a quantizer all names, with ", " between
    layer: int | None
    kind: str
    linears: tuple[str, ...] = ()  # that read a quantizer; none for one whose tensor attention reads


def locate(
    folder: Path, compute_type: str, texts: Sequence[Text], *, show_progress_bar: bool = False
) -> Located:
    """Embed texts once for each part and each layer of an INT8 IR, against the float32 IR of its folder.

    compute_type  of LOCATED; of int8_dynamic its weights
    texts         at least 2; some 40 rank parts well
    Errors: InputError for another compute type, and for a single text; ModelNotFoundError where one of the
    two IRs is missing; ModelError for two that are not of one model.
    """
    import openvino
    from tqdm import tqdm

    if len(texts) < 2:
        raise InputError(f"{len(texts)} texts have no spread to compare noise with; give at least 2")
    float32_file, file = find_files(folder, compute_type)
    manifest = read_manifest(folder)
    batches = to_batches(tokenized(folder, manifest, texts), manifest)
    core = openvino.Core()
    reference = float32_vectors(ir.read(core, float32_file), manifest, batches)
    board = Switchboard(ir.read(core, file))
    unmatched = board.add_weights(ir.read(core, float32_file), file)
    board.add_activations()
    if not board.parts:
        raise ModelError(f"{file} has no quantized part; run: {making(folder, compute_type)}")
    layers = by_layer(board.parts)
    simulation = board.compile(manifest, batches)
    with tqdm(
        total=2 + len(board.parts) + len(layers), desc="Locating", unit="part", disable=not show_progress_bar
    ) as bar:

        def vectors(on: Collection[int]) -> NDArray[np.float32]:
            found = simulation.vectors(on)
            bar.update()
            return found

        total = max(noise(reference, vectors(range(len(board.parts)))), LEAST_NOISE)
        off = vectors(())
        left = noise(reference, off)
        if left > MOST_LEFT * total and not unmatched:
            raise ModelError(
                f"{file.name} with nothing quantized is not {float32_file.name}: that alone gives "
                f"{left / total:.0%} of its noise; it was made from other weights, so run: "
                f"{making(folder, compute_type)}"
            )

        def source(part: Part, on: Collection[int]) -> Source:
            found = noise(off, vectors(on))
            return Source(part.name, part.layer, part.kind, found, found / total)

        operators = [source(part, [i]) for i, part in enumerate(board.parts)]
        whole = [source(layer, on) for layer, on in layers]
    return Located(len(texts), total, tuple(whole), tuple(sorted(operators, key=lambda s: -s.noise)))


def rank_activations(
    model: "Model", manifest: Manifest, ids: Sequence[NDArray[np.int64]]
) -> list[tuple[str, ...]]:
    """Linears of a static INT8 graph by the noise that quantizing what they read adds alone, the most first.

    ids      token rows (T_i,) of at least 2 texts
    returns  the linears of one quantizer together; weights are quantized throughout
    """
    board = Switchboard(model.clone())
    board.add_activations()
    simulation = board.compile(manifest, to_batches(ids, manifest))
    off = simulation.vectors(())
    found = {
        part.linears: noise(off, simulation.vectors([i]))
        for i, part in enumerate(board.parts)
        if part.linears
    }
    return sorted(found, key=lambda names: -found[names])


def find_files(folder: Path, compute_type: str) -> tuple[Path, Path]:
    """The float32 IR of a folder, and the INT8 one that serves a compute type."""
    if compute_type not in LOCATED:
        raise InputError(f"{compute_type} has no quantized part to locate; known: {', '.join(LOCATED)}")
    variants = ir.find_files(folder).variants
    if "float32" not in variants:
        raise ModelNotFoundError(
            f"{folder} has no float32 IR to compare with; run: edge-embed build {folder}"
        )
    variant = COMPUTE_TYPES[compute_type][0]
    if variant not in variants:
        raise ModelNotFoundError(
            f"{folder} has no {ir.VARIANTS[variant]} for {compute_type}; run: {making(folder, compute_type)}"
        )
    return variants["float32"], variants[variant]


def making(folder: Path, compute_type: str) -> str:
    """The command that makes an INT8 IR."""
    return f"edge-embed quantize {folder} --compute-type {COMPUTE_TYPES[compute_type][0]}"


def noise(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    """Mean `noise_power`, with the mean shift: parts that shift all texts alike are to be seen."""
    return float(noise_power(reference, candidate, centred=False).mean())


# ---- the graph with switches


class Switchboard:
    """An INT8 graph, to whose parts switches are added one by one."""

    def __init__(self, model: "Model") -> None:
        """The model is edited in place. Errors: ModelError when its ports cannot be told."""
        from openvino import opset13

        self.parts: list[Part] = []
        self._model = model
        self._ports = head.standardize(model)
        self._readers = linears.quantized_inputs(model)  # a weight behind a switch would not look stored
        self._switches = opset13.parameter([-1], np.bool_, name=SWITCHES)
        self._switches.output(0).get_tensor().set_names({SWITCHES})
        model.add_parameters([self._switches])

    def add_weights(self, original: "Model", file: Path) -> int:
        """A switch for every weight and table between its numbers and those of the float32 graph.

        file     of the INT8 graph, for errors
        returns  how many have no counterpart of their name and shape; they stay quantized
        Errors: ModelError when none has one.
        """
        counterparts = {node.get_friendly_name(): node for node in original.get_ops()}
        apart = linears.kept_apart(self._model)
        quantized = [
            *((node, 1) for node in linears.linears(self._model)),
            *((node, 0) for node in lookups(self._model)),
        ]
        quantized = [(node, port) for node, port in quantized if linears.is_quantized(node.input_value(port))]
        matched = []
        for node, port in quantized:
            twin = counterparts.get(node.get_friendly_name())
            if twin is not None and alike(node, twin, port):
                matched.append((node, twin.input_value(port)))
        unmatched = len(quantized) - len(matched)
        if quantized and not matched:
            raise ModelError(
                f"{file.name}: none of its {len(quantized)} quantized weights, the first is that of "
                f"{quantized[0][0].get_friendly_name()!r}, is in the float32 IR beside it by name and shape; "
                "it was made from another graph, so quantize again"
            )
        if unmatched:
            logger.warning(
                "%s: %d of %d quantized weights have no counterpart in the float32 IR, and are left out",
                file,
                unmatched,
                len(quantized),
            )
        tables = [(node, weight) for node, weight in matched if node.get_type_name() == "Gather"]
        for node, weight in matched:
            if node.get_type_name() == "MatMul":
                name = node.get_friendly_name()
                part = Part(name, layer_of(name), WEIGHT)
                held = linears.in_place_of(node, weight, apart.get(name, ()))
                node.input(1).replace_source_output(self._add(part, node.input_value(1), held))
        self._add_tables(tables)
        return unmatched

    def _add_tables(self, tables: "Sequence[tuple[Node, Output]]") -> None:
        """By rows: a switch between whole tables would copy them for each batch."""
        from openvino import opset13

        found = [(node.get_friendly_name(), weight, *node.input_values()[1:]) for node, weight in tables]
        passes.int8_table(self._model, self._ports)  # else the plugin keeps the token table in float32, twice
        nodes = {node.get_friendly_name(): node for node in self._model.get_ops()}
        for name, weight, ids, axis in found:
            rows = opset13.gather(weight, ids, axis).output(0)
            self._insert(Part(name, layer_of(name), TABLE), nodes[name].output(0), rows)

    def add_activations(self) -> None:
        """A switch for every quantizer of activations between its output and its input."""
        for node in passes.activation_quantizers(self._model):
            names = self._readers.get(node.get_friendly_name(), ())
            name = ", ".join(names) or destination(node.output(0))
            self._insert(Part(name, layer_of(name), ACTIVATION, names), node.output(0), node.input_value(0))

    def _insert(self, part: Part, on: "Output", off: "Output") -> None:
        """Let all that reads `on` read it or `off`, as the switch of the part says."""
        targets = list(on.get_target_inputs())
        chosen = self._add(part, on, off)
        for target in targets:
            target.replace_source_output(chosen)

    def _add(self, part: Part, on: "Output", off: "Output") -> "Output":
        from openvino import opset13

        number, axis = (opset13.constant(np.int64(value)) for value in (len(self.parts), 0))
        self.parts.append(part)
        switch = opset13.gather(self._switches, number, axis)
        chosen: Output = opset13.select(switch, on, off).output(0)
        return chosen

    def compile(self, manifest: Manifest, batches: Sequence[Feed]) -> "Simulation":
        """The graph, pooled and ready to run; no switch can be added afterwards."""
        self._model.validate_nodes_and_infer_types()
        model = head.attach(self._model, self._ports, manifest.pooling, normalize=True)
        return Simulation(compiled(model), batches, len(self.parts))


def lookups(model: "Model") -> "list[Node]":
    """The lookups of rows in a stored table of numbers (V, D), in order."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Gather"
        and is_table(node.input_value(0))
        and not passes.is_constant(node.input_value(1))
    ]


def is_table(output: "Output") -> bool:
    return bool(
        passes.is_constant(output)
        and output.get_element_type().is_real()
        and output.get_partial_shape().rank == 2
    )


def alike(node: "Node", twin: "Node", port: int) -> bool:
    """Whether two ops of one name take weights of one shape in the same way."""
    if node.get_type_name() != twin.get_type_name() or not passes.is_constant(twin.input_value(port)):
        return False
    same_shape = node.input_value(port).get_partial_shape() == twin.input_value(port).get_partial_shape()
    return bool(same_shape and node.get_attributes() == twin.get_attributes())


def destination(output: "Output") -> str:
    """The op that a tensor ends in, and as which input: "layers.3.attn input 1"."""
    while True:
        target = min(
            output.get_target_inputs(), key=lambda t: (t.get_node().get_friendly_name(), t.get_index())
        )
        node = target.get_node()
        if node.get_type_name() not in LAYOUT:
            return f"{node.get_friendly_name()} input {target.get_index()}"
        output = node.output(0)


def layer_of(name: str) -> int | None:
    """The number of the layer in an operator's name; None where there is none."""
    found = NUMBER.search(name)
    return int(found.group(1)) if found else None


def by_layer(parts: Sequence[Part]) -> list[tuple[Part, list[int]]]:
    """Each layer, in order and embeddings first, with the places of its parts."""
    found = []
    for number in sorted({part.layer for part in parts}, key=lambda n: -1 if n is None else n):
        name = EMBEDDINGS if number is None else f"{LAYER} {number}"
        found.append((Part(name, number, LAYER), [i for i, part in enumerate(parts) if part.layer == number]))
    return found


# ---- running it


class Simulation:
    """A compiled graph with switches, and the batches that it embeds."""

    def __init__(self, model: "CompiledModel", batches: Sequence[Feed], parts: int) -> None:
        self._request, self._batches, self._parts = model.create_infer_request(), batches, parts

    def vectors(self, on: Collection[int]) -> NDArray[np.float32]:
        """(N, D) unit rows with these parts quantized, in the order of the batches."""
        switches = np.zeros(self._parts, bool)
        switches[list(on)] = True
        return embed(self._request, self._batches, {SWITCHES: switches})


def tokenized(folder: Path, manifest: Manifest, texts: Sequence[Text]) -> list[NDArray[np.int64]]:
    """Token rows (T_i,) of texts, each with the prompt of its role."""
    tokenizer = Tokenizer(folder, max_tokens=manifest.max_tokens, lower_case=manifest.lower_case)
    tokenizer.check_fits(manifest.vocabulary)
    return token_rows(manifest, texts, tokenizer)


def to_batches(ids: Sequence[NDArray[np.int64]], manifest: Manifest) -> list[Feed]:
    """Padded batches of few shapes, for which the plugin keeps its kernels from one run to the next."""
    lengths = np.array([len(row) for row in ids], np.int64)
    rungs = batching.ladder(manifest.max_tokens)
    feeds: list[Feed] = []
    for batch in batching.plan_batches(lengths, rungs, token_budget=TOKEN_BUDGET):
        tokens, mask = batching.pad([ids[i] for i in batch.rows], batch.tokens, manifest.pad_id)
        feeds.append(dict(zip(head.INPUTS, (tokens, mask, np.zeros_like(tokens)), strict=True)))
    return feeds


def float32_vectors(model: "Model", manifest: Manifest, batches: Sequence[Feed]) -> NDArray[np.float32]:
    """(N, D) unit rows that a graph gives as it is, in the order of the batches; it is released then."""
    ports = head.standardize(model)
    pooled = head.attach(model, ports, manifest.pooling, normalize=True)
    return embed(compiled(pooled).create_infer_request(), batches, {})


def compiled(model: "Model") -> "CompiledModel":
    """For the CPU, computing in float32 also what is quantized."""
    import openvino

    properties = {
        **SIMULATED,
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(machine().threads),
    }
    return openvino.Core().compile_model(model, "CPU", properties)


def embed(
    request: Any, batches: Sequence[Feed], inputs: Mapping[str, NDArray[np.bool_]]
) -> NDArray[np.float32]:
    """(N, D) rows of all batches, in their order; `inputs` besides those of tokens go with each of them."""
    names = {port.get_any_name() for port in request.model_inputs}
    rows = []
    for feed in batches:
        values = {name: value for name, value in {**feed, **inputs}.items() if name in names}
        request.infer(values, share_inputs=True)
        rows.append(np.array(request.get_output_tensor(0).data, np.float32))
    return np.concatenate(rows)
