"""The order of an import, and how records become acceptable for the service."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storeapi.formats import ImportedRecord, Record, Report

from tests.support.imported_files import changed, left_out, spooled

START = datetime(2024, 1, 1, tzinfo=UTC)


def post(id: str = "p", **fields: Any) -> Record:
    return Record(kind="post", id=id, place=f"post {id}", **{"body": "text", "create_time": START} | fields)


def comment(id: str, reply_to_id: str = "", minutes: int = 0, **fields: Any) -> Record:
    values = {"body": id, "post_id": "p", "create_time": START + timedelta(minutes=minutes)} | fields
    return Record(kind="comment", id=id, place=f"comment {id}", reply_to_id=reply_to_id, **values)


def imported(*records: Record) -> tuple[dict[str, ImportedRecord], Report]:
    """The imported comments by their ids, in the order of the import."""
    report = Report()
    done = spooled(records, "x", report)
    return {it.external_id.removeprefix("x:"): it for it in done if it.kind == "comment"}, report


def parents(comments: dict[str, ImportedRecord]) -> dict[str, str]:
    return {id: it.reply_to_external_id.removeprefix("x:") for id, it in comments.items()}


def test_comments_are_in_the_order_of_their_times() -> None:
    comments, _ = imported(comment("b", minutes=2), post(), comment("a", minutes=1), comment("c", minutes=3))
    assert list(comments) == ["a", "b", "c"]


def test_a_reply_comes_after_its_parent_whatever_the_file_and_the_times_say() -> None:
    comments, _ = imported(
        comment("c", "b", minutes=0),
        comment("b", "a", minutes=1),
        comment("a", minutes=5),
        comment("d", minutes=3),
        post(),
    )
    assert list(comments) == ["d", "a", "b", "c"]
    assert parents(comments) == {"d": "", "a": "", "b": "a", "c": "b"}


def test_comments_without_a_time_come_last() -> None:
    comments, report = imported(
        post(), comment("a", create_time=None), comment("b", minutes=9), comment("c", "a")
    )
    assert list(comments) == ["b", "a", "c"]
    assert changed(report) == {
        "comment: without a valid time, so it gets the time of the import": ["comment a"]
    }


def test_an_update_is_not_before_the_create() -> None:
    comments, _ = imported(
        post(),
        comment("a", minutes=5, update_time=START),
        comment("b", minutes=5, update_time=START + timedelta(minutes=6)),
        comment("c", create_time=None, update_time=START),
    )
    times = [it.update_time and (it.update_time - START) // timedelta(minutes=1) for it in comments.values()]
    assert times == [5, 6, None]


def test_replies_to_each_other_are_at_the_top_level() -> None:
    comments, report = imported(post(), comment("a", "b"), comment("b", "a"), comment("c", "c"), comment("d"))
    assert parents(comments) == {"a": "", "b": "", "c": "", "d": ""}
    description = "comment: at the top level, because it is a reply to itself or to its replies"
    assert changed(report) == {description: ["comment a", "comment b", "comment c"]}


def test_replies_below_the_maximum_depth_move_up() -> None:
    chain = [comment(str(it), str(it - 1) if it else "") for it in range(70)]
    comments, report = imported(post(), *chain)
    assert parents(comments)["64"] == "63"
    assert {parents(comments)[str(it)] for it in range(65, 70)} == {"63"}
    (entry,) = report.changed.values()
    assert (entry.count, entry.examples) == (5, ["comment 65", "comment 66", "comment 67"])


def test_deleted_comments_are_kept_only_above_others() -> None:
    comments, report = imported(
        post(),
        comment("a", is_deleted=True, author="Ann", labels={"rating": "5"}),
        comment("b", "a", is_deleted=True),
        comment("c", "b"),
        comment("d", "c", is_deleted=True),
        comment("e", "d", is_deleted=True),
    )
    assert parents(comments) == {"a": "", "b": "a", "c": "b"}
    assert (comments["a"].body, comments["a"].author) == ("deleted", "")
    assert comments["a"].labels == {"source": "x", "status": "deleted"}
    assert left_out(report) == {"comment: deleted, without replies": ["comment e", "comment d"]}


def test_the_first_of_two_with_the_same_id_counts() -> None:
    comments, report = imported(post(), post(body="again"), comment("a"), comment("a", body="again"))
    assert comments["a"].body == "a"
    assert left_out(report) == {
        "comment: an earlier one has the same id": ["comment a"],
        "post: an earlier one has the same id": ["post p"],
    }


def test_a_repeated_post_is_one_with_the_earliest_time() -> None:
    report = Report()
    times = [START + timedelta(days=1), START, START + timedelta(days=2)]
    repeated = [post(is_repeated=True, create_time=time) for time in times]
    (one,) = spooled(repeated, "x", report)
    assert one.create_time == START
    assert (report.counts, report.left_out) == ({"read": {"post": 1, "comment": 0}}, {})


def test_texts_are_cut_at_the_limits_of_the_service() -> None:
    records = [
        post(
            title="é" * 200,
            url="https://x.example/" + "y" * 250,
            labels={"k": "v" * 257, "e": "", "l": "a\nb"},
        ),
        comment("a", body="x" + "🎉" * 20_000, author="ß" * 200),
    ]
    report = Report()
    one, other = spooled(records, "x", report)
    assert one.labels == {"source": "x", "title": "é" * 128, "l": "a b"}
    assert (other.body, other.author) == ("x" + "🎉" * 16_383, "ß" * 128)
    assert changed(report) == {
        "comment: author cut after 256 bytes": ["comment a"],
        "comment: text cut after 65,536 bytes": ["comment a"],
        "post: label k left out: more than 256 bytes": ["post p"],
        "post: label url left out: more than 256 bytes": ["post p"],
        "post: title cut after 256 bytes": ["post p"],
    }


def test_a_long_id_becomes_a_hash_and_replies_still_find_it() -> None:
    long = "https://x.example/" + "ü" * 200
    records = [post(long), comment("a\n", post_id=long), comment("b", "a\n", post_id=long)]
    one, parent, reply = spooled(records, "x", Report())
    assert len(one.external_id) == len("x:sha256:") + 64
    assert parent.external_id.startswith("x:sha256:")
    assert reply.post_external_id == one.external_id
    assert reply.reply_to_external_id == parent.external_id


@pytest.mark.parametrize("author", ["a@b.example", "Ann <a@b.example>", "192.0.2.1", "2001:db8::1"])
def test_an_author_that_is_an_address_is_left_out(author: str) -> None:
    comments, report = imported(post(), comment("a", author=author))
    assert comments["a"].author == ""
    assert changed(report) == {"comment: author left out: an e-mail address or IP address": ["comment a"]}


def test_what_has_no_id_or_no_text_is_left_out() -> None:
    comments, report = imported(post(), comment(""), comment("a", body=" \n"), comment("b", "a"))
    assert parents(comments) == {"b": ""}
    assert left_out(report) == {
        "comment: without an id": ["comment "],
        "comment: without text": ["comment a"],
    }


def test_a_post_without_anything_gets_its_external_id_as_text() -> None:
    (one,) = spooled([post(body="")], "x", Report())
    assert one.body == "x:p"


texts = st.text(st.characters(codec=None), max_size=40)
ids = st.sampled_from(["", "a", "b", "c", "d", "e", "\x00", "\ud800"])
times = st.none() | st.datetimes(timezones=st.just(UTC))


@given(
    st.lists(
        st.builds(
            Record,
            kind=st.sampled_from(["post", "comment"]),
            id=ids,
            place=texts,
            body=texts,
            title=texts,
            url=texts,
            author=texts,
            create_time=times,
            update_time=times,
            labels=st.dictionaries(st.sampled_from(["status", "type"]), texts),
            post_id=ids,
            reply_to_id=ids,
            is_deleted=st.booleans(),
            needs_comments=st.booleans(),
            is_repeated=st.booleans(),
        ),
        max_size=30,
    )
)
def test_any_records_become_an_import_in_a_possible_order(records: list[Record]) -> None:
    report = Report()
    posts: set[str] = set()
    comments: dict[str, str] = {}
    for it in spooled(records, "x", report):
        assert it.body.strip()
        "".join([it.body, it.author, it.external_id, *it.labels.values()]).encode()
        assert "\x00" not in it.body
        assert not any(ord(c) < 32 for c in "".join([it.author, it.external_id, *it.labels.values()]))
        if it.kind == "post":
            assert it.external_id not in posts
            posts.add(it.external_id)
        else:
            assert it.external_id not in comments
            assert it.post_external_id in posts
            assert it.reply_to_external_id == "" or comments[it.reply_to_external_id] == it.post_external_id
            comments[it.external_id] = it.post_external_id
    read = report.counts.get("read", {"post": 0, "comment": 0})
    for kind, done in (("post", len(posts)), ("comment", len(comments))):
        missing = sum(entry.count for (of, _), entry in report.left_out.items() if of == kind)
        assert read[kind] == done + missing
