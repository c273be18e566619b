"""Structured logs on stderr: one event per line, as JSON unless stderr is a terminal.

The reader of stderr may be slow or may have exited, and its disk may be full. Calls must not wait or fail
because of it. Therefore a thread of the server writes the lines, and drops those that cannot be written.
"""

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Literal, TextIO, cast

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

MAX_BUFFERED_BYTES = 4 * 1024 * 1024
"""Maximum size of the lines that wait for a slow reader. Further lines are dropped and counted."""

FLUSH_TIMEOUT_SECONDS = 1.0
"""Maximum time to write the last lines when a server ends."""

CALL_LINES_SECONDS = 0.02
"""Maximum time that the line of a call waits, so that several are written together."""


class _Stream:
    """stderr without exceptions. While `in_background` is active, writes do not block."""

    def __init__(self) -> None:
        self._writer: _Writer | None = None

    def write(self, text: str) -> None:
        """Writes the text, or passes it to the thread."""
        if self._writer is not None:
            self._writer.add(text.encode(errors="backslashreplace"))
        else:
            with suppress(OSError):
                sys.stderr.write(text)

    def flush(self) -> None:
        """Flushes what was written without the thread."""
        if self._writer is None:
            with suppress(OSError):
                sys.stderr.flush()

    def start_thread(self) -> None:
        """Starts the thread that writes."""
        self._writer = _Writer()

    def stop_thread(self) -> None:
        """Ends the thread after it has written all lines, or after FLUSH_TIMEOUT_SECONDS."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.stop()


class _Writer:
    """A thread that writes to stderr."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def add(self, chunk: bytes) -> None:
        with self._changed:
            if self._waiting_bytes + len(chunk) > MAX_BUFFERED_BYTES:
                self._dropped += chunk.count(b"\n")
                return
            self._chunks.append(chunk)
            self._waiting_bytes += len(chunk)
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        # If the reader blocks the thread, it ends with the process.
        self._thread.join(FLUSH_TIMEOUT_SECONDS)

    def _run(self) -> None:
        while (chunk := self._next()) is not None:
            if not _write_to_stderr(chunk):
                with self._changed:
                    self._dropped += chunk.count(b"\n")
            elif self._dropped:
                with self._changed:
                    dropped, self._dropped = self._dropped, 0
                structlog.get_logger("store_service.logs").warning("log lines were dropped", count=dropped)

    def _next(self) -> bytes | None:
        """Waits for text and returns all of it; None when the thread should end."""
        with self._changed:
            while not self._chunks:
                if self._stopping:
                    return None
                self._changed.wait()
            chunk = b"".join(self._chunks)
            self._chunks.clear()
            self._waiting_bytes = 0
            return chunk


def _write_to_stderr(chunk: bytes) -> bool:
    """Writes to the descriptor, and returns whether that succeeded.

    `sys.stderr` would keep a text that it could not write, and fail again with it.
    """
    left = memoryview(chunk)
    try:
        while left:
            left = left[os.write(2, left) :]
    except OSError:
        return False
    return True


_STREAM = _Stream()


@contextmanager
def in_background() -> Iterator[None]:
    """Writes log lines in a thread until the end of the block."""
    _STREAM.start_thread()
    try:
        yield
    finally:
        _STREAM.stop_thread()


def flush() -> None:
    """Writes the buffered lines, for at most FLUSH_TIMEOUT_SECONDS, before an exit with os._exit."""
    _STREAM.stop_thread()


def configure(*, level: str, format: Literal["auto", "json", "console"]) -> None:
    """Configures the logs of the service, and of libraries from level warning, to go to stderr.

    Args:
        level: Minimum level, a key of LEVELS.
        format: json, console, or auto: json unless stderr is a terminal.
    """
    as_json = format == "json" or (format == "auto" and not sys.stderr.isatty())
    common: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # With Rich, tracebacks would contain the values of variables, which callers have sent.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    )
    structlog.configure(
        processors=[*common, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _STREAM)),
    )

    handler = logging.StreamHandler(_STREAM)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(LEVELS[level], logging.WARNING))


class CallLog:
    """Writes one log line for each call, at a fraction of the cost of structlog.

    Lines are collected for CALL_LINES_SECONDS and then written together. To write each line alone would cost
    more than some calls.
    """

    def __init__(self) -> None:
        """Uses the level and the format of `configure`."""
        self._log = structlog.get_logger("store_service.rpc").bind()
        self._is_enabled = self._log.is_enabled_for(logging.INFO)
        self._as_json = any(
            isinstance(it, structlog.processors.JSONRenderer) for it in structlog.get_config()["processors"]
        )
        # Formatted together too, which takes less time than one by one between calls.
        self._lines: list[tuple[str, str, float, str, str, str | None, str, int]] = []

    def write(
        self,
        method: str,
        code: str,
        seconds: float,
        peer: str,
        call_id: str,
        caller: str | None = None,
        reason: str = "",
    ) -> None:
        """Logs a call that has ended.

        Args:
            method: Full name of the method.
            code: Status code.
            seconds: Duration.
            peer: The peer as gRPC names it.
            call_id: The id of the call.
            caller: Name of the principal; None if the caller is not authenticated.
            reason: Reason of an error of this service; otherwise empty.
        """
        if not self._is_enabled:
            return
        milliseconds = round(seconds * 1000, 3)
        if not self._as_json:
            optional = {} if caller is None else {"caller": caller}
            if reason:
                optional["reason"] = reason
            self._log.info(
                "rpc finished",
                method=method,
                code=code,
                ms=milliseconds,
                peer=peer,
                **optional,
                call_id=call_id,
            )
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(CALL_LINES_SECONDS, self.flush)
        self._lines.append((method, code, milliseconds, peer, call_id, caller, reason, time.time_ns()))

    def flush(self) -> None:
        """Writes the collected lines."""
        lines, self._lines = self._lines, []
        if lines:
            _STREAM.write("".join([_as_json(*line) for line in lines]))
            _STREAM.flush()


def _as_json(
    method: str,
    code: str,
    milliseconds: float,
    peer: str,
    call_id: str,
    caller: str | None,
    reason: str,
    nanoseconds: int,
) -> str:
    caller_field = "" if caller is None else f'"caller": {_quoted(caller)}, '
    reason_field = f', "reason": "{reason}"' if reason else ""
    second, microsecond = divmod(nanoseconds // 1000, 1_000_000)
    return (
        f'{{"method": "{method}", "code": "{code}"{reason_field}, "ms": {milliseconds}, '
        f'"peer": {_quoted(peer)}, {caller_field}"call_id": "{call_id}", "event": "rpc finished", '
        f'"level": "info", "timestamp": "{_format_second(second)}.{microsecond:06}Z"}}\n'
    )


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    return json.dumps(text)


@lru_cache(maxsize=2)
def _format_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
