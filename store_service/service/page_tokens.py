"""Page tokens: where the next page of a query starts. Every process can read them, and they never expire.

URL-safe base64 of 1 version, 8 hash of the query, the position after the last row, 7 checksum. In version 1
the position is an id (8 bytes, signed, big endian). In version 2 it is JSON: [time, id], a thread key, or
[id, score, id] of a search by relevance. The
checksum detects damage, not forgery: a forged token gives no access to more than a list call does.
"""

import base64
import binascii
import json
import struct
from dataclasses import astuple
from hashlib import blake2b
from typing import Any

from store_service.database.statements import AFTER_DIGITS
from store_service.errors import PageTokenInvalid, PageTokenMismatch
from store_service.model import EMPTY_FILTER, Query
from store_service.service.scans import Cursor

_TYPES = {"id": int, "create_time": tuple, "thread": str, "relevance": tuple}
"""The type of the position, by the order without its direction."""

_LENGTHS = {"create_time": 2, "relevance": 3}
"""The length of a position that is a tuple."""

_HEAD = struct.Struct(">B8s")
_ID = struct.Struct(">q")
_CHECKSUM_BYTES = 7
_KEY_CHARACTERS = frozenset("0123456789abcdef" + AFTER_DIGITS)


def make(query: Query, cursor: Cursor) -> str:
    """Returns the token of the page of `query` that starts after a position."""
    if isinstance(cursor, int):
        body = _HEAD.pack(1, _hash(query)) + _ID.pack(cursor)
    else:
        body = _HEAD.pack(2, _hash(query)) + json.dumps(cursor).encode()
    packed = body + _checksum(body)
    return base64.urlsafe_b64encode(packed).decode("ascii").rstrip("=")


def read(token: str, query: Query) -> Cursor:
    """Returns the position after which the page of a token starts.

    Raises:
        PageTokenInvalid: The token is damaged, or not a page token.
        PageTokenMismatch: The token belongs to a different query.
    """
    try:
        packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        version, query_hash = _HEAD.unpack_from(packed)
    except (binascii.Error, struct.error, ValueError):
        raise _invalid() from None
    body = packed[:-_CHECKSUM_BYTES]
    # The decoder also accepts other spellings of the same bytes. A token has only one.
    has_one_spelling = base64.urlsafe_b64encode(packed).decode("ascii").rstrip("=") == token
    if not has_one_spelling or packed[-_CHECKSUM_BYTES:] != _checksum(body):
        raise _invalid()
    cursor = _cursor(version, body[_HEAD.size :])
    if query_hash != _hash(query):
        raise PageTokenMismatch.at(
            "page_token", "belongs to a different query; only page_size may change between pages"
        )
    order = query.order.removesuffix(" desc")
    if type(cursor) is not _TYPES[order] or (isinstance(cursor, tuple) and len(cursor) != _LENGTHS[order]):
        raise _invalid()
    return cursor


def _cursor(version: int, packed: bytes) -> Cursor:
    if version == 1 and len(packed) == _ID.size:
        (id,) = _ID.unpack(packed)
        return int(id)
    try:
        cursor: Any = json.loads(packed) if version == 2 else None
    except (ValueError, RecursionError):
        raise _invalid() from None
    if isinstance(cursor, str) and _KEY_CHARACTERS.issuperset(cursor):
        return cursor
    is_list = isinstance(cursor, list) and len(cursor) in _LENGTHS.values()
    if is_list and all(type(it) is int and -(2**63) <= it < 2**63 for it in cursor):
        return tuple(cursor)
    raise _invalid()


def _invalid() -> Exception:
    return PageTokenInvalid.at("page_token", "is not a next_page_token of this service, or is damaged")


def _hash(query: Query) -> bytes:
    text = f"{query.resource} {query.order} {query.post_id}"
    if query.filter != EMPTY_FILTER:
        *conditions, show_deleted = astuple(query.filter)
        # Tokens of versions without `show_deleted` stay valid.
        text += json.dumps([*conditions, True] if show_deleted else conditions)
    if query.search:
        text += f" search {query.search}"
    return blake2b(text.encode(), digest_size=8).digest()


def _checksum(body: bytes) -> bytes:
    return blake2b(body, digest_size=_CHECKSUM_BYTES).digest()
