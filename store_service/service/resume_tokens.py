"""Resume tokens: where a watch continues, bound to the store. Every process of the store can read them.

66 bytes in URL-safe base64: 1 version, 8 hash of the store id, 1 phase, 8 xid, 8 seq, 8 time, 8 post id,
8 id (signed, big endian), 16 checksum. Version 2 has 90 bytes: before the checksum it has 8 xid, 8 seq and
8 time of the last change that the initial state contains. The checksum detects damage, not forgery: a forged
token gives no access to more than a watch does.
"""

import base64
import binascii
import struct
from hashlib import blake2b

from store_service.errors import ResumeTokenForeign, ResumeTokenInvalid
from store_service.model import Position, ResourceKind, ResumePoint, SnapshotCursor

_BASE = struct.Struct(">B8sBqqqqq")
_POSITION = struct.Struct(">qqq")
_CHECKSUM_BYTES = 16
_SIZES = {1: _BASE.size + _CHECKSUM_BYTES, 2: _BASE.size + _POSITION.size + _CHECKSUM_BYTES}
"""Bytes of a token, by version."""
_LIVE = 0
"""The phase of a watch after the initial state. During the initial state the phase is a ResourceKind."""


def make(store_id: str, resume_point: ResumePoint) -> str:
    """Returns the token with which a watch of a store continues at a resume point."""
    cursor, seen = resume_point.snapshot, resume_point.seen
    head = _BASE.pack(
        1 if seen is None else 2,
        _hash(store_id),
        _LIVE if cursor is None else cursor.kind,
        resume_point.position.xid,
        resume_point.position.seq,
        resume_point.position.time,
        0 if cursor is None else cursor.post_id,
        0 if cursor is None else cursor.id,
    )
    if seen is not None:
        head += _POSITION.pack(seen.xid, seen.seq, seen.time)
    return base64.urlsafe_b64encode(head + _checksum(head)).decode("ascii")


def read(token: str, store_id: str) -> ResumePoint:
    """Returns where the watch of a token continues.

    Raises:
        ResumeTokenInvalid: The token is damaged, or not a resume token.
        ResumeTokenForeign: The token belongs to another store.
    """
    try:
        packed = base64.b64decode(token, altchars=b"-_", validate=True)
        version, store_hash, phase, xid, seq, time, post_id, id = _BASE.unpack_from(packed)
    except (binascii.Error, struct.error, ValueError):
        raise _invalid() from None
    # The decoder accepts several spellings of the same bytes. A token has only one spelling.
    has_one_spelling = base64.urlsafe_b64encode(packed).decode("ascii") == token
    is_known = _SIZES.get(version) == len(packed) and phase in (_LIVE, *ResourceKind)
    head, check = packed[:-_CHECKSUM_BYTES], packed[-_CHECKSUM_BYTES:]
    if not has_one_spelling or not is_known or check != _checksum(head):
        raise _invalid()
    if store_hash != _hash(store_id):
        raise foreign()
    cursor = None if phase == _LIVE else SnapshotCursor(kind=ResourceKind(phase), post_id=post_id, id=id)
    seen = None if version == 1 else _position(_POSITION.unpack_from(packed, _BASE.size))
    return ResumePoint(position=_position((xid, seq, time)), snapshot=cursor, seen=seen)


def _position(numbers: tuple[int, int, int]) -> Position:
    xid, seq, time = numbers
    return Position(xid=xid, seq=seq, time=time)


def foreign() -> Exception:
    """Returns the error of a token whose position this store does not have."""
    return ResumeTokenForeign.at(
        "resume_token",
        "belongs to another store, or to changes that this store has lost; start with initial_state",
    )


def _invalid() -> Exception:
    return ResumeTokenInvalid.at("resume_token", "is not a resume_token of this service, or is damaged")


def _hash(store_id: str) -> bytes:
    return blake2b(store_id.encode(), digest_size=8).digest()


def _checksum(head: bytes) -> bytes:
    return blake2b(head, digest_size=_CHECKSUM_BYTES).digest()
