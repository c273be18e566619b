"""Pickles dataclasses with compiled functions.

A frozen dataclass with slots pickles itself with a loop in Python over its fields, which takes two to five
times as long (docs/decisions/0052).
"""

import copyreg
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from store_service.compiled import compiled

_restore: dict[type, Callable[..., Any]] = {}


def _restored(dataclass: type, *values: Any) -> Any:
    return _restore[dataclass](*values)


def compile_pickles(*dataclasses: type) -> None:
    """Lets `pickle` read and write these dataclasses faster. The process that reads needs the same call."""
    for dataclass in dataclasses:
        names = [field.name for field in fields(dataclass)]
        arguments = ", ".join(f"{name}={name}" for name in names)
        _restore[dataclass] = compiled(names, [f"return dataclass({arguments})"], dataclass=dataclass)
        values = "".join(f", it.{name}" for name in names)
        reduce = compiled(
            ["it"], [f"return restored, (dataclass{values})"], restored=_restored, dataclass=dataclass
        )
        copyreg.pickle(dataclass, reduce)
