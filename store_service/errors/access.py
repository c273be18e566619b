"""Errors of callers without the required credentials or permission."""

from store_service.errors.base import ServiceError


class Unauthenticated(ServiceError):
    """The caller is not authenticated."""


class CredentialsMissing(Unauthenticated):
    """The call requires credentials and has none."""

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__('the call has no credentials; send the metadata "authorization: Bearer KEY"')


class CredentialsInvalid(Unauthenticated):
    """The call has credentials that are not valid."""

    def __init__(self, problem: str) -> None:
        """Takes the problem, in words that do not help to guess valid credentials."""
        super().__init__(problem)


class PermissionDenied(ServiceError):
    """The caller is authenticated and does not have the permission for this call."""

    def __init__(self, *, permission: str) -> None:
        """Takes the missing permission."""
        super().__init__(f"the caller does not have the permission {permission}")
        self.permission = permission
