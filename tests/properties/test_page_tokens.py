"""A page token that the service did not make is refused by name, or leads where another one leads."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from storeapi.v1 import comments_pb2, posts_pb2

from store_service.model import ORDERS, Query
from store_service.service import page_tokens
from tests.support.property_server import SQLITE_ONLY, LiveServer, error_reason

REFUSALS = {"PAGE_TOKEN_INVALID", "PAGE_TOKEN_MISMATCH"}
_URL_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_LIKE_TOKENS = st.text(st.sampled_from(_URL_SAFE + "=+/ \n"), max_size=48)


@pytest.fixture(scope="module")
def post_id(live: LiveServer) -> int:
    """A post with ten comments, among ten posts."""
    first, *_ = live.create_posts(*["a post"] * 10)
    live.create_comments(first.id, *["a comment"] * 10)
    return first.id


def page_of(live: LiveServer, query: Query, token: str) -> Any:
    """The page of a query that a token leads to, or the error."""
    if query.resource == "posts":
        of_posts = posts_pb2.ListPostsRequest(order_by=query.order, page_size=3, page_token=token)
        return live.attempt(live.posts.ListPosts, of_posts)
    request = comments_pb2.ListCommentsRequest(
        post_id=query.post_id, order_by=query.order, page_size=3, page_token=token
    )
    return live.attempt(live.comments.ListComments, request)


queries = st.sampled_from(
    [Query(resource=resource, order=order) for resource in ("posts", "comments") for order in ORDERS]
    # The post with comments, whichever its id is.
    + [Query(resource="comments", order=order, post_id=1) for order in ORDERS]
)


def _at(query: Query, post_id: int) -> Query:
    return replace(query, post_id=post_id) if query.post_id else query


@SQLITE_ONLY
@given(query=queries, token=st.text(min_size=1) | _LIKE_TOKENS.filter(bool))
@example(query=Query(resource="posts"), token="A" * 32)
@example(query=Query(resource="posts"), token="\0")
@example(query=Query(resource="posts"), token="=" * 4)
def test_arbitrary_text_is_refused_as_a_token(
    live: LiveServer, post_id: int, query: Query, token: str
) -> None:
    outcome = page_of(live, _at(query, post_id), token)

    assert error_reason(outcome) == "PAGE_TOKEN_INVALID"
    assert outcome.fields == ["page_token"]


def _cut(token: str, place: int, _: str) -> str:
    return token[:place]


def _without(token: str, place: int, _: str) -> str:
    return token[:place] + token[place + 1 :]


def _with(token: str, place: int, letter: str) -> str:
    return token[:place] + letter + token[place:]


def _changed(token: str, place: int, letter: str) -> str:
    return token[:place] + letter + token[place + 1 :]


def _swapped(token: str, place: int, _: str) -> str:
    return token[:place] + token[place:].swapcase()


@given(
    query=queries,
    damage=st.sampled_from([_cut, _without, _with, _changed, _swapped]),
    place=st.integers(0, 32),
    letter=st.sampled_from(_URL_SAFE) | st.characters(exclude_categories=["Cs"]),
)
@example(query=Query(resource="posts"), damage=_with, place=32, letter="=")
@example(query=Query(resource="posts"), damage=_with, place=32, letter="\n")
def test_damaged_token_is_refused(
    live: LiveServer,
    post_id: int,
    query: Query,
    damage: Callable[[str, int, str], str],
    place: int,
    letter: str,
) -> None:
    """With a character added, removed or changed."""
    query = _at(query, post_id)
    first = page_of(live, query, "")
    token = damage(first.next_page_token, place, letter)

    outcome = page_of(live, query, token)

    if token == "":
        assert outcome == first
    elif token == first.next_page_token:
        assert error_reason(outcome) is None
    else:
        assert error_reason(outcome) == "PAGE_TOKEN_INVALID"


@given(made_for=queries, used_for=queries)
def test_token_is_bound_to_its_query(
    live: LiveServer, post_id: int, made_for: Query, used_for: Query
) -> None:
    """A token of another list, order or post is refused."""
    made_for, used_for = _at(made_for, post_id), _at(used_for, post_id)
    token = page_of(live, made_for, "").next_page_token

    outcome = page_of(live, used_for, token)

    assert error_reason(outcome) == (None if made_for == used_for else "PAGE_TOKEN_MISMATCH")


@given(query=queries, last_id=st.integers(-(2**63), 2**63 - 1))
@example(query=Query(resource="posts"), last_id=2**63 - 1)
@example(query=Query(resource="posts", order="id desc"), last_id=-(2**63))
def test_forged_token_is_an_ordinary_page(live: LiveServer, post_id: int, query: Query, last_id: int) -> None:
    """A forger gets a page that any caller could request."""
    query = _at(query, post_id)

    is_by_id = query.order in ("id", "id desc")
    token = page_tokens.make(query, last_id if is_by_id else (last_id, last_id))
    outcome = page_of(live, query, token)

    assert error_reason(outcome) is None
    items = outcome.posts if query.resource == "posts" else outcome.comments
    if is_by_id:
        assert all((item.id < last_id) if query.order == "id desc" else (item.id > last_id) for item in items)


def test_token_errors_are_those_of_the_contract(live: LiveServer, post_id: int) -> None:
    """Nothing but these two is ever said of a token."""
    token = page_of(live, Query(resource="posts"), "").next_page_token

    outcomes = [page_of(live, Query(resource="comments", post_id=post_id), it) for it in (token, token[1:])]

    assert {error_reason(outcome) for outcome in outcomes} == REFUSALS
