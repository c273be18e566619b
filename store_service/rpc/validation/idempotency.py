"""The request id of writes, and the idempotency key that belongs to it."""

import re
from hashlib import blake2b

from storeapi.v1 import comments_pb2, posts_pb2

from store_service.errors import FieldInvalid
from store_service.model import IdempotencyKey
from store_service.rpc.validation.violations import Violations

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NIL_UUID = "00000000-0000-0000-0000-000000000000"
"""Refused: a caller that sends it has forgotten to choose a UUID."""

WriteRequest = (
    posts_pb2.CreatePostRequest
    | posts_pb2.UpdatePostRequest
    | posts_pb2.DeletePostRequest
    | posts_pb2.UndeletePostRequest
    | posts_pb2.BatchCreatePostsRequest
    | posts_pb2.BatchUpdatePostsRequest
    | posts_pb2.BatchDeletePostsRequest
    | comments_pb2.CreateCommentRequest
    | comments_pb2.UpdateCommentRequest
    | comments_pb2.DeleteCommentRequest
    | comments_pb2.UndeleteCommentRequest
    | comments_pb2.BatchCreateCommentsRequest
    | comments_pb2.BatchUpdateCommentsRequest
    | comments_pb2.BatchDeleteCommentsRequest
)


def check_request_id(request: WriteRequest, violations: Violations) -> None:
    """Checks that request_id is empty or a UUID."""
    if request.request_id and (not _UUID.fullmatch(request.request_id) or request.request_id == _NIL_UUID):
        violations.add(
            FieldInvalid,
            "request_id",
            "must be a random UUID such as 3f2b8c1e-7a5d-4e6f-9b0a-1c2d3e4f5a6b, or empty",
        )


def idempotency_key(request: WriteRequest) -> IdempotencyKey | None:
    """Returns the idempotency key of a request; None if it has no request_id."""
    if not request.request_id:
        return None
    rest = type(request)()
    rest.CopyFrom(request)  # type: ignore[arg-type]  # it is of the same type
    # A dry run has the same fingerprint as the write.
    rest.request_id = ""
    rest.validate_only = False
    name = request.DESCRIPTOR.full_name.encode()
    content = rest.SerializeToString(deterministic=True)
    fingerprint = blake2b(name + b"\0" + content, digest_size=16).hexdigest()
    return IdempotencyKey(id=request.request_id.lower(), fingerprint=fingerprint)
