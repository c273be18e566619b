"""Functions written from descriptions, as `dataclasses` writes `__init__`: as fast as written by hand."""

from collections.abc import Sequence
from typing import Any


def compiled(parameters: Sequence[str], body: Sequence[str], **names: Any) -> Any:
    """A function with these parameters and lines, which may use `names`."""
    assert all(parameter.isidentifier() for parameter in parameters)
    lines = [f"def function({', '.join(parameters)}):", *(f"    {line}" for line in body)]
    exec("\n".join(lines), names)  # noqa: S102  # names of our fields, no input
    return names["function"]
