"""Searches of posts and comments, on both engines."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from storeapi.v1 import comments_pb2, posts_pb2

from store_service.config import Config
from store_service.server import serving
from store_service.service import search as search_service
from store_service.service import search_index
from tests.support.errors import expect_error, received_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a search waits for longer."""
    monkeypatch.setattr(search_index, "BUILDING_WAIT_SECONDS", scaled_timeout())
    monkeypatch.setattr(search_index, "WAIT_SECONDS", scaled_timeout())


def search(api: ResourceApi, query: str, **options: Any) -> Any:
    """Calls the search of a resource."""
    return api.call(f"Search{api.name}s", query=query, **options)


async def found(api: ResourceApi, query: str, **options: Any) -> list[int]:
    """Returns the ids of all pages."""
    ids: list[int] = []
    token = ""
    while True:
        response = await search(api, query, page_token=token, **options)
        ids += [getattr(it, api.field).id for it in response.results]
        token = response.next_page_token
        if not token:
            return ids


async def create(api: ResourceApi, *bodies: str, **fields: Any) -> list[int]:
    """Creates resources and returns their ids."""
    return [(await api.create(api.draft(it, **fields))).id for it in bodies]


# What is found


QUERIES = (
    ("quick", [1, 0]),
    ("QUICK brown", [0]),
    ('"quick brown"', [0]),
    ('"brown quick"', []),
    ("qui*", [1, 0]),
    ('"the qui"*', [0]),
    ("quick -fox", [1]),
    ('quick -"brown fox"', [1]),
    ("quick -bro*", [1]),
    ("ecole", [1]),
    ("École", [1]),
    ("don't", [2]),
    ("user@example.com", [2]),
    ("タワ", [3]),
    ("京", [3]),
    ("東京タワーtower", [3]),
    ("ไทย", [4]),
    ("quick & | ! ()", [1, 0]),
    ("missing", []),
)
"""Queries, and the texts that they find."""

TEXTS = (
    "The quick brown fox",
    "Quick, quick: une école",
    "I don't know user@example.com",
    "東京タワーtowerに行く",
    "ภาษาไทยสวย",
)


async def test_query_finds_the_texts_that_match(api: ResourceApi) -> None:
    """Words, phrases, prefixes and exclusions; the newest first."""
    ids = await create(api, *TEXTS)

    for query, expected in QUERIES:
        assert await found(api, query) == [ids[it] for it in expected], query


async def test_result_has_the_resource_and_a_snippet(api: ResourceApi) -> None:
    """The snippet is a part of the body with the matches marked."""
    body = f"{'before ' * 30}an École here{' after' * 60}"
    created = await api.create(api.draft(body))

    (result,) = (await search(api, "ecole here")).results

    assert getattr(result, api.field) == created
    assert [it.text for it in result.snippet if it.is_match] == ["École", "here"]
    assert result.snippet[0].text == result.snippet[-1].text == "…"
    assert "".join(it.text for it in result.snippet).strip("…") in body
    assert sum(len(it.text) for it in result.snippet) < 250


async def test_search_finds_what_its_caller_has_just_written(api: ResourceApi) -> None:
    """After each create, update and delete."""
    for number in range(5):
        (id,) = await create(api, f"word{number}")
        assert await found(api, f"word{number}") == [id]
        await api.update(api.resource(id=id, body=f"changed{number}"))
        assert await found(api, f"word{number}") == []
        assert await found(api, f"changed{number}") == [id]
        await api.delete(id)
        assert await found(api, f"changed{number}") == []


async def test_comments_of_a_deleted_post_are_not_found(comments: ResourceApi, stubs: Stubs) -> None:
    """Also the first search after the deletion."""
    await create(comments, "word one", "word two")
    await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=comments.post_id, force=True))

    assert await found(comments, "word") == []


async def test_tombstone_is_not_found(comments: ResourceApi) -> None:
    """Its replies are."""
    (first,) = await create(comments, "word above")
    (reply,) = await create(comments, "word below", reply_to_id=first)
    await comments.delete(first)

    assert await found(comments, "word") == [reply]


# Filters


async def test_filter_applies_to_searches(comments: ResourceApi) -> None:
    """Author, labels, and the time of creation."""
    (one,) = await create(comments, "word", author="ann", labels={"status": "new"})
    (two,) = await create(comments, "word", author="bob", labels={"status": "new", "topic": "a"})
    (three,) = await create(comments, "word")
    time = (await comments.get(three)).create_time

    assert await found(comments, "word", filter={"author": "ann"}) == [one]
    assert await found(comments, "word", filter={"labels": {"status": "new"}}) == [two, one]
    assert await found(comments, "word", filter={"labels": {"status": "new", "topic": "a"}}) == [two]
    assert await found(comments, "word", filter={"create_time_from": time}) == [three]
    assert await found(comments, "word", filter={"create_time_before": time}) == [two, one]
    await comments.update(comments.resource(id=one, author="bob"), ["author"])
    assert await found(comments, "word", filter={"author": "ann"}) == []
    assert await found(comments, "word", filter={"author": "bob"}) == [two, one]


