"""PyTorch embeddings of a checkpoint in float32: what every candidate is compared with.

All of it comes from torch, transformers and the json files as they stand: the tokenizer, the encoder in eager
attention, one text at a time and so without padding, pooling and normalisation as modules.json says. Of the
rest of this package only errors are used, so that no mistake can be on both sides of a comparison. Knows no
IR, no file of references and no drift.

Eager attention holds a T x T table for each head: 8,192 tokens take some 10 GB, 512 hardly anything.
"""

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import InputError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

ROLES = ("query", "document")

# Prompts that serve a role, the first that the model has; sentence-transformers looks for the same names.
PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}

# sentence_bert_config.json, or the name of another architecture in its place.
SENTENCE_FILE = "sentence_*_config.json"

# Before sentence-transformers 6 each pooling had a boolean of its own, and several are joined in this order.
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

MADE_BY = ("torch", "transformers", "tokenizers", "numpy")


class TorchModel:
    """A checkpoint in hub layout, loaded by transformers in float32."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """Load tokenizer and weights; no socket is opened and no code of the folder is run.

        threads  of torch. One adds up in the same order on every machine; more differ by some 1e-7
        Errors: InputError without torch; ModelError for a folder that lacks files or asks for more than this.
        """
        import_torch()
        if threads < 1:
            raise InputError(f"threads is {threads}; it must be at least 1")
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"{folder} has no *.safetensors, which PyTorch needs; "
                "for a model of models/: edge-embed pull NAME --checkpoint"
            )
        self.folder = folder
        self.threads = threads
        self.pooling, self.normalize, include_prompt = read_modules(folder)
        self.prompts = read_prompts(folder)
        if not include_prompt and any(self.prompts.values()):
            raise ModelError(f"{folder} leaves prompt tokens out of its pooling, which is not known here")
        sentence = read_object(next(folder.glob(SENTENCE_FILE), folder / SENTENCE_FILE))
        with loading(folder):
            self._tokenizer = load_tokenizer(folder, lower_case=bool(sentence.get("do_lower_case")))
            self._encoder = load_encoder(folder)
        self.max_tokens = min(limits(self._encoder, self._tokenizer, sentence))

    def tokenize(self, texts: Sequence[str], roles: Sequence[str]) -> tuple[list[NDArray[np.int64]], int]:
        """One (T_i,) int64 array a text, special tokens included; and how many were cut to max_tokens.

        roles  of ROLES, row by row: they choose the prompt
        """
        rows, cut = [], 0
        for text, role in zip(texts, roles, strict=True):
            found = self._tokenizer(
                self.prompts[role] + text,
                truncation=True,
                max_length=self.max_tokens,
                return_overflowing_tokens=True,  # further rows for what is cut off
            )["input_ids"]
            rows.append(np.array(found[0], np.int64))
            cut += len(found) > 1
        return rows, cut

    def embed(
        self, token_ids: Sequence[NDArray[np.int64]], *, show_progress_bar: bool = False
    ) -> NDArray[np.float32]:
        """(N, D) float32, row i of token_ids[i], at least one. D is full, whatever the model's default."""
        import torch
        from tqdm import tqdm

        rows = []
        with exact(self.threads):
            for ids in tqdm(token_ids, "Reference", unit="text", disable=not show_progress_bar):
                tokens = torch.from_numpy(ids)[None]
                states = self._encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens))
                rows.append(self._pool(states.last_hidden_state[0]).numpy())
        return np.stack(rows).astype(np.float32, copy=False)

    def settings(self) -> dict[str, Any]:
        """What vectors may depend on beside the weights, for the record."""
        import torch

        return {
            "dtype": "float32",
            "attention": "eager",
            "batch_size": 1,
            "threads": self.threads,
            "kernels": torch.backends.cpu.get_cpu_capability(),
            "pooling": list(self.pooling),
            "normalize": self.normalize,
            "max_tokens": self.max_tokens,
            "prompts": self.prompts,
        }

    def _pool(self, states: "Tensor") -> "Tensor":
        """(T, H) token states -> (D,)."""
        import torch

        vector = torch.cat([POOLINGS[mode](states) for mode in self.pooling])
        return torch.nn.functional.normalize(vector, dim=0) if self.normalize else vector


def weighted_mean(states: "Tensor") -> "Tensor":
    """The mean of (T, H) states with the weights 1 to T: (H,)."""
    weights = states.new_tensor(range(1, len(states) + 1))
    return (states.T * weights).sum(dim=1) / weights.sum()


