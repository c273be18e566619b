"""Page tokens: where the next page of a query starts. Every process can read them, and they never expire.

24 bytes in URL-safe base64: 1 version, 8 hash of the query, 8 last id (signed, big endian), 7 checksum. The
checksum detects damage, not forgery: a forged token gives no access to more than a list call does.
"""

import base64
import binascii
import struct
from hashlib import blake2b

from store_service.errors import PageTokenInvalid, PageTokenMismatch
from store_service.model import Query

_VERSION = 1
_FORM = struct.Struct(">B8sq7s")


def make(query: Query, *, last_id: int) -> str:
    """Returns the token of the page of `query` that starts after the id `last_id`."""
    head = struct.pack(">B8sq", _VERSION, _hash(query), last_id)
    return base64.urlsafe_b64encode(head + _checksum(head)).decode("ascii")


def last_id(token: str, query: Query) -> int:
    """Returns the id after which the page of a token starts.

    Raises:
        PageTokenInvalid: The token is damaged, or not a page token.
        PageTokenMismatch: The token belongs to a different query.
    """
    try:
        packed = base64.b64decode(token, altchars=b"-_", validate=True)
        version, query_hash, id, check = _FORM.unpack(packed)
    except (binascii.Error, struct.error, ValueError):
        raise _invalid() from None
    # The decoder also accepts "+" for "-", "/" for "_", and "=" at the end. A token has only one spelling.
    if {"+", "/", "="} & set(token) or version != _VERSION or check != _checksum(packed[: -len(check)]):
        raise _invalid()
    if query_hash != _hash(query):
        raise PageTokenMismatch.at(
            "page_token", "belongs to a different query; only page_size may change between pages"
        )
    return int(id)


def _invalid() -> Exception:
    return PageTokenInvalid.at("page_token", "is not a next_page_token of this service, or is damaged")


def _hash(query: Query) -> bytes:
    return blake2b(f"{query.resource} {query.order} {query.post_id}".encode(), digest_size=8).digest()


def _checksum(head: bytes) -> bytes:
    return blake2b(head, digest_size=7).digest()
