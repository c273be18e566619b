"""The operations that the writer process executes for workers."""

import ast
import importlib
import pickle
import pkgutil
from pathlib import Path

import pytest

import store_service.database
import store_service.service
from store_service.database.batch_operation import BatchOperation
from store_service.model import BatchResult, Deletion, IdempotencyKey, Post, PostDraft, Update, WriteCommand
from store_service.service.write_operations import write_operations


def test_each_named_operation_is_known_to_the_writer_process() -> None:
    found: set[str] = set()
    for package in (store_service.database, store_service.service):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.ispkg:
                found |= {
                    it.name
                    for it in vars(importlib.import_module(module.name)).values()
                    if isinstance(it, BatchOperation) and it.name
                }

    assert found
    assert found <= write_operations().keys()


def test_each_operation_that_a_module_passes_to_write_has_a_name() -> None:
    """Without one, it would fail only with several workers."""
    unnamed = []
    count = 0
    for package in (store_service.database, store_service.service):
        for path in Path(package.__path__[0]).glob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                match call:
                    case ast.Call(
                        func=ast.Attribute(
                            attr="write",
                            value=ast.Name(id="database") | ast.Attribute(attr="_database"),
                        ),
                        args=[ast.Name(id=name) | ast.Attribute(attr=name) as argument, *_],
                    ) if name.isupper():
                        count += 1
                        module = importlib.import_module(f"{package.__name__}.{path.stem}")
                        if not eval(ast.unparse(argument), vars(module)).name:
                            unnamed.append((path.name, name))

    assert count > 10
    assert unnamed == []


def test_names_do_not_depend_on_settings() -> None:
    """A worker of other settings must find the same operations."""
    assert list(write_operations()) == list(
        write_operations(undelete_hours=1, max_revisions=3, max_reply_depth=0)
    )


@pytest.mark.parametrize(
    "value",
    [
        WriteCommand(
            argument=(PostDraft(body="a", author="b", external_id="c", return_existing=True, field="d"),),
            key=IdempotencyKey(id="e", fingerprint="f"),
            dry_run=True,
        ),
        Post(body="a", id=1, create_time=None, update_time=2, version=3, delete_time=4, purge_time=5),
        Update(id=1, values={"body": "a"}, etag="b", changed_labels=(("c", None),), request_field="post"),
        Deletion(ids=(1,), force=True),
        BatchResult(items=("a",), missing_ids=(1,)),
    ],
    ids=lambda it: type(it).__name__,
)
def test_argument_or_result_arrives_unchanged(value: object) -> None:
    """With the pickles that are compiled for it."""
    assert pickle.loads(pickle.dumps(value)) == value
