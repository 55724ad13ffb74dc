"""Reads a checkpoint: config.json, and *.safetensors mapped into memory. Knows no architecture and no graph.

The format: https://github.com/huggingface/safetensors#format. What its own reader refuses is refused here,
and so is what it lets pass against that text: duplicate keys, unknown fields, a `__metadata__` of null.
"""

import json
import mmap
import operator
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PureWindowsPath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import CheckpointError

HEADER_LIMIT = 100_000_000  # bytes, as in safetensors
SIZE_LIMIT = 2**63  # above every shape, offset and bit count that a file can have
CHUNK = 1 << 18  # values checked at once: 1 MiB of float32 stays in the cache
LFS_POINTER = b"version https://git-lfs.github.com/"

# Every dtype of the format, with the bits of one element.
BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}

# The dtypes that weights may have: raw bytes to float32. NumPy casts in small pieces: the result is the peak.
# F32 is copied only where a writer did not pad its header and so left the data off the 4-byte grid.
WIDEN: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
    "F32": lambda raw: np.require(raw.view("<f4"), requirements="A"),
    "F16": lambda raw: raw.view("<f2").astype(np.float32),
    "BF16": lambda raw: np.left_shift(raw.view("<u2"), 16, dtype=np.uint32).view(np.float32),
}


@dataclass(frozen=True, slots=True)
class Config:
    """config.json, strictly typed: a bool is no integer, 12.0 is no integer, "12" is no integer.

    A null counts as absent: transformers writes it for options that are not set. Each accessor raises
    CheckpointError for a value of another type, and for an absent one that has no default.
    """

    path: Path
    values: Mapping[str, object]
    prefix: str = ""  # where a table of the file keeps these values, for messages: "rope_parameters."

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    @property
    def model_type(self) -> str:
        return self.text("model_type")

    def integer(self, name: str, default: int | None = None) -> int:
        value: int = self._typed(name, default, "an integer", int)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite float; an integer in the file will do."""
        value = self._typed(name, default, "a number", int, float)
        if not abs(value) <= sys.float_info.max:
            raise self.unlike(name, "a finite number")
        return float(value)

    def text(self, name: str, default: str | None = None) -> str:
        value: str = self._typed(name, default, "a string", str)
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        value: bool = self._typed(name, default, "true or false", bool)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value: list[Any] = self._typed(name, None, "a list of strings", list)
        if not all(isinstance(text, str) for text in value):
            raise self.unlike(name, "a list of strings")
        return tuple(value)

    def table(self, name: str, default: Mapping[str, object] | None = None) -> "Config":
        """A table inside the file, as strictly typed; its keys are told as `name.key`."""
        return Config(self.path, self._typed(name, default, "a table", dict), f"{self.prefix}{name}.")

    def unlike(self, name: str, wanted: str) -> CheckpointError:
        """The error for a value that is there and is not what is wanted."""
        value = _show(self.values.get(name))
        return CheckpointError(f"{self.prefix}{name} in {self.path} is {value}, not {wanted}")

    def _typed(self, name: str, default: object, wanted: str, *kinds: type) -> Any:
        value = self.values[name] if name in self else default
        if value is None:
            raise CheckpointError(f"{self.path} has no {self.prefix}{name}, which this model needs")
        if type(value) not in kinds:  # not isinstance, by which True is an integer
            raise self.unlike(name, wanted)
        return value


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file, not yet read."""

    file: Path
    dtype: str  # a key of BITS
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]  # (bytes,) view of the mapped file
    mapping: mmap.mmap  # the whole file


