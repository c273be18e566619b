"""Deletions, restorations and purges in any order, each of them in many small transactions.

The model executes each at once. Between the transactions callers may see less than the model has while a
restoration is not finished, and never anything else.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine
from storeapi.v1 import changes_pb2 as changes_pb
from storeapi.v1 import comments_pb2 as comments_pb
from storeapi.v1 import filters_pb2 as filters_pb
from storeapi.v1 import posts_pb2 as posts_pb

from store_service import config as service_settings
from store_service.database import schema
from store_service.database.engines import sync_engine
from store_service.service import (
    background_steps,
    comment_removal,
    counting,
    large_deletions,
    matching_count,
    pages,
    restoration,
)
from tests.support.deletion_model import DeletionModel, Known
from tests.support.direct_server import DirectServer, ManualSteps, direct_server
from tests.support.errors import ReceivedError
from tests.support.postgresql import new_database
from tests.support.property_server import error_reason
from tests.support.watches import DELETE, open_watch

ID_ORDERS = ["id", "id desc", "create_time", "create_time desc"]
ORDERS = [*ID_ORDERS, "thread", "thread desc"]
TABLES = (
    "restorations",
    "thread_deletions",
    "post_deletions",
    "deleted_comments",
    "deleted_posts",
    "comments",
    "posts",
    "revisions",
)
seldom = st.sampled_from([False, False, False, True])


@pytest.fixture(scope="module")
def database_url(engine: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database with the current schema."""
    if engine == "sqlite":
        url = f"sqlite:///{request.getfixturevalue('tmp_path_factory').mktemp('data')}/store.db"
        schema.upgrade(url)
        yield url
        return
    with new_database(request.getfixturevalue("postgres")) as url:
        schema.upgrade(url)
        yield url


@pytest.fixture(scope="module")
def direct(database_url: str) -> Iterator[DirectServer]:
    """A server whose transactions remove or restore few comments."""
    config = service_settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", undelete_hours=24)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module in (comment_removal, large_deletions, background_steps, restoration):
            monkeypatch.setattr(module, "MAX_ROWS", 3)
        for module in (comment_removal, large_deletions, restoration):
            monkeypatch.setattr(module, "FETCH_ROWS", 2)
        monkeypatch.setattr(pages, "FETCH_ROWS", 3)
        monkeypatch.setattr(counting, "MAX_ROWS", 2)
        monkeypatch.setattr(matching_count, "MAX_ROWS", 2)
        with direct_server(config, ManualSteps(monkeypatch)) as direct:
            yield direct


def known_ids(kind: str) -> st.SearchStrategy[int]:
    """An id that exists or has existed."""
    return st.runner().flatmap(lambda it: st.sampled_from(sorted(getattr(it.model, kind)) or [10**15]))


def live_ids(kind: str) -> st.SearchStrategy[int]:
    """Mostly a live id."""

    def of(machine: "Deletions") -> st.SearchStrategy[int]:
        known: dict[int, Known] = getattr(machine.model, kind)
        live = machine.model.ids(known, "live")
        return st.sampled_from(live) if live else st.sampled_from(sorted(known) or [10**15])

    return st.runner().flatmap(of)


def deleted_ids(kind: str) -> st.SearchStrategy[int]:
    """Mostly a deleted id."""

    def of(machine: "Deletions") -> st.SearchStrategy[int]:
        known: dict[int, Known] = getattr(machine.model, kind)
        deleted = machine.model.ids(known, "deleted")
        return st.sampled_from(deleted) if deleted else st.sampled_from(sorted(known) or [10**15])

    return st.runner().flatmap(of)


