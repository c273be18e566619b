"""The old stack: FastAPI, uvicorn and `databases`, JSON over HTTP/1.1, as in the `storeapi` application.

It returns the same fields, runs on uvloop and httptools, and writes no access log.
"""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from databases import Database
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import insert, select

from benchmarks.contenders.plain import LOCK_SECONDS, ForeignKeys
from benchmarks.contenders.wire import announce, new_row
from store_service.database import post_table

database = Database(os.environ["DATABASE_URL"], timeout=LOCK_SECONDS, factory=ForeignKeys)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens and closes the database."""
    async with database:
        yield


app = FastAPI(lifespan=lifespan)


class Draft(BaseModel):
    """A post to store."""

    body: str


class Post(Draft):
    """A stored post."""

    id: int
    create_time: int
    update_time: int
    version: int


@app.post("/post", status_code=201, response_model=Post)
async def create_post(draft: Draft) -> dict[str, Any]:
    """Stores a post."""
    row = new_row(draft.body)
    return {**row, "id": await database.execute(insert(post_table).values(row))}


@app.get("/post/{id}", response_model=Post)
async def get_post(id: int) -> Any:
    """Returns a post."""
    row = await database.fetch_one(select(post_table).where(post_table.c.id == id))
    if row is None:
        raise HTTPException(status_code=404, detail="there is no such post")
    return dict(row._mapping)


@app.get("/post", response_model=list[Post])
async def list_posts(limit: int) -> Any:
    """Returns the first posts."""
    rows = await database.fetch_all(select(post_table).order_by(post_table.c.id).limit(limit))
    return [dict(row._mapping) for row in rows]


class Server(uvicorn.Server):
    """Prints its address when it serves."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen, and prints the address."""
        await super().startup(sockets)
        assert sockets is not None
        announce("old stack", sockets[0].getsockname()[1])


if __name__ == "__main__":
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", 0))
    Server(config).run(sockets=[listening])
