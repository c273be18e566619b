"""channelz on the wire: what gRPC itself knows of its servers, channels and sockets."""

from collections.abc import Callable
from typing import NoReturn

import grpc
from google.protobuf.message import Message
from grpc_channelz.v1 import channelz_pb2 as pb
from grpc_channelz.v1.channelz import ChannelzServicer

from store_service.rpc.call import Context

CHANNELZ = pb.DESCRIPTOR.services_by_name["Channelz"]

FILES = [CHANNELZ.file, *CHANNELZ.file.dependencies]
"""What reflection needs to describe it."""

_OF_SERVICER = {method.name: getattr(ChannelzServicer, method.name) for method in CHANNELZ.methods}


class ChannelzService:
    """The methods of grpc.channelz.v1.Channelz.

    grpcio-channelz has them for threads and says what is wrong by setting a code. gRPC's core keeps the
    books, which takes microseconds to read, so they may be read on the event loop.
    """

    async def GetTopChannels(self, request: pb.GetTopChannelsRequest, context: Context) -> Message:
        return await _answer("GetTopChannels", request, context)

    async def GetServers(self, request: pb.GetServersRequest, context: Context) -> Message:
        return await _answer("GetServers", request, context)

    async def GetServer(self, request: pb.GetServerRequest, context: Context) -> Message:
        return await _answer("GetServer", request, context)

    async def GetServerSockets(self, request: pb.GetServerSocketsRequest, context: Context) -> Message:
        return await _answer("GetServerSockets", request, context)

    async def GetChannel(self, request: pb.GetChannelRequest, context: Context) -> Message:
        return await _answer("GetChannel", request, context)

    async def GetSubchannel(self, request: pb.GetSubchannelRequest, context: Context) -> Message:
        return await _answer("GetSubchannel", request, context)

    async def GetSocket(self, request: pb.GetSocketRequest, context: Context) -> Message:
        return await _answer("GetSocket", request, context)


class _Said:
    """Hears what the servicer would tell gRPC."""

    code: grpc.StatusCode | None = None

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, _: str) -> None:
        """It is the text of an exception, which callers do not see."""


async def _answer(method: str, request: Message, context: Context) -> Message:
    said = _Said()
    ask: Callable[[Message, _Said], Message | None] = _OF_SERVICER[method]
    answer = ask(request, said)
    if answer is None:
        await _refuse(said.code, context)
    return answer


async def _refuse(code: grpc.StatusCode | None, context: Context) -> NoReturn:
    if code is grpc.StatusCode.NOT_FOUND:
        await context.abort(code, "gRPC knows nothing of this id; it may have been closed")
    raise RuntimeError("gRPC's books cannot be read")
