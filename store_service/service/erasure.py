"""Erases what an author wrote (docs/decisions/0048).

The erasure works in small steps, between the writes of callers. Each pass removes posts, comments and former
versions, and then the content of changes and stored responses. A pass that finds nothing is the last one.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress

import structlog

from store_service.database.connect import Database
from store_service.database.rewriting import EMPTY_LOG, JOB_BYTES, REWRITE
from store_service.errors import DatabaseBusy, FieldInvalid, ReadOnly
from store_service.model import ErasedIds, Erasure, ErasureProgress
from store_service.service import background_steps
from store_service.service.erasure_count import count_resources
from store_service.service.erasure_scan import clear_changes, clear_responses
from store_service.service.erasure_steps import (
    COMMENT,
    POST,
    REVISIONS_STEP,
    SOURCES,
    STEP,
    STEP_BYTES,
    Done,
    Step,
)
from store_service.service.search_index import SearchIndex

STEP_SECONDS = 0.05
"""Pause after a step that writes, in which other writes run."""

MAX_PASSES = 5
"""Maximum number of passes. An author who creates during each of them prevents the end of the erasure."""

REPORT_SECONDS = 1.0
"""Maximum time without a report of the progress."""

LOG_SECONDS = 60.0
"""Maximum time to wait for readers of the log, such as a backup."""

LOG_RETRY_SECONDS = 0.25
"""Pause between two attempts to empty the log."""

_RESOURCES, _FEED, _RESPONSES = 0.4, 0.8, 0.9
"""The progress after each phase."""

log = structlog.get_logger("store_service.erasure")


class Erasures:
    """Erases authors."""

    def __init__(
        self,
        database: Database,
        search_index: SearchIndex,
        *,
        after_erasure: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes the open database, the search index, and a function that is called when no change has content
        of the author."""
        self._database = database
        self._search_index = search_index
        self._after_erasure = after_erasure

    async def run(self, erasure: Erasure, *, call_id: str = "") -> AsyncGenerator[ErasureProgress, None]:
        """Erases an author, and yields the progress: the same object after each step.

        Args:
            erasure: The request.
            call_id: The id of the call in the log.

        Raises:
            ReadOnly: The server is in read-only mode.
            FieldInvalid: The database cannot be rewritten, and `skip_rewrite` is not set.
            DatabaseBusy: The author created resources during each of MAX_PASSES passes.
            ServiceError: The database is busy, full or unavailable. The erasure can be repeated.
        """
        if self._database.read_only:
            raise ReadOnly
        rewrites = not erasure.dry_run and not erasure.skip_rewrite
        if rewrites and not self._database.can_rewrite:
            raise FieldInvalid.at(
                "skip_rewrite",
                "must be set, because a server with DB_FORCE_ROLL_BACK cannot rewrite the database",
            )
        progress = ErasureProgress()
        steps = self._count(erasure, progress) if erasure.dry_run else self._erase(erasure, progress)
        try:
            async with aclosing(steps):
                async for _ in steps:
                    yield progress
            if not erasure.dry_run:
                async with aclosing(self._search_index.settle()) as settling:
                    async for _ in settling:
                        yield progress
            if rewrites:
                async with aclosing(self._rewrite()) as rewriting:
                    async for _ in rewriting:
                        yield progress
            progress.progress, progress.complete = 1.0, True
            yield progress
        finally:
            # Not the author, which is personal data.
            log.info(
                _event(erasure, progress),
                call_id=call_id,
                mode=erasure.mode.name.lower(),
                dry_run=erasure.dry_run,
                **progress.counts,
            )

    async def _count(self, erasure: Erasure, progress: ErasureProgress) -> AsyncGenerator[None, None]:
        erased = ErasedIds()
        async for _ in count_resources(self._database, erasure, erased, progress):
            yield
        progress.progress = _RESOURCES
        async for _ in self._scan(erasure, erased, progress):
            yield

    async def _erase(self, erasure: Erasure, progress: ErasureProgress) -> AsyncGenerator[None, None]:
        erased = ErasedIds()
        for number in range(MAX_PASSES):
            found = False
            async for _ in self._finish_background_work():
                yield
            async for done in self._remove(erasure):
                found = True
                erased.add(POST, done.posts)
                erased.add(COMMENT, done.comments)
                progress.posts += len(done.posts)
                progress.comments += len(done.comments)
                progress.revisions += done.revisions
                # Approaches the end of the phase, because counting first would cost as much.
                progress.progress += (_RESOURCES - progress.progress) / 100 if number == 0 else 0
                yield
                await asyncio.sleep(STEP_SECONDS)
            if number and not found:
                return
            progress.progress = max(progress.progress, _RESOURCES)
            async for _ in self._scan(erasure, erased, progress):
                yield
            self._after_erasure()
        raise DatabaseBusy

    async def _finish_background_work(self) -> AsyncIterator[None]:
        """Finishes deletions and restorations, because callers do not see some of their rows."""
        work = await self._database.read(background_steps.FIND, None)
        while work is not None:
            work = await self._database.write(background_steps.STEP, work, size=STEP_BYTES)
            yield
            await asyncio.sleep(STEP_SECONDS)

    async def _remove(self, erasure: Erasure) -> AsyncIterator[Done]:
        for source in SOURCES:
            step = Step(erasure.author, erasure.mode, *source)
            while (done := await self._database.write(STEP, step, size=STEP_BYTES)).found:
                yield done
        while (done := await self._database.write(REVISIONS_STEP, erasure.author, size=STEP_BYTES)).found:
            yield done

    async def _scan(
        self, erasure: Erasure, erased: ErasedIds, progress: ErasureProgress
    ) -> AsyncIterator[None]:
        dry_run = erasure.dry_run
        # The feed itself shows what is erased, and from when on.
        in_feed = erased if dry_run else ErasedIds()
        async for count, part in clear_changes(self._database, erasure.author, in_feed, dry_run=dry_run):
            progress.changes += count
            progress.progress = max(progress.progress, _RESOURCES + part * (_FEED - _RESOURCES))
            yield
            if count and not dry_run:
                await asyncio.sleep(STEP_SECONDS)
        if in_feed is not erased:
            erased.add_all(in_feed)
        async for count, part in clear_responses(self._database, erasure.author, erased, dry_run=dry_run):
            progress.stored_responses += count
            progress.progress = max(progress.progress, _FEED + part * (_RESPONSES - _FEED))
            yield
            if count and not dry_run:
                await asyncio.sleep(STEP_SECONDS)

    async def _rewrite(self) -> AsyncGenerator[None, None]:
        async for _ in self._empty_log():
            yield
        self._database.check_room_to_rewrite()
        rewriting = asyncio.ensure_future(self._database.write(REWRITE, None, size=JOB_BYTES))
        try:
            while not (await asyncio.wait({rewriting}, timeout=REPORT_SECONDS))[0]:
                yield
            rewriting.result()
        finally:
            if not rewriting.done():
                rewriting.cancel()
                with suppress(asyncio.CancelledError):
                    await rewriting
        async for _ in self._empty_log():
            yield

    async def _empty_log(self) -> AsyncIterator[None]:
        """Empties the log, which has old and new content. Waits for its readers.

        Raises:
            DatabaseBusy: They read for longer than LOG_SECONDS.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + LOG_SECONDS
        while not await self._database.write(EMPTY_LOG, None, size=JOB_BYTES):
            if loop.time() > ends_at:
                raise DatabaseBusy
            yield
            await asyncio.sleep(LOG_RETRY_SECONDS)


def _event(erasure: Erasure, progress: ErasureProgress) -> str:
    """Returns the text of the log line at the end of an erasure."""
    if not progress.complete:
        return "erasure of an author ended early"
    return "erasure of an author counted" if erasure.dry_run else "author erased"
