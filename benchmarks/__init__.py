"""What the service does in a second, next to a server that does nothing and to other ways of writing it.

`python -m benchmarks` measures everything, `python -m benchmarks --quick` the ratios that matter most.
docs/benchmarks.md tells how.
"""
