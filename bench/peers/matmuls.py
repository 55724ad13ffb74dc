"""The limit of the machine: the matrix products of a model alone, for as many tokens as the texts have.

Gives no vectors: rows are NaN. The shapes are read from the folder's float32 IR, in its order. Each product
takes what it needs of the columns of the one before it, as the model's own do, so they run one after another
on warm caches. `numpy` is the float32 GEMM of NumPy's BLAS on the same shapes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers import Encoder, Unavailable

if TYPE_CHECKING:
    import numpy as np
    import openvino
    from numpy.typing import NDArray

ENVIRONMENT = "test"
KINDS = ("float32", "bfloat16", "int8", "numpy")
BATCH_SIZES = (0,)

TOKENS = 512  # rows of each product: what edge_embed puts into a batch, and large enough to be compute-bound
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


def load(folder: Path, *, kind: str, threads: int, cache: Path | None) -> Encoder:
    """cache is not used: there is nothing to load."""
    import numpy as np
    from tokenizers import Tokenizer

    shapes = products(folder / "openvino" / "openvino_model.xml")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    run, effective = of_numpy(shapes, threads) if kind == "numpy" else of_openvino(shapes, kind, threads)
    counts: dict[tuple[str, ...], int] = {}

    def call(texts: list[str], batch_size: int | None) -> "NDArray[np.float32]":
        key = tuple(texts)
        if key not in counts:  # tokenized in the warm-up only: it is no matrix product
            counts[key] = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts))
        for _ in range(-(-counts[key] // TOKENS)):
            run()
        return np.full((len(texts), 1), np.nan, np.float32)

    parameters = sum(inner * width for inner, width in shapes)
    return Encoder(call, effective | {"products": str(len(shapes)), "flop_per_token": str(2 * parameters)})


def products(file: Path) -> list[tuple[int, int]]:
    """(K, N) of each product with stored weights, in the order of the graph."""
    import openvino

    found = []
    for node in openvino.Core().read_model(file).get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.input_value(1).get_partial_shape().rank != 2:
            continue
        shape = node.input_value(1).get_shape()
        found.append((shape[1], shape[0]) if node.get_attributes()["transpose_b"] else (shape[0], shape[1]))
    if not found:
        raise Unavailable(f"{file} has no product with stored weights")
    return [(int(inner), int(width)) for inner, width in found]


def of_openvino(shapes: list[tuple[int, int]], kind: str, threads: int) -> tuple[Any, dict[str, str]]:
    """What runs all products once, and what OpenVINO says of them."""
    import numpy as np
    import openvino

    properties = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[kind],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": "1",
    }
    compiled = openvino.Core().compile_model(graph(shapes, int8=kind == "int8"), "CPU", properties)
    request = compiled.create_infer_request()
    feed = np.random.default_rng(0).standard_normal((TOKENS, shapes[0][0]), np.float32)
    kernels = {
        str(node.get_rt_info()["primitiveType"].astype(str))
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    }
    effective = {
        "precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
        "kernels": ", ".join(sorted(kernels)),
    }
    return lambda: request.infer([feed], share_inputs=True, share_outputs=True), effective


def graph(shapes: list[tuple[int, int]], *, int8: bool) -> "openvino.Model":
    """One product after another, (TOKENS, K) -> (TOKENS, N); int8 quantizes what goes in and the weights."""
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    chance = np.random.default_rng(0)
    entry = x = ops.parameter([TOKENS, shapes[0][0]], np.float32)
    results = []
    for inner, width in shapes:
        have = x.get_output_shape(0)[1]
        if have < inner:  # no model so far: its product would have to take from two
            results.append(x)
            x, have = entry, entry.get_output_shape(0)[1]
        if have > inner:
            x = ops.slice(x, np.array([0]), np.array([inner]), np.array([1]), np.array([1]))
        scale = inner**-0.5
        if int8:
            ends = [np.float32(-4), np.float32(4) * np.float32(127 / 128)]
            x = ops.fake_quantize(x, *ends, *ends, levels=256)
            codes = ops.constant(chance.integers(-127, 128, (width, inner), np.int8))
            weight = ops.multiply(ops.convert(codes, "f32"), np.full((width, 1), scale / 64, np.float32))
        else:
            weight = ops.constant(chance.standard_normal((width, inner), np.float32) * np.float32(scale))
        x = ops.matmul(x, weight, False, True)
    return openvino.Model([ops.result(x), *map(ops.result, results)], [entry], "matmuls")


def of_numpy(shapes: list[tuple[int, int]], threads: int) -> tuple[Any, dict[str, str]]:
    """The same with numpy.matmul. BLAS reads its number of threads when it is loaded, hence threadpoolctl."""
    import numpy as np
    from threadpoolctl import threadpool_info, threadpool_limits

    threadpool_limits(threads, "blas")
    chance = np.random.default_rng(0)
    pairs = [
        (chance.standard_normal((TOKENS, k), np.float32), chance.standard_normal((k, n), np.float32))
        for k, n in shapes
    ]
    outputs = {n: np.empty((TOKENS, n), np.float32) for _, n in shapes}

    def run() -> None:
        for a, b in pairs:
            np.matmul(a, b, out=outputs[b.shape[1]])

    blas = next(info for info in threadpool_info() if info["user_api"] == "blas")
    return run, {
        "precision": "f32",
        "threads": str(blas["num_threads"]),
        "kernels": f"{blas['internal_api']} {blas['version']} {blas.get('architecture', '')}".strip(),
    }
