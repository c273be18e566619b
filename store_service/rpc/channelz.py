"""The channelz service: what gRPC records about its servers, channels and sockets."""

from collections.abc import Callable
from typing import NoReturn

import grpc
from google.protobuf.message import Message
from grpc_channelz.v1 import channelz_pb2 as pb
from grpc_channelz.v1.channelz import ChannelzServicer

from store_service.rpc.call import Context

CHANNELZ = pb.DESCRIPTOR.services_by_name["Channelz"]

FILES = [CHANNELZ.file, *CHANNELZ.file.dependencies]
"""The descriptors of the service, for reflection."""

_METHODS = {method.name: getattr(ChannelzServicer, method.name) for method in CHANNELZ.methods}


class ChannelzService:
    """The methods of grpc.channelz.v1.Channelz.

    The methods of grpcio-channelz are synchronous and report errors with `set_code`. They read the data of
    gRPC's core, which takes microseconds, so they run on the event loop.
    """

    async def GetTopChannels(self, request: pb.GetTopChannelsRequest, context: Context) -> Message:
        return await _respond("GetTopChannels", request, context)

    async def GetServers(self, request: pb.GetServersRequest, context: Context) -> Message:
        return await _respond("GetServers", request, context)

    async def GetServer(self, request: pb.GetServerRequest, context: Context) -> Message:
        return await _respond("GetServer", request, context)

    async def GetServerSockets(self, request: pb.GetServerSocketsRequest, context: Context) -> Message:
        return await _respond("GetServerSockets", request, context)

    async def GetChannel(self, request: pb.GetChannelRequest, context: Context) -> Message:
        return await _respond("GetChannel", request, context)

    async def GetSubchannel(self, request: pb.GetSubchannelRequest, context: Context) -> Message:
        return await _respond("GetSubchannel", request, context)

    async def GetSocket(self, request: pb.GetSocketRequest, context: Context) -> Message:
        return await _respond("GetSocket", request, context)


class _RecordedStatus:
    """Stands in for the context of a synchronous call and records the status code."""

    code: grpc.StatusCode | None = None

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, _: str) -> None:
        """Ignores the details, which are the text of an exception."""


async def _respond(method: str, request: Message, context: Context) -> Message:
    status = _RecordedStatus()
    call: Callable[[Message, _RecordedStatus], Message | None] = _METHODS[method]
    response = call(request, status)
    if response is None:
        await _abort(status.code, context)
    return response


async def _abort(code: grpc.StatusCode | None, context: Context) -> NoReturn:
    if code is grpc.StatusCode.NOT_FOUND:
        await context.abort(code, "unknown id; the object may have been closed")
    raise RuntimeError("channelz data cannot be read")
