"""Reads resources from JSON records, as stored responses and the change feed contain them.

A record may come from an earlier or a later version of the program. Unknown fields are ignored. A missing
field takes the default of the dataclass, or the empty value of its type.
"""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from types import NoneType
from typing import Any, Generic, TypeVar, get_args, get_type_hints

R = TypeVar("R")


class RecordReader(Generic[R]):
    """Reads records of one dataclass."""

    def __init__(self, model: type[R]) -> None:
        """Takes the dataclass. Its fields have types with an empty value: `str`, `int`, `X | None`."""
        self._model = model
        self._fields = dataclasses.fields(model)  # type: ignore[arg-type]  # a dataclass
        self._names = frozenset(field.name for field in self._fields)
        self._required = frozenset(field.name for field in self._fields if not _has_default(field))

    @cached_property
    def _types(self) -> dict[str, Any]:
        """The types of the fields. Only incomplete records need them, and finding them slows down a start."""
        return get_type_hints(self._model)

    def read(self, record: Mapping[str, Any]) -> R:
        """Returns the resource in a record."""
        if self._required <= record.keys() <= self._names:
            return self._model(**record)
        values = {name: value for name, value in record.items() if name in self._names}
        for field in self._fields:
            if field.name not in values and not _has_default(field):
                values[field.name] = _empty(self._types[field.name])
        return self._model(**values)


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _empty(type_: Any) -> Any:
    return None if NoneType in get_args(type_) else type_()
