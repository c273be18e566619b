"""Validation of every request of posts, comments and watches. Those that write are here."""

from collections.abc import Callable, Sequence
from typing import Any

from storeapi.v1 import comments_pb2, posts_pb2

from store_service.errors import BatchDuplicate, FieldInvalid
from store_service.model import (
    CommentDraft,
    Deletion,
    PostDraft,
    Update,
    labels_to_text,
)
from store_service.rpc.validation.idempotency import check_request_id
from store_service.rpc.validation.identifiers import (
    check_external_ids,
    check_identifier,
    check_label_keys,
    check_stored_labels,
)
from store_service.rpc.validation.reads import ReadValidation
from store_service.rpc.validation.resource_message import COMMENT, POST, ResourceMessage, stored_value
from store_service.rpc.validation.transfer import TransferValidation
from store_service.rpc.validation.update_mask import MAX_PATHS, UpdateMask
from store_service.rpc.validation.violations import REQUIRED_ID, Violations

MAX_BATCH = 1000
"""Maximum number of ids or requests in one batch request."""

MAX_PAGE_SIZE = 1000

# Created once: `A | B` creates an object for each call, which takes longer than the check.
_BATCH_CREATES = (posts_pb2.BatchCreatePostsRequest, comments_pb2.BatchCreateCommentsRequest)


