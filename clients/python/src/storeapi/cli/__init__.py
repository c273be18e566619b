"""The command `storeapi`. It requires the extra `cli`."""

import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType

MISSING = "the command needs the extra storeapi[cli], which is not installed"
"""The error when the libraries of the command are missing."""


def main() -> None:
    """Runs the command and ends the process with its exit code."""
    _open_streams()
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.stderr.write(f"storeapi: {MISSING}\n")
        sys.exit(1)
    from storeapi.cli.program import program

    for stream in (sys.stdout, sys.stderr):
        # Characters that the encoding lacks are escaped instead of raising an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # SystemExit removes temporary files, which the default action of this signal would not.
    signal.signal(signal.SIGTERM, _end)
    try:
        program(prog_name="storeapi")
    except KeyboardInterrupt:
        # A second Ctrl-C while the first is handled.
        sys.exit(130)


def _open_streams() -> None:
    """Opens stdin, stdout and stderr on the null device if the process was started without them, as by `>&-`.

    Otherwise a command would fail to print after a successful write, and the next file or socket would get
    the number of the closed stream.
    """
    # In this order: the system gives the lowest number that is free.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # for as long as the process


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
