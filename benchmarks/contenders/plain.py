"""The plain implementation: grpc.aio and `databases`, one query for each call.

The same tables, foreign keys on, WAL with a sync at every commit, on uvloop, as the documentation of
both libraries suggests. `databases` opens a connection for each query on SQLite.
"""
# The methods have the names of the RPCs, which the .proto files document.
# ruff: noqa: D102, N802

import asyncio
import os
import sqlite3
from typing import Any

import grpc
import uvloop
from databases import Database
from sqlalchemy import insert, select
from storeapi.v1 import posts_pb2 as pb
from storeapi.v1.posts_pb2_grpc import PostServiceServicer, add_PostServiceServicer_to_server

from benchmarks.contenders.wire import new_row, post_message, serve_until_sigterm
from store_service.database import post_table

Context = grpc.aio.ServicerContext

LOCK_SECONDS = 30
"""Lock timeout of a write. With the 5 seconds of Python, many of 256 concurrent writes would fail."""


class ForeignKeys(sqlite3.Connection):
    """A connection that checks foreign keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Opens the connection and enables foreign keys, which is a setting of each connection."""
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA foreign_keys = ON").close()


class PostService(PostServiceServicer):
    """Executes one query for each call."""

    def __init__(self, database: Database) -> None:
        """Takes the database."""
        self._database = database

    async def GetPost(self, request: pb.GetPostRequest, context: Context) -> pb.Post:
        row = await self._database.fetch_one(select(post_table).where(post_table.c.id == request.id))
        if row is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no post {request.id}")
        return post_message(row._mapping)

    async def CreatePost(self, request: pb.CreatePostRequest, context: Context) -> pb.Post:
        row = new_row(request.post.body)
        row["id"] = await self._database.execute(insert(post_table).values(row))
        return post_message(row)

    async def ListPosts(self, request: pb.ListPostsRequest, context: Context) -> pb.ListPostsResponse:
        page = select(post_table).order_by(post_table.c.id).limit(request.page_size)
        rows = await self._database.fetch_all(page)
        return pb.ListPostsResponse(posts=[post_message(row._mapping) for row in rows])

    async def BatchGetPosts(
        self, request: pb.BatchGetPostsRequest, context: Context
    ) -> pb.BatchGetPostsResponse:
        rows = await self._database.fetch_all(select(post_table).where(post_table.c.id.in_(request.ids)))
        found = {row._mapping["id"]: row._mapping for row in rows}
        return pb.BatchGetPostsResponse(posts=[post_message(found[id]) for id in request.ids])

    async def BatchCreatePosts(
        self, request: pb.BatchCreatePostsRequest, context: Context
    ) -> pb.BatchCreatePostsResponse:
        drafts = [new_row(one.post.body) for one in request.requests]
        rows = await self._database.fetch_all(insert(post_table).values(drafts).returning(post_table))
        stored = sorted((row._mapping for row in rows), key=lambda row: row["id"])
        return pb.BatchCreatePostsResponse(posts=[post_message(row) for row in stored])


async def main() -> None:
    """Serves until SIGTERM."""
    async with Database(os.environ["DATABASE_URL"], timeout=LOCK_SECONDS, factory=ForeignKeys) as database:
        server = grpc.aio.server()
        add_PostServiceServicer_to_server(PostService(database), server)
        await serve_until_sigterm("plain", server)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