# (T, H) states of one text without padding -> (H,)
POOLINGS: dict[str, Callable[["Tensor"], "Tensor"]] = {
    "cls": lambda states: states[0],
    "max": lambda states: states.amax(dim=0),
    "mean": lambda states: states.sum(dim=0) / len(states),
    "mean_sqrt_len_tokens": lambda states: states.sum(dim=0) / len(states) ** 0.5,
    "weightedmean": weighted_mean,
    "lasttoken": lambda states: states[-1],
}


@contextlib.contextmanager
def exact(threads: int) -> Iterator[None]:
    """float32 throughout in a fixed number of threads, whatever the process chose for work of its own."""
    import torch

    precision, before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")  # the lower ones multiply in bfloat16 where the CPU can
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)


def import_torch() -> None:
    """Import torch and transformers, which are an extra."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):  # it is there, but broken
            raise
        raise InputError(
            f"the PyTorch reference needs {error.name}: pip install 'edge-embed[reference]'"
        ) from None


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Silence the bars and tables of transformers, and turn its many errors into a ModelError of one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, and those of safetensors and tokenizers
        why = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"transformers cannot load {folder}: {why[:300]}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(folder: Path, *, lower_case: bool) -> Any:
    """The tokenizer as transformers makes it, which need not be what tokenizer.json says."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if lower_case:  # in front of its other steps, as sentence-transformers does
        from tokenizers import normalizers

        backend = tokenizer.backend_tokenizer
        steps = [normalizers.Lowercase(), backend.normalizer]
        backend.normalizer = normalizers.Sequence([step for step in steps if step is not None])
    return tokenizer


def load_encoder(folder: Path) -> Any:
    """The encoder in evaluation mode; every weight that reaches last_hidden_state comes from the files."""
    import torch
    from transformers import AutoModel

    encoder, report = AutoModel.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    # BERT's own pooler is a head on top, which most checkpoints come without and nothing here reads.
    lost = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if lost:
        raise ModelError(f"{folder} has no tensor {lost[0]!r}, {len(lost)} in all; copy the checkpoint again")
    return encoder.eval()


def limits(encoder: Any, tokenizer: Any, sentence: dict[str, Any]) -> list[int]:
    """Every limit in tokens that the model, its tokenizer and sentence_bert_config.json state."""
    stated = [tokenizer.model_max_length, sentence.get("max_seq_length")]
    rows = getattr(encoder.config, "max_position_embeddings", None)
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if rows is not None:  # RoBERTa counts positions from padding_idx + 1 on
        stated.append(rows if padding is None else rows - padding - 1)
    return [int(limit) for limit in stated if limit is not None]


def read_modules(folder: Path) -> tuple[tuple[str, ...], bool, bool]:
    """(poolings to be joined, whether vectors are normalised, whether prompt tokens are pooled).

    Without modules.json it is mean pooling and nothing else, as in sentence-transformers.
    """
    path = folder / "modules.json"
    if not path.exists():
        return ("mean",), False, True
    rows = read_json(path)
    try:
        kinds = [row["type"].rpartition(".")[2] for row in rows]
        paths = [row["path"] for row in rows]
    except (TypeError, KeyError, AttributeError):
        raise ModelError(f'{path} is not a list of modules with "type" and "path"') from None
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]) or paths[0] != "":
        raise ModelError(
            f"{path} lists {', '.join(kinds) or 'nothing'}; known are a Transformer in the model folder, "
            "Pooling, and then Normalize or nothing"
        )
    pooling = read_object(folder / paths[1] / "config.json", required=True)
    modes = pooling.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in OLD_POOLINGS.items() if pooling.get(key)] or ["mean"]
    elif isinstance(modes, str):
        modes = [modes]
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise ModelError(f"{folder} asks for the pooling {unknown[0]!r}; known: {', '.join(POOLINGS)}")
    return tuple(modes), len(kinds) == 3, bool(pooling.get("include_prompt", True))


def read_prompts(folder: Path) -> dict[str, str]:
    """The prompt of each role: the model's own for it, else its default prompt, else none."""
    behaviour = read_object(folder / "config_sentence_transformers.json")
    prompts = behaviour.get("prompts") or {}
    default = behaviour.get("default_prompt_name")
    chosen = {role: next((n for n in names if n in prompts), default) for role, names in PROMPTS.items()}
    return {role: prompts.get(name) or "" for role, name in chosen.items()}


def read_object(path: Path, *, required: bool = False) -> dict[str, Any]:
    """A json object; {} when the file is absent and not required."""
    if not required and not os.path.lexists(path):
        return {}
    values = read_json(path)
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds {type(values).__name__}, not a json object")
    return values


def read_json(path: Path) -> Any:
    """Parse a json file; one that is missing or not json is a ModelError with its path."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as json: {error}") from None


def versions() -> dict[str, str]:
    """What made the vectors."""
    return {name: importlib.metadata.version(name) for name in MADE_BY}
