"""Runs a module of this package in a process of its own. Knows no models and no library that runs there.

For what a caller's process should not have to hold: torch and transformers take hundreds of megabytes, and
importing openvino_tokenizers changes openvino.Core for everyone. The child finds packages where we do, and
keeps off the network: it gets no socket from us, and the hub's libraries are told that they are offline.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_embed.errors import CrashError, ModelError

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def call(module: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run `python -m module arguments` and return what the module gave to `answer`.

    environment  variables beside ours
    Errors: ModelError, of one line: what the module raised, or how its process ended; CrashError naming the
    signal that ended it.
    """
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    # -P: a folder that happens to be named like a library does not come before it.
    command = [sys.executable, "-P", "-X", "utf8", "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command,
        env=os.environ | OFFLINE | {"PYTHONPATH": path} | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    try:  # an answer counts, also from a process that crashed later on: torch may do so at exit
        found: dict[str, Any] = dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, TypeError, ValueError):
        if done.returncode < 0:
            number = -done.returncode
            # Real-time signals but for the first and the last have no name.
            name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
            hint = "; was there enough memory?" if name == "SIGKILL" else ""
            raise CrashError(f"{module} was ended by {name}{hint}") from None
        complaint = (done.stderr.splitlines() or ["it said nothing; was there enough memory?"])[-1]
        raise ModelError(f"{module} ended with exit code {done.returncode}: {complaint}") from None
    if "error" in found:
        raise ModelError(found["error"])
    return found


def answer(work: Callable[[], Mapping[str, object]]) -> None:
    """In the child: end stdout with one line of JSON, what `work` returns or the error that it raised."""
    try:
        found = dict(work())
    except Exception as error:
        found = {"error": " ".join(str(error).split()) or type(error).__name__}
    print(json.dumps(found), flush=True)
