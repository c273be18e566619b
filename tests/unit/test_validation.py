"""Validation of requests: the values that it returns, and the violations that it finds."""

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from storeapi.v1 import changes_pb2, comments_pb2, posts_pb2

from store_service.errors import (
    BatchDuplicate,
    BatchEmpty,
    BatchTooLarge,
    FieldInvalid,
    FieldMaskInvalid,
    InvalidRequest,
)
from store_service.model import (
    CommentDraft,
    Deletion,
    PageRequest,
    PostDraft,
    Query,
    ResourceKind,
    Update,
    WatchFilter,
)
from store_service.rpc.validation import Validation

validation = Validation(max_body_bytes=10)


def refusal(check: Any, request: Any) -> list[tuple[type[InvalidRequest], str]]:
    """Returns the error and the field of each violation of a request."""
    with pytest.raises(InvalidRequest) as raised:
        check(request)
    assert type(raised.value) is raised.value.violations[0].error, "the first violation names the error"
    return [(it.error, it.field) for it in raised.value.violations]


def test_post_request_becomes_a_draft() -> None:
    """A single request has one draft."""
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="a"))

    assert validation.post_drafts(request) == (PostDraft(body="a"),)


def one(updates: tuple[Update, ...]) -> Update:
    """Returns the only update."""
    (update,) = updates
    return update


def test_batch_request_becomes_drafts_with_paths() -> None:
    """Each draft has its path in the request."""
    requests = [
        comments_pb2.CreateCommentRequest(comment=comments_pb2.Comment(body=body, post_id=id))
        for body, id in (("a", 7), ("b", 8))
    ]

    assert validation.comment_drafts(comments_pb2.BatchCreateCommentsRequest(requests=requests)) == (
        CommentDraft(body="a", post_id=7, field="requests[0].comment"),
        CommentDraft(body="b", post_id=8, field="requests[1].comment"),
    )
    assert validation.comment_drafts(requests[0]) == (CommentDraft(body="a", post_id=7, field="comment"),)


@pytest.mark.parametrize("body", ["x" * 10, "é" * 5, "€€€x", "\U0001f600\U0001f600xx"])
def test_body_limit_is_in_bytes(body: str) -> None:
    """Bytes of UTF-8 count, not characters."""

    def post(body: str) -> posts_pb2.CreatePostRequest:
        return posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body))

    assert validation.post_drafts(post(body)) == (PostDraft(body=body),)
    assert refusal(validation.post_drafts, post(body + "x")) == [(FieldInvalid, "post.body")]


def test_all_errors_of_a_body_are_reported() -> None:
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="\0" * 11))

    assert refusal(validation.post_drafts, request) == [(FieldInvalid, "post.body")] * 2


@pytest.mark.parametrize(
    ("update_mask", "body", "expected"),
    [
        ([], "a", "a"),
        (["body"], "a", "a"),
        (["*"], "a", "a"),
        (["post_id"], "a", None),
        (["post_id"], "", None),
        (["post_id", "body"], "a", "a"),
    ],
)
def test_mask_decides_whether_the_body_changes(
    update_mask: list[str], body: str, expected: str | None
) -> None:
    """None: the body does not change."""
    request = comments_pb2.UpdateCommentRequest(
        comment=comments_pb2.Comment(id=1, body=body), update_mask=FieldMask(paths=update_mask)
    )

    assert one(validation.comment_updates(request)).values.get("body") == expected


@pytest.mark.parametrize(
    ("update_mask", "expected"),
    [
        ([], (("post_id", 7), ("create_time", 1_000_002), ("update_time", 3_000_000))),
        (["*"], (("post_id", 7), ("create_time", 1_000_002), ("update_time", 3_000_000))),
        (["body"], ()),
        (["body", "post_id"], (("post_id", 7),)),
    ],
)
def test_mask_selects_the_compared_fields(update_mask: list[str], expected: Any) -> None:
    comment = comments_pb2.Comment(
        id=1,
        body="a",
        post_id=7,
        create_time=Timestamp(seconds=1, nanos=2000),
        update_time=Timestamp(seconds=3),
        etag="v1",
    )
    request = comments_pb2.UpdateCommentRequest(comment=comment, update_mask=FieldMask(paths=update_mask))

    assert one(validation.comment_updates(request)) == Update(
        id=1,
        values={"body": "a"} | ({"author": "", "labels": ""} if "*" in update_mask else {}),
        etag="v1",
        unchangeable=expected,
        request_field="comment",
    )


def test_unset_fields_are_not_compared() -> None:
    """Without a mask, and with "*", an unset field is not a request to clear it."""
    for paths in ([], ["*"]):
        request = posts_pb2.UpdatePostRequest(
            post=posts_pb2.Post(id=1, body="a"), update_mask=FieldMask(paths=paths)
        )

        assert one(validation.post_updates(request)).unchangeable == ()


def test_unknown_paths_are_sorted_and_unique() -> None:
    """There is one violation for each path, in a fixed order. A repeated path counts once."""
    request = posts_pb2.UpdatePostRequest(
        post=posts_pb2.Post(id=1, body="a"), update_mask=FieldMask(paths=["z", "body", "a", "z", "post_id"])
    )

    with pytest.raises(FieldMaskInvalid) as raised:
        validation.post_updates(request)

    assert [it.description.split()[0] for it in raised.value.violations] == ['"a"', '"post_id"', '"z"']


def test_update_without_a_resource_is_not_validated_further() -> None:
    request = posts_pb2.UpdatePostRequest(update_mask=FieldMask(paths=["x"]), request_id="x")

    assert refusal(validation.post_updates, request) == [(FieldInvalid, "post"), (FieldInvalid, "request_id")]


