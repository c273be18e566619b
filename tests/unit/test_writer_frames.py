"""Frames between workers and the writer process, and the first frame of the writer process."""

import pickle
from dataclasses import replace

import pytest

from store_service.database import writer_frames as frames
from store_service.database.writer_frames import FrameError, FrameReader, Hello, WriterMismatch
from store_service.errors import (
    BatchTooLarge,
    DatabaseUnavailable,
    EtagMismatch,
    FieldInvalid,
    PostHasComments,
    PostNotFound,
    RequestIdReused,
    ServiceError,
    Violation,
)

HELLO = Hello(version="1", schema="0011", operations=("create post", "probe"), file=(1, 2))


def payload(hello: Hello) -> bytearray:
    """The content of its frame."""
    (content,) = FrameReader().feed(hello.encoded())
    return content


@pytest.mark.parametrize("length", [1, 3, 4, 5, 1000, 1_000_000])
def test_frames_are_found_in_any_pieces(length: int) -> None:
    messages = [([(1, 0, "a", False, 0, None)], []), ([], [1, 2]), ([(2, 1, "x" * 10_000, True, 5, 1.5)], [])]
    stream = b"".join(frames.encoded(it) for it in messages)
    reader = FrameReader()
    pieces = [stream[start : start + length] for start in range(0, len(stream), length)]

    assert [frames.decoded(it) for piece in pieces for it in reader.feed(piece)] == messages


def test_half_a_frame_waits_for_the_rest() -> None:
    frame = frames.encoded(([], [1]))
    reader = FrameReader()

    assert list(reader.feed(frame[:-1])) == []
    assert [frames.decoded(it) for it in reader.feed(frame[-1:])] == [([], [1])]


def test_frame_that_is_too_large_is_refused_before_its_content() -> None:
    length = (frames.MAX_FRAME_BYTES + 1).to_bytes(frames.LENGTH_BYTES, "big")

    with pytest.raises(FrameError, match="too large"):
        list(FrameReader().feed(length))


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps([1, 2])[:-1], b"cno_module\nnothing\n."])
def test_damaged_content_is_a_frame_error(content: bytes) -> None:
    with pytest.raises(FrameError):
        frames.decoded(content)


def test_equal_hello_is_accepted() -> None:
    HELLO.check(payload(HELLO))


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (
            replace(HELLO, version="2"),
            r"another version of the program \(2, this is 1\); restart the service",
        ),
        (replace(HELLO, schema="0012"), "another version of the program"),
        (replace(HELLO, operations=("probe", "create post")), "another version of the program"),
        (replace(HELLO, file=(1, 3)), "another database open; restart the service"),
    ],
    ids=["version", "schema", "operations", "file"],
)
def test_other_writer_process_is_refused(other: Hello, problem: str) -> None:
    """The sentence says what differs, and what to do."""
    with pytest.raises(WriterMismatch, match=problem):
        HELLO.check(payload(other))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[]", b"{}", b'{"file": 1}', b"\x80"])
def test_first_frame_of_another_program_is_refused(content: bytes) -> None:
    with pytest.raises(WriterMismatch, match="another program"):
        HELLO.check(content)


ERRORS: list[ServiceError] = [
    PostNotFound(ids=[1, 2], fields=["requests[0].id"], external_ids=["a"]),
    PostHasComments(comment_counts={1: 2}),
    EtagMismatch(resource_type="Post", id=1, current_etag="v2"),
    RequestIdReused.at("request_id", "was used"),
    FieldInvalid([Violation(error=FieldInvalid, field="a", description="b")], more_count=3),
    BatchTooLarge(count=2, max_count=1),
    DatabaseUnavailable(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda it: type(it).__name__)
def test_error_arrives_with_its_attributes(error: ServiceError) -> None:
    """Also those whose constructor takes only keywords."""
    (content,) = FrameReader().feed(frames.encoded((frames.NO_EVENT, [(1, error, None)])))
    _, ((_, arrived, _),) = frames.decoded(content)

    assert type(arrived) is type(error)
    assert (str(arrived), arrived.args, vars(arrived)) == (str(error), error.args, vars(error))


def test_cause_of_an_error_arrives() -> None:
    """Logs and health name it."""
    error = DatabaseUnavailable()
    error.__cause__ = OSError(28, "No space left on device")
    arrived = pickle.loads(pickle.dumps(error))

    assert isinstance(arrived.__cause__, OSError)
    assert str(arrived.__cause__) == str(error.__cause__)
