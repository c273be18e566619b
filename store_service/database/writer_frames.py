"""Frames between the workers and the writer process of a service on SQLite (docs/decisions/0052).

A frame is its length, in LENGTH_BYTES, and a pickled object. The first frame of the writer process is a
`Hello` as JSON, so that programs of different versions can read it. Only processes of the same user can open
the socket, so pickles are trusted.
"""

import json
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from store_service.observability.batches import BatchRecord

LENGTH_BYTES = 4

MAX_FRAME_BYTES = 1024 * 1024 * 1024
"""Maximum length of a frame. The largest request has 64 MiB, and a job is at most a few times its size."""

FRAME_JOB_BYTES = 1024 * 1024
"""Total size of jobs at which a frame takes no more jobs, so that neither side is busy with it for long."""

SentJob = tuple[int, int, Any, bool, int, float | None]
"""A job for the writer process: its number on this connection, the index of its operation in
`Hello.operations`, the argument, whether it is a dry run, and its size. If a span records its batch, also
when it was queued, by perf_counter, which all processes of a machine share."""

ToWriter = tuple[list[SentJob], list[int]]
"""What a worker sends: jobs, and the numbers of jobs whose callers have left."""

FromWriter = tuple[int, list[tuple[int, Any, BatchRecord | None]]]
"""What the writer process sends: an event, and the number, the outcome and the batch of each answered job.
The batch is None unless a span records it."""

NO_EVENT = 0
COMMITTED = 1
"""Changes have been committed, by a job of any worker. Answers in the same frame are of a committed batch."""
STOPPING = 2
"""The writer process executes no jobs that it receives from now on."""
FINISHED = 3
"""All other jobs have been answered. Those without an answer have not been started."""


class FrameError(Exception):
    """Received bytes are not frames of this protocol."""


class WriterMismatch(Exception):
    """A worker cannot use the writer process. The text is one line."""


class WriterFailure(Exception):
    """An unhandled exception in the writer process. The text is its traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a worker and its writer process must have in common."""

    version: str
    """Version of the program."""
    schema: str
    """Schema revision of the program."""
    operations: tuple[str, ...]
    """Names of the operations that write, in their order."""
    file: tuple[int, int]
    """Device and inode of the open database."""

    def encoded(self) -> bytes:
        """Returns the frame."""
        return framed(json.dumps(asdict(self)).encode())

    def check(self, payload: bytes | bytearray) -> None:
        """Checks the content of a frame.

        Raises:
            WriterMismatch: It is not equal to this.
        """
        try:
            other = json.loads(payload)
            file = tuple(other.pop("file"))
            program = {**asdict(self), "operations": list(self.operations)}
            program.pop("file")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise WriterMismatch("the writer process is of another program; restart the service") from None
        if other != program:
            raise WriterMismatch(
                f"the writer process runs another version of the program ({other.get('version')}, this is "
                f"{self.version}); restart the service"
            )
        if file != self.file:
            raise WriterMismatch("the writer process has another database open; restart the service")


class WriterProcess(NamedTuple):
    """The writer process of a service."""

    socket: str
    """The path of its socket."""
    version: str
    schema: str
    operations: tuple[str, ...]
    """Same as in `Hello`."""

    def hello(self, path: Path) -> Hello:
        """Returns what this process and the writer process must have in common, for the open database."""
        file = path.stat()
        return Hello(
            version=self.version,
            schema=self.schema,
            operations=self.operations,
            file=(file.st_dev, file.st_ino),
        )


def framed(payload: bytes) -> bytes:
    """Returns a frame with this content."""
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def encoded(message: ToWriter | FromWriter) -> bytes:
    """Returns the frame of a message. One pickle for all jobs writes each class and text only once."""
    return framed(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def decoded(payload: bytes | bytearray) -> Any:
    """Returns the message of a frame.

    Raises:
        FrameError: The content is not a message.
    """
    try:
        return pickle.loads(payload)  # noqa: S301  # see the docstring of the module
    except Exception as error:
        raise FrameError("the content of a frame is damaged") from error


class FrameReader:
    """Finds the frames in a stream of bytes."""

    def __init__(self) -> None:
        """Starts at the beginning of a frame."""
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[bytearray]:
        """Yields the contents of the frames that are complete with `data`.

        Raises:
            FrameError: A frame is larger than MAX_FRAME_BYTES.
        """
        received = self._received
        received += data
        start = 0
        while len(received) >= start + LENGTH_BYTES:
            length = int.from_bytes(received[start : start + LENGTH_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {length} bytes is too large")
            end = start + LENGTH_BYTES + length
            if len(received) < end:
                break
            payload = received[start + LENGTH_BYTES : end]
            start = end
            yield payload
        del received[:start]