@pytest.mark.parametrize("page_size", [0, 1, 50, 1000, 1001, 2**31 - 1])
def test_page_size_is_within_limits(page_size: int) -> None:
    """0 means 50, and larger values than 1000 are capped."""
    expected = {0: 50, 1: 1, 50: 50}.get(page_size, 1000)

    page = validation.page_of_posts(posts_pb2.ListPostsRequest(page_size=page_size, page_token="t"))

    assert page == PageRequest(query=Query(resource="posts"), page_size=expected, page_token="t")


def test_page_of_comments_is_bound_to_post_and_order() -> None:
    """The query contains everything that a page token is bound to."""
    page = validation.page_of_comments(comments_pb2.ListCommentsRequest(order_by=" id  desc ", post_id=7))

    assert page.query == Query(resource="comments", order="id desc", post_id=7)


def test_deletion_has_every_option() -> None:
    """Every option of the request is in the deletion."""
    one = posts_pb2.DeletePostRequest(id=1, etag="v1", force=True, allow_missing=True)
    many = posts_pb2.BatchDeletePostsRequest(ids=[2, 1], force=True, allow_missing=True)
    comment = comments_pb2.DeleteCommentRequest(id=1, etag="v1", allow_missing=True)

    assert validation.post_deletion(one) == Deletion(ids=(1,), etag="v1", force=True, allow_missing=True)
    assert validation.post_deletion(many) == Deletion(ids=(2, 1), force=True, allow_missing=True)
    assert validation.comment_deletion(comment) == Deletion(ids=(1,), etag="v1", allow_missing=True)
    assert validation.comment_deletion(comments_pb2.DeleteCommentRequest(id=1)) == Deletion(ids=(1,))


def test_too_large_batch_is_not_validated_further() -> None:
    """There is one violation for the size, and none for the elements."""
    with pytest.raises(BatchTooLarge) as raised:
        validation.ids(posts_pb2.BatchGetPostsRequest(ids=[-1] * 1001))
    assert (raised.value.count, raised.value.max_count, len(raised.value.violations)) == (1001, 1000, 1)

    empty = posts_pb2.CreatePostRequest()
    with pytest.raises(BatchTooLarge) as raised:
        validation.post_drafts(posts_pb2.BatchCreatePostsRequest(requests=[empty] * 1001, request_id="x"))
    assert [it.field for it in raised.value.violations] == ["requests", "request_id"]


def test_too_long_list_is_not_validated_further() -> None:
    """Kinds of a watch and paths of a mask: one violation for the length. Other fields are checked."""
    kinds = changes_pb2.WatchRequest(kinds=[9] * 101, post_ids=[0])
    mask = FieldMask(paths=[f"x{n}" for n in range(101)])
    update = posts_pb2.UpdatePostRequest(post=posts_pb2.Post(), update_mask=mask, request_id="x")

    assert refusal(validation.watch, kinds) == [(FieldInvalid, "kinds"), (FieldInvalid, "post_ids[0]")]
    assert refusal(validation.post_updates, update) == [
        (FieldInvalid, "update_mask"),
        (FieldInvalid, "post.id"),
        (FieldInvalid, "request_id"),
    ]


def test_list_of_maximum_length_is_valid() -> None:
    watch = changes_pb2.WatchRequest(kinds=[changes_pb2.RESOURCE_KIND_POST] * 100)
    update = posts_pb2.UpdatePostRequest(
        post=posts_pb2.Post(id=1, body="a"), update_mask=FieldMask(paths=["body"] * 100)
    )

    assert validation.watch(watch)[1] == WatchFilter(
        kinds=frozenset({ResourceKind.POST}), post_ids=frozenset()
    )
    assert one(validation.post_updates(update)).values == {"body": "a"}


def test_omitted_violations_are_counted() -> None:
    """The first 12 violations are reported. The text has the number of the others."""
    with pytest.raises(FieldInvalid) as raised:
        validation.ids(posts_pb2.BatchGetPostsRequest(ids=[0] * 1000))
    assert [it.field for it in raised.value.violations] == [f"ids[{n}]" for n in range(12)]
    assert raised.value.more_count == 988
    assert str(raised.value).endswith("; ids[11]: must be positive; and 988 more")

    with pytest.raises(FieldInvalid) as raised:
        validation.ids(posts_pb2.BatchGetPostsRequest(ids=[0] * 12))
    assert (len(raised.value.violations), raised.value.more_count) == (12, 0)
    assert str(raised.value).endswith("; ids[11]: must be positive")


def test_first_violation_selects_the_reason() -> None:
    """An invalid id before a duplicate is FIELD_INVALID; after it, the reason is BATCH_DUPLICATE."""
    empty = posts_pb2.BatchDeletePostsRequest(request_id="x")
    bad_first = posts_pb2.BatchDeletePostsRequest(ids=[0, 5, 5])
    double_first = posts_pb2.BatchDeletePostsRequest(ids=[5, 5, 0])

    assert refusal(validation.post_deletion, empty) == [(BatchEmpty, "ids"), (FieldInvalid, "request_id")]
    assert refusal(validation.post_deletion, bad_first) == [
        (FieldInvalid, "ids[0]"),
        (BatchDuplicate, "ids[2]"),
    ]
    assert refusal(validation.post_deletion, double_first) == [
        (BatchDuplicate, "ids[1]"),
        (FieldInvalid, "ids[2]"),
    ]


def test_error_text_names_every_field() -> None:
    """The message names each invalid field."""
    with pytest.raises(FieldInvalid) as raised:
        validation.comment_drafts(comments_pb2.CreateCommentRequest(comment=comments_pb2.Comment(id=1)))

    text = str(raised.value)
    assert [it.split(":")[0] for it in text.split("; ") if ":" in it] == [
        "comment.id",
        "comment.body",
        "comment.post_id",
    ]
