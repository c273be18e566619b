"""Structured logs on stderr: one event a line, JSON unless a person is watching."""

import asyncio
import json
import logging
import sys
import time
from functools import lru_cache
from typing import Any, Literal

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )

    handler = logging.StreamHandler(sys.stderr)
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
        self._log = structlog.get_logger("store_service.rpc")
        self._on = self._log.is_enabled_for(logging.INFO)
        self._as_json = any(
            isinstance(it, structlog.processors.JSONRenderer) for it in structlog.get_config()["processors"]
        )
        self._lines: list[str] = []

    def write(
        self, method: str, code: str, seconds: float, peer: str, call_id: str, caller: str | None = None
    ) -> None:
        """Tells of a call that has ended, and who made it, if the service knows."""
        if not self._on:
            return
        milliseconds = round(seconds * 1000, 3)
        if not self._as_json:
            known = {} if caller is None else {"caller": caller}
            self._log.info(
                "call", method=method, code=code, ms=milliseconds, peer=peer, **known, call_id=call_id
            )
            return
        who = "" if caller is None else f'"caller": {_quoted(caller)}, '
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        second, rest = divmod(time.time_ns() // 1000, 1_000_000)
        self._lines.append(
            f'{{"method": "{method}", "code": "{code}", "ms": {milliseconds}, "peer": {_quoted(peer)}, {who}'
            f'"call_id": "{call_id}", "event": "call", "level": "info", '
            f'"timestamp": "{_second(second)}.{rest:06}Z"}}\n'
        )

    def flush(self) -> None:
        """Writes what has gathered."""
        lines, self._lines = self._lines, []
        if lines:
            sys.stderr.write("".join(lines))
            sys.stderr.flush()


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    return json.dumps(text)


@lru_cache(maxsize=2)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
