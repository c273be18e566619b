"""Creates every object of a server from the settings, and closes them in reverse order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from storeapi.v1 import admin_pb2, changes_pb2, comments_pb2, posts_pb2, transfer_pb2

from store_service import credentials, limit_options, open_files, startup
from store_service.address import Address
from store_service.auth.authentication import Authenticator, AuthRequirement
from store_service.auth.certificates import Certificates
from store_service.channel_options import server_options
from store_service.config import Config
from store_service.database import connect, schema
from store_service.instrumentation import instrumented
from store_service.observability.metrics import RetentionMetrics
from store_service.rpc import reflection
from store_service.rpc.admin import AdminService
from store_service.rpc.changes import ChangeService
from store_service.rpc.channelz import CHANNELZ, ChannelzService
from store_service.rpc.channelz import FILES as CHANNELZ_FILES
from store_service.rpc.comments import CommentService
from store_service.rpc.connections import Connections
from store_service.rpc.consistency import Consistency
from store_service.rpc.health import HealthService
from store_service.rpc.pipeline import RpcPipeline
from store_service.rpc.posts import PostService
from store_service.rpc.reflection import ReflectionService
from store_service.rpc.transfer import TransferService
from store_service.rpc.validation import Validation
from store_service.service.background_steps import BackgroundSteps
from store_service.service.changes import Changes
from store_service.service.comments import Comments
from store_service.service.erasure import Erasures
from store_service.service.feed import Feed
from store_service.service.feed_delay import FeedDelay
from store_service.service.posts import Posts
from store_service.service.retention import Retention
from store_service.service.search import Searches
from store_service.service.search_index import SearchIndex
from store_service.service.transfer_export import Exports
from store_service.service.transfer_import import Imports
from store_service.service.write_operations import writer_process
from store_service.service.writer_health import WriterHealth

POSTS = posts_pb2.DESCRIPTOR.services_by_name["PostService"]
COMMENTS = comments_pb2.DESCRIPTOR.services_by_name["CommentService"]
CHANGES = changes_pb2.DESCRIPTOR.services_by_name["ChangeService"]
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
TRANSFERS = transfer_pb2.DESCRIPTOR.services_by_name["TransferService"]
SERVICES = (POSTS, COMMENTS, CHANGES, ADMIN, TRANSFERS)
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

FLUSH_SECONDS = 0.5
"""Maximum time to send the last responses after all calls have finished."""

LAST_TOKEN_SECONDS = 0.3
"""Maximum time to send the last resume tokens. A watch whose caller does not read ends without one."""

log = structlog.get_logger("store_service.server")


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that accepts calls."""

    address: str
    """HOST:PORT with the actual port, or unix:PATH."""
    pipeline: RpcPipeline
    health: HealthService
    metrics_address: str = ""
    """Where metrics are served, with the actual port; empty without metrics."""


@asynccontextmanager
async def serving(
    config: Config, *, reuse_port: bool = False, writer_socket: str = ""
) -> AsyncIterator[RunningServer]:
    """Accepts calls until the end of the block.

    `reuse_port` lets several processes share the port. `writer_socket` is the socket of the writer process,
    whose supervisor has the sole use of the database; empty if this process writes itself.

    The order of a shutdown, in which each step needs the objects of the next ones:

    1. Health reports NOT_SERVING; calls are accepted for `shutdown_delay_seconds` more.
    2. Each watch sends its last resume token and ends.
    3. Drain: the listening socket closes, new calls on open connections get SHUTTING_DOWN, other streams
       end, and running calls have `shutdown_grace_seconds` to finish. Idle connections are closed.
    4. The gRPC server closes the remaining connections.
    5. The batch queues finish the jobs that have started.
    6. The database is closed.
    """
    config = config.model_copy(update={"max_connections": open_files.room_for(config.max_connections)})
    # Before the schema upgrade, so that a start that fails has changed nothing.
    certificates = credentials.load_certificates(config)
    authenticator = credentials.make_authenticator(config)
    revision = await startup.prepare(config, is_reserved=reuse_port)
    writer = writer_process(writer_socket) if writer_socket else None
    with nullcontext() if writer else connect.sole_use(config.DATABASE_URL):
        if revision != schema.HEAD:
            await asyncio.to_thread(
                schema.upgrade, config.upgrade_url, connect_timeout_seconds=config.connect_timeout_seconds
            )
        async with (
            instrumented(config, certificates, writes=not writer_socket) as instrumentation,
            startup.open_database(
                config, observe=instrumentation.queue_observer, with_replicas=True, writer_process=writer
            ) as database,
        ):
            if database.pooling:
                log.info("connected to PostgreSQL", connection=database.pooling)
            metrics = instrumentation.metrics
            if metrics is not None and database.replicas is not None:
                metrics.replicas = database.replicas.all
            await schema.look(database)
            changes = Changes(database)
            await changes.begin()
            consistency = Consistency(
                changes, (await changes.state()).store_id, has_replicas=database.replicas is not None
            )
            connections = Connections()
            limits = limit_options.limits(config, connections)
            connection_limits = limit_options.connection_limits(config, connections, limits)
            pipeline = RpcPipeline(
                limits,
                connections,
                connection_limits.delivered,
                authenticator,
                metrics,
                instrumentation.tracing,
                limit_options.trusted_proxies(config),
                max_request_bytes=config.max_request_bytes,
            )
            feed = Feed(
                database,
                max_watches=config.max_watches,
                metrics=metrics.feed if metrics else None,
            )
            search_index = SearchIndex(
                database, enabled=config.search, metrics=metrics.search if metrics else None
            )
            names = [service.full_name for service in SERVICES]
            writer_health = WriterHealth(database)
            health = HealthService(
                lambda: _check_database(database, writer_health),
                search_index.is_complete,
                names,
                # A client has usually one health watch for each connection.
                max_watches=config.max_connections,
            )
            steps = BackgroundSteps(database)
            collections = _collections(config, database, steps)
            erasures = Erasures(database, search_index, after_erasure=feed.forget)
            server = _server(
                config,
                collections,
                Searches(database, search_index),
                feed,
                AdminService(database, erasures, search_index),
                (Exports(database), Imports(database, max_reply_depth=config.max_reply_depth)),
                pipeline,
                consistency,
                health,
                names,
                reuse_port=reuse_port,
            )
            address = _listen(server, config.listen, certificates)
            connections.begin(address)
            background_tasks = [
                asyncio.create_task(database.keep_checking(), name="database-role-check"),
                asyncio.create_task(writer_health.run(), name="writer-probe"),
                asyncio.create_task(connection_limits.run(), name="connection-limits"),
                asyncio.create_task(
                    FeedDelay(database, metrics.feed if metrics else None).run(), name="feed-delay"
                ),
                *_writing_tasks(
                    config, database, steps, search_index, metrics.retention if metrics else None
                ),
                *_file_tasks(authenticator),
            ]
            await server.start()
            try:
                yield RunningServer(
                    address=address,
                    pipeline=pipeline,
                    health=health,
                    metrics_address=instrumentation.metrics_address,
                )
            finally:
                health.stop()
                await asyncio.sleep(config.shutdown_delay_seconds)
                for task in background_tasks:
                    task.cancel()
                started = asyncio.get_running_loop().time()
                await feed.stop(min(LAST_TOKEN_SECONDS, config.shutdown_grace_seconds))
                await pipeline.drain(config.shutdown_grace_seconds)
                left = config.shutdown_grace_seconds - (asyncio.get_running_loop().time() - started)
                await server.stop(min(FLUSH_SECONDS, max(left, 0)))
                pipeline.close()


