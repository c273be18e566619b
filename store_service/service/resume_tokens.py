"""Resume tokens: where a watch goes on, bound to the store, readable by every replica.

66 bytes in url-safe base64: 1 version, 8 hash of the store, 1 phase, 8 xid, 8 seq, 8 time, 8 post id, 8 id
(signed, big endian), 16 hash of the rest. The last hash finds damage, not forgery: whoever forges a token
gets changes that they could have asked for anyway.
"""

import base64
import binascii
import struct
from hashlib import blake2b

from store_service.errors import ResumeTokenForeign, ResumeTokenInvalid
from store_service.model import Position, ResourceKind, ResumePoint, SnapshotCursor

_VERSION = 1
_FORM = struct.Struct(">B8sBqqqqq16s")
_LIVE = 0
"""The phase of a watch that has no snapshot to finish; others are a ResourceKind."""


def make(store_id: str, resume_point: ResumePoint) -> str:
    """The token with which a watch of this store goes on."""
    place = resume_point.snapshot
    head = struct.pack(
        ">B8sBqqqqq",
        _VERSION,
        _hash(store_id),
        _LIVE if place is None else place.kind,
        resume_point.position.xid,
        resume_point.position.seq,
        resume_point.position.time,
        0 if place is None else place.post_id,
        0 if place is None else place.id,
    )
    return base64.urlsafe_b64encode(head + _checksum(head)).decode("ascii")


def read(token: str, store_id: str) -> ResumePoint:
    """Where the token's watch goes on.

    Raises:
        ResumeTokenInvalid: The token is damaged or was never one.
        ResumeTokenForeign: It is of another store.
    """
    try:
        packed = base64.b64decode(token, altchars=b"-_", validate=True)
        version, store_hash, phase, xid, seq, time, post_id, id, check = _FORM.unpack(packed)
    except (binascii.Error, struct.error, ValueError):
        raise _invalid() from None
    # Decoding overlooks some differences; a token has one spelling.
    has_one_spelling = base64.urlsafe_b64encode(packed).decode("ascii") == token
    is_known = version == _VERSION and phase in (_LIVE, *ResourceKind)
    if not has_one_spelling or not is_known or check != _checksum(packed[: -len(check)]):
        raise _invalid()
    if store_hash != _hash(store_id):
        raise foreign()
    place = None if phase == _LIVE else SnapshotCursor(kind=ResourceKind(phase), post_id=post_id, id=id)
    return ResumePoint(position=Position(xid=xid, seq=seq, time=time), snapshot=place)


def foreign() -> Exception:
    """The error of a token whose place this store never had."""
    return ResumeTokenForeign.at(
        "resume_token", "belongs to another store, or to one that was set back; start with initial_state"
    )


def _invalid() -> Exception:
    return ResumeTokenInvalid.at("resume_token", "is no resume_token of this service, or was damaged")


def _hash(store_id: str) -> bytes:
    return blake2b(store_id.encode(), digest_size=8).digest()


def _checksum(head: bytes) -> bytes:
    return blake2b(head, digest_size=16).digest()
