"""The runner of the conformance scenario (clients/conformance/README.md) for the Python client."""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import storeapi


class Runner:
    """Executes commands with one client, and one watch at a time."""

    def __init__(self) -> None:
        """Without a connection; the first command is `connect`."""
        self._client: Any = None
        self._changes: Iterator[storeapi.Change] = iter(())

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """The response to a command."""
        try:
            result: dict[str, Any] = getattr(self, f"_{command.pop('do')}")(**command)
        except storeapi.StoreError as error:
            return {"error": _error(error)}
        return result

    def _connect(
        self, target: str, timeout: float, ca: str | None = None, key: str | None = None
    ) -> dict[str, Any]:
        if self._client is not None:
            self._client.close()
        self._client = storeapi.connect(target, timeout=timeout, tls_ca=ca, api_key=key)
        return {}

    def _create(self, resource: str, **fields: Any) -> dict[str, Any]:
        return _resource(self._collection(resource).create(**fields))

    def _get(self, resource: str, id: int) -> dict[str, Any]:
        return _resource(self._collection(resource).get(id))

    def _update(self, resource: str, id: int, **fields: Any) -> dict[str, Any]:
        return _resource(self._collection(resource).update(id, **fields))

    def _delete(self, resource: str, id: int, **options: Any) -> dict[str, Any]:
        return _resource(self._collection(resource).delete(id, **options))

    def _list(self, resource: str, **query: Any) -> dict[str, Any]:
        return {"items": [_resource(it) for it in self._collection(resource).list(**query)]}

    def _batch_get(self, resource: str, ids: list[int]) -> dict[str, Any]:
        return {"items": [_resource(it) for it in self._collection(resource).get_many(ids)]}

    def _watch(self, **start: Any) -> dict[str, Any]:
        self._changes = self._client.changes.watch(**start)
        return {}

    def _next(self, count: int) -> dict[str, Any]:
        return {"changes": [_change(it) for it in islice(self._changes, count)]}

    def _export(self) -> dict[str, Any]:
        live = [it.resource for batch in self._client.transfer.export() for it in batch if it.state == "live"]
        return {
            "posts": [_resource(it) for it in live if isinstance(it, storeapi.Post)],
            "comments": [_resource(it) for it in live if isinstance(it, storeapi.Comment)],
        }

    def _import(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        resources = [storeapi.Comment(**it) if "post_id" in it else storeapi.Post(**it) for it in records]
        importing = self._client.transfer.import_records(
            (storeapi.Record(resource=it) for it in resources), batch_size=1
        )
        for _ in importing:
            continue
        progress = importing.progress
        return {"stored": progress.created + progress.unchanged, "failed": progress.failed}

    def _close(self) -> dict[str, Any]:
        self._changes.close()  # type: ignore[attr-defined]  # a Watch
        return {}

    def _collection(self, resource: str) -> Any:
        return getattr(self._client, resource)


def _resource(it: Any) -> dict[str, Any]:
    shown = {"id": it.id, "body": it.body, "etag": it.etag}
    return shown | {"post_id": it.post_id} if isinstance(it, storeapi.Comment) else shown


def _change(change: storeapi.Change) -> dict[str, Any]:
    shown = {"action": change.action, "kind": change.kind, "id": change.id}
    return shown if change.resource is None else shown | {"body": change.resource.body}


def _error(error: storeapi.StoreError) -> dict[str, Any]:
    violations = error.violations if isinstance(error, storeapi.InvalidRequest) else ()
    return {
        "code": error.code.name,
        "reason": error.reason,
        "metadata": error.metadata,
        "fields": [it.field for it in violations],
        "retry_after": error.retry_after,
    }


if __name__ == "__main__":
    runner = Runner()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(runner.run(json.loads(line))) + "\n")
        sys.stdout.flush()
