"""Texts are returned unchanged by every method."""

from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import example, given
from hypothesis import strategies as st
from storeapi.v1 import comments_pb2, posts_pb2

from tests.support.property_server import SQLITE_ONLY, LiveServer, error_reason

MAX_BODY_BYTES = 65_536

# What has a meaning in JSON, SQL, format strings, URLs or terminals, and what tends to be normalized away.
_FRAGMENTS = (
    *("\\u0000", "\\x00", "%s", "%00", ":body", "?1", "$[0]", "{}", "--", "/*", "e\u0301", "\r\n", "\x1b[0m"),
    *("null", "true", "1", "1.0", "1e400", "-0", "9223372036854775808", "[]", '{"a":1}', "NaN", "👩‍👩‍👧"),
    *"\"'\\%?; \t\r\n\x01\x7f\x85\u2028\ufeff\u200d\u202e",
    *"éﬁßİ\ufffd\ufffe\uffff\ud7ff\ue000\U00010000\U0010ffff",
)
_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_short = st.text(_characters, min_size=1, max_size=40)
_nasty = st.lists(st.sampled_from(_FRAGMENTS), min_size=1, max_size=12).map("".join)


def _of_size(text: str, size: int) -> str:
    """The text again and again, filled up to a number of bytes."""
    each = len(text.encode())
    return text * (size // each) + "." * (size % each)


_long = st.builds(_of_size, _nasty | _short, st.integers(MAX_BODY_BYTES - 8, MAX_BODY_BYTES))
texts = st.one_of(_short, _nasty, _long)


@given(text=texts, other=texts)
@example(text="".join(_FRAGMENTS), other=_of_size("\x01", MAX_BODY_BYTES))
@example(text=_of_size("\U0010ffff", MAX_BODY_BYTES), other=_of_size('"', MAX_BODY_BYTES))
def test_post_keeps_its_text(live: LiveServer, text: str, other: str) -> None:
    """Through create, batch create, update, get, batch get and list."""
    first, second = live.create_posts(text, other)
    alone = live.do(live.posts.CreatePost, posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=text)))
    change = posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=second.id, body=text))
    updated = live.do(live.posts.UpdatePost, change)
    change = posts_pb2.UpdatePostRequest(
        post=posts_pb2.Post(id=first.id, body=other), update_mask=FieldMask(paths=["body"])
    )
    updated_by_mask = live.do(live.posts.UpdatePost, change)

    assert (first.body, second.body, alone.body) == (text, other, text)
    assert (updated.body, updated_by_mask.body) == (text, other)
    stored = [updated_by_mask, updated, alone]
    ids = [post.id for post in stored]
    assert [live.do(live.posts.GetPost, posts_pb2.GetPostRequest(id=id)) for id in ids] == stored
    assert list(live.do(live.posts.BatchGetPosts, posts_pb2.BatchGetPostsRequest(ids=ids)).posts) == stored
    newest = posts_pb2.ListPostsRequest(page_size=3, order_by="id desc")
    assert list(live.do(live.posts.ListPosts, newest).posts) == stored[::-1]
    deletion = posts_pb2.BatchDeletePostsRequest(ids=ids)
    assert list(live.do(live.posts.BatchDeletePosts, deletion).posts) == stored


@given(text=texts, other=texts)
def test_comment_keeps_its_text(live: LiveServer, text: str, other: str) -> None:
    """Through create, batch create, update, get, batch get and list."""
    (post,) = live.create_posts("a post")
    first, second = live.create_comments(post.id, text, other)
    comment = comments_pb2.Comment(post_id=post.id, body=text)
    alone = live.do(live.comments.CreateComment, comments_pb2.CreateCommentRequest(comment=comment))
    second.body = text
    updated = live.do(live.comments.UpdateComment, comments_pb2.UpdateCommentRequest(comment=second))

    assert (first.body, alone.body, updated.body) == (text, text, text)
    stored = [first, updated, alone]
    ids = [it.id for it in stored]
    assert [live.do(live.comments.GetComment, comments_pb2.GetCommentRequest(id=id)) for id in ids] == stored
    batch = comments_pb2.BatchGetCommentsRequest(ids=ids)
    assert list(live.do(live.comments.BatchGetComments, batch).comments) == stored
    page = comments_pb2.ListCommentsRequest(post_id=post.id)
    assert list(live.do(live.comments.ListComments, page).comments) == stored
    deletion = comments_pb2.BatchDeleteCommentsRequest(ids=ids)
    assert list(live.do(live.comments.BatchDeleteComments, deletion).comments) == stored


@SQLITE_ONLY
@given(text=_short | _nasty, excess=st.integers(1, 5))
def test_text_above_the_limit_is_refused(live: LiveServer, text: str, excess: int) -> None:
    """The limit counts bytes of UTF-8."""
    post = posts_pb2.Post(body=_of_size(text, MAX_BODY_BYTES + excess))

    outcome = live.attempt(live.posts.CreatePost, posts_pb2.CreatePostRequest(post=post))

    assert error_reason(outcome) == "FIELD_INVALID"
    assert outcome.fields == ["post.body"]


@SQLITE_ONLY
@given(before=_short | st.just(""), after=_short | st.just(""))
def test_text_with_nul_is_refused(live: LiveServer, before: str, after: str) -> None:
    """PostgreSQL cannot store it."""
    post = posts_pb2.Post(body=f"{before}\0{after}")

    outcome = live.attempt(live.posts.CreatePost, posts_pb2.CreatePostRequest(post=post))

    assert error_reason(outcome) == "FIELD_INVALID"
    assert outcome.fields == ["post.body"]
