"""Posts and comments of an author who is erased, in every place where their texts are stored."""

import random
import subprocess
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy.engine import make_url
from storeapi.v1 import admin_pb2, comments_pb2, posts_pb2

from store_service.database.connect import is_sqlite
from tests.support.database import query
from tests.support.postgresql import binaries
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

MARKER = "qzxv7marker"
"""Is in every text of the author, and in what others wrote below it."""

AUTHOR = f"user-{MARKER}"
OTHER = "someone else"
KEPT = "kept7text"
"""Is in every text that remains."""

ANONYMIZE = admin_pb2.ERASE_MODE_ANONYMIZE
DELETE = admin_pb2.ERASE_MODE_DELETE


@dataclass
class World:
    """What was created."""

    stubs: Stubs
    suffix: str = ""
    """Of external ids, which are unique."""
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    requests: list[tuple[Any, Any, Any]] = field(default_factory=list)
    """Method, request and response of writes with a request id."""
    count: int = 0

    def body(self, marker: str) -> str:
        """Returns a body of a random length that has the marker every 40 characters."""
        self.count += 1
        return f"{self.count} " + f"{marker} some words of a text " * self.chance.randint(1, 60)

    async def write(self, method: Any, request: Any) -> Any:
        """Calls a method with a request id."""
        request.request_id = str(uuid.uuid4())
        response = await method(request)
        self.requests.append((method, request, response))
        return response

    async def post(self, author: str, marker: str, **fields: Any) -> posts_pb2.Post:
        """Creates a post."""
        fields = {"body": self.body(marker), "external_id": f"{marker} p{self.count}{self.suffix}"} | fields
        post = posts_pb2.Post(author=author, labels={"topic": marker}, **fields)
        request = posts_pb2.CreatePostRequest(post=post)
        return await self.write(self.stubs.posts.CreatePost, request)

    async def comment(
        self, author: str, marker: str, post_id: int, reply_to_id: int = 0
    ) -> comments_pb2.Comment:
        """Creates a comment."""
        comment = comments_pb2.Comment(
            post_id=post_id,
            reply_to_id=reply_to_id,
            body=self.body(marker),
            author=author,
            labels={"topic": marker},
            external_id=f"{marker} c{self.count}{self.suffix}",
        )
        request = comments_pb2.CreateCommentRequest(comment=comment)
        return await self.write(self.stubs.comments.CreateComment, request)

    async def update_post(self, id: int, **fields: Any) -> posts_pb2.Post:
        """Updates a post."""
        request = posts_pb2.UpdatePostRequest(
            post=posts_pb2.Post(id=id, **fields), update_mask=FieldMask(paths=list(fields))
        )
        return await self.write(self.stubs.posts.UpdatePost, request)

    async def delete_post(self, id: int) -> None:
        """Deletes a post with its comments."""
        await self.write(self.stubs.posts.DeletePost, posts_pb2.DeletePostRequest(id=id, force=True))

    async def delete_comment(self, id: int, *, force: bool = False) -> None:
        """Deletes a comment."""
        await self.write(
            self.stubs.comments.DeleteComment, comments_pb2.DeleteCommentRequest(id=id, force=force)
        )


@dataclass
class Ids:
    """The ids that tests refer to."""

    kept_post: int
    kept_comment: int
    commented_post: int
    """Of the author, with a comment of another one."""
    reply: int
    """Of another author, to a comment of the author in the kept post."""
    plain_post: int
    transferred_post: int
    deleted_post: int
    deleted_comment: int


async def create_world(
    stubs: Stubs, *, mode: int, can_be_restored: bool = True, suffix: str = ""
) -> tuple[World, Ids]:
    """Creates the world.

    In the mode DELETE, what others wrote below is marked too. Nothing shows who wrote a deleted resource that
    cannot be restored.
    """
    below = MARKER if mode == DELETE else KEPT
    below_deleted = below if can_be_restored else KEPT
    it = World(stubs, suffix)
    kept_post = await it.post(OTHER, KEPT)
    kept_comment = await it.comment(OTHER, KEPT, kept_post.id)
    await it.update_post(kept_post.id, body=it.body(KEPT))

    plain = await it.post(AUTHOR, MARKER)
    for _ in range(3):
        await it.update_post(plain.id, body=it.body(MARKER))
    commented = await it.post(AUTHOR, MARKER)
    await it.comment(OTHER, below, commented.id)
    # A thread of both, in the post of another author.
    first = await it.comment(AUTHOR, MARKER, kept_post.id)
    reply = await it.comment(OTHER, below, kept_post.id, first.id)
    second = await it.comment(AUTHOR, MARKER, kept_post.id, reply.id)
    third = await it.comment(AUTHOR, MARKER, kept_post.id, second.id)
    await it.comment(OTHER, below, kept_post.id, third.id)
    chain = kept_comment.id
    for _ in range(4):
        chain = (await it.comment(AUTHOR, MARKER, kept_post.id, chain)).id
    # Deleted ones: a tombstone, one without replies, one with its thread, one with its post.
    tombstone = await it.comment(AUTHOR, MARKER, kept_post.id)
    await it.comment(OTHER, below_deleted, kept_post.id, tombstone.id)
    await it.delete_comment(tombstone.id)
    deleted = await it.comment(AUTHOR, MARKER, kept_post.id, kept_comment.id)
    await it.delete_comment(deleted.id)
    root = await it.comment(AUTHOR, MARKER, kept_post.id)
    await it.comment(OTHER, below_deleted, kept_post.id, root.id)
    await it.delete_comment(root.id, force=True)
    under_other = await it.comment(OTHER, KEPT, kept_post.id)
    await it.comment(AUTHOR, MARKER, kept_post.id, under_other.id)
    await it.delete_comment(under_other.id, force=True)
    deleted_post = await it.post(AUTHOR, MARKER)
    await it.comment(OTHER, below_deleted, deleted_post.id)
    await it.delete_post(deleted_post.id)
    lonely = await it.post(AUTHOR, MARKER)
    await it.delete_post(lonely.id)
    # Another author takes over: the former version is of the author.
    transferred = await it.post(AUTHOR, MARKER, external_id=f"{KEPT} transferred{suffix}")
    labels = {"topic": KEPT}
    request = posts_pb2.UpdatePostRequest(
        post=posts_pb2.Post(id=transferred.id, body=it.body(KEPT), author=OTHER, labels=labels),
        update_mask=FieldMask(paths=["body", "author", "labels"]),
    )
    await it.write(stubs.posts.UpdatePost, request)
    ids = Ids(
        kept_post=kept_post.id,
        kept_comment=kept_comment.id,
        commented_post=commented.id,
        reply=reply.id,
        plain_post=plain.id,
        transferred_post=transferred.id,
        deleted_post=deleted_post.id,
        deleted_comment=deleted.id,
    )
    return it, ids


