"""Who makes a call, and whether they may: from metadata and certificate to a `Principal`."""

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

LOOK_SECONDS = 0.5
"""How often the files of keys are looked at; a change counts from the second look on."""

_HEADER = "authorization"
_SCHEME = "bearer "
_SAN = "x509_subject_alternative_name"

log = structlog.get_logger("store_service.rpc")


class AuthRequirement(Enum):
    """Who may call the methods of a service where the service asks who calls."""

    RIGHT = "who has the right that a method needs"
    CALLER = "whoever is known"
    ANYBODY = "anybody"


def required_permission(method: MethodDescriptor) -> Permission:
    """The right that a method of the contract needs.

    A new method that says nothing of itself needs the right to write.
    """
    if method.containing_service.name == "ChangeService":
        return Permission.WATCH
    is_read = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    return Permission.READ if is_read else Permission.WRITE


class Authenticator:
    """Recognises callers by API key, token or certificate."""

    def __init__(
        self, *, keys: ReloadedFile[KeyRing] | None, tokens: Tokens | None, certificates: bool
    ) -> None:
        """Takes the ways there are.

        Args:
            keys: The API keys, and the certificates that have rights.
            tokens: What checks tokens.
            certificates: Whether every client has shown a certificate. Without keys and tokens that is
                enough for every right.
        """
        self._keys = keys
        self._tokens = tokens
        self._certificates = certificates

    def authenticate(self, context: Context) -> Principal:
        """Who makes a call.

        Credentials that are sent and wrong are an error, also of a caller whose certificate would do.

        Raises:
            CredentialsMissing: There are none, and the caller's certificate alone does not do.
            CredentialsInvalid: There are some, and they are not good.
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
                    raise CredentialsInvalid("there is more than one header authorization")
                header = str(value)
        if header:
            return self._authenticate_header(header)
        if self._certificates and self._keys is not None:
            caller = self._keys.value.find_by_certificate(list(_certificate_names(context)))
            if caller is not None:
                return caller
        raise CredentialsMissing

    def _authenticate_header(self, header: str) -> Principal:
        if header[: len(_SCHEME)].lower() != _SCHEME:
            raise CredentialsInvalid("the header authorization must be Bearer and a key")
        credentials = header[len(_SCHEME) :].strip()
        if self._keys is not None:
            caller = self._keys.value.find_by_key(credentials)
            if caller is not None:
                return caller
        if self._tokens is not None and credentials.count(".") == 2:
            return self._tokens.authenticate(credentials)
        raise CredentialsInvalid("the key is not known")

    def look(self) -> None:
        """Reads files again that have changed."""
        if self._keys is not None:
            self._keys.look()
        if self._tokens is not None:
            self._tokens.file.look()

    async def keep_looking(self) -> None:
        """Does so until it is cancelled."""
        failure = RepeatedFailure(log, "cannot check key files", end_event="key files can be checked again")
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                # Not on the event loop, for the files may be on a network.
                await asyncio.to_thread(self.look)
            except Exception as error:
                # Whatever it was must not be the last look.
                failure.failed(exc_info=error)
            else:
                failure.ended()


def peer_address(peer: str) -> str:
    """The machine of a peer, without the port, which is another one for each connection."""
    return peer.rpartition(":")[0] if peer.startswith("ipv") else peer


def _certificate_names(context: Context) -> Iterator[str]:
    """The subject alternative names of the client's certificate; never its common name."""
    key: Any = context.peer_identity_key()
    if key in (_SAN, _SAN.encode()):
        for name in context.peer_identities() or ():
            yield name.decode(errors="replace") if isinstance(name, bytes) else name
