"""OpenTelemetry spans: one for each call, with a child span for each batch that had a job of the call.

Imported only with STORE_TRACING=true, because OpenTelemetry is an extra.
"""

import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING

import grpc
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from store_service.observability.batches import BatchRecord

SERVER_ERRORS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Codes that set the status of a span to ERROR, as in the semantic conventions for gRPC servers. Other codes
are errors of the caller."""

_PROPAGATED_METADATA = ("traceparent", "tracestate")
"""Metadata of W3C Trace Context. Baggage is ignored."""

_CODE_NUMBERS: dict[str, int] = {code.name: code.value[0] for code in grpc.StatusCode}

_current: ContextVar[Span | None] = ContextVar("store_service_span", default=None)
"""The recorded span of the unary call that the current task serves. gRPC serves each call in its own task."""


class CallSpan:
    """The span of a running call."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        """Takes the started span."""
        self._span = span

    def end(self, code: str, reason: str) -> None:
        """Ends the span with the status code of the call and the reason of its error, or an empty reason."""
        span = self._span
        if span.is_recording():
            span.set_attribute("rpc.grpc.status_code", _CODE_NUMBERS[code])
            if code != "OK":
                span.set_attribute("error.type", reason or code)
            if code in SERVER_ERRORS:
                span.set_status(Status(StatusCode.ERROR, reason or code))
        span.end()


class Tracing:
    """Creates the spans of calls and batches."""

    def __init__(self, provider: TracerProvider) -> None:
        """Takes the provider that samples and exports spans."""
        self._tracer = provider.get_tracer("store_service")
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, method: str, call_id: str, metadata: Iterable[tuple[str, str | bytes]], *, is_stream: bool
    ) -> CallSpan:
        """Starts the span of a call. If the metadata names a span of the caller, it is the parent."""
        carrier = {
            key: value for key, value in metadata if key in _PROPAGATED_METADATA and isinstance(value, str)
        }
        parent = Context()
        if carrier:
            parent = self._propagator.extract(carrier, parent)
        service, _, name = method.rpartition("/")
        span = self._tracer.start_span(
            method,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                # The log line of the call has the same id.
                "store.call_id": call_id,
            },
        )
        # A stream may run for days, so its span would get an unlimited number of children.
        _current.set(span if span.is_recording() and not is_stream else None)
        return CallSpan(span)

    def current(self) -> object | None:
        """Returns the span of the current unary call; None if it is not recorded."""
        return _current.get()

    def batch_ended(self, span: object, batch: "BatchRecord") -> None:
        """Records a batch that has just ended as a child of the span of a call."""
        assert isinstance(span, Span)
        ended = time.time_ns()
        child = self._tracer.start_span(
            f"{batch.queue} batch",
            context=set_span_in_context(span, Context()),
            start_time=ended - round(batch.seconds * 1_000_000_000),
            attributes={
                "store.queue.name": batch.queue,
                "store.batch.number": batch.number,
                "store.batch.size": batch.size,
                "store.queue.wait_seconds": batch.wait_seconds,
            },
        )
        if batch.error:
            child.set_attribute("error.type", batch.error)
            child.set_status(Status(StatusCode.ERROR, batch.error))
        child.end(end_time=ended)
