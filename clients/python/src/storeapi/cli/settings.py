"""The options of all commands."""

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
from storeapi.cli.words import os_error_reason, with_option_names


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The connection and the output format."""

    client: Mapping[str, Any] = field(repr=False)
    """Arguments of StoreClient; the environment provides the others."""
    json: bool
    """Whether to print JSON lines instead of tables."""

    @contextmanager
    def connect(self) -> Iterator[StoreClient]:
        """A client for the block; on a terminal it reports the cause of waiting."""
        with ExitStack() as stack:
            try:
                if sys.stderr.isatty():
                    client = self._reporting_client(stack)
                else:
                    client = stack.enter_context(StoreClient(**self.client))
            except (ValueError, OSError) as error:
                message = str(error)
                # The client names its argument, which is an option here.
                found = re.match(r"(target|timeout)(?=[ :])", message)
                if found and found[1] in self.client:
                    message = f"--{message}"
                message = with_option_names(message)
                raise click.UsageError(message, click.get_current_context()) from error
            yield client

    def _reporting_client(self, stack: ExitStack) -> StoreClient:
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
        # A client does not know the target of a borrowed channel.
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
    """The arguments of StoreClient from the options."""
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
        why = f"cannot read the API key from {path}: {os_error_reason(error)}"
        raise click.UsageError(why, click.get_current_context()) from error
    if not key or "\n" in key:
        raise click.UsageError(f"{path} must contain one line, the API key", click.get_current_context())
    return key
