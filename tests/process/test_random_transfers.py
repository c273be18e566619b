"""Random stores: an export that runs while callers write, and its import, have every row of the store."""

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from store_service.database.connect import Database, open_database
from store_service.errors import ServiceError
from store_service.model import (
    CommentDraft,
    ConflictPolicy,
    Deletion,
    ExportPart,
    ImportBatch,
    ImportedRecord,
    PostDraft,
    Record,
    RecordState,
    ResourceKind,
    Update,
    labels_to_text,
)
from store_service.service import (
    background_steps,
    comment_removal,
    large_deletions,
    restoration,
    resume_tokens,
    snapshot,
    transfer_export,
)
from store_service.service.background_steps import BackgroundSteps
from store_service.service.changes import Changes
from store_service.service.comments import Comments
from store_service.service.posts import Posts
from store_service.service.transfer_cursor import PARTS
from store_service.service.transfer_export import Exports
from store_service.service.transfer_import import Imports
from tests.support.postgresql import clear_database
from tests.support.timeouts import IS_LONG_RUN
from tests.support.transfer import stored_rows

SEEDS = range(150 if IS_LONG_RUN else 6)

KINDS = frozenset(ResourceKind)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages, steps of the catch-up, and transactions of deletions have few rows."""
    monkeypatch.setattr(snapshot, "FIRST_SIZE", 2)
    monkeypatch.setattr(snapshot, "PAGE_SIZE", 3)
    monkeypatch.setattr(transfer_export, "CATCH_UP_CHANGES", 2)
    monkeypatch.setattr(transfer_export, "CATCH_UP_BYTES", 50)
    monkeypatch.setattr(transfer_export, "WAIT_SECONDS", 0.001)
    for module in (comment_removal, large_deletions, background_steps, restoration):
        monkeypatch.setattr(module, "MAX_ROWS", 3)
    for module in (comment_removal, large_deletions, restoration):
        monkeypatch.setattr(module, "FETCH_ROWS", 2)
    for name in ("STEP_SECONDS", "TAKEOVER_SECONDS", "IDLE_SECONDS"):
        monkeypatch.setattr(background_steps, name, 0.002)


@pytest.fixture
def target_url(request: pytest.FixtureRequest, database_url: str, migrated_file: Path, tmp_path: Path) -> str:
    """An empty database of the other engine."""
    if database_url.startswith("sqlite"):
        url: str = request.getfixturevalue("postgres_database")
        clear_database(url)
        return url
    return f"sqlite:///{shutil.copy(migrated_file, tmp_path / 'target.db')}"


class Callers:
    """Random writes."""

    def __init__(self, database: Database, random: random.Random) -> None:
        self._random = random
        steps = BackgroundSteps(database)
        self.run_steps = steps.run
        options: dict[str, Any] = {"undelete_hours": 24, "max_revisions": 3, "after_write": steps.wake}
        self._posts, self._comments = Posts(database, **options), Comments(database, **options)
        self._ids: dict[Any, list[int]] = {self._posts: [], self._comments: []}
        self._count = 0

    async def write(self) -> None:
        """One write, which may be refused."""
        collection = self._random.choice([self._posts, self._comments, self._comments])
        with suppress(ServiceError):
            await self._random.choice([self._create] * 4 + [self._update, self._delete, self._undelete])(
                collection
            )

    async def _create(self, collection: Any) -> None:
        self._count += 1
        content: dict[str, Any] = {
            "body": self._random.choice(["ü", "\U0001f600", '"\\', "text"]) * self._random.randint(1, 40),
            "author": self._random.choice(["", "ann", "bob"]),
            "labels": self._random.choice(["", labels_to_text({"a": "ü", "b": '"'})]),
            "external_id": self._random.choice(["", f"x{self._count}"]),
        }
        if collection is self._posts:
            draft: Any = PostDraft(**content)
        else:
            post_id = self._id(self._posts)
            reply_to_id = self._id(self._comments) if self._random.random() < 0.7 else 0
            draft = CommentDraft(**content, post_id=post_id, reply_to_id=reply_to_id)
        (created,) = await collection.create([draft])
        self._ids[collection].append(created.id)

    async def _update(self, collection: Any) -> None:
        values = {"body": f"new {self._random.random()}", "author": self._random.choice(["", "cat"])}
        await collection.update([Update(id=self._id(collection), values=values, etag="", request_field="x")])

    async def _delete(self, collection: Any) -> None:
        await collection.delete(Deletion(ids=(self._id(collection),), force=self._random.random() < 0.6))

    async def _undelete(self, collection: Any) -> None:
        await collection.undelete(self._id(collection))

    def _id(self, collection: Any) -> int:
        # Mostly those of a few posts, so that threads grow.
        ids = self._ids[collection] or [1]
        return self._random.choice(ids[-8:] if self._random.random() < 0.8 else ids)


@asynccontextmanager
async def writing(database: Database, random: random.Random) -> AsyncIterator[Callers]:
    """Random callers, beside which unfinished deletions and restorations are finished."""
    callers = Callers(database, random)
    steps = asyncio.create_task(callers.run_steps())
    try:
        yield callers
    finally:
        steps.cancel()
        await asyncio.wait([steps])


async def exported(database: Database, callers: Callers, random: random.Random) -> list[ExportPart]:
    """The parts of an export during which callers write, and which is interrupted."""
    parts: list[ExportPart] = []
    writes = 60
    while True:
        cursor = parts[-1].cursor if parts else ""
        export = Exports(database).run(KINDS, cursor)
        async for part in export:
            parts.append(part)
            if part.resume_token:
                return parts
            while writes and random.random() < 0.6:
                writes -= 1
                await callers.write()
            if random.random() < 0.1:
                break
        await export.aclose()


def final(parts: list[ExportPart]) -> list[Record]:
    """The records that are not obsolete, in the order of an export without changes."""
    found: dict[tuple[int, int, int], Record] = {}
    for part in parts:
        for kind, ids in part.changed.items():
            found = {key: it for key, it in found.items() if it.kind is not kind or key[1] not in ids}
        for record in part.records:
            version = record.resource.version if record.state is RecordState.REVISION else 0
            found[PARTS.index((record.kind, record.state)), record.resource.id, version] = record
    return [found[key] for key in sorted(found)]


def batches(records: list[Record], random: random.Random) -> Iterator[ImportBatch]:
    """The records in batches, some of which are sent twice."""
    left = records
    while left:
        batch, left = left[: random.randint(1, 9)], left
        left = left[len(batch) :]
        imported = ImportBatch(
            records=[
                ImportedRecord(
                    kind=it.kind,
                    state=it.state,
                    resource=it.resource,
                    deleted_with=it.deleted_with,
                    index=index,
                )
                for index, it in enumerate(batch)
            ],
            errors=(),
            on_conflict=random.choice(list(ConflictPolicy)),
            size=0,
        )
        yield imported
        if random.random() < 0.3:
            yield imported


@pytest.mark.parametrize("seed", SEEDS)
async def test_export_and_import_keep_a_random_store(database_url: str, target_url: str, seed: int) -> None:
    chance = random.Random(seed)
    async with open_database(database_url) as database, open_database(target_url) as target:
        async with writing(database, chance) as callers:
            for _ in range(chance.randint(0, 120)):
                await callers.write()
            parts = await exported(database, callers, chance)
            records = final(parts)
            quiet = [it async for it in Exports(database).run(KINDS, "")]
            changes = Changes(database)
            token = resume_tokens.read(parts[-1].resume_token, (await changes.state()).store_id)
            assert await changes.read_after(token.position) is None
        imports = Imports(target)
        for batch in batches(records, chance):
            result = await imports.store(batch)
            assert not result.errors
            assert not result.skipped
            assert not result.overwritten

    assert records == [it for part in quiet for it in part.records]
    assert parts[-1].counts == quiet[-1].counts == quiet[0].counts
    assert stored_rows(target_url) == stored_rows(database_url)


async def pages_of(export: Any) -> list[ExportPart]:
    """The parts of an export before it follows the change feed."""
    parts: list[ExportPart] = [await anext(export)]
    while int(parts[-1].cursor.split(".")[1]) < len(PARTS):
        parts.append(await anext(export))
    return parts


async def all_records(database: Database) -> list[Record]:
    return [it async for part in Exports(database).run(KINDS, "") for it in part.records]


async def test_tombstone_that_vanishes_is_obsolete(database_url: str) -> None:
    """Its deletion was a change before the export; its end is none."""
    async with open_database(database_url) as database:
        posts, comments = Posts(database), Comments(database)
        (post,) = await posts.create([PostDraft(body="a post")])
        (top,) = await comments.create([CommentDraft(body="top", post_id=post.id)])
        (reply,) = await comments.create([CommentDraft(body="reply", post_id=post.id, reply_to_id=top.id)])
        await comments.delete(Deletion(ids=(top.id,)))
        export = Exports(database).run(KINDS, "")
        parts = await pages_of(export)
        await comments.delete(Deletion(ids=(reply.id,)))
        parts += [part async for part in export]

        assert [it.resource.id for it in final(parts)] == [post.id]
        assert parts[-1].counts == {
            (kind, state): int((kind, state) == (ResourceKind.POST, RecordState.LIVE))
            for kind in KINDS
            for state in RecordState
        }


async def test_export_waits_for_an_unfinished_deletion(database_url: str) -> None:
    """Until the comments of a deleted post are deleted comments."""
    async with open_database(database_url) as database:
        posts, comments = Posts(database, undelete_hours=24), Comments(database, undelete_hours=24)
        (post,) = await posts.create([PostDraft(body="a post")])
        await comments.create([CommentDraft(body=f"{n}", post_id=post.id) for n in range(10)])
        export = Exports(database).run(KINDS, "")
        parts = await pages_of(export)
        await posts.delete(Deletion(ids=(post.id,), force=True))
        parts.append(await anext(export))
        assert not parts[-1].resume_token

        steps = asyncio.create_task(BackgroundSteps(database).run())
        parts += [part async for part in export]
        steps.cancel()
        await asyncio.wait([steps])

        assert [it.state for it in final(parts)] == [RecordState.DELETED] * 11
        assert final(parts) == await all_records(database)
