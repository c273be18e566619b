"""Structured logs on stderr: one event a line, JSON unless a person is watching.

Whoever reads them may be slow, stuck or gone, and the disk that they go to full. None of this may keep a
call waiting or make it fail, so a server leaves writing to a thread, which drops what cannot be written.
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
"""So much may wait for a reader that is slow; what comes then is dropped, and counted."""

DRAIN_SECONDS = 1.0
"""How long the end of a server waits for its last lines to be written."""


class _Stream:
    """stderr, which never fails, and never keeps anybody waiting while `in_background` lasts."""

    def __init__(self) -> None:
        self._writer: _Writer | None = None

    def write(self, text: str) -> None:
        """Writes now, or soon."""
        if self._writer is not None:
            self._writer.add(text.encode(errors="backslashreplace"))
        else:
            with suppress(OSError):
                sys.stderr.write(text)

    def flush(self) -> None:
        """Ends what was written now; what is written soon ends by itself."""
        if self._writer is None:
            with suppress(OSError):
                sys.stderr.flush()

    def begin(self) -> None:
        """Leaves writing to a thread."""
        self._writer = _Writer()

    def end(self) -> None:
        """Waits for the thread to write the rest, but no longer than DRAIN_SECONDS, and needs it no more."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.end()


class _Writer:
    """A thread that writes to stderr."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._changed = threading.Condition()
        self._is_over = False
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

    def end(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()
        # A reader that is stuck keeps the thread; it ends with the process.
        self._thread.join(DRAIN_SECONDS)

    def _run(self) -> None:
        while (chunk := self._next()) is not None:
            if not _written(chunk):
                with self._changed:
                    self._dropped += chunk.count(b"\n")
            elif self._dropped:
                with self._changed:
                    dropped, self._dropped = self._dropped, 0
                structlog.get_logger("store_service.logs").warning("log lines were dropped", count=dropped)

    def _next(self) -> bytes | None:
        """What waits, all of it; None when there will be no more."""
        with self._changed:
            while not self._chunks:
                if self._is_over:
                    return None
                self._changed.wait()
            chunk = b"".join(self._chunks)
            self._chunks.clear()
            self._waiting_bytes = 0
            return chunk


def _written(chunk: bytes) -> bool:
    """Writes to stderr itself; Python's own stream would keep what failed and fail with it again."""
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
    """Until the end of the block, nobody waits for a line to be written."""
    _STREAM.begin()
    try:
        yield
    finally:
        _STREAM.end()


def drain() -> None:
    """Writes what waits, but no longer than DRAIN_SECONDS; for a process that just ends."""
    _STREAM.end()


def configure(*, level: str, format: Literal["auto", "json", "console"]) -> None:
    """Sends our logs, and those of the libraries from warnings on, to stderr.

    Args:
        level: Least important level that is logged, a key of LEVELS.
        format: json, console, or auto: json unless stderr is a terminal.
    """
    as_json = format == "json" or (format == "auto" and not sys.stderr.isatty())
    before: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # Rich, where it is installed, would print the values of variables: what callers have sent.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    )
    structlog.configure(
        processors=[*before, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _STREAM)),
    )

    handler = logging.StreamHandler(_STREAM)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(LEVELS[level], logging.WARNING))


FLUSH_SECONDS = 0.02
"""How long the line of a call may wait for others."""


class CallLog:
    """The line that tells of each call, made and written at a fraction of a general logger's price.

    Lines gather for FLUSH_SECONDS and are then written at once, for a busy server would spend more on
    writing single lines than on some calls.
    """

    def __init__(self) -> None:
        """Writes as `configure` has said."""
        self._log = structlog.get_logger("store_service.rpc").bind()
        self._on = self._log.is_enabled_for(logging.INFO)
        self._as_json = any(
            isinstance(it, structlog.processors.JSONRenderer) for it in structlog.get_config()["processors"]
        )
        self._lines: list[str] = []

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
        """Tells of a call that has ended, why, if it was an error of ours, and who made it, if known."""
        if not self._on:
            return
        milliseconds = round(seconds * 1000, 3)
        if not self._as_json:
            known = {} if caller is None else {"caller": caller}
            if reason:
                known["reason"] = reason
            self._log.info(
                "rpc finished", method=method, code=code, ms=milliseconds, peer=peer, **known, call_id=call_id
            )
            return
        who = "" if caller is None else f'"caller": {_quoted(caller)}, '
        why = f', "reason": "{reason}"' if reason else ""
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        second, rest = divmod(time.time_ns() // 1000, 1_000_000)
        self._lines.append(
            f'{{"method": "{method}", "code": "{code}"{why}, "ms": {milliseconds}, '
            f'"peer": {_quoted(peer)}, {who}"call_id": "{call_id}", "event": "rpc finished", '
            f'"level": "info", "timestamp": "{_second(second)}.{rest:06}Z"}}\n'
        )

    def flush(self) -> None:
        """Writes what has gathered."""
        lines, self._lines = self._lines, []
        if lines:
            _STREAM.write("".join(lines))
            _STREAM.flush()


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    return json.dumps(text)


@lru_cache(maxsize=2)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
