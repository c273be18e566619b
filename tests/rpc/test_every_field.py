"""No field of a request is ignored: each is honoured, or the call is refused.

The fields are read from the descriptors, so a new one fails here until `PROOFS` says what it does. A
proof is a request with the field set, and what comes of it with and without that field. Both requests
are sent, to servers whose databases hold the same.
"""

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from storeapi.v1 import changes_pb2 as pb
from storeapi.v1 import comments_pb2, transfer_pb2

from store_service.config import Config
from store_service.model import Position, Query, ResourceKind, ResumePoint
from store_service.server import serving
from store_service.service import page_tokens, resume_tokens, transfer_cursor
from tests.support.contract import METHODS, method_path, request_class, response_class
from tests.support.database import Contents, database_contents, query
from tests.support.errors import received_error
from tests.support.stubs import Stubs
from tests.support.transfer import import_stream

WHOLE = {"google.protobuf.Timestamp", "google.protobuf.FieldMask"}
"""Messages that are one value; their own fields have no meaning of ours."""

BY_NAME = {method.name: method for method in METHODS}


def fields_of(message: Descriptor, path: str) -> Iterator[str]:
    """Every field of a message and of the messages in it: Method.field.field, Method.field[].field."""
    for field in message.fields:
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        name = f"{path}.{field.name}" + (
            "[]" if field.is_repeated and field.message_type and not is_map else ""
        )
        yield name
        if field.message_type is not None and not is_map and field.message_type.full_name not in WHOLE:
            yield from fields_of(field.message_type, name)


FIELDS = [name for method in METHODS for name in fields_of(method.input_type, method.name)]


@dataclass(frozen=True)
class Proof:
    """What a field does."""

    request: dict[str, Any]
    """A request with the field set."""
    set: str
    """What comes of it."""
    unset: str
    """What comes of the same request without the field."""


# Every database holds the posts 1 to 3; post 1 has the comments 1 and 2. All are as they were created. Post 2
# and comment 2 have an author, a label and an external id, and comment 2 is a reply to comment 1. Post 2 and
# comment 2 also have two former versions. Post 8 and comment 8, another reply to comment 1, are deleted, have
# one former version, and can be restored.
# The feed tells of the last of each alone.

STORE_ID = "the store of these tests"

TOLD_AT = time.time_ns() // 1000
"""When the changes were made, in microseconds."""

KNOWN_REQUESTS = {
    "post": "7f3c9c8e-0d5c-4f2b-9c59-2b5a4c2a8d01",
    "comment": "7f3c9c8e-0d5c-4f2b-9c59-2b5a4c2a8d02",
}
"""Ids of requests that made the last post and the last comment."""


