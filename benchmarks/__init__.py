"""Benchmarks: the service next to a server that does nothing, and next to other implementations.

`python -m benchmarks` measures everything, `python -m benchmarks --quick` only the most important ratios.
docs/benchmarks.md describes the method.
"""
