"""The violations of one request, and the checks of ids and batches that many requests share."""

import json
from collections.abc import Sequence
from typing import TypeVar

from storeapi.v1 import comments_pb2, posts_pb2

from store_service.errors import (
    BatchDuplicate,
    BatchEmpty,
    BatchTooLarge,
    FieldInvalid,
    InvalidRequest,
    Violation,
)
from store_service.rpc.status import MAX_VIOLATIONS

SingleRequest = TypeVar(
    "SingleRequest",
    posts_pb2.CreatePostRequest,
    posts_pb2.UpdatePostRequest,
    comments_pb2.CreateCommentRequest,
    comments_pb2.UpdateCommentRequest,
)

REQUIRED_ID = "is required and must be positive"


def quoted(text: str) -> str:
    """Returns the start of a caller's text as ASCII: gRPC escapes each other byte as three characters."""
    return json.dumps(text[:40])


class Violations:
    """Collects the violations of one request. Keeps the first MAX_VIOLATIONS and counts the others."""

    def __init__(self, max_batch_size: int) -> None:
        """Takes the maximum number of elements of a batch."""
        self._max_batch_size = max_batch_size
        self._violations: list[Violation] = []
        self._more_count = 0
        self._batch_count = 0

    def add(self, error: type[InvalidRequest], field: str, description: str) -> None:
        """Adds a violation."""
        if len(self._violations) < MAX_VIOLATIONS:
            self._violations.append(Violation(error=error, field=field, description=description))
        else:
            self._more_count += 1

    def raise_if_any(self) -> None:
        """Raises the error of the first violation, with all of them, if there is one."""
        if self._violations:
            error = self._violations[0].error
            if issubclass(error, BatchTooLarge):
                raise error(
                    self._violations,
                    more_count=self._more_count,
                    count=self._batch_count,
                    max_count=self._max_batch_size,
                )
            raise error(self._violations, more_count=self._more_count)

    def check_id(self, id: int, field: str) -> None:
        """Checks a required id."""
        if id <= 0:
            self.add(FieldInvalid, field, REQUIRED_ID)

    def check_batch_size(self, field: str, batch: Sequence[object], empty: str = "must not be empty") -> None:
        """Checks the number of elements of a batch. `empty` describes the violation of one without any."""
        self._batch_count = len(batch)
        if not batch:
            self.add(BatchEmpty, field, empty)
        elif len(batch) > self._max_batch_size:
            self.add(
                BatchTooLarge,
                field,
                f"must not have more than {self._max_batch_size} elements; it has {len(batch)}",
            )

    def check_ids(self, field: str, ids: Sequence[int], *, unique: bool = False) -> None:
        """Checks each id of a list that is not too long."""
        if len(ids) > self._max_batch_size:
            return
        seen: set[int] = set()
        for index, id in enumerate(ids):
            if id <= 0:
                self.add(FieldInvalid, f"{field}[{index}]", "must be positive")
            elif unique and id in seen:
                self.add(BatchDuplicate, f"{field}[{index}]", f"duplicate id {id}")
            seen.add(id)

    def requests_with_paths(
        self, field: str, requests: Sequence[SingleRequest]
    ) -> list[tuple[str, SingleRequest]]:
        """Returns the requests of a batch with their paths; none if the batch is too large.

        Checks that no request has a field that only the batch may set.
        """
        if len(requests) > self._max_batch_size:
            return []
        each = []
        for index, request in enumerate(requests):
            path = f"{field}[{index}]."
            if request.request_id:
                self.add(FieldInvalid, f"{path}request_id", "must be unset inside a batch")
            if request.validate_only:
                self.add(
                    FieldInvalid, f"{path}validate_only", "must be unset inside a batch; set it on the batch"
                )
            each.append((path, request))
        return each
