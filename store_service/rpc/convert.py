"""Our values as messages of the wire."""

from google.protobuf.timestamp_pb2 import Timestamp
from storeapi.v1 import comments_pb2, posts_pb2

from store_service.model import Comment, Post, etag_of


def post_to_message(post: Post) -> posts_pb2.Post:
    """A post; what it does not have (id 0, times None, version 0) stays unset."""
    message = posts_pb2.Post(id=post.id, body=post.body, etag=etag_of(post.version) if post.version else "")
    if post.create_time is not None:
        set_time(message.create_time, post.create_time)
    if post.update_time is not None:
        set_time(message.update_time, post.update_time)
    return message


def comment_to_message(comment: Comment) -> comments_pb2.Comment:
    """A comment; what it does not have (id 0, times None, version 0) stays unset."""
    message = comments_pb2.Comment(
        id=comment.id,
        body=comment.body,
        post_id=comment.post_id,
        etag=etag_of(comment.version) if comment.version else "",
    )
    if comment.create_time is not None:
        set_time(message.create_time, comment.create_time)
    if comment.update_time is not None:
        set_time(message.update_time, comment.update_time)
    return message


def set_time(message: Timestamp, microseconds: int) -> None:
    """Writes a time of the database into a Timestamp."""
    message.seconds, rest = divmod(microseconds, 1_000_000)
    message.nanos = rest * 1000


def microseconds_of(message: Timestamp) -> int:
    """A Timestamp as the database holds times; what is finer than a microsecond equals no stored time."""
    microseconds, rest = divmod(message.nanos, 1000)
    return -1 if rest else message.seconds * 1_000_000 + microseconds