@pytest.fixture(scope="module")
def world(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the rows that the proofs speak of."""
    file = Path(shutil.copy(migrated_file, tmp_path_factory.mktemp("world") / "store.db"))
    connection = sqlite3.connect(file)
    with connection:
        connection.executemany(
            "INSERT INTO posts (id, body, create_time, update_time) VALUES (?, ?, 1000000, 1000000)",
            [(1, "one"), (2, "two"), (3, "three")],
        )
        connection.executemany(
            "INSERT INTO comments (id, body, post_id, create_time, update_time)"
            " VALUES (?, ?, 1, 1000000, 1000000)",
            [(1, "first"), (2, "not the first")],
        )
        for table in ("posts", "comments"):
            connection.execute(
                f"UPDATE {table} SET author = 'me', labels = ?, external_id = 'x' WHERE id = 2", ['{"k":"v"}']
            )
        connection.execute("UPDATE comments SET reply_to_id = 1, path = ? WHERE id = 2", [f"{1:016x}"])
        former = "INSERT INTO revisions (kind, resource_id, version, body) VALUES (?, ?, ?, 'former')"
        for kind, table in ((ResourceKind.POST, "posts"), (ResourceKind.COMMENT, "comments")):
            connection.execute(f"UPDATE {table} SET version = 3 WHERE id = 2")
            connection.executemany(former, [(kind, 2, 1), (kind, 2, 2), (kind, 8, 1)])
        deleted = "create_time, update_time, version, author, labels, external_id, delete_time, purge_time"
        values = """1000000, 1000000, 2, 'me', '{"k":"v"}', 'd', 2000000, 9000000000000000"""
        connection.execute(f"INSERT INTO deleted_posts (id, body, {deleted}) VALUES (8, 'eight', {values})")
        connection.execute(
            f"INSERT INTO deleted_comments (id, body, post_id, reply_to_id, path, {deleted})"
            f" VALUES (8, 'eighth', 1, 1, ?, {values})",
            [f"{1:016x}"],
        )
        connection.execute("UPDATE feed SET store_id = ?", [STORE_ID])
        connection.executemany(
            "INSERT INTO changes"
            " (seq, xid, action, kind, resource_id, post_id, payload, size, commit_time)"
            " VALUES (?, ?, 2, ?, ?, ?, ?, 1, ?)",
            [
                (1, 1, ResourceKind.POST, 3, 3, json.dumps({"body": "three", "version": 1}), TOLD_AT),
                (2, 2, ResourceKind.COMMENT, 2, 1, json.dumps({"body": "second", "version": 1}), TOLD_AT),
            ],
        )
        times = {"create_time": 1000000, "update_time": 1000000, "version": 1}
        answers = {
            "post": {"id": 3, "body": "three", **times},
            "comment": {"id": 2, "body": "second", "post_id": 1, **times},
        }
        connection.executemany(
            "INSERT INTO requests (id, fingerprint, answer, create_time)"
            " VALUES (?, 'of another request', ?, ?)",
            [
                (KNOWN_REQUESTS[name], json.dumps({"items": [answer], "missing_ids": []}), TOLD_AT)
                for name, answer in answers.items()
            ],
        )
    connection.close()
    return file


def proofs_of_both(name: str, *, new: dict[str, Any], new_id: int) -> dict[str, Proof]:
    """The proofs of what posts and comments have in common; `new` can be created and gets the id `new_id`."""
    title, plural = name.title(), f"{name}s"
    created = f"{name} {new_id}; {name} {new_id} is new"
    created_in_batch = f"{plural} {new_id}; {name} {new_id} is new"
    updated = f"{name} 1; {name} 1 is new"
    updated_in_batch = f"{plural} 1; {name} 1 is new"
    taken = "EXTERNAL_ID_TAKEN"
    deleted = f"{name} 2; {name} 2 gone"
    a_time = {"seconds": 9}
    change = {"id": 1, "body": "new"}

    def creates(**more: Any) -> dict[str, Any]:
        return {name: new | more}

    def updates(**more: Any) -> dict[str, Any]:
        return {name: change | more}

    def refused(request: dict[str, Any], field: str, unset: str) -> Proof:
        return Proof(request, set=f"FIELD_INVALID {field}", unset=unset)

    def known_request(request: dict[str, Any], unset: str) -> Proof:
        known = request | {"request_id": KNOWN_REQUESTS[name]}
        return Proof(known, set="REQUEST_ID_REUSED request_id", unset=unset)

    def needed(request: dict[str, Any], field: str, set: str) -> Proof:
        return Proof(request, set=set, unset=f"FIELD_INVALID {field}")

    token = page_tokens.make(Query(resource=plural), 1)  # type: ignore[arg-type]  # posts or comments
    former = page_tokens.make(Query(resource=f"{name} revisions", post_id=2), 2)  # type: ignore[arg-type]  # one of both
    not_found = f"{name.upper()}_NOT_FOUND"
    restored = {"post": "post 8; post 8 is eight", "comment": "comment 8; comment 8 is eighth"}[name]
    restored += ' by me with {"k":"v"}'
    all_of_them = {"post": "posts 1 2 3; no change", "comment": "comments 1 2; no change"}[name]
    proofs = {
        "Create.resource": needed(creates(), name, created),
        "Create.resource.id": refused(creates(id=9), f"{name}.id", created),
        "Create.resource.body": needed(creates(), f"{name}.body", created),
        "Create.resource.create_time": refused(creates(create_time=a_time), f"{name}.create_time", created),
        "Create.resource.update_time": refused(creates(update_time=a_time), f"{name}.update_time", created),
        "Create.resource.delete_time": refused(creates(delete_time=a_time), f"{name}.delete_time", created),
        "Create.resource.purge_time": refused(creates(purge_time=a_time), f"{name}.purge_time", created),
        "Create.resource.etag": refused(creates(etag="v1"), f"{name}.etag", created),
        "Create.resource.author": Proof(creates(author="me"), f"{created} by me", created),
        "Create.resource.labels": Proof(creates(labels={"a": "b"}), f'{created} with {{"a":"b"}}', created),
        "Create.resource.external_id": Proof(creates(external_id="x"), taken, created),
        "Create.return_existing": Proof(
            creates(external_id="x") | {"return_existing": True}, f"{name} 2; no change", taken
        ),
        "Create.request_id": known_request(creates(), created),
        "Create.validate_only": Proof(creates() | {"validate_only": True}, "no id; no change", created),
        "Get.id": needed({"id": 2}, "id", f"{name} 2; no change"),
        "Get.external_id": needed({"external_id": "x"}, "id", f"{name} 2; no change"),
        "Get.show_deleted": Proof({"id": 8, "show_deleted": True}, f"{name} 8; no change", not_found),
        "List.page_size": Proof({"page_size": 1}, f"{plural} 1, more; no change", all_of_them),
        "List.page_token": Proof({"page_token": token}, all_of_them.replace(" 1", ""), all_of_them),
        "List.order_by": Proof(
            {"order_by": "id desc"},
            {"post": "posts 3 2 1; no change", "comment": "comments 2 1; no change"}[name],
            all_of_them,
        ),
        "Update.resource": needed(updates(), name, updated),
        "Update.resource.id": needed(updates(), f"{name}.id", updated),
        "Update.resource.body": needed(updates(), name, updated),
        "Update.resource.author": Proof(updates(author="me"), f"{updated} by me", updated),
        "Update.resource.labels": Proof(updates(labels={"a": "b"}), f'{updated} with {{"a":"b"}}', updated),
        "Update.resource.external_id": Proof(
            updates(external_id="y"), f"FIELD_IMMUTABLE {name}.external_id", updated
        ),
        "Update.resource.create_time": Proof(
            updates(create_time=a_time), f"FIELD_IMMUTABLE {name}.create_time", updated
        ),
        "Update.resource.update_time": Proof(
            updates(update_time=a_time), f"FIELD_IMMUTABLE {name}.update_time", updated
        ),
        "Update.resource.delete_time": Proof(
            updates(delete_time=a_time), f"FIELD_IMMUTABLE {name}.delete_time", updated
        ),
        "Update.resource.purge_time": Proof(
            updates(purge_time=a_time), f"FIELD_IMMUTABLE {name}.purge_time", updated
        ),
        "Update.resource.etag": Proof(updates(etag="v9"), "ETAG_MISMATCH", updated),
        "Update.update_mask": Proof(
            updates(create_time=a_time) | {"update_mask": {"paths": ["body"]}},
            updated,
            f"FIELD_IMMUTABLE {name}.create_time",
        ),
        "Update.request_id": known_request(updates(), updated),
        "Update.validate_only": Proof(updates() | {"validate_only": True}, f"{name} 1; no change", updated),
        "Delete.id": needed({"id": 2}, "id", deleted),
        "Delete.etag": Proof({"id": 2, "etag": "v9"}, "ETAG_MISMATCH", deleted),
        "Delete.allow_missing": Proof(
            {"id": 9, "allow_missing": True}, f"{name} 9; no change", f"{name.upper()}_NOT_FOUND"
        ),
        "Delete.request_id": known_request({"id": 2}, deleted),
        "Delete.validate_only": Proof({"id": 2, "validate_only": True}, f"{name} 2; no change", deleted),
        "Undelete.id": needed({"id": 8}, "id", restored),
        "Undelete.request_id": known_request({"id": 8}, restored),
        "Undelete.validate_only": Proof({"id": 8, "validate_only": True}, f"{name} 8; no change", restored),
        "ListRevisions.id": needed({"id": 2}, "id", f"{plural} 2 2; no change"),
        "ListRevisions.page_size": Proof(
            {"id": 2, "page_size": 1}, f"{plural} 2, more; no change", f"{plural} 2 2; no change"
        ),
        "ListRevisions.page_token": Proof(
            {"id": 2, "page_token": former}, f"{plural} 2; no change", f"{plural} 2 2; no change"
        ),
        "ListRevisions.show_deleted": Proof(
            {"id": 8, "show_deleted": True}, f"{plural} 8; no change", not_found
        ),
        "BatchGet.show_deleted": Proof(
            {"ids": [8], "show_deleted": True}, f"{plural} 8; no change", not_found
        ),
        "BatchGet.ids": Proof({"ids": [2, 1]}, f"{plural} 2 1; no change", "BATCH_EMPTY ids"),
        "BatchGet.external_ids": Proof(
            {"ids": [1], "external_ids": ["x"]}, f"{plural} 1 2; no change", f"{plural} 1; no change"
        ),
        "BatchGet.allow_missing": Proof(
            {"ids": [1, 9], "allow_missing": True},
            f"{plural} 1, missing 9; no change",
            f"{name.upper()}_NOT_FOUND",
        ),
        "BatchCreate.requests[]": Proof({"requests": [creates()]}, created_in_batch, "BATCH_EMPTY requests"),
        "BatchCreate.request_id": known_request({"requests": [creates()]}, created_in_batch),
        "BatchCreate.validate_only": Proof(
            {"requests": [creates()], "validate_only": True}, f"{plural} 0; no change", created_in_batch
        ),
        "BatchUpdate.requests[]": Proof({"requests": [updates()]}, updated_in_batch, "BATCH_EMPTY requests"),
        "BatchUpdate.request_id": known_request({"requests": [updates()]}, updated_in_batch),
        "BatchUpdate.validate_only": Proof(
            {"requests": [updates()], "validate_only": True}, f"{plural} 1; no change", updated_in_batch
        ),
        "BatchDelete.ids": Proof({"ids": [2]}, f"{plural} 2; {name} 2 gone", "BATCH_EMPTY ids"),
        "BatchDelete.allow_missing": Proof(
            {"ids": [2, 9], "allow_missing": True},
            f"{plural} 2, missing 9; {name} 2 gone",
            f"{name.upper()}_NOT_FOUND",
        ),
        "BatchDelete.request_id": known_request({"ids": [2]}, f"{plural} 2; {name} 2 gone"),
        "BatchDelete.validate_only": Proof(
            {"ids": [2], "validate_only": True}, f"{plural} 2; no change", f"{plural} 2; {name} 2 gone"
        ),
    }
    named = {}
    for path, proof in proofs.items():
        method, rest = path.replace("resource", name).split(".", 1)
        if method == "ListRevisions":
            named[f"List{title}Revisions.{rest}"] = proof
            continue
        ending = title if method in ("Create", "Get", "Update", "Delete", "Undelete") else f"{title}s"
        named[f"{method}{ending}.{rest}"] = proof
    return named


def proofs_inside_batches(proofs: dict[str, Proof], name: str, method: str) -> dict[str, Proof]:
    """Inside a batch the fields of a create or update do what they do alone, and its options are refused."""
    title = name.title()

    def come_to(words: str) -> str:
        if "; " in words:
            return f"{name}s{words.removeprefix(name)}"
        reason, _, field = words.partition(" ")
        return f"{reason} requests[0].{field}" if field else reason

    inside = {}
    for path, proof in proofs.items():
        alone, _, field = path.partition(".")
        if alone != f"{method}{title}":
            continue
        batch = {"requests": [proof.request]}
        path = f"Batch{method}{title}s.requests[].{field}"
        if field in ("request_id", "validate_only"):
            inside[path] = Proof(batch, f"FIELD_INVALID requests[0].{field}", come_to(proof.unset))
        else:
            inside[path] = Proof(batch, come_to(proof.set), come_to(proof.unset))
    return inside


def proofs_of_filter(
    path: str, matching: str, unset: str, *, nothing: str, shown: str, kind: str, **request: Any
) -> dict[str, Proof]:
    """A filter that matches post 2 or comment 2, times that match nothing, and deleted resources."""
    times = {"create_time_from": {"seconds": 2}, "create_time_before": {"seconds": 1}}
    conditions: dict[str, dict[str, Any]] = {"author": {"author": "me"}, "labels": {"labels": {"k": "v"}}}
    if kind == "comment":
        conditions["reply_to_id"] = {"reply_to_id": 1}
    proofs = {
        f"{path}.{name}": Proof({**request, "filter": it}, matching, unset) for name, it in conditions.items()
    }
    proofs |= {
        f"{path}.{name}": Proof({**request, "filter": {name: it}}, nothing, unset)
        for name, it in times.items()
    }
    every = Proof({**request, "filter": {"show_deleted": True}}, shown, unset)
    return proofs | {
        path: Proof({**request, "filter": {"author": "me"}}, matching, unset),
        f"{path}.show_deleted": every,
    }


TOLD_OF_BOTH = "post 3 created, comment 2 created"

# Neither change in the feed has an author, labels or a time. The marker has all of them.
CONDITIONS: dict[str, Any] = {
    "author": "me",
    "labels": {"k": "v"},
    "create_time_from": {"seconds": 1},
    "create_time_before": {"seconds": 2**33},
}


def proofs_of_watch_filter(field: str, left: str, conditions: dict[str, Any]) -> dict[str, Proof]:
    """A filter leaves out the change of its kind."""
    proofs = {
        f"Watch.{field}.{name}": Proof({"earliest": True, field: {name: value}}, left, TOLD_OF_BOTH)
        for name, value in conditions.items()
    }
    posts, comments = ("post 1", "post 2", "post 3"), ("comment 1", "comment 2")
    with_deleted = (
        (*posts, "post 8", *comments) if field == "post_filter" else (*posts, *comments, "comment 8")
    )
    shown, unset = (", ".join(f"{it} there" for it in all) for all in (with_deleted, (*posts, *comments)))
    return proofs | {
        f"Watch.{field}": proofs[f"Watch.{field}.author"],
        f"Watch.{field}.show_deleted": Proof(
            {"initial_state": True, field: {"show_deleted": True}}, shown, unset
        ),
    }


PROOFS_OF_WATCH = {
    "Watch.resume_token": Proof(
        {
            "resume_token": resume_tokens.make(
                STORE_ID, ResumePoint(position=Position(xid=1, seq=1, time=TOLD_AT))
            )
        },
        "comment 2 created",
        "nothing",
    ),
    "Watch.initial_state": Proof(
        {"initial_state": True},
        "post 1 there, post 2 there, post 3 there, comment 1 there, comment 2 there",
        "nothing",
    ),
    "Watch.earliest": Proof({"earliest": True}, TOLD_OF_BOTH, "nothing"),
    "Watch.kinds": Proof(
        {"earliest": True, "kinds": ["RESOURCE_KIND_COMMENT"]}, "comment 2 created", TOLD_OF_BOTH
    ),
    "Watch.post_ids": Proof({"earliest": True, "post_ids": [1]}, "comment 2 created", TOLD_OF_BOTH),
    "Watch.heartbeat_interval": Proof(
        {"heartbeat_interval": {"seconds": 61}}, "FIELD_INVALID heartbeat_interval", "nothing"
    ),
    "Watch.heartbeat_interval.seconds": Proof(
        {"heartbeat_interval": {"seconds": 5}}, "nothing", "FIELD_INVALID heartbeat_interval"
    ),
    "Watch.heartbeat_interval.nanos": Proof(
        {"heartbeat_interval": {"seconds": 60, "nanos": 1}}, "FIELD_INVALID heartbeat_interval", "nothing"
    ),
}

A_POST = {"body": "new"}
A_COMMENT = {"body": "new", "post_id": 2}

PROOFS = (
    proofs_of_both("post", new=A_POST, new_id=4)
    | proofs_of_both("comment", new=A_COMMENT, new_id=3)
    | PROOFS_OF_WATCH
    | proofs_of_watch_filter("post_filter", "comment 2 created", CONDITIONS)
    | proofs_of_watch_filter("comment_filter", "post 3 created", CONDITIONS | {"reply_to_id": 1})
    | {
        "DeletePost.force": Proof(
            {"id": 1, "force": True},
            "post 1; comment 1 gone, comment 2 gone, post 1 gone",
            "POST_HAS_COMMENTS",
        ),
        "BatchDeletePosts.force": Proof(
            {"ids": [1], "force": True},
            "posts 1; comment 1 gone, comment 2 gone, post 1 gone",
            "POST_HAS_COMMENTS",
        ),
        "DeleteComment.force": Proof(
            {"id": 1, "force": True},
            "comment 1; comment 1 gone, comment 2 gone",
            "comment 1; comment 1 is ",
        ),
        "BatchDeleteComments.force": Proof(
            {"ids": [1], "force": True},
            "comments 1; comment 1 gone, comment 2 gone",
            "comments 1; comment 1 is ",
        ),
        "CreateComment.comment.post_id": Proof(
            {"comment": A_COMMENT}, "comment 3; comment 3 is new", "FIELD_INVALID comment.post_id"
        ),
        "UpdateComment.comment.post_id": Proof(
            {"comment": {"id": 1, "body": "new", "post_id": 2}},
            "FIELD_IMMUTABLE comment.post_id",
            "comment 1; comment 1 is new",
        ),
        "CreateComment.comment.reply_to_id": Proof(
            {"comment": A_COMMENT | {"reply_to_id": 1}}, "REPLY_POST_MISMATCH", "comment 3; comment 3 is new"
        ),
        "CreateComment.comment.depth": Proof(
            {"comment": A_COMMENT | {"depth": 1}},
            "FIELD_INVALID comment.depth",
            "comment 3; comment 3 is new",
        ),
        "UpdateComment.comment.reply_to_id": Proof(
            {"comment": {"id": 1, "body": "new", "reply_to_id": 2}},
            "FIELD_IMMUTABLE comment.reply_to_id",
            "comment 1; comment 1 is new",
        ),
        "UpdateComment.comment.depth": Proof(
            {"comment": {"id": 1, "body": "new", "depth": 1}},
            "FIELD_IMMUTABLE comment.depth",
            "comment 1; comment 1 is new",
        ),
        "CountPosts.max_count": Proof({"max_count": 1}, "1 counted; no change", "3 counted; no change"),
        "CountComments.max_count": Proof(
            {"post_ids": [1], "max_count": 1},
            "post 1 has 1, 1 in total; no change",
            "post 1 has 2, 2 in total; no change",
        ),
        "CountReplies.max_count": Proof(
            {"comment_ids": [1], "max_count": -1}, "FIELD_INVALID max_count", "comment 1 has 1; no change"
        ),
        "CountComments.all_posts": Proof(
            {"all_posts": True}, "2 in total; no change", "BATCH_EMPTY post_ids"
        ),
        "CountReplies.comment_ids": Proof(
            {"comment_ids": [1, 2]}, "comment 1 has 1, comment 2 has 0; no change", "BATCH_EMPTY comment_ids"
        ),
        "ListComments.post_id": Proof({"post_id": 2}, "no id; no change", "comments 1 2; no change"),
        "CountComments.post_ids": Proof(
            {"post_ids": [1, 2]}, "post 1 has 2, post 2 has 0, 2 in total; no change", "BATCH_EMPTY post_ids"
        ),
    }
    | proofs_of_filter(
        "ListPosts.filter",
        "posts 2; no change",
        "posts 1 2 3; no change",
        nothing="no id; no change",
        shown="posts 1 2 3 8; no change",
        kind="post",
    )
    | proofs_of_filter(
        "ListComments.filter",
        "comments 2; no change",
        "comments 1 2; no change",
        nothing="no id; no change",
        shown="comments 1 2 8; no change",
        kind="comment",
    )
    | proofs_of_filter(
        "CountPosts.filter",
        "1 counted; no change",
        "3 counted; no change",
        nothing="no id; no change",
        shown="4 counted; no change",
        kind="post",
    )
    | proofs_of_filter(
        "CountComments.filter",
        "post 1 has 1, 1 in total; no change",
        "post 1 has 2, 2 in total; no change",
        nothing="post 1 has 0; no change",
        shown="post 1 has 3, 3 in total; no change",
        kind="comment",
        post_ids=[1],
    )
    | proofs_of_filter(
        "CountReplies.filter",
        "comment 1 has 1; no change",
        "comment 1 has 1; no change",
        nothing="comment 1 has 0; no change",
        shown="comment 1 has 2; no change",
        kind="comment",
        comment_ids=[1],
    )
)
OF_OTHERS = {"comment_ids": [1], "filter": {"author": "other"}}
PROOFS |= {
    "CountReplies.filter": Proof(OF_OTHERS, "comment 1 has 0; no change", "comment 1 has 1; no change"),
    "CountReplies.filter.author": Proof(
        OF_OTHERS, "comment 1 has 0; no change", "comment 1 has 1; no change"
    ),
    "CountReplies.filter.labels": Proof(
        {"comment_ids": [1], "filter": {"labels": {"k": "w"}}},
        "comment 1 has 0; no change",
        "comment 1 has 1; no change",
    ),
    "CountReplies.filter.reply_to_id": Proof(
        {"comment_ids": [1], "filter": {"reply_to_id": 1}},
        "FIELD_INVALID filter.reply_to_id",
        "comment 1 has 1; no change",
    ),
}


def proofs_of_search(name: str, query: str, found: str) -> dict[str, Proof]:
    """A search that finds two resources, the newest of which is number 2."""
    method, request = f"Search{name.title()}s", {"query": query}
    all_of_them, first, second = (f"{name}s {it}; no change" for it in (found, *found.split()))
    search = Query(resource=f"{name}s", order="id desc", search=query)  # type: ignore[arg-type]  # one of both
    token = page_tokens.make(search, int(found.split()[0]))
    filters = proofs_of_filter(
        f"{method}.filter",
        f"{name}s 2; no change",
        all_of_them,
        nothing="no id; no change",
        shown="FIELD_INVALID filter.show_deleted",
        kind=name,
        query=query,
    )
    return filters | {
        f"{method}.query": Proof(request, all_of_them, "FIELD_INVALID query"),
        f"{method}.order_by": Proof({**request, "order_by": "id"}, "FIELD_INVALID order_by", all_of_them),
        f"{method}.page_size": Proof({**request, "page_size": 1}, first.replace(";", ", more;"), all_of_them),
        f"{method}.page_token": Proof({**request, "page_token": token}, second, all_of_them),
    }


PROOFS |= proofs_of_search("post", "t*", "3 2") | proofs_of_search("comment", "first", "2 1")
PROOFS |= {
    "SearchComments.post_id": Proof(
        {"query": "first", "post_id": 2}, "no id; no change", "comments 2 1; no change"
    ),
}
ERASE_ME = {"author": "me", "mode": 1}
# Also a deleted post and a deleted comment.
ERASED = "2 posts, 2 comments, rewritten; comment 2 gone, post 2 gone"
PROOFS |= {
    "EraseAuthor.author": Proof(ERASE_ME, ERASED, "FIELD_INVALID author"),
    "EraseAuthor.mode": Proof(ERASE_ME, ERASED, "FIELD_INVALID mode"),
    "EraseAuthor.validate_only": Proof(
        ERASE_ME | {"validate_only": True}, "2 posts, 2 comments, not rewritten; no change", ERASED
    ),
    "EraseAuthor.skip_rewrite": Proof(
        ERASE_ME | {"skip_rewrite": True}, ERASED.replace("rewritten", "not rewritten"), ERASED
    ),
    "SetWriteMode.mode": Proof({"mode": 3}, "STORE_MOVING", "FIELD_INVALID mode"),
}
for name in ("post", "comment"):
    for method in ("Create", "Update"):
        PROOFS |= proofs_inside_batches(PROOFS, name, method)

EXPORTED = (
    "post 1 2 3, comment 1 2, deleted post 8, deleted comment 8, former post 2 2 8, former comment 2 2 8"
)
AFTER_PAGES = transfer_cursor.make_cursor(
    transfer_cursor.Cursor(position=Position(xid=2, seq=2, time=TOLD_AT), part=len(transfer_cursor.PARTS)),
    frozenset(ResourceKind),
    STORE_ID,
)
PROOFS |= {
    "Export.kinds": Proof(
        {"kinds": ["RESOURCE_KIND_COMMENT"]}, "comment 1 2, deleted comment 8, former comment 2 2 8", EXPORTED
    ),
    "Export.cursor": Proof({"cursor": AFTER_PAGES}, "nothing", EXPORTED),
}
IMPORTED_POST = {"post": {"id": 9, "body": "new"}}
IMPORTED_COMMENT = {"comment": {"id": 9, "body": "new", "post_id": 2}}
FAIL, SKIP = 1, 2
PROOFS |= {
    "ImportRecords.on_conflict": Proof(
        {"records": [{"post": {"id": 1, "body": "new"}}], "on_conflict": SKIP},
        "1 skipped; no change",
        "FIELD_INVALID on_conflict",
    ),
    "ImportRecords.validate_only": Proof(
        {"records": [IMPORTED_POST], "on_conflict": FAIL, "validate_only": True},
        "1 created; no change",
        "1 created; post 9 is new",
    ),
    "Import.options": Proof(
        {"options": {"on_conflict": FAIL}}, "1 created; post 9 is new", "FIELD_INVALID options"
    ),
    "Import.options.on_conflict": Proof(
        {"options": {"on_conflict": FAIL}}, "1 created; post 9 is new", "FIELD_INVALID options.on_conflict"
    ),
    "Import.options.validate_only": Proof(
        {"options": {"on_conflict": FAIL, "validate_only": True}},
        "1 created; no change",
        "1 created; post 9 is new",
    ),
    "Import.batch": Proof(
        {"batch": 1, "records": [IMPORTED_POST]}, "1 created; post 9 is new", "FIELD_INVALID batch"
    ),
}


def proofs_of_records(method: str, **request: Any) -> dict[str, Proof]:
    """The fields of imported records."""

    def refused(reason: str, field: str) -> str:
        return f"1 failed, {reason} records[0].{field}; no change"

    def proof(record: dict[str, Any], set: str, unset: str) -> Proof:
        return Proof({**request, "records": [record]}, set=set, unset=unset)

    proofs = {
        "": Proof({**request, "records": [IMPORTED_POST]}, "1 created; post 9 is new", "BATCH_EMPTY records")
    }
    for name, record in (("post", IMPORTED_POST), ("comment", IMPORTED_COMMENT)):
        created = f"1 created; {name} 9 is new"

        def with_field(
            set: str, *, name: str = name, record: Any = record, created: str = created, **field: Any
        ) -> Proof:
            return proof({name: record[name] | field}, set, created)

        proofs |= {
            f".{name}": proof(record, created, refused("FIELD_INVALID", "resource")),
            f".{name}.id": proof(record, created, refused("FIELD_INVALID", f"{name}.id")),
            f".{name}.body": proof(
                record,
                created,
                refused("FIELD_INVALID", f"{name}.body" if name == "comment" else "post.etag"),
            ),
            f".{name}.etag": with_field(refused("FIELD_INVALID", f"{name}.etag"), etag="v0"),
            f".{name}.author": with_field(f"{created} by me", author="me"),
            f".{name}.labels": with_field(f'{created} with {{"a":"b"}}', labels={"a": "b"}),
            f".{name}.external_id": with_field(
                refused("EXTERNAL_ID_TAKEN", f"{name}.external_id"), external_id="x"
            ),
            f".{name}.delete_time": with_field(
                refused("FIELD_INVALID", f"{name}.delete_time"), delete_time={"seconds": 9}
            ),
            f".{name}.purge_time": with_field(
                refused("FIELD_INVALID", f"{name}.purge_time"), purge_time={"seconds": 9}
            ),
            **{
                f".{name}.{time}": with_field(
                    refused("FIELD_INVALID", f"{name}.{time}"), **{time: {"seconds": 2**40}}
                )
                for time in ("create_time", "update_time")
            },
        }
    created = "1 created; comment 9 is new"
    proofs |= {
        ".comment.post_id": proof(IMPORTED_COMMENT, created, refused("FIELD_INVALID", "comment.post_id")),
        ".comment.reply_to_id": proof(
            {"comment": IMPORTED_COMMENT["comment"] | {"reply_to_id": 1}},
            refused("REPLY_POST_MISMATCH", "comment.reply_to_id"),
            created,
        ),
        ".comment.depth": proof(
            {"comment": IMPORTED_COMMENT["comment"] | {"depth": 1}},
            refused("FIELD_INVALID", "comment.depth"),
            created,
        ),
        ".state": proof(
            IMPORTED_COMMENT | {"state": "RECORD_STATE_DELETED"},
            refused("FIELD_INVALID", "comment.delete_time"),
            created,
        ),
        ".post_external_id": proof(
            {"comment": {"id": 9, "body": "new"}, "post_external_id": "x"},
            created,
            refused("FIELD_INVALID", "comment.post_id"),
        ),
        ".reply_to_external_id": proof(
            IMPORTED_COMMENT | {"reply_to_external_id": "x"},
            refused("REPLY_POST_MISMATCH", "reply_to_external_id"),
            created,
        ),
        ".ancestor_ids": proof(
            IMPORTED_COMMENT | {"ancestor_ids": [3]}, refused("FIELD_INVALID", "ancestor_ids"), created
        ),
        ".deleted_with": proof(
            IMPORTED_COMMENT | {"deleted_with": 5}, refused("FIELD_INVALID", "deleted_with"), created
        ),
    }
    return {f"{method}.records[]{path}": it for path, it in proofs.items()}


PROOFS |= proofs_of_records("ImportRecords", on_conflict=FAIL) | proofs_of_records("Import", batch=1)


def test_every_field_has_a_proof() -> None:
    assert sorted(PROOFS) == sorted(FIELDS)


Outcomes = dict[tuple[str, bytes], str]


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """What came of each request so far, by method and request. Proofs of fields have requests in common."""
    return {}


@pytest.mark.parametrize("field", FIELDS)
async def test_field_has_its_documented_effect(
    field: str, world: Path, tmp_path: Path, default_config: Config, outcomes: Outcomes
) -> None:
    """The result differs from that of the request without the field."""
    proof = PROOFS[field]
    method, path = field.split(".", 1)
    request = request_class(BY_NAME[method])(**proof.request)
    without = request_class(BY_NAME[method]).FromString(request.SerializeToString())
    clear(without, path.split("."))
    assert request != without, "the request of the proof does not set the field"

    assert proof.set != proof.unset
    for sent, expected in ((request, proof.set), (without, proof.unset)):
        key = method, sent.SerializeToString(deterministic=True)
        if key not in outcomes:
            outcomes[key] = await come_of(default_config, method, sent, world, tmp_path / "store.db")
        assert outcomes[key] == expected


def clear(message: Any, path: list[str]) -> None:
    """Unsets one field, and nothing around it."""
    *way, last = path
    for name in way:
        message = (
            getattr(message, name)[0]
            if (name := name.removesuffix("[]")) in ("requests", "records")
            else getattr(message, name)
        )
    message.ClearField(last.removesuffix("[]"))


async def come_of(config: Config, method: str, request: Message, world: Path, file: Path) -> str:
    """The outcome of a call to a new server: its error, or its response and the changed rows."""
    shutil.copy(world, file)
    url = f"sqlite:///{file}"
    before = database_contents(url)
    own = config.model_copy(update={"DATABASE_URL": url, "read_connections": 1})
    async with serving(own) as server, grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            method_path(BY_NAME[method]),
            request_serializer=request_class(BY_NAME[method]).SerializeToString,
            response_deserializer=response_class(BY_NAME[method]).FromString,
        )
        try:
            if method == "Watch":
                return await told(channel, request)
            if method == "EraseAuthor":
                return await erased(channel, request, file, before)
            if method == "Export":
                return await exported(channel, request)
            if method == "Import":
                return f"{await imported(channel, request)}; {difference(before, database_contents(url))}"
            answer = await call(request)
            if method == "SetWriteMode":
                await Stubs(channel).create_post()
        except grpc.RpcError as error:
            assert database_contents(url) == before
            seen = received_error(error)
            has_fields = any(it.DESCRIPTOR.name == "BadRequest" for it in seen.details)
            return " ".join([seen.reason, *(seen.fields if has_fields else [])])
        return f"{answer_in_words(answer)}; {difference(before, database_contents(url))}"


async def told(channel: grpc.aio.Channel, request: Any) -> str:
    """The changes that a watch reports before a later marker."""
    stubs = Stubs(channel)
    watch: Any = stubs.changes.Watch(request)
    responses = [await watch.read()]
    # An initial state could contain the marker before the last resources.
    while request.initial_state and not responses[-1].initial_state_complete:
        responses.append(await watch.read())
    # Every filter of the proofs lets it pass.
    comment = comments_pb2.Comment(post_id=1, body="mark", author="me", labels={"k": "v"}, reply_to_id=1)
    mark = await stubs.comments.CreateComment(comments_pb2.CreateCommentRequest(comment=comment))
    words: list[str] = []
    while True:
        for change in [it for response in responses for it in response.changes]:
            if change.comment.id == mark.id:
                watch.cancel()
                return ", ".join(words) or "nothing"
            kind = "post" if change.HasField("post") else "comment"
            done = {pb.ACTION_SNAPSHOT: "there", pb.ACTION_CREATE: "created"}[change.action]
            words.append(f"{kind} {change.id} {done}")
        responses = [await watch.read()]


async def erased(channel: grpc.aio.Channel, request: Any, file: Path, before: Contents) -> str:
    """The numbers of an erasure, whether it has rewritten the file, and the changed rows."""
    # A rewrite changes the number by which other connections notice it.
    version = query(file, "PRAGMA schema_version")
    *_, last = [it async for it in Stubs(channel).admin.EraseAuthor(request)]
    assert last.complete
    rewritten = "not rewritten" if query(file, "PRAGMA schema_version") == version else "rewritten"
    changed = difference(before, database_contents(f"sqlite:///{file}"))
    return f"{last.posts} posts, {last.comments} comments, {rewritten}; {changed}"


async def exported(channel: grpc.aio.Channel, request: Any) -> str:
    """The ids of the records of an export."""
    words: dict[str, list[str]] = {}
    async for response in Stubs(channel).transfers.Export(request):
        for record in response.records:
            name = record.WhichOneof("resource")
            state = {0: "", 1: "deleted ", 2: "former "}[record.state]
            words.setdefault(f"{state}{name}", []).append(str(getattr(record, name).id))
    return ", ".join(f"{name} {' '.join(ids)}" for name, ids in words.items()) or "nothing"


async def imported(channel: grpc.aio.Channel, request: Any) -> str:
    """The result of an import with a request of options or of records, and a valid one of the other."""
    requests = [request]
    if request.batch or request.records:
        requests.insert(0, transfer_pb2.ImportRequest(options={"on_conflict": FAIL}))
    else:
        requests.append(transfer_pb2.ImportRequest(batch=1, records=[IMPORTED_POST]))
    (answer,) = await import_stream(Stubs(channel), requests)
    return answer_in_words(answer)


def answer_in_words(answer: Message) -> str:
    """A summary of a response: ids, missing ids, counts, and whether more follows."""
    words = []
    for field, value in answer.ListFields():
        if field.name == "results":
            name = "post" if hasattr(value[0], "post") else "comment"
            words.append(f"{name}s {' '.join(str(getattr(it, name).id) for it in value)}")
        elif field.name in ("posts", "comments"):
            words.append(f"{field.name} {' '.join(str(it.id) for it in value)}")
        elif field.name == "result":
            counts = [it for it in value.ListFields() if it[0].name != "errors"]
            words += [f"{count} {it.name}" for it, count in counts]
            reasons = transfer_pb2.RecordErrorReason
            words += [
                f"{reasons.Name(it.reason).removeprefix('RECORD_ERROR_REASON_')} {it.field}"
                for it in value.errors
            ]
        elif field.name == "next_page_token":
            words.append("more")
        elif field.name == "missing_ids":
            words.append(f"missing {' '.join(str(id) for id in value)}")
        elif field.name == "counts":
            counted = "comment" if answer.DESCRIPTOR.name == "CountRepliesResponse" else "post"
            words.append(", ".join(f"{counted} {id} has {count}" for id, count in sorted(value.items())))
        elif field.name == "total":
            words.append(f"{value} in total")
        elif field.name == "count":
            words.append(f"{value} counted")
        elif field.name == "id":
            words.append(f"{answer.DESCRIPTOR.name.lower()} {value}")
    return ", ".join(words) or "no id"


def difference(before: Contents, after: Contents) -> str:
    """What became of the rows."""
    words = []
    for kind in ("post", "comment"):
        was = {row[0]: row for row in getattr(before, f"{kind}s")}
        now = {row[0]: row for row in getattr(after, f"{kind}s")}
        words += [f"{kind} {id} gone" for id in was if id not in now]
        words += [f"{kind} {id} is {described(kind, row)}" for id, row in now.items() if row != was.get(id)]
    return ", ".join(sorted(words)) or "no change"


def described(kind: str, row: tuple[Any, ...]) -> str:
    """The fields of a row that a caller sets, apart from its ids."""
    author, labels = row[5:7] if kind == "post" else row[6:8]
    return row[1] + (f" by {author}" if author else "") + (f" with {labels}" if labels else "")
