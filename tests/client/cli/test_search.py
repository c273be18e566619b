"""`storeapi posts search` and `storeapi comments search`."""

import pytest
from storeapi import StoreClient

from tests.support.storeapi_command import StoreapiCommand


@pytest.mark.parametrize("name", ["posts", "comments"])
def test_results_are_lines_or_objects(storeapi: StoreapiCommand, store: StoreClient, name: str) -> None:
    """An id and the marked snippet; with --json the whole resource and the parts of the snippet."""
    post = store.posts.create(f"Coffee in {name}\twith a tab", author="ann")
    found = post
    if name == "comments":
        found = store.comments.create(post_id=post.id, body=f"Coffee in {name}\twith a tab", author="ann")  # type: ignore[assignment]  # a comment

    lines = storeapi(name, "search", f'coffee "in {name}"', "--author", "ann")
    (record,) = storeapi.json(name, "search", f"coffee {name}", "--limit", "1", "--relevance")

    assert lines.stdout == f"{found.id}\t**Coffee** **in {name}**\\twith a tab\n"
    assert record["id"] == found.id
    assert {"text": "Coffee", "is_match": True} in record["snippet"]


def test_invalid_query_is_an_error(storeapi: StoreapiCommand) -> None:
    """Of the service, or of the command."""
    failed = storeapi("posts", "search", '"a')
    both = storeapi("posts", "search", "a", "--all", "--limit", "1")

    assert (failed.exit_code, both.exit_code) == (1, 2)
    assert "the phrase has no closing quote" in failed.stderr
    assert "--all and --limit exclude each other" in both.stderr


def test_limit_is_20_unless_another_is_given(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """--all prints everything."""
    store.posts.create_many([f"limited {it}" for it in range(25)])

    assert len(storeapi("posts", "search", "limited").stdout.splitlines()) == 20
    assert len(storeapi("posts", "search", "limited", "--all").stdout.splitlines()) == 25
    assert len(storeapi("posts", "search", "limited", "--limit", "22").stdout.splitlines()) == 22
