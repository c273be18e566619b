"""A channel all of whose calls carry the same metadata.

gRPC's interceptors would do the same with more work for each call.
"""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import grpc

Channel = TypeVar("Channel")

Metadata = Sequence[tuple[str, "str | bytes"]]


def with_metadata(channel: Channel, metadata: Metadata) -> Channel:
    """The channel itself if there is no metadata, else one for stubs, to whose calls it is added."""
    return cast("Channel", _Channel(channel, metadata)) if metadata else channel


class _Channel:
    """What a stub asks of a channel."""

    def __init__(self, channel: Any, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = metadata

    def unary_unary(self, *arguments: Any, **keywords: Any) -> "_Method":
        return _Method(self._channel.unary_unary(*arguments, **keywords), self._metadata)

    def unary_stream(self, *arguments: Any, **keywords: Any) -> "_Method":
        return _Method(self._channel.unary_stream(*arguments, **keywords), self._metadata)


class _Method:
    """What a stub's caller calls, in each of the ways there are."""

    def __init__(self, method: Any, metadata: Metadata) -> None:
        self._method = method
        self._metadata = metadata

    def __call__(self, request: Any, *arguments: Any, **keywords: Any) -> Any:
        return self._method(request, **self._with(*arguments, **keywords))

    def future(self, request: Any, *arguments: Any, **keywords: Any) -> Any:
        """As grpc.UnaryUnaryMultiCallable.future."""
        return self._method.future(request, **self._with(*arguments, **keywords))

    def with_call(self, request: Any, *arguments: Any, **keywords: Any) -> Any:
        """As grpc.UnaryUnaryMultiCallable.with_call."""
        return self._method.with_call(request, **self._with(*arguments, **keywords))

    def _with(
        self,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> dict[str, Any]:
        """The arguments of a call, which gRPC takes in this order or by name, with the metadata added.

        Those that were not given are left out: an interceptor's callable may not know them.
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
