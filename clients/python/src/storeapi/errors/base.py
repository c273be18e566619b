"""The root of the error tree, and the base of the errors that have violations."""

from collections.abc import Mapping, Sequence

import grpc

from storeapi.model import FieldViolation


class StoreError(Exception):
    """A call failed.

    The base of every error of a call, except those of wrong arguments, which never reach the service
    (TypeError and ValueError) and of a closed client (RuntimeError).
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    """The gRPC status code."""
    reason: str = ""
    """The reason, for programs: a name of ErrorReason such as `POST_NOT_FOUND`; empty if unknown."""
    message: str
    """The message of the service or of gRPC, for people."""
    metadata: dict[str, str]
    """Data of the reason; empty if there is none."""
    call_id: str | None
    """The id of this call in the log of the service; None if unknown."""
    retry_after: float | None
    """Seconds after which the same call may succeed; None if unknown."""
    request_id: str = ""
    """The request id of the write, from the client or the caller; empty if there was none. If it is unknown
    whether the write happened, repeat the call with this id and the same arguments: it takes effect once."""
    attempts: int = 1
    """The number of attempts."""

    def __init__(
        self,
        message: str = "",
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        call_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Called by the client; call it to test code that handles the error."""
        # The message alone is in args: what Exception does for pickle and copy then works for every subclass.
        super().__init__(message)
        self.message = message
        self.code = type(self).code if code is None else code
        self.reason = type(self).reason if reason is None else reason
        self.metadata = dict(metadata or {})
        self.call_id = call_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        message = self.message or f"the call failed with status {self.code.name}"
        return message if self.attempts == 1 else f"{message} ({self.attempts} attempts)"

    def _number(self, key: str) -> int | None:
        """An integer of the metadata; None if it is missing."""
        value = self.metadata.get(key, "")
        return int(value) if _is_number(value) else None

    def _numbers(self, key: str) -> tuple[int, ...]:
        """A list of integers of the metadata; empty if it is missing."""
        # A long list is abbreviated: "7,9,... and 950 more".
        parts = (part.strip() for part in self.metadata.get(key, "").split(","))
        return tuple(int(part) for part in parts if _is_number(part))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


class InvalidRequest(StoreError):
    """The request is invalid; the same request will fail again."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    violations: tuple[FieldViolation, ...]
    """All violations of the request."""

    def __init__(
        self,
        message: str = "",
        *,
        violations: Sequence[FieldViolation] = (),
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        call_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Called by the client; call it to test code that handles the error."""
        super().__init__(
            message, code=code, reason=reason, metadata=metadata, call_id=call_id, retry_after=retry_after
        )
        self.violations = tuple(violations)

    @property
    def fields(self) -> Mapping[str, str]:
        """The violations by field path; several descriptions of one field are joined with "; "."""
        fields: dict[str, str] = {}
        for violation in self.violations:
            known = fields.get(violation.field)
            fields[violation.field] = f"{known}; {violation.description}" if known else violation.description
        return fields

    def __str__(self) -> str:
        message = super().__str__()
        unsaid = [
            f"{violation.field}: {violation.description}" if violation.field else violation.description
            for violation in self.violations
            # The message of the service has the violations too, as many as fit.
            if f"{violation.field}: {violation.description}" not in message
        ]
        return f"{message} ({'; '.join(unsaid)})" if unsaid else message
