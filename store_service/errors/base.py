"""The base classes of the errors."""


class ServiceError(Exception):
    """The base class of all errors that callers see."""


class OperatorError(Exception):
    """A problem that the operator of the service has to solve. The text is one line.

    It ends a command with exit code 1. Subclasses are defined where they are raised.
    """


class BadSetting(Exception):
    """A setting has a value that is not allowed. The text is one line that names the setting."""


class Unavailable(ServiceError):
    """Nothing was done. The same call may succeed later."""
