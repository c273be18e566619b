"""Consistency tokens: what a caller has seen of a store. Every process of the store can read them.

50 hexadecimal digits: 1 byte version, 6 hash of the store id, 4 timeline, 8 xid (big endian), 6 checksum. Of
two tokens of one store, the one that is greater as a text includes the other. Resume tokens are accepted too.
The checksum detects damage, not forgery: a forged token makes only its own call wait.
"""

import struct
from hashlib import blake2b

from store_service.errors import (
    ConsistencyTokenForeign,
    ConsistencyTokenInvalid,
    InvalidRequest,
    ResumeTokenForeign,
)
from store_service.model import Position, Seen
from store_service.service import resume_tokens

KEY = "at-least"
"""The metadata with the token of a request."""

_HEAD = struct.Struct(">B6sIq")
_VERSION = 1
_CHECKSUM_BYTES = 6
_DIGITS = 2 * (_HEAD.size + _CHECKSUM_BYTES)


def make(store_id: str, seen: Seen) -> str:
    """Returns the token of what was seen of a store."""
    head = _HEAD.pack(_VERSION, _hash(store_id), seen.timeline, seen.xid)
    return (head + _checksum(head)).hex()


def read(token: str, store_id: str) -> Seen | Position:
    """Returns what the caller with a consistency token has seen, or the position of a resume token.

    Raises:
        ConsistencyTokenInvalid: It is damaged, or not a token.
        ConsistencyTokenForeign: It belongs to another store.
    """
    if len(token) != _DIGITS:
        return _read_resume_token(token, store_id)
    try:
        packed = bytes.fromhex(token)
    except ValueError:
        raise _invalid() from None
    head, check = packed[:-_CHECKSUM_BYTES], packed[-_CHECKSUM_BYTES:]
    # A token has only one spelling.
    if check != _checksum(head) or packed.hex() != token or head[0] != _VERSION:
        raise _invalid()
    _, store_hash, timeline, xid = _HEAD.unpack(head)
    if store_hash != _hash(store_id):
        raise _foreign()
    return Seen(timeline=timeline, xid=xid)


def _read_resume_token(token: str, store_id: str) -> Position:
    try:
        resume_point = resume_tokens.read(token, store_id)
    except ResumeTokenForeign:
        raise _foreign() from None
    except InvalidRequest:
        raise _invalid() from None
    return max(resume_point.position, resume_point.seen or resume_point.position)


def _foreign() -> InvalidRequest:
    return ConsistencyTokenForeign.at(KEY, "belongs to another store; call again without it")


def _invalid() -> InvalidRequest:
    return ConsistencyTokenInvalid.at(
        KEY, "is not a consistency token or resume token of this service, or is damaged"
    )


def _hash(store_id: str) -> bytes:
    return blake2b(store_id.encode(), digest_size=6).digest()


def _checksum(head: bytes) -> bytes:
    return blake2b(head, digest_size=_CHECKSUM_BYTES).digest()