class Validation(ReadValidation):
    """Checks requests against the limits of this server.

    A method raises the subclass of `InvalidRequest` that the first violation names, with all violations.
    """

    def __init__(
        self, *, max_body_bytes: int, max_batch_size: int = MAX_BATCH, max_page_size: int = MAX_PAGE_SIZE
    ) -> None:
        """Takes the maximum size of a body in bytes of UTF-8, of a batch, and of a page."""
        super().__init__(max_batch_size=max_batch_size, max_page_size=max_page_size)
        self._max_body_bytes = max_body_bytes
        self._rules: dict[str, Callable[[Any], Sequence[str]]] = {
            "body": self._check_body,
            "post_id": lambda value: () if value > 0 else (REQUIRED_ID,),
            "reply_to_id": lambda value: (
                () if value >= 0 else ("must be positive, or 0 for a top-level comment",)
            ),
            "author": check_identifier,
            "external_id": check_identifier,
            "labels": check_stored_labels,
        }
        """For each field that a caller sets, a function that describes the violations of a value."""
        self._content_rules = {
            it.name: [(field, self._rules[field]) for field in it.content] for it in (POST, COMMENT)
        }
        # An optional field that is not set violates no rule.
        self._required_rules = {
            it.name: [(field, self._rules[field]) for field in it.required] for it in (POST, COMMENT)
        }
        assert self._rules.keys() >= {*POST.content, *COMMENT.content}, "every field has a rule"
        self.transfer = TransferValidation(self._rules, max_batch_size=max_batch_size)
        """Checks the requests of TransferService."""

    # Create

    def post_drafts(
        self, request: posts_pb2.CreatePostRequest | posts_pb2.BatchCreatePostsRequest
    ) -> tuple[PostDraft, ...]:
        """Returns the posts to create; one unless the request is a batch."""
        return tuple(self._drafts(POST, request))

    def comment_drafts(
        self, request: comments_pb2.CreateCommentRequest | comments_pb2.BatchCreateCommentsRequest
    ) -> tuple[CommentDraft, ...]:
        """Returns the comments to create; one unless the request is a batch."""
        return tuple(self._drafts(COMMENT, request))

    def _drafts(
        self,
        resource: ResourceMessage,
        request: posts_pb2.CreatePostRequest
        | posts_pb2.BatchCreatePostsRequest
        | comments_pb2.CreateCommentRequest
        | comments_pb2.BatchCreateCommentsRequest,
    ) -> list[Any]:
        violations = Violations(self._max_batch_size)
        each: Sequence[tuple[str, Any]] = [("", request)]
        if isinstance(request, _BATCH_CREATES):
            violations.check_batch_size("requests", request.requests)
            each = violations.requests_with_paths("requests", request.requests)
        name = resource.name
        drafts = []
        for prefix, one in each:
            path = prefix + name
            message = getattr(one, name)
            draft = resource.draft(message, path, one.return_existing)
            drafts.append(draft)
            if one.return_existing and not draft.external_id:
                violations.add(FieldInvalid, f"{prefix}return_existing", f"requires {path}.external_id")
            if not one.HasField(name):
                violations.add(FieldInvalid, path, "is required")
                continue
            if resource.has_output_only(message):
                resource.refuse_output_only(message, path, violations)
            rules = self._content_rules if resource.has_optional(draft) else self._required_rules
            for field, rule in rules[name]:
                for description in rule(getattr(draft, field)):
                    violations.add(FieldInvalid, f"{path}.{field}", description)
        check_external_ids(drafts, violations)
        check_request_id(request, violations)
        violations.raise_if_any()
        return drafts

    def _check_body(self, body: str) -> Sequence[str]:
        # Most bodies need not be encoded to find their size: a character has at most 4 bytes.
        if body and 4 * len(body) <= self._max_body_bytes and "\0" not in body:
            return ()
        violations = []
        if not body:
            violations.append("must not be empty")
        elif len(body.encode()) > self._max_body_bytes:
            violations.append(f"must not be longer than {self._max_body_bytes} bytes of UTF-8")
        if "\0" in body:
            violations.append("must not contain a NUL character")
        return violations

    # Update

    def post_updates(
        self, request: posts_pb2.UpdatePostRequest | posts_pb2.BatchUpdatePostsRequest
    ) -> tuple[Update, ...]:
        """Returns the updates of posts; one unless the request is a batch."""
        return self._updates(POST, request)

    def comment_updates(
        self, request: comments_pb2.UpdateCommentRequest | comments_pb2.BatchUpdateCommentsRequest
    ) -> tuple[Update, ...]:
        """Returns the updates of comments; one unless the request is a batch."""
        return self._updates(COMMENT, request)

    def _updates(
        self,
        resource: ResourceMessage,
        request: posts_pb2.UpdatePostRequest
        | posts_pb2.BatchUpdatePostsRequest
        | comments_pb2.UpdateCommentRequest
        | comments_pb2.BatchUpdateCommentsRequest,
    ) -> tuple[Update, ...]:
        violations = Violations(self._max_batch_size)
        each: Sequence[tuple[str, Any]] = [("", request)]
        if isinstance(request, posts_pb2.BatchUpdatePostsRequest | comments_pb2.BatchUpdateCommentsRequest):
            violations.check_batch_size("requests", request.requests)
            each = violations.requests_with_paths("requests", request.requests)
        updates = [self._update(resource, one, prefix, violations) for prefix, one in each]
        seen: set[int] = set()
        for update in updates:
            if update.id in seen:
                violations.add(BatchDuplicate, f"{update.request_field}.id", f"duplicate id {update.id}")
            seen.add(update.id)
        check_request_id(request, violations)
        violations.raise_if_any()
        return tuple(updates)

    def _update(
        self,
        resource: ResourceMessage,
        request: posts_pb2.UpdatePostRequest | comments_pb2.UpdateCommentRequest,
        prefix: str,
        violations: Violations,
    ) -> Update:
        name, path = resource.name, prefix + resource.name
        message: Any = getattr(request, name)
        mask = UpdateMask(request.update_mask)
        values = {
            field: value
            for field in resource.mutable
            if mask.can_name(field)
            for value in [stored_value(message, field)]
            if mask.names(field, is_set=bool(value))
        }
        labels = dict(message.labels) if mask.labels else {}
        changed_labels = tuple([(key, labels.get(key)) for key in mask.labels])
        if mask.is_too_long:
            violations.add(FieldInvalid, f"{prefix}update_mask", f"must not have more than {MAX_PATHS} paths")
        if not request.HasField(name):  # type: ignore[arg-type]  # each request has the field of its name
            violations.add(FieldInvalid, path, "is required")
        else:
            violations.check_id(message.id, f"{path}.id")
            mask.check_paths(resource, f"{prefix}update_mask", violations)
            for field, value in values.items():
                for description in self._rules[field](value):
                    violations.add(FieldInvalid, f"{path}.{field}", description)
            check_label_keys(mask.label_keys, f"{prefix}update_mask", violations)
            changed = {key: value for key, value in changed_labels if value is not None}
            for description in check_stored_labels(labels_to_text(changed)):
                violations.add(FieldInvalid, f"{path}.labels", description)
            if mask.is_unset and not values:
                choices = ", ".join(sorted(resource.mutable))
                violations.add(
                    FieldInvalid,
                    path,
                    f"has no field to update ({choices}); to clear one, name it in update_mask",
                )
        return Update(
            id=message.id,
            values=values,
            changed_labels=changed_labels,
            etag=message.etag,
            unchangeable=tuple(
                [
                    (field, stored_value(message, field))
                    for field in resource.unchangeable
                    if mask.names(field, is_set=resource.is_set(message, field), star_means_set=True)
                ]
            ),
            request_field=path,
        )

    # Delete

    def post_deletion(
        self, request: posts_pb2.DeletePostRequest | posts_pb2.BatchDeletePostsRequest
    ) -> Deletion:
        """Returns the posts to delete; one unless the request is a batch."""
        ids, etag = self._ids_to_delete(request)
        return Deletion(ids=ids, etag=etag, force=request.force, allow_missing=request.allow_missing)

    def comment_deletion(
        self, request: comments_pb2.DeleteCommentRequest | comments_pb2.BatchDeleteCommentsRequest
    ) -> Deletion:
        """Returns the comments to delete; one unless the request is a batch."""
        ids, etag = self._ids_to_delete(request)
        return Deletion(ids=ids, etag=etag, force=request.force, allow_missing=request.allow_missing)

    def id_to_undelete(
        self, request: posts_pb2.UndeletePostRequest | comments_pb2.UndeleteCommentRequest
    ) -> int:
        """Returns the id of the resource to restore."""
        violations = Violations(self._max_batch_size)
        violations.check_id(request.id, "id")
        check_request_id(request, violations)
        violations.raise_if_any()
        return request.id

    def _ids_to_delete(
        self,
        request: posts_pb2.DeletePostRequest
        | posts_pb2.BatchDeletePostsRequest
        | comments_pb2.DeleteCommentRequest
        | comments_pb2.BatchDeleteCommentsRequest,
    ) -> tuple[tuple[int, ...], str]:
        """Returns the ids, and the etag of the only one; empty for a batch."""
        violations = Violations(self._max_batch_size)
        if isinstance(request, posts_pb2.DeletePostRequest | comments_pb2.DeleteCommentRequest):
            violations.check_id(request.id, "id")
            ids: Sequence[int] = (request.id,)
            etag = request.etag
        else:
            violations.check_batch_size("ids", request.ids)
            violations.check_ids("ids", request.ids, unique=True)
            ids, etag = request.ids, ""
        check_request_id(request, violations)
        violations.raise_if_any()
        return tuple(ids), etag
