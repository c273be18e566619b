"""Compiles functions from generated source, as `dataclasses` does. They are as fast as handwritten code."""

from collections.abc import Sequence
from typing import Any


def compiled(parameters: Sequence[str], body: Sequence[str], **names: Any) -> Any:
    """Returns a function with the given parameters and lines of source. The source can use `names`."""
    assert all(parameter.isidentifier() for parameter in parameters)
    lines = [f"def function({', '.join(parameters)}):", *(f"    {line}" for line in body)]
    exec("\n".join(lines), names)  # noqa: S102  # field names of our dataclasses, no input
    return names["function"]
