"""One module per library of a benchmark, each of the same form; see Encoder and load of any of them.

    ENVIRONMENT   "test" or "peers": which of the two environments of the Makefile has the library
    KINDS         what it can run of a folder, its default first: float32, default (nothing pinned), int8, ...
    BATCH_SIZES   the library's own number of texts a batch first, then those worth trying
    load(folder, *, kind, threads, cache) -> Encoder

A module imports its library inside `load`, so that the constants can be read where the library is not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Unavailable(Exception):
    """The library does not run this model here; the message is the reason, in one line."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded model.

    call       (texts, batch_size) -> (N, D) float32 unit vectors; None is the library's own batch size
    effective  what the library says it runs with: file, precision, threads
    """

    call: "Callable[[list[str], int | None], NDArray[np.float32]]"
    effective: Mapping[str, str]
