"""Checks of the arguments that callers pass; used by both clients.

A wrong type raises an error that names the argument, where protobuf would name a type of its own.
"""

import operator
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, SupportsIndex


def id(value: SupportsIndex, name: str = "id") -> int:
    """An id to send; the service checks that it is positive."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must be below 2**63, not {number}")
    return number


def post_id_or_all(value: int | None) -> int:
    """The post to list comments of, as the service expects it: 0 for all posts."""
    if value is None:
        return 0
    number = id(value, "post_id")
    # A post that is not stored has the id 0. Its comments are not the comments of all posts.
    if number < 1:
        raise ValueError(f"post_id must be positive, or None for all posts, not {number}")
    return number


def limit(value: int | None) -> int | None:
    """The maximum number of resources of a list; None for all."""
    if value is None:
        return None
    number = id(value, "limit")
    if number < 0:
        raise ValueError(f"limit must not be negative, or None for all, not {number}")
    return number


def text(value: str, name: str = "body") -> str:
    """A text to send."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {value!r}")
    return value


def texts(values: Iterable[str], name: str) -> list[str]:
    """Several texts to send."""
    # A str is an iterable of str too.
    if isinstance(values, str):
        raise TypeError(f"{name} must be an iterable of several, such as a list, not a single str")
    return [text(it, f"each of {name}") for it in values]


def labels(value: Mapping[str, str], name: str = "labels") -> dict[str, str]:
    """Labels to send."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, such as a dict, not {value!r}")
    return {text(key, f"each key of {name}"): text(it, f"each value of {name}") for key, it in value.items()}


def time(value: datetime, name: str) -> datetime:
    """A time to send."""
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime, not {value!r}")
    if value.utcoffset() is None:
        raise ValueError(f"{name} must have a time zone, such as datetime.now(timezone.utc) has")
    return value


_CHECKS: Final[Mapping[object, Callable[[Any, str], Any]]] = {int: id, str: text, Mapping[str, str]: labels}


def field(name: str, kind: object, value: Any) -> Any:
    """The value to send for a resource field of this type."""
    check = _CHECKS.get(kind)
    return value if check is None else check(value, name)


def write_options(request_id: str | uuid.UUID | None, validate_only: bool) -> dict[str, Any]:
    """The fields that all requests to write have, with a new request id unless the caller passed one."""
    if request_id is None:
        # A call that stores nothing cannot store it twice.
        request_id = "" if validate_only else uuid.uuid4()
    if isinstance(request_id, uuid.UUID):
        request_id = str(request_id)
    return {"request_id": text(request_id, "request_id"), "validate_only": validate_only}


def request_id_of_call(request_id: str, number: int) -> str:
    """The request id of one of the calls that a batch is split into; the same for the same arguments."""
    return str(uuid.uuid5(uuid.UUID(request_id), str(number))) if request_id and number else request_id