async def add_small_rows(world: World, count: int) -> None:
    """Creates and updates many small posts, after which pages of the file have gaps with old texts."""
    ids: list[int] = []
    for _ in range(count):
        author, marker = world.chance.choice([(AUTHOR, MARKER), (OTHER, KEPT)])
        post = posts_pb2.Post(body=f"{world.body(marker)[:200]}{marker}", author=author)
        ids.append((await world.stubs.posts.CreatePost(posts_pb2.CreatePostRequest(post=post))).id)
        if world.chance.random() < 0.3:
            id = world.chance.choice(ids)
            found = await world.stubs.posts.GetPost(posts_pb2.GetPostRequest(id=id))
            own = MARKER if found.author == AUTHOR else KEPT
            await world.update_post(id, body=world.body(own))


async def erase(stubs: Stubs, mode: int, **options: Any) -> list[admin_pb2.EraseAuthorResponse]:
    """Erases the author, and returns the responses."""
    request = admin_pb2.EraseAuthorRequest(author=AUTHOR, mode=mode, **options)
    call = stubs.admin.EraseAuthor(request, timeout=scaled_timeout())
    return [it async for it in call]


def counts(response: admin_pb2.EraseAuthorResponse) -> dict[str, int]:
    """Returns the numbers of a response."""
    names = ("posts", "comments", "revisions", "changes", "stored_responses")
    return {name: getattr(response, name) for name in names}


def stored_bytes(database_url: str) -> bytes:
    """Returns all bytes of the SQLite file and its log, or a dump of the PostgreSQL database."""
    if is_sqlite(database_url):
        path = Path(database_url.removeprefix("sqlite:///"))
        return b"".join(it.read_bytes() for it in (path, Path(f"{path}-wal")) if it.exists())
    url = make_url(database_url)
    command = [str(binaries() / "pg_dump"), "-h", str(url.host), "-p", str(url.port), "-U", str(url.username)]
    done = subprocess.run(
        [*command, str(url.database)], capture_output=True, check=True, timeout=scaled_timeout()
    )
    return done.stdout


def unconnected(database_url: str) -> set[int]:
    """Returns the ids that rows of comments name as comments above them, and that do not exist."""
    rows = query(
        database_url, "SELECT id, path FROM comments UNION ALL SELECT id, path FROM deleted_comments"
    )
    existing = {id for id, _ in rows}
    return {id for _, path in rows for id in _ids_in(path)} - existing


def childless_tombstones(database_url: str) -> list[tuple[Any, ...]]:
    """Returns the tombstones without replies, which must not exist."""
    return query(
        database_url,
        "SELECT id FROM comments WHERE delete_time IS NOT NULL"
        " AND id NOT IN (SELECT reply_to_id FROM comments)",
    )


def _ids_in(path: str) -> Iterable[int]:
    return (int(path[n : n + 16], 16) for n in range(0, len(path), 16))


async def add_many_posts(stubs: Stubs, count: int) -> None:
    """Creates posts of two authors in random order, and updates many of them to bodies of another length."""
    chance = random.Random(4)
    pairs = ((AUTHOR, MARKER), (OTHER, KEPT))
    ids: list[tuple[int, str]] = []
    for _ in range(count // 100):
        chosen = [chance.choice(pairs) for _ in range(100)]
        drafts = [posts_pb2.Post(body=marker * chance.randint(1, 30), author=it) for it, marker in chosen]
        requests = [posts_pb2.CreatePostRequest(post=it) for it in drafts]
        created = await stubs.posts.BatchCreatePosts(posts_pb2.BatchCreatePostsRequest(requests=requests))
        ids += [(it.id, marker) for it, (_, marker) in zip(created.posts, chosen, strict=True)]
        updates = [
            posts_pb2.UpdatePostRequest(
                post=posts_pb2.Post(id=id, body=marker * chance.randint(1, 60)),
                update_mask=FieldMask(paths=["body"]),
            )
            for id, marker in chance.sample(ids, 50)
        ]
        await stubs.posts.BatchUpdatePosts(posts_pb2.BatchUpdatePostsRequest(requests=updates))
