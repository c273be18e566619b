"""Metrics and tracing: in-process metrics, their export to Prometheus, spans, and the status page."""
