"""channelz: off unless it is wanted, and then what gRPC knows of this server."""

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2 as pb
from grpc_channelz.v1 import channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from store_service import config as settings
from store_service.config import Config
from store_service.rpc.channelz import CHANNELZ
from tests.support.engines import SQLITE_ONLY
from tests.support.errors import expect_error
from tests.support.stubs import Stubs

pytestmark = SQLITE_ONLY


@pytest.fixture
def config(request: pytest.FixtureRequest, database_url: str) -> Config:
    """A server with channelz, unless a test says otherwise."""
    wanted = getattr(request, "param", True)
    return settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", channelz=wanted)


@pytest.fixture
def channelz(channel: grpc.aio.Channel) -> channelz_pb2_grpc.ChannelzStub:
    """The stub."""
    return channelz_pb2_grpc.ChannelzStub(channel)


async def own_server(channelz: channelz_pb2_grpc.ChannelzStub, address: str) -> pb.Server:
    """The channelz data of this server; other tests may have left servers."""
    servers = (await channelz.GetServers(pb.GetServersRequest())).server
    return max(servers, key=lambda it: it.ref.server_id)


async def test_channelz_counts_calls_and_connections(
    channelz: channelz_pb2_grpc.ChannelzStub, stubs: Stubs, server: object
) -> None:
    """gRPC's core records the data of a grpc.aio server too."""
    before = await own_server(channelz, "")
    await stubs.create_post()
    after = await own_server(channelz, "")

    assert after.data.calls_started >= before.data.calls_started + 2
    assert after.data.calls_succeeded > before.data.calls_succeeded
    assert (
        await channelz.GetServer(pb.GetServerRequest(server_id=after.ref.server_id))
    ).server.ref == after.ref
    sockets = await channelz.GetServerSockets(pb.GetServerSocketsRequest(server_id=after.ref.server_id))
    assert len(sockets.socket_ref) == 1
    socket = await channelz.GetSocket(pb.GetSocketRequest(socket_id=sockets.socket_ref[0].socket_id))
    assert socket.socket.data.messages_received >= 3


async def test_channelz_lists_channels(channelz: channelz_pb2_grpc.ChannelzStub) -> None:
    """Those of this process."""
    channels = (await channelz.GetTopChannels(pb.GetTopChannelsRequest())).channel
    found = await channelz.GetChannel(pb.GetChannelRequest(channel_id=channels[-1].ref.channel_id))
    (subchannel, *_) = found.channel.subchannel_ref
    below = await channelz.GetSubchannel(pb.GetSubchannelRequest(subchannel_id=subchannel.subchannel_id))

    assert found.channel.data.target.startswith("dns:///127.0.0.1:")
    assert below.subchannel.ref.subchannel_id == subchannel.subchannel_id


async def test_unknown_channelz_id_is_not_found(channelz: channelz_pb2_grpc.ChannelzStub) -> None:
    """With the same text for everything, and an id for the log."""
    unknown = 999_999_999
    for call in (
        channelz.GetServer(pb.GetServerRequest(server_id=unknown)),
        channelz.GetServerSockets(pb.GetServerSocketsRequest(server_id=unknown)),
        channelz.GetChannel(pb.GetChannelRequest(channel_id=unknown)),
        channelz.GetSubchannel(pb.GetSubchannelRequest(subchannel_id=unknown)),
        channelz.GetSocket(pb.GetSocketRequest(socket_id=unknown)),
    ):
        error = await expect_error(call)
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert error.message == "unknown id; the object may have been closed"
        assert error.trailing["x-call-id"]


async def test_reflection_describes_channelz(channel: grpc.aio.Channel) -> None:
    """With everything that its messages need, so that grpcurl can call it."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=CHANNELZ.full_name)
    answer = await stub.ServerReflectionInfo(iter([asked])).read()

    assert len(answer.file_descriptor_response.file_descriptor_proto) == 1 + len(CHANNELZ.file.dependencies)


@pytest.mark.parametrize("config", [False], indirect=True)
async def test_channelz_is_disabled_by_default(
    channelz: channelz_pb2_grpc.ChannelzStub, channel: grpc.aio.Channel
) -> None:
    """It discloses other callers."""
    error = await expect_error(channelz.GetServers(pb.GetServersRequest()))
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    listed = (await stub.ServerReflectionInfo(iter([asked])).read()).list_services_response.service

    assert error.code is grpc.StatusCode.UNIMPLEMENTED
    assert CHANNELZ.full_name not in {it.name for it in listed}
