"""What a runtime must know that the graph does not say: pooling, prompts, limits. Knows json files only.

Read from the files of the hub's own layout, as sentence-transformers 6.2 and its older versions write them.
Where two files give a limit, the stricter one wins. What would change vectors and is not known is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from edge_embed.errors import ModelError

# Poolings, each after its boolean in 1_Pooling/config.json before sentence-transformers 6, in the order in
# which that one concatenates several.
OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLINGS = tuple(OLD_POOLING_KEYS.values())

# The Transformer module's file, by all its names; sentence-transformers takes the first that is there.
SENTENCE_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

# These count positions from pad_token_id + 1 on, so that many rows of their table serve no token.
POSITIONS_AFTER_PADDING = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})

# The width of token vectors in config.json: nearly everyone's name for it, DistilBERT's, T5's.
WIDTH_KEYS = ("hidden_size", "dim", "d_model")

# tokenizer_config.json says "no limit" with 1e30; anything from here up is not a limit.
NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True)
class Manifest:
    """The behaviour of one model folder around its graph."""

    pooling: tuple[str, ...]  # of POOLINGS; several are concatenated in this order
    normalize: bool  # a Normalize module follows the pooling
    hidden: int  # D, the width of last_hidden_state
    max_tokens: int  # with special tokens
    limits: Mapping[str, int]  # file and key -> limit; max_tokens is the smallest
    vocabulary: int | None  # V, the rows of the token table
    pad_id: int
    lower_case: bool  # lower-case the text before the tokenizer sees it
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    include_prompt: bool  # prompt tokens take part in the pooling
    similarity: str  # cosine | dot | euclidean | manhattan
    truncate_dim: int | None  # the model's own default

    @property
    def dim(self) -> int:
        """Width of a pooled vector before truncation."""
        return self.hidden * len(self.pooling)


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A json object with typed access. Null counts as absent; a value of another type is a ModelError."""

    path: Path
    values: Mapping[str, Any]

    def integer(self, key: str) -> int | None:
        """A whole number; 1e30 is one, true is none."""
        value = self.values.get(key)
        if value is None or type(value) is int:
            return value
        if type(value) is float and value.is_integer():  # not of NaN, nor of infinity
            return int(value)
        raise self.wrong(key, "a whole number")

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def wrong(self, key: str, wanted: str) -> ModelError:
        return ModelError(f"{self.path}: {key} is {self.values[key]!r}, not {wanted}")


def read_manifest(folder: Path) -> Manifest:
    """Read the json files of a model folder.

    Errors: ModelError for a missing or malformed file, an unknown module or pooling, and files that disagree.
    """
    config = read_object(folder / "config.json", required=True)
    sentence = read_object(
        folder / next((n for n in SENTENCE_FILES if (folder / n).exists()), SENTENCE_FILES[0])
    )
    behaviour = read_object(folder / "config_sentence_transformers.json")
    tokenizer = read_object(folder / "tokenizer_config.json")
    pooling, normalize = read_modules(folder)

    width_key = next((key for key in WIDTH_KEYS if config.values.get(key) is not None), WIDTH_KEYS[0])
    hidden = config.integer(width_key)
    if hidden is None or hidden < 1:
        raise ModelError(f"{config.path} has the {width_key} {hidden}; it must be the width of the vectors")
    for key in ("word_embedding_dimension", "embedding_dimension"):
        width = pooling.integer(key)
        if width not in (None, hidden):
            raise ModelError(f"{pooling.path} says {key} {width}, but config.json says {width_key} {hidden}")

    limits = stated_limits(config, sentence, tokenizer)
    prompts = read_prompts(behaviour)
    default = behaviour.text("default_prompt_name")
    if default is not None and default not in prompts:
        known = ", ".join(prompts) or "none"
        raise ModelError(f"{behaviour.path}: default_prompt_name is {default!r}; its prompts are: {known}")
    return Manifest(
        pooling=pooling_modes(pooling),
        normalize=normalize,
        hidden=hidden,
        max_tokens=min(limits.values()),
        limits=limits,
        vocabulary=config.integer("vocab_size"),
        pad_id=config.integer("pad_token_id") or 0,
        lower_case=sentence.flag("do_lower_case", False),
        prompts=prompts,
        default_prompt_name=default,
        include_prompt=pooling.flag("include_prompt", True),
        similarity=behaviour.text("similarity_fn_name") or "cosine",
        truncate_dim=behaviour.integer("truncate_dim"),
    )