async def _check_database(database: connect.Database, writer_health: WriterHealth) -> None:
    """Raises an error if reads or writes do not work."""
    await schema.look(database)
    writer_health.check()


def _collections(
    config: Config, database: connect.Database, steps: BackgroundSteps
) -> tuple[Posts, Comments]:
    posts = Posts(
        database, undelete_hours=config.undelete_hours, max_revisions=config.revisions, after_write=steps.wake
    )
    comments = Comments(
        database,
        max_reply_depth=config.max_reply_depth,
        undelete_hours=config.undelete_hours,
        max_revisions=config.revisions,
        after_write=steps.wake,
    )
    return posts, comments


def _writing_tasks(
    config: Config,
    database: connect.Database,
    steps: BackgroundSteps,
    search_index: SearchIndex,
    metrics: RetentionMetrics | None,
) -> list[asyncio.Task[None]]:
    """Starts the background tasks that write; none if the server is read-only."""
    if config.read_only:
        return []
    retention = Retention(
        database,
        change_retention_hours=config.change_retention_hours,
        max_change_rows=config.max_change_rows,
        request_id_retention_hours=config.request_id_retention_hours,
        undelete_hours=config.undelete_hours,
        metrics=metrics,
    )
    return [
        asyncio.create_task(retention.run(), name="retention"),
        asyncio.create_task(steps.run(), name="background-steps"),
        asyncio.create_task(search_index.run(), name="search-index"),
    ]


def _file_tasks(authenticator: Authenticator | None) -> list[asyncio.Task[None]]:
    """Starts the background task that loads changed key files, if callers are authenticated."""
    if authenticator is None:
        return []
    return [asyncio.create_task(authenticator.watch_files(), name="key-files")]


def _server(
    config: Config,
    collections: tuple[Posts, Comments],
    searches: Searches,
    feed: Feed,
    admin: AdminService,
    transfers: tuple[Exports, Imports],
    pipeline: RpcPipeline,
    consistency: Consistency,
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
    posts, comments = collections
    server = grpc.aio.server(options=server_options(config, reuse_port=reuse_port))
    server.add_generic_rpc_handlers(
        (
            pipeline.handlers(POSTS, PostService(posts, searches.posts, validation), consistency=consistency),
            pipeline.handlers(
                COMMENTS, CommentService(comments, searches.comments, validation), consistency=consistency
            ),
            # The feed limits the number of watches.
            pipeline.handlers(CHANGES, ChangeService(feed, validation), counts_streams=False),
            pipeline.handlers(ADMIN, admin),
            pipeline.handlers(TRANSFERS, TransferService(*transfers, validation)),
            pipeline.handlers(HEALTH, health, ignores_limits=True, requirement=AuthRequirement.NONE),
        )
    )
    if config.reflection != "off":
        all_names = [*names, HEALTH.full_name, reflection.V1_NAME, reflection.V1ALPHA.full_name]
        files = [HEALTH.file, reflection.V1ALPHA.file]
        if config.channelz:
            all_names.append(CHANNELZ.full_name)
            files += CHANNELZ_FILES
        servicer = ReflectionService(all_names, files)
        requirement = AuthRequirement.NONE if config.reflection == "open" else AuthRequirement.CREDENTIALS
        server.add_generic_rpc_handlers(
            (
                pipeline.handlers(reflection.V1ALPHA, servicer, requirement=requirement),
                pipeline.handlers(
                    reflection.V1ALPHA, servicer, requirement=requirement, name=reflection.V1_NAME
                ),
            )
        )
    if config.channelz:
        # Its methods state nothing about side effects, so they require the permission `write`. That suits
        # them, because they reveal the addresses of callers.
        server.add_generic_rpc_handlers(
            (pipeline.handlers(CHANNELZ, ChannelzService(), ignores_limits=True),)
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
    """Returns the services of the contract."""
    return list(SERVICES)
