"""What ends a process of the service: signals, and the end of its supervisor."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from store_service import logs


def stop_with_supervisor(stop: asyncio.Event) -> None:
    """Sets `stop` when stdin closes. stdin is a pipe that the supervisor holds open as long as it runs.

    If the worker is already stopping, it exits at once: no supervisor is left to enforce the timeout.
    """

    def on_stdin() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            if stop.is_set():
                exit_at_once(1)
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), on_stdin)


def exit_at_once(code: int) -> None:
    """Ends the process without closing anything. Nothing is lost: writes that have a response are on disk."""
    logs.flush()
    os._exit(code)


@contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Sets `stop` at SIGTERM or SIGINT until the end of the block. A second signal ends the process."""
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            exit_at_once(128 + number)
        stop.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
