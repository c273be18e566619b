"""A channel that adds the same metadata to all calls, at less cost per call than an interceptor."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import grpc

Channel = TypeVar("Channel")

Metadata = Sequence[tuple[str, "str | bytes"]]


def with_metadata(channel: Channel, metadata: Metadata) -> Channel:
    """The channel itself if there is no metadata, otherwise a channel for stubs that adds it to calls."""
    return cast("Channel", _Channel(channel, metadata)) if metadata else channel


class _Channel:
    """The methods of a channel that stubs use."""

    def __init__(self, channel: Any, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = metadata

    def unary_unary(self, *arguments: Any, **keywords: Any) -> "_Method":
        return _Method(self._channel.unary_unary(*arguments, **keywords), self._metadata)

    def unary_stream(self, *arguments: Any, **keywords: Any) -> "_Method":
        return _Method(self._channel.unary_stream(*arguments, **keywords), self._metadata)

    def stream_stream(self, *arguments: Any, **keywords: Any) -> "_Method":
        return _Method(self._channel.stream_stream(*arguments, **keywords), self._metadata)


class _Method:
    """A method of a stub."""

    def __init__(self, method: Any, metadata: Metadata) -> None:
        self._method = method
        self._metadata = metadata

    def __call__(self, request: Any, *arguments: Any, **keywords: Any) -> Any:
        return self._method(request, **self._with(*arguments, **keywords))

    def future(self, request: Any, *arguments: Any, **keywords: Any) -> Any:
        """As grpc.UnaryUnaryMultiCallable.future."""
        return self._method.future(request, **self._with(*arguments, **keywords))

    @property
    def with_call(self) -> Callable[..., Any] | None:
        """As grpc.UnaryUnaryMultiCallable.with_call; None if an interceptor has removed it."""
        return self._with_call if hasattr(self._method, "with_call") else None

    def _with_call(self, request: Any, *arguments: Any, **keywords: Any) -> Any:
        return self._method.with_call(request, **self._with(*arguments, **keywords))

    def _with(
        self,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> dict[str, Any]:
        """The arguments of a call, in the order of gRPC, with the metadata added.

        Those that are not given are omitted, because an interceptor may not know them.
        """
        given = {
            "timeout": timeout,
            "credentials": credentials,
            "wait_for_ready": wait_for_ready,
            "compression": compression,
        }
        return {
            "metadata": self._metadata if metadata is None else (*metadata, *self._metadata),
            **{name: value for name, value in given.items() if value is not None},
        }
