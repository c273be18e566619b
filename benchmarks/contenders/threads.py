"""Threads: grpcio's thread pool and SQLAlchemy sessions, a session and a commit for each call."""
# The methods have the names of the RPCs, which the .proto files document.
# ruff: noqa: D102, N802

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from sqlalchemy import create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, sessionmaker
from storeapi.v1 import posts_pb2 as pb
from storeapi.v1.posts_pb2_grpc import PostServiceServicer, add_PostServiceServicer_to_server

from benchmarks.contenders.plain import LOCK_SECONDS
from benchmarks.contenders.wire import announce, new_row, post_message
from store_service.database import metadata, post_table

THREADS = 10
"""Concurrent calls, as in the examples of gRPC; each has a connection."""


class Base(DeclarativeBase):
    """The base class of the tables."""

    metadata = metadata


class Post(Base):
    """A row of posts."""

    __table__ = post_table


class PostService(PostServiceServicer):
    """Uses one session for each call."""

    def __init__(self, sessions: sessionmaker[Any]) -> None:
        """Takes the factory of sessions."""
        self._sessions = sessions

    def GetPost(self, request: pb.GetPostRequest, context: grpc.ServicerContext) -> pb.Post:
        with self._sessions() as session:
            post = session.get(Post, request.id)
            if post is None:
                context.abort(grpc.StatusCode.NOT_FOUND, f"there is no post {request.id}")
            return post_message(vars(post))

    def CreatePost(self, request: pb.CreatePostRequest, context: grpc.ServicerContext) -> pb.Post:
        with self._sessions() as session:
            post = Post(**new_row(request.post.body))
            session.add(post)
            session.commit()
            return post_message(vars(post))

    def ListPosts(self, request: pb.ListPostsRequest, context: grpc.ServicerContext) -> pb.ListPostsResponse:
        with self._sessions() as session:
            posts = session.scalars(select(Post).order_by(post_table.c.id).limit(request.page_size))
            return pb.ListPostsResponse(posts=[post_message(vars(post)) for post in posts])

    def BatchGetPosts(
        self, request: pb.BatchGetPostsRequest, context: grpc.ServicerContext
    ) -> pb.BatchGetPostsResponse:
        with self._sessions() as session:
            posts = session.scalars(select(Post).where(post_table.c.id.in_(request.ids)))
            found = {vars(post)["id"]: vars(post) for post in posts}
            return pb.BatchGetPostsResponse(posts=[post_message(found[id]) for id in request.ids])

    def BatchCreatePosts(
        self, request: pb.BatchCreatePostsRequest, context: grpc.ServicerContext
    ) -> pb.BatchCreatePostsResponse:
        with self._sessions() as session:
            posts = [Post(**new_row(one.post.body)) for one in request.requests]
            session.add_all(posts)
            session.commit()
            return pb.BatchCreatePostsResponse(posts=[post_message(vars(post)) for post in posts])


def main() -> None:
    """Serves until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    engine = create_engine(
        os.environ["DATABASE_URL"], pool_size=THREADS, connect_args={"timeout": LOCK_SECONDS}
    )

    @event.listens_for(engine, "connect")
    def _foreign_keys(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON").close()

    server = grpc.server(ThreadPoolExecutor(max_workers=THREADS))
    add_PostServiceServicer_to_server(PostService(sessionmaker(engine, expire_on_commit=False)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    announce("threads", port)
    stop.wait()
    server.stop(1).wait()
    engine.dispose()


if __name__ == "__main__":
    main()
