"""The export of spans, configured by the standard variables of OpenTelemetry (OTEL_*).

Imported only with STORE_TRACING=true, because OpenTelemetry is an extra.
"""

import os
from importlib.metadata import entry_points, version

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from store_service.errors import BadSetting

_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


def tracer_provider() -> TracerProvider:
    """Returns the provider that samples and exports spans. The caller shuts it down.

    Raises:
        BadSetting: A variable has an invalid value.
    """
    provider = TracerProvider(resource=Resource.create(_defaults()), shutdown_on_exit=False)
    for exporter in exporters():
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def exporters() -> list[SpanExporter]:
    """Returns the exporters that OTEL_TRACES_EXPORTER names: otlp by default, no exporter for none.

    Raises:
        BadSetting: An exporter does not exist, or does not start with its variables.
    """
    names = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    return [_exporter(name.strip()) for name in names.split(",") if name.strip() not in ("", "none")]


def _exporter(name: str) -> SpanExporter:
    found = entry_points(group="opentelemetry_traces_exporter", name=_otlp() if name == "otlp" else name)
    if not found:
        raise BadSetting(f"OTEL_TRACES_EXPORTER: unknown exporter {name}; known are otlp, console, none")
    try:
        exporter: SpanExporter = next(iter(found)).load()()
    except Exception as error:
        raise BadSetting(f"OTEL_TRACES_EXPORTER: exporter {name} does not start: {error}") from error
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
    """Returns the version, and the name of the service unless the variables set one."""
    attributes = {"service.version": version("store-service")}
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        attributes["service.name"] = "store-service"
    return attributes
