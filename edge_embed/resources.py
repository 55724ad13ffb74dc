"""Finds the data that ships with the package: models/ and calibration/. Knows paths and TOML, no contents."""

import tomllib
from pathlib import Path
from typing import Any

from edge_embed.errors import InputError

PACKAGE = Path(__file__).parent


def data_folder(name: str) -> Path:
    """The folder `models` or `calibration`: inside a wheel, else beside the package in a checkout."""
    for folder in (PACKAGE / "_data" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{name}/ is missing from this installation of edge_embed; reinstall it")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file of models/, or a user's in its place. Errors: InputError naming the file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path} is not TOML: {error}") from None
