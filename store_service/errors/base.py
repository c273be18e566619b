"""The base classes of the errors."""

from collections.abc import Callable
from typing import Any


class ServiceError(Exception):
    """The base class of all errors that callers see. It can be sent to another process, with its cause."""

    def __reduce__(self) -> tuple[Callable[..., "ServiceError"], tuple[Any, ...]]:
        return _restored, (type(self), self.args, self.__dict__, self.__cause__)


def _restored(
    error_class: type[ServiceError],
    args: tuple[Any, ...],
    attributes: dict[str, Any],
    cause: BaseException | None,
) -> ServiceError:
    # Without __init__, whose arguments are not those of the exception.
    error = error_class.__new__(error_class, *args)
    error.__dict__.update(attributes)
    error.__cause__ = cause
    return error


class OperatorError(Exception):
    """A problem that the operator of the service has to solve. The text is one line.

    It ends a command with exit code 1. Subclasses are defined where they are raised.
    """


class BadSetting(Exception):
    """A setting has a value that is not allowed. The text is one line that names the setting."""


class Unavailable(ServiceError):
    """Nothing was done. The same call may succeed later."""