class Weights:
    """The tensors of a checkpoint by name, each read when it is taken."""

    __slots__ = ("_folder", "_taken", "_tensors")

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        self._folder = folder
        self._tensors = tensors
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Read one tensor and mark it as consumed.

        returns: `shape` float32  read-only; a view of the mapped file for F32, a new array for F16 and BF16

        Errors: CheckpointError if it is absent, has another shape or another dtype, or holds NaN or Inf.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self._folder} has {len(self._tensors)} tensors, but no {_show(name)}")
        what = _named(name, tensor.file)
        if tensor.dtype not in WIDEN:
            raise CheckpointError(f"{what} is {tensor.dtype}; weights are read from {', '.join(WIDEN)}")
        if tensor.shape != shape:
            raise CheckpointError(f"{what} has shape {_show(tensor.shape)}, but config.json asks for {shape}")
        values = WIDEN[tensor.dtype](tensor.raw)  # flat, so that a chunk is a slice
        chunks = (values[start : start + CHUNK] for start in range(0, values.size, CHUNK))
        if tensor.dtype != "F32" and sys.platform == "linux":
            # The file's pages have served, and would count as ours beside the copy. Others come back if used.
            tensor.mapping.madvise(mmap.MADV_DONTNEED)
        broken = values.size - sum(np.count_nonzero(np.isfinite(chunk)) for chunk in chunks)
        if broken:
            raise CheckpointError(f"{what} holds NaN or Inf in {broken} of {values.size} values")
        self._taken.add(name)
        result = values.reshape(shape)
        result.flags.writeable = False  # on this view only: its base can still be shared with OpenVINO
        return result

    def assert_consumed(self, ignored: tuple[str, ...] = ()) -> None:
        """Raise CheckpointError if a tensor was not taken and no regex in `ignored` matches all its name."""
        unused = sorted(self._tensors.keys() - self._taken)
        left = [name for name in unused if not any(re.fullmatch(pattern, name) for pattern in ignored)]
        if left:
            names = ", ".join(map(_show, left[:5])) + (", ..." if len(left) > 5 else "")
            raise CheckpointError(
                f"{self._folder} has {len(left)} tensors that the model leaves unused: {names}"
            )


def read_config(folder: Path) -> Config:
    """Read config.json. Errors: CheckpointError if it cannot be read or is not a JSON object."""
    path = folder / "config.json"
    return Config(path, _read_json(path))


def open_weights(folder: Path, prefixes: tuple[str, ...] = ()) -> Weights:
    """Map model.safetensors or, without it, the shards of model.safetensors.index.json, as transformers does.

    The first of `prefixes` that at least one name carries is cut off; names without it stay as they are.

    Errors: CheckpointError for files that are missing, malformed or cut, and for shards unlike their index.
    """
    for name, read in {"model.safetensors": _map_file, "model.safetensors.index.json": _map_shards}.items():
        if os.path.lexists(folder / name):  # a dangling link too: a cache that lost its blobs should say so
            tensors = read(folder / name)
            break
    else:
        raise _no_weights(folder)
    prefix = next((p for p in prefixes if any(name.startswith(p) for name in tensors)), "")
    short: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if short.setdefault(name.removeprefix(prefix), tensor) is not tensor:
            clash = _show(name.removeprefix(prefix))
            raise CheckpointError(f"{folder} has tensor {clash} both with and without the prefix {prefix!r}")
    return Weights(folder, short)


def _no_weights(folder: Path) -> CheckpointError:
    if not folder.is_dir():
        return CheckpointError(f"{folder} is not a folder")
    if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin*")):
        advice = "pickles can run code and are not read; convert them with save_pretrained of transformers"
        return CheckpointError(f"{folder} has {pickles[0]} but no model.safetensors: {advice}")
    return CheckpointError(f"{folder} has neither model.safetensors nor model.safetensors.index.json")


def _map_shards(index: Path) -> dict[str, Tensor]:
    weight_map = _read_json(index).get("weight_map")
    if not (weight_map and _is_text_map(weight_map)):
        raise CheckpointError(f"weight_map of {index} is not a table of tensor names and file names")
    shards: defaultdict[str, set[str]] = defaultdict(set)
    for name, shard in weight_map.items():
        # A Windows path knows both separators and drives, so this holds on every system.
        if not shard.endswith(".safetensors") or PureWindowsPath(shard).name != shard:
            raise CheckpointError(f"{index} names {_show(shard)}, which is no .safetensors file beside it")
        shards[shard].add(name)
    if missing := sorted(shard for shard in shards if not index.with_name(shard).is_file()):
        count = f"{len(missing)} of {len(shards)} shards are missing"
        raise CheckpointError(f"{count} beside {index}, first {_show(missing[0])}; download them again")
    tensors: dict[str, Tensor] = {}
    for shard, names in shards.items():
        path = index.with_name(shard)
        held = _map_file(path)
        if held.keys() != names:
            wrong = min(held.keys() ^ names)
            trouble = f"{path} {'lacks' if wrong in names else 'has'} tensor {_show(wrong)}"
            raise CheckpointError(f"{trouble}, which the index places in {_show(weight_map.get(wrong))}")
        tensors |= held
    return tensors


