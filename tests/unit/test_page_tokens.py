"""Page tokens: their format, and the refusal of damaged and foreign tokens."""

import base64
import string

import pytest

from store_service.errors import PageTokenInvalid, PageTokenMismatch
from store_service.model import ORDERS, THREAD_ORDERS, Query, ResourceFilter
from store_service.service import page_tokens
from store_service.service.scans import Cursor

POSTS = Query(resource="posts")
QUERIES = [
    *(Query(resource="posts", order=order) for order in ORDERS),
    *(
        Query(resource="comments", order=order, post_id=post_id)
        for order in ORDERS
        for post_id in (0, 1, 2, 2**63 - 1)
    ),
    *(Query(resource="comments", order=order, post_id=1) for order in THREAD_ORDERS),
    *(
        Query(resource="posts", filter=filter)
        for filter in (
            ResourceFilter(author="a b"),
            ResourceFilter(author="a"),
            ResourceFilter(labels=(("a", "b"),)),
            ResourceFilter(labels=(("a", ""), ("b", ""))),
            ResourceFilter(create_time_from=5),
            ResourceFilter(create_time_before=5),
            ResourceFilter(reply_to_id=0),
            ResourceFilter(reply_to_id=5),
        )
    ),
]
BY_TIME = Query(resource="posts", order="create_time desc")
IN_THREADS = Query(resource="comments", order="thread", post_id=1)
POSITIONS: list[tuple[Query, Cursor]] = [
    *[(BY_TIME, it) for it in ((-(2**63), 2**63 - 1), (1_700_000_000_000_000, 42), (0, 0))],
    *[(IN_THREADS, it) for it in ("", "g", f"{7:016x}{9:016x}g")],
]
"""Positions of the orders by time and in threads."""


@pytest.mark.parametrize("query", [it for it in QUERIES if it.order in ("id", "id desc")], ids=str)
@pytest.mark.parametrize("id", [1, 2, 255, 2**31, 2**63 - 1])
def test_page_token_holds_the_last_id(query: Query, id: int) -> None:
    """For every query and every id."""
    assert page_tokens.read(page_tokens.make(query, id), query) == id


@pytest.mark.parametrize(("query", "cursor"), POSITIONS, ids=str)
def test_page_token_holds_a_time_or_a_thread_key(query: Query, cursor: Cursor) -> None:
    """Such tokens have another version, and characters that need no quoting in a URL either."""
    token = page_tokens.make(query, cursor)
    assert page_tokens.read(token, query) == cursor
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


@pytest.mark.parametrize(("query", "cursor"), POSITIONS, ids=str)
def test_damaged_token_of_a_time_or_a_thread_key_is_refused(query: Query, cursor: Cursor) -> None:
    """Each changed bit, and each missing character."""
    token = page_tokens.make(query, cursor)
    packed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    damaged = [token[:index] + token[index + 1 :] for index in range(len(token))]
    for bit in range(8 * len(packed)):
        changed = bytearray(packed)
        changed[bit // 8] ^= 1 << bit % 8
        damaged.append(base64.urlsafe_b64encode(changed).decode().rstrip("="))
    for other in (*damaged, token + "=", token + "A"):
        with pytest.raises(PageTokenInvalid):
            page_tokens.read(other, query)


@pytest.mark.parametrize("query", [POSTS, BY_TIME, IN_THREADS], ids=str)
@pytest.mark.parametrize("cursor", [5, (5, 5), "5"])
def test_position_of_another_order_is_refused(query: Query, cursor: Cursor) -> None:
    """A token that the service would not make, with a valid checksum."""
    token = page_tokens.make(query, cursor)
    expected = {"id": int, "create_time desc": tuple, "thread": str}[query.order]
    if type(cursor) is not expected:
        with pytest.raises(PageTokenInvalid):
            page_tokens.read(token, query)


@pytest.mark.parametrize(
    "position",
    ["[9223372036854775808, 0]", "[1]", "[1, true]", '"xyz"', "null", "{}", "[1.5, 2]", "[" * 99, "1"],
)
def test_token_with_another_position_is_refused(position: str) -> None:
    """Even if its checksum is right."""
    head = page_tokens._HEAD.pack(2, page_tokens._hash(BY_TIME)) + position.encode()
    forged = base64.urlsafe_b64encode(head + page_tokens._checksum(head)).decode().rstrip("=")
    with pytest.raises(PageTokenInvalid):
        page_tokens.read(forged, POSTS)


def test_page_token_format_is_stable() -> None:
    """Old formats stay readable."""
    assert page_tokens.make(POSTS, 42) == TOKEN_OF_POSTS
    assert page_tokens.read(TOKEN_OF_POSTS, POSTS) == 42
    query = Query(resource="comments", order="id desc", post_id=7)
    assert page_tokens.read(TOKEN_OF_COMMENTS, query) == 99


TOKEN_OF_POSTS = "AbmISqLQhfexAAAAAAAAACr8Hjc9fNYq"
TOKEN_OF_COMMENTS = "Abpn2LtWotbxAAAAAAAAAGNcjXBDyhjk"


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_page_token_is_bound_to_its_query(query: Query) -> None:
    """Resource, order and post."""
    token = page_tokens.make(query, 42)

    for other in QUERIES:
        if other != query:
            with pytest.raises(PageTokenMismatch):
                page_tokens.read(token, other)


@pytest.mark.parametrize("id", [1, 42, 2**63 - 1])
def test_page_token_detects_a_changed_character(id: int) -> None:
    token = page_tokens.make(POSTS, id)

    for index, character in enumerate(token):
        for other in string.printable:
            if other != character:
                with pytest.raises(PageTokenInvalid):
                    page_tokens.read(token[:index] + other + token[index + 1 :], POSTS)


def test_page_token_detects_swapped_and_missing_characters() -> None:
    """Swapped and missing characters are detected."""
    token = page_tokens.make(POSTS, 42)

    for index in range(len(token) - 1):
        swapped = token[:index] + token[index + 1] + token[index] + token[index + 2 :]
        for changed in {swapped, token[:index] + token[index + 1 :]} - {token}:
            with pytest.raises(PageTokenInvalid):
                page_tokens.read(changed, POSTS)


def test_page_token_of_another_version_is_refused() -> None:
    """A token with another version number is refused, even if its checksum is right."""
    packed = bytearray(base64.urlsafe_b64decode(page_tokens.make(POSTS, 42)))
    head = bytes([2]) + bytes(packed[1:17])
    newer = base64.urlsafe_b64encode(head + page_tokens._checksum(head)).decode()

    with pytest.raises(PageTokenInvalid):
        page_tokens.read(newer, POSTS)


@pytest.mark.parametrize("position", [b"[" * 100_000, b"9" * 5_000, b"\xff", b"[1,2.0]", b"[1,true]", b'"G"'])
def test_page_token_with_another_position_is_refused(position: bytes) -> None:
    """A token whose position is not one of its query is refused, even if its checksum is right."""
    body = page_tokens._HEAD.pack(2, page_tokens._hash(BY_TIME)) + position
    token = base64.urlsafe_b64encode(body + page_tokens._checksum(body)).decode().rstrip("=")

    with pytest.raises(PageTokenInvalid):
        page_tokens.read(token, BY_TIME)


@pytest.mark.parametrize("id", range(0, 2000, 37))
def test_page_token_needs_no_url_quoting(id: int) -> None:
    """32 characters."""
    token = page_tokens.make(POSTS, id)

    assert len(token) == 32
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")