async def test_search_of_one_post_and_of_replies(comments: ResourceApi, stubs: Stubs) -> None:
    """A post that does not exist is an error, as for lists."""
    (first,) = await create(comments, "word")
    (reply,) = await create(comments, "word", reply_to_id=first)
    other = ResourceApi("Comment", stubs, post_id=(await stubs.create_post()).id)
    (third,) = await create(other, "word")

    assert await found(comments, "word", post_id=comments.post_id) == [reply, first]
    assert await found(comments, "word", post_id=other.post_id) == [third]
    assert await found(comments, "word", filter={"reply_to_id": first}) == [reply]
    assert await found(comments, "word", filter={"reply_to_id": 0}) == [third, first]
    error = await expect_error(search(comments, "word", post_id=999))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "POST_NOT_FOUND")


# Pages and orders


async def test_pages_are_stable_while_others_write(
    comments: ResourceApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What exists all the time is returned exactly once."""
    monkeypatch.setattr(search_service, "FETCH_ROWS", 3)
    ids = await create(comments, *[f"word {it}" for it in range(11)])
    seen: list[int] = []
    token = ""
    while True:
        response = await search(comments, "word", page_size=2, page_token=token)
        seen += [getattr(it, comments.field).id for it in response.results]
        token = response.next_page_token
        if not token:
            break
        await create(comments, "word new")
        if seen[-1] > ids[2]:
            await comments.delete(ids[ids.index(seen[-1]) - 1])
            ids.remove(ids[ids.index(seen[-1]) - 1])

    assert seen == ids[::-1]


async def test_page_can_be_short_and_continues(
    comments: ResourceApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If many candidates do not match the filter."""
    monkeypatch.setattr(search_service, "FETCH_ROWS", 2)
    monkeypatch.setattr(search_service, "MAX_EXAMINED_ROWS", 4)
    (first,) = await create(comments, "word")
    time = Timestamp()
    time.CopyFrom((await comments.get(first)).create_time)
    await create(comments, *["word"] * 9)
    time.nanos += 1000

    response = await search(comments, "word", filter={"create_time_before": time})

    assert (len(response.results), bool(response.next_page_token)) == (0, True)
    assert await found(comments, "word", filter={"create_time_before": time}) == [first]


async def test_relevance_ranks_many_occurrences_in_short_texts_first(comments: ResourceApi) -> None:
    """Equal ones by id, the newest first."""
    one, many, long, same = await create(
        comments, "word and more", "word word word", f"word {'filler ' * 50}", "word and more"
    )

    assert await found(comments, "word", order_by="relevance") == [many, same, one, long]
    assert await found(comments, "word", order_by="relevance", page_size=1) == [many, same, one, long]


async def test_relevance_ranks_groups_of_the_newest_matches(
    comments: ResourceApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages continue with older groups, and a resource that is created meanwhile changes nothing."""
    monkeypatch.setattr(search_service, "RANKED_MATCHES", 3)
    a, b, c, d, e = await create(comments, "w w w", "w x", "w x y", "w w", "w")

    first = await search(comments, "w", order_by="relevance", page_size=2)
    await create(comments, "w w w w")
    rest = await found_after(comments, first.next_page_token)

    assert [getattr(it, comments.field).id for it in first.results] + rest == [d, e, c, a, b]


async def found_after(api: ResourceApi, token: str) -> list[int]:
    """Returns the ids of the pages after a page of two by relevance."""
    ids: list[int] = []
    while token:
        response = await search(api, "w", order_by="relevance", page_size=2, page_token=token)
        ids += [getattr(it, api.field).id for it in response.results]
        token = response.next_page_token
    return ids


async def test_page_token_belongs_to_one_search(comments: ResourceApi) -> None:
    """Query, filter and order must be the same."""
    await create(comments, "word", "word")
    token = (await search(comments, "word", page_size=1)).next_page_token

    for other in (
        {"query": "words"},
        {"query": "word", "order_by": "relevance"},
        {"query": "word", "filter": {"author": "a"}},
    ):
        error = await expect_error(comments.call(f"Search{comments.name}s", page_token=token, **other))
        assert error.reason == "PAGE_TOKEN_MISMATCH"
    listing = (await comments.page(page_size=1, order_by="id desc")).next_page_token
    assert (await expect_error(search(comments, "word", page_token=listing))).reason == "PAGE_TOKEN_MISMATCH"
    assert (await expect_error(search(comments, "word", page_token="x"))).reason == "PAGE_TOKEN_INVALID"


# Requests that are refused


INVALID = (
    ("", "must have a letter or a digit"),
    ("*", "must have a letter or a digit"),
    ("-word", "must have a word that is not excluded"),
    ('a "b', "the phrase has no closing quote; it begins at character 3"),
    ("a - b", "expected a word or phrase after the - at character 3"),
    ("a " * 17, "must not have more than 16 words and phrases at character 33"),
    ("東" * 66, "must not have more than 64 words at character 1"),
    ("a" * 1025, "must not be longer than 1024 bytes of UTF-8"),
    ("x" * 65_536, "must not be longer than 1024 bytes of UTF-8"),
    ("a " * 10_000, "must not be longer than 1024 bytes of UTF-8"),
)
"""Queries, and what is wrong with them."""


async def test_query_that_is_not_valid_is_refused(comments: ResourceApi) -> None:
    """The description has the position."""
    for query, problem in INVALID:
        error = await expect_error(search(comments, query))

        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert error.message == f"query: {problem}"
        assert error.fields == ["query"]


async def test_other_fields_are_checked(comments: ResourceApi) -> None:
    """All violations are reported together."""
    error = await expect_error(
        search(
            comments, "", page_size=-1, order_by="create_time", filter={"show_deleted": True, "author": "\n"}
        )
    )

    assert error.fields == ["query", "filter.show_deleted", "order_by", "filter.author", "page_size"]


HOSTILE = [
    'word "',
    *(
        "tokens: word",
        "word OR missing",
        "NEAR(word missing)",
        "word AND",
        "^word",
        "word + word",
        "{tokens}",
    ),
    *(
        "'word' & !missing",
        "word:*",
        "word <-> word",
        "word\\",
        "word'; DROP TABLE posts; --",
        "((word",
        "word)",
    ),
    *(
        "word\0",
        '"word\0word"',
        "word \ud7ff\ue000\uffff",
        "* word",
        "-* word",
        '"" word',
        "word " + "* " * 400,
    ),
    *(
        "word " + "(" * 1000,
        "word " + "'" * 900,
        'word "*"',
        'word -"!"',
        "word %s ? :match $1",
        "'\\''  word",
    ),
]


async def test_syntax_of_an_engine_is_text(comments: ResourceApi) -> None:
    """Operators, quotes and NUL have no meaning: the words are searched, or the query is refused."""
    (id,) = await create(comments, "word or near and tokens missing match s 1 drop table posts")

    outcomes: set[Any] = set()
    for query in HOSTILE:
        request = comments_pb2.SearchCommentsRequest(query=query)
        try:
            response = await comments.stub.SearchComments(request, timeout=scaled_timeout())
        except grpc.RpcError as error:
            outcomes.add(received_error(error).reason)
        else:
            outcomes |= {it.comment.id for it in response.results}
    assert outcomes == {id, "FIELD_INVALID"}


# The state of the index


@pytest.fixture
def off(config: Config) -> Config:
    """Settings without search."""
    return config.model_copy(update={"search": False})


async def test_search_that_is_switched_off_is_an_error(off: Config) -> None:
    """Other calls work."""
    async with serving(off) as server, grpc.aio.insecure_channel(server.address) as channel:
        stubs = Stubs(channel)
        await stubs.create_post("word")

        error = await expect_error(stubs.posts.SearchPosts(posts_pb2.SearchPostsRequest(query="word")))

    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SEARCH_DISABLED")


async def test_two_searches_at_once_do_not_disturb_each_other(comments: ResourceApi) -> None:
    """Nor writes between them."""
    await create(comments, *[f"word{it % 3} text" for it in range(12)])

    pages = await asyncio.gather(
        *[found(comments, f"word{it % 3}") for it in range(9)], create(comments, "word0 text")
    )

    assert [len(it) >= 4 for it in pages[:9]] == [True] * 9


async def test_word_beyond_the_limits_of_a_text_is_cut(comments: ResourceApi) -> None:
    """Long words are compared by their first 40 characters, on both engines."""
    long = "x" * 5000
    (id,) = await create(comments, f"{long} y")

    assert await found(comments, long[:1000]) == [id]
    assert await found(comments, "x" * 39) == []
    assert await found(comments, f"{'x' * 39}*") == [id]


async def test_long_text_is_found_by_phrases(comments: ResourceApi) -> None:
    """Also beyond the positions of a tsvector, and with a word that occurs more often than it can have."""
    words = " ".join([f"w{it}" for it in range(9000)])
    body = f"{words} " + "again " * 300 + "the last words"
    (id,) = await create(comments, body)
    (many,) = await create(comments, "z " * 20_000 + "the last words")

    assert await found(comments, '"the last words"') == [many, id]
    assert await found(comments, '"w8999 again"') == [id]
    assert await found(comments, '"again the last" -"w1 w3"') == [id]
    assert await found(comments, '"last again"') == []
    assert await found(comments, '"again the last" -"w1 w2"') == []
