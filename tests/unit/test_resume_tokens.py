"""Resume tokens: their format, and the refusal of damaged and foreign tokens."""

import base64
import string
import struct

import pytest

from store_service.errors import ResumeTokenForeign, ResumeTokenInvalid
from store_service.model import Position, ResourceKind, ResumePoint, SnapshotCursor
from store_service.service import resume_tokens

STORE = "0f7bb9a1c2d34e5f8a9b0c1d2e3f4a5b"
LIVE = ResumePoint(position=Position(xid=7, seq=42, time=1_700_000_000_000_000))
MIDST = ResumePoint(
    position=Position(xid=7, seq=42, time=1_700_000_000_000_000),
    snapshot=SnapshotCursor(kind=ResourceKind.COMMENT, post_id=3, id=99),
)
SEEN = ResumePoint(
    position=Position(xid=7, seq=42, time=1_700_000_000_000_000),
    snapshot=SnapshotCursor(kind=ResourceKind.POST, id=5),
    seen=Position(xid=9, seq=50, time=1_700_000_001_000_000),
)
BOOKMARKS = [
    LIVE,
    MIDST,
    SEEN,
    ResumePoint(position=Position(xid=0, seq=0)),
    ResumePoint(position=Position(xid=2**63 - 1, seq=2**63 - 1)),
    ResumePoint(position=Position(xid=1, seq=0), snapshot=SnapshotCursor(kind=ResourceKind.POST)),
    ResumePoint(
        position=Position(xid=1, seq=1),
        snapshot=SnapshotCursor(kind=ResourceKind.COMMENT, post_id=2**63 - 1, id=2**63 - 1),
    ),
]


@pytest.mark.parametrize("resume_point", BOOKMARKS, ids=str)
def test_resume_token_holds_its_position(resume_point: ResumePoint) -> None:
    assert resume_tokens.read(resume_tokens.make(STORE, resume_point), STORE) == resume_point


def test_page_token_format_is_stable() -> None:
    """Old formats stay readable."""
    assert resume_tokens.make(STORE, LIVE) == TOKEN_OF_LIVE
    assert resume_tokens.read(TOKEN_OF_LIVE, STORE) == LIVE
    assert resume_tokens.make(STORE, MIDST) == TOKEN_OF_MIDST
    assert resume_tokens.read(TOKEN_OF_MIDST, STORE) == MIDST
    assert resume_tokens.make(STORE, SEEN) == TOKEN_OF_SEEN
    assert resume_tokens.read(TOKEN_OF_SEEN, STORE) == SEEN


TOKEN_OF_LIVE = "AVfWkxkY1O4tAAAAAAAAAAAHAAAAAAAAACoABgokGB5AAAAAAAAAAAAAAAAAAAAAAAColGGcexJeLPF3jUBAckQ1"
TOKEN_OF_SEEN = (
    "AlfWkxkY1O4tAQAAAAAAAAAHAAAAAAAAACoABgokGB5AAAAAAAAAAAAAAAAA"
    "AAAAAAUAAAAAAAAACQAAAAAAAAAyAAYKJBgtgkBl9_JN7hI3NPYbzsQxpUgd"
)
TOKEN_OF_MIDST = "AVfWkxkY1O4tAgAAAAAAAAAHAAAAAAAAACoABgokGB5AAAAAAAAAAAADAAAAAAAAAGNxgK0myubiaKeoBc5asUmi"


@pytest.mark.parametrize("resume_point", BOOKMARKS, ids=str)
def test_resume_token_is_bound_to_its_database(resume_point: ResumePoint) -> None:
    token = resume_tokens.make(STORE, resume_point)

    with pytest.raises(ResumeTokenForeign):
        resume_tokens.read(token, "f" + STORE[1:])


@pytest.mark.parametrize("token", [TOKEN_OF_LIVE, TOKEN_OF_MIDST, TOKEN_OF_SEEN])
def test_page_token_detects_a_changed_character(token: str) -> None:
    for index, character in enumerate(token):
        for other in string.printable:
            if other != character:
                with pytest.raises(ResumeTokenInvalid):
                    resume_tokens.read(token[:index] + other + token[index + 1 :], STORE)


@pytest.mark.parametrize("token", [TOKEN_OF_LIVE, TOKEN_OF_MIDST, TOKEN_OF_SEEN])
def test_resume_token_detects_a_changed_bit(token: str) -> None:
    """A damaged database hash is damage, not a foreign token."""
    packed = base64.urlsafe_b64decode(token)

    for bit in range(8 * len(packed)):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ResumeTokenInvalid):
            resume_tokens.read(base64.urlsafe_b64encode(damaged).decode(), STORE)


def test_resume_token_detects_swapped_missing_and_extra_characters() -> None:
    """Swapped, missing and additional characters are detected."""
    token = TOKEN_OF_MIDST
    changed = {token + end for end in ("=", "A", "\n", " ", "AAAA", "====")} | {" " + token, "AAAA" + token}
    for index in range(len(token)):
        changed.add(token[:index] + token[index + 1 : index + 2] + token[index] + token[index + 2 :])
        changed.add(token[:index] + token[index + 1 :])
        changed.add(token[:index])

    for other in changed - {token}:
        with pytest.raises(ResumeTokenInvalid):
            resume_tokens.read(other, STORE)


@pytest.mark.parametrize("text", ["", "token", "é" * 72, "\0" * 72, "=" * 72, "A" * 72, "A" * 100_000])
def test_arbitrary_text_is_invalid(text: str) -> None:
    """Any other text is refused with RESUME_TOKEN_INVALID."""
    with pytest.raises(ResumeTokenInvalid):
        resume_tokens.read(text, STORE)


@pytest.mark.parametrize("version", [0, 2, 3])
def test_page_token_of_another_version_is_refused(version: int) -> None:
    """A token with another version, or with the size of another version, is refused."""
    with pytest.raises(ResumeTokenInvalid):
        resume_tokens.read(_forged(version=version), STORE)


@pytest.mark.parametrize("phase", [3, 255])
def test_unknown_phase_is_refused(phase: int) -> None:
    """With the same error as a damaged token."""
    with pytest.raises(ResumeTokenInvalid):
        resume_tokens.read(_forged(phase=phase), STORE)


@pytest.mark.parametrize("resume_point", BOOKMARKS, ids=str)
def test_resume_token_needs_no_url_quoting(resume_point: ResumePoint) -> None:
    """88 characters, or 120 with the position of the last change that an initial state contains."""
    token = resume_tokens.make(STORE, resume_point)

    assert len(token) == (88 if resume_point.seen is None else 120)
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


def _forged(*, version: int = 1, phase: int = 0) -> str:
    """Returns a token with a valid checksum."""
    head = struct.pack(">B8sBqqqqq", version, resume_tokens._hash(STORE), phase, 7, 42, 0, 0, 0)
    return base64.urlsafe_b64encode(head + resume_tokens._checksum(head)).decode()
