"""From settings to a serving process and back: every object is made and closed here.

What is opened is closed in reverse: the server before the workers, the workers before the database.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from storeapi.v1 import changes_pb2, comments_pb2, posts_pb2

from store_service import credentials, gc_tuning, logs, open_files, startup
from store_service.address import Address
from store_service.auth.authentication import AuthRequirement
from store_service.auth.certificates import Certificates
from store_service.channel_options import server_options
from store_service.config import Config
from store_service.database import connect, schema
from store_service.instrumentation import instrumented
from store_service.rpc import reflection
from store_service.rpc.changes import ChangeService
from store_service.rpc.channelz import CHANNELZ, ChannelzService
from store_service.rpc.channelz import FILES as CHANNELZ_FILES
from store_service.rpc.comments import CommentService
from store_service.rpc.connection_limits import ConnectionLimits
from store_service.rpc.connections import Connections
from store_service.rpc.health import HealthService
from store_service.rpc.limits import Limits
from store_service.rpc.pending import Pending
from store_service.rpc.pipeline import RpcPipeline
from store_service.rpc.posts import PostService
from store_service.rpc.reflection import ReflectionService
from store_service.rpc.validation import Validation
from store_service.service.changes import Changes
from store_service.service.comments import Comments
from store_service.service.feed import Feed
from store_service.service.large_deletions import Remover
from store_service.service.posts import Posts
from store_service.service.retention import Retention
from store_service.service.writer_health import WriterHealth

POSTS = posts_pb2.DESCRIPTOR.services_by_name["PostService"]
COMMENTS = comments_pb2.DESCRIPTOR.services_by_name["CommentService"]
CHANGES = changes_pb2.DESCRIPTOR.services_by_name["ChangeService"]
SERVICES = (POSTS, COMMENTS, CHANGES)
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

FLUSH_SECONDS = 0.5
"""How long answers that are on their way may take to leave after everything has finished."""

GOAWAY_SECONDS = 0.3
"""How long watches may take to be sent their last token; one whose caller does not read is just ended."""

CLEANUP_SECONDS = 0.8
"""How long the process may take to close everything after the grace period, before it just ends."""

log = structlog.get_logger("store_service.server")


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers."""

    address: str
    """HOST:PORT with the real port, or unix:PATH."""
    pipeline: RpcPipeline
    health: HealthService
    metrics_address: str = ""
    """Where metrics are served, with the real port; empty if they are not."""


def run(config: Config, *, is_worker: bool = False) -> None:
    """Serves until SIGTERM or SIGINT, then stops as `serving` does; a second signal ends the process at once.

    Raises:
        OperatorError: Something that was asked first does not let it serve; see `startup.prepare`.
        BadSetting: A variable of OpenTelemetry has a value that is not allowed.
        connect.DatabaseInUse: Another service has the database.
        BadFile: A file that a setting names cannot be used.
        ServiceError: The database cannot be opened, or has a schema that this program does not know.
    """
    import uvloop

    uvloop.run(_serve_until_signal(config, is_worker))


async def _serve_until_signal(config: Config, is_worker: bool) -> None:
    stop = asyncio.Event()
    with stop_on_signals(stop):
        if is_worker:
            _stop_with_supervisor(stop)
        elif not sys.stdin.isatty():
            # At a terminal it means that the terminal has gone, and the service goes with it.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _cannot_restart)
        leaving = asyncio.create_task(_leave_when_set(stop), name="leaving")
        async with serving(config, reuse_port=is_worker) as server:
            leaving.cancel()
            gc_tuning.freeze_current_objects()
            # The one line on stdout, for scripts that wait for it.
            print(f"store-service is serving on {server.address}", flush=True)  # noqa: T201
            log.info("serving", address=server.address)
            await stop.wait()
            log.info(
                "stopping",
                shutdown_delay_seconds=config.shutdown_delay_seconds,
                shutdown_grace_seconds=config.shutdown_grace_seconds,
            )
            # A write that waits for another process's lock cannot be called off.
            longest = config.shutdown_delay_seconds + config.shutdown_grace_seconds + CLEANUP_SECONDS
            asyncio.get_running_loop().call_later(longest, _give_up)
    log.info("stopped")


