"""Metrics for Prometheus: what they are called, where they are served, and who reads them here."""