def read_modules(folder: Path) -> tuple[JsonObject, bool]:
    """(1_Pooling/config.json, whether a Normalize module follows), as modules.json says.

    Without modules.json sentence-transformers adds mean pooling and nothing else; so do we. Types are import
    paths that changed over the years, so only their last component counts.
    """
    path = folder / "modules.json"
    if not path.exists():
        return JsonObject(path, {}), False
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ModelError(f"{path} is not a list of modules")
    modules = [JsonObject(path, row) for row in rows]
    kinds = [(module.text("type") or "").rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        has = ", ".join(kinds) or "nothing"
        raise ModelError(f"{path} lists {has}; known are Transformer, Pooling and then Normalize or nothing")
    transformer, pooling, *normalize = (module_folder(folder, module) for module in modules)
    if transformer != folder:
        raise ModelError(f"{path} has its Transformer in {transformer.name}/; only the model folder is read")
    for place in normalize:
        options = read_object(place / "config.json")
        for key in ("module_input_name", "module_output_name"):
            if options.text(key) not in (None, "sentence_embedding"):
                raise options.wrong(key, "'sentence_embedding', the only vector that is normalised here")
    return read_object(pooling / "config.json", required=True), bool(normalize)


def module_folder(folder: Path, module: JsonObject) -> Path:
    """Where a row of modules.json keeps its files; never outside of the model folder."""
    inside = module.text("path") or ""
    place = PureWindowsPath(inside)  # knows both separators, and drives
    if place.anchor or ".." in place.parts:
        raise ModelError(f"{module.path}: the path {inside!r} leaves the model folder")
    return folder / inside


def pooling_modes(config: JsonObject) -> tuple[str, ...]:
    """The active poolings: by the key of 6.x in its own order, else by the old booleans, else mean."""
    modes = config.values.get("pooling_mode")
    if modes is None:
        return tuple(m for key, m in OLD_POOLING_KEYS.items() if config.flag(key, False)) or ("mean",)
    active = modes if isinstance(modes, list) else [modes]
    if not active or any(mode not in POOLINGS for mode in active):
        raise config.wrong("pooling_mode", f"of {', '.join(POOLINGS)}")
    return tuple(active)


def stated_limits(config: JsonObject, sentence: JsonObject, tokenizer: JsonObject) -> dict[str, int]:
    """Every length limit in tokens that the files state, by file and key; at least one."""
    rows = config.integer("max_position_embeddings")
    if rows is not None and config.text("model_type") in POSITIONS_AFTER_PADDING:
        rows -= (config.integer("pad_token_id") or 0) + 1
    stated = {
        f"{sentence.path.name} max_seq_length": sentence.integer("max_seq_length"),
        f"{config.path.name} max_position_embeddings": rows,
        f"{tokenizer.path.name} model_max_length": tokenizer.integer("model_max_length"),
    }
    limits = {name: limit for name, limit in stated.items() if limit is not None and limit < NO_LIMIT}
    for name, limit in limits.items():
        if limit < 1:
            raise ModelError(f"{config.path.parent}: {name} allows {limit} tokens; it must be at least 1")
    if not limits:
        raise ModelError(
            f"{config.path.parent} states no length limit; add max_seq_length to {SENTENCE_FILES[0]}"
        )
    return limits


def read_prompts(behaviour: JsonObject) -> dict[str, str]:
    """Prompts by name; null stands for no prompt."""
    prompts = behaviour.values.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str | None) for p in prompts.values()):
        raise behaviour.wrong("prompts", "a table of names and texts")
    return {name: prompt or "" for name, prompt in prompts.items()}


def read_object(path: Path, *, required: bool = False) -> JsonObject:
    """A file with a json object; an empty one when the file is absent and not required."""
    if not required and not path.is_file():
        return JsonObject(path, {})
    values = read_json(path)
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds {type(values).__name__}, not a json object")
    return JsonObject(path, values)


def read_json(path: Path) -> Any:
    """Parse a json file; one that is missing or not json is a ModelError with the place."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; the folder is not a model, or only half copied") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as json: {error}") from None
