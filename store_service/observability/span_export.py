"""Where spans go: OpenTelemetry's own variables say it, as in every other program.

Imported only with STORE_TRACING=true, for OpenTelemetry is an extra.
"""

import os
from importlib.metadata import entry_points, version

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from store_service.errors import BadSetting

_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


def tracer_provider() -> TracerProvider:
    """What samples and exports spans, as the variables OTEL_* want it; to be shut down at the end.

    Raises:
        BadSetting: A variable names an exporter that is not there.
    """
    provider = TracerProvider(resource=Resource.create(_defaults()), shutdown_on_exit=False)
    for exporter in exporters():
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def exporters() -> list[SpanExporter]:
    """The exporters that OTEL_TRACES_EXPORTER names: otlp unless it says otherwise, none for none.

    Raises:
        BadSetting: There is no such exporter, or it does not like its own variables.
    """
    names = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    return [_exporter(name.strip()) for name in names.split(",") if name.strip() not in ("", "none")]


def _exporter(name: str) -> SpanExporter:
    found = entry_points(group="opentelemetry_traces_exporter", name=_otlp() if name == "otlp" else name)
    if not found:
        raise BadSetting(f"OTEL_TRACES_EXPORTER: there is no exporter {name}; there are otlp, console, none")
    try:
        exporter: SpanExporter = next(iter(found)).load()()
    except Exception as error:
        raise BadSetting(f"OTEL_TRACES_EXPORTER: {name} does not start: {error}") from error
    return exporter


def _otlp() -> str:
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(variable, "").strip()
        if protocol and protocol not in _PROTOCOLS:
            raise BadSetting(f"{variable}: must be http/protobuf or grpc")
        if protocol:
            return _PROTOCOLS[protocol]
    return _PROTOCOLS["http/protobuf"]


def _defaults() -> dict[str, str]:
    """What the service is called, unless the variables call it something else."""
    attributes = {"service.version": version("store-service")}
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        attributes["service.name"] = "store-service"
    return attributes
