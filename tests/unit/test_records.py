"""Reads of records that another version of the program has written."""

from dataclasses import dataclass, field

from store_service.model import Comment, Post
from store_service.records import RecordReader

POST = {"id": 1, "body": "a", "create_time": 2, "update_time": 3, "version": 4}


def test_record_with_all_fields_is_read() -> None:
    """The usual case."""
    assert RecordReader(Post).read(POST) == Post(id=1, body="a", create_time=2, update_time=3, version=4)


def test_unknown_fields_are_ignored() -> None:
    """A later version can have more fields."""
    assert RecordReader(Post).read(POST | {"color": "red"}) == RecordReader(Post).read(POST)


def test_missing_field_without_default_is_empty() -> None:
    """An earlier version can have fewer fields."""
    assert RecordReader(Comment).read({"body": "a"}) == Comment(
        id=0, body="a", post_id=0, create_time=None, update_time=None, version=0
    )


def test_missing_field_takes_its_default() -> None:
    """The default of the dataclass has precedence over the empty value of the type."""
    assert RecordReader(Item).read({"unknown": 1}) == Item(name="", color="red", words=["a"])


@dataclass(frozen=True, kw_only=True)
class Item:
    """Fields of every kind."""

    name: str
    color: str = "red"
    words: list[str] = field(default_factory=lambda: ["a"])
