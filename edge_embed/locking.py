"""One process at a time: a lock file that is held for a block. Does not know what the lock is for.

The lock goes with the open file, so it is free again when the process is dead, however it died. The file
stays where it is: to remove it would leave two processes with a lock each, on two files of one name.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from edge_embed.errors import OutputError


@contextlib.contextmanager
def held(path: Path, busy: Exception) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; it is made where it is not there.

    A forked child holds the lock as well, until it ends; a program that is started does not.
    Errors: `busy` where someone else holds it, at once; OutputError where it cannot be opened or locked.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    with file:
        try:
            free = lock(file)
        except OSError as error:  # some network file systems have no locks
            raise OutputError(f"cannot lock {path}: {error.strerror or error}") from error
        if not free:
            raise busy
        yield


if sys.platform == "win32":
    import msvcrt

    def lock(file: IO[bytes]) -> bool:
        """Lock an open file until it is closed; False when someone else holds it."""
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def lock(file: IO[bytes]) -> bool:
        """Lock an open file until it is closed; False when someone else holds it."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
