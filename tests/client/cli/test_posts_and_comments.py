"""`storeapi posts` and `storeapi comments`: what they do and print."""

import json
import uuid
from typing import Any

import pytest
from google.protobuf import json_format
from storeapi import CommentDraft, StoreClient
from storeapi.v1 import comments_pb2, posts_pb2

from tests.support.storeapi_command import StoreapiCommand


def ids(records: list[dict[str, Any]]) -> list[int]:
    return [record["id"] for record in records]


def test_post_is_created_read_updated_and_deleted(storeapi: StoreapiCommand) -> None:
    """Each command prints the post after the operation, or the deleted post."""
    (created,) = storeapi.json("posts", "create", "first")
    id = str(created["id"])
    (read,) = storeapi.json("posts", "get", id)
    (updated,) = storeapi.json("posts", "update", id, "second")
    (deleted,) = storeapi.json("posts", "delete", id)

    assert read == created
    assert (created["body"], updated["body"]) == ("first", "second")
    assert updated["etag"] != created["etag"]
    assert deleted == updated
    assert storeapi("posts", "get", id).exit_code == 3


def test_comment_is_created_read_updated_and_deleted(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """As for posts, with the id of the post."""
    post = store.posts.create(body="a post")
    (created,) = storeapi.json("comments", "create", str(post.id), "first")
    id = str(created["id"])
    (read,) = storeapi.json("comments", "get", id)
    (updated,) = storeapi.json("comments", "update", id, "second")
    (deleted,) = storeapi.json("comments", "delete", id)

    assert read == created
    assert (created["post_id"], created["body"], updated["body"]) == (post.id, "first", "second")
    assert deleted == updated
    assert storeapi("comments", "get", id).exit_code == 3


def test_json_output_uses_proto_json_names_and_values(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """Names in snake_case, times in RFC 3339, unset ones null. Ids are numbers; proto JSON writes strings."""
    fields: Any = {"author": "ann", "labels": {"status": "new", "u/x": "ü"}}
    post = store.posts.create(body="ü\n", **fields, external_id=uuid.uuid4().hex)
    comment = store.comments.create(post_id=post.id, body="b")
    reply_to_id = comment.id
    comment = store.comments.create(
        post_id=post.id, body="b", **fields, external_id=uuid.uuid4().hex, reply_to_id=reply_to_id
    )

    messages = [
        (storeapi.json("posts", "get", str(post.id)), posts_pb2.Post()),
        (storeapi.json("comments", "get", str(comment.id)), comments_pb2.Comment()),
    ]
    for (record,), message in messages:
        json_format.ParseDict(record, message)
        again = json_format.MessageToDict(message, preserving_proto_field_name=True)
        unset = {name for name, value in record.items() if value is None}
        assert unset == {"delete_time", "purge_time"}
        assert set(record) == set(again) | unset == {field.name for field in message.DESCRIPTOR.fields}
        assert message.id == record["id"]
        assert message.create_time.ToDatetime().isoformat() + "Z" == record["create_time"]


def test_options_of_create_set_the_fields(storeapi: StoreapiCommand) -> None:
    """For posts and comments. --label is repeatable, and its value may contain "=" and be empty."""
    name = uuid.uuid4().hex
    options = ["--author", "ann", "--label", "status=a=b", "--label", "lang=", "--external-id", name]
    (post,) = storeapi.json("posts", "create", "a", *options)
    (comment,) = storeapi.json("comments", "create", str(post["id"]), "b", *options)
    (reply,) = storeapi.json("comments", "create", str(post["id"]), "c", "--reply-to", str(comment["id"]))

    for record in (post, comment):
        assert (record["author"], record["external_id"]) == ("ann", name)
        assert record["labels"] == {"status": "a=b", "lang": ""}
    assert (reply["reply_to_id"], reply["depth"]) == (comment["id"], 1)
    assert (reply["author"], reply["labels"], reply["external_id"]) == ("", {}, "")


def test_return_existing_prints_the_existing_post(storeapi: StoreapiCommand) -> None:
    """Without it, a used external id is a conflict."""
    name = uuid.uuid4().hex
    (first,) = storeapi.json("posts", "create", "a", "--external-id", name)
    (second,) = storeapi.json("posts", "create", "b", "--external-id", name, "--return-existing")
    refused = storeapi("posts", "create", "b", "--external-id", name)

    assert second == first
    assert refused.exit_code == 4
    assert "EXTERNAL_ID_TAKEN" in refused.stderr
    assert "has this --external-id; add --return-existing" in refused.stderr


@pytest.mark.parametrize("kind", ["posts", "comments"])
def test_update_changes_only_what_is_given(storeapi: StoreapiCommand, store: StoreClient, kind: str) -> None:
    """BODY is optional, and labels are set and removed one by one."""
    old: Any = store.posts.create("a", author="ann", labels={"status": "new", "lang": "en"})
    if kind == "comments":
        old = store.comments.create(
            post_id=old.id, body="a", author="ann", labels={"status": "new", "lang": "en"}
        )
    id = str(old.id)
    (labelled,) = storeapi.json(
        kind, "update", id, "--set-label", "status=hidden", "--set-label", "x=", "--remove-label", "lang"
    )
    (changed,) = storeapi.json(kind, "update", id, "b", "--author", "")

    assert (labelled["body"], labelled["author"]) == ("a", "ann")
    assert labelled["labels"] == changed["labels"] == {"status": "hidden", "x": ""}
    assert (changed["body"], changed["author"]) == ("b", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "update requires BODY or an option"),
        (["--set-label", "status"], "'status' is not KEY=VALUE"),
        (["--set-label", "a=b", "--set-label", "a=c"], "'a' is given twice"),
        (["--set-label", "a=b", "--remove-label", "a"], "'a' is in --set-label and in --remove-label"),
        (["--set-label", "a=\udcff"], "UTF-8"),
    ],
)
def test_invalid_options_of_update_are_usage_errors(
    storeapi: StoreapiCommand, options: list[str], words: str
) -> None:
    """Nothing is sent."""
    done = storeapi("posts", "update", "987654321", *options)

    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.parametrize("arguments", [["posts", "create", "-"], ["posts", "update", "ID", "-"]])
