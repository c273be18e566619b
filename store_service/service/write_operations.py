"""All operations that write, by name: what the writer process of a service on SQLite executes.

Workers send the name of an operation, not its code (docs/decisions/0052).
"""

from importlib.metadata import version
from typing import Any

from store_service.database import rewriting, schema, write_mode
from store_service.database.batch_operation import BatchOperation
from store_service.database.compiled_pickles import compile_pickles
from store_service.database.writer_frames import WriterProcess
from store_service.model import (
    BatchResult,
    Comment,
    CommentDraft,
    Deletion,
    IdempotencyKey,
    Post,
    PostDraft,
    Update,
    WriteCommand,
)
from store_service.service import (
    background_steps,
    erasure_scan,
    erasure_steps,
    feed_origin,
    purge,
    retention,
    search_cleanup,
    search_steps,
    writer_health,
)
from store_service.service.comments import MAX_REPLY_DEPTH, with_reply_depth
from store_service.service.idempotency import Response
from store_service.service.posts import POSTS
from store_service.service.resource_operations import Operations
from store_service.service.transfer_import import import_operation

compile_pickles(
    BatchResult,
    Comment,
    CommentDraft,
    Deletion,
    IdempotencyKey,
    Post,
    PostDraft,
    Response,
    Update,
    WriteCommand,
)

_OF_THE_SERVICE: tuple[BatchOperation[Any, Any], ...] = (
    rewriting.REWRITE,
    rewriting.EMPTY_LOG,
    write_mode.SET_WRITE_MODE,
    background_steps.STEP,
    erasure_scan.CLEAR_CHANGES,
    erasure_scan.SET_RESPONSES,
    erasure_steps.STEP,
    erasure_steps.REVISIONS_STEP,
    feed_origin.RESTART,
    purge.PURGE,
    retention.SAVE,
    retention.TRIM,
    retention.DELETE_KEYS,
    search_cleanup.RESTART,
    search_cleanup.CLEAR,
    search_cleanup.MERGE,
    search_steps.APPLY,
    writer_health.PROBE,
)


def write_operations(
    *, undelete_hours: float = 0, max_revisions: int = 0, max_reply_depth: int = MAX_REPLY_DEPTH
) -> dict[str, BatchOperation[Any, Any]]:
    """Returns the operations in a fixed order. Their names do not depend on the arguments; see `Comments`."""
    options = {"undelete_hours": undelete_hours, "max_revisions": max_revisions}
    collections: tuple[Operations[Any, Any], ...] = (
        Operations(POSTS, **options),  # type: ignore[arg-type]
        Operations(with_reply_depth(max_reply_depth), **options),  # type: ignore[arg-type]
    )
    of_callers = [it for operations in collections for write in operations.writes for it in write.operations]
    imports = import_operation(max_reply_depth)
    return {it.name: it for it in (*_OF_THE_SERVICE, *of_callers, imports)}


def writer_process(socket: str) -> WriterProcess:
    """Returns the writer process of this program with a socket."""
    return WriterProcess(
        socket=socket,
        version=version("store-service"),
        schema=schema.HEAD,
        operations=tuple(write_operations()),
    )
