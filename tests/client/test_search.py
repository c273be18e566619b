"""`search` of both clients, against a real server."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import storeapi
from storeapi import Page, SearchResult, SnippetPart
from storeapi.testing import RunningServer, ScriptedServer, running_server


@pytest.fixture(scope="module")
def real() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture
async def client(make_client: Any, real: RunningServer) -> Any:
    return make_client(real.target)


@pytest.fixture
def word() -> str:
    """A word that no other test has stored."""
    return "".join(random.choices("abcdefghij", k=12))


async def read(results: Any) -> list[Any]:
    return [it async for it in results]


async def test_results_have_resources_and_marked_snippets(client: Any, word: str) -> None:
    """Newest first, on as many pages as necessary."""
    post = await client.posts.create(f"About {word}")
    comments = [
        await client.comments.create(post_id=post.id, body=f"Free refill {it} of {word.upper()}")
        for it in range(5)
    ]

    results = await read(client.comments.search(f'{word} "free refill"', post_id=post.id, page_size=2))

    assert [it.resource for it in results] == comments[::-1]
    assert results[0].marked() == f"**Free refill** 4 of **{word.upper()}**"
    assert results[0].marked("<", ">") == f"<Free refill> 4 of <{word.upper()}>"
    assert [it.text for it in results[0].snippet if it.is_match] == ["Free refill", word.upper()]
    assert [it.resource for it in await read(client.posts.search(word))] == [post]


async def test_search_takes_the_options_of_lists(client: Any, word: str) -> None:
    """Filter, order, limit and page token."""
    post = await client.posts.create(word)
    first = await client.comments.create(post_id=post.id, body=word, author="ann", labels={"a": "b"})
    second = await client.comments.create(post_id=post.id, body=f"{word}, {word}", author="bob")

    async def ids(**options: Any) -> list[int]:
        return [it.resource.id for it in await read(client.comments.search(word, **options))]

    assert await ids(filter=storeapi.CommentFilter(author="ann", labels={"a": "b"})) == [first.id]
    assert await ids(limit=1) == [second.id]
    assert await ids(order_by="relevance") == [second.id, first.id]
    page, rest = await read(client.comments.search(word, page_size=1).pages())
    assert isinstance(page, Page)
    assert [it.resource.id for it in (*page.items, *rest.items)] == [second.id, first.id]
    assert await ids(page_size=1, page_token=page.next_page_token) == [first.id]
    assert f"SearchComments, query='{word}', order_by='id desc'" in repr(client.comments.search(word))


async def test_query_that_is_not_valid_is_an_error(client: Any) -> None:
    """With the position, and at the first step."""
    results = client.posts.search('a "b')

    with pytest.raises(storeapi.FieldInvalid, match="at character 3") as caught:
        await read(results)

    assert list(caught.value.fields) == ["query"]
    with pytest.raises(TypeError, match="query"):
        client.posts.search(b"a")
    with pytest.raises(storeapi.PostNotFound):
        await read(client.comments.search("a", post_id=999))


async def test_rebuild_yields_progress(client: Any, word: str) -> None:
    """The last one is complete."""
    await client.posts.create(word)

    steps = await read(client.admin.rebuild_search_index())

    assert [it.complete for it in steps] == [False] * (len(steps) - 1) + [True]
    assert steps[-1].progress == 1
    assert len(await read(client.posts.search(word))) == 1


async def test_scripted_server_returns_results(make_client: Any) -> None:
    """Tests of other programs can use the values of the client."""
    result = SearchResult(
        resource=storeapi.Post(id=1, body="a b"),
        snippet=(SnippetPart(text="a "), SnippetPart(text="b", is_match=True)),
    )
    with ScriptedServer() as scripted:
        scripted.answer("SearchPosts", Page(items=(result,), next_page_token=""))
        client = make_client(scripted.target)

        assert await read(client.posts.search("b")) == [result]