async def _leave_when_set(stop: asyncio.Event) -> None:
    """Ends the process when it is to stop before it serves, whatever it waits for."""
    await stop.wait()
    log.info("stopped before serving")
    logs.drain()
    # A change of the schema is one transaction, so nothing is half done.
    os._exit(0)


def _stop_with_supervisor(stop: asyncio.Event) -> None:
    """Stops when stdin closes, which is a pipe that the supervisor holds as long as it lives.

    A worker that was stopping already ends at once: nobody is left who would see to it that it ends in time.
    """

    def on_stdin() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            if stop.is_set():
                logs.drain()
                # What was answered is on disk, so nothing is lost by not tidying up.
                os._exit(1)
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), on_stdin)


def _cannot_restart() -> None:
    log.warning("SIGHUP ignored: it restarts workers, which exist only if STORE_WORKERS is more than 1")


def _give_up() -> None:
    log.warning("stopped without closing the database: shutdown timeout")
    logs.drain()
    # What was answered is on disk, so nothing is lost by not tidying up.
    os._exit(0)


@contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Sets `stop` at SIGTERM or SIGINT until the end of the block; a second signal ends the process."""
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            logs.drain()
            # What was answered is on disk, so nothing is lost by not tidying up.
            os._exit(128 + number)
        stop.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@asynccontextmanager
async def serving(config: Config, *, reuse_port: bool = False) -> AsyncIterator[RunningServer]:
    """A server that answers calls until the end of the block.

    The order of a shutdown:

    1. Health reports NOT_SERVING; calls are accepted for `shutdown_delay_seconds` more.
    2. Each watch sends its last resume token and ends.
    3. Drain: the listening socket closes, new calls on open connections get SHUTTING_DOWN, other streams
       end, and running calls have `shutdown_grace_seconds` to finish. Idle connections are closed.
    4. The gRPC server closes the remaining connections.
    5. The batch queues finish the jobs that have started.
    6. The database is closed.
    """
    config = config.model_copy(update={"max_connections": open_files.room_for(config.max_connections)})
    # First, so that a start that fails has not changed the schema under another program.
    certificates, access = credentials.certificates(config), credentials.access(config)
    revision = await startup.prepare(config, is_reserved=reuse_port)
    with connect.sole_use(config.DATABASE_URL):
        if revision != schema.HEAD:
            await asyncio.to_thread(
                schema.upgrade, config.DATABASE_URL, connect_timeout_seconds=config.connect_timeout_seconds
            )
        async with (
            instrumented(config, certificates) as observed,
            startup.open_database(config, observe=observed.lane) as database,
        ):
            await schema.look(database)
            await Changes(database).begin()
            connections = Connections()
            limits = _limits(config, connections)
            connection_limits = _connection_limits(config, connections, limits)
            pipeline = RpcPipeline(
                limits,
                connections,
                connection_limits.delivered,
                access,
                observed.measures,
                observed.tracing,
                max_request_bytes=config.max_request_bytes,
            )
            feed = Feed(
                database,
                max_watches=config.max_watches,
                metrics=observed.measures.feed if observed.measures else None,
            )
            names = [service.full_name for service in SERVICES]
            # Who watches over a connection has one for it.
            writer_health = WriterHealth(database)
            health = HealthService(
                lambda: _look(database, writer_health), names, max_watches=config.max_connections
            )
            remover = Remover(database)
            posts = Posts(database, after_deletion=remover.wake)
            server = _server(config, database, posts, feed, pipeline, health, names, reuse_port=reuse_port)
            address = _listen(server, config.listen, certificates)
            connections.begin(address)
            retention = asyncio.create_task(_keep(config, database), name="keeping")
            removing = None if config.read_only else asyncio.create_task(remover.run(), name="removing")
            checking = asyncio.create_task(database.keep_checking(), name="checking")
            probing = asyncio.create_task(writer_health.run(), name="probing")
            counting = asyncio.create_task(connection_limits.keep_looking(), name="connections")
            looking = None if access is None else asyncio.create_task(access.keep_looking(), name="looking")
            await server.start()
            try:
                yield RunningServer(
                    address=address,
                    pipeline=pipeline,
                    health=health,
                    metrics_address=observed.metrics_address,
                )
            finally:
                health.stop()
                await asyncio.sleep(config.shutdown_delay_seconds)
                retention.cancel()
                if removing is not None:
                    removing.cancel()
                checking.cancel()
                probing.cancel()
                counting.cancel()
                if looking is not None:
                    looking.cancel()
                started = asyncio.get_running_loop().time()
                await feed.stop(min(GOAWAY_SECONDS, config.shutdown_grace_seconds))
                await pipeline.drain(config.shutdown_grace_seconds)
                left = config.shutdown_grace_seconds - (asyncio.get_running_loop().time() - started)
                await server.stop(min(FLUSH_SECONDS, max(left, 0)))
                pipeline.close()


async def _look(database: connect.Database, writer_health: WriterHealth) -> None:
    """Checks whether reads and writes work; raises when they do not."""
    await schema.look(database)
    writer_health.check()


async def _keep(config: Config, database: connect.Database) -> None:
    if config.read_only:
        return
    retention = Retention(
        database,
        change_retention_hours=config.change_retention_hours,
        max_change_rows=config.max_change_rows,
        request_id_retention_hours=config.request_id_retention_hours,
    )
    await retention.run()


def _limits(config: Config, connections: Connections) -> Limits:
    return Limits(
        max_calls=config.max_concurrent_calls,
        max_bytes=config.max_concurrent_bytes,
        calls_per_second=config.rate_limit_per_caller,
        max_seconds=config.max_call_seconds,
        pending=Pending(
            max_connection_bytes=config.max_pending_response_bytes_per_connection,
            max_bytes=config.max_pending_response_bytes,
            max_seconds=config.max_call_seconds,
            cut=connections.cut,
        ),
    )


def _connection_limits(config: Config, connections: Connections, limits: Limits) -> ConnectionLimits:
    return ConnectionLimits(
        connections,
        max_connections=config.max_connections,
        max_per_address=config.max_connections_per_address,
        max_pending_bytes=config.max_concurrent_bytes,
        silent_seconds=config.handshake_timeout_seconds,
        busy=limits.peers,
        looked=limits.pending.looked,
    )


def _server(
    config: Config,
    database: connect.Database,
    posts: Posts,
    feed: Feed,
    pipeline: RpcPipeline,
    health: HealthService,
    names: list[str],
    *,
    reuse_port: bool,
) -> grpc.aio.Server:
    validation = Validation(
        max_body_bytes=config.max_body_bytes,
        max_batch_size=config.max_batch_size,
        max_page_size=config.max_page_size,
    )
    server = grpc.aio.server(options=server_options(config, reuse_port=reuse_port))
    server.add_generic_rpc_handlers(
        (
            pipeline.handlers(POSTS, PostService(posts, validation)),
            pipeline.handlers(COMMENTS, CommentService(Comments(database), validation)),
            # The feed counts its watches.
            pipeline.handlers(CHANGES, ChangeService(feed, validation), count_streams=False),
            pipeline.handlers(HEALTH, health, while_draining=True, admission=AuthRequirement.ANYBODY),
        )
    )
    if config.reflection != "off":
        all_names = [*names, HEALTH.full_name, reflection.V1_NAME, reflection.V1ALPHA.full_name]
        files = [HEALTH.file, reflection.V1ALPHA.file]
        if config.channelz:
            all_names.append(CHANNELZ.full_name)
            files += CHANNELZ_FILES
        describe = ReflectionService(all_names, files)
        admission = AuthRequirement.ANYBODY if config.reflection == "open" else AuthRequirement.CALLER
        server.add_generic_rpc_handlers(
            (
                pipeline.handlers(reflection.V1ALPHA, describe, admission=admission),
                pipeline.handlers(reflection.V1ALPHA, describe, admission=admission, name=reflection.V1_NAME),
            )
        )
    if config.channelz:
        # It tells who is connected; where callers have rights it asks for the one to write, as what is not
        # known to be harmless does.
        server.add_generic_rpc_handlers(
            (pipeline.handlers(CHANNELZ, ChannelzService(), while_draining=True),)
        )
    return server


def _listen(server: grpc.aio.Server, listen: str, certificates: Certificates | None) -> str:
    try:
        port = (
            server.add_insecure_port(listen)
            if certificates is None
            else server.add_secure_port(listen, certificates.credentials())
        )
    except RuntimeError:
        port = 0
    if not port:
        raise startup.CannotListen(listen)
    address = Address.parse(listen)
    return listen if address.path is not None else str(address.with_port(port))


def service_descriptors() -> list[ServiceDescriptor]:
    """The services of the contract."""
    return list(SERVICES)
