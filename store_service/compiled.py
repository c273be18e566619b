"""Compiles functions from generated source, as `dataclasses` does. They are as fast as handwritten code."""

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar

T = TypeVar("T", bound=type)


def compiled(parameters: Sequence[str], body: Sequence[str], **names: Any) -> Any:
    """Returns a function with the given parameters and lines of source. The source can use `names`."""
    lines = [f"def function({', '.join(parameters)}):", *(f"    {line}" for line in body)]
    exec("\n".join(lines), names)  # noqa: S102  # field names of our dataclasses, no input
    return names["function"]


def fast_init(model: T) -> T:
    """Replaces the constructor of a frozen dataclass with slots by one that takes two thirds of the time.

    `dataclasses` sets each field with object.__setattr__, which looks up the descriptor of the slot.
    Only for dataclasses with keyword-only fields, and without default factories and __post_init__.
    """
    names: dict[str, Any] = {}
    parameters = ["self", "*"]
    body = []
    for it in fields(model):
        assert it.kw_only, it.name
        assert it.default_factory is MISSING, it.name
        names[f"set_{it.name}"] = getattr(model, it.name).__set__
        names[f"default_{it.name}"] = it.default
        parameters.append(it.name if it.default is MISSING else f"{it.name}=default_{it.name}")
        body.append(f"set_{it.name}(self, {it.name})")
    model.__init__ = compiled(parameters, body, **names)  # type: ignore[misc]  # a subclass has its own
    return model
