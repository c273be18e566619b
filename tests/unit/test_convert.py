"""Conversion of values to messages and back."""

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from store_service.model import Comment, Post, format_etag
from store_service.rpc.convert import (
    comment_to_message,
    microseconds_from_timestamp,
    post_to_message,
    set_time,
)

TIMES = [0, 1, 999_999, 1_000_000, 1_700_000_000_123_456, -1, -1_000_001]


@pytest.mark.parametrize("microseconds", TIMES)
def test_timestamp_round_trips(microseconds: int) -> None:
    """Exact to the microsecond, also before 1970."""
    message = Timestamp()
    set_time(message, microseconds)

    assert 0 <= message.nanos < 1_000_000_000
    assert message.ToMicroseconds() == microseconds
    if microseconds != -1:
        assert microseconds_from_timestamp(message) == microseconds


@pytest.mark.parametrize("nanos", [1, 999, 1001, 999_999_999])
def test_nanoseconds_match_no_stored_time(nanos: int) -> None:
    """A time with a fraction of a microsecond equals no stored time."""
    assert microseconds_from_timestamp(Timestamp(seconds=5, nanos=nanos)) == -1


def test_every_column_is_in_the_message() -> None:
    """Every field of the message is set from the row."""
    given: dict[str, Any] = {
        "id": 1,
        "body": "a",
        "author": "me",
        "labels": '{"k":"v","l":""}',
        "external_id": "x",
        "create_time": 2_000_003,
        "update_time": 4_000_005,
        "version": 6,
        "delete_time": 7_000_000,
        "purge_time": 8_000_000,
    }
    post = post_to_message(Post(**given))
    comment = comment_to_message(Comment(**given, post_id=7, reply_to_id=3, path=f"{2:016x}{3:016x}"))

    for message in (post, comment):
        assert {field.name for field, _ in message.ListFields()} == set(message.DESCRIPTOR.fields_by_name)
        assert (message.id, message.body, message.etag) == (1, "a", format_etag(6))
        assert (message.create_time.seconds, message.create_time.nanos) == (2, 3000)
        assert (message.update_time.seconds, message.update_time.nanos) == (4, 5000)
        assert (message.delete_time.seconds, message.purge_time.seconds) == (7, 8)
        assert (message.author, message.external_id) == ("me", "x")
        assert dict(message.labels) == {"k": "v", "l": ""}
    assert (comment.post_id, comment.reply_to_id, comment.depth) == (7, 3, 2)


def test_default_values_are_unset() -> None:
    """Id 0, missing times and version 0 are not on the wire."""
    post = post_to_message(Post(id=0, body="a", create_time=None, update_time=None, version=0))
    comment = comment_to_message(
        Comment(id=0, body="a", post_id=7, create_time=None, update_time=None, version=0)
    )

    assert [field.name for field, _ in post.ListFields()] == ["body"]
    assert [field.name for field, _ in comment.ListFields()] == ["body", "post_id"]


def test_zero_timestamp_is_set() -> None:
    """A time of 0 is set; only None is unset."""
    post = post_to_message(Post(id=1, body="a", create_time=0, update_time=None, version=1))

    assert post.HasField("create_time")
    assert not post.HasField("update_time")


def test_every_version_has_its_own_etag() -> None:
    """Etags are short, printable, and never empty."""
    etags = [format_etag(version) for version in [*range(1, 1000), 2**63 - 1]]

    assert len(set(etags)) == len(etags)
    assert all(etag and etag.isascii() and etag.isprintable() and len(etag) <= 17 for etag in etags)
