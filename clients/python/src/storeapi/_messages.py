"""From the clients' arguments to request messages, and from replies to values; shared by both clients."""

from collections.abc import Iterable
from datetime import datetime, timezone

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from storeapi.model import Comment, CommentDraft, Page, Post
from storeapi.v1 import comments_pb2, posts_pb2

# Posts: requests


def create_post_request(*, body: str, request_id: str, validate_only: bool) -> posts_pb2.CreatePostRequest:
    return posts_pb2.CreatePostRequest(
        post=posts_pb2.Post(body=body), request_id=request_id, validate_only=validate_only
    )


def update_post_request(
    id: int, *, body: str, etag: str, request_id: str, validate_only: bool
) -> posts_pb2.UpdatePostRequest:
    return posts_pb2.UpdatePostRequest(
        post=posts_pb2.Post(id=id, body=body, etag=etag),
        update_mask=FieldMask(paths=["body"]),
        request_id=request_id,
        validate_only=validate_only,
    )


def create_posts_request(
    bodies: Iterable[str], *, request_id: str, validate_only: bool
) -> posts_pb2.BatchCreatePostsRequest:
    # A text is an iterable of texts too, and would become a post per letter.
    if isinstance(bodies, str):
        raise TypeError("bodies must be several texts, such as a list; it is a single one")
    return posts_pb2.BatchCreatePostsRequest(
        requests=[posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body)) for body in bodies],
        request_id=request_id,
        validate_only=validate_only,
    )


# Posts: replies


def post(message: posts_pb2.Post) -> Post:
    return Post(
        id=message.id,
        body=message.body,
        create_time=_time(message.create_time) if message.HasField("create_time") else None,
        update_time=_time(message.update_time) if message.HasField("update_time") else None,
        etag=message.etag,
    )


def posts(messages: Iterable[posts_pb2.Post]) -> tuple[Post, ...]:
    return tuple(post(message) for message in messages)


def post_page(reply: posts_pb2.ListPostsResponse) -> Page[Post]:
    return Page(items=posts(reply.posts), next_page_token=reply.next_page_token)


# Comments: requests


def create_comment_request(
    *, post_id: int, body: str, request_id: str, validate_only: bool
) -> comments_pb2.CreateCommentRequest:
    return comments_pb2.CreateCommentRequest(
        comment=comments_pb2.Comment(post_id=post_id, body=body),
        request_id=request_id,
        validate_only=validate_only,
    )


def update_comment_request(
    id: int, *, body: str, etag: str, request_id: str, validate_only: bool
) -> comments_pb2.UpdateCommentRequest:
    return comments_pb2.UpdateCommentRequest(
        comment=comments_pb2.Comment(id=id, body=body, etag=etag),
        update_mask=FieldMask(paths=["body"]),
        request_id=request_id,
        validate_only=validate_only,
    )


def create_comments_request(
    drafts: Iterable[CommentDraft], *, request_id: str, validate_only: bool
) -> comments_pb2.BatchCreateCommentsRequest:
    return comments_pb2.BatchCreateCommentsRequest(
        requests=[
            comments_pb2.CreateCommentRequest(
                comment=comments_pb2.Comment(post_id=draft.post_id, body=draft.body)
            )
            for draft in drafts
        ],
        request_id=request_id,
        validate_only=validate_only,
    )


# Comments: replies


def comment(message: comments_pb2.Comment) -> Comment:
    return Comment(
        id=message.id,
        body=message.body,
        post_id=message.post_id,
        create_time=_time(message.create_time) if message.HasField("create_time") else None,
        update_time=_time(message.update_time) if message.HasField("update_time") else None,
        etag=message.etag,
    )


def comments(messages: Iterable[comments_pb2.Comment]) -> tuple[Comment, ...]:
    return tuple(comment(message) for message in messages)


def comment_page(reply: comments_pb2.ListCommentsResponse) -> Page[Comment]:
    return Page(items=comments(reply.comments), next_page_token=reply.next_page_token)


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=timezone.utc)