def test_body_is_read_unchanged_from_stdin(
    storeapi: StoreapiCommand, store: StoreClient, arguments: list[str]
) -> None:
    """With all line ends."""
    id = str(store.posts.create(body="a post").id)
    body = "one\r\ntwo\n\nü three\n"
    (record,) = storeapi.json(*(id if it == "ID" else it for it in arguments), stdin=body.encode())

    assert record["body"] == body


def test_body_that_is_not_utf8_is_a_usage_error(storeapi: StoreapiCommand) -> None:
    """From stdin and as an argument, where Python substitutes surrogates."""
    from_stdin = storeapi("posts", "create", "-", stdin=b"\xff\xfe")
    as_argument = storeapi("posts", "create", "\udcff")

    for done in (from_stdin, as_argument):
        assert done.exit_code == 2
        assert "UTF-8" in done.stderr


def test_body_may_start_with_a_dash(storeapi: StoreapiCommand) -> None:
    """After two dashes."""
    assert storeapi.json("posts", "create", "--", "-x")[0]["body"] == "-x"


def test_lists_are_complete_without_limit(storeapi: StoreapiCommand, empty_store: StoreClient) -> None:
    """Over several pages, in either order."""
    posts = [post.id for post in empty_store.posts.create_many([str(n) for n in range(7)])]

    assert ids(storeapi.json("posts", "list", "--page-size", "2")) == posts
    assert ids(storeapi.json("posts", "list", "--limit", "3")) == posts[:3]
    assert ids(storeapi.json("posts", "list", "--limit", "5", "--page-size", "2")) == posts[:5]
    assert ids(storeapi.json("posts", "list", "--order-by", "id-desc")) == posts[::-1]
    assert storeapi.json("posts", "list", "--limit", "0") == []
    assert ids(storeapi.json("posts", "list", "--all")) == posts


def test_post_option_selects_the_comments_of_one_post(
    storeapi: StoreapiCommand, empty_store: StoreClient
) -> None:
    """Without --post all comments are listed."""
    first, second = empty_store.posts.create_many(["a", "b"])
    on_first = empty_store.comments.create(post_id=first.id, body="c").id
    on_second = empty_store.comments.create(post_id=second.id, body="d").id

    assert ids(storeapi.json("comments", "list")) == [on_first, on_second]
    assert ids(storeapi.json("comments", "list", "--post", str(second.id))) == [on_second]
    assert ids(storeapi.json("comments", "list", "--order-by", "id-desc", "--limit", "1")) == [on_second]


def test_batch_get_returns_all_in_requested_order_or_none(
    storeapi: StoreapiCommand, store: StoreClient
) -> None:
    """If one id is missing, the error names it and nothing is printed."""
    first, second = (str(post.id) for post in store.posts.create_many(["a", "b"]))
    missing = storeapi("posts", "get", first, "987654321", second)

    assert ids(storeapi.json("posts", "get", second, first)) == [int(second), int(first)]
    assert (missing.exit_code, missing.stdout) == (3, "")
    assert "987654321" in missing.stderr


