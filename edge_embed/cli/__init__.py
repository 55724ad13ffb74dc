"""The edge-embed command. One module per subcommand: HELP, add_arguments, run. Knows the error policy only.

stdout is data, in UTF-8, and ends with a JSON line under --json; stderr is for people. Exit codes: 0 done,
1 crash, 2 wrong use or bad input, 3 the gate fails, 4 cannot judge (a reference or a baseline of something
else), 5 the gate is inconclusive under --strict, 130 Ctrl-C, 141 the reader of stdout left before the end (as
in `| head`).
"""

import argparse
import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from edge_embed import __version__
from edge_embed.cli import (
    approve,
    batch,
    bench,
    build,
    drift,
    embed,
    gate,
    info,
    pull,
    quantize,
    search,
    similarity,
    trim,
    tune,
    verify,
)
from edge_embed.errors import EdgeEmbedError, MismatchError

COMMANDS = {
    "pull": pull,
    "build": build,
    "quantize": quantize,
    "trim": trim,
    "tune": tune,
    "bench": bench,
    "drift": drift,
    "gate": gate,
    "approve": approve,
    "embed": embed,
    "batch": batch,
    "similarity": similarity,
    "search": search,
    "info": info,
    "verify": verify,
}

EPILOG = """first steps:
  edge-embed pull all-MiniLM-L6-v2
  edge-embed embed -m all-MiniLM-L6-v2 texts.txt -o vectors.npy
  edge-embed search -m all-MiniLM-L6-v2 --corpus texts.txt "a question"

exit codes: 0 done, 1 crash, 2 wrong use or bad input, 3 gate failed, 4 cannot judge,
  5 inconclusive under --strict, 130 Ctrl-C, 141 stdout was closed early
"""

CANNOT_JUDGE = 4
READER_LEFT = 141  # what a shell says of a command that SIGPIPE ended

# What a full or failing disk says of a write.
NO_ROOM = frozenset({errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC})


class Parser(argparse.ArgumentParser):
    """argparse, but wrong use is one line like any other error, and options are not guessed from a prefix."""

    def __init__(self, **options: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter  # keeps the lines of examples
        super().__init__(formatter_class=raw, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"edge-embed: {one_line(message)}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Wrong use of options raises SystemExit(2), as argparse does."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(format="edge-embed: %(message)s", level=logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Half a surrogate pair, which has no UTF-8, comes out as the JSON escape that it is.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    code = 0
    try:
        code = guarded(args.run, args)
        if sys.stdout:
            sys.stdout.flush()  # here and not at exit, where nobody could handle what goes wrong
    except BrokenPipeError:  # the reader has seen enough: no error, but a cut `verify` is no success either
        discard_stdout()
        code = code or READER_LEFT
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None:
            raise
        say(f"cannot write stdout: {error.strerror}")
        discard_stdout()
        code = 2
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    about = "Text embeddings on CPUs with OpenVINO."
    parser = Parser(prog="edge-embed", description=about, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"edge-embed {__version__}")
    subparsers = parser.add_subparsers(required=True, title="commands", metavar="command")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
        subparser.set_defaults(run=command.run)
    return parser


def guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """The exit code of a command that is done, refuses, or is interrupted. Crashes keep their traceback."""
    try:
        return run(args)
    except EdgeEmbedError as error:
        say(str(error))
        return CANNOT_JUDGE if isinstance(error, MismatchError) else 2
    except KeyboardInterrupt:
        say("interrupted; nothing half-written is left")
        return 130


def say(message: str) -> None:
    """One line for people."""
    print(f"edge-embed: {one_line(message)}", file=sys.stderr)


def one_line(message: str) -> str:
    """A message of other libraries, or a path, can hold line ends; scripts count on one line."""
    return " ".join(message.splitlines())


def discard_stdout() -> None:
    """Let what is still buffered go nowhere, so that Python's own flush at exit has nothing to report."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
