"""The command `storeapi`: the service for people and scripts. It needs the extra `cli`."""

import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType

MISSING = "the command needs the extra storeapi[cli], which is not installed"
"""What is wrong when the libraries of the command are not there."""


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
        # A terminal that lacks a character gets its number, instead of the user a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Temporary files are removed on the way out, which the default of this signal would skip.
    signal.signal(signal.SIGTERM, _end)
    try:
        program(prog_name="storeapi")
    except KeyboardInterrupt:
        # A second Ctrl-C, while the first was still being answered.
        sys.exit(130)


def _open_streams() -> None:
    """Opens what this process was started without, as by `>&-`: of stdin, stdout and stderr.

    Nobody is to see what the command prints then, and that is no reason for a write that was done to fail.
    Otherwise the next file or socket would also get its number.
    """
    # In this order: the system gives the lowest number that is free.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # for as long as the process


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