class Deletions(RuleBasedStateMachine):
    """Calls the server and the model."""

    def __init__(self, direct: DirectServer, engine: Engine) -> None:
        super().__init__()
        self.direct = direct
        self.engine = engine
        self.model = DeletionModel()
        self.turn = 0
        with engine.begin() as connection:
            for table in TABLES:
                connection.exec_driver_sql(f"DELETE FROM {table}")
        self.start = self.resume_token()
        ((self.last_seq,),) = self.query("SELECT coalesce(max(seq), 0) FROM changes")
        self.posts, self.comments = direct.stubs.posts, direct.stubs.comments

    # What every rule does

    def call(self, method: Any, request: Any, *expected: str | None) -> Any:
        """Calls, and returns the response or the error, which must be an expected one."""
        outcome = self.direct.attempt(method, request)
        assert error_reason(outcome) in (expected or (None,)), f"{outcome} after {request}"
        return outcome

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(statement)]

    def resume_token(self) -> str:
        request = posts_pb.ListPostsRequest(page_size=1)
        return str(self.direct.attempt(self.direct.stubs.posts.ListPosts, request).resume_token)

    def pending(self, table: str) -> bool:
        return self.query(f"SELECT count(*) FROM {table}") != [(0,)]

    @property
    def is_restoring(self) -> bool:
        """Whether live posts have comments that are to be restored."""
        rows = self.query("SELECT post_id FROM restorations")
        return any(self.model.posts[post_id].state == "live" for (post_id,) in rows)

    @property
    def is_deleting(self) -> bool:
        return self.pending("thread_deletions") or self.pending("post_deletions")

    @property
    def is_idle(self) -> bool:
        return not (self.is_deleting or self.is_restoring)

    def absent(self, *reasons: str) -> list[str | None]:
        """The outcomes of a call about comments that the model has: they may not be restored yet."""
        return [None, *(reasons if self.is_restoring else ())]

    # Rules

    @initialize()
    def begin(self) -> None:
        self.create_post(external_id="")
        self.create_comments(next(iter(self.model.posts)), [0, 0, 1], "", "")

    @rule(external_id=st.sampled_from(["", "", "p", "q"]))
    def create_post(self, external_id: str) -> None:
        post = posts_pb.Post(body="a post", author="a", labels={"k": "v"}, external_id=external_id)
        taken = [it for it in self.model.posts.values() if it.state == "live" and external_id]
        is_taken = external_id in [it.message.external_id for it in taken]
        request = posts_pb.CreatePostRequest(post=post)
        created = self.call(self.posts.CreatePost, request, "EXTERNAL_ID_TAKEN" if is_taken else None)
        if not is_taken:
            self.model.add(self.model.posts, created)

    @rule(
        post_id=live_ids("posts"),
        parents=st.lists(st.integers(0, 5), min_size=1, max_size=4),
        author=st.sampled_from(["", "a"]),
        external_id=st.sampled_from(["", "", "c", "d"]),
    )
    def create_comments(self, post_id: int, parents: list[int], author: str, external_id: str) -> None:
        """Each replies to one of the last comments of the post, the first one of 0 to none."""
        for parent in parents:
            of_post = self.model.live_comments_of(post_id)
            reply_to_id = of_post[-min(parent, len(of_post))] if parent and of_post else 0
            self.create_comment(post_id, reply_to_id, author, external_id)
            external_id = ""

    @rule(post_id=live_ids("posts"), parent=live_ids("comments"))
    def create_chain(self, post_id: int, parent: int) -> None:
        known = self.model.comments.get(parent)
        post_id, above = (known.message.post_id, parent) if known else (post_id, 0)
        for _ in range(4):
            created = self.create_comment(post_id, above, "a", "")
            if created is None:
                return
            above = created.id

    def create_comment(self, post_id: int, reply_to_id: int, author: str, external_id: str) -> Any:
        labels = {"k": "v"} if author else {}
        comment = comments_pb.Comment(
            body="a comment",
            post_id=post_id,
            reply_to_id=reply_to_id,
            author=author,
            labels=labels,
            external_id=external_id,
        )
        post, parent = self.model.posts.get(post_id), self.model.comments.get(reply_to_id)
        is_taken = external_id and external_id in [
            it.message.external_id for it in self.model.comments.values() if it.state == "live"
        ]
        expected = [None]
        if is_taken:
            expected = self.absent("EXTERNAL_ID_TAKEN") if self.is_restoring else ["EXTERNAL_ID_TAKEN"]
        if reply_to_id and (parent is None or parent.state != "live"):
            expected = ["COMMENT_NOT_FOUND", *expected]
            expected.remove(None) if None in expected else None
        elif reply_to_id:
            expected += self.absent("COMMENT_NOT_FOUND")[1:]
        if post is None or post.state != "live":
            expected = ["POST_NOT_FOUND", *[it for it in expected if it == "EXTERNAL_ID_TAKEN"]]
        request = comments_pb.CreateCommentRequest(comment=comment)
        created = self.call(self.comments.CreateComment, request, *expected)
        if isinstance(created, ReceivedError):
            return None
        self.model.add(self.model.comments, created)
        return created

    @rule(id=known_ids("comments"))
    def reply_to_any(self, id: int) -> None:
        known = self.model.comments.get(id)
        if known is not None:
            self.create_comment(known.message.post_id, id, "", "")

    @rule(id=live_ids("comments"), body=st.sampled_from(["b", "c"]))
    def update_comment(self, id: int, body: str) -> None:
        known = self.model.comments.get(id)
        is_live = known is not None and known.state == "live"
        expected = self.absent("COMMENT_NOT_FOUND") if is_live else ["COMMENT_NOT_FOUND"]
        comment = comments_pb.Comment(id=id, body=body)
        request = comments_pb.UpdateCommentRequest(comment=comment)
        updated = self.call(self.comments.UpdateComment, request, *expected)
        if not isinstance(updated, ReceivedError):
            self.model.update(self.model.comments, updated)

    @rule(ids=st.lists(live_ids("comments"), min_size=1, max_size=3, unique=True), force=st.booleans())
    def delete_comments(self, ids: list[int], force: bool) -> None:
        are_live = all(id in self.model.ids(self.model.comments, "live") for id in ids)
        expected = self.absent("COMMENT_NOT_FOUND") if are_live else ["COMMENT_NOT_FOUND"]
        is_exact = not self.is_restoring
        if len(ids) == 1:
            one = comments_pb.DeleteCommentRequest(id=ids[0], force=force)
            outcome = self.call(self.comments.DeleteComment, one, *expected)
            last = [outcome]
        else:
            batch = comments_pb.BatchDeleteCommentsRequest(ids=ids, force=force)
            outcome = self.call(self.comments.BatchDeleteComments, batch, *expected)
            last = [] if isinstance(outcome, ReceivedError) else list(outcome.comments)
        if isinstance(outcome, ReceivedError):
            return
        for it in last:
            self.check_deleted(it, self.model.comments[it.id])
        self.model.delete_comments(last, force=force, is_exact=is_exact)

    @rule(ids=st.lists(live_ids("posts"), min_size=1, max_size=2, unique=True), force=st.booleans())
    def delete_posts(self, ids: list[int], force: bool) -> None:
        are_live = all(id in self.model.ids(self.model.posts, "live") for id in ids)
        has_comments = any(self.model.live_comments_of(id) for id in ids)
        expected: list[str | None] = [None]
        if not are_live:
            expected = ["POST_NOT_FOUND"]
        elif not force and has_comments:
            expected = ["POST_HAS_COMMENTS", *([None] if self.is_restoring else [])]
        elif not force and self.is_deleting:
            # Comments that callers do not see any more are not removed yet.
            expected = [None, "DATABASE_BUSY"]
        is_exact = not self.is_restoring
        request = posts_pb.BatchDeletePostsRequest(ids=ids, force=force)
        outcome = self.call(self.posts.BatchDeletePosts, request, *expected)
        if not isinstance(outcome, ReceivedError):
            for it in outcome.posts:
                self.check_deleted(it, self.model.posts[it.id])
            self.model.delete_posts(outcome.posts, is_exact=is_exact)

    def check_deleted(self, last: Any, known: Known) -> None:
        """The response is the last state, with the times."""
        assert last.HasField("delete_time")
        assert last.purge_time.ToMicroseconds() - last.delete_time.ToMicroseconds() == 24 * 3_600_000_000
        expected = type(last)()
        expected.CopyFrom(known.message)
        self.check_same(last, expected, with_times=False)

    @rule(id=deleted_ids("posts"))
    def undelete_post(self, id: int) -> None:
        known = self.model.posts.get(id)
        expected: list[str | None] = [self.undelete_error("POST", self.model.posts, id)]
        if (
            known is not None
            and expected in ([None], ["EXTERNAL_ID_TAKEN"])
            and self.pending("post_deletions")
        ):
            expected.append("DATABASE_BUSY")
        with_post = self.model.restored_with_post(id)
        outcome = self.call(self.posts.UndeletePost, posts_pb.UndeletePostRequest(id=id), *expected)
        if isinstance(outcome, ReceivedError) or known is None:
            return
        self.check_restored(outcome, known)
        for it in with_post:
            self.model.restore(self.model.comments[it])
        self.model.restore(known, outcome)

    @rule(id=deleted_ids("comments"))
    def undelete_comment(self, id: int) -> None:
        known = self.model.comments.get(id)
        expected: list[str | None] = [self.undelete_error("COMMENT", self.model.comments, id)]
        if known is not None and expected in ([None], ["EXTERNAL_ID_TAKEN"]):
            if self.model.posts[known.message.post_id].state != "live":
                expected = ["POST_NOT_FOUND", *[it for it in expected if it]]
            elif self.pending("thread_deletions"):
                expected.append("DATABASE_BUSY")
        if known is not None and known.state == "live" and self.is_restoring:
            expected.append(None)
        if self.is_restoring:
            expected.append(None if "EXTERNAL_ID_TAKEN" in expected else "NOT_DELETED")
        with_comment = self.model.restored_with_comment(id)
        request = comments_pb.UndeleteCommentRequest(id=id)
        outcome = self.call(self.comments.UndeleteComment, request, *expected)
        if isinstance(outcome, ReceivedError) or known is None:
            return
        self.check_restored(outcome, known)
        for it in with_comment:
            self.model.restore(self.model.comments[it])
        self.model.restore(known, outcome)

    def undelete_error(self, name: str, of: dict[int, Known], id: int) -> str | None:
        known = of.get(id)
        if known is None or known.state == "gone":
            return f"{name}_NOT_FOUND"
        if known.state == "live":
            return "NOT_DELETED"
        wanted = known.message.external_id
        others = [it.message.external_id for it in of.values() if it.state == "live"]
        return "EXTERNAL_ID_TAKEN" if wanted and wanted in others else None

    def check_restored(self, restored: Any, known: Known) -> None:
        assert restored.etag not in known.etags
        assert not restored.HasField("delete_time")
        assert not restored.HasField("purge_time")
        self.check_same(restored, known.message, with_times=False, with_etag=False)

    @rule(count=st.integers(1, 4))
    def make_steps(self, count: int) -> None:
        for _ in range(count):
            self.direct.run(self.direct.steps.step())

    @rule()
    def finish_steps(self) -> None:
        self.direct.run(self.direct.steps.finish())

    @rule(choice=st.integers(0, 3), is_due=seldom)
    def purge(self, choice: int, is_due: bool) -> None:
        """The time passes by which one of the oldest deletions is purged."""
        times = self.model.purge_times()
        if not is_due or not times or (self.is_restoring and not self.is_idle):
            return
        before = times[min(choice, len(times) - 1)] + 1
        self.direct.run(self.direct.steps.purge(before))
        self.model.purge(before)

    # What is compared

    def check_same(
        self, found: Any, expected: Any, *, with_times: bool = True, with_etag: bool = True
    ) -> None:
        found, expected = type(found).FromString(found.SerializeToString()), expected
        expected = type(found).FromString(expected.SerializeToString())
        for it in (found, expected):
            if not with_times:
                it.ClearField("delete_time")
                it.ClearField("purge_time")
            if not with_etag:
                it.ClearField("etag")
        if not found.external_id and self.may_lose_external_id(expected):
            expected.ClearField("external_id")
        assert found == expected

    def may_lose_external_id(self, message: Any) -> bool:
        """Whether another resource was created with the external id while this one was deleted."""
        of = self.model.posts if isinstance(message, posts_pb.Post) else self.model.comments
        return any(it.message.external_id == message.external_id for id, it in of.items() if id > message.id)

    def check_listed(self, listed: list[Any], of: dict[int, Known], expected: dict[int, Any]) -> None:
        """Learns the etags of resources that were restored with others."""
        assert [it.id for it in listed] == list(dict.fromkeys(it.id for it in listed))
        assert {it.id for it in listed} == expected.keys()
        for it in listed:
            known = of[it.id]
            if not known.message.etag:
                assert it.etag
                assert it.etag not in known.etags
                self.check_same(it, known.message, with_etag=False)
                known.etags.add(it.etag)
                known.message.etag = it.etag
                known.message.external_id = it.external_id
            else:
                self.check_same(it, expected[it.id], with_times=known.has_exact_times)

    def list_posts(self, **query: Any) -> list[Any]:
        request = posts_pb.ListPostsRequest(**query)
        return self.list_all(self.posts.ListPosts, request, "posts")

    def list_comments(self, **query: Any) -> list[Any]:
        request = comments_pb.ListCommentsRequest(**query)
        return self.list_all(self.comments.ListComments, request, "comments")

    def list_all(self, method: Any, request: Any, name: str) -> list[Any]:
        found: list[Any] = []
        while True:
            page = self.call(method, request)
            found += getattr(page, name)
            assert len(getattr(page, name)) <= request.page_size
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    @invariant()
    def threads_are_connected(self) -> None:
        """In every state, also while work is not finished."""
        listed = {it.id: it for it in self.list_comments(page_size=1000)}
        for it in listed.values():
            assert not it.reply_to_id or it.reply_to_id in listed
            assert it.HasField("delete_time") == (not it.body)
        shown = self.model.listed_comments(show_deleted=False)
        if self.is_restoring:
            assert listed.keys() <= shown.keys()
        elif self.is_deleting:
            # A tombstone above comments that are not removed yet may still be there.
            assert listed.keys() >= shown.keys()
            assert not [listed[id] for id in listed.keys() - shown.keys() if listed[id].body]
        live = [it.id for it in listed.values() if it.body]
        counted = self.call(self.comments.CountComments, comments_pb.CountCommentsRequest(all_posts=True))
        assert counted.total == len(live)
        if self.model.posts:
            request = comments_pb.CountCommentsRequest(post_ids=list(self.model.posts))
            counts = self.call(self.comments.CountComments, request).counts
            expected = Counter(listed[id].post_id for id in live)
            assert dict(counts) == {id: expected[id] for id in self.model.posts}
        if self.model.comments:
            replies = comments_pb.CountRepliesRequest(comment_ids=list(self.model.comments))
            counts = self.call(self.comments.CountReplies, replies).counts
            expected = Counter(listed[id].reply_to_id for id in live)
            assert dict(counts) == {id: expected[id] for id in self.model.comments}
        got = self.call(
            self.comments.BatchGetComments,
            comments_pb.BatchGetCommentsRequest(ids=[*self.model.comments, 10**15], allow_missing=True),
        )
        assert [it.id for it in got.comments] == [id for id in self.model.comments if id in live]

    @invariant()
    def server_agrees(self) -> None:
        """If no work is left, lists, counts, reads by id and watches are those of the model."""
        self.turn += 1
        if self.turn % 3 == 0 and self.is_idle:
            self.check_everything()

    def check_everything(self) -> None:
        model = self.model
        for show_deleted in (False, True):
            flags = {"show_deleted": show_deleted}
            # `check_filters` also reads pages of one.
            size = [2, 3, 7, 1000][self.turn % 4]
            of_posts = filters_pb.PostFilter(**flags)
            of_comments = filters_pb.CommentFilter(**flags)
            posts = model.listed_posts(show_deleted=show_deleted)
            comments = model.listed_comments(show_deleted=show_deleted)
            order = ID_ORDERS[self.turn % 4]
            listed = self.list_posts(filter=of_posts, order_by=order, page_size=size)
            self.check_listed(listed, model.posts, posts)
            assert [it.id for it in listed] == sorted(posts, reverse="desc" in order)
            listed = self.list_comments(filter=of_comments, order_by=order, page_size=size)
            self.check_listed(listed, model.comments, comments)
            assert [it.id for it in listed] == model.in_order(comments, order)
            for order in (ORDERS[self.turn % 6], ORDERS[(self.turn + 3) % 6]):
                self.check_posts(posts, comments, filter=of_comments, order_by=order, page_size=size)
            self.check_filters(comments, show_deleted=show_deleted)
            self.check_reads(posts, comments, show_deleted=show_deleted)
            self.check_initial_state(posts, comments, show_deleted=show_deleted)
        self.check_tables()
        self.check_watch()

    def check_posts(self, posts: dict[int, Any], comments: dict[int, Any], **query: Any) -> None:
        for post_id in posts:
            listed = self.list_comments(post_id=post_id, **query)
            of_post = {id: it for id, it in comments.items() if it.post_id == post_id}
            self.check_listed(listed, self.model.comments, of_post)
            assert [it.id for it in listed] == self.model.in_order(of_post, query["order_by"])

    def check_filters(self, comments: dict[int, Any], *, show_deleted: bool) -> None:
        size = [1, 2, 3][self.turn % 3]
        for condition in ({"author": "a"}, {"labels": {"k": "v"}}, {"reply_to_id": 0}):
            filter = filters_pb.CommentFilter(show_deleted=show_deleted, **condition)
            expected = [
                id
                for id, it in sorted(comments.items())
                if (not it.reply_to_id if "reply_to_id" in condition else it.author == "a")
            ]
            order = ID_ORDERS[self.turn % 4]
            listed = self.list_comments(filter=filter, order_by=order, page_size=size)
            assert [it.id for it in listed] == self.model.in_order(expected, order)
            request = comments_pb.CountCommentsRequest(all_posts=True, filter=filter)
            wanted = [id for id in expected if show_deleted or comments[id].body]
            assert self.call(self.comments.CountComments, request).total == len(wanted)

    def check_reads(self, posts: dict[int, Any], comments: dict[int, Any], *, show_deleted: bool) -> None:
        model = self.model
        with_content = [id for id, it in comments.items() if it.body]
        got = self.call(
            self.comments.BatchGetComments,
            comments_pb.BatchGetCommentsRequest(
                ids=[*model.comments, 10**15], allow_missing=True, show_deleted=show_deleted
            ),
        )
        assert [it.id for it in got.comments] == [id for id in model.comments if id in with_content]
        self.check_listed(list(got.comments), model.comments, {id: comments[id] for id in with_content})
        got = self.call(
            self.posts.BatchGetPosts,
            posts_pb.BatchGetPostsRequest(
                ids=[*model.posts, 10**15], allow_missing=True, show_deleted=show_deleted
            ),
        )
        self.check_listed(list(got.posts), model.posts, posts)
        filter = filters_pb.CommentFilter(show_deleted=show_deleted)
        if model.posts:
            request = comments_pb.CountCommentsRequest(post_ids=list(model.posts), filter=filter)
            counts = self.call(self.comments.CountComments, request).counts
            counted = comments if show_deleted else with_content
            expected = Counter(comments[id].post_id for id in counted)
            assert dict(counts) == {id: expected[id] for id in model.posts}

    def check_initial_state(
        self, posts: dict[int, Any], comments: dict[int, Any], *, show_deleted: bool
    ) -> None:
        async def read() -> list[Any]:
            request: dict[str, Any] = {
                "initial_state": True,
                "post_filter": filters_pb.PostFilter(show_deleted=show_deleted),
                "comment_filter": filters_pb.CommentFilter(show_deleted=show_deleted),
            }
            if self.turn % 2 and self.model.posts:
                request["post_ids"] = list(self.model.posts)
            async with open_watch(self.direct.channel, **request) as watch:
                return await watch.initial_state()

        found = self.direct.run(read())
        of_posts = [it.post for it in found if it.kind == changes_pb.RESOURCE_KIND_POST]
        of_comments = [it.comment for it in found if it.kind == changes_pb.RESOURCE_KIND_COMMENT]
        self.check_listed(of_posts, self.model.posts, posts)
        self.check_listed(of_comments, self.model.comments, comments)

    def check_watch(self) -> None:
        """A watch from the beginning ends in the same state. A consumer shows a deleted comment as a
        tombstone while it shows a reply to it."""

        ((count,),) = self.query(f"SELECT count(*) FROM changes WHERE seq > {self.last_seq}")
        assert isinstance(count, int)

        async def read() -> list[Any]:
            async with open_watch(self.direct.channel, resume_token=self.start) as watch:
                return await watch.changes(count)

        posts: dict[int, Any] = {}
        comments: dict[int, Any] = {}
        for it in self.direct.run(read()):
            of = posts if it.kind == changes_pb.RESOURCE_KIND_POST else comments
            of[it.id] = it.post if it.kind == changes_pb.RESOURCE_KIND_POST else it.comment
            assert of[it.id].HasField("delete_time") == (it.action == DELETE)
            assert of[it.id].body
        live = {id: it for id, it in posts.items() if not it.HasField("delete_time")}
        self.check_listed(list(live.values()), self.model.posts, self.model.listed_posts(show_deleted=False))
        shown = self.model.listed_comments(show_deleted=False)
        of_live = {id: it for id, it in comments.items() if not it.HasField("delete_time")}
        expected = {id: it for id, it in shown.items() if it.body}
        self.check_listed(list(of_live.values()), self.model.comments, expected)
        derived = {above for id in of_live for above in self.model.path(id)}
        assert derived == shown.keys()

    def check_tables(self) -> None:
        model = self.model
        shown = model.listed_comments(show_deleted=False)
        rows = self.query("SELECT id, reply_to_id, delete_time FROM comments")
        assert {id for id, *_ in rows} == shown.keys()
        assert {id for id, _, time in rows if time} == {id for id, it in shown.items() if not it.body}
        deleted = self.query("SELECT id, reply_to_id, purge_time, body FROM deleted_comments")
        assert {id for id, _, time, _ in deleted if time} == set(model.ids(model.comments, "deleted"))
        links = {id for id, _, time, _ in deleted if not time}
        above = {parent for _, parent, *_ in deleted}
        assert links <= above
        assert not links & shown.keys()
        exist = {id for id, *_ in rows} | {id for id, *_ in deleted}
        assert {parent for _, parent, *_ in [*rows, *deleted] if parent} <= exist
        assert not [id for id, _, time, body in deleted if bool(time) != bool(body)]
        posts = self.query("SELECT id FROM posts")
        assert {id for (id,) in posts} == set(model.ids(model.posts, "live"))
        posts = self.query("SELECT id FROM deleted_posts")
        assert {id for (id,) in posts} == set(model.ids(model.posts, "deleted"))
        labels = self.query("SELECT kind, resource_id FROM labels")
        expected = {(1, id) for id in model.ids(model.posts, "live")}
        expected |= {(3, id) for id in model.ids(model.posts, "deleted")}
        for kind, state in ((2, "live"), (4, "deleted")):
            of_state = model.ids(model.comments, state)
            expected |= {(kind, id) for id in of_state if model.comments[id].message.labels}
        assert set(labels) == expected
        revisions = {id for (id,) in self.query("SELECT resource_id FROM revisions WHERE kind = 2")}
        assert revisions <= {id for id, it in model.comments.items() if it.state != "gone"}

    def teardown(self) -> None:
        """Finished, deleted and purged, nothing is left."""
        self.finish_steps()
        self.check_everything()
        for id in self.model.ids(self.model.posts, "live"):
            self.delete_posts([id], force=True)
        self.finish_steps()
        self.check_everything()
        self.direct.run(self.direct.steps.purge(2**62))
        self.finish_steps()
        for table in (*TABLES, "labels"):
            assert not self.pending(table), table


def test_server_agrees_with_the_model_of_deletions(direct: DirectServer, database_url: str) -> None:
    """Whatever is deleted, restored and purged, and however many transactions that takes."""
    engine = sync_engine(database_url)
    try:
        run_state_machine_as_test(
            partial(Deletions, direct, engine),
            settings=settings(max_examples=settings().max_examples // 4),
        )
    finally:
        engine.dispose()