def _map_file(path: Path) -> dict[str, Tensor]:
    """Map one .safetensors file and check its header against its size; tensor data is not touched."""
    try:
        size = path.stat().st_size
        if size < 8:
            raise CheckpointError(f"{path} has {size} bytes; the length of its header alone takes 8")
        # Private ("c"), because OpenVINO shares only memory that could be written; the file never changes.
        mapped = np.memmap(path, dtype=np.uint8, mode="c")
    except OSError as error:
        raise _unreadable(path, error) from error
    data = np.asarray(mapped)
    if data[: len(LFS_POINTER)].tobytes() == LFS_POINTER:
        raise CheckpointError(f"{path} is a git-LFS pointer of {size} bytes, no weights; run `git lfs pull`")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")  # of the data
    if start > min(8 + HEADER_LIMIT, size):
        limit = f"it has {size} bytes, and a header at most {HEADER_LIMIT}"
        raise CheckpointError(f"{path} announces a header of {start - 8} bytes, but {limit}")
    header = _parse(data[8:start].tobytes(), f"the header of {path}")
    if not _is_text_map(header.pop("__metadata__", {})):
        raise CheckpointError(f"__metadata__ of {path} is not a table of strings")
    entries = [(*_entry(_named(name, path), entry), name) for name, entry in header.items()]

    tensors = {}
    mapping = cast("mmap.mmap", mapped.base)  # for numpy's types every base is an array
    covered = 0
    for begin, end, shape, dtype, name in sorted(entries):
        if begin != covered:
            trouble = f"begins at byte {begin} of the data, where the one before it ends at {covered}"
            raise CheckpointError(f"{_named(name, path)} {trouble}: a hole or an overlap")
        tensors[name] = Tensor(path, dtype, shape, data[start + begin : start + end], mapping)
        covered = end
    if start + covered != size:
        trouble = "cut short" if size < start + covered else "appended to"
        raise CheckpointError(f"{path} was {trouble}: {size} bytes, not the {start + covered} of its header")
    return tensors


def _entry(what: str, entry: Any) -> tuple[int, int, tuple[int, ...], str]:
    """Check what a header says of one tensor: begin, end, shape, dtype."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if len(entry) == 3:
            pass
        case _:
            raise CheckpointError(f"{what} is {_show(entry)}, not a dtype, a shape and two data_offsets")
    if dtype not in BITS:
        raise CheckpointError(f"{what} has the unknown dtype {_show(dtype)}")
    for size in (*shape, begin, end):
        if type(size) is not int or not 0 <= size < SIZE_LIMIT:
            raise CheckpointError(f"{what} has the size {_show(size)}, not an integer from 0 to 2**63 - 1")
    for bits in accumulate(shape, operator.mul, initial=BITS[dtype]):  # ends at the first product too large
        if bits >= SIZE_LIMIT:
            raise CheckpointError(f"{what} has shape {_show(shape)}, which overflows 64 bits")
    if bits != 8 * (end - begin):
        offsets = f"data_offsets [{begin}, {end}] span {8 * (end - begin)}"
        raise CheckpointError(f"{what} is {dtype} of shape {_show(shape)}, {bits} bits, but its {offsets}")
    return begin, end, tuple(shape), dtype


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _parse(data, str(path))


def _parse(data: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object. As for serde_json, strings are whole Unicode and -0 is no integer."""

    def integer(digits: str) -> float:
        return -0.0 if digits == "-0" else int(digits)

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_int=integer)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON in UTF-8: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is {_show(value)}, not a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {_show(key)} occurs twice")
        (key + value if isinstance(value, str) else key).encode()  # a ValueError for half a surrogate pair
        table[key] = value
    return table


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    reason = error.strerror or error
    return CheckpointError(f"cannot read {path}: {reason}; a checkpoint has config.json and its weights")


def _named(name: str, file: Path) -> str:
    return f"tensor {_show(name)} of {file}"


def _show(value: object) -> str:
    """`repr`, kept to one line of bearable length whatever a hostile file holds."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}... ({len(text)} characters)"
