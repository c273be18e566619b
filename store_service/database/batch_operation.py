"""Operations that run for a whole batch of jobs."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from store_service.database.connection import Connection
from store_service.errors import ServiceError

Argument = TypeVar("Argument")
Result = TypeVar("Result")

DEFERRED: Any = object()
"""The outcome of a job that did not fit into its batch. The job runs first in the next batch."""


@dataclass(frozen=True, eq=False)
class BatchOperation(Generic[Argument, Result]):
    """An operation that runs for all arguments of a batch with one call."""

    run: Callable[[Connection, Sequence[Argument]], Awaitable[Sequence[Result | ServiceError]]]
    """Runs the operation for each argument and returns the outcomes in the order of the arguments: a result,
    or the error of that argument alone. An exception that it raises is the error of all. Arguments whose
    results would take too much memory together may have the outcome DEFERRED. If all of them are DEFERRED,
    the next call must return at least one result."""

    run_one: Callable[[Connection, Argument], Result | None] | None = None
    """Runs a read for one argument without waiting, on a connection that `reads_inline`. It costs less than a
    batch. Returns None if the argument needs a batch."""

    insert_only: bool = False
    """`run` changes and deletes no existing row, so several processes may run it at the same time."""

    single_statement: bool = False
    """`run` is a single call of `Connection.write`, and nothing else has to be in its transaction."""

    name: str = ""
    """Identifies an operation that writes between the processes of a service on SQLite; see
    `service/write_operations.py`."""

    in_transaction: bool = True
    """False: `run` is not in a transaction. Each job has a batch of its own, so its size must exceed
    LARGE_JOB_BYTES."""
