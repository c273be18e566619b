"""A method of a servicer, with everything that the RPC pipeline needs to run it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from store_service.auth.authentication import Authenticator, AuthRequirement, required_permission
from store_service.errors import PermissionDenied
from store_service.observability.metrics import Metrics, RpcMetrics, RpcType
from store_service.rpc.call import Authorize, Call, Context
from store_service.rpc.decoding import decoder

_RPC_TYPES: dict[tuple[bool, bool], RpcType] = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}
"""By whether the client streams, and whether the server streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method that is served."""

    name: str
    """SERVICE/METHOD."""
    run: Callable[..., Any]
    decode: Callable[[bytes], Message]
    is_read: bool
    """Whether it has no side effects."""
    ignores_limits: bool
    """Whether it is served while the server drains or is overloaded."""
    counts_streams: bool
    """Whether its streams count against the limit of calls in flight."""
    authorize: Authorize | None
    """Authenticates the caller and checks its permission; None if every caller is accepted."""
    metrics: RpcMetrics | None

    @classmethod
    def of(
        cls,
        descriptor: MethodDescriptor,
        servicer: object,
        *,
        service_name: str,
        ignores_limits: bool,
        counts_streams: bool,
        authorize: Authorize | None,
        metrics: Metrics | None,
    ) -> Self:
        """Returns the method of a servicer that a descriptor describes."""
        name = f"{service_name}/{descriptor.name}"
        rpc_type = _RPC_TYPES[descriptor.client_streaming, descriptor.server_streaming]
        return cls(
            name=name,
            run=getattr(servicer, descriptor.name),
            decode=decoder(GetMessageClass(descriptor.input_type)),
            is_read=descriptor.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS,
            ignores_limits=ignores_limits,
            counts_streams=counts_streams,
            authorize=authorize,
            metrics=None if metrics is None else metrics.method(name, rpc_type),
        )


def authorize_with(
    authenticator: Authenticator | None, method: MethodDescriptor, requirement: AuthRequirement
) -> Authorize | None:
    """Returns the function that authenticates and authorizes calls of a method; None if it needs neither."""
    if authenticator is None or requirement is AuthRequirement.NONE:
        return None
    permission = required_permission(method) if requirement is AuthRequirement.PERMISSION else None

    def authorize(call: Call, context: Context) -> None:
        call.principal = principal = authenticator.authenticate(context)
        if permission is not None and permission not in principal.permissions:
            raise PermissionDenied(permission=permission)

    return authorize
