"""Consistency tokens: their order, their two forms, and damage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store_service.errors import ConsistencyTokenForeign, ConsistencyTokenInvalid
from store_service.model import NOTHING_SEEN, Position, ResumePoint, Seen
from store_service.service import consistency_tokens, resume_tokens

STORE = "5f0c1e0e4f0a4f0f9d0f4a5b6c7d8e9f"
TOKEN = consistency_tokens.make(STORE, Seen(timeline=2, xid=1234))

seen = st.builds(Seen, timeline=st.integers(0, 2**32 - 1), xid=st.integers(0, 2**63 - 1))


@given(seen)
def test_token_contains_what_was_seen(seen: Seen) -> None:
    assert consistency_tokens.read(consistency_tokens.make(STORE, seen), STORE) == seen


@given(seen, seen)
def test_tokens_are_ordered_as_texts(first: Seen, second: Seen) -> None:
    """So every client can keep the newest one."""
    tokens = [consistency_tokens.make(STORE, it) for it in (first, second)]

    assert (tokens[0] < tokens[1]) == (first < second)


def test_later_timeline_includes_an_earlier_one() -> None:
    """After a failover, a token of changes that were lost does not outlive newer ones."""
    assert Seen(timeline=3, xid=5) > Seen(timeline=2, xid=9)
    assert min(Seen(timeline=1, xid=1), NOTHING_SEEN) == NOTHING_SEEN


def test_resume_token_is_accepted() -> None:
    """That of an initial state includes its pages."""
    position, later = Position(xid=7, seq=1, time=5), Position(xid=9, seq=4, time=6)
    tokens = [
        resume_tokens.make(STORE, ResumePoint(position=position)),
        resume_tokens.make(STORE, ResumePoint(position=position, seen=later)),
    ]

    assert [consistency_tokens.read(it, STORE) for it in tokens] == [position, later]
    with pytest.raises(ConsistencyTokenForeign):
        consistency_tokens.read(tokens[0], "another store")


def test_token_of_another_store_is_refused() -> None:
    with pytest.raises(ConsistencyTokenForeign):
        consistency_tokens.read(TOKEN, "another store")


@pytest.mark.parametrize("index", range(len(TOKEN)))
def test_damaged_token_is_refused(index: int) -> None:
    """Each changed digit is found, and each other spelling."""
    digit = "0" if TOKEN[index] != "0" else "1"
    for damaged in (TOKEN[:index] + digit + TOKEN[index + 1 :], TOKEN[:index], TOKEN[:index].upper()):
        with pytest.raises(ConsistencyTokenInvalid):
            consistency_tokens.read(damaged, STORE)


@pytest.mark.parametrize("token", ["", "x", TOKEN.upper(), TOKEN + " ", "é" * 50, " " * 50, TOKEN[:-1] + "g"])
def test_other_texts_are_refused(token: str) -> None:
    with pytest.raises(ConsistencyTokenInvalid):
        consistency_tokens.read(token, STORE)
