"""Authenticates calls: finds the principal for the metadata and the client certificate of a call."""

import asyncio
from collections.abc import Iterator
from enum import Enum
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from store_service.auth.api_keys import KeyRing
from store_service.auth.jwt_tokens import Tokens
from store_service.auth.principal import ALL_PERMISSIONS, Permission, Principal
from store_service.auth.watched_file import ReloadedFile
from store_service.errors import CredentialsInvalid, CredentialsMissing
from store_service.repeated_failure import RepeatedFailure

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

CHECK_INTERVAL_SECONDS = 0.5
"""Time between two checks of the key files. A change is loaded at the second check that finds it."""

_HEADER = "authorization"
_SCHEME = "bearer "
_SAN = "x509_subject_alternative_name"

log = structlog.get_logger("store_service.rpc")


class AuthRequirement(Enum):
    """What the methods of a gRPC service require of callers, if the server authenticates callers."""

    PERMISSION = "credentials with the permission of the method"
    CREDENTIALS = "valid credentials"
    NONE = "nothing"


def required_permission(method: MethodDescriptor) -> Permission:
    """Returns the permission that a method requires: that of its service if the service has one, otherwise
    `write` unless the contract states no side effects."""
    if method.containing_service.name in ("AdminService", "TransferService"):
        return Permission.ADMIN
    if method.containing_service.name == "ChangeService":
        return Permission.WATCH
    is_read = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    return Permission.READ if is_read else Permission.WRITE


class Authenticator:
    """Authenticates callers by API key, token or certificate."""

    def __init__(
        self, *, keys: ReloadedFile[KeyRing] | None, tokens: Tokens | None, certificates: bool
    ) -> None:
        """Takes the accepted kinds of credentials.

        Args:
            keys: The API keys, and the permissions of certificates; None: keys are not accepted.
            tokens: Verifies tokens; None: tokens are not accepted.
            certificates: Whether TLS requires a client certificate. Without keys and tokens, a certificate
                gives all permissions.
        """
        self._keys = keys
        self._tokens = tokens
        self._certificates = certificates

    def authenticate(self, context: Context) -> Principal:
        """Returns the principal of a call.

        An invalid key or token is refused even if the certificate of the caller would be accepted.

        Raises:
            CredentialsMissing: The call has no key or token, and its certificate has no permissions.
            CredentialsInvalid: The key or token is not valid.
        """
        if self._keys is None and self._tokens is None:
            names = list(_certificate_names(context))
            return Principal(
                name=names[0] if names else peer_address(context.peer()), permissions=ALL_PERMISSIONS
            )
        header = ""
        for key, value in context.invocation_metadata() or ():
            if key == _HEADER:
                if header:
                    raise CredentialsInvalid("the metadata authorization is sent more than once")
                header = str(value)
        if header:
            return self._authenticate_header(header)
        if self._certificates and self._keys is not None:
            principal = self._keys.value.find_by_certificate(list(_certificate_names(context)))
            if principal is not None:
                return principal
        raise CredentialsMissing

    def _authenticate_header(self, header: str) -> Principal:
        if header[: len(_SCHEME)].lower() != _SCHEME:
            raise CredentialsInvalid("the metadata authorization must be Bearer and a key")
        credentials = header[len(_SCHEME) :].strip()
        if self._keys is not None:
            principal = self._keys.value.find_by_key(credentials)
            if principal is not None:
                return principal
        if self._tokens is not None and credentials.count(".") == 2:
            return self._tokens.authenticate(credentials)
        raise CredentialsInvalid("the key is not known")

    async def watch_files(self) -> None:
        """Checks the key files repeatedly and loads those that have changed, until it is cancelled."""
        failure = RepeatedFailure(log, "cannot check key files", end_event="key files can be checked again")
        while True:
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)
            try:
                # In a thread, because the files may be on a network file system.
                await asyncio.to_thread(self._reload_files)
            except Exception as error:
                # The task must not end.
                failure.failed(exc_info=error)
            else:
                failure.ended()

    def _reload_files(self) -> None:
        if self._keys is not None:
            self._keys.reload_if_changed()
        if self._tokens is not None:
            self._tokens.file.reload_if_changed()


def peer_address(peer: str) -> str:
    """Returns the IP address of a peer as gRPC names it, without the port; other peers are unchanged."""
    return peer.rpartition(":")[0] if peer.startswith("ipv") else peer


def _certificate_names(context: Context) -> Iterator[str]:
    """Yields the subject alternative names of the client's certificate. The common name is not used."""
    key: Any = context.peer_identity_key()
    if key in (_SAN, _SAN.encode()):
        for name in context.peer_identities() or ():
            yield name.decode(errors="replace") if isinstance(name, bytes) else name
