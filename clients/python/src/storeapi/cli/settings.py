"""The options that hold for every command."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import grpc

from storeapi import CLIENT_DEFAULT, StoreClient
from storeapi._connection import connection, new_channel
from storeapi._diagnosis import Diagnosis
from storeapi.cli.waiting import Waiting
from storeapi.cli.words import in_words_of_the_command, said_by_system


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to reach the service, and how to print."""

    client: Mapping[str, Any] = field(repr=False)
    """Arguments of StoreClient; what is not said is left to it, and so to the environment."""
    json: bool
    """Whether to print JSON lines instead of tables."""

    @contextmanager
    def connect(self) -> Iterator[StoreClient]:
        """Provides the client for a block; on a terminal it reports what it waits for."""
        with ExitStack() as stack:
            try:
                if sys.stderr.isatty():
                    client = self._telling_client(stack)
                else:
                    client = stack.enter_context(StoreClient(**self.client))
            except (ValueError, OSError) as error:
                message = str(error)
                # The client names its argument; the user knows the option by another name.
                found = re.match(r"(target|timeout)(?=[ :])", message)
                if found and found[1] in self.client:
                    message = f"--{message}"
                message = in_words_of_the_command(message)
                raise click.UsageError(message, click.get_current_context()) from error
            yield client

    def _telling_client(self, stack: ExitStack) -> StoreClient:
        given = {
            name: self.client.get(name)
            for name in ("target", "api_key", "tls", "tls_ca", "tls_cert", "tls_key")
        }
        timeout = self.client.get("timeout", CLIENT_DEFAULT)
        settings = connection(**given, timeout=timeout, credentials=None, channel_options=())
        channel = stack.enter_context(new_channel(settings))
        channel = grpc.intercept_channel(channel, stack.enter_context(Waiting(settings.target)))
        client = stack.enter_context(
            StoreClient(
                channel=channel,
                timeout=timeout,
                api_key=given["api_key"],
                retries=self.client.get("retries", True),
            )
        )
        # Of a borrowed channel a client does not know where it leads.
        client._calls.diagnosis = Diagnosis(settings.goal)  # pyright: ignore[reportPrivateUsage]
        return client


def client_arguments(
    *,
    target: str | None,
    timeout: float | None,
    api_key_file: Path | None,
    tls: bool | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    retries: bool,
) -> dict[str, Any]:
    """The arguments of StoreClient that the options say."""
    given: dict[str, Any] = {
        "target": target,
        "timeout": timeout,
        "api_key": None if api_key_file is None else _first_line(api_key_file),
        "tls": tls,
        "tls_ca": tls_ca,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "retries": None if retries else False,
    }
    return {name: value for name, value in given.items() if value is not None}


def _first_line(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = f"cannot read the API key from {path}: {said_by_system(error)}"
        raise click.UsageError(why, click.get_current_context()) from error
    if not key or "\n" in key:
        raise click.UsageError(f"{path} must hold one line, the API key", click.get_current_context())
    return key