@pytest.mark.parametrize("command", ["update", "delete"])
def test_etag_guards_a_write(storeapi: StoreapiCommand, store: StoreClient, command: str) -> None:
    """A stale etag is a conflict; the current etag is accepted."""
    post = store.posts.create(body="a")
    newer = store.posts.update(post.id, body="b")
    body = ["c"] if command == "update" else []
    stale = storeapi("posts", command, str(post.id), *body, "--etag", post.etag)

    assert stale.exit_code == 4
    assert "ETAG_MISMATCH" in stale.stderr
    assert storeapi("posts", command, str(post.id), *body, "--etag", newer.etag).exit_code == 0


def test_etag_with_several_ids_is_a_usage_error(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """Nothing is deleted."""
    post = store.posts.create(body="a")
    done = storeapi("posts", "delete", str(post.id), "5", "--etag", post.etag)

    assert done.exit_code == 2
    assert store.posts.get(post.id) == post


def test_post_with_comments_is_deleted_only_with_force(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """Without --force it is a conflict."""
    post = store.posts.create(body="a")
    comment = store.comments.create(post_id=post.id, body="b")
    refused = storeapi("posts", "delete", str(post.id))
    forced = storeapi("posts", "delete", str(post.id), "--force")

    assert (refused.exit_code, forced.exit_code) == (4, 0)
    assert "POST_HAS_COMMENTS" in refused.stderr
    assert storeapi("comments", "get", str(comment.id)).exit_code == 3


@pytest.mark.parametrize("kind", ["posts", "comments"])
@pytest.mark.parametrize("etag", [[], ["--etag", "an etag"]])
def test_allow_missing_ignores_missing_resources(
    storeapi: StoreapiCommand, kind: str, etag: list[str]
) -> None:
    """The delete prints only what it deleted."""
    assert storeapi(kind, "delete", "987654321", *etag).exit_code == 3
    assert storeapi.json(kind, "delete", "987654321", "--allow-missing", *etag) == []


def test_counts_are_printed_in_requested_order(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """As a table and as lines; a missing post has no comments."""
    post = store.posts.create(body="a")
    store.comments.create_many(CommentDraft(post_id=post.id, body="b") for _ in range(3))

    assert storeapi.json("comments", "count", "987654321", str(post.id)) == [
        {"post_id": 987654321, "comment_count": 0},
        {"post_id": post.id, "comment_count": 3},
    ]
    assert storeapi("comments", "count", str(post.id)).stdout == f"{post.id}\t3\n"


def test_counts_stop_at_a_number(storeapi: StoreapiCommand, empty_store: StoreClient) -> None:
    """That of posts, of the comments of a post and of all posts, and of replies."""
    post = empty_store.posts.create(body="a")
    empty_store.posts.create(body="another")
    first = empty_store.comments.create(post_id=post.id, body="b")
    for _ in range(3):
        empty_store.comments.create(post_id=post.id, body="reply", reply_to_id=first.id)

    limit = ("--max-count", "2")
    assert storeapi("posts", "count", "--max-count", "1").stdout == "1\n"
    assert storeapi("comments", "count", *limit).stdout == "2\n"
    assert storeapi("comments", "count", *limit, str(post.id)).stdout == f"{post.id}\t2\n"
    assert storeapi("comments", "count-replies", *limit, str(first.id)).stdout == f"{first.id}\t2\n"


@pytest.fixture
def thread(empty_store: StoreClient) -> dict[str, int]:
    """A post with comments of two authors: ids by name."""
    post = empty_store.posts.create("a post", author="ann", labels={"status": "new", "lang": "en"})
    other = empty_store.posts.create("another", author="bob", labels={"status": "new"})
    create = empty_store.comments.create
    first = create(post_id=post.id, body="first", author="ann", labels={"status": "hidden"})
    second = create(post_id=post.id, body="second", author="bob")
    reply = create(post_id=post.id, body="reply", author="bob", reply_to_id=first.id)
    return {"post": post.id, "other": other.id, "first": first.id, "second": second.id, "reply": reply.id}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["posts"], ["post", "other"]),
        (["posts", "--author", "ann"], ["post"]),
        (["posts", "--label", "status=new"], ["post", "other"]),
        (["posts", "--label", "status=new", "--label", "lang=en"], ["post"]),
        (["posts", "--label", "status="], []),
        (
            ["posts", "--created-from", "2000-01-01", "--created-before", "2999-01-01T00:00:00Z"],
            ["post", "other"],
        ),
        (["posts", "--created-before", "2000-01-01T00:00:00+02:00"], []),
        (["posts", "--order-by", "create-time-desc"], ["other", "post"]),
        (["comments", "--author", "bob"], ["second", "reply"]),
        (["comments", "--author", "bob", "--reply-to", "0"], ["second"]),
        (["comments", "--label", "status=hidden"], ["first"]),
        (["comments", "--post", "{post}", "--order-by", "thread"], ["first", "reply", "second"]),
        (["comments", "--post", "{post}", "--order-by", "thread-desc"], ["second", "first", "reply"]),
        (["comments", "--post", "{other}", "--order-by", "thread"], []),
    ],
)
def test_list_prints_what_matches(
    storeapi: StoreapiCommand, thread: dict[str, int], options: list[str], names: list[str]
) -> None:
    """In the given order. A time without an offset is in UTC."""
    kind, *rest = (option.format(**thread) for option in options)

    assert ids(storeapi.json(kind, "list", *rest)) == [thread[name] for name in names]
    if not {"--order-by", "--post"} & set(rest):
        (count,) = storeapi.json(kind, "count", *rest)
        assert count == {f"{kind[:-1]}_count": len(names)}
        assert storeapi(kind, "count", *rest).stdout == f"{len(names)}\n"


