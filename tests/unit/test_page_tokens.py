"""Page tokens: their format, and the refusal of damaged and foreign tokens."""

import base64
import string

import pytest

from store_service.errors import PageTokenInvalid, PageTokenMismatch
from store_service.model import ORDERS, Query
from store_service.service import page_tokens

POSTS = Query(resource="posts")
QUERIES = [
    *(Query(resource="posts", order=order) for order in ORDERS),
    *(
        Query(resource="comments", order=order, post_id=post_id)
        for order in ORDERS
        for post_id in (0, 1, 2, 2**63 - 1)
    ),
]


@pytest.mark.parametrize("query", QUERIES, ids=str)
@pytest.mark.parametrize("id", [1, 2, 255, 2**31, 2**63 - 1])
def test_page_token_holds_the_last_id(query: Query, id: int) -> None:
    """For every query and every id."""
    assert page_tokens.last_id(page_tokens.make(query, last_id=id), query) == id


def test_page_token_format_is_stable() -> None:
    """Old formats stay readable."""
    assert page_tokens.make(POSTS, last_id=42) == TOKEN_OF_POSTS
    assert page_tokens.last_id(TOKEN_OF_POSTS, POSTS) == 42
    query = Query(resource="comments", order="id desc", post_id=7)
    assert page_tokens.last_id(TOKEN_OF_COMMENTS, query) == 99


TOKEN_OF_POSTS = "AbmISqLQhfexAAAAAAAAACr8Hjc9fNYq"
TOKEN_OF_COMMENTS = "Abpn2LtWotbxAAAAAAAAAGNcjXBDyhjk"


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_page_token_is_bound_to_its_query(query: Query) -> None:
    """Resource, order and post."""
    token = page_tokens.make(query, last_id=42)

    for other in QUERIES:
        if other != query:
            with pytest.raises(PageTokenMismatch):
                page_tokens.last_id(token, other)


@pytest.mark.parametrize("id", [1, 42, 2**63 - 1])
def test_page_token_detects_a_changed_character(id: int) -> None:
    token = page_tokens.make(POSTS, last_id=id)

    for index, character in enumerate(token):
        for other in string.printable:
            if other != character:
                with pytest.raises(PageTokenInvalid):
                    page_tokens.last_id(token[:index] + other + token[index + 1 :], POSTS)


def test_page_token_detects_swapped_and_missing_characters() -> None:
    """Swapped and missing characters are detected."""
    token = page_tokens.make(POSTS, last_id=42)

    for index in range(len(token) - 1):
        swapped = token[:index] + token[index + 1] + token[index] + token[index + 2 :]
        for changed in {swapped, token[:index] + token[index + 1 :]} - {token}:
            with pytest.raises(PageTokenInvalid):
                page_tokens.last_id(changed, POSTS)


def test_page_token_of_another_version_is_refused() -> None:
    """A token with another version number is refused, even if its checksum is right."""
    packed = bytearray(base64.urlsafe_b64decode(page_tokens.make(POSTS, last_id=42)))
    head = bytes([2]) + bytes(packed[1:17])
    newer = base64.urlsafe_b64encode(head + page_tokens._checksum(head)).decode()

    with pytest.raises(PageTokenInvalid):
        page_tokens.last_id(newer, POSTS)


@pytest.mark.parametrize("id", range(0, 2000, 37))
def test_page_token_needs_no_url_quoting(id: int) -> None:
    """32 characters."""
    token = page_tokens.make(POSTS, last_id=id)

    assert len(token) == 32
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")
