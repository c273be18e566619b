"""Spans of OpenTelemetry: one for each call, and below it one for each batch that the call rode in.

Imported only when spans are wanted, for OpenTelemetry is an extra.
"""

import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING

import grpc
from opentelemetry.context import Context as Surroundings
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from store_service.observability.batches import BatchRecord

FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Codes that are errors of a server; with any other, the caller got the right answer to a wrong call, or went
away. That is how the semantic conventions for gRPC have it."""

_HEADERS = ("traceparent", "tracestate")
"""Who calls, as W3C has it. Baggage is for others and ignored."""

_NUMBERS: dict[str, int] = {code.name: code.value[0] for code in grpc.StatusCode}

_current: ContextVar[Span | None] = ContextVar("store_service_span", default=None)
"""The span of the unary call that the current task serves; gRPC serves each call in a task of its own."""


class CallSpan:
    """The span of a call that is running."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        """Takes a span that has begun."""
        self._span = span

    def end(self, code: str, reason: str) -> None:
        """Ends it with the status code that the caller got, and the reason of the error if it has one."""
        span = self._span
        if span.is_recording():
            span.set_attribute("rpc.grpc.status_code", _NUMBERS[code])
            if code != "OK":
                span.set_attribute("error.type", reason or code)
            if code in FAULTS:
                span.set_status(Status(StatusCode.ERROR, reason or code))
        span.end()


class Tracing:
    """Makes spans."""

    def __init__(self, provider: TracerProvider) -> None:
        """Takes what samples and exports them."""
        self._tracer = provider.get_tracer("store_service")
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, method: str, call_id: str, metadata: Iterable[tuple[str, str | bytes]], *, is_stream: bool
    ) -> CallSpan:
        """Begins the span of a call, below the caller's if it names one."""
        carrier = {key: value for key, value in metadata if key in _HEADERS and isinstance(value, str)}
        parent = Surroundings()
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
                # Under which the log tells of the call.
                "store.call_id": call_id,
            },
        )
        # A stream may last for days and read all the time; its span would have children without end.
        _current.set(span if span.is_recording() and not is_stream else None)
        return CallSpan(span)

    def current(self) -> object | None:
        """The span of the call that is running, if it is recorded and wants to hear of batches."""
        return _current.get()

    def batch_ended(self, span: object, batch: "BatchRecord") -> None:
        """Leaves a span of a batch that has just ended, below that of a call that rode in it."""
        assert isinstance(span, Span)
        ended = time.time_ns()
        child = self._tracer.start_span(
            f"{batch.lane} batch",
            context=set_span_in_context(span, Surroundings()),
            start_time=ended - round(batch.seconds * 1_000_000_000),
            attributes={
                "store.lane": batch.lane,
                "store.batch.number": batch.number,
                "store.batch.size": batch.size,
                "store.queue.wait_seconds": batch.wait_seconds,
            },
        )
        if batch.error:
            child.set_attribute("error.type", batch.error)
            child.set_status(Status(StatusCode.ERROR, batch.error))
        child.end(end_time=ended)
