"""For any calls in any order, the server responds as two dictionaries would."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from storeapi.v1 import comments_pb2 as comments_pb
from storeapi.v1 import posts_pb2 as posts_pb

from tests.support.errors import ReceivedError
from tests.support.property_server import LiveServer, error_reason
from tests.support.reference_model import (
    MAX_BODY_BYTES,
    Model,
    ResourceModel,
    body_error,
    changes_body,
    ids_error,
)

CODES = {
    "FIELD_INVALID": "INVALID_ARGUMENT",
    "FIELD_MASK_INVALID": "INVALID_ARGUMENT",
    "FIELD_IMMUTABLE": "INVALID_ARGUMENT",
    "BATCH_EMPTY": "INVALID_ARGUMENT",
    "BATCH_TOO_LARGE": "INVALID_ARGUMENT",
    "BATCH_DUPLICATE": "INVALID_ARGUMENT",
    "POST_NOT_FOUND": "NOT_FOUND",
    "COMMENT_NOT_FOUND": "NOT_FOUND",
    "POST_HAS_COMMENTS": "FAILED_PRECONDITION",
    "ETAG_MISMATCH": "ABORTED",
}

NEVER_GIVEN = 2**62
seldom = st.sampled_from([False, False, False, True])
good_bodies = st.sampled_from(["a", "b", "é", "x" * MAX_BODY_BYTES, "é" * (MAX_BODY_BYTES // 2)]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8
)
bodies = st.one_of(
    good_bodies, good_bodies, good_bodies, st.sampled_from(["", "a\0", "é" * (MAX_BODY_BYTES // 2) + "x"])
)


def ids(kind: str) -> st.SearchStrategy[int]:
    """An id that exists, that was deleted, or that was never given; mostly the first."""

    def of(machine: "PostsAndComments", choice: int) -> st.SearchStrategy[int]:
        known: ResourceModel = getattr(machine.model, kind)
        if choice < 15 and known.stored:
            return st.sampled_from(sorted(known.stored))
        if choice < 18:
            return st.sampled_from(sorted(known.etags))
        return st.just(NEVER_GIVEN) if choice == 18 else st.sampled_from([0, -1])

    return st.tuples(st.runner(), st.integers(0, 19)).flatmap(lambda it: of(*it))


def batches(kind: str) -> st.SearchStrategy[list[int]]:
    """Several ids, seldom none; some batches hold one twice."""
    some = st.lists(ids(kind), min_size=1, max_size=4)
    return st.one_of(some, some, st.lists(ids(kind), max_size=4, unique=True))


etag_choices = st.sampled_from(["none", "none", "current", "current", "first", "made up"])


class PostsAndComments(RuleBasedStateMachine):
    """Calls the server and the model."""

    def __init__(self, live: LiveServer) -> None:
        super().__init__()
        self.live = live
        self.model = Model()
        live.wipe()

    # What every rule does

    def call(self, method: Callable[..., Any], request: Message, expected: str | None) -> Any:
        """Calls, and returns the answer or the error, which must be the expected one."""
        outcome = self.live.attempt(method, request)
        assert error_reason(outcome) == expected, f"{outcome} after {request}"
        if expected:
            assert outcome.code.name == CODES[expected]
        return outcome

    def etag(self, kind: ResourceModel, id: int, choice: str) -> str:
        etags = kind.etags.get(id, ["never given"])
        return {"none": "", "current": etags[-1], "first": etags[0], "made up": "made up"}[choice]

    def check_missing(self, error: ReceivedError, ids: Sequence[int]) -> None:
        assert error.metadata["missing_ids"] == ",".join(str(id) for id in ids)

    def check_listed(self, listed: Sequence[Message], expected: Sequence[Message]) -> None:
        assert list(listed) == list(expected)

    # Creating

    @initialize()
    def begin(self) -> None:
        (post,) = self.live.create_posts("the first post")
        self.model.posts.check_new(post, body="the first post")
        (comment,) = self.live.create_comments(post.id, "the first comment")
        self.model.comments.check_new(comment, body="the first comment", post_id=post.id)

    @rule(body=bodies, validate_only=seldom)
    def create_post(self, body: str, validate_only: bool) -> None:
        request = posts_pb.CreatePostRequest(post=posts_pb.Post(body=body), validate_only=validate_only)
        post = self.call(self.live.posts.CreatePost, request, body_error(body))
        if body_error(body):
            return
        if validate_only:
            assert post == posts_pb.Post(body=body)
        else:
            self.model.posts.check_new(post, body=body)

    @rule(
        texts=st.lists(good_bodies, min_size=1, max_size=3) | st.lists(bodies, max_size=3),
        validate_only=seldom,
    )
    def create_posts(self, texts: list[str], validate_only: bool) -> None:
        requests = [posts_pb.CreatePostRequest(post=posts_pb.Post(body=body)) for body in texts]
        request = posts_pb.BatchCreatePostsRequest(requests=requests, validate_only=validate_only)
        expected = "BATCH_EMPTY" if not texts else "FIELD_INVALID" if any(map(body_error, texts)) else None
        answer = self.call(self.live.posts.BatchCreatePosts, request, expected)
        if expected:
            return
        assert [post.body for post in answer.posts] == texts
        for post, body in zip(answer.posts, texts, strict=True):
            if validate_only:
                assert post == posts_pb.Post(body=body)
            else:
                self.model.posts.check_new(post, body=body)

    @rule(body=bodies, post_id=ids("posts"), validate_only=seldom)
    def create_comment(self, body: str, post_id: int, validate_only: bool) -> None:
        draft = comments_pb.Comment(body=body, post_id=post_id)
        request = comments_pb.CreateCommentRequest(comment=draft, validate_only=validate_only)
        expected = self.model.problem_of_creating_comments([draft])
        comment = self.call(self.live.comments.CreateComment, request, expected)
        if expected == "POST_NOT_FOUND":
            self.check_missing(comment, [post_id])
        if expected:
            return
        if validate_only:
            assert comment == draft
        else:
            self.model.comments.check_new(comment, body=body, post_id=post_id)

    @rule(
        texts=st.lists(good_bodies, min_size=1, max_size=3) | st.lists(bodies, max_size=3),
        post_ids=st.lists(ids("posts"), min_size=3, max_size=3),
        validate_only=seldom,
    )
    def create_comments(self, texts: list[str], post_ids: list[int], validate_only: bool) -> None:
        drafts = [
            comments_pb.Comment(body=body, post_id=id) for body, id in zip(texts, post_ids, strict=False)
        ]
        requests = [comments_pb.CreateCommentRequest(comment=draft) for draft in drafts]
        request = comments_pb.BatchCreateCommentsRequest(requests=requests, validate_only=validate_only)
        expected = "BATCH_EMPTY" if not drafts else self.model.problem_of_creating_comments(drafts)
        answer = self.call(self.live.comments.BatchCreateComments, request, expected)
        if expected == "POST_NOT_FOUND":
            missing = [draft.post_id for draft in drafts if draft.post_id not in self.model.posts.stored]
            self.check_missing(answer, list(dict.fromkeys(missing)))
        if expected:
            return
        assert len(answer.comments) == len(drafts)
        for comment, draft in zip(answer.comments, drafts, strict=True):
            if validate_only:
                assert comment == draft
            else:
                self.model.comments.check_new(comment, body=draft.body, post_id=draft.post_id)

    # Reading

    def get(self, kind: ResourceModel, method: Callable[..., Any], request: Any) -> None:
        stored = kind.stored.get(request.id)
        expected = "FIELD_INVALID" if request.id <= 0 else kind.not_found if stored is None else None
        outcome = self.call(method, request, expected)
        if not expected:
            assert outcome == stored
        elif expected == kind.not_found:
            assert outcome.metadata[f"{kind.name}_id"] == str(request.id)

    @rule(id=ids("posts"))
    def get_post(self, id: int) -> None:
        self.get(self.model.posts, self.live.posts.GetPost, posts_pb.GetPostRequest(id=id))

    @rule(id=ids("comments"))
    def get_comment(self, id: int) -> None:
        self.get(self.model.comments, self.live.comments.GetComment, comments_pb.GetCommentRequest(id=id))

    def get_many(self, kind: ResourceModel, method: Callable[..., Any], request: Any) -> None:
        found, missing = kind.found(request.ids)
        expected = ids_error(request.ids)
        if not expected and missing and not request.allow_missing:
            expected = kind.not_found
        answer = self.call(method, request, expected)
        if not expected:
            self.check_listed(getattr(answer, f"{kind.name}s"), found)
            assert list(answer.missing_ids) == missing
        elif expected == kind.not_found:
            self.check_missing(answer, missing)

    @rule(ids=batches("posts"), allow_missing=st.booleans())
    def get_posts(self, ids: list[int], allow_missing: bool) -> None:
        request = posts_pb.BatchGetPostsRequest(ids=ids, allow_missing=allow_missing)
        self.get_many(self.model.posts, self.live.posts.BatchGetPosts, request)

    @rule(ids=batches("comments"), allow_missing=st.booleans())
    def get_comments(self, ids: list[int], allow_missing: bool) -> None:
        request = comments_pb.BatchGetCommentsRequest(ids=ids, allow_missing=allow_missing)
        self.get_many(self.model.comments, self.live.comments.BatchGetComments, request)

    @rule(page_size=st.integers(1, 4), order_by=st.sampled_from(["", "id", "id desc", " id  desc "]))
    def list_posts(self, page_size: int, order_by: str) -> None:
        expected = [
            self.model.posts.stored[id] for id in sorted(self.model.posts.stored, reverse="desc" in order_by)
        ]
        listed: list[Any] = []
        token = ""
        while not listed or token:
            request = posts_pb.ListPostsRequest(page_size=page_size, order_by=order_by, page_token=token)
            page = self.call(self.live.posts.ListPosts, request, None)
            listed += page.posts
            token = page.next_page_token
            assert len(page.posts) == page_size if token else len(page.posts) <= page_size
            if not page.posts:
                break
        self.check_listed(listed, expected)

    @rule(post_id=ids("posts"), page_size=st.integers(1, 4), order_by=st.sampled_from(["", "id", "id desc"]))
    def list_comments(self, post_id: int, page_size: int, order_by: str) -> None:
        problem = None
        if post_id:
            problem = (
                "FIELD_INVALID"
                if post_id < 0
                else None
                if post_id in self.model.posts.stored
                else "POST_NOT_FOUND"
            )
        stored = self.model.comments.stored
        wanted = [
            id for id in sorted(stored, reverse="desc" in order_by) if post_id in (0, stored[id].post_id)
        ]
        listed: list[Any] = []
        token = ""
        while not listed or token:
            request = comments_pb.ListCommentsRequest(
                post_id=post_id, page_size=page_size, order_by=order_by, page_token=token
            )
            page = self.call(self.live.comments.ListComments, request, problem)
            if problem:
                return
            listed += page.comments
            token = page.next_page_token
            if not page.comments:
                break
        self.check_listed(listed, [stored[id] for id in wanted])

    @rule(page_size=st.integers(-3, 3), order_by=st.sampled_from(["id", "id asc", "body", "id desc, id"]))
    def list_what_cannot_be_listed(self, page_size: int, order_by: str) -> None:
        expected = "FIELD_INVALID" if page_size < 0 or order_by != "id" else None
        posts = posts_pb.ListPostsRequest(page_size=page_size, order_by=order_by)
        comments = comments_pb.ListCommentsRequest(page_size=page_size, order_by=order_by)
        self.call(self.live.posts.ListPosts, posts, expected)
        self.call(self.live.comments.ListComments, comments, expected)

    @rule(post_ids=batches("posts"))
    def count_comments(self, post_ids: list[int]) -> None:
        expected = ids_error(post_ids)
        request = comments_pb.CountCommentsRequest(post_ids=post_ids)
        answer = self.call(self.live.comments.CountComments, request, expected)
        if not expected:
            assert dict(answer.counts) == {id: len(self.model.comments_of([id])) for id in post_ids}

    # Changing

    def update(self, kind: ResourceModel, method: Callable[..., Any], request: Any) -> None:
        wanted = getattr(request, kind.name)
        before = kind.stored.get(wanted.id)
        expected = self.model.problem_of_update(kind, request)
        after = self.call(method, request, expected)
        if expected == "ETAG_MISMATCH":
            assert after.metadata["current_etag"] == before.etag
        if expected:
            return

        body = wanted.body if changes_body(request, wanted) else before.body
        predicted = kind.message()
        predicted.CopyFrom(before)
        predicted.body = body
        for name in ("update_time", "etag"):
            predicted.ClearField(name)
        if request.validate_only:
            assert after == predicted
            return
        if after.etag == before.etag:
            assert after == before
        else:
            assert after.update_time.ToNanoseconds() >= before.update_time.ToNanoseconds()
            kind.remember(after)
        unpredictable = kind.message(update_time=after.update_time, etag=after.etag)
        predicted.MergeFrom(unpredictable)
        assert after == predicted
        assert body == before.body or after.etag != before.etag

    @rule(
        id=ids("posts"),
        body=bodies,
        paths=st.sampled_from(
            [[], [], ["body"], ["body"], ["*"], ["*", "body"], ["post_id"], ["id"], ["boddy"]]
        ),
        etag=etag_choices,
        whole=st.booleans(),
        validate_only=seldom,
    )
    def update_post(
        self, id: int, body: str, paths: list[str], etag: str, whole: bool, validate_only: bool
    ) -> None:
        post = posts_pb.Post()
        if whole and id in self.model.posts.stored:
            # Read, changed and sent back whole.
            post.CopyFrom(self.model.posts.stored[id])
        post.id, post.body, post.etag = id, body, self.etag(self.model.posts, id, etag)
        request = posts_pb.UpdatePostRequest(
            post=post, update_mask={"paths": paths}, validate_only=validate_only
        )
        self.update(self.model.posts, self.live.posts.UpdatePost, request)

    @rule(
        id=ids("comments"),
        body=bodies,
        post_id=ids("posts"),
        paths=st.sampled_from(
            [[], [], ["body"], ["body"], ["*"], ["post_id"], ["post_id", "body"], ["*", "post_id"], ["etag"]]
        ),
        etag=etag_choices,
        whole=st.booleans(),
        validate_only=seldom,
    )
    def update_comment(
        self, id: int, body: str, post_id: int, paths: list[str], etag: str, whole: bool, validate_only: bool
    ) -> None:
        comment = comments_pb.Comment(post_id=post_id)
        if whole and id in self.model.comments.stored:
            comment.CopyFrom(self.model.comments.stored[id])
        comment.id, comment.body, comment.etag = id, body, self.etag(self.model.comments, id, etag)
        request = comments_pb.UpdateCommentRequest(
            comment=comment, update_mask={"paths": paths}, validate_only=validate_only
        )
        self.update(self.model.comments, self.live.comments.UpdateComment, request)

    @rule(id=ids("comments"), later=st.sampled_from(["create_time", "update_time"]), masked=st.booleans())
    def move_a_time(self, id: int, later: str, masked: bool) -> None:
        comment = comments_pb.Comment(id=id, body="at another time")
        if id in self.model.comments.stored:
            comment.CopyFrom(self.model.comments.stored[id])
            getattr(comment, later).seconds += 1
        request = comments_pb.UpdateCommentRequest(
            comment=comment, update_mask={"paths": ["body"] if masked else []}
        )
        self.update(self.model.comments, self.live.comments.UpdateComment, request)

    # Deleting

    def delete(
        self, kind: ResourceModel, method: Callable[..., Any], request: Any, *, force: bool = False
    ) -> None:
        expected = (
            "FIELD_INVALID"
            if request.id <= 0
            else self.model.problem_of_deletion(
                kind, [request.id], etag=request.etag, force=force, allow_missing=request.allow_missing
            )
        )
        outcome = self.call(method, request, expected)
        if expected == "POST_HAS_COMMENTS":
            assert outcome.metadata["comment_count"] == str(len(self.model.comments_of([request.id])))
        if expected:
            return
        assert outcome == kind.stored.get(request.id, kind.message(id=request.id))
        if not request.validate_only:
            self.model.delete(kind, [request.id])

    @rule(
        id=ids("posts"),
        etag=etag_choices,
        force=st.booleans(),
        allow_missing=st.booleans(),
        validate_only=seldom,
    )
    def delete_post(self, id: int, etag: str, force: bool, allow_missing: bool, validate_only: bool) -> None:
        request = posts_pb.DeletePostRequest(
            id=id,
            etag=self.etag(self.model.posts, id, etag),
            force=force,
            allow_missing=allow_missing,
            validate_only=validate_only,
        )
        self.delete(self.model.posts, self.live.posts.DeletePost, request, force=force)

    @rule(id=ids("comments"), etag=etag_choices, allow_missing=st.booleans(), validate_only=seldom)
    def delete_comment(self, id: int, etag: str, allow_missing: bool, validate_only: bool) -> None:
        request = comments_pb.DeleteCommentRequest(
            id=id,
            etag=self.etag(self.model.comments, id, etag),
            allow_missing=allow_missing,
            validate_only=validate_only,
        )
        self.delete(self.model.comments, self.live.comments.DeleteComment, request)

    def delete_many(
        self, kind: ResourceModel, method: Callable[..., Any], request: Any, *, force: bool = False
    ) -> None:
        found, missing = kind.found(request.ids)
        expected = ids_error(request.ids, unique=True) or self.model.problem_of_deletion(
            kind, request.ids, force=force, allow_missing=request.allow_missing
        )
        answer = self.call(method, request, expected)
        if expected == kind.not_found:
            self.check_missing(answer, missing)
        if expected == "POST_HAS_COMMENTS":
            assert answer.metadata["comment_count"] == str(len(self.model.comments_of(request.ids)))
        if expected:
            return
        self.check_listed(getattr(answer, f"{kind.name}s"), found)
        assert list(answer.missing_ids) == missing
        if not request.validate_only:
            self.model.delete(kind, request.ids)

    @rule(ids=batches("posts"), force=st.booleans(), allow_missing=st.booleans(), validate_only=seldom)
    def delete_posts(self, ids: list[int], force: bool, allow_missing: bool, validate_only: bool) -> None:
        request = posts_pb.BatchDeletePostsRequest(
            ids=ids, force=force, allow_missing=allow_missing, validate_only=validate_only
        )
        self.delete_many(self.model.posts, self.live.posts.BatchDeletePosts, request, force=force)

    @rule(ids=batches("comments"), allow_missing=st.booleans(), validate_only=seldom)
    def delete_comments(self, ids: list[int], allow_missing: bool, validate_only: bool) -> None:
        request = comments_pb.BatchDeleteCommentsRequest(
            ids=ids, allow_missing=allow_missing, validate_only=validate_only
        )
        self.delete_many(self.model.comments, self.live.comments.BatchDeleteComments, request)

    # After every call

    @invariant()
    def everything_is_as_the_model_has_it(self) -> None:
        posts = self.live.do(self.live.posts.ListPosts, posts_pb.ListPostsRequest(page_size=1000))
        comments = self.live.do(
            self.live.comments.ListComments, comments_pb.ListCommentsRequest(page_size=1000)
        )
        self.check_listed(
            posts.posts, [self.model.posts.stored[id] for id in sorted(self.model.posts.stored)]
        )
        self.check_listed(
            comments.comments, [self.model.comments.stored[id] for id in sorted(self.model.comments.stored)]
        )


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    """A limit that the model knows."""
    return {"STORE_MAX_BODY_BYTES": str(MAX_BODY_BYTES)}


def test_server_agrees_with_the_model(live: LiveServer) -> None:
    """Every response, every reason and everything stored, after any sequence of calls."""
    profile = settings()
    more = settings(max_examples=2 * profile.max_examples)
    run_state_machine_as_test(partial(PostsAndComments, live), settings=more)