def test_counts_of_posts_and_comments_take_filters(storeapi: StoreapiCommand, thread: dict[str, int]) -> None:
    """One number for each id, in the requested order."""
    first, second = thread["first"], thread["second"]

    assert storeapi.json("comments", "count", str(thread["post"]), "--author", "bob") == [
        {"post_id": thread["post"], "comment_count": 2}
    ]
    assert storeapi.json("comments", "count-replies", str(second), str(first)) == [
        {"comment_id": second, "reply_count": 0},
        {"comment_id": first, "reply_count": 1},
    ]
    assert storeapi("comments", "count-replies", str(first), "--author", "ann").stdout == f"{first}\t0\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["comments", "list", "--order-by", "thread"], "--order-by thread requires --post"),
        (["posts", "list", "--order-by", "thread"], "'thread' is not one of"),
        (["posts", "list", "--created-from", "yesterday"], "'yesterday' is not a time such as"),
        (["posts", "count", "--label", "status"], "'status' is not KEY=VALUE"),
        (["watch", "--author", "\udcff"], "UTF-8"),
    ],
)
def test_invalid_selection_is_a_usage_error(
    storeapi: StoreapiCommand, arguments: list[str], words: str
) -> None:
    """Nothing is sent."""
    done = storeapi(*arguments)

    assert done.exit_code == 2
    assert words in done.stderr


def test_write_with_request_id_is_done_once(storeapi: StoreapiCommand) -> None:
    """Repeated calls with the same id change nothing."""
    id = str(uuid.uuid4())
    first = storeapi.json("posts", "create", "a", "--request-id", id)
    again = storeapi.json("posts", "create", "a", "--request-id", id)

    assert first == again
    assert storeapi("posts", "create", "b", "--request-id", id).exit_code == 4
    assert storeapi("posts", "create", "b", "--request-id", "no UUID").exit_code == 2


def test_piped_output_keeps_its_fields(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """Without a terminal: one line per resource, tabs between fields, control characters escaped."""
    post = store.posts.create(body="a\tb\\n\nc\x1b[31m")
    line = storeapi("posts", "get", str(post.id)).stdout
    fields = line.removesuffix("\n").split("\t")
    labelled = store.posts.create(
        body="a", author="ann", labels={"b": "c=\\", "a": ""}, external_id=uuid.uuid4().hex
    )
    reply_to_id = store.comments.create(post_id=post.id, body="b").id
    store.comments.create(post_id=post.id, body="b", reply_to_id=reply_to_id)
    comments = storeapi("comments", "list", "--post", str(post.id)).stdout.splitlines()

    assert fields[0] == str(post.id)
    assert fields[3] == post.etag
    assert fields[4] == "a\\tb\\\\n\\nc\\x1b[31m"
    assert fields[5:] == ["", "", "", "", ""]
    last = storeapi("posts", "get", str(labelled.id)).stdout.removesuffix("\n").split("\t")[5:]
    assert last == ["ann", '{"a": "", "b": "c=\\\\\\\\"}', labelled.external_id, "", ""]
    assert [line.split("\t")[6:] for line in comments] == [
        ["", "", "", "0", "0", "", ""],
        ["", "", "", str(reply_to_id), "1", "", ""],
    ]


def test_json_output_is_utf8_and_one_line(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """In every locale."""
    post = store.posts.create(body="ü日本\n\u2028語")
    storeapi.environment["PYTHONIOENCODING"] = "latin-1"
    as_json = storeapi.process("--json", "posts", "get", str(post.id))
    as_text = storeapi.process("posts", "get", str(post.id))

    assert json.loads(as_json[1].removesuffix("\n"))["body"] == post.body
    assert (as_text[0], as_text[2]) == (0, "")
    assert "\\u65e5" in as_text[1]
